//! Elections while users change claims, Services and pods under the controller's hands.

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    pods::{Cast, candidates, ended, routed, running},
    site::{Site, condition, eventually, token},
    witness::{What, Witness},
};

async fn patch_pod(cast: &Cast, pod: &str, metadata: Value) {
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    cast.pods.patch(pod, &PatchParams::default(), &patch).await.unwrap();
}

/// Waits until `RoutingSynced` is False for this reason; its message.
async fn not_synced(site: &Site, claim: &str, reason: &str) -> String {
    let status = site.wait(claim, reason, |status| {
        let (truth, why, _) = condition(status, "RoutingSynced");
        (truth.as_str(), why.as_str()) == ("False", reason)
    });
    condition(&status.await, "RoutingSynced").2
}

// ---- by hand ----

#[tokio::test]
async fn a_badge_that_somebody_changes_by_hand_is_put_right() {
    let (site, cast, _replica) = Cast::on_stage("badge-by-hand").await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", candidates(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    let (label, token) = ("consullock.dev/lock", "token.consullock.dev/lock");
    for (pod, metadata) in [
        ("a", json!({ "labels": { label: null } })),
        ("a", json!({ "labels": { label: "somebody" } })),
        ("a", json!({ "annotations": { token: null } })),
        ("a", json!({ "annotations": { token: "1" } })),
        ("a", json!({ "labels": { label: null }, "annotations": { token: null } })),
        ("b", json!({ "labels": { label: "holder" } })),
        ("b", json!({ "annotations": { token: first.to_string() } })),
        ("b", json!({ "labels": { label: "holder" }, "annotations": { token: "999999" } })),
    ] {
        patch_pod(&cast, pod, metadata).await;
        assert_eq!(cast.led_by("lock", "a").await, first);
    }
    assert_eq!(site.status("lock").await.transitions, 1);
}

#[tokio::test]
async fn a_slice_that_somebody_edits_or_deletes_is_put_right() {
    let (site, cast, _replica) = Cast::on_stage("slice-by-hand").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    let good = cast.routed("billing", Some("a")).await.unwrap();
    let name = "consullock-lock-ipv4";
    let right = cast.slices.get(name).await.unwrap();
    let one = serde_json::to_value(&right.endpoints[0]).unwrap();
    let mut elsewhere = one.clone();
    elsewhere["addresses"] = json!(["10.9.8.98"]);
    let stranger = json!({ "addresses": ["10.9.8.98"] });
    for edit in [
        json!({ "endpoints": [] }),
        json!({ "endpoints": [elsewhere] }),
        json!({ "endpoints": [one, stranger] }),
        json!({ "endpoints": [stranger] }),
        json!({ "ports": [{ "name": "http", "port": 1 }] }),
        json!({ "metadata": { "annotations": { "consullock.dev/fencing-token": "1" } } }),
        json!({ "metadata": { "annotations": { "consullock.dev/fencing-token": null } } }),
        json!({ "metadata": { "labels": { "kubernetes.io/service-name": "other" } } }),
    ] {
        cast.slices.patch(name, &PatchParams::default(), &Patch::Merge(&edit)).await.unwrap();
        eventually(&format!("the slice to be right after {edit}"), || async {
            let now = cast.slices.get(name).await.unwrap();
            let labels = now.labels() == right.labels();
            let same = now.endpoints == right.endpoints && now.ports == right.ports && labels;
            let found = cast.endpoints("billing").await;
            if same && found == [Clone::clone(&good)] { Ok(()) } else { Err((now, found)) }
        })
        .await;
    }
    cast.slices.delete(name, &DeleteParams::default()).await.unwrap();
    cast.routed("billing", Some("a")).await;
    assert_eq!(cast.led_by("lock", "a").await, first, "no tenure was touched");
    assert_eq!(site.status("lock").await.transitions, 1);
}

