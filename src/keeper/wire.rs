//! Keepers' way to the in-memory Consul, for tests: what a [`Wire`] does to a call happens to it.

use std::future::Future;

use crate::{
    consul::{
        Blocking, Consistency, Consul, ConsulError, Listing, Operation, PutMode, Reading, Renewal,
        SessionInfo, SessionRequest, TokenInfo, Txn, TxnOp, fake::FakeConsul,
    },
    names::{Key, NodeName, SessionId},
};

/// Carries calls, or does not.
pub(super) trait Wire: Clone + Send + Sync + 'static {
    /// Carries one call: `work` is Consul's part of it.
    fn call<T: Send>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, ConsulError>> + Send,
    ) -> impl Future<Output = Result<T, ConsulError>> + Send;

    /// What becomes of a creation on its way.
    fn request(&self, request: &SessionRequest) -> SessionRequest {
        request.clone()
    }

    /// What becomes of a renewal's answer on its way.
    fn granted(&self, renewal: Renewal) -> Renewal {
        renewal
    }
}

/// A Consul at the end of a wire.
#[derive(Clone)]
pub(super) struct Wired<W> {
    pub(super) consul: FakeConsul,
    pub(super) wire: W,
}

impl<W: Wire> Consul for Wired<W> {
    async fn register_node(&self, node: &NodeName) -> Result<(), ConsulError> {
        self.wire.call(Operation::RegisterNode, self.consul.register_node(node)).await
    }
    async fn create_session(&self, request: &SessionRequest) -> Result<SessionId, ConsulError> {
        let request = self.wire.request(request);
        self.wire.call(Operation::CreateSession, self.consul.create_session(&request)).await
    }
    async fn renew_session(&self, id: &SessionId) -> Result<Renewal, ConsulError> {
        let renewal = self.wire.call(Operation::RenewSession, self.consul.renew_session(id)).await;
        renewal.map(|renewal| self.wire.granted(renewal))
    }
    async fn destroy_session(&self, id: &SessionId) -> Result<(), ConsulError> {
        self.wire.call(Operation::DestroySession, self.consul.destroy_session(id)).await
    }
    async fn session(
        &self,
        id: &SessionId,
        consistency: Consistency,
    ) -> Result<Option<SessionInfo>, ConsulError> {
        self.wire.call(Operation::ReadSession, self.consul.session(id, consistency)).await
    }
    async fn node_sessions(&self, node: &NodeName) -> Result<Vec<SessionInfo>, ConsulError> {
        self.wire.call(Operation::ListSessions, self.consul.node_sessions(node)).await
    }
    async fn get(&self, key: &Key, consistency: Consistency) -> Result<Reading, ConsulError> {
        self.wire.call(Operation::ReadKey, self.consul.get(key, consistency)).await
    }
    async fn watch_key(
        &self,
        key: &Key,
        blocking: Blocking,
        consistency: Consistency,
    ) -> Result<Reading, ConsulError> {
        self.wire.call(Operation::WatchKey, self.consul.watch_key(key, blocking, consistency)).await
    }
    async fn watch_prefix(
        &self,
        prefix: &str,
        blocking: Blocking,
        consistency: Consistency,
    ) -> Result<Listing, ConsulError> {
        let watch = self.consul.watch_prefix(prefix, blocking, consistency);
        self.wire.call(Operation::WatchPrefix, watch).await
    }
    async fn put(
        &self,
        key: &Key,
        value: &[u8],
        flags: Option<u64>,
        mode: PutMode,
    ) -> Result<bool, ConsulError> {
        self.wire.call(Operation::WriteKey, self.consul.put(key, value, flags, mode)).await
    }
    async fn delete(&self, key: &Key) -> Result<(), ConsulError> {
        self.wire.call(Operation::DeleteKey, self.consul.delete(key)).await
    }
    async fn transaction(&self, steps: &[TxnOp]) -> Result<Txn, ConsulError> {
        self.wire.call(Operation::Transaction, self.consul.transaction(steps)).await
    }
    async fn leader(&self) -> Result<Option<String>, ConsulError> {
        self.wire.call(Operation::ReadLeader, self.consul.leader()).await
    }
    async fn token_self(&self) -> Result<TokenInfo, ConsulError> {
        self.wire.call(Operation::ReadToken, self.consul.token_self()).await
    }
}
