//! A client that writes only while it may: for a process that may lose the right to act at any
//! moment, such as a controller replica that stops leading, or one that wakes from a freeze.

use std::{fmt, future::Future, sync::Arc};

use super::{
    Blocking, Class, Consistency, Consul, ConsulError, Listing, Operation, PutMode, Reading,
    Renewal, SessionInfo, SessionRequest, TokenInfo, Txn, TxnOp,
};
use crate::names::{Key, NodeName, SessionId};

/// Passes reads on, and writes only while the gate is open at the moment of sending.
///
/// A write that is refused here never left the process: [`Class::Transient`].
#[derive(Clone)]
pub struct Gated<C> {
    inner: C,
    open: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl<C> Gated<C> {
    /// `open` is asked right before each write.
    pub fn new(inner: C, open: Arc<dyn Fn() -> bool + Send + Sync>) -> Gated<C> {
        Gated { inner, open }
    }

    async fn write<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, ConsulError>>,
    ) -> Result<T, ConsulError> {
        if !(self.open)() {
            let message = "not sent: this process may not act any more".to_owned();
            return Err(ConsulError { operation, class: Class::Transient, message });
        }
        call.await
    }
}

impl<C> fmt::Debug for Gated<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gated").field("open", &(self.open)()).finish_non_exhaustive()
    }
}

impl<C: Consul> Consul for Gated<C> {
    async fn register_node(&self, node: &NodeName) -> Result<(), ConsulError> {
        self.write(Operation::RegisterNode, self.inner.register_node(node)).await
    }

    async fn create_session(&self, request: &SessionRequest) -> Result<SessionId, ConsulError> {
        self.write(Operation::CreateSession, self.inner.create_session(request)).await
    }

    async fn renew_session(&self, id: &SessionId) -> Result<Renewal, ConsulError> {
        self.write(Operation::RenewSession, self.inner.renew_session(id)).await
    }

    async fn destroy_session(&self, id: &SessionId) -> Result<(), ConsulError> {
        self.write(Operation::DestroySession, self.inner.destroy_session(id)).await
    }

    async fn session(
        &self,
        id: &SessionId,
        consistency: Consistency,
    ) -> Result<Option<SessionInfo>, ConsulError> {
        self.inner.session(id, consistency).await
    }

    async fn node_sessions(&self, node: &NodeName) -> Result<Vec<SessionInfo>, ConsulError> {
        self.inner.node_sessions(node).await
    }

    async fn get(&self, key: &Key, consistency: Consistency) -> Result<Reading, ConsulError> {
        self.inner.get(key, consistency).await
    }

    async fn watch_key(
        &self,
        key: &Key,
        blocking: Blocking,
        consistency: Consistency,
    ) -> Result<Reading, ConsulError> {
        self.inner.watch_key(key, blocking, consistency).await
    }

    async fn watch_prefix(
        &self,
        prefix: &str,
        blocking: Blocking,
        consistency: Consistency,
    ) -> Result<Listing, ConsulError> {
        self.inner.watch_prefix(prefix, blocking, consistency).await
    }

    async fn put(
        &self,
        key: &Key,
        value: &[u8],
        flags: Option<u64>,
        mode: PutMode,
    ) -> Result<bool, ConsulError> {
        self.write(Operation::WriteKey, self.inner.put(key, value, flags, mode)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), ConsulError> {
        self.write(Operation::DeleteKey, self.inner.delete(key)).await
    }

    async fn transaction(&self, steps: &[TxnOp]) -> Result<Txn, ConsulError> {
        self.write(Operation::Transaction, self.inner.transaction(steps)).await
    }

    async fn leader(&self) -> Result<Option<String>, ConsulError> {
        self.inner.leader().await
    }

    async fn token_self(&self) -> Result<TokenInfo, ConsulError> {
        self.inner.token_self().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::{clock::Clock, consul::fake::FakeConsul};

    #[tokio::test(start_paused = true)]
    async fn closed_gate_lets_reads_through_and_no_write() {
        let open = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&open);
        let consul = Gated::new(
            FakeConsul::new(Clock::simulated()),
            Arc::new(move || asked.load(Ordering::Relaxed)),
        );
        let key = Key::new("a/b").unwrap();
        let refused = consul.put(&key, b"x", None, PutMode::Plain).await.unwrap_err();
        assert_eq!(refused.class, Class::Transient);
        assert_eq!(consul.get(&key, Consistency::Consistent).await.unwrap().pair, None);
        open.store(true, Ordering::Relaxed);
        assert!(consul.put(&key, b"x", None, PutMode::Plain).await.unwrap());
    }
}
