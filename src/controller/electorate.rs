//! What is known of a claim's pods, and of the Service that they serve: read from memory into plain
//! data.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{ResourceExt, core::SelectorExt};

use super::{
    Caches, Leader,
    cache::ObjectName,
    follow::{self, Holding, Said},
    kinds::{self, Pod},
    ledger::Worn,
    recorded::{self, Followed},
};
use crate::{
    api::{
        self, ConsulLock, ConsulLockStatus, GateSettings, ModeSettings, ROUTING_SYNCED,
        TenureStatus,
    },
    clock::Instant,
    consul::{Consul, KvPair},
    election::{
        self, Backend, Badged, Candidate, HANDOVER_ANNOTATION, Handover, MANAGED_BY,
        MANAGED_BY_LABEL, NoHandover, Origin, Present, Reach, Runs, Unreadable,
    },
    keeper::{ClaimId, EndedTenure, KeeperView, LockView, RecordedTenure},
    lock::EndReason,
    names::FencingToken,
};

/// The pods of a claim.
pub(super) struct Electorate {
    /// How the claim stands with its key, as far as its pods are concerned.
    pub(super) standing: Standing,
    /// Whether pods and nodes have been listed.
    pub(super) known: bool,
    /// The pods that match the selector.
    pub(super) candidates: Vec<Candidate>,
    /// The leader of the present tenure, and how it fares.
    pub(super) present: Option<Present>,
    /// What somebody asked for, of the present tenure.
    pub(super) handover: Option<Result<Handover, NoHandover>>,
    /// Who holds a key that the pods hold themselves; `None`: it is not so, or was not seen yet.
    pub(super) holding: Option<Holding>,
    /// The leader that the status speaks of, if the key has passed to another by itself.
    pub(super) former: Option<Present>,
    /// The tenure of that leader, as it ended.
    pub(super) ended: Option<EndedTenure>,
    /// Where the leader listens, while its pod exists.
    pub(super) backend: Option<Backend>,
    /// What has run, as far as this leader knows, of a claim with `OncePerSchedule`.
    pub(super) runs: Runs,
    /// Whether the present tenure has read that; what is wrong with it.
    pub(super) runs_read: Option<Result<(), Unreadable>>,
    /// The version of the leader's pod.
    pub(super) leaders_version: Option<String>,
    /// The pods that carry the claim's label or token.
    pub(super) badged: Vec<Badged>,
    /// Pods that may carry them, whatever `badged` says.
    pub(super) worn: Vec<Worn>,
    /// The UID of the pod that this term of leadership has relieved of them last.
    pub(super) relieved: Option<Arc<str>>,
    /// The tenures that were lost, rather than given up in order, as far as they are remembered.
    pub(super) lost: Vec<LostTenure>,
    pub(super) traffic: Traffic,
}

/// A tenure of a pod that was lost, rather than given up in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LostTenure {
    pub(super) pod: Arc<str>,
    pub(super) token: String,
}

impl Electorate {
    /// Everything that pods carry of the claim's badge, or may carry.
    pub(super) fn badges(&self) -> impl Iterator<Item = &Badged> {
        self.badged.iter().chain(self.worn.iter().map(|worn| &worn.badged))
    }

    /// Whether a pod carries the token of a tenure that it lost.
    pub(super) fn has_lost(&self, badged: &Badged) -> bool {
        let of = |lost: &LostTenure| {
            lost.pod == badged.pod && badged.token.as_ref() == Some(&lost.token)
        };
        self.lost.iter().any(of)
    }
}

/// The Service of a claim and its slices.
#[derive(Default)]
pub(super) struct Traffic {
    /// Whether the claim has, or had when last told of, traffic that is routed.
    pub(super) concerned: bool,
    /// Whether Services and slices have been listed.
    pub(super) known: bool,
    pub(super) service: Option<Arc<Service>>,
    /// Slices of somebody else that serve the Service.
    pub(super) others: Vec<String>,
    pub(super) own: Vec<Arc<EndpointSlice>>,
    /// Slices of ours that may have an endpoint, whatever `own` says; as they would be without.
    pub(super) filled: Vec<EndpointSlice>,
    /// Slices that this term of leadership has emptied at least once.
    pub(super) emptied: BTreeSet<String>,
}

