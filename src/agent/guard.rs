//! The guard: the process between `run` and its command.
//!
//! It waits beside `run` for the lock. Once that is held it starts the command, learns each new
//! deadline through a socket, and ends everything that came of the command when a deadline passes,
//! when it is told to, or when `run` is gone. One thread, and one beside it for the
//! [cgroup](super::cgroup), no runtime, and nothing that allocates once it watches over the
//! command.
//!
//! # Guarantees
//! SIGTERM at the first deadline and SIGKILL at the second, on the clock that also counts suspend,
//! whatever `run` does. When it says [`Report::Ended`], no process is left, and of a `run` that was
//! killed no file.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::{
    signal::SigSet,
    signalfd::{SfdFlags, SignalFd},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, Signal, WaitStatus, kill_process_group},
};

use super::{
    cgroup::{self, Cgroup},
    descendants::{self, AGAIN, Child, Descendants, Told},
    notice::Deadlines,
    orders::{self, Ending, Order, Received, Report, Start},
    timer::Timer,
    valid_until::{self, VALID_UNTIL_FILE},
};
use crate::clock::{Clock, Instant};

/// What the guard does for the command. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    /// It may work until these.
    Hold(Deadlines),
    /// It was told to stop, and has until then.
    Stop { kill: Instant },
    /// It is killed.
    Kill,
}

/// What happens to the guard.
#[derive(Clone, Copy, Debug)]
enum Event {
    Ordered(Order),
    /// `run` is gone: nobody renews any more.
    Orphaned,
    /// The command itself has ended; what it left behind has no business without it.
    CommandEnded,
}

impl Duty {
    fn after(self, event: Event, now: Instant, grace: Duration) -> Duty {
        match (self, event) {
            (Duty::Hold(_), Event::Ordered(Order::Hold(deadlines))) => Duty::Hold(deadlines),
            (Duty::Hold(_), Event::Ordered(Order::Stop { kill })) => Duty::Stop { kill },
            (Duty::Hold(deadlines), Event::Orphaned | Event::CommandEnded) => {
                Duty::Stop { kill: deadlines.kill.min(now + grace) }
            }
            // The first instant counts; an earlier one is heard.
            (Duty::Stop { kill }, Event::Ordered(Order::Stop { kill: other })) => {
                Duty::Stop { kill: kill.min(other) }
            }
            // Too late for a renewal, and nothing new.
            (duty, Event::Ordered(Order::Hold(_) | Order::Stop { .. }))
            | (duty, Event::Orphaned | Event::CommandEnded)
            | (duty, Event::Ordered(Order::Signal(_) | Order::Start { .. })) => duty,
        }
    }

    fn at(self, now: Instant) -> Duty {
        match self {
            Duty::Hold(Deadlines { term, kill }) if now >= term => Duty::Stop { kill }.at(now),
            Duty::Stop { kill } if now >= kill => Duty::Kill,
            duty => duty,
        }
    }

    /// When time alone changes something.
    fn due(self, now: Instant) -> Instant {
        match self {
            Duty::Hold(deadlines) => deadlines.term,
            Duty::Stop { kill } => kill.min(now + AGAIN),
            Duty::Kill => now + AGAIN,
        }
    }
}

/// The name by which this program is started to be a guard.
pub const GUARD: &str = "consul-lock-guard";

/// Guards `command`, program and arguments, for the `run` at the other end of standard input, from
/// when that says so. Returns when nothing is left of it, or `run` has ended without a word.
///
/// # Errors
/// Of the system calls that come before the command is started. It is not started then.
pub fn guard(command: &[OsString]) -> io::Result<()> {
    let socket = io::stdin();
    let [program, arguments @ ..] = command else { return Err(io::ErrorKind::InvalidData.into()) };
    let descendants = descendants::adopt()?;
    let Some(Start { deadlines, grace, variables, stdin }) = orders::receive_start(&socket)? else {
        return Ok(());
    };
    // What others left may have been left while this one waited.
    cgroup::sweep();
    let timer = Timer::new()?;
    let (clock, duty) = (Clock::boot(), Duty::Hold(deadlines));
    if duty.at(clock.now()) != duty {
        return Err(io::ErrorKind::TimedOut.into());
    }
    // The command inherits the signal mask, so signals are blocked after it has been started; a
    // guard that one of them ends before is missed by `run`, which ends the command.
    let file = variables.iter().find(|(name, _)| name == VALID_UNTIL_FILE);
    let file = file.map(|(_, path)| PathBuf::from(path));
    let mut starting = Command::new(program);
    starting.args(arguments).envs(variables).stdin(Stdio::from(stdin)).process_group(0);
    let command = match starting.spawn() {
        Ok(child) => Pid::from_child(&child),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or_default();
            orders::send(&socket, Report::NotStarted(errno).packet());
            return Ok(());
        }
    };
    let mask = SigSet::all();
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    orders::send(&socket, Report::Started(command).packet());
    let cgroup = Cgroup::around(command);
    let (socket, command) = (socket.as_fd(), Some(command));
    let orphaned = false;
    let guard = Guard {
        socket,
        timer,
        signals,
        clock,
        descendants,
        cgroup: cgroup.as_ref(),
        command,
        grace,
        orphaned,
    };
    let end = guard.keep(duty);
    let report = Report::Ended { how: end.how, expired: end.expired };
    orders::send(socket, report.packet());
    if let Some(file) = file.filter(|_| end.orphaned) {
        valid_until::remove(&file);
    }
    if let Some(cgroup) = cgroup {
        cgroup.end();
    }
    Ok(())
}

