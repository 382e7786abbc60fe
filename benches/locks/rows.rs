//! Rows about locks within a process: the crate beside `api.Lock`.

use std::time::Duration;

use serde_json::Value;
use testbed::{
    Consul,
    bench::{
        process,
        table::{Aim, Row, Table, milliseconds},
    },
    say,
};

use crate::{
    Amounts, Outcome,
    bed::{self, Amount, Counts, Player, Who, play},
};

const WORKERS: usize = 64;
const CONTENDERS: usize = 50;
/// How long everybody has to begin to wait, in milliseconds.
const PATIENCE: u64 = 2_000;
/// As many as Consul allows to one address.
const CAP: u32 = 200;

fn number(result: &Value, name: &str) -> f64 {
    result[name].as_f64().unwrap_or(f64::NAN)
}

/// Of its times the one that half of them do not exceed.
fn median(result: &Value) -> Duration {
    let times = result["times_us"].as_array().into_iter().flatten();
    let mut times: Vec<u64> = times.filter_map(Value::as_u64).collect();
    times.sort_unstable();
    Duration::from_micros(times.get(times.len() / 2).copied().unwrap_or(u64::MAX))
}

/// Nobody may hold a lock that somebody else holds.
fn overlaps(what: &str, result: &Value, table: &mut Table) {
    let overlaps = number(result, "overlaps");
    let row = Row::new(format!("{what}: two at once")).value(format!("{overlaps}"));
    table.push(row.aim(Aim::Must, "0", overlaps == 0.0));
}

/// A time beside the peer's, of which it should be at most this part.
fn beside(what: &str, ours: Duration, peer: Duration, most: f64) -> Row {
    let row = Row::new(what).value(milliseconds(ours)).floor(milliseconds(peer));
    let words = format!("at most {most} of it");
    row.ratio(ours, peer).aim(Aim::Wish, words, ours <= peer.mul_f64(most))
}

/// Counts for each of so many.
fn costs(what: &str, ours: (Counts, f64), peer: (Counts, f64), most: f64, table: &mut Table) {
    let each = |(counts, number): (Counts, f64)| {
        [("Raft entries", counts.entries / number), ("requests", counts.requests / number)]
    };
    for ((kind, ours), (_, peer)) in each(ours).into_iter().zip(each(peer)) {
        let row = Row::new(format!("{what}: {kind}")).value(format!("{ours:.1}"));
        let row = row.floor(format!("{peer:.1}"));
        table.push(row.aim(Aim::Wish, format!("at most {most:.2} of it"), ours <= peer * most));
    }
}

pub(crate) fn acquire(consul: &Consul, amounts: &Amounts, table: &mut Table) -> Outcome<()> {
    say(format!("{} acquisitions one after the other", amounts.acquires));
    let how = Amount { count: amounts.acquires, ..Amount::default() };
    let (ours, _) = play(consul, Who::Ours, "acquire", how)?;
    let (peer, _) = play(consul, Who::ApiLock, "acquire", how)?;
    table.push(beside("uncontended acquire, p50", median(&ours), median(&peer), 0.8));
    Ok(())
}

pub(crate) fn cycles(consul: &Consul, amounts: &Amounts, table: &mut Table) -> Outcome<()> {
    say(format!("{WORKERS} workers acquire and release for {} s", amounts.cycles));
    let how = Amount { count: WORKERS, span: amounts.cycles * 1000, ..Amount::default() };
    let (ours, our_counts) = play(consul, Who::Ours, "cycles", how)?;
    let (peer, peer_counts) = play(consul, Who::ApiLock, "cycles", how)?;
    let rate = |result: &Value| number(result, "cycles") / number(result, "seconds");
    let (fast, slow) = (rate(&ours), rate(&peer));
    let what = "acquire+release cycles per second, 64 workers";
    let row = Row::new(what).value(format!("{fast:.0}")).floor(format!("{slow:.0}"));
    table.push(row.aim(Aim::Wish, "twice", fast >= 2.0 * slow));
    let ours = (our_counts, number(&ours, "cycles"));
    costs("- each", ours, (peer_counts, number(&peer, "cycles")), 1.0, table);
    Ok(())
}

