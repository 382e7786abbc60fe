//! What a leader remembers of its claims beyond what the caches hold.
//!
//! Above all its own writes: a watch delivers them a moment later, and a walk in between must not
//! act on the object as it was before. The ledger keeps the newest object that a write returned
//! until the cache has caught up. It never compares resource versions by size: an object in the
//! cache is outdated if we replaced exactly that version ourselves.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use parking_lot::Mutex;

use super::{cache::ObjectName, recorded::Followed};
use crate::{
    api::ConsulLock,
    clock::Instant,
    election::{Badged, Runs},
    keeper::ClaimId,
    names::FencingToken,
};

/// Everything remembered, by claim. Every change is complete before anything can panic.
#[derive(Default)]
pub(super) struct Ledger(Mutex<Books>);

#[derive(Default)]
struct Books {
    claims: HashMap<ClaimId, Entry>,
    by_name: HashMap<ObjectName, BTreeSet<ClaimId>>,
}

struct Entry {
    name: ObjectName,
    since: Instant,
    parting_since: Option<Instant>,
    newest: Option<Arc<ConsulLock>>,
    /// The versions that our writes replaced, since the cache was last up to date.
    superseded: Vec<String>,
    /// What was noticed of the present leader, and since when.
    noticed: Noticed,
    /// Pods that were given the badge, or may have been, and were not relieved of it since.
    worn: Vec<Worn>,
    /// The pod that was relieved of it last, by UID.
    relieved: Option<Arc<str>>,
    /// Slices that were given an endpoint, or may have been, and were not emptied since; as they
    /// would be without it.
    filled: Vec<EndpointSlice>,
    /// Slices that were emptied at least once.
    emptied: BTreeSet<String>,
    /// What has run, as the last tenure read it.
    runs: Runs,
    /// The tenure of a pod that holds the key itself, as it was noticed.
    followed: Option<Followed>,
    /// Since when it has contended for a key that nobody holds.
    unheld_since: Option<Instant>,
    /// The last tenure that was to end for another one.
    change: Option<Change>,
    /// The last tenure that traffic was sent to.
    routed: Option<FencingToken>,
}

/// A change of leader.
#[derive(Clone, Copy, Debug)]
struct Change {
    token: FencingToken,
    decided: Instant,
    is_withdrawn: bool,
}

/// A pod that was given the badge, or may have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Worn {
    pub(super) badged: Badged,
    /// The version of the pod over which the badge was written, if it is known to have been: while
    /// the cache has no other, it does not know of the badge.
    pub(super) over: Option<String>,
}

/// What was noticed of a leader, by its UID.
#[derive(Clone, Debug, Default)]
struct Noticed {
    uid: Arc<str>,
    unready_since: Option<Instant>,
    unreachable_since: Option<Instant>,
}

impl Ledger {
    /// Remembers the claim; returns when this leader first met it.
    pub(super) fn meet(&self, id: &ClaimId, name: &ObjectName, now: Instant) -> Instant {
        let mut books = self.0.lock();
        let entry = books.claims.entry(id.clone()).or_insert_with(|| Entry {
            name: name.clone(),
            since: now,
            parting_since: None,
            newest: None,
            superseded: Vec::new(),
            noticed: Noticed::default(),
            worn: Vec::new(),
            relieved: None,
            filled: Vec::new(),
            emptied: BTreeSet::new(),
            runs: Runs::default(),
            followed: None,
            unheld_since: None,
            change: None,
            routed: None,
        });
        let since = entry.since;
        books.by_name.entry(name.clone()).or_default().insert(id.clone());
        since
    }

    /// Remembers that the claim is being deleted; returns since when this leader knows.
    pub(super) fn part(&self, id: &ClaimId, now: Instant) -> Instant {
        let mut books = self.0.lock();
        let entry = books.claims.get_mut(id);
        entry.map_or(now, |entry| *entry.parting_since.get_or_insert(now))
    }

    /// Notices what is wrong with a leader now; returns since when it is not ready, and since when
    /// it cannot be reached.
    pub(super) fn notice(
        &self,
        id: &ClaimId,
        uid: &Arc<str>,
        unready: bool,
        unreachable: bool,
        now: Instant,
    ) -> (Option<Instant>, Option<Instant>) {
        let mut books = self.0.lock();
        let Some(entry) = books.claims.get_mut(id) else {
            return (unready.then_some(now), unreachable.then_some(now));
        };
        if entry.noticed.uid != *uid {
            entry.noticed = Noticed { uid: Arc::clone(uid), ..Noticed::default() };
        }
        let since = |known: &mut Option<Instant>, is_so: bool| {
            *known = is_so.then(|| known.unwrap_or(now));
            *known
        };
        let noticed = &mut entry.noticed;
        (
            since(&mut noticed.unready_since, unready),
            since(&mut noticed.unreachable_since, unreachable),
        )
    }

