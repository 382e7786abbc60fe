use std::time::Duration;

use kube::core::Selector;

use super::{
    super::{
        Origin,
        candidate::{Container, gated, ready},
    },
    *,
};
use crate::{api::GateSettings, names::FencingToken};

const S: Duration = Duration::from_secs(1);

fn at(second: u32) -> Instant {
    Instant::from_boot(S * 1_000) + S * second
}

fn rules() -> CandidatesSettings {
    CandidatesSettings {
        selector: Selector::default(),
        label: None,
        by_priority: false,
        preempt: false,
        container: None,
        gate: None,
        unready_after: None,
        unreachable_after: Some(S * 30),
    }
}

fn present(pod: &Candidate) -> Present {
    Present {
        leader: Arc::new(Leader::of(pod, None, "")),
        pod: Some(pod.clone()),
        exists: true,
        reach: pod.reach,
        unready_since: None,
        unreachable_since: None,
        handover: None,
    }
}

fn ended(pod: &Candidate) -> Candidate {
    let end = |one: &Container| Container { running: false, terminated: true, ..one.clone() };
    let containers = pod.containers.iter().map(end).collect();
    Candidate { containers, ready_since: None, ..pod.clone() }
}

/// Whom the election picks, and why the last one goes.
fn chosen(election: &Election) -> (Option<&str>, Option<EndReason>) {
    match &election.choice {
        Choice::Keep(leader) => (Some(&*leader.pod), None),
        Choice::Elect { leader, instead, .. } => (Some(&*leader.pod), Some(*instead)),
        Choice::Nobody { reason, .. } => (None, Some(*reason)),
    }
}

#[test]
fn who_has_been_ready_for_longest_is_elected() {
    let pods = [ready("a", 9), ready("b", 3), ready("c", 5)];
    let election = elect(&pods, None, &rules(), at(0));
    assert_eq!(chosen(&election), (Some("b"), Some(EndReason::NoCandidate)));
    assert_eq!((election.matching, election.eligible), (3, 3));
    assert_eq!(election.first.as_deref(), Some("b"));
    assert_eq!(election.next.as_deref(), Some("c"), "b is about to lead");
    let election = elect(&pods, Some(&present(&pods[0])), &rules(), at(0));
    assert_eq!(election.next.as_deref(), Some("b"), "a leads");
    let election = elect(&pods, None, &rules(), at(0));
    let Choice::Elect { leader, .. } = election.choice else { panic!() };
    assert_eq!(&*leader.why, "ready for longest of 3 pods");
}

#[test]
fn priority_ranks_before_time_and_the_name_decides_in_the_end() {
    let rules = CandidatesSettings { by_priority: true, ..rules() };
    let high = Candidate { priority: 7, ..ready("z", 9) };
    let election = elect(&[ready("a", 1), high, ready("b", 1)], None, &rules, at(0));
    assert_eq!(chosen(&election).0, Some("z"));
    let election = elect(&[ready("b", 1), ready("a", 1)], None, &rules, at(0));
    assert_eq!(chosen(&election).0, Some("a"));
}

#[test]
fn nobody_is_elected_where_nobody_may_be_and_it_is_said_why() {
    let election = elect(&[], None, &rules(), at(0));
    assert_eq!(chosen(&election), (None, Some(EndReason::NoCandidate)));
    let unready = Candidate { ready_since: None, ..ready("a", 1) };
    let away = Candidate { reach: Reach::Unreachable, ..ready("b", 1) };
    let election = elect(&[unready.clone(), unready, away], None, &rules(), at(0));
    let Choice::Nobody { message, .. } = election.choice else { panic!() };
    assert!(message.ends_with("1 on a node that is away, 2 not ready"), "{message}");
}

#[test]
fn a_living_leader_stays_though_a_better_one_comes_unless_preempt_says_otherwise() {
    let (worse, better) = (ready("a", 9), ready("b", 1));
    let pods = [worse.clone(), better];
    let election = elect(&pods, Some(&present(&worse)), &rules(), at(0));
    assert_eq!(chosen(&election), (Some("a"), None));
    let preempt = CandidatesSettings { preempt: true, ..rules() };
    let election = elect(&pods, Some(&present(&worse)), &preempt, at(0));
    assert_eq!(chosen(&election), (Some("b"), Some(EndReason::Preempted)));
    let election = elect(&pods, Some(&present(&pods[1])), &preempt, at(0));
    assert_eq!(chosen(&election), (Some("b"), None), "it ranks first itself");
}

