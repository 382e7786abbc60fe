//! Shared prefix watches: one blocking query per prefix observes every key under it.
//!
//! Consul answers a blocking query on a prefix with the whole prefix after any change there, so one
//! parked request stands in for one per lock. Whoever holds one lock names the key itself in place
//! of a prefix, and nobody reads the keys that are longer. The polls read `stale`: they may be
//! behind, and nothing is decided by them but to ask.
//!
//! # Guarantees
//! A feed shows every lasting state of its key, in order, as soon as the answering server has it
//! and at most ten times a second. Claims hear of failures of their watch that last, that keep
//! them from seeing the key for the first time, or that somebody has to put right.
//! # Not guaranteed
//! States that lasted shorter than a poll.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinSet};

use super::{
    retry::Backoff,
    shared::{Answers, Shared},
};
use crate::{
    clock::Instant,
    consul::{
        Blocking, Class, Consistency, Consul, ConsulError, KvPair, Listing, Operation, Reading,
    },
    lock::LOCK_FLAGS,
    names::Key,
};

/// How long a poll is parked.
const WAIT: Duration = Duration::from_secs(30);
/// What Consul may add to it, and what the network may.
const SLACK: Duration = Duration::from_secs(5);
/// The time limit of the first poll, which is answered at once: every claim waits for it.
const FIRST: Duration = Duration::from_secs(10);
/// Polls are paced by a token bucket: two at once, then one every so often.
const REFILL: Duration = Duration::from_millis(100);
const BURST: u32 = 2;
/// Between an answer and the next poll. Whoever acts on the answer sends first, and need not share
/// Consul and the processor with a poll; what comes of it is in the next answer.
const BREATH: Duration = Duration::from_millis(3);

/// A key as a watch saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sighting {
    /// Rises when Consul's indexes fell.
    pub(super) epoch: u64,
    /// The key's `ModifyIndex`; of a missing key the index of the listing.
    pub(super) index: u64,
    /// The key, if it exists.
    pub(super) pair: Option<Arc<KvPair>>,
}

/// The newest sighting of one key; `None` before the first.
pub(super) type Feed = watch::Receiver<Option<Sighting>>;

/// A key's feed, and where to leave word of what we did to the key ourselves.
pub(super) struct Lookout {
    pub(super) feed: Feed,
    key: Key,
    prefix: Arc<Mutex<Prefix>>,
}

/// All prefix watches of a process. Dropping it ends them.
pub(super) struct Watches<C> {
    shared: Arc<Shared<C>>,
    by_prefix: Mutex<HashMap<Arc<str>, Arc<Mutex<Prefix>>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// What is known of one prefix, and who wants to know.
#[derive(Default)]
pub(super) struct Prefix {
    /// It is watched whether anybody wants to know or not.
    stands: bool,
    epoch: u64,
    /// The index of the newest listing; `None` before the first.
    index: Option<u64>,
    pairs: HashMap<String, Arc<KvPair>>,
    /// Of these, what no listing can show yet: a write of ours is newer than the newest of them.
    ahead: HashMap<String, Arc<KvPair>>,
    feeds: HashMap<Key, Listeners>,
    /// Polls that failed in a row.
    failures: u32,
    /// Why the last one did, if claims heard of it.
    trouble: Option<ConsulError>,
}

/// Those who want to know of one key.
struct Listeners {
    feed: watch::Sender<Option<Sighting>>,
    answers: Vec<Answers>,
}

impl<C: Consul> Watches<C> {
    pub(super) fn new(shared: Arc<Shared<C>>) -> Watches<C> {
        Watches { shared, by_prefix: Mutex::new(HashMap::new()), tasks: Mutex::new(JoinSet::new()) }
    }

    /// Sightings of `key`, from the watch of `prefix`, which is started if need be and ends when
    /// its last feed is dropped. Failures of the watch go to `answers`.
    pub(super) fn feed(&self, prefix: &Arc<str>, key: &Key, answers: &Answers) -> Lookout {
        let mut by_prefix = self.by_prefix.lock();
        let lookout = |feed, prefix| Lookout { feed, key: key.clone(), prefix };
        if let Some(known) = by_prefix.get(prefix) {
            // Found and joined under one lock: its poll ends for good when it finds nobody
            // listening.
            let joined = known.lock().join(key, answers);
            if let Some(feed) = joined {
                return lookout(feed, Arc::clone(known));
            }
        }
        let state = Arc::new(Mutex::new(Prefix::default()));
        // Subscribed before the poll starts, for the same reason.
        let feed = state.lock().subscribe(key, answers);
        self.start(&mut by_prefix, prefix, &state);
        lookout(feed, state)
    }

