//! `consul-lock agent` with a real Consul: who is told what, and what ends the app.

use std::time::Duration;

use consul_lock::clock::Clock;
use rustix::process::Signal;
use serde_json::Value;
use testbed::{Fault, Proxy, wait_for};

use crate::{
    fixtures::{PATIENCE, shared_consul},
    run::scene::{all_gone, is_alive, kill},
};

mod claims;
mod policies;
pub(crate) mod scene;

use scene::{App, Scene, token, valid_until};

/// A TTL that leaves room for a few renewals, a grace, and little patience.
const QUICK: [&str; 3] = ["--ttl=4s", "--grace=1s", "--lock-delay=0s"];

/// A pod, so that an agent that is started again knows itself.
const POD: [&str; 3] = ["--pod-name=pod-1", "--pod-namespace=shop", "--cluster-name=eu-1"];

const DEAF: &str = "trap '' TERM";

fn flags<'a>(parts: &[&[&'a str]]) -> Vec<&'a str> {
    parts.concat()
}

// ---- who is told what ----

#[test]
fn whoever_asks_hears_who_leads_with_which_token_and_for_how_long() {
    let scene = Scene::new("asked");
    let file = format!("--file={}", scene.folder.path().join("leader.json").display());
    let lasting = ["--lock-delay=60s"];
    let mut first = scene.start(&flags(&[&lasting, &["--name=first", &file]]));
    let told = first.leads();
    let now = Clock::boot().now();
    assert_eq!(token(&told), scene.pair().unwrap()["ModifyIndex"].as_u64().unwrap());
    assert_eq!(told["session"].as_str(), scene.holder().as_deref());
    assert!(told["holder"].as_str().unwrap().ends_with("/first"), "{told}");
    assert!(told["remaining_ms"].as_u64().unwrap() <= 15_000, "{told}");
    assert!(valid_until(&told) > now && valid_until(&told) <= now + Duration::from_secs(15));
    assert_eq!(first.get("/token").unwrap(), (200, format!("{}\n", token(&told))));
    assert_eq!(first.get("/healthz").unwrap(), (200, "ok\n".to_owned()));
    assert!(first.get("/metrics").unwrap().1.contains("consul_lock_acquisitions_total 1"));
    assert_eq!(first.get("/").unwrap().0, 404);
    let written: Value = serde_json::from_str(&scene.file("leader.json")).unwrap();
    assert_eq!((&written["leader"], &written["token"]), (&true.into(), &told["token"]));

    let mut second = scene.start(&flags(&[&lasting, &["--name=second"]]));
    let waits = second.stands_so("waiting");
    let holder = second.wait("the holder's name", |told| told["holder"].is_string());
    assert_eq!((&waits["leader"], &holder["holder"]), (&false.into(), &told["holder"]));
    assert_eq!((&waits["token"], &waits["remaining_ms"]), (&Value::Null, &0.into()));
    assert_eq!(second.get("/token").unwrap().0, 503);
    assert_eq!(second.get("/healthz").unwrap().0, 200, "it lives, whoever leads");

    // Released, then destroyed: no lock-delay keeps the next one away.
    first.stop();
    assert!(token(&second.leads()) > token(&told));
    let written: Value = serde_json::from_str(&scene.file("leader.json")).unwrap();
    assert_eq!(written["leader"], false);
    second.stop();
    assert_eq!(scene.holder(), None);
}

#[test]
fn events_tell_of_every_change() {
    let scene = Scene::new("events");
    let mut agent = scene.start(&flags(&[&QUICK, &["--log=info"]]));
    agent.leads();
    let mut events = agent.listen();
    let (kind, first) = events.next();
    assert_eq!((kind.as_str(), &first["leader"]), ("leader", &true.into()));
    let (kind, renewed) = events.next();
    assert_eq!((kind.as_str(), token(&renewed)), ("renewed", token(&first)));
    assert!(valid_until(&renewed) > valid_until(&first));
    scene.end(first["session"].as_str().unwrap());
    let mut lost = false;
    loop {
        let (kind, told) = events.next();
        match kind.as_str() {
            "follower" => lost = true,
            "leader" => {
                assert!(lost && token(&told) > token(&first), "{told}");
                break;
            }
            kind => assert!(!lost && kind == "renewed", "{kind} {told}"),
        }
    }
    agent.stop();
}

