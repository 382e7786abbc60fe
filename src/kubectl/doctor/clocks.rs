//! Whether clocks tick at rates within a factor of two of one another, as safety requires: ours
//! against a server's `Date`, from one change of its second to another.
//!
//! It is a look at a few seconds of one server. A clock that is slewed, stopped or set later is not
//! seen, and how far apart two clocks are does not matter.

use std::time::Duration;

use jiff::Timestamp;

use super::finding::Finding;
use crate::clock::{Clock, Instant};

/// How long the second that a server shows is looked at.
const SPAN: i64 = 2;
/// Between looks.
const GLANCE: Duration = Duration::from_millis(40);
/// Of a server whose second does not change.
const LIMIT: Duration = Duration::from_secs(8);

/// A change of the second that a server shows: it lay between two looks.
#[derive(Clone, Copy)]
struct Tick {
    second: i64,
    before: Instant,
    after: Instant,
}

/// Compares our clock with the one that `date` reads.
pub(super) async fn compare<F>(check: &str, clock: &Clock, date: impl Fn() -> F) -> Finding
where
    F: Future<Output = Result<Option<Timestamp>, String>>,
{
    let watched = clock.timeout(LIMIT, two_ticks(clock, date)).await;
    match watched {
        Ok(Ok((first, last))) => judge(check, first, last),
        Ok(Err(words)) => Finding::unknown(check, words),
        Err(_) => Finding::problem(
            check,
            format!("its clock did not go on by {SPAN} s within {LIMIT:?} of ours"),
            vec!["timedatectl timesync-status, on that machine and here".to_owned()],
        ),
    }
}

async fn two_ticks<F>(clock: &Clock, date: impl Fn() -> F) -> Result<(Tick, Tick), String>
where
    F: Future<Output = Result<Option<Timestamp>, String>>,
{
    let mut seen: Option<(i64, Instant)> = None;
    let mut first: Option<Tick> = None;
    loop {
        let sent = clock.now();
        let second = date().await?.ok_or("it sends no Date")?.as_second();
        let answered = clock.now();
        if let Some((known, before)) = seen
            && known != second
        {
            let tick = Tick { second, before, after: answered };
            match first {
                None => first = Some(tick),
                Some(first) if second - first.second >= SPAN => return Ok((first, tick)),
                Some(_) => {}
            }
        }
        seen = Some((second, sent));
        clock.sleep_until(clock.now() + GLANCE).await;
    }
}

fn judge(check: &str, first: Tick, last: Tick) -> Finding {
    let theirs = Duration::from_secs(last.second.abs_diff(first.second)).as_secs_f64();
    let least = last.before.since(first.after).as_secs_f64();
    let most = last.after.since(first.before).as_secs_f64();
    let detail = format!("{theirs} s there took {least:.2} to {most:.2} s here");
    if most < theirs / 2.0 || least > theirs * 2.0 {
        let repair = vec!["timedatectl timesync-status, on that machine and here".to_owned()];
        return Finding::problem(check, format!("{detail}: more than a factor of two"), repair);
    }
    if least < theirs / 2.0 || most > theirs * 2.0 {
        return Finding::unknown(check, format!("{detail}: its answers took too long to say more"));
    }
    Finding::ok(check, detail)
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Verdict, *};

    /// A server whose clock is this much faster than ours.
    async fn against(rate: f64) -> Finding {
        let clock = Clock::simulated();
        let began = clock.now();
        let date = || {
            let passed = clock.now().since(began).as_secs_f64() * rate;
            let second = Timestamp::from_second(1_000_000 + passed as i64).ok();
            std::future::ready(Ok(second))
        };
        compare("clocks", &clock, date).await
    }

    #[tokio::test(start_paused = true)]
    async fn rates_within_a_factor_of_two_are_fine_and_others_are_not() {
        for rate in [0.6, 0.9, 1.0, 1.1, 1.8] {
            let found = against(rate).await;
            assert_eq!(found.verdict, Verdict::Ok, "{rate}: {found:?}");
        }
        for rate in [0.0, 0.3, 3.0] {
            let found = against(rate).await;
            assert_eq!(found.verdict, Verdict::Problem, "{rate}: {found:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_tells_no_time_says_nothing_of_its_clock() {
        let clock = Clock::simulated();
        let silent = || std::future::ready(Ok(None));
        assert_eq!(compare("clocks", &clock, silent).await.verdict, Verdict::Unknown);
    }
}
