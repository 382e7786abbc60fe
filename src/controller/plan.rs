//! What is to be done about a claim. Pure: a [`Plan`] is data, and `super::apply` carries it out
//! without a thought of its own.

use std::{sync::Arc, time::Duration};

use kube::ResourceExt;

use super::{
    Config,
    course::{Course, May, Strip, course},
    holder::SESSION_PREFIX,
    observe::{Observed, Seen},
    reasons::Reason,
    recorded,
    tenancy::{self, Tenancy},
    verdict::Judgement,
};
use crate::{
    api::{self, ConsulLock, FINALIZER, GoDuration, Phase, SpecError},
    clock::Instant,
    consul::Behavior,
    election::RECORD_SUFFIX,
    keeper::{
        AcquireSettings, ClaimId, Payload, Record, Recorded, SessionSettings, Stance, StopState,
        Wanted,
    },
    lock::EndReason,
    names::{Key, NodeName, SessionName},
};

/// What one walk is to do.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    /// What to do about keepers of claims that had this name before.
    pub(super) former: Vec<(ClaimId, FormerStep)>,
    /// Pods to be relieved of the badge of a claim that is no more.
    pub(super) orphans: Vec<Strip>,
    /// What to do about the claim, if there is one.
    pub(super) claim: Option<ClaimPlan>,
}

/// What to do about the keepers of a claim that is gone without our consent: somebody removed the
/// finalizer by force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FormerStep {
    Stop,
    Wait,
    Forget,
}

/// What to do about a claim. In this order: finalizer on, the first half of the course, keepers,
/// the second half, finalizer off.
#[derive(Debug, PartialEq)]
pub(super) struct ClaimPlan {
    pub(super) finalizer: FinalizerStep,
    pub(super) course: Course,
    pub(super) keepers: KeepersStep,
    /// What its status is to speak of.
    pub(super) judged: Judged,
}

impl ClaimPlan {
    /// The keepers hear of it only now, so what they show is out of date.
    pub(super) fn has_just_asked_to_stop(&self) -> bool {
        matches!(self.keepers, KeepersStep::Stop | KeepersStep::GiveUp(..))
    }
}

/// What to do about the finalizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FinalizerStep {
    Keep,
    Add,
    /// Let the object go. `unclean`: Consul was away, and the session ends by itself.
    Remove {
        unclean: bool,
    },
}

/// What to do about the keepers.
#[derive(Debug, PartialEq)]
pub(super) enum KeepersStep {
    Leave,
    /// Start them, or tell them what is wanted now.
    Set(Box<Wanted>, Option<Recorded>),
    /// They have stopped; start new ones.
    Restart(Box<Wanted>),
    /// Have what an earlier controller recorded taken over only to be given up cleanly.
    GiveUp(Box<Wanted>, Recorded),
    Stop,
    Forget,
}

/// What the spec, the tenancy and the past make of a claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Judged {
    pub(super) judgement: Judgement,
    /// The spec's meaning, if it has one.
    pub(super) settings: Option<api::Settings>,
    /// The prefix whose watch covers the key, if the key is allowed.
    prefix: Option<Arc<str>>,
    /// What is wrong with the Namespace's annotation.
    pub(super) malformed: Vec<String>,
}

impl Judged {
    /// What the claim may do about its key.
    fn may(&self) -> May<'_> {
        match (&self.judgement, &self.settings) {
            (Judgement::Allowed { .. } | Judgement::GaveUp { .. }, Some(settings))
                if settings.mode == api::ModeSettings::Agent =>
            {
                May::Follow(settings)
            }
            (Judgement::Allowed { .. }, Some(settings)) if !settings.paused => {
                May::Contend(settings)
            }
            // A claim that gave up goes on observing its key.
            (Judgement::Allowed { .. } | Judgement::GaveUp { .. }, Some(settings)) => {
                May::StandBy(settings)
            }
            (Judgement::Undecided { .. }, Some(settings)) => May::Undecided(settings),
            _ => May::Nothing,
        }
    }
}

