//! Which of the controller's replicas acts: leader election by a `coordination.k8s.io` Lease.
//!
//! A replica takes the Lease after it has seen it unchanged for the lease duration *on its own
//! clock*, or released. Every write is on condition of the version that was observed. The times
//! inside the Lease are for people; nothing decides by them, so clocks that differ do no harm.
//!
//! # Guarantees
//! At any instant [`Leadership::may_act`] is true in at most one replica, as long as clocks *tick*
//! alike to within duration ÷ renew deadline, and all replicas have a shorter renew deadline than
//! any of them has a duration. A leader that cannot renew, or that was frozen, stops at *send time
//! of its last good renewal + renew deadline*, before another may take over. A replica that is
//! stopped releases the Lease, and the next one takes it within its retry period. A leader that finds
//! the Lease older than it was (all of Kubernetes was set back to a backup) stops leading.
//! # Not guaranteed
//! Whatever a leader sent to somebody before it stopped may arrive later: what is written must
//! itself be safe against that (transactions on indexes, optimistic locking). Whoever writes the
//! holder by hand can make two leaders for a renew deadline. A replica that finds no Lease places
//! one and waits it out, since one that never was cannot be told from one deleted under a living
//! leader: the very first start and a deletion take a lease duration.

use std::{
    fmt,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use parking_lot::Mutex;
use rand::{RngExt, rngs::SmallRng};

use crate::clock::{Clock, Elapsed, Instant};

mod judge;
#[cfg(test)]
mod tests;

use judge::{Action, Observation, Seen, decide};
pub use judge::{TimingError, Timings};

/// Whether this process leads. Cheap to clone; for whoever is about to act.
#[derive(Clone, Debug)]
pub struct Leadership {
    clock: Clock,
    /// No mutex of tokio's: held for one copy, never across an await.
    valid_until: Arc<Mutex<Option<Instant>>>,
    /// Another replica was seen in the Lease, and this one has not led since.
    succeeded: Arc<AtomicBool>,
}

impl Leadership {
    fn new(clock: Clock) -> Leadership {
        Leadership { clock, valid_until: Arc::default(), succeeded: Arc::default() }
    }

    /// Whether this process leads at this very instant: also right after it was frozen, since the
    /// clock is asked and no flag.
    pub fn may_act(&self) -> bool {
        self.valid_until().is_some_and(|until| self.clock.now() < until)
    }

    /// [`Leadership::may_act`] for whoever should not know more than that.
    pub fn gate(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let leadership = self.clone();
        Arc::new(move || leadership.may_act())
    }

    /// Answers, once this replica has led, whether somebody leads again: this one, or another that
    /// was seen in the Lease. Whoever leads looks after what the last term left behind.
    pub fn succession(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let leadership = self.clone();
        Arc::new(move || leadership.succeeded.load(Ordering::Relaxed) || leadership.may_act())
    }

    fn valid_until(&self) -> Option<Instant> {
        *self.valid_until.lock()
    }

    fn set(&self, valid_until: Option<Instant>) {
        if valid_until.is_some() {
            self.succeeded.store(false, Ordering::Relaxed);
        }
        *self.valid_until.lock() = valid_until;
    }
}

/// Why [`Replicas::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended<T> {
    /// It was told to stop.
    Stopped,
    /// The leader's work ended by itself.
    WorkEnded(T),
}

/// One replica's part in the election. Does nothing until it is [run](Replicas::run).
#[must_use = "nothing is elected until it runs"]
pub struct Replicas {
    api: Api<Lease>,
    name: String,
    me: String,
    timings: Timings,
    clock: Clock,
    leadership: Leadership,
    observed: Option<Observation>,
    /// The Lease as observed, for writing it back with all that others put into it.
    lease: Option<Lease>,
    /// The last version of it that was seen.
    newest: u64,
    /// A write of ours was sent whose fate is unknown.
    unclear: bool,
    /// The last failure that was logged, so that a lasting one is not logged each second.
    trouble: Option<String>,
    /// For jitter.
    rng: SmallRng,
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicas")
            .field("lease", &self.name)
            .field("me", &self.me)
            .field("observed", &self.observed)
            .finish_non_exhaustive()
    }
}

