//! How soon the next pod has the traffic: after the last one has died, and after a better one has
//! come; and what a thousand claims with three candidates each cost.
//!
//! There is no kubelet: what one would report is written into the pods' statuses, so that its own
//! delay is no part of the figures. Times count from the sending of that report to the moment when
//! a watch tells of an EndpointSlice with the next tenure's endpoint.

use std::time::Duration;

use consul_lock::clock::Instant;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;

use crate::{
    Failure, Outcome,
    bed::{Bed, Field, OURS, Replica, WRITES},
    cast::Cast,
    change,
    latency::Times,
    peer, process,
    table::{Aim, Row, Table, milliseconds},
};

/// How much to measure.
#[derive(Clone, Copy)]
pub(crate) struct Amounts {
    /// Deaths of a leader, one after the other; as many changes by preemption, and as many by
    /// deletion.
    pub(crate) changes: usize,
    /// Claims with three candidates each.
    pub(crate) claims: usize,
    /// Leaders that die at once.
    pub(crate) failures: usize,
    /// For how long the steady state is watched.
    pub(crate) steady: Duration,
    /// Crashes, and graceful ends, of client-go's leader.
    pub(crate) peer: usize,
}

const CANDIDATES: usize = 3;

pub(crate) async fn measure(
    bed: &Bed,
    field: &Field,
    replica: &Replica,
    amounts: Amounts,
    table: &mut Table,
) -> Outcome<()> {
    let cast = Cast::gather(field, OURS).await?;
    testbed::say(format!("{} deaths of a leader, and the floor", amounts.changes));
    let floor = change::by_a_bare_client(field, amounts.changes).await?;
    deaths(field, &cast, amounts.changes, &floor, table).await?;
    testbed::say(format!("{} changes by preemption", amounts.changes));
    preemptions(field, &cast, amounts.changes, &floor, table).await?;
    testbed::say(format!("{} deletions of a leader", amounts.changes));
    deletions(field, &cast, amounts.changes, &floor, table).await?;
    testbed::say(format!("client-go's leader dies {} times, and goes as often", amounts.peer));
    peer::measure(bed, field, amounts.peer, table).await?;
    testbed::say(format!("{} claims with {CANDIDATES} candidates each", amounts.claims));
    crowd(field, &cast, replica, amounts, table).await
}

/// The leader's container ends: in a pod that starts it again at once, and in one that does not.
async fn deaths(
    field: &Field,
    cast: &Cast,
    count: usize,
    floor: &Times,
    table: &mut Table,
) -> Outcome<()> {
    let mut leader = cast.open("death", CANDIDATES, json!({})).await?;
    let (mut restarted, mut stayed) = (Vec::new(), Vec::new());
    for number in 0..count {
        field.pause(Duration::from_millis(50)).await;
        let sent = field.clock.now();
        if number % 2 == 0 {
            cast.restart(&leader.pod).await?;
        } else {
            cast.end(&leader.pod).await?;
        }
        let next = cast.next("death", leader.token).await?;
        let took = next.seen.since(sent);
        if number % 2 == 0 {
            restarted.push(took);
        } else {
            stayed.push(took);
            cast.restart(&leader.pod).await?;
        }
        leader = next;
    }
    for (what, times) in [("is started again", restarted), ("stays down", stayed)] {
        let what = format!("leader's container ends and {what} -> next endpoint");
        report(&what, &Times::new(times), floor, [("p50", 50, 1000), ("p99", 99, 2000)], table);
    }
    Ok(())
}

/// A better candidate comes.
async fn preemptions(
    field: &Field,
    cast: &Cast,
    count: usize,
    floor: &Times,
    table: &mut Table,
) -> Outcome<()> {
    let by_priority = json!({ "strategy": "Priority", "preempt": true });
    let mut leader = cast.open("better", CANDIDATES, by_priority).await?;
    let mut times = Vec::new();
    for number in 0..count {
        field.pause(Duration::from_millis(50)).await;
        let other = cast.other_than("better", &leader.pod, number, CANDIDATES);
        let sent = field.clock.now();
        cast.prioritise(&other, number + 1).await?;
        let next = cast.next("better", leader.token).await?;
        times.push(next.seen.since(sent));
        leader = next;
    }
    let what = "a better candidate (preempt) -> its endpoint";
    report(what, &Times::new(times), floor, [("p50", 50, 300), ("p99", 99, 0)], table);
    Ok(())
}

