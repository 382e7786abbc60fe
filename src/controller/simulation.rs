//! The proof on the cluster's side: the real [`Controller`] with real keepers against an API server
//! and a Consul in memory, in paused time. Watches are late, reordered between kinds, cut, and miss
//! events until they list anew; requests and replies are lost, writes land up to 20 s after their
//! sender has given up; others write first; the API server and Consul go away; the controller
//! crashes and another one adopts what the status records, or it loses the lead and goes on with
//! caches that lag behind. Meanwhile pods come, fare well or badly, restart, are deleted and go,
//! nodes with them, and a user pauses the claim.
//!
//! Judged at every write, as it lands ([`world`]): there is never a second endpoint; an endpoint and
//! a label carry the token of a tenure that Consul granted for that very pod, and tokens in slices
//! never fall; an endpoint is sent only while its tenure may be relied on, and never lands after the
//! tenure was given up; the key moves in order only when endpoint and label of its last leader are
//! gone; a pod is deleted only if its tenure was lost. Afterwards, with the faults over, everything
//! is as a fresh controller would have it, and nothing is written any more.
//!
//! A seed determines a run; a failing seed is printed, and what it found becomes a test of the part
//! that was wrong, for with the next change the seed means another run. What the fake API server
//! does, the real one does: `tests/servers/api_contract.rs`.
//!
//! # Not covered
//! Several claims, several clusters, and two replicas that both believe to lead: the Lease is the
//! business of `replicas`. An order that a dead controller gave Consul, and that arrives when another
//! one acts already, counts as fate; so does what becomes of a tenure that it began and did not come
//! to record.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use serde_json::{Value, json};
use testbed::fake_api::{FakeApi, Target};

use super::*;
use crate::{
    consul::fake::FakeConsul,
    election::{label, relieved_annotation},
    keeper::wire::faulty::{FaultyLine, Random, chance, span},
};

mod cast;
mod line;
mod network;
mod process;
mod verdict;
mod world;

use cast::Cast;
use line::Line;
use network::Network;
use process::Process;
use world::{Seen, World};

const NAMESPACE: &str = "shop";
const CLAIM: &str = "lock";
const SERVICE: &str = "billing";
const KEY: &str = "consul-lock/shop/lock";

/// How long faults go on, how long everybody has afterwards, and how long nothing may be written
/// then.
const TROUBLED: Duration = Duration::from_secs(120);
const SETTLING: Duration = Duration::from_secs(300);
const CALM: Duration = Duration::from_secs(120);
/// In every so manieth run nothing may be written for much longer.
const LONG_CALM: (u64, Duration) = (50, Duration::from_secs(3 * 3600));

fn pick(random: &Random, count: usize) -> usize {
    random.lock().random_range(0..count)
}

fn name_of(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn wall(clock: &Clock) -> String {
    let now = clock.wall().as_second();
    jiff::Timestamp::from_second(now).map(|now| now.to_string()).unwrap_or_default()
}

/// What a run is to be like; mostly which safety is taken away.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    /// What happens is written down and printed.
    told: bool,
    /// Consul ends sessions at a tenth of the time that it grants.
    hasty_consul: bool,
    /// To an order that takes an endpoint or a label away the API server says yes, and does nothing.
    deaf_to_retreats: bool,
    /// A slice that is empty already keeps its version when it is emptied, and a label lands on any
    /// version of its pod.
    ignores_versions: bool,
    /// Every endpoint takes long to arrive.
    delays_endpoints: bool,
    /// Every label does.
    delays_labels: bool,
    /// An endpoint arrives as two.
    doubles_endpoints: bool,
    /// Whoever loses its label is deleted.
    deletes_leaders: bool,
    /// From some time on no watch tells anything of pods, nor that it does not.
    silences_pods: bool,
    /// What is written to the claim is never answered.
    swallows_claims: bool,
}

