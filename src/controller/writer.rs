//! Every write to the Kubernetes API: bounded in time, and only while this replica leads.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    batch::v1::Job, core::v1::Pod, discovery::v1::EndpointSlice, events::v1::Event,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::{PartialObjectMeta, Status},
};
use serde_json::{Value, json};

use super::course::{Dress, Open, Remove, Strip};
use crate::{
    api::{ConsulLock, FINALIZER},
    clock::{Clock, Elapsed},
    election::{BADGE, GATE, SLICE_TOKEN_ANNOTATION, label, relieved_annotation, token_annotation},
};

/// Answers whether this replica still leads.
pub type MayAct = Arc<dyn Fn() -> bool + Send + Sync>;

/// How long the API server may take over one write.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who we are in `managedFields`.
const FIELD_MANAGER: &str = "consul-lock";

/// The annotation of a slice that tells when its endpoint was taken away.
const EMPTIED_ANNOTATION: &str = "consullock.dev/emptied-at";

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
    /// Whether the object had changed meanwhile, rather than another one having its name.
    pub(super) fn is_outdated(&self) -> bool {
        let WriteError::Refused(error) = self else { return false };
        matches!(&**error, kube::Error::Api(answer) if answer.code == 409 && answer.reason == "Conflict")
    }

    /// What the failure means.
    pub fn class(&self) -> Class {
        match self {
            WriteError::NotLeading => Class::NotLeading,
            WriteError::NoAnswer(_) => Class::Transient,
            WriteError::Refused(error) => match error.as_ref() {
                kube::Error::Api(status) if is_another(status) => Class::Gone,
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

/// Whether a write that was meant for one object met another of its name: the API server does not
/// let a UID change, nor delete by another one.
fn is_another(status: &Status) -> bool {
    let causes = status.details.as_ref().map(|details| &details.causes[..]).unwrap_or_default();
    let immutable = causes.iter().any(|cause| cause.field == "metadata.uid");
    // In words alone: those of its registry, and those of its storage.
    let by_another_one = ["UID in the precondition", "UID in precondition"];
    immutable || status.code == 409 && by_another_one.iter().any(|one| status.message.contains(one))
}

/// A deletion of one object, not of its namesake.
fn only_of(uid: Option<String>) -> DeleteParams {
    let preconditions = Some(Preconditions { uid, resource_version: None });
    DeleteParams { preconditions, ..DeleteParams::default() }
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

    /// Gives a pod a claim's label and token, if it is still as it was when that was decided, so
    /// that a write which arrives late finds another version. Returns the version that it has now.
    pub(super) async fn dress(
        &self,
        namespace: &str,
        dress: &Dress,
        claim: &str,
    ) -> Result<Option<String>, WriteError> {
        let token = dress.token.to_string();
        let mut patch = json!({
            "metadata": {
                "uid": &*dress.uid,
                "labels": { label(claim): BADGE },
                "annotations": { token_annotation(claim): token, relieved_annotation(claim): null },
            },
        });
        only_over(&mut patch, dress.over.as_deref());
        let dressed = self.patch_metadata(namespace, &dress.pod, patch).await?;
        Ok(dressed.resource_version())
    }

    /// Relieves a pod of a claim's label and token, after it was deleted if that is asked for: a
    /// crash in between must not leave a pod that nobody knows to have lost its tenure. The write
    /// changes the pod in any case, so a label that is still on its way is refused. A pod that is
    /// gone carries nothing, and its namesake is not meant.
    pub(super) async fn strip(
        &self,
        namespace: &str,
        strip: &Strip,
        claim: &str,
    ) -> Result<(), WriteError> {
        let deleted = match strip.delete {
            true => self.delete_pod(namespace, strip).await,
            false => Ok(()),
        };
        let never = |error: &WriteError| matches!(error.class(), Class::Denied | Class::Invalid);
        if deleted.as_ref().is_err_and(|error| !never(error)) {
            return deleted;
        }
        let patch = json!({
            "metadata": {
                "uid": &*strip.uid,
                "labels": { label(claim): null },
                "annotations": {
                    token_annotation(claim): null,
                    relieved_annotation(claim): self.clock.wall().to_string(),
                },
            },
        });
        let stripped = self.patch_metadata(namespace, &strip.pod, patch).await;
        deleted.and(done_if_gone(stripped.map(drop)))
    }

    async fn delete_pod(&self, namespace: &str, strip: &Strip) -> Result<(), WriteError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = only_of(Some(strip.uid.to_string()));
        done_if_gone(self.attempt(pods.delete(&strip.pod, &params)).await.map(drop))
    }

    /// Removes a Job, and what it made.
    pub(super) async fn remove_job(
        &self,
        namespace: &str,
        remove: &Remove,
    ) -> Result<(), WriteError> {
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), namespace);
        let propagation_policy = DeleteParams::background().propagation_policy;
        let params = DeleteParams { propagation_policy, ..only_of(Some(remove.uid.to_string())) };
        done_if_gone(self.attempt(jobs.delete(&remove.job, &params)).await.map(drop))
    }

    /// Takes our scheduling gate off a pod, if it has the given version still, and leaves those of
    /// others: a write that arrives late must not start a pod whose turn is over.
    pub(super) async fn open_gate(
        &self,
        namespace: &str,
        open: &Open,
        over: Option<&str>,
    ) -> Result<(), WriteError> {
        let mut patch = json!({
            "metadata": { "uid": &*open.uid },
            "spec": { "schedulingGates": [{ "name": GATE, "$patch": "delete" }] },
        });
        only_over(&mut patch, over);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = PatchParams::apply(FIELD_MANAGER);
        let patch = Patch::Strategic(patch);
        self.attempt(pods.patch(&open.pod, &params, &patch)).await.map(drop)
    }

    /// Patches what a pod carries. Another pod of the name is not meant: the API server refuses
    /// another UID.
    async fn patch_metadata(
        &self,
        namespace: &str,
        pod: &str,
        patch: Value,
    ) -> Result<PartialObjectMeta<Pod>, WriteError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = PatchParams::apply(FIELD_MANAGER);
        self.attempt(pods.patch_metadata(pod, &params, &Patch::Merge(patch))).await
    }

    /// Makes a slice, which must not have an endpoint yet.
    pub(super) async fn make_slice(
        &self,
        blank: &EndpointSlice,
    ) -> Result<EndpointSlice, WriteError> {
        self.attempt(self.slices(blank).create(&PostParams::default(), blank)).await
    }

    /// Puts an endpoint into a slice that still has the given version.
    pub(super) async fn fill_slice(&self, slice: &EndpointSlice) -> Result<(), WriteError> {
        let (api, name) = (self.slices(slice), slice.name_any());
        self.attempt(api.replace(&name, &PostParams::default(), slice)).await.map(drop)
    }

    /// Leaves a slice without an endpoint, whatever it is like now. The write changes the slice in
    /// any case, so an endpoint that is still on its way here arrives at another version and is
    /// refused; a slice that is not there is created for the same reason.
    pub(super) async fn empty_slice(&self, blank: &EndpointSlice) -> Result<(), WriteError> {
        let patch = json!({
            "metadata": {
                "annotations": {
                    SLICE_TOKEN_ANNOTATION: null,
                    EMPTIED_ANNOTATION: self.clock.wall().to_string(),
                },
            },
            "endpoints": [],
        });
        let (api, name) = (self.slices(blank), blank.name_any());
        let params = PatchParams::apply(FIELD_MANAGER);
        match self.attempt(api.patch(&name, &params, &Patch::Merge(patch))).await {
            Err(error) if error.class() == Class::Gone => self.make_slice(blank).await.map(drop),
            written => written.map(drop),
        }
    }

    /// Removes a slice.
    pub(super) async fn delete_slice(&self, slice: &EndpointSlice) -> Result<(), WriteError> {
        let params = only_of(slice.uid());
        let (api, name) = (self.slices(slice), slice.name_any());
        done_if_gone(self.attempt(api.delete(&name, &params)).await.map(drop))
    }

    fn slices(&self, slice: &EndpointSlice) -> Api<EndpointSlice> {
        let namespace = slice.namespace().unwrap_or_default();
        Api::namespaced(self.client.clone(), &namespace)
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

/// Has a patch refused by any version of the object but this one.
fn only_over(patch: &mut Value, version: Option<&str>) {
    if let Some(version) = version {
        patch["metadata"]["resourceVersion"] = version.into();
    }
}

fn done_if_gone(written: Result<(), WriteError>) -> Result<(), WriteError> {
    none_if_gone(written).map(drop)
}

fn none_if_gone<T>(written: Result<T, WriteError>) -> Result<Option<T>, WriteError> {
    match written {
        Ok(claim) => Ok(Some(claim)),
        Err(error) if error.class() == Class::Gone => Ok(None),
        Err(error) => Err(error),
    }
}