    /// From now on the prefix is watched whether anybody wants to know or not.
    pub(super) fn stand(&self, prefix: &Arc<str>) {
        let state = Arc::new(Mutex::new(Prefix { stands: true, ..Prefix::default() }));
        self.start(&mut self.by_prefix.lock(), prefix, &state);
    }

    fn start(
        &self,
        by_prefix: &mut HashMap<Arc<str>, Arc<Mutex<Prefix>>>,
        prefix: &Arc<str>,
        state: &Arc<Mutex<Prefix>>,
    ) {
        by_prefix.insert(Arc::clone(prefix), Arc::clone(state));
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(poll(Arc::clone(&self.shared), Arc::clone(prefix), Arc::clone(state)));
    }
}

impl Lookout {
    /// We gave the key up in a commit of this index, in the epoch of the sighting that we went by.
    /// Whoever wants the key next need not wait for a poll to tell.
    pub(super) fn freed(&self, epoch: u64, index: u64) {
        self.prefix.lock().freed(&self.key, epoch, index);
    }
}

/// Polls until nobody listens.
async fn poll<C: Consul>(shared: Arc<Shared<C>>, prefix: Arc<str>, state: Arc<Mutex<Prefix>>) {
    // A prefix ends in a `/`, and no key does.
    let alone = Key::new(&prefix).ok();
    let mut backoff = Backoff::default();
    let mut bucket = Bucket::full(shared.clock.now());
    let mut after = 0;
    while state.lock().is_wanted() {
        let ready = bucket.take(shared.clock.now());
        shared.clock.sleep_until(ready).await;
        let blocking = Blocking { after, wait: WAIT };
        let within = if after == 0 { FIRST } else { WAIT + WAIT / 16 + SLACK };
        let listing = match &alone {
            Some(key) => {
                let request = shared.consul.watch_key(key, blocking, Consistency::Stale);
                let reading = shared.attempt(Operation::WatchKey, within, request).await;
                reading
                    .map(|Reading { pair, index }| Listing { pairs: Vec::from_iter(pair), index })
            }
            None => {
                let request = shared.consul.watch_prefix(&prefix, blocking, Consistency::Stale);
                shared.attempt(Operation::WatchPrefix, within, request).await
            }
        };
        match listing {
            Ok(listing) => {
                backoff.clear();
                after = state.lock().update(listing);
                shared.clock.sleep_until(shared.clock.now() + BREATH).await;
            }
            Err(error) => {
                tracing::warn!(%prefix, %error, "cannot watch");
                let pause = backoff.pause(error.class, shared.jitter());
                state.lock().failed(error);
                // The next is answered at once: whoever heard of the trouble hears of its end.
                after = 0;
                shared.clock.sleep_until(shared.clock.now() + pause).await;
            }
        }
    }
}

impl Prefix {
    /// Subscribes, if anybody listens; else the poll may have ended.
    fn join(&mut self, key: &Key, answers: &Answers) -> Option<Feed> {
        (self.stands || !self.feeds.is_empty()).then(|| self.subscribe(key, answers))
    }

    fn subscribe(&mut self, key: &Key, answers: &Answers) -> Feed {
        if let Some(trouble) = &self.trouble {
            answers.failed(trouble.clone());
        }
        let sighting = self.sighting(key);
        let listeners = self.feeds.entry(key.clone()).or_insert_with(|| Listeners {
            feed: watch::Sender::new(sighting),
            answers: Vec::new(),
        });
        listeners.answers.retain(Answers::is_read);
        listeners.answers.push(answers.clone());
        listeners.feed.subscribe()
    }

    /// A poll failed. What the next poll makes good again is nobody's concern.
    fn failed(&mut self, error: ConsulError) {
        self.failures += 1;
        let somebodys_task = matches!(error.class, Class::Denied | Class::Invalid);
        if somebodys_task || self.index.is_none() || self.failures > 1 {
            for answers in self.feeds.values().flat_map(|listeners| &listeners.answers) {
                answers.failed(error.clone());
            }
            self.trouble = Some(error);
        }
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        if let Some(trouble) = self.trouble.take() {
            for answers in self.feeds.values().flat_map(|listeners| &listeners.answers) {
                answers.succeeded(trouble.operation);
            }
        }
    }

