//! The lock keeper: drives the lock machine of one claim against Consul and the clock.
//!
//! Like the session keeper it is awaited by the claim's task. It writes to the key only what the
//! protocol asks for: flags and value on every acquisition and release.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};

use super::{
    AcquireSettings, DeadTenure, EndedTenure, KeySeen, LockView, Payload, Record, Recorded,
    retry::Backoff,
    shared::{Answers, Shared},
    watch::{Lookout, Sighting},
};
use crate::{
    clock::Instant,
    consul::{Class, Consul, KvPair, Operation, Refusal, Txn, TxnOp},
    election::Leader,
    lock::{
        EndReason, LOCK_FLAGS,
        key::{self, Effect, Event, Expect, KeyState, Lock, Seen, Settings, State, Tenure, Want},
        session::Loss,
    },
    names::{FencingToken, Key, SessionId},
    telemetry::FailoverPart,
};

mod calls;
mod following;
mod inscription;
mod rival;

use calls::{Answer, acquire, pending_or, read, transact, value_of, written_index};
use following::Following;
use inscription::Inscription;
use rival::Rival;

/// How many ended tenures are remembered.
const REMEMBERED: usize = 10;

pub(super) struct LockKeeper<C> {
    shared: Arc<Shared<C>>,
    answers: Answers,
    key: Key,
    lent: bool,
    /// Of the present tenure, or of the attempt at one.
    inscription: Inscription,
    /// The pod that the next tenure is to be for.
    leader: Option<Arc<Leader>>,
    /// Why a tenure for another gives way.
    instead: EndReason,
    record: Option<Record>,
    /// What the record said when the present tenure began.
    recorded: Option<Arc<[u8]>>,
    /// The tenure that ended last.
    last: Option<FencingToken>,
    machine: Lock,
    lookout: Lookout,
    session: Option<SessionId>,
    /// The lock-delay of our session, if it is known.
    sessions_delay: Option<Duration>,
    /// The newest sighting as it came, to be read again when our session changes.
    sighted: Option<Sighting>,
    contending_since: Instant,
    rival: Rival<C>,
    ended: Arc<Vec<EndedTenure>>,
    backoff: Backoff,
    call: Option<BoxFuture<'static, Answer>>,
    record_call: Option<BoxFuture<'static, Arc<[u8]>>>,
    /// The key is left to others.
    following: Option<Following<C>>,
}

/// What the lock's owner wants of it.
pub(super) struct LockSettings {
    pub(super) key: Key,
    pub(super) payload: Payload,
    pub(super) leader: Option<Arc<Leader>>,
    pub(super) acquire: AcquireSettings,
    /// The session is lent, and may be to others, too.
    pub(super) lent: bool,
}

impl From<&AcquireSettings> for Settings {
    fn from(acquire: &AcquireSettings) -> Settings {
        Settings {
            timeout: acquire.timeout,
            try_once: acquire.try_once,
            max_hold: acquire.max_hold,
            give_way: acquire.give_way,
            single: acquire.single,
        }
    }
}

impl<C: Consul> LockKeeper<C> {
    /// `recorded`: what an earlier process recorded, to be adopted.
    pub(super) fn new(
        shared: Arc<Shared<C>>,
        answers: Answers,
        settings: LockSettings,
        lookout: Lookout,
        recorded: Option<&Recorded>,
    ) -> LockKeeper<C> {
        let now = shared.clock.now();
        let acquire = Settings::from(&settings.acquire);
        let mut since = shared.clock.wall();
        let mut tenant = settings.leader.clone();
        let machine = match recorded {
            None => Lock::contending(acquire, now),
            Some(recorded) => {
                let tenure = recorded.tenure.as_ref().map(|recorded| {
                    // The wall clock is the only witness of how long the tenure has lasted; it
                    // counts towards `maxHold` alone, which is no matter of safety.
                    let lasted = since.duration_since(recorded.since).unsigned_abs();
                    since = recorded.since;
                    tenant.clone_from(&recorded.leader);
                    Tenure { token: recorded.token, since: now - lasted }
                });
                Lock::adopting(acquire, tenure)
            }
        };
        let token = token_of(machine.state());
        let inscription = Inscription::new(settings.payload, tenant, since, token);
        let rival = Rival::nobody(Arc::clone(&shared));
        LockKeeper {
            shared,
            answers,
            key: settings.key,
            lent: settings.lent,
            inscription,
            leader: settings.leader,
            instead: EndReason::Preempted,
            record: None,
            recorded: None,
            last: None,
            machine,
            lookout,
            session: recorded.map(|recorded| recorded.session.clone()),
            sessions_delay: None,
            sighted: None,
            contending_since: now,
            rival,
            ended: Arc::default(),
            backoff: Backoff::default(),
            call: None,
            record_call: None,
            following: None,
        }
    }

