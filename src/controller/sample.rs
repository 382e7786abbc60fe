//! Claims, views and settings for the tests of the pure parts.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::json;

use super::{
    Config,
    electorate::{Electorate, Standing, Traffic},
    tenancy::KeyPrefix,
};
use crate::{
    api::{ConsulLock, FINALIZER},
    clock::Instant,
    consul::{Class, Operation},
    election::{ContainerMark, Leader, Runs},
    keeper::{
        EndedTenure, KeeperView, KeySeen, LockView, SeenHolder, SessionHealth, SessionView, Trouble,
    },
    lock::EndReason,
    names::{FencingToken, NodeName, SessionId},
};

pub(super) fn config() -> Config {
    Config {
        key_prefix: KeyPrefix::new("consul-lock").unwrap(),
        cluster: "west".to_owned(),
        namespaces: None,
        instance: "replica-1".to_owned(),
    }
}

/// `shop/billing` with this spec, finalizer on.
pub(super) fn claim(spec: &str) -> ConsulLock {
    let spec: serde_json::Value = serde_saphyr::from_str(spec).unwrap();
    serde_json::from_value(json!({
        "apiVersion": "consullock.dev/v1alpha1",
        "kind": "ConsulLock",
        "metadata": {
            "name": "billing", "namespace": "shop", "uid": "uid-1", "resourceVersion": "7",
            "generation": 3, "finalizers": [FINALIZER],
        },
        "spec": spec,
    }))
    .unwrap()
}

/// The same with a status.
pub(super) fn claim_with_status(spec: &str, status: serde_json::Value) -> ConsulLock {
    let mut claim = claim(spec);
    claim.status = Some(serde_json::from_value(status).unwrap());
    claim
}

pub(super) fn held_status() -> serde_json::Value {
    json!({
        "observedGeneration": 3, "phase": "Held", "key": "consul-lock/shop/billing",
        "holder": {"identity": "shop/billing", "cluster": "west", "namespace": "shop"},
        "session": {"id": "s-1", "ttl": "20s", "health": "Healthy", "node": "consul-lock-west-shop"},
        "fencingToken": "41", "acquiredAt": "2026-01-02T03:04:05Z", "transitions": 2,
    })
}

pub(super) fn at(seconds: u64) -> Instant {
    Instant::from_boot(Duration::from_secs(seconds))
}

pub(super) fn wall(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

/// What keepers know that have just started.
pub(super) fn starting() -> KeeperView {
    KeeperView {
        session: SessionView {
            health: SessionHealth::Absent,
            id: None,
            node: NodeName::new("consul-lock-west-shop"),
            ttl: Duration::from_secs(15),
            valid_until: None,
        },
        lock: LockView::Starting,
        key: None,
        trouble: None,
        ended: Arc::default(),
    }
}

/// What keepers know that contend under a healthy session, valid until 100.
pub(super) fn contending(lock: LockView, key: KeySeen) -> KeeperView {
    let mut view = starting();
    view.session.health = SessionHealth::Healthy;
    view.session.id = Some(SessionId::new("s-1"));
    view.session.valid_until = Some(at(100));
    KeeperView { lock, key: Some(key), ..view }
}

pub(super) fn holding(token: u64) -> KeeperView {
    let since = wall(5) + Duration::from_millis(250);
    let token = FencingToken::new(token);
    contending(
        LockView::Held { token, since, began: at(5), leader: None, record: None },
        KeySeen::Ours,
    )
}

/// The pod of this name, as it was elected.
pub(super) fn leader(pod: &str) -> Leader {
    Leader {
        pod: pod.into(),
        uid: format!("uid-{pod}").into(),
        node: Some("n-1".into()),
        containers: vec![ContainerMark {
            name: "app".into(),
            id: Some(format!("{pod}-1").into()),
            restarts: 0,
        }],
        why: "ready for longest of 2 pods".into(),
    }
}

/// No pods, all of them known.
pub(super) fn electorate(standing: Standing) -> Electorate {
    Electorate {
        standing,
        known: true,
        candidates: Vec::new(),
        present: None,
        handover: None,
        holding: None,
        former: None,
        ended: None,
        backend: None,
        runs: Runs::default(),
        runs_read: None,
        leaders_version: None,
        badged: Vec::new(),
        worn: Vec::new(),
        relieved: None,
        lost: Vec::new(),
        traffic: Traffic { known: true, ..Traffic::default() },
    }
}

pub(super) fn stranger() -> KeySeen {
    KeySeen::Held(SeenHolder {
        session: SessionId::new("s-9"),
        session_name: Some("Consul API Lock".to_owned()),
        node: Some("vm-7".to_owned()),
        value: Vec::new(),
    })
}

pub(super) fn trouble(class: Class) -> Trouble {
    Trouble { operation: Operation::RenewSession, class, message: "connection refused".to_owned() }
}

pub(super) fn ended(token: u64, reason: EndReason) -> EndedTenure {
    EndedTenure {
        token: FencingToken::new(token),
        pod: None,
        from: wall(1),
        to: wall(2) + Duration::from_millis(700),
        reason,
    }
}
