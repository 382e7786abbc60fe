//! What is to become of a claim's pods and of its traffic. Pure.
//!
//! The order of a change of leader is: endpoint away, label away, key moves, label and token on the
//! new pod, its gate opened, endpoint there. A [`Course`] is carried out in the order of its fields,
//! the keepers between `strip` and `dress`; what the present tenure does not cover yet waits for the
//! next walk.

use std::{collections::HashSet, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;

use super::{
    electorate::{Electorate, Standing},
    observe::Seen,
    reasons::Detail,
};
use crate::{
    api::{self, GateSettings},
    clock::Instant,
    election::{
        self, Badged, Candidate, Choice, Election, HandoverRefusal, Leader, Origin, Reach, Refusal,
        Run,
    },
    keeper::{DeadTenure, Stance},
    lock::EndReason,
    names::FencingToken,
};

mod traffic;

use traffic::route;

/// What is to be done about the pods and the traffic.
#[derive(Debug, PartialEq)]
pub(super) struct Course {
    /// Slices to be emptied or removed.
    pub(super) retreat: Vec<Retreat>,
    /// Pods to be relieved of label and token.
    pub(super) strip: Vec<Strip>,
    /// What is wanted of the key; `None`: nothing is decided.
    pub(super) stance: Option<Stance>,
    /// What the present tenure is to record when it ends.
    pub(super) at_end: Option<(FencingToken, Vec<u8>)>,
    /// Jobs to be removed, for their firing has run already.
    pub(super) remove: Vec<Remove>,
    /// A pod to be given label and token.
    pub(super) dress: Option<Dress>,
    /// A pod whose gate is to be opened.
    pub(super) open: Option<Open>,
    /// Slices to be given an endpoint.
    pub(super) advance: Vec<Advance>,
    /// What the status is to tell of it.
    pub(super) told: Told,
    /// The tenure has lasted for `acquire.maxHold`, and its pod knows.
    pub(super) max_hold_is_over: bool,
    /// The tenure of a claim that contends for itself that is to make room for another contender.
    pub(super) give_way: Option<FencingToken>,
    /// When time alone changes something.
    pub(super) again: Option<Instant>,
}

/// A slice that is not to have an endpoint.
#[derive(Debug, PartialEq)]
pub(super) enum Retreat {
    /// Leave it there without one. The slice as it is to be, for one that is not there yet, so that
    /// a creation under way comes to nothing.
    Empty(EndpointSlice),
    /// Remove it.
    Delete(EndpointSlice),
}

/// A pod that is not, or not any more, to carry label and token.
#[derive(Debug, PartialEq)]
pub(super) struct Strip {
    pub(super) pod: Arc<str>,
    pub(super) uid: Arc<str>,
    /// Its tenure was lost, and the claim wants such a pod deleted.
    pub(super) delete: bool,
}

/// The pod that is to carry label and token.
#[derive(Debug, PartialEq)]
pub(super) struct Dress {
    pub(super) pod: Arc<str>,
    pub(super) uid: Arc<str>,
    pub(super) token: FencingToken,
    /// The pod's version of which this was decided.
    pub(super) over: Option<String>,
}

/// A Job whose firing has run already, and its pod that waits at the gate.
#[derive(Debug, PartialEq)]
pub(super) struct Remove {
    pub(super) job: Arc<str>,
    pub(super) uid: Arc<str>,
    pub(super) scheduled: Timestamp,
    /// Where it ran, in words.
    pub(super) place: String,
}

/// The pod that is to start.
#[derive(Debug, PartialEq)]
pub(super) struct Open {
    pub(super) pod: Arc<str>,
    pub(super) uid: Arc<str>,
    /// The pod's version of which this was decided.
    pub(super) over: Option<String>,
}

impl Dress {
    /// What the pod carries then.
    pub(super) fn badged(&self) -> Badged {
        Badged {
            pod: Arc::clone(&self.pod),
            uid: Arc::clone(&self.uid),
            labelled: true,
            token: Some(self.token.to_string()),
            deleting: false,
        }
    }
}

/// A slice that is to have an endpoint: a new one, or one that has the version that it replaces.
#[derive(Debug, PartialEq)]
pub(super) struct Advance {
    pub(super) slice: EndpointSlice,
    /// The same without an endpoint.
    pub(super) blank: EndpointSlice,
}

/// What the status is to tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    /// How the election went, if there was one.
    pub(super) election: Option<Election>,
    /// The candidates of a claim whose pods contend by themselves.
    pub(super) contenders: Option<Contenders>,
    /// What is needed and has not been listed.
    pub(super) unlisted: Option<&'static str>,
    /// Why the tenure is not handed over, though somebody asked for it.
    pub(super) refused: Option<String>,
    /// The record of runs cannot be read, so nothing starts.
    pub(super) unreadable: Option<String>,
    /// How the traffic is routed, if it is to be.
    pub(super) routing: Option<Routing>,
}

