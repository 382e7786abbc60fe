//! The keeper of one claim: a lock keeper and, of its own or shared, a session in one task.
//!
//! # Guarantees
//! Whatever happens at one instant, the end of *valid until* is looked at first. On a clean stop
//! the key is released before the session is destroyed, so no lock-delay follows.

use std::sync::Arc;

use tokio::sync::watch as channel;

use super::{
    KeeperView, Recorded, Stance, StopState, Wanted,
    lock::{LockKeeper, LockSettings},
    shared::{Answers, Shared},
    validity::Validity,
    watch::Watches,
};
use crate::{
    clock::Instant,
    consul::Consul,
    lock::{
        EndReason,
        key::Want,
        session::{Loss, Session},
    },
};

/// What the owner asks of a claim's keeper.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Command {
    pub(super) wanted: Wanted,
    /// Release, destroy, and end.
    pub(super) stop: bool,
}

/// What a claim's keeper shows.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) view: KeeperView,
    pub(super) stop: StopState,
}

pub(super) struct ClaimKeeper<C, V> {
    shared: Arc<Shared<C>>,
    answers: Answers,
    commands: channel::Receiver<Command>,
    command: Command,
    session: V,
    lock: LockKeeper<C>,
    /// The session state that the lock keeper knows of.
    told: Option<Session>,
    /// When to stop waiting for Consul to confirm a clean stop.
    give_up: Option<Instant>,
    shown: channel::Sender<Shown>,
    wake: Box<dyn Fn() + Send>,
}

impl<C: Consul, V: Validity> ClaimKeeper<C, V> {
    /// A keeper that starts when it is [run](ClaimKeeper::run). `session` and the word that its
    /// calls leave; `wake` is called when what it shows changed in more than *valid until*.
    pub(super) fn new(
        shared: &Arc<Shared<C>>,
        watches: &Watches<C>,
        mut commands: channel::Receiver<Command>,
        recorded: Option<Recorded>,
        (session, answers): (V, Answers),
        wake: Box<dyn Fn() + Send>,
    ) -> ClaimKeeper<C, V> {
        let command = commands.borrow_and_update().clone();
        let wanted = &command.wanted;
        let lock = LockKeeper::new(
            Arc::clone(shared),
            answers.clone(),
            LockSettings {
                key: wanted.key.clone(),
                payload: wanted.payload.clone(),
                leader: match &wanted.stance {
                    Stance::Contend { leader, .. } => leader.clone(),
                    Stance::StandBy(_) | Stance::Follow { .. } => None,
                },
                acquire: wanted.acquire.clone(),
                lent: wanted.session.lent.is_some(),
            },
            watches.feed(&wanted.prefix, &wanted.key, &answers),
            recorded.as_ref(),
        );
        let view = KeeperView {
            session: session.view(),
            lock: lock.view(),
            key: None,
            trouble: None,
            ended: Arc::default(),
        };
        ClaimKeeper {
            shared: Arc::clone(shared),
            answers,
            commands,
            command,
            session,
            lock,
            told: None,
            give_up: None,
            shown: channel::Sender::new(Shown { view, stop: StopState::Running }),
            wake,
        }
    }

    pub(super) fn shown(&self) -> channel::Receiver<Shown> {
        self.shown.subscribe()
    }

