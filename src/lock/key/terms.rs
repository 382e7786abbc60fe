//! The words of the lock machine: what it is told, where it stands, what it asks for. Plain data.

use std::time::Duration;

use crate::{
    clock::Instant,
    lock::{EndReason, FailReason, session::Loss},
    names::{FencingToken, SessionId},
};

/// How to contend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Give up after contending for this long.
    pub timeout: Option<Duration>,
    /// Give up after one attempt.
    pub try_once: bool,
    /// Release a tenure after this long.
    pub max_hold: Option<Duration>,
    /// Release the tenure of this token, and let others have the key first.
    pub give_way: Option<FencingToken>,
    /// Contend for one tenure: after its end stand by.
    pub single: bool,
}

/// What the owner of the lock wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The key.
    Contend,
    /// Not the key, for this reason.
    Stand(EndReason),
}

/// The key as somebody read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Changes when Consul's indexes fell (a restored snapshot), so that lower ones count again.
    pub epoch: u64,
    /// The Raft index of this state: the key's `ModifyIndex`, or of a missing key the index of the
    /// answer.
    pub index: u64,
    /// What the key held.
    pub key: KeyState,
}

/// What a key held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It does not exist.
    Missing,
    /// It exists and nobody holds it.
    Free,
    /// It exists, nobody holds it, and its flags are not a lock's.
    Conflict,
    /// Our session holds it. `intact`: with our flags and our value.
    Ours {
        /// Whether flags and value are what we wrote.
        intact: bool,
    },
    /// Another session holds it.
    Other(SessionId),
}

/// One unbroken holding of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// Its identity.
    pub token: FencingToken,
    /// When it began.
    pub since: Instant,
}

/// Contending, with no attempt under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Since when.
    pub since: Instant,
    /// No attempt before this.
    pub not_before: Instant,
    /// In a lock-delay; its end, if the holder's lock-delay is known.
    pub delay: Option<Option<Instant>>,
    /// Races for the free key lost in a row.
    pub races_lost: u32,
}

impl Waiting {
    /// For how much of the time since the key was `freed` a lock-delay has kept everybody from it.
    pub fn delayed(self, freed: Instant, now: Instant) -> Duration {
        match self.delay {
            None => Duration::ZERO,
            Some(end) => end.unwrap_or(now).min(now).since(freed),
        }
    }
}

/// Where a lock stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// An earlier process held or awaited the key under a recorded session.
    Adopting(Option<Tenure>),
    /// Not contending.
    Standby,
    /// Contending.
    Waiting(Waiting),
    /// The acquisition was sent.
    Acquiring(Waiting),
    /// The acquisition was refused, or its fate is open; a consistent read was sent.
    Unclear(Waiting),
    /// Confirmed by Consul.
    Held {
        /// The tenure.
        tenure: Tenure,
        /// What is being asked of Consul meanwhile.
        errand: Option<Errand>,
    },
    /// A tenure was ended for another one of ours: the key is being given up and taken again in one
    /// commit.
    HandingOver {
        /// Why the last one ended.
        reason: EndReason,
        /// When.
        since: Instant,
    },
    /// The key is being given up.
    Releasing(EndReason),
    /// Given up contending.
    Failed(FailReason),
}

/// A call under way while the key is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// The key does not look like ours; a consistent read was sent.
    Doubt {
        /// When the tenure ends if that was not answered.
        until: Instant,
    },
    /// Flags or value are being restored or changed.
    Rewrite,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The owner wants this now.
    Wanted(Want),
    /// The owner wants the present tenure to end, for this reason, and another to begin, with nobody
    /// between.
    HandOver(EndReason),
    /// The owner wants the key after a failure: its settings changed.
    Retry,
    /// There is a valid session.
    SessionUp,
    /// The session may not be relied on any more.
    SessionLost(Loss),
    /// The key was seen by a watch.
    Seen(Seen),
    /// The value to be written changed.
    ValueChanged,
    /// Consul locked the key for our session, in a commit of this index.
    Locked(u64),
    /// Another session holds the key.
    RefusedHeld,
    /// Nobody holds the key and nobody may. The lock-delay of the last holder seen, if known.
    RefusedDelay(Option<Duration>),
    /// The key is not what it was when last seen.
    RefusedChanged,
    /// The acquisition did not happen, and is not to be tried again for so long.
    LockFailed {
        /// How long.
        pause: Duration,
    },
    /// The acquisition may have happened.
    LockUnclear,
    /// The key is held under the recorded session, but not in the recorded tenure.
    Superseded,
    /// The consistent read found this; whether Consul still knows our session.
    Read {
        /// The key.
        seen: Seen,
        /// Whether our session was found.
        session_alive: bool,
    },
    /// Flags and value were written, in a commit of this index.
    Rewritten(u64),
    /// Flags and value were not written: the key is not ours.
    RewriteRefused,
    /// The key is not ours any more; the index of the commit that freed it, if it was ours.
    Released(Option<u64>),
    /// The key was not given up: it is not what it was when last seen.
    ReleaseRefused,
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Lock the key, provided that it still is as expected.
    LockKey(Expect),
    /// Read key and session consistently, until answered.
    ReadKey,
    /// Give the key up and take it again in one commit, provided that its `ModifyIndex` still is
    /// this; until answered. For a tenure of its own with nobody between, or for an index that no
    /// call of an earlier process expects.
    BeginAnew {
        /// The index.
        index: u64,
    },
    /// Write our flags and value to the key that we hold, until answered.
    RewriteKey,
    /// Give the key up, provided that its `ModifyIndex` still is this; until answered. A release
    /// that is repeated, and arrives once more after the key was taken again under the same
    /// session, must not end that tenure.
    ReleaseKey {
        /// The index.
        index: u64,
    },
}

/// What the key has to be for an acquisition to happen: nobody else's data is ever overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It does not exist.
    Missing,
    /// Its `ModifyIndex` is this.
    Index(u64),
}
