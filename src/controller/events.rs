//! Kubernetes events: told when something changed, and at no other time.
//!
//! [`news`] compares two statuses and is pure; [`Publisher`] tells. A cache of what was told, as
//! kube's recorder keeps one, is not needed for that.
//!
//! # Not guaranteed
//! That an event arrives: a walk never waits for one, and fails over none.

use std::sync::Arc;

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::{
    api::events::v1::Event,
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta},
};
use kube::{Resource, ResourceExt};
use tokio::sync::mpsc;
use tracing::Instrument;

use super::{course::Remove, writer::Writer};
use crate::{
    api::{ConsulLock, ConsulLockStatus, Mode},
    keeper::KeeperView,
    lock::EndReason,
    telemetry::logs,
};

/// Events that wait to be told. More are dropped.
const WAITING: usize = 1024;
/// Events that are told at once.
const AT_ONCE: usize = 4;
/// Kubernetes allows a kilobyte.
const NOTE_BYTES: usize = 1000;

/// What may be told: the event's reason, whether it is a warning, and when.
pub const EVENTS: &[(&str, bool, &str)] = &[
    (
        "Acquired",
        false,
        "A tenure began: of the claim, of the pod that it elected, or of a pod itself.",
    ),
    ("Released", false, "A tenure was given up in order. The note says why."),
    ("Lost", true, "A tenure ended without our wish. The note says how."),
    ("Waiting", false, "Somebody else holds the key."),
    ("LockDelay", false, "The key's last holder was lost, and nobody may take it yet."),
    ("Paused", false, "The claim has released its key and stands by."),
    ("NoCandidate", true, "No pod may be elected. The note says why."),
    ("HandoverRefused", true, "A handover was asked for that cannot be. The note says why."),
    ("RoutingFailed", true, "The Service does not lead to the elected pod. The note says why."),
    (
        "AlreadyRan",
        false,
        "A Job was removed, for its firing has run already. The note says where.",
    ),
    ("RunsUnreadable", true, "What is recorded beside the key of earlier runs cannot be read."),
    ("KeyConflict", true, "The key holds something that is not a lock. It is left alone."),
    ("KeyNotAllowed", true, "The key is outside the prefixes of the claim's namespace."),
    ("InvalidSpec", true, "The spec means nothing. The note names the field."),
    ("AcquireTimeout", true, "The claim gave up: `acquire.timeout` passed."),
    ("Contended", true, "The claim gave up: the key was not free at its one attempt."),
    ("ConsulUnreachable", true, "Consul does not answer any more."),
    ("ConsulReachable", false, "Consul answers again."),
    ("ConsulDenied", true, "Consul's ACLs forbid something. The note says what."),
    ("ConsulRefused", true, "Consul takes a request for invalid. The note says which."),
    (
        "DeletedWithoutRelease",
        true,
        "The claim went while Consul was away; its session ends by itself.",
    ),
];

/// The reasons of `Ready` that are told under their own name.
const STANDINGS: &[&str] = &[
    "LockDelay",
    "Paused",
    "NoCandidate",
    "HandoverRefused",
    "RunsUnreadable",
    "KeyConflict",
    "KeyNotAllowed",
    "InvalidSpec",
    "AcquireTimeout",
    "Contended",
    "ConsulDenied",
    "ConsulRefused",
];

/// One thing worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct News {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) note: String,
}

impl News {
    fn new(reason: &'static str, note: impl Into<String>) -> News {
        let known = EVENTS.iter().find(|(known, ..)| *known == reason);
        debug_assert!(known.is_some(), "{reason} is not in EVENTS");
        let warning = known.is_none_or(|(_, warning, _)| *warning);
        let mut note = note.into();
        while note.len() > NOTE_BYTES {
            note.pop();
        }
        News { warning, reason, note }
    }

    /// A Job was removed whose firing has run already.
    pub(super) fn already_ran(remove: &Remove) -> News {
        let Remove { job, scheduled, place, .. } = remove;
        let note = format!("removed Job {job}: what was due at {scheduled} ran in {place}");
        News::new("AlreadyRan", note)
    }

