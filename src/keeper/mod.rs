//! Keepers: the tasks that drive the protocol (`lock`) against Consul (`consul`) and the clock.
//!
//! A *session keeper* creates, renews and destroys one session; a *lock keeper* acquires, watches
//! and releases one key under it; a *prefix watch* observes all keys under one prefix for every
//! lock keeper at once. [`Keepers`] joins them, one pair per claim, or one session for all
//! ([`Keepers::sharing`]).
//!
//! # Guarantees
//! [`KeeperView::token`] answers with a token only between Consul's confirmation and *valid until*.
//! A key is written only as it was last seen: an acquisition, a rewrite or a release that arrives
//! late finds another index or holder, and changes nothing. So does an order to end the tenure of a
//! dead holder ([`DeadTenure`]): a later one, of whomever, is left alone.
//! Dropping [`Keepers`] ends every task and releases nothing: whoever leads next adopts the
//! sessions. A [`Vigil`] renews them until then.
//! # Not guaranteed
//! A *destroy* that arrives late cannot be guarded so: should an earlier process have sent one for
//! a session that this one has adopted, the lock-delay is the margin.
//! That anybody is woken at *valid until* itself rather than a moment later: ask the view.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch as channel},
    task::JoinSet,
};

use crate::{
    clock::{Clock, Instant},
    consul::{Behavior, Consul},
    election::Leader,
    lock::EndReason,
    names::{FencingToken, Key, NodeName, SessionId, SessionName},
    telemetry::Metrics,
};

mod claim;
mod joint;
mod lock;
mod payload;
mod retry;
mod session;
mod shared;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod validity;
mod view;
mod vigil;
mod watch;
#[cfg(test)]
pub(crate) mod wire;

use claim::{ClaimKeeper, Command, Shown};
use joint::Joint;
pub use payload::{Payload, PodIdentity};
use session::SessionKeeper;
pub use shared::Jitter;
use shared::{Answers, Shared};
use validity::Validity;
pub use view::*;
pub use vigil::{Bequest, LIMIT, Vigil};
use watch::Watches;

/// Whose keepers: the claim's UID, so that a claim recreated under its old name gets new ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId(pub Arc<str>);

/// What a claim wants of its keepers. Setting the same again changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The key to contend for.
    pub key: Key,
    /// The prefix whose shared watch observes the key; the key starts with it, and it ends in `/`.
    /// Or the key itself, which is then watched alone.
    pub prefix: Arc<str>,
    /// How the session is made. A change while a tenure lasts takes effect with the next session.
    pub session: SessionSettings,
    /// How to contend.
    pub acquire: AcquireSettings,
    /// Written into the key, for other readers. A change while a tenure lasts is written at once
    /// and does not change the token.
    pub payload: Payload,
    /// Whether the key is wanted, and for whom.
    pub stance: Stance,
    /// A key beside it, that only holders write.
    pub record: Option<Record>,
    /// Another number makes a claim that failed contend again.
    pub attempt: i64,
}

/// A key beside the lock's, that only holders of the lock write. It is read consistently when a
/// tenure begins, and shown in [`LockView::Held`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: Key,
    /// What the tenure of this token, when it is given up, writes into it: in the same transaction,
    /// so by the holder or not at all.
    pub at_end: Option<(FencingToken, Vec<u8>)>,
}

/// Whether a claim wants its key, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stance {
    /// Hold it.
    Contend {
        /// The pod that the tenure is for; `None`: the claim itself. A tenure for another gives way
        /// to one for this, in one commit with nobody between, and with a token of its own.
        leader: Option<Arc<Leader>>,
        /// Why a tenure for another gives way.
        instead: EndReason,
    },
    /// For this reason: give it up cleanly, end the session, go on observing the key.
    StandBy(EndReason),
    /// Leave it to others, after giving it up in the same way: no session of ours, and the key as it
    /// is read consistently, after each change and once in each TTL of the session that there would
    /// be, shown as [`LockView::Following`].
    Follow {
        /// A tenure that is to be ended, for its holder cannot do it any more.
        release: Option<DeadTenure>,
    },
}

/// A tenure of somebody else, of whose death there is proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadTenure {
    /// The session that holds the key.
    pub session: SessionId,
    /// The key's `ModifyIndex` when it was seen so: if it is another by now, nothing is done.
    pub index: u64,
    /// Nobody is left who could use the session, so it is ended as well.
    pub end_session: bool,
}

impl Stance {
    /// Holding the key for the claim itself.
    pub const FOR_ITSELF: Stance =
        Stance::Contend { leader: None, instead: EndReason::PodUnmatched };
}

