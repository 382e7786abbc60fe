//! The controller, in this process, between a real API server and a real Consul: what becomes of
//! claims.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use consul_lock::{
    api::{ConsulLock, ConsulLockStatus, KEY_PREFIXES_ANNOTATION, Phase},
    clock::Clock,
    consul::{Consistency, Consul, KvPair, PutMode, http::HttpConsul},
    controller::{Config, Controller, KeyPrefix},
    keeper::Keepers,
    names::Key,
    telemetry::Metrics,
};
use k8s_openapi::api::{core::v1::Namespace, events::v1::Event};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    fixtures::{self, LOCK_FLAGS, PATIENCE},
    site::token,
};

/// A namespace with a controller that looks after it and nothing else.
struct Town {
    name: String,
    kube: Client,
    claims: Api<ConsulLock>,
    consul: HttpConsul,
    clock: Clock,
    may_act: Arc<AtomicBool>,
}

/// A controller at work. Dropping it is what a lost leadership is.
struct Leading {
    metrics: Arc<Metrics>,
    _tasks: JoinSet<()>,
}

impl Town {
    async fn found() -> Town {
        let (kube, name) = (fixtures::claims_client().await, fixtures::unique("town"));
        fixtures::create_namespace(&kube, &name).await;
        let consul = tokio::task::spawn_blocking(fixtures::shared_consul).await.unwrap();
        Town {
            claims: Api::namespaced(kube.clone(), &name),
            kube,
            consul: fixtures::client_of(consul),
            clock: Clock::boot(),
            may_act: Arc::new(AtomicBool::new(true)),
            name,
        }
    }

    fn lead(&self) -> Leading {
        let config = Config {
            key_prefix: KeyPrefix::new("consul-lock").unwrap(),
            cluster: "west".to_owned(),
            namespaces: Some(BTreeSet::from([self.name.clone()])),
            instance: "test".to_owned(),
        };
        let metrics = Metrics::new(false);
        let (consul, clock, counted) =
            (self.consul.clone(), self.clock.clone(), Arc::clone(&metrics));
        let may_act = Arc::clone(&self.may_act);
        let controller = Arc::new(Controller::new(
            config,
            self.kube.clone(),
            self.clock.clone(),
            Arc::clone(&metrics),
            Arc::new(move || may_act.load(Ordering::Relaxed)),
            Box::new(move |wake| {
                let jitter = Arc::new(|| 0.5);
                Keepers::new(consul.clone(), clock.clone(), Arc::clone(&counted), jitter, wake)
            }),
        ));
        let mut tasks = JoinSet::new();
        let watching = Arc::clone(&controller);
        tasks.spawn(async move { panic!("{}", watching.watch().await) });
        tasks.spawn(async move { panic!("{}", controller.lead().await) });
        Leading { metrics, _tasks: tasks }
    }

    async fn apply(&self, name: &str, spec: Value) {
        let claim = json!({
            "apiVersion": "consullock.dev/v1alpha1", "kind": "ConsulLock",
            "metadata": {"name": name}, "spec": spec,
        });
        let params = PatchParams::apply("a-user").force();
        self.claims.patch(name, &params, &Patch::Apply(claim)).await.unwrap();
    }