    /// Forgets feeds that nobody listens to. `false`: none is left, nor will be.
    fn is_wanted(&mut self) -> bool {
        self.feeds.retain(|_, listeners| !listeners.feed.is_closed());
        self.stands || !self.feeds.is_empty()
    }

    fn freed(&mut self, key: &Key, epoch: u64, index: u64) {
        let newest = self.pairs.get(key.as_str()).map_or(0, |pair| pair.modify_index);
        if epoch != self.epoch || self.index.is_none_or(|listed| index <= listed.max(newest)) {
            return;
        }
        let pair = Arc::new(KvPair {
            key: key.as_str().to_owned(),
            value: Vec::new(),
            flags: LOCK_FLAGS,
            session: None,
            create_index: 0,
            modify_index: index,
            lock_index: 0,
        });
        self.ahead.insert(pair.key.clone(), Arc::clone(&pair));
        self.pairs.insert(pair.key.clone(), pair);
        self.tell(key);
    }

    fn sighting(&self, key: &Key) -> Option<Sighting> {
        let listed = self.index?;
        let pair = self.pairs.get(key.as_str()).cloned();
        let index = pair.as_ref().map_or(listed, |pair| pair.modify_index);
        Some(Sighting { epoch: self.epoch, index, pair })
    }

    /// Takes in a listing and tells the feeds of keys that changed. Returns the index to block on
    /// next: never 0, which would not block, and 0 again for indexes that fell.
    fn update(&mut self, listing: Listing) -> u64 {
        let fell = self.index.is_some_and(|known| listing.index < known);
        if fell {
            self.epoch += 1;
        }
        self.index = Some(listing.index);
        self.pairs =
            listing.pairs.into_iter().map(|pair| (pair.key.clone(), Arc::new(pair))).collect();
        self.ahead.retain(|_, pair| !fell && pair.modify_index > listing.index);
        self.pairs.extend(self.ahead.iter().map(|(key, pair)| (key.clone(), Arc::clone(pair))));
        self.succeeded();
        for key in self.feeds.keys() {
            self.tell(key);
        }
        if fell { 0 } else { listing.index.max(1) }
    }

    /// Tells a key's feed, if it changed.
    fn tell(&self, key: &Key) {
        let Some(Listeners { feed, .. }) = self.feeds.get(key) else { return };
        let now = self.sighting(key);
        feed.send_if_modified(|known| {
            // A missing key has no index of its own. If the listing's rose, our key may have
            // come and gone since the last poll, and its holder has to hear of it.
            let unlike = |old: &Sighting, new: &Sighting| {
                old.epoch != new.epoch
                    || old.pair != new.pair
                    || (new.pair.is_none() && old.index != new.index)
            };
            let changed = match (&*known, &now) {
                (Some(old), Some(new)) => unlike(old, new),
                _ => true,
            };
            if changed {
                *known = now;
            }
            changed
        });
    }
}

/// A token bucket: [`BURST`] at once, then one every [`REFILL`].
struct Bucket {
    /// The instant at which the bucket would be full.
    full_at: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Bucket {
        Bucket { full_at: now }
    }

