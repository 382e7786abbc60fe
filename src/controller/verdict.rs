//! What is to be said of a claim, and why: the rules that decide its phase and its `Ready`
//! condition.
//!
//! [`RULES`] is the specification: the first rule that answers wins. Its reason and message go
//! into the condition, the event and the log alike. Pure.

use super::{follow::Holding, holder, reasons::Reason};
use crate::{
    api::Phase,
    clock::Instant,
    consul::{Class, Operation},
    keeper::{KeeperView, KeySeen, LockView, SessionHealth, Trouble},
    lock::{EndReason, FailReason},
    names::Key,
};

/// What the rules look at.
pub(super) struct Facts<'a> {
    /// What the spec and the tenancy make of the claim.
    pub(super) judgement: &'a Judgement,
    /// The claim is being deleted.
    pub(super) deleting: bool,
    /// What its keepers know, if it has any.
    pub(super) view: Option<&'a KeeperView>,
    /// The spec says so.
    pub(super) paused: bool,
    /// Why none of its pods may be elected, if that is so.
    pub(super) nobody: Option<&'a str>,
    /// Why the tenure is not handed over, though somebody asked for it.
    pub(super) refused: Option<&'a str>,
    /// What is wrong with the record of runs beside the key, of a claim that needs it.
    pub(super) unreadable: Option<&'a str>,
    /// What has not been listed, of what its candidates and routing need.
    pub(super) unlisted: Option<&'static str>,
    /// The status speaks of a tenure that the claim, by its present mode, would go on with.
    pub(super) recorded: bool,
    /// Who holds a key that the pods hold themselves, once it was seen.
    pub(super) holding: Option<&'a Holding>,
    pub(super) now: Instant,
}

impl Facts<'_> {
    /// An earlier controller recorded a tenure, and nobody has confirmed it to this one yet.
    pub(super) fn is_unconfirmed(&self) -> bool {
        self.recorded && self.view.is_some_and(|view| view.lock == LockView::Starting)
    }
}

/// What the spec and the tenancy make of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The spec means nothing.
    Invalid { problem: String },
    /// The key is outside the namespace's tenancy.
    NotAllowed { key: Key, message: String },
    /// Whether the key is allowed depends on a Namespace that we cannot see.
    Undecided { key: Key },
    /// Its key is another than the one that an earlier controller recorded a session for, which is
    /// given up first.
    Moving { from: Key },
    /// The claim gave up contending, under this very spec.
    GaveUp { key: Key, reason: Reason, message: String },
    /// It may contend.
    Allowed { key: Key },
}

impl Judgement {
    pub(super) fn key(&self) -> Option<&Key> {
        match self {
            Judgement::Invalid { .. } => None,
            Judgement::NotAllowed { key, .. }
            | Judgement::Undecided { key }
            | Judgement::Moving { from: key }
            | Judgement::GaveUp { key, .. }
            | Judgement::Allowed { key } => Some(key),
        }
    }
}

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Truth::True => "True",
            Truth::False => "False",
            Truth::Unknown => "Unknown",
        }
    }
}

/// What is to be said of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) phase: Phase,
    /// Whether the claim is in good order: it holds its key, waits for it or stands by as asked.
    pub(super) ready: Truth,
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl Verdict {
    fn new(phase: Phase, ready: Truth, reason: Reason, message: impl Into<String>) -> Verdict {
        Verdict { phase, ready, reason, message: message.into() }
    }
}

