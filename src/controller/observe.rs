//! Everything that one walk over a claim looks at, collected into plain data.

use std::sync::Arc;

use kube::ResourceExt;

use super::{
    Leader,
    cache::ObjectName,
    electorate::{Electorate, badged, electorate},
    tenancy::NamespaceSeen,
};
use crate::{
    api::{ConsulLock, KEY_PREFIXES_ANNOTATION, ModeSettings, Settings, SpecError},
    clock::Instant,
    consul::Consul,
    election::Badged,
    keeper::{ClaimId, KeeperView, StopState},
};

/// What is known under one claim's name at one instant.
pub(super) struct Observed {
    /// The claim, if there is one.
    pub(super) claim: Option<Seen>,
    /// Keepers of claims that had this name before, and how far they have come with stopping.
    pub(super) former: Vec<(ClaimId, Option<StopState>)>,
    /// Where there is no claim: pods that carry the badge of one.
    pub(super) orphans: Vec<Badged>,
    pub(super) now: Instant,
}

/// A claim and what belongs to it.
pub(super) struct Seen {
    pub(super) id: ClaimId,
    pub(super) object: Arc<ConsulLock>,
    /// What its spec means.
    pub(super) settings: Result<Settings, SpecError>,
    pub(super) electorate: Electorate,
    pub(super) namespace: NamespaceSeen,
    /// What its keepers know, and how far they have come with stopping; `None` if it has none.
    pub(super) view: Option<KeeperView>,
    pub(super) stop: Option<StopState>,
    /// When this leader first met the claim.
    pub(super) since: Instant,
}

impl Seen {
    /// Whether the pods hold the key themselves, by what the spec says.
    pub(super) fn is_left_to_its_pods(&self) -> bool {
        let settings = self.settings.as_ref();
        settings.is_ok_and(|settings| settings.mode == ModeSettings::Agent)
    }
}

/// Collects what is known under `name`. Reads memory only.
pub(super) fn observe<C: Consul>(leader: &Leader<C>, name: &ObjectName) -> Observed {
    let now = leader.clock.now();
    let claim = leader.caches.claims.get(name).and_then(|cached| {
        let id = ClaimId(cached.uid()?.into());
        let since = leader.ledger.meet(&id, name, now);
        let object = leader.ledger.newest(&id, cached);
        let view = leader.keepers.view(&id);
        let settings = object.spec.settings();
        let meaning = settings.as_ref().ok();
        Some(Seen {
            electorate: electorate(leader, (&id, name), &object, meaning, view.as_ref(), now),
            namespace: namespace(leader, name),
            stop: leader.keepers.stopped(&id),
            object,
            settings,
            view,
            since,
            id,
        })
    });
    let mut orphans = match claim {
        Some(_) => Vec::new(),
        None => badged(&leader.caches, name),
    };
    // A label of another value is somebody's own.
    orphans.retain(|badged| badged.labelled || badged.token.is_some());
    let present = claim.as_ref().map(|seen| &seen.id);
    let former = leader
        .ledger
        .former(name, present)
        .into_iter()
        .map(|id| {
            let stop = leader.keepers.stopped(&id);
            (id, stop)
        })
        .collect();
    Observed { claim, former, orphans, now }
}

fn namespace<C: Consul>(leader: &Leader<C>, name: &ObjectName) -> NamespaceSeen {
    let namespace = ObjectName::new("", &name.namespace);
    match leader.caches.namespaces.get(&namespace) {
        Some(object) => {
            NamespaceSeen::Annotated(object.annotations().get(KEY_PREFIXES_ANNOTATION).cloned())
        }
        None => NamespaceSeen::Unknown,
    }
}