/// How to make a claim's session; see [`crate::consul::SessionRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "most are the fields of `SessionRequest` of the same name")]
pub struct SessionSettings {
    pub name: SessionName,
    pub node: NodeName,
    pub ttl: Duration,
    pub lock_delay: Duration,
    pub behavior: Behavior,
    pub node_checks: Vec<String>,
    pub service_checks: Vec<String>,
    /// Instead of making one, use this session of somebody else's: it is renewed, and neither
    /// replaced when it is lost nor destroyed when it is not needed.
    pub lent: Option<SessionId>,
    /// Whoever relies on it begins to stop so long before *valid until*, so renewals go out that
    /// much sooner.
    pub notice: Duration,
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
    /// Release the tenure of this token, and let others have the key first.
    pub give_way: Option<FencingToken>,
    /// Contend for one tenure: after its end stand by.
    pub single: bool,
}

/// What an earlier controller recorded of a claim, for a new one to go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The claim's session.
    pub session: SessionId,
    /// The tenure under it, if one was recorded.
    pub tenure: Option<RecordedTenure>,
}

/// A tenure as an earlier controller recorded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedTenure {
    /// Its token.
    pub token: FencingToken,
    /// When it began.
    pub since: Timestamp,
    /// The pod that it is for; `None`: the claim itself.
    pub leader: Option<Arc<Leader>>,
}

/// How far the keepers of one claim have come with stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopState {
    /// They were not asked to.
    Running,
    /// The key is being released, or the session destroyed.
    Stopping,
    /// The key was released, and the session destroyed.
    Clean,
    /// Consul did not answer before the session's own expiry, by which it ends the session itself.
    Abandoned,
}

/// The keepers of all claims of a process.
pub struct Keepers<C> {
    shared: Arc<Shared<C>>,
    watches: Watches<C>,
    /// The session of all claims, where they share one.
    joint: Option<Joint>,
    wake: mpsc::UnboundedSender<ClaimId>,
    claims: Mutex<BTreeMap<ClaimId, Claim>>,
    tasks: Mutex<JoinSet<()>>,
}

/// Follows the keepers of one claim. Unlike a wake it also tells of renewals.
#[derive(Clone, Debug)]
pub struct Follower(channel::Receiver<Shown>);

/// One claim's entry.
struct Claim {
    commands: channel::Sender<Command>,
    shown: channel::Receiver<Shown>,
}

