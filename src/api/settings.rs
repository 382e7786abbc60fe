//! A spec's plain meaning: durations as durations, a key as a [`Key`], nothing left to doubt.
//!
//! The API server refuses a bad spec before it is stored. An object that was stored under an older
//! schema may still hold one; it gets the same refusal here, naming the field, and ends up in the
//! claim's status.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::core::Selector;

use crate::names::{Key, KeyError};

use super::{
    duration::{DurationError, GoDuration},
    spec::{
        AcquireSpec, Behavior, CandidatesSpec, ChecksSpec, ConsulLockSpec, GatePolicy, Mode,
        OnLost, Operator, SelectorSpec, SessionSpec, Strategy, default_unreachable_after,
    },
};

/// The longest `spec.value`, in characters.
pub const VALUE_MAX_CHARS: usize = 4096;

const CHECKS_MAX: usize = 16;
const LABELS_MAX: usize = 16;
const EXPRESSIONS_MAX: usize = 16;
const VALUES_MAX: usize = 32;
const YEAR: Duration = Duration::from_secs(8760 * 3600);

/// What a claim asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `None`: the default key.
    pub key: Option<Key>,
    /// Who holds it.
    pub mode: ModeSettings,
    /// The session.
    pub session: SessionSettings,
    /// How to contend.
    pub acquire: AcquireSettings,
    /// The user's text.
    pub value: String,
    /// The pods of which one is elected; `None`: the claim contends for itself.
    pub candidates: Option<CandidatesSettings>,
    /// The Service that is routed to the elected pod.
    pub service: Option<Arc<str>>,
    /// Whether a pod whose tenure was lost is deleted.
    pub delete_lost: bool,
    /// Release cleanly and stand by.
    pub paused: bool,
}

/// Who holds the key; see [`Mode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the variant of `Mode` of the same name")]
pub enum ModeSettings {
    Managed,
    Agent,
}

/// See [`CandidatesSpec`].
#[derive(Clone, Debug, PartialEq)]
pub struct CandidatesSettings {
    /// Which pods.
    pub selector: Selector,
    /// A label that every one of them has, if the selector says so: by it they are looked up.
    pub label: Option<(String, String)>,
    /// Rank by priority.
    pub by_priority: bool,
    /// Let a better candidate take over from a living worse one.
    pub preempt: bool,
    /// Pods wait at a gate until they are elected; whose turn it is.
    pub gate: Option<GateSettings>,
    /// The container whose end is the holder's; `None`: all.
    pub container: Option<Arc<str>>,
    /// How long a leader may be not Ready; `None`: for ever.
    pub unready_after: Option<Duration>,
    /// How long a leader may be out of reach; `None`: until there is proof of its death.
    pub unreachable_after: Option<Duration>,
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

/// Whose turn it is at a gate; see [`GatePolicy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the variant of `GatePolicy` of the same name")]
pub enum GateSettings {
    EachInTurn,
    OncePerSchedule,
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
    /// No mode that we know.
    #[error("spec.mode: {0:?} is neither Managed nor Agent")]
    Mode(String),
    /// Agents, and ways to elect or replace them.
    #[error(
        "spec.mode: Agent takes no gate, and in spec.candidates no preempt, no strategy: Priority, \
         no unreadyAfter, and no unreachableAfter but its default and never"
    )]
    AgentsAreNotElected,
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
    /// No selector that matches something.
    #[error("spec.candidates.selector: {0}")]
    Selector(String),
    /// No strategy that we know.
    #[error("spec.candidates.strategy: {0:?} is neither OldestReady nor Priority")]
    Strategy(String),
    /// No name of a container or a Service.
    #[error("{field}: {found:?} is no name of {kind}")]
    Name {
        /// The field's path.
        field: &'static str,
        /// What it holds.
        found: String,
        /// Of what it should be one.
        kind: &'static str,
    },
    /// Routing with nobody to route to.
    #[error("spec.{0}: needs spec.candidates")]
    NeedsCandidates(&'static str),
    /// No policy that we know.
    #[error("spec.gate.policy: {0:?} is neither EachInTurn nor OncePerSchedule")]
    GatePolicy(String),
    /// A gate, and reasons to replace who has passed it.
    #[error("spec.gate: takes no preempt, unreadyAfter or container in spec.candidates")]
    GateReplaces,
    /// No treatment that we know.
    #[error("spec.onLost: {0:?} is neither Unlabel nor DeletePod")]
    OnLost(String),
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
        let gate = gate(self)?;
        Ok(Settings {
            key: self.key.as_deref().map(Key::new).transpose()?,
            mode: mode(self)?,
            session: session(&self.session)?,
            acquire: acquire(&self.acquire)?,
            value: self.value.clone(),
            candidates: self.candidates.as_ref().map(|spec| candidates(spec, gate)).transpose()?,
            service: service(self)?,
            delete_lost: delete_lost(self)?,
            paused: self.paused,
        })
    }
}

