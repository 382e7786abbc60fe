//! Consul goes away, for a moment or for long, and comes back: what becomes of claims.

use std::time::Duration;

use consul_lock::{
    api::{ConsulLockStatus, Phase, SessionHealth},
    names::SessionId,
};
use serde_json::json;
use testbed::{Consul, ConsulConfig, Fault, Proxy};

use crate::{
    fixtures::shared_consul,
    site::{Replica, Site, condition, eventually, token},
};

/// How much later than *valid until* a status may be seen to change: a write, and a look at it.
const WRITE: Duration = Duration::from_secs(2);

/// A site whose controllers reach Consul through a proxy, and which looks past it.
pub(crate) struct Scene {
    pub(crate) site: Site,
    pub(crate) proxy: Proxy,
}

impl Scene {
    /// On the shared Consul.
    pub(crate) async fn new(what: &str) -> Scene {
        let consul = tokio::task::spawn_blocking(shared_consul).await.unwrap();
        Scene::before(what, consul).await
    }

    pub(crate) async fn before(what: &str, consul: &Consul) -> Scene {
        let proxy = Proxy::http(consul.http()).unwrap();
        let site = Site::on(what, &proxy.address().to_string()).await;
        Scene { site: site.observed_at(&consul.address()), proxy }
    }

    /// Every claim is deleted, and nothing stays behind in Consul.
    pub(crate) async fn end(self) {
        let claims = self.site.claims.list(&Default::default()).await.unwrap().items;
        let names: Vec<String> = claims.into_iter().filter_map(|c| c.metadata.name).collect();
        for name in &names {
            self.site.delete(name).await;
        }
        for name in &names {
            self.site.gone(name).await;
        }
        self.site.no_sessions().await;
    }
}

/// Waits until there are as many sessions as claims, each claim's own.
pub(crate) async fn one_session_each(site: &Site, claims: usize) {
    eventually(&format!("{claims} sessions, all different"), || async {
        let sessions = site.sessions().await;
        let mut names: Vec<String> = sessions.iter().map(|s| s.name.to_string()).collect();
        names.sort();
        names.dedup();
        if (names.len(), sessions.len()) == (claims, claims) { Ok(()) } else { Err(sessions) }
    })
    .await;
}

/// The claim has held its key all along.
pub(crate) async fn never_lost(site: &Site, name: &str, token: u64) {
    let status = site.status(name).await;
    assert_eq!(status.phase, Some(Phase::Held), "{status:#?}");
    assert_eq!(status.fencing_token, Some(token.to_string()), "{status:#?}");
    assert_eq!((status.transitions, status.history.len()), (1, 0), "{status:#?}");
}

pub(crate) fn session(status: &ConsulLockStatus) -> SessionId {
    SessionId::new(status.session.as_ref().unwrap().id.as_deref().unwrap())
}

/// How many tenures were lost for `reason`.
pub(crate) fn losses(replica: &Replica, reason: &str) -> f64 {
    let series = format!("consul_lock_losses_total{{reason=\"{reason}\"}}");
    replica.metric(&series).unwrap_or(0.0)
}

/// How many requests of one kind ended in one way.
pub(crate) fn requests(replica: &Replica, operation: &str, class: &str) -> f64 {
    let labels = format!("class=\"{class}\",operation=\"{operation}\"");
    replica.metric(&format!("consul_lock_consul_requests_total{{{labels}}}")).unwrap_or(0.0)
}

/// Waits until every session was renewed `times` more.
pub(crate) async fn renewed(scene: &Scene, times: usize) {
    for session in scene.site.sessions().await {
        let path = format!("PUT /v1/session/renew/{}", session.id);
        let until = scene.proxy.requests(&path) + times;
        eventually(&format!("{} to be renewed", session.name), || async {
            let seen = scene.proxy.requests(&path);
            if seen >= until { Ok(()) } else { Err(seen) }
        })
        .await;
    }
}

