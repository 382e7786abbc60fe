//! The session keeper: drives the session machine of one claim against Consul and the clock.
//!
//! It is not a task of its own: [`SessionKeeper::advance`] is awaited by the claim's task beside the
//! lock keeper's. At most one call is under way at a time.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};

use super::{
    SessionHealth, SessionSettings, SessionView,
    retry::Backoff,
    shared::{Answers, Shared},
    validity::Validity,
};
use crate::{
    clock::Instant,
    consul::{Class, Consistency, Consul, ConsulError, Operation, SessionRequest},
    lock::session::{Effect, Event, Loss, Session},
    names::SessionId,
};

/// The time limit of a creation, with what has to precede it.
const CREATE: Duration = Duration::from_secs(5);

pub(super) struct SessionKeeper<C> {
    shared: Arc<Shared<C>>,
    answers: Answers,
    settings: SessionSettings,
    state: Session,
    id: Option<SessionId>,
    ttl: Duration,
    /// Send time of the last good renewal or creation.
    renewed: Option<Instant>,
    /// When to create or renew next.
    due: Instant,
    backoff: Backoff,
    /// It was created by this process, to the present settings.
    created: bool,
    /// A creation was unclear: sessions of our name that are not ours may turn up.
    sweep: bool,
    call: Option<BoxFuture<'static, Answer>>,
}

/// What became of a call.
enum Answer {
    Created {
        id: SessionId,
        sent: Instant,
    },
    CreateFailed(ConsulError),
    Renewed {
        sent: Instant,
        ttl: Duration,
    },
    RenewFailed(ConsulError),
    /// The session of our name, if there is one.
    Named(Option<SessionId>),
    Confirmed {
        present: bool,
    },
    Destroyed,
    /// Sessions of our name beside ours have been ended, as far as they could be.
    Swept {
        all: bool,
    },
}

impl<C: Consul> SessionKeeper<C> {
    /// `recorded`: the session of an earlier process, or one that is lent to us, to be adopted.
    pub(super) fn new(
        shared: Arc<Shared<C>>,
        answers: Answers,
        settings: SessionSettings,
        recorded: Option<SessionId>,
    ) -> SessionKeeper<C> {
        let mut keeper = SessionKeeper {
            ttl: settings.ttl,
            due: shared.clock.now(),
            shared,
            answers,
            settings,
            state: Session::Absent,
            id: recorded,
            renewed: None,
            backoff: Backoff::default(),
            created: false,
            sweep: false,
            call: None,
        };
        if keeper.id.is_some() {
            keeper.on(Event::Recorded);
        }
        keeper
    }

    /// The instant by which Consul has surely ended the session if nobody renews it any more: in
    /// practice 2×TTL after the last renewal it can have seen.
    pub(super) fn gone_by(&self) -> Option<Instant> {
        self.renewed.map(|sent| sent + self.ttl * 2)
    }

    fn take_in(&mut self, answer: Answer) {
        match answer {
            Answer::Created { id, sent } => {
                self.no_trouble_with_creation();
                self.id = Some(id);
                self.created = true;
                self.ttl = self.settings.ttl;
                self.good(sent, self.ttl);
                self.on(Event::Created(sent + self.ttl));
            }
            Answer::CreateFailed(error) => {
                let unclear = error.class == Class::UnknownOutcome
                    && error.operation == Operation::CreateSession;
                self.sweep |= unclear;
                self.failed(error);
                self.on(if unclear { Event::CreateUnclear } else { Event::CreateFailed });
            }
            Answer::Renewed { sent, ttl } => {
                self.answers.succeeded(Operation::RenewSession);
                self.good(sent, ttl);
                self.on(Event::Renewed(sent + ttl));
                if self.sweep && self.state.valid_until().is_some() {
                    self.sweep();
                }
            }
            Answer::RenewFailed(error) if error.class == Class::Lost => self.on(Event::Missing),
            Answer::RenewFailed(error) => {
                self.failed(error);
                self.on(Event::RenewFailed);
            }
            Answer::Named(Some(id)) => {
                self.no_trouble_with_creation();
                self.id = Some(id);
                self.created = false;
                self.on(Event::Found);
            }
            Answer::Named(None) => self.on(Event::NotFound),
            Answer::Confirmed { present: true } => {
                // Renewed again, but not without end should Consul go on contradicting itself.
                let pause = self.backoff.pause(Class::Lost, self.shared.jitter());
                self.due = self.shared.clock.now() + pause;
                self.on(Event::ConfirmedPresent);
            }
            Answer::Confirmed { present: false } => self.on(Event::ConfirmedMissing),
            Answer::Destroyed => {
                self.due = self.shared.clock.now();
                self.on(Event::Destroyed);
            }
            Answer::Swept { all } => self.sweep = !all,
        }
    }