#[test]
fn hooks_are_told_and_the_lock_is_not_released_before_they_have_ended() {
    let scene = Scene::new("hooks");
    let acquire = "--on-acquire=echo $CONSUL_LOCK_HELD $CONSUL_LOCK_TOKEN > $F/acquired";
    let loss = "--on-loss=echo $CONSUL_LOCK_HELD $CONSUL_LOCK_TOKEN > $F/lost; \
                until [ -e $F/go ]; do sleep 0.02; done";
    let mut agent = scene.start(&[acquire, loss, "--lock-delay=60s"]);
    let told = agent.leads();
    assert_eq!(scene.file("acquired"), format!("true {}\n", token(&told)));
    agent.send(Signal::TERM);
    assert_eq!(scene.file("lost"), format!("false {}\n", token(&told)));
    agent.stands_so("stopping");
    assert_eq!(scene.holder().as_deref(), told["session"].as_str(), "the work has not stopped");
    scene.folder.write("go", "").unwrap();
    assert_eq!(agent.ended(), 0, "{}", agent.said());
    assert_eq!(scene.holder(), None);
}

#[test]
fn hold_ends_after_as_long_as_it_may_and_another_begins() {
    let scene = Scene::new("max-hold");
    let process = format!("--process={}", scene.app);
    let mut agent = scene.start(&flags(&[&QUICK, &["--max-hold=1s", &process]]));
    let first = agent.leads();
    let app = scene.app("");
    all_gone(&[app.pid()]);
    let next = agent
        .wait("another tenure", |told| told["leader"] == true && told["token"] != first["token"]);
    assert!(token(&next) > token(&first));
    agent.stop();
}

// ---- what ends the app ----

/// Waits until nobody leads any more. Returns the last *valid until* that was told before.
#[track_caller]
fn last_valid_until(scene: &Scene, app: &App) -> consul_lock::clock::Instant {
    let mut last = None;
    let path = scene.folder.path().join("leader.json");
    wait_for("the app to be gone", PATIENCE, || {
        let told: Value = serde_json::from_str(&std::fs::read_to_string(&path).ok()?).unwrap();
        if told["leader"] == true {
            last = Some(valid_until(&told));
        }
        (!app.is_alive()).then_some(())
    })
    .unwrap();
    last.unwrap()
}

#[test]
fn silence_ends_the_work_before_valid_until_and_everybody_hears_of_it() {
    let proxy = Proxy::tcp(shared_consul().http()).unwrap();
    let scene = Scene::through("silence", &proxy.address().to_string());
    let file = format!("--file={}", scene.folder.path().join("leader.json").display());
    let process = format!("--process={}", scene.app);
    let loss = "--on-loss=cut -d' ' -f1 /proc/uptime > $F/lost";
    let terms = ["--ttl=10s", "--grace=1s", "--lock-delay=0s"];
    let mut agent = scene.start(&flags(&[&terms, &[&file, &process, loss]]));
    let first = agent.leads();
    let app = scene.app(DEAF);
    let mut events = agent.listen();
    proxy.set(Fault::Blackhole);
    let until = last_valid_until(&scene, &app);
    let now = Clock::boot().now();
    assert!(now < until, "the app outlived the lock by {:?}", now.since(until));
    assert_eq!(agent.stands().unwrap()["leader"], false);
    while events.next().0 != "follower" {}
    let written: Value = serde_json::from_str(&scene.file("leader.json")).unwrap();
    assert_eq!(written["leader"], false);
    let told: f64 = scene.file("lost").trim().parse().unwrap();
    assert!(Duration::from_secs_f64(told) < until.since_boot(), "the hook was told at {told}");
    assert!(Clock::boot().now() < until, "somebody heard of it too late");
    proxy.set(Fault::None);
    let next = agent.leads();
    assert!(token(&next) > token(&first));
    agent.stop();
}

#[test]
fn app_of_a_frozen_agent_is_ended_by_its_guard_and_an_app_that_waits_is_not() {
    let scene = Scene::new("frozen");
    let process = format!("--process={}", scene.app);
    let terms = ["--ttl=10s", "--grace=1s", "--lock-delay=0s"];
    let mut agent = scene.start(&flags(&[&terms, &[&process]]));
    let first = agent.leads();
    let app = scene.app(DEAF);
    kill(agent.guarded(), Signal::STOP);
    // It may have renewed since it was asked.
    let latest = Clock::boot().now() + Duration::from_secs(10);
    let gone = all_gone(&[app.pid()]);
    assert!(gone < latest, "{:?} too late", gone.since(latest));
    let idle = || agent.said().contains("nothing is left of the app").then_some(());
    wait_for("the guard to have done", PATIENCE, idle).unwrap();
    let next_app = scene.app(DEAF);
    kill(agent.guarded(), Signal::CONT);
    let next = agent
        .wait("another tenure", |told| told["leader"] == true && told["token"] != first["token"]);
    assert!(token(&next) > token(&first));
    assert!(next_app.is_alive(), "it has waited for its turn, and has it now");
    agent.stop();
    all_gone(&[next_app.pid()]);
}