    pub(super) fn state(&self) -> State {
        self.machine.state()
    }

    pub(super) fn wants_session(&self) -> bool {
        self.machine.wants_session()
    }

    /// Whether some key may be held, or become held, under the session.
    pub(super) fn may_hold(&self) -> bool {
        matches!(
            self.state(),
            State::Adopting(_)
                | State::Acquiring(_)
                | State::Unclear(_)
                | State::Held { .. }
                | State::HandingOver { .. }
                | State::Releasing(_)
        )
    }

    fn has_tenure(&self) -> bool {
        use State::{HandingOver, Held, Releasing};
        matches!(self.state(), Held { .. } | HandingOver { .. } | Releasing(_))
    }

    pub(super) fn want(&mut self, want: Want) {
        if self.following.take().is_some() {
            self.look_again();
        }
        self.on(Event::Wanted(want));
    }

    /// The key is left to others, and this tenure of theirs is to be ended.
    /// It is read anew once every `pulse`.
    pub(super) fn follow(&mut self, release: Option<DeadTenure>, pulse: Duration) {
        let new = || Following::new(&self.shared, &self.answers, &self.key, pulse);
        self.following.get_or_insert_with(new).release(release);
        self.on(Event::Wanted(Want::Stand(EndReason::Stopped)));
    }

    /// The settings changed, so a claim that failed contends again.
    pub(super) fn retry(&mut self) {
        self.on(Event::Retry);
    }

    pub(super) fn set_acquire(&mut self, acquire: &AcquireSettings) {
        self.machine.set_settings(acquire.into());
        self.tick();
    }

    pub(super) fn set_payload(&mut self, payload: Payload) {
        if self.inscription.set_payload(payload) {
            self.write_if_changed();
        }
    }

    /// The pod that a tenure is to be for, and why one for another gives way.
    pub(super) fn set_leader(&mut self, leader: Option<Arc<Leader>>, instead: EndReason) {
        self.leader = leader;
        self.instead = instead;
        self.hand_over_if_due();
    }

    /// The key beside ours, and what is to be written into it.
    pub(super) fn set_record(&mut self, record: Option<Record>) {
        let key = |record: &Option<Record>| record.as_ref().map(|record| record.key.clone());
        let is_another = key(&record) != key(&self.record);
        self.record = record;
        if is_another {
            self.read_record();
        }
    }

    /// Reads the record anew, if there is a tenure and it is wanted.
    fn read_record(&mut self) {
        self.recorded = None;
        let held = matches!(self.state(), State::Held { .. });
        self.record_call = self.record.as_ref().filter(|_| held).map(|record| {
            let (shared, answers) = (Arc::clone(&self.shared), self.answers.clone());
            value_of(shared, answers, record.key.clone()).boxed()
        });
    }

    /// A tenure for somebody else than the leader gives way.
    fn hand_over_if_due(&mut self) {
        if matches!(self.state(), State::Held { .. })
            && self.inscription.tenant() != self.leader.as_ref()
        {
            self.on(Event::HandOver(self.instead));
        }
    }