/// How a claim stands with its key, as far as its pods are concerned.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Standing {
    /// A tenure that may be relied on.
    Held {
        leader: Option<Arc<election::Leader>>,
        token: FencingToken,
        began: Instant,
        record: Option<Arc<[u8]>>,
    },
    /// An earlier controller recorded a tenure for this leader; it is being adopted.
    Adopting { leader: Option<Arc<election::Leader>> },
    /// A tenure for this leader is being begun in place of another. It has nothing of it yet.
    Beginning { leader: Option<Arc<election::Leader>> },
    /// The pods hold the key themselves, and this one does.
    Followed(Followed),
    /// There is none.
    None,
}

impl Standing {
    pub(super) fn of(
        view: Option<&KeeperView>,
        recorded: Option<RecordedTenure>,
        now: Instant,
    ) -> Standing {
        let adopting = match view {
            None => true,
            Some(view) => view.lock == LockView::Starting,
        };
        match (view, recorded) {
            (_, Some(recorded)) if adopting => Standing::Adopting { leader: recorded.leader },
            (None, _) => Standing::None,
            (Some(view), _) => match (&view.lock, view.token(now)) {
                (LockView::Held { leader, began, record, .. }, Some(token)) => Standing::Held {
                    leader: leader.clone(),
                    token,
                    began: *began,
                    record: record.clone(),
                },
                (LockView::HandingOver { leader, .. }, _) => {
                    Standing::Beginning { leader: leader.clone() }
                }
                _ => Standing::None,
            },
        }
    }

    pub(super) fn leader(&self) -> Option<&Arc<election::Leader>> {
        match self {
            Standing::Held { leader, .. }
            | Standing::Adopting { leader }
            | Standing::Beginning { leader } => leader.as_ref(),
            Standing::Followed(followed) => Some(&followed.leader),
            Standing::None => None,
        }
    }

    /// The token of the present tenure, if there is one that may be shown.
    pub(super) fn token(&self) -> Option<FencingToken> {
        match self {
            Standing::Held { token, .. } => Some(*token),
            // What is merely recorded was not seen yet.
            Standing::Followed(followed) => followed.index.and(followed.token),
            Standing::Adopting { .. } | Standing::Beginning { .. } | Standing::None => None,
        }
    }
}

/// The tenures that were lost: those of which the keepers say so, the one whose *valid until* has
/// passed before they noticed, and those that the status has kept of earlier controllers.
pub(super) fn lost(
    view: Option<&KeeperView>,
    followed: Option<&EndedTenure>,
    status: Option<&ConsulLockStatus>,
    now: Instant,
) -> Vec<LostTenure> {
    let lost = |pod: &Arc<str>, token: FencingToken| LostTenure {
        pod: Arc::clone(pod),
        token: token.to_string(),
    };
    let expired = view.and_then(|view| match &view.lock {
        LockView::Held { leader: Some(leader), token, .. } if view.token(now).is_none() => {
            Some(lost(&leader.pod, *token))
        }
        _ => None,
    });
    let ended = view.into_iter().flat_map(|view| view.ended.iter()).chain(followed);
    let ended = ended.filter(|ended| !ended.reason.is_clean());
    let ended = ended.filter_map(|ended| Some(lost(ended.pod.as_ref()?, ended.token)));
    let history = status.into_iter().flat_map(|status| &status.history);
    let unclean = |past: &&TenureStatus| {
        EndReason::named(&past.reason).is_some_and(|reason| !reason.is_clean())
    };
    let history = history.filter(unclean).map(|past| LostTenure {
        pod: past.holder.rsplit('/').next().unwrap_or_default().into(),
        token: past.token.clone(),
    });
    expired.into_iter().chain(ended).chain(history).collect()
}

/// The pods that carry the badge of a claim of this name.
pub(super) fn badged(caches: &Caches, name: &ObjectName) -> Vec<Badged> {
    let pods = caches.pods.by(&kinds::badge_of(&name.namespace, &name.name));
    pods.iter().map(|pod| pod.badge(&name.name)).collect()
}

