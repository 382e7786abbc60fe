//! A spec's plain meaning: durations as durations, a key as a [`Key`], nothing left to doubt.
//!
//! The API server refuses a bad spec before it is stored. An object that was stored under an older
//! schema may still hold one; it gets the same refusal here, naming the field, and ends up in the
//! claim's status.

use std::time::Duration;

use crate::names::{Key, KeyError};

use super::{
    duration::{DurationError, GoDuration},
    spec::{AcquireSpec, Behavior, ChecksSpec, ConsulLockSpec, SessionSpec},
};

/// The longest `spec.value`, in characters.
pub const VALUE_MAX_CHARS: usize = 4096;

const CHECKS_MAX: usize = 16;
const YEAR: Duration = Duration::from_secs(8760 * 3600);

/// What a claim asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `None`: the default key.
    pub key: Option<Key>,
    /// The session.
    pub session: SessionSettings,
    /// How to contend.
    pub acquire: AcquireSettings,
    /// The user's text.
    pub value: String,
    /// Release cleanly and stand by.
    pub paused: bool,
}

/// See [`SessionSpec`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of `SessionSpec` of the same name")]
pub struct SessionSettings {
    pub ttl: Duration,
    pub lock_delay: Duration,
    pub behavior: SessionBehavior,
    pub node_checks: Vec<String>,
    pub service_checks: Vec<String>,
}

/// What the loss of a session does to the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionBehavior {
    /// It stays and is free.
    Release,
    /// It is deleted.
    Delete,
}

/// See [`AcquireSpec`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of `AcquireSpec` of the same name")]
pub struct AcquireSettings {
    pub timeout: Option<Duration>,
    pub try_once: bool,
    pub max_hold: Option<Duration>,
}

/// A spec that means nothing: which field, and what is allowed there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No key.
    #[error("spec.key: {0}")]
    Key(#[from] KeyError),
    /// No duration.
    #[error("{field}: {source}")]
    Duration {
        /// The field's path.
        field: &'static str,
        /// What is wrong with it.
        source: DurationError,
    },
    /// A duration that is too short or too long.
    #[error("{field}: {found} is not between {least} and {most}")]
    Range {
        /// The field's path.
        field: &'static str,
        /// What it holds.
        found: GoDuration,
        /// The shortest that is allowed.
        least: GoDuration,
        /// The longest that is allowed.
        most: GoDuration,
    },
    /// No behavior that we know.
    #[error("spec.session.behavior: {0:?} is neither Release nor Delete")]
    Behavior(String),
    /// Checks that cannot be.
    #[error("{field}: {problem}")]
    Checks {
        /// The field's path.
        field: &'static str,
        /// What is wrong, and what is allowed.
        problem: &'static str,
    },
    /// Two ways to give up at once.
    #[error("spec.acquire: set tryOnce or timeout, not both")]
    TryOnceWithTimeout,
    /// A value that is too long.
    #[error("spec.value: {0} characters, at most {VALUE_MAX_CHARS} are allowed")]
    Value(usize),
}

impl ConsulLockSpec {
    /// The spec's meaning.
    ///
    /// # Errors
    /// [`SpecError`] with the first field that is wrong.
    pub fn settings(&self) -> Result<Settings, SpecError> {
        let chars = self.value.chars().count();
        if chars > VALUE_MAX_CHARS {
            return Err(SpecError::Value(chars));
        }
        Ok(Settings {
            key: self.key.as_deref().map(Key::new).transpose()?,
            session: session(&self.session)?,
            acquire: acquire(&self.acquire)?,
            value: self.value.clone(),
            paused: self.paused,
        })
    }
}

fn session(spec: &SessionSpec) -> Result<SessionSettings, SpecError> {
    let (least, most) = (Duration::from_secs(10), Duration::from_secs(24 * 3600));
    let ttl = between("spec.session.ttl", &spec.ttl, least, most)?;
    let (least, most) = (Duration::ZERO, Duration::from_secs(60));
    let lock_delay = between("spec.session.lockDelay", &spec.lock_delay, least, most)?;
    let behavior = match &spec.behavior {
        Behavior::Release => SessionBehavior::Release,
        Behavior::Delete => SessionBehavior::Delete,
        Behavior::Unrecognised(text) => return Err(SpecError::Behavior(text.clone())),
    };
    check_names(&spec.checks)?;
    Ok(SessionSettings {
        ttl,
        lock_delay,
        behavior,
        node_checks: spec.checks.node.clone(),
        service_checks: spec.checks.service.clone(),
    })
}

fn acquire(spec: &AcquireSpec) -> Result<AcquireSettings, SpecError> {
    if spec.try_once && spec.timeout.is_some() {
        return Err(SpecError::TryOnceWithTimeout);
    }
    let optional = |field, span: &Option<GoDuration>| {
        span.as_ref().map(|span| between(field, span, Duration::from_secs(1), YEAR)).transpose()
    };
    Ok(AcquireSettings {
        timeout: optional("spec.acquire.timeout", &spec.timeout)?,
        try_once: spec.try_once,
        max_hold: optional("spec.acquire.maxHold", &spec.max_hold)?,
    })
}