    /// The session may be relied on, under this id; its lock-delay, if it is known.
    pub(super) fn session_up(&mut self, id: &SessionId, lock_delay: Option<Duration>) {
        self.sessions_delay = lock_delay;
        if self.session.as_ref() != Some(id) {
            self.session = Some(id.clone());
            self.look_again();
        }
        self.on(Event::SessionUp);
    }

    /// The session may not be relied on any more.
    pub(super) fn session_lost(&mut self, loss: Loss) {
        self.on(Event::SessionLost(loss));
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.machine.due()
    }

    pub(super) fn tick(&mut self) {
        self.on(Event::Tick);
    }

    /// Waits for the next answer or sighting and takes it in. Cancel-safe. Returns the id of a
    /// session that Consul said it does not know.
    pub(super) async fn advance(&mut self) -> Option<SessionId> {
        tokio::select! {
            biased;
            answer = pending_or(&mut self.call) => {
                self.call = None;
                self.take_in(answer)
            }
            Ok(()) = self.lookout.feed.changed() => {
                self.look_again();
                None
            }
            record = pending_or(&mut self.record_call) => {
                self.record_call = None;
                self.recorded = Some(record);
                None
            }
            () = following::advance(&mut self.following) => None,
            () = self.rival.advance() => None,
        }
    }

    /// Takes in the watch's newest sighting, in the light of our present session.
    pub(super) fn look_again(&mut self) {
        self.sighted = self.lookout.feed.borrow_and_update().clone();
        if let Some(following) = &mut self.following {
            following.look();
        }
        if let Some(Sighting { epoch, index, pair }) = self.sighted.clone() {
            let seen = Seen { epoch, index, key: self.classify(pair.as_deref()) };
            if self.following.is_none() {
                self.see_holder(pair.as_deref());
            }
            self.on(Event::Seen(seen));
        }
    }

    pub(super) fn view(&self) -> LockView {
        match self.state() {
            State::Adopting(_) => LockView::Starting,
            State::Waiting(_) | State::Acquiring(_) | State::Unclear(_)
                if self.machine.seen().is_none() || self.rival.is_first_asked_for() =>
            {
                LockView::Starting
            }
            State::Waiting(waiting) | State::Acquiring(waiting) => match waiting.delay {
                Some(until) => LockView::LockDelay { until },
                None => LockView::Waiting,
            },
            State::Unclear(_) => LockView::Waiting,
            State::Held { tenure, .. } => LockView::Held {
                token: tenure.token,
                since: self.inscription.since(),
                began: tenure.since,
                leader: self.inscription.tenant().cloned(),
                record: self.recorded.clone(),
            },
            State::HandingOver { reason, since } => {
                LockView::HandingOver { reason, since, leader: self.inscription.tenant().cloned() }
            }
            State::Releasing(reason) => LockView::Releasing { reason },
            State::Standby => self.view_aside(),
            State::Failed(reason) => LockView::Failed { reason },
        }
    }

    fn view_aside(&self) -> LockView {
        match self.following.as_ref().map(Following::seen) {
            None => LockView::Standby,
            Some(None) => LockView::Starting,
            Some(Some(seen)) => LockView::Following { pair: seen.pair.clone() },
        }
    }

    pub(super) fn key_seen(&self) -> Option<KeySeen> {
        if let Some(following) = &self.following {
            let seen = following.seen()?;
            return Some(seen.shown(self.classify(seen.pair.as_deref())));
        }
        let seen = self.machine.seen().filter(|_| !self.rival.is_first_asked_for())?;
        Some(match &seen.key {
            KeyState::Missing | KeyState::Free => KeySeen::Free,
            KeyState::Conflict => {
                let pair = self.sighted.as_ref().and_then(|sighted| sighted.pair.as_ref());
                KeySeen::Conflict { flags: pair.map_or(0, |pair| pair.flags) }
            }
            KeyState::Ours { .. } => KeySeen::Ours,
            KeyState::Other(session) => KeySeen::Held(self.rival.shown(session)),
        })
    }

    pub(super) fn ended(&self) -> &Arc<Vec<EndedTenure>> {
        &self.ended
    }

