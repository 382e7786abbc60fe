//! The controller: turns claims into keepers, and what keepers know into statuses.
//!
//! It has two layers. [`Controller::watch`] keeps the caches of ConsulLocks, Namespaces, pods, nodes,
//! Services, EndpointSlices and Jobs and runs on every replica, so that a standby knows nearly
//! everything when its turn comes; what the last leader wrote it lists once more.
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
//! A walk is due when the claim changes, when its Namespace, one of its pods or its Service does,
//! when its keepers wake it, and at *valid until*. Loss is acted on by the same walk, and no watch
//! can delay it.
//!
//! # Guarantees
//! A claim is reported `Held` only while [`crate::keeper::KeeperView::token`] answers. The
//! finalizer is on before anything is made in Consul, and comes off after a clean release, or once
//! the session has expired by itself. Every write to Kubernetes asks first whether this replica
//! leads. Writes to a claim, endpoints put into a slice, labels put on a pod and gates opened carry
//! the resource version that they are about; what takes endpoint or label away changes the version.
//! So an order that arrives late, of this term or of an earlier one, is refused. In a steady state
//! nothing is written.
//! The key does not move within the cluster before the endpoint and the label of its last leader
//! are gone; a new term lists everything before it decides that they are.
//! # Not guaranteed
//! A status lags behind by a walk and a write, and behind a dead leader by its Lease. A session
//! that was created just before a crash, and whose claim was deleted before the next leader came,
//! is left to its TTL. What a leader of the replicas had begun to send before it was frozen may
//! arrive when it wakes up: it gives no pod anything, but may take the endpoint from the present
//! one until the next walk gives it back.

