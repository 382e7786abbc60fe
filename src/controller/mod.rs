//! The controller: turns claims into keepers, and what keepers know into statuses.
//!
//! It has two layers. [`Controller::watch`] keeps the caches of ConsulLocks and Namespaces and runs
//! on every replica, so that a standby knows everything when its turn comes.
//! [`Controller::lead`] acts, and runs only while this replica leads: whoever calls it drops the
//! future when leadership is lost, and with it every keeper; nothing is released then, for the next
//! leader adopts what the statuses record.
//!
//! One walk over a claim:
//!
//! ```text
//! observe (memory) -> plan (pure) -> apply (I/O) -> status (pure) -> patch, if it differs (I/O)
//! ```
//!
//! A walk is due when the claim changes, when its Namespace does, when its keepers wake it, and at
//! *valid until*. Loss is acted on by the same walk, and no watch can delay it.
//!
//! # Guarantees
//! A claim is reported `Held` only while [`crate::keeper::KeeperView::token`] answers. The
//! finalizer is on before anything is made in Consul, and comes off after a clean release, or once
//! the session has expired by itself. Every write to Kubernetes asks first whether this replica
//! leads, and carries the resource version that it is about. In a steady state nothing is written.
//! # Not guaranteed
//! A status lags behind by a walk and a write, and behind a dead leader by its Lease. A session
//! that was created just before a crash, and whose claim was deleted before the next leader came,
//! is left to its TTL.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, ExponentialBackoff, watcher},
    },
};
use tokio::sync::mpsc;

use crate::{
    api::{ConsulLock, Phase},
    clock::Clock,
    consul::Consul,
    keeper::{ClaimId, Keepers},
    telemetry::Metrics,
};

mod apply;
mod cache;
mod events;
mod holder;
mod lead;
mod ledger;
mod merge_patch;
mod observe;
mod plan;
mod queue;
#[cfg(test)]
mod sample;
mod status;
mod tenancy;
mod verdict;
mod writer;

pub use lead::LeadError;
pub use tenancy::KeyPrefix;
pub use writer::{Class, MayAct, WriteError};

use cache::Cache;
use events::Publisher;
use ledger::Ledger;
use writer::Writer;

/// What the controller is told by its configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What keys begin with.
    pub key_prefix: KeyPrefix,
    /// This cluster's name, in session names and payloads. Must not change while locks are held.
    pub cluster: String,
    /// The namespaces whose claims are looked after; `None` or empty: all.
    pub namespaces: Option<BTreeSet<String>>,
    /// This replica's name, in events.
    pub instance: String,
}

/// Makes the registry of keepers for one term of leadership; what it is given hears of every claim
/// whose keepers have news.
pub type MakeKeepers<C> = Box<dyn Fn(mpsc::UnboundedSender<ClaimId>) -> Keepers<C> + Send + Sync>;

/// The controller of one process.
pub struct Controller<C> {
    config: Config,
    client: Client,
    clock: Clock,
    metrics: Arc<Metrics>,
    may_act: MayAct,
    make_keepers: MakeKeepers<C>,
    caches: Arc<Caches>,
}

/// A watch ended that was meant to go on for ever.
#[derive(Debug, thiserror::Error)]
#[error("a watch on the Kubernetes API ended by itself")]
pub struct WatchEnded;

