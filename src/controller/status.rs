//! What is written into a claim's status, and when. Pure.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    Error,
    course::{Routing, Told},
    follow::Holding,
    holder,
    plan::Judged,
    reasons::{Detail, Reason},
    recorded::{self, Followed, identity},
    verdict::{
        Facts, Judgement, Truth, Verdict, conflict_words, unavailable_words, unreachable, verdict,
    },
};
use crate::{
    api::{
        self, CandidatesStatus, ConsulLock, ConsulLockStatus, GuaranteeStatus, HISTORY_LENGTH,
        HolderStatus, Mode, Phase, ROUTING_SYNCED, SessionStatus, TenureStatus,
    },
    clock::Instant,
    election::Refusal,
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

/// The conditions that a status may have.
pub(super) const CONDITIONS: [&str; 6] =
    ["Ready", "Held", "ConsulReachable", "SessionHealthy", "KeyConflict", ROUTING_SYNCED];

/// Everything that a status is made of.
pub(super) struct Report<'a> {
    pub(super) claim: &'a ConsulLock,
    pub(super) judged: &'a Judged,
    pub(super) facts: Facts<'a>,
    /// What became of the pods and the traffic.
    pub(super) told: &'a Told,
    /// Why pods or slices are not as they should be. Told of as `RoutingSynced`; of a claim that
    /// routes nothing as `Ready`.
    pub(super) failed: Option<&'a Error>,
    /// What the keepers knew before this walk, which may have replaced them.
    pub(super) earlier: Option<&'a KeeperView>,
    /// The tenure of a pod that held the key itself, of which the status speaks, if it has ended.
    pub(super) followed: Option<&'a EndedTenure>,
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
    let failed = report.failed.filter(|failed| !failed.is_outdated());
    if let Some(failed) = failed.filter(|_| report.told.routing.is_none()) {
        verdict.message += &format!("; {}", failed_words(failed));
    }
    let previous = report.claim.status.clone().unwrap_or_default();
    let view = report.facts.view;
    let tenure = tenure(report, &verdict);
    // What nobody has confirmed yet nobody has refuted either: the next controller, too, has to know
    // what to adopt.
    let kept = Some(&previous).filter(|_| verdict.phase == Phase::Unknown);
    let follows = report.facts.holding.is_some();
    let kept = kept
        .filter(|kept| report.facts.is_unconfirmed() || follows && kept.mode == Some(Mode::Agent));
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
        mode: match kept {
            Some(kept) => kept.mode.clone(),
            None => follows.then_some(Mode::Agent),
        },
        holder: match kept {
            Some(kept) => kept.holder.clone(),
            None => holder(report, &verdict),
        },
        session: match (kept, view) {
            (Some(kept), _) if kept.mode == Some(Mode::Agent) => unseen(kept),
            (_, Some(view)) => session(view)
                .or_else(|| adopted(view, &previous))
                .or_else(|| pods_own(&report.facts)),
            (_, None) => None,
        },
        fencing_token,
        acquired_at,
        transitions: transitions(&previous, &ended(report), tenure.as_ref()),
        history: history(report.claim, &previous, &ended(report)),
        candidates: candidates(report, &previous),
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
    if let Some(Holding::Pod(Followed { token: None, noticed: Some(noticed), .. })) = facts.holding
    {
        return Some(*noticed + FIRST_WORD);
    }
    if let LockView::HandingOver { since, .. } = view.lock {
        return Some(since + FIRST_WORD);
    }
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
    if let Some(Holding::Pod(followed)) = report.facts.holding {
        let held = verdict.phase == Phase::Held;
        return held.then_some((followed.token?.to_string(), followed.since));
    }
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
        _ if matches!(report.facts.holding, Some(Holding::Pod(_))) => Some(ourselves(report)),
        Some(KeySeen::Held(seen)) => Some(holder::of(seen)),
        Some(KeySeen::Ours) => Some(ourselves(report)),
        Some(KeySeen::Free | KeySeen::Conflict { .. }) | None => None,
    }
}

