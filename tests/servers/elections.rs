//! Elections among pods: who leads, what the elected pod carries, where traffic goes.

use consul_lock::{
    api::{ConsulLockStatus, Phase},
    consul::Consul,
};
use kube::api::Patch;
use serde_json::json;

use crate::{
    pods::{Cast, Found, candidates, routed},
    site::{Site, condition, eventually, token},
};

#[tokio::test]
async fn who_has_been_ready_for_longest_gets_label_token_and_the_only_endpoint() {
    let (site, cast, _replica) = Cast::on_stage("elect").await;
    cast.service("billing", json!({})).await;
    for (pod, second) in [("a", 9), ("b", 3), ("c", 5)] {
        cast.ready(pod, second).await;
    }
    site.create("lock", routed(json!({}))).await;
    let token = cast.led_by("lock", "b").await;
    let found = cast.routed("billing", Some("b")).await.unwrap();
    let expected = Found {
        pod: "b".to_owned(),
        address: format!("10.9.8.{}", b'b'),
        ready: true,
        token: Some(token),
    };
    assert_eq!(found, expected);
    let slices = cast.slices.list(&Default::default()).await.unwrap().items;
    let ports = slices[0].ports.iter().flatten();
    let ports = ports.map(|port| (port.name.clone().unwrap(), port.port.unwrap()));
    let named = [("http".to_owned(), 8080), ("admin".to_owned(), 9000)];
    assert_eq!(ports.collect::<Vec<_>>(), named, "names are looked up on the pod");

    let status = site.status("lock").await;
    let holder = status.holder.unwrap();
    assert_eq!(holder.identity, format!("{}/b", site.namespace));
    assert_eq!(
        (holder.node, holder.cluster),
        (Some(cast.node.clone()), Some(site.cluster().into()))
    );
    let seen = status.candidates.unwrap();
    assert_eq!((seen.matching, seen.eligible, seen.first.as_deref()), (3, 3, Some("b")));
    let held = status.conditions.iter().find(|one| one.type_ == "Held").unwrap();
    assert!(held.message.contains("ready for longest of 3 pods"), "{}", held.message);
    let value = site.pair(&site.key("lock")).await.unwrap().value;
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&value).unwrap()["pod"], "b");
}

#[tokio::test]
async fn a_dead_leader_is_followed_at_once_and_its_restarted_container_is_an_ordinary_candidate() {
    let (site, cast, _replica) = Cast::on_stage("died").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({}))).await;
    let first = cast.led_by("lock", "a").await;

    cast.ended("a").await;
    let second = cast.led_by("lock", "b").await;
    assert!(second > first);
    cast.routed("billing", Some("b")).await;
    assert_eq!(site.status("lock").await.history[0].reason, "PodDied");

    // Restarted before anybody saw it down.
    cast.restarted("b", 2).await;
    let third = site.wait("lock", "another tenure", |status| status.transitions == 3).await;
    assert!(token(&third) > second);
    assert_eq!(third.holder.unwrap().pod.as_deref(), Some("b"), "who else");
    assert_eq!(third.history[0].holder, format!("{}/b", site.namespace));
    let found = cast.routed("billing", Some("b")).await.unwrap();
    eventually("the slice to tell the new token", || async {
        let token = cast.endpoints("billing").await.pop().and_then(|found| found.token);
        if token > found.token.filter(|token| *token <= second) { Ok(()) } else { Err(token) }
    })
    .await;
}

#[tokio::test]
async fn a_deleted_leader_loses_its_endpoint_at_once_and_the_key_on_proof() {
    let (site, cast, _replica) = Cast::on_stage("deleted").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({ "unreachableAfter": "never" }))).await;
    let first = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;

    cast.delete("a").await;
    cast.routed("billing", None).await;
    assert_eq!(cast.led_by("lock", "a").await, first, "it may be at work still");
    // The last word of the kubelet and the end of the object come together.
    cast.ended("a").await;
    cast.remove("a").await;
    assert!(cast.led_by("lock", "b").await > first);
    cast.routed("billing", Some("b")).await;
    assert_eq!(site.status("lock").await.history[0].reason, "PodDeleted");
}

