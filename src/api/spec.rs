//! What a user writes: the `spec` of a ConsulLock, its defaults and the rules by which the API
//! server refuses it.
//!
//! Every rule exists twice: here for the API server (schema and CEL, with messages that say what
//! is allowed), and in [`super::settings`] for objects that were stored before a rule existed.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function body, where its `pub` reaches nobody"
)]

use std::borrow::Cow;

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{duration::GoDuration, rules, status::ConsulLockStatus};

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
    printcolumn(name = "Transitions", type_ = "integer", json_path = ".status.transitions", priority = "1", description = "How many tenures this claim has begun"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = "1", description = "Why the claim is ready or not")
)]
#[x_kube(validation = rules::key_is_immutable())]
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

    /// Release the key cleanly and stand by.
    #[serde(default)]
    pub paused: bool,
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

impl JsonSchema for Behavior {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Behavior".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "enum": ["Release", "Delete"] })
    }
}

fn default_ttl() -> GoDuration {
    GoDuration::new("15s")
}

fn default_lock_delay() -> GoDuration {
    GoDuration::new("15s")
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
