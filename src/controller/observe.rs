//! Everything that one walk over a claim looks at, collected into plain data.

use std::sync::Arc;

use kube::ResourceExt;

use super::{Leader, cache::ObjectName, tenancy::NamespaceSeen};
use crate::{
    api::{ConsulLock, KEY_PREFIXES_ANNOTATION},
    clock::Instant,
    consul::Consul,
    keeper::{ClaimId, KeeperView, StopState},
};

/// What is known under one claim's name at one instant.
pub(super) struct Observed {
    /// The claim, if there is one.
    pub(super) claim: Option<Seen>,
    /// Keepers of claims that had this name before, and how far they have come with stopping.
    pub(super) former: Vec<(ClaimId, Option<StopState>)>,
    pub(super) now: Instant,
}

/// A claim and what belongs to it.
pub(super) struct Seen {
    pub(super) id: ClaimId,
    pub(super) object: Arc<ConsulLock>,
    pub(super) namespace: NamespaceSeen,
    /// What its keepers know, and how far they have come with stopping; `None` if it has none.
    pub(super) view: Option<KeeperView>,
    pub(super) stop: Option<StopState>,
    /// When this leader first met the claim.
    pub(super) since: Instant,
}

/// Collects what is known under `name`. Reads memory only.
pub(super) fn observe<C: Consul>(leader: &Leader<C>, name: &ObjectName) -> Observed {
    let now = leader.clock.now();
    let claim = leader.caches.claims.get(name).and_then(|cached| {
        let id = ClaimId(cached.uid()?.into());
        let since = leader.ledger.meet(&id, name, now);
        Some(Seen {
            object: leader.ledger.newest(&id, cached),
            namespace: namespace(leader, name),
            view: leader.keepers.view(&id),
            stop: leader.keepers.stopped(&id),
            since,
            id,
        })
    });
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
    Observed { claim, former, now }
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
