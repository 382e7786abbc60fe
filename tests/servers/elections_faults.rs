//! Elections while something is broken: the controller, the API server, Consul.

use std::{collections::BTreeMap, time::Duration};

use consul_lock::{api::Phase, consul::Consul};
use kube::api::{Patch, PatchParams};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use serde_json::json;
use testbed::{ControlPlane, Fault};

use crate::{
    faults_consul::Scene,
    faults_controller::renewals,
    faults_kubernetes::proxied,
    pods::{Cast, candidates, routed},
    site::{Site, condition, eventually},
    witness::{Wearer, What, Witness},
};

const TTL: Duration = Duration::from_secs(10);
/// How much later than *valid until* a write may be seen: a walk, and the write.
const WRITE: Duration = Duration::from_secs(2);

fn emptied(what: &What) -> bool {
    matches!(what, What::Slice { pods, .. } if pods.is_empty())
}

fn routed_to(pod: &str, token: u64) -> impl Fn(&What) -> bool {
    move |what| matches!(what, What::Slice { pods, token: t, .. } if pods == &[pod] && *t == Some(token))
}

fn stripped(pod: &str) -> impl Fn(&What) -> bool {
    move |what| matches!(what, What::Pod(one) if one.pod == pod && !one.labelled)
}

fn dressed(pod: &str, token: u64) -> impl Fn(&What) -> bool {
    move |what| {
        matches!(what, What::Pod(one)
            if one.pod == pod && one.labelled && one.token == Some(token))
    }
}

// ---- the order of a change ----

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_then_label_then_key_then_label_then_endpoint() {
    let (site, cast, _replica) = Cast::on_stage("order").await;
    cast.service("billing", json!({})).await;
    let strategy = json!({ "strategy": "Priority", "preempt": true });
    cast.with("a", 1, json!({ "consullock.dev/priority": "1" })).await;
    site.create("lock", routed(strategy)).await;
    let mut last = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    let witness = Witness::of(&site, "lock", "billing").await;
    // Each pod takes over from the one before it, by another cause.
    for (from, to, priority) in [("a", "b", "2"), ("b", "c", "3"), ("c", "b", "0")] {
        let before = witness.newest();
        let key = site.key("lock");
        let moved = async {
            loop {
                let pair = site.pair(&key).await.unwrap();
                if pair.modify_index > last {
                    // Whatever is so now was so when the key moved, or before.
                    let left = cast.badges("lock").await;
                    let endpoints = cast.endpoints("billing").await;
                    return (pair.modify_index, left, endpoints);
                }
            }
        };
        let cause = async {
            match priority {
                "0" => cast.ended(from).await,
                _ => cast.with(to, 5, json!({ "consullock.dev/priority": priority })).await,
            }
        };
        let ((index, left, endpoints), ()) = tokio::join!(moved, cause);
        assert!(!left.contains_key(from), "the key moved before the label: {left:?}");
        assert!(endpoints.iter().all(|one| one.pod != from), "... before it: {endpoints:?}");
        let token = cast.led_by("lock", to).await;
        assert_eq!(index, token, "the key moved once");
        cast.routed("billing", Some(to)).await;
        let gone = witness.until("the endpoint to go", before, emptied).await;
        let stripped = witness.until("the label to go", before, stripped(from)).await;
        let dressed = witness.until("the new label", before, dressed(to, token)).await;
        let there = witness.until("the new endpoint", before, routed_to(to, token)).await;
        let order = [gone, stripped, dressed, there];
        assert!(order.is_sorted(), "{order:?} from {from} to {to}");
        last = token;
    }
    witness.catches_up(&site).await;
    witness.assert_orderly();
}

// ---- the controller ----