impl Kind {
    /// Whether a write is answered without being carried out.
    fn forges(self, write: Write, content: &mut Value) -> bool {
        if self.ignores_versions && write == Write::Retreat {
            let bumps = ["consullock.dev/emptied-at", &relieved_annotation(CLAIM)];
            if let Some(annotations) = content["metadata"]["annotations"].as_object_mut() {
                annotations.retain(|name, _| !bumps.contains(&&**name));
            }
        }
        if self.ignores_versions && write == Write::Advance && content["kind"].is_null() {
            let metadata = content["metadata"].as_object_mut();
            metadata.and_then(|fields| fields.remove("resourceVersion"));
        }
        if self.doubles_endpoints && write == Write::Advance {
            let endpoints = content.get_mut("endpoints").and_then(Value::as_array_mut);
            endpoints.into_iter().for_each(|all| all.extend_from_within(..));
        }
        self.deaf_to_retreats && write == Write::Retreat
    }

    /// Whether a write takes long to arrive.
    fn delays(self, write: Write, target: &Target) -> bool {
        let delays_it = match &*target.plural {
            "pods" => self.delays_labels,
            _ => self.delays_endpoints,
        };
        delays_it && write == Write::Advance
    }
}

/// What a write of the controller is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    /// It gives a pod an endpoint or a label.
    Advance,
    /// It takes an endpoint or a label away.
    Retreat,
    Other,
}

impl Write {
    fn of(method: &str, target: &Target, content: &Value) -> Write {
        let gives = match &*target.plural {
            "endpointslices" => content["endpoints"].as_array().is_some_and(|all| !all.is_empty()),
            "pods" => !content["metadata"]["labels"][label(CLAIM)].is_null(),
            _ => return Write::Other,
        };
        match gives {
            true => Write::Advance,
            false if method == "PATCH" => Write::Retreat,
            false => Write::Other,
        }
    }
}

/// What a run came to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// What was not to happen, the first of it.
    broken: Option<String>,
    /// How the end differs from what it should be.
    unsettled: Option<String>,
    seen: Seen,
}

/// The claim's spec, and the TTL in it.
fn spec(random: &Random) -> (Value, Duration) {
    let either = |one: Value, probability: f64| match chance(random, probability) {
        true => one,
        false => Value::Null,
    };
    let ttl = span(random, 10..20).as_millis() as u64;
    let mut spec = json!({
        "candidates": {
            "selector": { "matchLabels": { "app": "billing" } },
            "preempt": chance(random, 0.3),
            "unreadyAfter": either(json!("5s"), 0.3),
            "unreachableAfter": (["5s", "30s", "never"][pick(random, 3)]),
        },
        "routing": { "service": SERVICE },
        "session": {
            "ttl": format!("{ttl}s"),
            "lockDelay": format!("{}s", pick(random, 5)),
            "behavior": if chance(random, 0.3) { "Delete" } else { "Release" },
        },
        "acquire": either(json!({ "maxHold": "20s" }), 0.15),
        "onLost": if chance(random, 0.3) { "DeletePod" } else { "Unlabel" },
    });
    let fields = spec.as_object_mut().expect("just made one");
    fields.retain(|_, value| !value.is_null());
    let candidates = fields["candidates"].as_object_mut().expect("just made one");
    candidates.retain(|_, value| !value.is_null());
    (spec, Duration::from_secs(ttl))
}

/// One run.
fn run(seed: u64, kind: Kind) -> Outcome {
    in_paused_time(simulate(seed, kind))
}

fn in_paused_time<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, story)
}

/// A world with the claim and a controller that is about to start.
fn stage(seed: u64, kind: Kind) -> (Random, Cast, Process) {
    let clock = Clock::simulated();
    let random: Random = Arc::new(Mutex::new(SmallRng::seed_from_u64(seed)));
    let consul = FakeConsul::new(clock.clone());
    consul.set_session_ttl_min(Duration::from_millis(100));
    let expiry = Arc::clone(&random);
    consul.set_expiry(move || expiry.lock().random_range(1.0..=2.0));
    let times = clock.clone();
    let api = FakeApi::new(move || wall(&times));
    let world = Arc::new(Mutex::new(World::new(api, consul, clock.clone())));
    if kind.told {
        world.lock().diary = Some(Vec::new());
    }
    let (spec, ttl) = spec(&random);
    let cast = Cast::new(&world, &random, &spec);
    let network = Network::new(clock.clone(), Arc::clone(&random), Arc::clone(&world), kind);
    let ttl_factor = if kind.hasty_consul { 0.1 } else { 1.0 };
    let faulty = FaultyLine::new(&clock, &random, ttl_factor);
    let line = Line { faulty, world: Arc::clone(&world), ttl };
    let process = Process {
        next: clock.now(),
        clock,
        random: Arc::clone(&random),
        world,
        network,
        line,
        leads: Arc::default(),
        controller: None,
        watching: None,
        leading: None,
    };
    (random, cast, process)
}

