//! Passing bytes on.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use super::{Fault, Pair, Shared};

/// Passes bytes both ways until either side closes.
pub(super) fn serve(shared: &Shared, pair: &Pair) -> io::Result<()> {
    thread::scope(|scope| {
        scope.spawn(|| end(pair, pump(shared, &pair.client, &pair.upstream, false)));
        end(pair, pump(shared, &pair.upstream, &pair.client, true));
    });
    Ok(())
}

/// A side that closed properly has still a right to what the other one says; a broken one takes
/// the whole connection along.
fn end(pair: &Pair, outcome: io::Result<()>) {
    if outcome.is_err() {
        pair.close();
    }
}

fn pump(
    shared: &Shared,
    mut from: &TcpStream,
    mut to: &TcpStream,
    replies: bool,
) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    let mut allowance = Allowance::default();
    loop {
        let count = from.read(&mut buffer)?;
        let (fault, epoch) = shared.gate.pass()?;
        if count == 0 {
            return to.shutdown(Shutdown::Write);
        }
        match fault {
            Fault::Delay(delay) => shared.gate.delay(delay),
            Fault::TruncateReplies(limit) if replies => {
                let allowed = allowance.take(epoch, limit, count);
                to.write_all(&buffer[..allowed])?;
                if allowed < count {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                continue;
            }
            _ => {}
        }
        to.write_all(&buffer[..count])?;
    }
}

/// How many bytes of replies may still pass under one truncating fault.
#[derive(Default)]
struct Allowance {
    epoch: u64,
    passed: u64,
}

impl Allowance {
    fn take(&mut self, epoch: u64, limit: u64, wanted: usize) -> usize {
        if self.epoch != epoch {
            *self = Allowance { epoch, passed: 0 };
        }
        let left = usize::try_from(limit.saturating_sub(self.passed)).unwrap_or(usize::MAX);
        let allowed = wanted.min(left);
        self.passed += allowed as u64;
        allowed
    }
}
