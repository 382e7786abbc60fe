//! `consul-lock run -- CMD`: acquire, work, release.

use std::{ffi::OsString, io, sync::Arc, time::Duration};

use tokio::select;

use super::{
    child::{Ready, SECRETS},
    descendants,
    nested::Outer,
    notice::{Notice, NoticeError},
    settings::LockSettings,
    signals::{self, Signals},
    terms::{self, Terms},
    work::Work,
};
use crate::{
    clock::Clock,
    consul::{Class, Consul, SessionInfo},
    holder::{Hold as _, Holder, Refused},
    keeper::{AcquireSettings, Payload, SessionSettings, Stance, StopState, Trouble, Wanted},
    lock::FailReason,
    names::{Key, NodeName, SessionId, SessionName},
    telemetry::Metrics,
};

/// How long a release may take at least, when Consul does not answer.
const RELEASE: Duration = Duration::from_secs(2);

/// What to hold, and what to run under it. Durations are as Consul takes them.
#[derive(Clone, Debug)]
pub struct RunSettings {
    /// The key to hold.
    pub key: Key,
    /// What the holder is called; with the host's name it is part of the session's name and of
    /// what is written into the key.
    pub name: String,
    /// This machine's name.
    pub host: String,
    /// The virtual catalog node that the session sits on.
    pub node: NodeName,
    /// How it is held. After `max_hold` the command is stopped.
    pub lock: LockSettings,
    /// Give up waiting for the lock after this long.
    pub wait: Option<Duration>,
    /// Give up after one attempt.
    pub try_once: bool,
    /// So often a Consul that does not answer is tried again; `None`: for ever.
    pub retries: Option<u32>,
    /// The time between two such tries.
    pub retry_interval: Duration,
    /// Use this session, and leave it as it is; its name, node, TTL, lock-delay, behaviour and checks
    /// count.
    pub session: Option<SessionId>,
    /// The tenure of the same key that this runs under, to take part in.
    pub outer: Option<Outer>,
    /// Contend again after the lock was lost.
    pub restart: bool,
    /// SIGTERM, SIGKILL and *valid until*.
    pub notice: Notice,
    /// Whether the command may see our Consul token.
    pub pass_consul_token: bool,
    /// Program and arguments.
    pub command: Vec<OsString>,
}

/// How a run that had the lock, or was told to stop waiting for it, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended by itself with this exit code.
    Code(u8),
    /// A signal ended the command, or us while we waited for the lock.
    Signal(u8),
    /// The lock was lost, and the command stopped.
    Lost,
    /// The lock was held for as long as it may be, and the command stopped.
    MaxHold,
}

/// Why a run did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Somebody else has the lock.
    #[error("{key} was not free {}", match reason {
        FailReason::AcquireTimeout => "within --wait",
        FailReason::Contended => "at the one attempt that --try-once allows",
    })]
    NotFree {
        /// The key.
        key: Key,
        /// Of two ways to give up, which.
        reason: FailReason,
    },
    /// Consul did not answer.
    #[error("Consul is out of reach: no answer")]
    Silent,
    /// A command could not be stopped in time under a session that is there already.
    #[error("the session has a TTL of its own: {0}")]
    Terms(#[source] NoticeError),
    /// A session that is there already would never end by itself.
    #[error(
        "session {0} has no TTL, so nobody would hear of its holder's end; make one with a TTL"
    )]
    NoTtl(SessionId),
    /// There is no such session.
    #[error("there is no session {0}")]
    NoSession(SessionId),
    /// A session that is there already holds the key already.
    #[error("{key} is held by session {session} already, and so by whoever else uses it")]
    Holds {
        /// The key.
        key: Key,
        /// The session.
        session: SessionId,
    },
    /// Consul did not answer, or not as it should.
    #[error("Consul is out of reach: {}: {}", .0.operation.as_str(), .0.message)]
    Unreachable(Trouble),
    /// Consul does not allow it, or does not take the settings.
    #[error("Consul refuses: {}: {}", .0.operation.as_str(), .0.message)]
    Refused(Trouble),
    /// The command could not be started.
    #[error("cannot run {command:?}: {source}")]
    Start {
        /// As it was given.
        command: OsString,
        /// What the kernel says.
        source: io::Error,
    },
    /// The guard could not be started, so the command was not.
    #[error("cannot guard the command: {0}")]
    Guard(#[source] io::Error),
    /// No signal handler could be installed.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// A keeper panicked.
    #[error("a keeper of the lock failed; this is a fault in consul-lock")]
    Broken,
}