async fn simulate(seed: u64, kind: Kind) -> Outcome {
    let (random, mut cast, mut process) = stage(seed, kind);
    let (clock, world) = (process.clock.clone(), Arc::clone(&process.world));
    let end_of_trouble = clock.now() + TROUBLED;
    while clock.now() < end_of_trouble && world.lock().broken.is_none() {
        process.tick();
        clock.sleep_until(clock.now() + span(&random, 100..3_000)).await;
        cast.tick();
        cast.strike();
        if chance(&random, 0.5) {
            process.strike();
        }
        process.network.changed.notify_waiters();
    }
    process.heal();
    cast.heal();
    let unsettled = settle(seed, &mut process).await.err();
    let mut world = world.lock();
    for line in world.diary.take().into_iter().flatten() {
        println!("{line}");
    }
    Outcome { broken: world.broken.clone(), unsettled, seen: world.seen }
}

/// Waits until everything is as it should be, and then, a new process included, that nothing is
/// written any more.
async fn settle(seed: u64, process: &mut Process) -> Result<(), String> {
    let clock = process.clock.clone();
    let end = clock.now() + SETTLING;
    process.tick();
    let (mut written, mut quiet) = (0, 0);
    loop {
        clock.sleep_until(clock.now() + Duration::from_secs(5)).await;
        process.network.changed.notify_waiters();
        let (verdict, version) = {
            let world = process.world.lock();
            (verdict::settled(&world), world.api.version())
        };
        // What was sent in trouble is under way for a while yet.
        quiet = if verdict.is_ok() && version == written { quiet + 1 } else { 0 };
        if quiet == 10 {
            break;
        }
        written = version;
        if clock.now() >= end || process.world.lock().broken.is_some() {
            return verdict.and(Err("writes go on".to_owned()));
        }
    }
    let long = seed.is_multiple_of(LONG_CALM.0);
    let spans = [CALM / 2, if long { LONG_CALM.1 } else { CALM / 2 }];
    for (at, span) in spans.into_iter().enumerate() {
        if at == 1 {
            process.crash(Duration::ZERO);
            process.tick();
        }
        clock.sleep_until(clock.now() + span).await;
        let world = process.world.lock();
        verdict::settled(&world)?;
        if world.api.version() != written {
            return Err(format!("something is written within {span:?} of calm"));
        }
    }
    Ok(())
}

/// Runs seeds of a kind; returns those that `bad` picks, with what they came to.
fn search(
    seeds: std::ops::Range<u64>,
    kind: Kind,
    bad: fn(&Outcome) -> bool,
) -> Vec<(u64, Outcome)> {
    testbed::seeds::search(seeds, |seed| run(seed, kind), bad)
}

fn is_bad(outcome: &Outcome) -> bool {
    outcome.broken.is_some() || outcome.unsettled.is_some()
}

/// Whether one of the first seeds is found to do what was not to happen; no more are run than that
/// takes.
fn is_caught(kind: Kind, as_what: &str) -> bool {
    let what = |outcome: Outcome| outcome.broken.or(outcome.unsettled).unwrap_or_default();
    (0..400).map(|seed| what(run(seed, kind))).any(|what| what.contains(as_what))
}

/// What is slow does no harm, and is caught as this where versions are ignored.
#[track_caller]
fn versions_alone_refuse_what_is_late(slow: Kind, as_what: &str) {
    assert_eq!(search(0..40, slow, |outcome| outcome.broken.is_some()), []);
    let kind = Kind { ignores_versions: true, ..slow };
    assert!(is_caught(kind, as_what), "what comes late goes unseen");
}

