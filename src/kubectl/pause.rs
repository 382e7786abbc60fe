//! `pause` and `resume`.

use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::{Cluster, KubectlError, Patience, waiting};
use crate::api::{ConsulLock, Phase};

/// Sets `spec.paused`, and waits until the controller has carried it out.
pub(super) async fn set(
    cluster: &Cluster,
    name: &str,
    paused: bool,
    patience: Patience,
) -> Result<String, KubectlError> {
    let (verb, done) = if paused { ("pause", "paused") } else { ("resume", "resumed") };
    let attempt = format!("{verb} the ConsulLock {}/{name}", cluster.namespace);
    let patch = Patch::Merge(json!({ "spec": { "paused": paused } }));
    let (claims, params) = (cluster.claims(), PatchParams::default());
    let patched = cluster.call(attempt, claims.patch(name, &params, &patch)).await?;
    let claim = format!("consullock.consullock.dev/{name}");
    let Some(limit) = patience else {
        return Ok(format!("{claim} is to be {done}\n"));
    };
    let is_done = |claim: &ConsulLock| {
        let status = claim.status.as_ref();
        let current =
            status.and_then(|status| status.observed_generation) >= patched.metadata.generation;
        let phase = status.and_then(|status| status.phase);
        current && (phase == Some(Phase::Paused)) == paused
    };
    match waiting::until(cluster, name, limit, is_done).await? {
        Some(now) => Ok(format!("{claim} {done}{}\n", standing(&now))),
        None => Err(KubectlError::TimedOut(format!(
            "spec.paused of {}/{name} is {paused} now, but no controller has carried it out within \
             {limit:?}; is one running?",
            cluster.namespace
        ))),
    }
}

/// How the claim stands now.
fn standing(claim: &ConsulLock) -> String {
    let Some(status) = &claim.status else { return String::new() };
    let holder = status.holder.as_ref().map(|holder| super::table::clean(&holder.identity));
    let phase = status.phase.unwrap_or_default();
    match (phase, holder) {
        (Phase::Paused, Some(holder)) => format!("; {holder} holds its key"),
        (Phase::Paused, None) => String::new(),
        (Phase::Held, _) => {
            let token = status.fencing_token.as_deref().unwrap_or_default();
            format!("; it holds its key with token {token}")
        }
        (phase, Some(holder)) => format!("; {}: {holder} holds its key", phase.as_str()),
        (phase, None) => format!("; {}", phase.as_str()),
    }
}
