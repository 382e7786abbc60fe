//! The crate's face: what a program that holds locks uses. See the crate's root.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Handle, sync::mpsc};

use crate::{
    clock::Clock,
    consul::{Class, http::HttpConsul},
    holder::{Refused, this_host},
    keeper::{
        AcquireSettings, ClaimId, Keepers, Payload, SessionSettings, Stance, Trouble, Wanted,
    },
    lock::FailReason,
    names::{Key, KeyError, NodeName, SessionName},
    telemetry::Metrics,
};

mod connection;
mod held;
mod settings;
mod turns;

pub use connection::{ConnectError, Connection};
pub use held::{Held, ReleaseError};
pub use settings::{LockDelay, Name, Prefix, Settings, SettingsError, Ttl};

use held::Part;
use turns::Turns;

/// The locks of a process under one prefix: a few connections to Consul, one session, one watch.
///
/// Any number of locks costs one renewal in two fifths of a TTL, and at most eight connections. They
/// share the session's fate: when it is lost, all of them are. A program that wants some of its
/// locks to live and die by themselves connects twice.
///
/// # Dropped
/// With the last of its locks it ends at once, and nothing is sent: Consul ends the session between
/// one and two TTLs after its last renewal. [`close`](Locks::close) ends it in order.
pub struct Locks {
    consul: HttpConsul,
    keepers: Arc<Keepers<HttpConsul>>,
    clock: Clock,
    settings: Settings,
    session: SessionSettings,
    holder: String,
    turns: Turns,
    /// How many were asked for so far.
    asked: AtomicU64,
}

/// Why a lock was not acquired. Nothing is held then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// What was given is no key.
    #[error("{given:?} is no key: {source}")]
    Key {
        /// What was given.
        given: String,
        /// What is wrong with it.
        source: KeyError,
    },
    /// The key is not under the prefix that these locks are made for.
    #[error("{key} is not {prefix}, nor under it, for which these locks are made")]
    Prefix {
        /// The key.
        key: Key,
        /// What it should begin with.
        prefix: String,
    },
    /// Somebody else holds the key, or a lock-delay runs.
    #[error("{0} is not free")]
    NotFree(Key),
    /// The key did not become ours in time.
    #[error("{key} did not become free within {within:?}")]
    TimedOut {
        /// The key.
        key: Key,
        /// How long it was waited for.
        within: Duration,
    },
    /// Consul does not answer, or not as it should. Only whoever waits for ever does not hear of it.
    #[error("Consul is out of reach: {0}")]
    Unreachable(String),
    /// Consul's ACLs forbid it; Consul's words name the rule that is missing.
    #[error("Consul denies it: {0}")]
    Denied(String),
    /// Consul does not take the settings, such as a TTL below its own minimum.
    #[error("Consul does not take this: {0}")]
    Invalid(String),
    /// A fault in this crate.
    #[error("a keeper of the locks failed; this is a fault in consul_lock")]
    Broken,
}

/// How long somebody waits.
#[derive(Clone, Copy)]
enum Wait {
    ForEver,
    Within(Duration),
    NotAtAll,
}

impl Locks {
    /// Prepares to hold locks. Starts tasks in the present tokio runtime, and the session with them;
    /// whether Consul answers shows when a lock is acquired.
    ///
    /// # Errors
    /// [`ConnectError`] if address, token and certificates make no client, or there is no runtime.
    pub fn connect(connection: Connection, settings: Settings) -> Result<Locks, ConnectError> {
        Handle::try_current().map_err(|_| ConnectError::NoRuntime)?;
        let (consul, clock) = (connection.client()?, Clock::boot());
        let holder = format!("{}/{}", this_host(), settings.name);
        let unique = rand::random::<u64>();
        let session = SessionSettings {
            name: SessionName::new(format!("consul-lock/{holder}/{unique:016x}")),
            node: NodeName::new(settings.node.as_str()),
            ttl: settings.ttl.get(),
            lock_delay: settings.lock_delay.get(),
            behavior: settings.behavior,
            node_checks: Vec::new(),
            service_checks: Vec::new(),
            lent: None,
            notice: Duration::ZERO,
        };
        // Nobody needs waking: a follower hears more.
        let (wake, _) = mpsc::unbounded_channel();
        let jitter = Arc::new(|| rand::random_range(0.0..1.0));
        let keepers =
            Keepers::new(consul.clone(), clock.clone(), Metrics::new(false), jitter, wake);
        let keepers = keepers.sharing(session.clone(), settings.prefix.shared());
        Ok(Locks {
            consul,
            keepers: Arc::new(keepers),
            clock,
            settings,
            session,
            holder,
            turns: Turns::default(),
            asked: AtomicU64::new(0),
        })
    }

