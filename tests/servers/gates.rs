//! Pods that wait at a scheduling gate until they are elected.

use consul_lock::{api::Phase, consul::Consul};
use serde_json::{Value, json};

use crate::{
    pods::{Cast, candidates},
    site::{Site, eventually},
};

fn gated() -> Value {
    let mut spec = candidates(json!({}));
    spec["gate"] = json!({ "policy": "EachInTurn" });
    spec
}

fn once() -> Value {
    let mut spec = candidates(json!({}));
    spec["gate"] = json!({ "policy": "OncePerSchedule" });
    spec
}

const NINE: &str = "2026-01-02T09:00:00Z";
const TEN: &str = "2026-01-02T10:00:00Z";

/// Two clusters, one Consul, one claim, one CronJob.
struct Pair {
    west: Site,
    east: Site,
}

impl Pair {
    async fn new(what: &str) -> Pair {
        let west = Site::new(&format!("{what}-west")).await;
        let east = Site::new(&format!("{what}-east")).await;
        east.share_keys_of(&west).await;
        Pair { west, east }
    }

    async fn declare(&self) {
        self.west.create("lock", once()).await;
        let mut spec = once();
        spec["key"] = json!(self.west.key("lock").as_str());
        self.east.create("lock", spec).await;
    }

    /// What has run, as recorded beside the key: when it was due, and in which cluster.
    async fn runs(&self) -> Vec<(String, String)> {
        let key = format!("{}/.last-run", self.west.key("lock").as_str());
        let pair = self.west.pair(&consul_lock::names::Key::new(&key).unwrap()).await;
        let record = pair.map(|pair| serde_json::from_slice::<Value>(&pair.value).unwrap());
        let runs = record.map(|record| record["runs"].as_array().cloned().unwrap());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let runs = runs.into_iter().flatten();
        runs.map(|run| (text(&run["scheduled"]), text(&run["cluster"]))).collect()
    }
}

/// Waits until a Job is gone.
pub(crate) async fn removed(cast: &Cast, job: &str) {
    eventually(&format!("Job {job} to be removed"), || async {
        let job = cast.jobs.get_opt(job).await.unwrap();
        if job.is_none_or(|job| job.metadata.deletion_timestamp.is_some()) {
            Ok(())
        } else {
            Err("it is there")
        }
    })
    .await;
}

#[tokio::test]
async fn of_what_is_due_in_two_clusters_one_run_succeeds_and_the_rest_is_removed() {
    let pair = Pair::new("once").await;
    let (west, east) = (Cast::new(&pair.west).await, Cast::new(&pair.east).await);
    let (_one, _two) = (pair.west.start().await, pair.east.start().await);
    pair.declare().await;
    west.job("nine", Some(NINE)).await;
    west.gated_of("nine", "a").await;
    let first = west.led_by("lock", "a").await;
    opened(&west, "a").await;
    west.runs("a").await;
    // The other cluster's clock is behind: it fires while the first one works, and once more after.
    east.job("nine", Some(NINE)).await;
    east.gated_of("nine", "z").await;
    pair.east.wait_phase("lock", Phase::Waiting).await;
    assert!(waits(&east, "z").await);
    assert_eq!(pair.runs().await, []);
    west.finished("a", "Succeeded").await;
    removed(&east, "nine").await;
    assert!(waits(&east, "z").await, "it never started");
    pair.east.event("lock", "AlreadyRan").await;
    let west_ran = (NINE.to_owned(), pair.west.cluster().to_owned());
    assert_eq!(pair.runs().await, std::slice::from_ref(&west_ran));
    east.remove("z").await;

    east.job("ten", Some(TEN)).await;
    east.gated_of("ten", "y").await;
    assert!(east.led_by("lock", "y").await > first);
    opened(&east, "y").await;
    east.runs("y").await;
    east.finished("y", "Succeeded").await;
    pair.east.wait_phase("lock", Phase::Waiting).await;
    let east_ran = (TEN.to_owned(), pair.east.cluster().to_owned());
    assert_eq!(pair.runs().await, [east_ran, west_ran]);
    assert!(east.jobs.get_opt("ten").await.unwrap().is_some(), "what ran stays to be looked at");
}

