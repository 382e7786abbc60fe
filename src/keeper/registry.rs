//! A stand-in for the registry of keepers: remembers what it was told and drives nothing. To be
//! dropped for the real one.

use std::{
    collections::BTreeMap,
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError},
};

use super::{ClaimId, KeeperView, LockView, Recorded, SessionHealth, SessionView, Wanted};
use crate::{clock::Instant, consul::Consul};

/// How far the keepers of one claim have come with stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopState {
    /// They were not asked to.
    Running,
    /// The key is being released, or the session destroyed.
    Stopping,
    /// The key was released, and the session destroyed.
    Clean,
    /// Consul did not answer before the session's own expiry, by which it ends the session itself.
    Abandoned,
}

/// The keepers of all claims of a process.
pub struct Keepers<C> {
    claims: Mutex<BTreeMap<ClaimId, (Wanted, StopState)>>,
    consul: PhantomData<C>,
}

impl<C: Consul> Default for Keepers<C> {
    fn default() -> Keepers<C> {
        Keepers {
            claims: Mutex::default(),
            consul: PhantomData,
        }
    }
}

impl<C: Consul> Keepers<C> {
    fn claims(&self) -> std::sync::MutexGuard<'_, BTreeMap<ClaimId, (Wanted, StopState)>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See the real one.
    pub fn set(&self, id: &ClaimId, wanted: Wanted, _recorded: Option<Recorded>) {
        let _ = self
            .claims()
            .insert(id.clone(), (wanted, StopState::Running));
    }

    /// See the real one.
    pub fn view(&self, id: &ClaimId) -> Option<KeeperView> {
        self.claims().get(id).map(|(wanted, _)| KeeperView {
            session: SessionView {
                health: SessionHealth::Absent,
                id: None,
                node: wanted.session.node.clone(),
                ttl: wanted.session.ttl,
                valid_until: None,
            },
            lock: LockView::Starting,
            key: None,
            trouble: None,
            ended: Arc::default(),
        })
    }

    /// See the real one.
    pub fn stop(&self, id: &ClaimId) {
        if let Some((_, state)) = self.claims().get_mut(id) {
            *state = StopState::Clean;
        }
    }

    /// See the real one.
    pub fn stopped(&self, id: &ClaimId) -> Option<StopState> {
        self.claims().get(id).map(|(_, state)| *state)
    }

    /// See the real one.
    pub fn forget(&self, id: &ClaimId) {
        let _ = self.claims().remove(id);
    }

    /// See the real one.
    pub fn tightest(&self) -> Option<Instant> {
        None
    }

    /// See the real one.
    pub fn reap(&self) -> bool {
        false
    }
}