#[test]
fn a_leader_that_is_merely_not_ready_keeps_the_lock_until_unready_after() {
    let (pod, other) = (Candidate { ready_since: None, ..ready("a", 1) }, ready("b", 5));
    let pods = [pod.clone(), other];
    let since = Present { unready_since: Some(at(0)), ..present(&pod) };
    let preempt = CandidatesSettings { preempt: true, ..rules() };
    for rules in [rules(), preempt] {
        assert_eq!(chosen(&elect(&pods, Some(&since), &rules, at(999))), (Some("a"), None));
    }
    let rules = CandidatesSettings { unready_after: Some(S * 60), ..rules() };
    let election = elect(&pods, Some(&since), &rules, at(59));
    assert_eq!((chosen(&election), election.again), ((Some("a"), None), Some(at(60))));
    let election = elect(&pods, Some(&since), &rules, at(60));
    assert_eq!(chosen(&election), (Some("b"), Some(EndReason::PodUnready)));
}

#[test]
fn proof_of_death_ends_a_tenure_at_once_and_the_same_pod_may_follow() {
    let pod = ready("a", 1);
    let dead = ended(&pod);
    let mut now = present(&pod);
    now.pod = Some(dead.clone());
    let election = elect(&[dead, ready("b", 5)], Some(&now), &rules(), at(0));
    assert_eq!(chosen(&election), (Some("b"), Some(EndReason::PodDied)));

    let mut restarted = pod.clone();
    restarted.containers[0].restarts = 1;
    now.pod = Some(restarted.clone());
    let election = elect(&[restarted.clone()], Some(&now), &rules(), at(0));
    let Choice::Elect { leader, instead: EndReason::PodDied, .. } = election.choice else {
        panic!("{election:?}")
    };
    assert_ne!(leader, now.leader, "another process");
    let again = Present { leader, ..now };
    assert_eq!(chosen(&elect(&[restarted], Some(&again), &rules(), at(0))), (Some("a"), None));
}

#[test]
fn a_deleted_leader_is_followed_on_proof_and_not_before() {
    let pod = Candidate { deleting: true, ..ready("a", 1) };
    let pods = [pod.clone(), ready("b", 5)];
    let preempt = CandidatesSettings { preempt: true, unready_after: Some(S), ..rules() };
    let mut now = present(&ready("a", 1));
    now.pod = Some(pod.clone());
    now.unready_since = Some(at(0));
    assert_eq!(chosen(&elect(&pods, Some(&now), &preempt, at(99))), (Some("a"), None));
    now.pod = Some(ended(&pod));
    let election = elect(&pods, Some(&now), &preempt, at(0));
    assert_eq!(chosen(&election), (Some("b"), Some(EndReason::PodDeleted)));
    // The kubelet's last word came with the end of the object.
    now.exists = false;
    let election = elect(&pods[1..], Some(&now), &rules(), at(0));
    assert_eq!(chosen(&election), (Some("b"), Some(EndReason::PodDeleted)));
}

#[test]
fn what_is_over_is_not_waited_for() {
    let deleting = Candidate { deleting: true, ready_since: None, ..ready("a", 1) };
    let rules = CandidatesSettings { unready_after: Some(S * 5), ..rules() };
    let present = Present { unready_since: Some(at(0)), ..present(&deleting) };
    let pods = [deleting];
    assert_eq!(elect(&pods, Some(&present), &rules, at(4)).again, Some(at(5)));
    let election = elect(&pods, Some(&present), &rules, at(9));
    assert_eq!((chosen(&election), election.again), ((Some("a"), None), None));
}

#[test]
fn a_leader_out_of_reach_is_followed_after_unreachable_after_or_never() {
    let pods = [ready("b", 5)];
    let mut gone = present(&ready("a", 1));
    gone.pod = None;
    gone.exists = false;
    gone.unreachable_since = Some(at(0));
    let election = elect(&pods, Some(&gone), &rules(), at(29));
    assert_eq!((chosen(&election), election.again), ((Some("a"), None), Some(at(30))));
    let election = elect(&pods, Some(&gone), &rules(), at(30));
    assert_eq!(chosen(&election), (Some("b"), Some(EndReason::PodUnreachable)));
    let never = CandidatesSettings { unreachable_after: None, ..rules() };
    let election = elect(&pods, Some(&gone), &never, at(99_999));
    assert_eq!((chosen(&election), election.again), ((Some("a"), None), None));
    gone.reach = Reach::OutOfService;
    let election = elect(&pods, Some(&gone), &never, at(0));
    assert_eq!(chosen(&election), (Some("b"), Some(EndReason::PodDeleted)));
}

