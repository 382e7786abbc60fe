//! Everybody who is told of the lock: whoever asks by HTTP, the file, the hooks, the app.

use std::{future::pending, io, time::Duration};

use tokio::{select, sync::watch};

use super::{
    AgentError, AgentSettings,
    file::StandingFile,
    hooks::Hooks,
    line::Line,
    standing::{Standing, State},
};
use crate::{
    agent::{child::News, notice::Notice},
    clock::{Clock, Instant},
    holder::Tenure,
    names::Key,
};

/// Those who are told.
pub(super) struct Tellers<'a> {
    settings: &'a AgentSettings,
    clock: Clock,
    standing: watch::Sender<Standing>,
    file: Option<StandingFile>,
    hooks: Hooks,
    line: Option<Line>,
}

impl<'a> Tellers<'a> {
    /// `guarded`: by the process at the other end of standard input.
    pub(super) fn new(
        settings: &'a AgentSettings,
        clock: &Clock,
        guarded: bool,
    ) -> io::Result<Tellers<'a>> {
        let app = settings.app.as_ref().filter(|_| guarded);
        let standing = Standing {
            key: settings.key.clone(),
            me: settings.me(),
            state: State::Starting,
            other: None,
            trouble: None,
        };
        let tellers = Tellers {
            settings,
            clock: clock.clone(),
            standing: watch::Sender::new(standing),
            file: settings.file.as_deref().map(StandingFile::new),
            hooks: Hooks::default(),
            line: app.map(Line::new).transpose()?,
        };
        tellers.write();
        Ok(tellers)
    }

    pub(super) fn follow(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// We do not hold the key.
    pub(super) fn idle(
        &self,
        key: Option<Key>,
        state: State,
        other: Option<String>,
        trouble: Option<String>,
    ) {
        self.stand(|standing| {
            standing.key = key.or(standing.key.take());
            (standing.state, standing.other, standing.trouble) = (state, other, trouble);
        });
    }

    /// A tenure began. The guard is told first: nobody works who is not watched over.
    pub(super) async fn begin(&mut self, key: &Key, tenure: &Tenure, notice: Notice) {
        self.renewed(tenure, notice);
        if let Some(command) = &self.settings.on_acquire {
            self.hooks.start("on-acquire", command, &variables(key, tenure, true)).await;
        }
    }

    /// *Valid until* is this now.
    pub(super) fn renewed(&self, tenure: &Tenure, notice: Notice) {
        if let Some(line) = &self.line {
            line.hold(notice.deadlines(tenure.valid_until));
        }
        self.stand(|standing| {
            standing.state = State::held(tenure.clone(), notice);
            (standing.other, standing.trouble) = (None, None);
        });
    }

    /// The key is not ours: who worked for an earlier agent has so long.
    pub(super) fn nobody_leads(&mut self, grace: Duration) {
        if let Some(line) = &mut self.line {
            line.stop(self.clock.now() + grace);
        }
    }

    /// The guard is gone. Returns at this instant at the latest, if at all.
    pub(super) async fn await_runtime(&self, latest: Instant) {
        if let Some(line) = &self.line {
            line.await_runtime(&self.clock, latest).await;
        }
    }

    /// Work has to stop, and is ended at `kill`. Returns when nothing is left of the app and of the
    /// hooks. `overdue`: when the guard should long have done so; `None`: there is none.
    ///
    /// # Errors
    /// [`AgentError::Unguarded`] if the guard did not do it. It is done all the same.
    pub(super) async fn end(
        &mut self,
        key: &Key,
        tenure: &Tenure,
        kill: Instant,
        overdue: Option<Instant>,
    ) -> Result<(), AgentError> {
        if let Some(line) = &mut self.line {
            line.stop(kill);
        }
        self.stand(|standing| standing.state = State::Stopping);
        if let Some(command) = &self.settings.on_loss {
            self.hooks.start("on-loss", command, &variables(key, tenure, false)).await;
        }
        let clock = self.clock.clone();
        let hooks = async {
            select! {
                () = self.hooks.ended() => {}
                () = clock.sleep_until(kill) => self.hooks.kill().await,
            }
        };
        let app = async {
            match (&mut self.line, overdue) {
                (None, _) => Ok(()),
                (Some(line), Some(overdue)) => {
                    select! {
                        () = line.cleared() => return Ok(()),
                        () = clock.sleep_until(overdue) => {}
                    }
                    line.end_without_guard(&clock, kill).await;
                    Err(AgentError::Unguarded)
                }
                (Some(line), None) => {
                    line.end_without_guard(&clock, kill).await;
                    Err(AgentError::Unguarded)
                }
            }
        };
        tokio::join!(hooks, app).1
    }

    /// Whether the app, if it is known which it is, does not run.
    pub(super) fn app_is_gone(&self) -> bool {
        self.line.as_ref().is_some_and(Line::app_is_gone)
    }

    /// What the guard has to say next, if there is one; hooks that have ended are seen to meanwhile.
    /// Cancel-safe.
    pub(super) async fn news(&mut self) -> News {
        loop {
            let guard = async {
                match &self.line {
                    Some(line) => line.news().await,
                    None => pending().await,
                }
            };
            select! {
                news = guard => return news,
                () = self.hooks.ended(), if self.hooks.is_running() => {}
            }
        }
    }

    fn stand(&self, change: impl FnOnce(&mut Standing)) {
        let is_new = self.standing.send_if_modified(|standing| {
            let before = standing.clone();
            change(standing);
            *standing != before
        });
        if is_new {
            self.write();
        }
    }

    fn write(&self) {
        let json = self.standing.borrow().json(self.clock.now());
        if let Some(Err(error)) = self.file.as_ref().map(|file| file.set(&json)) {
            tracing::error!(%error, "cannot write the file");
        }
    }
}

fn variables(key: &Key, tenure: &Tenure, held: bool) -> [(&'static str, String); 4] {
    [
        ("CONSUL_LOCK_HELD", held.to_string()),
        ("CONSUL_LOCK_KEY", key.to_string()),
        ("CONSUL_LOCK_SESSION", tenure.session.to_string()),
        ("CONSUL_LOCK_TOKEN", tenure.token.to_string()),
    ]
}
