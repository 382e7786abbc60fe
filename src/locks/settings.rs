//! What locks are made with: validated once, not doubted again.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    api::VALUE_MAX_CHARS,
    consul::Behavior,
    names::{Key, KeyError},
};

const SECOND: Duration = Duration::from_secs(1);
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3600);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
const NAME_MAX: usize = 64;

/// A setting that is not allowed: which, and what is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// See [`Prefix::new`].
    #[error("prefix: {0}")]
    Prefix(#[source] KeyError),
    /// See [`Ttl::new`].
    #[error("a TTL lasts 1s to 24h, not {0:?}")]
    Ttl(Duration),
    /// See [`LockDelay::new`].
    #[error("a lock-delay lasts 0s to 60s, not {0:?}")]
    LockDelay(Duration),
    /// See [`Name::new`].
    #[error("a name has 1 to 64 characters, each a letter, a digit or one of . _ -, not {0:?}")]
    Name(String),
    /// See [`Settings::value`].
    #[error("a value has at most {VALUE_MAX_CHARS} characters, this one has {0}")]
    Value(usize),
}

/// What the keys of some locks begin with, such as `jobs/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// As a key, and it may end in `/`: 1 to 512 letters, digits and `_ . / -`.
    ///
    /// One query watches everything under it, and answers with all of it whenever something there
    /// changes: choose a folder that holds locks and little else. Without a `/` at its end it is a
    /// single key, and the only one that can be locked.
    ///
    /// # Errors
    /// [`SettingsError::Prefix`]
    pub fn new(raw: &str) -> Result<Prefix, SettingsError> {
        let bare = raw.strip_suffix('/').unwrap_or(raw);
        let _valid = Key::new(bare).map_err(SettingsError::Prefix)?;
        Ok(Prefix(raw.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn shared(&self) -> &Arc<str> {
        &self.0
    }
}

/// How long a session, and every lock under it, may be relied on after a renewal was sent. Two
/// fifths of it pass between renewals, so that two may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ttl(Duration);

impl Ttl {
    /// 15 s, as Consul's own tools have it.
    pub const DEFAULT: Ttl = Ttl(Duration::from_secs(15));

    /// 1 s to 24 h. Consul itself refuses less than its `session_ttl_min`, 10 s unless it is
    /// configured otherwise; that shows as [`AcquireError::Invalid`](super::AcquireError::Invalid).
    ///
    /// # Errors
    /// [`SettingsError::Ttl`]
    pub fn new(span: Duration) -> Result<Ttl, SettingsError> {
        let allowed = (SECOND..=LONGEST_TTL).contains(&span);
        allowed.then_some(Ttl(span)).ok_or(SettingsError::Ttl(span))
    }

    /// The span.
    pub const fn get(self) -> Duration {
        self.0
    }
}

/// How long nobody gets a key whose holder lost its session. After a release it is free at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockDelay(Duration);

impl LockDelay {
    /// 15 s, as Consul's own tools have it.
    pub const DEFAULT: LockDelay = LockDelay(Duration::from_secs(15));

    /// 0 s to 60 s.
    ///
    /// # Errors
    /// [`SettingsError::LockDelay`]
    pub fn new(span: Duration) -> Result<LockDelay, SettingsError> {
        (span <= LONGEST_DELAY).then_some(LockDelay(span)).ok_or(SettingsError::LockDelay(span))
    }

    /// The span.
    pub const fn get(self) -> Duration {
        self.0
    }
}

/// What a holder, or a node of Consul's catalog, is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(Arc<str>);

impl Name {
    /// 1 to 64 letters, digits and `. _ -`.
    ///
    /// # Errors
    /// [`SettingsError::Name`]
    pub fn new(raw: &str) -> Result<Name, SettingsError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if (1..=NAME_MAX).contains(&raw.len()) && raw.chars().all(allowed) {
            Ok(Name(raw.into()))
        } else {
            Err(SettingsError::Name(raw.to_owned()))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the locks of a [`Locks`](super::Locks) are made with.
///
/// | setting | default |
/// |---|---|
/// | [`ttl`](Settings::ttl) | 15 s |
/// | [`lock_delay`](Settings::lock_delay) | 15 s |
/// | [`name`](Settings::name) | the program's name |
/// | [`node`](Settings::node) | `consul-lock-library` |
/// | [`delete_when_lost`](Settings::delete_when_lost) | no |
/// | [`value`](Settings::value) | none |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub(super) prefix: Prefix,
    pub(super) name: Name,
    pub(super) node: Name,
    pub(super) ttl: Ttl,
    pub(super) lock_delay: LockDelay,
    pub(super) behavior: Behavior,
    pub(super) value: String,
}

impl Settings {
    /// The defaults, for locks whose keys begin with `prefix`.
    pub fn new(prefix: Prefix) -> Settings {
        Settings {
            prefix,
            name: program(),
            node: Name("consul-lock-library".into()),
            ttl: Ttl::DEFAULT,
            lock_delay: LockDelay::DEFAULT,
            behavior: Behavior::Release,
            value: String::new(),
        }
    }

    /// See [`Ttl`].
    #[must_use]
    pub fn ttl(self, ttl: Ttl) -> Settings {
        Settings { ttl, ..self }
    }

    /// See [`LockDelay`].
    #[must_use]
    pub fn lock_delay(self, lock_delay: LockDelay) -> Settings {
        Settings { lock_delay, ..self }
    }

    /// What others see as the holder, behind this machine's name and a slash.
    #[must_use]
    pub fn name(self, name: Name) -> Settings {
        Settings { name, ..self }
    }

    /// The node of Consul's catalog that the session sits on; it is made if it is not there. The ACL
    /// rules that are needed are `node:write` and `session:write` on it, and `key:write` on the keys.
    #[must_use]
    pub fn node(self, node: Name) -> Settings {
        Settings { node, ..self }
    }

    /// A key whose lock is lost is deleted, and not just free.
    #[must_use]
    pub fn delete_when_lost(self) -> Settings {
        Settings { behavior: Behavior::Delete, ..self }
    }

    /// A text for others to read, in the JSON that is written into a held key. At most 4096
    /// characters.
    ///
    /// # Errors
    /// [`SettingsError::Value`]
    pub fn value(self, value: impl Into<String>) -> Result<Settings, SettingsError> {
        let value = value.into();
        match value.chars().count() {
            0..=VALUE_MAX_CHARS => Ok(Settings { value, ..self }),
            chars => Err(SettingsError::Value(chars)),
        }
    }
}

/// The program's name, as far as names allow.
fn program() -> Name {
    let path = std::env::current_exe().ok();
    let file = path.as_deref().and_then(|path| path.file_name()).unwrap_or_default();
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = file.to_string_lossy().chars().map(allowed).take(NAME_MAX).collect();
    Name(if name.is_empty() { "unnamed".into() } else { name.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_not_allowed_say_what_is() {
        let said = |error: SettingsError| error.to_string();
        assert!(said(Prefix::new("").unwrap_err()).contains("1 to 512 bytes"));
        assert!(said(Prefix::new("a//").unwrap_err()).contains("may be empty"));
        assert!(said(Ttl::new(Duration::from_millis(900)).unwrap_err()).contains("1s to 24h"));
        assert!(said(LockDelay::new(61 * SECOND).unwrap_err()).contains("0s to 60s"));
        assert!(said(Name::new("a/b").unwrap_err()).contains("1 to 64 characters"));
        let settings = Settings::new(Prefix::new("jobs/").unwrap());
        let long = settings.value("x".repeat(VALUE_MAX_CHARS + 1)).unwrap_err();
        assert!(said(long).contains("at most 4096"));
    }

    #[test]
    fn bounds_are_allowed() {
        for prefix in ["a", "a/", "a/b", "a/b/"] {
            assert_eq!(Prefix::new(prefix).unwrap().as_str(), prefix);
        }
        for span in [SECOND, LONGEST_TTL] {
            assert_eq!(Ttl::new(span).unwrap().get(), span);
        }
        for span in [Duration::ZERO, LONGEST_DELAY] {
            assert_eq!(LockDelay::new(span).unwrap().get(), span);
        }
        assert_eq!(program().as_str(), Name::new(program().as_str()).unwrap().as_str());
    }
}
