//! A line to Consul on which things go wrong, for simulations: messages are lost, late or held up, and
//! Consul has no leader.

use std::{
    future::{Future, pending},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt as _, rngs::SmallRng};

use super::{Underway, Wire};
use crate::{
    clock::{Clock, Instant},
    consul::{Class, ConsulError, Operation, Renewal, SessionRequest},
};

/// What happens by chance in a simulation: its seed determines all of it.
pub(crate) type Random = Arc<Mutex<SmallRng>>;

pub(crate) fn chance(random: &Random, probability: f64) -> bool {
    random.lock().random_bool(probability)
}

pub(crate) fn span(random: &Random, millis: Range<u64>) -> Duration {
    Duration::from_millis(random.lock().random_range(millis))
}

/// The line from one process to Consul.
#[derive(Clone)]
pub(crate) struct FaultyLine {
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) faults: Arc<Mutex<Faults>>,
    /// What Consul makes of the TTL asked for: 1.0, but where *valid until* is to be wrong.
    pub(crate) ttl_factor: f64,
    underway: Underway,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Nothing passes before this instant.
    pub(crate) cut_until: Option<Instant>,
    /// How often a request, and a reply, is lost.
    pub(crate) loss: f64,
    /// The longest that a message takes.
    pub(crate) delay_millis: u64,
    /// Consul has no leader before this instant.
    pub(crate) election_until: Option<Instant>,
}

impl FaultyLine {
    /// On which nothing goes wrong yet.
    pub(crate) fn new(clock: &Clock, random: &Random, ttl_factor: f64) -> FaultyLine {
        FaultyLine {
            clock: clock.clone(),
            random: Arc::clone(random),
            faults: Arc::default(),
            ttl_factor,
            underway: Underway::default(),
        }
    }

    /// One way over the line; never arrives if the message is lost.
    pub(crate) async fn travel(&self) {
        let faults = *self.faults.lock();
        if faults.loss > 0.0 && chance(&self.random, faults.loss) {
            pending::<()>().await;
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

    /// Refuses a call while Consul has no leader, as its servers do.
    pub(crate) fn needs_leader(&self, operation: Operation) -> Result<(), ConsulError> {
        if self.faults.lock().election_until.is_some_and(|end| self.clock.now() < end) {
            let message = "No cluster leader".to_owned();
            return Err(ConsulError { operation, class: Class::Transient, message });
        }
        Ok(())
    }
}

impl Wire for FaultyLine {
    async fn call<T: Send>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, ConsulError>> + Send,
    ) -> Result<T, ConsulError> {
        self.travel().await;
        self.needs_leader(operation)?;
        let answer = work.await;
        self.travel().await;
        answer
    }

    fn is_calm(&self) -> bool {
        let Faults { cut_until, loss, delay_millis, election_until: _ } = *self.faults.lock();
        let cut = cut_until.is_some_and(|end| self.clock.now() < end);
        !cut && loss == 0.0 && delay_millis == 0
    }

    fn underway(&self) -> &Underway {
        &self.underway
    }

    fn request(&self, request: &SessionRequest) -> SessionRequest {
        SessionRequest { ttl: request.ttl.mul_f64(self.ttl_factor), ..request.clone() }
    }

    fn granted(&self, renewal: Renewal) -> Renewal {
        Renewal { ttl: renewal.ttl.div_f64(self.ttl_factor) }
    }
}