#[tokio::test]
async fn consul_that_is_away_at_the_start_is_waited_for() {
    let scene = Scene::new("away-at-start").await;
    scene.proxy.set(Fault::Cut);
    let site = &scene.site;
    let replica = site.start().await;
    for name in ["a", "b"] {
        site.create(name, json!({})).await;
        let away = |status: &ConsulLockStatus| condition(status, "ConsulReachable").0 == "False";
        let status = site.wait(name, "Consul is away", away).await;
        assert_eq!(status.phase, Some(Phase::Pending));
        assert_eq!(condition(&status, "ConsulReachable").1, "ConsulUnavailable");
        assert_eq!(condition(&status, "Held").0, "Unknown");
        site.event(name, "ConsulUnreachable").await;
    }
    let ready = replica.get("/readyz").unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("[-] consul"), "{}", ready.text());
    assert!(replica.log().contains("Consul does not answer"), "{}", replica.log());

    scene.proxy.set(Fault::None);
    for name in ["a", "b"] {
        site.held(name).await;
        assert_eq!(condition(&site.status(name).await, "ConsulReachable").0, "True");
    }
    replica.wait_ready().await;
    one_session_each(site, 2).await;
    scene.end().await;
}

#[tokio::test]
async fn five_silent_seconds_are_jeopardy_and_no_loss() {
    let scene = Scene::new("five-seconds").await;
    let site = &scene.site;
    let replica = site.start().await;
    site.create("a", json!({ "session": { "ttl": "10s" } })).await;
    site.create("b", json!({ "session": { "ttl": "20s" } })).await;
    let tokens = [site.held("a").await, site.held("b").await];
    renewed(&scene, 1).await;

    scene.proxy.set(Fault::Blackhole);
    let began = site.clock().now();
    let jeopardy = |status: &ConsulLockStatus| condition(status, "SessionHealthy").1 == "Jeopardy";
    let status = site.wait("a", "jeopardy", jeopardy).await;
    assert_eq!((status.phase, token(&status)), (Some(Phase::Held), tokens[0]));
    assert_eq!(status.session.as_ref().unwrap().health, SessionHealth::Jeopardy);
    assert_eq!(condition(&status, "ConsulReachable").0, "False");
    site.clock().sleep_until(began + Duration::from_secs(5)).await;
    scene.proxy.set(Fault::None);

    for (name, token) in ["a", "b"].into_iter().zip(tokens) {
        let healthy = |status: &ConsulLockStatus| condition(status, "SessionHealthy").0 == "True";
        site.wait(name, "a healthy session", healthy).await;
        never_lost(site, name, token).await;
    }
    assert_eq!(losses(&replica, "Expired"), 0.0);
    assert!(requests(&replica, "renew_session", "UnknownOutcome") > 0.0);
    one_session_each(site, 2).await;
    scene.end().await;
}

#[tokio::test]
async fn silence_beyond_the_ttl_is_a_loss_at_valid_until() {
    let ttl = Duration::from_secs(10);
    let scene = Scene::new("beyond-ttl").await;
    let site = &scene.site;
    let replica = site.start().await;
    site.create("a", json!({ "session": { "ttl": "10s", "lockDelay": "1s" } })).await;
    site.create("b", json!({ "session": { "ttl": "60s" } })).await;
    let [first, other] = [site.held("a").await, site.held("b").await];
    let ours = session(&site.status("a").await);

    let began = site.clock().now(); // no good renewal is sent after this
    scene.proxy.set(Fault::Blackhole);
    let not_held = |status: &ConsulLockStatus| status.phase != Some(Phase::Held);
    let lost = site.wait("a", "not to be Held any more", not_held).await;
    let after = site.clock().now().since(began);
    assert!(after < ttl + WRITE, "Held for {after:?} without a renewal");
    assert!(after > ttl / 2, "given up after {after:?}, long before valid until");
    let holder = site.pair(&site.key("a")).await.unwrap().session;
    assert_eq!(holder.as_ref(), Some(&ours), "we stopped before Consul did");
    assert_eq!(lost.phase, Some(Phase::Unknown));
    assert_eq!((&lost.fencing_token, &lost.holder), (&None, &None));
    assert_eq!(condition(&lost, "Held").0, "Unknown");
    assert_eq!(condition(&lost, "Ready").0, "Unknown");
    assert_eq!(condition(&lost, "ConsulReachable").0, "False");
    assert_eq!(condition(&lost, "SessionHealthy").0, "False");
    assert_eq!((lost.transitions, lost.history.len()), (1, 1), "{lost:#?}");

    eventually("Consul to end the session", || async {
        let pair = site.pair(&site.key("a")).await.unwrap();
        if pair.session.is_none() { Ok(()) } else { Err(pair) }
    })
    .await;
    let after = site.clock().now().since(began);
    assert!(after < ttl * 2 + WRITE, "Consul kept the session for {after:?}");
    assert_eq!(site.status("a").await.phase, Some(Phase::Unknown));

    scene.proxy.set(Fault::None);
    let again = site.wait_phase("a", Phase::Held).await;
    assert!(token(&again) > first);
    assert_eq!((again.transitions, again.history.len()), (2, 1), "{again:#?}");
    let past = &again.history[0];
    assert_eq!((past.token.parse(), past.reason.as_str()), (Ok(first), "Expired"));
    site.event("a", "Lost").await;
    assert_eq!(losses(&replica, "Expired"), 1.0);
    never_lost(site, "b", other).await;
    one_session_each(site, 2).await;
    scene.end().await;
}

