//! The floor: a bare client that makes the calls which a claim needs, and nothing else.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use consul_lock::{
    api::ConsulLockStatus,
    clock::{Clock, Instant},
    consul::{Behavior, Consul, SessionRequest, Txn, TxnOp, http::HttpConsul},
    lock::LOCK_FLAGS,
    names::{Key, NodeName, SessionId, SessionName},
};
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::{
    Failure, Outcome,
    bed::{FLOOR, Field, WRITES, claim, finalizers},
};

/// When each call of one claim was answered.
#[derive(Clone, Copy)]
pub(crate) struct Steps {
    pub(crate) sent: Instant,
    pub(crate) created: Instant,
    pub(crate) finalizer: Instant,
    pub(crate) session: Instant,
    pub(crate) locked: Instant,
    pub(crate) status: Instant,
}

/// The client.
pub(crate) struct Floor {
    clock: Clock,
    /// Stands for the user who creates claims.
    user: Api<consul_lock::api::ConsulLock>,
    /// Stands for the controller.
    writer: Api<consul_lock::api::ConsulLock>,
    consul: HttpConsul,
    node: NodeName,
    /// What the controller wrote for a claim of its own: the same bytes, but for the names.
    template: ConsulLockStatus,
    creations: Semaphore,
    writes: Semaphore,
    sessions: Mutex<Vec<SessionId>>,
}

impl Floor {
    /// A client whose status patches look like `template`.
    pub(crate) async fn prepare(field: &Field, template: ConsulLockStatus) -> Outcome<Arc<Floor>> {
        let node = NodeName::new(format!("consul-lock-{FLOOR}"));
        field.consul.register_node(&node).await?;
        Ok(Arc::new(Floor {
            clock: field.clock.clone(),
            user: field.floor.clone(),
            writer: field.floor_writer.clone(),
            consul: field.consul.clone(),
            node,
            template,
            creations: Semaphore::new(WRITES),
            writes: Semaphore::new(WRITES),
            sessions: Mutex::default(),
        }))
    }

    /// Makes a claim, and everything that makes it held.
    pub(crate) async fn hold(&self, name: &str) -> Outcome<Steps> {
        let turn = self.creations.acquire().await;
        let sent = self.clock.now();
        let made = self.user.create(&PostParams::default(), &claim(name)).await?;
        let created = self.clock.now();
        drop(turn);

        let params = PatchParams::apply("floor");
        let patch = json!({"metadata": {
            "finalizers": finalizers(), "resourceVersion": made.metadata.resource_version,
        }});
        let turn = self.writes.acquire().await;
        let made = self.writer.patch(name, &params, &Patch::Merge(patch)).await?;
        drop(turn);
        let finalizer = self.clock.now();

        let id = self.create_session(&made.uid().unwrap_or_default()).await?;
        let session = self.clock.now();
        let (key, token) = self.lock(name, &id).await?;
        let locked = self.clock.now();

        let patch = json!({
            "metadata": {"resourceVersion": made.metadata.resource_version},
            "status": self.status(&key, &id, token),
        });
        let turn = self.writes.acquire().await;
        self.writer.patch_status(name, &params, &Patch::Merge(patch)).await?;
        drop(turn);
        let status = self.clock.now();
        self.sessions.lock().push(id);
        Ok(Steps { sent, created, finalizer, session, locked, status })
    }

    /// Ends the sessions, which nobody renews.
    pub(crate) async fn end_sessions(&self) -> Outcome<()> {
        let made = std::mem::take(&mut *self.sessions.lock());
        let end = async |session: SessionId| self.consul.destroy_session(&session).await;
        let ended = stream::iter(made).map(end).buffer_unordered(WRITES);
        Ok(ended.try_collect().await?)
    }

    async fn create_session(&self, uid: &str) -> Outcome<SessionId> {
        let request = SessionRequest {
            name: SessionName::new(format!("consul-lock/{FLOOR}/{uid}")),
            node: self.node.clone(),
            ttl: Duration::from_secs(300),
            lock_delay: Duration::ZERO,
            behavior: Behavior::Release,
            node_checks: Vec::new(),
            service_checks: Vec::new(),
        };
        Ok(self.consul.create_session(&request).await?)
    }

    async fn lock(&self, name: &str, session: &SessionId) -> Outcome<(Key, u64)> {
        let odd = |what: String| Failure::Odd(format!("the floor's {name}: {what}"));
        let key = Key::new(&format!("{FLOOR}/{FLOOR}/{name}")).map_err(|e| odd(e.to_string()))?;
        let value = json!({
            "holder": format!("{FLOOR}/{name}"), "cluster": FLOOR,
            "since": "2026-01-01T00:00:00Z", "value": "",
        });
        let lock = TxnOp::Lock {
            key: key.clone(),
            session: session.clone(),
            value: value.to_string().into_bytes(),
            flags: LOCK_FLAGS,
        };
        let steps = [TxnOp::CheckNotExists { key: key.clone() }, lock];
        match self.consul.transaction(&steps).await? {
            Txn::Committed(pairs) => {
                let token = pairs.last().map(|pair| pair.modify_index);
                Ok((key, token.ok_or_else(|| odd("no token".into()))?))
            }
            Txn::RolledBack(refused) => Err(odd(format!("refused: {refused:?}"))),
        }
    }

    fn status(&self, key: &Key, session: &SessionId, token: u64) -> ConsulLockStatus {
        let mut status = self.template.clone();
        status.key = Some(key.to_string());
        status.fencing_token = Some(token.to_string());
        if let Some(known) = &mut status.session {
            known.id = Some(session.to_string());
        }
        status
    }
}