    /// Remembers that a pod is about to be given the badge.
    pub(super) fn dresses(&self, id: &ClaimId, badged: Badged) {
        if let Some(entry) = self.0.lock().claims.get_mut(id) {
            entry.worn.retain(|worn| worn.badged.uid != badged.uid);
            entry.worn.push(Worn { badged, over: None });
        }
    }

    /// A pod of this version was given the badge.
    pub(super) fn dressed(&self, id: &ClaimId, uid: &str, over: Option<&String>) {
        if let Some(entry) = self.0.lock().claims.get_mut(id) {
            for worn in entry.worn.iter_mut().filter(|worn| *worn.badged.uid == *uid) {
                worn.over = over.cloned();
            }
        }
    }

    /// A pod was relieved of its badge.
    pub(super) fn stripped(&self, id: &ClaimId, uid: &Arc<str>) {
        if let Some(entry) = self.0.lock().claims.get_mut(id) {
            entry.worn.retain(|worn| worn.badged.uid != *uid);
            entry.relieved = Some(Arc::clone(uid));
        }
    }

    /// The pod that was relieved of the badge last, by UID: a label that an earlier term sent comes
    /// too late there.
    pub(super) fn relieved(&self, id: &ClaimId) -> Option<Arc<str>> {
        self.0.lock().claims.get(id)?.relieved.clone()
    }

    /// The pods that may wear the badge, whatever the cache says.
    pub(super) fn worn(&self, id: &ClaimId) -> Vec<Worn> {
        self.0.lock().claims.get(id).map(|entry| entry.worn.clone()).unwrap_or_default()
    }

    /// Remembers that a slice is about to be given an endpoint. `blank`: the slice without it.
    pub(super) fn fills(&self, id: &ClaimId, blank: EndpointSlice) {
        if let Some(entry) = self.0.lock().claims.get_mut(id) {
            entry.filled.retain(|filled| filled.metadata.name != blank.metadata.name);
            entry.filled.push(blank);
        }
    }

    /// A slice was emptied.
    pub(super) fn empties(&self, id: &ClaimId, name: &str) {
        if let Some(entry) = self.0.lock().claims.get_mut(id) {
            entry.filled.retain(|filled| filled.metadata.name.as_deref() != Some(name));
            entry.emptied.insert(name.to_owned());
        }
    }

    /// The slices that were emptied at least once: what an earlier term sent comes too late there.
    pub(super) fn emptied(&self, id: &ClaimId) -> BTreeSet<String> {
        self.0.lock().claims.get(id).map(|entry| entry.emptied.clone()).unwrap_or_default()
    }

    /// The slices that may have an endpoint, whatever the cache says.
    pub(super) fn filled(&self, id: &ClaimId) -> Vec<EndpointSlice> {
        self.0.lock().claims.get(id).map(|entry| entry.filled.clone()).unwrap_or_default()
    }

    /// Remembers what has run.
    pub(super) fn learns(&self, id: &ClaimId, runs: &Runs) {
        if let Some(entry) = self.0.lock().claims.get_mut(id) {
            entry.runs.clone_from(runs);
        }
    }

    /// What has run, as far as is known; what is known stays true.
    pub(super) fn runs(&self, id: &ClaimId) -> Runs {
        self.0.lock().claims.get(id).map(|entry| entry.runs.clone()).unwrap_or_default()
    }

    /// Remembers the tenure of a pod that holds the key itself.
    pub(super) fn follows(&self, id: &ClaimId, followed: &Followed) {
        if let Some(entry) = self.0.lock().claims.get_mut(id) {
            entry.followed = Some(followed.clone());
        }
    }

    /// The last such tenure.
    pub(super) fn followed(&self, id: &ClaimId) -> Option<Followed> {
        self.0.lock().claims.get(id)?.followed.clone()
    }

    /// Remembers whether the claim contends for a key that nobody holds.
    pub(super) fn stands(&self, id: &ClaimId, is_unheld: bool, now: Instant) {
        if let Some(entry) = self.0.lock().claims.get_mut(id) {
            entry.unheld_since = is_unheld.then(|| entry.unheld_since.unwrap_or(now));
        }
    }

