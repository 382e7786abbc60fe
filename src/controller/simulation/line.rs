//! The way from keepers to Consul, and who looks at the key before and after each call.

use std::{future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    Random, chance, span,
    world::{Cause, Shared},
};
use crate::{
    clock::{Clock, Instant},
    consul::{Class, ConsulError, Operation, Renewal, SessionRequest},
    keeper::wire::{Underway, Wire},
};

/// The network between the keepers of one process and Consul.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) clock: Clock,
    pub(super) random: Random,
    pub(super) world: Shared,
    pub(super) faults: Arc<Mutex<LineFaults>>,
    pub(super) underway: Underway,
    /// The TTL that the claim asks for.
    pub(super) ttl: Duration,
    /// What Consul makes of it: 1.0, but where *valid until* is to be wrong.
    pub(super) ttl_factor: f64,
}

#[derive(Clone, Copy, Default)]
pub(super) struct LineFaults {
    /// Nothing passes before this instant.
    pub(super) cut_until: Option<Instant>,
    /// How often a request, and a reply, is lost.
    pub(super) loss: f64,
    /// The longest that a message takes.
    pub(super) delay_millis: u64,
    /// Consul has no leader before this instant.
    pub(super) election_until: Option<Instant>,
}

impl Wire for Line {
    async fn call<T: Send>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, ConsulError>> + Send,
    ) -> Result<T, ConsulError> {
        let sent = self.clock.now();
        let (generation, relied) = {
            let world = self.world.lock();
            (world.generation, world.relied_until.is_some_and(|until| sent < until))
        };
        self.travel().await;
        let faults = *self.faults.lock();
        if faults.election_until.is_some_and(|end| self.clock.now() < end) {
            let message = "No cluster leader".to_owned();
            return Err(ConsulError { operation, class: Class::Transient, message });
        }
        self.world.lock().look(Cause::Fate);
        let answer = work.await;
        if !matches!(operation, Operation::WatchPrefix | Operation::WatchKey) {
            let lands = || format!("{} sent at {sent:?}: {}", operation.as_str(), answer.is_ok());
            self.world.lock().note(lands);
        }
        {
            let mut world = self.world.lock();
            // What is given up when it may not be relied on any more was lost before.
            let ours = operation == Operation::Transaction && generation == world.generation;
            world.look(if ours && relied { Cause::Ours } else { Cause::Fate });
        }
        self.travel().await;
        answer
    }

    fn is_calm(&self) -> bool {
        let LineFaults { cut_until, loss, delay_millis, election_until: _ } = *self.faults.lock();
        let cut = cut_until.is_some_and(|end| self.clock.now() < end);
        !cut && loss == 0.0 && delay_millis == 0
    }

    fn underway(&self) -> &Underway {
        &self.underway
    }

    async fn send<T: Send + 'static>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, ConsulError>> + Send + 'static,
    ) -> Result<T, ConsulError> {
        let sent = self.clock.now();
        let answer = self.carry(operation, work).await;
        let grants = matches!(operation, Operation::CreateSession | Operation::RenewSession);
        if grants && answer.is_ok() {
            let until = sent + self.ttl.mul_f64(self.ttl_factor);
            let mut world = self.world.lock();
            world.relied_until = world.relied_until.max(Some(until));
        }
        answer
    }

    fn request(&self, request: &SessionRequest) -> SessionRequest {
        SessionRequest { ttl: request.ttl.mul_f64(self.ttl_factor), ..request.clone() }
    }

    fn granted(&self, renewal: Renewal) -> Renewal {
        Renewal { ttl: renewal.ttl.div_f64(self.ttl_factor) }
    }
}

impl Line {
    /// One way over the network; never arrives if the message is lost.
    async fn travel(&self) {
        let faults = *self.faults.lock();
        if faults.loss > 0.0 && chance(&self.random, faults.loss) {
            std::future::pending::<()>().await;
        }
        if faults.delay_millis > 0 {
            let delay = span(&self.random, 0..faults.delay_millis);
            self.clock.sleep_until(self.clock.now() + delay).await;
        }
        // Silent packet loss: TCP delivers once the cut is over.
        let cut = self.faults.lock().cut_until;
        if let Some(end) = cut {
            self.clock.sleep_until(end).await;
        }
    }
}