#[cfg(test)]
impl Judged {
    /// A judgement by itself, for tests of what is said about it.
    pub(super) fn sample(judgement: Judgement, settings: Option<api::Settings>) -> Judged {
        Judged { judgement, settings, prefix: None, malformed: Vec::new() }
    }
}

/// What is to be done about what was observed.
pub(super) fn plan(observed: &Observed, config: &Config) -> Plan {
    let former = observed.former.iter().map(|(id, stop)| {
        let step = match stop {
            Some(StopState::Running) => FormerStep::Stop,
            Some(StopState::Stopping) => FormerStep::Wait,
            Some(StopState::Clean | StopState::Abandoned) | None => FormerStep::Forget,
        };
        (id.clone(), step)
    });
    let orphans = observed.orphans.iter().map(|badged| Strip {
        pod: Arc::clone(&badged.pod),
        uid: Arc::clone(&badged.uid),
        delete: false,
    });
    Plan {
        former: former.collect(),
        orphans: orphans.collect(),
        claim: observed.claim.as_ref().map(|seen| {
            if seen.object.metadata.deletion_timestamp.is_some() {
                part(seen, config, observed.now)
            } else {
                keep(seen, config, observed.now)
            }
        }),
    }
}

/// A claim that is there to stay.
fn keep(seen: &Seen, config: &Config, now: Instant) -> ClaimPlan {
    let claim = &seen.object;
    let judged = judge(seen, config);
    let course = course(seen, &judged.may(), &config.cluster, now);
    let keepers = match wanted(claim, &judged, &course, config) {
        Some(wanted) => {
            let wanted = Box::new(wanted);
            match seen.stop {
                None => KeepersStep::Set(wanted, recorded::of(claim, config)),
                Some(StopState::Running) => KeepersStep::Set(wanted, None),
                Some(StopState::Stopping) => KeepersStep::Leave,
                Some(StopState::Clean | StopState::Abandoned) => KeepersStep::Restart(wanted),
            }
        }
        None if matches!(judged.judgement, Judgement::Undecided { .. })
            || course.told.unlisted.is_some() && course.stance.is_none() =>
        {
            KeepersStep::Leave
        }
        None => stop(seen, config),
    };
    let ours = claim.finalizers().iter().any(|name| name == FINALIZER);
    let holds_something = matches!(
        keepers,
        KeepersStep::Set(..) | KeepersStep::Restart(..) | KeepersStep::GiveUp(..)
    );
    ClaimPlan {
        finalizer: if holds_something && !ours { FinalizerStep::Add } else { FinalizerStep::Keep },
        course,
        keepers,
        judged,
    }
}

/// A claim that is being deleted. Looks at its status, never at its spec: a bad spec must not keep
/// an object from going.
fn part(seen: &Seen, config: &Config, now: Instant) -> ClaimPlan {
    let claim = &seen.object;
    let ours = claim.finalizers().iter().any(|name| name == FINALIZER);
    let course = course(seen, &May::Nothing, &config.cluster, now);
    // What its pod has of it goes first, and that is not known yet.
    let waits = course.told.unlisted.is_some();
    // Our finalizer goes last: without it nothing is left behind, whatever the status says.
    let stops = (ours || seen.stop.is_some()) && !waits;
    let keepers = if stops { stop(seen, config) } else { KeepersStep::Leave };
    let released = matches!(keepers, KeepersStep::Forget)
        || (seen.stop.is_none() && matches!(keepers, KeepersStep::Leave));
    ClaimPlan {
        finalizer: if ours && released && !waits {
            FinalizerStep::Remove { unclean: seen.stop == Some(StopState::Abandoned) }
        } else {
            FinalizerStep::Keep
        },
        course,
        keepers,
        judged: judge(seen, config),
    }
}