#[test]
fn agent_that_is_killed_is_started_again_and_goes_on_with_its_tenure() {
    let scene = Scene::new("killed");
    let process = format!("--process={}", scene.app);
    let uid = format!("--pod-uid=uid-{}", scene.app);
    let mut agent = scene.start(&flags(&[&POD, &[&process, &uid]]));
    let first = agent.leads();
    let app = scene.app("");
    let told_in_key = || {
        let value = scene.pair()?["Value"].as_str().map(decoded)?;
        (value["token"] == first["token"]).then_some(value)
    };
    let value = wait_for("the token in the key", PATIENCE, told_in_key).unwrap();
    assert_eq!((&value["holder"], &value["pod"]), (&"shop/pod-1".into(), &"pod-1".into()));
    assert_eq!((&value["cluster"], &value["uid"]), (&"eu-1".into(), &uid[10..].into()));
    let killed = agent.guarded();
    kill(killed, Signal::KILL);
    let again = wait_for("another agent", PATIENCE, || {
        let told = agent.stands().filter(|_| !is_alive(killed))?;
        (told["leader"] == true).then_some(told)
    });
    let again = again.unwrap();
    assert_eq!((token(&again), &again["session"]), (token(&first), &first["session"]));
    // Longer than the first agent's last renewal was good for.
    agent.wait("renewals", |told| {
        told["leader"] == true && valid_until(told) > valid_until(&first) + Duration::from_secs(4)
    });
    assert!(app.is_alive());
    agent.stop();
    all_gone(&[app.pid()]);
}