impl RunError {
    /// What a call means that came to nothing.
    pub(super) fn of(trouble: Trouble) -> RunError {
        match trouble.class {
            Class::Denied | Class::Invalid => RunError::Refused(trouble),
            Class::Transient | Class::UnknownOutcome | Class::Lost => {
                RunError::Unreachable(trouble)
            }
        }
    }
}

impl RunSettings {
    /// A guard for the command.
    pub(super) fn guard(&self) -> io::Result<Ready> {
        let hidden = if self.pass_consul_token { &[][..] } else { &SECRETS };
        Ready::new(&self.command, hidden)
    }

    /// What a contender under these settings, who waits for so long, wants of its keepers. Every one
    /// has a session name of its own: keepers adopt what they find under theirs.
    fn wanted(&self, terms: Terms, wait: Option<Duration>, lent: Option<&SessionInfo>) -> Wanted {
        let holder = format!("{}/{}", self.host, self.name);
        let unique = rand::random::<u64>();
        let name = SessionName::new(format!("consul-lock/{holder}/{unique:016x}"));
        let own = SessionSettings {
            name,
            node: self.node.clone(),
            ttl: self.lock.ttl,
            lock_delay: self.lock.lock_delay,
            behavior: self.lock.behavior,
            node_checks: self.lock.node_checks.clone(),
            service_checks: self.lock.service_checks.clone(),
            lent: None,
            notice: terms.notice.length(),
        };
        let session = match lent {
            None => own,
            Some(lent) => SessionSettings {
                name: lent.name.clone(),
                node: lent.node.clone(),
                ttl: lent.ttl.unwrap_or(self.lock.ttl),
                lock_delay: lent.lock_delay,
                lent: Some(lent.id.clone()),
                ..own
            },
        };
        Wanted {
            key: self.key.clone(),
            prefix: self.key.as_str().into(),
            session,
            acquire: AcquireSettings {
                timeout: wait,
                try_once: self.try_once,
                // Ours to see to: the command has to be stopped before.
                max_hold: None,
                give_way: None,
                single: false,
            },
            payload: Payload {
                holder,
                cluster: String::new(),
                value: self.lock.value.clone(),
                pod: None,
            },
            stance: Stance::FOR_ITSELF,
            record: None,
            attempt: 1,
        }
    }

    /// The session that we are to use.
    async fn lent<C: Consul>(
        &self,
        consul: &C,
        clock: &Clock,
        id: &SessionId,
    ) -> Result<SessionInfo, RunError> {
        let session = terms::session(consul, clock, id).await?;
        let holder = terms::holder(consul, clock, &self.key).await?;
        if holder.as_ref() == Some(id) {
            return Err(RunError::Holds { key: self.key.clone(), session: id.clone() });
        }
        session.ok_or_else(|| RunError::NoSession(id.clone()))
    }
}

