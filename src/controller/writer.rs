//! Every write to the Kubernetes API: bounded in time, and only while this replica leads.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    api::{ConsulLock, FINALIZER},
    clock::{Clock, Elapsed},
};

/// Answers whether this replica still leads.
pub type MayAct = Arc<dyn Fn() -> bool + Send + Sync>;

/// How long the API server may take over one write.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who we are in `managedFields`.
const FIELD_MANAGER: &str = "consul-lock";

/// A write that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Not even tried.
    #[error("this replica does not lead")]
    NotLeading,
    /// Whether it happened is unknown. The next walk finds out.
    #[error("the API server gave {0}")]
    NoAnswer(#[from] Elapsed),
    /// The API server said no, or could not be reached.
    #[error("{}", words(.0))]
    Refused(#[source] Box<kube::Error>),
}

/// What a failed write means for the next one. Also a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// May succeed later.
    Transient,
    /// The object changed meanwhile: read it again.
    Conflict,
    /// The object is gone.
    Gone,
    /// A permission is missing.
    Denied,
    /// The API server will never accept this.
    Invalid,
    /// This replica does not lead.
    NotLeading,
}

impl Class {
    /// As a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Transient => "Transient",
            Class::Conflict => "Conflict",
            Class::Gone => "Gone",
            Class::Denied => "Denied",
            Class::Invalid => "Invalid",
            Class::NotLeading => "NotLeading",
        }
    }
}

impl WriteError {
    /// What the failure means.
    pub fn class(&self) -> Class {
        match self {
            WriteError::NotLeading => Class::NotLeading,
            WriteError::NoAnswer(_) => Class::Transient,
            WriteError::Refused(error) => match error.as_ref() {
                kube::Error::Api(status) => match status.code {
                    409 => Class::Conflict,
                    404 | 410 => Class::Gone,
                    401 | 403 => Class::Denied,
                    400 | 422 => Class::Invalid,
                    _ => Class::Transient,
                },
                _ => Class::Transient,
            },
        }
    }
}

/// The server's own words, without the debug output that kube adds to them.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Writes to the Kubernetes API.
pub(super) struct Writer {
    client: Client,
    clock: Clock,
    may_act: MayAct,
}

impl Writer {
    pub(super) fn new(client: Client, clock: Clock, may_act: MayAct) -> Writer {
        Writer { client, clock, may_act }
    }

    /// Puts our finalizer on the claim; returns the claim as it is then.
    pub(super) async fn add_finalizer(&self, claim: &ConsulLock) -> Result<ConsulLock, WriteError> {
        let mut finalizers = claim.finalizers().to_vec();
        finalizers.push(FINALIZER.to_owned());
        self.set_finalizers(claim, &finalizers).await
    }

    /// Takes our finalizer off the claim. A claim that is gone needs none.
    pub(super) async fn remove_finalizer(
        &self,
        claim: &ConsulLock,
    ) -> Result<Option<ConsulLock>, WriteError> {
        let mut finalizers = claim.finalizers().to_vec();
        finalizers.retain(|name| name != FINALIZER);
        none_if_gone(self.set_finalizers(claim, &finalizers).await)
    }

    async fn set_finalizers(
        &self,
        claim: &ConsulLock,
        finalizers: &[String],
    ) -> Result<ConsulLock, WriteError> {
        let patch = json!({
            "metadata": {
                "finalizers": finalizers,
                "resourceVersion": claim.metadata.resource_version,
            },
        });
        let (api, name) = (self.claims(claim), claim.name_any());
        let (params, patch) = (PatchParams::apply(FIELD_MANAGER), Patch::Merge(patch));
        self.attempt(api.patch(&name, &params, &patch)).await
    }

    /// Patches the claim's status; `None` if the claim is gone.
    pub(super) async fn patch_status(
        &self,
        claim: &ConsulLock,
        change: Value,
    ) -> Result<Option<ConsulLock>, WriteError> {
        let patch = json!({
            "metadata": { "resourceVersion": claim.metadata.resource_version },
            "status": change,
        });
        let (api, name) = (self.claims(claim), claim.name_any());
        let (params, patch) = (PatchParams::apply(FIELD_MANAGER), Patch::Merge(patch));
        none_if_gone(self.attempt(api.patch_status(&name, &params, &patch)).await)
    }

    /// Publishes an event.
    pub(super) async fn create_event(&self, event: &Event) -> Result<(), WriteError> {
        let namespace = event.namespace().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        self.attempt(api.create(&PostParams::default(), event)).await.map(drop)
    }

    async fn attempt<T>(
        &self,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, WriteError> {
        if !(self.may_act)() {
            return Err(WriteError::NotLeading);
        }
        self.clock
            .timeout(PATIENCE, call)
            .await?
            .map_err(|error| WriteError::Refused(Box::new(error)))
    }

    fn claims(&self, claim: &ConsulLock) -> Api<ConsulLock> {
        let namespace = claim.namespace().unwrap_or_default();
        Api::namespaced(self.client.clone(), &namespace)
    }
}

fn none_if_gone<T>(written: Result<T, WriteError>) -> Result<Option<T>, WriteError> {
    match written {
        Ok(claim) => Ok(Some(claim)),
        Err(error) if error.class() == Class::Gone => Ok(None),
        Err(error) => Err(error),
    }
}
