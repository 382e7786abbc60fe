//! What the API server last told us: one [`Cache`] per kind, fed by watches of its own.
//!
//! Caches are kept on standby replicas too, so that a new leader starts with everything known.
//!
//! # Guarantees
//! A watch that fails is tried again by itself, with growing pauses; its errors are counted and go
//! no further, so no failing watch delays another or whoever reads the cache. Every object that
//! came, changed or went is named to every subscriber, or the subscriber learns that it missed
//! some.
//! # Not guaranteed
//! A cache lags behind; `super::ledger` makes up for our own writes.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{Stream, StreamExt};
use kube::{
    Resource, ResourceExt,
    runtime::watcher::{self, Event},
};
use tokio::sync::{broadcast, watch};

use crate::telemetry::Metrics;

/// How many changes a subscriber may be behind before it has to look at everything.
const TOUCHED_KEPT: usize = 8192;

/// An object's name within its kind; no namespace for what belongs to the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ObjectName {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

impl ObjectName {
    pub(super) fn new(namespace: &str, name: &str) -> ObjectName {
        ObjectName { namespace: namespace.into(), name: name.into() }
    }

    pub(super) fn of(object: &impl Resource) -> ObjectName {
        let meta = object.meta();
        ObjectName::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// All objects of one kind, as last seen.
pub(super) struct Cache<K> {
    kind: &'static str,
    objects: RwLock<HashMap<ObjectName, Arc<K>>>,
    touched: broadcast::Sender<ObjectName>,
    /// Watches that have not listed everything yet.
    unsynced: AtomicUsize,
    synced: watch::Sender<bool>,
}

impl<K: Resource + Clone> Cache<K> {
    /// An empty cache that `watches` watches are going to feed. `kind` labels metrics and logs.
    pub(super) fn new(kind: &'static str, watches: usize) -> Cache<K> {
        Cache {
            kind,
            objects: RwLock::default(),
            touched: broadcast::Sender::new(TOUCHED_KEPT),
            unsynced: AtomicUsize::new(watches),
            synced: watch::Sender::new(watches == 0),
        }
    }

    pub(super) fn get(&self, name: &ObjectName) -> Option<Arc<K>> {
        self.read().get(name).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<K>> {
        self.read().values().cloned().collect()
    }

    /// The names of everything, or of everything in one namespace.
    pub(super) fn names(&self, namespace: Option<&str>) -> Vec<ObjectName> {
        self.read()
            .keys()
            .filter(|name| namespace.is_none_or(|namespace| *name.namespace == *namespace))
            .cloned()
            .collect()
    }

    /// The names of what changes from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<ObjectName> {
        self.touched.subscribe()
    }

    /// Whether every watch has listed everything once.
    #[cfg(test)]
    fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    pub(super) async fn wait_until_synced(&self) {
        // The sender lives as long as `self`, so this only ends with a `true`.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Feeds the cache from one watch, of one namespace or of everything. Ends when the watch does,
    /// which a watch that tries again never does.
    pub(super) async fn follow(
        &self,
        namespace: Option<&str>,
        events: impl Stream<Item = watcher::Result<Event<K>>>,
        metrics: &Metrics,
    ) {
        let mut events = std::pin::pin!(events);
        let mut listing = None;
        let mut listed_once = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    let done = matches!(event, Event::InitDone);
                    for name in self.apply(namespace, &mut listing, event) {
                        // An error says that nobody subscribes: this replica stands by.
                        let _ = self.touched.send(name);
                    }
                    if done && !listed_once {
                        listed_once = true;
                        self.one_is_synced();
                    }
                }
                Err(error) => {
                    metrics.watch_failed(self.kind);
                    tracing::warn!(kind = self.kind, %error, "a watch failed; trying again");
                }
            }
        }
    }

