//! What an earlier controller recorded of a claim in its status, for this one to go on with. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt;

use super::Config;
use crate::{
    api::{ConsulLock, ConsulLockStatus, ContainerStatus, HolderStatus, Mode, Phase},
    clock::Instant,
    election::{ContainerMark, Leader},
    keeper::{Recorded, RecordedTenure},
    names::{FencingToken, SessionId},
};

/// How the claim is called towards others.
pub(super) fn identity(claim: &ConsulLock) -> String {
    format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any())
}

/// A tenure of a pod that holds the key itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Followed {
    /// The pod, and its containers when the tenure was first noticed.
    pub(super) leader: Arc<Leader>,
    /// Its session.
    pub(super) session: Option<SessionId>,
    /// The key's `ModifyIndex`; `None`: the tenure is recorded, and the key was not seen yet.
    pub(super) index: Option<u64>,
    /// Its token, once the pod has told it.
    pub(super) token: Option<FencingToken>,
    /// When it began.
    pub(super) since: Timestamp,
    /// The same in the pod's own words; `None`: it is known from the status alone.
    pub(super) since_said: Option<Arc<str>>,
    /// When it was noticed; `None`: by an earlier controller.
    pub(super) noticed: Option<Instant>,
}

/// The tenure of a pod that holds the key itself, as recorded.
pub(super) fn followed(claim: &ConsulLock) -> Option<Followed> {
    let status = claim.status.as_ref().filter(|status| status.mode == Some(Mode::Agent))?;
    let session = status.session.as_ref().and_then(|session| session.id.as_deref());
    Some(Followed {
        leader: Arc::new(leader(status.holder.as_ref()?)?),
        session: session.map(SessionId::new),
        index: None,
        token: Some(status.fencing_token.as_ref()?.parse().ok()?),
        since: status.acquired_at.as_ref()?.0,
        since_said: None,
        noticed: None,
    })
}

/// The claim's session and tenure, as recorded; what a status says of a pod that holds the key
/// itself is none of ours.
pub(super) fn of(claim: &ConsulLock, config: &Config) -> Option<Recorded> {
    let status = claim.status.as_ref().filter(|status| status.mode != Some(Mode::Agent))?;
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
        why: Some(leader.why.to_string()).filter(|why| !why.is_empty()),
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
    fn a_session_of_a_pod_s_own_is_not_adopted_and_its_tenure_comes_back_as_it_was_written() {
        let elected = leader("a");
        let mut status = held_status();
        status["mode"] = json!("Agent");
        status["holder"] =
            serde_json::to_value(holder(&claim("{}"), "west", Some(&elected))).unwrap();
        let claim = claim_with_status("{}", status.clone());
        assert_eq!(of(&claim, &config()), None);
        let followed = followed(&claim).unwrap();
        assert_eq!(*followed.leader, elected);
        assert_eq!(followed.session, Some(SessionId::new("s-1")));
        assert_eq!((followed.token, followed.index), (Some(FencingToken::new(41)), None));
        status.as_object_mut().unwrap().remove("fencingToken");
        assert_eq!(super::followed(&claim_with_status("{}", status)), None);
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