pub(crate) fn handover(consul: &Consul, amounts: &Amounts, table: &mut Table) -> Outcome<()> {
    say(format!("{} handovers to one waiter", amounts.handovers));
    let how = Amount { count: amounts.handovers, hold: 400, ..Amount::default() };
    let (ours, _) = play(consul, Who::Ours, "handover", how)?;
    let (peer, _) = play(consul, Who::ApiLock, "handover", how)?;
    table.push(beside("graceful handover, one waiter, p50", median(&ours), median(&peer), 1.0));
    Ok(())
}

pub(crate) fn waiters(consul: &Consul, amounts: &Amounts, table: &mut Table) -> Outcome<()> {
    say(format!("{CONTENDERS} waiters on one key, {} rounds", amounts.rounds));
    let how = Amount { count: CONTENDERS, hold: 5, patience: PATIENCE, ..Amount::default() };
    let mut all = Vec::new();
    for who in [Who::Ours, Who::ApiLock, Who::OursApart] {
        let mut rounds = Vec::new();
        for _ in 0..amounts.rounds.max(1) {
            rounds.push(play(consul, who, "waiters", how)?);
        }
        // The round in the middle.
        let seconds = |(result, _): &(Value, Counts)| number(result, "seconds");
        rounds.sort_by(|one, other| seconds(one).total_cmp(&seconds(other)));
        all.push(rounds.swap_remove(rounds.len() / 2));
    }
    let what = "50 waiters on one key, each served once, holds of 5 ms: all of them";
    let span = |(result, _): &(Value, Counts)| {
        Duration::try_from_secs_f64(number(result, "seconds")).unwrap_or(Duration::MAX)
    };
    let (ours, peer, apart) = (&all[0], &all[1], &all[2]);
    let row = Row::new(what).value(milliseconds(span(ours))).floor(milliseconds(span(peer)));
    let met = span(ours) <= Duration::from_secs(1);
    table.push(row.ratio(span(ours), span(peer)).aim(Aim::Wish, "at most 1 s", met));
    let stall = |(result, _): &(Value, Counts)| format!("{:.2} s", number(result, "stall"));
    table.push(Row::new("- the longest time between two").value(stall(ours)).floor(stall(peer)));
    let count = CONTENDERS as f64;
    costs("- each handover", (ours.1, count), (peer.1, count), 1.0 / 3.0, table);
    let words = "- the same with a session and connections for each of ours";
    table.push(Row::new(words).value(milliseconds(span(apart))).floor(milliseconds(span(peer))));
    let counts = [apart.1.entries / count, apart.1.requests / count];
    table.note(format!(
        "Of 50 waiters in one process one contends at a time. With a session and connections for \
         each of them, as in 50 processes, a handover costs {:.1} Raft entries and {:.1} requests, \
         and the longest time between two is {}.",
        counts[0],
        counts[1],
        stall(apart)
    ));
    for (who, (result, _)) in
        ["50 waiters", "50 waiters, api.Lock", "50 waiters apart"].iter().zip(&all)
    {
        overlaps(who, result, table);
    }
    Ok(())
}

pub(crate) fn requeue(consul: &Consul, amounts: &Amounts, table: &mut Table) -> Outcome<()> {
    say(format!("{CONTENDERS} contenders that queue again at once, {} s", amounts.requeue));
    let span = amounts.requeue * 1000;
    let how = Amount { count: CONTENDERS, span, hold: 5, ..Amount::default() };
    let (ours, _) = play(consul, Who::Ours, "requeue", how)?;
    let (peer, _) = play(consul, Who::ApiLock, "requeue", how)?;
    let longest = |result: &Value| {
        Duration::try_from_secs_f64(number(result, "longest")).unwrap_or(Duration::MAX)
    };
    let what = "50 contenders that queue again at once: the longest wait";
    table.push(beside(what, longest(&ours), longest(&peer), 0.33));
    let every = |result: &Value| number(result, "seconds") / number(result, "cycles") * 1000.0;
    let row = Row::new("- the key changes hands every").value(format!("{:.1} ms", every(&ours)));
    table.push(row.floor(format!("{:.1} ms", every(&peer))));
    overlaps("50 that queue again", &ours, table);
    Ok(())
}

