//! The guard of an agent: it ends the app when a deadline passes, whatever the agent does.
//!
//! It is the agent's parent and so its container's main process, for when a main process ends, the
//! runtime ends whatever else runs in the container: a guard that were a child would be gone just
//! when it is needed. It learns each new deadline through a socket, passes signals on, and starts
//! the agent again should that fail; an agent that finds its session again in time lets the app
//! go on.
//!
//! # Guarantees
//! The app's processes are sent the signal at the first deadline and SIGKILL at the second, on the
//! clock that also counts suspend, also while the agent is stopped, stuck or dead. An app that
//! nobody has vouched for since the guard began has [`BEGINNING`], and then the same. In a pod an app
//! that ends takes its turn along: what the kubelet starts in its place has to ask anew.
//! # Not guaranteed
//! Anything, when the guard itself is killed: then the agent ends the app. In a container the runtime
//! ends the agent as well, and the next container ends the app or goes on with the tenure, which takes
//! as long as the kubelet waits until it starts one: longer each time.

use std::{
    ffi::OsString,
    io,
    os::{fd::AsFd, unix::process::CommandExt as _},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::{
    signal::SigSet,
    signalfd::{SfdFlags, SignalFd},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::OwnedFd,
    process::{Pid, Signal, getppid, kill_process},
};

use super::{
    app::{App, AppSettings},
    mains::{Mains, ROOM},
};
use crate::{
    agent::{
        descendants::{self, Child, Told},
        guard::ended,
        notice::Deadlines,
        orders::{self, Ending, Order, Received, Report},
        timer::Timer,
    },
    clock::{Clock, Instant},
};

/// The flag by which an agent knows that it has a guard, at the other end of its standard input.
const GUARDED: &str = "--guarded";

/// How long an app may go on that worked before this guard began, until an agent vouches for it.
const BEGINNING: Duration = Duration::from_secs(3);
/// While the app is being ended, it is looked for this often.
const AGAIN: Duration = Duration::from_millis(20);
/// While an app may work of which no container is known, it is looked for this often.
const LOOK: Duration = Duration::from_millis(100);
/// Between the end of an agent and the next one.
const PAUSE: Duration = Duration::from_secs(1);
/// An agent that ends so has failed; every other way was its decision.
const FAILED: u8 = 1;

/// What the guard does for the app. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    /// Nobody may work, and nobody does: whatever did was ended.
    Idle,
    /// It may work until these.
    Hold(Deadlines),
    /// It was told to stop, and has until then.
    Stop { kill: Instant },
    /// It is killed.
    Kill,
}

impl Duty {
    fn after(self, order: Order) -> Duty {
        match (self, order) {
            (Duty::Idle | Duty::Hold(_), Order::Hold(deadlines)) => Duty::Hold(deadlines),
            (Duty::Hold(deadlines), Order::Stop { kill }) => {
                Duty::Stop { kill: kill.min(deadlines.kill) }
            }
            (Duty::Stop { kill }, Order::Stop { kill: other }) => {
                Duty::Stop { kill: kill.min(other) }
            }
            // Nobody works; too late for a renewal; nothing new; and what only a command is told.
            (Duty::Idle, Order::Stop { .. })
            | (Duty::Stop { .. }, Order::Hold(_))
            | (Duty::Kill, Order::Hold(_) | Order::Stop { .. })
            | (_, Order::Signal(_) | Order::Start { .. }) => self,
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
    fn due(self, now: Instant) -> Option<Instant> {
        match self {
            Duty::Idle => None,
            Duty::Hold(deadlines) => Some(deadlines.term),
            Duty::Stop { kill } => Some(kill.min(now + AGAIN)),
            Duty::Kill => Some(now + AGAIN),
        }
    }
}

/// Guards the app, and keeps the agent: this program with these arguments, which are those of the
/// guard, and [`GUARDED`]. Returns the agent's exit code when both have ended.
///
/// # Errors
/// Of the system calls that come before the agent is started.
pub fn guard(arguments: &[OsString], settings: &AppSettings, grace: Duration) -> io::Result<u8> {
    let mask = SigSet::all();
    mask.thread_block()?;
    let clock = Clock::boot();
    let term = clock.now() + BEGINNING;
    let mut guard = Guard {
        arguments,
        app: App::new(settings)?,
        grace,
        timer: Timer::new()?,
        signals: SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
        duty: Duty::Hold(Deadlines { term, kill: term + grace }),
        clock,
        // Whoever started a container's main process is outside.
        mains: getppid().is_none().then(Mains::default),
        has_ended: false,
        agent: None,
        again: None,
        is_ending: false,
        end: None,
    };
    if guard.app.count() == 0 {
        // Whoever comes now has to ask first.
        guard.duty = Duty::Idle;
    }
    guard.agent = Some(guard.start()?);
    Ok(guard.keep())
}

/// For a guarded agent: its guard heeds no signals, and such is inherited.
///
/// # Errors
/// Of the system call.
pub fn hear_signals() -> io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

struct Guard<'a> {
    arguments: &'a [OsString],
    app: App,
    grace: Duration,
    timer: Timer,
    /// Readable when an agent has ended, or somebody wants us to.
    signals: SignalFd,
    clock: Clock,
    duty: Duty,
    /// `None`: this is no container.
    mains: Option<Mains>,
    /// The app has, and the agent has not taken notice yet.
    has_ended: bool,
    agent: Option<Agent>,
    /// When to start the next agent.
    again: Option<Instant>,
    /// We were told to end, and have passed it on.
    is_ending: bool,
    /// What to end with, once the app has.
    end: Option<u8>,
}

/// The agent that runs.
struct Agent {
    pid: Pid,
    /// `None`: its end was seen.
    socket: Option<OwnedFd>,
    /// How many orders to stop it has given.
    stops: u64,
}

impl Guard<'_> {
    fn start(&mut self) -> io::Result<Agent> {
        let (ours, agents) = orders::pair()?;
        // This very program, even if its file has been replaced since.
        let mut agent = Command::new("/proc/self/exe");
        agent.arg0("consul-lock").args(self.arguments).arg(GUARDED);
        let agent = agent.stdin(Stdio::from(agents)).spawn()?;
        let pid = Pid::from_child(&agent);
        self.app.sparing(Some(pid));
        Ok(Agent { pid, socket: Some(ours), stops: 0 })
    }

