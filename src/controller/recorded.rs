//! What an earlier controller recorded of a claim in its status, for this one to go on with. Pure.

use std::sync::Arc;

use kube::ResourceExt;

use super::Config;
use crate::{
    api::{ConsulLock, ConsulLockStatus, ContainerStatus, HolderStatus, Phase},
    election::{ContainerMark, Leader},
    keeper::{Recorded, RecordedTenure},
    names::SessionId,
};

/// How the claim is called towards others.
pub(super) fn identity(claim: &ConsulLock) -> String {
    format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any())
}

/// The claim's session and tenure, as recorded.
pub(super) fn of(claim: &ConsulLock, config: &Config) -> Option<Recorded> {
    let status = claim.status.as_ref()?;
    Some(Recorded {
        session: SessionId::new(status.session.as_ref()?.id.as_deref()?),
        tenure: tenure(claim, status, config),
    })
}

fn tenure(
    claim: &ConsulLock,
    status: &ConsulLockStatus,
    config: &Config,
) -> Option<RecordedTenure> {
    let holder = status.holder.as_ref()?;
    // The UID of a pod is known of our own alone.
    let named = holder.uid.is_some() || holder.identity == identity(claim);
    let ours = named && holder.cluster.as_deref() == Some(&config.cluster) && !holder.stranger;
    // Unknown with a token: held, as far as a controller knew that could not ask Consul.
    if !matches!(status.phase, Some(Phase::Held | Phase::Unknown)) || !ours {
        return None;
    }
    Some(RecordedTenure {
        token: status.fencing_token.as_ref()?.parse().ok()?,
        since: status.acquired_at.as_ref()?.0,
        leader: leader(holder).map(Arc::new),
    })
}

fn leader(holder: &HolderStatus) -> Option<Leader> {
    let mark = |container: &ContainerStatus| ContainerMark {
        name: container.name.as_str().into(),
        id: container.id.as_deref().map(Into::into),
        restarts: container.restarts,
    };
    Some(Leader {
        pod: holder.pod.as_deref()?.into(),
        uid: holder.uid.as_deref()?.into(),
        node: holder.node.as_deref().map(Into::into),
        containers: holder.containers.iter().map(mark).collect(),
        why: holder.why.as_deref().unwrap_or_default().into(),
    })
}

/// The leader of a claim's tenure, as the status records it.
pub(super) fn holder(claim: &ConsulLock, cluster: &str, leader: Option<&Leader>) -> HolderStatus {
    let namespace = claim.namespace().unwrap_or_default();
    let base = HolderStatus {
        identity: identity(claim),
        cluster: Some(cluster.to_owned()),
        namespace: Some(namespace.clone()),
        ..HolderStatus::default()
    };
    let Some(leader) = leader else { return base };
    let container = |mark: &ContainerMark| ContainerStatus {
        name: mark.name.to_string(),
        id: mark.id.as_ref().map(ToString::to_string),
        restarts: mark.restarts,
    };
    HolderStatus {
        identity: format!("{namespace}/{}", leader.pod),
        pod: Some(leader.pod.to_string()),
        uid: Some(leader.uid.to_string()),
        node: leader.node.as_ref().map(ToString::to_string),
        containers: leader.containers.iter().map(container).collect(),
        why: Some(leader.why.to_string()),
        ..base
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controller::sample::{claim, claim_with_status, config, held_status, leader};

    #[test]
    fn a_leader_comes_back_from_the_status_as_it_was_written() {
        let elected = leader("a");
        let mut status = held_status();
        status["holder"] =
            serde_json::to_value(holder(&claim("{}"), "west", Some(&elected))).unwrap();
        assert_eq!(status["holder"]["identity"], json!("shop/a"));
        let recorded = of(&claim_with_status("{}", status), &config()).unwrap();
        assert_eq!(recorded.tenure.unwrap().leader.as_deref(), Some(&elected));
    }

    #[test]
    fn a_pod_of_another_cluster_is_nobody_of_ours() {
        let mut status = held_status();
        status["holder"]["pod"] = json!("a");
        status["holder"]["identity"] = json!("shop/a");
        let recorded = of(&claim_with_status("{}", status), &config()).unwrap();
        assert_eq!(recorded.tenure, None);
    }
}