    /// Takes one event in and names the objects that it touched.
    fn apply(
        &self,
        namespace: Option<&str>,
        listing: &mut Option<HashSet<ObjectName>>,
        event: Event<K>,
    ) -> Vec<ObjectName> {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => {
                *listing = Some(HashSet::new());
                Vec::new()
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let name = ObjectName::of(&object);
                if let Some(listed) = listing {
                    listed.insert(name.clone());
                }
                let known = objects.get(&name).and_then(|known| known.resource_version());
                if known.is_some() && known == object.resource_version() {
                    return Vec::new();
                }
                objects.insert(name.clone(), Arc::new(object));
                vec![name]
            }
            Event::Delete(object) => {
                let name = ObjectName::of(&object);
                objects.remove(&name);
                vec![name]
            }
            Event::InitDone => {
                let listed = listing.take().unwrap_or_default();
                let ours = |name: &ObjectName| namespace.is_none_or(|ns| *name.namespace == *ns);
                let gone: Vec<ObjectName> = objects
                    .keys()
                    .filter(|name| ours(name) && !listed.contains(name))
                    .cloned()
                    .collect();
                for name in &gone {
                    objects.remove(name);
                }
                gone
            }
        }
    }

    fn one_is_synced(&self) {
        if self.unsynced.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.synced.send_replace(true);
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<ObjectName, Arc<K>>> {
        // A panic elsewhere leaves whole objects behind.
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(namespace: &str, name: &str, version: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some(namespace.into());
        object.metadata.name = Some(name.into());
        object.metadata.resource_version = Some(version.into());
        object
    }

    fn touched(receiver: &mut broadcast::Receiver<ObjectName>) -> Vec<String> {
        std::iter::from_fn(|| receiver.try_recv().ok()).map(|name| name.to_string()).collect()
    }

    async fn feed(
        cache: &Cache<ConfigMap>,
        namespace: Option<&str>,
        events: Vec<watcher::Result<Event<ConfigMap>>>,
    ) {
        let metrics = Metrics::new(false);
        cache.follow(namespace, stream::iter(events), &metrics).await;
    }

    #[tokio::test]
    async fn what_vanished_between_two_listings_is_named() {
        let cache = Cache::new("configmaps", 1);
        let mut receiver = cache.subscribe();
        let first = vec![
            Ok(Event::Init),
            Ok(Event::InitApply(object("a", "stays", "1"))),
            Ok(Event::InitApply(object("a", "goes", "2"))),
            Ok(Event::InitDone),
        ];
        feed(&cache, None, first).await;
        assert_eq!(touched(&mut receiver), ["a/stays", "a/goes"]);
        let again = vec![
            Ok(Event::Init),
            Ok(Event::InitApply(object("a", "stays", "1"))),
            Ok(Event::InitDone),
        ];
        feed(&cache, None, again).await;
        assert_eq!(touched(&mut receiver), ["a/goes"], "what did not change is not named");
        assert!(cache.get(&ObjectName::new("a", "goes")).is_none());
    }

    #[tokio::test]
    async fn a_namespace_is_listed_without_touching_the_others() {
        let cache = Cache::new("configmaps", 2);
        let in_a =
            vec![Ok(Event::Init), Ok(Event::InitApply(object("a", "x", "1"))), Ok(Event::InitDone)];
        feed(&cache, Some("a"), in_a).await;
        assert!(!cache.is_synced());
        feed(&cache, Some("b"), vec![Ok(Event::Init), Ok(Event::InitDone)]).await;
        assert!(cache.is_synced());
        assert_eq!(cache.names(Some("a")).len(), 1);
        assert_eq!(cache.names(Some("b")).len(), 0);
    }

    #[tokio::test]
    async fn an_error_is_counted_and_goes_no_further() {
        let cache = Cache::new("configmaps", 1);
        let metrics = Metrics::new(false);
        let events = vec![
            Err(watcher::Error::NoResourceVersion),
            Ok(Event::Init),
            Ok(Event::InitDone),
            Err(watcher::Error::NoResourceVersion),
            Ok(Event::Apply(object("a", "x", "1"))),
            Ok(Event::Delete(object("a", "x", "2"))),
        ];
        cache.follow(None, stream::iter(events), &metrics).await;
        assert!(cache.is_synced());
        assert!(cache.all().is_empty());
        let line = "consul_lock_watch_errors_total{resource=\"configmaps\"} 2";
        assert!(metrics.render().contains(line));
    }
}
