//! Keepers: the tasks that drive the protocol (`lock`) against Consul (`consul`) and the clock.
//!
//! A *session keeper* creates, renews and destroys one session; a *lock keeper* acquires, watches
//! and releases one key under it; a *prefix watch* observes all keys under one prefix for every
//! lock keeper at once. [`Keepers`] joins them, one pair per claim.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    consul::Behavior,
    names::{FencingToken, Key, NodeName, SessionId, SessionName},
};

mod registry;
mod view;

pub use registry::{Keepers, StopState};
pub use view::*;

/// Whose keepers: the claim's UID, so that a claim recreated under its old name gets new ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId(pub Arc<str>);

/// What a claim wants of its keepers. Setting the same again changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The key to contend for.
    pub key: Key,
    /// The prefix whose shared watch observes the key; the key starts with it, and it ends in `/`.
    pub prefix: Arc<str>,
    /// How the session is made. A change while a tenure lasts takes effect with the next session.
    pub session: SessionSettings,
    /// How to contend.
    pub acquire: AcquireSettings,
    /// Written into the key, for other readers. A change while a tenure lasts is written at once
    /// and does not change the token.
    pub payload: Payload,
    /// `true`: give the key up cleanly, end the session, go on observing the key.
    pub paused: bool,
    /// Another number makes a claim that failed contend again.
    pub attempt: i64,
}

/// How to make a claim's session; see [`crate::consul::SessionRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each is the field of `SessionRequest` of the same name"
)]
pub struct SessionSettings {
    pub name: SessionName,
    pub node: NodeName,
    pub ttl: Duration,
    pub lock_delay: Duration,
    pub behavior: Behavior,
    pub node_checks: Vec<String>,
    pub service_checks: Vec<String>,
}

/// How a claim contends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcquireSettings {
    /// Give up after contending for this long.
    pub timeout: Option<Duration>,
    /// Give up after one attempt.
    pub try_once: bool,
    /// Release a tenure after this long.
    pub max_hold: Option<Duration>,
}

/// The JSON object in a held key: `{"holder", "cluster", "since", "value"}`. `since` is filled in
/// by the keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// `<namespace>/<name>` of the claim.
    pub holder: String,
    /// The cluster's name.
    pub cluster: String,
    /// The user's text; empty for none.
    pub value: String,
}

/// What an earlier controller recorded of a claim, for a new one to go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The claim's session.
    pub session: SessionId,
    /// The tenure under it, if one was recorded: its token and beginning.
    pub tenure: Option<(FencingToken, Timestamp)>,
}