    /// The claim went without a clean release. `view`: what its keepers knew last.
    pub(super) fn deleted_without_release(claim: &ConsulLock, view: Option<&KeeperView>) -> News {
        let status = claim.status.as_ref();
        let kept = view.and_then(|view| view.session.id.as_ref()).map(ToString::to_string);
        let told = || status.and_then(|status| status.session.as_ref()?.id.clone());
        let session = kept
            .or_else(told)
            .map_or_else(|| "a session that it may have had".into(), |id| format!("session {id}"));
        let limit = status.and_then(|status| status.guarantee.as_ref());
        let limit =
            limit.map_or_else(String::new, |limit| format!(" within {}", limit.failover_max));
        let note = format!(
            "Consul was away: the key could not be released; {session} ends by itself{limit} of \
             its last renewal"
        );
        News::new("DeletedWithoutRelease", note)
    }
}

/// What changed from one status to the next.
pub(super) fn news(previous: Option<&ConsulLockStatus>, next: &ConsulLockStatus) -> Vec<News> {
    let none = ConsulLockStatus::default();
    let previous = previous.unwrap_or(&none);
    let mut news = ended(previous, next);
    news.extend(acquired(previous, next));
    news.extend(standing(previous, next));
    news.extend(reachability(previous, next));
    news.extend(routing(previous, next));
    news
}

fn routing(previous: &ConsulLockStatus, next: &ConsulLockStatus) -> Option<News> {
    let before = condition(previous, "RoutingSynced").map(|before| before.reason.as_str());
    let now = condition(next, "RoutingSynced")?;
    let is_new = before != Some(now.reason.as_str());
    (is_new && now.status == "False").then(|| News::new("RoutingFailed", &now.message))
}

fn acquired(previous: &ConsulLockStatus, next: &ConsulLockStatus) -> Option<News> {
    let token = next.fencing_token.as_ref()?;
    if previous.fencing_token.as_ref() == Some(token) {
        return None;
    }
    let key = next.key.as_deref().unwrap_or_default();
    let holder = next.holder.as_ref().and_then(|holder| Some((holder.pod.as_ref()?, holder)));
    let note = match holder {
        Some((pod, _)) if next.mode == Some(Mode::Agent) => {
            format!("pod {pod} holds {key} itself, with fencing token {token}")
        }
        Some((pod, holder)) => format!(
            "pod {pod} holds {key} with fencing token {token}; it was elected as {}",
            holder.why.as_deref().unwrap_or("the only one")
        ),
        None => format!("holds {key} with fencing token {token}"),
    };
    Some(News::new("Acquired", note))
}

/// Tenures that ended since.
fn ended(previous: &ConsulLockStatus, next: &ConsulLockStatus) -> Vec<News> {
    let known = |token: &str| previous.history.iter().any(|past| past.token == token);
    let ended = next.history.iter().filter(|past| !known(&past.token)).rev();
    ended
        .map(|past| {
            let by_wish = EndReason::named(&past.reason).is_some_and(EndReason::is_clean);
            let verb = if by_wish { "Released" } else { "Lost" };
            let (holder, token) = (&past.holder, &past.token);
            let note = format!("the tenure of {holder} with token {token} ended: {}", past.reason);
            News::new(verb, note)
        })
        .collect()
}

/// A change of phase or reason that somebody may wait for.
fn standing(previous: &ConsulLockStatus, next: &ConsulLockStatus) -> Option<News> {
    let ready = ready(next)?;
    let before = self::ready(previous).map(|before| before.reason.as_str());
    let same = before == Some(ready.reason.as_str()) && previous.phase == next.phase;
    if same {
        return None;
    }
    let reason = match ready.reason.as_str() {
        "HeldElsewhere" => "Waiting",
        other => STANDINGS.iter().copied().find(|told| *told == other)?,
    };
    Some(News::new(reason, &ready.message))
}

fn reachability(previous: &ConsulLockStatus, next: &ConsulLockStatus) -> Option<News> {
    let named = |status: &ConsulLockStatus| condition(status, "ConsulReachable").cloned();
    let before = named(previous).map(|condition| condition.status);
    let now = named(next)?;
    match (before.as_deref(), now.status.as_str()) {
        (Some("False"), "True") => Some(News::new("ConsulReachable", now.message)),
        (Some("False"), _) => None,
        (_, "False") => Some(News::new("ConsulUnreachable", now.message)),
        _ => None,
    }
}

fn ready(status: &ConsulLockStatus) -> Option<&Condition> {
    condition(status, "Ready")
}

