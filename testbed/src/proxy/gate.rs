//! The fault of the moment, and waiting for it to end.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::{Fault, lock};

/// How long switching a fault may take; a thread that does not react is a bug of the proxy.
const SWITCH: Duration = Duration::from_secs(5);

/// Every byte passes through it.
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy)]
struct State {
    fault: Fault,
    /// Counts the faults, so that each connection knows when a new one began.
    epoch: u64,
    closed: bool,
    listening: bool,
}

impl Gate {
    pub(super) fn new() -> Gate {
        let state = State {
            fault: Fault::None,
            epoch: 0,
            closed: false,
            listening: true,
        };
        Gate {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Switches the fault; says whether somebody listens right now.
    pub(super) fn set(&self, fault: Fault) -> bool {
        let mut state = lock(&self.state);
        state.fault = fault;
        state.epoch += 1;
        self.changed.notify_all();
        state.listening
    }

    /// Ends everything; says whether somebody listens right now.
    pub(super) fn close(&self) -> bool {
        let mut state = lock(&self.state);
        state.closed = true;
        self.changed.notify_all();
        state.listening
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    pub(super) fn fault(&self) -> Fault {
        lock(&self.state).fault
    }

    /// The acceptor says whether it listens.
    pub(super) fn listening(&self, listening: bool) {
        lock(&self.state).listening = listening;
        self.changed.notify_all();
    }

    pub(super) fn wait_for_listener(&self, listening: bool) {
        let state = lock(&self.state);
        // Late is no error here: the test that relies on it fails with its own message.
        let waited = self.changed.wait_timeout_while(state, SWITCH, |state| {
            state.listening != listening && !state.closed
        });
        drop(waited);
    }

    pub(super) fn wait_until_not_cut(&self) {
        drop(self.wait_while(|state| state.fault == Fault::Cut));
    }

    /// Returns when bytes may pass, and with which fault and epoch they do.
    pub(super) fn pass(&self) -> io::Result<(Fault, u64)> {
        let state = self.wait_while(|state| state.fault == Fault::Blackhole);
        match state.fault {
            _ if state.closed => Err(io::ErrorKind::ConnectionAborted.into()),
            Fault::Cut => Err(io::ErrorKind::ConnectionAborted.into()),
            fault => Ok((fault, state.epoch)),
        }
    }

    /// Lets `delay` pass, but no longer than the proxy lives.
    pub(super) fn delay(&self, delay: Duration) {
        let state = lock(&self.state);
        drop(
            self.changed
                .wait_timeout_while(state, delay, |state| !state.closed),
        );
    }

    fn wait_while(&self, waiting: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let state = lock(&self.state);
        self.changed
            .wait_while(state, |state| !state.closed && waiting(state))
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
