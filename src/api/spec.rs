//! What a user writes: the `spec` of a ConsulLock, its defaults and the rules by which the API
//! server refuses it.
//!
//! Every rule exists twice: here for the API server (schema and CEL, with messages that say what
//! is allowed), and in [`super::settings`] for objects that were stored before a rule existed.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function body, where its `pub` reaches nobody"
)]

use std::{borrow::Cow, collections::BTreeMap};

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{
    duration::{DurationOrNever, GoDuration},
    rules,
    status::ConsulLockStatus,
};

/// A cluster's standing request for one Consul key.
#[derive(
    CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "consullock.dev",
    version = "v1alpha1",
    kind = "ConsulLock",
    plural = "consullocks",
    singular = "consullock",
    shortname = "cl",
    category = "consul",
    namespaced,
    status = "ConsulLockStatus",
    derive = "PartialEq",
    doc = "A ConsulLock is this cluster's standing request for one key of Consul: the controller keeps a Consul session for it, takes the key, and reports who holds it.",
    selectable = ".spec.key",
    validation = rules::name(),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "Where the claim stands"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".status.holder.identity", description = "Who holds the key"),
    printcolumn(name = "Token", type_ = "string", json_path = ".status.fencingToken", description = "The fencing token of our tenure"),
    printcolumn(name = "Session", type_ = "string", json_path = ".status.session.health", description = "The condition of our session"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Key", type_ = "string", json_path = ".status.key", priority = "1", description = "The Consul key"),
    printcolumn(name = "Session ID", type_ = "string", json_path = ".status.session.id", priority = "1", description = "The Consul session"),
    printcolumn(name = "TTL", type_ = "string", json_path = ".status.session.ttl", priority = "1", description = "The session's TTL"),
    printcolumn(name = "Candidates", type_ = "integer", json_path = ".status.candidates.eligible", priority = "1", description = "How many pods may be elected"),
    printcolumn(name = "Transitions", type_ = "integer", json_path = ".status.transitions", priority = "1", description = "How many tenures this claim has begun"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = "1", description = "Why the claim is ready or not")
)]
#[x_kube(
    validation = rules::key_is_immutable(),
    validation = rules::routing_needs_candidates(),
    validation = rules::gate_needs_candidates(),
    validation = rules::gated_pods_are_not_replaced(),
    validation = rules::on_lost_needs_candidates(),
    validation = rules::agents_need_candidates(),
    validation = rules::agents_are_not_elected()
)]
#[serde(rename_all = "camelCase")]
pub struct ConsulLockSpec {
    /// The Consul key to lock. Default: `<key prefix>/<namespace>/<name>`, where the controller's
    /// key prefix is `consul-lock` unless configured. Parts of letters, digits, `_`, `.` and `-`,
    /// joined by single slashes. Other keys than those under `<key prefix>/<namespace>/` need the
    /// annotation `consullock.dev/key-prefixes` on the Namespace. Cannot be changed, added or
    /// removed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 512), regex(pattern = rules::KEY_PATTERN))]
    #[x_kube(validation = rules::key_characters(), validation = rules::key_parts())]
    pub key: Option<String>,

    /// Who holds the key. `Managed`: the controller, for the claim or for the pod that it elects.
    /// `Agent`: the pods themselves, each through a `consul-lock agent` of its own; the controller
    /// follows: it shows who holds the key, labels that pod and routes to it, and frees the key when
    /// there is proof that the pod has ended. A change from Managed to Agent gives the controller's
    /// tenure up first; from Agent to Managed the controller contends like anybody else.
    #[serde(default)]
    pub mode: Mode,

    /// The Consul session that the key is held under.
    #[serde(default)]
    pub session: SessionSpec,

    /// How to contend for the key.
    #[serde(default)]
    pub acquire: AcquireSpec,

    /// Text for other readers of the key, at most 4096 characters. It stands in the JSON object
    /// that the holder writes into the key, beside `holder`, `cluster` and `since`.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub value: String,

    /// The pods of which one is elected to hold the lock. Without it the claim contends for itself.
    /// A claim that has candidates, none of which may be elected, does not hold the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "CandidatesSpec")]
    pub candidates: Option<CandidatesSpec>,

    /// Where traffic for the elected pod comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RoutingSpec")]
    pub routing: Option<RoutingSpec>,

    /// Pods wait at the scheduling gate `consullock.dev/held` until they are elected, and lead until
    /// they have finished. Without it pods start as usual, and the elected one leads while it is
    /// there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "GateSpec")]
    pub gate: Option<GateSpec>,

