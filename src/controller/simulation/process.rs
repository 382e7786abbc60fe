//! The processes of the controller, one after the other, and what befalls them and their networks.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::MutexGuard;
use rand::RngExt as _;
use tokio::task::AbortHandle;

use super::{
    Random,
    line::Line,
    network::{Faults, KINDS, Network, WatchFaults},
    pick, span,
    world::Shared,
};
use crate::{
    clock::{Clock, Instant},
    controller::{Controller, MakeKeepers, MayAct, WatchEnded},
    keeper::{
        Jitter, Keepers,
        wire::{Wired, faulty::Faults as LineFaults},
    },
    telemetry::Metrics,
};

/// One registry for all runs: making one costs more than a run.
static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();

/// One process of the controller after the other.
pub(super) struct Process {
    pub(super) clock: Clock,
    pub(super) random: Random,
    pub(super) world: Shared,
    pub(super) network: Arc<Network>,
    pub(super) line: Line,
    pub(super) leads: Arc<AtomicBool>,
    pub(super) controller: Option<Arc<Controller<Wired<Line>>>>,
    pub(super) watching: Option<AbortHandle>,
    pub(super) leading: Option<AbortHandle>,
    /// When the next term begins, if none is under way.
    pub(super) next: Instant,
}

impl Process {
    /// Takes the lead when it is time, in a new process if there is none.
    pub(super) fn tick(&mut self) {
        if self.leading.is_some() || self.clock.now() < self.next {
            return;
        }
        let controller = match &self.controller {
            Some(controller) => Arc::clone(controller),
            None => self.start(),
        };
        self.leads.store(true, Ordering::Relaxed);
        let world = Arc::clone(&self.world);
        let leading = async move {
            let error = controller.lead().await;
            world.lock().breaks(format!("the term ends by itself: {error}"));
        };
        self.leading = Some(tokio::task::spawn_local(leading).abort_handle());
    }

    fn start(&mut self) -> Arc<Controller<Wired<Line>>> {
        let random = Arc::clone(&self.random);
        let jitter: Jitter = Arc::new(move || random.lock().random_range(0.0..1.0));
        let metrics = Arc::clone(METRICS.get_or_init(|| Metrics::new(false)));
        let way = Wired { consul: self.world.lock().consul.clone(), wire: self.line.clone() };
        let (clock, counted, chance) =
            (self.clock.clone(), Arc::clone(&metrics), Arc::clone(&jitter));
        let make_keepers: MakeKeepers<Wired<Line>> = Box::new(move |wake| {
            let (clock, metrics, jitter) =
                (clock.clone(), Arc::clone(&counted), Arc::clone(&chance));
            Keepers::new(way.clone(), clock, metrics, jitter, wake)
        });
        let leads = Arc::new(AtomicBool::new(false));
        self.leads = Arc::clone(&leads);
        let config = crate::controller::sample::config();
        let may_act: MayAct = Arc::new(move || leads.load(Ordering::Relaxed));
        let (client, clock) = (self.network.client(), self.clock.clone());
        let controller = Controller::new(config, client, clock, metrics, may_act, make_keepers);
        let controller = Arc::new(controller.with_jitter(jitter));
        let watcher = Arc::clone(&controller);
        let watching = async move {
            let WatchEnded = watcher.watch().await;
        };
        self.watching = Some(tokio::task::spawn_local(watching).abort_handle());
        self.controller = Some(Arc::clone(&controller));
        controller
    }

    /// The end of a term: without a word, as always. What it sent is on its way still.
    fn resign(&mut self, pause: Duration) {
        let Some(leading) = self.leading.take() else { return };
        leading.abort();
        self.leads.store(false, Ordering::Relaxed);
        let mut world = self.world.lock();
        world.generation += 1;
        world.note(|| "the term ends".to_owned());
        self.next = self.clock.now() + pause;
    }

    pub(super) fn crash(&mut self, pause: Duration) {
        self.resign(pause);
        if let Some(watching) = self.watching.take() {
            watching.abort();
        }
        self.controller = None;
    }

    pub(super) fn strike(&mut self) {
        let (now, random) = (self.clock.now(), Arc::clone(&self.random));
        let kind = pick(&random, KINDS.len());
        match pick(&random, 18) {
            0 => self.crash(span(&random, 0..15_000)),
            1 => self.resign(span(&random, 0..5_000)),
            2 => self.network.faults.lock().down_until = Some(now + span(&random, 500..20_000)),
            3 => self.network.faults.lock().loss = 0.2,
            4 => self.network.faults.lock().delay_millis = 3_000,
            5 => self.network.faults.lock().lateness = 0.3,
            6 => self.network.faults.lock().rivalry = 0.3,
            7 | 8 => self.watches(kind).delay = span(&random, 100..8_000),
            9 => self.watches(kind).gap_until = Some(now + span(&random, 1_000..20_000)),
            10 => self.watches(kind).cuts += 1,
            11 => {
                let down_until = self.network.faults.lock().down_until;
                *self.network.faults.lock() = Faults { down_until, ..Faults::default() };
            }
            12 => self.line.faulty.faults.lock().cut_until = Some(now + span(&random, 500..40_000)),
            13 => self.line.faulty.faults.lock().loss = 0.2,
            14 => self.line.faulty.faults.lock().delay_millis = 3_000,
            15 => {
                let cut_until = self.line.faulty.faults.lock().cut_until;
                *self.line.faulty.faults.lock() = LineFaults { cut_until, ..LineFaults::default() };
            }
            16 => {
                let until = now + span(&random, 500..8_000);
                self.line.faulty.faults.lock().election_until = Some(until);
                self.world.lock().consul.elect();
            }
            _ => self.world.lock().end_a_session(&random),
        }
        self.network.changed.notify_waiters();
    }

    fn watches(&self, kind: usize) -> MappedWatch<'_> {
        MappedWatch(self.network.faults.lock(), kind)
    }

    pub(super) fn heal(&mut self) {
        *self.network.faults.lock() = Faults::default();
        *self.line.faulty.faults.lock() = LineFaults::default();
        self.next = self.clock.now();
        self.network.changed.notify_waiters();
    }
}

/// What is wrong with the watches of one kind.
struct MappedWatch<'a>(MutexGuard<'a, Faults>, usize);

impl std::ops::Deref for MappedWatch<'_> {
    type Target = WatchFaults;
    fn deref(&self) -> &WatchFaults {
        &self.0.watches[self.1]
    }
}

impl std::ops::DerefMut for MappedWatch<'_> {
    fn deref_mut(&mut self) -> &mut WatchFaults {
        &mut self.0.watches[self.1]
    }
}
