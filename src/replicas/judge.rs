//! What a replica may do about the Lease, given what it saw of it and when. Pure.

use std::time::Duration;

use crate::clock::Instant;

/// How often and for how long. Only combinations that keep two replicas from leading at once can
/// be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    duration: Duration,
    renew_deadline: Duration,
    retry: Duration,
}

/// Why three durations are no [`Timings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// A Lease counts whole seconds.
    #[error("the lease duration is {0:?}, it must be between 1s and 1h")]
    Duration(Duration),
    /// A leader would go on after another may have taken over.
    #[error(
        "the renew deadline is {renew_deadline:?}, it must be shorter than the lease duration of \
         {duration:?}: a leader that cannot renew has to stop before another may take over"
    )]
    RenewDeadline {
        /// As given.
        renew_deadline: Duration,
        /// As given.
        duration: Duration,
    },
    /// A leader would have no second try.
    #[error(
        "the retry period is {retry:?}, it must be at least 50ms and shorter than the renew \
         deadline of {renew_deadline:?}"
    )]
    Retry {
        /// As given.
        retry: Duration,
        /// As given.
        renew_deadline: Duration,
    },
}

impl Default for Timings {
    /// 8 s, 5 s, 1 s.
    fn default() -> Timings {
        Timings {
            duration: Duration::from_secs(8),
            renew_deadline: Duration::from_secs(5),
            retry: Duration::from_secs(1),
        }
    }
}

impl Timings {
    /// - `duration`: how long a Lease must not have changed before another may take it.
    /// - `renew_deadline`: how long after it sent its last good renewal a leader stops acting.
    /// - `retry`: how long to wait between two looks at the Lease, or two renewals of it.
    ///
    /// # Errors
    /// [`TimingError`] with the first number that is unsafe beside the others.
    pub fn new(
        duration: Duration,
        renew_deadline: Duration,
        retry: Duration,
    ) -> Result<Timings, TimingError> {
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&duration) {
            return Err(TimingError::Duration(duration));
        }
        if renew_deadline >= duration {
            return Err(TimingError::RenewDeadline { renew_deadline, duration });
        }
        if retry < Duration::from_millis(50) || retry >= renew_deadline {
            return Err(TimingError::Retry { retry, renew_deadline });
        }
        Ok(Timings { duration, renew_deadline, retry })
    }

    /// Whatever the numbers, to prove that a test would notice.
    #[cfg(test)]
    pub(super) fn unchecked(
        duration: Duration,
        renew_deadline: Duration,
        retry: Duration,
    ) -> Timings {
        Timings { duration, renew_deadline, retry }
    }

    /// How long a Lease must not have changed before another may take it.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// How long after it sent its last good renewal a leader stops acting.
    pub fn renew_deadline(&self) -> Duration {
        self.renew_deadline
    }

    /// How long to wait between two looks at the Lease.
    pub fn retry(&self) -> Duration {
        self.retry
    }

    /// How long one call may take: a leader has time for three before its deadline.
    pub(super) fn call(&self) -> Duration {
        self.retry.max(self.renew_deadline / 3)
    }
}

/// The Lease, as far as it decides anything. Its times are not among it: they are readings of
/// another machine's wall clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// There is no Lease.
    Absent,
    Record {
        /// Changes with every write.
        version: String,
        /// `None`: released.
        holder: Option<String>,
        /// What its holder says its duration is.
        duration: Option<Duration>,
    },
}

impl Seen {
    /// The version as a number, which only rises while an API server keeps what it was told.
    pub(super) fn number(&self) -> Option<u64> {
        match self {
            Seen::Record { version, .. } => version.parse().ok(),
            Seen::Absent => None,
        }
    }
}

/// Something seen, and since when it has not changed, by our own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Observation {
    seen: Seen,
    since: Instant,
}

impl Observation {
    /// `seen` arrived at `now`. The arrival counts, not the request: whatever was written last was
    /// written before it.
    pub(super) fn next(last: Option<Observation>, seen: Seen, now: Instant) -> Observation {
        match last {
            Some(last) if last.seen == seen => last,
            _ => Observation { seen, since: now },
        }
    }
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Make one, without leading: absence has no version, so "absent all the time" cannot be told
    /// from "made and deleted between two looks". What is made here can be waited out.
    Place,
    /// Write ourselves into it, on condition that it is still as observed, and lead.
    Bid,
    /// Nothing before this instant, unless it changes.
    WaitUntil(Instant),
}

