//! How long the parts of a change of leader take that the controller sees: detection, withdrawal and
//! routing. (Lock-delay and acquisition are the lock keeper's.) Each is told once for each tenure.
//!
//! # Not guaranteed
//! Detection of a pod's end counts from the time that the kubelet reported, which is the node's clock
//! and has whole seconds. What a new leader of the replicas takes over half-way is not told.

use std::time::Duration;

use jiff::Timestamp;

use super::{Leader, course::Course, electorate::Standing, observe::Seen};
use crate::{
    clock::Instant,
    consul::Consul,
    election::{self, Candidate, Choice, Present, proof_of_death},
    keeper::Stance,
    lock::EndReason,
    names::FencingToken,
    telemetry::FailoverPart,
};

/// This walk is about to end a tenure for another one of this cluster, or for nobody's.
pub(super) fn note_decision<C: Consul>(leader: &Leader<C>, seen: &Seen, course: &Course) {
    let Some((token, reason)) = decided(seen, course) else { return };
    let now = leader.clock.now();
    if !leader.ledger.decides(&seen.id, token, now) {
        return;
    }
    let present = seen.electorate.present.as_ref();
    let took = present.and_then(|present| detection(present, reason, now, leader.clock.wall()));
    if let Some(took) = took {
        leader.metrics.failover(FailoverPart::Detection, took);
    }
}

/// Endpoint and label of whoever led are gone.
pub(super) fn note_withdrawal<C: Consul>(leader: &Leader<C>, seen: &Seen) {
    let Some(token) = seen.electorate.standing.token() else { return };
    if let Some(took) = leader.ledger.withdrawn(&seen.id, token, leader.clock.now()) {
        leader.metrics.failover(FailoverPart::Withdrawal, took);
    }
}

/// Traffic goes to the leader of the present tenure.
pub(super) fn note_routing<C: Consul>(leader: &Leader<C>, seen: &Seen) {
    let Some((token, began)) = begun(&seen.electorate.standing) else { return };
    // One that was taken over was routed by somebody else.
    if began >= seen.since && leader.ledger.routes(&seen.id, token) {
        leader.metrics.failover(FailoverPart::Routing, leader.clock.now().since(began));
    }
}

fn begun(standing: &Standing) -> Option<(FencingToken, Instant)> {
    match standing {
        Standing::Held { token, began, .. } => Some((*token, *began)),
        Standing::Followed(followed) => Some((followed.token?, followed.noticed?)),
        Standing::Beginning { .. } | Standing::Adopting { .. } | Standing::None => None,
    }
}

/// The present tenure, if it is to end for one of another pod, and why.
fn decided(seen: &Seen, course: &Course) -> Option<(FencingToken, EndReason)> {
    let token = seen.electorate.standing.token()?;
    let present = seen.electorate.standing.leader()?;
    if let Some(Stance::Follow { release: Some(_) }) = &course.stance {
        return Some((token, proof_of_death(seen.electorate.present.as_ref()?)?));
    }
    match &course.told.election.as_ref()?.choice {
        Choice::Elect { leader, instead } if leader != present => Some((token, *instead)),
        Choice::Nobody { reason, .. } => Some((token, *reason)),
        Choice::Elect { .. } | Choice::Keep(_) => None,
    }
}

/// For how long what was wrong had been so; `None`: nothing was.
fn detection(
    present: &Present,
    reason: EndReason,
    now: Instant,
    wall: Timestamp,
) -> Option<Duration> {
    let since = |at: Option<Instant>| Some(now.since(at?));
    match reason {
        EndReason::PodDied | EndReason::PodDeleted => {
            let ended = ended(&present.leader, present.pod.as_ref()?)?;
            // Before our own clock says so, by a node whose clock is ahead.
            Some(Duration::try_from(wall.duration_since(ended)).unwrap_or_default())
        }
        EndReason::PodUnreachable => since(present.unreachable_since),
        EndReason::PodUnready => since(present.unready_since),
        _ => None,
    }
}

/// When the last run ended that counts.
fn ended(leader: &election::Leader, pod: &Candidate) -> Option<Timestamp> {
    let counts = |name: &str| leader.containers.iter().any(|mark| &*mark.name == name);
    pod.containers.iter().filter(|one| counts(&one.name)).filter_map(|one| one.ended).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        controller::sample::{at, leader, wall},
        election::{Candidate, Reach},
    };

    fn present(ended: &[(&str, Option<i64>)]) -> Present {
        let containers = ended.iter().map(|(name, ended)| election::Container {
            name: (*name).into(),
            id: None,
            restarts: 0,
            running: false,
            terminated: true,
            ended: ended.map(wall),
        });
        Present {
            leader: std::sync::Arc::new(leader("a")),
            pod: Some(Candidate { containers: containers.collect(), ..election::ready("a", 0) }),
            exists: true,
            reach: Reach::Reachable,
            unready_since: Some(at(70)),
            unreachable_since: Some(at(40)),
            handover: None,
        }
    }

    #[test]
    fn detection_counts_from_what_went_wrong() {
        let present = present(&[("app", Some(10)), ("sidecar", Some(12))]);
        let after = |reason| detection(&present, reason, at(100), wall(13));
        let seconds = |count| Some(Duration::from_secs(count));
        assert_eq!(after(EndReason::PodDied), seconds(3), "by the container that counts");
        assert_eq!(after(EndReason::PodDeleted), seconds(3));
        assert_eq!(after(EndReason::PodUnreachable), seconds(60));
        assert_eq!(after(EndReason::PodUnready), seconds(30));
        assert_eq!(after(EndReason::Preempted), None, "nothing was wrong");
    }

    #[test]
    fn a_node_whose_clock_is_ahead_makes_no_negative_time() {
        let present = present(&[("app", Some(20))]);
        let took = detection(&present, EndReason::PodDied, at(100), wall(13));
        assert_eq!(took, Some(Duration::ZERO));
    }

    #[test]
    fn an_end_whose_time_is_not_known_is_not_told() {
        let present = present(&[("app", None)]);
        assert_eq!(detection(&present, EndReason::PodDied, at(100), wall(13)), None);
    }
}