    fn no_trouble_with_creation(&self) {
        self.answers.succeeded(Operation::CreateSession);
        self.answers.succeeded(Operation::RegisterNode);
        self.answers.succeeded(Operation::ListSessions);
    }

    /// Ends sessions of our name beside ours. The next renewal waits for it, so it is bounded.
    fn sweep(&mut self) {
        let Some(id) = self.id.clone() else { return };
        let (shared, settings, within) =
            (Arc::clone(&self.shared), self.settings.clone(), self.ttl / 4);
        let swept = async move {
            let sweep = sweep_doubles(&shared, &settings, &id);
            Answer::Swept { all: shared.clock.timeout(within, sweep).await.unwrap_or(false) }
        };
        self.call = Some(swept.boxed());
    }

    fn good(&mut self, sent: Instant, ttl: Duration) {
        self.backoff.clear();
        self.renewed = Some(sent);
        self.ttl = ttl;
        let rest = ttl.saturating_sub(self.settings.notice).max(ttl / 2);
        self.due = next_renewal(sent, rest, self.shared.jitter());
    }

    fn failed(&mut self, error: ConsulError) {
        let jitter = self.shared.jitter();
        let pause = match self.state.valid_until() {
            Some(_) => self.backoff.pause_in_jeopardy(jitter),
            None => self.backoff.pause(error.class, jitter),
        };
        self.due = self.shared.clock.now() + pause;
        self.answers.failed(error);
    }

    fn on(&mut self, event: Event) {
        match self.state.step(event) {
            Ok((state, effect)) => {
                let moved = std::mem::discriminant(&state) != std::mem::discriminant(&self.state);
                if moved {
                    // Whatever was under way belonged to the state that is left.
                    self.call = None;
                    self.entered(state);
                }
                self.state = state;
                if let Some(effect) = effect {
                    self.perform(effect);
                }
            }
            Err(illegal) => {
                debug_assert!(false, "{illegal}");
                tracing::error!(%illegal, "the session keeper met an event that cannot be");
            }
        }
    }

    fn entered(&mut self, state: Session) {
        match state {
            Session::Absent
                if self.state != Session::Creating && self.state != Session::Seeking =>
            {
                self.id = None;
                self.renewed = None;
            }
            Session::Lost(Loss::Invalidated) => self.due = self.shared.clock.now(),
            _ => {}
        }
    }

    fn perform(&mut self, effect: Effect) {
        let shared = Arc::clone(&self.shared);
        let answers = self.answers.clone();
        let settings = self.settings.clone();
        let Some(id) = self.id.clone() else {
            self.call = match effect {
                Effect::Create => Some(create(shared, settings).boxed()),
                _ => Some(find(shared, answers, settings).boxed()),
            };
            return;
        };
        self.call = Some(match effect {
            Effect::Create => create(shared, settings).boxed(),
            Effect::FindByName => find(shared, answers, settings).boxed(),
            Effect::Renew => {
                let left = self.state.valid_until().map(|end| end.since(shared.clock.now()));
                let within = left.map_or(self.ttl / 4, |left| left.min(self.ttl / 4));
                renew(shared, id, within).boxed()
            }
            Effect::Confirm => confirm(shared, answers, id).boxed(),
            Effect::Destroy if settings.lent.as_ref() == Some(&id) => {
                std::future::ready(Answer::Destroyed).boxed()
            }
            Effect::Destroy => destroy(shared, answers, id).boxed(),
        });
    }
}