fn ourselves(report: &Report<'_>) -> HolderStatus {
    let leader = match (report.facts.holding, report.facts.view.map(|view| &view.lock)) {
        (Some(Holding::Pod(followed)), _) => Some(&*followed.leader),
        (_, Some(LockView::Held { leader, .. })) => leader.as_deref(),
        _ => None,
    };
    recorded::holder(report.claim, report.cluster, leader)
}

fn candidates(report: &Report<'_>, previous: &ConsulLockStatus) -> Option<CandidatesStatus> {
    report.judged.settings.as_ref()?.candidates.as_ref()?;
    let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    if let Some(contenders) = report.told.contenders {
        return Some(CandidatesStatus {
            matching: count(contenders.matching),
            eligible: count(contenders.eligible),
            first: None,
            next: None,
        });
    }
    let Some(election) = &report.told.election else { return previous.candidates.clone() };
    Some(CandidatesStatus {
        matching: count(election.matching),
        eligible: count(election.eligible),
        first: election.first.as_ref().map(ToString::to_string),
        next: election.next.as_ref().map(ToString::to_string),
    })
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

/// The session of the pod that holds the key itself: Consul would have freed the key if it were gone.
fn pods_own(facts: &Facts<'_>) -> Option<SessionStatus> {
    let Some(Holding::Pod(followed)) = facts.holding else { return None };
    let node = match facts.view?.key.as_ref() {
        Some(KeySeen::Held(seen)) if Some(&seen.session) == followed.session.as_ref() => {
            seen.node.clone()
        }
        _ => None,
    };
    Some(SessionStatus {
        id: Some(followed.session.as_ref()?.to_string()),
        ttl: None,
        health: api::SessionHealth::Healthy,
        node,
    })
}

/// The same, when it cannot be looked at.
fn unseen(kept: &ConsulLockStatus) -> Option<SessionStatus> {
    let known = kept.session.as_ref()?;
    Some(SessionStatus { health: api::SessionHealth::Unknown, ..known.clone() })
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
    let ours = views.flat_map(|view| view.ended.iter().cloned()).chain(expired(report));
    for tenure in ours.chain(report.followed.cloned()) {
        if !ended.iter().any(|known| known.token == tenure.token) {
            ended.push(tenure);
        }
    }
    ended
}

fn expired(report: &Report<'_>) -> Option<EndedTenure> {
    let view = report.facts.view?;
    match view.lock {
        LockView::Held { token, since, ref leader, .. }
            if view.token(report.facts.now).is_none() =>
        {
            let (to, reason) = (report.wall, EndReason::Expired);
            let pod = leader.as_ref().map(|leader| Arc::clone(&leader.pod));
            Some(EndedTenure { token, pod, from: since, to, reason })
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
        holder: match &ended.pod {
            Some(pod) => {
                format!("{}/{pod}", claim.metadata.namespace.as_deref().unwrap_or_default())
            }
            None => identity(claim),
        },
        token: ended.token.to_string(),
        from: whole_seconds(ended.from),
        to: whole_seconds(ended.to),
        reason: ended.reason.as_str().to_owned(),
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
    let said = statements.into_iter().map(|statement| condition(statement, report, previous));
    let routing = match report.failed {
        // In a moment there is more to say.
        Some(failed) if failed.is_outdated() => {
            previous.iter().find(|before| before.type_ == ROUTING_SYNCED).cloned()
        }
        _ => routing_synced(report).map(|statement| condition(statement, report, previous)),
    };
    said.chain(routing).collect()
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
        None => (
            Truth::Unknown,
            Detail::NotAsked.as_str(),
            "nothing is asked of Consul for this claim".to_owned(),
        ),
        Some(view) => match unreachable(view) {
            Some(trouble) => {
                (Truth::False, Reason::ConsulUnavailable.as_str(), unavailable_words(trouble))
            }
            None if view.lock == LockView::Starting && view.trouble.is_none() => (
                Truth::Unknown,
                Reason::Starting.as_str(),
                "Consul has not answered yet".to_owned(),
            ),
            None => (Truth::True, Detail::Answering.as_str(), "Consul answers".to_owned()),
        },
    };
    Statement { name: "ConsulReachable", truth, reason, message }
}

fn session_healthy(facts: &Facts<'_>, verdict: &Verdict) -> Statement {
    let health = facts.view.map(|view| view.session.health);
    let (truth, reason, message) = match health {
        Some(SessionHealth::Healthy) => {
            (Truth::True, Detail::Renewed.as_str(), "the last renewal succeeded")
        }
        Some(SessionHealth::Jeopardy) => (
            Truth::False,
            Detail::Jeopardy.as_str(),
            "renewals fail; the session may still be relied on, but not for long",
        ),
        Some(SessionHealth::Lost) => (
            Truth::False,
            Detail::Lost.as_str(),
            "Consul ended the session, or it could not be renewed in time",
        ),
        Some(SessionHealth::Absent) | None => match verdict.phase {
            Phase::Held => (
                Truth::True,
                Detail::HoldsKey.as_str(),
                "Consul shows the key held under the pod's own session",
            ),
            Phase::Unknown => {
                (Truth::Unknown, verdict.reason.as_str(), "nobody knows how the session stands")
            }
            Phase::Pending => (Truth::Unknown, verdict.reason.as_str(), "there is no session yet"),
            _ => (Truth::False, Detail::NoSession.as_str(), "the claim has no session"),
        },
    };
    Statement { name: "SessionHealthy", truth, reason, message: message.to_owned() }
}

fn key_conflict(facts: &Facts<'_>, verdict: &Verdict) -> Statement {
    let out_of_touch = facts.view.is_none_or(|view| unreachable(view).is_some())
        || facts.holding.is_some() && verdict.phase == Phase::Unknown;
    let seen = facts.view.and_then(|view| view.key.as_ref());
    let (truth, reason, message) = match seen {
        Some(_) | None if out_of_touch => {
            (Truth::Unknown, verdict.reason.as_str(), "the key cannot be read".to_owned())
        }
        Some(KeySeen::Conflict { flags }) => {
            (Truth::True, Detail::FlagsDiffer.as_str(), conflict_words(*flags))
        }
        Some(_) => (
            Truth::False,
            Detail::NoConflict.as_str(),
            "the key holds a lock or nothing".to_owned(),
        ),
        None => (Truth::Unknown, verdict.reason.as_str(), "the key was not read yet".to_owned()),
    };
    Statement { name: "KeyConflict", truth, reason, message }
}

fn routing_synced(report: &Report<'_>) -> Option<Statement> {
    let routing = report.told.routing.as_ref()?;
    let (truth, reason, message) = match (report.failed, routing) {
        (Some(failed), _) => (Truth::False, Detail::WriteFailed.as_str(), failed_words(failed)),
        (None, Routing::Unknown) => (
            Truth::Unknown,
            Detail::ServicesUnknown.as_str(),
            "Services or EndpointSlices cannot be listed".to_owned(),
        ),
        (None, Routing::Refused(refusal)) => {
            (Truth::False, refused(refusal).as_str(), refusal.to_string())
        }
        (None, Routing::Nowhere(why)) => {
            (Truth::True, Detail::NoEndpoint.as_str(), format!("traffic goes nowhere: {why}"))
        }
        (None, Routing::To(pod)) => {
            (Truth::True, Detail::Routed.as_str(), format!("traffic goes to pod {pod}"))
        }
        (None, Routing::Partly { pod, reason, lacks }) => {
            (Truth::False, reason.as_str(), format!("pod {pod} lacks {lacks}"))
        }
    };
    Some(Statement { name: ROUTING_SYNCED, truth, reason, message })
}

const fn refused(refusal: &Refusal) -> Detail {
    match refusal {
        Refusal::NoService => Detail::NoService,
        Refusal::HasSelector => Detail::ServiceHasSelector,
        Refusal::ExternalName => Detail::ServiceIsExternalName,
        Refusal::Taken { .. } => Detail::ServiceServedByOthers,
    }
}

fn failed_words(failed: &Error) -> String {
    let source = std::error::Error::source(failed).map(ToString::to_string);
    format!("{failed}: {}", source.unwrap_or_default())
}

#[cfg(test)]
mod tests;