fn mode(spec: &ConsulLockSpec) -> Result<ModeSettings, SpecError> {
    let settings = match &spec.mode {
        Mode::Managed => return Ok(ModeSettings::Managed),
        Mode::Agent => ModeSettings::Agent,
        Mode::Unrecognised(text) => return Err(SpecError::Mode(text.clone())),
    };
    let Some(candidates) = &spec.candidates else {
        return Err(SpecError::NeedsCandidates("mode: Agent"));
    };
    let unreachable = &candidates.unreachable_after;
    let replaces = candidates.preempt
        || candidates.strategy != Strategy::OldestReady
        || candidates.unready_after.is_some()
        || (unreachable.bounded().is_some() && *unreachable != default_unreachable_after());
    if spec.gate.is_some() || replaces {
        return Err(SpecError::AgentsAreNotElected);
    }
    Ok(settings)
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

fn gate(spec: &ConsulLockSpec) -> Result<Option<GateSettings>, SpecError> {
    let Some(gate) = &spec.gate else { return Ok(None) };
    let policy = match &gate.policy {
        GatePolicy::EachInTurn => GateSettings::EachInTurn,
        GatePolicy::OncePerSchedule => GateSettings::OncePerSchedule,
        GatePolicy::Unrecognised(text) => return Err(SpecError::GatePolicy(text.clone())),
    };
    match &spec.candidates {
        None => Err(SpecError::NeedsCandidates("gate")),
        Some(candidates)
            if candidates.preempt
                || candidates.unready_after.is_some()
                || candidates.container.is_some() =>
        {
            Err(SpecError::GateReplaces)
        }
        Some(_) => Ok(Some(policy)),
    }
}

fn candidates(
    spec: &CandidatesSpec,
    gate: Option<GateSettings>,
) -> Result<CandidatesSettings, SpecError> {
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
    let within = |field, span: &GoDuration| between(field, span, least, most);
    let field = "spec.candidates.container";
    let container = spec.container.as_deref().map(|name| label_name(field, "a container", name));
    let by_priority = match &spec.strategy {
        Strategy::OldestReady => false,
        Strategy::Priority => true,
        Strategy::Unrecognised(text) => return Err(SpecError::Strategy(text.clone())),
    };
    let unready = spec.unready_after.as_ref();
    let unreachable = spec.unreachable_after.bounded();
    let label = spec.selector.match_labels.first_key_value();
    Ok(CandidatesSettings {
        selector: selector(&spec.selector)?,
        label: label.map(|(label, value)| (label.clone(), value.clone())),
        by_priority,
        preempt: spec.preempt,
        gate,
        container: container.transpose()?,
        unready_after: unready
            .map(|span| within("spec.candidates.unreadyAfter", span))
            .transpose()?,
        unreachable_after: unreachable
            .map(|span| within("spec.candidates.unreachableAfter", &span))
            .transpose()?,
    })
}

fn selector(spec: &SelectorSpec) -> Result<Selector, SpecError> {
    if let Some(problem) = too_much(spec) {
        return Err(SpecError::Selector(problem.to_owned()));
    }
    let requirements = spec.match_expressions.iter().map(|expression| {
        let operator = match &expression.operator {
            Operator::In => "In",
            Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            Operator::Unrecognised(text) => {
                let allowed = "allowed are In, NotIn, Exists and DoesNotExist";
                return Err(SpecError::Selector(format!("operator {text:?}: {allowed}")));
            }
        };
        let needs_values = matches!(expression.operator, Operator::In | Operator::NotIn);
        if needs_values == expression.values.is_empty() {
            let rule = "In and NotIn need values; Exists and DoesNotExist take none";
            return Err(SpecError::Selector(format!("{}: {rule}", expression.key)));
        }
        Ok(LabelSelectorRequirement {
            key: expression.key.clone(),
            operator: operator.to_owned(),
            values: needs_values.then(|| expression.values.clone()),
        })
    });
    let requirements = requirements.collect::<Result<Vec<_>, _>>()?;
    if spec.match_labels.is_empty() && requirements.is_empty() {
        let cure = "give matchLabels or matchExpressions";
        return Err(SpecError::Selector(format!("an empty one would match every pod: {cure}")));
    }
    let selector = LabelSelector {
        match_labels: Some(spec.match_labels.clone()),
        match_expressions: Some(requirements),
    };
    Selector::try_from(selector).map_err(|error| SpecError::Selector(error.to_string()))
}

fn too_much(spec: &SelectorSpec) -> Option<&'static str> {
    let expressions = &spec.match_expressions;
    let is_long = |value: &String| value.len() > 63;
    if spec.match_labels.len() > LABELS_MAX {
        Some("at most 16 matchLabels are allowed")
    } else if expressions.len() > EXPRESSIONS_MAX {
        Some("at most 16 matchExpressions are allowed")
    } else if expressions.iter().any(|one| !(1..=317).contains(&one.key.len())) {
        Some("the key of an expression has 1 to 317 characters")
    } else if expressions.iter().any(|one| one.values.len() > VALUES_MAX) {
        Some("at most 32 values are allowed in an expression")
    } else if expressions.iter().any(|one| one.values.iter().any(is_long)) {
        Some("a value has at most 63 characters")
    } else {
        None
    }
}