fn between(
    field: &'static str,
    text: &GoDuration,
    least: Duration,
    most: Duration,
) -> Result<Duration, SpecError> {
    let span = text.parse().map_err(|source| SpecError::Duration { field, source })?;
    if (least..=most).contains(&span) {
        return Ok(span);
    }
    Err(SpecError::Range { field, found: text.clone(), least: least.into(), most: most.into() })
}

fn check_names(checks: &ChecksSpec) -> Result<(), SpecError> {
    let lists = [
        ("spec.session.checks.node", &checks.node),
        ("spec.session.checks.service", &checks.service),
    ];
    for (field, ids) in lists {
        if let Some(problem) = wrong_list(ids) {
            return Err(SpecError::Checks { field, problem });
        }
    }
    if checks.node.iter().any(|id| checks.service.contains(id)) {
        return Err(SpecError::Checks {
            field: "spec.session.checks",
            problem: "no ID may be in both lists",
        });
    }
    Ok(())
}

fn wrong_list(ids: &[String]) -> Option<&'static str> {
    let printable = |id: &String| {
        (1..=256).contains(&id.len())
            && id.bytes().all(|b| (b' '..=b'~').contains(&b))
            && id.trim_ascii() == id
    };
    if ids.len() > CHECKS_MAX {
        Some("at most 16 checks are allowed")
    } else if !ids.iter().all(printable) {
        Some("an ID has 1 to 256 printable ASCII characters and no blanks at its ends")
    } else if (1..ids.len()).any(|i| ids[..i].contains(&ids[i])) {
        Some("no ID may be listed twice")
    } else if ids.iter().any(|id| id == "serfHealth") {
        Some("serfHealth belongs to Consul agents; the sessions' catalog node has none")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(yaml: &str) -> Result<Settings, SpecError> {
        let spec: ConsulLockSpec = serde_saphyr::from_str(yaml).unwrap();
        spec.settings()
    }

    #[test]
    fn a_full_spec_means_what_it_says() {
        let settings = settings(
            "key: shared/billing\n\
             session: {ttl: 1m30s, lockDelay: 0s, behavior: Delete, checks: {node: [a b], service: [c]}}\n\
             acquire: {timeout: 30s, maxHold: 8h}\n\
             value: hello\n\
             paused: true\n",
        )
        .unwrap();
        assert_eq!(settings.key, Some(Key::new("shared/billing").unwrap()));
        assert_eq!(settings.session.ttl, Duration::from_secs(90));
        assert_eq!(settings.session.lock_delay, Duration::ZERO);
        assert_eq!(settings.session.behavior, SessionBehavior::Delete);
        assert_eq!(settings.session.node_checks, ["a b"]);
        assert_eq!(settings.acquire.timeout, Some(Duration::from_secs(30)));
        assert_eq!(settings.acquire.max_hold, Some(Duration::from_secs(8 * 3600)));
        assert!(settings.paused);
    }

    #[test]
    fn defaults_are_valid() {
        assert!(settings("{}").is_ok());
    }

    #[test]
    fn a_refusal_names_the_field_and_what_is_allowed() {
        for (yaml, expected) in [
            ("session: {ttl: 9s}", "spec.session.ttl: 9s is not between 10s and 24h"),
            ("session: {ttl: 25h}", "spec.session.ttl: 25h is not between 10s and 24h"),
            ("session: {ttl: -5s}", "spec.session.ttl: \"-5s\" is no duration"),
            ("session: {lockDelay: 61s}", "spec.session.lockDelay: 61s is not between 0s and 1m"),
            ("session: {behavior: Explode}", "\"Explode\" is neither Release nor Delete"),
            ("key: /a", "spec.key: no part of a key between slashes"),
            ("key: a b", "spec.key: a key is made of letters"),
            ("acquire: {timeout: 10s, tryOnce: true}", "set tryOnce or timeout, not both"),
            ("acquire: {timeout: 0s}", "spec.acquire.timeout: 0s is not between 1s and 8760h"),
            ("acquire: {maxHold: 8761h}", "spec.acquire.maxHold"),
            ("session: {checks: {node: [a, a]}}", "listed twice"),
            ("session: {checks: {node: [a], service: [a]}}", "in both lists"),
            ("session: {checks: {node: [serfHealth]}}", "serfHealth belongs to"),
            ("session: {checks: {service: [' a']}}", "spec.session.checks.service: an ID has"),
        ] {
            let error = settings(yaml).unwrap_err().to_string();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
        let long = ConsulLockSpec { value: "ä".repeat(4097), ..ConsulLockSpec::default() };
        assert_eq!(long.settings(), Err(SpecError::Value(4097)));
    }
}