#[tokio::test]
async fn a_leader_out_of_reach_is_followed_after_unreachable_after_and_never_without_proof() {
    let (site, cast, _replica) = Cast::on_stage("unreachable").await;
    cast.ready("a", 1).await;
    site.create("soon", candidates(json!({ "unreachableAfter": "1s" }))).await;
    site.create("never", candidates(json!({ "unreachableAfter": "never" }))).await;
    cast.led_by("soon", "a").await;
    let kept = cast.led_by("never", "a").await;
    // By force: nobody knows what became of it.
    cast.remove("a").await;
    cast.ready("b", 2).await;
    cast.led_by("soon", "b").await;
    assert_eq!(site.status("soon").await.history[0].reason, "PodUnreachable");
    let status = site.status("never").await;
    assert_eq!((status.phase, token(&status)), (Some(Phase::Held), kept));
    // Its node is gone for good: an operator says so.
    cast.out_of_service().await;
    let given_up = |status: &ConsulLockStatus| !status.history.is_empty();
    let status = site.wait("never", "the end", given_up).await;
    assert_eq!(status.history[0].reason, "PodDeleted");
}

#[tokio::test]
async fn a_leader_on_a_node_that_is_away_is_followed_by_a_pod_elsewhere() {
    let (site, cast, _replica) = Cast::on_stage("node-away").await;
    cast.ready("a", 1).await;
    site.create("lock", candidates(json!({ "unreachableAfter": "1s" }))).await;
    let first = cast.led_by("lock", "a").await;
    cast.node_is("Unknown").await;
    let waiting = site.wait_phase("lock", Phase::Waiting).await;
    assert_eq!(waiting.history[0].reason, "PodUnreachable");
    cast.led_by_nobody("lock").await;
    cast.node_is("True").await;
    assert!(cast.led_by("lock", "a").await > first);
}

#[tokio::test]
async fn a_leader_that_is_merely_not_ready_keeps_the_lock_and_shows_as_not_ready() {
    let (site, cast, _replica) = Cast::on_stage("unready").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({}))).await;
    let token = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    cast.unready("a").await;
    eventually("the slice to say so", || async {
        let found = cast.endpoints("billing").await;
        if found.iter().all(|one| one.pod == "a" && !one.ready) { Ok(()) } else { Err(found) }
    })
    .await;
    assert_eq!(cast.led_by("lock", "a").await, token);

    site.change("lock", json!({ "candidates": { "unreadyAfter": "1s" } })).await;
    assert!(cast.led_by("lock", "b").await > token);
    assert_eq!(site.status("lock").await.history[0].reason, "PodUnready");
}

