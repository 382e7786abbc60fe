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

/// Waits until the pod waits for us no more, but for others as before.
async fn opened(cast: &Cast<'_>, pod: &str) {
    eventually(&format!("the gate of {pod} to open"), || async {
        let gates = cast.gates(pod).await;
        if gates == ["example.com/other"] { Ok(()) } else { Err(gates) }
    })
    .await;
}

async fn waits(cast: &Cast<'_>, pod: &str) -> bool {
    cast.gates(pod).await.iter().any(|gate| gate == "consullock.dev/held")
}

#[tokio::test]
async fn every_gated_pod_has_its_turn_one_at_a_time() {
    let site = Site::new("turns").await;
    let cast = Cast::new(&site).await;
    let _replica = site.start().await;
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
    let site = Site::new("gate-lost").await;
    let cast = Cast::new(&site).await;
    let _replica = site.start().await;
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
    let site = Site::new("gate-crash").await;
    let cast = Cast::new(&site).await;
    let replica = site.start().await;
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
