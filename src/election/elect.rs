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
mod tests;
