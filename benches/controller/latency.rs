//! From a claim's creation to `Held`, as a watch sees it.

use std::{sync::Arc, time::Duration};

use consul_lock::{api::ConsulLockStatus, clock::Instant};
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::PostParams;
use tokio::task::JoinSet;

use crate::{
    Failure, Outcome,
    bed::{Field, Replica, WRITES, claim},
    floor::{Floor, Steps},
    process::Connections,
    prometheus::Scrape,
    sight::{Seen, Sight},
    table::{Aim, Row, Table, milliseconds},
};

/// Not counted, so that connections are warm and code is loaded.
const WARM_UP: usize = 10;
/// Between two claims, so that what follows the one (an event) does not slow the next.
const PAUSE: Duration = Duration::from_millis(50);

/// Times in order.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(times: impl IntoIterator<Item = Duration>) -> Times {
        let mut times: Vec<Duration> = times.into_iter().collect();
        times.sort();
        Times(times)
    }

    /// The smallest of them that `percent` of them do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }
}

/// Claims by turns with the floor. Returns a status as the controller writes it.
pub(crate) async fn one_at_a_time(
    field: &Field,
    sight: &Sight,
    replica: &Replica,
    count: usize,
    table: &mut Table,
) -> Outcome<ConsulLockStatus> {
    let template = warm_up(field, sight).await?;
    let floor = Floor::prepare(field, template.clone()).await?;
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    let before = replica.scrape();
    for number in 0..WARM_UP + count {
        // By turns, and each first every second time.
        for floors_turn in [number % 2 == 0, number % 2 == 1] {
            field.pause(PAUSE).await;
            if floors_turn {
                let name = format!("floor-{number}");
                let steps = floor.hold(&name).await?;
                floors.push((steps, seen(sight, name).await?));
            } else {
                let name = format!("single-{number}");
                let sent = field.clock.now();
                field.ours.create(&PostParams::default(), &claim(&name)).await?;
                let created = field.clock.now();
                ours.push((sent, created, seen(sight, name).await?));
            }
        }
    }
    floor.end_sessions().await?;
    let (ours, floors) = (&ours[WARM_UP..], &floors[WARM_UP..]);
    let ours_times = Times::new(ours.iter().map(|(sent, _, seen)| since(seen.held, *sent)));
    let floor_times = Times::new(floors.iter().map(|(steps, seen)| since(seen.held, steps.sent)));
    report("one at a time", &ours_times, &floor_times, Some(1.5), table);
    explain(ours, floors, table);
    if let (Some(before), Some(after)) = (before, replica.scrape()) {
        table.note(by_its_own_account(&before, &after, WARM_UP + count));
    }
    Ok(template)
}

/// Claims all at once; then the floor the same way. Ours stay.
pub(crate) async fn burst(
    field: &Field,
    sight: &Arc<Sight>,
    count: usize,
    template: &ConsulLockStatus,
    connections: &Connections,
    table: &mut Table,
) -> Outcome<()> {
    // Not counted, so that the servers are warm for both.
    burst_of_floors(field, sight, "warm-up", count, template).await?;
    let (floor_times, floor_all) = burst_of_floors(field, sight, "floor", count, template).await?;
    connections.phase_over("idle");
    let before = field.api_requests().await?.patches("consullocks");
    let creation = async |number: usize| {
        let name = format!("claim-{number}");
        let sent = field.clock.now();
        field.ours.create(&PostParams::default(), &claim(&name)).await?;
        Ok::<_, Failure>((name, sent))
    };
    let created: Vec<(String, Instant)> =
        stream::iter(0..count).map(creation).buffered(WRITES).try_collect().await?;
    let (names, sent): (Vec<_>, Vec<_>) = created.into_iter().unzip();
    let seen = sight.held(&names).await?;
    let times = Times::new(seen.iter().zip(&sent).map(|(seen, sent)| since(seen.held, *sent)));
    report(&format!("burst of {count}"), &times, &floor_times, None, table);
    let all = whole(&sent, &seen);
    let row = Row::new(format!("burst of {count}: first created -> last Held"));
    table.push(row.value(milliseconds(all)).floor(milliseconds(floor_all)).ratio(all, floor_all));
    field.quiet().await?;
    let patches = field.api_requests().await?.patches("consullocks") - before;
    let patches = patches as f64 / count as f64;
    let row = Row::new(format!("burst of {count}: patches of a claim and its status, per claim"));
    table.push(row.value(format!("{patches:.2}")).floor("2.00"));
    table.note(format!(
        "The burst creates {WRITES} claims at a time. Beside it the bare client makes the same \
         calls for as many claims, with up to {WRITES} creations and {WRITES} patches under way at \
         a time, as the controller may, and as many calls to Consul as the controller's client \
         allows itself. That says what the servers can do rather than how fast one claim could \
         be: which claims wait for which is up to the order of the calls, so the ratio of a \
         percentile can be below 1."
    ));
    Ok(())
}