    /// With Consul as the environment names it ([`Connection::from_env`]), and the default
    /// [`Settings`] for keys that begin with `prefix`.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub fn from_env(prefix: Prefix) -> Result<Locks, ConnectError> {
        Locks::connect(Connection::from_env()?, Settings::new(prefix))
    }

    /// Waits for the key for as long as it takes, also for a Consul that does not answer.
    ///
    /// Those of this process who want one key get it in the order of asking; among processes it is a
    /// race. A key that is free and was seen lately costs one request.
    ///
    /// # Errors
    /// [`AcquireError`], but neither `NotFree` nor `TimedOut` nor `Unreachable`.
    ///
    /// # Cancellation
    /// Cancel-safe: dropped, it holds nothing. What Consul may have granted meanwhile is given up in
    /// the background, and whoever is next of this process waits for that.
    pub async fn acquire(&self, key: &str) -> Result<Held, AcquireError> {
        self.contend(key, Wait::ForEver).await
    }

    /// The same, but not for longer than `within`.
    ///
    /// # Errors
    /// [`AcquireError`]; if Consul did not answer in all that time, `Unreachable`.
    ///
    /// # Cancellation
    /// As of [`acquire`](Locks::acquire).
    pub async fn acquire_within(&self, key: &str, within: Duration) -> Result<Held, AcquireError> {
        self.contend(key, Wait::Within(within)).await
    }

    /// The key, if it is free now. One attempt; a Consul that does not answer is not waited for
    /// longer than its calls may take, ten seconds.
    ///
    /// # Errors
    /// [`AcquireError`], of these `NotFree` also if another task of this process has the key, or
    /// waits for it.
    ///
    /// # Cancellation
    /// As of [`acquire`](Locks::acquire).
    pub async fn try_acquire(&self, key: &str) -> Result<Held, AcquireError> {
        self.contend(key, Wait::NotAtAll).await
    }

    /// Gives up every lock that is still held, ends the session, and logs out where there was a login.
    /// Stop the work before.
    ///
    /// # Errors
    /// [`CloseError`] if Consul did not confirm it before it ends the session by itself.
    ///
    /// # Cancellation
    /// Dropped, it leaves the session to its TTL.
    pub async fn close(self) -> Result<(), CloseError> {
        let is_clean = self.keepers.close().await;
        self.consul.log_out().await;
        if is_clean { Ok(()) } else { Err(CloseError) }
    }

    async fn contend(&self, key: &str, wait: Wait) -> Result<Held, AcquireError> {
        let key = self.key(key)?;
        let began = self.clock.now();
        let turn = match wait {
            Wait::ForEver => self.turns.wait(&key).await,
            Wait::Within(within) => {
                let turn = self.clock.timeout(within, self.turns.wait(&key)).await;
                turn.map_err(|_| AcquireError::TimedOut { key: key.clone(), within })?
            }
            Wait::NotAtAll => {
                self.turns.take(&key).ok_or_else(|| AcquireError::NotFree(key.clone()))?
            }
        };
        let left = match wait {
            Wait::Within(within) => Some(within.saturating_sub(self.clock.now().since(began))),
            Wait::ForEver | Wait::NotAtAll => None,
        };
        let is_once = matches!(wait, Wait::NotAtAll);
        let wanted = self.wanted(&key, left, is_once);
        let mut part = Part::contend(&self.keepers, &self.clock, wanted, turn);
        match part.holder.acquired(is_once).await {
            Ok(tenure) => Ok(Held::new(part, key, self.clock.clone(), &tenure)),
            Err(refused) => Err(why(key, wait, refused)),
        }
    }

    fn key(&self, given: &str) -> Result<Key, AcquireError> {
        let key = Key::new(given)
            .map_err(|source| AcquireError::Key { given: given.to_owned(), source })?;
        let prefix = self.settings.prefix.as_str();
        let is_under = prefix.ends_with('/') && key.as_str().starts_with(prefix);
        if !is_under && key.as_str() != prefix {
            return Err(AcquireError::Prefix { key, prefix: prefix.to_owned() });
        }
        Ok(key)
    }

    fn wanted(&self, key: &Key, timeout: Option<Duration>, once: bool) -> (ClaimId, Wanted) {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let wanted = Wanted {
            key: key.clone(),
            prefix: Arc::clone(self.settings.prefix.shared()),
            session: self.session.clone(),
            acquire: AcquireSettings {
                timeout,
                try_once: once,
                max_hold: None,
                give_way: None,
                single: true,
            },
            payload: Payload {
                holder: self.holder.clone(),
                cluster: String::new(),
                value: self.settings.value.clone(),
                pod: None,
            },
            stance: Stance::FOR_ITSELF,
            record: None,
            attempt: 1,
        };
        (ClaimId(number.to_string().into()), wanted)
    }
}

/// Consul did not confirm that everything was given up; the session ends by its TTL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Consul did not confirm that the locks were given up and the session ended")]
pub struct CloseError;

fn why(key: Key, wait: Wait, refused: Refused) -> AcquireError {
    match (refused, wait) {
        (Refused::Gave(FailReason::AcquireTimeout), Wait::Within(within)) => {
            AcquireError::TimedOut { key, within }
        }
        (Refused::Gave(_), _) => AcquireError::NotFree(key),
        (Refused::Trouble(trouble), _) => in_trouble(&trouble),
        (Refused::Broken, _) => AcquireError::Broken,
    }
}

fn in_trouble(trouble: &Trouble) -> AcquireError {
    let words = format!("{}: {}", trouble.operation.as_str(), trouble.message);
    match trouble.class {
        Class::Denied => AcquireError::Denied(words),
        Class::Invalid => AcquireError::Invalid(words),
        Class::Transient | Class::UnknownOutcome | Class::Lost => AcquireError::Unreachable(words),
    }
}

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locks")
            .field("prefix", &self.settings.prefix)
            .field("session", &self.session.name)
            .finish_non_exhaustive()
    }
}