fn condition<'a>(status: &'a ConsulLockStatus, name: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|c| c.type_ == name)
}

/// Tells news, a few at a time.
pub(super) struct Publisher {
    waiting: mpsc::Sender<Event>,
    instance: String,
}

impl Publisher {
    /// A publisher, and what has to be polled for it to get anything done.
    pub(super) fn new(
        writer: Arc<Writer>,
        instance: String,
    ) -> (Publisher, impl Future<Output = ()>) {
        let (waiting, mut received) = mpsc::channel(WAITING);
        let events = stream::poll_fn(move |context| received.poll_recv(context));
        let work = events.for_each_concurrent(AT_ONCE, move |event: Event| {
            let writer = Arc::clone(&writer);
            let regarding = event.regarding.as_ref();
            let name = regarding.and_then(|about| about.name.as_deref());
            let namespace = event.metadata.namespace.as_deref();
            let span = logs::claim_span(namespace.unwrap_or_default(), name.unwrap_or_default());
            async move {
                if let Err(error) = writer.create_event(&event).await {
                    tracing::warn!(%error, "an event could not be told");
                }
            }
            .instrument(span)
        });
        (Publisher { waiting, instance }, work)
    }

    /// Tells it, if there is room; logs it in any case.
    pub(super) fn tell(&self, claim: &ConsulLock, news: &News, wall: Timestamp) {
        if news.warning {
            tracing::warn!(reason = news.reason, "{}", news.note);
        } else {
            tracing::info!(reason = news.reason, "{}", news.note);
        }
        let event = event(claim, news, wall, &self.instance);
        if self.waiting.try_send(event).is_err() {
            tracing::debug!(reason = news.reason, "too many events; this one is dropped");
        }
    }
}