impl<C: Consul> Keepers<C> {
    /// No keepers yet. `wake` receives the id of every claim whose view changed in more than its
    /// *valid until*.
    pub fn new(
        consul: C,
        clock: Clock,
        metrics: Arc<Metrics>,
        jitter: Jitter,
        wake: mpsc::UnboundedSender<ClaimId>,
    ) -> Keepers<C> {
        let shared = Shared::new(consul, clock, metrics, jitter);
        Keepers {
            watches: Watches::new(Arc::clone(&shared)),
            shared,
            joint: None,
            wake,
            claims: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// The same, with one session for all claims, whatever session each wants, and with a standing
    /// watch of everything under `prefix`. Must be called within a tokio runtime.
    ///
    /// The claims share its fate. Keys under the prefix are acquired with one call as long as they
    /// are as they were last seen. Two claims to one key would hold it both, for Consul tells
    /// sessions apart and not claims.
    #[must_use]
    pub fn sharing(mut self, session: SessionSettings, prefix: &Arc<str>) -> Keepers<C> {
        let (joint, task) = Joint::new(Arc::clone(&self.shared), session);
        self.tasks.lock().spawn(task);
        self.joint = Some(joint);
        self.watches.stand(prefix);
        self
    }

    /// Gives up every claim's key and then ends a shared session. Returns whether Consul confirmed
    /// all of it; it is not waited for longer than Consul needs to end the session by itself.
    pub async fn close(&self) -> bool {
        let claims: Vec<_> = self.claims.lock().keys().cloned().collect();
        for id in &claims {
            self.stop(id);
        }
        let Some(joint) = &self.joint else { return true };
        joint.close();
        let clock = &self.shared.clock;
        let gone_by = joint.gone_by().unwrap_or_else(|| clock.now() + joint.settings().ttl * 2);
        clock.timeout(gone_by.since(clock.now()), joint.closed()).await.is_ok()
    }

    /// Starts the claim's keepers, or tells them what is wanted now. `recorded` counts only when
    /// they start. Must be called within a tokio runtime.
    pub fn set(&self, id: &ClaimId, wanted: Wanted, recorded: Option<Recorded>) {
        self.set_until(id, wanted, recorded, ());
    }

    /// The same; `until` is dropped when keepers that were started now have ended, and nothing that
    /// they sent can be carried out any more unless Consul never confirmed it.
    pub fn set_until(
        &self,
        id: &ClaimId,
        mut wanted: Wanted,
        recorded: Option<Recorded>,
        until: impl Send + 'static,
    ) {
        if let Some(joint) = &self.joint {
            wanted.session = joint.settings().clone();
        }
        let mut claims = self.claims.lock();
        let command = Command { wanted, stop: false };
        if let Some(claim) = claims.get(id) {
            claim.commands.send_if_modified(|known| {
                let stopping = known.stop;
                let changed = *known != command && !stopping;
                if changed {
                    *known = command;
                }
                changed
            });
            return;
        }
        let answers = Answers::default();
        let shown = match &self.joint {
            Some(joint) => {
                let share = joint.share(answers.clone());
                self.start(id, command, recorded, (share, answers), until)
            }
            None => {
                let session = &command.wanted.session;
                let known = recorded.as_ref().map(|recorded| recorded.session.clone());
                let known = known.or_else(|| session.lent.clone());
                let shared = Arc::clone(&self.shared);
                let session = SessionKeeper::new(shared, answers.clone(), session.clone(), known);
                self.start(id, command, recorded, (session, answers), until)
            }
        };
        claims.insert(id.clone(), shown);
    }

    fn start<V: Validity + 'static>(
        &self,
        id: &ClaimId,
        command: Command,
        recorded: Option<Recorded>,
        session: (V, Answers),
        until: impl Send + 'static,
    ) -> Claim {
        let (commands, received) = channel::channel(command);
        let wake = (self.wake.clone(), id.clone());
        let keeper = Box::new(ClaimKeeper::new(
            &self.shared,
            &self.watches,
            received,
            recorded,
            session,
            // Nobody listens any more when the process stops leading.
            Box::new(move || drop(wake.0.send(wake.1.clone()))),
        ));
        let claim = Claim { commands, shown: keeper.shown() };
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            keeper.run().await;
            drop(until);
        });
        claim
    }

    /// What the claim's keepers know; `None` if it has none.
    pub fn view(&self, id: &ClaimId) -> Option<KeeperView> {
        self.claims.lock().get(id).map(|claim| claim.shown.borrow().view.clone())
    }

    /// Follows what the claim's keepers know; `None` if it has none.
    pub fn follow(&self, id: &ClaimId) -> Option<Follower> {
        self.claims.lock().get(id).map(|claim| Follower(claim.shown.clone()))
    }

    /// Asks the claim's keepers to stop cleanly: release, then destroy. Returns at once; wakes tell
    /// of progress.
    pub fn stop(&self, id: &ClaimId) {
        if let Some(claim) = self.claims.lock().get(id) {
            claim.commands.send_if_modified(|command| !std::mem::replace(&mut command.stop, true));
        }
    }

    /// How far stopping has come; `None` if the claim has no keepers.
    pub fn stopped(&self, id: &ClaimId) -> Option<StopState> {
        self.claims.lock().get(id).map(|claim| claim.shown.borrow().stop)
    }

    /// Forgets keepers. Those that have been told to stop do so nevertheless.
    pub fn forget(&self, id: &ClaimId) {
        self.claims.lock().remove(id);
    }

    /// The sessions that should live on though these keepers end: those that are valid, and that
    /// nobody has asked to give up.
    pub fn bequests(&self) -> Vec<Bequest> {
        let bequest = |claim: &Claim| {
            let shown = claim.shown.borrow();
            let view = &shown.view.session;
            Some(Bequest {
                session: view.id.clone().filter(|_| shown.stop == StopState::Running)?,
                ttl: view.ttl,
                valid_until: view.valid_until?,
            })
        };
        self.claims.lock().values().filter_map(bequest).collect()
    }

    /// The closest *valid until* of all sessions.
    pub fn tightest(&self) -> Option<Instant> {
        let valid_until = |claim: &Claim| claim.shown.borrow().view.session.valid_until;
        self.claims.lock().values().filter_map(valid_until).min()
    }

    /// Returns when a keeper has panicked: this process should not go on.
    pub async fn panicked(&self) {
        self.shared.panicked.cancelled().await;
    }
}

impl Follower {
    /// What the keepers know.
    pub fn view(&self) -> KeeperView {
        self.0.borrow().view.clone()
    }

    /// How far they have come with stopping.
    pub fn stopped(&self) -> StopState {
        self.0.borrow().stop
    }

    /// Returns when anything of it may have changed, *valid until* included; never again once the
    /// keepers have ended. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
