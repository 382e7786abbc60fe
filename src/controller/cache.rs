//! What the API server last told us: one [`Cache`] per kind, fed by watches of its own.
//!
//! Caches are kept on standby replicas too, and listed anew when a term of leadership begins: what
//! the one before wrote, watches may not have told yet.
//!
//! # Guarantees
//! A watch that fails is tried again by itself, with growing pauses; its errors are counted and go
//! no further, so no failing watch delays another or whoever reads the cache. Every object that
//! came, changed or went is named to every subscriber, with what it can be found by before and
//! after, or the subscriber learns that it missed some. What changed only in fields that are not
//! kept is not named.
//! # Not guaranteed
//! A cache lags behind; `super::ledger` makes up for our own writes.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    fmt,
    sync::Arc,
};

use futures::{Stream, StreamExt};
use kube::{
    Resource, ResourceExt,
    runtime::watcher::{self, Event},
};
use parking_lot::RwLock;
use tokio::sync::{broadcast, watch};

use crate::telemetry::Metrics;

/// How many changes a subscriber may be behind before it has to look at everything.
const TOUCHED_KEPT: usize = match cfg!(test) {
    false => 8192,
    true => 64, // a simulation makes thousands of caches, and their room would cost most of its time
};

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

/// How many objects that went are remembered.
const GONE_KEPT: usize = 1024;

/// What a kind of object has to tell about itself to be kept.
pub(super) trait Cached: Resource + Clone {
    /// What the object can be found by, beside its name. Unique across the cluster, so with the
    /// namespace where it matters.
    fn keys(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether nothing that is kept has changed.
    fn is_same(&self, _other: &Self) -> bool {
        false
    }
}

/// An object that came, changed or went.
#[derive(Clone, Debug)]
pub(super) struct Touched {
    pub(super) name: ObjectName,
    /// What it could be found by before, or can be now.
    pub(super) keys: Arc<[String]>,
}

/// All objects of one kind, as last seen.
pub(super) struct Cache<K> {
    kind: &'static str,
    /// A panic elsewhere leaves whole objects behind.
    objects: RwLock<Objects<K>>,
    touched: broadcast::Sender<Touched>,
    watches: usize,
    listing: watch::Sender<Listing>,
}

/// How far the watches have come with listing everything.
#[derive(Default)]
struct Listing {
    /// How many times that was asked for, but for the first.
    round: u64,
    /// The watches that have listed everything in this round, by their namespace.
    done: BTreeSet<Option<String>>,
}

struct Objects<K> {
    by_name: HashMap<ObjectName, Arc<K>>,
    /// In the order of their names, so that the same objects are always found in the same order.
    by_key: HashMap<String, BTreeSet<ObjectName>>,
    /// The last words of what went, the oldest first; nothing of what went unseen.
    gone: VecDeque<Arc<K>>,
}

impl<K> Default for Objects<K> {
    fn default() -> Objects<K> {
        Objects { by_name: HashMap::new(), by_key: HashMap::new(), gone: VecDeque::new() }
    }
}

impl<K: Cached> Objects<K> {
    /// Takes an object in, and says what it can be found by, before and after; `None`: it is as it
    /// was.
    fn insert(&mut self, name: &ObjectName, object: K) -> Option<Vec<String>> {
        let (mut keys, object) = (object.keys(), Arc::new(object));
        let known = self.by_name.insert(name.clone(), Arc::clone(&object));
        if let Some(known) = known {
            let same = known.is_same(&object);
            let before = known.keys();
            let lost = before.into_iter().filter(|key| !keys.contains(key)).collect::<Vec<_>>();
            self.unfile(name, &lost);
            self.file(name, &keys);
            if same && lost.is_empty() {
                return None;
            }
            keys.extend(lost);
        } else {
            self.file(name, &keys);
        }
        Some(keys)
    }

    fn remove(&mut self, name: &ObjectName, last: Option<K>) -> Option<Vec<String>> {
        let known = self.by_name.remove(name)?;
        let keys = known.keys();
        self.unfile(name, &keys);
        if self.gone.len() == GONE_KEPT {
            self.gone.pop_front();
        }
        self.gone.extend(last.map(Arc::new));
        Some(keys)
    }

    fn file(&mut self, name: &ObjectName, keys: &[String]) {
        for key in keys {
            if let Some(names) = self.by_key.get_mut(key) {
                names.insert(name.clone());
            } else {
                self.by_key.insert(key.clone(), BTreeSet::from([name.clone()]));
            }
        }
    }