/// How the traffic of a claim's Service is routed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Routing {
    /// Services and slices have not been listed.
    Unknown,
    /// The Service may not be routed.
    Refused(Refusal),
    /// To nobody, for this reason.
    Nowhere(&'static str),
    /// To this pod.
    To(Arc<str>),
    /// To this pod, but for something that it lacks.
    Partly { pod: Arc<str>, reason: Detail, lacks: String },
}

/// How many pods match a claim, and how many of them contend for its key, or could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contenders {
    pub(super) matching: usize,
    pub(super) eligible: usize,
}

impl Contenders {
    fn of(candidates: &[Candidate]) -> Contenders {
        let goes_on = |pod: &&Candidate| !pod.deleting && !pod.finished;
        let eligible = candidates.iter().filter(goes_on).count();
        Contenders { matching: candidates.len(), eligible }
    }

    /// Why nobody will take the key, if that is so.
    fn nobody(self) -> Option<&'static str> {
        match (self.matching, self.eligible) {
            (0, _) => Some("no pod matches candidates.selector"),
            (_, 0) => Some("every pod that matches candidates.selector has ended, or is to end"),
            _ => None,
        }
    }
}

impl Told {
    /// Why nobody may be elected, if that is so.
    pub(super) fn nobody(&self) -> Option<&str> {
        if let Some(contenders) = self.contenders {
            return contenders.nobody();
        }
        match self.election.as_ref().map(|election| &election.choice) {
            Some(Choice::Nobody { message, .. }) => Some(message),
            _ => None,
        }
    }
}