    fn keep(mut self) -> u8 {
        let (mut told, mut since) = (Told::nobody(), None);
        loop {
            // Before children are asked, so that none ends unseen between the two.
            self.pass_on_signals();
            self.obey();
            while let Child::News(pid, status) = descendants::child() {
                if self.agent.as_ref().is_some_and(|agent| agent.pid == pid)
                    && let Some(how) = ended(status)
                {
                    self.agent_ended(how);
                }
            }
            let now = self.clock.now();
            self.duty = self.duty.at(now);
            self.watch_app(now);
            let left = match self.duty {
                Duty::Idle | Duty::Hold(_) => None,
                Duty::Stop { .. } => {
                    since.get_or_insert(now);
                    Some(self.app.tell(&mut told))
                }
                Duty::Kill => Some(self.app.kill(*since.get_or_insert(now))),
            };
            if left == Some(0) {
                eprintln!("guard: nothing is left of the app that was to stop");
                (told, since) = (Told::nobody(), None);
                self.duty = Duty::Idle;
                self.report_clear();
            }
            match self.end {
                Some(code) if self.agent.is_none() && self.duty == Duty::Idle => return code,
                _ => self.start_again(now),
            }
            self.wait();
        }
    }

    /// In a pod, an app that has ended must not be followed by another under the same tenure: that it
    /// has ended is proof of its death to others, who need not wait.
    fn watch_app(&mut self, now: Instant) {
        let Some(mains) = &mut self.mains else { return };
        if !matches!(self.duty, Duty::Hold(_)) {
            mains.forget();
        } else if mains.have_ended() {
            eprintln!("guard: the app has ended by itself; the lock is given up");
            self.has_ended = true;
            self.duty = self.duty.after(Order::Stop { kill: now + self.grace });
            self.report(Report::AppEnded);
        } else if !mains.are_known() {
            mains.look(&self.app);
            if mains.are_known() {
                self.app.try_rights();
            }
        }
    }

    fn agent_ended(&mut self, how: Ending) {
        self.agent = None;
        self.app.sparing(None);
        let now = self.clock.now();
        match how {
            Ending::Code(code) if code != FAILED => {
                // Its own decision: it has told us before what becomes of the app.
                self.end = Some(code);
            }
            Ending::Code(code) if self.is_ending => self.end = Some(code),
            // It was told so early that it did not hear signals yet.
            Ending::Signal(_) if self.is_ending => self.end = Some(0),
            Ending::Code(_) | Ending::Signal(_) => {
                eprintln!("error: the agent has ended by itself ({how:?}); starting it again");
                self.again = Some(now + PAUSE);
            }
        }
        if self.end.is_some() {
            self.duty = self.duty.after(Order::Stop { kill: now + self.grace });
        }
    }

    fn start_again(&mut self, now: Instant) {
        if self.again.is_none_or(|again| now < again) {
            return;
        }
        self.again = None;
        match self.start() {
            Ok(agent) => self.agent = Some(agent),
            Err(error) => {
                eprintln!("error: cannot start the agent: {error}");
                self.again = Some(now + PAUSE);
            }
        }
    }

