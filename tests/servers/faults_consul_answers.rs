//! Consul, or something before it, answers wrongly, in part or not at all.

use std::collections::BTreeMap;

use consul_lock::{
    api::{ConsulLockStatus, Phase},
    consul::Consul,
};
use serde_json::json;
use testbed::Answer;

use crate::{
    faults_consul::{Scene, losses, never_lost, one_session_each, renewed, requests, session},
    fixtures::Lab,
    site::{Replica, Site, condition, eventually},
};

/// Every wrong answer, by a name that a claim may have.
fn answers() -> Vec<(&'static str, Answer)> {
    let body = vec![b'x'; 2 * 1024 * 1024];
    vec![
        ("busy", Answer::text(429, "Your IP is issuing too many concurrent connections")),
        ("broken", Answer::text(500, "rpc error making call: EOF")),
        ("half-json", Answer::text(200, "{\"ID\": \"4f3")),
        ("flood", Answer::Canned { status: 200, body }),
        ("silent", Answer::Never),
        ("cut", Answer::RequestLost),
        ("cut-short", Answer::CutShort { status: 200, body: b"[{\"ID\":".to_vec() }),
        ("reply-lost", Answer::ReplyLost),
    ]
}

/// Creates a claim for each answer, at once. Their tokens.
async fn create_all(site: &Site) -> BTreeMap<&'static str, u64> {
    for (name, _) in answers() {
        site.create(name, json!({ "session": { "ttl": "20s" } })).await;
    }
    let mut tokens = BTreeMap::new();
    for (name, _) in answers() {
        tokens.insert(name, site.held(name).await);
    }
    tokens
}

/// Every claim holds its key in its first tenure, in one session, and a renewal later still does.
async fn all_well(scene: &Scene, replica: &Replica, tokens: &BTreeMap<&'static str, u64>) {
    one_session_each(&scene.site, tokens.len()).await;
    renewed(scene, 1).await;
    for (name, token) in tokens {
        never_lost(&scene.site, name, *token).await;
    }
    for reason in ["Expired", "SessionInvalidated", "KeyTaken", "KeyDeleted", "Superseded"] {
        assert_eq!(losses(replica, reason), 0.0, "{reason}");
    }
    one_session_each(&scene.site, tokens.len()).await;
}