struct Guard<'a> {
    socket: BorrowedFd<'a>,
    timer: Timer,
    /// Readable when a child has ended or stopped.
    signals: SignalFd,
    clock: Clock,
    descendants: Descendants,
    cgroup: Option<&'a Cgroup>,
    /// Until it has ended: then its number may come to mean another.
    command: Option<Pid>,
    grace: Duration,
    /// `run` is gone, and its socket says so without end.
    orphaned: bool,
}

/// How it came to an end.
struct End {
    /// The command.
    how: Ending,
    /// A deadline had passed before.
    expired: bool,
    /// `run` is gone.
    orphaned: bool,
}

impl Guard<'_> {
    /// Does its duty until no process is left.
    fn keep(mut self, mut duty: Duty) -> End {
        // Whoever cannot be asked any more was killed.
        let (mut how, mut expired) = (Ending::Signal(9), false);
        let mut told = Told::nobody();
        loop {
            // Before children are asked, so that none ends unseen between the two.
            while let Ok(Some(_)) = self.signals.read_signal() {}
            duty = self.obey(duty);
            loop {
                match descendants::child() {
                    Child::News(pid, status) if Some(pid) == self.command => match ended(status) {
                        Some(ended) => {
                            (self.command, how) = (None, ended);
                            duty = duty.after(Event::CommandEnded, self.clock.now(), self.grace);
                        }
                        None => orders::send(self.socket, Report::Stopped.packet()),
                    },
                    Child::News(..) => {}
                    Child::Quiet => break,
                    Child::None => return End { how, expired, orphaned: self.orphaned },
                }
            }
            let now = self.clock.now();
            let due = duty.at(now);
            expired |= matches!(duty, Duty::Hold(_)) && due != duty;
            duty = due;
            match duty {
                Duty::Hold(_) => {}
                Duty::Stop { .. } => self.descendants.tell(&mut told),
                Duty::Kill => {
                    self.descendants.kill();
                    if let Some(cgroup) = self.cgroup {
                        cgroup.kill();
                    }
                }
            }
            self.wait_until(duty.due(now));
        }
    }

    fn obey(&mut self, mut duty: Duty) -> Duty {
        while !self.orphaned {
            let event = match orders::receive(self.socket) {
                Received::Nothing => break,
                Received::End => {
                    self.orphaned = true;
                    Event::Orphaned
                }
                Received::Packet(packet) => match Order::read(&packet) {
                    Some(Order::Signal(number)) => {
                        self.pass_on(number);
                        continue;
                    }
                    Some(order) => Event::Ordered(order),
                    None => continue,
                },
            };
            duty = duty.after(event, self.clock.now(), self.grace);
        }
        duty
    }

    fn pass_on(&self, number: i32) {
        if let (Some(command), Some(signal)) = (self.command, Signal::from_named_raw(number)) {
            let _ = kill_process_group(command, signal);
        }
    }

    /// Returns when there is news, or it is time. Early returns do no harm.
    fn wait_until(&self, due: Instant) {
        self.timer.set(Some(due));
        let mut watched = [
            PollFd::new(&self.timer, PollFlags::IN),
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.socket, PollFlags::IN),
        ];
        // A socket that has ended would end every wait at once.
        let watched = if self.orphaned { &mut watched[..2] } else { &mut watched[..] };
        let _ = poll(watched, None);
    }
}

/// How a child came to its end; `None`: it was only stopped.
pub(super) fn ended(status: WaitStatus) -> Option<Ending> {
    let small = |number| u8::try_from(number).unwrap_or(u8::MAX);
    let code = status.exit_status().map(|code| Ending::Code(small(code)));
    code.or_else(|| status.terminating_signal().map(|signal| Ending::Signal(small(signal))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> Instant {
        Instant::from_boot(S * seconds)
    }

    fn until(term: u32, kill: u32) -> Duty {
        Duty::Hold(Deadlines { term: at(term), kill: at(kill) })
    }

    #[test]
    fn passing_deadlines_stop_and_kill() {
        let duty = until(10, 15);
        assert_eq!(duty.at(at(9)), duty);
        assert_eq!(duty.at(at(10)), Duty::Stop { kill: at(15) });
        assert_eq!(duty.at(at(15)), Duty::Kill, "it woke up late");
        assert_eq!(Duty::Stop { kill: at(15) }.at(at(15)), Duty::Kill);
    }

    #[test]
    fn renewal_moves_the_deadlines_of_a_command_that_works_and_of_no_other() {
        let renewed = Event::Ordered(Order::Hold(Deadlines { term: at(20), kill: at(25) }));
        assert_eq!(until(10, 15).after(renewed, at(5), S), until(20, 25));
        for stopping in [Duty::Stop { kill: at(15) }, Duty::Kill] {
            assert_eq!(stopping.after(renewed, at(5), S), stopping);
        }
    }

    #[test]
    fn command_without_run_has_a_grace_and_no_longer_than_its_deadline() {
        for event in [Event::Orphaned, Event::CommandEnded] {
            let after = |now| until(10, 15).after(event, at(now), S * 5);
            assert_eq!(after(4), Duty::Stop { kill: at(9) });
            assert_eq!(after(12), Duty::Stop { kill: at(15) });
        }
    }

    #[test]
    fn a_second_order_to_stop_may_only_hasten_it() {
        let stop = |kill| Event::Ordered(Order::Stop { kill: at(kill) });
        let stopping = until(10, 15).after(stop(9), at(4), S);
        assert_eq!(stopping, Duty::Stop { kill: at(9) });
        assert_eq!(stopping.after(stop(12), at(4), S), stopping);
        assert_eq!(stopping.after(stop(6), at(4), S), Duty::Stop { kill: at(6) });
    }
}