/// Collects what is known. Reads memory only.
pub(super) fn electorate<C: Consul>(
    leader: &Leader<C>,
    (id, name): (&ClaimId, &ObjectName),
    claim: &ConsulLock,
    settings: Option<&api::Settings>,
    view: Option<&KeeperView>,
    now: Instant,
) -> Electorate {
    let recorded = recorded::of(claim, &leader.config).and_then(|known| known.tenure);
    let caches = &leader.caches;
    let agents = settings.filter(|settings| settings.mode == ModeSettings::Agent);
    let (standing, following) = match (Standing::of(view, recorded, now), agents) {
        (Standing::None, Some(settings)) => follow(leader, (id, name), claim, settings, view, now),
        (standing, _) => (standing, None),
    };
    let wanted = settings.and_then(|settings| settings.candidates.as_ref());
    let once = wanted.is_some_and(|wanted| wanted.gate == Some(GateSettings::OncePerSchedule));
    let (runs, runs_read) = match once {
        true => runs(leader, id, &standing),
        false => (Runs::default(), None),
    };
    let seen = |pod: &Pod, matches| {
        let mut candidate = pod.candidate(matches, reach(caches, pod.node().as_deref()));
        if once {
            candidate.origin = origin(caches, pod);
            let due = candidate.origin.scheduled();
            candidate.already_ran = due.is_some_and(|due| runs.find(due).is_some());
        }
        candidate
    };
    let candidates = wanted.map(|wanted| {
        let pods = caches.pods.by(&kinds::candidates_of(&name.namespace, wanted.label.as_ref()));
        let matching = pods.iter().filter(|pod| wanted.selector.matches(pod.labels()));
        matching.map(|pod| seen(pod, true)).collect()
    });
    let selects = |pod: &Pod| wanted.is_some_and(|wanted| wanted.selector.matches(pod.labels()));
    let handover = handover(claim, &standing);
    let leaders_pod = standing.leader().map(|elected| find(caches, &elected.uid));
    let fares = |elected: &Arc<election::Leader>, (pod, exists): &(Option<Arc<Pod>>, bool)| {
        let node = pod.as_ref().and_then(|pod| pod.node()).or_else(|| elected.node.clone());
        let pod = pod.as_ref().map(|pod| seen(pod, selects(pod)));
        let (leader, reach) = (Arc::clone(elected), reach(caches, node.as_deref()));
        let (unready_since, unreachable_since, handover) = (None, None, None);
        Present { leader, pod, exists: *exists, reach, unready_since, unreachable_since, handover }
    };
    let present = standing.leader().zip(leaders_pod.as_ref()).map(|(elected, found)| {
        let present = fares(elected, found);
        let is_unready = |pod: &Candidate| pod.ready_since.is_none();
        let unready = present.exists && present.pod.as_ref().is_some_and(is_unready);
        let away = !present.exists || present.reach == Reach::Unreachable;
        let (unready_since, unreachable_since) =
            leader.ledger.notice(id, &elected.uid, unready, away, now);
        let handover = handover.as_ref().and_then(|asked| asked.clone().ok());
        Present { unready_since, unreachable_since, handover, ..present }
    });
    let gone = following.as_ref().and_then(|following| following.gone(&standing, claim));
    let former = gone.as_ref().map(|gone| fares(&gone.leader, &find(caches, &gone.leader.uid)));
    let ended =
        gone.zip(following.as_ref().zip(agents)).and_then(|(gone, (following, settings))| {
            let died = former.as_ref().and_then(election::proof_of_death);
            let said = following.said.as_ref();
            let pair = following.pair.as_deref();
            let reason = follow::end(&gone, pair, said, died, settings);
            let (pod, to) = (Some(Arc::clone(&gone.leader.pod)), leader.clock.wall());
            Some(EndedTenure { token: gone.token?, pod, from: gone.since, to, reason })
        });
    let former = former
        .filter(|former| standing.leader().is_none_or(|elected| elected.uid != former.leader.uid));
    let (leaders_pod, exists) = leaders_pod.unwrap_or_default();
    Electorate {
        backend: leaders_pod.as_deref().filter(|_| exists).and_then(|pod| backend(pod, &standing)),
        leaders_version: leaders_pod.and_then(|pod| pod.resource_version()),
        badged: badged(caches, name),
        worn: leader.ledger.worn(id),
        relieved: leader.ledger.relieved(id),
        lost: lost(view, ended.as_ref(), claim.status.as_ref(), now),
        known: caches.pods.is_synced() && (!once || caches.jobs.is_synced()),
        candidates: candidates.unwrap_or_default(),
        traffic: traffic(leader, id, claim, settings),
        present,
        handover,
        runs,
        runs_read,
        standing,
        holding: following.map(|following| following.holding),
        former,
        ended,
    }
}

/// What the claim's annotation asks for, unless it speaks of a tenure that is over.
fn handover(claim: &ConsulLock, standing: &Standing) -> Option<Result<Handover, NoHandover>> {
    let Standing::Held { token, .. } = standing else { return None };
    let asked = claim.annotations().get(HANDOVER_ANNOTATION)?.parse::<Handover>();
    Some(asked)
        .filter(|asked| asked.as_ref().is_ok_and(|asked| asked.token == *token) || asked.is_err())
}