fn service(spec: &ConsulLockSpec) -> Result<Option<Arc<str>>, SpecError> {
    let Some(routing) = &spec.routing else { return Ok(None) };
    if spec.candidates.is_none() {
        return Err(SpecError::NeedsCandidates("routing"));
    }
    let field = "spec.routing.service";
    if routing.service.starts_with(|first: char| first.is_ascii_digit()) {
        let found = routing.service.clone();
        return Err(SpecError::Name { field, found, kind: "a Service" });
    }
    label_name(field, "a Service", &routing.service).map(Some)
}

fn delete_lost(spec: &ConsulLockSpec) -> Result<bool, SpecError> {
    match &spec.on_lost {
        OnLost::Unlabel => Ok(false),
        OnLost::DeletePod if spec.candidates.is_none() => {
            Err(SpecError::NeedsCandidates("onLost: DeletePod"))
        }
        OnLost::DeletePod => Ok(true),
        OnLost::Unrecognised(text) => Err(SpecError::OnLost(text.clone())),
    }
}

/// A name of lower-case letters, digits and inner hyphens.
fn label_name(field: &'static str, kind: &'static str, name: &str) -> Result<Arc<str>, SpecError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = (1..=63).contains(&name.len())
        && name.chars().all(fits)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good { Ok(name.into()) } else { Err(SpecError::Name { field, found: name.into(), kind }) }
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
            ("candidates: {selector: {}}", "spec.candidates.selector: an empty one"),
            (
                "candidates: {selector: {matchExpressions: [{key: '', operator: Exists}]}}",
                "spec.candidates.selector: the key of an expression has 1 to 317 characters",
            ),
            (
                "candidates: {selector: {matchExpressions: [{key: a, operator: In}]}}",
                "spec.candidates.selector: a: In and NotIn need values",
            ),
            (
                "candidates: {selector: {matchExpressions: [{key: a, operator: Like}]}}",
                "operator \"Like\": allowed are In, NotIn, Exists and DoesNotExist",
            ),
            (
                "candidates: {selector: {matchLabels: {a: b}}, strategy: Dice}",
                "\"Dice\" is neither OldestReady nor Priority",
            ),
            (
                "candidates: {selector: {matchLabels: {a: b}}, container: App}",
                "spec.candidates.container: \"App\" is no name of a container",
            ),
            (
                "candidates: {selector: {matchLabels: {a: b}}, unreachableAfter: always}",
                "spec.candidates.unreachableAfter: \"always\" is no duration",
            ),
            (
                "candidates: {selector: {matchLabels: {a: b}}, unreadyAfter: 25h}",
                "spec.candidates.unreadyAfter: 25h is not between 1s and 24h",
            ),
            ("routing: {service: web}", "spec.routing: needs spec.candidates"),
            ("gate: {}", "spec.gate: needs spec.candidates"),
            (
                "{candidates: {selector: {matchLabels: {a: b}}, preempt: true}, gate: {}}",
                "spec.gate: takes no preempt",
            ),
            (
                "{candidates: {selector: {matchLabels: {a: b}}}, gate: {policy: Dice}}",
                "spec.gate.policy: \"Dice\" is neither EachInTurn nor OncePerSchedule",
            ),
            ("onLost: DeletePod", "spec.onLost: DeletePod: needs spec.candidates"),
            ("mode: Robot", "spec.mode: \"Robot\" is neither Managed nor Agent"),
            ("mode: Agent", "spec.mode: Agent: needs spec.candidates"),
            (
                "{mode: Agent, candidates: {selector: {matchLabels: {a: b}}}, gate: {}}",
                "spec.mode: Agent takes no gate",
            ),
            (
                "{mode: Agent, candidates: {selector: {matchLabels: {a: b}}, unreachableAfter: 9s}}",
                "no unreachableAfter but its default and never",
            ),
            (
                "{candidates: {selector: {matchLabels: {a: b}}}, routing: {service: 1web}}",
                "spec.routing.service: \"1web\" is no name of a Service",
            ),
            (
                "{candidates: {selector: {matchLabels: {a: b}}}, onLost: Explode}",
                "spec.onLost: \"Explode\" is neither Unlabel nor DeletePod",
            ),
        ] {
            let error = settings(yaml).unwrap_err().to_string();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
        let long = ConsulLockSpec { value: "ä".repeat(4097), ..ConsulLockSpec::default() };
        assert_eq!(long.settings(), Err(SpecError::Value(4097)));
    }
}
