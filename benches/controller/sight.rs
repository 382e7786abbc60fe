//! When a claim was seen `Held`: one watch on each namespace, as any user of the API has one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use consul_lock::{
    api::{ConsulLock, Phase},
    clock::{Clock, Instant},
};
use futures::StreamExt;
use kube::{
    Api,
    runtime::watcher::{self, Event, watcher},
};
use tokio::{sync::watch, task::JoinSet};

use crate::{Failure, Outcome, bed::Field};

/// How long a claim may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the watches saw of one claim.
#[derive(Clone, Copy, Default)]
pub(crate) struct Seen {
    /// First with a finalizer.
    pub(crate) finalizer: Option<Instant>,
    /// First `Held`.
    pub(crate) held: Option<Instant>,
}

/// What was seen so far, by the claim's name.
pub(crate) struct Sight {
    clock: Clock,
    seen: Mutex<HashMap<String, Seen>>,
    held: watch::Sender<usize>,
}

impl Sight {
    pub(crate) fn of(field: &Field) -> Arc<Sight> {
        let (clock, seen) = (field.clock.clone(), Mutex::default());
        Arc::new(Sight { clock, seen, held: watch::Sender::new(0) })
    }

    /// Waits until all of them were seen `Held`.
    pub(crate) async fn held(&self, names: &[String]) -> Outcome<Vec<Seen>> {
        let mut changes = self.held.subscribe();
        let all = changes.wait_for(|_| self.look(names).is_some());
        let waited = self.clock.timeout(PATIENCE, all).await.is_ok();
        self.look(names).filter(|_| waited).ok_or_else(|| {
            let missing = names.iter().filter(|name| self.look(&[(*name).clone()]).is_none());
            Failure::InVain(format!("{} of {} claims to be Held", missing.count(), names.len()))
        })
    }

    fn look(&self, names: &[String]) -> Option<Vec<Seen>> {
        let seen = self.seen.lock();
        names
            .iter()
            .map(|name| seen.get(name).copied().filter(|seen| seen.held.is_some()))
            .collect()
    }

    fn take_in(&self, claim: &ConsulLock) {
        let now = self.clock.now();
        let name = claim.metadata.name.clone().unwrap_or_default();
        let mut all = self.seen.lock();
        let seen = all.entry(name).or_default();
        if claim.metadata.finalizers.as_ref().is_some_and(|names| !names.is_empty()) {
            seen.finalizer.get_or_insert(now);
        }
        let held = claim.status.as_ref().and_then(|status| status.phase) == Some(Phase::Held);
        if held && seen.held.is_none() {
            seen.held = Some(now);
            drop(all);
            self.held.send_modify(|count| *count += 1);
        }
    }
}

/// Watches both namespaces until the result is dropped.
pub(crate) fn follow(sight: Arc<Sight>, field: &Field) -> JoinSet<()> {
    let mut watching = JoinSet::new();
    for claims in [field.ours.clone(), field.floor.clone()] {
        watching.spawn(watch_one(Arc::clone(&sight), claims));
    }
    watching
}

async fn watch_one(sight: Arc<Sight>, claims: Api<ConsulLock>) {
    let mut events = std::pin::pin!(watcher(claims, watcher::Config::default()));
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(claim) | Event::InitApply(claim)) => sight.take_in(&claim),
            Ok(_) => {}
            Err(error) => testbed::say(format!("the benchmark's own watch: {error}")),
        }
    }
}
