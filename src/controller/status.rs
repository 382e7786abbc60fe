//! What is written into a claim's status, and when. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    holder,
    plan::{Judged, identity},
    verdict::{
        Facts, Judgement, Reason, Truth, Verdict, conflict_words, end_name, unavailable_words,
        unreachable, verdict,
    },
};
use crate::{
    api::{
        self, ConsulLock, ConsulLockStatus, GuaranteeStatus, HISTORY_LENGTH, HolderStatus, Phase,
        SessionStatus, TenureStatus,
    },
    clock::Instant,
    keeper::{EndedTenure, KeeperView, KeySeen, LockView, SessionHealth},
    lock::EndReason,
};

/// How long a new claim may stay without a status, so that the first one already says how the key
/// stands.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// How long a new leader has to adopt a claim before it takes back what its predecessor said.
const ADOPTION: Duration = Duration::from_secs(5);

/// How long a deletion may take before the status tells of it.
const PARTING: Duration = Duration::from_secs(1);

/// Everything that a status is made of.
pub(super) struct Report<'a> {
    pub(super) claim: &'a ConsulLock,
    pub(super) judged: &'a Judged,
    pub(super) facts: Facts<'a>,
    /// What the keepers knew before this walk, which may have replaced them.
    pub(super) earlier: Option<&'a KeeperView>,
    pub(super) cluster: &'a str,
    /// The wall clock, for the time of conditions that change.
    pub(super) wall: Timestamp,
}

/// The claim's status.
pub(super) fn status(report: &Report<'_>) -> ConsulLockStatus {
    let mut verdict = verdict(&report.facts);
    if !report.judged.malformed.is_empty() {
        let ignored = report.judged.malformed.join("; ");
        verdict.message += &format!(" (ignored in {}: {ignored})", api::KEY_PREFIXES_ANNOTATION);
    }
    let previous = report.claim.status.clone().unwrap_or_default();
    let view = report.facts.view;
    let tenure = tenure(report, &verdict);
    // What nobody has confirmed yet nobody has refuted either: the next controller, too, has to know
    // what to adopt.
    let kept = Some(&previous).filter(|_| verdict.phase == Phase::Unknown);
    let kept = kept.filter(|_| report.facts.is_unconfirmed());
    let shown = tenure.as_ref().map(|(token, since)| (token.clone(), whole_seconds(*since)));
    let (fencing_token, acquired_at) = match kept {
        Some(kept) => (kept.fencing_token.clone(), kept.acquired_at.clone()),
        None => shown.unzip(),
    };
    let key = report.judged.judgement.key();
    ConsulLockStatus {
        observed_generation: report.claim.metadata.generation,
        phase: Some(verdict.phase),
        key: key.map(ToString::to_string).or(previous.key.clone()),
        holder: match kept {
            Some(kept) => kept.holder.clone(),
            None => holder(report, &verdict),
        },
        session: view.and_then(|view| session(view).or_else(|| adopted(view, &previous))),
        fencing_token,
        acquired_at,
        transitions: transitions(&previous, &ended(report), tenure.as_ref()),
        history: history(report.claim, &previous, &ended(report)),
        guarantee: report.judged.settings.as_ref().map(guarantee),
        conditions: conditions(report, &verdict, &previous.conditions),
    }
}

/// When the status may be written, if not at once: a fresh claim's first word waits for Consul's
/// answer, and a new leader takes nothing back while it is still adopting.
pub(super) fn not_before(
    facts: &Facts<'_>,
    previous: Option<&ConsulLockStatus>,
    since: Instant,
    parting_since: Option<Instant>,
) -> Option<Instant> {
    if let Some(parting_since) = parting_since {
        return Some(parting_since + PARTING);
    }
    let is_fresh = previous.and_then(|status| status.phase).is_none();
    if is_fresh && matches!(facts.judgement, Judgement::Undecided { .. }) {
        return Some(since + FIRST_WORD);
    }
    let view = facts.view?;
    let is_starting = view.lock == LockView::Starting;
    // Whether a free key becomes ours shows in a moment.
    let is_taking = view.lock == LockView::Waiting && view.key == Some(KeySeen::Free);
    match (is_fresh, &view.trouble) {
        (true, None) if is_starting || is_taking => Some(since + FIRST_WORD),
        (false, _) if is_starting => Some(since + ADOPTION),
        _ => None,
    }
}

