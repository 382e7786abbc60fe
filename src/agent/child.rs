//! The command as `run` sees it: through the guard.

use std::{
    ffi::OsString,
    io,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{io::Interest, net::UnixStream};

use super::{
    descendants::{self, AGAIN, Child as Descendant, Descendants},
    guard::GUARD,
    notice::{Deadlines, Notice},
    orders::{self, Order, Received, Report},
};
use crate::clock::{Clock, Instant};

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

impl Child {
    /// Starts a guard, and by it the command: program and arguments. This process's environment is
    /// passed on without `hidden` and with `shown`.
    ///
    /// # Errors
    /// If the guard cannot be started; what becomes of the command is [news](Child::news).
    pub(super) fn start(
        command: &[OsString],
        hidden: &[&str],
        shown: &[(&str, String)],
        deadlines: Deadlines,
        notice: Notice,
    ) -> io::Result<Child> {
        // Should the guard die, its children are ours.
        let descendants = descendants::adopt()?;
        let (ours, guards) = orders::pair()?;
        let order = Order::Start { deadlines, grace: notice.grace() };
        orders::send_start(&ours, order, io::stdin().as_fd())?;
        // This very program, even if its file has been replaced since.
        let mut guard = Command::new("/proc/self/exe");
        guard.arg0(GUARD).args(command);
        for name in hidden {
            guard.env_remove(name);
        }
        guard.envs(shown.iter().map(|(name, value)| (name, value)));
        // A group of its own: what a terminal or a shell sends ours is not meant for it.
        let guard = guard.stdin(Stdio::from(guards)).process_group(0).spawn()?;
        let socket = UnixStream::from_std(ours.into())?;
        Ok(Child { socket, guard: Pid::from_child(&guard), descendants })
    }

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