    fn classify(&self, pair: Option<&KvPair>) -> KeyState {
        let Some(pair) = pair else { return KeyState::Missing };
        match &pair.session {
            Some(session) if Some(session) == self.session.as_ref() => {
                let intact = pair.flags == LOCK_FLAGS && pair.value == self.inscription.value();
                let is_ours = !self.lent
                    || self.has_tenure()
                    || self.inscription.is_of_an_attempt(&pair.value);
                if is_ours { KeyState::Ours { intact } } else { KeyState::Other(session.clone()) }
            }
            Some(session) => KeyState::Other(session.clone()),
            None if pair.flags == LOCK_FLAGS => KeyState::Free,
            None => KeyState::Conflict,
        }
    }

    /// Remembers who holds the key, if it is not us.
    fn see_holder(&mut self, pair: Option<&KvPair>) {
        let held = pair.and_then(|pair| Some((pair, pair.session.clone()?)));
        if let Some((pair, session)) = held.filter(|(_, one)| Some(one) != self.session.as_ref()) {
            self.rival.see(pair, session);
        }
    }

    fn take_in(&mut self, answer: Answer) -> Option<SessionId> {
        match answer {
            Answer::Locked { result: Ok(txn) } => {
                self.answers.succeeded(Operation::Transaction);
                return self.lock_judged(&txn);
            }
            Answer::Locked { result: Err(error) } => {
                let class = error.class;
                let pause = self.backoff.pause(class, self.shared.jitter());
                self.answers.failed(error);
                self.on(match class {
                    Class::UnknownOutcome => Event::LockUnclear,
                    _ => Event::LockFailed { pause },
                });
                if class == Class::Lost {
                    return self.session.clone();
                }
            }
            Answer::Read { pair, index, session_alive } => {
                let index = pair.as_ref().map_or(index, |pair| pair.modify_index);
                let epoch = self.sighted.as_ref().map_or(0, |sighted| sighted.epoch);
                self.see_holder(pair.as_ref());
                if self.is_superseded(pair.as_ref()) {
                    self.on(Event::Superseded);
                }
                let seen = Seen { epoch, index, key: self.classify(pair.as_ref()) };
                self.on(Event::Read { seen, session_alive });
                if !session_alive {
                    return self.session.clone();
                }
            }
            Answer::Rewritten(txn) => self.on(match written_index(&txn) {
                Some(index) => Event::Rewritten(index),
                None => Event::RewriteRefused,
            }),
            Answer::BegunAnew(txn) => self.on(match written_index(&txn) {
                Some(index) => Event::Locked(index),
                None => refused(&txn),
            }),
            Answer::Released(txn) => self.on(match written_index(&txn) {
                Some(index) => {
                    self.lookout.freed(self.sighted.as_ref().map_or(0, |seen| seen.epoch), index);
                    Event::Released(Some(index))
                }
                None => refused(&txn),
            }),
        }
        None
    }

    fn lock_judged(&mut self, txn: &Txn) -> Option<SessionId> {
        let refusals = match txn {
            Txn::Committed(_) => {
                self.backoff.clear();
                if let Some(index) = written_index(txn) {
                    self.on(Event::Locked(index));
                }
                return None;
            }
            Txn::RolledBack(refusals) => refusals,
        };
        self.inscription.attempt_failed();
        let met = |reason: &Refusal| refusals.iter().any(|refusal| refusal.reason == *reason);
        if met(&Refusal::InvalidSession) {
            // The session keeper finds out, which may take it a while.
            let pause = self.backoff.pause(Class::Lost, self.shared.jitter());
            self.on(Event::LockFailed { pause });
            return self.session.clone();
        }
        self.backoff.clear();
        self.on(if met(&Refusal::Held) {
            Event::RefusedHeld
        } else if met(&Refusal::LockDelay) {
            Event::RefusedDelay(self.rival.lock_delay())
        } else {
            Event::RefusedChanged
        });
        None
    }

