//! A command under a lock that is held: started, told of renewals, stopped.

use std::io;

use rustix::process::{Pid, Signal};
use tokio::select;

use super::{
    child::{Child, News, Ready},
    orders::{Ending, Report},
    run::{Outcome, RunError, RunSettings},
    signals::{self, Signals},
    terminal::{self, Terminal},
    terms::Terms,
    valid_until::{VALID_UNTIL_FILE, ValidUntilFile},
};
use crate::{
    clock::{Clock, Instant},
    holder::{Broken, Hold, Tenure},
};

/// Why the command is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// No renewal came in time.
    Expired,
    /// Consul says that the lock is not ours any more.
    Lost,
    MaxHold,
    Broken,
}

/// A command that runs, and what it was told.
pub(super) struct Work<'a, H> {
    settings: &'a RunSettings,
    clock: &'a Clock,
    signals: &'a mut Signals,
    lock: &'a mut H,
    terms: Terms,
    tenure: Tenure,
    child: Child,
    terminal: Option<Terminal>,
    /// The command's process group, once it has started.
    group: Option<Pid>,
    /// `None`: another keeps it.
    file: Option<ValidUntilFile>,
    began: Instant,
    stop: Option<Stop>,
}

impl<'a, H: Hold> Work<'a, H> {
    /// Has the guard start the settings' command under a tenure of `lock`, and tell it of the
    /// tenure.
    ///
    /// # Errors
    /// [`RunError::Guard`]. Nothing runs then.
    pub(super) fn start(
        settings: &'a RunSettings,
        clock: &'a Clock,
        signals: &'a mut Signals,
        guard: Ready,
        lock: &'a mut H,
        (terms, tenure): (Terms, Tenure),
    ) -> Result<Work<'a, H>, RunError> {
        let file = ValidUntilFile::new(tenure.valid_until).map_err(RunError::Guard)?;
        let variables = [
            ("CONSUL_LOCK_HELD", "true".to_owned()),
            ("CONSUL_LOCK_KEY", settings.key.to_string()),
            ("CONSUL_LOCK_SESSION", tenure.session.to_string()),
            ("CONSUL_LOCK_TOKEN", tenure.token.to_string()),
            (VALID_UNTIL_FILE, file.path().display().to_string()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let deadlines = terms.notice.deadlines(tenure.valid_until);
        let child = match guard.start(&variables, deadlines, terms.notice) {
            // It waited for long, and whoever killed it meanwhile harmed nobody.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                settings.guard().and_then(|guard| guard.start(&variables, deadlines, terms.notice))
            }
            started => started,
        };
        Ok(Work {
            settings,
            clock,
            signals,
            lock,
            terms,
            tenure,
            child: child.map_err(RunError::Guard)?,
            terminal: Terminal::of_ours(),
            group: None,
            file: Some(file),
            began: clock.now(),
            stop: None,
        })
    }

    /// Watches over the command while the lock is held. Nothing is left of it afterwards.
    pub(super) async fn done(mut self) -> Result<Outcome, RunError> {
        let ending = self.watch().await;
        if let (Some(terminal), Some(group)) = (&self.terminal, self.group)
            && let Err(error) = terminal.take_back(group)
        {
            tracing::warn!(%error, "cannot take the terminal back");
        }
        Ok(match (self.stop, ending?) {
            (Some(Stop::Expired | Stop::Lost), _) => Outcome::Lost,
            (Some(Stop::MaxHold), _) => Outcome::MaxHold,
            (Some(Stop::Broken), _) => return Err(RunError::Broken),
            (None, Ending::Code(code)) => Outcome::Code(code),
            (None, Ending::Signal(signal)) => Outcome::Signal(signal),
        })
    }

