//! The protocol, pure: what a session and a lock do next, given what just happened and what time
//! it is. No clock, no I/O, no tokio.

/// Why a tenure ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// The claim was paused.
    Paused,
    /// The claim was deleted, or its keepers were told to stop.
    Stopped,
    /// `acquire.maxHold` passed.
    MaxHold,
    /// *Valid until* passed without a renewal.
    Expired,
    /// Consul ended the session.
    SessionInvalidated,
    /// The key was deleted under us.
    KeyDeleted,
    /// The key lost its session, or another session has it.
    KeyTaken,
}

/// Why contending was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailReason {
    /// `acquire.timeout` passed.
    AcquireTimeout,
    /// `acquire.tryOnce`, and the one attempt met another holder or a lock-delay.
    Contended,
}