/// What is seen of a key that the pods hold themselves.
struct Following {
    pair: Option<Arc<KvPair>>,
    /// What its holder says, if it says that it is a pod of this claim.
    said: Option<Said>,
    holding: Holding,
}

impl Following {
    /// The tenure that the status speaks of, if it is not the present one.
    fn gone(&self, standing: &Standing, claim: &ConsulLock) -> Option<Followed> {
        let recorded = recorded::followed(claim)?;
        let goes_on = match standing {
            Standing::Followed(now) => now.token == recorded.token,
            _ => false,
        };
        (!goes_on).then_some(recorded)
    }
}

/// Who holds a key that the pods hold themselves: until it was seen, whom an earlier controller
/// recorded.
fn follow<C: Consul>(
    leader: &Leader<C>,
    (id, name): (&ClaimId, &ObjectName),
    claim: &ConsulLock,
    settings: &api::Settings,
    view: Option<&KeeperView>,
    now: Instant,
) -> (Standing, Option<Following>) {
    let pair = match view.map(|view| &view.lock) {
        Some(LockView::Following { pair }) => pair.clone(),
        None | Some(LockView::Starting) => {
            let recorded = recorded::followed(claim);
            return (recorded.map_or(Standing::None, Standing::Followed), None);
        }
        // What we held ourselves is being given up.
        Some(_) => return (Standing::None, None),
    };
    let held = pair.as_ref().filter(|pair| pair.session.is_some());
    let key = view.and_then(|view| view.key.as_ref());
    let said = held.and_then(|pair| follow::said(pair, key, claim, &leader.config.cluster));
    let followed = said.as_ref().and_then(|said| {
        let followed = holds(leader, (id, name), claim, settings, said, now)?;
        leader.ledger.follows(id, &followed);
        Some(followed)
    });
    let holding = match (held, &followed) {
        (_, Some(followed)) => Holding::Pod(followed.clone()),
        (Some(_), None) => Holding::Others,
        (None, None) => Holding::Nobody,
    };
    let standing = followed.map_or(Standing::None, Standing::Followed);
    (standing, Some(Following { pair, said, holding }))
}

/// The tenure of whoever says that it is a pod of this claim, if that is so.
fn holds<C: Consul>(
    leader: &Leader<C>,
    (id, name): (&ClaimId, &ObjectName),
    claim: &ConsulLock,
    settings: &api::Settings,
    said: &Said,
    now: Instant,
) -> Option<Followed> {
    let candidates = settings.candidates.as_ref()?;
    let (pod, exists) = find(&leader.caches, &said.uid);
    let ours = |pod: &Pod| {
        pod.namespace().as_deref() == Some(&*name.namespace)
            && candidates.selector.matches(pod.labels())
    };
    if pod.as_ref().is_some_and(|pod| !ours(pod)) {
        return None;
    }
    let noticed = leader.ledger.followed(id).filter(|known| said.is(known));
    let known = noticed.or_else(|| recorded::followed(claim).filter(|known| said.is(known)));
    let followed = match known {
        Some(known) => known,
        None => {
            let pod = pod.filter(|_| exists)?;
            let candidate = pod.candidate(true, Reach::Reachable);
            let elected = election::Leader::of(&candidate, candidates.container.as_deref(), "");
            Followed {
                leader: Arc::new(elected),
                session: Some(said.session.clone()),
                index: None,
                token: None,
                since: said.began(leader.clock.wall()),
                since_said: None,
                noticed: Some(now),
            }
        }
    };
    Some(Followed {
        index: Some(said.index),
        token: said.token.or(followed.token),
        since_said: Some(Arc::clone(&said.since)),
        ..followed
    })
}

/// What has run: what the present tenure read, or an earlier one.
fn runs<C: Consul>(
    leader: &Leader<C>,
    id: &ClaimId,
    standing: &Standing,
) -> (Runs, Option<Result<(), Unreadable>>) {
    let Standing::Held { record: Some(record), .. } = standing else {
        return (leader.ledger.runs(id), None);
    };
    match Runs::read(record) {
        Ok(runs) => {
            leader.ledger.learns(id, &runs);
            (runs, Some(Ok(())))
        }
        Err(unreadable) => (leader.ledger.runs(id), Some(Err(unreadable))),
    }
}