/// A walk over a claim that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The finalizer could not be put on; nothing was made in Consul.
    #[error("cannot put the finalizer on the claim")]
    AddFinalizer(#[source] WriteError),
    /// The key is released, but the object could not be let go.
    #[error("cannot take the finalizer off the claim")]
    RemoveFinalizer(#[source] WriteError),
    /// The status is out of date.
    #[error("cannot write the claim's status")]
    PatchStatus(#[source] WriteError),
}

impl Error {
    /// What the failure means.
    pub fn class(&self) -> Class {
        match self {
            Error::AddFinalizer(source)
            | Error::RemoveFinalizer(source)
            | Error::PatchStatus(source) => source.class(),
        }
    }
}

struct Caches {
    claims: Cache<ConsulLock>,
    namespaces: Cache<PartialObjectMeta<Namespace>>,
}

/// Everything that belongs to one term of leadership.
struct Leader<C> {
    config: Config,
    clock: Clock,
    metrics: Arc<Metrics>,
    caches: Arc<Caches>,
    keepers: Arc<Keepers<C>>,
    ledger: Ledger,
    writer: Arc<Writer>,
    publisher: Publisher,
}

impl<C: Consul> Controller<C> {
    /// A controller that does nothing until it watches and leads.
    ///
    /// `client` must not retry by itself: a walk has its own pauses, and every write its own time
    /// limit. `may_act` answers whether this replica leads.
    pub fn new(
        mut config: Config,
        client: Client,
        clock: Clock,
        metrics: Arc<Metrics>,
        may_act: MayAct,
        make_keepers: MakeKeepers<C>,
    ) -> Controller<C> {
        config.namespaces = config.namespaces.filter(|names| !names.is_empty());
        let watches = config.namespaces.as_ref().map_or(1, BTreeSet::len);
        let caches = Arc::new(Caches {
            claims: Cache::new("consullocks", watches),
            namespaces: Cache::new("namespaces", 1),
        });
        let (counted, leads) = (Arc::clone(&caches), Arc::clone(&may_act));
        metrics.report_locks_from(move || counted.by_phase(leads()));
        Controller { config, client, clock, metrics, may_act, make_keepers, caches }
    }

    /// Returns once the claims have been listed, provided that the controller
    /// [watches](Controller::watch). Namespaces may be missing: only claims with keys of their own
    /// need them.
    pub async fn synced(&self) {
        self.caches.claims.wait_until_synced().await;
    }

    /// Keeps the caches, for as long as it is polled.
    pub async fn watch(&self) -> WatchEnded {
        let namespaces = async {
            let api = Api::<PartialObjectMeta<Namespace>>::all(self.client.clone());
            let events = watcher(api, watch_config()).backoff(backoff());
            let cache = &self.caches.namespaces;
            cache.follow(None, events, &self.metrics).await;
        };
        let claims = match &self.config.namespaces {
            None => futures::future::select_all(vec![Box::pin(self.watch_claims(None))]),
            Some(names) => futures::future::select_all(
                names.iter().map(|name| Box::pin(self.watch_claims(Some(name)))),
            ),
        };
        tokio::select! {
            () = namespaces => {}
            _ = claims => {}
        }
        WatchEnded
    }

    async fn watch_claims(&self, namespace: Option<&str>) {
        let client = self.client.clone();
        let api: Api<ConsulLock> = match namespace {
            None => Api::all(client),
            Some(namespace) => Api::namespaced(client, namespace),
        };
        let events = watcher(api, watch_config()).backoff(backoff());
        let slim = events.modify(|claim| claim.metadata.managed_fields = None);
        let cache = &self.caches.claims;
        cache.follow(namespace, slim, &self.metrics).await;
    }

    /// Looks after every claim, for as long as it is polled. Dropping it drops the keepers, which
    /// releases nothing.
    pub async fn lead(&self) -> LeadError {
        let (wake, woken) = mpsc::unbounded_channel();
        let writer =
            Writer::new(self.client.clone(), self.clock.clone(), Arc::clone(&self.may_act));
        let writer = Arc::new(writer);
        let instance = self.config.instance.clone();
        let (publisher, telling) = Publisher::new(Arc::clone(&writer), instance);
        let leader = Leader {
            config: self.config.clone(),
            clock: self.clock.clone(),
            metrics: Arc::clone(&self.metrics),
            caches: Arc::clone(&self.caches),
            keepers: Arc::new((self.make_keepers)(wake)),
            ledger: Ledger::default(),
            writer,
            publisher,
        };
        leader.run(woken, telling).await
    }
}

impl Caches {
    /// How many claims are in each phase; none while another replica speaks for them.
    fn by_phase(&self, leads: bool) -> Vec<(&'static str, usize)> {
        let mut counts = Phase::ALL.map(|phase| (phase.as_str(), 0));
        if leads {
            for claim in self.claims.all() {
                let phase = claim.status.as_ref().and_then(|status| status.phase);
                let name = phase.unwrap_or_default().as_str();
                for (_, count) in counts.iter_mut().filter(|(phase, _)| *phase == name) {
                    *count += 1;
                }
            }
        }
        counts.to_vec()
    }
}

/// A watch that is silent for longer than this is started anew, so a dead connection cannot keep
/// us ignorant.
fn watch_config() -> watcher::Config {
    watcher::Config::default().timeout(60)
}

fn backoff() -> ExponentialBackoff {
    // Short: after an API server's restart nothing else makes us look again.
    backon::ExponentialBuilder::default()
        .with_min_delay(std::time::Duration::from_millis(200))
        .with_max_delay(std::time::Duration::from_secs(5))
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .into()
}