    /// Keeps the claim until it is told to stop and has stopped, cleanly or not.
    ///
    /// Boxed: by value the task would have room for several copies of it.
    pub(super) async fn run(mut self: Box<Self>) {
        let _alarm = self.shared.alarm();
        self.lock.look_again();
        self.obey();
        loop {
            let stop = self.settle();
            self.show(stop);
            if matches!(stop, StopState::Clean | StopState::Abandoned) {
                return;
            }
            let due = self.due();
            let clock = self.shared.clock.clone();
            tokio::select! {
                biased;
                () = async {
                    match due {
                        Some(due) => clock.sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                } => {}
                Ok(()) = self.commands.changed() => {
                    let before = self.command.wanted.attempt;
                    self.command = self.commands.borrow_and_update().clone();
                    self.expire();
                    self.obey();
                    if self.command.wanted.attempt != before {
                        self.lock.retry();
                    }
                }
                () = self.session.advance() => {}
                doubted = self.lock.advance() => {
                    if let Some(id) = doubted {
                        self.session.suspect(&id);
                    }
                }
                () = self.answers.changed() => {}
            }
        }
    }

    /// Does everything that is due by now, the end of validity first.
    fn settle(&mut self) -> StopState {
        self.expire();
        let now = self.shared.clock.now();
        self.session.tick(now);
        if self.session_is_spent() {
            // Before another attempt is made under it.
            self.session.end();
            self.tell_lock();
        }
        self.lock.tick();
        self.renew_terms();
        if self.lock.wants_session() && !self.session_is_spent() {
            self.session.want(now);
        } else if !self.lock.may_hold() {
            self.session.end();
        }
        self.tell_lock();
        if !self.command.stop {
            return StopState::Running;
        }
        if !self.lock.wants_session() && self.session.state() == Session::Absent {
            return StopState::Clean;
        }
        if self.give_up.is_none() {
            self.give_up = self.session.give_up(now);
        }
        match self.give_up {
            Some(end) if now >= end => StopState::Abandoned,
            _ => StopState::Stopping,
        }
    }

    fn expire(&mut self) {
        self.session.expire(self.shared.clock.now());
        self.tell_lock();
    }

    /// A session that may not be relied on, or was made to other terms, gives way to a new one as
    /// soon as no key can be held under it.
    fn session_is_spent(&self) -> bool {
        let outdated = *self.session.settings() != self.command.wanted.session;
        let lost = matches!(self.session.state(), Session::Lost(_) | Session::Ending);
        !self.lock.may_hold() && (lost || outdated)
    }

    fn renew_terms(&mut self) {
        if self.session.state() == Session::Absent {
            self.session.set_settings(self.command.wanted.session.clone());
        }
    }

    /// Passes on what became of the session.
    fn tell_lock(&mut self) {
        let state = self.session.state();
        let valid = state.valid_until().is_some();
        let was_valid = self.told.is_some_and(|told| told.valid_until().is_some());
        match (was_valid, valid, self.session.id().cloned()) {
            (false, true, Some(id)) => self.lock.session_up(&id, self.session.lock_delay()),
            (true, false, _) => self.lock.session_lost(loss(state)),
            // An adoption came to nothing.
            (false, false, _)
                if self.told == Some(Session::Adopting) && state != Session::Adopting =>
            {
                self.lock.session_lost(loss(state));
            }
            _ => {}
        }
        self.told = Some(state);
    }

    fn obey(&mut self) {
        let wanted = self.command.wanted.clone();
        let stance = match self.command.stop {
            true => Stance::StandBy(EndReason::Stopped),
            false => wanted.stance,
        };
        self.lock.set_acquire(&wanted.acquire);
        self.lock.set_payload(wanted.payload);
        self.lock.set_record(wanted.record);
        match stance {
            Stance::Contend { leader, instead } => {
                self.lock.set_leader(leader, instead);
                self.lock.want(Want::Contend);
            }
            Stance::StandBy(reason) => self.lock.want(Want::Stand(reason)),
            Stance::Follow { release } => self.lock.follow(release, wanted.session.ttl),
        }
    }

    fn due(&self) -> Option<Instant> {
        let wanted = self.lock.wants_session();
        let give_up = self.give_up.filter(|_| self.command.stop);
        [self.session.next_due(wanted), self.lock.due(), give_up].into_iter().flatten().min()
    }

    fn show(&self, stop: StopState) {
        let view = KeeperView {
            session: self.session.view(),
            lock: self.lock.view(),
            key: self.lock.key_seen(),
            trouble: self.answers.trouble(),
            ended: Arc::clone(self.lock.ended()),
        };
        let mut news = false;
        self.shown.send_if_modified(|shown| {
            let known = shown.view.session.valid_until;
            let moved = known != view.session.valid_until;
            // A plain renewal moves *valid until* and is no news.
            if known.is_some() && view.session.valid_until.is_some() {
                shown.view.session.valid_until = view.session.valid_until;
            }
            news = shown.view != view || shown.stop != stop;
            *shown = Shown { view, stop };
            news || moved
        });
        if news {
            (self.wake)();
        }
    }
}

fn loss(state: Session) -> Loss {
    match state {
        Session::Lost(Loss::Expired) => Loss::Expired,
        // Any other end of validity is Consul's word, or our own wish.
        _ => Loss::Invalidated,
    }
}
