//! What all keepers of a process share.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Trouble;
use crate::{
    clock::Clock,
    consul::{Consul, ConsulError, Operation},
    names::{NodeName, SessionId, SessionName},
    telemetry::Metrics,
};

/// Numbers in 0.0..1.0 that spread what would otherwise happen at one instant. A parameter, so that
/// a simulation can repeat itself.
pub type Jitter = Arc<dyn Fn() -> f64 + Send + Sync>;

/// What all keepers of a process share.
pub(super) struct Shared<C> {
    pub(super) consul: C,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) jitter: Jitter,
    /// Cancelled by a task that panics.
    pub(super) panicked: CancellationToken,
    nodes: Mutex<HashMap<NodeName, Arc<Node>>>,
}

impl<C> fmt::Debug for Shared<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// A virtual catalog node, as far as this process has dealt with it.
#[derive(Default)]
struct Node {
    /// Held while the node is being registered, so that it happens once.
    registered: tokio::sync::Mutex<bool>,
    /// Sessions that stood on the node before this process made any there, by name.
    left_behind: Mutex<HashMap<SessionName, SessionId>>,
}

impl<C: Consul> Shared<C> {
    pub(super) fn new(
        consul: C,
        clock: Clock,
        metrics: Arc<Metrics>,
        jitter: Jitter,
    ) -> Arc<Shared<C>> {
        Arc::new(Shared {
            consul,
            clock,
            metrics,
            jitter,
            panicked: CancellationToken::new(),
            nodes: Mutex::default(),
        })
    }

    /// To be kept by a task for as long as it runs.
    pub(super) fn alarm(self: &Arc<Self>) -> Alarm<C> {
        Alarm(Arc::clone(self))
    }

    pub(super) fn jitter(&self) -> f64 {
        (self.jitter)()
    }

    /// Makes sure that the node is in the catalog. The first time, also notes which sessions an
    /// earlier process left there: one listing, not one per claim.
    pub(super) async fn prepare_node(&self, name: &NodeName) -> Result<(), ConsulError> {
        let node = self.node(name);
        let mut registered = node.registered.lock().await;
        if !*registered {
            self.consul.register_node(name).await?;
            let sessions = self.consul.node_sessions(name).await?;
            *node.left_behind.lock() =
                sessions.into_iter().map(|session| (session.name, session.id)).collect();
            *registered = true;
        }
        Ok(())
    }

    /// The node turned out not to be in the catalog: somebody removed it.
    pub(super) async fn node_is_missing(&self, name: &NodeName) {
        *self.node(name).registered.lock().await = false;
    }

    /// A session that an earlier process left under this name; told once.
    pub(super) fn take_left_behind(
        &self,
        node: &NodeName,
        name: &SessionName,
    ) -> Option<SessionId> {
        self.node(node).left_behind.lock().remove(name)
    }

    fn node(&self, name: &NodeName) -> Arc<Node> {
        Arc::clone(self.nodes.lock().entry(name.clone()).or_default())
    }
}

/// Rings if the task that owns it panics.
pub(super) struct Alarm<C>(Arc<Shared<C>>);

impl<C> Drop for Alarm<C> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.cancel();
        }
    }
}

/// Where a claim's calls leave word of how they went.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers(Arc<AnswersInner>);

#[derive(Debug, Default)]
struct AnswersInner {
    trouble: Mutex<Option<Trouble>>,
    changed: Notify,
}

impl Answers {
    pub(super) fn failed(&self, error: ConsulError) {
        self.set(Some(error.into()));
    }

    /// Clears the trouble that a call of this kind made.
    pub(super) fn succeeded(&self, operation: Operation) {
        let mut trouble = self.0.trouble.lock();
        if trouble.as_ref().is_some_and(|trouble| trouble.operation == operation) {
            *trouble = None;
            self.0.changed.notify_one();
        }
    }

    /// Whether anybody else looks at it.
    pub(super) fn is_read(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Nothing more will be attempted, so nothing is in trouble.
    pub(super) fn clear(&self) {
        self.set(None);
    }

    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.0.trouble.lock().clone()
    }

    /// Returns when word was left since the last time. Cancel-safe.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn set(&self, now: Option<Trouble>) {
        let mut trouble = self.0.trouble.lock();
        if *trouble != now {
            *trouble = now;
            self.0.changed.notify_one();
        }
    }
}
