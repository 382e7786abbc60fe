//! The one door to time.
//!
//! Everything that decides how long a lock may be relied on counts in [`Instant`]s: readings
//! of `CLOCK_BOOTTIME`, which, unlike `std::time::Instant` on Linux, goes on counting while the
//! machine is suspended. The wall clock ([`Clock::wall`]) only prints.
//!
//! Below `keeper`, time is always a parameter; only keepers and the outer layers own a [`Clock`].
//!
//! # Guarantees
//! [`Clock::now`] never goes back. [`Clock::sleep_until`] never returns early; after a suspend it
//! returns within one second of the wake-up if its instant has passed meanwhile.
//! # Not guaranteed
//! That a task runs at the instant it sleeps until: whoever relies on a deadline compares it with
//! [`Clock::now`] before it acts.

use std::{
    fmt,
    future::Future,
    ops::{Add, Sub},
    time::Duration,
};

use jiff::Timestamp;

/// A reading of the boot-time clock: comparable with other readings in the same process (and on
/// the same machine until its next boot), and with nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    /// The instant `since_boot` after the machine (or the simulation) started.
    ///
    /// For tests of pure code; running code gets its instants from a [`Clock`].
    pub const fn from_boot(since_boot: Duration) -> Instant {
        Instant(since_boot)
    }

    /// What [`Instant::from_boot`] makes the same instant of, also in another process of this
    /// machine.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// Time from `earlier` to `self`; zero if `earlier` is in fact later.
    pub fn since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, span: Duration) -> Instant {
        Instant(self.0.saturating_add(span))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, span: Duration) -> Instant {
        Instant(self.0.saturating_sub(span))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot+{:?}", self.0)
    }
}

/// `within` passed before the future was ready; the future was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no answer within {0:?}")]
pub struct Elapsed(pub Duration);

/// Where instants come from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Boot,
    /// Tokio's clock, which tests pause; its origin, so that readings start near zero.
    Simulated {
        origin: tokio::time::Instant,
        wall: Timestamp,
    },
}

/// Tokio's timers stand still while the machine is suspended, so no sleep is longer than this
/// before the boot-time clock is read again.
const LONGEST_NAP: Duration = Duration::from_secs(1);

impl Clock {
    /// The machine's boot-time clock.
    pub fn boot() -> Clock {
        Clock(Source::Boot)
    }

    /// A clock that follows tokio's, paused or not, for simulations and tests.
    pub fn simulated() -> Clock {
        Clock(Source::Simulated { origin: simulated_now(), wall: Timestamp::UNIX_EPOCH })
    }

    /// The present instant.
    pub fn now(&self) -> Instant {
        match &self.0 {
            Source::Boot => {
                let reading = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
                let nanos = u32::try_from(reading.tv_nsec).unwrap_or(0);
                Instant(Duration::new(u64::try_from(reading.tv_sec).unwrap_or(0), nanos))
            }
            Source::Simulated { origin, .. } => Instant(origin.elapsed()),
        }
    }

    /// The wall clock, for printing only: it may jump, and differs between machines.
    pub fn wall(&self) -> Timestamp {
        match &self.0 {
            Source::Boot => wall_now(),
            Source::Simulated { origin, wall } => *wall + origin.elapsed(),
        }
    }

    /// Returns once `self.now() >= deadline`. Cancel-safe.
    pub async fn sleep_until(&self, deadline: Instant) {
        loop {
            let left = deadline.since(self.now());
            if left.is_zero() {
                return;
            }
            let nap = match &self.0 {
                Source::Boot => left.min(LONGEST_NAP),
                Source::Simulated { .. } => left,
            };
            tokio::time::sleep(nap).await;
        }
    }

    /// Runs `work` for at most `within`.
    ///
    /// # Errors
    /// [`Elapsed`] when time ran out first; `work` has then been dropped.
    pub async fn timeout<T>(
        &self,
        within: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        let deadline = self.now() + within;
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.sleep_until(deadline) => Err(Elapsed(within)),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this module is the substitute that the ban names")]
fn wall_now() -> Timestamp {
    Timestamp::now()
}

fn simulated_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_clock_does_not_go_back() {
        let clock = Clock::boot();
        let first = clock.now();
        assert!(clock.now() >= first);
    }

    #[tokio::test(start_paused = true)]
    async fn sleep_ends_at_its_instant_and_not_before() {
        let clock = Clock::simulated();
        let deadline = clock.now() + Duration::from_secs(90);
        clock.sleep_until(deadline).await;
        assert!(clock.now() >= deadline);
        assert!(clock.now().since(deadline) < Duration::from_millis(5));
    }

    #[tokio::test(start_paused = true)]
    async fn timeout_drops_work_that_takes_too_long() {
        let clock = Clock::simulated();
        let never = std::future::pending::<()>();
        assert_eq!(
            clock.timeout(Duration::from_secs(3), never).await,
            Err(Elapsed(Duration::from_secs(3)))
        );
        assert_eq!(clock.timeout(Duration::from_secs(3), async { 7 }).await, Ok(7));
    }
}
