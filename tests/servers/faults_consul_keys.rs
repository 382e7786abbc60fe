//! Operators and strangers lay hands on sessions and keys; keys that are not ours to touch.

use std::time::Duration;

use consul_lock::{
    api::{ConsulLockStatus, Phase},
    consul::{Consul, PutMode},
    names::Key,
};
use serde_json::{Value, json};
use testbed::Answer;

use crate::{
    faults_consul::{Scene, losses, never_lost, one_session_each, session},
    fixtures::{LOCK_FLAGS, Lab},
    site::{Replica, condition, eventually, token},
};

/// A scene with a claim `a` of these settings, and `b`, which nobody touches. Their tokens.
async fn two_held(what: &str, a: Value) -> (Scene, Replica, [u64; 2]) {
    let scene = Scene::new(what).await;
    let replica = scene.site.start().await;
    scene.site.create("a", json!({ "session": a, "value": "mine" })).await;
    scene.site.create("b", json!({})).await;
    let tokens = [scene.site.held("a").await, scene.site.held("b").await];
    (scene, replica, tokens)
}

/// `a` has a second tenure, after the first ended for `reason`.
async fn regained(scene: &Scene, first: u64, reason: &str) -> ConsulLockStatus {
    let again =
        |status: &ConsulLockStatus| status.phase == Some(Phase::Held) && token(status) > first;
    let status = scene.site.wait("a", "a second tenure", again).await;
    assert_eq!((status.transitions, status.history.len()), (2, 1), "{status:#?}");
    let past = &status.history[0];
    assert_eq!((past.token.parse(), past.reason.as_str()), (Ok(first), reason));
    scene.site.event("a", "Lost").await;
    status
}

#[tokio::test]
async fn a_session_that_an_operator_destroys_is_replaced_after_the_lock_delay() {
    let settings = json!({ "ttl": "10s", "lockDelay": "2s" });
    let (scene, replica, [first, other]) = two_held("destroyed", settings).await;
    let site = &scene.site;
    let destroyed = session(&site.status("a").await);
    let began = site.clock().now();
    site.consul.destroy_session(&destroyed).await.unwrap();

    let delayed = site.wait_phase("a", Phase::LockDelay).await;
    assert_eq!((&delayed.fencing_token, &delayed.holder), (&None, &None));
    assert_eq!(condition(&delayed, "Held").0, "False");
    assert_eq!(condition(&delayed, "Ready").1, "LockDelay");
    site.event("a", "LockDelay").await;
    let status = regained(&scene, first, "SessionInvalidated").await;
    let after = site.clock().now().since(began);
    assert!(after >= Duration::from_secs(2), "the lock-delay was jumped after {after:?}");
    assert!(after < Duration::from_secs(6), "{after:?} for a lock-delay of 2 s");
    assert_ne!(session(&status), destroyed);
    assert_eq!(losses(&replica, "SessionInvalidated"), 1.0);
    never_lost(site, "b", other).await;
    one_session_each(site, 2).await;
    scene.end().await;
}

#[tokio::test]
async fn a_deleted_key_ends_the_tenure_and_begins_another() {
    let (scene, replica, [first, other]) = two_held("key-deleted", json!({})).await;
    let site = &scene.site;
    let ours = session(&site.status("a").await);
    site.consul.delete(&site.key("a")).await.unwrap();
    let status = regained(&scene, first, "KeyDeleted").await;
    assert_eq!(session(&status), ours, "the session is as good as it was");
    assert_eq!(site.pair(&site.key("a")).await.unwrap().session, Some(ours));
    assert_eq!(losses(&replica, "KeyDeleted"), 1.0);
    never_lost(site, "b", other).await;
    one_session_each(site, 2).await;
    scene.end().await;
}

#[tokio::test]
async fn an_overwritten_key_is_put_right_and_not_lost() {
    let (scene, replica, [first, other]) = two_held("overwritten", json!({})).await;
    let (site, key) = (&scene.site, scene.site.key("a"));
    let before = site.pair(&key).await.unwrap();
    for value in ["graffiti", ""] {
        let put = site.consul.put(&key, value.as_bytes(), None, PutMode::Plain);
        assert!(put.await.unwrap());
        let restored = eventually("flags and value to be back", || async {
            let pair = site.pair(&key).await.unwrap();
            let same = (pair.flags, &pair.value) == (LOCK_FLAGS, &before.value);
            if same { Ok(pair) } else { Err(pair) }
        })
        .await;
        assert_eq!(restored.session, before.session);
    }
    let text = String::from_utf8(before.value).unwrap();
    assert!(text.contains("mine"), "{text}");
    never_lost(site, "a", first).await;
    never_lost(site, "b", other).await;
    assert_eq!(losses(&replica, "KeyTaken") + losses(&replica, "KeyDeleted"), 0.0);
    one_session_each(site, 2).await;
    scene.end().await;
}

