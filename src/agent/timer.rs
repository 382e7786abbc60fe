//! The guards' timer: by boot time, and set without an allocation.

use std::{io, time::Duration};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use crate::clock::Instant;

/// A file descriptor that becomes readable at an instant, after a suspend too.
pub(super) struct Timer(OwnedFd);

impl Timer {
    /// One that is not set.
    ///
    /// # Errors
    /// Of the system call.
    pub(super) fn new() -> io::Result<Timer> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Timer(timerfd_create(TimerfdClockId::Boottime, flags)?))
    }

    /// Sets it to this instant, or switches it off.
    pub(super) fn set(&self, due: Option<Instant>) {
        // Zero is what switches it off.
        let at = due.map_or(Duration::ZERO, Instant::since_boot);
        let timer = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: i64::try_from(at.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: at.subsec_nanos().into(),
            },
        };
        let set = timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &timer);
        debug_assert!(set.is_ok(), "{set:?}: the timer and its time are valid");
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