    /// Tells the agent what we are told. Without one, we are the ones who are to end.
    fn pass_on_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            let Some(signal) = Signal::from_named_raw(number) else { continue };
            let ends = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT].contains(&signal);
            if !ends {
                continue;
            }
            self.is_ending = true;
            if let Some(agent) = &self.agent {
                let _ = kill_process(agent.pid, signal);
            } else {
                (self.again, self.end) = (None, self.end.or(Some(0)));
                let kill = self.clock.now() + self.grace;
                self.duty = self.duty.after(Order::Stop { kill });
            }
        }
    }

    fn obey(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        while let Some(socket) = &agent.socket {
            match orders::receive(socket) {
                Received::Nothing => return,
                // Its deadlines stand.
                Received::End => agent.socket = None,
                Received::Packet(packet) => {
                    let Some(order) = Order::read(&packet) else { continue };
                    match order {
                        Order::Hold(_) if self.has_ended => {
                            orders::send(socket, Report::AppEnded.packet());
                            continue;
                        }
                        Order::Stop { .. } => self.has_ended = false,
                        _ => {}
                    }
                    agent.stops += u64::from(matches!(order, Order::Stop { .. }));
                    self.duty = self.duty.at(self.clock.now()).after(order);
                    if matches!(order, Order::Stop { .. }) && self.duty == Duty::Idle {
                        orders::send(socket, Report::Clear { stops: agent.stops }.packet());
                    }
                }
            }
        }
    }

    fn report_clear(&self) {
        if let Some(Agent { stops, .. }) = &self.agent {
            self.report(Report::Clear { stops: *stops });
        }
    }

    fn report(&self, report: Report) {
        if let Some(Agent { socket: Some(socket), .. }) = &self.agent {
            orders::send(socket, report.packet());
        }
    }

    /// When to look for the app again, if at all.
    fn look_due(&self, now: Instant) -> Option<Instant> {
        let is_sought = self.mains.as_ref().is_some_and(|mains| !mains.are_known());
        (is_sought && matches!(self.duty, Duty::Hold(_))).then(|| now + LOOK)
    }

    /// Returns when there is news, or it is time. Early returns do no harm.
    fn wait(&self) {
        let now = self.clock.now();
        let due = [self.duty.due(now), self.look_due(now), self.again].into_iter().flatten().min();
        self.timer.set(due);
        let socket = self.agent.as_ref().and_then(|agent| agent.socket.as_ref());
        let mains = self.mains.iter().flat_map(Mains::handles).map(AsFd::as_fd);
        let mut fds = [self.timer.as_fd(), self.signals.as_fd()]
            .into_iter()
            .chain(socket.map(AsFd::as_fd))
            .chain(mains);
        let nothing = PollFd::new(&self.timer, PollFlags::empty());
        let mut watched: [PollFd<'_>; 3 + ROOM] = std::array::from_fn(|_| match fds.next() {
            Some(fd) => PollFd::from_borrowed_fd(fd, PollFlags::IN),
            None => nothing.clone(),
        });
        let _ = poll(&mut watched, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> Instant {
        Instant::from_boot(S * seconds)
    }

    fn deadlines(term: u32, kill: u32) -> Deadlines {
        Deadlines { term: at(term), kill: at(kill) }
    }

    fn stop(kill: u32) -> Order {
        Order::Stop { kill: at(kill) }
    }

    #[test]
    fn passing_deadlines_stop_and_kill() {
        let duty = Duty::Hold(deadlines(10, 15));
        assert_eq!(duty.at(at(9)), duty);
        assert_eq!(duty.at(at(10)), Duty::Stop { kill: at(15) });
        assert_eq!(duty.at(at(15)), Duty::Kill, "it woke up late");
    }

    #[test]
    fn renewal_moves_the_deadlines_of_an_app_that_works_and_of_no_other() {
        let renewed = Order::Hold(deadlines(20, 25));
        let working = Duty::Hold(deadlines(20, 25));
        assert_eq!(Duty::Hold(deadlines(10, 15)).after(renewed), working);
        assert_eq!(Duty::Idle.after(renewed), working, "a new tenure");
        for stopping in [Duty::Stop { kill: at(15) }, Duty::Kill] {
            assert_eq!(stopping.after(renewed), stopping);
        }
    }

    #[test]
    fn an_order_to_stop_may_only_hasten_the_end() {
        let working = Duty::Hold(deadlines(10, 15));
        assert_eq!(working.after(stop(9)), Duty::Stop { kill: at(9) });
        assert_eq!(working.after(stop(30)), Duty::Stop { kill: at(15) }, "its deadline stands");
        let stopping = Duty::Stop { kill: at(9) };
        assert_eq!(stopping.after(stop(12)), stopping);
        assert_eq!(stopping.after(stop(6)), Duty::Stop { kill: at(6) });
    }

    #[test]
    fn app_that_waits_for_its_turn_is_not_stopped() {
        assert_eq!(Duty::Idle.after(stop(9)), Duty::Idle);
        assert_eq!(Duty::Idle.at(at(1000)), Duty::Idle);
        assert_eq!(Duty::Idle.due(at(1)), None);
    }
}
