//! The way from keepers to Consul, and who looks at the key before and after each call.

use std::{future::Future, time::Duration};

use super::world::{Cause, Shared};
use crate::{
    consul::{ConsulError, Operation, Renewal, SessionRequest},
    keeper::wire::{Underway, Wire, faulty::FaultyLine},
};

/// The network between the keepers of one process and Consul.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) faulty: FaultyLine,
    pub(super) world: Shared,
    /// The TTL that the claim asks for.
    pub(super) ttl: Duration,
}

impl Wire for Line {
    async fn call<T: Send>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, ConsulError>> + Send,
    ) -> Result<T, ConsulError> {
        let sent = self.faulty.clock.now();
        let (generation, relied) = {
            let world = self.world.lock();
            (world.generation, world.relied_until.is_some_and(|until| sent < until))
        };
        self.faulty.travel().await;
        self.faulty.needs_leader(operation)?;
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
        self.faulty.travel().await;
        answer
    }

    fn is_calm(&self) -> bool {
        self.faulty.is_calm()
    }

    fn underway(&self) -> &Underway {
        self.faulty.underway()
    }

    async fn send<T: Send + 'static>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, ConsulError>> + Send + 'static,
    ) -> Result<T, ConsulError> {
        let sent = self.faulty.clock.now();
        let answer = self.carry(operation, work).await;
        let grants = matches!(operation, Operation::CreateSession | Operation::RenewSession);
        if grants && answer.is_ok() {
            let until = sent + self.ttl.mul_f64(self.faulty.ttl_factor);
            let mut world = self.world.lock();
            world.relied_until = world.relied_until.max(Some(until));
        }
        answer
    }

    fn request(&self, request: &SessionRequest) -> SessionRequest {
        self.faulty.request(request)
    }

    fn granted(&self, renewal: Renewal) -> Renewal {
        self.faulty.granted(renewal)
    }
}