type Rule = fn(&Facts<'_>) -> Option<Verdict>;

const RULES: &[Rule] = &[
    deleting,
    still_releasing,
    handing_over,
    invalid_spec,
    key_not_allowed,
    runs_unreadable,
    handover_refused,
    held,
    out_of_sight,
    held_by_a_pod_itself,
    namespace_unknown,
    pods_unknown,
    gave_up_earlier,
    gave_up,
    expired,
    nobody_eligible,
    paused,
    key_conflict,
    consul_denied,
    consul_refused,
    out_of_touch,
    doubtful,
    starting,
    lock_delay,
    held_elsewhere,
];

/// The first rule that answers.
pub(super) fn verdict(facts: &Facts<'_>) -> Verdict {
    RULES.iter().find_map(|rule| rule(facts)).unwrap_or_else(|| contending(facts))
}

fn deleting(facts: &Facts<'_>) -> Option<Verdict> {
    facts.deleting.then(|| {
        let message = match (facts.unlisted, facts.view) {
            (Some(unlisted), _) => format!(
                "the claim is being deleted, but {unlisted} cannot be listed; what its pod has of \
                 it is taken away before the key is released"
            ),
            (None, Some(_)) => "the claim is being deleted and releases its key first".to_owned(),
            (None, None) => {
                "the claim is being deleted; it contends no more, and others hold it back"
                    .to_owned()
            }
        };
        Verdict::new(Phase::Releasing, Truth::False, Reason::Deleting, message)
    })
}

fn still_releasing(facts: &Facts<'_>) -> Option<Verdict> {
    let reason = match facts.view?.lock {
        // Not our wish: who holds the key is not known before Consul has confirmed the release.
        LockView::Releasing { reason: EndReason::Expired } => return None,
        LockView::Releasing { reason } => reason,
        _ => return None,
    };
    let message = format!("the key is being released: {}", end_words(reason));
    Some(Verdict::new(Phase::Releasing, Truth::True, Reason::Releasing, message))
}

fn handing_over(facts: &Facts<'_>) -> Option<Verdict> {
    let LockView::HandingOver { reason, .. } = &facts.view?.lock else { return None };
    let message =
        format!("one tenure has ended, and the next is being begun: {}", end_words(*reason));
    Some(Verdict::new(Phase::Releasing, Truth::True, Reason::HandingOver, message))
}

fn invalid_spec(facts: &Facts<'_>) -> Option<Verdict> {
    let Judgement::Invalid { problem } = facts.judgement else {
        return None;
    };
    Some(Verdict::new(Phase::Failed, Truth::False, Reason::InvalidSpec, problem))
}

fn key_not_allowed(facts: &Facts<'_>) -> Option<Verdict> {
    let Judgement::NotAllowed { message, .. } = facts.judgement else {
        return None;
    };
    Some(Verdict::new(Phase::Failed, Truth::False, Reason::KeyNotAllowed, message))
}

/// The pod that was elected does not start: it may have run already.
fn runs_unreadable(facts: &Facts<'_>) -> Option<Verdict> {
    let _token = facts.view?.token(facts.now)?;
    let message = facts.unreadable?;
    Some(Verdict::new(Phase::Held, Truth::False, Reason::RunsUnreadable, message))
}

fn held(facts: &Facts<'_>) -> Option<Verdict> {
    let view = facts.view?;
    let token = view.token(facts.now)?;
    let mut message = match &view.lock {
        LockView::Held { leader: Some(leader), .. } => format!(
            "pod {} holds the key with fencing token {token}; it was elected as {}",
            leader.pod, leader.why
        ),
        _ => format!("holds the key with fencing token {token}"),
    };
    if let Some(unlisted) = facts.unlisted {
        message += &format!("; {unlisted} cannot be listed, so it would not be replaced");
    }
    Some(Verdict::new(Phase::Held, Truth::True, Reason::Held, message))
}

/// The tenure goes on as it was.
fn handover_refused(facts: &Facts<'_>) -> Option<Verdict> {
    let refused = facts.refused?;
    let held = held(facts)?;
    let message = format!("{}; it is not handed over: {refused}", held.message);
    Some(Verdict { reason: Reason::HandoverRefused, message, ..held })
}

/// The pods hold the key themselves, and it cannot be looked at: whoever held it last may have lost it.
fn out_of_sight(facts: &Facts<'_>) -> Option<Verdict> {
    facts.holding?;
    let trouble = facts.view?.trouble.as_ref()?;
    if !matches!(trouble.operation, Operation::WatchPrefix | Operation::ReadKey) {
        return None;
    }
    let (ready, message) = match trouble.class {
        Class::Denied => (Truth::False, denied_words(trouble)),
        Class::Invalid => (Truth::False, refused_words(trouble)),
        Class::Transient | Class::UnknownOutcome | Class::Lost => {
            (Truth::Unknown, unavailable_words(trouble))
        }
    };
    Some(Verdict::new(Phase::Unknown, ready, class_reason(trouble.class), message))
}

fn held_by_a_pod_itself(facts: &Facts<'_>) -> Option<Verdict> {
    let Some(Holding::Pod(followed)) = facts.holding else { return None };
    let pod = &followed.leader.pod;
    let Some(token) = followed.token else {
        let message = format!("pod {pod} holds the key and has not told its fencing token yet");
        return Some(Verdict::new(Phase::Waiting, Truth::Unknown, Reason::TokenUnknown, message));
    };
    let mut message = format!("pod {pod} holds the key itself, with fencing token {token}");
    let (ready, reason) = match facts.view?.trouble.as_ref() {
        None => (Truth::True, Reason::Held),
        Some(trouble) => {
            let words = trouble_words(trouble);
            message += &format!("; it has ended, and the key cannot be freed: {words}");
            (Truth::False, class_reason(trouble.class))
        }
    };
    Some(Verdict::new(Phase::Held, ready, reason, message))
}

fn class_reason(class: Class) -> Reason {
    match class {
        Class::Denied => Reason::ConsulDenied,
        Class::Invalid => Reason::ConsulRefused,
        Class::Transient | Class::UnknownOutcome | Class::Lost => Reason::ConsulUnavailable,
    }
}

fn namespace_unknown(facts: &Facts<'_>) -> Option<Verdict> {
    let Judgement::Undecided { key } = facts.judgement else {
        return None;
    };
    let message = format!(
        "whether the key {key} is allowed here stands on the Namespace, which cannot be read"
    );
    let unknown = (Phase::Pending, Truth::Unknown, Reason::NamespaceUnknown);
    Some(Verdict::new(unknown.0, unknown.1, unknown.2, message))
}

fn pods_unknown(facts: &Facts<'_>) -> Option<Verdict> {
    // A tenure that is being adopted for a leader goes on without that.
    let unlisted = facts.unlisted.filter(|_| !facts.is_unconfirmed())?;
    let message = format!("{unlisted} cannot be listed, so nobody can be elected");
    Some(Verdict::new(Phase::Pending, Truth::Unknown, Reason::PodsUnknown, message))
}

fn gave_up_earlier(facts: &Facts<'_>) -> Option<Verdict> {
    let Judgement::GaveUp { reason, message, .. } = facts.judgement else {
        return None;
    };
    Some(Verdict::new(Phase::Failed, Truth::False, *reason, message))
}

fn gave_up(facts: &Facts<'_>) -> Option<Verdict> {
    let LockView::Failed { reason } = facts.view?.lock else {
        return None;
    };
    let (reason, message) = match reason {
        FailReason::AcquireTimeout => (
            Reason::AcquireTimeout,
            "the key was not free within acquire.timeout; change the spec to contend again",
        ),
        FailReason::Contended => (
            Reason::Contended,
            "the key was not free at the one attempt of acquire.tryOnce; change the spec to \
             contend again",
        ),
    };
    Some(Verdict::new(Phase::Failed, Truth::False, reason, message))
}

/// *Valid until* has passed, whether the keepers have noticed or we see it by comparing with `now`.
fn expired(facts: &Facts<'_>) -> Option<Verdict> {
    let (LockView::Held { .. } | LockView::Releasing { reason: EndReason::Expired }) =
        facts.view?.lock
    else {
        return None;
    };
    let message = "the session could not be renewed in time; the key may be somebody else's now";
    Some(Verdict::new(Phase::Unknown, Truth::Unknown, Reason::Expired, message))
}

fn nobody_eligible(facts: &Facts<'_>) -> Option<Verdict> {
    let message = facts.nobody?;
    matches!(facts.view?.lock, LockView::Standby | LockView::Following { .. })
        .then(|| Verdict::new(Phase::Waiting, Truth::False, Reason::NoCandidate, message))
}

fn paused(facts: &Facts<'_>) -> Option<Verdict> {
    let message = match facts.view?.lock {
        LockView::Standby => "spec.paused: the key is released, and the claim stands by",
        LockView::Following { .. } => "spec.paused: no pod of the claim holds the key",
        _ => return None,
    };
    facts.paused.then(|| Verdict::new(Phase::Paused, Truth::True, Reason::Paused, message))
}

fn key_conflict(facts: &Facts<'_>) -> Option<Verdict> {
    let Some(KeySeen::Conflict { flags }) = &facts.view?.key else {
        return None;
    };
    let message = conflict_words(*flags);
    Some(Verdict::new(Phase::Waiting, Truth::False, Reason::KeyConflict, message))
}

fn consul_denied(facts: &Facts<'_>) -> Option<Verdict> {
    let trouble = trouble_of(facts.view?, &[Class::Denied])?;
    let phase = contending_phase(facts);
    let message = denied_words(trouble);
    Some(Verdict::new(phase, Truth::False, Reason::ConsulDenied, message))
}

fn consul_refused(facts: &Facts<'_>) -> Option<Verdict> {
    let trouble = trouble_of(facts.view?, &[Class::Invalid])?;
    let phase = contending_phase(facts);
    let message = refused_words(trouble);
    Some(Verdict::new(phase, Truth::False, Reason::ConsulRefused, message))
}

/// Consul does not answer, and there is no session left that could be relied on: whatever was
/// known of the key may have changed.
fn out_of_touch(facts: &Facts<'_>) -> Option<Verdict> {
    let view = facts.view?;
    let trouble = unreachable(view)?;
    if view.session.health == SessionHealth::Jeopardy {
        return None;
    }
    let phase = match view.lock {
        LockView::Starting => starting_phase(facts),
        _ => Phase::Unknown,
    };
    let message = unavailable_words(trouble);
    Some(Verdict::new(phase, Truth::Unknown, Reason::ConsulUnavailable, message))
}

/// Consul does not answer, but our session may still be relied on.
fn doubtful(facts: &Facts<'_>) -> Option<Verdict> {
    let view = facts.view?;
    let trouble = unreachable(view)?;
    let message = unavailable_words(trouble);
    let phase = contending_phase(facts);
    Some(Verdict::new(phase, Truth::Unknown, Reason::ConsulUnavailable, message))
}

fn starting(facts: &Facts<'_>) -> Option<Verdict> {
    let started = facts.view.is_some_and(|view| view.lock != LockView::Starting);
    (!started).then(|| {
        let message = "Consul has not said yet how the key stands";
        Verdict::new(starting_phase(facts), Truth::Unknown, Reason::Starting, message)
    })
}

fn lock_delay(facts: &Facts<'_>) -> Option<Verdict> {
    matches!(facts.view?.lock, LockView::LockDelay { .. }).then(|| {
        let message = "nobody holds the key, and nobody may yet: its last holder was lost, and \
                       the lock-delay is running";
        Verdict::new(Phase::LockDelay, Truth::True, Reason::LockDelay, message)
    })
}

fn held_elsewhere(facts: &Facts<'_>) -> Option<Verdict> {
    let Some(KeySeen::Held(seen)) = &facts.view?.key else {
        return None;
    };
    let holder = holder::of(seen);
    let kind = if holder.stranger { "the stranger " } else { "" };
    let identity = holder.identity;
    let message = match facts.holding {
        None => format!("waits for {kind}{identity} to release the key"),
        Some(_) => format!("{kind}{identity} holds the key, which is no pod of this claim"),
    };
    Some(Verdict::new(Phase::Waiting, Truth::True, Reason::HeldElsewhere, message))
}

fn contending(facts: &Facts<'_>) -> Verdict {
    let message = match facts.holding {
        None => "contends for the key",
        Some(_) => "nobody holds the key; the pods contend for it by themselves",
    };
    Verdict::new(Phase::Waiting, Truth::True, Reason::Contending, message)
}

fn contending_phase(facts: &Facts<'_>) -> Phase {
    match facts.view.map(|view| &view.lock) {
        Some(LockView::Starting) | None => starting_phase(facts),
        Some(LockView::LockDelay { .. }) => Phase::LockDelay,
        Some(_) => Phase::Waiting,
    }
}

/// Before Consul has said how the key stands.
fn starting_phase(facts: &Facts<'_>) -> Phase {
    if facts.is_unconfirmed() { Phase::Unknown } else { Phase::Pending }
}

fn trouble_of<'a>(view: &'a KeeperView, classes: &[Class]) -> Option<&'a Trouble> {
    let trouble = view.trouble.as_ref()?;
    classes.contains(&trouble.class).then_some(trouble)
}