    /// Takes a token; returns when it may be used.
    fn take(&mut self, now: Instant) -> Instant {
        self.full_at = self.full_at.max(now) + REFILL;
        (self.full_at - REFILL * BURST).max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::SessionId;

    fn pair(key: &str, modify_index: u64) -> KvPair {
        KvPair {
            key: key.to_owned(),
            value: Vec::new(),
            flags: 0,
            session: None,
            create_index: 1,
            modify_index,
            lock_index: 0,
        }
    }

    fn listen(prefix: &mut Prefix, key: &Key) -> Feed {
        prefix.subscribe(key, &Answers::default())
    }

    #[test]
    fn claims_hear_of_failures_that_matter_and_of_their_end() {
        let failure = |class| {
            let (operation, message) = (Operation::WatchPrefix, "no".to_owned());
            ConsulError { operation, class, message }
        };
        let (mut prefix, answers) = (Prefix::default(), Answers::default());
        let key = Key::new("p/a").unwrap();
        let _feed = prefix.subscribe(&key, &answers);
        let heard = |answers: &Answers| answers.trouble().map(|trouble| trouble.class);
        prefix.failed(failure(Class::Transient));
        assert_eq!(heard(&answers), Some(Class::Transient), "nothing was ever seen");
        prefix.update(Listing { pairs: vec![], index: 3 });
        assert_eq!(heard(&answers), None);
        prefix.failed(failure(Class::Transient));
        assert_eq!(heard(&answers), None, "once is nothing");
        prefix.failed(failure(Class::Transient));
        assert_eq!(heard(&answers), Some(Class::Transient), "it lasts");
        prefix.update(Listing { pairs: vec![], index: 3 });
        prefix.failed(failure(Class::Denied));
        assert_eq!(heard(&answers), Some(Class::Denied), "somebody has to grant it");
        let late = Answers::default();
        let _feed = prefix.subscribe(&key, &late);
        assert_eq!(heard(&late), Some(Class::Denied));
        prefix.update(Listing { pairs: vec![], index: 3 });
        assert_eq!((heard(&answers), heard(&late)), (None, None));
    }

    #[test]
    fn feed_is_told_of_its_own_key_alone() {
        let mut prefix = Prefix::default();
        let (a, b) = (Key::new("p/a").unwrap(), Key::new("p/b").unwrap());
        let (mut feed_a, mut feed_b) = (listen(&mut prefix, &a), listen(&mut prefix, &b));
        prefix.update(Listing { pairs: vec![pair("p/a", 3), pair("p/b", 2)], index: 3 });
        assert_eq!(feed_a.borrow_and_update().clone().unwrap().index, 3);
        assert_eq!(feed_b.borrow_and_update().clone().unwrap().index, 2);
        prefix.update(Listing { pairs: vec![pair("p/a", 5), pair("p/b", 2)], index: 5 });
        assert!(feed_a.has_changed().unwrap());
        assert!(!feed_b.has_changed().unwrap(), "b is as it was");
    }

    #[test]
    fn key_that_came_and_went_between_two_polls_is_told_of() {
        let mut prefix = Prefix::default();
        let mut feed = listen(&mut prefix, &Key::new("p/a").unwrap());
        prefix.update(Listing { pairs: vec![], index: 3 });
        assert_eq!(feed.borrow_and_update().clone().unwrap().index, 3);
        // We locked the key in commit 5, and somebody deleted it in commit 6.
        prefix.update(Listing { pairs: vec![], index: 6 });
        assert!(feed.has_changed().unwrap());
        assert_eq!(feed.borrow_and_update().clone().unwrap().index, 6);
    }

    #[test]
    fn key_that_we_gave_up_is_free_before_a_listing_shows_it_and_not_after_one_shows_more() {
        let mut prefix = Prefix::default();
        let key = Key::new("p/a").unwrap();
        let held = |index| KvPair { session: Some(SessionId::new("s")), ..pair("p/a", index) };
        let mut feed = listen(&mut prefix, &key);
        prefix.update(Listing { pairs: vec![held(3)], index: 3 });
        feed.borrow_and_update();
        prefix.freed(&key, 0, 5);
        let free = |feed: &mut Feed| {
            let seen = feed.borrow_and_update().clone().unwrap();
            (seen.index, seen.pair.unwrap().session.is_none())
        };
        assert!(feed.has_changed().unwrap());
        assert_eq!(free(&mut feed), (5, true));
        prefix.update(Listing { pairs: vec![held(4)], index: 4 });
        assert_eq!(free(&mut feed), (5, true), "an older listing takes nothing back");
        prefix.update(Listing { pairs: vec![held(6)], index: 6 });
        assert_eq!(free(&mut feed), (6, false));
        prefix.freed(&key, 0, 5);
        prefix.freed(&key, 7, 8);
        assert_eq!(free(&mut feed), (6, false), "old news, and news of another epoch");
    }

    #[test]
    fn fallen_index_starts_a_new_epoch_and_reads_afresh() {
        let mut prefix = Prefix::default();
        let key = Key::new("p/a").unwrap();
        let feed = listen(&mut prefix, &key);
        assert_eq!(prefix.update(Listing { pairs: vec![pair("p/a", 90)], index: 90 }), 90);
        assert_eq!(prefix.update(Listing { pairs: vec![pair("p/a", 7)], index: 7 }), 0);
        let seen = feed.borrow().clone().unwrap();
        assert_eq!((seen.epoch, seen.index), (1, 7));
    }

    #[test]
    fn bucket_lets_two_through_and_paces_the_rest() {
        let start = Instant::from_boot(Duration::from_secs(9));
        let mut bucket = Bucket::full(start);
        let waits: Vec<_> = (0..4).map(|_| bucket.take(start).since(start)).collect();
        assert_eq!(waits, [0, 0, 100, 200].map(Duration::from_millis));
    }
}
