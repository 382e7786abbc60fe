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
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::{
        controller::{
            electorate::Standing,
            sample::{at, claim, claim_with_status, config, electorate, held_status, wall},
            tenancy::NamespaceSeen,
        },
        keeper::RecordedTenure,
        names::FencingToken,
    };

    fn seen(object: ConsulLock) -> Seen {
        let recorded = recorded::of(&object, &config()).and_then(|known| known.tenure);
        Seen {
            id: ClaimId("uid-1".into()),
            settings: object.spec.settings(),
            electorate: electorate(Standing::of(None, recorded, at(2))),
            object: Arc::new(object),
            namespace: NamespaceSeen::Annotated(None),
            view: None,
            stop: None,
            since: at(1),
        }
    }

    fn planned(seen: Seen) -> ClaimPlan {
        let observed =
            Observed { claim: Some(seen), former: Vec::new(), orphans: Vec::new(), now: at(2) };
        plan(&observed, &config()).claim.unwrap()
    }

    fn stopping(mut seen: Seen, stop: StopState) -> Seen {
        seen.stop = Some(stop);
        seen
    }

    fn deleted(mut claim: ConsulLock) -> ConsulLock {
        claim.metadata.deletion_timestamp = Some(Time(wall(0)));
        claim
    }

    fn is_paused(wanted: &Wanted) -> bool {
        matches!(wanted.stance, Stance::StandBy(_))
    }

    #[track_caller]
    fn set(plan: ClaimPlan) -> (Wanted, Option<Recorded>) {
        match plan.keepers {
            KeepersStep::Set(wanted, recorded) => (*wanted, recorded),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_claim_gets_its_finalizer_and_then_keepers() {
        let mut claim = claim("{session: {ttl: 20s}, value: hello}");
        claim.metadata.finalizers = Some(vec!["other/one".to_owned()]);
        let plan = planned(seen(claim));
        assert_eq!(plan.finalizer, FinalizerStep::Add);
        let (wanted, recorded) = set(plan);
        assert_eq!(recorded, None);
        assert_eq!(wanted.key.as_str(), "consul-lock/shop/billing");
        assert_eq!(&*wanted.prefix, "consul-lock/");
        assert_eq!(wanted.session.name.as_str(), "consul-lock/west/uid-1");
        assert_eq!(wanted.session.node.as_str(), "consul-lock-west-shop");
        assert_eq!(wanted.session.ttl, Duration::from_secs(20));
        assert_eq!(wanted.payload.holder, "shop/billing");
        assert_eq!((is_paused(&wanted), wanted.attempt), (false, 3));
    }

    #[test]
    fn what_an_earlier_controller_recorded_is_handed_on_when_keepers_start() {
        let object = claim_with_status("{}", held_status());
        let (_, recorded) = set(planned(seen(object.clone())));
        let recorded = recorded.unwrap();
        assert_eq!(recorded.session.as_str(), "s-1");
        let since = "2026-01-02T03:04:05Z".parse().unwrap();
        let token = FencingToken::new(41);
        assert_eq!(recorded.tenure, Some(RecordedTenure { token, since, leader: None }));
        let running = stopping(seen(object), StopState::Running);
        assert_eq!(set(planned(running)).1, None, "only when they start");
    }

    #[test]
    fn a_tenure_that_an_earlier_controller_could_not_confirm_is_handed_on() {
        let mut status = held_status();
        status["phase"] = json!("Unknown");
        let (_, recorded) = set(planned(seen(claim_with_status("{}", status.clone()))));
        assert!(recorded.unwrap().tenure.is_some());
        status.as_object_mut().unwrap().remove("fencingToken");
        let (_, recorded) = set(planned(seen(claim_with_status("{}", status))));
        assert_eq!(recorded.unwrap().tenure, None, "it was lost");
    }

    #[test]
    fn a_tenure_of_somebody_else_is_not_handed_on() {
        for (field, value) in [
            ("phase", json!("Waiting")),
            ("fencingToken", json!("many")),
            ("holder", json!({"identity": "shop/billing", "cluster": "east"})),
            ("holder", json!({"identity": "shop/billing", "cluster": "west", "stranger": true})),
        ] {
            let mut status = held_status();
            status[field] = value;
            let (_, recorded) = set(planned(seen(claim_with_status("{}", status))));
            assert_eq!(recorded.unwrap().tenure, None, "{field}");
        }
    }

    #[test]
    fn a_key_outside_the_tenancy_starts_nothing_and_stops_what_runs() {
        let object = claim("{key: shared/billing}");
        let plan = planned(seen(object.clone()));
        assert_eq!(plan.keepers, KeepersStep::Leave);
        assert!(matches!(plan.judged.judgement, Judgement::NotAllowed { .. }));
        for (stop, step) in [
            (StopState::Running, KeepersStep::Stop),
            (StopState::Stopping, KeepersStep::Leave),
            (StopState::Clean, KeepersStep::Forget),
            (StopState::Abandoned, KeepersStep::Forget),
        ] {
            assert_eq!(planned(stopping(seen(object.clone()), stop)).keepers, step);
        }
        let mut status = held_status();
        status["key"] = json!("shared/billing");
        let left = planned(seen(claim_with_status("{key: shared/billing}", status)));
        let KeepersStep::GiveUp(wanted, recorded) = left.keepers else {
            panic!("{left:?}");
        };
        assert_eq!((wanted.key.as_str(), &*wanted.prefix), ("shared/billing", "shared/"));
        assert_eq!(recorded.session.as_str(), "s-1");
    }

    #[test]
    fn a_prefix_of_the_namespace_is_watched_for_the_keys_under_it() {
        let mut seen = seen(claim("{key: shared/billing}"));
        seen.namespace = NamespaceSeen::Annotated(Some("jobs/,shared/".to_owned()));
        assert_eq!(&*set(planned(seen)).0.prefix, "shared/");
    }

    #[test]
    fn an_unseen_namespace_neither_starts_nor_stops_anything() {
        let unseen = |object| Seen { namespace: NamespaceSeen::Unknown, ..seen(object) };
        let fresh = planned(unseen(claim("{key: shared/billing}")));
        assert_eq!(fresh.keepers, KeepersStep::Leave);
        assert_eq!(fresh.finalizer, FinalizerStep::Keep);
        let running = stopping(unseen(claim("{key: shared/billing}")), StopState::Running);
        assert_eq!(planned(running).keepers, KeepersStep::Leave);
        let mut status = held_status();
        status["key"] = json!("shared/billing");
        let held = unseen(claim_with_status("{key: shared/billing}", status));
        let (wanted, recorded) = set(planned(held));
        assert_eq!(&*wanted.prefix, "shared/");
        assert!(recorded.unwrap().tenure.is_some(), "an earlier controller saw it");
    }

    #[test]
    fn a_session_recorded_for_another_key_is_given_up_before_the_new_key_is_wanted() {
        let mut status = held_status();
        status["key"] = json!("former-prefix/shop/billing");
        let object = claim_with_status("{}", status);
        let plan = planned(seen(object.clone()));
        let KeepersStep::GiveUp(wanted, recorded) = &plan.keepers else { panic!("{plan:?}") };
        assert_eq!(wanted.key.as_str(), "former-prefix/shop/billing");
        assert_eq!(recorded.session.as_str(), "s-1");
        let shown = plan.judged.judgement.key().unwrap();
        assert_eq!(
            shown.as_str(),
            "former-prefix/shop/billing",
            "till then the status tells of it"
        );
        let waits = planned(stopping(seen(object.clone()), StopState::Stopping));
        assert_eq!(waits.keepers, KeepersStep::Leave);
        for stop in [StopState::Clean, StopState::Abandoned] {
            let plan = planned(stopping(seen(object.clone()), stop));
            let KeepersStep::Restart(wanted) = plan.keepers else { panic!("{plan:?}") };
            assert_eq!(wanted.key.as_str(), "consul-lock/shop/billing");
        }
        let (wanted, _) = set(planned(stopping(seen(object), StopState::Running)));
        assert_eq!(wanted.key.as_str(), "consul-lock/shop/billing");
    }

    #[test]
    fn an_invalid_spec_stops_what_runs() {
        let object = claim("{session: {ttl: 1s}}");
        let running = stopping(seen(object.clone()), StopState::Running);
        assert_eq!(planned(running).keepers, KeepersStep::Stop);
        let plan = planned(seen(object));
        assert_eq!(plan.keepers, KeepersStep::Leave);
        let Judgement::Invalid { problem } = plan.judged.judgement else {
            panic!("{:?}", plan.judged);
        };
        assert!(problem.contains("spec.session.ttl"), "{problem}");
    }

    #[test]
    fn a_claim_that_gave_up_observes_until_its_spec_changes() {
        let condition = json!({
            "type": "Ready", "status": "False", "reason": "AcquireTimeout", "message": "m",
            "lastTransitionTime": "2026-01-02T03:04:05Z",
        });
        let status = |generation: i64, phase: &str| {
            json!({
                "observedGeneration": generation, "phase": phase, "conditions": [condition],
            })
        };
        let (wanted, _) = set(planned(seen(claim_with_status("{}", status(3, "Failed")))));
        assert!(is_paused(&wanted));
        for contends in [status(2, "Failed"), status(3, "Waiting")] {
            let (wanted, _) = set(planned(seen(claim_with_status("{}", contends))));
            assert!(!is_paused(&wanted));
        }
    }

    const AGENT: &str = "{mode: Agent, candidates: {selector: {matchLabels: {app: billing}}}}";

    #[test]
    fn the_key_of_a_claim_whose_pods_hold_it_is_followed_whatever_else_the_spec_says() {
        let follow = Stance::Follow { release: None };
        for spec in [AGENT, &AGENT.replace("mode", "paused: true, mode")] {
            let mut fresh = claim(spec);
            fresh.metadata.finalizers = None;
            let plan = planned(seen(fresh));
            assert_eq!(plan.finalizer, FinalizerStep::Add, "it may label a pod");
            assert_eq!(set(plan).0.stance, follow);
            let running = stopping(seen(claim(spec)), StopState::Running);
            assert_eq!(set(planned(running)).0.stance, follow);
        }
        // What the controller had itself is taken over, to be given up.
        let (wanted, recorded) = set(planned(seen(claim_with_status(AGENT, held_status()))));
        assert_eq!(wanted.stance, follow);
        assert!(recorded.unwrap().tenure.is_some());
    }

    #[test]
    fn the_session_of_a_pod_s_own_is_neither_adopted_nor_given_up() {
        let mut status = held_status();
        status["mode"] = json!("Agent");
        for spec in [AGENT, "{}"] {
            let (_, recorded) = set(planned(seen(claim_with_status(spec, status.clone()))));
            assert_eq!(recorded, None, "{spec}");
        }
        let plan = planned(seen(deleted(claim_with_status(AGENT, status))));
        assert_eq!(plan.keepers, KeepersStep::Leave);
        assert_eq!(plan.finalizer, FinalizerStep::Remove { unclean: false });
    }

    #[test]
    fn keepers_that_stopped_make_room_for_new_ones() {
        let stopped = planned(stopping(seen(claim("{}")), StopState::Clean));
        assert!(matches!(stopped.keepers, KeepersStep::Restart(_)));
        let stopping = planned(stopping(seen(claim("{}")), StopState::Stopping));
        assert_eq!(stopping.keepers, KeepersStep::Leave);
    }

    #[test]
    fn a_deleted_claim_goes_after_its_release_whatever_its_spec() {
        const KEEP: FinalizerStep = FinalizerStep::Keep;
        const CLEAN: FinalizerStep = FinalizerStep::Remove { unclean: false };
        const UNCLEAN: FinalizerStep = FinalizerStep::Remove { unclean: true };
        for spec in ["{}", "{session: {ttl: 1s}}", "{key: not/allowed}"] {
            let object = deleted(claim(spec));
            for (stop, keepers, finalizer) in [
                (None, KeepersStep::Leave, CLEAN),
                (Some(StopState::Running), KeepersStep::Stop, KEEP),
                (Some(StopState::Stopping), KeepersStep::Leave, KEEP),
                (Some(StopState::Clean), KeepersStep::Forget, CLEAN),
                (Some(StopState::Abandoned), KeepersStep::Forget, UNCLEAN),
            ] {
                let mut seen = seen(object.clone());
                seen.stop = stop;
                let plan = planned(seen);
                assert_eq!((plan.keepers, plan.finalizer), (keepers, finalizer), "{stop:?}");
            }
        }
    }

    #[test]
    fn a_deleted_claim_keeps_its_key_while_it_is_unknown_what_its_leader_has() {
        let mut status = held_status();
        status["holder"]["pod"] = json!("a");
        status["holder"]["uid"] = json!("uid-a");
        let object = deleted(claim_with_status("{}", status));
        for stop in [None, Some(StopState::Running)] {
            let mut blind = seen(object.clone());
            (blind.stop, blind.electorate.known) = (stop, false);
            let plan = planned(blind);
            let (keep, leave) = (FinalizerStep::Keep, KeepersStep::Leave);
            assert_eq!((plan.finalizer, plan.keepers), (keep, leave), "{stop:?}");
        }
    }

    #[test]
    fn a_deleted_claim_of_an_earlier_controller_is_taken_over_to_be_released() {
        let object = deleted(claim_with_status("{session: {ttl: 1s}}", held_status()));
        let plan = planned(seen(object));
        assert_eq!(plan.finalizer, FinalizerStep::Keep);
        let KeepersStep::GiveUp(wanted, recorded) = plan.keepers else {
            panic!("{plan:?}");
        };
        assert_eq!(wanted.session.ttl, Duration::from_secs(20), "from the status");
        assert!(is_paused(&wanted) && recorded.tenure.is_some());
    }

    #[test]
    fn a_deleted_claim_without_our_finalizer_is_left_to_others() {
        let mut object = deleted(claim_with_status("{}", held_status()));
        object.metadata.finalizers = Some(vec!["other/one".to_owned()]);
        let plan = planned(seen(object));
        assert_eq!((plan.finalizer, plan.keepers), (FinalizerStep::Keep, KeepersStep::Leave));
    }

    #[test]
    fn keepers_of_former_claims_of_the_name_are_stopped_and_forgotten() {
        let observed = Observed {
            claim: None,
            former: vec![
                (ClaimId("a".into()), Some(StopState::Running)),
                (ClaimId("b".into()), Some(StopState::Stopping)),
                (ClaimId("c".into()), Some(StopState::Abandoned)),
                (ClaimId("d".into()), None),
            ],
            orphans: Vec::new(),
            now: at(1),
        };
        let plan = plan(&observed, &config());
        let steps: Vec<_> = plan.former.into_iter().map(|(_, step)| step).collect();
        let (stop, forget) = (FormerStep::Stop, FormerStep::Forget);
        assert_eq!(steps, [stop, FormerStep::Wait, forget, forget]);
    }
}