#[tokio::test]
async fn a_run_that_failed_is_taken_up_by_the_other_cluster() {
    let pair = Pair::new("failed").await;
    let (west, east) = (Cast::new(&pair.west).await, Cast::new(&pair.east).await);
    let (_one, _two) = (pair.west.start().await, pair.east.start().await);
    pair.declare().await;
    west.job("nine", Some(NINE)).await;
    west.gated_of("nine", "a").await;
    west.led_by("lock", "a").await;
    opened(&west, "a").await;
    west.runs("a").await;
    east.job("nine", Some(NINE)).await;
    east.gated_of("nine", "z").await;
    west.finished("a", "Failed").await;
    opened(&east, "z").await;
    assert_eq!(pair.runs().await, []);
    east.runs("z").await;
    east.finished("z", "Succeeded").await;
    // Its Job tries again meanwhile, as Jobs do.
    west.gated_of("nine", "b").await;
    removed(&west, "nine").await;
    assert!(waits(&west, "b").await);
    assert_eq!(pair.runs().await, [(NINE.to_owned(), pair.east.cluster().to_owned())]);
}

#[tokio::test]
async fn a_success_is_recorded_though_the_controller_died_before_it_could() {
    let pair = Pair::new("crash").await;
    let west = Cast::new(&pair.west).await;
    let replica = pair.west.start().await;
    pair.declare().await;
    west.job("nine", Some(NINE)).await;
    west.gated_of("nine", "a").await;
    west.led_by("lock", "a").await;
    opened(&west, "a").await;
    west.runs("a").await;
    replica.server.kill().unwrap();
    west.finished("a", "Succeeded").await;
    let _second = pair.west.start().await;
    pair.west.wait_phase("lock", Phase::Waiting).await;
    assert_eq!(pair.runs().await, [(NINE.to_owned(), pair.west.cluster().to_owned())]);
}

#[tokio::test]
async fn a_run_by_hand_has_its_turn_and_is_not_recorded() {
    let (site, cast, _replica) = Cast::on_stage("by-hand").await;
    site.create("lock", once()).await;
    cast.job("manual", None).await;
    cast.gated_of("manual", "a").await;
    opened(&cast, "a").await;
    cast.runs("a").await;
    cast.finished("a", "Succeeded").await;
    site.wait_phase("lock", Phase::Waiting).await;
    let key = format!("{}/.last-run", site.key("lock").as_str());
    assert!(site.pair(&consul_lock::names::Key::new(&key).unwrap()).await.is_none());
}

#[tokio::test]
async fn nothing_starts_while_the_record_cannot_be_read() {
    let site = Site::new("scribble").await;
    let cast = Cast::new(&site).await;
    let key = format!("{}/.last-run", site.key("lock").as_str());
    let key = consul_lock::names::Key::new(&key).unwrap();
    let plain = consul_lock::consul::PutMode::Plain;
    site.consul.put(&key, b"scribble", None, plain.clone()).await.unwrap();
    let _replica = site.start().await;
    site.create("lock", once()).await;
    cast.job("nine", Some(NINE)).await;
    cast.gated_of("nine", "a").await;
    let said = |status: &consul_lock::api::ConsulLockStatus| {
        status.conditions.iter().any(|one| one.reason == "RunsUnreadable" && one.status == "False")
    };
    site.wait("lock", "what is wrong", said).await;
    assert!(waits(&cast, "a").await);
    assert_eq!(site.pair(&key).await.unwrap().value, b"scribble");
    site.consul.put(&key, b"{\"runs\": []}", None, plain).await.unwrap();
    // Read anew with the next tenure.
    site.change("lock", json!({ "paused": true })).await;
    site.wait_phase("lock", Phase::Paused).await;
    site.change("lock", json!({ "paused": false })).await;
    opened(&cast, "a").await;
}