/// What a claim may do about its key.
pub(super) enum May<'a> {
    /// Contend, by these settings.
    Contend(&'a api::Settings),
    /// Look on.
    StandBy(&'a api::Settings),
    /// Leave it to its pods.
    Follow(&'a api::Settings),
    /// Nothing: whatever it holds is given up.
    Nothing,
    /// Whether it may contend is not known: everything stays as it is.
    Undecided(&'a api::Settings),
}

/// What is to be done about the pods and the traffic of a claim.
pub(super) fn course(seen: &Seen, may: &May<'_>, cluster: &str, now: Instant) -> Course {
    let pods = &seen.electorate;
    let settings = match may {
        May::Contend(settings)
        | May::StandBy(settings)
        | May::Follow(settings)
        | May::Undecided(settings) => Some(*settings),
        May::Nothing => None,
    };
    let unlisted = unlisted(pods, settings);
    let (stance, election) = stance(pods, may, unlisted.is_none(), now);
    let max_hold = settings.and_then(|settings| settings.acquire.max_hold);
    let holds_until = match &pods.standing {
        Standing::Held { leader: Some(_), began, .. } => max_hold.map(|span| *began + span),
        _ => None,
    };
    let max_hold_is_over = unlisted.is_none() && holds_until.is_some_and(|end| now >= end);
    let wearer = wearer(pods, stance.as_ref(), matches!(may, May::Undecided(_)));
    let wearer = wearer.filter(|_| !max_hold_is_over);
    let delete_lost = settings.is_some_and(|settings| settings.delete_lost);
    // It lost a tenure and got another before we saw it.
    let is_doomed =
        |uid: &str| delete_lost && pods.badges().any(|one| *one.uid == *uid && pods.has_lost(one));
    let wearer = wearer.filter(|wearer| !is_doomed(&wearer.uid));
    let traffic = route(seen, settings, wearer);
    let (give_way, refused) = match may {
        May::Contend(settings) => handover(pods, settings, election.as_ref()),
        _ => (None, None),
    };
    let again = election.as_ref().and_then(|election| election.again);
    Course {
        retreat: traffic.retreat,
        strip: strip(pods, wearer, delete_lost),
        at_end: at_end(seen, cluster),
        remove: remove(pods, cluster),
        dress: dress(pods, wearer),
        open: open(pods, wearer, settings),
        advance: traffic.advance,
        told: Told {
            unreadable: match &pods.runs_read {
                Some(Err(unreadable)) => Some(unreadable.to_string()),
                _ => None,
            },
            contenders: (unlisted.is_none() && matches!(may, May::Follow(_)))
                .then(|| Contenders::of(&pods.candidates)),
            unlisted,
            election,
            refused,
            routing: traffic.told,
        },
        stance,
        max_hold_is_over,
        give_way,
        again: [again, holds_until.filter(|end| now < *end)].into_iter().flatten().min(),
    }
}

fn stance(
    pods: &Electorate,
    may: &May<'_>,
    all_is_listed: bool,
    now: Instant,
) -> (Option<Stance>, Option<Election>) {
    let settings = match may {
        May::Contend(settings) | May::StandBy(settings) | May::Follow(settings) => settings,
        May::Nothing | May::Undecided(_) => return (None, None),
    };
    let follows = matches!(may, May::Follow(_));
    if !all_is_listed {
        // Whoever held the key goes on until we know better: what it has is to be taken away first.
        let stance = match &pods.standing {
            Standing::Held { leader, .. } | Standing::Adopting { leader } => {
                Some(Stance::Contend { leader: leader.clone(), instead: EndReason::NoCandidate })
            }
            Standing::Followed(_) | Standing::Beginning { .. } | Standing::None => {
                follows.then_some(Stance::Follow { release: None })
            }
        };
        return (stance, None);
    }
    if follows {
        return (Some(Stance::Follow { release: dead(pods) }), None);
    }
    if matches!(may, May::StandBy(_)) {
        return (Some(Stance::StandBy(EndReason::Paused)), None);
    }
    let Some(candidates) = &settings.candidates else {
        return (Some(Stance::FOR_ITSELF), None);
    };
    let keep = |leader: &Arc<Leader>, instead| {
        let leader = Some(Arc::clone(leader));
        Some(Stance::Contend { leader, instead })
    };
    let election = election::elect(&pods.candidates, pods.present.as_ref(), candidates, now);
    let stance = match &election.choice {
        // That it has succeeded can be recorded only once the record was read.
        _ if succeeded(pods).is_some() && pods.runs_read != Some(Ok(())) => {
            pods.standing.leader().and_then(|leader| keep(leader, EndReason::PodFinished))
        }
        Choice::Keep(leader) => keep(leader, EndReason::NoCandidate),
        Choice::Elect { leader, instead } => keep(leader, *instead),
        Choice::Nobody { reason, .. } => Some(Stance::StandBy(*reason)),
    };
    (stance, Some(election))
}

/// Whether the tenure of a claim without candidates is to make room, if somebody asked for it; why a
/// tenure is not handed over.
fn handover(
    pods: &Electorate,
    settings: &api::Settings,
    election: Option<&Election>,
) -> (Option<FencingToken>, Option<String>) {
    let asked = match &pods.handover {
        None => return (None, None),
        Some(Err(malformed)) => return (None, Some(malformed.to_string())),
        Some(Ok(asked)) => asked,
    };
    let refused = match (&settings.candidates, &asked.to) {
        (Some(_), _) => election.and_then(|election| election.refused.clone()),
        (None, Some(_)) => Some(HandoverRefusal::ElectsNobody),
        (None, None) => None,
    };
    let for_itself = settings.candidates.is_none() && pods.standing.leader().is_none();
    let give_way = (for_itself && asked.to.is_none()).then_some(asked.token);
    (give_way, refused.map(|refusal| refusal.to_string()))
}

/// The tenure that a pod holds itself and cannot end any more: there is proof of its death.
fn dead(pods: &Electorate) -> Option<DeadTenure> {
    let (Standing::Followed(followed), Some(present)) = (&pods.standing, &pods.present) else {
        return None;
    };
    election::proof_of_death(present)?;
    let finished = present.pod.as_ref().is_some_and(|pod| pod.finished);
    let out_of_service = present.reach == Reach::OutOfService;
    Some(DeadTenure {
        session: followed.session.clone()?,
        index: followed.index?,
        // An agent that outlived its pod's containers goes on with its session.
        end_session: !present.exists || finished || out_of_service,
    })
}

/// What has not been listed, and has to be before anybody is elected or relieved. That a leader is
/// not known to carry or to receive anything says nothing before then.
fn unlisted(pods: &Electorate, settings: Option<&api::Settings>) -> Option<&'static str> {
    let elects = settings.is_some_and(|settings| settings.candidates.is_some());
    let has_leader = pods.standing.leader().is_some();
    if !pods.known && (elects || has_leader) {
        Some("the pods")
    } else if !pods.traffic.known && pods.traffic.concerned {
        Some("the Services or EndpointSlices")
    } else {
        None
    }
}

/// Who may carry label and token: the leader of the present tenure, if it is to go on.
fn wearer<'a>(
    pods: &'a Electorate,
    stance: Option<&Stance>,
    undecided: bool,
) -> Option<&'a Arc<Leader>> {
    let begins = matches!(pods.standing, Standing::Beginning { .. });
    let leader = pods.standing.leader().filter(|_| !begins)?;
    // A pod that holds the key itself, as it was recorded, or as it is seen with its token.
    let has_told = match &pods.standing {
        Standing::Followed(followed) => followed.index.is_none() || followed.token.is_some(),
        _ => false,
    };
    match stance {
        Some(Stance::Follow { release: None }) if has_told => Some(leader),
        Some(Stance::Contend { leader: Some(wanted), .. }) if wanted == leader => Some(leader),
        None if undecided => Some(leader),
        _ => None,
    }
}

