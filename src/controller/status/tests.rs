//! What statuses say, case by case.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::{
    consul::{Class, Operation},
    controller::sample::{
        at, claim, claim_with_status, config, contending, ended, held_status, holding, leader,
        starting, stranger, trouble, wall,
    },
    election::{Choice, Election},
    keeper::Trouble,
    lock::FailReason,
    names::{FencingToken, Key, SessionId},
};

fn allowed() -> Judgement {
    let key = Key::new("consul-lock/shop/billing").unwrap();
    Judgement::Allowed { key }
}

/// The status of `claim` at 10, when its session is valid until 100.
fn status_of(
    claim: &ConsulLock,
    judgement: Judgement,
    view: Option<&KeeperView>,
) -> ConsulLockStatus {
    status_at(claim, judgement, view, at(10))
}

fn status_at(
    claim: &ConsulLock,
    judgement: Judgement,
    view: Option<&KeeperView>,
    now: Instant,
) -> ConsulLockStatus {
    let judged = Judged::sample(judgement, claim.spec.settings().ok());
    told(claim, &judged, view, now, (None, None))
}

/// `left`: who holds a key that the pods hold themselves, and the tenure that ended there.
fn told(
    claim: &ConsulLock,
    judged: &Judged,
    view: Option<&KeeperView>,
    now: Instant,
    (holding, followed): (Option<&Holding>, Option<&EndedTenure>),
) -> ConsulLockStatus {
    status(&Report {
        claim,
        judged,
        facts: Facts {
            judgement: &judged.judgement,
            deleting: claim.metadata.deletion_timestamp.is_some(),
            view,
            paused: judged.settings.as_ref().is_some_and(|settings| settings.paused),
            nobody: None,
            refused: None,
            unreadable: None,
            unlisted: None,
            recorded: claim.status.as_ref().is_some_and(|s| s.fencing_token.is_some()),
            holding,
            now,
        },
        told: &Told::default(),
        failed: None,
        earlier: None,
        followed,
        cluster: &config().cluster,
        wall: wall(60),
    })
}

fn without_session(lock: LockView) -> KeeperView {
    KeeperView { lock, key: Some(KeySeen::Free), ..starting() }
}

fn troubled(view: KeeperView, health: SessionHealth, class: Class) -> KeeperView {
    let mut view = view;
    view.session.health = health;
    view.trouble = Some(trouble(class));
    view
}

