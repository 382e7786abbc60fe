//! What keepers let others see: plain data, a snapshot per claim. Whoever holds a view cannot
//! renew, release or end anything with it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    clock::Instant,
    consul::{Class, ConsulError, KvPair, Operation},
    election::Leader,
    lock::{EndReason, FailReason},
    names::{FencingToken, NodeName, SessionId},
};

/// Everything that the keepers of one claim know. Compared with `==` to decide whether anybody has
/// to be woken: it holds nothing that moves by itself, so a renewal changes `valid_until` only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeeperView {
    /// The claim's session.
    pub session: SessionView,
    /// The claim's standing with the key.
    pub lock: LockView,
    /// The key as last seen; `None` until it was read for the first time.
    pub key: Option<KeySeen>,
    /// The last call that failed, until one of its kind succeeds.
    pub trouble: Option<Trouble>,
    /// The newest ended tenures of these keepers, oldest first, at most ten.
    pub ended: Arc<Vec<EndedTenure>>,
}

/// A session's condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionHealth {
    /// None is wanted (paused, failed) or it has not been created yet.
    Absent,
    /// The last renewal succeeded.
    Healthy,
    /// Renewals fail, but *valid until* is still ahead.
    Jeopardy,
    /// Consul ended it, or *valid until* passed.
    Lost,
}

/// A session as its keeper knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Its condition.
    pub health: SessionHealth,
    /// Its identifier; of a lost one, the last.
    pub id: Option<SessionId>,
    /// The node it sits on.
    pub node: NodeName,
    /// The TTL that Consul granted last.
    pub ttl: Duration,
    /// Send time of the last good renewal + TTL.
    pub valid_until: Option<Instant>,
}

/// How a claim stands with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockView {
    /// Nothing is known yet: the key was not read, or Consul has not answered.
    Starting,
    /// Contending: somebody else holds the key, or it holds no lock, or there is no session yet.
    Waiting,
    /// Contending: nobody holds the key, and nobody may yet.
    LockDelay {
        /// When the next attempt is due, as far as it can be told.
        until: Option<Instant>,
    },
    /// Confirmed by Consul. To be relied on until the session's `valid_until` and no longer: ask
    /// [`KeeperView::token`].
    Held {
        /// This tenure's token.
        token: FencingToken,
        /// When Consul confirmed it (of an adopted tenure: as recorded).
        since: Timestamp,
        /// The same on our own clock.
        began: Instant,
        /// The pod that it is for; `None`: the claim itself.
        leader: Option<Arc<Leader>>,
        /// What the record beside the key says, empty if there is none; `None`: it was not read yet,
        /// or is not wanted.
        record: Option<Arc<[u8]>>,
    },
    /// One tenure of ours was ended, and another is being begun, with nobody between.
    HandingOver {
        /// Why the last one ended.
        reason: EndReason,
        /// When.
        since: Instant,
        /// The pod that the other is for; `None`: the claim itself.
        leader: Option<Arc<Leader>>,
    },
    /// The key is being given up.
    Releasing {
        /// Why.
        reason: EndReason,
    },
    /// The key was given up and is not wanted.
    Standby,
    /// The key is left to others.
    Following {
        /// The key, as it was read consistently after its last change; `None`: there is none.
        pair: Option<Arc<KvPair>>,
    },
    /// Gave up contending, and will not try again before its settings change.
    Failed {
        /// Why.
        reason: FailReason,
    },
}

/// The key as it was seen last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySeen {
    /// Nobody holds it (it may not even exist).
    Free,
    /// It exists with other flags than a lock's: somebody else's data.
    Conflict {
        /// The flags found.
        flags: u64,
    },
    /// Our session holds it.
    Ours,
    /// Somebody else's session holds it.
    Held(SeenHolder),
}

/// Another contender that holds the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenHolder {
    /// Its session.
    pub session: SessionId,
    /// The session's name, if it could be read.
    pub session_name: Option<String>,
    /// The node that the session sits on, if it could be read.
    pub node: Option<String>,
    /// The key's value.
    pub value: Vec<u8>,
}

/// A call that failed and was not followed by a success of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The call.
    pub operation: Operation,
    /// What the failure means.
    pub class: Class,
    /// Consul's words.
    pub message: String,
}

impl From<ConsulError> for Trouble {
    fn from(error: ConsulError) -> Trouble {
        Trouble { operation: error.operation, class: error.class, message: error.message }
    }
}

/// A tenure that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedTenure {
    /// Its token.
    pub token: FencingToken,
    /// The pod that it was for; `None`: the claim itself.
    pub pod: Option<Arc<str>>,
    /// When it began.
    pub from: Timestamp,
    /// When it ended.
    pub to: Timestamp,
    /// Why.
    pub reason: EndReason,
}

impl KeeperView {
    /// The token of the present tenure, if it may be relied on at `now`.
    pub fn token(&self, now: Instant) -> Option<FencingToken> {
        match (&self.lock, self.session.valid_until) {
            (LockView::Held { token, .. }, Some(valid_until)) if now < valid_until => Some(*token),
            _ => None,
        }
    }
}