impl<C: Consul> Validity for SessionKeeper<C> {
    fn state(&self) -> Session {
        self.state
    }

    fn id(&self) -> Option<&SessionId> {
        self.id.as_ref()
    }

    fn settings(&self) -> &SessionSettings {
        &self.settings
    }

    fn lock_delay(&self) -> Option<Duration> {
        self.created.then_some(self.settings.lock_delay)
    }

    fn set_settings(&mut self, settings: SessionSettings) {
        self.settings = settings;
    }

    fn give_up(&self, now: Instant) -> Option<Instant> {
        Some(self.gone_by().unwrap_or_else(|| now + self.settings.ttl * 2))
    }

    fn want(&mut self, now: Instant) {
        if self.state == Session::Absent && now >= self.due {
            self.on(Event::CreationDue);
        }
    }

    fn end(&mut self) {
        if !matches!(self.state, Session::Absent | Session::Creating | Session::Seeking) {
            self.on(Event::EndWanted);
        }
    }

    fn suspect(&mut self, id: &SessionId) {
        let alive = matches!(self.state, Session::Live { .. } | Session::Adopting);
        if alive && self.id.as_ref() == Some(id) {
            self.on(Event::Missing);
        }
    }

    fn expire(&mut self, now: Instant) {
        if self.state.valid_until().is_some_and(|end| now >= end) {
            self.on(Event::ValidUntilPassed);
        }
    }

    fn next_due(&self, wanted: bool) -> Option<Instant> {
        match self.state {
            Session::Absent => wanted.then_some(self.due),
            Session::Adopting if self.call.is_none() => Some(self.due),
            Session::Live { valid_until, .. } if self.call.is_none() => {
                Some(self.due.min(valid_until))
            }
            state => state.valid_until(),
        }
    }

    fn tick(&mut self, now: Instant) {
        let renews = matches!(self.state, Session::Live { .. } | Session::Adopting);
        if renews && self.call.is_none() && now >= self.due {
            self.perform(Effect::Renew);
        }
    }

    async fn advance(&mut self) {
        let answer = match &mut self.call {
            Some(call) => call.await,
            None => std::future::pending().await,
        };
        self.call = None;
        self.take_in(answer);
    }

    fn view(&self) -> SessionView {
        let health = match self.state {
            Session::Live { jeopardy: false, .. } => SessionHealth::Healthy,
            Session::Live { jeopardy: true, .. } | Session::Confirming { .. } => {
                SessionHealth::Jeopardy
            }
            Session::Lost(_) => SessionHealth::Lost,
            Session::Absent
            | Session::Creating
            | Session::Seeking
            | Session::Adopting
            | Session::Ending => SessionHealth::Absent,
        };
        SessionView {
            health,
            id: self.id.clone(),
            node: self.settings.node.clone(),
            ttl: self.ttl,
            valid_until: self.state.valid_until(),
        }
    }
}

async fn create<C: Consul>(shared: Arc<Shared<C>>, settings: SessionSettings) -> Answer {
    if let Some(lent) = &settings.lent {
        return Answer::CreateFailed(ConsulError {
            operation: Operation::ReadSession,
            class: Class::Invalid,
            message: format!("session {lent} is gone, and not ours to replace"),
        });
    }
    let prepared =
        shared.attempt(Operation::RegisterNode, CREATE, shared.prepare_node(&settings.node));
    if let Err(error) = prepared.await {
        return Answer::CreateFailed(error);
    }
    if let Some(id) = shared.take_left_behind(&settings.node, &settings.name) {
        return Answer::Named(Some(id));
    }
    let node = settings.node.clone();
    let request = SessionRequest {
        name: settings.name,
        node: settings.node,
        ttl: settings.ttl,
        lock_delay: settings.lock_delay,
        behavior: settings.behavior,
        node_checks: settings.node_checks,
        service_checks: settings.service_checks,
    };
    let sent = shared.clock.now();
    let creation = shared.consul.create_session(&request);
    match shared.attempt(Operation::CreateSession, CREATE, creation).await {
        Ok(id) => Answer::Created { id, sent },
        Err(error) => {
            if error.message.contains("Missing node registration") {
                shared.node_is_missing(&node).await;
            }
            Answer::CreateFailed(error)
        }
    }
}