fn asked(pod: &Candidate, to: Option<&str>) -> Present {
    let handover = Handover { token: FencingToken::new(41), to: to.map(Arc::from) };
    Present { handover: Some(handover), ..present(pod) }
}

#[test]
fn a_leader_that_is_asked_to_hands_over_to_the_pod_that_was_named_or_the_next_in_line() {
    let pods = [ready("a", 1), ready("b", 5), ready("c", 9)];
    for (to, follows) in [(None, "b"), (Some("b"), "b"), (Some("c"), "c")] {
        let election = elect(&pods, Some(&asked(&pods[0], to)), &rules(), at(0));
        assert_eq!(chosen(&election), (Some(follows), Some(EndReason::HandedOver)));
        assert_eq!(election.refused, None);
        let Choice::Elect { leader, .. } = election.choice else { panic!() };
        assert_eq!(&*leader.why, AFTER_HANDOVER);
    }
}

#[test]
fn a_handover_to_whom_nobody_could_elect_changes_nothing_and_is_refused() {
    let unready = Candidate { ready_since: None, ..ready("c", 9) };
    let pods = [ready("a", 1), unready];
    for (to, refusal) in [
        (None, HandoverRefusal::NobodyElse),
        (Some("a"), HandoverRefusal::Leads("a".into())),
        (Some("c"), HandoverRefusal::Ineligible("c".into(), Ineligible::NotReady)),
        (Some("x"), HandoverRefusal::NoCandidate("x".into())),
    ] {
        let election = elect(&pods, Some(&asked(&pods[0], to)), &rules(), at(0));
        assert_eq!(chosen(&election), (Some("a"), None));
        assert_eq!(election.refused, Some(refusal));
    }
}

#[test]
fn a_handover_waits_for_the_end_of_a_leader_that_is_going() {
    let pod = Candidate { deleting: true, ..ready("a", 1) };
    let pods = [pod.clone(), ready("b", 5)];
    let mut now = asked(&pod, Some("b"));
    let election = elect(&pods, Some(&now), &rules(), at(0));
    assert_eq!(chosen(&election), (Some("a"), None));
    assert_eq!(election.refused, Some(HandoverRefusal::Leaving));
    now.pod = Some(ended(&pod));
    let election = elect(&pods, Some(&now), &rules(), at(0));
    assert_eq!(chosen(&election), (Some("b"), Some(EndReason::PodDeleted)));
    assert_eq!(election.refused, None);
}

#[test]
fn no_handover_goes_to_whom_preempt_would_take_the_lock_from() {
    let pods = [ready("a", 1), ready("b", 5)];
    let preempt = CandidatesSettings { preempt: true, ..rules() };
    let election = elect(&pods, Some(&asked(&pods[0], Some("b"))), &preempt, at(0));
    assert_eq!(chosen(&election), (Some("a"), None));
    assert_eq!(election.refused, Some(HandoverRefusal::Outranked("a".into())));
    let unready = Candidate { ready_since: None, ..pods[0].clone() };
    let pods = [unready, pods[1].clone()];
    let election = elect(&pods, Some(&asked(&pods[0], Some("b"))), &preempt, at(0));
    assert_eq!(chosen(&election).0, Some("b"), "nobody takes it back");
}

#[test]
fn a_pod_past_the_gate_is_not_asked_to_go() {
    let rules = CandidatesSettings { gate: Some(GateSettings::EachInTurn), ..rules() };
    let works = Candidate { gated: false, node: Some("n-1".into()), ..gated("a", 1) };
    let leader = Arc::new(Leader::of_whole_pod(&works, ""));
    let now = Present { leader, ..asked(&works, None) };
    let election = elect(&[works, gated("b", 2)], Some(&now), &rules, at(0));
    assert_eq!(chosen(&election), (Some("a"), None));
    assert_eq!(election.refused, Some(HandoverRefusal::Gate));
}

