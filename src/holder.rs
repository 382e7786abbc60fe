//! One lock held by this process: a pair of keepers that somebody waits for.
//!
//! The seam between keepers and whoever holds a lock where the work is: a command (`agent`), or a
//! program that uses this crate.
//!
//! # Guarantees
//! A [`Tenure`] is shown before its *valid until* alone.
//! # Not guaranteed
//! That whoever was shown one stops in time: [`Hold::changed`] may come late. Compare *valid until*
//! with the clock.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::{
    clock::{Clock, Instant},
    consul::{Class, Consul},
    keeper::{
        ClaimId, Follower, Jitter, KeeperView, Keepers, LockView, Recorded, StopState, Trouble,
        Wanted,
    },
    lock::FailReason,
    names::{FencingToken, SessionId},
    telemetry::Metrics,
};

/// Whoever knows until when a lock may be relied on.
pub trait Hold {
    /// The tenure, if it may be relied on.
    fn tenure(&self) -> Option<Tenure>;

    /// Returns when something changed, renewals included. Cancel-safe.
    ///
    /// # Errors
    /// [`Broken`]: nothing that was shown may be relied on.
    fn changed(&mut self) -> impl Future<Output = Result<(), Broken>>;
}

/// Contends for a lock from the beginning, and holds it once it is its own. Dropped, it releases
/// nothing: the session ends by its TTL.
pub struct Holder<C> {
    keepers: Arc<Keepers<C>>,
    id: ClaimId,
    watched: Watched,
}

/// Looks at a lock, and cannot end it.
#[derive(Clone, Debug)]
pub struct Watched {
    follower: Follower,
    clock: Clock,
}

/// A lock that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// Its fencing token.
    pub token: FencingToken,
    /// The session that holds the key.
    pub session: SessionId,
    /// Up to when it may be relied on.
    pub valid_until: Instant,
}

/// Why there is no lock, and will be none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It was not free.
    Gave(FailReason),
    /// Consul did not answer, or will not do it.
    Trouble(Trouble),
    /// A keeper has panicked.
    Broken,
}

/// A keeper has panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl From<Broken> for Refused {
    fn from(_: Broken) -> Refused {
        Refused::Broken
    }
}

impl<C: Consul> Holder<C> {
    /// Starts to contend. Must be called within a tokio runtime.
    pub fn contend(
        consul: C,
        clock: Clock,
        metrics: Arc<Metrics>,
        jitter: Jitter,
        wanted: Wanted,
    ) -> Holder<C> {
        Holder::take_up(consul, clock, metrics, jitter, wanted, None)
    }

    /// Goes on with what an earlier process left, if it did. Must be called within a tokio runtime.
    pub fn take_up(
        consul: C,
        clock: Clock,
        metrics: Arc<Metrics>,
        jitter: Jitter,
        wanted: Wanted,
        recorded: Option<Recorded>,
    ) -> Holder<C> {
        // Nobody needs waking: a follower hears more.
        let (wake, _) = mpsc::unbounded_channel();
        let keepers = Keepers::new(consul, clock.clone(), metrics, jitter, wake);
        let id = ClaimId(wanted.session.name.as_str().into());
        Holder::start(Arc::new(keepers), clock, id, (wanted, recorded), ())
    }

    /// The same among other holders of this process. `id` is nobody else's. `turn` is dropped when
    /// its keepers have ended, so that whoever waits for it finds none of their calls under way.
    pub fn among(
        keepers: Arc<Keepers<C>>,
        clock: Clock,
        id: ClaimId,
        wanted: Wanted,
        turn: impl Send + 'static,
    ) -> Holder<C> {
        Holder::start(keepers, clock, id, (wanted, None), turn)
    }

    fn start(
        keepers: Arc<Keepers<C>>,
        clock: Clock,
        id: ClaimId,
        (wanted, recorded): (Wanted, Option<Recorded>),
        turn: impl Send + 'static,
    ) -> Holder<C> {
        keepers.set_until(&id, wanted, recorded, turn);
        let follower = keepers.follow(&id).expect("its keepers were started just now");
        Holder { keepers, id, watched: Watched { follower, clock } }
    }

    /// What is wanted has changed, but for the key.
    pub fn want(&self, wanted: Wanted) {
        self.keepers.set(&self.id, wanted, None);
    }

    /// What its keepers know.
    pub fn view(&self) -> KeeperView {
        self.watched.follower.view()
    }

    /// For others to look at it.
    pub fn watch(&self) -> Watched {
        self.watched.clone()
    }

    /// Waits for the lock. `once`: not for a Consul that does not answer. Cancel-safe.
    ///
    /// # Errors
    /// [`Refused`] when waiting longer would be in vain.
    pub async fn acquired(&mut self, once: bool) -> Result<Tenure, Refused> {
        let mut trouble = None;
        loop {
            if let Some(tenure) = self.tenure() {
                return Ok(tenure);
            }
            let view = self.view();
            if let LockView::Failed { reason } = view.lock {
                return Err(trouble.map_or(Refused::Gave(reason), Refused::Trouble));
            }
            trouble = view.trouble;
            // What is denied or nonsense would be so again.
            let is_final = |trouble: &&Trouble| {
                once || matches!(trouble.class, Class::Denied | Class::Invalid)
            };
            if let Some(trouble) = trouble.as_ref().filter(is_final) {
                return Err(Refused::Trouble(trouble.clone()));
            }
            self.changed().await?;
        }
    }

    /// Releases the key, and destroys the session, in this order. Nobody may rely on the lock any
    /// more. Ends no later than Consul ends the session by itself.
    pub async fn release(&mut self) -> StopState {
        self.keepers.stop(&self.id);
        loop {
            match self.watched.follower.stopped() {
                StopState::Running | StopState::Stopping => {
                    if self.changed().await.is_err() {
                        return StopState::Abandoned;
                    }
                }
                ended => return ended,
            }
        }
    }
}

impl<C: Consul> Hold for Holder<C> {
    fn tenure(&self) -> Option<Tenure> {
        self.watched.tenure()
    }

    async fn changed(&mut self) -> Result<(), Broken> {
        tokio::select! {
            changed = self.watched.changed() => changed,
            () = self.keepers.panicked() => Err(Broken),
        }
    }
}

impl Hold for Watched {
    fn tenure(&self) -> Option<Tenure> {
        let view = self.follower.view();
        let token = view.token(self.clock.now())?;
        Some(Tenure { token, session: view.session.id?, valid_until: view.session.valid_until? })
    }

    async fn changed(&mut self) -> Result<(), Broken> {
        self.follower.changed().await;
        Ok(())
    }
}

/// This machine's name. One that is not told is not needed either: session names are unique.
pub fn this_host() -> String {
    let told = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(told.trim()).filter(|host| !host.is_empty()).unwrap_or("localhost").to_owned()
}