#[tokio::test]
async fn a_pod_recreated_under_the_same_name_is_another_leader() {
    let (site, cast, _replica) = Cast::on_stage("recreated").await;
    cast.service("billing", json!({})).await;
    cast.ready("a-0", 1).await;
    site.create("lock", routed(json!({ "unreachableAfter": "1s" }))).await;
    site.create("never", candidates(json!({ "unreachableAfter": "never" }))).await;
    let witness = Witness::of(&site, "lock", "billing").await;
    let first = cast.led_by("lock", "a-0").await;
    let kept = cast.led_by("never", "a-0").await;
    let uid = cast.pods.get("a-0").await.unwrap().uid();
    cast.routed("billing", Some("a-0")).await;

    // By force: the first one may be at work still.
    cast.remove("a-0").await;
    cast.ready("a-0", 2).await;
    let second = cast.led_by("lock", "a-0").await;
    assert!(second > first);
    let status = site.status("lock").await;
    assert_eq!(status.history[0].reason, "PodUnreachable");
    let holder = status.holder.unwrap().uid;
    assert!(holder.is_some() && holder != uid, "{holder:?}");
    cast.routed("billing", Some("a-0")).await;
    let status = site.status("never").await;
    assert_eq!((token(&status), status.holder.unwrap().uid), (kept, uid));
    cast.led_by_nobody("never").await;

    // As a StatefulSet does it.
    cast.delete("a-0").await;
    cast.ended("a-0").await;
    cast.remove("a-0").await;
    cast.ready("a-0", 3).await;
    assert!(cast.led_by("lock", "a-0").await > second);
    assert_eq!(site.status("lock").await.history[0].reason, "PodDeleted");
    cast.routed("billing", Some("a-0")).await;
    witness.catches_up(&site).await;
    witness.assert_orderly();
}

// ---- claims that change ----

#[tokio::test]
async fn candidates_may_be_given_to_a_held_claim_and_taken_from_it() {
    let (site, cast, _replica) = Cast::on_stage("added").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    site.create("lock", json!({ "session": { "lockDelay": "0s" } })).await;
    let alone = site.held("lock").await;
    let session = site.pair(&site.key("lock")).await.unwrap().session;
    cast.led_by_nobody("lock").await;

    site.change("lock", routed(json!({}))).await;
    let led = cast.led_by("lock", "a").await;
    assert!(led > alone);
    cast.routed("billing", Some("a")).await;
    let pair = site.pair(&site.key("lock")).await.unwrap();
    assert_eq!((pair.session, pair.modify_index), (session.clone(), led), "one commit");
    let status = site.status("lock").await;
    assert_eq!(status.history[0].holder, format!("{}/lock", site.namespace));

    site.change("lock", json!({ "candidates": null, "routing": null })).await;
    cast.led_by_nobody("lock").await;
    let status = site.wait("lock", "itself", |status| status.transitions == 3).await;
    let holder = status.holder.clone().unwrap();
    assert_eq!((holder.pod, holder.identity), (None, format!("{}/lock", site.namespace)));
    assert!(token(&status) > led);
    assert_eq!(status.candidates, None);
    assert_eq!(condition(&status, "RoutingSynced"), Default::default(), "{status:#?}");
    assert!(cast.slices.list(&Default::default()).await.unwrap().items.is_empty());
    assert_eq!(site.pair(&site.key("lock")).await.unwrap().session, session);
}

