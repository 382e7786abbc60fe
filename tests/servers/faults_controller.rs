//! The controller when its replicas are killed, stopped or frozen: whoever leads next goes on where
//! the last one was, and whoever wakes up late does no harm. All with the default Lease times.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use consul_lock::{
    api::{ConsulLock, Phase},
    clock::Instant,
};
use futures::StreamExt;
use kube::{
    Api,
    api::{WatchEvent, WatchParams},
};
use serde_json::json;
use testbed::Proxy;
use tokio::task::JoinSet;

use crate::{
    fixtures::{PATIENCE, shared_consul},
    site::{Replica, Site, eventually},
};

/// Two replicas, the leader first.
async fn leader_and_standby(site: &Site) -> (Replica, Replica) {
    let leader = site.start_with(&[]).await;
    leader.wait_leads().await;
    let standby = site.start_with(&[]).await;
    standby.wait_ready().await;
    assert!(leader.leads() && !standby.leads());
    (leader, standby)
}

/// Waits until a replica has renewed this many sessions more than it has now.
pub(crate) async fn renewals(replica: &Replica, more: f64) {
    let renewed = || replica.metric("consul_lock_renewals_total{result=\"ok\"}").unwrap_or(0.0);
    let until = renewed() + more;
    eventually("sessions to be renewed", || async {
        if renewed() >= until { Ok(()) } else { Err(renewed()) }
    })
    .await;
}

/// The claims' versions, by name.
async fn versions(site: &Site, claims: &[&str]) -> Vec<Option<String>> {
    let mut versions = Vec::new();
    for name in claims {
        versions.push(site.claims.get(name).await.unwrap().metadata.resource_version);
    }
    versions
}

