//! One session for many locks: a task that keeps it, and what each lock borrows of it.
//!
//! # Guarantees
//! A lock relies on no more than the session's *valid until*, which it compares with the clock by
//! itself. A session that may not be relied on is destroyed, and another made, only when no lock
//! can be held under it any more.
//! # Not guaranteed
//! A fate of one's own: what ends the session ends every tenure under it.

use std::{
    future::{Future, pending},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{
    SessionHealth, SessionSettings, SessionView, Trouble,
    session::SessionKeeper,
    shared::{Answers, Shared},
    validity::Validity,
};
use crate::{
    clock::Instant,
    consul::{Consul, ConsulError},
    lock::session::{Loss, Session},
    names::SessionId,
};

/// The session that all locks of these keepers share.
pub(super) struct Joint {
    settings: SessionSettings,
    told: watch::Receiver<Told>,
    desk: Arc<Desk>,
}

/// What is known of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    state: Session,
    view: SessionView,
    lock_delay: Option<Duration>,
    gone_by: Option<Instant>,
    trouble: Option<Trouble>,
}

/// Where locks leave word for the session's task.
#[derive(Default)]
struct Desk {
    word: Mutex<Word>,
    rung: Notify,
}

#[derive(Clone, Default)]
struct Word {
    /// So many locks rely on the session, or may hold something under it.
    passes: usize,
    /// Consul did not know this one.
    suspected: Option<SessionId>,
    close: bool,
}

impl Joint {
    /// The session, and the task that keeps it.
    pub(super) fn new<C: Consul>(
        shared: Arc<Shared<C>>,
        settings: SessionSettings,
    ) -> (Joint, impl Future<Output = ()> + Send) {
        let desk = Arc::new(Desk::default());
        let answers = Answers::default();
        let session =
            SessionKeeper::new(Arc::clone(&shared), answers.clone(), settings.clone(), None);
        let (tell, told) = watch::channel(Told::of(&session, &answers));
        let task = keep(shared, answers, session, Arc::clone(&desk), tell);
        (Joint { settings, told, desk }, task)
    }

    pub(super) fn settings(&self) -> &SessionSettings {
        &self.settings
    }

    /// One lock's part in it. Failures of the session's calls go to `answers`.
    pub(super) fn share(&self, answers: Answers) -> Share {
        let mut told = self.told.clone();
        // Trouble is news to this lock.
        let known = Told { trouble: None, ..told.borrow_and_update().clone() };
        Share {
            settings: self.settings.clone(),
            told,
            desk: Arc::clone(&self.desk),
            answers,
            pass: None,
            state: Session::Absent,
            known,
        }
    }

    /// Ends the session once nobody has a part in it, and makes no other.
    pub(super) fn close(&self) {
        self.desk.word.lock().close = true;
        self.desk.rung.notify_one();
    }

    /// Returns once it has ended.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut told = self.told.clone();
        async move { while told.changed().await.is_ok() {} }
    }

    /// The instant by which Consul has surely ended the session if nobody renews it any more.
    pub(super) fn gone_by(&self) -> Option<Instant> {
        self.told.borrow().gone_by
    }
}

/// Keeps the session until it is closed.
async fn keep<C: Consul>(
    shared: Arc<Shared<C>>,
    answers: Answers,
    mut session: SessionKeeper<C>,
    desk: Arc<Desk>,
    tell: watch::Sender<Told>,
) {
    let _alarm = shared.alarm();
    let clock = shared.clock.clone();
    loop {
        let now = clock.now();
        session.expire(now);
        session.tick(now);
        let word = desk.read();
        if let Some(id) = &word.suspected {
            session.suspect(id);
        }
        let spent = word.close || matches!(session.state(), Session::Lost(_));
        if spent && word.passes == 0 {
            session.end();
        }
        if !word.close {
            session.want(now);
        }
        let news = Told::of(&session, &answers);
        tell.send_if_modified(|told| {
            let changed = *told != news;
            *told = news;
            changed
        });
        if word.close && session.state() == Session::Absent {
            return;
        }
        let due = session.next_due(!word.close);
        tokio::select! {
            biased;
            () = async {
                match due {
                    Some(due) => clock.sleep_until(due).await,
                    None => pending().await,
                }
            } => {}
            () = desk.rung.notified() => {}
            () = session.advance() => {}
            () = answers.changed() => {}
        }
    }
}