/// What the replica `me` may do at `now`. `leading`: its leadership is still valid.
pub(super) fn decide(
    me: &str,
    leading: bool,
    observed: &Observation,
    timings: &Timings,
    now: Instant,
) -> Action {
    let duration = match &observed.seen {
        // Others wait for us to fall silent, whether it is there or was deleted.
        Seen::Absent if leading => return Action::Bid,
        Seen::Record { holder, .. } if leading && holder.as_deref() == Some(me) => {
            return Action::Bid;
        }
        Seen::Absent => return Action::Place,
        // Whoever held it stopped acting before releasing it.
        Seen::Record { holder: None, .. } => return Action::Bid,
        // Our own name, too: we may have placed it under a leader that does not know yet.
        Seen::Record { duration, .. } => duration.unwrap_or_default(),
    };
    // The holder may count on a longer duration than we would.
    let free_at = observed.since + duration.max(timings.duration);
    if now >= free_at { Action::Bid } else { Action::WaitUntil(free_at) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    fn record(version: &str, holder: Option<&str>) -> Seen {
        Seen::Record {
            version: version.to_owned(),
            holder: holder.map(str::to_owned),
            duration: Some(Duration::from_secs(8)),
        }
    }

    fn judge(observed: &Observation, now: u64) -> Action {
        decide("me", false, observed, &Timings::default(), at(now))
    }

    #[test]
    fn takeover_needs_a_record_unchanged_for_its_duration_on_our_own_clock() {
        let first = Observation::next(None, record("1", Some("other")), at(100));
        assert_eq!(judge(&first, 100), Action::WaitUntil(at(108)));
        let same = Observation::next(Some(first), record("1", Some("other")), at(107));
        assert_eq!(judge(&same, 107), Action::WaitUntil(at(108)));
        assert_eq!(judge(&same, 108), Action::Bid);
        // A renewal seen late starts the wait anew.
        let renewed = Observation::next(Some(same), record("2", Some("other")), at(109));
        assert_eq!(judge(&renewed, 109), Action::WaitUntil(at(117)));
    }

    #[test]
    fn one_that_slept_has_observed_nothing_meanwhile() {
        let before = Observation::next(None, record("1", Some("other")), at(100));
        // It slept for 20 s; the holder renewed all the time.
        let after = Observation::next(Some(before), record("21", Some("other")), at(120));
        assert_eq!(judge(&after, 120), Action::WaitUntil(at(128)));
    }

    #[test]
    fn released_record_is_taken_at_once() {
        let released = Observation::next(None, record("1", None), at(100));
        assert_eq!(judge(&released, 100), Action::Bid);
    }

    #[test]
    fn own_record_is_renewed_while_leading_and_waited_out_otherwise() {
        let own = Observation::next(None, record("1", Some("me")), at(100));
        let timings = Timings::default();
        assert_eq!(decide("me", true, &own, &timings, at(100)), Action::Bid);
        assert_eq!(judge(&own, 107), Action::WaitUntil(at(108)));
        assert_eq!(judge(&own, 108), Action::Bid);
    }

    #[test]
    fn leader_that_finds_another_in_the_lease_does_not_bid() {
        let other = Observation::next(None, record("1", Some("other")), at(100));
        let timings = Timings::default();
        let action = decide("me", true, &other, &timings, at(100));
        assert_eq!(action, Action::WaitUntil(at(108)));
    }

    #[test]
    fn longer_duration_in_the_record_is_respected_and_a_shorter_one_is_not_trusted() {
        for (theirs, ours) in [(20, 120), (1, 108)] {
            let seen = Seen::Record {
                version: "1".to_owned(),
                holder: Some("other".to_owned()),
                duration: Some(Duration::from_secs(theirs)),
            };
            let observed = Observation::next(None, seen, at(100));
            assert_eq!(judge(&observed, 100), Action::WaitUntil(at(ours)));
        }
    }

    #[test]
    fn deleted_lease_is_placed_by_others_and_made_anew_by_its_leader() {
        let gone = Observation::next(None, Seen::Absent, at(100));
        let timings = Timings::default();
        assert_eq!(judge(&gone, 100), Action::Place);
        assert_eq!(judge(&gone, 200), Action::Place);
        assert_eq!(decide("me", true, &gone, &timings, at(100)), Action::Bid);
    }

    #[test]
    fn unsafe_timings_are_refused_with_the_number_that_is_wrong() {
        let secs = Duration::from_secs;
        let refused = |d, r, t| Timings::new(d, r, t).unwrap_err().to_string();
        assert!(Timings::new(secs(2), secs(1), Duration::from_millis(250)).is_ok());
        let error = refused(secs(8), secs(8), secs(1));
        assert!(error.contains("renew deadline is 8s"), "{error}");
        let error = refused(secs(8), secs(5), secs(5));
        assert!(error.contains("retry period is 5s"), "{error}");
        let error = refused(secs(8), secs(5), Duration::ZERO);
        assert!(error.contains("at least 50ms"), "{error}");
        let error = refused(Duration::from_millis(900), secs(0), secs(0));
        assert!(error.contains("lease duration is 900ms"), "{error}");
    }
}