/// Kubernetes keeps whole seconds; comparing anything finer would find a difference each time.
fn whole_seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The present tenure, if there is one to rely on.
fn tenure(report: &Report<'_>, verdict: &Verdict) -> Option<(String, Timestamp)> {
    let view = report.facts.view?;
    let token = view.token(report.facts.now)?;
    match view.lock {
        LockView::Held { since, .. } if verdict.phase == Phase::Held => {
            Some((token.to_string(), since))
        }
        _ => None,
    }
}

fn holder(report: &Report<'_>, verdict: &Verdict) -> Option<HolderStatus> {
    match report.facts.view?.key.as_ref() {
        _ if verdict.phase == Phase::Held => Some(ourselves(report)),
        _ if verdict.phase == Phase::Unknown => None,
        Some(KeySeen::Held(seen)) => Some(holder::of(seen)),
        Some(KeySeen::Ours) => Some(ourselves(report)),
        Some(KeySeen::Free | KeySeen::Conflict { .. }) | None => None,
    }
}

fn ourselves(report: &Report<'_>) -> HolderStatus {
    HolderStatus {
        identity: identity(report.claim),
        cluster: Some(report.cluster.to_owned()),
        namespace: report.claim.metadata.namespace.clone(),
        stranger: false,
    }
}

fn session(view: &KeeperView) -> Option<SessionStatus> {
    let session = &view.session;
    let health = match session.health {
        SessionHealth::Absent => return None,
        SessionHealth::Healthy => api::SessionHealth::Healthy,
        SessionHealth::Jeopardy => api::SessionHealth::Jeopardy,
        SessionHealth::Lost => api::SessionHealth::Lost,
    };
    Some(SessionStatus {
        id: session.id.as_ref().map(ToString::to_string),
        ttl: Some(session.ttl.into()),
        health,
        node: Some(session.node.to_string()),
    })
}

/// The recorded session, while nobody knows whether it still exists.
fn adopted(view: &KeeperView, previous: &ConsulLockStatus) -> Option<SessionStatus> {
    let known = previous.session.as_ref()?;
    let id = view.session.id.as_ref()?.as_str();
    let adopting = view.lock == LockView::Starting && known.id.as_deref() == Some(id);
    adopting.then(|| SessionStatus { health: api::SessionHealth::Unknown, ..known.clone() })
}

/// The tenures that ended, each once: those of which the keepers say so, and the one whose *valid
/// until* has passed before they noticed.
fn ended(report: &Report<'_>) -> Vec<EndedTenure> {
    let mut ended: Vec<EndedTenure> = Vec::new();
    let views = [report.earlier, report.facts.view].into_iter().flatten();
    for tenure in views.flat_map(|view| view.ended.iter().cloned()).chain(expired(report)) {
        if !ended.iter().any(|known| known.token == tenure.token) {
            ended.push(tenure);
        }
    }
    ended
}

fn expired(report: &Report<'_>) -> Option<EndedTenure> {
    let view = report.facts.view?;
    match view.lock {
        LockView::Held { token, since } if view.token(report.facts.now).is_none() => {
            let (to, reason) = (report.wall, EndReason::Expired);
            Some(EndedTenure { token, from: since, to, reason })
        }
        _ => None,
    }
}