    /// What happens to the elected pod when its tenure was lost (not given up in order): `Unlabel`
    /// takes label, token and endpoint away; `DeletePod` deletes it as well, so that it stops.
    #[serde(default)]
    pub on_lost: OnLost,

    /// Release the key cleanly and stand by.
    #[serde(default)]
    pub paused: bool,
}

/// Who holds a claim's key.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The controller.
    #[default]
    Managed,
    /// The pods, each through an agent of its own.
    Agent,
    /// A text that this version does not know. The schema does not admit it.
    #[serde(untagged)]
    Unrecognised(String),
}

/// The pods of which one is elected: those of the claim's namespace that match the selector. One
/// may be elected when it is Ready and not being deleted.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CandidatesSpec {
    /// Which pods. Not empty.
    pub selector: SelectorSpec,

    /// Who ranks first: `OldestReady`, who has been Ready for longest; `Priority`, who has the
    /// highest number in the annotation `consullock.dev/priority`, and among equals who has been
    /// Ready for longest.
    #[serde(default)]
    pub strategy: Strategy,

    /// Let a better candidate take over from a living worse one.
    #[serde(default)]
    pub preempt: bool,

    /// The container whose end is the holder's end. Default: all of them, init containers and
    /// native sidecars aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 63), regex(pattern = rules::CONTAINER_PATTERN))]
    pub container: Option<String>,

    /// A leader that is not Ready for this long steps down, 1s to 24h. Default: it keeps the lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "GoDuration")]
    #[x_kube(validation = rules::between("1s", "24h"))]
    pub unready_after: Option<GoDuration>,

    /// A leader that cannot be reached (its node is NotReady or gone, or the pod was deleted by
    /// force) is replaced after this long without proof of its death, 1s to 24h, or `never`.
    #[serde(default = "default_unreachable_after")]
    #[x_kube(validation = rules::between_or_never("1s", "24h"))]
    pub unreachable_after: DurationOrNever,
}

/// A label selector, as everywhere in Kubernetes: all of it has to match.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = rules::selects_something())]
#[serde(rename_all = "camelCase")]
pub struct SelectorSpec {
    /// Labels with their values, at most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub match_labels: BTreeMap<String, String>,

    /// Conditions on labels, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub match_expressions: Vec<ExpressionSpec>,
}

/// A condition on one label.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = rules::values_fit_the_operator())]
#[serde(rename_all = "camelCase")]
pub struct ExpressionSpec {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,

    /// In, NotIn, Exists or DoesNotExist.
    pub operator: Operator,

    /// The values for In and NotIn, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub enum Operator {
    /// It has one of the values.
    #[default]
    In,
    /// It has none of them, or is missing.
    NotIn,
    /// It is there.
    Exists,
    /// It is missing.
    DoesNotExist,
    /// A text that this version does not know. The schema does not admit it.
    #[serde(untagged)]
    Unrecognised(String),
}

/// Who ranks first.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Who has been Ready for longest.
    #[default]
    OldestReady,
    /// Who has the highest priority.
    Priority,
    /// A text that this version does not know. The schema does not admit it.
    #[serde(untagged)]
    Unrecognised(String),
}

/// The Service whose traffic goes to the elected pod and to it alone.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RoutingSpec {
    /// A Service of the claim's namespace, without a selector. The controller owns its
    /// EndpointSlices.
    #[schemars(length(min = 1, max = 63), regex(pattern = rules::SERVICE_PATTERN))]
    pub service: String,
}

/// The gate at which pods wait for their election: they are created with
/// `schedulingGates: [{name: consullock.dev/held}]`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GateSpec {
    /// Whose turn it is. `EachInTurn`: every pod has its turn, one at a time, the oldest first.
    /// `OncePerSchedule`: of what a CronJob made for one scheduled time, in whatever cluster, one
    /// run succeeds; the Jobs of the others are removed. What no CronJob made has its turn as well.
    #[serde(default)]
    pub policy: GatePolicy,
}

/// Whose turn it is at a gate.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub enum GatePolicy {
    /// Every pod has its turn.
    #[default]
    EachInTurn,
    /// One run for each scheduled time.
    OncePerSchedule,
    /// A text that this version does not know. The schema does not admit it.
    #[serde(untagged)]
    Unrecognised(String),
}

/// What happens to a pod whose tenure was lost.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub enum OnLost {
    /// Label, token and endpoint are taken away.
    #[default]
    Unlabel,
    /// It is deleted as well.
    DeletePod,
    /// A text that this version does not know. The schema does not admit it.
    #[serde(untagged)]
    Unrecognised(String),
}