async fn used_up(scene: &Scene) {
    eventually("all answers to be given", || async {
        let left = scene.proxy.answers_left();
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test]
async fn no_wrong_answer_to_a_renewal_loses_a_lock() {
    let scene = Scene::new("bad-renewals").await;
    let replica = scene.site.start().await;
    scene.site.create("healthy", json!({})).await;
    let healthy = scene.site.held("healthy").await;
    let mut tokens = create_all(&scene.site).await;
    tokens.insert("healthy", healthy);
    for (name, answer) in answers() {
        let id = session(&scene.site.status(name).await);
        scene.proxy.answer_next(1, &format!("PUT /v1/session/renew/{id}"), answer);
    }
    used_up(&scene).await;
    for name in tokens.keys() {
        let well = |status: &ConsulLockStatus| condition(status, "SessionHealthy").0 == "True";
        scene.site.wait(name, "a healthy session", well).await;
    }
    all_well(&scene, &replica, &tokens).await;
    assert!(requests(&replica, "renew_session", "Transient") >= 1.0, "the 429");
    assert!(requests(&replica, "renew_session", "UnknownOutcome") >= 5.0, "the others");
    assert!(requests(&replica, "renew_session", "ok") >= 9.0);
    scene.end().await;
}

#[tokio::test]
async fn no_wrong_answer_to_an_acquisition_is_taken_for_one_or_begins_two() {
    let scene = Scene::new("bad-acquisitions").await;
    let replica = scene.site.start().await;
    scene.site.create("healthy", json!({})).await;
    let healthy = scene.site.held("healthy").await;
    for (_, answer) in answers() {
        scene.proxy.answer_next(1, "PUT /v1/txn", answer);
    }
    let mut tokens = create_all(&scene.site).await;
    assert_eq!(scene.proxy.answers_left(), 0);
    for (name, token) in &tokens {
        let pair = scene.site.pair(&scene.site.key(name)).await.unwrap();
        assert_eq!(pair.modify_index, *token, "{name}: Consul knows of this very acquisition");
        let ours = session(&scene.site.status(name).await);
        assert_eq!(pair.session, Some(ours));
    }
    tokens.insert("healthy", healthy);
    all_well(&scene, &replica, &tokens).await;
    scene.end().await;
}

#[tokio::test]
async fn no_wrong_answer_to_a_creation_leaks_a_session() {
    let scene = Scene::new("bad-creations").await;
    let replica = scene.site.start().await;
    scene.site.create("healthy", json!({})).await;
    let healthy = scene.site.held("healthy").await;
    for (_, answer) in answers() {
        scene.proxy.answer_next(1, "PUT /v1/session/create", answer);
    }
    let mut tokens = create_all(&scene.site).await;
    assert_eq!(scene.proxy.answers_left(), 0);
    tokens.insert("healthy", healthy);
    all_well(&scene, &replica, &tokens).await;
    scene.end().await;
}

#[tokio::test]
async fn a_lost_reply_to_a_creation_leaves_one_session() {
    let scene = Scene::new("lost-creation").await;
    let _replica = scene.site.start().await;
    scene.proxy.answer_next(1, "PUT /v1/session/create", Answer::ReplyLost);
    scene.site.create("a", json!({})).await;
    let token = scene.site.held("a").await;
    assert_eq!(scene.proxy.requests("PUT /v1/session/create"), 1, "it was found by its name");
    one_session_each(&scene.site, 1).await;
    let sessions = scene.site.sessions().await;
    assert_eq!(sessions[0].id, session(&scene.site.status("a").await));
    scene.site.create("b", json!({})).await;
    scene.site.held("b").await;
    never_lost(&scene.site, "a", token).await;
    one_session_each(&scene.site, 2).await;
    scene.end().await;
}

/// The poll of the site's prefix watch.
fn watch(site: &Site) -> String {
    format!("GET /v1/kv/{}/?recurse", site.cluster())
}

#[tokio::test]
async fn no_wrong_answer_to_a_watch_loses_a_lock_or_misses_a_release() {
    let scene = Scene::new("bad-watches").await;
    let site = &scene.site;
    let replica = site.start().await;
    let lab = Lab::real().await;
    let stranger = lab.session().await;
    lab.lock(&site.key("waits"), &stranger).await.unwrap();
    site.create("held", json!({})).await;
    site.create("waits", json!({})).await;
    let token = site.held("held").await;
    site.wait_phase("waits", Phase::Waiting).await;
    for (_, answer) in answers().into_iter().filter(|(name, _)| *name != "silent") {
        scene.proxy.answer_next(1, &watch(site), answer);
    }
    // Each poll but the first comes after a failed one.
    site.create("wakes", json!({})).await;
    used_up(&scene).await;
    assert!(lab.release(&site.key("waits"), &stranger).await);
    site.held("waits").await;
    site.held("wakes").await;
    never_lost(site, "held", token).await;
    assert!(requests(&replica, "watch_prefix", "Transient") >= 5.0);
    one_session_each(site, 3).await;
    lab.consul.destroy_session(&stranger).await.unwrap();
    scene.end().await;
}

#[tokio::test]
async fn a_first_look_that_is_never_answered_is_soon_repeated() {
    let scene = Scene::new("silent-watch").await;
    let site = &scene.site;
    scene.proxy.answer_next(1, &watch(site), Answer::Never);
    let _replica = site.start().await;
    site.create("a", json!({})).await;
    site.create("b", json!({})).await;
    let began = site.clock().now();
    for name in ["a", "b"] {
        site.held(name).await;
    }
    let after = site.clock().now().since(began);
    assert!(after.as_secs() < 15, "held after {after:?} only");
    one_session_each(site, 2).await;
    scene.end().await;
}
