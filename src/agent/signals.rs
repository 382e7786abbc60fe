//! The signals that `run` hears instead of its command.

use std::{future::poll_fn, io, task::Poll};

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};

/// Passed on to the command.
const PASSED_ON: [Signal; 7] = [
    Signal::INT,
    Signal::TERM,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::WINCH,
];

/// Listens to the signals that are passed on, and to SIGCONT.
pub(super) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Starts to listen. A signal that this process was started to ignore, as `nohup` has it, is
    /// not touched: the command ignores it, too.
    pub(super) fn listen() -> io::Result<Signals> {
        let ignored = ignored();
        let wanted = PASSED_ON.into_iter().filter(|signal| ignored & bit(*signal) == 0);
        let heard = wanted.chain([Signal::CONT]).map(|signal| {
            let heard = unix::signal(SignalKind::from_raw(signal.as_raw()))?;
            Ok((signal, heard))
        });
        heard.collect::<io::Result<_>>().map(Signals)
    }

    /// The next one. Cancel-safe.
    pub(super) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            let mut arrived = self.0.iter_mut().filter_map(|(signal, heard)| {
                matches!(heard.poll_recv(context), Poll::Ready(Some(()))).then_some(*signal)
            });
            arrived.next().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// The next one that asks a process without a command to end. Cancel-safe.
    pub(super) async fn end(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT].contains(&signal) {
                return signal;
            }
        }
    }
}

/// Its number, as in an exit code.
pub(super) fn number(signal: Signal) -> u8 {
    u8::try_from(signal.as_raw()).unwrap_or(u8::MAX)
}

/// The signals that this process ignores, as bits; none if the kernel does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

fn bit(signal: Signal) -> u64 {
    1 << (signal.as_raw() - 1)
}
