//! What a Consul leader keeps: KV entries, tombstones, sessions, nodes and lock-delays under one
//! Raft index. Synchronous; the present is a parameter. Called by [`super::FakeConsul`] alone.
//!
//! Follows the rules of Consul's own state store (`agent/consul/state`): which writes change
//! nothing, which indexes move, which refusals come before the commit and which after.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use crate::{
    clock::Instant,
    consul::{KvPair, PutMode, Refusal, SessionInfo, TxnOp, TxnRefusal},
    names::{NodeName, SessionId},
};

/// Consul's default `kv_max_value_size`.
pub(super) const VALUE_MAX: usize = 512 * 1024;
/// How long a deleted key still counts in the index of its prefix (`tombstone_ttl`).
const TOMBSTONE_TTL: Duration = Duration::from_secs(15 * 60);

mod sessions;

/// By how many TTLs Consul outlives the last renewal of a session.
pub(super) type ExpiryFactor = Box<dyn FnMut() -> f64 + Send>;

/// Why a request was refused, in Consul's words; [`super`] classifies.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The request itself is wrong.
    Invalid(String),
    /// The session that it relies on is not there.
    NoSession(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    value: Vec<u8>,
    flags: u64,
    session: Option<SessionId>,
    lock_index: u64,
    create_index: u64,
    modify_index: u64,
}

#[derive(Clone, Copy, Debug)]
struct Tombstone {
    index: u64,
    at: Instant,
}

struct Session {
    info: SessionInfo,
    expires: Option<Instant>,
}

/// A step back, in case a later operation of the same transaction fails.
enum Undo {
    Entry(Arc<str>, Option<Entry>),
    Tombstone(Arc<str>, Option<Tombstone>),
}

pub(super) struct Store {
    /// The last Raft entry.
    index: u64,
    /// The last Raft entry that changed a key: Consul's index of the table.
    table_index: u64,
    entries: BTreeMap<Arc<str>, Entry>,
    tombstones: BTreeMap<Arc<str>, Tombstone>,
    sessions: BTreeMap<SessionId, Session>,
    expiries: BTreeSet<(Instant, SessionId)>,
    nodes: BTreeSet<NodeName>,
    lock_delays: BTreeMap<Arc<str>, Instant>,
    undo: Vec<Undo>,
    pub(super) factor: ExpiryFactor,
    pub(super) ttl_min: Duration,
    /// Raised by whatever a blocking query might wait for.
    pub(super) wakes: bool,
}

impl Store {
    pub(super) fn new() -> Store {
        Store {
            index: 10, // a real server has written some entries before it answers
            table_index: 0,
            entries: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            sessions: BTreeMap::new(),
            expiries: BTreeSet::new(),
            nodes: BTreeSet::new(),
            lock_delays: BTreeMap::new(),
            undo: Vec::new(),
            factor: Box::new(|| 2.0),
            ttl_min: Duration::from_secs(10),
            wakes: false,
        }
    }