/// Claims that are held, and one that waits for a stranger.
const HELD: [&str; 3] = ["a", "b", "c"];

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_costs_no_tenure() {
    let site = Site::new("killed").await;
    let (leader, standby) = leader_and_standby(&site).await;
    let stranger = site.stranger(site.key("waits")).await;
    for name in HELD.into_iter().chain(["waits"]) {
        site.create(name, json!({})).await;
    }
    let before = site.tenures(&HELD).await;
    // Who the stranger is takes one more question to Consul.
    site.wait("waits", "the stranger's name", |status| {
        status.holder.as_ref().is_some_and(|holder| holder.identity.contains(" on "))
    })
    .await;
    for name in HELD {
        site.event(name, "Acquired").await;
    }
    let written = versions(&site, &["a", "b", "c", "waits"]).await;
    let sessions = site.sessions().await.len();

    leader.server.kill().unwrap();
    standby.wait_leads().await;
    // One each: by then all three are adopted.
    renewals(&standby, 4.0).await;
    assert_eq!(site.tenures(&HELD).await, before);
    assert_eq!(versions(&site, &["a", "b", "c", "waits"]).await, written, "nothing had changed");
    assert_eq!(site.sessions().await.len(), sessions);
    assert!(stranger.holds().await);
    stranger.leave().await;
    site.held("waits").await;
    assert_eq!(site.tenures(&HELD).await, before);
    for name in HELD {
        let events = site.events(name).await;
        assert_eq!(events, ["Acquired"], "told again after a restart");
    }
    site.serves_another_claim().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_told_to_stop_hands_over_within_two_seconds() {
    let site = Site::new("stopped").await;
    let (leader, standby) = leader_and_standby(&site).await;
    for name in HELD {
        site.create(name, json!({})).await;
    }
    let before = site.tenures(&HELD).await;
    let told = site.clock().now();
    leader.server.terminate().unwrap();
    standby.wait_leads().await;
    let took = site.clock().now().since(told);
    assert!(took < Duration::from_secs(2), "the next one led after {took:?}");
    assert_eq!(leader.server.wait_ended(PATIENCE).unwrap().code(), Some(0));
    renewals(&standby, 3.0).await;
    assert_eq!(site.tenures(&HELD).await, before);
    site.serves_another_claim().await;
    // The last one to go takes nothing along either.
    standby.server.terminate().unwrap();
    assert_eq!(standby.server.wait_ended(PATIENCE).unwrap().code(), Some(0));
    let next = site.start_with(&[]).await;
    next.wait_leads().await;
    assert_eq!(site.tenures(&HELD).await, before);
}

/// One version of a claim as it was written.
#[derive(Debug)]
struct Written {
    at: Instant,
    name: String,
    phase: Option<Phase>,
    token: Option<u64>,
    transitions: i64,
}

/// Every version of every claim of a site, in the order of writing.
struct Chronicle {
    written: Arc<Mutex<Vec<Written>>>,
    _task: JoinSet<()>,
}

impl Chronicle {
    async fn of(site: &Site) -> Chronicle {
        let written = Arc::new(Mutex::new(Vec::new()));
        let (kept, clock, claims) =
            (Arc::clone(&written), site.clock().clone(), site.claims.clone());
        let from = claims.list(&Default::default()).await.unwrap().metadata.resource_version;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let params = WatchParams::default().timeout(290);
            let events = Api::watch(&claims, &params, &from.unwrap()).await.unwrap();
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                let claim: ConsulLock = match event.unwrap() {
                    WatchEvent::Added(claim)
                    | WatchEvent::Modified(claim)
                    | WatchEvent::Deleted(claim) => claim,
                    other => panic!("{other:?}"),
                };
                let status = claim.status.unwrap_or_default();
                kept.lock().push(Written {
                    at: clock.now(),
                    name: claim.metadata.name.unwrap(),
                    phase: status.phase,
                    token: status.fencing_token.map(|token| token.parse().unwrap()),
                    transitions: status.transitions,
                });
            }
        });
        Chronicle { written, _task: task }
    }

    /// What was written since an instant.
    fn since(&self, begin: Instant) -> Vec<String> {
        let written = self.written.lock();
        written.iter().filter(|entry| entry.at >= begin).map(|entry| format!("{entry:?}")).collect()
    }

    /// The phases of a claim, without repetitions.
    fn phases(&self, name: &str) -> Vec<Phase> {
        let written = self.written.lock();
        let mut phases: Vec<Phase> =
            written.iter().filter(|entry| entry.name == name).filter_map(|e| e.phase).collect();
        phases.dedup();
        phases
    }

    /// Tokens and the count of tenures only rise, claim by claim.
    fn assert_monotone(&self) {
        let written = self.written.lock();
        for (index, later) in written.iter().enumerate() {
            for earlier in written[..index].iter().filter(|entry| entry.name == later.name) {
                assert!(earlier.transitions <= later.transitions, "{earlier:?} {later:?}");
                let tokens = earlier.token.zip(later.token);
                assert!(tokens.is_none_or(|(old, new)| old <= new), "{earlier:?} {later:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_frozen_does_nothing_harmful_when_it_wakes_up() {
    const FROZEN: Duration = Duration::from_secs(20);
    let site = Site::new("frozen").await;
    // The sleeper has a way to Consul of its own, which tells what it sends.
    let consul = tokio::task::spawn_blocking(shared_consul).await.unwrap();
    let heard = Proxy::http(consul.http()).unwrap();
    let sleeper = site.start_with(&[&format!("--consul-http-addr={}", heard.address())]).await;
    sleeper.wait_leads().await;
    let other = site.start_with(&[]).await;
    other.wait_ready().await;
    let waited_for = site.stranger(site.key("waits")).await;
    let spec = json!({ "session": { "ttl": "10s" } });
    for name in ["kept", "paused", "deleted", "taken", "waits"] {
        site.create(name, spec.clone()).await;
    }
    let kept = site.tenures(&["kept"]).await;
    for name in ["paused", "deleted", "taken"] {
        site.held(name).await;
    }
    site.wait_phase("waits", Phase::Waiting).await;
    let chronicle = Chronicle::of(&site).await;

    let asleep = site.clock().now();
    sleeper.server.pause().unwrap();
    other.wait_leads().await;
    site.change("paused", json!({ "paused": true })).await;
    site.change("taken", json!({ "paused": true })).await;
    site.delete("deleted").await;
    site.wait_phase("paused", Phase::Paused).await;
    site.wait_phase("taken", Phase::Paused).await;
    let stranger = site.stranger(site.key("taken")).await;
    let stranger_seen = |status: &consul_lock::api::ConsulLockStatus| {
        status.holder.as_ref().is_some_and(|holder| holder.stranger)
    };
    site.wait("taken", "the stranger", stranger_seen).await;
    site.gone("deleted").await;
    site.create("new", spec).await;
    let new = site.tenures(&["new"]).await;
    assert_eq!(site.tenures(&["kept"]).await, kept);
    assert!(site.clock().now().since(asleep) < FROZEN, "too slow to be a test of this");
    site.clock().sleep_until(asleep + FROZEN).await;

    let (sent, awake) = (heard.requests("PUT "), site.clock().now());
    let sessions = site.sessions().await.len();
    sleeper.server.resume().unwrap();
    let stands_by = || async {
        let stands_by = sleeper.log().contains("no longer leading, standing by");
        if stands_by && !sleeper.leads() { Ok(()) } else { Err("it leads") }
    };
    eventually("the sleeper to stand by", stands_by).await;
    // Three sessions and more: everything has been renewed while both were awake.
    renewals(&other, 6.0).await;
    assert_eq!(heard.requests("PUT "), sent, "the sleeper wrote to Consul after it woke up");
    assert_eq!(chronicle.since(awake), [""; 0], "a claim was written without cause");
    // Held: the version in which the spec has just been changed. A slow release shows as such.
    let mut phases = chronicle.phases("paused");
    phases.retain(|phase| *phase != Phase::Releasing);
    assert_eq!(phases, [Phase::Held, Phase::Paused]);
    assert_eq!(chronicle.phases("kept"), [], "the next leader had nothing to say of it");
    chronicle.assert_monotone();
    assert_eq!((&site.tenures(&["kept"]).await, site.tenures(&["new"]).await), (&kept, new));
    assert_eq!(site.sessions().await.len(), sessions);
    assert!(stranger.holds().await && waited_for.holds().await);
    assert!(site.pair(&site.key("paused")).await.unwrap().session.is_none());
    assert!(other.leads() && sleeper.get("/readyz").is_some_and(|reply| reply.status == 200));

    // It is of use as a standby.
    other.server.terminate().unwrap();
    sleeper.wait_leads().await;
    waited_for.leave().await;
    site.held("waits").await;
    assert_eq!(site.tenures(&["kept"]).await, kept);
    site.serves_another_claim().await;
    chronicle.assert_monotone();
}