/// A call about the Lease that failed.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error("{0}")]
    Timeout(#[from] Elapsed),
    #[error("{0}")]
    Api(#[from] kube::Error),
}

impl LeaseError {
    fn code(&self) -> Option<u16> {
        match self {
            LeaseError::Api(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

impl Replicas {
    /// A replica called `me` that contends for the Lease `namespace`/`name`. `me` must belong to
    /// this process alone: a restarted one must have another name. `client` must not retry on its
    /// own (`default_retry`), which would make a call's send time unknown.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        me: &str,
        timings: Timings,
        clock: Clock,
    ) -> Replicas {
        Replicas {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            me: me.to_owned(),
            timings,
            leadership: Leadership::new(clock.clone()),
            clock,
            observed: None,
            lease: None,
            newest: 0,
            unclear: false,
            trouble: None,
            rng: rand::make_rng(),
        }
    }

    /// This replica's name as a contender.
    pub fn me(&self) -> &str {
        &self.me
    }

    /// The handle by which others ask whether this process leads.
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Contends until `stop` is ready. Whenever this replica leads, `lead` is called and its
    /// future runs; it is dropped when leadership ends, and `lead` is called again with the next
    /// one. When `stop` is ready, or that future ended by itself, the Lease is released.
    pub async fn run<T, F>(
        mut self,
        mut lead: impl FnMut() -> F,
        stop: impl Future<Output = ()>,
    ) -> Ended<T>
    where
        F: Future<Output = T>,
    {
        let mut stop = pin!(stop);
        let ended = loop {
            tokio::select! {
                biased;
                () = &mut stop => break Ended::Stopped,
                () = self.stand_by() => tracing::info!(me = self.me, "leading"),
            }
            let mut work = pin!(lead());
            let leadership = self.leadership();
            let ended = tokio::select! {
                biased;
                () = &mut stop => Some(Ended::Stopped),
                () = self.keep_leading() => None,
                done = &mut work => Some(Ended::WorkEnded(done)),
            };
            // Before the work is dropped, which may take a moment.
            leadership.set(None);
            match ended {
                Some(ended) => break ended,
                None => tracing::warn!(me = self.me, "no longer leading, standing by"),
            }
        };
        self.release().await;
        ended
    }

    /// Returns once this replica leads. Cancel-safe.
    async fn stand_by(&mut self) {
        loop {
            let action = match self.read().await {
                true => self.decide(),
                false => Action::WaitUntil(self.clock.now() + self.timings.retry()),
            };
            let wake = match action {
                Action::Place => {
                    self.place().await;
                    self.next_look()
                }
                Action::Bid => {
                    self.bid().await;
                    if self.leadership.may_act() {
                        return;
                    }
                    self.next_look()
                }
                Action::WaitUntil(free) => free.min(self.next_look()),
            };
            self.clock.sleep_until(wake).await;
        }
    }

    /// Returns once leadership is lost or its deadline passed. Cancel-safe.
    async fn keep_leading(&mut self) {
        let clock = self.clock.clone();
        while let Some(deadline) = self.leadership.valid_until() {
            tokio::select! {
                biased;
                () = clock.sleep_until(deadline) => return,
                () = self.renew() => {}
            }
        }
    }

    async fn renew(&mut self) {
        let due = self.next_look();
        self.clock.sleep_until(due).await;
        if self.unclear && !self.read().await {
            return;
        }
        match self.decide() {
            Action::Bid => self.bid().await,
            // Our time is up, or somebody else is in it.
            Action::Place | Action::WaitUntil(_) => self.leadership.set(None),
        }
    }

    /// A little early, by chance: replicas should not move in step.
    fn next_look(&mut self) -> Instant {
        self.clock.now() + self.timings.retry().mul_f64(self.rng.random_range(0.75..1.0))
    }

    fn decide(&self) -> Action {
        let now = self.clock.now();
        match &self.observed {
            Some(seen) => decide(&self.me, self.leadership.may_act(), seen, &self.timings, now),
            None => Action::WaitUntil(now + self.timings.retry()),
        }
    }

    /// Reads the Lease. `false`: could not.
    async fn read(&mut self) -> bool {
        let call = self.api.get_opt(&self.name);
        let read = self.clock.timeout(self.timings.call(), call).await;
        match flat(read) {
            Ok(lease) => {
                self.unclear = false;
                self.trouble = None;
                self.observe(lease);
                true
            }
            Err(error) => {
                self.complain("cannot read the lease", &error);
                false
            }
        }
    }

    /// Writes this replica into the Lease as it was observed, and leads if that is what is there.
    async fn bid(&mut self) {
        let mut lease = self.record(Some(&self.me));
        let making = lease.metadata.resource_version.is_none();
        if let Some(spec) = &mut lease.spec {
            spec.acquire_time = spec.acquire_time.take().or(spec.renew_time.clone());
        }
        let sent = self.clock.now();
        let written = self.write(lease).await;
        // A leader that makes its deleted Lease anew has no version to be judged by: it must have
        // been the leader until that was done.
        if written && (!making || self.leadership.may_act()) {
            self.leadership.set(Some(sent + self.timings.renew_deadline()));
        }
    }

    /// Makes a Lease that nobody has acquired yet.
    async fn place(&mut self) {
        let lease = self.record(Some(&self.me));
        self.write(lease).await;
    }

    /// Gives the Lease back, if it is ours.
    async fn release(&mut self) {
        self.leadership.set(None);
        let give_up = self.clock.now() + self.timings.renew_deadline();
        while self.clock.now() < give_up {
            let known = !self.unclear || self.read().await;
            if known && (!self.is_ours() || self.write(self.record(None)).await) {
                return;
            }
            let soon = self.clock.now() + self.timings.retry() / 10;
            self.clock.sleep_until(soon).await;
        }
        tracing::warn!(me = self.me, "lease not released, it will run out");
    }

    /// Whether we acquired the Lease as observed. One that we merely placed is not ours to
    /// release: another may still act under the one that was deleted.
    fn is_ours(&self) -> bool {
        let spec = self.lease.as_ref().and_then(|l| l.spec.as_ref());
        spec.is_some_and(|s| holder_of(s) == Some(&self.me) && s.acquire_time.is_some())
    }

    /// The Lease as it should be with this holder. It counts as acquired if it did and the holder
    /// stays.
    fn record(&self, holder: Option<&str>) -> Lease {
        let now = MicroTime(self.clock.wall());
        let mut lease = self.lease.clone().unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: None,
        });
        let last = lease.spec.take().unwrap_or_default();
        let same = holder_of(&last) == holder;
        let moved = !same && holder.is_some() && lease.metadata.resource_version.is_some();
        lease.spec = Some(LeaseSpec {
            // Empty and not absent, as other electors do it.
            holder_identity: Some(holder.unwrap_or_default().to_owned()),
            lease_duration_seconds: Some(whole_seconds(self.timings.duration())),
            acquire_time: last.acquire_time.filter(|_| same || holder.is_none()),
            renew_time: Some(now),
            lease_transitions: Some(last.lease_transitions.unwrap_or(0) + i32::from(moved)),
            preferred_holder: last.preferred_holder,
            strategy: last.strategy,
        });
        lease
    }

    /// Writes `lease` on condition that it is still as observed. `false`: it was not, or nobody
    /// knows.
    async fn write(&mut self, lease: Lease) -> bool {
        self.unclear = true;
        let post = PostParams::default();
        let written = if lease.metadata.resource_version.is_some() {
            let call = self.api.replace(&self.name, &post, &lease);
            self.clock.timeout(self.timings.call(), call).await
        } else {
            let call = self.api.create(&post, &lease);
            self.clock.timeout(self.timings.call(), call).await
        };
        match flat(written) {
            Ok(lease) => {
                self.unclear = false;
                self.trouble = None;
                self.observe(Some(lease));
                true
            }
            // Somebody else was faster, or it was deleted: what there is now has to be read.
            Err(error) if matches!(error.code(), Some(404 | 409)) => {
                tracing::debug!(%error, "lease changed");
                false
            }
            Err(error) => {
                self.complain("cannot write the lease", &error);
                false
            }
        }
    }

    fn observe(&mut self, lease: Option<Lease>) {
        let holder = lease.as_ref().and_then(|lease| lease.spec.as_ref()?.holder_identity.as_ref());
        if holder.is_some_and(|holder| !holder.is_empty() && *holder != self.me) {
            self.leadership.succeeded.store(true, Ordering::Relaxed);
        }
        let seen = lease.as_ref().map_or(Seen::Absent, seen);
        if let Some(version) = seen.number() {
            if version < self.newest {
                tracing::warn!("the lease is older than it was: Kubernetes was set back");
                // What this term knows, and what it wrote, is of a history that is no more.
                self.leadership.set(None);
            }
            self.newest = version;
        }
        let next = Observation::next(self.observed.take(), seen, self.clock.now());
        self.observed = Some(next);
        self.lease = lease;
    }

    fn complain(&mut self, what: &'static str, error: &LeaseError) {
        let text = format!("{what}: {error}");
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!(lease = self.name, %error, "{what}");
            self.trouble = Some(text);
        }
    }
}

fn flat<T>(outcome: Result<Result<T, kube::Error>, Elapsed>) -> Result<T, LeaseError> {
    Ok(outcome??)
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.as_ref();
    Seen::Record {
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        holder: spec.and_then(holder_of).map(str::to_owned),
        duration: spec
            .and_then(|s| s.lease_duration_seconds)
            .and_then(|s| u64::try_from(s).ok())
            .map(Duration::from_secs),
    }
}

fn holder_of(spec: &LeaseSpec) -> Option<&str> {
    spec.holder_identity.as_deref().filter(|h| !h.is_empty())
}

/// Rounded up: others must not wait for less than we count on.
fn whole_seconds(span: Duration) -> i32 {
    i32::try_from(span.as_millis().div_ceil(1000)).unwrap_or(i32::MAX)
}