/// What many locks in one process cost.
struct Crowd {
    held: f64,
    left: f64,
    megabytes: f64,
    connections: usize,
    /// For each lock and minute.
    requests: f64,
}

fn crowd(consul: &Consul, who: Who, count: usize, steady: u64) -> Outcome<Crowd> {
    let how = Amount { count, patience: 30_000, ..Amount::default() };
    let mut player = Player::start(consul, who, "many", how)?;
    let connections = player.connections();
    player.wait_ready()?;
    player.go()?;
    let held = number(&player.result()?, "held");
    let before = Counts::of(consul)?;
    let watch = testbed::Stopwatch::start();
    std::thread::sleep(Duration::from_secs(steady));
    let counts = Counts::of(consul)?.since(before);
    let minutes = watch.elapsed().as_secs_f64() / 60.0;
    let (megabytes, _) = process::memory(player.pid())?;
    player.wait_ready()?;
    player.go()?;
    let left = number(&player.result()?, "held");
    let requests = counts.requests / held.max(1.0) / minutes;
    Ok(Crowd { held, left, megabytes, connections: connections.most(), requests })
}

pub(crate) fn many(consul: &Consul, amounts: &Amounts, table: &mut Table) -> Outcome<()> {
    let (count, steady) = (amounts.many, amounts.steady);
    say(format!("{count} locks in one process, for {steady} s"));
    let ours = crowd(consul, Who::Ours, count, steady)?;
    let peer = crowd(consul, Who::ApiLock, count, steady)?;
    let row = Row::new(format!("{count} locks in one process: memory"));
    let row =
        row.value(format!("{:.1} MB", ours.megabytes)).floor(format!("{:.1} MB", peer.megabytes));
    table.push(row.aim(Aim::Wish, "at most 25 MB", ours.megabytes <= 25.0));
    let row = Row::new("- connections, the most").value(ours.connections.to_string());
    let row = row.floor(peer.connections.to_string());
    table.push(row.aim(Aim::Wish, "at most 8", ours.connections <= 8));
    let row = Row::new("- requests per lock and minute").value(format!("{:.2}", ours.requests));
    let row = row.floor(format!("{:.2}", peer.requests));
    table.push(row.aim(Aim::Wish, "fewer", ours.requests < peer.requests));
    let row = Row::new("- held").value(format!("{}", ours.held)).floor(format!("{}", peer.held));
    table.push(row.aim(Aim::Wish, "all of them", ours.held == count as f64));
    Ok(())
}

pub(crate) fn capped(amounts: &Amounts, table: &mut Table) -> Outcome<()> {
    let count = 250;
    say(format!("{count} locks in one process, where Consul allows {CAP} connections"));
    // A peer's connections count on for a while after it has ended.
    let ours = crowd(&bed::consul(Some(CAP))?, Who::Ours, count, amounts.steady)?;
    let peer = crowd(&bed::consul(Some(CAP))?, Who::ApiLock, count, amounts.steady)?;
    let what = format!("{count} locks at {CAP} connections: held");
    let row = Row::new(what).value(format!("{}", ours.held)).floor(format!("{}", peer.held));
    table.push(row.aim(Aim::Wish, "all of them", ours.held == count as f64));
    let lost = |crowd: &Crowd| crowd.held - crowd.left;
    let row = Row::new(format!("- lost within {} s", amounts.steady));
    let row = row.value(format!("{}", lost(&ours))).floor(format!("{}", lost(&peer)));
    table.push(row.aim(Aim::Must, "0", lost(&ours) == 0.0));
    Ok(())
}