/// The failure by which we know that Consul is away. While renewals succeed, a single call that
/// failed is none.
pub(super) fn unreachable(view: &KeeperView) -> Option<&Trouble> {
    if view.session.health == SessionHealth::Healthy {
        return None;
    }
    trouble_of(view, &[Class::Transient, Class::UnknownOutcome])
}

pub(super) fn conflict_words(flags: u64) -> String {
    format!(
        "the key holds something that is not a lock (its flags are {flags:#x}); it is left alone"
    )
}

pub(super) fn unavailable_words(trouble: &Trouble) -> String {
    format!("Consul does not answer: {}", trouble_words(trouble))
}

fn denied_words(trouble: &Trouble) -> String {
    format!("Consul's ACLs forbid it: {}", trouble_words(trouble))
}

fn refused_words(trouble: &Trouble) -> String {
    format!("Consul refuses it: {}", trouble_words(trouble))
}

fn trouble_words(trouble: &Trouble) -> String {
    format!("{}: {}", trouble.operation.as_str(), trouble.message)
}

const fn end_words(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Paused => "the claim was paused",
        EndReason::Stopped => "the claim stops contending",
        EndReason::MaxHold => "acquire.maxHold has passed",
        EndReason::HandedOver => "a handover was asked for",
        EndReason::NoCandidate => "no pod may be elected",
        EndReason::Preempted => "a better candidate takes over",
        EndReason::PodFinished => "the elected pod has finished",
        EndReason::AlreadyRan => "what the elected pod was to do has been done elsewhere",
        EndReason::PodDied => "the elected pod has ended",
        EndReason::PodDeleted => "the elected pod was deleted and has ended",
        EndReason::PodUnreachable => "the elected pod was out of reach for too long",
        EndReason::PodUnready => "the elected pod was not ready for too long",
        EndReason::PodUnmatched => "the elected pod does not match the selector any more",
        EndReason::Released => "the pod gave the key up",
        EndReason::PassedOn => "another holder followed",
        EndReason::Expired => "the session could not be renewed in time",
        EndReason::SessionInvalidated => "Consul ended the session",
        EndReason::KeyDeleted => "the key was deleted",
        EndReason::KeyTaken => "the key was taken away",
        EndReason::Superseded => {
            "a later tenure of this claim followed, and its end was not recorded"
        }
    }
}
