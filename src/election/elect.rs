//! The election: whether the present leader goes on, and who follows.
//!
//! [`RULES`] is the specification of the first half: the reasons for which a leader is replaced, the
//! first that answers wins. Times count from our own observation on our own clock, never from what
//! another machine's wall clock says; so a controller that has just started waits once more.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use super::{Candidate, Handover, HandoverRefusal, Ineligible, Leader, Reach};
use crate::{api::CandidatesSettings, clock::Instant, lock::EndReason};

/// The leader of the present tenure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// Who it is.
    pub leader: Arc<Leader>,
    /// The pod: as it is, or as it was last seen before it went.
    pub pod: Option<Candidate>,
    /// Whether the pod exists.
    pub exists: bool,
    /// What is known of its node.
    pub reach: Reach,
    /// Since when it has been seen not Ready.
    pub unready_since: Option<Instant>,
    /// Since when it could not be reached: the node is away, or the pod is gone without proof.
    pub unreachable_since: Option<Instant>,
    /// What somebody asked for.
    pub handover: Option<Handover>,
}

/// What an election came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Election {
    /// Who should lead.
    pub choice: Choice,
    /// How many candidates there are, and how many of them may be elected.
    pub matching: usize,
    /// See `matching`.
    pub eligible: usize,
    /// Who ranks first of them.
    pub first: Option<Arc<str>>,
    /// Who ranks first of those that do not lead.
    pub next: Option<Arc<str>>,
    /// Why the leader stays, though somebody asked that it hand over.
    pub refused: Option<HandoverRefusal>,
    /// When time alone changes something.
    pub again: Option<Instant>,
}

/// Who should lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The present leader.
    Keep(Arc<Leader>),
    /// This one.
    Elect {
        /// Who, and why it ranks first.
        leader: Arc<Leader>,
        /// Why the present leader, if there is one, is replaced.
        instead: EndReason,
    },
    /// Nobody may be elected.
    Nobody {
        /// Why the present leader, if there is one, may not go on.
        reason: EndReason,
        /// What is wrong with the candidates.
        message: String,
    },
}

/// Why a pod leads that was given the lock by a handover.
const AFTER_HANDOVER: &str = "the one that the lock was to be handed over to";

/// What a rule says of the present leader.
enum Word {
    /// It goes on, whatever the rules after this one would say.
    Stays,
    /// It is replaced.
    Goes(EndReason),
}

/// What the rules look at.
struct Case<'a> {
    present: &'a Present,
    ranking: &'a Ranking<'a>,
    rules: &'a CandidatesSettings,
    /// Who is to follow, if somebody asked for a handover.
    successor: Option<&'a Result<&'a Candidate, HandoverRefusal>>,
    now: Instant,
}

