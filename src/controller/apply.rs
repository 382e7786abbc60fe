//! Carries a [`Plan`] out. No policy here.

use std::sync::Arc;

use kube::ResourceExt;

use super::{
    Error, Leader,
    cache::ObjectName,
    course::{Advance, Course, Retreat},
    electorate::Standing,
    events::News,
    failover,
    observe::{Observed, Seen},
    plan::{ClaimPlan, FinalizerStep, FormerStep, KeepersStep, Plan},
};
use crate::{
    api::ConsulLock,
    consul::Consul,
    keeper::{ClaimId, KeeperView, LockView},
};

/// How things stand after a plan was carried out. Only [`apply`] makes one, so a status cannot
/// speak of what was merely planned.
pub(super) struct Applied {
    /// The claim as the last write left it.
    pub(super) claim: Arc<ConsulLock>,
    /// What its keepers know now.
    pub(super) view: Option<KeeperView>,
    /// Why pods or slices are not as they should be; a walk has to follow.
    pub(super) failed: Option<Error>,
    _only_made_here: (),
}

/// Does what the plan says. `None`: there is no claim, or none any more.
pub(super) async fn apply<C: Consul>(
    leader: &Leader<C>,
    name: &ObjectName,
    observed: &Observed,
    plan: &Plan,
) -> Result<Option<Applied>, Error> {
    let Plan { former, orphans, claim } = plan;
    for strip in orphans {
        let stripped = leader.writer.strip(&name.namespace, strip, &name.name).await;
        stripped.map_err(Error::StripPod)?;
    }
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
    let ClaimPlan { finalizer, course, keepers, judged: _ } = plan;
    let mut claim = Arc::clone(&seen.object);
    if *finalizer == FinalizerStep::Add {
        // Before anything is made in Consul, so that nothing can be left behind there.
        let added = leader.writer.add_finalizer(&claim).await;
        let added = Arc::new(added.map_err(Error::AddFinalizer)?);
        leader.ledger.wrote(&seen.id, &claim, Arc::clone(&added));
        claim = added;
    }
    if let Err(failed) = give_way(leader, seen, course).await {
        // The key does not move before endpoint and label are gone.
        let (view, failed) = (leader.keepers.view(&seen.id), Some(failed));
        return Ok(Some(Applied { view, claim, failed, _only_made_here: () }));
    }
    if !(course.retreat.is_empty() && course.strip.is_empty()) {
        failover::note_withdrawal(leader, seen);
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
            Applied { view: None, claim: left, failed: None, _only_made_here: () }
        }));
    }
    tell_keepers(leader, &seen.id, keepers);
    let failed = take_place(leader, seen, course).await.err();
    let view = leader.keepers.view(&seen.id);
    Ok(Some(Applied { view, claim, failed, _only_made_here: () }))
}

/// The first half of a course: endpoint away, then label away.
async fn give_way<C: Consul>(
    leader: &Leader<C>,
    seen: &Seen,
    course: &Course,
) -> Result<(), Error> {
    let namespace = seen.object.namespace().unwrap_or_default();
    for retreat in &course.retreat {
        let (written, slice) = match retreat {
            Retreat::Empty(blank) => (leader.writer.empty_slice(blank).await, blank),
            Retreat::Delete(slice) => (leader.writer.delete_slice(slice).await, slice),
        };
        written.map_err(Error::EmptySlice)?;
        leader.ledger.empties(&seen.id, &slice.name_any());
    }
    for strip in &course.strip {
        let claim = seen.object.name_any();
        let stripped = leader.writer.strip(&namespace, strip, &claim).await;
        stripped.map_err(Error::StripPod)?;
        leader.ledger.stripped(&seen.id, &strip.uid);
    }
    Ok(())
}

/// The second half: label and token on the pod, then its gate, then the endpoint; each only while
/// the tenure may be relied on.
async fn take_place<C: Consul>(
    leader: &Leader<C>,
    seen: &Seen,
    course: &Course,
) -> Result<(), Error> {
    let claim = seen.object.name_any();
    let namespace = seen.object.namespace().unwrap_or_default();
    let holds = || {
        let Some(view) = leader.keepers.view(&seen.id) else { return false };
        match &seen.electorate.standing {
            Standing::Held { token, .. } => view.token(leader.clock.now()) == Some(*token),
            Standing::Followed(followed) => match &view.lock {
                LockView::Following { pair: Some(pair) } => {
                    followed.index == Some(pair.modify_index)
                }
                _ => false,
            },
            Standing::Adopting { .. } | Standing::Beginning { .. } | Standing::None => false,
        }
    };
    for remove in &course.remove {
        leader.writer.remove_job(&namespace, remove).await.map_err(Error::RemoveJob)?;
        let news = News::already_ran(remove);
        leader.publisher.tell(&seen.object, &news, leader.clock.wall());
    }
    let mut dressed = None;
    if let Some(dress) = course.dress.as_ref().filter(|_| holds()) {
        // Before it is sent: whether it arrives may never be known.
        leader.ledger.dresses(&seen.id, dress.badged());
        dressed = leader.writer.dress(&namespace, dress, &claim).await.map_err(Error::DressPod)?;
        leader.ledger.dressed(&seen.id, &dress.uid, dress.over.as_ref());
    }
    if let Some(open) = course.open.as_ref().filter(|_| holds()) {
        let over = dressed.as_ref().or(open.over.as_ref());
        let opened = leader.writer.open_gate(&namespace, open, over.map(String::as_str)).await;
        opened.map_err(Error::OpenGate)?;
    }
    for Advance { slice, blank } in &course.advance {
        if !holds() {
            break;
        }
        let mut slice = slice.clone();
        if slice.metadata.resource_version.is_none() {
            // Without an endpoint first: one that arrives late finds a version to be refused by.
            let made = leader.writer.make_slice(blank).await.map_err(Error::FillSlice)?;
            slice.metadata.resource_version = made.resource_version();
            if !holds() {
                break;
            }
        }
        // Before it is sent: whether it arrives may never be known.
        leader.ledger.fills(&seen.id, blank.clone());
        leader.writer.fill_slice(&slice).await.map_err(Error::FillSlice)?;
    }
    if !course.advance.is_empty() && holds() {
        failover::note_routing(leader, seen);
    }
    Ok(())
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

#[cfg(test)]
mod tests;
