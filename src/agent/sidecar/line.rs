//! The agent's line to its guard, and what it does itself when the guard does not.

use std::{io, os::fd::AsFd as _, time::Duration};

use rustix::process::getppid;
use tokio::net::UnixStream;

use super::app::{App, AppSettings, is_topmost};
use crate::{
    agent::{
        child::{self, News},
        descendants::Told,
        notice::Deadlines,
        orders::{self, Order, Report},
    },
    clock::{Clock, Instant},
};

/// How long an app that is being ended may take before it is looked for again.
const AGAIN: Duration = Duration::from_millis(20);
/// How long a container's runtime may take to end what is left of it.
const RUNTIME: Duration = Duration::from_secs(1);

/// An app, and its guard.
pub(super) struct Line {
    /// It keeps packets apart, which tokio has no type for; reading and writing are the same.
    guard: UnixStream,
    /// How many orders to stop were given.
    stops: u64,
    app: App,
    /// The guard is its container's main process.
    is_in_container: bool,
}

impl Line {
    /// The guard is at the other end of standard input.
    pub(super) fn new(settings: &AppSettings) -> io::Result<Line> {
        let mut app = App::new(settings)?;
        app.sparing(getppid());
        let is_in_container = getppid().is_some_and(is_topmost);
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        let guard = UnixStream::from_std(socket.into())?;
        Ok(Line { guard, stops: 0, app, is_in_container })
    }

    /// The app may work until these.
    pub(super) fn hold(&self, deadlines: Deadlines) {
        orders::send(&self.guard, Order::Hold(deadlines).packet());
    }

    /// Whoever works has to stop, and is killed at this instant at the latest.
    pub(super) fn stop(&mut self, kill: Instant) {
        self.stops += 1;
        orders::send(&self.guard, Order::Stop { kill }.packet());
    }

    /// Whether none of the app's processes lives.
    pub(super) fn app_is_gone(&self) -> bool {
        self.app.count() == 0
    }

    /// What the guard has to say next. Cancel-safe.
    pub(super) async fn news(&self) -> News {
        child::news(&self.guard).await
    }

    /// Returns when the guard says that nothing is left of whoever was last to stop. One that is gone
    /// never does.
    pub(super) async fn cleared(&self) {
        loop {
            match self.news().await {
                News::Reported(Report::Clear { stops }) if stops == self.stops => return,
                News::Reported(_) => {}
                News::Unguarded => std::future::pending().await,
            }
        }
    }

    /// With the guard that is gone the runtime is about to end us, if it was the container's main
    /// process. What the next container may go on with is not ended before. Returns at this instant at
    /// the latest.
    pub(super) async fn await_runtime(&self, clock: &Clock, latest: Instant) {
        if self.is_in_container {
            clock.sleep_until(latest.min(clock.now() + RUNTIME)).await;
        }
    }

    /// Ends the app without the guard, and returns when nothing is left of it.
    pub(super) async fn end_without_guard(&mut self, clock: &Clock, kill: Instant) {
        let (mut told, since) = (Told::nobody(), clock.now());
        loop {
            let now = clock.now();
            let left = if now >= kill { self.app.kill(since) } else { self.app.tell(&mut told) };
            if left == 0 {
                return;
            }
            clock.sleep_until(now + AGAIN).await;
        }
    }
}
