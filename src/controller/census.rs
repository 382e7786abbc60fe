//! What the claims look like, all together, at the moment of a scrape: counted from their statuses,
//! so that the number of series does not grow with the number of claims.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{Caches, MayAct, reasons::Reason, status::CONDITIONS};
use crate::{
    api::{ConsulLock, ConsulLockStatus, Phase, SessionHealth},
    clock::Clock,
    lock::EndReason,
    telemetry::{Census, Metrics},
};

/// How far back tenures are counted.
const LATELY: Duration = Duration::from_secs(15 * 60);

/// Has the metrics count claims from now on; none while another replica speaks for them.
pub(super) fn report(metrics: &Metrics, caches: &Arc<Caches>, leads: &MayAct, clock: &Clock) {
    let claims = {
        let (caches, leads) = (Arc::clone(caches), Arc::clone(leads));
        Arc::new(move || if leads() { caches.claims.all() } else { Vec::new() })
    };
    let of = Arc::clone(&claims);
    metrics.report_locks_from(move || by_phase(&of()));
    let of = Arc::clone(&claims);
    metrics.report_sessions_from(move || by_session(&of()));
    let of = Arc::clone(&claims);
    metrics.report_conditions_from(move || by_condition(&of()));
    let of = Arc::clone(&claims);
    metrics.report_reasons_from(move || by_reason(&of()));
    let clock = clock.clone();
    metrics.report_busiest_from(move || busiest(&claims(), clock.wall()));
}

type Claims = [Arc<ConsulLock>];

fn statuses(claims: &Claims) -> impl Iterator<Item = &ConsulLockStatus> {
    claims.iter().filter_map(|claim| claim.status.as_ref())
}

/// Adds one where the labels are these; others are not counted.
fn count<const N: usize>(census: &mut Census<N>, labels: [&str; N]) {
    for (_, count) in census.iter_mut().filter(|(known, _)| *known == labels) {
        *count += 1;
    }
}

fn by_phase(claims: &Claims) -> Census<1> {
    let mut census = Phase::ALL.map(|phase| ([phase.as_str()], 0)).to_vec();
    for claim in claims {
        let phase = claim.status.as_ref().and_then(|status| status.phase);
        count(&mut census, [phase.unwrap_or_default().as_str()]);
    }
    census
}

const fn health_word(health: SessionHealth) -> &'static str {
    match health {
        SessionHealth::Healthy => "Healthy",
        SessionHealth::Jeopardy => "Jeopardy",
        SessionHealth::Lost => "Lost",
        SessionHealth::Unknown => "Unknown",
    }
}

fn by_session(claims: &Claims) -> Census<1> {
    use SessionHealth::{Healthy, Jeopardy, Lost, Unknown};
    let all = [Healthy, Jeopardy, Lost, Unknown];
    let mut census = all.map(|health| ([health_word(health)], 0)).to_vec();
    for session in statuses(claims).filter_map(|status| status.session.as_ref()) {
        count(&mut census, [health_word(session.health)]);
    }
    census
}

fn by_condition(claims: &Claims) -> Census<2> {
    let each = |condition| ["True", "False", "Unknown"].map(|status| ([condition, status], 0));
    let mut census: Census<2> = CONDITIONS.into_iter().flat_map(each).collect();
    for condition in statuses(claims).flat_map(|status| &status.conditions) {
        count(&mut census, [&condition.type_, &condition.status]);
    }
    census
}

fn by_reason(claims: &Claims) -> Census<1> {
    let mut census: Census<1> = Reason::ALL.iter().map(|reason| ([reason.as_str()], 0)).collect();
    for condition in statuses(claims).flat_map(|status| &status.conditions) {
        if condition.type_ == "Ready" {
            count(&mut census, [&condition.reason]);
        }
    }
    census
}

/// Whether a tenure ended as nobody had planned.
fn is_disturbance(reason: &str) -> bool {
    use EndReason as E;
    EndReason::named(reason).is_some_and(|reason| match reason {
        // Its own wish, or its work is done.
        E::Paused | E::Stopped | E::MaxHold | E::HandedOver | E::PodFinished | E::AlreadyRan => {
            false
        }
        E::NoCandidate
        | E::Preempted
        | E::PodDied
        | E::PodDeleted
        | E::PodUnreachable
        | E::PodUnready
        | E::PodUnmatched
        | E::Released
        | E::PassedOn
        | E::Expired
        | E::SessionInvalidated
        | E::KeyDeleted
        | E::KeyTaken
        | E::Superseded => true,
    })
}