    fn on(&mut self, event: Event) {
        let now = self.shared.clock.now();
        let before = self.machine.state();
        let freed = self.machine.freed();
        let effect = match self.machine.step(event.clone(), now, self.shared.jitter()) {
            Ok(effect) => effect,
            Err(illegal) => {
                debug_assert!(false, "{illegal}");
                tracing::error!(%illegal, "the lock keeper met an event that cannot be");
                return;
            }
        };
        let after = self.machine.state();
        if std::mem::discriminant(&before) != std::mem::discriminant(&after) {
            // Whatever was under way belonged to the state that is left.
            self.call = None;
        }
        self.record(before, &event, after, now, freed);
        if let Some(effect) = effect {
            self.perform(effect);
        }
        if matches!(self.state(), State::Held { .. }) {
            self.write_if_changed();
        }
        self.hand_over_if_due();
        let hopeless = matches!(
            self.machine.seen().map(|seen| &seen.key),
            Some(KeyState::Other(_) | KeyState::Conflict)
        );
        if hopeless && matches!(after, State::Waiting(_)) {
            // No further attempt will tell that the last one's trouble is over.
            self.answers.succeeded(Operation::Transaction);
        }
    }

    /// Whether the key is ours, but by a later acquisition than the recorded tenure's: the record
    /// was not kept up to the end, and others may have held the key since.
    fn is_superseded(&self, pair: Option<&KvPair>) -> bool {
        let (State::Adopting(Some(tenure)), Some(pair)) = (self.state(), pair) else {
            return false;
        };
        let token = tenure.token.get();
        if pair.session != self.session || pair.modify_index == token {
            return false;
        }
        // A rewrite keeps the beginning.
        pair.create_index > token || self.inscription.began_otherwise(&pair.value)
    }

    /// Keeps the history and the metrics.
    fn record(
        &mut self,
        before: State,
        event: &Event,
        after: State,
        now: Instant,
        freed: Option<Instant>,
    ) {
        if let Some((tenure, reason)) = key::ended(before, event, after) {
            self.remember(tenure, reason);
        }
        let token = |state: State| match state {
            State::Held { tenure, .. } => Some(tenure.token),
            _ => None,
        };
        if token(after).is_some() && token(after) != token(before) && !is_adopting(before) {
            let since_free = freed.map(|freed| now.since(freed));
            self.shared.metrics.acquired(now.since(self.contending_since), since_free);
            self.tell_failover(before, freed, now);
        }
        if token(after).is_some() && token(before).is_none() {
            // The holder before us is of no interest any more, and its lock-delay is not ours.
            self.rival.gone(self.sessions_delay);
        }
        if token(after) != token(before) {
            self.read_record();
        }
        match (before, after) {
            (_, State::Waiting(waiting)) => self.contending_since = waiting.since,
            (State::Held { .. }, State::Held { .. }) => {}
            (_, State::Held { .. }) => {
                // Whoever held the key before: a lock-delay that follows now is not theirs.
                self.rival.gone(None);
                self.answers.clear();
            }
            // Whoever follows goes on asking.
            (State::Standby, State::Standby) if self.following.is_some() => {}
            (_, State::Standby | State::Failed(_)) => self.answers.clear(),
            _ => {}
        }
    }

    /// A tenure began after another, of ours or of somebody else: which part of that took how long.
    fn tell_failover(&self, before: State, freed: Option<Instant>, now: Instant) {
        let (delayed, since) = match (before, freed) {
            (State::HandingOver { since, .. }, _) => (Duration::ZERO, since),
            (State::Acquiring(waiting) | State::Unclear(waiting), Some(freed)) => {
                (waiting.delayed(freed, now), freed)
            }
            _ => return,
        };
        let acquiring = now.since(since).saturating_sub(delayed);
        self.shared.metrics.failover(FailoverPart::LockDelay, delayed);
        self.shared.metrics.failover(FailoverPart::Acquisition, acquiring);
    }

