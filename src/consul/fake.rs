//! An in-memory Consul for simulations in paused time and for tests that need no server: sessions
//! that expire, lock-delays, transactions, blocking queries.
//!
//! # Guarantees
//! Passes the contract tests that the real server passes (`tests/servers/consul_contract.rs`).
//! Given the same calls at the same instants and the same expiry factors it answers the same, down
//! to every index and session id.
//! # Not guaranteed
//! Nothing here fails, lingers or is stale: whoever simulates a network wraps it. There are no
//! ACLs and no health checks: a session that names a check is refused, as by a Consul that does
//! not know the check.

use std::{fmt, pin::pin, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    clock::{Clock, Instant},
    consul::{
        Blocking, Class, Consistency, Consul, ConsulError, KvPair, Listing, Operation, PutMode,
        Reading, Renewal, SessionInfo, SessionRequest, TokenInfo, Txn, TxnOp,
    },
    names::{Key, NodeName, SessionId},
};

mod store;

use store::{Refused, Store};

/// More steps than this in one transaction are refused (413), as by Consul from 1.14.
const STEPS_MAX: usize = 128;

/// The fake. Clones share one state.
#[derive(Clone)]
pub struct FakeConsul(Arc<Inner>);

struct Inner {
    clock: Clock,
    store: Mutex<Store>,
    /// Wakes every blocking query; each looks whether it was meant.
    changed: Notify,
}

impl fmt::Debug for FakeConsul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeConsul").finish_non_exhaustive()
    }
}

impl FakeConsul {
    /// An empty Consul without nodes, whose time is `clock`.
    pub fn new(clock: Clock) -> FakeConsul {
        let (store, changed) = (Mutex::new(Store::new()), Notify::new());
        FakeConsul(Arc::new(Inner { clock, store, changed }))
    }

    /// Asks `factor` at every creation and renewal how many TTLs later the session expires.
    /// Answers outside 1.0 to 2.0 count as the nearer bound. Without this: 2.0, as Consul does.
    pub fn set_expiry(&self, factor: impl FnMut() -> f64 + Send + 'static) {
        self.with(|store, _| store.factor = Box::new(factor));
    }

    /// The shortest TTL that is accepted (`session_ttl_min`). Without this: 10 s.
    pub fn set_session_ttl_min(&self, min: Duration) {
        self.with(|store, _| store.ttl_min = min);
    }

    /// What an election does: the new leader gives every session its full time again.
    pub fn elect(&self) {
        self.with(Store::rearm_all);
    }

    /// What a restart of the only server does besides [`FakeConsul::elect`]: lock-delays live in
    /// memory.
    pub fn forget_lock_delays(&self) {
        self.with(|store, _| store.forget_lock_delays());
    }

    /// Takes a node and the sessions bound to it out of the catalog.
    pub fn deregister_node(&self, node: &NodeName) {
        self.with(|store, now| store.deregister(node, now));
    }

    /// A key as it is, for invariants that are checked between two steps of a simulation.
    pub fn peek(&self, key: &Key) -> Option<KvPair> {
        self.with(|store, _| store.key(key.as_str()))
    }

    /// All sessions that are alive, for the same purpose.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.with(|store, _| store.sessions().cloned().collect())
    }

    /// Everything that touches the store passes here: what is due happens first, and blocking
    /// queries hear of what changed.
    fn with<T>(&self, act: impl FnOnce(&mut Store, Instant) -> T) -> T {
        let now = self.0.clock.now();
        let mut store = self.0.store.lock();
        store.advance(now);
        let answer = act(&mut store, now);
        if std::mem::take(&mut store.wakes) {
            self.0.changed.notify_waiters();
        }
        answer
    }

    /// Blocks as Consul does: until `look` answers or the wait is over, then answers `last`.
    async fn block<T>(
        &self,
        wait: Duration,
        mut look: impl FnMut(&Store, Instant) -> Option<T>,
        last: impl FnOnce(&Store, Instant) -> T,
    ) -> T {
        let deadline = self.0.clock.now() + wait;
        loop {
            let mut changed = pin!(self.0.changed.notified());
            changed.as_mut().enable(); // before the look, or a change right after it is missed
            let (answer, expiry, now) =
                self.with(|store, now| (look(store, now), store.next_expiry(), now));
            if let Some(answer) = answer {
                return answer;
            }
            if now >= deadline {
                return self.with(|store, now| last(store, now));
            }
            let until = expiry.map_or(deadline, |expiry| expiry.min(deadline));
            tokio::select! {
                () = changed => {}
                () = self.0.clock.sleep_until(until) => {}
            }
        }
    }
}

impl Consul for FakeConsul {
    async fn register_node(&self, node: &NodeName) -> Result<(), ConsulError> {
        self.with(|store, _| store.register(node));
        Ok(())
    }