/// The next step towards having no keepers and nothing recorded.
fn stop(seen: &Seen, config: &Config) -> KeepersStep {
    match seen.stop {
        Some(StopState::Running) => KeepersStep::Stop,
        Some(StopState::Stopping) => KeepersStep::Leave,
        Some(StopState::Clean | StopState::Abandoned) => KeepersStep::Forget,
        None => left_behind(&seen.object, config).map_or(KeepersStep::Leave, |(wanted, left)| {
            KeepersStep::GiveUp(Box::new(wanted), left)
        }),
    }
}

/// What the spec, the tenancy and the past make of the claim.
fn judge(seen: &Seen, config: &Config) -> Judged {
    let (claim, namespace) = (&seen.object, &seen.namespace);
    let mut judged = Judged {
        judgement: Judgement::Invalid { problem: String::new() },
        settings: None,
        prefix: None,
        malformed: Vec::new(),
    };
    let (settings, key) = match meaning(seen, config) {
        Ok(meaning) => meaning,
        Err(error) => {
            let problem = error.to_string();
            judged.judgement = Judgement::Invalid { problem };
            return judged;
        }
    };
    judged.settings = Some(settings);
    if let Some(from) = moves_from(seen, &key, config) {
        judged.judgement = Judgement::Moving { from };
        return judged;
    }
    let in_namespace = claim.namespace().unwrap_or_default();
    let (tenancy, malformed) = tenancy::judge(&key, &in_namespace, &config.key_prefix, namespace);
    judged.malformed = malformed;
    judged.judgement = match tenancy {
        Tenancy::Refused { message } => Judgement::NotAllowed { key, message },
        Tenancy::Allowed { prefix } => {
            judged.prefix = Some(prefix);
            gave_up(claim, &key).unwrap_or(Judgement::Allowed { key })
        }
        // An earlier controller saw the Namespace and allowed it. Its lock must not be lost only
        // because ours cannot be seen for the moment.
        Tenancy::Unknown if allowed_earlier(claim, &key) => {
            judged.prefix = folder(&key);
            Judgement::Allowed { key }
        }
        Tenancy::Unknown => Judgement::Undecided { key },
    };
    judged
}

/// The key that the recorded session is for, if it is not the claim's any more: the controller was told
/// another prefix. Adopted for the new key, the session would be renewed and hold the old one for ever.
fn moves_from(seen: &Seen, key: &Key, config: &Config) -> Option<Key> {
    let has_to_be_given_up = matches!(seen.stop, None | Some(StopState::Stopping));
    let _session = recorded::of(&seen.object, config).filter(|_| has_to_be_given_up)?;
    let recorded = Key::new(seen.object.status.as_ref()?.key.as_deref()?).ok()?;
    (recorded != *key).then_some(recorded)
}

fn meaning(seen: &Seen, config: &Config) -> Result<(api::Settings, Key), SpecError> {
    let (claim, settings) = (&seen.object, seen.settings.clone()?);
    let key = match &settings.key {
        Some(key) => key.clone(),
        None => {
            let namespace = claim.namespace().unwrap_or_default();
            config.key_prefix.default_key(&namespace, &claim.name_any())?
        }
    };
    if settings.candidates.as_ref().and_then(|one| one.gate)
        == Some(api::GateSettings::OncePerSchedule)
    {
        Key::new(&format!("{key}{RECORD_SUFFIX}"))?;
    }
    Ok((settings, key))
}

/// The key of the record of runs; `None` if it would be too long.
fn record_key(key: &Key) -> Option<Key> {
    Key::new(&format!("{key}{RECORD_SUFFIX}")).ok()
}

/// The claim gave up contending, and its spec has not changed since.
fn gave_up(claim: &ConsulLock, key: &Key) -> Option<Judgement> {
    let status = claim.status.as_ref()?;
    if status.phase != Some(Phase::Failed)
        || status.observed_generation != claim.metadata.generation
    {
        return None;
    }
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready")?;
    Some(Judgement::GaveUp {
        key: key.clone(),
        reason: Reason::gave_up(&ready.reason)?,
        message: ready.message.clone(),
    })
}

fn allowed_earlier(claim: &ConsulLock, key: &Key) -> bool {
    claim.status.as_ref().is_some_and(|status| {
        let session = status.session.as_ref().and_then(|s| s.id.as_ref());
        status.key.as_deref() == Some(key.as_str()) && session.is_some()
    })
}

