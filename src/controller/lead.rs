//! Leading: walks over claims when they are due, a bounded number at once.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde_json::Value;
use tokio::sync::{broadcast, mpsc};
use tracing::Instrument;

use super::{
    Caches, Error, Leader,
    apply::{Applied, apply},
    cache::{Cached, ObjectName, Touched},
    census::is_unheld,
    events::news,
    failover,
    kinds::{self, Pod},
    merge_patch,
    observe::{Observed, Seen, observe},
    plan::{ClaimPlan, Plan, plan},
    queue::Queue,
    status::{Report, not_before, status},
    verdict::Facts,
    writer::Class,
};
use crate::{
    api::{ConsulLockStatus, Mode},
    clock::Instant,
    consul::Consul,
    keeper::{ClaimId, Jitter, LockView},
    telemetry::{HolderLabels, Metrics, logs},
};

/// Walks at once. Each holds a connection to the API server while it writes.
const WALKS: usize = 32;
/// A claim whose keepers are stopping is looked at again after this long, woken or not.
const STOPPING_AGAIN: Duration = Duration::from_secs(1);
/// How long a new leader waits for the other watches, which not every claim needs.
const OTHERS: Duration = Duration::from_secs(2);
/// The first pause after a failed walk; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why leading ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum LeadError {
    /// A keeper's task panicked: what it knew is lost, and this process should not go on.
    #[error("a keeper's task panicked")]
    KeeperPanicked,
    /// Nobody can wake claims any more.
    #[error("the keepers went away")]
    KeepersGone,
    /// The caches are gone.
    #[error("the caches went away")]
    CachesGone,
}

/// What a walk left to be done.
struct Next {
    /// When to look again, whatever happens.
    at: Option<Instant>,
    /// Why pods or slices are not as they should be, though the rest of the walk was done.
    failed: Option<Error>,
}

impl Next {
    fn at(at: Option<Instant>) -> Next {
        Next { at, failed: None }
    }
}

type Walked = (ObjectName, Result<Next, Error>);

