//! Keepers' way to the in-memory Consul, for tests: what a [`Wire`] does to a call happens to it.

use std::{
    future::{Future, pending},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, task::JoinSet};

use crate::{
    consul::{
        Blocking, Consistency, Consul, ConsulError, Listing, Operation, PutMode, Reading, Renewal,
        SessionInfo, SessionRequest, TokenInfo, Txn, TxnOp, fake::FakeConsul,
    },
    names::{Key, NodeName, SessionId},
};

pub(crate) mod faulty;

/// Carries calls, or does not.
pub(crate) trait Wire: Clone + Send + Sync + 'static {
    /// Carries one call: `work` is Consul's part of it.
    fn call<T: Send>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, ConsulError>> + Send,
    ) -> impl Future<Output = Result<T, ConsulError>> + Send;

    /// Whether calls are carried at once, so that none is ever under way.
    fn is_calm(&self) -> bool;

    /// Where writes are under way.
    fn underway(&self) -> &Underway;

    /// Sends a write, and waits for its answer.
    fn send<T: Send + 'static>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, ConsulError>> + Send + 'static,
    ) -> impl Future<Output = Result<T, ConsulError>> + Send {
        self.carry(operation, work)
    }

    /// Carries a write, which goes on when its sender has given up, as it does in life.
    fn carry<T: Send + 'static>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, ConsulError>> + Send + 'static,
    ) -> impl Future<Output = Result<T, ConsulError>> + Send {
        async move {
            if self.is_calm() {
                return self.call(operation, work).await;
            }
            let (wire, (reply, answer)) = (self.clone(), oneshot::channel());
            {
                let mut underway = self.underway().0.lock();
                while underway.try_join_next().is_some() {}
                underway.spawn(async move { drop(reply.send(wire.call(operation, work).await)) });
            }
            match answer.await {
                Ok(answer) => answer,
                Err(_) => pending().await,
            }
        }
    }

    /// What becomes of a creation on its way.
    fn request(&self, request: &SessionRequest) -> SessionRequest {
        request.clone()
    }

    /// What becomes of a renewal's answer on its way.
    fn granted(&self, renewal: Renewal) -> Renewal {
        renewal
    }
}

/// Writes that are under way.
#[derive(Clone, Default)]
pub(crate) struct Underway(Arc<Mutex<JoinSet<()>>>);

/// A Consul at the end of a wire.
#[derive(Clone)]
pub(crate) struct Wired<W> {
    pub(crate) consul: FakeConsul,
    pub(crate) wire: W,
}

impl<W: Wire> Consul for Wired<W> {
    async fn register_node(&self, node: &NodeName) -> Result<(), ConsulError> {
        let (consul, node) = (self.consul.clone(), node.clone());
        let work = async move { consul.register_node(&node).await };
        self.wire.send(Operation::RegisterNode, work).await
    }
    async fn create_session(&self, request: &SessionRequest) -> Result<SessionId, ConsulError> {
        let (consul, request) = (self.consul.clone(), self.wire.request(request));
        let work = async move { consul.create_session(&request).await };
        self.wire.send(Operation::CreateSession, work).await
    }
    async fn renew_session(&self, id: &SessionId) -> Result<Renewal, ConsulError> {
        let (consul, id) = (self.consul.clone(), id.clone());
        let work = async move { consul.renew_session(&id).await };
        let renewal = self.wire.send(Operation::RenewSession, work).await;
        renewal.map(|renewal| self.wire.granted(renewal))
    }
    async fn destroy_session(&self, id: &SessionId) -> Result<(), ConsulError> {
        let (consul, id) = (self.consul.clone(), id.clone());
        let work = async move { consul.destroy_session(&id).await };
        self.wire.send(Operation::DestroySession, work).await
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
        let (consul, steps) = (self.consul.clone(), steps.to_vec());
        let work = async move { consul.transaction(&steps).await };
        self.wire.send(Operation::Transaction, work).await
    }
    async fn leader(&self) -> Result<Option<String>, ConsulError> {
        self.wire.call(Operation::ReadLeader, self.consul.leader()).await
    }
    async fn token_self(&self) -> Result<TokenInfo, ConsulError> {
        self.wire.call(Operation::ReadToken, self.consul.token_self()).await
    }
}