async fn renew<C: Consul>(shared: Arc<Shared<C>>, id: SessionId, within: Duration) -> Answer {
    let sent = shared.clock.now();
    let renewal = shared.consul.renew_session(&id);
    let result = shared.attempt(Operation::RenewSession, within, renewal).await;
    let took = shared.clock.now().since(sent);
    shared.metrics.renewed(result.as_ref().err().map_or("ok", |error| error.class.as_str()), took);
    match result {
        Ok(renewal) => Answer::Renewed { sent, ttl: renewal.ttl },
        Err(error) => Answer::RenewFailed(error),
    }
}

/// When to renew again what was renewed by a call of `sent`, if whoever relies on it begins to stop
/// `rest` later: at two fifths of that, or a little before. Consul ends the session of a dead machine
/// two TTLs after its last renewal, so more renewals would let others wait for longer; fewer would leave
/// less time in which Consul may be away.
pub(super) fn next_renewal(sent: Instant, rest: Duration, jitter: f64) -> Instant {
    sent + (rest * 2 / 5).mul_f64(1.0 - jitter / 10.0)
}

/// Looks for sessions of our name. Of several the first made counts; the others end.
async fn find<C: Consul>(
    shared: Arc<Shared<C>>,
    answers: Answers,
    settings: SessionSettings,
) -> Answer {
    let listing = || shared.consul.node_sessions(&settings.node);
    let sessions = shared.until_answered(&answers, Operation::ListSessions, listing).await;
    let ours = sessions.into_iter().filter(|session| session.name == settings.name);
    let id = ours.min_by_key(|session| session.create_index).map(|session| session.id);
    if let Some(id) = &id {
        sweep_doubles(&shared, &settings, id).await;
    }
    Answer::Named(id)
}

/// Ends sessions of our name that are not `id`: a creation that was thought to have failed was
/// carried out late. What cannot be ended ends by its TTL. Returns whether all went well.
async fn sweep_doubles<C: Consul>(
    shared: &Shared<C>,
    settings: &SessionSettings,
    id: &SessionId,
) -> bool {
    let listing = shared.consul.node_sessions(&settings.node);
    let Ok(sessions) = shared.attempt(Operation::ListSessions, CREATE, listing).await else {
        return false;
    };
    let mut all = true;
    let doubles =
        sessions.into_iter().filter(|session| session.name == settings.name && session.id != *id);
    for double in doubles {
        let end = shared.consul.destroy_session(&double.id);
        if let Err(error) = shared.attempt(Operation::DestroySession, CREATE, end).await {
            tracing::warn!(session = %double.id, %error, "cannot end a session made twice");
            all = false;
        }
    }
    all
}

async fn confirm<C: Consul>(shared: Arc<Shared<C>>, answers: Answers, id: SessionId) -> Answer {
    let read = || shared.consul.session(&id, Consistency::Consistent);
    let session = shared.until_answered(&answers, Operation::ReadSession, read).await;
    Answer::Confirmed { present: session.is_some() }
}

async fn destroy<C: Consul>(shared: Arc<Shared<C>>, answers: Answers, id: SessionId) -> Answer {
    let end = || shared.consul.destroy_session(&id);
    shared.until_answered(&answers, Operation::DestroySession, end).await;
    Answer::Destroyed
}