    async fn create_session(&self, request: &SessionRequest) -> Result<SessionId, ConsulError> {
        self.with(|store, now| store.create_session(request, now))
            .map_err(|refused| error(Operation::CreateSession, refused))
    }

    async fn renew_session(&self, id: &SessionId) -> Result<Renewal, ConsulError> {
        let operation = Operation::RenewSession;
        match self.with(|store, now| store.renew(id, now)) {
            Some(SessionInfo { ttl: Some(ttl), .. }) => Ok(Renewal { ttl }),
            Some(_) => Err(error(operation, Refused::Invalid(format!("session {id} has no TTL")))),
            None => {
                let gone = format!("Session id '{id}' not found");
                Err(error(operation, Refused::NoSession(gone)))
            }
        }
    }

    async fn destroy_session(&self, id: &SessionId) -> Result<(), ConsulError> {
        self.with(|store, now| store.destroy_session(id, now));
        Ok(())
    }

    async fn session(
        &self,
        id: &SessionId,
        _: Consistency,
    ) -> Result<Option<SessionInfo>, ConsulError> {
        Ok(self.with(|store, _| store.session(id)))
    }

    async fn node_sessions(&self, node: &NodeName) -> Result<Vec<SessionInfo>, ConsulError> {
        Ok(self.with(|store, _| store.sessions_of(node).cloned().collect()))
    }

    async fn get(&self, key: &Key, _: Consistency) -> Result<Reading, ConsulError> {
        Ok(self.with(|store, _| reading(store, key)))
    }

    async fn watch_key(
        &self,
        key: &Key,
        blocking: Blocking,
        _: Consistency,
    ) -> Result<Reading, ConsulError> {
        let mut missing = false;
        let look = |store: &Store, _: Instant| {
            let index = match store.key_index(key.as_str()) {
                Some(index) => index,
                // A key that is still missing is no news, however far the table moved meanwhile.
                None if std::mem::replace(&mut missing, true) => return None,
                None => store.table_index(),
            };
            (index > blocking.after).then(|| reading(store, key))
        };
        Ok(self.block(blocking.wait, look, |store, _| reading(store, key)).await)
    }

    async fn watch_prefix(
        &self,
        prefix: &str,
        blocking: Blocking,
        _: Consistency,
    ) -> Result<Listing, ConsulError> {
        let look = |store: &Store, now: Instant| {
            let index = store.prefix_index(prefix, now);
            (index > blocking.after).then(|| listing(store, prefix, now))
        };
        let last = |store: &Store, now: Instant| listing(store, prefix, now);
        Ok(self.block(blocking.wait, look, last).await)
    }

    async fn put(
        &self,
        key: &Key,
        value: &[u8],
        flags: Option<u64>,
        mode: PutMode,
    ) -> Result<bool, ConsulError> {
        let flags = flags.unwrap_or(0);
        self.with(|store, now| store.put(key.as_str(), value, flags, &mode, now))
            .map_err(|refused| error(Operation::WriteKey, refused))
    }

    async fn delete(&self, key: &Key) -> Result<(), ConsulError> {
        self.with(|store, now| store.delete(key.as_str(), now));
        Ok(())
    }

    async fn transaction(&self, steps: &[TxnOp]) -> Result<Txn, ConsulError> {
        if steps.len() > STEPS_MAX {
            let many = steps.len();
            let words = format!("Transaction contains too many operations ({many} > {STEPS_MAX})");
            return Err(error(Operation::Transaction, Refused::Invalid(words)));
        }
        Ok(match self.with(|store, now| store.transaction(steps, now)) {
            Ok(written) => Txn::Committed(written),
            Err(refusals) => Txn::RolledBack(refusals),
        })
    }

    async fn leader(&self) -> Result<Option<String>, ConsulError> {
        Ok(Some("127.0.0.1:8300".into()))
    }

    async fn token_self(&self) -> Result<TokenInfo, ConsulError> {
        Ok(TokenInfo {
            accessor_id: "00000000-0000-0000-0000-000000000002".into(), // Consul's anonymous token
            life: None,
        })
    }
}

fn reading(store: &Store, key: &Key) -> Reading {
    let pair = store.key(key.as_str());
    let index = pair.as_ref().map_or(store.table_index(), |pair| pair.modify_index);
    Reading { pair, index }
}

fn listing(store: &Store, prefix: &str, now: Instant) -> Listing {
    Listing { pairs: store.listing(prefix), index: store.prefix_index(prefix, now) }
}

fn error(operation: Operation, refused: Refused) -> ConsulError {
    let (class, message) = match refused {
        Refused::Invalid(message) => (Class::Invalid, message),
        Refused::NoSession(message) => (Class::Lost, message),
    };
    ConsulError { operation, class, message }
}

#[cfg(test)]
mod tests;