/// Waits until the pod waits for us no more, but for others as before.
async fn opened(cast: &Cast, pod: &str) {
    eventually(&format!("the gate of {pod} to open"), || async {
        let gates = cast.gates(pod).await;
        if gates == ["example.com/other"] { Ok(()) } else { Err(gates) }
    })
    .await;
}

async fn waits(cast: &Cast, pod: &str) -> bool {
    cast.gates(pod).await.iter().any(|gate| gate == "consullock.dev/held")
}

#[tokio::test]
async fn every_gated_pod_has_its_turn_one_at_a_time() {
    let (site, cast, _replica) = Cast::on_stage("turns").await;
    site.create("lock", gated()).await;
    cast.gated("a").await;
    let mut last = cast.led_by("lock", "a").await;
    opened(&cast, "a").await;
    cast.runs("a").await;
    for pod in ["b", "c"] {
        cast.gated(pod).await;
    }
    for (worker, end, next) in [("a", "Succeeded", Some("b")), ("b", "Failed", Some("c"))] {
        assert!(waits(&cast, "c").await, "while {worker} works");
        // A container that is restarted is no end.
        cast.ended(worker).await;
        site.wait("lock", worker, |status| {
            status.holder.as_ref().is_some_and(|holder| holder.pod.as_deref() == Some(worker))
        })
        .await;
        cast.finished(worker, end).await;
        if let Some(next) = next {
            let token = cast.led_by("lock", next).await;
            assert!(token > last);
            last = token;
            opened(&cast, next).await;
            cast.runs(next).await;
            assert_eq!(site.status("lock").await.history[0].reason, "PodFinished");
        }
    }
    cast.finished("c", "Succeeded").await;
    let waiting = site.wait_phase("lock", Phase::Waiting).await;
    let ready = waiting.conditions.iter().find(|one| one.type_ == "Ready").unwrap();
    assert!(ready.message.ends_with("3 finished"), "{}", ready.message);
    site.no_sessions().await;
}

#[tokio::test]
async fn a_pod_that_waits_starts_only_when_a_stranger_has_let_go() {
    let site = Site::new("gate-stranger").await;
    let cast = Cast::new(&site).await;
    let stranger = site.stranger(site.key("lock")).await;
    let _replica = site.start().await;
    site.create("lock", gated()).await;
    cast.gated("a").await;
    site.wait_phase("lock", Phase::Waiting).await;
    assert!(waits(&cast, "a").await);
    assert!(stranger.holds().await);
    stranger.leave().await;
    opened(&cast, "a").await;
    cast.led_by("lock", "a").await;
}

#[tokio::test]
async fn a_worker_whose_tenure_was_lost_is_elected_again_before_anybody_starts_beside_it() {
    let (site, cast, _replica) = Cast::on_stage("gate-lost").await;
    site.create("lock", gated()).await;
    cast.gated("z").await;
    let first = cast.led_by("lock", "z").await;
    opened(&cast, "z").await;
    cast.runs("z").await;
    cast.gated("a").await;
    let session = site.pair(&site.key("lock")).await.unwrap().session.unwrap();
    site.consul.destroy_session(&session).await.unwrap();
    site.wait("lock", "the loss", |status| !status.history.is_empty()).await;
    assert!(cast.led_by("lock", "z").await > first);
    assert!(waits(&cast, "a").await);
}

#[tokio::test]
async fn a_gate_that_was_not_opened_before_a_crash_is_opened_after_it() {
    let (site, cast, replica) = Cast::on_stage("gate-crash").await;
    site.create("lock", gated()).await;
    cast.gated("a").await;
    let token = cast.led_by("lock", "a").await;
    opened(&cast, "a").await;
    replica.server.kill().unwrap();
    // Gone before it ran; another one of the same Job has come.
    cast.remove("a").await;
    cast.gated("b").await;
    let _second = site.start().await;
    // Nobody saw the first one go.
    site.change("lock", json!({ "candidates": { "unreachableAfter": "1s" } })).await;
    assert!(cast.led_by("lock", "b").await > token);
    opened(&cast, "b").await;
}