/// The Consul session that a claim's key is held under. A change takes effect with the next
/// session.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SessionSpec {
    /// How long the session lives without a renewal, 10s to 24h. Consul ends it between once and
    /// twice that long after the last one.
    #[serde(default = "default_ttl")]
    #[x_kube(validation = rules::between("10s", "24h"))]
    pub ttl: GoDuration,

    /// How long nobody may take the key after an unclean loss, 0s to 60s. A clean release is not
    /// followed by it.
    #[serde(default = "default_lock_delay")]
    #[x_kube(validation = rules::between("0s", "60s"))]
    pub lock_delay: GoDuration,

    /// What the loss of the session does to the key: `Release` leaves it free, `Delete` deletes
    /// it.
    #[serde(default)]
    pub behavior: Behavior,

    /// Consul health checks that end the session when they turn critical.
    #[serde(default)]
    pub checks: ChecksSpec,
}

/// What the loss of a session does to the key.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub enum Behavior {
    /// The key stays and is free.
    #[default]
    Release,
    /// The key is deleted.
    Delete,
    /// A text that this version does not know. The schema does not admit it.
    #[serde(untagged)]
    Unrecognised(String),
}

/// Consul health checks that a session is bound to as well.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = rules::no_check_twice())]
#[serde(rename_all = "camelCase")]
pub struct ChecksSpec {
    /// IDs of node checks on the catalog node that carries this namespace's sessions
    /// (`consul-lock-<cluster>-<namespace>`), at most 16.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = rules::CHECK_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set, validation = rules::no_serf_health())]
    pub node: Vec<String>,

    /// IDs of service checks on the same node, at most 16.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = rules::CHECK_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set, validation = rules::no_serf_health())]
    pub service: Vec<String>,
}

/// How a claim contends for its key.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = rules::one_way_to_give_up())]
#[serde(rename_all = "camelCase")]
pub struct AcquireSpec {
    /// Give up after contending for this long, 1s to 8760h: phase Failed, reason AcquireTimeout.
    /// Without it the claim contends for as long as it exists. A change of the spec makes a failed
    /// claim contend again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "GoDuration")]
    #[x_kube(validation = rules::between("1s", "8760h"))]
    pub timeout: Option<GoDuration>,

    /// Make one attempt; if somebody else holds the key: phase Failed, reason Contended.
    #[serde(default)]
    pub try_once: bool,

    /// Release a tenure after this long, 1s to 8760h, and contend again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "GoDuration")]
    #[x_kube(validation = rules::between("1s", "8760h"))]
    pub max_hold: Option<GoDuration>,
}

impl Default for SessionSpec {
    fn default() -> SessionSpec {
        SessionSpec {
            ttl: default_ttl(),
            lock_delay: default_lock_delay(),
            behavior: Behavior::default(),
            checks: ChecksSpec::default(),
        }
    }
}

/// A plain enum in the schema, without the variant for what this version does not know.
macro_rules! plain_enum {
    ($type:ident, $($name:literal),+) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "enum": [$($name),+] })
            }
        }
    };
}

plain_enum!(Mode, "Managed", "Agent");
plain_enum!(Behavior, "Release", "Delete");
plain_enum!(Operator, "In", "NotIn", "Exists", "DoesNotExist");
plain_enum!(Strategy, "OldestReady", "Priority");
plain_enum!(GatePolicy, "EachInTurn", "OncePerSchedule");
plain_enum!(OnLost, "Unlabel", "DeletePod");

fn default_ttl() -> GoDuration {
    GoDuration::new("15s")
}

fn default_lock_delay() -> GoDuration {
    GoDuration::new("15s")
}

pub(super) fn default_unreachable_after() -> DurationOrNever {
    DurationOrNever::new("30s")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> ConsulLockSpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn an_empty_spec_has_the_documented_defaults() {
        let spec = spec("{}");
        assert_eq!(spec, ConsulLockSpec::default());
        assert_eq!(spec.session.ttl.as_str(), "15s");
        assert_eq!(spec.session.lock_delay.as_str(), "15s");
        assert_eq!(spec.session.behavior, Behavior::Release);
    }

    /// One object that an older or newer schema let in must not stop a list from being read.
    #[test]
    fn odd_values_of_the_right_type_are_read() {
        let spec =
            spec("session: {ttl: soon, behavior: Explode, novelty: 1}\nacquire: {timeout: ''}");
        assert_eq!(spec.session.ttl.as_str(), "soon");
        assert_eq!(spec.session.behavior, Behavior::Unrecognised("Explode".into()));
    }
}