/// Waits until one pod, with its last container, is the leader in every respect; who, and its
/// token.
async fn settled(site: &Site, cast: &Cast, runs: &BTreeMap<String, i32>) -> (String, u64) {
    let look = || async {
        let status = site.status("lock").await;
        let (badges, found) = (cast.badges("lock").await, cast.endpoints("billing").await);
        let sorry = Err((badges.clone(), found.clone(), status.clone()));
        let Some((holder, token)) = status.holder.clone().zip(status.fencing_token.clone()) else {
            return sorry;
        };
        let (Some(pod), Ok(token)) = (holder.pod.clone(), token.parse()) else { return sorry };
        let lives = holder.containers.iter().all(|one| runs.get(&pod) == Some(&one.restarts));
        let wears = badges == BTreeMap::from([(pod.clone(), Some(token))]);
        let [one] = &found[..] else { return sorry };
        let serves = one.pod == pod && one.token == Some(token);
        if lives && wears && serves { Ok((pod, token)) } else { sorry }
    };
    eventually("one leader with one badge and one endpoint", look).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_at_any_moment_of_a_change_leaves_one_leader_and_one_endpoint() {
    let seed = std::env::var("CRASH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("CRASH_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let (site, cast, mut replica) = Cast::on_stage("crashes").await;
    cast.service("billing", json!({})).await;
    let mut runs = BTreeMap::new();
    for (second, pod) in (1..).zip(["a", "b", "c"]) {
        cast.ready(pod, second).await;
        runs.insert(pod.to_owned(), 0);
    }
    site.create("lock", routed(json!({}))).await;
    let (_, mut last) = settled(&site, &cast, &runs).await;
    let witness = Witness::of(&site, "lock", "billing").await;
    for round in 0..10 {
        let (leader, token) = settled(&site, &cast, &runs).await;
        assert!(token >= last, "{token} after {last} in round {round}");
        last = token;
        let from = witness.newest();
        // Its container is restarted, and so it is the youngest of the ready ones.
        *runs.get_mut(&leader).unwrap() += 1;
        cast.runs_for_the(&leader, runs[&leader], 10 + round).await;
        let another = move |what: &What| matches!(what, What::Pod(one) if one.labelled && one.token > Some(token));
        let routed_anew = move |what: &What| matches!(what, What::Slice { pods, token: t, .. } if !pods.is_empty() && *t > Some(token));
        match round {
            0 => drop(witness.until("the endpoint to go", from, emptied).await),
            1 => drop(witness.until("the label to go", from, stripped(&leader)).await),
            2 => while site.pair(&site.key("lock")).await.unwrap().modify_index <= token {},
            3 => drop(witness.until("another label", from, another).await),
            4 => drop(witness.until("another endpoint", from, routed_anew).await),
            _ => {
                let clock = site.clock();
                let moment = Duration::from_micros(random.random_range(0..80_000));
                clock.sleep_until(clock.now() + moment).await;
            }
        }
        replica.server.kill().unwrap();
        // While nobody looks, more happens: to whoever may have been elected, or to a bystander.
        if random.random_bool(0.5) {
            let pod = ["a", "b", "c"][random.random_range(0..3)].to_owned();
            *runs.get_mut(&pod).unwrap() += 1;
            cast.runs_for_the(&pod, runs[&pod], 30 + round).await;
        }
        replica = site.start().await;
    }
    let (_, token) = settled(&site, &cast, &runs).await;
    assert!(token > last);
    let pair = site.pair(&site.key("lock")).await.unwrap();
    assert_eq!(pair.modify_index, token);
    witness.catches_up(&site).await;
    witness.assert_orderly();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_of_the_replicas_costs_no_pod_its_tenure() {
    let (site, cast, leader) = Cast::on_stage("killed-pods").await;
    leader.wait_leads().await;
    let standby = site.start().await;
    standby.wait_ready().await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    site.wait("lock", "the routing", |s| condition(s, "RoutingSynced").1 == "Routed").await;
    let witness = Witness::of(&site, "lock", "billing").await;
    let before = (witness.seen(), site.claims.get("lock").await.unwrap().metadata.resource_version);
    leader.server.kill().unwrap();
    standby.wait_leads().await;
    renewals(&standby, 2.0).await;
    assert_eq!(cast.led_by("lock", "a").await, first);
    witness.catches_up(&site).await;
    let after = (witness.seen(), site.claims.get("lock").await.unwrap().metadata.resource_version);
    assert_eq!(after, before, "nothing had changed");
    cast.ended("a").await;
    assert!(cast.led_by("lock", "b").await > first);
    cast.routed("billing", Some("b")).await;
    witness.assert_orderly();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_of_the_replicas_does_no_harm_to_pods_when_it_wakes_up() {
    const FROZEN: Duration = Duration::from_secs(20);
    let (site, cast, sleeper) = Cast::on_stage("frozen-pods").await;
    sleeper.wait_leads().await;
    let other = site.start().await;
    other.wait_ready().await;
    cast.service("billing", json!({})).await;
    for (second, pod) in (1..).zip(["a", "b", "c"]) {
        cast.ready(pod, second).await;
    }
    let mut spec = routed(json!({}));
    spec["onLost"] = json!("DeletePod");
    site.create("lock", spec).await;
    let first = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    let witness = Witness::of(&site, "lock", "billing").await;

    let asleep = site.clock().now();
    // In the middle of a change, as far as that can be told from here.
    cast.ended("a").await;
    sleeper.server.pause().unwrap();
    other.wait_leads().await;
    let second = cast.led_by("lock", "b").await;
    cast.runs_for_the("b", 1, 9).await;
    let third = cast.led_by("lock", "c").await;
    assert!(first < second && second < third);
    cast.routed("billing", Some("c")).await;
    assert!(site.clock().now().since(asleep) < FROZEN, "too slow to be a test of this");
    site.clock().sleep_until(asleep + FROZEN).await;

    witness.catches_up(&site).await;
    let before = witness.seen();
    sleeper.server.resume().unwrap();
    eventually("the sleeper to stand by", || async {
        if sleeper.leads() { Err("it leads") } else { Ok(()) }
    })
    .await;
    renewals(&other, 3.0).await;
    assert_eq!(cast.led_by("lock", "c").await, third);
    // What it had begun to send may arrive now. It gives nobody anything, and whatever it takes
    // away is given back.
    let wears = |wearer: &Wearer| (&*wearer.pod, wearer.token) == ("c", Some(third));
    let rightful = |what: &What| match what {
        What::Pod(wearer) => !wearer.labelled || wears(wearer),
        What::Slice { pods, token, .. } => {
            pods.is_empty() || pods == &["c"] && *token == Some(third)
        }
    };
    assert!(cast.routed("billing", Some("c")).await.is_some());
    witness.catches_up(&site).await;
    let after = witness.seen();
    let since = after.iter().filter(|one| !before.contains(one));
    let wrong: Vec<_> = since.filter(|one| !rightful(&one.what)).collect();
    assert!(wrong.is_empty(), "given after it woke up: {wrong:?}");
    witness.assert_orderly();
    assert_eq!(witness.deleted(), [""; 0]);
    other.server.terminate().unwrap();
    sleeper.wait_leads().await;
    cast.ended("c").await;
    assert!(cast.led_by("lock", "b").await > third);
    witness.catches_up(&site).await;
    witness.assert_orderly();
}

// ---- the API server ----

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_die_around_a_restart_of_the_api_server_are_followed() {
    let cluster = tokio::task::spawn_blocking(ControlPlane::start).await.unwrap().unwrap();
    let site = Site::beside("restarted-pods", &cluster).await;
    let cast = Cast::new(&site).await;
    let replica = site.start().await;
    cast.service("billing", json!({})).await;
    for (second, pod) in (1..).zip(["a", "b", "c"]) {
        cast.ready(pod, second).await;
    }
    site.create("lock", routed(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    let witness = Witness::of(&site, "lock", "billing").await;
    cluster.apiserver().kill().unwrap();
    eventually("the leader to stand by", || async {
        if replica.leads() { Err("it leads") } else { Ok(()) }
    })
    .await;
    cluster.apiserver().start_again().unwrap();
    replica.wait_leads().await;
    assert_eq!(cast.led_by("lock", "a").await, first, "nothing has happened to it");
    cast.routed("billing", Some("a")).await;

    // It goes away in the middle of a change.
    cast.ended("a").await;
    cluster.apiserver().kill().unwrap();
    cluster.apiserver().start_again().unwrap();
    let second = cast.led_by("lock", "b").await;
    assert!(second > first);
    cast.routed("billing", Some("b")).await;
    witness.catches_up(&site).await;
    witness.assert_orderly();
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_die_while_no_watch_is_open_are_followed() {
    let (site, proxy) = proxied("closed-pods").await;
    let cast = Cast::new(&site).await;
    let _replica = site.start().await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({}))).await;
    let mut last = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    let witness = Witness::of(&site, "lock", "billing").await;
    for (round, (from, to)) in (0..).zip([("a", "b"), ("b", "a"), ("a", "b")]) {
        proxy.set(Fault::Cut);
        cast.runs_for_the(from, round / 2 + 1, 10 + round as u32).await;
        proxy.set(Fault::None);
        let token = cast.led_by("lock", to).await;
        assert!(token > last);
        last = token;
        cast.routed("billing", Some(to)).await;
    }
    // A leader that went, with its last words, while nobody looked.
    proxy.set(Fault::Cut);
    cast.delete("b").await;
    cast.ended("b").await;
    cast.remove("b").await;
    proxy.set(Fault::None);
    site.change("lock", json!({ "candidates": { "unreachableAfter": "1s" } })).await;
    assert!(cast.led_by("lock", "a").await > last);
    cast.routed("billing", Some("a")).await;
    witness.catches_up(&site).await;
    witness.assert_orderly();
}

// ---- Consul ----

#[tokio::test(flavor = "multi_thread")]
async fn consul_away_for_longer_than_the_ttl_takes_endpoint_and_label_away_and_no_more() {
    let Scene { site, proxy } = Scene::new("away-pods").await;
    let cast = Cast::new(&site).await;
    let replica = site.start().await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    let mut spec = routed(json!({}));
    spec["session"]["ttl"] = json!("10s");
    site.create("lock", spec).await;
    let first = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    let witness = Witness::of(&site, "lock", "billing").await;
    let from = witness.newest();

    proxy.set(Fault::Blackhole);
    let away = site.clock().now();
    let endpoint = witness.until("the endpoint to go", from, emptied).await;
    let took = site.clock().now().since(away);
    assert!(took < TTL + WRITE, "the endpoint went after {took:?}");
    assert!(took > TTL / 3, "it may be relied on until then: {took:?}");
    let label = witness.until("the label to go", from, stripped("a")).await;
    assert!(endpoint < label);
    let lost = site.wait_phase("lock", Phase::Unknown).await;
    assert_eq!((lost.fencing_token, lost.history[0].reason.as_str()), (None, "Expired"));
    cast.led_by_nobody("lock").await;
    cast.routed("billing", None).await;

    proxy.set(Fault::None);
    let second = cast.led_by("lock", "a").await;
    assert!(second > first, "a is alive, and has been ready for longest");
    cast.routed("billing", Some("a")).await;
    assert_eq!(replica.metric("consul_lock_leader"), Some(1.0), "the same process");
    witness.catches_up(&site).await;
    witness.assert_orderly();
    assert_eq!(witness.deleted(), [""; 0]);
}

#[tokio::test]
async fn a_pod_that_was_asked_for_keeps_what_it_was_handed_though_consul_takes_its_time() {
    let Scene { site, proxy } = Scene::new("slow-handover").await;
    let (cast, _replica) = (Cast::new(&site).await, site.start().await);
    for (pod, second) in [("a", 1), ("b", 2), ("c", 3)] {
        cast.ready(pod, second).await;
    }
    site.create("lock", candidates(json!({}))).await;
    let token = cast.led_by("lock", "a").await;
    // While the key changes hands the claim is looked at again.
    proxy.set(Fault::Delay(Duration::from_millis(300)));
    let asked = json!({ "consullock.dev/handover": format!("{token} c") });
    let patch = Patch::Merge(json!({ "metadata": { "annotations": asked } }));
    site.claims.patch("lock", &PatchParams::default(), &patch).await.unwrap();
    cast.led_by("lock", "c").await;
    let ended: Vec<_> = site.status("lock").await.history;
    let reasons: Vec<_> = ended.iter().map(|one| (&*one.holder, &*one.reason)).collect();
    assert_eq!(reasons, [(&*format!("{}/a", site.namespace), "HandedOver")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pod_whose_tenure_was_lost_is_deleted_once_and_no_other_on_any_change() {
    let Scene { site, proxy } = Scene::new("delete-lost").await;
    let cast = Cast::new(&site).await;
    let _replica = site.start().await;
    cast.service("billing", json!({})).await;
    let priority = |number: u32| json!({ "consullock.dev/priority": number.to_string() });
    cast.with("a", 1, priority(1)).await;
    let mut spec = routed(json!({ "strategy": "Priority", "preempt": true }));
    spec["session"]["ttl"] = json!("10s");
    spec["onLost"] = json!("DeletePod");
    site.create("lock", spec).await;
    let witness = Witness::of(&site, "lock", "billing").await;
    // Ordinary changes delete nobody.
    cast.led_by("lock", "a").await;
    cast.with("b", 2, priority(2)).await;
    cast.led_by("lock", "b").await;
    cast.runs_for_the("b", 1, 3).await;
    let first = cast.led_by("lock", "b").await;
    cast.routed("billing", Some("b")).await;
    witness.catches_up(&site).await;
    assert_eq!(witness.deleted(), [""; 0]);

    proxy.set(Fault::Blackhole);
    let from = witness.newest();
    let gone = witness.until("the endpoint to go", from, emptied).await;
    let deleted = witness.until(
        "b to be deleted",
        from,
        |what| matches!(what, What::Pod(one) if one.pod == "b" && one.deleting),
    );
    assert!(gone < deleted.await);
    cast.led_by_nobody("lock").await;
    proxy.set(Fault::None);
    cast.ended("b").await;
    cast.remove("b").await;
    assert!(cast.led_by("lock", "a").await > first);
    cast.routed("billing", Some("a")).await;
    // Its namesake is not meant, whatever becomes of the lock.
    cast.with("b", 9, priority(3)).await;
    cast.led_by("lock", "b").await;
    for _ in 0..3 {
        site.change("lock", json!({ "paused": true })).await;
        cast.led_by_nobody("lock").await;
        site.wait_phase("lock", Phase::Paused).await;
        site.change("lock", json!({ "paused": false })).await;
        cast.led_by("lock", "b").await;
    }
    cast.routed("billing", Some("b")).await;
    site.delete("lock").await;
    site.gone("lock").await;
    witness.catches_up(&site).await;
    witness.assert_orderly();
    assert_eq!(witness.deleted(), ["b"]);
    assert!(cast.pods.get("b").await.unwrap().metadata.deletion_timestamp.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_tenure_was_lost_while_no_controller_ran_is_deleted() {
    let (site, cast, replica) = Cast::on_stage("lost-unseen").await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    let mut spec = candidates(json!({}));
    spec["onLost"] = json!("DeletePod");
    site.create("lock", spec).await;
    let first = cast.led_by("lock", "a").await;
    let witness = Witness::of(&site, "lock", "billing").await;
    replica.server.kill().unwrap();
    let session = site.pair(&site.key("lock")).await.unwrap().session.unwrap();
    site.consul.destroy_session(&session).await.unwrap();
    let from = witness.newest();
    let _replica = site.start().await;
    let deleted = |what: &What| matches!(what, What::Pod(one) if one.pod == "a" && one.deleting);
    witness.until("a to be deleted", from, deleted).await;
    cast.ended("a").await;
    cast.remove("a").await;
    assert!(cast.led_by("lock", "b").await > first);
    witness.catches_up(&site).await;
    assert_eq!(witness.deleted(), ["a"]);
}

#[tokio::test]
async fn a_lost_leader_whose_name_another_pod_has_by_now_does_not_stop_the_claim() {
    let (site, cast, _replica) = Cast::on_stage("lost-namesake").await;
    cast.ready("a-0", 1).await;
    let mut spec = candidates(json!({ "unreachableAfter": "3s" }));
    spec["onLost"] = json!("DeletePod");
    site.create("lock", spec).await;
    let first = cast.led_by("lock", "a-0").await;
    cast.remove("a-0").await;
    cast.ready("a-0", 2).await;
    let namesake = cast.pods.get("a-0").await.unwrap().metadata.uid;
    let session = site.pair(&site.key("lock")).await.unwrap().session.unwrap();
    site.consul.destroy_session(&session).await.unwrap();
    assert!(cast.led_by("lock", "a-0").await > first);
    let pod = cast.pods.get("a-0").await.unwrap();
    assert_eq!(pod.metadata.uid, namesake, "who lost nothing is not deleted");
    assert_eq!(pod.metadata.deletion_timestamp, None);
}