    async fn annotate(&self, prefixes: Value) {
        let patch = json!({"metadata": {"annotations": {KEY_PREFIXES_ANNOTATION: prefixes}}});
        let api: Api<Namespace> = Api::all(self.kube.clone());
        api.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    async fn delete(&self, name: &str) {
        self.claims.delete(name, &DeleteParams::default()).await.unwrap();
    }

    fn key(&self, name: &str) -> Key {
        Key::new(&format!("consul-lock/{}/{name}", self.name)).unwrap()
    }

    async fn pair(&self, key: &Key) -> Option<KvPair> {
        self.consul.get(key, Consistency::Consistent).await.unwrap().pair
    }

    /// Waits until `seen` says so of something that `look` finds.
    async fn until<T: Debug, F: Future<Output = T>>(
        &self,
        look: impl Fn() -> F,
        seen: impl Fn(&T) -> bool,
    ) -> T {
        let begin = self.clock.now();
        loop {
            let found = look().await;
            if seen(&found) {
                return found;
            }
            assert!(self.clock.now().since(begin) < PATIENCE, "still {found:#?}");
            self.clock.sleep_until(self.clock.now() + Duration::from_millis(20)).await;
        }
    }

    async fn status(
        &self,
        name: &str,
        seen: impl Fn(&ConsulLockStatus) -> bool,
    ) -> ConsulLockStatus {
        let look = || async { self.claims.get(name).await.unwrap().status.unwrap_or_default() };
        self.until(look, seen).await
    }

    async fn phase(&self, name: &str, phase: Phase) -> ConsulLockStatus {
        self.status(name, |status| status.phase == Some(phase)).await
    }

    async fn gone(&self, name: &str) {
        let look = || async { self.claims.get_opt(name).await.unwrap() };
        self.until(look, Option::is_none).await;
    }

    async fn told(&self, reason: &str) -> Vec<Event> {
        let events: Api<Event> = Api::namespaced(self.kube.clone(), &self.name);
        let look = || async {
            let list = events.list(&ListParams::default()).await.unwrap();
            let about = |event: &Event| event.reason.as_deref() == Some(reason);
            list.items.into_iter().filter(about).collect::<Vec<_>>()
        };
        self.until(look, |found| !found.is_empty()).await
    }

    /// Takes the key as a stock client would; `drop` it by releasing.
    async fn stranger(&self, key: &Key) -> consul_lock::names::SessionId {
        let lab = fixtures::Lab::on(self.consul.clone()).await;
        let session = lab.consul.create_session(&lab.request()).await.unwrap();
        assert!(lab.acquire(key, &session).await);
        session
    }

    async fn release(&self, key: &Key, session: consul_lock::names::SessionId) {
        let mode = PutMode::Release(session);
        assert!(self.consul.put(key, b"", Some(LOCK_FLAGS), mode).await.unwrap());
    }
}

fn condition(status: &ConsulLockStatus, name: &str) -> (String, String, String) {
    let condition = status.conditions.iter().find(|c| c.type_ == name).unwrap();
    (condition.status.clone(), condition.reason.clone(), condition.message.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_holds_its_key_and_gives_it_up_when_it_is_deleted() {
    let town = Town::found().await;
    let _leading = town.lead();
    town.apply("billing", json!({"value": "hello"})).await;
    let status = town.phase("billing", Phase::Held).await;
    let pair = town.pair(&town.key("billing")).await.unwrap();
    let session = status.session.unwrap();
    assert_eq!(pair.flags, LOCK_FLAGS);
    assert_eq!(pair.session.unwrap().as_str(), session.id.unwrap());
    assert_eq!(status.fencing_token, Some(pair.modify_index.to_string()));
    assert_eq!(status.key, Some(town.key("billing").to_string()));
    assert_eq!(status.transitions, 1);
    let payload: Value = serde_json::from_slice(&pair.value).unwrap();
    assert_eq!(payload["holder"], format!("{}/billing", town.name));
    assert_eq!(payload["value"], "hello");
    town.told("Acquired").await;
    town.delete("billing").await;
    town.gone("billing").await;
    assert_eq!(town.pair(&town.key("billing")).await.and_then(|pair| pair.session), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_waited_for_and_shown() {
    let town = Town::found().await;
    let key = town.key("billing");
    let session = town.stranger(&key).await;
    let _leading = town.lead();
    town.apply("billing", json!({})).await;
    let status = town.status("billing", |status| status.holder.is_some()).await;
    assert_eq!(status.phase, Some(Phase::Waiting));
    assert!(status.holder.unwrap().stranger);
    town.told("Waiting").await;
    town.release(&key, session).await;
    let status = town.phase("billing", Phase::Held).await;
    assert!(!status.holder.unwrap().stranger);
}

#[tokio::test(flavor = "multi_thread")]
async fn pausing_releases_and_unpausing_begins_a_new_tenure() {
    let town = Town::found().await;
    let _leading = town.lead();
    town.apply("billing", json!({})).await;
    let first = town.phase("billing", Phase::Held).await;
    town.apply("billing", json!({"paused": true})).await;
    let paused = town.phase("billing", Phase::Paused).await;
    assert_eq!(paused.history[0].token, first.fencing_token.clone().unwrap());
    assert_eq!(paused.history[0].reason, "Paused");
    assert_eq!((paused.session, paused.fencing_token), (None, None));
    assert_eq!(town.pair(&town.key("billing")).await.unwrap().session, None);
    town.apply("billing", json!({"paused": false})).await;
    let second = town.phase("billing", Phase::Held).await;
    assert!(token(&second) > token(&first));
    assert_eq!(second.transitions, 2);
    town.told("Released").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_others_need_the_administrators_word() {
    let town = Town::found().await;
    let _leading = town.lead();
    let prefix = format!("shared-{}/", town.name);
    let key = Key::new(&format!("{prefix}billing")).unwrap();
    town.apply("billing", json!({"key": key.as_str()})).await;
    let refused = town.phase("billing", Phase::Failed).await;
    let (truth, reason, message) = condition(&refused, "Ready");
    assert_eq!((truth.as_str(), reason.as_str()), ("False", "KeyNotAllowed"));
    assert!(message.contains(&format!("consul-lock/{}/", town.name)), "{message}");
    town.annotate(json!(format!("nonsense,{prefix}"))).await;
    let held = town.phase("billing", Phase::Held).await;
    assert!(condition(&held, "Ready").2.contains("\"nonsense\" does not end in /"));
    town.annotate(Value::Null).await;
    let refused = town.phase("billing", Phase::Failed).await;
    assert_eq!(refused.session, None);
    assert_eq!(refused.history[0].reason, "Stopped");
    assert_eq!(town.pair(&key).await.unwrap().session, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_others_is_reported_and_left_alone() {
    let town = Town::found().await;
    let key = town.key("billing");
    assert!(town.consul.put(&key, b"theirs", Some(7), PutMode::Plain).await.unwrap());
    let _leading = town.lead();
    town.apply("billing", json!({})).await;
    let conflict = |status: &ConsulLockStatus| {
        !status.conditions.is_empty() && condition(status, "KeyConflict").0 == "True"
    };
    let status = town.status("billing", conflict).await;
    assert_eq!(condition(&status, "Ready").1, "KeyConflict");
    town.told("KeyConflict").await;
    let pair = town.pair(&key).await.unwrap();
    assert_eq!((pair.value.as_slice(), pair.flags), (&b"theirs"[..], 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_adopts_without_a_write() {
    let town = Town::found().await;
    let leading = town.lead();
    town.apply("billing", json!({})).await;
    town.apply("waits", json!({"paused": true})).await;
    town.phase("waits", Phase::Paused).await;
    let held = town.phase("billing", Phase::Held).await;
    let before = town.claims.get("billing").await.unwrap().resource_version();
    drop(leading);
    let _leading = town.lead();
    // The new leader answers for the other claim, and has met this one as well then.
    town.apply("waits", json!({"paused": false})).await;
    town.phase("waits", Phase::Held).await;
    let after = town.claims.get("billing").await.unwrap();
    assert_eq!(after.resource_version(), before);
    assert_eq!(after.status.unwrap().fencing_token, held.fencing_token);
    town.apply("billing", json!({"paused": true})).await;
    let paused = town.phase("billing", Phase::Paused).await;
    assert_eq!(paused.history[0].token, held.fencing_token.unwrap(), "the same tenure to its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_deleted_between_two_leaders_is_released_by_the_second() {
    let town = Town::found().await;
    let leading = town.lead();
    town.apply("billing", json!({"session": {"ttl": "20s"}})).await;
    town.phase("billing", Phase::Held).await;
    drop(leading);
    town.delete("billing").await;
    let begin = town.clock.now();
    let _leading = town.lead();
    town.gone("billing").await;
    assert_eq!(town.pair(&town.key("billing")).await.unwrap().session, None);
    assert!(town.clock.now().since(begin) < Duration::from_secs(10), "not by expiry");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_attempt_fails_and_a_changed_spec_contends_again() {
    let town = Town::found().await;
    let key = town.key("billing");
    let session = town.stranger(&key).await;
    let leading = town.lead();
    town.apply("billing", json!({"acquire": {"tryOnce": true}})).await;
    let failed = town.phase("billing", Phase::Failed).await;
    assert_eq!(condition(&failed, "Ready").1, "Contended");
    drop(leading);
    let _leading = town.lead();
    town.release(&key, session).await;
    // Seeing the key free is the proof that the new leader looks after the claim.
    let failed = town.status("billing", |status| status.holder.is_none()).await;
    assert_eq!(failed.phase, Some(Phase::Failed), "a restart is no second attempt");
    town.apply("billing", json!({"acquire": {"tryOnce": true}, "value": "again"})).await;
    town.phase("billing", Phase::Held).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_recreated_under_its_name_gets_keepers_of_its_own() {
    let town = Town::found().await;
    let _leading = town.lead();
    town.apply("billing", json!({})).await;
    let first = town.phase("billing", Phase::Held).await;
    // By force: without waiting for the release that the finalizer stands for.
    let patch = json!({"metadata": {"finalizers": []}});
    town.delete("billing").await;
    let _ = town.claims.patch("billing", &PatchParams::default(), &Patch::Merge(patch)).await;
    let claim: ConsulLock = serde_json::from_value(json!({
        "apiVersion": "consullock.dev/v1alpha1", "kind": "ConsulLock",
        "metadata": {"name": "billing"}, "spec": {},
    }))
    .unwrap();
    let create = || async { town.claims.create(&PostParams::default(), &claim).await.is_ok() };
    town.until(create, |created| *created).await;
    let second = town.phase("billing", Phase::Held).await;
    assert!(token(&second) > token(&first));
    assert_eq!(second.transitions, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_lead_writes_nothing() {
    let town = Town::found().await;
    town.may_act.store(false, Ordering::Relaxed);
    let leading = town.lead();
    town.apply("billing", json!({})).await;
    let before = town.claims.get("billing").await.unwrap();
    assert_eq!(before.finalizers(), &[] as &[String]);
    let refused = "consul_lock_reconcile_errors_total{class=\"NotLeading\"}";
    town.until(|| async { leading.metrics.render() }, |text| text.contains(refused)).await;
    let after = town.claims.get("billing").await.unwrap();
    assert_eq!(after.resource_version(), before.resource_version());
    assert!(town.pair(&town.key("billing")).await.is_none());
    drop(leading);
    town.may_act.store(true, Ordering::Relaxed);
    let _leading = town.lead();
    town.phase("billing", Phase::Held).await;
}
