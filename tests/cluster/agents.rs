//! Agents beside apps in real pods: whatever ends, of an app or of a sidecar or of the network, no
//! two apps work at once, and none longer than its lock may be relied on.

use std::{net::Ipv4Addr, time::Duration};

use consul_lock::clock::Clock;
use serde_json::json;
use testbed::{Stopwatch, say, wait_for};

use crate::{
    bed::PATIENCE,
    payroll::{Payroll, Sidecar, Wishes, Work, kill},
};

/// Of the example. What is valid for longer than this was renewed just now.
const TTL: Duration = Duration::from_secs(15);

/// Far less than the lock-delay of the example, which alone would pass after an unclean end.
const AT_ONCE: Duration = Duration::from_secs(10);

fn now() -> Duration {
    Clock::boot().now().since_boot()
}

/// Says how long nobody worked between two.
fn say_gap(what: &str, payroll: &Payroll, next: &Work) -> Duration {
    let works = payroll.works();
    let first = works.iter().find(|work| work.is_of_run(next)).unwrap();
    let before = works.iter().rfind(|work| work.token < next.token).unwrap();
    let gap = first.at.checked_sub(before.at);
    let gap = gap.unwrap_or_else(|| panic!("{first:?} while {before:?} worked on"));
    let (gone, come) = (&before.pod, &next.pod);
    say(format!("{what}: nobody worked for {:.2} s, {gone} then {come}", gap.as_secs_f32()));
    gap
}

/// Waits until the controller knows who works.
#[track_caller]
fn wait_until_followed(payroll: &Payroll, work: &Work) {
    let told = || {
        let status = payroll.status();
        let token = status["fencingToken"] == json!(work.token.to_string());
        (token && status["holder"]["pod"] == json!(work.pod)).then_some(())
    };
    wait_for("the status", PATIENCE, told)
        .unwrap_or_else(|late| panic!("{late}: {work:?} and {:#}", payroll.status()));
    let labels = || {
        let labels = payroll.pod(&work.pod)["metadata"]["labels"].clone();
        (labels["consullock.dev/payroll"] == json!("holder")).then_some(())
    };
    wait_for("the label", PATIENCE, labels).unwrap();
}

#[test]
fn app_whose_container_is_killed_is_followed_at_once_and_what_is_started_in_its_place_has_to_wait()
{
    let Some((payroll, first)) = Payroll::start("app-killed", Wishes::default()) else { return };
    wait_until_followed(&payroll, &first);
    payroll.kill_app(&first.pod);
    let second = payroll.wait_for_next(&first);
    assert_ne!(second.pod, first.pod);
    assert!(say_gap("an app was killed", &payroll, &second) < AT_ONCE);
    wait_until_followed(&payroll, &second);

    // Nobody but the agent sees to it.
    let both = || (payroll.contenders().len() == 2).then_some(());
    wait_for("the first pod to contend again", PATIENCE, both).unwrap();
    payroll.controller.pause();
    payroll.kill_app(&second.pod);
    let third = payroll.wait_for_next(&second);
    let gap = say_gap("an app was killed while no controller ran", &payroll, &third);
    assert!(gap < AT_ONCE);
    payroll.controller.resume();
    wait_until_followed(&payroll, &third);
    payroll.wait_for_renewal(&third, third.valid_until);
    payroll.check();
}