#[test]
fn a_leader_that_matches_no_more_is_replaced() {
    let pod = Candidate { matches: false, ..ready("a", 1) };
    let election = elect(&[ready("b", 5)], Some(&present(&pod)), &rules(), at(0));
    assert_eq!(chosen(&election), (Some("b"), Some(EndReason::PodUnmatched)));
}

#[test]
fn the_end_of_a_sidecar_is_not_the_end_of_the_container_that_counts() {
    let mut pod = ready("a", 1);
    let sidecar = Container { name: "mesh".into(), ..pod.containers[0].clone() };
    pod.containers.push(sidecar);
    let rules = CandidatesSettings { container: Some("app".into()), ..rules() };
    let leader = Arc::new(Leader::of(&pod, Some("app"), ""));
    let mut now = Present { leader, ..present(&pod) };
    pod.containers[1].terminated = true;
    now.pod = Some(pod.clone());
    assert_eq!(chosen(&elect(&[pod.clone()], Some(&now), &rules, at(0))), (Some("a"), None));
    pod.containers[0].terminated = true;
    pod.ready_since = None;
    now.pod = Some(pod.clone());
    let election = elect(&[pod], Some(&now), &rules, at(0));
    assert_eq!(chosen(&election), (None, Some(EndReason::PodDied)));
}

#[test]
fn gated_pods_have_their_turns_in_the_order_of_their_age() {
    let rules = CandidatesSettings { gate: Some(GateSettings::EachInTurn), ..rules() };
    let pods = [gated("a", 9), gated("b", 3)];
    let election = elect(&pods, None, &rules, at(0));
    assert_eq!(chosen(&election).0, Some("b"));
    // Past the gate, at work, restarting its container now and then.
    let works = Candidate {
        gated: false,
        node: Some("n-1".into()),
        containers: ended(&ready("b", 3)).containers,
        ..pods[1].clone()
    };
    let leader = Arc::new(Leader::of_whole_pod(&pods[1], ""));
    let now = Present { leader, ..present(&works) };
    let all = [pods[0].clone(), works.clone()];
    assert_eq!(chosen(&elect(&all, Some(&now), &rules, at(0))), (Some("b"), None));
    let done = Candidate { finished: true, ..works.clone() };
    let now = Present { pod: Some(done.clone()), ..now };
    let election = elect(&[pods[0].clone(), done], Some(&now), &rules, at(0));
    assert_eq!(chosen(&election), (Some("a"), Some(EndReason::PodFinished)));
    // A tenure was lost while it worked: nobody else starts beside it.
    assert_eq!(chosen(&elect(&all, None, &rules, at(0))).0, Some("b"));
}

#[test]
fn a_gated_pod_that_was_deleted_before_it_ran_is_followed_at_once() {
    let rules = CandidatesSettings { gate: Some(GateSettings::EachInTurn), ..rules() };
    let pod = gated("a", 1);
    let leader = Arc::new(Leader::of_whole_pod(&pod, ""));
    let mut now = Present { leader, exists: false, ..present(&pod) };
    let election = elect(&[gated("b", 2)], Some(&now), &rules, at(0));
    assert_eq!(chosen(&election), (Some("b"), Some(EndReason::PodDeleted)));
    now.pod = None;
    let election = elect(&[gated("b", 2)], Some(&now), &rules, at(0));
    assert_eq!(chosen(&election), (Some("a"), None), "nobody knows what became of it");
}

#[test]
fn the_oldest_firing_has_its_turn_first_whatever_the_age_of_its_pod() {
    let rules = CandidatesSettings { gate: Some(GateSettings::OncePerSchedule), ..rules() };
    let of = |name: &str, created, due| {
        let scheduled = jiff::Timestamp::from_second(due).ok();
        let (job, uid) = (name.into(), name.into());
        let origin = Origin::Job { name: job, uid, scheduled };
        Candidate { origin, ..gated(name, created) }
    };
    let pods = [of("new", 1, 120), of("old", 9, 60)];
    assert_eq!(chosen(&elect(&pods, None, &rules, at(0))).0, Some("old"));
    let done = Candidate { already_ran: true, ..pods[1].clone() };
    let leader = Arc::new(Leader::of_whole_pod(&done, ""));
    let now = Present { leader, ..present(&done) };
    let election = elect(&[pods[0].clone(), done], Some(&now), &rules, at(0));
    assert_eq!(chosen(&election), (Some("new"), Some(EndReason::AlreadyRan)));
}