/// Those of every day, or those that `SIM_SEEDS=from..to` names; of a single one it is told what
/// happened.
fn seeds() -> (std::ops::Range<u64>, Kind) {
    let asked = std::env::var("SIM_SEEDS").unwrap_or_else(|_| "0..400".to_owned());
    let (from, to) = asked.split_once("..").expect("SIM_SEEDS is from..to");
    let seeds = from.parse().unwrap()..to.parse().unwrap();
    let told = seeds.clone().count() == 1;
    (seeds, Kind { told, ..Kind::default() })
}

#[test]
fn whatever_is_late_lost_or_out_of_order_there_is_one_endpoint_and_the_end_is_the_same() {
    let (seeds, kind) = seeds();
    let bad = search(seeds, kind, is_bad);
    assert!(bad.is_empty(), "{} seeds fail; the first: {:#?}", bad.len(), &bad[..bad.len().min(3)]);
}

#[test]
fn check_catches_a_key_that_moves_while_its_last_leader_is_in_service() {
    let kind = Kind { deaf_to_retreats: true, ..Kind::default() };
    assert!(is_caught(kind, "the key moves from"), "nobody checks the order of a change");
}

#[test]
fn check_catches_an_endpoint_that_arrives_after_its_slice_was_emptied() {
    let slow = Kind { delays_endpoints: true, ..Kind::default() };
    versions_alone_refuse_what_is_late(slow, "comes after its tenure was given up");
}

#[test]
fn check_catches_a_label_that_arrives_after_it_was_taken_away() {
    let slow = Kind { delays_labels: true, ..Kind::default() };
    versions_alone_refuse_what_is_late(slow, "labelled");
}

#[test]
fn check_catches_a_second_endpoint() {
    let kind = Kind { doubles_endpoints: true, ..Kind::default() };
    assert!(is_caught(kind, "there is a second endpoint"), "nobody counts endpoints");
}

#[test]
fn check_catches_a_pod_that_is_deleted_though_it_lost_nothing() {
    let kind = Kind { deletes_leaders: true, ..Kind::default() };
    assert!(is_caught(kind, "which lost nothing, is deleted"), "nobody looks at deletions");
}

#[test]
fn check_catches_a_valid_until_that_is_too_late() {
    let kind = Kind { hasty_consul: true, ..Kind::default() };
    assert!(is_caught(kind, "cannot be relied on"), "nobody checks what an endpoint relies on");
}

#[test]
fn check_catches_an_end_that_is_not_as_it_should_be() {
    let kind = Kind { silences_pods: true, ..Kind::default() };
    assert!(is_caught(kind, "the key"), "nobody looks at the end");
}

#[test]
fn a_claim_does_not_wait_for_anothers_slow_call() {
    in_paused_time(async {
        let kind = Kind { swallows_claims: true, ..Kind::default() };
        let (_, cast, mut process) = stage(1, kind);
        let world = Arc::clone(&process.world);
        let phase = |name: &str| {
            let world = world.lock();
            let claim = world.api.all("consullocks").find(|claim| name_of(claim) == name).cloned();
            claim.map(|claim| text(&claim["status"]["phase"]).to_owned())
        };
        cast.declare("other", &json!({}));
        process.tick();
        process.clock.sleep_until(process.clock.now() + Duration::from_secs(1)).await;
        assert_eq!(phase("other").as_deref(), Some("Held"));
        assert_eq!(phase(CLAIM).as_deref(), Some(""), "it was to wait for its answer");
    });
}

#[test]
fn a_seed_repeats_itself() {
    let mut all = Seen::default();
    for seed in 0..20 {
        let (once, again) = (run(seed, Kind::default()), run(seed, Kind::default()));
        assert_eq!(once, again, "seed {seed}");
        all.add(once.seen);
    }
    assert!(all.handed_over > 2 && all.lost > 2 && all.routed > 2, "they see little: {all:?}");
}