async fn burst_of_floors(
    field: &Field,
    sight: &Arc<Sight>,
    what: &str,
    count: usize,
    template: &ConsulLockStatus,
) -> Outcome<(Times, Duration)> {
    let floor = Floor::prepare(field, template.clone()).await?;
    let mut work = JoinSet::new();
    for number in 0..count {
        let (floor, name) = (Arc::clone(&floor), format!("{what}-{number}-of-{count}"));
        work.spawn(async move { Ok::<_, Failure>((floor.hold(&name).await?, name)) });
    }
    let (mut sent, mut names) = (Vec::new(), Vec::new());
    while let Some(done) = work.join_next().await {
        let (steps, name) = done??;
        sent.push(steps.sent);
        names.push(name);
    }
    let seen = sight.held(&names).await?;
    floor.end_sessions().await?;
    field.clear_floor().await?;
    field.quiet().await?;
    let times = Times::new(seen.iter().zip(&sent).map(|(seen, sent)| since(seen.held, *sent)));
    Ok((times, whole(&sent, &seen)))
}

async fn warm_up(field: &Field, sight: &Sight) -> Outcome<ConsulLockStatus> {
    field.ours.create(&PostParams::default(), &claim("first")).await?;
    seen(sight, "first".to_owned()).await?;
    let first = field.ours.get("first").await?;
    first.status.ok_or_else(|| Failure::Odd("a claim that is Held has no status".into()))
}

async fn seen(sight: &Sight, name: String) -> Outcome<Seen> {
    Ok(sight.held(&[name]).await?.remove(0))
}

fn since(later: Option<Instant>, earlier: Instant) -> Duration {
    later.map_or(Duration::ZERO, |later| later.since(earlier))
}

fn whole(sent: &[Instant], seen: &[Seen]) -> Duration {
    let last = seen.iter().filter_map(|seen| seen.held).max();
    sent.iter().min().map_or(Duration::ZERO, |first| since(last, *first))
}

fn report(what: &str, ours: &Times, floor: &Times, aim: Option<f64>, table: &mut Table) {
    for percent in [50, 99] {
        let (value, floor) = (ours.percentile(percent), floor.percentile(percent));
        let row = Row::new(format!("created -> Held, {what}: p{percent}"));
        let row = row.value(milliseconds(value)).floor(milliseconds(floor)).ratio(value, floor);
        table.push(match aim.filter(|_| percent == 50) {
            Some(aim) => {
                let ratio = value.as_secs_f64() / floor.as_secs_f64();
                row.aim(Aim::Wish, format!("at most {aim} times"), ratio <= aim)
            }
            None => row,
        });
    }
}

/// Where the time goes, in medians.
fn explain(ours: &[(Instant, Instant, Seen)], floors: &[(Steps, Seen)], table: &mut Table) {
    let median =
        |times: &mut dyn Iterator<Item = Duration>| milliseconds(Times::new(times).percentile(50));
    let of_floor = |from: fn(&Steps) -> Instant, to: fn(&Steps) -> Instant| {
        median(&mut floors.iter().map(|(steps, _)| to(steps).since(from(steps))))
    };
    table.note(format!(
        "Where the floor's time goes (medians): create {}, finalizer {}, session {}, lock {}, \
         status {}; the watch then tells of it {} after the reply.",
        of_floor(|s| s.sent, |s| s.created),
        of_floor(|s| s.created, |s| s.finalizer),
        of_floor(|s| s.finalizer, |s| s.session),
        of_floor(|s| s.session, |s| s.locked),
        of_floor(|s| s.locked, |s| s.status),
        median(&mut floors.iter().map(|(steps, seen)| since(seen.held, steps.status))),
    ));
    let finalizer_to_held =
        |seen: &Seen| seen.finalizer.map_or(Duration::ZERO, |seen_at| since(seen.held, seen_at));
    table.note(format!(
        "Where ours goes: create {}, then {} until the finalizer is seen (floor: {}), then {} \
         until Held is seen (floor: {}).",
        median(&mut ours.iter().map(|(sent, created, _)| created.since(*sent))),
        median(&mut ours.iter().map(|(_, created, seen)| since(seen.finalizer, *created))),
        median(&mut floors.iter().map(|(steps, seen)| since(seen.finalizer, steps.created))),
        median(&mut ours.iter().map(|(_, _, seen)| finalizer_to_held(seen))),
        median(&mut floors.iter().map(|(_, seen)| finalizer_to_held(seen))),
    ));
}

/// What the controller itself counted meanwhile.
fn by_its_own_account(before: &Scrape, after: &Scrape, claims: usize) -> String {
    let grown = |metric: &str, labels: &[(&str, &str)]| {
        after.sum(metric, labels) - before.sum(metric, labels)
    };
    let mean = |histogram: &str, labels: &[(&str, &str)]| {
        let sum = grown(&format!("{histogram}_sum"), labels);
        let count = grown(&format!("{histogram}_count"), labels);
        let mean = sum / count * 1000.0;
        format!("{:.1} ({mean:.1} ms)", count / claims as f64)
    };
    let consul = "consul_lock_consul_request_duration_seconds";
    format!(
        "The controller's own account, per claim and with the mean of one: walks {}, session \
         creations {}, transactions {}, polls of the prefix {}.",
        mean("consul_lock_reconcile_duration_seconds", &[]),
        mean(consul, &[("operation", "create_session")]),
        mean(consul, &[("operation", "transaction")]),
        mean(consul, &[("operation", "watch_prefix")]),
    )
}