use std::{collections::BTreeSet, fmt, sync::Arc};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{Namespace, Service},
        discovery::v1::EndpointSlice,
    },
};
use kube::{
    Api, Client, Resource,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, ExponentialBackoff, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::{
    api::ConsulLock,
    clock::Clock,
    consul::Consul,
    keeper::{Bequest, ClaimId, Jitter, Keepers},
    telemetry::Metrics,
};

mod apply;
mod cache;
mod census;
mod course;
mod electorate;
mod events;
mod failover;
mod follow;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;
mod holder;
mod kinds;
mod lead;
mod ledger;
mod merge_patch;
mod observe;
mod plan;
mod queue;
mod reasons;
mod recorded;
#[cfg(test)]
mod sample;
#[cfg(test)]
mod simulation;
mod status;
mod tenancy;
mod verdict;
mod writer;

pub use events::EVENTS;
pub use holder::of as holder_on_key;
pub use lead::LeadError;
pub use tenancy::KeyPrefix;
pub use writer::{Class, MayAct, WriteError};

use cache::{Cache, Cached};
use events::Publisher;
use kinds::{Job, Node, Pod};
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

/// Is given the sessions of a term of leadership when it ends.
pub type Bequeath = Box<dyn Fn(Vec<Bequest>) + Send + Sync>;

/// The controller of one process.
pub struct Controller<C> {
    config: Config,
    client: Client,
    clock: Clock,
    metrics: Arc<Metrics>,
    may_act: MayAct,
    make_keepers: MakeKeepers<C>,
    bequeath: Bequeath,
    jitter: Jitter,
    caches: Arc<Caches>,
}

/// A watch ended that was meant to go on for ever.
#[derive(Debug, thiserror::Error)]
#[error("a watch on the Kubernetes API ended by itself")]
pub struct WatchEnded;

/// What a watch can deliver.
trait Watched: DeserializeOwned + fmt::Debug + Send + 'static {}

impl<K: DeserializeOwned + fmt::Debug + Send + 'static> Watched for K {}

/// A walk over a claim that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The finalizer could not be put on; nothing was made in Consul.
    #[error("cannot put the finalizer on the claim")]
    AddFinalizer(#[source] WriteError),
    /// The key is released, but the object could not be let go.
    #[error("cannot take the finalizer off the claim")]
    RemoveFinalizer(#[source] WriteError),
    /// A slice may still have an endpoint that it should not have; the key has not moved.
    #[error("cannot take the endpoint out of an EndpointSlice")]
    EmptySlice(#[source] WriteError),
    /// A pod may still carry label and token that it should not carry; the key has not moved.
    #[error("cannot take label and token off a pod")]
    StripPod(#[source] WriteError),
    /// The elected pod does not carry its label and token.
    #[error("cannot give the elected pod its label and token")]
    DressPod(#[source] WriteError),
    /// The elected pod still waits at its gate.
    #[error("cannot open the elected pod's gate")]
    OpenGate(#[source] WriteError),
    /// A Job is still there whose firing has run elsewhere.
    #[error("cannot remove a Job whose firing has run already")]
    RemoveJob(#[source] WriteError),
    /// Traffic does not go to the elected pod yet.
    #[error("cannot put the elected pod into an EndpointSlice")]
    FillSlice(#[source] WriteError),
    /// The status is out of date.
    #[error("cannot write the claim's status")]
    PatchStatus(#[source] WriteError),
}

impl Error {
    /// What the failure means.
    pub fn class(&self) -> Class {
        self.write().class()
    }

    /// Whether all that was wrong is that the object had changed meanwhile: the next walk sees it
    /// as it is.
    pub(crate) fn is_outdated(&self) -> bool {
        self.write().is_outdated()
    }

    fn write(&self) -> &WriteError {
        match self {
            Error::AddFinalizer(source)
            | Error::RemoveFinalizer(source)
            | Error::EmptySlice(source)
            | Error::StripPod(source)
            | Error::DressPod(source)
            | Error::OpenGate(source)
            | Error::RemoveJob(source)
            | Error::FillSlice(source)
            | Error::PatchStatus(source) => source,
        }
    }
}

struct Caches {
    claims: Cache<ConsulLock>,
    namespaces: Cache<PartialObjectMeta<Namespace>>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    jobs: Cache<Job>,
}

/// Everything that belongs to one term of leadership.
struct Leader<C> {
    config: Config,
    clock: Clock,
    metrics: Arc<Metrics>,
    caches: Arc<Caches>,
    keepers: Arc<Keepers<C>>,
    ledger: Arc<Ledger>,
    writer: Arc<Writer>,
    publisher: Publisher,
    jitter: Jitter,
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
            pods: Cache::new("pods", watches),
            nodes: Cache::new("nodes", 1),
            services: Cache::new("services", watches),
            slices: Cache::new("endpointslices", watches),
            jobs: Cache::new("jobs", watches),
        });
        census::report(&metrics, &caches, &may_act, &clock);
        let bequeath: Bequeath = Box::new(drop);
        let jitter: Jitter = Arc::new(|| rand::random_range(0.0..1.0));
        Controller {
            config,
            client,
            clock,
            metrics,
            may_act,
            make_keepers,
            bequeath,
            jitter,
            caches,
        }
    }

    /// The same, but whenever a term ends `bequeath` is given the sessions that should live on.
    #[must_use]
    pub fn bequeathing(self, bequeath: Bequeath) -> Controller<C> {
        Controller { bequeath, ..self }
    }

    /// Takes what is left to chance from `jitter`, so that a simulation can repeat itself.
    #[cfg(test)]
    fn with_jitter(self, jitter: Jitter) -> Controller<C> {
        Controller { jitter, ..self }
    }

    /// Returns once the claims have been listed, provided that the controller
    /// [watches](Controller::watch). Namespaces may be missing: only claims with keys of their own
    /// need them.
    pub async fn synced(&self) {
        self.caches.claims.wait_until_synced().await;
    }

    /// Keeps the caches, for as long as it is polled.
    pub async fn watch(&self) -> WatchEnded {
        let caches = &self.caches;
        let whole = async {
            tokio::join!(
                self.follow(&caches.namespaces, None, Api::all, |_| {}),
                self.follow(&caches.nodes, None, Api::all, Node::slim),
            )
        };
        let within = |namespace: Option<&'_ str>| {
            let namespace = namespace.map(str::to_owned);
            async move {
                let namespace = namespace.as_deref();
                tokio::join!(
                    self.follow_in(&caches.claims, namespace, |claim| {
                        claim.metadata.managed_fields = None;
                    }),
                    self.follow_in(&caches.pods, namespace, Pod::slim),
                    self.follow_in(&caches.services, namespace, kinds::slim_service),
                    self.follow_in(&caches.slices, namespace, kinds::slim_slice),
                    self.follow_in(&caches.jobs, namespace, Job::slim),
                )
            }
        };
        let everywhere = match &self.config.namespaces {
            None => futures::future::select_all(vec![Box::pin(within(None))]),
            Some(names) => {
                futures::future::select_all(names.iter().map(|name| Box::pin(within(Some(name)))))
            }
        };
        tokio::select! {
            biased; // neither is ever ready
            _ = whole => {}
            _ = everywhere => {}
        }
        WatchEnded
    }

    /// Feeds a cache of namespaced objects from one watch.
    async fn follow_in<K>(&self, cache: &Cache<K>, namespace: Option<&str>, slim: fn(&mut K))
    where
        K: Cached + Resource<DynamicType = (), Scope = NamespaceResourceScope> + Watched,
    {
        let api = |client| match namespace {
            None => Api::all(client),
            Some(namespace) => Api::namespaced(client, namespace),
        };
        self.follow(cache, namespace, api, slim).await;
    }

    async fn follow<K: Cached + Watched>(
        &self,
        cache: &Cache<K>,
        namespace: Option<&str>,
        api: impl Fn(Client) -> Api<K>,
        slim: fn(&mut K),
    ) {
        let watch = || {
            let events = watcher(api(self.client.clone()), watch_config());
            events.backoff(backoff((self.jitter)())).modify(slim)
        };
        cache.follow(namespace, watch, &self.metrics).await;
    }

    /// Looks after every claim, for as long as it is polled. Dropping it drops the keepers, which
    /// releases nothing.
    pub async fn lead(&self) -> LeadError {
        self.caches.renew();
        let (wake, woken) = mpsc::unbounded_channel();
        let writer =
            Writer::new(self.client.clone(), self.clock.clone(), Arc::clone(&self.may_act));
        let writer = Arc::new(writer);
        let instance = self.config.instance.clone();
        let (publisher, telling) = Publisher::new(Arc::clone(&writer), instance);
        let keepers = Arc::new((self.make_keepers)(wake));
        // Whatever ends the term, and also if this future is dropped.
        let _will = Will { keepers: Arc::clone(&keepers), bequeath: &self.bequeath };
        let leader = Leader {
            config: self.config.clone(),
            clock: self.clock.clone(),
            metrics: Arc::clone(&self.metrics),
            caches: Arc::clone(&self.caches),
            keepers,
            ledger: Arc::default(),
            writer,
            publisher,
            jitter: Arc::clone(&self.jitter),
        };
        leader.run(woken, telling).await
    }
}

/// Passes the sessions on when it is dropped.
struct Will<'a, C: Consul> {
    keepers: Arc<Keepers<C>>,
    bequeath: &'a Bequeath,
}

impl<C: Consul> Drop for Will<'_, C> {
    fn drop(&mut self) {
        (self.bequeath)(self.keepers.bequests());
    }
}

impl Caches {
    /// Has everything listed anew: an earlier term may have written what no watch has told yet.
    fn renew(&self) {
        let Caches { claims, namespaces, pods, nodes, services, slices, jobs } = self;
        claims.renew();
        namespaces.renew();
        pods.renew();
        nodes.renew();
        services.renew();
        slices.renew();
        jobs.renew();
    }
}

/// A watch that is silent for longer than this is started anew, so a dead connection cannot keep
/// us ignorant.
fn watch_config() -> watcher::Config {
    watcher::Config::default().timeout(60)
}

fn backoff(jitter: f64) -> ExponentialBackoff {
    // Short: after an API server's restart nothing else makes us look again.
    backon::ExponentialBuilder::default()
        .with_min_delay(std::time::Duration::from_millis(200))
        .with_max_delay(std::time::Duration::from_secs(5))
        .with_factor(2.0)
        .with_jitter()
        .with_jitter_seed(jitter.to_bits())
        .without_max_times()
        .into()
}