fn strip(pods: &Electorate, wearer: Option<&Arc<Leader>>, delete_lost: bool) -> Vec<Strip> {
    let mut strip: Vec<Strip> = Vec::new();
    for badged in pods.badges().filter(|one| wearer.is_none_or(|wearer| one.uid != wearer.uid)) {
        let delete = delete_lost && !badged.deleting && pods.has_lost(badged);
        match strip.iter_mut().find(|known| known.uid == badged.uid) {
            Some(known) => known.delete |= delete,
            None => strip.push(Strip {
                pod: Arc::clone(&badged.pod),
                uid: Arc::clone(&badged.uid),
                delete,
            }),
        }
    }
    let fares = [&pods.present, &pods.former].into_iter().flatten();
    let exists =
        |leader: &Leader| fares.clone().any(|one| one.exists && one.leader.uid == leader.uid);
    let is_relieved = |leader: &Leader| pods.relieved.as_ref() == Some(&leader.uid);
    let outgoing = outgoing(pods, wearer).filter(|leader| exists(leader) && !is_relieved(leader));
    if let Some(leader) = outgoing.filter(|leader| strip.iter().all(|one| one.uid != leader.uid)) {
        let (pod, uid) = (Arc::clone(&leader.pod), Arc::clone(&leader.uid));
        strip.push(Strip { pod, uid, delete: false });
    }
    strip
}

/// The leader whose tenure is about to end, or has ended by itself. What an earlier term of ours sent
/// for it may be under way, so before the key moves, or another gets anything, its pod and its slices
/// get another version, whatever they look like.
fn outgoing<'a>(pods: &'a Electorate, wearer: Option<&Arc<Leader>>) -> Option<&'a Arc<Leader>> {
    // A pod that has not told its token was not given anything yet.
    let has_begun = match &pods.standing {
        Standing::Followed(followed) => followed.token.is_some(),
        Standing::Beginning { .. } => false,
        _ => true,
    };
    let ends = wearer.is_none() && has_begun;
    let former = pods.former.as_ref().map(|former| &former.leader);
    pods.standing.leader().filter(|_| ends).or(former)
}

