//! What to hold a lock on, in words that `run` and the agent share.

use std::time::Duration;

use crate::consul::Behavior;

/// How a lock is held. Durations are as Consul takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockSettings {
    /// The session's TTL.
    pub ttl: Duration,
    /// How long the key stays locked after an unclean end.
    pub lock_delay: Duration,
    /// What an unclean end does to the key.
    pub behavior: Behavior,
    /// Node checks that end the session when they turn critical.
    pub node_checks: Vec<String>,
    /// Service checks that do.
    pub service_checks: Vec<String>,
    /// The user's text in the key.
    pub value: String,
    /// Stop the work and release the lock after this long.
    pub max_hold: Option<Duration>,
}