#[tokio::test]
async fn a_claim_with_nobody_eligible_gives_the_key_up() {
    let (site, cast, _replica) = Cast::on_stage("nobody").await;
    cast.ready("a", 1).await;
    site.create("lock", candidates(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    cast.ended("a").await;
    let waiting = site.wait_phase("lock", Phase::Waiting).await;
    let ready = waiting.conditions.iter().find(|one| one.type_ == "Ready").unwrap();
    assert_eq!(ready.reason, "NoCandidate");
    assert!(ready.message.ends_with("1 not ready"), "{}", ready.message);
    site.no_sessions().await;
    // Another cluster may need it.
    let stranger = site.stranger_when_free("lock").await;
    cast.restarted("a", 5).await;
    site.wait("lock", "the stranger", |status| {
        status.holder.as_ref().is_some_and(|holder| holder.stranger)
    })
    .await;
    stranger.leave().await;
    assert!(cast.led_by("lock", "a").await > first);
}

#[tokio::test]
async fn a_better_candidate_takes_over_where_it_may() {
    let (site, cast, _replica) = Cast::on_stage("preempt").await;
    cast.with("a", 1, json!({ "consullock.dev/priority": "1" })).await;
    let by_priority = json!({ "strategy": "Priority" });
    site.create("patient", candidates(by_priority.clone())).await;
    let mut greedy = by_priority;
    greedy["preempt"] = json!(true);
    site.create("greedy", candidates(greedy)).await;
    let patient = cast.led_by("patient", "a").await;
    cast.led_by("greedy", "a").await;
    cast.with("b", 2, json!({ "consullock.dev/priority": "7" })).await;
    cast.led_by("greedy", "b").await;
    assert_eq!(site.status("greedy").await.history[0].reason, "Preempted");
    assert_eq!(cast.led_by("patient", "a").await, patient);
}

#[tokio::test]
async fn a_pod_that_matches_no_more_is_replaced() {
    let (site, cast, _replica) = Cast::on_stage("unmatched").await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", candidates(json!({}))).await;
    cast.led_by("lock", "a").await;
    let patch = Patch::Merge(json!({ "metadata": { "labels": { "app": "other" } } }));
    cast.pods.patch("a", &Default::default(), &patch).await.unwrap();
    cast.led_by("lock", "b").await;
    assert_eq!(site.status("lock").await.history[0].reason, "PodUnmatched");
}

#[tokio::test]
async fn pausing_takes_label_and_endpoint_away_and_deleting_leaves_nothing() {
    let (site, cast, _replica) = Cast::on_stage("parting").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    site.create("lock", routed(json!({}))).await;
    cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    site.change("lock", json!({ "paused": true })).await;
    site.wait_phase("lock", Phase::Paused).await;
    cast.led_by_nobody("lock").await;
    cast.routed("billing", None).await;
    site.change("lock", json!({ "paused": false })).await;
    cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    site.delete("lock").await;
    site.gone("lock").await;
    assert!(cast.badges("lock").await.is_empty());
    assert_eq!(cast.endpoints("billing").await, []);
    assert!(cast.slices.list(&Default::default()).await.unwrap().items.is_empty());
    site.no_sessions().await;
}

#[tokio::test]
async fn max_hold_moves_endpoint_and_label_before_the_key() {
    let (site, cast, _replica) = Cast::on_stage("max-hold").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    let mut spec = routed(json!({}));
    spec["acquire"] = json!({ "maxHold": "2s" });
    site.create("lock", spec).await;
    let first = cast.led_by("lock", "a").await;
    let next = site.wait("lock", "the next tenure", |status| status.transitions == 2).await;
    assert_eq!(next.history[0].reason, "MaxHold");
    assert!(token(&next) > first);
}

#[tokio::test]
async fn a_leader_that_lost_its_session_loses_its_endpoint_and_is_deleted_if_asked_for() {
    let (site, cast, _replica) = Cast::on_stage("lost").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    let mut spec = routed(json!({}));
    spec["onLost"] = json!("DeletePod");
    site.create("lock", spec).await;
    let first = cast.led_by("lock", "a").await;
    let uid = cast.pods.get("a").await.unwrap().metadata.uid;
    cast.routed("billing", Some("a")).await;
    let session = site.pair(&site.key("lock")).await.unwrap().session.unwrap();
    site.consul.destroy_session(&session).await.unwrap();
    eventually("the pod to be deleted", || async {
        let pod = cast.pods.get_opt("a").await.unwrap();
        let deleting = pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
        if deleting { Ok(()) } else { Err("it stays") }
    })
    .await;
    cast.routed("billing", None).await;
    cast.ended("a").await;
    cast.remove("a").await;
    cast.ready("b", 2).await;
    assert!(cast.led_by("lock", "b").await > first);
    let pods = cast.pods.list(&Default::default()).await.unwrap().items;
    assert!(pods.iter().all(|pod| pod.metadata.uid != uid));
}

#[tokio::test]
async fn a_lost_leader_that_is_not_to_be_deleted_is_unlabelled_and_may_lead_again() {
    let (site, cast, _replica) = Cast::on_stage("unlabel").await;
    cast.ready("a", 1).await;
    site.create("lock", candidates(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    let session = site.pair(&site.key("lock")).await.unwrap().session.unwrap();
    site.consul.destroy_session(&session).await.unwrap();
    site.wait("lock", "the loss", |status| !status.history.is_empty()).await;
    assert!(cast.led_by("lock", "a").await > first);
    assert_eq!(site.status("lock").await.history[0].reason, "SessionInvalidated");
    assert!(cast.pods.get("a").await.unwrap().metadata.deletion_timestamp.is_none());
}

#[tokio::test]
async fn what_a_crash_left_on_other_pods_is_found_and_removed() {
    let (site, cast, replica) = Cast::on_stage("leftovers").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({}))).await;
    let token = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    replica.server.kill().unwrap();
    // As after a crash between any two writes: on the wrong pod, in halves, of no claim at all.
    let patch = |labels, annotations| {
        let metadata = json!({ "labels": labels, "annotations": annotations });
        Patch::Merge(json!({ "metadata": metadata }))
    };
    let stale = patch(json!({ "consullock.dev/lock": "holder" }), json!({}));
    cast.pods.patch("b", &Default::default(), &stale).await.unwrap();
    let none = patch(
        json!({ "consullock.dev/nobody": "holder", "consullock.dev/mine": "blue" }),
        json!({ "token.consullock.dev/nobody": "7" }),
    );
    cast.pods.patch("b", &Default::default(), &none).await.unwrap();
    let half = patch(json!({ "consullock.dev/lock": null }), json!({}));
    cast.pods.patch("a", &Default::default(), &half).await.unwrap();
    let _second = site.start().await;
    assert_eq!(cast.led_by("lock", "a").await, token, "the tenure goes on");
    cast.led_by_nobody("nobody").await;
    cast.routed("billing", Some("a")).await;
    assert_eq!(site.status("lock").await.transitions, 1);
    let labels = cast.pods.get("b").await.unwrap().metadata.labels.unwrap();
    assert_eq!(labels["consullock.dev/mine"], "blue", "no badge of ours");
}

#[tokio::test]
async fn a_leader_that_died_while_no_controller_ran_is_followed() {
    let (site, cast, replica) = Cast::on_stage("died-unseen").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    replica.server.kill().unwrap();
    cast.restarted("a", 9).await;
    let _second = site.start().await;
    assert!(cast.led_by("lock", "b").await > first, "a was restarted, so b is older");
    assert_eq!(site.status("lock").await.history[0].reason, "PodDied");
    cast.routed("billing", Some("b")).await;
}

#[tokio::test]
async fn a_service_that_others_route_is_left_alone_and_the_condition_says_why() {
    let (site, cast, _replica) = Cast::on_stage("routing").await;
    cast.ready("a", 1).await;
    site.create("lock", routed(json!({}))).await;
    let token = cast.led_by("lock", "a").await;
    let refused = async |reason: &str| {
        site.wait("lock", reason, |status| {
            let (truth, why, _) = condition(status, "RoutingSynced");
            (truth.as_str(), why.as_str()) == ("False", reason)
        })
        .await
    };
    refused("NoService").await;
    cast.service("billing", json!({ "selector": { "app": "billing" } })).await;
    refused("ServiceHasSelector").await;
    assert_eq!(cast.endpoints("billing").await, []);
    let patch = Patch::Merge(json!({ "spec": { "selector": null } }));
    cast.services.patch("billing", &Default::default(), &patch).await.unwrap();
    cast.routed("billing", Some("a")).await;
    // Somebody else begins to serve it.
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "theirs", "labels": { "kubernetes.io/service-name": "billing" } },
        "endpoints": [{ "addresses": ["10.1.1.1"] }],
    });
    let slice = serde_json::from_value(slice).unwrap();
    cast.slices.create(&Default::default(), &slice).await.unwrap();
    refused("ServiceServedByOthers").await;
    let found = cast.endpoints("billing").await;
    assert_eq!(found.len(), 1, "no harm done: {found:?}");
    assert_eq!(found[0].address, "10.1.1.1");
    cast.slices.delete("theirs", &Default::default()).await.unwrap();
    cast.routed("billing", Some("a")).await;
    assert_eq!(cast.led_by("lock", "a").await, token, "no tenure was touched");
}