impl Told {
    fn of<C: Consul>(session: &SessionKeeper<C>, answers: &Answers) -> Told {
        Told {
            state: session.state(),
            view: session.view(),
            lock_delay: session.lock_delay(),
            gone_by: session.gone_by(),
            trouble: answers.trouble(),
        }
    }
}

impl Desk {
    fn read(&self) -> Word {
        let mut word = self.word.lock();
        let read = word.clone();
        word.suspected = None;
        read
    }
}

/// Counts as one lock that relies on the session.
struct Pass(Arc<Desk>);

impl Pass {
    fn take(desk: &Arc<Desk>) -> Pass {
        desk.word.lock().passes += 1;
        Pass(Arc::clone(desk))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.word.lock().passes -= 1;
        self.0.rung.notify_one();
    }
}

/// One lock's part in a session that others share.
pub(super) struct Share {
    settings: SessionSettings,
    told: watch::Receiver<Told>,
    desk: Arc<Desk>,
    answers: Answers,
    /// While the lock relies on the session, or may hold the key under it.
    pass: Option<Pass>,
    /// As far as this lock is concerned; `Absent` without a pass.
    state: Session,
    known: Told,
}

impl Share {
    fn take_in(&mut self) {
        let told = self.told.borrow_and_update().clone();
        self.hear_of_trouble(told.trouble.as_ref());
        let is_same = told.view.id == self.known.view.id;
        self.known = told;
        self.state = match (&self.pass, self.state) {
            // Whoever wants the session takes it.
            (None, _) => Session::Absent,
            (Some(_), lost @ Session::Lost(_)) => lost,
            (Some(_), _) if !is_same => Session::Lost(Loss::Invalidated),
            (Some(_), _) => self.known.state,
        };
    }

    fn hear_of_trouble(&self, now: Option<&Trouble>) {
        match (&self.known.trouble, now) {
            (known, Some(now)) if known.as_ref() != Some(now) => self.answers.failed(ConsulError {
                operation: now.operation,
                class: now.class,
                message: now.message.clone(),
            }),
            (Some(known), None) => self.answers.succeeded(known.operation),
            _ => {}
        }
    }
}

impl Validity for Share {
    fn state(&self) -> Session {
        self.state
    }

    fn id(&self) -> Option<&SessionId> {
        self.known.view.id.as_ref()
    }

    fn settings(&self) -> &SessionSettings {
        &self.settings
    }

    fn lock_delay(&self) -> Option<Duration> {
        self.known.lock_delay
    }

    fn set_settings(&mut self, _: SessionSettings) {
        // They are everybody's.
    }

    fn give_up(&self, _: Instant) -> Option<Instant> {
        None
    }

    fn want(&mut self, now: Instant) {
        if self.pass.is_some() {
            return;
        }
        self.take_in();
        // What its task has not yet found expired would be taken over and over.
        if self.known.state.valid_until().is_some_and(|end| now < end) {
            self.pass = Some(Pass::take(&self.desk));
            self.state = self.known.state;
        }
    }

    fn end(&mut self) {
        self.pass = None;
        self.state = Session::Absent;
    }

    fn suspect(&mut self, id: &SessionId) {
        self.desk.word.lock().suspected = Some(id.clone());
        self.desk.rung.notify_one();
    }

    fn expire(&mut self, now: Instant) {
        if self.pass.is_some() {
            self.take_in();
        }
        if self.state.valid_until().is_some_and(|end| now >= end) {
            self.state = Session::Lost(Loss::Expired);
        }
    }

    fn next_due(&self, _: bool) -> Option<Instant> {
        self.state.valid_until()
    }

    fn tick(&mut self, _: Instant) {
        // The session's own task renews.
    }

    async fn advance(&mut self) {
        if self.told.changed().await.is_err() {
            // Nobody keeps it any more: it ends at *valid until*.
            pending::<()>().await;
        }
        self.take_in();
    }

    fn view(&self) -> SessionView {
        let SessionView { health, id, node, ttl, .. } = self.known.view.clone();
        let health = match (&self.pass, self.state) {
            (None, _) => SessionHealth::Absent,
            (Some(_), Session::Lost(_)) => SessionHealth::Lost,
            (Some(_), _) => health,
        };
        SessionView { health, id, node, ttl, valid_until: self.state.valid_until() }
    }
}
