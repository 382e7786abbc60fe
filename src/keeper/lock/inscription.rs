//! What is written into the key for a tenure, or an attempt at one, and by which we know our own
//! writing again. Pure.

use std::sync::Arc;

use jiff::Timestamp;

use super::Payload;
use crate::{election::Leader, lock::key::Expect, names::FencingToken};

pub(super) struct Inscription {
    payload: Payload,
    tenant: Option<Arc<Leader>>,
    since: Timestamp,
    value: Vec<u8>,
    /// What was written by attempts that may have taken the key, and what they expected of it.
    attempts: (Option<Expect>, Vec<Vec<u8>>),
}

impl Inscription {
    /// Of a tenure that began then; `token`: if there is one already.
    pub(super) fn new(
        payload: Payload,
        tenant: Option<Arc<Leader>>,
        since: Timestamp,
        token: Option<FencingToken>,
    ) -> Inscription {
        let (value, attempts) = (Vec::new(), (None, Vec::new()));
        let mut inscription = Inscription { payload, tenant, since, value, attempts };
        inscription.renew(token);
        inscription
    }

    /// A tenure, or an attempt at one, begins anew.
    pub(super) fn begin(&mut self, tenant: Option<Arc<Leader>>, since: Timestamp) {
        (self.tenant, self.since) = (tenant, since);
        self.renew(None);
    }

    /// Whether this is another payload than before. [`Inscription::renew`] takes it into the value.
    pub(super) fn set_payload(&mut self, payload: Payload) -> bool {
        let is_another = self.payload != payload;
        self.payload = payload;
        is_another
    }

    /// Makes the value anew, with the token if one has become known; says whether it is another.
    pub(super) fn renew(&mut self, token: Option<FencingToken>) -> bool {
        let elected = self.tenant.as_ref().map(|tenant| &*tenant.pod);
        let value = self.payload.written(elected, &self.since_as_written(), token);
        let is_another = self.value != value;
        self.value = value;
        is_another
    }

    /// The pod that the tenure is for, or the attempt.
    pub(super) fn tenant(&self) -> Option<&Arc<Leader>> {
        self.tenant.as_ref()
    }

    /// When it began, as it is written.
    pub(super) fn since(&self) -> Timestamp {
        self.since
    }

    /// What the key should carry while we hold it.
    pub(super) fn value(&self) -> &[u8] {
        &self.value
    }

    /// The value is sent to a key of which this is expected. What was sent to one of which something
    /// else was expected cannot take it any more.
    pub(super) fn attempted(&mut self, expect: Expect) {
        if self.attempts.0 != Some(expect) {
            self.attempts = (Some(expect), Vec::new());
        }
        self.attempts.1.push(self.value.clone());
    }

    /// What was sent last did not take the key.
    pub(super) fn attempt_failed(&mut self) {
        self.attempts.1.pop();
    }

    /// Whether an attempt of ours wrote this. Who made it and when is part of what it writes: only of
    /// two that are called the same, in the same second, one whose answer was lost might take the
    /// other's for its own.
    pub(super) fn is_of_an_attempt(&self, value: &[u8]) -> bool {
        self.attempts.1.iter().any(|written| written == value)
    }

    /// Whether this value is that of a tenure that began at another time. What somebody else wrote
    /// over it says nothing.
    pub(super) fn began_otherwise(&self, value: &[u8]) -> bool {
        let value = serde_json::from_slice::<serde_json::Value>(value).unwrap_or_default();
        value["since"].as_str().is_some_and(|since| since != self.since_as_written())
    }

    fn since_as_written(&self) -> String {
        self.since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }
}