#[tokio::test]
async fn a_stranger_who_wins_the_end_of_a_lock_delay_is_waited_for() {
    let settings = json!({ "ttl": "10s", "lockDelay": "1s" });
    let (scene, _replica, [first, other]) = two_held("delay-stranger", settings).await;
    let (site, key) = (&scene.site, scene.site.key("a"));
    let lab = Lab::real().await;
    let stranger = lab.session().await;
    let ours = session(&site.status("a").await);
    // The race at the end of the delay is the stranger's.
    scene.proxy.answer_next(usize::MAX, "PUT /v1/txn", Answer::text(429, "slow down"));
    let began = lab.now();
    site.consul.destroy_session(&ours).await.unwrap();
    let after = lab.lock_when_free(&key, &stranger, began).await;
    assert!(after >= Duration::from_millis(900), "the lock-delay ended after {after:?}");
    scene.proxy.forget_answers();

    let seen = |status: &ConsulLockStatus| status.holder.as_ref().is_some_and(|h| h.stranger);
    let waiting = site.wait("a", "the stranger is shown", seen).await;
    assert_eq!(waiting.phase, Some(Phase::Waiting), "{waiting:#?}");
    assert_eq!(waiting.fencing_token, None);
    assert_eq!(condition(&waiting, "Ready").1, "HeldElsewhere");
    let taken = site.pair(&key).await.unwrap();
    assert_eq!(taken.session.as_ref(), Some(&stranger));

    assert!(lab.release(&key, &stranger).await);
    let status = regained(&scene, first, "SessionInvalidated").await;
    assert!(token(&status) > taken.modify_index);
    assert!(!status.holder.unwrap().stranger);
    never_lost(site, "b", other).await;
    one_session_each(site, 2).await;
    lab.consul.destroy_session(&stranger).await.unwrap();
    scene.end().await;
}

#[tokio::test]
async fn the_lock_delay_of_an_earlier_stranger_is_not_waited_for() {
    let scene = Scene::new("earlier-delay").await;
    let (site, lab) = (&scene.site, Lab::real().await);
    let stranger = lab.session_with_delay(Duration::from_secs(20)).await;
    lab.lock(&site.key("a"), &stranger).await.unwrap();
    let _replica = site.start().await;
    site.create("a", json!({ "session": { "lockDelay": "1s" } })).await;
    let named = |status: &ConsulLockStatus| {
        let holder = status.holder.as_ref();
        holder.is_some_and(|holder| holder.identity.contains(lab.node.as_str()))
    };
    site.wait("a", "the stranger's session is known", named).await;
    assert!(lab.release(&site.key("a"), &stranger).await);
    let first = site.held("a").await;

    let began = site.clock().now();
    site.consul.destroy_session(&session(&site.status("a").await)).await.unwrap();
    regained(&scene, first, "SessionInvalidated").await;
    let after = site.clock().now().since(began);
    assert!(after < Duration::from_secs(6), "{after:?} for a lock-delay of 1 s");
    lab.consul.destroy_session(&stranger).await.unwrap();
    one_session_each(site, 1).await;
    scene.end().await;
}

#[tokio::test]
async fn keys_that_are_not_ours_are_left_alone_and_stop_no_other_claim() {
    let scene = Scene::new("not-ours").await;
    let site = &scene.site;
    let foreign = site.key("conflict");
    assert!(site.consul.put(&foreign, b"theirs", Some(7), PutMode::Plain).await.unwrap());
    let outside = Key::new(&format!("{}/elsewhere/key", site.cluster())).unwrap();
    let _replica = site.start().await;
    site.create("outside", json!({ "key": outside.as_str() })).await;
    site.create("conflict", json!({})).await;
    site.create("good", json!({})).await;

    let good = site.held("good").await;
    let refused = site.wait_phase("outside", Phase::Failed).await;
    let (truth, reason, message) = condition(&refused, "Ready");
    assert_eq!((truth.as_str(), reason.as_str()), ("False", "KeyNotAllowed"));
    let allowed = format!("{}/{}/", site.cluster(), site.namespace);
    assert!(message.contains(&allowed), "{message}");
    assert_eq!(refused.session, None);
    let conflict = |status: &ConsulLockStatus| condition(status, "KeyConflict").0 == "True";
    let status = site.wait("conflict", "KeyConflict", conflict).await;
    assert_eq!((status.fencing_token, status.transitions), (None, 0));

    // A good claim goes on as if nothing was, and the others' ends touch nothing.
    site.change("good", json!({ "value": "new" })).await;
    eventually("the good claim's value to be written", || async {
        let value = site.pair(&site.key("good")).await.unwrap().value;
        let text = String::from_utf8(value).unwrap();
        if text.contains("new") { Ok(()) } else { Err(text) }
    })
    .await;
    for name in ["conflict", "outside"] {
        site.delete(name).await;
        site.gone(name).await;
    }
    never_lost(site, "good", good).await;
    one_session_each(site, 1).await;
    let pair = site.pair(&foreign).await.unwrap();
    assert_eq!((pair.value.as_slice(), pair.flags, pair.session), (&b"theirs"[..], 7, None));
    assert_eq!(site.pair(&outside).await, None);
    scene.end().await;
}
