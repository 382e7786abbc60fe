//! How long before *valid until* the work is told to stop, and is killed. Pure.

use std::time::Duration;

use crate::clock::Instant;

/// The margin is this part of the TTL, and no more than [`LONGEST_MARGIN`].
const MARGIN_PART: u32 = 10;
const LONGEST_MARGIN: Duration = Duration::from_secs(1);

/// The notice that the work is given before *valid until*: SIGTERM, the grace, SIGKILL, and a
/// margin in which the kernel ends what was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    grace: Duration,
    margin: Duration,
}

/// Why work cannot be stopped in time: says which number to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--grace {grace:?} and a margin of {margin:?} take more than half of --ttl {ttl:?}; a renewal \
     that fails once would stop the command. Give --ttl {ttl_needed:?} or more, or --grace \
     {grace_allowed:?} or less"
)]
pub struct NoticeError {
    grace: Duration,
    margin: Duration,
    ttl: Duration,
    ttl_needed: Duration,
    grace_allowed: Duration,
}

/// When work has to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadlines {
    /// It is told to.
    pub(super) term: Instant,
    /// It is killed.
    pub(super) kill: Instant,
}

impl Notice {
    /// The notice for a session of this TTL.
    ///
    /// # Errors
    /// [`NoticeError`] if grace and margin take more than half of the TTL: renewals go out after
    /// two fifths of the rest, and one that fails must not stop the work.
    pub fn new(ttl: Duration, grace: Duration) -> Result<Notice, NoticeError> {
        let margin = margin_of(ttl);
        if grace + margin <= ttl / 2 {
            return Ok(Notice { grace, margin });
        }
        // Of a longer TTL the margin is longer, too, up to its limit.
        let with_part = grace * MARGIN_PART * 2 / (MARGIN_PART - 2);
        let ttl_needed = if margin_of(with_part) < LONGEST_MARGIN {
            with_part
        } else {
            (grace + LONGEST_MARGIN) * 2
        };
        let grace_allowed = ttl / 2 - margin;
        Err(NoticeError { grace, margin, ttl, ttl_needed, grace_allowed })
    }

    /// The notice for a session of this TTL, with this grace or what the TTL leaves of it.
    pub(super) fn fitting(ttl: Duration, grace: Duration) -> Notice {
        let margin = margin_of(ttl);
        Notice { grace: grace.min(ttl / 2 - margin), margin }
    }

    /// All of it: from SIGTERM to *valid until*.
    pub(super) fn length(&self) -> Duration {
        self.grace + self.margin
    }

    /// The time from SIGTERM to SIGKILL.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// When work that relies on this *valid until* has to stop.
    pub(super) fn deadlines(&self, valid_until: Instant) -> Deadlines {
        let kill = valid_until - self.margin;
        Deadlines { term: kill - self.grace, kill }
    }

    /// When nothing can be left of work that relied on this *valid until*, unless whoever had to
    /// kill it did not: half of the margin later.
    pub(super) fn overdue(&self, valid_until: Instant) -> Instant {
        valid_until - self.margin / 2
    }

    /// When work that is told to stop at `now` is killed: a grace later, or sooner if this *valid
    /// until* wants it so.
    pub(super) fn kill(&self, now: Instant, valid_until: Instant) -> Instant {
        self.deadlines(valid_until).kill.min(now + self.grace)
    }
}

fn margin_of(ttl: Duration) -> Duration {
    (ttl / MARGIN_PART).min(LONGEST_MARGIN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn term_grace_kill_and_margin_come_before_valid_until() {
        let notice = Notice::new(15 * S, 5 * S).unwrap();
        let valid_until = Instant::from_boot(100 * S);
        let deadlines = notice.deadlines(valid_until);
        assert_eq!(deadlines.term, Instant::from_boot(94 * S));
        assert_eq!(deadlines.kill, Instant::from_boot(99 * S));
    }

    #[test]
    fn stop_by_wish_takes_a_grace_and_no_longer_than_validity_allows() {
        let notice = Notice::new(15 * S, 5 * S).unwrap();
        let now = Instant::from_boot(100 * S);
        assert_eq!(notice.kill(now, now + 14 * S), now + 5 * S);
        assert_eq!(notice.kill(now, now + 3 * S), now + 2 * S);
    }

    #[test]
    fn error_says_which_number_to_change() {
        let error = Notice::new(10 * S, 5 * S).unwrap_err().to_string();
        assert!(error.contains("--ttl 12s or more, or --grace 4s or less"), "{error}");
        let error = Notice::new(2 * S, S).unwrap_err().to_string();
        assert!(error.contains("--ttl 2.5s or more, or --grace 800ms or less"), "{error}");
    }

    proptest! {
        #[test]
        fn what_fits_is_accepted(ttl in 1_u64..86_400_000, grace in 0_u64..86_400_000) {
            let (ttl, grace) = (Duration::from_millis(ttl), Duration::from_millis(grace));
            let fitting = Notice::fitting(ttl, grace);
            prop_assert_eq!(Notice::new(ttl, fitting.grace()), Ok(fitting));
            if let Ok(notice) = Notice::new(ttl, grace) {
                prop_assert_eq!(notice, fitting);
            }
        }

        #[test]
        fn what_an_error_advises_is_accepted(ttl in 1_u64..86_400_000, grace in 0_u64..86_400_000) {
            let (ttl, grace) = (Duration::from_millis(ttl), Duration::from_millis(grace));
            if let Err(error) = Notice::new(ttl, grace) {
                prop_assert!(Notice::new(error.ttl_needed, grace).is_ok(), "{error}");
                prop_assert!(Notice::new(ttl, error.grace_allowed).is_ok(), "{error}");
            }
        }
    }
}
