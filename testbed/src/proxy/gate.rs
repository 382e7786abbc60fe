//! The fault of the moment, and waiting for it to end.

use std::io;

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::Fault;

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
        let state = State { fault: Fault::None, epoch: 0, closed: false, listening: true };
        Gate { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Switches the fault; says whether somebody listens right now.
    pub(super) fn set(&self, fault: Fault) -> bool {
        let mut state = self.state.lock();
        state.fault = fault;
        state.epoch += 1;
        self.changed.notify_all();
        state.listening
    }

    /// Ends everything; says whether somebody listens right now.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state.lock();
        state.closed = true;
        self.changed.notify_all();
        state.listening
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    pub(super) fn fault(&self) -> Fault {
        self.state.lock().fault
    }

    /// The acceptor says whether it listens.
    pub(super) fn listening(&self, listening: bool) {
        self.state.lock().listening = listening;
        self.changed.notify_all();
    }

    pub(super) fn wait_for_listener(&self, listening: bool) {
        // Late is no error here: the test that relies on it fails with its own message.
        let _ = self.changed.wait_while_for(
            &mut self.state.lock(),
            |state| state.listening != listening && !state.closed,
            SWITCH,
        );
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
        let _ = self.changed.wait_while_for(&mut self.state.lock(), |state| !state.closed, delay);
    }

    fn wait_while(&self, waiting: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| !state.closed && waiting(state));
        state
    }
}