    async fn watch(&mut self) -> Result<Ending, RunError> {
        loop {
            let (overdue, deadline) = (self.overdue(), self.deadline());
            select! {
                biased;
                news = self.child.news() => if let Some(ended) = self.heard(news).await {
                    return ended;
                },
                () = self.clock.sleep_until(overdue) => {
                    tracing::error!("the guard does not act");
                    return Ok(self.end_without_guard().await);
                }
                () = self.clock.sleep_until(deadline), if self.stop.is_none() => {
                    let is_term = self.clock.now() >= self.term();
                    self.stop(if is_term { Stop::Expired } else { Stop::MaxHold });
                }
                changed = self.lock.changed() => match changed {
                    Ok(()) => self.look(),
                    Err(Broken) => self.stop(Stop::Broken),
                },
                signal = self.signals.next() => self.pass_on(signal),
            }
        }
    }

    /// What the guard said; the command's end, if that was it.
    async fn heard(&mut self, news: News) -> Option<Result<Ending, RunError>> {
        match news {
            News::Reported(Report::Started(group)) => {
                tracing::info!(pid = group.as_raw_nonzero(), "the command runs");
                self.group = Some(group);
                self.lend_terminal();
                None
            }
            News::Reported(Report::Stopped) => {
                if self.terminal.is_some() {
                    terminal::stop_ourselves();
                }
                None
            }
            News::Reported(Report::Ended { how, expired }) => {
                // The guard may see a deadline pass a moment before we do.
                self.stop = self.stop.or(expired.then_some(Stop::Expired));
                Some(Ok(how))
            }
            News::Reported(Report::NotStarted(errno)) => {
                let command = self.settings.command.first().cloned().unwrap_or_default();
                let source = io::Error::from_raw_os_error(errno);
                Some(Err(RunError::Start { command, source }))
            }
            // A command's guard does not say it.
            News::Reported(Report::Clear { .. } | Report::AppEnded) => None,
            News::Unguarded => {
                tracing::error!("the guard has ended");
                Some(Ok(self.end_without_guard().await))
            }
        }
    }

    async fn end_without_guard(&mut self) -> Ending {
        self.stop.get_or_insert(Stop::Lost);
        self.child.end_without_guard(self.clock).await;
        Ending::Signal(signals::number(Signal::KILL))
    }

    /// When the command is told to stop, should nobody say anything.
    fn deadline(&self) -> Instant {
        let max_hold = self.settings.lock.max_hold.map(|longest| self.began + longest);
        max_hold.map_or(self.term(), |end| end.min(self.term()))
    }

    fn term(&self) -> Instant {
        self.terms.notice.deadlines(self.tenure.valid_until).term
    }

    /// When the guard should long have said that nothing is left.
    fn overdue(&self) -> Instant {
        self.terms.notice.overdue(self.tenure.valid_until)
    }

    /// Something about the lock changed: renewed, or lost.
    fn look(&mut self) {
        if self.stop.is_some() {
            return;
        }
        match self.lock.tenure() {
            Some(tenure) if tenure.token == self.tenure.token => {
                if tenure.valid_until != self.tenure.valid_until {
                    self.renewed(tenure);
                }
            }
            _ => self.stop(Stop::Lost),
        }
    }

    fn renewed(&mut self, tenure: Tenure) {
        self.child.hold(self.terms.notice.deadlines(tenure.valid_until));
        if let Some(Err(error)) = self.file.as_ref().map(|file| file.set(tenure.valid_until)) {
            tracing::warn!(%error, "cannot tell the command of the renewal");
        }
        self.tenure = tenure;
    }

    fn stop(&mut self, reason: Stop) {
        let (key, token) = (&self.settings.key, self.tenure.token);
        tracing::warn!(%key, %token, ?reason, "stopping the command");
        self.stop = Some(reason);
        let now = self.clock.now();
        let mut kill = self.terms.notice.kill(now, self.tenure.valid_until);
        if reason == Stop::Lost {
            // The session is gone: the lock-delay is all that keeps others away.
            kill = kill.min(now + self.terms.lock_delay);
        }
        self.child.stop(kill);
    }

    fn pass_on(&self, signal: Signal) {
        if signal == Signal::CONT {
            self.lend_terminal();
        }
        self.child.signal(signal.as_raw());
    }

    fn lend_terminal(&self) {
        if let (Some(terminal), Some(group)) = (&self.terminal, self.group) {
            terminal.lend(group);
            // It may have been stopped for reading before it was allowed to.
            self.child.signal(Signal::CONT.as_raw());
        }
    }
}
