//! The controller's own process between a real API server and a real Consul: what a user sees.

use consul_lock::{
    api::{ConsulLockStatus, Phase},
    consul::{Consul, PutMode},
};
use serde_json::json;

use crate::{
    fixtures::{LOCK_FLAGS, shared_consul},
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

#[tokio::test]
async fn session_bound_to_a_health_check_ends_with_the_check_and_comes_back_with_it() {
    let site = Site::new("checks").await;
    let _replica = site.start().await;
    report_check(&site, "passing").await;
    let bound = json!({ "session": { "lockDelay": "0s", "checks": { "node": ["alive"] } } });
    site.create("bound", bound).await;
    site.create("free", json!({})).await;
    let (first, free) = (site.held("bound").await, site.held("free").await);

    report_check(&site, "critical").await;
    let lost = site.wait("bound", "the loss", |status| !status.history.is_empty()).await;
    assert_eq!(lost.history[0].reason, "SessionInvalidated");
    let refused = |status: &ConsulLockStatus| {
        status.conditions.iter().any(|condition| condition.message.contains("critical state"))
    };
    site.wait("bound", "a condition that names the check's state", refused).await;

    report_check(&site, "passing").await;
    assert!(site.held("bound").await > first);
    assert_eq!(site.held("free").await, free, "a session without checks goes on");
}

/// Registers a check of the node that this site's sessions sit on, with this status.
async fn report_check(site: &Site, status: &str) {
    let node = format!("consul-lock-{}-{}", site.cluster(), site.namespace);
    let body = json!({
        "Node": node,
        "Address": "127.0.0.1",
        "Check": { "Node": node, "CheckID": "alive", "Name": "alive", "Status": status },
    });
    let put = move || {
        shared_consul().request("PUT", "/v1/catalog/register", body.to_string().as_bytes()).unwrap()
    };
    assert_eq!(tokio::task::spawn_blocking(put).await.unwrap().status, 200);
}