fn origin(caches: &Caches, pod: &Pod) -> Origin {
    match pod.job() {
        None => Origin::Other,
        Some(job) => {
            let job = caches.jobs.by(&kinds::uid(job)).pop();
            job.map_or(Origin::UnknownJob, |job| job.origin())
        }
    }
}

/// A pod by its UID, as it is or was last seen; whether it still exists.
fn find(caches: &Caches, uid: &str) -> (Option<Arc<Pod>>, bool) {
    match caches.pods.by(&kinds::uid(uid)).pop() {
        Some(pod) => (Some(pod), true),
        None => (caches.pods.last_of(uid), false),
    }
}

/// Nodes that nobody may list are taken to be there.
fn reach(caches: &Caches, node: Option<&str>) -> Reach {
    let Some(node) = node else { return Reach::Reachable };
    match caches.nodes.get(&ObjectName::new("", node)) {
        Some(node) => node.reach(),
        None if caches.nodes.is_synced() => Reach::Unreachable,
        None => Reach::Reachable,
    }
}

fn backend(pod: &Pod, standing: &Standing) -> Option<Backend> {
    let token = standing.token()?;
    let candidate = pod.candidate(true, Reach::Reachable);
    Some(Backend {
        pod: candidate.name,
        uid: candidate.uid,
        node: candidate.node,
        addresses: pod.addresses(),
        ports: pod.named_ports(),
        ready: candidate.ready_since.is_some(),
        token,
    })
}

fn traffic<C: Consul>(
    leader: &Leader<C>,
    id: &ClaimId,
    claim: &ConsulLock,
    settings: Option<&api::Settings>,
) -> Traffic {
    let (caches, ledger) = (&leader.caches, &leader.ledger);
    let (uid, namespace) = (claim.uid().unwrap_or_default(), claim.namespace().unwrap_or_default());
    let managed = |slice: &EndpointSlice| {
        slice.labels().get(MANAGED_BY_LABEL).is_some_and(|by| by == MANAGED_BY)
    };
    let mut own = caches.slices.by(&kinds::owned_by(&uid));
    own.retain(|slice| managed(slice));
    let service = settings.and_then(|settings| settings.service.as_deref());
    let (service, others) = match service {
        None => (None, Vec::new()),
        Some(service) => {
            let mine = own.iter().map(|slice| age(slice)).min();
            let mut others = caches.slices.by(&kinds::of_service(&namespace, service));
            others.retain(|slice| !own.iter().any(|own| own.name_any() == slice.name_any()));
            // Two claims of one Service: the one that came first keeps it.
            others.retain(|slice| {
                !managed(slice) || mine.as_ref().is_none_or(|mine| age(slice) < *mine)
            });
            others.sort_by_key(|slice| age(slice));
            let others = others.iter().map(|slice| slice.name_any()).collect();
            (caches.services.get(&ObjectName::new(&namespace, service)), others)
        }
    };
    let known = caches.services.is_synced() && caches.slices.is_synced();
    let told = claim.status.iter().flat_map(|status| &status.conditions);
    let concerned = settings.is_some_and(|settings| settings.service.is_some())
        || told.into_iter().any(|condition| condition.type_ == ROUTING_SYNCED);
    let (filled, emptied) = (ledger.filled(id), ledger.emptied(id));
    Traffic { concerned, known, service, others, own, filled, emptied }
}

fn age(slice: &EndpointSlice) -> (Option<jiff::Timestamp>, String) {
    (slice.creation_timestamp().map(|time| time.0), slice.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::sample::{at, claim};

    #[test]
    fn only_the_tenure_that_is_named_is_asked_to_go() {
        let asked = |text: &str, standing: &Standing| {
            let mut claim = claim("{}");
            claim.annotations_mut().insert(HANDOVER_ANNOTATION.to_owned(), text.to_owned());
            handover(&claim, standing)
        };
        let token = FencingToken::new(41);
        let held = Standing::Held { leader: None, token, began: at(5), record: None };
        let meant = Handover { token, to: Some("b".into()) };
        assert_eq!(asked("41 b", &held), Some(Ok(meant)));
        for over in ["40", "40 b", "42"] {
            assert_eq!(asked(over, &held), None, "{over}");
        }
        assert!(asked("b", &held).is_some_and(|asked| asked.is_err()));
        for none in [Standing::None, Standing::Adopting { leader: None }] {
            assert_eq!(asked("41 b", &none), None);
        }
        assert_eq!(handover(&claim("{}"), &held), None);
    }
}