    fn remember(&mut self, tenure: Tenure, reason: EndReason) {
        if !reason.is_clean() {
            self.shared.metrics.lost(reason.as_str());
        }
        self.last = Some(tenure.token);
        let ended = Arc::make_mut(&mut self.ended);
        if ended.len() == REMEMBERED {
            ended.remove(0);
        }
        ended.push(EndedTenure {
            token: tenure.token,
            pod: self.inscription.tenant().map(|tenant| Arc::clone(&tenant.pod)),
            from: self.inscription.since(),
            to: self.shared.clock.wall(),
            reason,
        });
    }

    /// What the tenure that is being given up has to say. Whoever is not the holder any more is
    /// refused as a whole: the key is given up in the same transaction.
    fn last_words(&self) -> Option<TxnOp> {
        let record = self.record.as_ref()?;
        let (token, value) = record.at_end.as_ref()?;
        (self.last == Some(*token)).then(|| TxnOp::Set {
            key: record.key.clone(),
            value: value.clone(),
            flags: 0,
        })
    }

    /// Writes the value anew if it should be another by now: the payload changed, or a token has
    /// become known that the value is to tell.
    fn write_if_changed(&mut self) {
        let token = token_of(self.state());
        if self.inscription.renew(token) {
            self.on(Event::ValueChanged);
        }
    }

    fn perform(&mut self, effect: Effect) {
        let Some(session) = self.session.clone() else { return };
        let begins = match effect {
            Effect::LockKey(_) => true,
            Effect::BeginAnew { .. } => !is_adopting(self.state()),
            _ => false,
        };
        if begins {
            self.inscription.begin(self.leader.clone(), self.shared.clock.wall());
        }
        let (shared, answers) = (Arc::clone(&self.shared), self.answers.clone());
        let key = self.key.clone();
        let ours = |key: Key, value: Vec<u8>| TxnOp::Lock {
            key,
            session: session.clone(),
            value,
            flags: LOCK_FLAGS,
        };
        let lock = ours(key.clone(), self.inscription.value().to_vec());
        // A free key says nothing of who held it.
        let unlock = TxnOp::Unlock {
            key: key.clone(),
            session: session.clone(),
            value: Vec::new(),
            flags: LOCK_FLAGS,
        };
        self.call = Some(match effect {
            Effect::LockKey(expect) => {
                self.inscription.attempted(expect);
                let check = match expect {
                    Expect::Missing => TxnOp::CheckNotExists { key },
                    Expect::Index(index) => TxnOp::CheckIndex { key, index },
                };
                acquire(shared, vec![check, lock]).boxed()
            }
            Effect::ReadKey => read(shared, answers, key, session.clone()).boxed(),
            Effect::RewriteKey => {
                let check = TxnOp::CheckSession { key, session: session.clone() };
                transact(shared, answers, vec![check, lock], Answer::Rewritten).boxed()
            }
            Effect::BeginAnew { index } => {
                let check = TxnOp::CheckIndex { key, index };
                let steps = [check].into_iter().chain(self.last_words()).chain([unlock, lock]);
                transact(shared, answers, steps.collect(), Answer::BegunAnew).boxed()
            }
            Effect::ReleaseKey { index } => {
                let check = TxnOp::CheckIndex { key, index };
                let steps = [check].into_iter().chain(self.last_words()).chain([unlock]);
                transact(shared, answers, steps.collect(), Answer::Released).boxed()
            }
        });
    }
}

/// What it means that a transaction whose first step checks the key's index came to nothing.
fn refused(txn: &Txn) -> Event {
    match txn {
        Txn::RolledBack(refusals) if refusals.iter().all(|refusal| refusal.op == 0) => {
            Event::ReleaseRefused
        }
        _ => Event::Released(None),
    }
}

/// Of the tenure that there is, or that is being adopted.
fn token_of(state: State) -> Option<FencingToken> {
    match state {
        State::Held { tenure, .. } | State::Adopting(Some(tenure)) => Some(tenure.token),
        _ => None,
    }
}

fn is_adopting(state: State) -> bool {
    matches!(state, State::Adopting(Some(_)))
}