fn busiest(claims: &Claims, wall: Timestamp) -> usize {
    let since = wall - LATELY;
    let lately = |status: &ConsulLockStatus| {
        let ended = status.history.iter().filter(|past| past.to.0 >= since);
        ended.filter(|past| is_disturbance(&past.reason)).count()
    };
    statuses(claims).map(lately).max().unwrap_or(0)
}

/// Whether a claim contends for a key that nobody holds.
pub(super) fn is_unheld(status: &ConsulLockStatus) -> bool {
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    let reason = ready.and_then(|ready| Reason::named(&ready.reason));
    status.holder.is_none() && matches!(reason, Some(Reason::Contending | Reason::LockDelay))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::sample::{claim_with_status, held_status, wall};

    fn of(statuses: &[Value]) -> Vec<Arc<ConsulLock>> {
        statuses.iter().map(|status| Arc::new(claim_with_status("{}", status.clone()))).collect()
    }

    fn with(reason: &str, routing: &str) -> Value {
        let condition = |kind, status, reason| {
            json!({
                "type": kind, "status": status, "reason": reason, "message": "",
                "lastTransitionTime": "2026-01-02T03:04:05Z",
            })
        };
        let mut status = held_status();
        status["conditions"] =
            json!([condition("Ready", "False", reason), condition("RoutingSynced", routing, "x"),]);
        status
    }

    fn counted<const N: usize>(census: &Census<N>, labels: [&str; N]) -> usize {
        census.iter().find(|(known, _)| *known == labels).unwrap().1
    }

    #[test]
    fn claims_are_counted_by_what_their_statuses_say() {
        let claims = of(&[with("KeyConflict", "False"), with("Held", "False"), held_status()]);
        assert_eq!(counted(&by_phase(&claims), ["Held"]), 3);
        assert_eq!(counted(&by_phase(&claims), ["Failed"]), 0);
        assert_eq!(counted(&by_session(&claims), ["Healthy"]), 3);
        assert_eq!(counted(&by_condition(&claims), ["RoutingSynced", "False"]), 2);
        assert_eq!(counted(&by_condition(&claims), ["RoutingSynced", "True"]), 0);
        assert_eq!(counted(&by_reason(&claims), ["KeyConflict"]), 1);
    }

    #[test]
    fn what_another_version_wrote_makes_no_new_series() {
        let claims = of(&[with("Levitating", "Perhaps")]);
        assert_eq!(by_reason(&claims).len(), Reason::ALL.len());
        assert_eq!(by_condition(&claims).len(), 3 * CONDITIONS.len());
    }

    #[test]
    fn only_tenures_that_ended_lately_and_otherwise_than_planned_count_as_busy() {
        let past = |reason: &str, second: i64| {
            let to = wall(second).to_string();
            json!({"holder": "shop/a", "token": second.to_string(), "from": to, "to": to, "reason": reason})
        };
        let mut status = held_status();
        let history = [
            ("PodDied", 5000),
            ("MaxHold", 4900),
            ("PodUnready", 4800),
            ("PodFinished", 4700),
            ("Expired", 4600),
            ("PodDied", 100),
        ];
        status["history"] = history.iter().map(|(reason, at)| past(reason, *at)).collect();
        let claims = of(&[held_status(), status]);
        assert_eq!(busiest(&claims, wall(5010)), 3);
        assert_eq!(busiest(&claims, wall(99_000)), 0);
    }

    #[test]
    fn a_claim_is_unheld_while_it_contends_for_a_key_without_a_holder() {
        let status = |reason: &str, holder: bool| {
            let mut status = with(reason, "True");
            if !holder {
                status["holder"].take();
            }
            serde_json::from_value::<ConsulLockStatus>(status).unwrap()
        };
        assert!(is_unheld(&status("Contending", false)));
        assert!(is_unheld(&status("LockDelay", false)));
        assert!(!is_unheld(&status("Contending", true)));
        for reason in ["NoCandidate", "Paused", "ConsulDenied", "HeldElsewhere"] {
            assert!(!is_unheld(&status(reason, false)), "{reason}");
        }
    }
}