#[tokio::test]
async fn another_selector_moves_the_lock_only_if_the_leader_does_not_match_it() {
    let (site, cast, _replica) = Cast::on_stage("selector").await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    patch_pod(&cast, "a", json!({ "labels": { "tier": "one" } })).await;
    patch_pod(&cast, "b", json!({ "labels": { "tier": "two" } })).await;
    site.create("lock", candidates(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    let expression = |operator: &str, values: Value| {
        let one = json!({ "key": "tier", "operator": operator, "values": values });
        json!({ "candidates": { "selector": { "matchLabels": null, "matchExpressions": [one] } } })
    };
    site.change("lock", expression("In", json!(["one"]))).await;
    let narrow = |matching: i32| {
        move |status: &consul_lock::api::ConsulLockStatus| {
            status.candidates.as_ref().is_some_and(|seen| seen.matching == matching)
        }
    };
    site.wait("lock", "one candidate", narrow(1)).await;
    assert_eq!(cast.led_by("lock", "a").await, first);
    site.change("lock", expression("NotIn", json!(["one"]))).await;
    assert!(cast.led_by("lock", "b").await > first);
    assert_eq!(site.status("lock").await.history[0].reason, "PodUnmatched");
    site.change("lock", expression("In", json!(["three"]))).await;
    // A release that is on its way may be told of before.
    let nobody = |status: &consul_lock::api::ConsulLockStatus| {
        status.fencing_token.is_none() && condition(status, "Ready").1 == "NoCandidate"
    };
    let none = site.wait("lock", "nobody", nobody).await;
    cast.led_by_nobody("lock").await;
    assert_eq!(condition(&none, "Ready").2, "no pod matches candidates.selector");
}

#[tokio::test]
async fn another_service_gets_the_endpoint_and_the_last_one_loses_it() {
    let (site, cast, _replica) = Cast::on_stage("service").await;
    cast.service("billing", json!({})).await;
    cast.service("web", json!({})).await;
    cast.ready("a", 1).await;
    site.create("lock", routed(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    site.change("lock", json!({ "routing": { "service": "web" } })).await;
    cast.routed("web", Some("a")).await;
    cast.routed("billing", None).await;
    site.change("lock", json!({ "routing": { "service": "nowhere" } })).await;
    not_synced(&site, "lock", "NoService").await;
    cast.routed("web", None).await;
    site.change("lock", json!({ "routing": { "service": "billing" } })).await;
    cast.routed("billing", Some("a")).await;
    site.change("lock", json!({ "routing": null })).await;
    cast.routed("billing", None).await;
    // A Service that goes and comes back.
    site.change("lock", json!({ "routing": { "service": "web" } })).await;
    cast.routed("web", Some("a")).await;
    cast.services.delete("web", &DeleteParams::default()).await.unwrap();
    not_synced(&site, "lock", "NoService").await;
    cast.service("web", json!({})).await;
    cast.routed("web", Some("a")).await;
    assert_eq!(cast.led_by("lock", "a").await, first, "no tenure was touched");
}

// ---- what is routed ----

#[tokio::test]
async fn a_port_that_the_pod_does_not_name_is_told_and_the_others_are_routed() {
    let (site, cast, _replica) = Cast::on_stage("ports").await;
    let port = |name: &str, target: &str| json!({ "name": name, "port": 80, "targetPort": target });
    let mut ports = vec![port("http", "web"), port("metrics", "metrics")];
    ports[1]["port"] = json!(81);
    cast.service("billing", json!({ "ports": ports })).await;
    cast.ready("a", 1).await;
    site.create("lock", routed(json!({}))).await;
    cast.led_by("lock", "a").await;
    let message = not_synced(&site, "lock", "PodLacksPort").await;
    assert_eq!(message, "pod a lacks a container port named metrics");
    site.event("lock", "RoutingFailed").await;
    cast.routed("billing", Some("a")).await;
    let numbers = |slice: &EndpointSlice| {
        let ports = slice.ports.iter().flatten();
        ports.map(|port| (port.name.clone().unwrap(), port.port.unwrap())).collect::<Vec<_>>()
    };
    let slice = cast.slices.get("consullock-lock-ipv4").await.unwrap();
    assert_eq!(numbers(&slice), [("http".to_owned(), 8080)]);
    // The Service is put right.
    let number = json!([{ "name": "metrics", "port": 81, "targetPort": 9000 }]);
    let patch = Patch::Strategic(json!({ "spec": { "ports": number } }));
    cast.services.patch("billing", &PatchParams::default(), &patch).await.unwrap();
    let synced = site.wait("lock", "the routing", |s| condition(s, "RoutingSynced").0 == "True");
    assert_eq!(condition(&synced.await, "RoutingSynced").2, "traffic goes to pod a");
    let slice = cast.slices.get("consullock-lock-ipv4").await.unwrap();
    assert_eq!(numbers(&slice), [("http".to_owned(), 8080), ("metrics".to_owned(), 9000)]);
}

#[tokio::test]
async fn a_service_of_two_families_has_a_slice_for_each_and_one_pod_in_both() {
    let (site, cast, _replica) = Cast::on_stage("families").await;
    cast.service("billing", json!({ "ipFamilyPolicy": "RequireDualStack" })).await;
    let service: Service = cast.services.get("billing").await.unwrap();
    assert_eq!(service.spec.unwrap().ip_families.unwrap(), ["IPv4", "IPv6"]);
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({}))).await;
    let addresses = async |pod: &str, expected: [&str; 2]| {
        eventually(&format!("both families to go to {pod}"), || async {
            let mut found = cast.endpoints("billing").await;
            found.sort_by(|a, b| a.address.cmp(&b.address));
            let seen: Vec<_> = found.iter().map(|one| (&*one.pod, &*one.address)).collect();
            if seen == expected.map(|at| (pod, at)) { Ok(()) } else { Err(found) }
        })
        .await;
    };
    cast.led_by("lock", "a").await;
    addresses("a", ["10.9.8.97", "fd00::61"]).await;
    cast.ended("a").await;
    cast.led_by("lock", "b").await;
    addresses("b", ["10.9.8.98", "fd00::62"]).await;
    // One family is given up.
    let patch = json!({ "spec": { "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"] } });
    let patch = Patch::Merge(patch);
    cast.services.patch("billing", &PatchParams::default(), &patch).await.unwrap();
    eventually("the other slice to go", || async {
        let slices = cast.slices.list(&Default::default()).await.unwrap().items;
        let names: Vec<_> = slices.iter().map(ResourceExt::name_any).collect();
        if names == ["consullock-lock-ipv4"] { Ok(()) } else { Err(names) }
    })
    .await;
    cast.routed("billing", Some("b")).await;
}

// ---- the container that counts ----

#[tokio::test]
async fn the_end_of_a_sidecar_is_no_end_and_a_pod_without_the_container_is_not_elected() {
    let (site, cast, _replica) = Cast::on_stage("sidecar").await;
    cast.with_containers("plain", 1, &["other"]).await;
    cast.with_containers("a", 2, &["app", "mesh"]).await;
    site.create("lock", candidates(json!({ "container": "app" }))).await;
    site.create("all", candidates(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    cast.led_by("all", "plain").await;
    let seen = site.status("lock").await.candidates.unwrap();
    assert_eq!((seen.matching, seen.eligible), (2, 1));
    // With the sidecar the pod is not ready, and the lock stays.
    cast.report("a", "False", 0, vec![running("app", "a", 0), ended("mesh", "a")]).await;
    let unready = site.wait("lock", "nobody else", |status| {
        status.candidates.as_ref().is_some_and(|seen| seen.eligible == 0)
    });
    unready.await;
    assert_eq!(cast.led_by("lock", "a").await, first);
    cast.report("a", "True", 3, vec![running("app", "a", 0), running("mesh", "a", 1)]).await;
    site.wait("lock", "a to be ready", |status| {
        status.candidates.as_ref().is_some_and(|seen| seen.eligible == 1)
    })
    .await;
    assert_eq!(cast.led_by("lock", "a").await, first);
    // The end of the one that counts is the end, whatever the sidecar does.
    cast.report("a", "False", 0, vec![ended("app", "a"), running("mesh", "a", 1)]).await;
    let waiting = site.wait("lock", "the end", |status| status.fencing_token.is_none()).await;
    assert_eq!(waiting.history[0].reason, "PodDied");
    cast.led_by_nobody("lock").await;
    let none = site.wait("lock", "why nobody is elected", |status| {
        condition(status, "Ready").1 == "NoCandidate"
    });
    let message = condition(&none.await, "Ready").2;
    let counted = "1 without the container of candidates.container, 1 not ready";
    assert!(message.ends_with(counted), "{message}");
}

#[tokio::test]
async fn all_containers_have_to_end_where_none_is_named() {
    let (site, cast, _replica) = Cast::on_stage("containers").await;
    cast.with_containers("a", 1, &["app", "web"]).await;
    site.create("lock", candidates(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    cast.report("a", "False", 0, vec![ended("app", "a"), running("web", "a", 0)]).await;
    let seen = site.wait("lock", "one that is not ready", |status| {
        status.candidates.as_ref().is_some_and(|seen| seen.eligible == 0)
    });
    seen.await;
    assert_eq!(cast.led_by("lock", "a").await, first, "it works in part");
    // The other one is restarted: of the process that was elected nothing is left.
    cast.report("a", "True", 5, vec![running("app", "a", 1), running("web", "a", 1)]).await;
    let next = site.wait("lock", "another tenure", |status| status.transitions == 2).await;
    assert_eq!(next.history[0].reason, "PodDied");
    assert!(cast.led_by("lock", "a").await > first);
}

// ---- a slice of ours that others write as well ----

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_somebody_else_writes_all_the_time_ends_right() {
    let (site, cast, replica) = Cast::on_stage("slice-scribbled").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({}))).await;
    let mut last = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    let witness = Witness::of(&site, "lock", "billing").await;
    let slices = cast.slices.clone();
    let mut scribbler = tokio::task::JoinSet::new();
    scribbler.spawn(async move {
        for number in 0.. {
            let patch =
                json!({ "metadata": { "annotations": { "scribble": number.to_string() } } });
            let patch = Patch::Merge(patch);
            // It is not there while it is deleted and made anew.
            let _ = slices.patch("consullock-lock-ipv4", &PatchParams::default(), &patch).await;
        }
    });
    let mut second = 10;
    for (restarts, (from, to)) in (1..).zip([("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")]) {
        second += 1;
        cast.runs_for_the(from, (restarts + 1) / 2, second).await;
        let token = cast.led_by("lock", to).await;
        assert!(token > last, "{token} after {last}");
        last = token;
        let found = cast.routed("billing", Some(to)).await.unwrap();
        assert_eq!(found.token, Some(token));
    }
    drop(scribbler);
    witness.catches_up(&site).await;
    witness.assert_orderly();
    let conflicts = replica.metric("consul_lock_reconcile_errors_total{class=\"Conflict\"}");
    assert!(conflicts.is_some_and(|count| count >= 1.0), "no 409 was met: {conflicts:?}");
    let events = site.events("lock").await;
    assert!(!events.iter().any(|event| event == "RoutingFailed"), "that is ordinary: {events:?}");
    let scribbled =
        witness.seen().iter().filter(|one| matches!(one.what, What::Slice { .. })).count();
    assert!(scribbled > 20, "hardly any writes to meet: {scribbled}");
}

#[tokio::test]
async fn a_slice_of_that_name_that_is_not_ours_is_left_alone() {
    let (site, cast, _replica) = Cast::on_stage("slice-name").await;
    cast.service("billing", json!({})).await;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "consullock-lock-ipv4", "labels": { "whose": "theirs" } },
        "endpoints": [{ "addresses": ["10.1.1.1"] }],
    });
    let slice = serde_json::from_value(slice).unwrap();
    let theirs = cast.slices.create(&PostParams::default(), &slice).await.unwrap();
    cast.ready("a", 1).await;
    site.create("lock", routed(json!({}))).await;
    cast.led_by("lock", "a").await;
    let message = not_synced(&site, "lock", "WriteFailed").await;
    assert!(message.contains("already exists"), "{message}");
    // Neither does whoever goes take it along.
    cast.ready("b", 2).await;
    cast.ended("a").await;
    cast.led_by("lock", "b").await;
    let now = cast.slices.get("consullock-lock-ipv4").await.unwrap();
    assert_eq!((now.endpoints, now.metadata.labels), (theirs.endpoints, theirs.metadata.labels));
    cast.slices.delete("consullock-lock-ipv4", &DeleteParams::default()).await.unwrap();
    cast.routed("billing", Some("b")).await;
}
