//! The controller's own process between a real API server and a real Consul: what a user sees.

use consul_lock::{
    api::Phase,
    consul::{Consul, PutMode},
};
use serde_json::json;

use crate::{
    fixtures::LOCK_FLAGS,
    site::{Site, eventually},
};

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
