//! A lock that is held.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use super::turns::Turn;
use crate::{
    clock::{Clock, Instant},
    consul::http::HttpConsul,
    holder::{Hold as _, Holder, Tenure},
    keeper::{ClaimId, Keepers, StopState, Wanted},
    names::{FencingToken, Key},
};

/// How much longer than it may be relied on a release is waited for.
const RELEASE: Duration = Duration::from_secs(2);

/// A lock that is held, or was: ask [`token`](Held::token) before each use.
///
/// # Guarantees
/// A token is given before *valid until* alone: the send time of the last good renewal + TTL, on a
/// clock that counts suspend. A tenure that is lost is not taken up again.
/// # Not guaranteed
/// That nothing of yours acts later: a process may be frozen between asking and acting. Send the
/// token with every write, and have writes refused that carry a smaller one than was seen.
///
/// # Dropped
/// It is given up in the background, as long as its [`Locks`](super::Locks) or another lock of it is
/// there and the runtime runs. Else nothing is sent: Consul ends the session between one and two
/// TTLs after its last renewal, and the lock-delay follows. Dropping does not block. Whoever wants
/// to know how it went calls [`release`](Held::release).
pub struct Held {
    part: Part,
    key: Key,
    clock: Clock,
    token: FencingToken,
}

/// Consul did not confirm the release. It goes on in the background as long as the
/// [`Locks`](super::Locks) is there; else the session ends by its TTL and the lock-delay follows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Consul did not confirm that {0} was released")]
pub struct ReleaseError(pub(super) Key);

/// A part in the locks of a process. Dropped, it is given up.
pub(super) struct Part {
    keepers: Arc<Keepers<HttpConsul>>,
    id: ClaimId,
    pub(super) holder: Holder<HttpConsul>,
}

impl Part {
    pub(super) fn contend(
        keepers: &Arc<Keepers<HttpConsul>>,
        clock: &Clock,
        (id, wanted): (ClaimId, Wanted),
        turn: Turn,
    ) -> Part {
        let among = Arc::clone(keepers);
        let holder = Holder::among(among, clock.clone(), id.clone(), wanted, turn);
        Part { keepers: Arc::clone(keepers), id, holder }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.keepers.stop(&self.id);
        self.keepers.forget(&self.id);
    }
}

impl Held {
    pub(super) fn new(part: Part, key: Key, clock: Clock, tenure: &Tenure) -> Held {
        Held { part, key, clock, token: tenure.token }
    }

    /// The key that is held.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The fencing token, if the lock may be relied on now; `None` at and after *valid until*, and
    /// once it is known to be lost. It is the same for as long as the lock is held, and greater than
    /// that of every earlier holder. Ask again instead of keeping it.
    pub fn token(&self) -> Option<FencingToken> {
        self.tenure().map(|tenure| tenure.token)
    }

    /// Up to when the lock may be relied on, as far as renewals have been answered; `None` if it may
    /// not be. It moves with every renewal.
    pub fn valid_until(&self) -> Option<Instant> {
        self.tenure().map(|tenure| tenure.valid_until)
    }

    /// How long the lock may be relied on from now; zero if it may not be.
    pub fn remaining(&self) -> Duration {
        self.valid_until().map_or(Duration::ZERO, |end| end.since(self.clock.now()))
    }

    /// Ends as soon as the lock may not be relied on any more: at *valid until* at the latest,
    /// whatever the network does; at once when Consul says that session or key are gone; or by
    /// [`release`](Held::release) and drop. It borrows nothing, so that it may be awaited anywhere.
    /// Cancel-safe; so may be several at a time.
    ///
    /// How quickly a waiting task is woken is the runtime's affair: one whose threads are blocked
    /// comes late. [`token`](Held::token) does not.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mut watched, clock) = (self.part.holder.watch(), self.clock.clone());
        async move {
            while let Some(tenure) = watched.tenure() {
                tokio::select! {
                    () = clock.sleep_until(tenure.valid_until) => {}
                    changed = watched.changed() => if changed.is_err() { return },
                }
            }
        }
    }

    /// Gives the lock up; stop the work before. A key that was released is free at once. One that
    /// was lost already needs no release, and that is no error.
    ///
    /// # Errors
    /// [`ReleaseError`] if Consul did not confirm it until 2 s after *valid until*.
    ///
    /// # Cancellation
    /// Dropped, the release goes on in the background, as if the lock had been dropped.
    pub async fn release(mut self) -> Result<(), ReleaseError> {
        let now = self.clock.now();
        let until = self.valid_until().map_or(now, |end| end.max(now)) + RELEASE;
        let within = until.since(now);
        match self.clock.timeout(within, self.part.holder.release()).await {
            Ok(StopState::Clean) => Ok(()),
            _ => Err(ReleaseError(self.key.clone())),
        }
    }

    fn tenure(&self) -> Option<Tenure> {
        self.part.holder.tenure().filter(|tenure| tenure.token == self.token)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("key", &self.key)
            .field("token", &self.token())
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}