    /// For how long any claim has done so at most.
    pub(super) fn longest_unheld(&self, now: Instant) -> Duration {
        let books = self.0.lock();
        let since = books.claims.values().filter_map(|entry| entry.unheld_since).min();
        since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// A tenure is to end for another one; whether that is news.
    pub(super) fn decides(&self, id: &ClaimId, token: FencingToken, now: Instant) -> bool {
        let mut books = self.0.lock();
        let Some(entry) = books.claims.get_mut(id) else { return false };
        let is_news = entry.change.is_none_or(|change| change.token != token);
        if is_news {
            entry.change = Some(Change { token, decided: now, is_withdrawn: false });
        }
        is_news
    }

    /// Endpoint and label of a tenure are gone: how long after it was to end, the first time.
    pub(super) fn withdrawn(
        &self,
        id: &ClaimId,
        token: FencingToken,
        now: Instant,
    ) -> Option<Duration> {
        let mut books = self.0.lock();
        let change = books.claims.get_mut(id)?.change.as_mut()?;
        let is_news = change.token == token && !change.is_withdrawn;
        change.is_withdrawn |= is_news;
        is_news.then(|| now.since(change.decided))
    }

    /// Traffic is sent to a tenure; whether that is news.
    pub(super) fn routes(&self, id: &ClaimId, token: FencingToken) -> bool {
        let mut books = self.0.lock();
        let entry = books.claims.get_mut(id);
        entry.is_some_and(|entry| entry.routed.replace(token) != Some(token))
    }

    /// The newest that is known of a claim, given what the cache holds.
    pub(super) fn newest(&self, id: &ClaimId, cached: Arc<ConsulLock>) -> Arc<ConsulLock> {
        let mut books = self.0.lock();
        let Some(entry) = books.claims.get_mut(id) else {
            return cached;
        };
        match (&entry.newest, cached.resource_version()) {
            (Some(newest), Some(version)) if entry.superseded.contains(&version) => {
                Arc::clone(newest)
            }
            _ => {
                entry.newest = None;
                entry.superseded.clear();
                cached
            }
        }
    }

    /// A write of ours replaced `before` by `after`.
    pub(super) fn wrote(&self, id: &ClaimId, before: &ConsulLock, after: Arc<ConsulLock>) {
        let mut books = self.0.lock();
        if let Some(entry) = books.claims.get_mut(id)
            && before.resource_version() != after.resource_version()
        {
            entry.superseded.extend(before.resource_version());
            entry.newest = Some(after);
        }
    }

    /// The object's name, of a claim that was met.
    pub(super) fn name_of(&self, id: &ClaimId) -> Option<ObjectName> {
        self.0.lock().claims.get(id).map(|entry| entry.name.clone())
    }

    /// Claims that were met under this name, except the one that has it now.
    pub(super) fn former(&self, name: &ObjectName, now: Option<&ClaimId>) -> Vec<ClaimId> {
        let books = self.0.lock();
        let known = books.by_name.get(name).into_iter().flatten();
        known.filter(|id| Some(*id) != now).cloned().collect()
    }

    pub(super) fn forget(&self, id: &ClaimId) {
        let mut books = self.0.lock();
        let Some(entry) = books.claims.remove(id) else {
            return;
        };
        if let Some(ids) = books.by_name.get_mut(&entry.name) {
            ids.remove(id);
            if ids.is_empty() {
                books.by_name.remove(&entry.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::ConsulLockSpec;

    fn object(version: &str) -> Arc<ConsulLock> {
        let mut claim = ConsulLock::new("billing", ConsulLockSpec::default());
        claim.metadata.resource_version = Some(version.into());
        Arc::new(claim)
    }

    fn met() -> (Ledger, ClaimId) {
        let (ledger, id) = (Ledger::default(), ClaimId("uid".into()));
        let now = Instant::from_boot(Duration::from_secs(1));
        ledger.meet(&id, &ObjectName::new("shop", "billing"), now);
        (ledger, id)
    }

    fn version(claim: &ConsulLock) -> String {
        claim.resource_version().unwrap()
    }

    #[test]
    fn own_writes_are_seen_before_the_watch_tells_of_them() {
        let (ledger, id) = met();
        ledger.wrote(&id, &object("1"), object("2"));
        ledger.wrote(&id, &object("2"), object("3"));
        for outdated in ["1", "2"] {
            assert_eq!(version(&ledger.newest(&id, object(outdated))), "3");
        }
    }

    #[test]
    fn others_writes_win_over_what_is_remembered() {
        let (ledger, id) = met();
        ledger.wrote(&id, &object("1"), object("2"));
        assert_eq!(version(&ledger.newest(&id, object("7"))), "7");
        assert_eq!(version(&ledger.newest(&id, object("1"))), "1", "forgotten");
    }

    #[test]
    fn what_is_wrong_with_a_leader_counts_from_when_it_was_noticed_and_for_this_leader_alone() {
        let (ledger, id) = met();
        let at = |second| Instant::from_boot(Duration::from_secs(second));
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert_eq!(ledger.notice(&id, &a, true, false, at(5)), (Some(at(5)), None));
        assert_eq!(ledger.notice(&id, &a, true, true, at(7)), (Some(at(5)), Some(at(7))));
        assert_eq!(ledger.notice(&id, &a, false, true, at(8)), (None, Some(at(7))));
        assert_eq!(ledger.notice(&id, &a, true, true, at(9)), (Some(at(9)), Some(at(7))));
        assert_eq!(ledger.notice(&id, &b, true, false, at(10)), (Some(at(10)), None));
    }

    #[test]
    fn what_may_have_been_written_is_remembered_until_it_is_taken_back() {
        let (ledger, id) = met();
        let badged = |uid: &str| Badged {
            pod: uid.into(),
            uid: uid.into(),
            labelled: true,
            token: None,
            deleting: false,
        };
        ledger.dresses(&id, badged("a"));
        ledger.dresses(&id, badged("a"));
        ledger.dresses(&id, badged("b"));
        ledger.stripped(&id, &"a".into());
        assert_eq!(ledger.relieved(&id).as_deref(), Some("a"));
        let worn = |over: Option<&str>| Worn { badged: badged("b"), over: over.map(str::to_owned) };
        assert_eq!(ledger.worn(&id), [worn(None)]);
        ledger.dressed(&id, "b", Some(&"7".to_owned()));
        assert_eq!(ledger.worn(&id), [worn(Some("7"))]);
        ledger.dresses(&id, badged("b"));
        assert_eq!(ledger.worn(&id), [worn(None)], "not known to have arrived");
        let mut blank = EndpointSlice::default();
        blank.metadata.name = Some("slice".to_owned());
        ledger.fills(&id, blank.clone());
        ledger.fills(&id, blank.clone());
        assert_eq!(ledger.filled(&id), [blank]);
        assert!(ledger.emptied(&id).is_empty());
        ledger.empties(&id, "slice");
        assert!(ledger.filled(&id).is_empty());
        assert!(ledger.emptied(&id).contains("slice"));
    }

    #[test]
    fn who_has_waited_longest_for_a_key_that_nobody_holds_is_told_as_long_as_it_waits() {
        let (ledger, id) = met();
        let at = |second| Instant::from_boot(Duration::from_secs(second));
        assert_eq!(ledger.longest_unheld(at(9)), Duration::ZERO);
        ledger.stands(&id, true, at(10));
        ledger.stands(&id, true, at(15));
        assert_eq!(ledger.longest_unheld(at(30)), Duration::from_secs(20));
        ledger.stands(&id, false, at(31));
        assert_eq!(ledger.longest_unheld(at(32)), Duration::ZERO);
        ledger.stands(&id, true, at(33));
        ledger.forget(&id);
        assert_eq!(ledger.longest_unheld(at(40)), Duration::ZERO);
    }

    #[test]
    fn each_part_of_a_change_of_leader_is_told_once() {
        let (ledger, id) = met();
        let at = |second| Instant::from_boot(Duration::from_secs(second));
        let (first, second) = (FencingToken::new(7), FencingToken::new(9));
        assert_eq!(ledger.withdrawn(&id, first, at(1)), None, "nothing was decided");
        assert!(ledger.decides(&id, first, at(2)));
        assert!(!ledger.decides(&id, first, at(3)), "the walk is repeated");
        assert_eq!(ledger.withdrawn(&id, first, at(5)), Some(Duration::from_secs(3)));
        assert_eq!(ledger.withdrawn(&id, first, at(6)), None);
        assert!(ledger.routes(&id, second) && !ledger.routes(&id, second));
        assert_eq!(ledger.withdrawn(&id, second, at(7)), None);
        assert!(ledger.decides(&id, second, at(8)));
    }

    #[test]
    fn claims_of_one_name_are_told_apart() {
        let (ledger, old) = met();
        let (name, new) = (ObjectName::new("shop", "billing"), ClaimId("new".into()));
        ledger.meet(&new, &name, Instant::from_boot(Duration::from_secs(2)));
        assert_eq!(ledger.former(&name, Some(&new)), std::slice::from_ref(&old));
        assert_eq!(ledger.name_of(&old), Some(name.clone()));
        ledger.forget(&old);
        assert!(ledger.former(&name, Some(&new)).is_empty());
        assert_eq!(ledger.name_of(&old), None);
    }
}
