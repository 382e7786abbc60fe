//! The terminal that `run` was started from, lent to its command.
//!
//! The command is in a process group of its own, and only one group at a time may read from a
//! terminal and hears of Ctrl-C and Ctrl-Z. A shell without job control, as in a script, takes
//! neither from nor gives to whom it starts, so `run` has to give back what it took.

use std::{fs::File, io};

use nix::sys::signal::{SigSet, Signal as Masked};
use rustix::{
    process::{Pid, Signal, getpgrp, kill_current_process_group},
    termios::{tcgetpgrp, tcsetpgrp},
};

/// A controlling terminal.
#[derive(Debug)]
pub(super) struct Terminal(File);

impl Terminal {
    /// The terminal that this process is controlled by, if there is one.
    pub(super) fn of_ours() -> Option<Terminal> {
        File::options().read(true).write(true).open("/dev/tty").ok().map(Terminal)
    }

    /// Makes the group the one in the foreground, if ours is. A shell that put us into the
    /// background has reasons.
    pub(super) fn lend(&self, group: Pid) {
        if tcgetpgrp(&self.0).is_ok_and(|foreground| foreground == getpgrp()) {
            let _ = tcsetpgrp(&self.0, group);
        }
    }

    /// Makes our group the one in the foreground again, if the borrower's still is.
    pub(super) fn take_back(&self, group: Pid) -> io::Result<()> {
        if tcgetpgrp(&self.0)? != group {
            return Ok(());
        }
        // From the background this is allowed to those who do not hear SIGTTOU. Blocked in a
        // thread of its own, it is not inherited by anybody.
        std::thread::scope(|scope| {
            let taking = scope.spawn(|| {
                let mut mask = SigSet::empty();
                mask.add(Masked::SIGTTOU);
                mask.thread_block()?;
                Ok(tcsetpgrp(&self.0, getpgrp())?)
            });
            taking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Stops this process and its group, as the command was stopped; returns once it is continued. The
/// guard is in another group and goes on.
pub(super) fn stop_ourselves() {
    let _ = kill_current_process_group(Signal::TSTP);
}
