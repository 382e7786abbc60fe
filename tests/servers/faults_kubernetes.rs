//! The controller while Kubernetes goes away, refuses, or changes under its hands. None of this
//! may cost a tenure, leak a session or keep another claim from working.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use consul_lock::{
    api::{ConsulLock, Phase},
    clock::Clock,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use testbed::{ControlPlane, Fault, Folder, Proxy};
use tokio::task::JoinSet;

use crate::{
    fixtures::{PATIENCE, claims_client, control_plane, shared_consul, unique},
    site::{Site, Way, claim, condition, eventually},
};

/// A site whose controllers reach the API server through a proxy.
pub(crate) async fn proxied(what: &str) -> (Site, Proxy) {
    claims_client().await;
    let proxy = Proxy::tcp(control_plane().address()).unwrap();
    let way = Way::Through(proxy.address().port());
    (on_shared_consul(what, way).await, proxy)
}

/// A site whose controllers reach the API server in this way.
async fn on_shared_consul(what: &str, way: Way) -> Site {
    let consul = tokio::task::spawn_blocking(|| shared_consul().address()).await.unwrap();
    Site::through(what, &consul, None, way).await
}

fn count(events: &[String], reason: &str) -> usize {
    events.iter().filter(|event| *event == reason).count()
}

// ---- the API server goes away ----

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_api_server_costs_no_tenure() {
    let cluster = tokio::task::spawn_blocking(ControlPlane::start).await.unwrap().unwrap();
    let site = Site::beside("restarted", &cluster).await;
    let replica = site.start().await;
    let stranger = site.stranger(site.key("waits")).await;
    for name in ["a", "b", "waits"] {
        site.create(name, json!({})).await;
    }
    site.wait_phase("waits", Phase::Waiting).await;
    let before = site.tenures(&["a", "b"]).await;
    // An event that is on its way while the API server dies is not told again, nor need it be.
    for name in ["a", "b"] {
        site.event(name, "Acquired").await;
    }

    cluster.apiserver().kill().unwrap();
    // It cannot renew its Lease, so it stops acting before another could take over.
    eventually("the leader to stand by", || async {
        if replica.leads() { Err("it leads") } else { Ok(()) }
    })
    .await;
    cluster.apiserver().start_again().unwrap();
    replica.wait_leads().await;

    stranger.leave().await;
    site.held("waits").await;
    assert_eq!(site.tenures(&["a", "b"]).await, before);
    site.serves_another_claim().await;
    for name in ["a", "b"] {
        let events = site.events(name).await;
        assert_eq!(count(&events, "Acquired"), 1, "{name}: {events:?}");
        site.delete(name).await;
        site.gone(name).await;
    }
    site.delete("waits").await;
    site.gone("waits").await;
    site.no_sessions().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_gone_for_longer_than_the_sessions_live_costs_no_tenure() {
    let (site, proxy) = proxied("long-gone").await;
    let replica = site.start().await;
    let spec = json!({ "session": { "ttl": "10s", "lockDelay": "0s" } });
    for name in ["a", "b"] {
        site.create(name, spec.clone()).await;
    }
    let before = site.tenures(&["a", "b"]).await;
    let cut = site.clock().now();
    proxy.set(Fault::Cut);
    // Consul would end them within twice the TTL of their last renewal.
    eventually("more than twice the TTL to pass", || async {
        assert_eq!(site.sessions().await.len(), 2, "they are renewed all the while");
        let passed = site.clock().now().since(cut);
        if passed > Duration::from_secs(25) { Ok(()) } else { Err(passed) }
    })
    .await;
    assert!(!replica.leads(), "it renews, and does nothing else");
    proxy.set(Fault::None);
    replica.wait_leads().await;
    assert_eq!(site.tenures(&["a", "b"]).await, before);
    site.serves_another_claim().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenures_end_by_expiry_and_no_sooner_when_no_controller_is_left() {
    let site = Site::new("nobody-left").await;
    let replica = site.start().await;
    let spec = json!({ "session": { "ttl": "10s", "lockDelay": "0s" } });
    for name in ["a", "taken"] {
        site.create(name, spec.clone()).await;
    }
    let before = [site.held("a").await, site.held("taken").await];
    let killed = site.clock().now();
    replica.server.kill().unwrap();
    site.no_sessions().await;
    let lasted = site.clock().now().since(killed);
    assert!(lasted > Duration::from_secs(5), "the session ended after {lasted:?}");
    let stranger = site.stranger(site.key("taken")).await;

    let _second = site.start().await;
    let recovered = site.wait("a", "a new tenure", |status| {
        status.phase == Some(Phase::Held)
            && status.fencing_token.as_ref() != Some(&before[0].to_string())
    });
    let recovered = recovered.await;
    assert!(crate::site::token(&recovered) > before[0]);
    assert_eq!(recovered.transitions, 2);
    assert_eq!(recovered.history[0].token, before[0].to_string());
    let shown = |status: &consul_lock::api::ConsulLockStatus| {
        status.holder.as_ref().is_some_and(|holder| holder.stranger)
    };
    assert_eq!(site.wait("taken", "the stranger", shown).await.phase, Some(Phase::Waiting));
    stranger.leave().await;
    assert!(site.held("taken").await > before[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_watch_is_opened_again_and_misses_nothing() {
    let (site, proxy) = proxied("closed").await;
    let replica = site.start().await;
    for name in ["kept", "deleted", "paused"] {
        site.create(name, json!({})).await;
    }
    let before = site.tenures(&["kept", "deleted", "paused"]).await;
    for round in 0..3 {
        proxy.set(Fault::Cut);
        proxy.set(Fault::None);
        let (name, began) = (format!("new-{round}"), site.clock().now());
        site.create(&name, json!({})).await;
        site.held(&name).await;
        let took = site.clock().now().since(began);
        assert!(took < Duration::from_secs(10), "a new claim waited {took:?}");
    }
    // What happens while nobody watches is seen afterwards.
    proxy.set(Fault::Cut);
    site.delete("deleted").await;
    site.change("paused", json!({ "paused": true })).await;
    site.create("unseen", json!({})).await;
    proxy.set(Fault::None);
    site.held("unseen").await;
    site.gone("deleted").await;
    site.wait_phase("paused", Phase::Paused).await;
    assert_eq!(site.tenures(&["kept"]).await[0], before[0]);
    assert_eq!(site.sessions().await.len(), 5, "kept, new-0 to new-2, unseen");
    let failures = replica.metric("consul_lock_watch_errors_total{resource=\"consullocks\"}");
    assert!(failures.is_some_and(|count| count >= 1.0), "nothing was cut: {failures:?}");
}

// ---- somebody else writes as well ----

/// Somebody who writes an annotation of a claim over and over until dropped.
struct Scribbler {
    _task: JoinSet<()>,
    written: Arc<AtomicU32>,
}

impl Scribbler {
    fn on(site: &Site, name: &str) -> Scribbler {
        let (claims, name) = (site.claims.clone(), name.to_owned());
        let written = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&written);
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let number = counted.load(Ordering::Relaxed).to_string();
                let patch = json!({ "metadata": { "annotations": { "scribble": number } } });
                let params = PatchParams::default();
                // Before the claim is created and after it is gone there is nothing to write to.
                if claims.patch(&name, &params, &Patch::Merge(patch)).await.is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Scribbler { _task: task, written }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_somebody_else_writes_all_the_time_ends_right() {
    let site = Site::new("scribbled").await;
    let replica = site.start().await;
    replica.wait_leads().await;
    let scribbler = Scribbler::on(&site, "a");
    site.create("a", json!({})).await;
    let first = site.held("a").await;
    site.change("a", json!({ "paused": true })).await;
    let paused = site.wait_phase("a", Phase::Paused).await;
    assert_eq!((paused.fencing_token, paused.transitions), (None, 1));
    assert_eq!(paused.history[0].token, first.to_string());
    site.change("a", json!({ "paused": false })).await;
    let second = site.held("a").await;
    assert!(second > first);
    let all = || async {
        let events = site.events("a").await;
        if count(&events, "Acquired") == 2 { Ok(()) } else { Err(events) }
    };
    eventually("both tenures to be told", all).await;
    site.serves_another_claim().await;
    assert!(scribbler.written.load(Ordering::Relaxed) > 20, "hardly any writes to meet");
    site.delete("a").await;
    site.gone("a").await;
    drop(scribbler);
    site.no_sessions().await;
    let events = site.events("a").await;
    assert_eq!(count(&events, "Acquired"), 2, "{events:?}");
    assert_eq!(count(&events, "Released"), 1, "{events:?}");
    let conflicts = replica.metric("consul_lock_reconcile_errors_total{class=\"Conflict\"}");
    assert!(conflicts.is_some_and(|count| count >= 1.0), "no 409 was met: {conflicts:?}");
}

// ---- claims that go ----

#[tokio::test]
async fn a_claim_deleted_while_it_waits_goes_at_once_and_leaves_the_holder_alone() {
    let site = Site::new("gone-waiting").await;
    let _replica = site.start().await;
    let stranger = site.stranger(site.key("a")).await;
    site.create("a", json!({})).await;
    site.wait_phase("a", Phase::Waiting).await;
    site.delete("a").await;
    site.gone("a").await;
    site.no_sessions().await;
    stranger.leave().await;
    site.serves_another_claim().await;
}

#[tokio::test]
async fn a_claim_deleted_while_it_is_held_leaves_the_key_free_at_once() {
    let site = Site::new("gone-held").await;
    let _replica = site.start().await;
    site.create("a", json!({ "session": { "lockDelay": "60s" } })).await;
    site.held("a").await;
    site.delete("a").await;
    site.gone("a").await;
    // Destroying the session before the release would have started the lock-delay.
    site.stranger(site.key("a")).await.leave().await;
    site.no_sessions().await;
}

#[tokio::test]
async fn a_deleted_claim_that_others_hold_back_does_not_go_on_saying_held() {
    let site = Site::new("held-back").await;
    let _replica = site.start().await;
    let mut object = claim("a", json!({}));
    object.metadata.finalizers = Some(vec!["example.com/archive".to_owned()]);
    site.claims.create(&PostParams::default(), &object).await.unwrap();
    let token = site.held("a").await;
    site.delete("a").await;
    let released = site.wait("a", "no tenure", |status| status.fencing_token.is_none()).await;
    assert_eq!(released.phase, Some(Phase::Releasing));
    assert_eq!((released.holder, released.session), (None, None));
    assert_eq!(condition(&site.status("a").await, "Held").0, "False");
    assert_eq!(released.history[0].token, token.to_string());
    site.no_sessions().await;
    // Others go on working with it.
    let patch = json!({ "metadata": { "annotations": { "archive": "done" }, "finalizers": [] } });
    site.claims.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    site.gone("a").await;
}

/// Tenfold the time that anything here takes by itself.
const SLACK: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_deleted_while_consul_is_away_goes_when_its_session_does() {
    let upstream = tokio::task::spawn_blocking(shared_consul).await.unwrap();
    let proxy = Proxy::tcp(upstream.http()).unwrap();
    let site = Site::on("gone-away", &proxy.address().to_string()).await;
    let site = site.observed_at(&upstream.address());
    let replica = site.start().await;
    let ttl = Duration::from_secs(10);
    let spec = json!({ "session": { "ttl": "10s", "lockDelay": "0s" } });
    let stranger = site.stranger(site.key("waiting")).await;
    for name in ["held", "scribbled", "waiting", "stays"] {
        site.create(name, spec.clone()).await;
    }
    for name in ["held", "scribbled", "stays"] {
        site.held(name).await;
    }
    site.wait_phase("waiting", Phase::Waiting).await;

    proxy.set(Fault::Blackhole);
    let away = site.clock().now();
    site.create("newborn", spec).await;
    let scribbler = Scribbler::on(&site, "scribbled");
    let parting = ["held", "scribbled", "waiting", "newborn"];
    for name in parting {
        site.delete(name).await;
    }
    for name in parting {
        site.gone(name).await;
        let took = site.clock().now().since(away);
        assert!(took < 2 * ttl + SLACK, "{name} went after {took:?}");
    }
    drop(scribbler);
    for name in ["held", "scribbled", "waiting"] {
        site.event(name, "DeletedWithoutRelease").await;
        let events = site.events(name).await;
        assert_eq!(count(&events, "DeletedWithoutRelease"), 1, "{events:?}");
    }
    // The sessions end by themselves, whether Consul is reached again or not.
    site.stranger_when_free("held").await.leave().await;

    proxy.set(Fault::None);
    site.held("stays").await;
    stranger.leave().await;
    site.serves_another_claim().await;
    for name in parting {
        let pair = site.pair(&site.key(name)).await;
        assert!(pair.is_none_or(|pair| pair.session.is_none()), "{name} is still locked");
    }
    assert!(replica.get("/healthz").is_some_and(|reply| reply.status == 200));
    site.delete("stays").await;
    site.gone("stays").await;
    site.no_sessions().await;
}

#[tokio::test]
async fn a_claim_recreated_while_its_predecessor_goes_begins_anew() {
    let site = Site::new("again").await;
    let _replica = site.start().await;
    site.create("a", json!({})).await;
    let mut last = site.held("a").await;
    for _ in 0..3 {
        let uid = site.claims.get("a").await.unwrap().metadata.uid;
        site.delete("a").await;
        let create =
            || async { site.claims.create(&PostParams::default(), &claim("a", json!({}))).await };
        let created: ConsulLock = eventually("the name to be free", create).await;
        assert_ne!(created.metadata.uid, uid);
        let token = site.held("a").await;
        assert!(token > last, "{token} after {last}");
        assert_eq!(site.status("a").await.transitions, 1);
        last = token;
    }
    assert_eq!(site.sessions().await.len(), 1);
}

// ---- rights that are missing ----

/// What a controller needs in the namespace that it looks after.
fn rules(with_claims: bool) -> Value {
    let mut rules = vec![
        json!({
            "apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
            "verbs": ["get", "create", "update"],
        }),
        json!({ "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"] }),
    ];
    if with_claims {
        rules.push(json!({
            "apiGroups": ["consullock.dev"],
            "resources": ["consullocks", "consullocks/status"],
            "verbs": ["get", "list", "watch", "patch"],
        }));
    }
    Value::from(rules)
}

/// Lets `user` do what a controller does in the site's namespace.
pub(crate) async fn allow(site: &Site, user: &str, with_claims: bool) {
    let name = json!({ "name": user });
    let role = json!({ "metadata": name, "rules": rules(with_claims) });
    let roles = Api::<Role>::namespaced(site.client.clone(), &site.namespace);
    put(roles, user, role).await;
    let binding = json!({
        "metadata": name,
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user },
        "subjects": [subject(user)],
    });
    put(Api::<RoleBinding>::namespaced(site.client.clone(), &site.namespace), user, binding).await;
}

/// Lets `user` look at all Namespaces.
async fn allow_namespaces(client: &Client, user: &str) {
    let rule = json!({ "apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "list", "watch"] });
    let role = json!({ "metadata": { "name": user }, "rules": [rule] });
    put(Api::<ClusterRole>::all(client.clone()), user, role).await;
    let binding = json!({
        "metadata": { "name": user },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user },
        "subjects": [subject(user)],
    });
    put(Api::<ClusterRoleBinding>::all(client.clone()), user, binding).await;
}

pub(crate) fn subject(user: &str) -> Value {
    json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user })
}

/// Creates the object, or merges it into the one that there is.
pub(crate) async fn put<K>(api: Api<K>, name: &str, object: Value)
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let new: K = serde_json::from_value(object.clone()).unwrap();
    if api.create(&PostParams::default(), &new).await.is_err() {
        api.patch(name, &PatchParams::default(), &Patch::Merge(object)).await.unwrap();
    }
}

/// A site whose controllers have no rights yet, and the user that they are.
pub(crate) async fn without_rights(what: &str) -> (Site, String) {
    claims_client().await;
    let user = unique(what);
    let kubeconfig = control_plane().kubeconfig_for(&user, None).unwrap();
    (on_shared_consul(what, Way::By(kubeconfig)).await, user)
}

#[tokio::test]
async fn without_the_namespaces_only_claims_that_need_them_wait() {
    let (site, user) = without_rights("blind").await;
    allow(&site, &user, true).await;
    let annotation = json!({ "metadata": { "annotations": {
        consul_lock::api::KEY_PREFIXES_ANNOTATION: format!("elsewhere/{user}/"),
    } } });
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(site.client.clone());
    let params = PatchParams::default();
    namespaces.patch(&site.namespace, &params, &Patch::Merge(annotation)).await.unwrap();
    let replica = site.start().await;
    site.create("usual", json!({})).await;
    site.create("unusual", json!({ "key": format!("elsewhere/{user}/key") })).await;
    let token = site.held("usual").await;
    let waits = site.wait("unusual", "a status", |status| status.phase.is_some()).await;
    assert_eq!(waits.phase, Some(Phase::Pending), "{waits:#?}");
    assert!(condition(&waits, "Ready").2.contains("Namespace"), "{waits:#?}");
    replica.wait_ready().await;
    assert!(replica.metric("consul_lock_watch_errors_total{resource=\"namespaces\"}") > Some(0.0));

    allow_namespaces(&site.client, &user).await;
    site.held("unusual").await;
    assert_eq!(site.held("usual").await, token);
}

#[tokio::test]
async fn claims_that_may_not_be_watched_are_served_once_they_may() {
    let (site, user) = without_rights("denied").await;
    allow(&site, &user, false).await;
    let replica = site.start().await;
    site.create("a", json!({})).await;
    let denied = || async {
        match replica.metric("consul_lock_watch_errors_total{resource=\"consullocks\"}") {
            Some(errors) if errors >= 2.0 => Ok(()),
            other => Err(other),
        }
    };
    eventually("two refusals", denied).await;
    let ready = replica.get("/readyz").unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("[-] caches"), "{}", ready.text());
    assert!(replica.log().contains("is forbidden"), "the log does not say what is missing");

    allow(&site, &user, true).await;
    site.held("a").await;
    replica.wait_ready().await;
    site.serves_another_claim().await;
}

// ---- no way to Kubernetes at the start ----

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named() {
    let folder = Folder::new("kubeconfig").unwrap();
    let absent = folder.path().join("absent");
    let nonsense = folder.write("nonsense", "clusters: 7\n").unwrap();
    let lost = "apiVersion: v1\nkind: Config\nclusters: []\ncontexts: []\ncurrent-context: lost\n";
    let lost = folder.write("lost", lost).unwrap();
    for kubeconfig in [absent, nonsense, lost] {
        let site = on_shared_consul("unusable", Way::By(kubeconfig.clone())).await;
        let replica = site.start().await;
        let status = replica.server.wait_ended(PATIENCE).unwrap();
        let log = replica.log();
        assert_eq!(status.code(), Some(3), "{log}");
        let error = log.lines().find(|line| line.starts_with("error: ")).unwrap();
        assert!(error.contains(&format!("KUBECONFIG={}", kubeconfig.display())), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_does_not_answer_at_the_start_is_waited_for() {
    let (site, proxy) = proxied("late").await;
    proxy.set(Fault::Cut);
    let replica = site.start().await;
    let waits = || async {
        let reply = replica.get("/readyz").ok_or("no answer")?;
        let missing = reply.status == 503 && reply.text().contains("[-] caches");
        let said = replica.log().contains("a watch failed");
        if missing && said { Ok(()) } else { Err("not waiting") }
    };
    eventually("the controller to wait for Kubernetes", waits).await;
    assert!(replica.get("/healthz").is_some_and(|reply| reply.status == 200));
    site.create("a", json!({})).await;
    proxy.set(Fault::None);
    site.held("a").await;
    replica.wait_ready().await;
    let (clock, began) = (Clock::boot(), Clock::boot().now());
    replica.server.terminate().unwrap();
    assert_eq!(replica.server.wait_ended(PATIENCE).unwrap().code(), Some(0));
    assert!(clock.now().since(began) < Duration::from_secs(10), "slow to stop");
}
