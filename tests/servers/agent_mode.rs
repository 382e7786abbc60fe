//! Claims whose pods hold the key themselves (`mode: Agent`): label, token, endpoint and status
//! follow the key, and nothing is done about it but for the dead. What an agent writes into the key
//! most tests write by hand; in one real agents do.

use consul_lock::{
    api::{ConsulLockStatus, Mode, Phase, SessionHealth},
    consul::{Behavior, Consistency, Consul, KvPair, SessionRequest, Txn, TxnOp},
    names::{Key, NodeName, SessionId, SessionName},
};
use kube::api::Patch;
use serde_json::{Value, json};
use testbed::{Fault, Proxy};

use crate::{
    agent::scene::{self, Agent, Scene},
    fixtures::{LOCK_FLAGS, PATIENCE, control_plane, shared_consul, unlock},
    pods::{self, Cast, candidates, routed},
    rights,
    site::{Site, condition, eventually, token},
};

/// An agent's hand in Consul.
struct Hand<'a> {
    site: &'a Site,
    key: Key,
    session: SessionId,
    /// Who it says that it is.
    says: Value,
}

impl<'a> Hand<'a> {
    /// The agent of a pod.
    async fn of(site: &'a Site, cast: &Cast, claim: &str, pod: &str) -> Hand<'a> {
        let uid = cast.pods.get(pod).await.unwrap().metadata.uid;
        let says = json!({
            "holder": format!("{}/{claim}", site.namespace), "cluster": site.cluster(),
            "pod": pod, "uid": uid, "since": "2026-01-02T03:04:05Z", "value": "",
        });
        Hand::saying(site, claim, says).await
    }

    async fn saying(site: &'a Site, claim: &str, says: Value) -> Hand<'a> {
        let node = NodeName::new(format!("{}-agents", site.namespace));
        site.consul.register_node(&node).await.unwrap();
        let request = SessionRequest {
            name: SessionName::new(format!("consul-lock/{}/agent", site.cluster())),
            node,
            ttl: PATIENCE * 4,
            lock_delay: std::time::Duration::ZERO,
            behavior: Behavior::Release,
            node_checks: Vec::new(),
            service_checks: Vec::new(),
        };
        let session = site.consul.create_session(&request).await.unwrap();
        Hand { site, key: site.key(claim), session, says }
    }

    fn lock(&self, token: Option<u64>) -> TxnOp {
        let mut says = self.says.clone();
        if let Some(token) = token {
            says["token"] = json!(token.to_string());
        }
        TxnOp::Lock {
            key: self.key.clone(),
            session: self.session.clone(),
            value: says.to_string().into_bytes(),
            flags: LOCK_FLAGS,
        }
    }

    async fn commit(&self, steps: &[TxnOp]) -> KvPair {
        match self.site.consul.transaction(steps).await.unwrap() {
            Txn::Committed(mut pairs) => pairs.pop().unwrap(),
            Txn::RolledBack(refused) => panic!("{steps:?}: {refused:?}"),
        }
    }

    /// Takes the key; the token, of which it says nothing yet.
    async fn takes_silently(&self) -> u64 {
        self.commit(&[self.lock(None)]).await.modify_index
    }

    async fn tells(&self, token: u64) {
        self.commit(&[self.lock(Some(token))]).await;
    }

    async fn takes(&self) -> u64 {
        let token = self.takes_silently().await;
        self.tells(token).await;
        token
    }

    /// Takes the key from another in one commit, with nobody between.
    async fn takes_from(&self, other: &Hand<'_>) -> u64 {
        let steps = [unlock(&self.key, &other.session), self.lock(None)];
        let token = self.commit(&steps).await.modify_index;
        self.tells(token).await;
        token
    }

    async fn gives_up(&self) {
        self.commit(&[unlock(&self.key, &self.session)]).await;
    }

    async fn holds(&self) -> bool {
        self.site.pair(&self.key).await.and_then(|pair| pair.session).as_ref()
            == Some(&self.session)
    }

    /// Waits until the key is nobody's.
    async fn is_relieved(&self) {
        eventually("the key to be free", || async {
            match self.site.pair(&self.key).await {
                Some(pair) if pair.session.is_some() => Err(pair),
                _ => Ok(()),
            }
        })
        .await;
    }

    async fn lives(&self) -> bool {
        let session = self.site.consul.session(&self.session, Consistency::Consistent);
        session.await.unwrap().is_some()
    }
}

fn agent(mut spec: Value) -> Value {
    spec["mode"] = json!("Agent");
    spec
}

/// The reason of `Ready`.
fn reason(status: &ConsulLockStatus) -> String {
    condition(status, "Ready").1
}

/// Waits until the last tenure of the history ended for this reason; the status.
async fn ended(site: &Site, claim: &str, token: u64, why: &str) -> ConsulLockStatus {
    let what = format!("the tenure {token} to end: {why}");
    site.wait(claim, &what, |status| {
        let last = status.history.first();
        last.is_some_and(|last| last.token == token.to_string() && last.reason == why)
    })
    .await
}

#[tokio::test]
async fn label_token_endpoint_and_status_follow_the_key_from_pod_to_pod() {
    let (site, cast, replica) = Cast::on_stage("follow").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", agent(routed(json!({})))).await;
    let free = site.wait_phase("lock", Phase::Waiting).await;
    assert_eq!(reason(&free), "Contending");
    let seen = free.candidates.unwrap();
    assert_eq!((seen.matching, seen.eligible, seen.first), (2, 2, None));

    let (a, b) =
        (Hand::of(&site, &cast, "lock", "a").await, Hand::of(&site, &cast, "lock", "b").await);
    let first = a.takes_silently().await;
    let silent = site.wait("lock", "the silent holder", |s| reason(s) == "TokenUnknown").await;
    assert_eq!((silent.phase, silent.transitions), (Some(Phase::Waiting), 0));
    assert!(cast.badges("lock").await.is_empty(), "its token is not known yet");
    assert_eq!(cast.endpoints("billing").await, []);
    a.tells(first).await;
    assert_eq!(cast.led_by("lock", "a").await, first);
    assert_eq!(cast.routed("billing", Some("a")).await.unwrap().token, Some(first));
    let held =
        site.wait("lock", "the traffic", |s| condition(s, "RoutingSynced").1 == "Routed").await;
    assert_eq!(
        (held.phase, held.transitions, held.mode),
        (Some(Phase::Held), 1, Some(Mode::Agent))
    );
    let session = held.session.unwrap();
    assert_eq!(session.id.as_deref(), Some(a.session.as_str()));
    assert_eq!(session.health, SessionHealth::Healthy);
    assert_eq!(held.acquired_at.unwrap().0.to_string(), "2026-01-02T03:04:05Z");
    assert!(site.sessions().await.is_empty(), "the controller has none for it");
    assert_eq!(replica.metric("consul_lock_acquisitions_total"), Some(0.0));

    a.gives_up().await;
    let free = ended(&site, "lock", first, "Released").await;
    assert_eq!((free.phase, free.holder, free.session), (Some(Phase::Waiting), None, None));
    cast.led_by_nobody("lock").await;
    cast.routed("billing", None).await;

    let second = a.takes().await;
    assert_eq!(cast.led_by("lock", "a").await, second);
    let third = b.takes_from(&a).await;
    assert_eq!(cast.led_by("lock", "b").await, third);
    assert_eq!(cast.routed("billing", Some("b")).await.unwrap().token, Some(third));
    let moved = ended(&site, "lock", second, "PassedOn").await;
    assert_eq!(moved.transitions, 3);
    assert!(b.holds().await && a.lives().await);
}

#[tokio::test]
async fn the_key_of_a_pod_that_has_ended_is_freed_at_once_and_its_session_when_nobody_is_left() {
    let (site, cast, _replica) = Cast::on_stage("proof").await;
    cast.service("billing", json!({})).await;
    for (pod, second) in [("a", 1), ("b", 2), ("c", 3)] {
        cast.ready(pod, second).await;
    }
    site.create("lock", agent(routed(json!({})))).await;
    let a = Hand::of(&site, &cast, "lock", "a").await;
    let first = a.takes().await;
    cast.led_by("lock", "a").await;
    cast.ended("a").await;
    a.is_relieved().await;
    ended(&site, "lock", first, "PodDied").await;
    cast.led_by_nobody("lock").await;
    assert_eq!(cast.endpoints("billing").await, []);
    assert!(a.lives().await, "its agent may have outlived it");

    // The kubelet has started it again already.
    let b = Hand::of(&site, &cast, "lock", "b").await;
    let second = b.takes().await;
    cast.led_by("lock", "b").await;
    cast.restarted("b", 9).await;
    b.is_relieved().await;
    ended(&site, "lock", second, "PodDied").await;
    // What ended before a tenure began says nothing about it.
    let third = b.takes().await;
    assert_eq!(cast.led_by("lock", "b").await, third);
    b.gives_up().await;

    let c = Hand::of(&site, &cast, "lock", "c").await;
    c.takes().await;
    cast.led_by("lock", "c").await;
    // The kubelet's last word.
    let status = json!({ "phase": "Failed", "containerStatuses": [pods::ended("app", "c")] });
    let patch = Patch::Strategic(json!({ "status": status }));
    cast.pods.patch_status("c", &Default::default(), &patch).await.unwrap();
    c.is_relieved().await;
    eventually("its session to be ended", || async {
        if c.lives().await { Err(()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn what_is_no_proof_of_death_leaves_the_key_with_its_pod() {
    let (site, cast, _replica) = Cast::on_stage("no-proof").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", agent(routed(json!({})))).await;
    let a = Hand::of(&site, &cast, "lock", "a").await;
    let first = a.takes().await;
    cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    cast.unready("a").await;
    eventually("the slice to say so", || async {
        let found = cast.endpoints("billing").await;
        if found.iter().all(|one| one.pod == "a" && !one.ready) { Ok(()) } else { Err(found) }
    })
    .await;
    cast.node_is("Unknown").await;
    // By force: nobody knows what became of it.
    cast.remove("a").await;
    cast.routed("billing", None).await;
    let held = site.status("lock").await;
    assert_eq!((held.phase, token(&held)), (Some(Phase::Held), first));
    assert!(a.holds().await);
    // An operator knows.
    cast.out_of_service().await;
    a.is_relieved().await;
    ended(&site, "lock", first, "PodDeleted").await;
    eventually("its session to be ended", || async {
        if a.lives().await { Err(()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn who_is_no_pod_of_this_claim_is_shown_as_holder_and_given_nothing() {
    let (site, elsewhere) = (Site::new("others").await, Site::new("elsewhere").await);
    let (cast, far) = (Cast::new(&site).await, Cast::new(&elsewhere).await);
    rights::grant(&site.client, &site.namespace, &elsewhere.namespace).await;
    let watch = format!("--watch-namespaces={},{}", site.namespace, elsewhere.namespace);
    let _replica = site.start_with(&[&watch]).await;
    cast.ready("a", 1).await;
    cast.ready("other", 2).await;
    let unlike = Patch::Merge(json!({ "metadata": { "labels": { "app": "other" } } }));
    cast.pods.patch("other", &Default::default(), &unlike).await.unwrap();
    far.ready("far", 1).await;
    site.create("lock", agent(candidates(json!({})))).await;
    site.wait_phase("lock", Phase::Waiting).await;
    let own = Hand::of(&site, &cast, "lock", "a").await.says;
    let but = |field: &str, value: Value| {
        let mut says = own.clone();
        says[field] = value;
        says
    };
    let uid = |pod: k8s_openapi::api::core::v1::Pod| json!(pod.metadata.uid);
    let namespace = &site.namespace;
    for (says, identity) in [
        (but("cluster", json!("east")), format!("{namespace}/a")),
        (but("holder", json!(format!("{namespace}/another"))), format!("{namespace}/a")),
        (but("uid", uid(far.pods.get("far").await.unwrap())), format!("{namespace}/a")),
        (but("uid", uid(cast.pods.get("other").await.unwrap())), format!("{namespace}/a")),
        (but("uid", json!("made-up")), format!("{namespace}/a")),
        (json!("scribble"), String::new()),
    ] {
        let hand = Hand::saying(&site, "lock", says.clone()).await;
        let taken = match says {
            Value::Object(_) => hand.takes().await,
            _ => hand.takes_silently().await,
        };
        let shown = site
            .wait("lock", &format!("{says} to be shown"), |status| {
                let ready = reason(status) == "HeldElsewhere";
                ready && status.holder.as_ref().is_some_and(|one| one.identity.contains(&identity))
            })
            .await;
        assert_eq!((shown.phase, shown.fencing_token), (Some(Phase::Waiting), None), "{says}");
        assert!(cast.badges("lock").await.is_empty() && far.badges("lock").await.is_empty());
        assert!(hand.holds().await, "{taken} was taken away");
        hand.gives_up().await;
        site.wait("lock", "it to be free", |status| status.holder.is_none()).await;
    }
    let stranger = site.stranger(site.key("lock")).await;
    let shown = |status: &ConsulLockStatus| status.holder.as_ref().is_some_and(|one| one.stranger);
    let status = site.wait("lock", "the stranger", shown).await;
    assert_eq!((status.transitions, status.history.len()), (0, 0));
    // Neither the end of its candidates nor anything else makes the controller touch that.
    cast.ended("a").await;
    assert!(stranger.holds().await);
    stranger.leave().await;
}

#[tokio::test]
async fn a_controller_that_was_away_goes_on_where_it_was_and_tells_what_it_missed() {
    let (site, cast, replica) = Cast::on_stage("away").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", agent(routed(json!({})))).await;
    let (a, b) =
        (Hand::of(&site, &cast, "lock", "a").await, Hand::of(&site, &cast, "lock", "b").await);
    let first = a.takes().await;
    cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    site.wait("lock", "the traffic", |s| condition(s, "RoutingSynced").1 == "Routed").await;
    let before = site.claims.get("lock").await.unwrap().metadata.resource_version;
    replica.server.kill().unwrap();

    // Nothing happens meanwhile: nothing is written.
    let replica = site.start().await;
    replica.wait_leads().await;
    site.serves_another_claim().await;
    let after = site.claims.get("lock").await.unwrap();
    assert_eq!(after.metadata.resource_version, before, "{:#?}", after.status);
    replica.server.kill().unwrap();

    // The key moves meanwhile.
    let second = b.takes_from(&a).await;
    let replica = site.start().await;
    assert_eq!(cast.led_by("lock", "b").await, second);
    let status = ended(&site, "lock", first, "PassedOn").await;
    assert_eq!((status.transitions, status.history.len()), (2, 1));
    cast.routed("billing", Some("b")).await;
    replica.server.kill().unwrap();

    // Its pod ends meanwhile, and is started again: only what was recorded tells of it.
    cast.restarted("b", 9).await;
    let _replica = site.start().await;
    b.is_relieved().await;
    let status = ended(&site, "lock", second, "PodDied").await;
    assert_eq!((status.transitions, status.history.len()), (2, 2));
    let third = b.takes().await;
    assert_eq!(cast.led_by("lock", "b").await, third);
}

#[tokio::test]
async fn while_consul_is_away_nothing_is_known_and_nobody_is_relieved() {
    let address = tokio::task::spawn_blocking(|| shared_consul().address()).await.unwrap();
    let proxy = Proxy::tcp(address.parse().unwrap()).unwrap();
    let site = Site::on("blind", &proxy.address().to_string()).await.observed_at(&address);
    let (cast, _replica) = (Cast::new(&site).await, site.start().await);
    cast.ready("a", 1).await;
    let mut spec = agent(candidates(json!({})));
    spec["session"]["ttl"] = json!("10s");
    site.create("lock", spec).await;
    let a = Hand::of(&site, &cast, "lock", "a").await;
    let first = a.takes().await;
    cast.led_by("lock", "a").await;
    proxy.set(Fault::Cut);
    let unknown = site.wait_phase("lock", Phase::Unknown).await;
    let held = condition(&unknown, "Held");
    assert_eq!((held.0.as_str(), held.1.as_str()), ("Unknown", "ConsulUnavailable"));
    assert_eq!(unknown.session.as_ref().unwrap().health, SessionHealth::Unknown);
    assert_eq!(token(&unknown), first, "as it was seen last");
    assert_eq!(cast.badges("lock").await.len(), 1, "its agent goes on");
    proxy.set(Fault::None);
    let again = site.wait_phase("lock", Phase::Held).await;
    assert_eq!((token(&again), again.transitions, again.history.len()), (first, 1, 0));
}

#[tokio::test]
async fn a_change_of_mode_gives_up_what_is_ours_and_takes_nothing_that_is_not() {
    let (site, cast, replica) = Cast::on_stage("modes").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    site.create("lock", routed(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    site.change("lock", json!({ "mode": "Agent" })).await;
    let status = ended(&site, "lock", first, "Stopped").await;
    assert_eq!(status.holder, None);
    cast.led_by_nobody("lock").await;
    cast.routed("billing", None).await;
    site.no_sessions().await;
    let a = Hand::of(&site, &cast, "lock", "a").await;
    let second = a.takes().await;
    assert_eq!(cast.led_by("lock", "a").await, second);
    cast.routed("billing", Some("a")).await;

    // Back again, under another controller: the agent's session is none that it could adopt.
    replica.server.kill().unwrap();
    site.change("lock", json!({ "mode": "Managed" })).await;
    let _replica = site.start().await;
    let waiting = site.wait("lock", "to wait", |s| reason(s) == "HeldElsewhere").await;
    assert_eq!((waiting.mode, waiting.fencing_token), (None, None));
    cast.led_by_nobody("lock").await;
    cast.routed("billing", None).await;
    assert!(a.holds().await);
    a.gives_up().await;
    assert!(cast.led_by("lock", "a").await > second);
}

#[tokio::test]
async fn a_claim_that_is_deleted_or_paused_leaves_the_key_with_its_pod() {
    let (site, cast, _replica) = Cast::on_stage("leave").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    site.create("lock", agent(routed(json!({})))).await;
    let a = Hand::of(&site, &cast, "lock", "a").await;
    let first = a.takes().await;
    cast.led_by("lock", "a").await;
    site.change("lock", json!({ "paused": true })).await;
    let generation = site.claims.get("lock").await.unwrap().metadata.generation;
    let seen = |status: &ConsulLockStatus| status.observed_generation == generation;
    let shown = site.wait("lock", "to be looked at", seen).await;
    assert_eq!(
        (shown.phase, token(&shown)),
        (Some(Phase::Held), first),
        "while it is not given up"
    );
    a.gives_up().await;
    site.wait_phase("lock", Phase::Paused).await;
    ended(&site, "lock", first, "Paused").await;
    site.change("lock", json!({ "paused": false })).await;
    a.takes().await;
    cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    site.delete("lock").await;
    site.gone("lock").await;
    assert!(cast.badges("lock").await.is_empty());
    assert_eq!(cast.endpoints("billing").await, []);
    assert!(a.holds().await, "it was never ours");
}

#[tokio::test]
async fn a_pod_that_lost_its_key_is_deleted_if_asked_for_and_one_that_gave_it_up_is_not() {
    let (site, cast, _replica) = Cast::on_stage("lost-key").await;
    cast.ready("a", 1).await;
    let mut spec = agent(candidates(json!({})));
    spec["onLost"] = json!("DeletePod");
    site.create("lock", spec).await;
    let a = Hand::of(&site, &cast, "lock", "a").await;
    let first = a.takes().await;
    cast.led_by("lock", "a").await;
    a.gives_up().await;
    ended(&site, "lock", first, "Released").await;
    cast.led_by_nobody("lock").await;
    let deleting = async || cast.pods.get("a").await.unwrap().metadata.deletion_timestamp.is_some();
    assert!(!deleting().await);
    let second = a.takes().await;
    cast.led_by("lock", "a").await;
    site.consul.destroy_session(&a.session).await.unwrap();
    ended(&site, "lock", second, "SessionInvalidated").await;
    assert!(deleting().await);
}

/// Starts the agent of a pod, which reads its claim.
async fn agent_of(site: &Site, cast: &Cast, scene: &Scene, claim: &str, pod: &str) -> Agent {
    let uid = cast.pods.get(pod).await.unwrap().metadata.uid.unwrap();
    let flags = [
        format!("--claim={claim}"),
        format!("--cluster-name={}", site.cluster()),
        format!("--pod-name={pod}"),
        format!("--pod-namespace={}", site.namespace),
        format!("--pod-uid={uid}"),
        "--reread=1s".to_owned(),
    ];
    let (mut command, port) = scene.command(&flags.each_ref().map(String::as_str));
    command.env("KUBECONFIG", control_plane().kubeconfig());
    scene.spawn((command, port))
}

#[tokio::test]
async fn agents_of_pods_are_followed_and_the_key_of_a_dead_pod_goes_to_the_next() {
    let (site, cast, _replica) = Cast::on_stage("sidecars").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    let spec = routed(json!({ "session": { "ttl": "60s", "lockDelay": "60s" } }));
    site.create("lock", agent(spec)).await;
    let scene = Scene::new("sidecars");
    let mut a = agent_of(&site, &cast, &scene, "lock", "a").await;
    let first = scene::token(&a.leads());
    assert_eq!(cast.led_by("lock", "a").await, first);
    assert_eq!(cast.routed("billing", Some("a")).await.unwrap().token, Some(first));
    let held = site.wait_phase("lock", Phase::Held).await;
    assert_eq!((token(&held), held.transitions), (first, 1));

    let mut b = agent_of(&site, &cast, &scene, "lock", "b").await;
    b.stands_so("waiting");
    // Neither the TTL nor the lock-delay is waited for.
    cast.ended("a").await;
    let second = scene::token(&b.leads());
    assert!(second > first, "{second} after {first}");
    assert_eq!(cast.led_by("lock", "b").await, second);
    assert_eq!(cast.routed("billing", Some("b")).await.unwrap().token, Some(second));
    ended(&site, "lock", first, "PodDied").await;
    a.stands_so("waiting");

    b.stop();
    let third = scene::token(&a.leads());
    assert!(third > second, "{third} after {second}");
    // Whether the controller saw the key free, or only the next tenure, is a matter of luck.
    site.wait("lock", "the second tenure to end", |status| {
        let last = status.history.first();
        last.is_some_and(|last| {
            last.token == second.to_string()
                && ["Released", "PassedOn"].contains(&last.reason.as_str())
        })
    })
    .await;
    a.stop();
    cast.led_by_nobody("lock").await;
    assert_eq!(cast.endpoints("billing").await, []);
}
