//! Carries a [`Plan`] out. No policy here.

use std::sync::Arc;

use kube::ResourceExt;

use super::{
    Error, Leader,
    events::News,
    observe::{Observed, Seen},
    plan::{ClaimPlan, FinalizerStep, FormerStep, KeepersStep, Plan},
};
use crate::{
    api::ConsulLock,
    consul::Consul,
    keeper::{ClaimId, KeeperView},
};

/// How things stand after a plan was carried out. Only [`apply`] makes one, so a status cannot
/// speak of what was merely planned.
pub(super) struct Applied {
    /// The claim as the last write left it.
    pub(super) claim: Arc<ConsulLock>,
    /// What its keepers know now.
    pub(super) view: Option<KeeperView>,
    _only_made_here: (),
}

/// Does what the plan says. `None`: there is no claim, or none any more.
pub(super) async fn apply<C: Consul>(
    leader: &Leader<C>,
    observed: &Observed,
    plan: &Plan,
) -> Result<Option<Applied>, Error> {
    let Plan { former, claim } = plan;
    for (id, step) in former {
        match step {
            FormerStep::Stop => leader.keepers.stop(id),
            FormerStep::Wait => {}
            FormerStep::Forget => forget(leader, id),
        }
    }
    match (&observed.claim, claim) {
        (Some(seen), Some(plan)) => apply_to_claim(leader, seen, plan).await,
        _ => Ok(None),
    }
}

async fn apply_to_claim<C: Consul>(
    leader: &Leader<C>,
    seen: &Seen,
    plan: &ClaimPlan,
) -> Result<Option<Applied>, Error> {
    let ClaimPlan { finalizer, keepers, judged: _ } = plan;
    let mut claim = Arc::clone(&seen.object);
    if *finalizer == FinalizerStep::Add {
        // Before anything is made in Consul, so that nothing can be left behind there.
        let added = leader.writer.add_finalizer(&claim).await;
        let added = Arc::new(added.map_err(Error::AddFinalizer)?);
        leader.ledger.wrote(&seen.id, &claim, Arc::clone(&added));
        claim = added;
    }
    if let FinalizerStep::Remove { unclean } = *finalizer {
        let left = leader.writer.remove_finalizer(&claim).await;
        let left = left.map_err(Error::RemoveFinalizer)?;
        // Only now: if the object could not be let go, the next attempt must find how they ended.
        tell_keepers(leader, &seen.id, keepers);
        if unclean {
            let news = News::deleted_without_release(&claim, seen.view.as_ref());
            leader.publisher.tell(&claim, &news, leader.clock.wall());
        }
        let held_back = left.filter(|left| !left.finalizers().is_empty()).map(Arc::new);
        return Ok(held_back.map(|left| {
            // It must not be taken for one of ours again.
            leader.ledger.wrote(&seen.id, &claim, Arc::clone(&left));
            Applied { view: None, claim: left, _only_made_here: () }
        }));
    }
    tell_keepers(leader, &seen.id, keepers);
    Ok(Some(Applied { view: leader.keepers.view(&seen.id), claim, _only_made_here: () }))
}

fn tell_keepers<C: Consul>(leader: &Leader<C>, id: &ClaimId, step: &KeepersStep) {
    let keepers = &leader.keepers;
    match step {
        KeepersStep::Leave => {}
        KeepersStep::Set(wanted, recorded) => {
            keepers.set(id, wanted.as_ref().clone(), recorded.clone());
        }
        KeepersStep::Restart(wanted) => {
            keepers.forget(id);
            keepers.set(id, wanted.as_ref().clone(), None);
        }
        KeepersStep::GiveUp(wanted, recorded) => {
            keepers.set(id, wanted.as_ref().clone(), Some(recorded.clone()));
            keepers.stop(id);
        }
        KeepersStep::Stop => keepers.stop(id),
        KeepersStep::Forget => keepers.forget(id),
    }
}

fn forget<C: Consul>(leader: &Leader<C>, id: &ClaimId) {
    leader.keepers.forget(id);
    leader.ledger.forget(id);
}