fn event(claim: &ConsulLock, news: &News, wall: Timestamp, instance: &str) -> Event {
    let kind = if news.warning { "Warning" } else { "Normal" };
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", claim.name_any())),
            namespace: claim.namespace(),
            ..ObjectMeta::default()
        },
        action: Some("Lock".to_owned()),
        event_time: Some(MicroTime(wall)),
        note: Some(news.note.clone()),
        reason: Some(news.reason.to_owned()),
        regarding: Some(claim.object_ref(&())),
        reporting_controller: Some("consullock.dev/controller".to_owned()),
        reporting_instance: Some(instance.chars().take(128).collect()),
        type_: Some(kind.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controller::sample::{claim_with_status, held_status, wall};

    fn status(value: serde_json::Value) -> ConsulLockStatus {
        serde_json::from_value(value).unwrap()
    }

    fn with_condition(name: &str, truth: &str, reason: &str, phase: &str) -> ConsulLockStatus {
        status(json!({
            "phase": phase,
            "conditions": [{
                "type": name, "status": truth, "reason": reason, "message": "why",
                "lastTransitionTime": "2026-01-02T03:04:05Z",
            }],
        }))
    }

    fn told(
        previous: Option<&ConsulLockStatus>,
        next: &ConsulLockStatus,
    ) -> Vec<(bool, &'static str)> {
        let news = news(previous, next);
        news.iter().map(|news| (news.warning, news.reason)).collect()
    }

    #[test]
    fn a_tenure_is_told_once() {
        let held = status(held_status());
        assert_eq!(told(None, &held), [(false, "Acquired")]);
        assert_eq!(told(Some(&held), &held), []);
    }

    #[test]
    fn the_end_of_a_tenure_is_told_with_its_reason() {
        let held = status(held_status());
        for (reason, expected) in [
            ("Paused", (false, "Released")),
            ("MaxHold", (false, "Released")),
            ("Expired", (true, "Lost")),
            ("KeyTaken", (true, "Lost")),
        ] {
            let mut ended = held_status();
            ended["fencingToken"].take();
            ended["history"] = json!([{
                "holder": "shop/billing", "token": "41", "reason": reason,
                "from": "2026-01-02T03:04:05Z", "to": "2026-01-02T03:05:05Z",
            }]);
            let ended = status(ended);
            assert_eq!(told(Some(&held), &ended), [expected]);
            assert_eq!(told(Some(&ended), &ended), []);
            assert!(news(Some(&held), &ended)[0].note.contains(reason));
        }
    }

    #[test]
    fn changes_of_standing_are_told_and_repetitions_are_not() {
        for (reason, phase, expected) in [
            ("HeldElsewhere", "Waiting", (false, "Waiting")),
            ("LockDelay", "LockDelay", (false, "LockDelay")),
            ("KeyConflict", "Waiting", (true, "KeyConflict")),
            ("HandoverRefused", "Held", (true, "HandoverRefused")),
            ("KeyNotAllowed", "Failed", (true, "KeyNotAllowed")),
            ("AcquireTimeout", "Failed", (true, "AcquireTimeout")),
            ("ConsulDenied", "Waiting", (true, "ConsulDenied")),
        ] {
            let next = with_condition("Ready", "False", reason, phase);
            assert_eq!(told(None, &next), [expected]);
            assert_eq!(told(Some(&next), &next), []);
        }
    }

    #[test]
    fn a_pod_s_tenure_is_told_with_its_name_and_why_it_was_elected() {
        let mut led = held_status();
        led["holder"]["pod"] = json!("a");
        led["holder"]["why"] = json!("ready for longest of 2 pods");
        let led = status(led);
        let news = news(None, &led);
        let expected = "pod a holds consul-lock/shop/billing with fencing token 41; it was elected \
                        as ready for longest of 2 pods";
        assert_eq!(news, [News::new("Acquired", expected)]);
    }

    #[test]
    fn the_end_of_a_pod_s_tenure_is_told_by_its_name_and_is_no_loss_of_the_lock() {
        let mut led = held_status();
        led["history"] = json!([{
            "holder": "shop/a", "token": "40", "reason": "PodDied",
            "from": "2026-01-02T03:04:05Z", "to": "2026-01-02T03:05:05Z",
        }]);
        let mut before = held_status();
        before["fencingToken"] = json!("40");
        let news = news(Some(&status(before)), &status(led));
        let ended = "the tenure of shop/a with token 40 ended: PodDied";
        assert_eq!(news[0], News::new("Released", ended));
        assert_eq!((news.len(), news[1].reason), (2, "Acquired"), "the end first");
    }

    #[test]
    fn nobody_to_elect_and_failed_routing_are_told_once_for_each_reason() {
        let nobody = with_condition("Ready", "False", "NoCandidate", "Waiting");
        assert_eq!(told(None, &nobody), [(true, "NoCandidate")]);
        assert_eq!(told(Some(&nobody), &nobody), []);
        let routing = |truth, reason| with_condition("RoutingSynced", truth, reason, "Held");
        let (refused, lacks) = (routing("False", "NoService"), routing("False", "PodLacksPort"));
        assert_eq!(told(None, &refused), [(true, "RoutingFailed")]);
        assert_eq!(told(Some(&refused), &refused), []);
        assert_eq!(told(Some(&refused), &lacks), [(true, "RoutingFailed")], "another reason");
        for (truth, reason) in [("True", "Routed"), ("True", "NoEndpoint"), ("Unknown", "X")] {
            assert_eq!(told(Some(&refused), &routing(truth, reason)), []);
        }
    }

    #[test]
    fn consul_going_and_coming_is_told() {
        let seen = |truth| with_condition("ConsulReachable", truth, "r", "Waiting");
        let (gone, back, unknown) = (seen("False"), seen("True"), seen("Unknown"));
        assert_eq!(told(Some(&back), &gone), [(true, "ConsulUnreachable")]);
        assert_eq!(told(None, &gone), [(true, "ConsulUnreachable")]);
        assert_eq!(told(Some(&gone), &back), [(false, "ConsulReachable")]);
        assert_eq!(told(Some(&unknown), &back), []);
        assert_eq!(told(None, &back), []);
    }

    #[test]
    fn an_unclean_deletion_says_what_becomes_of_the_session() {
        let mut status = held_status();
        status["guarantee"] = json!({"failoverMax": "45s", "overlapMargin": "15s"});
        let claim = claim_with_status("{}", status);
        let news = News::deleted_without_release(&claim, None);
        assert!(news.note.contains("session s-1 ends by itself within 45s"), "{}", news.note);
        let event = event(&claim, &news, wall(0), "replica-1");
        assert_eq!(event.regarding.unwrap().uid.as_deref(), Some("uid-1"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let news = News::new("Lost", "ä".repeat(900));
        assert!(news.note.len() <= NOTE_BYTES && news.note.ends_with('ä'));
    }
}