/// The leader is deleted. Its traffic ends with the deletion, and the next one has it when the
/// kubelet reports that the last container has ended.
async fn deletions(
    field: &Field,
    cast: &Cast,
    count: usize,
    floor: &Times,
    table: &mut Table,
) -> Outcome<()> {
    let mut leader = cast.open("deleted", CANDIDATES, json!({})).await?;
    let mut times = Vec::new();
    for _ in 0..count {
        field.pause(Duration::from_millis(50)).await;
        cast.delete(&leader.pod).await?;
        cast.vacant("deleted").await?;
        let sent = field.clock.now();
        cast.end(&leader.pod).await?;
        let next = cast.next("deleted", leader.token).await?;
        times.push(next.seen.since(sent));
        cast.replace("deleted", &leader.pod).await?;
        leader = next;
    }
    let what = "a deleted leader has ended -> next endpoint";
    report(what, &Times::new(times), floor, [("p50", 50, 300), ("p99", 99, 0)], table);
    Ok(())
}

fn report(
    what: &str,
    times: &Times,
    floor: &Times,
    percentiles: [(&str, usize, u64); 2],
    table: &mut Table,
) {
    for (name, percent, aim) in percentiles {
        let (value, floor) = (times.percentile(percent), floor.percentile(percent));
        let row = Row::new(format!("{what}: {name}"));
        let row = row.value(milliseconds(value)).floor(milliseconds(floor)).ratio(value, floor);
        table.push(match aim {
            0 => row,
            aim => {
                let words = format!("at most {aim} ms");
                row.aim(Aim::Wish, words, value <= Duration::from_millis(aim))
            }
        });
    }
}

async fn crowd(
    field: &Field,
    cast: &Cast,
    replica: &Replica,
    amounts: Amounts,
    table: &mut Table,
) -> Outcome<()> {
    let names: Vec<String> = (0..amounts.claims).map(|number| format!("many-{number}")).collect();
    let stage = async |name: &String| {
        cast.stage(name, CANDIDATES).await?;
        cast.declare(name, json!({})).await
    };
    let staged = stream::iter(&names).map(stage).buffer_unordered(WRITES);
    staged.try_collect::<Vec<()>>().await?;
    let mut leaders = Vec::new();
    for name in &names {
        leaders.push(cast.next(name, 0).await?);
    }
    field.quiet().await?;

    let before = cast.versions().await?;
    field.pause(amounts.steady).await;
    let after = cast.versions().await?;
    let changed = after.iter().filter(|version| !before.contains(*version)).count();
    let span = format!(
        "{} claims with {CANDIDATES} candidates each, {} s",
        amounts.claims,
        amounts.steady.as_secs()
    );
    let row = Row::new(format!("{span}: claims, pods and slices that were written"));
    table.push(row.value(changed.to_string()).aim(Aim::Must, "0", changed == 0));
    let (resident, _) = process::memory(replica.pid()?)?;
    let row = Row::new(format!("{span}: resident memory")).value(format!("{resident:.1} MB"));
    table.push(row.aim(Aim::Wish, "at most 150 MB", resident <= 150.0));

    let dying: Vec<(&String, &crate::cast::Led)> =
        names.iter().zip(&leaders).take(amounts.failures).collect();
    let began = field.clock.now();
    let die = async |(_, leader): &(&String, &crate::cast::Led)| cast.end(&leader.pod).await;
    let died = stream::iter(&dying).map(die).buffer_unordered(WRITES);
    died.try_collect::<Vec<()>>().await?;
    let reported = field.clock.now().since(began);
    let mut last: Option<Instant> = None;
    for (name, leader) in &dying {
        let next = cast.next(name, leader.token).await?;
        last = last.max(Some(next.seen));
    }
    let healed = last.map_or(Duration::ZERO, |last| last.since(began));
    let row = Row::new(format!(
        "{} leaders die at once: first report -> last of the next endpoints",
        dying.len()
    ));
    let row = row.value(milliseconds(healed));
    table.push(row.aim(Aim::Wish, "at most 30 s", healed <= Duration::from_secs(30)));
    table.note(format!(
        "Writing the {} reports took {} of that.",
        dying.len(),
        milliseconds(reported)
    ));
    (!dying.is_empty()).then_some(()).ok_or_else(|| Failure::Odd("nobody died".to_owned()))
}
