//! What the controller reports: the `status` of a ConsulLock.
//!
//! Written when something changed and at no other time. What cannot be known is `Unknown`, never
//! a stale truth. Times have whole seconds, as Kubernetes keeps them.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function body, where its `pub` reaches nobody"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{duration::GoDuration, spec::Mode};

/// How many ended tenures [`ConsulLockStatus::history`] keeps.
pub const HISTORY_LENGTH: usize = 10;

/// The condition of a claim that routes traffic, or did when its status was last written.
pub const ROUTING_SYNCED: &str = "RoutingSynced";

/// What the controller knows of a claim.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConsulLockStatus {
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub observed_generation: Option<i64>,

    /// Where the claim stands. `Held` only while Consul's confirmation may be relied on; with
    /// `mode: Agent` while Consul shows a pod of the claim to hold the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Phase")]
    pub phase: Option<Phase>,

    /// The Consul key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub key: Option<String>,

    /// Whose session, token and tenure the status tells of: `Agent`, those of the pod that holds the
    /// key itself; absent: the controller's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Mode")]
    pub mode: Option<Mode>,

    /// Who holds the key, as last seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HolderStatus")]
    pub holder: Option<HolderStatus>,

    /// The claim's own session; with `mode: Agent` that of the pod that holds the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SessionStatus")]
    pub session: Option<SessionStatus>,

    /// The fencing token of the present tenure: a number that rises with every tenure of the key.
    /// A string, since it outgrows JSON numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub fencing_token: Option<String>,

    /// When the present tenure began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Time")]
    pub acquired_at: Option<Time>,

    /// How many tenures this claim has begun.
    #[serde(default)]
    pub transitions: i64,

    /// The last ten tenures that ended, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = HISTORY_LENGTH))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub history: Vec<TenureStatus>,

    /// The pods that may be elected; absent without `spec.candidates`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "CandidatesStatus")]
    pub candidates: Option<CandidatesStatus>,

    /// What the claim's settings promise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "GuaranteeStatus")]
    pub guarantee: Option<GuaranteeStatus>,

    /// Ready, Held, ConsulReachable, SessionHealthy, KeyConflict, and of a claim with `spec.routing`
    /// RoutingSynced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Where a claim stands.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "a documented variant would turn the schema's enum into oneOf")]
pub enum Phase {
    /* Nothing is known yet. */
    #[default]
    Pending,
    /* Somebody else holds the key, or there is no session yet. */
    Waiting,
    /* Nobody holds the key, and nobody may yet. */
    LockDelay,
    /* We hold it. */
    Held,
    /* It is being given up. */
    Releasing,
    /* Not contending: gave up, or not allowed to. */
    Failed,
    /* Not contending: `spec.paused`. */
    Paused,
    /* Consul has been away for too long to say; also what this version cannot read. */
    #[serde(other)]
    Unknown,
}

impl Phase {
    /// Every phase, for metrics.
    pub const ALL: [Phase; 8] = [
        Phase::Pending,
        Phase::Waiting,
        Phase::LockDelay,
        Phase::Held,
        Phase::Releasing,
        Phase::Failed,
        Phase::Paused,
        Phase::Unknown,
    ];

    /// As in the status and as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Waiting => "Waiting",
            Phase::LockDelay => "LockDelay",
            Phase::Held => "Held",
            Phase::Releasing => "Releasing",
            Phase::Failed => "Failed",
            Phase::Paused => "Paused",
            Phase::Unknown => "Unknown",
        }
    }
}

/// Who holds a key.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct HolderStatus {
    /// `<namespace>/<name>` of a claim, or of the pod that it holds the key for; `<host>/<name>` of a
    /// `consul-lock run`; of a stranger what its session tells.
    pub identity: String,

    /// The cluster that the holder names as its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub cluster: Option<String>,

    /// The holder's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub namespace: Option<String>,

    /// The pod that the key is held for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub pod: Option<String>,

    /// The pod's UID, of a pod of this cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub uid: Option<String>,

    /// The node it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub node: Option<String>,

    /// Why this pod was elected before others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub why: Option<String>,

    /// The containers whose end is the holder's, as they were when the pod was elected: by them
    /// their end is told even after a restart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub containers: Vec<ContainerStatus>,

    /// The holder is neither a ConsulLock nor a `consul-lock run`.
    pub stranger: bool,
}

/// One run of a container.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// The container's name.
    pub name: String,

    /// The runtime's ID of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub id: Option<String>,

    /// How often the container had been restarted before.
    pub restarts: i32,
}

/// The pods that a claim may elect.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct CandidatesStatus {
    /// How many match the selector.
    pub matching: i32,

    /// How many of them may be elected.
    pub eligible: i32,

    /// Who ranks first of those.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub first: Option<String>,

    /// Who ranks first of those that do not lead: the next in line.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub next: Option<String>,
}

/// A claim's session.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionStatus {
    /// Its identifier in Consul.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub id: Option<String>,

    /// The TTL that Consul granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "GoDuration")]
    pub ttl: Option<GoDuration>,

    /// Healthy; Jeopardy: renewals fail, but the session may still be relied on; Lost; Unknown. Of a
    /// pod's own session: Healthy while Consul shows the key held under it.
    pub health: SessionHealth,

    /// The catalog node that it sits on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub node: Option<String>,
}

/// A session's condition.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "a documented variant would turn the schema's enum into oneOf")]
pub enum SessionHealth {
    Healthy,
    Jeopardy,
    Lost,
    #[default]
    #[serde(other)]
    Unknown,
}

/// A tenure that ended.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TenureStatus {
    /// Who held the key: `<namespace>/<name>` of the claim, or of the pod.
    pub holder: String,
    /// The tenure's fencing token.
    pub token: String,
    /// When it began.
    pub from: Time,
    /// When it ended.
    pub to: Time,
    /// Why it ended. In order: Paused, Stopped, MaxHold, HandedOver; of an elected pod: Preempted,
    /// PodFinished, AlreadyRan, PodDied, PodDeleted, PodUnreachable, PodUnready, PodUnmatched,
    /// NoCandidate. With `mode: Agent`: Released, and PassedOn where another holder followed before
    /// anybody saw how. Lost: Expired, SessionInvalidated, KeyDeleted, KeyTaken. Not known, and treated
    /// as lost:
    /// Superseded.
    pub reason: String,
}

/// What a claim's settings promise.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GuaranteeStatus {
    /// The longest time from the last renewal of a holder that died to the moment when another
    /// may take the key: twice the TTL and the lock-delay.
    pub failover_max: GoDuration,
    /// How long nobody holds the key, beyond the session's own expiry, after an unclean loss: the
    /// lock-delay.
    pub overlap_margin: GoDuration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_another_version_is_read() {
        let status: ConsulLockStatus = serde_json::from_value(serde_json::json!({
            "phase": "Levitating", "session": {"health": "Feverish"}, "novelty": [1],
        }))
        .unwrap();
        assert_eq!(status.phase, Some(Phase::Unknown));
        assert_eq!(status.session.map(|s| s.health), Some(SessionHealth::Unknown));
    }

    #[test]
    fn phases_are_called_the_same_everywhere() {
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
        }
    }
}
