//! The command as `run` sees it: through the guard.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{io::Interest, net::UnixStream};

use super::{
    descendants::{self, AGAIN, Child as Descendant, Descendants},
    guard::GUARD,
    notice::{Deadlines, Notice},
    orders::{self, Order, Received, Report, Variables},
};
use crate::clock::{Clock, Instant};

/// What carries our own right to talk to Consul, and no command's.
pub(super) const SECRETS: [&str; 3] =
    ["CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE", "CONSUL_LOGIN_BEARER_TOKEN_FILE"];

/// A guard that has no command to guard yet. Started while the lock is waited for, it takes no time
/// once it is held. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Ready {
    socket: OwnedFd,
    guard: Pid,
    descendants: Descendants,
}

/// A command under a guard. Dropped, it is ended by the guard, with its grace.
#[derive(Debug)]
pub(super) struct Child {
    /// It keeps packets apart, which tokio has no type for; reading and writing are the same.
    socket: UnixStream,
    guard: Pid,
    descendants: Descendants,
}

/// What `run` is told of its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Reported(Report),
    /// The guard has ended without saying that the command has.
    Unguarded,
}

impl Ready {
    /// Starts a guard for a command, program and arguments. The command will have this process's
    /// environment without `hidden`.
    ///
    /// # Errors
    /// If the guard cannot be started.
    pub(super) fn new(command: &[OsString], hidden: &[&str]) -> io::Result<Ready> {
        // Should the guard die, its children are ours.
        let descendants = descendants::adopt()?;
        let (ours, guards) = orders::pair()?;
        // This very program, even if its file has been replaced since.
        let mut guard = Command::new("/proc/self/exe");
        guard.arg0(GUARD).args(command);
        for name in hidden {
            guard.env_remove(name);
        }
        // A group of its own: what a terminal or a shell sends ours is not meant for it.
        let guard = guard.stdin(Stdio::from(guards)).process_group(0).spawn()?;
        Ok(Ready { socket: ours, guard: Pid::from_child(&guard), descendants })
    }

    /// Has the command started, with these variables beside those of [`Ready::new`]. What becomes
    /// of it is [news](Child::news).
    ///
    /// # Errors
    /// If the guard does not hear; `BrokenPipe` if it is gone. Nothing runs then.
    pub(super) fn start(
        self,
        variables: &Variables,
        deadlines: Deadlines,
        notice: Notice,
    ) -> io::Result<Child> {
        let order = Order::Start { deadlines, grace: notice.grace() };
        orders::send_start(&self.socket, order, variables, io::stdin().as_fd())?;
        let socket = UnixStream::from_std(self.socket.into())?;
        Ok(Child { socket, guard: self.guard, descendants: self.descendants })
    }
}

impl Child {
    /// The lock was renewed.
    pub(super) fn hold(&self, deadlines: Deadlines) {
        self.order(Order::Hold(deadlines));
    }

    /// Tells the command to stop, and kills it at this instant at the latest.
    pub(super) fn stop(&self, kill: Instant) {
        self.order(Order::Stop { kill });
    }

    /// Sends the command's process group a signal.
    pub(super) fn signal(&self, number: i32) {
        self.order(Order::Signal(number));
    }

    /// What there is to know next. Cancel-safe.
    pub(super) async fn news(&self) -> News {
        news(&self.socket).await
    }

    /// Ends the command without the guard, and the guard, and waits until nothing is left.
    pub(super) async fn end_without_guard(&self, clock: &Clock) {
        // It is our child and was not waited for, so the number is still its own. With it gone its
        // children are ours, too.
        let _ = kill_process(self.guard, Signal::KILL);
        loop {
            self.descendants.kill();
            loop {
                match descendants::child() {
                    Descendant::News(..) => {}
                    Descendant::Quiet => break,
                    Descendant::None => return,
                }
            }
            clock.sleep_until(clock.now() + AGAIN).await;
        }
    }

    fn order(&self, order: Order) {
        orders::send(&self.socket, order.packet());
    }
}

/// What the guard at the other end has to say next. Cancel-safe.
pub(super) async fn news(socket: &UnixStream) -> News {
    loop {
        if socket.readable().await.is_err() {
            return News::Unguarded;
        }
        // Nothing there is an error, so that tokio waits for more.
        let received = socket.try_io(Interest::READABLE, || match orders::receive(socket) {
            Received::Nothing => Err(io::ErrorKind::WouldBlock.into()),
            Received::Packet(packet) => Ok(Some(packet)),
            Received::End => Ok(None),
        });
        match received {
            Ok(Some(packet)) => {
                if let Some(report) = Report::read(&packet) {
                    return News::Reported(report);
                }
            }
            Ok(None) => return News::Unguarded,
            Err(_) => {}
        }
    }
}
