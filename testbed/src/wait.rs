//! Waiting with a deadline: the one place of the test bed that reads a clock or sleeps.

use std::fmt;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// After this long without success a wait says that it is still alive, and again each time.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Measures how long something takes.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[expect(
        clippy::disallowed_methods,
        reason = "the test bed measures real servers in real time; it decides nothing about locks"
    )]
    #[must_use]
    pub fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    /// The time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The wall clock, to be compared with what servers wrote.
#[expect(clippy::disallowed_methods, reason = "as the stopwatch's")]
#[must_use]
pub fn wall() -> Timestamp {
    Timestamp::now()
}

/// A moment after which waiting is given up.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    started: Stopwatch,
    allowed: Duration,
}

impl Deadline {
    /// A deadline `allowed` from now.
    #[must_use]
    pub fn after(allowed: Duration) -> Deadline {
        Deadline { started: Stopwatch::start(), allowed }
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.started.elapsed() >= self.allowed
    }
}

/// What did not happen in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("waited {allowed:?} in vain for {what}")]
pub struct TimedOut {
    /// What was waited for.
    pub what: String,
    /// For how long.
    pub allowed: Duration,
}

/// Calls `look` until it finds something, at most for `allowed`. It looks at least once, and
/// once more at the end. Says on stderr every 15 seconds that it still waits.
///
/// # Errors
/// [`TimedOut`] when the deadline passed first.
pub fn wait_for<T>(
    what: impl fmt::Display,
    allowed: Duration,
    look: impl FnMut() -> Option<T>,
) -> Result<T, TimedOut> {
    wait_closely(POLL, what, allowed, look)
}

/// The same with looks this far apart, for what is to be timed.
///
/// # Errors
/// As [`wait_for`].
pub fn wait_closely<T>(
    poll: Duration,
    what: impl fmt::Display,
    allowed: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, TimedOut> {
    let deadline = Deadline::after(allowed);
    let mut alive = Heartbeat::start();
    loop {
        let last = deadline.passed();
        if let Some(found) = look() {
            return Ok(found);
        }
        if last {
            return Err(TimedOut { what: what.to_string(), allowed });
        }
        alive.beat(|waited| format!("still waiting for {what} ({} s)", waited.as_secs()));
        thread::sleep(poll);
    }
}

/// One step of a polling loop.
pub(crate) fn pause() {
    thread::sleep(POLL);
}

/// Says now and then that a long step is alive.
pub(crate) struct Heartbeat {
    watch: Stopwatch,
    beats: u32,
}

impl Heartbeat {
    pub(crate) fn start() -> Heartbeat {
        Heartbeat { watch: Stopwatch::start(), beats: 0 }
    }

    /// Says `line(time waited)` when it is time again.
    pub(crate) fn beat(&mut self, line: impl FnOnce(Duration) -> String) {
        let waited = self.watch.elapsed();
        if waited >= SIGN_OF_LIFE * (self.beats + 1) {
            self.beats += 1;
            say(line(waited));
        }
    }
}

/// Prints one line on stderr, past the capture of test output: whoever waits shall see it.
pub fn say(line: impl fmt::Display) {
    // A closed stderr is no reason to fail.
    let _ = writeln!(std::io::stderr(), "testbed: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_there_even_without_time() {
        assert_eq!(wait_for("a number", Duration::ZERO, || Some(1)), Ok(1));
    }

    #[test]
    fn gives_up_at_the_deadline_and_names_what_was_missing() {
        let error = wait_for::<()>("Godot", Duration::from_millis(30), || None).unwrap_err();
        assert_eq!(error.to_string(), "waited 30ms in vain for Godot");
    }
}