type Rule = fn(&Case<'_>) -> Option<Word>;

const RULES: &[Rule] = &[
    died,
    already_ran,
    unreachable,
    waits_for_its_end,
    asked_to_go,
    unmatched,
    unready,
    outranked,
];

/// Who should lead at `now`. `candidates`: all pods that match the claim's selector. `rules`: what
/// the claim says beside it.
pub fn elect(
    candidates: &[Candidate],
    present: Option<&Present>,
    rules: &CandidatesSettings,
    now: Instant,
) -> Election {
    let ranking = Ranking::of(candidates, rules);
    let successor = present.and_then(|present| successor(candidates, present, &ranking, rules));
    let word = |present| {
        word(&Case { present, ranking: &ranking, rules, successor: successor.as_ref(), now })
    };
    let choice = match present.map(|present| (present, word(present))) {
        Some((present, Word::Stays)) => Choice::Keep(Arc::clone(&present.leader)),
        Some((_, Word::Goes(instead))) => match &successor {
            Some(Ok(pod)) if instead == EndReason::HandedOver => {
                let leader = Leader::of(pod, rules.container.as_deref(), AFTER_HANDOVER);
                Choice::Elect { leader: Arc::new(leader), instead }
            }
            _ => ranking.choose(rules, instead),
        },
        None => ranking.choose(rules, EndReason::NoCandidate),
    };
    Election {
        matching: candidates.len(),
        eligible: ranking.eligible.len(),
        first: ranking.eligible.first().map(|first| Arc::clone(&first.name)),
        next: ranking.next(&choice),
        refused: match (&choice, &successor) {
            (Choice::Keep(_), Some(Err(refusal))) => Some(refusal.clone()),
            _ => None,
        },
        again: match (&choice, present) {
            (Choice::Keep(_), Some(present)) => again(present, rules, now),
            _ => None,
        },
        choice,
    }
}

fn word(case: &Case<'_>) -> Word {
    RULES.iter().find_map(|rule| rule(case)).unwrap_or(Word::Stays)
}

/// When the present leader is replaced unless something changes. Never what is over: a leader that
/// is waited for is kept whatever the clock says.
fn again(present: &Present, rules: &CandidatesSettings, now: Instant) -> Option<Instant> {
    let unreachable = present.unreachable_since.zip(rules.unreachable_after);
    let unready = present.unready_since.zip(rules.unready_after);
    let ends = [unreachable, unready].into_iter().flatten().map(|(since, after)| since + after);
    ends.filter(|end| now < *end).min()
}

/// Proof of death. It is none that a pod is NotReady, Unknown or gone from the API server: only the
/// kubelet knows what runs, or an operator who took the node out of service.
fn died(case: &Case<'_>) -> Option<Word> {
    proof_of_death(case.present).map(Word::Goes)
}

/// How the leader has ended, if there is proof of its death.
pub fn proof_of_death(present: &Present) -> Option<EndReason> {
    let pod = present.pod.as_ref();
    let ended = pod.is_some_and(|pod| present.leader.has_ended(pod));
    // Its last word came with the deletion, and no node had it.
    let never_ran = !present.exists && pod.is_some_and(|pod| pod.node.is_none());
    let deleted = !present.exists || pod.is_some_and(|pod| pod.deleting);
    let finished = pod.is_some_and(|pod| pod.finished);
    let proof = ended || never_ran || present.reach == Reach::OutOfService;
    proof.then_some(match (deleted, finished) {
        (true, _) => EndReason::PodDeleted,
        (false, true) => EndReason::PodFinished,
        (false, false) => EndReason::PodDied,
    })
}

/// It was elected before anybody could know.
fn already_ran(case: &Case<'_>) -> Option<Word> {
    let pod = case.present.pod.as_ref()?;
    (pod.gated && pod.already_ran).then_some(Word::Goes(EndReason::AlreadyRan))
}

fn unreachable(case: &Case<'_>) -> Option<Word> {
    let (since, after) = case.present.unreachable_since.zip(case.rules.unreachable_after)?;
    (case.now >= since + after).then_some(Word::Goes(EndReason::PodUnreachable))
}

/// A leader that is on its way out, or out of sight, may be at work still.
fn waits_for_its_end(case: &Case<'_>) -> Option<Word> {
    is_leaving(case.present).then_some(Word::Stays)
}

fn is_leaving(present: &Present) -> bool {
    let deleting = present.pod.as_ref().is_none_or(|pod| pod.deleting);
    deleting || !present.exists || present.reach != Reach::Reachable
}

fn asked_to_go(case: &Case<'_>) -> Option<Word> {
    matches!(case.successor, Some(Ok(_))).then_some(Word::Goes(EndReason::HandedOver))
}

/// Who is to follow if somebody asked the leader to hand over.
fn successor<'a>(
    candidates: &'a [Candidate],
    present: &Present,
    ranking: &Ranking<'a>,
    rules: &CandidatesSettings,
) -> Option<Result<&'a Candidate, HandoverRefusal>> {
    let asked = present.handover.as_ref()?;
    let leads = |one: &Candidate| one.uid == present.leader.uid;
    let chosen = match &asked.to {
        _ if rules.gate.is_some() => Err(HandoverRefusal::Gate),
        _ if is_leaving(present) => Err(HandoverRefusal::Leaving),
        None => {
            let other = ranking.eligible.iter().find(|one| !leads(one));
            other.copied().ok_or(HandoverRefusal::NobodyElse)
        }
        Some(pod) => match candidates.iter().find(|one| one.name == *pod) {
            None => Err(HandoverRefusal::NoCandidate(Arc::clone(pod))),
            Some(one) if leads(one) => Err(HandoverRefusal::Leads(Arc::clone(pod))),
            Some(one) => match eligibility(one, rules) {
                Ok(()) => Ok(one),
                Err(why) => Err(HandoverRefusal::Ineligible(Arc::clone(pod), why)),
            },
        },
    };
    let first = ranking.eligible.first();
    Some(match (chosen, first) {
        (Ok(chosen), Some(first)) if rules.preempt && first.uid != chosen.uid => {
            Err(HandoverRefusal::Outranked(Arc::clone(&first.name)))
        }
        (chosen, _) => chosen,
    })
}

fn unmatched(case: &Case<'_>) -> Option<Word> {
    let matches = case.present.pod.as_ref().is_some_and(|pod| pod.matches);
    (!matches).then_some(Word::Goes(EndReason::PodUnmatched))
}