fn said(status: &ConsulLockStatus, name: &str) -> (String, String) {
    let condition = status.conditions.iter().find(|c| c.type_ == name).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

/// Each line: what is known; the phase, and what `Ready`, `Held`, `ConsulReachable`,
/// `SessionHealthy` and `KeyConflict` say; the reason of `Ready`.
#[test]
fn every_standing_has_its_phase_and_conditions() {
    use LockView::{Failed, LockDelay, Releasing, Standby, Starting, Waiting};
    let not_allowed = Judgement::NotAllowed {
        key: Key::new("shared/x").unwrap(),
        message: "keys here begin with consul-lock/shop/".to_owned(),
    };
    let undecided = Judgement::Undecided { key: Key::new("shared/x").unwrap() };
    let invalid = Judgement::Invalid { problem: "spec.key: no".to_owned() };
    let earlier = Judgement::GaveUp {
        key: Key::new("consul-lock/shop/billing").unwrap(),
        reason: Reason::AcquireTimeout,
        message: "as before".to_owned(),
    };
    let held = holding(41).lock;
    let (healthy, jeopardy, lost) =
        (SessionHealth::Healthy, SessionHealth::Jeopardy, SessionHealth::Lost);
    let (away, unclear) = (Class::Transient, Class::UnknownOutcome);
    let timeout = FailReason::AcquireTimeout;
    let once = FailReason::Contended;
    let delay = LockDelay { until: None };
    let paused = Releasing { reason: EndReason::Paused };
    let expired = Releasing { reason: EndReason::Expired };
    let waiting = || contending(Waiting, stranger());
    let table: Vec<(Judgement, Option<KeeperView>, Phase, &str, &str)> = vec![
        (invalid, None, Phase::Failed, "F F U F U", "InvalidSpec"),
        (not_allowed, None, Phase::Failed, "F F U F U", "KeyNotAllowed"),
        (undecided, None, Phase::Pending, "U U U U U", "NamespaceUnknown"),
        (allowed(), Some(starting()), Phase::Pending, "U U U U U", "Starting"),
        (
            allowed(),
            Some(troubled(starting(), SessionHealth::Absent, away)),
            Phase::Pending,
            "U U F U U",
            "ConsulUnavailable",
        ),
        (
            allowed(),
            Some(troubled(starting(), SessionHealth::Absent, Class::Denied)),
            Phase::Pending,
            "F U T U U",
            "ConsulDenied",
        ),
        (
            allowed(),
            Some(troubled(starting(), SessionHealth::Absent, Class::Invalid)),
            Phase::Pending,
            "F U T U U",
            "ConsulRefused",
        ),
        (allowed(), Some(waiting()), Phase::Waiting, "T F T T F", "HeldElsewhere"),
        (
            allowed(),
            Some(contending(Waiting, KeySeen::Free)),
            Phase::Waiting,
            "T F T T F",
            "Contending",
        ),
        (
            allowed(),
            Some(contending(Waiting, KeySeen::Conflict { flags: 7 })),
            Phase::Waiting,
            "F F T T T",
            "KeyConflict",
        ),
        (
            allowed(),
            Some(contending(delay.clone(), KeySeen::Free)),
            Phase::LockDelay,
            "T F T T F",
            "LockDelay",
        ),
        (allowed(), Some(holding(41)), Phase::Held, "T T T T F", "Held"),
        (allowed(), Some(troubled(holding(41), jeopardy, away)), Phase::Held, "T T F F U", "Held"),
        (
            allowed(),
            Some(troubled(holding(41), healthy, unclear)),
            Phase::Held,
            "T T T T F",
            "Held",
        ),
        (
            allowed(),
            Some(troubled(waiting(), jeopardy, away)),
            Phase::Waiting,
            "U F F F U",
            "ConsulUnavailable",
        ),
        (
            allowed(),
            Some(troubled(waiting(), lost, unclear)),
            Phase::Unknown,
            "U U F F U",
            "ConsulUnavailable",
        ),
        (
            allowed(),
            Some(troubled(waiting(), healthy, Class::Denied)),
            Phase::Waiting,
            "F F T T F",
            "ConsulDenied",
        ),
        (
            allowed(),
            Some(contending(paused, KeySeen::Ours)),
            Phase::Releasing,
            "T F T T F",
            "Releasing",
        ),
        (
            allowed(),
            Some(without_session(Failed { reason: timeout })),
            Phase::Failed,
            "F F T F F",
            "AcquireTimeout",
        ),
        (
            allowed(),
            Some(without_session(Failed { reason: once })),
            Phase::Failed,
            "F F T F F",
            "Contended",
        ),
        (earlier, Some(without_session(Standby)), Phase::Failed, "F F T F F", "AcquireTimeout"),
        (
            allowed(),
            Some(contending(Starting, KeySeen::Free)),
            Phase::Pending,
            "U U U T F",
            "Starting",
        ),
        (
            allowed(),
            Some(KeeperView { lock: held, ..without_session(Standby) }),
            Phase::Unknown,
            "U U T U F",
            "Expired",
        ),
        (
            allowed(),
            Some(troubled(contending(expired, KeySeen::Ours), lost, unclear)),
            Phase::Unknown,
            "U U F F U",
            "Expired",
        ),
    ];
    for (judgement, view, phase, truths, reason) in table {
        let status = status_of(&claim("{}"), judgement, view.as_ref());
        let names = ["Ready", "Held", "ConsulReachable", "SessionHealthy", "KeyConflict"];
        let found: Vec<String> = names.iter().map(|n| said(&status, n).0).collect();
        let found: Vec<&str> = found.iter().map(|truth| &truth[..1]).collect();
        let found = (status.phase, found.join(" "), said(&status, "Ready").1);
        let expected = (Some(phase), truths.to_owned(), reason.to_owned());
        assert_eq!(found, expected, "{view:?}");
    }
}

#[test]
fn a_claim_that_stands_by_is_paused_only_if_its_spec_says_so() {
    let standing_by = without_session(LockView::Standby);
    let status = status_of(&claim("{paused: true}"), allowed(), Some(&standing_by));
    assert_eq!(status.phase, Some(Phase::Paused));
    assert_eq!(said(&status, "Ready"), ("True".to_owned(), "Paused".to_owned()));
    // Nobody could be elected, and now somebody can.
    let status = status_of(&claim("{}"), allowed(), Some(&standing_by));
    assert_eq!(status.phase, Some(Phase::Waiting));
    assert_eq!(said(&status, "Ready"), ("True".to_owned(), "Contending".to_owned()));
}

#[test]
fn a_tenure_is_reported_in_full() {
    let status =
        status_of(&claim("{session: {ttl: 15s, lockDelay: 20s}}"), allowed(), Some(&holding(41)));
    assert_eq!(status.fencing_token.as_deref(), Some("41"));
    assert_eq!(status.acquired_at, Some(Time(wall(5))), "whole seconds");
    assert_eq!(status.transitions, 1);
    assert_eq!(status.key.as_deref(), Some("consul-lock/shop/billing"));
    assert_eq!(status.observed_generation, Some(3));
    let holder = status.holder.unwrap();
    assert_eq!((holder.identity.as_str(), holder.stranger), ("shop/billing", false));
    assert_eq!(holder.cluster.as_deref(), Some("west"));
    let session = status.session.unwrap();
    assert_eq!(session.id.as_deref(), Some("s-1"));
    assert_eq!(session.ttl.unwrap().as_str(), "15s");
    let guarantee = status.guarantee.unwrap();
    assert_eq!(guarantee.failover_max.as_str(), "50s");
    assert_eq!(guarantee.overlap_margin.as_str(), "20s");
}

#[test]
fn held_ends_at_valid_until_even_if_the_keepers_sleep() {
    for (now, phase) in [(99, Phase::Held), (100, Phase::Unknown)] {
        let status = status_at(&claim("{}"), allowed(), Some(&holding(41)), at(now));
        assert_eq!(status.phase, Some(phase));
        assert_eq!(status.fencing_token.is_some(), phase == Phase::Held);
        assert_eq!(status.holder.is_some(), phase == Phase::Held);
    }
}

#[test]
fn a_tenure_that_expires_before_its_keepers_notice_is_counted_once() {
    let mut claim = claim_with_status("{}", held_status());
    let expired = status_at(&claim, allowed(), Some(&holding(41)), at(100));
    assert_eq!((expired.transitions, expired.history.len()), (2, 1));
    assert_eq!(expired.history[0].reason, "Expired");
    claim.status = Some(expired.clone());
    let mut view = contending(LockView::Waiting, KeySeen::Free);
    view.ended = Arc::new(vec![ended(41, EndReason::Expired)]);
    let noticed = status_at(&claim, allowed(), Some(&view), at(101));
    assert_eq!((noticed.transitions, noticed.history), (2, expired.history));
}

#[test]
fn a_recorded_tenure_is_unknown_and_kept_until_somebody_confirms_it() {
    let adopting = |class| {
        let mut view = troubled(starting(), SessionHealth::Absent, class);
        view.session.id = Some(SessionId::new("s-1"));
        view
    };
    let mut claim = claim_with_status("{}", held_status());
    let recorded = claim.status.clone().unwrap();
    for (class, ready) in [
        (Class::Transient, "ConsulUnavailable"),
        (Class::UnknownOutcome, "ConsulUnavailable"),
        (Class::Denied, "ConsulDenied"),
    ] {
        let next = status_of(&claim, allowed(), Some(&adopting(class)));
        assert_eq!(next.phase, Some(Phase::Unknown));
        assert_eq!(said(&next, "Ready").1, ready);
        assert_eq!(said(&next, "Held").0, "Unknown");
        assert_eq!(said(&next, "SessionHealthy").0, "Unknown");
        let session = next.session.clone().unwrap();
        assert_eq!(session.id, recorded.session.as_ref().unwrap().id.clone());
        assert_eq!(session.health, api::SessionHealth::Unknown);
        assert_eq!(next.fencing_token, recorded.fencing_token);
        assert_eq!(next.acquired_at, recorded.acquired_at);
        assert_eq!((&next.holder, next.transitions), (&recorded.holder, 2));
        claim.status = Some(next);
    }
    let confirmed = status_of(&claim, allowed(), Some(&holding(41)));
    assert_eq!((confirmed.phase, confirmed.transitions), (Some(Phase::Held), 2));
    let refuted = status_of(&claim, allowed(), Some(&contending(LockView::Waiting, stranger())));
    assert_eq!((refuted.phase, refuted.fencing_token), (Some(Phase::Waiting), None));
    assert!(refuted.holder.unwrap().stranger);
}

#[test]
fn nothing_changes_in_a_status_that_is_read_back() {
    let mut claim = claim("{}");
    let first = status_of(&claim, allowed(), Some(&holding(41)));
    let stored = serde_json::to_value(&first).unwrap();
    claim.status = Some(serde_json::from_value(stored).unwrap());
    // A later wall clock: only a change of a condition's status may move its time.
    assert_eq!(status_of(&claim, allowed(), Some(&holding(41))), first);
}

#[test]
fn a_condition_keeps_its_time_until_it_changes() {
    let mut status = held_status();
    status["conditions"] = json!([
        {"type": "Held", "status": "True", "reason": "Held", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"},
        {"type": "Ready", "status": "False", "reason": "X", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"},
    ]);
    let claim = claim_with_status("{}", status);
    let next = status_of(&claim, allowed(), Some(&holding(41)));
    let time = |name: &str| {
        let condition = next.conditions.iter().find(|c| c.type_ == name).unwrap();
        condition.last_transition_time.0
    };
    assert_eq!(time("Held"), "2026-01-02T03:04:05Z".parse().unwrap());
    assert_eq!(time("Ready"), wall(60));
}

#[test]
fn tenures_are_counted_once_and_the_last_ten_are_kept() {
    let mut claim = claim_with_status("{}", held_status());
    let mut view = holding(50);
    let reasons = (41..=49).map(|token| ended(token, EndReason::MaxHold));
    view.ended = Arc::new(reasons.collect());
    let next = status_of(&claim, allowed(), Some(&view));
    assert_eq!(next.transitions, 2 + 9, "41 was counted when it began");
    assert_eq!(next.history.len(), 9);
    assert_eq!(next.history[0].token, "49");
    assert_eq!(next.history[0].to, Time(wall(2)));
    claim.status = Some(next);
    view.ended = Arc::new((41..=60).map(|token| ended(token, EndReason::MaxHold)).collect());
    view.lock = LockView::Waiting;
    let next = status_of(&claim, allowed(), Some(&view));
    assert_eq!(next.transitions, 11 + 10);
    assert_eq!(next.history.len(), 10);
    assert_eq!((next.history[0].token.as_str(), next.history[9].token.as_str()), ("60", "51"));
    claim.status = Some(next);
    assert_eq!(status_of(&claim, allowed(), Some(&view)).transitions, 21, "old ones fell out");
}

#[test]
fn a_first_status_waits_for_something_to_say() {
    let judgement = allowed();
    let facts = |view| Facts {
        judgement: &judgement,
        deleting: false,
        view: Some(view),
        paused: false,
        nobody: None,
        refused: None,
        unreadable: None,
        unlisted: None,
        recorded: false,
        holding: None,
        now: at(10),
    };
    let (fresh, held) = (starting(), holding(41));
    let away = troubled(starting(), SessionHealth::Absent, Class::Transient);
    let status: ConsulLockStatus = serde_json::from_value(held_status()).unwrap();
    let known = Some(&status);
    assert_eq!(not_before(&facts(&fresh), None, at(10), None), Some(at(11)));
    assert_eq!(not_before(&facts(&away), None, at(10), None), None);
    assert_eq!(not_before(&facts(&held), None, at(10), None), None);
    assert_eq!(not_before(&facts(&fresh), known, at(10), None), Some(at(15)));
    assert_eq!(not_before(&facts(&away), known, at(10), None), Some(at(15)));
    assert_eq!(not_before(&facts(&held), known, at(10), None), None);
    assert_eq!(not_before(&facts(&held), known, at(10), Some(at(10))), Some(at(11)));
    let taking = contending(LockView::Waiting, KeySeen::Free);
    let beaten = contending(LockView::Waiting, stranger());
    assert_eq!(not_before(&facts(&taking), None, at(10), None), Some(at(11)));
    assert_eq!(not_before(&facts(&taking), known, at(10), None), None);
    assert_eq!(not_before(&facts(&beaten), None, at(10), None), None);
}

// ---- pods ----

const ELECTS: &str =
    "{candidates: {selector: {matchLabels: {app: billing}}}, routing: {service: billing}}";

/// The status of a claim with candidates, at 10.
fn status_with(
    claim: &ConsulLock,
    view: &KeeperView,
    told: &Told,
    failed: Option<&Error>,
) -> ConsulLockStatus {
    let judged = Judged::sample(allowed(), claim.spec.settings().ok());
    status(&Report {
        claim,
        judged: &judged,
        facts: Facts {
            judgement: &judged.judgement,
            deleting: false,
            view: Some(view),
            paused: false,
            nobody: told.nobody(),
            refused: told.refused.as_deref(),
            unreadable: None,
            unlisted: told.unlisted,
            recorded: claim.status.as_ref().is_some_and(|s| s.fencing_token.is_some()),
            holding: None,
            now: at(10),
        },
        told,
        failed,
        earlier: None,
        followed: None,
        cluster: &config().cluster,
        wall: wall(60),
    })
}

fn held_for(pod: &str) -> KeeperView {
    let mut view = holding(41);
    if let LockView::Held { leader, .. } = &mut view.lock {
        *leader = Some(Arc::new(self::leader(pod)));
    }
    view
}

fn message(status: &ConsulLockStatus, name: &str) -> String {
    status.conditions.iter().find(|c| c.type_ == name).unwrap().message.clone()
}

fn election(choice: Choice, matching: usize, first: Option<&str>) -> Told {
    let first = first.map(Arc::from);
    let election =
        Election { choice, matching, eligible: 1, first, next: None, refused: None, again: None };
    Told { election: Some(election), ..Told::default() }
}

#[test]
fn the_elected_pod_is_the_holder_with_all_that_the_next_controller_needs() {
    let told = election(Choice::Keep(Arc::new(leader("a"))), 3, Some("b"));
    let status = status_with(&claim(ELECTS), &held_for("a"), &told, None);
    let holder = status.holder.clone().unwrap();
    assert_eq!((holder.identity.as_str(), holder.pod.as_deref()), ("shop/a", Some("a")));
    assert_eq!((holder.uid.as_deref(), holder.node.as_deref()), (Some("uid-a"), Some("n-1")));
    assert_eq!(holder.cluster.as_deref(), Some("west"));
    let container = &holder.containers[0];
    assert_eq!((container.name.as_str(), container.id.as_deref()), ("app", Some("a-1")));
    let expected = "pod a holds the key with fencing token 41; it was elected as ready for longest \
                    of 2 pods";
    assert_eq!(message(&status, "Held"), expected);
    assert_eq!(message(&status, "Ready"), expected);
    let candidates = status.candidates.unwrap();
    assert_eq!((candidates.matching, candidates.eligible), (3, 1));
    assert_eq!(candidates.first.as_deref(), Some("b"));
}

#[test]
fn candidates_stay_as_they_were_while_there_is_no_election_and_go_with_the_spec() {
    let told = election(Choice::Keep(Arc::new(leader("a"))), 3, Some("a"));
    let mut claim = claim(ELECTS);
    claim.status = Some(status_with(&claim, &held_for("a"), &told, None));
    let kept = status_with(&claim, &held_for("a"), &Told::default(), None);
    assert_eq!(kept.candidates.unwrap().matching, 3);
    claim.spec = crate::controller::sample::claim("{}").spec;
    assert_eq!(status_with(&claim, &holding(41), &Told::default(), None).candidates, None);
}

#[test]
fn pods_that_cannot_be_listed_are_told_of_without_taking_a_tenure_back() {
    let told = Told { unlisted: Some("the pods"), ..Told::default() };
    let held = status_with(&claim(ELECTS), &held_for("a"), &told, None);
    assert_eq!((held.phase, held.fencing_token.as_deref()), (Some(Phase::Held), Some("41")));
    let expected = "; the pods cannot be listed, so it would not be replaced";
    assert!(message(&held, "Held").ends_with(expected), "{}", message(&held, "Held"));

    let mut waiting = without_session(LockView::Waiting);
    waiting.session.id = None;
    let unknown = status_with(&claim(ELECTS), &waiting, &told, None);
    assert_eq!(unknown.phase, Some(Phase::Pending));
    assert_eq!(said(&unknown, "Ready"), ("Unknown".to_owned(), "PodsUnknown".to_owned()));

    let recorded = claim_with_status(ELECTS, held_status());
    let mut adopting = starting();
    adopting.session.id = Some(SessionId::new("s-1"));
    let kept = status_with(&recorded, &adopting, &told, None);
    assert_eq!((kept.phase, kept.fencing_token.as_deref()), (Some(Phase::Unknown), Some("41")));
    assert_eq!(kept.session.unwrap().id.as_deref(), Some("s-1"), "to be adopted still");
}

#[test]
fn a_claim_with_nobody_eligible_waits_and_says_why() {
    let nobody = Choice::Nobody {
        reason: EndReason::PodDied,
        message: "no pod matches candidates.selector".to_owned(),
    };
    let told = election(nobody, 0, None);
    let standby = without_session(LockView::Standby);
    let status = status_with(&claim(ELECTS), &standby, &told, None);
    assert_eq!(status.phase, Some(Phase::Waiting));
    assert_eq!(said(&status, "Ready"), ("False".to_owned(), "NoCandidate".to_owned()));
    assert_eq!(message(&status, "Ready"), "no pod matches candidates.selector");
    assert_eq!(said(&status, "Held").0, "False");
    // Before the key is given up it is still held, or being released.
    let held = status_with(&claim(ELECTS), &held_for("a"), &told, None);
    assert_eq!(held.phase, Some(Phase::Held));
}

#[test]
fn a_handover_that_is_refused_is_told_of_while_the_tenure_goes_on() {
    let told = Told { refused: Some("pod b may not be elected".to_owned()), ..Told::default() };
    let status = status_with(&claim(ELECTS), &held_for("a"), &told, None);
    assert_eq!((status.phase, status.fencing_token.as_deref()), (Some(Phase::Held), Some("41")));
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!((&*ready.status, &*ready.reason), ("True", "HandoverRefused"));
    let expected = "; it is not handed over: pod b may not be elected";
    assert!(ready.message.ends_with(expected), "{}", ready.message);
}

#[test]
fn a_change_of_leader_is_told_only_if_it_takes_long() {
    let lock = LockView::HandingOver { reason: EndReason::PodDied, since: at(9), leader: None };
    let view = contending(lock, KeySeen::Ours);
    let status = status_with(&claim(ELECTS), &view, &Told::default(), None);
    assert_eq!((status.phase, status.fencing_token), (Some(Phase::Releasing), None));
    let judgement = allowed();
    let facts = Facts {
        judgement: &judgement,
        deleting: false,
        view: Some(&view),
        paused: false,
        nobody: None,
        refused: None,
        unreadable: None,
        unlisted: None,
        recorded: true,
        holding: None,
        now: at(9),
    };
    let known: ConsulLockStatus = serde_json::from_value(held_status()).unwrap();
    assert_eq!(not_before(&facts, Some(&known), at(1), None), Some(at(10)));
}

#[test]
fn every_way_of_routing_has_its_reason() {
    use crate::election::Refusal;
    let lacks = "a container port named web".to_owned();
    let partly = Routing::Partly { pod: "a".into(), reason: Detail::PodLacksPort, lacks };
    let taken = Refusal::Taken { slice: "theirs".to_owned() };
    for (routing, truth, reason, part) in [
        (Routing::To("a".into()), "True", "Routed", "traffic goes to pod a"),
        (Routing::Nowhere("no pod holds the key"), "True", "NoEndpoint", "nowhere: no pod holds"),
        (Routing::Unknown, "Unknown", "ServicesUnknown", "cannot be listed"),
        (partly, "False", "PodLacksPort", "pod a lacks a con"),
        (Routing::Refused(Refusal::NoService), "False", "NoService", "routing.service"),
        (Routing::Refused(Refusal::HasSelector), "False", "ServiceHasSelector", "the selector"),
        (Routing::Refused(Refusal::ExternalName), "False", "ServiceIsExternalName", "ExternalName"),
        (Routing::Refused(taken), "False", "ServiceServedByOthers", "EndpointSlice theirs"),
    ] {
        let told = Told { routing: Some(routing), ..Told::default() };
        let status = status_with(&claim(ELECTS), &held_for("a"), &told, None);
        assert_eq!(said(&status, "RoutingSynced"), (truth.to_owned(), reason.to_owned()));
        let text = message(&status, "RoutingSynced");
        assert!(text.contains(part), "{text}");
    }
    let unrouted = status_with(&claim("{}"), &holding(41), &Told::default(), None);
    assert!(unrouted.conditions.iter().all(|c| c.type_ != "RoutingSynced"));
}

#[test]
fn a_write_that_failed_is_told_whether_the_claim_is_routed_or_not() {
    use crate::controller::WriteError;
    let failed = Error::StripPod(WriteError::NotLeading);
    let expected = "cannot take label and token off a pod: this replica does not lead";
    let told = Told { routing: Some(Routing::To("a".into())), ..Told::default() };
    let routed = status_with(&claim(ELECTS), &held_for("a"), &told, Some(&failed));
    assert_eq!(said(&routed, "RoutingSynced"), ("False".to_owned(), "WriteFailed".to_owned()));
    assert_eq!(message(&routed, "RoutingSynced"), expected);
    let unrouted = status_with(&claim(ELECTS), &held_for("a"), &Told::default(), Some(&failed));
    assert!(message(&unrouted, "Ready").ends_with(expected), "{}", message(&unrouted, "Ready"));
}

#[test]
fn an_object_that_changed_meanwhile_is_no_news() {
    use crate::controller::WriteError;
    use kube::core::Status;
    let failed = |reason: &str| {
        let answer = Status::failure("the object has been modified", reason).with_code(409);
        Error::FillSlice(WriteError::Refused(Box::new(kube::Error::Api(answer.boxed()))))
    };
    let told = |routing| Told { routing: Some(routing), ..Told::default() };
    let mut claim = claim(ELECTS);
    let to = |pod: &str| told(Routing::To(pod.into()));
    let first = status_with(&claim, &held_for("a"), &to("a"), Some(&failed("Conflict")));
    assert!(first.conditions.iter().all(|c| c.type_ != "RoutingSynced"), "not true yet");
    claim.status = Some(status_with(&claim, &held_for("a"), &to("a"), None));
    let outdated = status_with(&claim, &held_for("b"), &to("b"), Some(&failed("Conflict")));
    assert_eq!(message(&outdated, "RoutingSynced"), "traffic goes to pod a", "as before");
    let taken = status_with(&claim, &held_for("b"), &to("b"), Some(&failed("AlreadyExists")));
    assert_eq!(said(&taken, "RoutingSynced").1, "WriteFailed");
}

#[test]
fn history_names_the_pod_of_each_tenure() {
    let mut view = held_for("b");
    let of_pod =
        |token, pod: &str, reason| EndedTenure { pod: Some(pod.into()), ..ended(token, reason) };
    let died = of_pod(40, "a", EndReason::PodDied);
    view.ended = Arc::new(vec![ended(39, EndReason::PodUnmatched), died]);
    let held = status_with(&claim(ELECTS), &view, &Told::default(), None);
    let past: Vec<_> = held.history.iter().map(|t| (&*t.holder, &*t.reason)).collect();
    assert_eq!(past, [("shop/a", "PodDied"), ("shop/billing", "PodUnmatched")]);
    // *Valid until* has passed before its keepers noticed.
    let judged = Judged::sample(allowed(), claim(ELECTS).spec.settings().ok());
    let expired = status(&Report {
        claim: &claim(ELECTS),
        judged: &judged,
        facts: Facts {
            judgement: &judged.judgement,
            deleting: false,
            view: Some(&held_for("b")),
            paused: false,
            nobody: None,
            refused: None,
            unreadable: None,
            unlisted: None,
            recorded: false,
            holding: None,
            now: at(100),
        },
        told: &Told::default(),
        failed: None,
        earlier: None,
        followed: None,
        cluster: "west",
        wall: wall(60),
    });
    assert_eq!(expired.history[0].holder, "shop/b");
}

// ---- pods that hold the key themselves ----

const AGENT: &str = "{mode: Agent, candidates: {selector: {matchLabels: {app: billing}}}}";

fn following(key: KeySeen) -> KeeperView {
    KeeperView { lock: LockView::Following { pair: None }, key: Some(key), ..starting() }
}

fn pods_own(token: Option<u64>) -> Holding {
    Holding::Pod(Followed {
        leader: Arc::new(leader("a")),
        session: Some(SessionId::new("s-a")),
        index: Some(43),
        token: token.map(FencingToken::new),
        since: wall(5),
        since_said: Some("".into()),
        noticed: Some(at(8)),
    })
}

/// The status of a claim whose pods hold its key, after `before`.
fn left_to_pods(
    before: Option<&ConsulLockStatus>,
    view: &KeeperView,
    holding: &Holding,
    ended: Option<&EndedTenure>,
) -> ConsulLockStatus {
    let mut claim = claim(AGENT);
    claim.status = before.cloned();
    let judged = Judged::sample(allowed(), claim.spec.settings().ok());
    told(&claim, &judged, Some(view), at(10), (Some(holding), ended))
}

#[test]
fn a_tenure_of_a_pod_s_own_is_told_with_its_session_and_counted_once() {
    let view = following(stranger());
    let first = left_to_pods(None, &view, &pods_own(Some(41)), None);
    assert_eq!((first.phase, first.transitions), (Some(Phase::Held), 1));
    assert_eq!(
        (first.mode.clone(), first.fencing_token.as_deref()),
        (Some(Mode::Agent), Some("41"))
    );
    assert_eq!(first.holder.as_ref().unwrap().uid.as_deref(), Some("uid-a"));
    assert_eq!(first.session.as_ref().unwrap().id.as_deref(), Some("s-a"));
    assert_eq!(said(&first, "SessionHealthy"), ("True".to_owned(), "HoldsKey".to_owned()));
    assert_eq!(left_to_pods(Some(&first), &view, &pods_own(Some(41)), None), first);
    let end = EndedTenure { pod: Some("a".into()), ..ended(41, EndReason::Released) };
    let free = following(KeySeen::Free);
    let after = left_to_pods(Some(&first), &free, &Holding::Nobody, Some(&end));
    assert_eq!((after.phase, after.transitions), (Some(Phase::Waiting), 1));
    assert_eq!((after.history.len(), after.history[0].holder.as_str()), (1, "shop/a"));
    assert_eq!((after.fencing_token, after.session, after.holder), (None, None, None));
}

#[test]
fn while_the_key_cannot_be_read_nothing_is_true_and_what_was_seen_is_kept() {
    let view = following(stranger());
    let first = left_to_pods(None, &view, &pods_own(Some(41)), None);
    for (class, ready) in [(Class::Transient, "Unknown"), (Class::Denied, "False")] {
        let mut blind = view.clone();
        let operation = Operation::WatchPrefix;
        blind.trouble = Some(Trouble { operation, ..trouble(class) });
        let unknown = left_to_pods(Some(&first), &blind, &pods_own(Some(41)), None);
        assert_eq!(unknown.phase, Some(Phase::Unknown), "{class:?}");
        assert_eq!(
            (unknown.fencing_token.clone(), &unknown.holder),
            (Some("41".into()), &first.holder)
        );
        assert_eq!(unknown.session.as_ref().unwrap().health, api::SessionHealth::Unknown);
        assert_eq!(said(&unknown, "Ready").0, ready);
        for name in ["Held", "SessionHealthy", "KeyConflict"] {
            assert_eq!(said(&unknown, name).0, "Unknown", "{name}");
        }
        assert_eq!(left_to_pods(Some(&unknown), &view, &pods_own(Some(41)), None), first);
    }
}

#[test]
fn a_key_that_cannot_be_freed_for_the_dead_is_told_of() {
    let mut view = following(stranger());
    view.trouble = Some(Trouble { operation: Operation::Transaction, ..trouble(Class::Denied) });
    let status = left_to_pods(None, &view, &pods_own(Some(41)), None);
    assert_eq!(status.phase, Some(Phase::Held));
    assert_eq!(said(&status, "Ready"), ("False".to_owned(), "ConsulDenied".to_owned()));
}

#[test]
fn a_tenure_without_its_token_is_not_held_yet_and_given_a_moment() {
    let (view, holding) = (following(stranger()), pods_own(None));
    let status = left_to_pods(None, &view, &holding, None);
    assert_eq!((status.phase, status.fencing_token.as_ref()), (Some(Phase::Waiting), None));
    assert_eq!(said(&status, "Ready"), ("Unknown".to_owned(), "TokenUnknown".to_owned()));
    let judgement = allowed();
    let facts = Facts {
        judgement: &judgement,
        deleting: false,
        view: Some(&view),
        paused: false,
        nobody: None,
        unreadable: None,
        refused: None,
        unlisted: None,
        recorded: false,
        holding: Some(&holding),
        now: at(10),
    };
    assert_eq!(not_before(&facts, Some(&status), at(1), None), Some(at(9)));
}
