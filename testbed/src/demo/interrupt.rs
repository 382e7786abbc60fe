//! Ctrl-C: everything is stopped before the prompt is back.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use testbed::reaper;

/// A thread that waits for SIGINT and SIGTERM, and then ends the process.
pub(super) struct Interrupt {
    told: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on a signal stops the servers first; the exit code is 128 + its number.
    pub(super) fn watch() -> io::Result<Interrupt> {
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let told = Arc::new(AtomicBool::new(false));
        let is_the_end = Arc::clone(&told);
        // Never joined: it waits as long as the process lives.
        let _detached = thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            if let Some(signal) = signals.forever().next() {
                let as_asked = signal == SIGINT && is_the_end.load(Ordering::Relaxed);
                stop(if as_asked { 0 } else { 128 + signal });
            }
        })?;
        Ok(Interrupt { told })
    }

    /// The story is told: waits for Ctrl-C, which is no failure any more.
    pub(super) fn wait_as_the_end(&self) -> ! {
        self.told.store(true, Ordering::Relaxed);
        loop {
            thread::park();
        }
    }
}

/// Ends the process. The story may still go on in its thread, but is not heard any more.
fn stop(code: i32) -> ! {
    let _silenced = io::stdout().lock();
    // A terminal that is gone is no reason to leave servers behind.
    let _ = writeln!(io::stderr().lock(), "\nstopping the servers");
    let _silenced = io::stderr().lock();
    reaper::exit(code)
}