    fn unfile(&mut self, name: &ObjectName, keys: &[String]) {
        for key in keys {
            if let Some(names) = self.by_key.get_mut(key) {
                names.remove(name);
                if names.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
    }
}

impl<K: Cached> Cache<K> {
    /// An empty cache that `watches` watches are going to feed. `kind` labels metrics and logs.
    pub(super) fn new(kind: &'static str, watches: usize) -> Cache<K> {
        Cache {
            kind,
            objects: RwLock::default(),
            touched: broadcast::Sender::new(TOUCHED_KEPT),
            watches,
            listing: watch::Sender::default(),
        }
    }

    /// Has everything listed anew: until then the cache is as it was, but not
    /// [synced](Cache::is_synced).
    pub(super) fn renew(&self) {
        self.listing.send_modify(|listing| {
            listing.round += 1;
            listing.done.clear();
        });
    }

    pub(super) fn get(&self, name: &ObjectName) -> Option<Arc<K>> {
        self.objects.read().by_name.get(name).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<K>> {
        self.objects.read().by_name.values().cloned().collect()
    }

    /// Everything that can be found by `key`.
    pub(super) fn by(&self, key: &str) -> Vec<Arc<K>> {
        let objects = self.objects.read();
        let names = objects.by_key.get(key).into_iter().flatten();
        names.filter_map(|name| objects.by_name.get(name).cloned()).collect()
    }

    /// The names of everything that can be found by `key`.
    pub(super) fn names_by(&self, key: &str) -> Vec<ObjectName> {
        self.objects.read().by_key.get(key).into_iter().flatten().cloned().collect()
    }

    /// An object as it was when it went, if it was seen going and that is not too long ago.
    pub(super) fn last_of(&self, uid: &str) -> Option<Arc<K>> {
        let objects = self.objects.read();
        let of = |gone: &&Arc<K>| gone.meta().uid.as_deref() == Some(uid);
        objects.gone.iter().rev().find(of).cloned()
    }

    /// The names of everything, or of everything in one namespace.
    pub(super) fn names(&self, namespace: Option<&str>) -> Vec<ObjectName> {
        self.objects
            .read()
            .by_name
            .keys()
            .filter(|name| namespace.is_none_or(|namespace| *name.namespace == *namespace))
            .cloned()
            .collect()
    }

    /// The names of what changes from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Touched> {
        self.touched.subscribe()
    }

    /// Whether every watch has listed everything, since that was last asked for.
    pub(super) fn is_synced(&self) -> bool {
        self.listing.borrow().done.len() == self.watches
    }

    pub(super) async fn wait_until_synced(&self) {
        let mut listing = self.listing.subscribe();
        // The sender lives as long as `self`, so this only ends when it is so.
        let _ = listing.wait_for(|listing| listing.done.len() == self.watches).await;
    }

    /// Feeds the cache from one watch, of one namespace or of everything; `watch` starts it, and
    /// does so anew for every [`renew`](Cache::renew). Ends when the watch does, which a watch that
    /// tries again never does.
    pub(super) async fn follow<S>(
        &self,
        namespace: Option<&str>,
        mut watch: impl FnMut() -> S,
        metrics: &Metrics,
    ) where
        S: Stream<Item = watcher::Result<Event<K>>>,
    {
        let mut listing = self.listing.subscribe();
        loop {
            let round = listing.borrow_and_update().round;
            let renewed = async {
                let _ = listing.wait_for(|listing| listing.round != round).await;
            };
            tokio::select! {
                biased; // what an outdated watch tells is of no use
                () = renewed => {}
                () = self.follow_once(namespace, round, watch(), metrics) => return,
            }
        }
    }

    async fn follow_once(
        &self,
        namespace: Option<&str>,
        round: u64,
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
                    for touched in self.apply(namespace, &mut listing, event) {
                        // An error says that nobody subscribes: this replica stands by.
                        let _ = self.touched.send(touched);
                    }
                    if done && !listed_once {
                        listed_once = true;
                        self.one_has_listed(namespace, round);
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
    ) -> Vec<Touched> {
        let mut objects = self.objects.write();
        let touched = |name, keys: Vec<String>| Touched { name, keys: keys.into() };
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
                let known = objects.by_name.get(&name).and_then(|known| known.resource_version());
                if known.is_some() && known == object.resource_version() {
                    return Vec::new();
                }
                let keys = objects.insert(&name, object);
                keys.map(|keys| touched(name, keys)).into_iter().collect()
            }
            Event::Delete(object) => {
                let name = ObjectName::of(&object);
                let keys = objects.remove(&name, Some(object)).unwrap_or_default();
                vec![touched(name, keys)]
            }
            Event::InitDone => {
                let listed = listing.take().unwrap_or_default();
                let ours = |name: &ObjectName| namespace.is_none_or(|ns| *name.namespace == *ns);
                let gone: Vec<ObjectName> = objects
                    .by_name
                    .keys()
                    .filter(|name| ours(name) && !listed.contains(name))
                    .cloned()
                    .collect();
                let mut all = Vec::new();
                for name in gone {
                    let keys = objects.remove(&name, None).unwrap_or_default();
                    all.push(touched(name, keys));
                }
                all
            }
        }
    }

    fn one_has_listed(&self, namespace: Option<&str>, round: u64) {
        self.listing.send_modify(|listing| {
            if listing.round == round {
                listing.done.insert(namespace.map(str::to_owned));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

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

    impl Cached for ConfigMap {
        fn keys(&self) -> Vec<String> {
            self.data.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect()
        }

        fn is_same(&self, other: &ConfigMap) -> bool {
            self.data == other.data
        }
    }

    fn with_data(mut object: ConfigMap, key: &str, value: &str) -> ConfigMap {
        object.data = Some([(key.to_owned(), value.to_owned())].into());
        object
    }

    fn touched(receiver: &mut broadcast::Receiver<Touched>) -> Vec<String> {
        let touched = std::iter::from_fn(|| receiver.try_recv().ok());
        touched.map(|touched| touched.name.to_string()).collect()
    }

    async fn feed(
        cache: &Cache<ConfigMap>,
        namespace: Option<&str>,
        events: Vec<watcher::Result<Event<ConfigMap>>>,
    ) {
        feed_counted(cache, namespace, events, &Metrics::new(false)).await;
    }

    async fn feed_counted(
        cache: &Cache<ConfigMap>,
        namespace: Option<&str>,
        events: Vec<watcher::Result<Event<ConfigMap>>>,
        metrics: &Metrics,
    ) {
        let mut events = Some(stream::iter(events));
        cache.follow(namespace, || events.take().expect("started once"), metrics).await;
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
    async fn asked_anew_every_watch_is_started_anew_and_nothing_is_forgotten_meanwhile() {
        let cache: Cache<ConfigMap> = Cache::new("configmaps", 2);
        let metrics = Metrics::new(false);
        let (starts, held_back) = (Cell::new(0), Cell::new(false));
        let watch = |namespace: &'static str| {
            let (starts, held_back) = (&starts, &held_back);
            move || {
                starts.set(starts.get() + 1);
                let version = starts.get().to_string();
                let listed = vec![
                    Ok(Event::Init),
                    Ok(Event::InitApply(object(namespace, "x", &version))),
                    Ok(Event::InitDone),
                ];
                let listed = if held_back.get() { Vec::new() } else { listed };
                stream::iter(listed).chain(stream::pending())
            }
        };
        let version = |namespace| {
            cache.get(&ObjectName::new(namespace, "x")).and_then(|one| one.resource_version())
        };
        let story = async {
            cache.wait_until_synced().await;
            held_back.set(true);
            cache.renew();
            assert!(!cache.is_synced(), "what was listed before does not count");
            tokio::task::yield_now().await;
            assert_eq!((starts.get(), cache.is_synced()), (4, false));
            assert_eq!((version("a").as_deref(), version("b").as_deref()), (Some("1"), Some("2")));
            held_back.set(false);
            cache.renew();
            cache.wait_until_synced().await;
            assert_eq!((version("a").as_deref(), version("b").as_deref()), (Some("5"), Some("6")));
        };
        tokio::select! {
            biased;
            () = cache.follow(Some("a"), watch("a"), &metrics) => unreachable!("it never ends"),
            () = cache.follow(Some("b"), watch("b"), &metrics) => unreachable!("it never ends"),
            () = story => {}
        }
    }

    #[tokio::test]
    async fn an_object_is_found_by_its_keys_and_by_no_key_that_it_had() {
        let cache = Cache::new("configmaps", 1);
        let mut receiver = cache.subscribe();
        let red = with_data(object("a", "x", "1"), "colour", "red");
        let blue = with_data(object("a", "x", "2"), "colour", "blue");
        feed(&cache, None, vec![Ok(Event::Apply(red))]).await;
        assert_eq!(cache.by("colour=red").len(), 1);
        receiver.try_recv().unwrap();
        feed(&cache, None, vec![Ok(Event::Apply(blue.clone()))]).await;
        assert_eq!((cache.by("colour=red").len(), cache.by("colour=blue").len()), (0, 1));
        let keys = receiver.try_recv().unwrap().keys;
        assert_eq!(&*keys, ["colour=blue", "colour=red"], "before and after");
        let mut same = blue.clone();
        same.metadata.resource_version = Some("3".into());
        feed(&cache, None, vec![Ok(Event::Apply(same))]).await;
        assert!(receiver.try_recv().is_err(), "nothing that is kept has changed");
        feed(&cache, None, vec![Ok(Event::Delete(blue))]).await;
        assert!(cache.names_by("colour=blue").is_empty());
        assert_eq!(&*receiver.try_recv().unwrap().keys, ["colour=blue"]);
    }

    #[tokio::test]
    async fn the_last_words_of_what_went_are_remembered() {
        let cache = Cache::new("configmaps", 1);
        let mut first = object("a", "x", "1");
        first.metadata.uid = Some("uid-1".into());
        let last = with_data(first.clone(), "colour", "black");
        feed(&cache, None, vec![Ok(Event::Apply(first)), Ok(Event::Delete(last.clone()))]).await;
        assert_eq!(cache.last_of("uid-1").as_deref(), Some(&last));
        assert_eq!(cache.last_of("uid-2"), None);
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
        feed_counted(&cache, None, events, &metrics).await;
        assert!(cache.is_synced());
        assert!(cache.all().is_empty());
        let line = "consul_lock_watch_errors_total{resource=\"configmaps\"} 2";
        assert!(metrics.render().contains(line));
    }
}
