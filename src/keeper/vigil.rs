//! The vigil: goes on renewing the sessions of a term that ended because the Kubernetes API does not
//! answer.
//!
//! Without it an API server that is away for longer than the sessions live would cost every lock,
//! though nothing is wrong with those who hold them, and another cluster would start beside pods
//! whose label and endpoint nobody can take away.
//!
//! # Guarantees
//! It renews and does nothing else: no key is taken or given up, and nobody relies on a tenure
//! meanwhile. It ends with each session, when another replica is seen to lead, when this one leads
//! again, and after [`LIMIT`] in any case.
//! # Not guaranteed
//! Should the new leader be cut off from Consul while this replica is cut off from Kubernetes alone,
//! a claim that is deleted just then is let go by the leader, but its session lives until
//! [`LIMIT`].

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{Jitter, session::next_renewal};
use crate::{
    clock::{Clock, Instant},
    consul::{Class, Consul},
    names::SessionId,
};

/// How long sessions are renewed that nobody keeps.
pub const LIMIT: Duration = Duration::from_secs(15 * 60);

/// How long one renewal may take, and how long to wait after one that failed.
const ATTEMPT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_secs(1);

/// A session that a term leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bequest {
    /// Its identifier.
    pub session: SessionId,
    /// The TTL that Consul granted last.
    pub ttl: Duration,
    /// Up to when it may be relied on without another renewal.
    pub valid_until: Instant,
}

/// Renews what terms left behind. Dropping it ends that.
pub struct Vigil<C> {
    consul: Arc<C>,
    clock: Clock,
    jitter: Jitter,
    /// Whether somebody else looks after the sessions now.
    relieved: Arc<dyn Fn() -> bool + Send + Sync>,
    tasks: Mutex<JoinSet<()>>,
}

impl<C: Consul> Vigil<C> {
    /// `relieved` is asked before each renewal.
    pub fn new(
        consul: C,
        clock: Clock,
        jitter: Jitter,
        relieved: Arc<dyn Fn() -> bool + Send + Sync>,
    ) -> Vigil<C> {
        Vigil { consul: Arc::new(consul), clock, jitter, relieved, tasks: Mutex::default() }
    }

    /// Renews these instead of whatever was renewed before. Must be called within a tokio runtime.
    pub fn keep(&self, bequests: Vec<Bequest>) {
        if bequests.is_empty() {
            return;
        }
        tracing::info!(sessions = bequests.len(), "renewing what this term leaves behind");
        let mut tasks = self.tasks.lock();
        tasks.abort_all();
        while tasks.try_join_next().is_some() {}
        let end = self.clock.now() + LIMIT;
        for bequest in bequests {
            let (consul, clock) = (Arc::clone(&self.consul), self.clock.clone());
            let (jitter, relieved) = (Arc::clone(&self.jitter), Arc::clone(&self.relieved));
            tasks.spawn(async move {
                watch_over(&*consul, &clock, &jitter, bequest, end, &*relieved).await;
            });
        }
    }
}

/// Renews one session until it is gone, or somebody else looks after it.
async fn watch_over<C: Consul>(
    consul: &C,
    clock: &Clock,
    jitter: &Jitter,
    bequest: Bequest,
    end: Instant,
    relieved: &(dyn Fn() -> bool + Send + Sync),
) {
    let Bequest { session, mut ttl, mut valid_until } = bequest;
    // Soon: when it was renewed last is not known, only for how long that is good.
    let mut next = clock.now() + (ttl / 20).mul_f64(jitter());
    loop {
        clock.sleep_until(next).await;
        let sent = clock.now();
        if relieved() || sent >= end || sent >= valid_until {
            return;
        }
        match clock.timeout(ATTEMPT, consul.renew_session(&session)).await {
            Ok(Ok(renewal)) => {
                (ttl, valid_until) = (renewal.ttl, sent + renewal.ttl);
                next = next_renewal(sent, ttl, jitter());
            }
            // Whoever keeps it has ended it, or Consul has.
            Ok(Err(error)) if error.class == Class::Lost => return,
            Ok(Err(_)) | Err(_) => next = clock.now() + PAUSE,
        }
    }
}