#[test]
fn sidecar_of_which_any_part_is_killed_is_back_before_anybody_works_beside_its_app() {
    // The same user in both containers, without any capability.
    let user = || json!({"runAsUser": 1000, "capabilities": {"drop": ["ALL"]}});
    let wishes = Wishes { agents: Some(user()), apps: user(), ..Wishes::default() };
    let Some((payroll, first)) = Payroll::start("sidecar-killed", wishes) else { return };
    let restarts = |pod: &str| {
        payroll.pod(pod)["status"]["initContainerStatuses"][0]["restartCount"].as_u64().unwrap()
    };

    // Its guard starts another agent, which goes on.
    let before = Sidecar::wait(&payroll, &first.pod, |_| true);
    kill(before.agent);
    let second = Sidecar::wait(&payroll, &first.pod, |now| now.agent != before.agent);
    assert_eq!(second.guard, before.guard);
    payroll.wait_for_renewal(&first, now() + TTL);
    assert_eq!(restarts(&first.pod), 0);

    // The kubelet starts another container, whose agent goes on. In this order: an agent whose guard
    // is gone ends the app.
    kill(second.agent);
    kill(second.guard);
    Sidecar::wait(&payroll, &first.pod, |now| now.guard != second.guard);
    payroll.wait_for_renewal(&first, now() + TTL);
    assert_eq!(restarts(&first.pod), 1);

    // With a guard that is killed the runtime ends the whole container.
    payroll.kill_app(&first.pod);
    let next = payroll.wait_for_next(&first);
    assert_ne!(next.pod, first.pod);
    let before = Sidecar::wait(&payroll, &next.pod, |_| true);
    let watch = Stopwatch::start();
    kill(before.guard);
    Sidecar::wait(&payroll, &next.pod, |now| now.guard != before.guard);
    let again = watch.elapsed().as_secs_f32();
    let beyond = now() + TTL;
    let last = payroll.wait("renewals", |last| last.valid_until > beyond);
    // A runtime that takes its time leaves the agent enough of it to end the app.
    let went_on = if last.is_of_run(&next) { "its app went on" } else { "another app works" };
    say(format!("a guard was killed: another was there after {again:.1} s, and {went_on}"));
    payroll.check();
}

#[test]
fn pod_that_is_deleted_gives_the_lock_up_when_its_app_has_ended_and_another_has_it_at_once() {
    // To another user than root the capability is of no use, which is said in time. Here it takes the
    // kubelet alone.
    let user = |user: u32| json!({"runAsUser": user, "capabilities": {"add": ["KILL"]}});
    let (agents, apps) = (Some(user(1000)), user(2000));
    let wishes = Wishes { farewell: Some("2s"), agents, apps, ..Wishes::default() };
    let Some((payroll, first)) = Payroll::start("pod-deleted", wishes) else { return };
    wait_for("a word about the missing right", PATIENCE, || {
        let said = payroll.space.kubectl(&["logs", &first.pod, "--container=lock"]);
        said.contains("the app may not be signalled").then_some(())
    })
    .unwrap();
    let uid = payroll.pod(&first.pod)["metadata"]["uid"].as_str().unwrap().to_owned();
    let told = now();
    payroll.space.kubectl(&["delete", "pod", &first.pod, "--wait=false"]);
    let second = payroll.wait_for_next(&first);
    assert!(say_gap("a pod was deleted", &payroll, &second) < AT_ONCE);
    let works = payroll.works();
    let last = works.iter().rfind(|work| work.is_of_run(&first)).unwrap();
    assert!(last.at > told + Duration::from_secs(2), "its app was let finish: {last:?}");
    // Released and destroyed, not left to expire.
    let pod = format!("pod/{}", first.pod);
    payroll.space.kubectl(&["wait", "--for=delete", &pod, "--timeout=60s"]);
    assert!(!payroll.contenders().contains(&uid));
    wait_until_followed(&payroll, &second);
    payroll.check();
}

#[test]
fn app_of_a_pod_that_is_cut_off_has_ended_before_its_lock_does_and_before_the_next_one_begins() {
    const SHORT: Duration = Duration::from_secs(10);
    // Another user's app, which does not listen to anybody.
    let apps = json!({"runAsUser": 1000, "capabilities": {"drop": ["ALL"]}});
    let claim = json!({"session": {"ttl": "10s", "lockDelay": "0s"}});
    let wishes = Wishes { farewell: None, claim, apps, ..Wishes::default() };
    let Some((payroll, first)) = Payroll::start("pod-cut", wishes) else { return };
    let pod: Ipv4Addr =
        payroll.pod(&first.pod)["status"]["podIP"].as_str().unwrap().parse().unwrap();
    let _cut = payroll.space.cluster.cut_pod(pod).unwrap();
    let cut = now();
    let second = payroll.wait_for_next(&first);
    assert_ne!(second.pod, first.pod);
    let works = payroll.works();
    let last = works.iter().rfind(|work| work.is_of_run(&first)).unwrap();
    let (worked, left) = (last.at - cut, last.valid_until.saturating_sub(last.at));
    say(format!(
        "cut off, its app worked on for {:.1} s, until {:.1} s before its lock ended",
        worked.as_secs_f32(),
        left.as_secs_f32()
    ));
    // No renewal was sent later.
    assert!(worked < SHORT, "{worked:?}");
    assert!(worked > SHORT / 5, "packets vanish, nobody refuses: {worked:?}");
    say_gap("a pod was cut off", &payroll, &second);
    payroll.check();
}
