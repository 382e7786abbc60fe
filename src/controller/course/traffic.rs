//! What is to become of a claim's slices: taken away before the key moves, given when it has. Pure.

use std::sync::Arc;

use k8s_openapi::{
    api::discovery::v1::EndpointSlice, apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Resource, ResourceExt};

use super::{Advance, Retreat, Routing, outgoing};
use crate::{
    api::{self, ConsulLock},
    controller::{observe::Seen, reasons::Detail},
    election::{self, Leader, Present, SLICE_TOKEN_ANNOTATION, Slices},
};

/// The part of a course that is about the traffic.
#[derive(Default)]
pub(super) struct Route {
    pub(super) retreat: Vec<Retreat>,
    pub(super) advance: Vec<Advance>,
    pub(super) told: Option<Routing>,
}

pub(super) fn route(
    seen: &Seen,
    settings: Option<&api::Settings>,
    wearer: Option<&Arc<Leader>>,
) -> Route {
    let (pods, traffic) = (&seen.electorate, &seen.electorate.traffic);
    let remove_all = |told| {
        let own = traffic.own.iter();
        let mut retreat: Vec<_> = own.map(|slice| Retreat::Delete((**slice).clone())).collect();
        let unseen = traffic.filled.iter().filter(|filled| {
            !traffic.own.iter().any(|own| own.metadata.name == filled.metadata.name)
        });
        retreat.extend(unseen.cloned().map(Retreat::Empty));
        Route { retreat, advance: Vec::new(), told }
    };
    let routes = settings.is_some_and(|settings| settings.service.is_some());
    if !routes && (traffic.known || !traffic.concerned) {
        return remove_all(None);
    }
    let leaving =
        |present: &Present| !present.exists || present.pod.as_ref().is_none_or(|pod| pod.deleting);
    // A pod that cannot be seen is not one that goes.
    let leaving = pods.known && pods.present.as_ref().is_none_or(leaving);
    // While a tenure is being adopted, whoever has the endpoint keeps it.
    let target = wearer.filter(|_| !leaving && routes);
    if !traffic.known {
        let retreat = empty(seen, wearer, target);
        return Route { retreat, advance: Vec::new(), told: Some(Routing::Unknown) };
    }
    let service = traffic.service.as_deref();
    if let Err(refusal) = election::may_route(service, &traffic.others) {
        return remove_all(Some(Routing::Refused(refusal)));
    }
    let Some(service) = service else { return Route::default() };
    let owner = owner(&seen.object);
    let backend = pods.backend.as_ref().filter(|_| target.is_some());
    let made = election::slices(service, &owner, backend);
    let blank = election::slices(service, &owner, None);
    let unwanted = traffic
        .own
        .iter()
        .filter(|own| !made.slices.iter().any(|slice| slice.metadata.name == own.metadata.name));
    let mut retreat = empty(seen, wearer, target);
    retreat.extend(unwanted.map(|slice| Retreat::Delete((**slice).clone())));
    let told = match (target, wearer) {
        (Some(target), _) => told(&made, &target.pod),
        (None, Some(_)) => Routing::Nowhere("the elected pod is going"),
        (None, None) => Routing::Nowhere("no pod holds the key"),
    };
    let differing = made.slices.into_iter().zip(blank.slices).filter_map(|(slice, blank)| {
        let own = traffic.own.iter().find(|own| own.metadata.name == slice.metadata.name);
        let is_due = backend.is_some() && own.is_none_or(|own| !is_alike(own, &slice));
        is_due.then(|| {
            let version = own.and_then(|own| own.metadata.resource_version.clone());
            let mut slice = slice;
            slice.metadata.resource_version = version;
            Advance { slice, blank }
        })
    });
    Route { retreat, advance: differing.collect(), told: Some(told) }
}

/// The slices that have, or may have, an endpoint of somebody else than `target`.
fn empty(seen: &Seen, wearer: Option<&Arc<Leader>>, target: Option<&Arc<Leader>>) -> Vec<Retreat> {
    let (pods, traffic) = (&seen.electorate, &seen.electorate.traffic);
    let is_target = |slice: &EndpointSlice| {
        let uids = slice.endpoints.iter().map(|one| one.target_ref.as_ref()?.uid.as_deref());
        target.is_some_and(|target| uids.into_iter().all(|uid| uid == Some(&*target.uid)))
    };
    let moves = outgoing(pods, wearer).is_some();
    let is_due = |own: &EndpointSlice| {
        let is_filled = !own.endpoints.is_empty() && !is_target(own);
        let may_be_late = own.endpoints.is_empty() || !is_target(own);
        is_filled || moves && may_be_late && !traffic.emptied.contains(&own.name_any())
    };
    let due = traffic.own.iter().filter(|own| is_due(own));
    let mut retreat: Vec<EndpointSlice> = due.map(|own| blank(own)).collect();
    for filled in traffic.filled.iter().filter(|_| target.is_none()) {
        if !retreat.iter().any(|blank| blank.metadata.name == filled.metadata.name) {
            retreat.push(filled.clone());
        }
    }
    retreat.into_iter().map(Retreat::Empty).collect()
}

/// The slice without an endpoint, whatever its version.
fn blank(slice: &EndpointSlice) -> EndpointSlice {
    let mut blank = EndpointSlice { endpoints: Vec::new(), ..slice.clone() };
    blank.metadata.resource_version = None;
    blank
}

fn told(made: &Slices, pod: &Arc<str>) -> Routing {
    let ports = &made.unresolved;
    let families = &made.unaddressed;
    let mut lacks = Vec::new();
    if !ports.is_empty() {
        lacks.push(format!("a container port named {}", ports.join(", ")));
    }
    if !families.is_empty() {
        lacks.push(format!("an address of {}", families.join(", ")));
    }
    match lacks.is_empty() {
        true => Routing::To(Arc::clone(pod)),
        false => Routing::Partly {
            pod: Arc::clone(pod),
            reason: if ports.is_empty() { Detail::PodLacksAddress } else { Detail::PodLacksPort },
            lacks: lacks.join(" and "),
        },
    }
}

/// Whether a slice is what it should be. The API server adds defaults to neither.
fn is_alike(own: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let token = |slice: &EndpointSlice| slice.annotations().get(SLICE_TOKEN_ANNOTATION).cloned();
    own.endpoints == wanted.endpoints
        && own.ports.as_deref().unwrap_or_default() == wanted.ports.as_deref().unwrap_or_default()
        && own.address_type == wanted.address_type
        && wanted.labels().iter().all(|(key, value)| own.labels().get(key) == Some(value))
        && own.owner_references() == wanted.owner_references()
        && token(own) == token(wanted)
}

fn owner(claim: &ConsulLock) -> OwnerReference {
    OwnerReference {
        api_version: ConsulLock::api_version(&()).into_owned(),
        kind: ConsulLock::kind(&()).into_owned(),
        name: claim.name_any(),
        uid: claim.uid().unwrap_or_default(),
        controller: Some(true),
        // Asked for, it would take a right on the claims' finalizers.
        block_owner_deletion: None,
    }
}
