//! What is known of a claim's pods, and of the Service that they serve: read from memory into plain
//! data.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{ResourceExt, core::SelectorExt};

use super::{
    Caches, Leader,
    cache::ObjectName,
    kinds::{self, Pod},
    ledger::Worn,
    recorded,
};
use crate::{
    api::{self, ConsulLock, ConsulLockStatus, GateSettings, ROUTING_SYNCED, TenureStatus},
    clock::Instant,
    consul::Consul,
    election::{
        self, Backend, Badged, Candidate, HANDOVER_ANNOTATION, Handover, MANAGED_BY,
        MANAGED_BY_LABEL, NoHandover, Origin, Present, Reach, Runs, Unreadable,
    },
    keeper::{ClaimId, KeeperView, LockView, RecordedTenure},
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
                _ => Standing::None,
            },
        }
    }

    pub(super) fn leader(&self) -> Option<&Arc<election::Leader>> {
        match self {
            Standing::Held { leader, .. } | Standing::Adopting { leader } => leader.as_ref(),
            Standing::None => None,
        }
    }
}

/// The tenures that were lost: those of which the keepers say so, the one whose *valid until* has
/// passed before they noticed, and those that the status has kept of earlier controllers.
pub(super) fn lost(
    view: Option<&KeeperView>,
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
    let ended = view.into_iter().flat_map(|view| view.ended.iter());
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
    let standing = Standing::of(view, recorded, now);
    let caches = &leader.caches;
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
    let present = standing.leader().zip(leaders_pod.as_ref()).map(|(elected, (pod, exists))| {
        let exists = *exists;
        let node = pod.as_ref().and_then(|pod| pod.node()).or_else(|| elected.node.clone());
        let reach = reach(caches, node.as_deref());
        let pod = pod.as_ref().map(|pod| seen(pod, selects(pod)));
        let unready = exists && pod.as_ref().is_some_and(|pod| pod.ready_since.is_none());
        let away = !exists || reach == Reach::Unreachable;
        let (unready_since, unreachable_since) =
            leader.ledger.notice(id, &elected.uid, unready, away, now);
        Present {
            leader: Arc::clone(elected),
            pod,
            exists,
            reach,
            unready_since,
            unreachable_since,
            handover: handover.as_ref().and_then(|asked| asked.clone().ok()),
        }
    });
    let (leaders_pod, exists) = leaders_pod.unwrap_or_default();
    Electorate {
        backend: leaders_pod.as_deref().filter(|_| exists).and_then(|pod| backend(pod, &standing)),
        leaders_version: leaders_pod.and_then(|pod| pod.resource_version()),
        badged: badged(caches, name),
        worn: leader.ledger.worn(id),
        relieved: leader.ledger.relieved(id),
        lost: lost(view, claim.status.as_ref(), now),
        known: caches.pods.is_synced() && (!once || caches.jobs.is_synced()),
        candidates: candidates.unwrap_or_default(),
        traffic: traffic(leader, id, claim, settings),
        present,
        handover,
        runs,
        runs_read,
        standing,
    }
}

/// What the claim's annotation asks for, unless it speaks of a tenure that is over.
fn handover(claim: &ConsulLock, standing: &Standing) -> Option<Result<Handover, NoHandover>> {
    let Standing::Held { token, .. } = standing else { return None };
    let asked = claim.annotations().get(HANDOVER_ANNOTATION)?.parse::<Handover>();
    Some(asked)
        .filter(|asked| asked.as_ref().is_ok_and(|asked| asked.token == *token) || asked.is_err())
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
    let Standing::Held { token, .. } = standing else { return None };
    let candidate = pod.candidate(true, Reach::Reachable);
    Some(Backend {
        pod: candidate.name,
        uid: candidate.uid,
        node: candidate.node,
        addresses: pod.addresses(),
        ports: pod.named_ports(),
        ready: candidate.ready_since.is_some(),
        token: *token,
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