    /// Ends the sessions whose time has come, each at its own instant.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some((at, id)) = self.expiries.first().cloned() {
            if at > now {
                break;
            }
            self.index += 1;
            self.end_session(&id, at);
        }
    }

    /// When the next session expires unless it is renewed.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiries.first().map(|(at, _)| *at)
    }

    // ---- reading keys ----

    pub(super) fn table_index(&self) -> u64 {
        self.table_index.max(1)
    }

    pub(super) fn key(&self, key: &str) -> Option<KvPair> {
        let (key, entry) = self.entries.get_key_value(key)?;
        Some(pair(key, entry, entry.value.clone()))
    }

    /// The `ModifyIndex` of a key that exists.
    pub(super) fn key_index(&self, key: &str) -> Option<u64> {
        self.entries.get(key).map(|entry| entry.modify_index)
    }

    pub(super) fn listing(&self, prefix: &str) -> Vec<KvPair> {
        under(&self.entries, prefix)
            .map(|(key, entry)| pair(key, entry, entry.value.clone()))
            .collect()
    }

    /// The newest index under the prefix, deleted keys included; where nothing was ever written,
    /// the table's.
    pub(super) fn prefix_index(&self, prefix: &str, now: Instant) -> u64 {
        let live = under(&self.entries, prefix).map(|(_, entry)| entry.modify_index);
        let dead = under(&self.tombstones, prefix)
            .filter(|(_, stone)| now.since(stone.at) < TOMBSTONE_TTL)
            .map(|(_, stone)| stone.index);
        live.chain(dead).max().filter(|_| !prefix.is_empty()).unwrap_or(self.table_index())
    }

    // ---- writing keys ----

    pub(super) fn put(
        &mut self,
        key: &str,
        value: &[u8],
        flags: u64,
        mode: &PutMode,
        now: Instant,
    ) -> Result<bool, Refused> {
        if value.len() > VALUE_MAX {
            return Err(Refused::Invalid(format!(
                "Request body({} bytes) too large, max size: {VALUE_MAX} bytes.",
                value.len()
            )));
        }
        if matches!(mode, PutMode::Acquire(_)) && self.is_delayed(key, now) {
            return Ok(false); // refused before Raft: no index moves
        }
        self.begin();
        match mode {
            PutMode::Plain => {
                self.set(key, value, flags);
                Ok(true)
            }
            PutMode::Acquire(session) => match self.lock(key, session, value, flags) {
                Ok(_) => Ok(true),
                Err(Refusal::InvalidSession) => Err(no_session(session)),
                Err(_) => Ok(false),
            },
            PutMode::Release(session) => Ok(self.unlock(key, session, value, flags).is_ok()),
        }
    }

    pub(super) fn delete(&mut self, key: &str, now: Instant) {
        self.begin();
        self.remove(key, now);
    }

    /// All steps or none; the entries that they wrote, without values.
    pub(super) fn transaction(
        &mut self,
        steps: &[TxnOp],
        now: Instant,
    ) -> Result<Vec<KvPair>, Vec<TxnRefusal>> {
        let delayed = refusals(steps, |step| match step {
            TxnOp::Lock { key, .. } if self.is_delayed(key.as_str(), now) => {
                Err(Refusal::LockDelay)
            }
            _ => Ok(()),
        });
        if !delayed.is_empty() {
            return Err(delayed);
        }
        let before = self.table_index;
        let woke = self.wakes;
        self.begin();
        let mut written = Vec::new();
        let refused = refusals(steps, |step| {
            written.extend(self.step(step, now)?);
            Ok(())
        });
        if refused.is_empty() {
            return Ok(written);
        }
        self.roll_back();
        self.table_index = before;
        self.wakes = woke;
        Err(refused)
    }

    fn step(&mut self, step: &TxnOp, now: Instant) -> Result<Option<KvPair>, Refusal> {
        match step {
            TxnOp::Lock { key, session, value, flags } => {
                self.lock(key.as_str(), session, value, *flags).map(Some)
            }
            TxnOp::Unlock { key, session, value, flags } => {
                self.unlock(key.as_str(), session, value, *flags).map(Some)
            }
            TxnOp::Set { key, value, flags } => Ok(Some(self.set(key.as_str(), value, *flags))),
            TxnOp::Delete { key } => {
                self.remove(key.as_str(), now);
                Ok(None)
            }
            TxnOp::CheckIndex { key, index } => self.check_index(key.as_str(), *index),
            TxnOp::CheckSession { key, session } => self.check_session(key.as_str(), session),
            TxnOp::CheckNotExists { key } => match self.entries.contains_key(key.as_str()) {
                true => Err(Refusal::Check(format!("key {:?} exists", key.as_str()))),
                false => Ok(None),
            },
        }
    }

    fn check_index(&self, key: &str, index: u64) -> Result<Option<KvPair>, Refusal> {
        match self.key_index(key) {
            Some(current) if current == index => Ok(None),
            Some(current) => Err(Refusal::Check(format!(
                "failed index check for key {key:?}, current modify index {current} != {index}"
            ))),
            None => {
                Err(Refusal::Check(format!("failed to check index, key {key:?} doesn't exist")))
            }
        }
    }

    fn check_session(&self, key: &str, session: &SessionId) -> Result<Option<KvPair>, Refusal> {
        let Some(entry) = self.entries.get(key) else {
            return Err(Refusal::Check(format!(
                "failed to check session, key {key:?} doesn't exist"
            )));
        };
        let current = entry.session.as_ref().map_or("", SessionId::as_str);
        if current == session.as_str() {
            return Ok(None);
        }
        Err(Refusal::Check(format!(
            "failed session check for key {key:?}, current session {current:?} != {:?}",
            session.as_str()
        )))
    }

    // ---- the inner writes, all at `self.index` ----

    fn begin(&mut self) {
        self.index += 1;
        self.undo.clear();
    }

    fn roll_back(&mut self) {
        while let Some(step) = self.undo.pop() {
            match step {
                Undo::Entry(key, Some(entry)) => drop(self.entries.insert(key, entry)),
                Undo::Entry(key, None) => drop(self.entries.remove(&key)),
                Undo::Tombstone(key, Some(stone)) => drop(self.tombstones.insert(key, stone)),
                Undo::Tombstone(key, None) => drop(self.tombstones.remove(&key)),
            }
        }
    }

    pub(super) fn is_delayed(&mut self, key: &str, now: Instant) -> bool {
        match self.lock_delays.get(key) {
            Some(end) if *end > now => true,
            Some(_) => {
                self.lock_delays.remove(key);
                false
            }
            None => false,
        }
    }

    /// A leader that was restarted since does not know of earlier lock-delays.
    pub(super) fn forget_lock_delays(&mut self) {
        self.lock_delays.clear();
    }

    fn lock(
        &mut self,
        key: &str,
        session: &SessionId,
        value: &[u8],
        flags: u64,
    ) -> Result<KvPair, Refusal> {
        if !self.sessions.contains_key(session) {
            return Err(Refusal::InvalidSession);
        }
        let lock_index = match self.entries.get(key) {
            None => 1,
            Some(entry) => match &entry.session {
                None => entry.lock_index + 1,
                Some(holder) if holder == session => entry.lock_index,
                Some(_) => return Err(Refusal::Held),
            },
        };
        Ok(self.write(key, value.to_vec(), flags, Some(session.clone()), lock_index))
    }

    fn unlock(
        &mut self,
        key: &str,
        session: &SessionId,
        value: &[u8],
        flags: u64,
    ) -> Result<KvPair, Refusal> {
        match self.entries.get(key) {
            Some(entry) if entry.session.as_ref() == Some(session) => {
                let lock_index = entry.lock_index;
                Ok(self.write(key, value.to_vec(), flags, None, lock_index))
            }
            _ => Err(Refusal::Check(format!(
                "failed to unlock key {key:?}, lock isn't held, or is held by another session"
            ))),
        }
    }

    /// A plain write keeps the session and forgets the lock index.
    fn set(&mut self, key: &str, value: &[u8], flags: u64) -> KvPair {
        let session = self.entries.get(key).and_then(|entry| entry.session.clone());
        self.write(key, value.to_vec(), flags, session, 0)
    }

    /// What the end of a session does to a key with behavior `release`.
    fn free(&mut self, key: &Arc<str>) {
        if let Some(entry) = self.entries.get(key) {
            let (value, flags, lock_index) = (entry.value.clone(), entry.flags, entry.lock_index);
            self.write(key, value, flags, None, lock_index);
        }
    }

    fn write(
        &mut self,
        key: &str,
        value: Vec<u8>,
        flags: u64,
        session: Option<SessionId>,
        lock_index: u64,
    ) -> KvPair {
        let existing = self.entries.get_key_value(key);
        let key: Arc<str> = existing.map_or_else(|| key.into(), |(key, _)| key.clone());
        let mut entry = Entry {
            value,
            flags,
            session,
            lock_index,
            create_index: existing.map_or(self.index, |(_, old)| old.create_index),
            modify_index: self.index,
        };
        if let Some((_, old)) = existing {
            entry.modify_index = old.modify_index;
            if entry == *old {
                return pair(&key, old, Vec::new()); // Consul skips a write that changes nothing
            }
            entry.modify_index = self.index;
        }
        let written = pair(&key, &entry, Vec::new());
        let old = self.entries.insert(key.clone(), entry);
        self.undo.push(Undo::Entry(key, old));
        self.touched();
        written
    }

    fn remove(&mut self, key: &str, now: Instant) {
        let Some((key, old)) = self.entries.remove_entry(key) else {
            return;
        };
        let stone = Tombstone { index: self.index, at: now };
        let older = self.tombstones.insert(key.clone(), stone);
        self.undo.push(Undo::Tombstone(key.clone(), older));
        self.undo.push(Undo::Entry(key, Some(old)));
        self.touched();
    }

    fn touched(&mut self) {
        self.table_index = self.index;
        self.wakes = true;
    }
}

fn pair(key: &str, entry: &Entry, value: Vec<u8>) -> KvPair {
    KvPair {
        key: key.to_owned(),
        value,
        flags: entry.flags,
        session: entry.session.clone(),
        create_index: entry.create_index,
        modify_index: entry.modify_index,
        lock_index: entry.lock_index,
    }
}

fn under<'a, V>(
    map: &'a BTreeMap<Arc<str>, V>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a Arc<str>, &'a V)> {
    map.range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(prefix))
}

/// Consul judges every step even after one was refused, and reports all refusals.
fn refusals(
    steps: &[TxnOp],
    mut judge: impl FnMut(&TxnOp) -> Result<(), Refusal>,
) -> Vec<TxnRefusal> {
    let judged = steps.iter().enumerate();
    judged
        .filter_map(|(op, step)| judge(step).err().map(|reason| TxnRefusal { op, reason }))
        .collect()
}

pub(super) fn no_session(id: &SessionId) -> Refused {
    Refused::NoSession(format!("invalid session {:?}", id.as_str()))
}