/// Everything up to the key's last slash.
fn folder(key: &Key) -> Option<Arc<str>> {
    let end = key.as_str().rfind('/')?;
    Some(key.as_str()[..=end].into())
}

/// What the keepers are to do for the claim; `None` if it may not contend, or nothing is decided.
fn wanted(claim: &ConsulLock, judged: &Judged, course: &Course, config: &Config) -> Option<Wanted> {
    let settings = judged.settings.as_ref()?;
    let key = judged.judgement.key()?;
    let prefix = judged.prefix.as_ref()?;
    let session = &settings.session;
    Some(Wanted {
        key: key.clone(),
        prefix: Arc::clone(prefix),
        session: SessionSettings {
            ttl: session.ttl,
            lock_delay: session.lock_delay,
            behavior: match session.behavior {
                api::SessionBehavior::Release => Behavior::Release,
                api::SessionBehavior::Delete => Behavior::Delete,
            },
            node_checks: session.node_checks.clone(),
            service_checks: session.service_checks.clone(),
            ..bare_session(claim, config)
        },
        acquire: AcquireSettings {
            timeout: settings.acquire.timeout,
            try_once: settings.acquire.try_once,
            // A pod has to hear of it first.
            max_hold: settings
                .acquire
                .max_hold
                .filter(|_| settings.candidates.is_none() || course.max_hold_is_over),
            give_way: course.give_way,
            single: false,
        },
        payload: payload(claim, &settings.value, config),
        stance: course.stance.clone()?,
        record: settings.candidates.as_ref().and_then(|candidates| {
            let once = candidates.gate == Some(api::GateSettings::OncePerSchedule);
            let key = record_key(key).filter(|_| once)?;
            Some(Record { key, at_end: course.at_end.clone() })
        }),
        attempt: claim.metadata.generation.unwrap_or_default(),
    })
}

fn payload(claim: &ConsulLock, value: &str, config: &Config) -> Payload {
    Payload {
        holder: recorded::identity(claim),
        cluster: config.cluster.clone(),
        value: value.to_owned(),
        pod: None,
    }
}

/// A session that is named, and bound to a node, as this claim's are; with default settings.
fn bare_session(claim: &ConsulLock, config: &Config) -> SessionSettings {
    let (cluster, namespace) = (&config.cluster, claim.namespace().unwrap_or_default());
    let uid = claim.uid().unwrap_or_default();
    SessionSettings {
        name: SessionName::new(format!("{SESSION_PREFIX}{cluster}/{uid}")),
        node: NodeName::new(format!("consul-lock-{cluster}-{namespace}")),
        ttl: Duration::from_secs(15),
        lock_delay: Duration::ZERO,
        behavior: Behavior::Release,
        node_checks: Vec::new(),
        service_checks: Vec::new(),
        lent: None,
        notice: Duration::ZERO,
    }
}

/// What an earlier controller left behind in Consul, and how to give it up: by what the status
/// says alone.
fn left_behind(claim: &ConsulLock, config: &Config) -> Option<(Wanted, Recorded)> {
    let recorded = recorded::of(claim, config)?;
    let status = claim.status.as_ref()?;
    let key = Key::new(status.key.as_deref()?).ok()?;
    let session = bare_session(claim, config);
    let ttl = status.session.as_ref().and_then(|s| s.ttl.as_ref());
    let wanted = Wanted {
        prefix: folder(&key)?,
        key,
        session: SessionSettings {
            ttl: ttl.and_then(|ttl: &GoDuration| ttl.parse().ok()).unwrap_or(session.ttl),
            ..session
        },
        acquire: AcquireSettings::default(),
        payload: payload(claim, "", config),
        stance: Stance::StandBy(EndReason::Stopped),
        record: None,
        attempt: claim.metadata.generation.unwrap_or_default(),
    };
    Some((wanted, recorded))
}

#[cfg(test)]
mod tests;