/// Tenures begun: one more for each token that the status did not know of before.
fn transitions(
    previous: &ConsulLockStatus,
    ended: &[EndedTenure],
    tenure: Option<&(String, Timestamp)>,
) -> i64 {
    let known = |token: &String| {
        previous.fencing_token.as_ref() == Some(token)
            || previous.history.iter().any(|past| past.token == *token)
    };
    // What is older than a full history was counted, and fell out of it.
    let full = previous.history.len() >= HISTORY_LENGTH;
    let oldest = previous.history.last().filter(|_| full).map(age);
    let fell_out = |ended: &&EndedTenure| {
        let age = (whole_seconds(ended.to).0, ended.token.get());
        oldest.is_some_and(|oldest| age <= oldest)
    };
    let new = ended
        .iter()
        .filter(|ended| !fell_out(ended))
        .map(|ended| ended.token.to_string())
        .chain(tenure.map(|(token, _)| token.clone()))
        .filter(|token| !known(token));
    previous.transitions + i64::try_from(new.count()).unwrap_or(0)
}

/// By end, since a token may fall when an operator restores a snapshot of Consul.
fn age(tenure: &TenureStatus) -> (Timestamp, u64) {
    (tenure.to.0, tenure.token.parse().unwrap_or(0))
}

/// The newest tenures that ended, newest first: what the status held, and what the keepers add.
fn history(
    claim: &ConsulLock,
    previous: &ConsulLockStatus,
    ended: &[EndedTenure],
) -> Vec<TenureStatus> {
    let mut all = previous.history.clone();
    for ended in ended {
        let entry = past(claim, ended);
        if !all.iter().any(|known| known.token == entry.token) {
            all.push(entry);
        }
    }
    all.sort_by_key(|tenure| std::cmp::Reverse(age(tenure)));
    all.truncate(HISTORY_LENGTH);
    all
}

fn past(claim: &ConsulLock, ended: &EndedTenure) -> TenureStatus {
    TenureStatus {
        holder: identity(claim),
        token: ended.token.to_string(),
        from: whole_seconds(ended.from),
        to: whole_seconds(ended.to),
        reason: end_name(ended.reason).to_owned(),
    }
}

fn guarantee(settings: &api::Settings) -> GuaranteeStatus {
    let session = &settings.session;
    GuaranteeStatus {
        failover_max: (session.ttl * 2 + session.lock_delay).into(),
        overlap_margin: session.lock_delay.into(),
    }
}

/// What one condition says.
struct Statement {
    name: &'static str,
    truth: Truth,
    reason: &'static str,
    message: String,
}

fn conditions(report: &Report<'_>, verdict: &Verdict, previous: &[Condition]) -> Vec<Condition> {
    let statements = [
        ready(verdict),
        held(verdict),
        consul_reachable(&report.facts),
        session_healthy(&report.facts, verdict),
        key_conflict(&report.facts, verdict),
    ];
    statements.into_iter().map(|statement| condition(statement, report, previous)).collect()
}

fn condition(statement: Statement, report: &Report<'_>, previous: &[Condition]) -> Condition {
    let status = statement.truth.as_str();
    let unchanged =
        previous.iter().find(|before| before.type_ == statement.name && before.status == status);
    Condition {
        type_: statement.name.to_owned(),
        status: status.to_owned(),
        reason: statement.reason.to_owned(),
        message: statement.message,
        last_transition_time: match unchanged {
            Some(before) => before.last_transition_time.clone(),
            None => whole_seconds(report.wall),
        },
        observed_generation: report.claim.metadata.generation,
    }
}

fn ready(verdict: &Verdict) -> Statement {
    Statement {
        name: "Ready",
        truth: verdict.ready,
        reason: verdict.reason.as_str(),
        message: verdict.message.clone(),
    }
}

fn held(verdict: &Verdict) -> Statement {
    Statement {
        name: "Held",
        truth: match verdict.phase {
            Phase::Held => Truth::True,
            Phase::Unknown | Phase::Pending => Truth::Unknown,
            _ => Truth::False,
        },
        ..ready(verdict)
    }
}

