//! Claims for the tests of what is said about them.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::ConsulLock;

pub(super) fn now() -> Timestamp {
    "2026-01-02T03:04:00Z".parse().unwrap()
}

pub(super) fn claim(name: &str, spec: Value, status: Value) -> ConsulLock {
    serde_json::from_value(json!({
        "apiVersion": "consullock.dev/v1alpha1", "kind": "ConsulLock",
        "metadata": { "name": name, "namespace": "shop", "uid": format!("uid-{name}") },
        "spec": spec, "status": status,
    }))
    .unwrap()
}

fn condition(name: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": name, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-01-02T03:00:00Z",
    })
}

/// Held for one of two pods, after two other tenures.
pub(super) fn elected() -> ConsulLock {
    let spec = json!({
        "candidates": { "selector": { "matchLabels": { "app": "billing" } } },
        "routing": { "service": "billing" },
    });
    let past = |holder, token, from, to, reason| json!({ "holder": holder, "token": token, "from": from, "to": to, "reason": reason });
    let status = json!({
        "phase": "Held", "key": "consul-lock/shop/billing",
        "holder": {
            "identity": "shop/billing-a", "cluster": "west", "namespace": "shop",
            "pod": "billing-a", "uid": "uid-a", "node": "n-1",
            "why": "ready for longest of 2 pods",
        },
        "session": {
            "id": "s-1", "ttl": "15s", "health": "Healthy", "node": "consul-lock-west-shop",
        },
        "fencingToken": "41", "acquiredAt": "2026-01-02T03:00:00Z", "transitions": 3,
        "candidates": { "matching": 3, "eligible": 2, "first": "billing-a", "next": "billing-b" },
        "guarantee": { "failoverMax": "45s", "overlapMargin": "15s" },
        "history": [
            past("shop/billing-b", "40", "2026-01-02T02:50:00Z", "2026-01-02T02:59:58Z", "PodDied"),
            past(
                "shop/billing-a", "37", "2026-01-02T02:00:00Z", "2026-01-02T02:50:00Z",
                "HandedOver",
            ),
        ],
        "conditions": [
            condition("Ready", "True", "Held", "pod billing-a holds the key"),
            condition("RoutingSynced", "True", "Routed", "traffic goes to pod billing-a"),
        ],
    });
    claim("billing", spec, status)
}

/// Waits for a stranger, whose name is unpleasant.
pub(super) fn waiting() -> ConsulLock {
    let identity = "Consul API Lock\u{1b}[31m on vm7";
    let status = json!({
        "phase": "Waiting", "key": "shop/migrate/.lock",
        "holder": { "identity": identity, "stranger": true },
        "conditions": [condition("Ready", "True", "HeldElsewhere", "waits for the stranger")],
    });
    claim("migrate", json!({ "key": "shop/migrate/.lock" }), status)
}

pub(super) fn paused() -> ConsulLock {
    claim("reports", json!({ "paused": true }), json!({ "phase": "Paused" }))
}

/// Not looked at yet.
pub(super) fn fresh() -> ConsulLock {
    claim("fresh", json!({}), Value::Null)
}