#[tokio::test]
async fn two_claims_of_one_service_do_not_both_route_it() {
    let (site, cast, _replica) = Cast::on_stage("rivals").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    site.create("first", routed(json!({}))).await;
    cast.led_by("first", "a").await;
    cast.routed("billing", Some("a")).await;
    site.create("second", routed(json!({}))).await;
    site.wait("second", "the refusal", |status| {
        status.conditions.iter().any(|one| one.reason == "ServiceServedByOthers")
    })
    .await;
    assert_eq!(cast.endpoints("billing").await.len(), 1);
    site.delete("first").await;
    site.gone("first").await;
    cast.routed("billing", Some("a")).await;
    let slices = cast.slices.list(&Default::default()).await.unwrap().items;
    let names: Vec<_> = slices.iter().filter_map(|slice| slice.metadata.name.as_deref()).collect();
    assert_eq!(names, ["consullock-second-ipv4"]);
}

#[tokio::test]
async fn the_same_claim_in_two_clusters_is_one_election_and_each_shows_the_other_s_holder() {
    let (west, east) = (Site::new("west").await, Site::new("east").await);
    let (west_cast, east_cast) = (Cast::new(&west).await, Cast::new(&east).await);
    let key = west.key("lock").as_str().to_owned();
    east.share_keys_of(&west).await;
    let (_one, _two) = (west.start().await, east.start().await);
    west_cast.ready("a", 1).await;
    east_cast.ready("z", 1).await;
    west.create("lock", candidates(json!({}))).await;
    let first = west_cast.led_by("lock", "a").await;
    let mut spec = candidates(json!({}));
    spec["key"] = json!(key);
    east.create("lock", spec).await;
    let seen = east.wait("lock", "the other's holder", |status| status.holder.is_some()).await;
    let holder = seen.holder.unwrap();
    assert_eq!(holder.identity, format!("{}/a", west.namespace));
    assert_eq!((holder.cluster.as_deref(), holder.stranger), (Some(west.cluster()), false));
    assert_eq!(seen.phase, Some(Phase::Waiting));
    east_cast.led_by_nobody("lock").await;
    // The last of the west is gone.
    west_cast.ended("a").await;
    assert!(east_cast.led_by("lock", "z").await > first);
    let seen = west
        .wait("lock", "the other's holder", |status| {
            status.holder.as_ref().is_some_and(|holder| holder.pod.as_deref() == Some("z"))
        })
        .await;
    assert_eq!(seen.holder.unwrap().cluster.as_deref(), Some(east.cluster()));
}

#[tokio::test]
async fn nothing_is_written_about_pods_while_nothing_changes() {
    let (site, cast, replica) = Cast::on_stage("calm").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    let mut spec = routed(json!({}));
    spec["session"]["ttl"] = json!("10s");
    site.create("lock", spec).await;
    cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    let routed =
        |status: &ConsulLockStatus| status.conditions.iter().any(|one| one.reason == "Routed");
    site.wait("lock", "the routing", routed).await;
    let versions = async || {
        let mut versions = Vec::new();
        for pod in cast.pods.list(&Default::default()).await.unwrap().items {
            versions.push(pod.metadata.resource_version);
        }
        for slice in cast.slices.list(&Default::default()).await.unwrap().items {
            versions.push(slice.metadata.resource_version);
        }
        versions.push(site.claims.get("lock").await.unwrap().metadata.resource_version);
        versions
    };
    let before = versions().await;
    let renewed = || replica.metric("consul_lock_renewals_total{result=\"ok\"}").unwrap_or(0.0);
    let until = renewed() + 2.0;
    eventually("two renewals", || async {
        if renewed() >= until { Ok(()) } else { Err(renewed()) }
    })
    .await;
    assert_eq!(versions().await, before);
}