fn dress(pods: &Electorate, wearer: Option<&Arc<Leader>>) -> Option<Dress> {
    let (wearer, token) = (wearer?, pods.standing.token()?);
    let exists = pods.present.as_ref().is_some_and(|present| present.exists);
    let shows = |badged: &Badged| badged.shows(&wearer.uid, token);
    // What we have written, the cache may not know yet.
    let written = pods.worn.iter().any(|worn| {
        worn.over.is_some() && worn.over == pods.leaders_version && shows(&worn.badged)
    });
    let wears = written || pods.badged.iter().any(shows);
    (exists && !wears).then(|| Dress {
        pod: Arc::clone(&wearer.pod),
        uid: Arc::clone(&wearer.uid),
        token,
        over: pods.leaders_version.clone(),
    })
}

/// The run of the present leader, if it succeeded and a CronJob had made it for some time.
fn succeeded(pods: &Electorate) -> Option<(&Candidate, &Arc<str>, Timestamp)> {
    let pod = pods.present.as_ref()?.pod.as_ref().filter(|pod| pod.succeeded)?;
    match &pod.origin {
        Origin::Job { name, scheduled: Some(scheduled), .. } => Some((pod, name, *scheduled)),
        _ => None,
    }
}

fn at_end(seen: &Seen, cluster: &str) -> Option<(FencingToken, Vec<u8>)> {
    let pods = &seen.electorate;
    let (Standing::Held { token, .. }, Some(Ok(()))) = (&pods.standing, &pods.runs_read) else {
        return None;
    };
    let (pod, job, scheduled) = succeeded(pods)?;
    let run = Run {
        scheduled,
        cluster: cluster.to_owned(),
        namespace: seen.object.namespace().unwrap_or_default(),
        job: job.to_string(),
        pod: pod.name.to_string(),
        token: Run::token(*token),
    };
    Some((*token, pods.runs.with(run).write()))
}

/// The Jobs whose pods wait for what has been done; but for those that did it.
fn remove(pods: &Electorate, cluster: &str) -> Vec<Remove> {
    let waiting = pods.candidates.iter().filter(|pod| pod.gated && !pod.deleting);
    let remove = waiting.filter_map(|pod| {
        let Origin::Job { name, uid, scheduled: Some(scheduled) } = &pod.origin else {
            return None;
        };
        let run = pods.runs.find(*scheduled)?;
        let is_itself = run.is_some_and(|run| run.job == **name && run.cluster == cluster);
        (!is_itself).then(|| Remove {
            job: Arc::clone(name),
            uid: Arc::clone(uid),
            scheduled: *scheduled,
            place: run.map_or_else(|| "a pod long ago".to_owned(), Run::place),
        })
    });
    // A Job may have several pods.
    let mut met = HashSet::new();
    remove.filter(|remove| met.insert(Arc::clone(&remove.uid))).collect()
}

fn open(
    pods: &Electorate,
    wearer: Option<&Arc<Leader>>,
    settings: Option<&api::Settings>,
) -> Option<Open> {
    let (wearer, Standing::Held { .. }) = (wearer?, &pods.standing) else { return None };
    let present = pods.present.as_ref().filter(|present| present.exists)?;
    let waits = present.pod.as_ref().is_some_and(|pod| pod.gated && !pod.deleting);
    let gate = settings?.candidates.as_ref()?.gate?;
    // What has run is known to the present tenure alone.
    let may_run = match gate {
        GateSettings::EachInTurn => true,
        GateSettings::OncePerSchedule => pods.runs_read == Some(Ok(())),
    };
    (waits && may_run).then(|| Open {
        pod: Arc::clone(&wearer.pod),
        uid: Arc::clone(&wearer.uid),
        over: pods.leaders_version.clone(),
    })
}

#[cfg(test)]
mod tests;
