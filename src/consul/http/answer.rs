//! What Consul's answers mean, once they came whole.

use std::fmt;

use jiff::Timestamp;
use reqwest::StatusCode;
use serde::de::DeserializeOwned;

use super::{
    errors,
    survey::{Census, date},
    transport::Reply,
    wire::{self, Trace},
};
use crate::{
    consul::{
        Class, ConsulError, KvPair, Listing, Operation, Reading, Renewal, SessionInfo, TokenInfo,
        Txn, TxnOp,
    },
    names::{Key, NodeName, SessionId},
};

/// A reply and the call that it belongs to.
pub(super) struct Answer {
    pub(super) operation: Operation,
    pub(super) reply: Reply,
}

impl Answer {
    fn error(&self, class: Class, message: String) -> ConsulError {
        ConsulError { operation: self.operation, class, message }
    }

    /// For answers that no Consul gives: a proxy's, or half of one.
    fn odd(&self, what: impl fmt::Display) -> ConsulError {
        let words = errors::words(what.to_string().as_bytes());
        self.error(
            errors::unanswered(self.operation),
            format!("not an answer of Consul's: {words}"),
        )
    }

    fn json<T: DeserializeOwned>(&self) -> Result<T, ConsulError> {
        serde_json::from_slice(&self.reply.body).map_err(|error| self.odd(error))
    }

    fn index(&self) -> Result<u64, ConsulError> {
        if let Some(index) = self.reply.index {
            return Ok(index.max(1)); // 0 would not block
        }
        match self.reply.status {
            // Somebody else's 404 must not pass for a key that is missing.
            StatusCode::NOT_FOUND => {
                let words = "404 from something that is not Consul; check its address".to_owned();
                Err(self.error(Class::Invalid, words))
            }
            _ => Err(self.odd("X-Consul-Index is missing")),
        }
    }

    /// An answer from which ACLs took something away must not pass for the whole.
    fn unfiltered(&self, rule: impl FnOnce() -> String) -> Result<(), ConsulError> {
        match self.reply.filtered {
            true => {
                let words = format!("ACLs hide part of the answer; the token lacks {}", rule());
                Err(self.error(Class::Denied, words))
            }
            false => Ok(()),
        }
    }

    fn pairs(&self) -> Result<Vec<KvPair>, ConsulError> {
        if self.reply.status == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        let wire: Vec<wire::Kv> = self.json()?;
        let pairs: Result<Vec<KvPair>, _> = wire.into_iter().map(KvPair::try_from).collect();
        pairs.map_err(|error| self.odd(error))
    }

    fn sessions(&self) -> Result<Vec<SessionInfo>, ConsulError> {
        let wire: Vec<wire::Session> = self.json()?;
        Ok(wire.into_iter().map(SessionInfo::from).collect())
    }

    /// Consul did what was asked.
    pub(super) fn done(&self) -> Result<(), ConsulError> {
        self.json::<bool>().map(drop)
    }

    /// Whether Consul did what was asked.
    pub(super) fn verdict(&self) -> Result<bool, ConsulError> {
        self.json()
    }

    pub(super) fn created(&self) -> Result<SessionId, ConsulError> {
        Ok(SessionId::new(self.json::<wire::CreatedSession>()?.id))
    }

    pub(super) fn renewal(&self, id: &SessionId) -> Result<Renewal, ConsulError> {
        let session = self.sessions()?.into_iter().next();
        match session.ok_or_else(|| self.odd("no session in it"))?.ttl {
            Some(ttl) => Ok(Renewal { ttl }),
            None => Err(self.error(Class::Invalid, format!("session {id} has no TTL"))),
        }
    }

    pub(super) fn session(&self) -> Result<Option<SessionInfo>, ConsulError> {
        self.index()?; // an empty list of somebody else's is no lost session
        self.unfiltered(|| "session:read on the session's node".to_owned())?;
        Ok(self.sessions()?.into_iter().next())
    }

    pub(super) fn sessions_of(&self, node: &NodeName) -> Result<Vec<SessionInfo>, ConsulError> {
        self.index()?;
        self.unfiltered(|| format!("session:read on {:?}", node.as_str()))?;
        self.sessions()
    }

    pub(super) fn census(&self) -> Result<Census, ConsulError> {
        self.index()?;
        Ok(Census { sessions: self.sessions()?, is_filtered: self.reply.filtered })
    }

    pub(super) fn reading(&self, key: &Key) -> Result<Reading, ConsulError> {
        let index = self.index()?;
        self.unfiltered(|| format!("key:read on {:?}", key.as_str()))?;
        let pair = self.pairs()?.into_iter().next();
        Ok(Reading { pair, index })
    }

    pub(super) fn listing(&self, prefix: &str) -> Result<Listing, ConsulError> {
        let index = self.index()?;
        self.unfiltered(|| format!("key:read under {prefix:?}"))?;
        Ok(Listing { pairs: self.pairs()?, index })
    }

    /// `None`: there is none at present.
    pub(super) fn leader(&self) -> Result<Option<String>, ConsulError> {
        let leader: String = self.json()?;
        Ok(Some(leader).filter(|leader| !leader.is_empty()))
    }

    pub(super) fn token(&self) -> Result<TokenInfo, ConsulError> {
        Ok(self.json::<wire::Token>()?.into())
    }

    /// What the server's clock said, if it said something.
    pub(super) fn date(&self) -> Option<Timestamp> {
        self.reply.date.as_deref().and_then(date)
    }

    pub(super) fn transaction(&self, steps: &[TxnOp]) -> Result<Txn, ConsulError> {
        let wire: wire::Txn = self.json()?;
        let refused = wire.errors.unwrap_or_default();
        if self.reply.status == StatusCode::CONFLICT || !refused.is_empty() {
            return self.rolled_back(refused);
        }
        let traces: Vec<Trace> =
            steps.iter().map(Trace::of).filter(|trace| *trace != Trace::Nothing).collect();
        let results = wire.results.unwrap_or_default();
        if results.len() != traces.len() {
            return Err(self.odd(format!("{} results of {}", results.len(), traces.len())));
        }
        let written = traces.into_iter().zip(results).filter(|(trace, _)| *trace == Trace::Wrote);
        let pairs: Result<Vec<KvPair>, _> =
            written.map(|(_, result)| KvPair::try_from(result.kv)).collect();
        pairs.map(Txn::Committed).map_err(|error| self.odd(error))
    }

    /// Denials come in the same form as refusals of steps.
    fn rolled_back(&self, refused: Vec<wire::TxnError>) -> Result<Txn, ConsulError> {
        let denied = |error: &&wire::TxnError| error.what.contains("Permission denied");
        if let Some(denial) = refused.iter().find(denied) {
            return Err(self.error(Class::Denied, errors::words(denial.what.as_bytes())));
        }
        if refused.is_empty() {
            return Err(self.odd("409 without a reason"));
        }
        Ok(Txn::RolledBack(refused.into_iter().map(Into::into).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_answer_is_quoted_in_one_line_that_fits_into_a_condition() {
        let reply = Reply {
            status: StatusCode::OK,
            body: format!("{:?}", "x".repeat(10_000)).into_bytes(),
            index: Some(1),
            filtered: false,
            date: None,
        };
        let error = Answer { operation: Operation::WriteKey, reply }.verdict().unwrap_err();
        assert_eq!(error.class, Class::UnknownOutcome);
        assert!(error.message.starts_with("not an answer of Consul's: invalid type"), "{error}");
        assert!(error.message.len() < 400, "{} bytes", error.message.len());
    }
}