impl<C: Consul> Leader<C> {
    /// Looks after every claim. `telling` is polled along.
    pub(super) async fn run(
        self,
        mut woken: mpsc::UnboundedReceiver<ClaimId>,
        telling: impl Future<Output = ()>,
    ) -> LeadError {
        let _series = ClaimSeries(Arc::clone(&self.metrics));
        self.report_what_stands_out();
        let caches = Arc::clone(&self.caches);
        let mut changes = Changes::of(&caches);
        caches.claims.wait_until_synced().await;
        // Each is news when it comes: claims may have waited for no more than that.
        let others: [BoxFuture<'_, ()>; 6] = [
            caches.namespaces.wait_until_synced().boxed(),
            caches.pods.wait_until_synced().boxed(),
            caches.nodes.wait_until_synced().boxed(),
            caches.services.wait_until_synced().boxed(),
            caches.slices.wait_until_synced().boxed(),
            caches.jobs.wait_until_synced().boxed(),
        ];
        let mut others = FuturesUnordered::from_iter(others);
        let all = async { while others.next().await.is_some() {} };
        if let Err(elapsed) = self.clock.timeout(OTHERS, all).await {
            tracing::warn!("starting without all of the other watches: {elapsed}");
        }
        let mut desk = Desk::default();
        desk.add_all(self.caches.claims.names(None), self.clock.now());
        let mut walks = FuturesUnordered::new();
        let mut telling = std::pin::pin!(telling);
        let mut panicked = std::pin::pin!(self.keepers.panicked());
        loop {
            let now = self.clock.now();
            while walks.len() < WALKS
                && let Some(name) = desk.queue.take(now)
            {
                walks.push(self.walk(name));
            }
            let room = walks.len() < WALKS;
            let due = desk.queue.next_due().filter(|_| room);
            tokio::select! {
                biased; // each is idle soon, and what is due is taken in every round
                Some(walked) = walks.next() => desk.walked(walked, self.clock.now(), &self.jitter),
                id = woken.recv() => match id {
                    Some(id) => desk.add_all(self.ledger.name_of(&id), self.clock.now()),
                    None => return LeadError::KeepersGone,
                },
                concerned = self.next_change(&mut changes) => match concerned {
                    Some(names) => desk.add_all(names, self.clock.now()),
                    None => return LeadError::CachesGone,
                },
                Some(()) = others.next() => {
                    desk.add_all(caches.claims.names(None), self.clock.now());
                }
                () = &mut telling => {}
                () = &mut panicked => return LeadError::KeeperPanicked,
                () = async {
                    match due {
                        Some(due) => self.clock.sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }

    /// Waits for a change in a cache. The claims that it concerns; all of them, after changes were
    /// missed; `None`: there are no more changes. Cancel-safe.
    async fn next_change(&self, changes: &mut Changes) -> Option<Vec<ObjectName>> {
        let claims = &self.caches.claims;
        let concerned = tokio::select! {
            biased; // the claims themselves first
            claim = changes.claims.recv() => claim.map(|claim| vec![claim.name]),
            namespace = changes.namespaces.recv() => {
                namespace.map(|namespace| claims.names(Some(&namespace.name.name)))
            }
            pod = changes.pods.recv() => pod.map(|pod| self.askers(&pod.keys)),
            node = changes.nodes.recv() => node.map(|node| self.on_node(&node.name.name)),
            service = changes.services.recv() => service.map(|service| self.askers(&service.keys)),
            slice = changes.slices.recv() => slice.map(|slice| self.askers(&slice.keys)),
            job = changes.jobs.recv() => job.map(|job| self.of_job(&job.keys)),
        };
        match concerned {
            Ok(names) => Some(names),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(claims.names(None)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// The claims that have asked for one of these keys, and those whose badge is among them,
    /// whether they exist or not.
    fn askers(&self, keys: &[String]) -> Vec<ObjectName> {
        let claims = &self.caches.claims;
        let asking = keys.iter().flat_map(|key| claims.names_by(key));
        let bearing = keys.iter().filter_map(|key| kinds::bearer(key));
        asking.chain(bearing).collect()
    }

    /// The claims that have asked for a pod on this node.
    fn on_node(&self, node: &str) -> Vec<ObjectName> {
        self.askers_of(&self.caches.pods.by(&kinds::on_node(node)))
    }

    /// The claims that have asked for a pod of this Job.
    fn of_job(&self, keys: &[String]) -> Vec<ObjectName> {
        let owned = keys.iter().filter_map(|key| kinds::owned_by_key(key));
        let pods: Vec<Arc<Pod>> = owned.flat_map(|key| self.caches.pods.by(&key)).collect();
        self.askers_of(&pods)
    }

    fn askers_of(&self, pods: &[Arc<Pod>]) -> Vec<ObjectName> {
        let mut names: Vec<ObjectName> =
            pods.iter().flat_map(|pod| self.askers(&pod.keys())).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn report_what_stands_out(&self) {
        let (keepers, clock) = (Arc::downgrade(&self.keepers), self.clock.clone());
        self.metrics.report_tightest_from(move || {
            let tightest = keepers.upgrade()?.tightest()?;
            Some(tightest.since(clock.now()).as_secs_f64())
        });
        let (ledger, clock) = (Arc::downgrade(&self.ledger), self.clock.clone());
        self.metrics.report_unheld_from(move || {
            let longest = ledger.upgrade().map(|ledger| ledger.longest_unheld(clock.now()));
            longest.unwrap_or_default().as_secs_f64()
        });
    }

    async fn walk(&self, name: ObjectName) -> Walked {
        let began = self.clock.now();
        let span = logs::claim_span(&name.namespace, &name.name);
        let result = async {
            let result = self.reconcile(&name).await;
            let error = match &result {
                Ok(next) => next.failed.as_ref(),
                Err(error) => Some(error),
            };
            if let Some(error) = error {
                let source = std::error::Error::source(error).map(ToString::to_string);
                let class = error.class();
                self.metrics.reconcile_failed(class.as_str());
                match class {
                    // Ordinary: somebody else wrote, or this term is just ending.
                    Class::Conflict | Class::NotLeading => {
                        tracing::debug!(class = class.as_str(), source, "{error}; trying again");
                    }
                    _ => tracing::warn!(class = class.as_str(), source, "{error}; trying again"),
                }
            }
            result
        }
        .instrument(span)
        .await;
        self.metrics.reconciled(self.clock.now().since(began));
        (name, result)
    }

    async fn reconcile(&self, name: &ObjectName) -> Result<Next, Error> {
        let observed = observe(self, name); // memory
        let plan = plan(&observed, &self.config); // pure
        if let (Some(seen), Some(planned)) = (&observed.claim, &plan.claim) {
            failover::note_decision(self, seen, &planned.course);
        }
        let applied = apply(self, name, &observed, &plan).await?; // I/O
        match (applied, &observed.claim, &plan.claim) {
            (Some(mut applied), Some(seen), Some(planned)) => {
                let failed = applied.failed.take();
                let next = self.report(name, seen, planned, &applied, failed.as_ref()).await?;
                Ok(Next { failed, ..next })
            }
            _ => {
                self.metrics.claim_gone(&name.namespace, &name.name);
                Ok(Next::at(stopping(&observed, &plan)))
            }
        }
    }

    /// Writes the status, if it may be written and differs; says when to look again.
    async fn report(
        &self,
        name: &ObjectName,
        seen: &Seen,
        planned: &ClaimPlan,
        applied: &Applied,
        failed: Option<&Error>,
    ) -> Result<Next, Error> {
        let claim = &applied.claim;
        let now = self.clock.now();
        let deleting = claim.metadata.deletion_timestamp.is_some();
        if planned.has_just_asked_to_stop() {
            // The keepers tell in a moment what came of it.
            return Ok(Next::at(Some(now + STOPPING_AGAIN)));
        }
        // Without keepers our part is done, and others hold the object back.
        let parting = deleting && applied.view.is_some();
        let report = Report {
            claim,
            judged: &planned.judged,
            told: &planned.course.told,
            failed,
            earlier: seen.view.as_ref(),
            followed: seen.electorate.ended.as_ref(),
            facts: Facts {
                judgement: &planned.judged.judgement,
                deleting,
                view: applied.view.as_ref(),
                paused: planned.judged.settings.as_ref().is_some_and(|settings| settings.paused),
                nobody: planned.course.told.nobody(),
                refused: planned.course.told.refused.as_deref(),
                unreadable: planned.course.told.unreadable.as_deref(),
                unlisted: planned.course.told.unlisted,
                recorded: claim.status.as_ref().is_some_and(|status| {
                    let of_a_pod = status.mode == Some(Mode::Agent);
                    status.fencing_token.is_some() && (!of_a_pod || seen.is_left_to_its_pods())
                }),
                holding: seen.electorate.holding.as_ref(),
                now,
            },
            cluster: &self.config.cluster,
            wall: self.clock.wall(),
        };
        let parting_since = parting.then(|| self.ledger.part(&seen.id, now));
        let previous = claim.status.as_ref();
        let hold = not_before(&report.facts, previous, seen.since, parting_since);
        let again = parting.then(|| now + STOPPING_AGAIN);
        if let Some(hold) = hold.filter(|hold| now < *hold) {
            return Ok(Next::at([Some(hold), planned.course.again].into_iter().flatten().min()));
        }
        let next = status(&report); // pure
        self.ledger.stands(&seen.id, is_unheld(&next), now);
        self.patch_if_changed(seen, applied, &next).await?; // I/O
        let followed = report.facts.holding.and(seen.electorate.standing.token());
        let token = report.facts.view.and_then(|view| view.token(now)).or(followed);
        let token = token.map(crate::names::FencingToken::get);
        let holder = next.holder.as_ref().map(|holder| HolderLabels {
            identity: &holder.identity,
            cluster: holder.cluster.as_deref().unwrap_or_default(),
        });
        self.metrics.claim_stands(&name.namespace, &name.name, token, holder);
        let course = planned.course.again;
        Ok(Next::at([valid_until(applied), again, course].into_iter().flatten().min()))
    }

    async fn patch_if_changed(
        &self,
        seen: &Seen,
        applied: &Applied,
        next: &ConsulLockStatus,
    ) -> Result<(), Error> {
        let claim = &applied.claim;
        let previous = claim.status.as_ref();
        let Some(change) = change(previous, next) else {
            return Ok(());
        };
        let patched = self.writer.patch_status(claim, change).await;
        let Some(patched) = patched.map_err(Error::PatchStatus)? else {
            return Ok(()); // Gone; the watch tells.
        };
        self.ledger.wrote(&seen.id, claim, Arc::new(patched));
        for news in news(previous, next) {
            self.publisher.tell(claim, &news, self.clock.wall());
        }
        Ok(())
    }
}

/// What has to be patched into the status, if anything.
fn change(previous: Option<&ConsulLockStatus>, next: &ConsulLockStatus) -> Option<Value> {
    let value = |status: &ConsulLockStatus| serde_json::to_value(status).unwrap_or_default();
    let previous = previous.map_or_else(|| Value::Object(serde_json::Map::new()), value);
    merge_patch::difference(&previous, &value(next))
}

/// The end of a tenure's validity: its keepers wake us then, and so does the clock.
fn valid_until(applied: &Applied) -> Option<Instant> {
    let view = applied.view.as_ref()?;
    match view.lock {
        LockView::Held { .. } => view.session.valid_until,
        _ => None,
    }
}

/// When to look again at a name whose former keepers are stopping.
fn stopping(observed: &Observed, plan: &Plan) -> Option<Instant> {
    use super::plan::FormerStep;
    let stopping = plan.former.iter().any(|(_, step)| *step != FormerStep::Forget);
    stopping.then(|| observed.now + STOPPING_AGAIN)
}

/// What changes in the caches from now on.
struct Changes {
    claims: broadcast::Receiver<Touched>,
    namespaces: broadcast::Receiver<Touched>,
    pods: broadcast::Receiver<Touched>,
    nodes: broadcast::Receiver<Touched>,
    services: broadcast::Receiver<Touched>,
    slices: broadcast::Receiver<Touched>,
    jobs: broadcast::Receiver<Touched>,
}

impl Changes {
    fn of(caches: &Caches) -> Changes {
        Changes {
            claims: caches.claims.subscribe(),
            namespaces: caches.namespaces.subscribe(),
            pods: caches.pods.subscribe(),
            nodes: caches.nodes.subscribe(),
            services: caches.services.subscribe(),
            slices: caches.slices.subscribe(),
            jobs: caches.jobs.subscribe(),
        }
    }
}

/// Which claims are due, and how often in a row their walks failed.
#[derive(Default)]
struct Desk {
    queue: Queue,
    failures: HashMap<ObjectName, u32>,
}

impl Desk {
    fn add_all(&mut self, names: impl IntoIterator<Item = ObjectName>, now: Instant) {
        for name in names {
            self.queue.add(name, now);
        }
    }

    fn walked(&mut self, (name, result): Walked, now: Instant, jitter: &Jitter) {
        self.queue.finish(&name);
        let (due, error) = match result {
            Ok(next) => (next.at, next.failed),
            Err(error) => (None, Some(error)),
        };
        let again = if let Some(error) = error {
            let failures = self.failures.entry(name.clone()).or_default();
            *failures += 1;
            let jitter = 0.5 + jitter() / 2.0;
            Some(now + pause(error.class(), *failures, jitter))
        } else {
            self.failures.remove(&name);
            None
        };
        if let Some(at) = [due, again].into_iter().flatten().min() {
            self.queue.add(name, at);
        }
    }
}

/// How long to wait after the `failures`th failure in a row.
fn pause(class: Class, failures: u32, jitter: f64) -> Duration {
    let doubled = match class {
        // Somebody else wrote; the newer object is on its way to us.
        Class::Conflict => failures.min(4),
        _ => failures,
    };
    let pause = FIRST_PAUSE * 2_u32.saturating_pow(doubled.saturating_sub(1).min(16));
    pause.min(LONGEST_PAUSE).mul_f64(jitter)
}

/// Takes the per-claim series away when this replica stops leading.
struct ClaimSeries(Arc<Metrics>);

impl Drop for ClaimSeries {
    fn drop(&mut self) {
        self.0.all_claims_gone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_about_pods_does_not_delay_what_is_due_anyway() {
        use super::super::writer::WriteError;
        let (mut desk, name) = (Desk::default(), ObjectName::new("shop", "billing"));
        let at = |seconds| Instant::from_boot(Duration::from_secs(seconds));
        let jitter: Jitter = Arc::new(|| 0.5);
        for failures in 1..20 {
            desk.queue.add(name.clone(), at(10));
            desk.queue.take(at(10)).unwrap();
            let failed = Some(Error::FillSlice(WriteError::NotLeading));
            let next = Next { at: Some(at(11)), failed };
            desk.walked((name.clone(), Ok(next)), at(10), &jitter);
            let due = desk.queue.next_due().unwrap();
            assert!(due <= at(11), "{due:?} after {failures} failures");
            desk.queue.take(at(11)).unwrap();
            desk.queue.finish(&name);
        }
        assert_eq!(desk.failures[&name], 19, "and the pauses of its repetition grow");
    }

    #[test]
    fn pauses_grow_and_end_growing() {
        let seconds = |failures| pause(Class::Transient, failures, 1.0).as_secs_f64();
        assert_eq!(seconds(1), 0.1);
        assert_eq!(seconds(2), 0.2);
        assert_eq!(seconds(40), 30.0);
        assert_eq!(pause(Class::Transient, 1, 0.5), FIRST_PAUSE / 2);
        assert_eq!(pause(Class::Conflict, 40, 1.0), FIRST_PAUSE * 8);
    }
}