/// Waits for the lock, runs the command while it is held, and gives it up.
///
/// # Errors
/// [`RunError`]. No process is left then, and the lock has been given up as far as Consul answered.
///
/// # Cancellation
/// Dropped, it leaves the command to its guard, which stops it, and the session to its TTL.
pub async fn run<C: Consul + Clone>(
    consul: C,
    clock: Clock,
    settings: &RunSettings,
) -> Result<Outcome, RunError> {
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    if let Some(outer) = &settings.outer
        && let Some((mut nested, terms)) = outer.join(&consul, &clock, settings).await?
        && let Some(tenure) = nested.tenure()
    {
        let guard = settings.guard().map_err(RunError::Guard)?;
        let under = (terms, tenure);
        let work = Work::start(settings, &clock, &mut signals, guard, &mut nested, under)?;
        return work.done().await;
    }
    let lent = match &settings.session {
        Some(session) => Some(settings.lent(&consul, &clock, session).await?),
        None => None,
    };
    let terms = match &lent {
        Some(lent) => Terms::of(lent, settings.notice.grace())?,
        None => Terms { notice: settings.notice, lock_delay: settings.lock.lock_delay },
    };
    let metrics = Metrics::new(false);
    let (mut retries, mut began) = (settings.retries, clock.now());
    loop {
        let jitter = Arc::new(|| rand::random_range(0.0..1.0));
        let metrics = Arc::clone(&metrics);
        let waited = clock.now().since(began);
        let wait = settings.wait.map(|wait| wait.saturating_sub(waited));
        let wanted = settings.wanted(terms, wait, lent.as_ref());
        let guard = settings.guard().map_err(RunError::Guard)?;
        let holder = Holder::contend(consul.clone(), clock.clone(), metrics, jitter, wanted);
        let run = Run { settings, clock: &clock, terms, holder, signals: &mut signals };
        let ended = run.once(guard).await;
        descendants::reap();
        match ended {
            Ok(Outcome::Lost) if settings.restart => {
                tracing::warn!(key = %settings.key, "the lock was lost; contending again");
                (retries, began) = (settings.retries, clock.now());
            }
            Err(RunError::Unreachable(trouble)) if retries.is_some_and(|left| left > 0) => {
                tracing::warn!(?trouble, "Consul is out of reach; trying again");
                retries = retries.map(|left| left - 1);
                select! {
                    () = clock.sleep_until(clock.now() + settings.retry_interval) => {}
                    signal = signals.end() => return Ok(Outcome::Signal(signals::number(signal))),
                }
            }
            ended => return ended,
        }
    }
}

/// One try at the lock and, under it, of the command.
struct Run<'a, C> {
    settings: &'a RunSettings,
    clock: &'a Clock,
    terms: Terms,
    holder: Holder<C>,
    signals: &'a mut Signals,
}

impl<C: Consul> Run<'_, C> {
    async fn once(mut self, guard: Ready) -> Result<Outcome, RunError> {
        let key = &self.settings.key;
        tracing::info!(%key, "contending");
        let once = self.settings.try_once || self.settings.retries.is_some();
        let acquired = select! {
            acquired = self.holder.acquired(once) => acquired,
            signal = self.signals.end() => {
                self.release().await;
                return Ok(Outcome::Signal(signals::number(signal)));
            }
        };
        let outcome = match acquired {
            Ok(tenure) => {
                tracing::info!(%key, token = %tenure.token, session = %tenure.session, "held");
                let Run { settings, clock, terms, holder, signals } = &mut self;
                match Work::start(settings, clock, signals, guard, holder, (*terms, tenure)) {
                    Ok(work) => work.done().await,
                    Err(error) => Err(error),
                }
            }
            Err(Refused::Gave(reason)) => Err(RunError::NotFree { key: key.clone(), reason }),
            Err(Refused::Trouble(trouble)) => Err(RunError::of(trouble)),
            Err(Refused::Broken) => Err(RunError::Broken),
        };
        self.release().await;
        outcome
    }

    /// Releases, then destroys, in as much time as Consul needs to end the session by itself; a
    /// second signal cuts it short.
    async fn release(mut self) {
        let now = self.clock.now();
        let valid_until = self.holder.view().session.valid_until;
        let until = valid_until.map_or(now, |end| end.max(now)) + RELEASE;
        let clock = self.clock.clone();
        let state = select! {
            state = self.holder.release() => Some(state),
            () = clock.sleep_until(until) => None,
            _ = self.signals.end() => None,
        };
        if state != Some(StopState::Clean) {
            let key = &self.settings.key;
            tracing::warn!(%key, "not released: the session ends by its TTL, the lock-delay follows");
        }
    }
}
