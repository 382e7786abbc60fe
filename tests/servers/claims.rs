//! A claim's life with real servers: declared, held, seen, paused, deleted.

use consul_lock::{
    api::Phase,
    consul::{Consul, PutMode},
};
use serde_json::json;

use crate::{
    fixtures::LOCK_FLAGS,
    site::{Site, claim, condition, eventually, token},
};

#[tokio::test]
async fn declared_lock_is_held_seen_and_let_go() {
    let site = Site::new("declared").await;
    let _replica = site.start().await;
    site.create("billing", json!({ "value": "hello" })).await;
    let status = site.wait_phase("billing", Phase::Held).await;

    let pair = site.pair(&site.key("billing")).await.unwrap();
    assert_eq!(pair.flags, LOCK_FLAGS);
    assert_eq!(token(&status), pair.modify_index, "the token is the index of the acquisition");
    let session = status.session.as_ref().unwrap();
    assert_eq!(session.id.as_deref(), pair.session.as_ref().map(|id| id.as_str()));
    let value: serde_json::Value = serde_json::from_slice(&pair.value).unwrap();
    assert_eq!(value["holder"], format!("{}/billing", site.namespace));
    assert_eq!(value["cluster"], site.cluster());
    assert_eq!(value["value"], "hello");
    let holder = status.holder.as_ref().unwrap();
    assert!(!holder.stranger);
    for type_ in ["Ready", "Held", "ConsulReachable", "SessionHealthy"] {
        assert_eq!(condition(&status, type_).0, "True", "{type_}: {status:#?}");
    }
    assert_eq!(condition(&status, "KeyConflict").0, "False");
    site.event("billing", "Acquired").await;

    site.delete("billing").await;
    site.gone("billing").await;
    let left = site.pair(&site.key("billing")).await.unwrap();
    assert_eq!((left.session, left.flags), (None, LOCK_FLAGS), "the key stays, and is free");
    site.no_sessions().await;
}

#[tokio::test]
async fn pausing_gives_the_key_up_and_shows_the_stranger_who_takes_it() {
    let site = Site::new("paused").await;
    let _replica = site.start().await;
    site.create("a", json!({})).await;
    let first = site.held("a").await;
    site.change("a", json!({ "paused": true })).await;
    site.wait_phase("a", Phase::Paused).await;
    site.no_sessions().await;

    let lab = crate::fixtures::Lab::real().await;
    let stranger = lab.session().await;
    let index = lab.lock(&site.key("a"), &stranger).await.unwrap();
    let seen = site
        .wait("a", "a stranger holds it", |status| {
            status.holder.as_ref().is_some_and(|holder| holder.stranger)
        })
        .await;
    assert_eq!(seen.phase, Some(Phase::Paused));
    assert_eq!(seen.fencing_token, None);

    site.change("a", json!({ "paused": false })).await;
    site.wait_phase("a", Phase::Waiting).await;
    lab.consul
        .put(&site.key("a"), b"", Some(LOCK_FLAGS), PutMode::Release(stranger))
        .await
        .unwrap();
    let second = site.held("a").await;
    assert!(first < index.modify_index && index.modify_index < second, "tokens only rise");
    let status = site.status("a").await;
    assert_eq!(status.transitions, 2);
    assert_eq!(status.history.len(), 1);
    assert_eq!(
        (status.history[0].token.parse(), status.history[0].reason.as_str()),
        (Ok(first), "Paused")
    );
}

#[tokio::test]
async fn nothing_is_written_while_nothing_changes() {
    let site = Site::new("steady").await;
    let replica = site.start().await;
    for name in ["a", "b"] {
        site.create(name, json!({ "session": { "ttl": "10s" } })).await;
        site.held(name).await;
    }
    let versions = async || {
        let claims = site.claims.list(&Default::default()).await.unwrap().items;
        claims.into_iter().map(|claim| claim.metadata.resource_version).collect::<Vec<_>>()
    };
    site.event("b", "Acquired").await;
    let before = versions().await;
    let renewed = || replica.metric("consul_lock_renewals_total{result=\"ok\"}").unwrap_or(0.0);
    let until = renewed() + 4.0;
    eventually("both sessions to be renewed twice", || async {
        if renewed() >= until { Ok(()) } else { Err(renewed()) }
    })
    .await;
    assert_eq!(versions().await, before, "a claim was written without cause");
}

#[tokio::test]
async fn claim_recreated_at_once_under_its_name_holds_with_a_higher_token() {
    let site = Site::new("recreated").await;
    let _replica = site.start().await;
    site.create("a", json!({})).await;
    let first = site.held("a").await;
    site.delete("a").await;
    eventually("the name to be free", || async {
        site.claims.create(&Default::default(), &claim("a", json!({}))).await.map(drop)
    })
    .await;
    let second = site.held("a").await;
    assert!(second > first);
    assert_eq!(site.sessions().await.len(), 1);
}

#[tokio::test]
async fn foreign_data_in_the_key_is_a_conflict_and_stays_as_it_is() {
    let site = Site::new("conflict").await;
    let _replica = site.start().await;
    site.consul.put(&site.key("a"), b"precious", Some(7), PutMode::Plain).await.unwrap();
    site.create("a", json!({})).await;
    site.create("b", json!({})).await;
    let status =
        site.wait("a", "KeyConflict", |status| condition(status, "KeyConflict").0 == "True").await;
    assert_ne!(status.phase, Some(Phase::Held));
    site.held("b").await;
    site.event("a", "KeyConflict").await;
    site.delete("a").await;
    site.gone("a").await;
    let pair = site.pair(&site.key("a")).await.unwrap();
    assert_eq!((pair.value.as_slice(), pair.flags), (b"precious".as_slice(), 7));
}