fn consul_reachable(facts: &Facts<'_>) -> Statement {
    let (truth, reason, message) = match facts.view {
        None => {
            (Truth::Unknown, "NotAsked", "nothing is asked of Consul for this claim".to_owned())
        }
        Some(view) => match unreachable(view) {
            Some(trouble) => {
                (Truth::False, Reason::ConsulUnavailable.as_str(), unavailable_words(trouble))
            }
            None if view.lock == LockView::Starting && view.trouble.is_none() => (
                Truth::Unknown,
                Reason::Starting.as_str(),
                "Consul has not answered yet".to_owned(),
            ),
            None => (Truth::True, "Answering", "Consul answers".to_owned()),
        },
    };
    Statement { name: "ConsulReachable", truth, reason, message }
}

fn session_healthy(facts: &Facts<'_>, verdict: &Verdict) -> Statement {
    let health = facts.view.map(|view| view.session.health);
    let (truth, reason, message) = match health {
        Some(SessionHealth::Healthy) => (Truth::True, "Renewed", "the last renewal succeeded"),
        Some(SessionHealth::Jeopardy) => (
            Truth::False,
            "Jeopardy",
            "renewals fail; the session may still be relied on, but not for long",
        ),
        Some(SessionHealth::Lost) => {
            (Truth::False, "Lost", "Consul ended the session, or it could not be renewed in time")
        }
        Some(SessionHealth::Absent) | None => match verdict.phase {
            Phase::Unknown => {
                (Truth::Unknown, verdict.reason.as_str(), "nobody knows how the session stands")
            }
            Phase::Pending => (Truth::Unknown, verdict.reason.as_str(), "there is no session yet"),
            _ => (Truth::False, "NoSession", "the claim has no session"),
        },
    };
    Statement { name: "SessionHealthy", truth, reason, message: message.to_owned() }
}

fn key_conflict(facts: &Facts<'_>, verdict: &Verdict) -> Statement {
    let out_of_touch = facts.view.is_none_or(|view| unreachable(view).is_some());
    let seen = facts.view.and_then(|view| view.key.as_ref());
    let (truth, reason, message) = match seen {
        Some(_) | None if out_of_touch => {
            (Truth::Unknown, verdict.reason.as_str(), "the key cannot be read".to_owned())
        }
        Some(KeySeen::Conflict { flags }) => (Truth::True, "FlagsDiffer", conflict_words(*flags)),
        Some(_) => (Truth::False, "NoConflict", "the key holds a lock or nothing".to_owned()),
        None => (Truth::Unknown, verdict.reason.as_str(), "the key was not read yet".to_owned()),
    };
    Statement { name: "KeyConflict", truth, reason, message }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{
        consul::Class,
        controller::sample::{
            at, claim, claim_with_status, config, contending, ended, held_status, holding,
            starting, stranger, trouble, wall,
        },
        lock::FailReason,
        names::{Key, SessionId},
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
        status(&Report {
            claim,
            judged: &judged,
            facts: Facts {
                judgement: &judged.judgement,
                deleting: claim.metadata.deletion_timestamp.is_some(),
                view,
                recorded: claim.status.as_ref().is_some_and(|s| s.fencing_token.is_some()),
                now,
            },
            earlier: None,
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
        use LockView::{Failed, Held, LockDelay, Releasing, Standby, Starting, Waiting};
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
        let Held { token, since } = holding(41).lock else { unreachable!() };
        let held = Held { token, since };
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
            (
                allowed(),
                Some(troubled(holding(41), jeopardy, away)),
                Phase::Held,
                "T T F F U",
                "Held",
            ),
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
            (allowed(), Some(without_session(Standby)), Phase::Paused, "T F T F F", "Paused"),
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
    fn a_tenure_is_reported_in_full() {
        let status = status_of(
            &claim("{session: {ttl: 15s, lockDelay: 20s}}"),
            allowed(),
            Some(&holding(41)),
        );
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
        let refuted =
            status_of(&claim, allowed(), Some(&contending(LockView::Waiting, stranger())));
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
            recorded: false,
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
}