fn unready(case: &Case<'_>) -> Option<Word> {
    let (since, after) = case.present.unready_since.zip(case.rules.unready_after)?;
    (case.now >= since + after).then_some(Word::Goes(EndReason::PodUnready))
}

/// A leader that is merely not ready is compared by priority alone: its standing among the ready
/// ones is what `unreadyAfter` is for.
fn outranked(case: &Case<'_>) -> Option<Word> {
    let (pod, first) = (case.present.pod.as_ref()?, case.ranking.eligible.first()?);
    let rules = case.rules;
    let better = if pod.ready_since.is_some() {
        first.uid != pod.uid && compare(first, pod, rules.by_priority) == Ordering::Less
    } else {
        rules.by_priority && first.priority > pod.priority
    };
    (rules.preempt && better).then_some(Word::Goes(EndReason::Preempted))
}

/// The candidates that may be elected, the best first, and why the others may not.
struct Ranking<'a> {
    eligible: Vec<&'a Candidate>,
    ineligible: BTreeMap<Ineligible, usize>,
}

impl<'a> Ranking<'a> {
    fn of(candidates: &'a [Candidate], rules: &CandidatesSettings) -> Ranking<'a> {
        let mut ranking = Ranking { eligible: Vec::new(), ineligible: BTreeMap::new() };
        for candidate in candidates {
            match eligibility(candidate, rules) {
                Ok(()) => ranking.eligible.push(candidate),
                Err(why) => *ranking.ineligible.entry(why).or_default() += 1,
            }
        }
        ranking.eligible.sort_by(|a, b| compare(a, b, rules.by_priority));
        ranking
    }

    fn choose(&self, rules: &CandidatesSettings, reason: EndReason) -> Choice {
        match self.eligible.first() {
            Some(first) => {
                let why = self.why(first, rules);
                let leader = match rules.gate {
                    Some(_) => Leader::of_whole_pod(first, &why),
                    None => Leader::of(first, rules.container.as_deref(), &why),
                };
                Choice::Elect { leader: Arc::new(leader), instead: reason }
            }
            None => Choice::Nobody { reason, message: self.nobody() },
        }
    }

    /// Who would follow.
    fn next(&self, choice: &Choice) -> Option<Arc<str>> {
        let leads = |one: &Candidate| match choice {
            Choice::Keep(leader) | Choice::Elect { leader, .. } => leader.uid == one.uid,
            Choice::Nobody { .. } => false,
        };
        let next = self.eligible.iter().find(|one| !leads(one));
        next.map(|next| Arc::clone(&next.name))
    }

    fn why(&self, first: &Candidate, rules: &CandidatesSettings) -> String {
        let count = self.eligible.len();
        match (rules.by_priority, count) {
            (_, _) if rules.gate.is_some() && !first.gated => {
                "the pod that is past the gate".to_owned()
            }
            (false, 2..) if rules.gate.is_some() => {
                format!("the oldest of {count} pods at the gate")
            }
            (_, 1) => "the only pod that may be elected".to_owned(),
            (false, _) => format!("ready for longest of {count} pods"),
            (true, _) => {
                let priority = first.priority;
                format!("first of {count} pods by priority ({priority}), then by age")
            }
        }
    }

    fn nobody(&self) -> String {
        if self.ineligible.is_empty() {
            return "no pod matches candidates.selector".to_owned();
        }
        let counts = self.ineligible.iter().map(|(why, count)| format!("{count} {why}"));
        let counts = counts.collect::<Vec<_>>().join(", ");
        format!("no pod that matches candidates.selector may be elected: {counts}")
    }
}

fn eligibility(candidate: &Candidate, rules: &CandidatesSettings) -> Result<(), Ineligible> {
    match rules.gate {
        Some(policy) => candidate.eligibility_at_gate(policy),
        None => candidate.eligibility(rules.container.as_deref()),
    }
}

/// Less is better. The name decides in the end, so that every replica decides alike.
fn compare(a: &Candidate, b: &Candidate, by_priority: bool) -> Ordering {
    let by_priority = match by_priority {
        true => b.priority.cmp(&a.priority),
        false => Ordering::Equal,
    };
    // Who works already goes before those that wait for their turn; without a gate nobody waits.
    let waits = a.gated.cmp(&b.gated);
    let readiness = |one: &Candidate| one.ready_since.map_or((true, None), |at| (false, Some(at)));
    let due = |one: &Candidate| one.origin.scheduled();
    waits
        .then(by_priority)
        .then_with(|| due(a).cmp(&due(b)))
        .then_with(|| readiness(a).cmp(&readiness(b)))
        .then_with(|| a.created.cmp(&b.created))
        .then_with(|| a.name.cmp(&b.name))
}

#[cfg(test)]
mod tests {
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
}