#[tokio::test]
async fn consul_may_be_killed_and_started_again() {
    let config = ConsulConfig { persistent: true, ..Default::default() };
    let start = move || Consul::start(config).unwrap();
    let consul = tokio::task::spawn_blocking(start).await.unwrap();
    let scene = Scene::before("restart", &consul).await;
    let site = &scene.site;
    let replica = site.start().await;
    let mut tokens = Vec::new();
    for name in ["a", "b"] {
        site.create(name, json!({ "session": { "ttl": "20s" } })).await;
        tokens.push(site.held(name).await);
    }
    consul.server().kill().unwrap();
    let away = |status: &ConsulLockStatus| condition(status, "ConsulReachable").0 == "False";
    site.wait("a", "Consul is away", away).await;
    consul.server().start_again().unwrap();
    for (name, token) in ["a", "b"].into_iter().zip(tokens) {
        let healthy = |status: &ConsulLockStatus| condition(status, "SessionHealthy").0 == "True";
        site.wait(name, "a healthy session", healthy).await;
        never_lost(site, name, token).await;
    }
    renewed(&scene, 2).await;
    assert_eq!(losses(&replica, "Expired") + losses(&replica, "SessionInvalidated"), 0.0);
    one_session_each(site, 2).await;
    scene.end().await;
}

#[tokio::test]
async fn what_a_new_leader_cannot_confirm_is_unknown_and_not_forgotten() {
    let scene = Scene::new("unconfirmed").await;
    let site = &scene.site;
    let first = site.start().await;
    let mut tokens = Vec::new();
    for name in ["a", "b"] {
        site.create(name, json!({ "session": { "ttl": "60s" } })).await;
        tokens.push(site.held(name).await);
        site.event(name, "Acquired").await;
    }
    let ours = session(&site.status("a").await);
    first.server.kill().unwrap();
    scene.proxy.set(Fault::Blackhole);
    let second = site.start().await;
    for name in ["a", "b"] {
        let not_held = |status: &ConsulLockStatus| status.phase != Some(Phase::Held);
        let status = site.wait(name, "not to be Held any more", not_held).await;
        assert_eq!(status.phase, Some(Phase::Unknown), "{status:#?}");
        for doubted in ["Ready", "Held", "SessionHealthy"] {
            assert_eq!(condition(&status, doubted).0, "Unknown", "{doubted}");
        }
    }
    let status = site.status("a").await;
    assert_eq!(session(&status), ours, "whoever leads next has to know");
    assert_eq!(status.session.unwrap().health, SessionHealth::Unknown);

    // Nor does another change of the leader make anything of it.
    second.server.kill().unwrap();
    let third = site.start().await;
    third.wait_leads().await;
    scene.proxy.set(Fault::None);
    for (name, token) in ["a", "b"].into_iter().zip(tokens) {
        site.held(name).await;
        never_lost(site, name, token).await;
        let acquired = site.events(name).await;
        let acquired = acquired.iter().filter(|reason| *reason == "Acquired").count();
        assert_eq!(acquired, 1, "it is one tenure");
    }
    one_session_each(site, 2).await;
    scene.end().await;
}