fn decoded(base64: &str) -> Value {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn whole_container_that_is_started_again_in_time_goes_on_and_too_late_ends_the_app() {
    let scene = Scene::new("container");
    let process = format!("--process={}", scene.app);
    let uid = format!("--pod-uid=uid-{}", scene.app);
    let start = || scene.start(&flags(&[&["--lock-delay=0s"], &POD, &[&process, &uid]]));
    let die = |agent: &mut scene::Agent| {
        // In this order: an agent whose guard is gone would end the app.
        let guarded = agent.guarded();
        kill(guarded, Signal::KILL);
        kill(agent.pid(), Signal::KILL);
        all_gone(&[guarded]);
        agent.ended();
    };
    let mut agent = start();
    let first = agent.leads();
    let written = || scene.pair().unwrap()["ModifyIndex"].as_u64() != Some(token(&first));
    wait_for("the token in the key", PATIENCE, || written().then_some(())).unwrap();
    let app = scene.app("");
    die(&mut agent);
    let mut agent = start();
    assert_eq!(token(&agent.leads()), token(&first));
    assert!(app.is_alive());

    die(&mut agent);
    scene.end(first["session"].as_str().unwrap());
    let mut other = scene.start(&["--name=other"]);
    let theirs = other.leads();
    let mut agent = start();
    agent.stands_so("waiting");
    all_gone(&[app.pid()]);
    other.stop();
    assert!(token(&agent.leads()) > token(&theirs));
    agent.stop();
}

#[test]
fn agent_that_is_told_to_end_while_it_gives_the_lock_up_ends_when_it_has() {
    let proxy = Proxy::tcp(shared_consul().http()).unwrap();
    let scene = Scene::through("told", &proxy.address().to_string());
    let mut agent = scene.start(&QUICK);
    let told = agent.leads();
    proxy.set(Fault::Blackhole);
    agent.stands_so("stopping");
    let giving_up = || agent.said().contains("the work has to stop").then_some(());
    wait_for("the agent to give the lock up", PATIENCE, giving_up).unwrap();
    agent.send(Signal::TERM);
    proxy.set(Fault::None);
    assert_eq!(agent.ended(), 0, "{}", agent.said());
    assert_ne!(scene.holder().as_deref(), told["session"].as_str());
}

#[test]
fn agent_that_finds_its_session_again_but_no_app_begins_another_tenure() {
    let scene = Scene::new("no-app");
    let process = format!("--process={}", scene.app);
    let uid = format!("--pod-uid=uid-{}", scene.app);
    let mut agent = scene.start(&flags(&[&["--lock-delay=60s"], &POD, &[&process, &uid]]));
    let first = agent.leads();
    let written = || scene.pair().unwrap()["ModifyIndex"].as_u64() != Some(token(&first));
    wait_for("the token in the key", PATIENCE, || written().then_some(())).unwrap();
    // Whoever worked may have ended meanwhile, and whoever comes next was not told anything.
    kill(agent.guarded(), Signal::KILL);
    let next = agent
        .wait("another tenure", |told| told["leader"] == true && told["token"] != first["token"]);
    assert!(token(&next) > token(&first), "and there was no lock-delay");
    assert_ne!(next["session"], first["session"]);
    agent.stop();
}

#[test]
fn agent_whose_guard_is_killed_ends_the_app_and_gives_the_lock_up() {
    let scene = Scene::new("unguarded");
    let process = format!("--process={}", scene.app);
    let mut agent = scene.start(&flags(&[&["--grace=1s", "--lock-delay=60s"], &[&process]]));
    agent.leads();
    let app = scene.app(DEAF);
    let guarded = agent.guarded();
    agent.send(Signal::KILL);
    all_gone(&[app.pid()]);
    all_gone(&[guarded]);
    assert_eq!(scene.holder(), None, "{}", agent.said());
    agent.ended();
}

#[test]
fn agent_whose_guard_is_stopped_ends_the_app_in_time() {
    let proxy = Proxy::tcp(shared_consul().http()).unwrap();
    let scene = Scene::through("stopped", &proxy.address().to_string());
    let file = format!("--file={}", scene.folder.path().join("leader.json").display());
    let process = format!("--process={}", scene.app);
    let agent = scene.start(&["--ttl=6s", "--grace=1s", "--lock-delay=0s", &process, &file]);
    agent.leads();
    let app = scene.app(DEAF);
    agent.send(Signal::STOP);
    proxy.set(Fault::Blackhole);
    let until = last_valid_until(&scene, &app);
    let now = Clock::boot().now();
    assert!(now < until, "the app outlived the lock by {:?}", now.since(until));
    agent.send(Signal::KILL);
}

#[test]
fn app_is_told_by_the_signal_first_and_the_lock_is_released_after_its_end() {
    let scene = Scene::new("signal");
    let process = format!("--process={}", scene.app);
    let mut agent = scene.start(&["--signal=USR1", "--lock-delay=60s", &process]);
    let told = agent.leads();
    let app =
        scene.app("trap 'echo told > $F/told; until [ -e $F/go ]; do sleep 0.02; done; exit' USR1");
    agent.send(Signal::TERM);
    assert_eq!(scene.file("told"), "told\n");
    assert_eq!(scene.holder().as_deref(), told["session"].as_str(), "the app has not ended");
    scene.folder.write("go", "").unwrap();
    assert_eq!(agent.ended(), 0, "{}", agent.said());
    assert!(!app.is_alive());
    assert_eq!(scene.holder(), None);
}

#[test]
fn consul_lock_and_an_agent_take_turns() {
    let name = crate::fixtures::unique("stranger");
    let scene = Scene { key: format!("agent/{name}/.lock"), ..Scene::new("stranger") };
    let mut agent = scene.start(&["--lock-delay=60s"]);
    let first = agent.leads();
    let script = format!(
        "touch {0}/stranger; until [ -e {0}/go ]; do sleep 0.02; done",
        scene.folder.path().display()
    );
    let prefix = format!("agent/{name}");
    let mut stranger = shared_consul().cli(["lock", "-name=vm-17", &prefix, &script]).unwrap();
    let mut stranger = testbed::reaper::spawn(&mut stranger).unwrap();
    agent.stop();
    wait_for("the stranger's turn", PATIENCE, || scene.has("stranger").then_some(())).unwrap();
    let mut agent = scene.start(&["--lock-delay=60s"]);
    let waits = agent.wait("the stranger's name", |told| told["holder"].is_string());
    assert!(waits["holder"].as_str().unwrap().starts_with("vm-17 on "), "{waits}");
    scene.folder.write("go", "").unwrap();
    assert!(token(&agent.leads()) > token(&first));
    agent.stop();
    stranger.wait().unwrap();
    testbed::reaper::forget_process(stranger.id());
}
