//! One server as a child process: start, readiness, signals, end.

use std::ffi::OsString;

use parking_lot::Mutex;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::folder::tail;
use crate::tools::ToolError;
use crate::wait::{Deadline, Heartbeat, pause, wait_for};
use crate::{TimedOut, reaper};

/// How long most servers may take to end after SIGTERM, before SIGKILL.
pub(crate) const GRACE: Duration = Duration::from_secs(3);

/// The same for one that is dropped: nobody cares any more how it ends.
const GRACE_AT_DROP: Duration = Duration::from_secs(1);

/// How long the kernel may take to end a killed process on a busy machine.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a line before it becomes the server, so that the reaper knows the process before it
/// does anything: if we are killed in between, the line never comes.
const GATE: &str = r#"read -r _ && exec "$@" </dev/null"#;

/// What went wrong with a server.
#[derive(Debug, thiserror::Error)]
pub enum BedError {
    /// A program is neither on PATH nor could it be built.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A process could not be started.
    #[error("cannot start {name}")]
    Spawn {
        /// The server.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// It ended before it was ready.
    #[error("{name} ended with {status} before it was ready\n{tail}")]
    Ended {
        /// The server.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        tail: String,
    },
    /// It runs but is not ready.
    #[error("{name} was not ready after {allowed:?}: {last}\n{tail}")]
    NotReady {
        /// The server.
        name: String,
        /// How long it had.
        allowed: Duration,
        /// What the last look at it said.
        last: String,
        /// The end of its log.
        tail: String,
    },
    /// It does not run, but should.
    #[error("{name} does not run")]
    NotRunning {
        /// The server.
        name: String,
    },
    /// It runs, but should not.
    #[error("{name} runs already")]
    Running {
        /// The server.
        name: String,
    },
    /// A signal could not be sent.
    #[error("cannot send {signal} to {name}")]
    Signal {
        /// The server.
        name: String,
        /// The signal's name.
        signal: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Something did not happen in time.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// A server answered a request of ours with an error.
    #[error("{name} refused to {attempt}: {answer}")]
    Refused {
        /// The server.
        name: String,
        /// What was asked for.
        attempt: String,
        /// Status and body.
        answer: String,
    },
    /// A short command failed.
    #[error("`{line}` ended with {status}:\n{output}")]
    Failed {
        /// The command.
        line: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said on stderr.
        output: String,
    },
    /// This machine, or who asks, cannot have what was asked for.
    #[error("{0}")]
    Impossible(String),
    /// A file, a folder, a port or a request.
    #[error("the test bed cannot go on: {0}")]
    Io(#[from] io::Error),
}

impl BedError {
    /// Whether somebody else took the port between our look and the server's start.
    #[must_use]
    pub fn is_port_conflict(&self) -> bool {
        matches!(self, BedError::Ended { tail, .. } if tail.contains("address already in use"))
    }
}

/// Calls `start` again, with new ports, when somebody else took one of them.
pub(crate) fn with_free_ports<T>(
    mut start: impl FnMut() -> Result<T, BedError>,
) -> Result<T, BedError> {
    for _ in 0..3 {
        match start() {
            Err(error) if error.is_port_conflict() => crate::say("a port was taken, trying others"),
            outcome => return outcome,
        }
    }
    start()
}

/// How to start a server; kept for the next start.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What messages call it.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables beside those of this process.
    pub env: Vec<(String, String)>,
    /// Where its output goes, one start after the other.
    pub log: PathBuf,
    /// How long it may take until it is ready.
    pub allowed: Duration,
    /// How long it may take to end after SIGTERM, before SIGKILL.
    pub grace: Duration,
}

impl Recipe {
    /// The same behind a program that runs another one, such as `nsenter --net=...`.
    #[must_use]
    pub(crate) fn entering(self, words: &[OsString]) -> Recipe {
        let mut words = words.iter().cloned();
        let Some(first) = words.next() else {
            return self;
        };
        let args = words.chain([self.program.into()]).chain(self.args).collect();
        Recipe { program: first.into(), args, ..self }
    }
}

/// Looks once whether a server is ready; says what is missing if not.
type Probe = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A running server. Dropping it ends the process.
pub struct Server {
    recipe: Recipe,
    probe: Probe,
    child: Mutex<Option<Child>>,
}

impl Server {
    /// Starts it and waits until `probe` finds it ready.
    ///
    /// # Errors
    /// It did not start, ended at once, or was not ready in time; with the end of its log.
    pub fn start(
        recipe: Recipe,
        probe: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Result<Server, BedError> {
        let server = Server::prepare(recipe, probe);
        server.start_again()?;
        Ok(server)
    }

    /// A server that does not run yet.
    pub fn prepare(
        recipe: Recipe,
        probe: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Server {
        Server { recipe, probe: Box::new(probe), child: Mutex::new(None) }
    }

    /// Starts it with the same arguments, and so with its old ports and data, and waits until it
    /// is ready.
    ///
    /// # Errors
    /// As [`Server::start`]; also when it runs already.
    pub fn start_again(&self) -> Result<(), BedError> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts the process without waiting for it to be ready.
    ///
    /// # Errors
    /// It could not be started, or runs already.
    pub fn launch(&self) -> Result<(), BedError> {
        let mut child = self.child.lock();
        if child.is_some() {
            return Err(BedError::Running { name: self.name() });
        }
        let spawned = self.spawn();
        *child = Some(spawned.map_err(|source| BedError::Spawn { name: self.name(), source })?);
        Ok(())
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.recipe.log)?;
        let mut command = Command::new("sh");
        command
            .args(["-c", GATE, "sh"])
            .arg(&self.recipe.program)
            .args(&self.recipe.args)
            .envs(self.recipe.env.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = reaper::spawn(&mut command)?;
        let gate = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe.into());
        let opened = gate.and_then(|mut gate| gate.write_all(b"go\n"));
        if let Err(error) = opened {
            child.wait()?;
            return Err(error);
        }
        Ok(child)
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// It ended, or was not ready in time; with the end of its log.
    pub fn wait_ready(&self) -> Result<(), BedError> {
        let allowed = self.recipe.allowed;
        let deadline = Deadline::after(allowed);
        let mut alive = Heartbeat::start();
        loop {
            if let Some(status) = self.reap_if_ended()? {
                let tail = tail(&self.recipe.log);
                return Err(BedError::Ended { name: self.name(), status, tail });
            }
            let Err(last) = (self.probe)() else {
                return Ok(());
            };
            if deadline.passed() {
                let tail = tail(&self.recipe.log);
                return Err(BedError::NotReady { name: self.name(), allowed, last, tail });
            }
            alive.beat(|waited| {
                format!("{} is not ready after {} s: {last}", self.name(), waited.as_secs())
            });
            pause();
        }
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> String {
        self.recipe.name.clone()
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &std::path::Path {
        &self.recipe.log
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.lock().as_ref().map(Child::id)
    }

    /// Freezes it (SIGSTOP).
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self) -> Result<(), BedError> {
        self.signal(Signal::STOP, "SIGSTOP")
    }

    /// Goes on after [`Server::pause`] (SIGCONT).
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self) -> Result<(), BedError> {
        self.signal(Signal::CONT, "SIGCONT")
    }

    /// Asks it to end (SIGTERM) without waiting.
    ///
    /// # Errors
    /// It does not run.
    pub fn terminate(&self) -> Result<(), BedError> {
        self.signal(Signal::TERM, "SIGTERM")
    }

    /// Ends it without warning (SIGKILL), and waits until it is gone.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self) -> Result<(), BedError> {
        let group = self.pid();
        self.signal(Signal::KILL, "SIGKILL")?;
        self.wait_ended(KILL_PATIENCE)?;
        // In a namespace of its own the server is a child of the process that we know, and may have
        // its ports for a moment longer.
        let what = format!("everything that came of {} to end", self.name());
        wait_for(what, KILL_PATIENCE, || (!group.is_some_and(has_living)).then_some(()))?;
        Ok(())
    }

    /// Ends it: SIGTERM, and SIGKILL when it takes too long. One that has ended is left alone.
    ///
    /// # Errors
    /// It would not even end by SIGKILL.
    pub fn stop(&self) -> Result<(), BedError> {
        self.stop_within(self.recipe.grace)
    }

    fn stop_within(&self, grace: Duration) -> Result<(), BedError> {
        if self.reap_if_ended()?.is_some() || self.pid().is_none() {
            return Ok(());
        }
        self.terminate()?;
        self.resume()?; // one that is frozen hears nothing
        match self.wait_ended(grace) {
            Err(BedError::TimedOut(_)) => self.kill(),
            ended => ended.map(drop),
        }
    }

    /// Stops it and starts it again with its old ports and data.
    ///
    /// # Errors
    /// As [`Server::stop`] and [`Server::start_again`].
    pub fn restart(&self) -> Result<(), BedError> {
        self.stop()?;
        self.start_again()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// It still runs after `allowed`, or did not run.
    pub fn wait_ended(&self, allowed: Duration) -> Result<ExitStatus, BedError> {
        let what = format!("the end of {}", self.name());
        wait_for(what, allowed, || self.reap_if_ended().transpose())?
    }

    /// Collects the process if it has ended.
    fn reap_if_ended(&self) -> Result<Option<ExitStatus>, BedError> {
        let mut child = self.child.lock();
        let Some(running) = child.as_mut() else {
            return Ok(None);
        };
        let pid = running.id();
        let ended = running.try_wait()?;
        if ended.is_some() {
            reaper::forget_process(pid);
            *child = None;
        }
        Ok(ended)
    }

    fn signal(&self, signal: Signal, name: &'static str) -> Result<(), BedError> {
        let child = self.child.lock();
        let not_running = || BedError::NotRunning { name: self.name() };
        let pid = child.as_ref().and_then(|child| Pid::from_raw(child.id() as i32));
        kill_process_group(pid.ok_or_else(not_running)?, signal).map_err(|errno| BedError::Signal {
            name: self.name(),
            signal: name,
            source: errno.into(),
        })
    }
}

/// Whether a process of this group has not ended, be it waited for or not.
fn has_living(group: u32) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut stats =
        processes.filter_map(|one| std::fs::read_to_string(one.path().join("stat")).ok());
    stats.any(|stat| {
        // After the name in parentheses: state, parent, group.
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let ended = fields.next().is_none_or(|state| state == "Z" || state == "X");
        !ended && fields.nth(1).is_some_and(|its| its.parse() == Ok(group))
    })
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("name", &self.recipe.name).field("pid", &self.pid()).finish()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop_within(GRACE_AT_DROP) {
            crate::say(format!("{} may still run: {error}", self.name()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;

    use super::*;

    #[test]
    fn a_group_lives_for_as_long_as_anybody_in_it_does() {
        let mut first = Command::new("sh");
        first.args(["-c", "sleep 60 >/dev/null 2>&1 &"]).process_group(0);
        let mut first = first.spawn().unwrap();
        let group = first.id();
        assert!(first.wait().unwrap().success());
        assert!(has_living(group), "its child goes on");
        kill_process_group(Pid::from_raw(group as i32).unwrap(), Signal::KILL).unwrap();
        wait_for("its end", KILL_PATIENCE, || (!has_living(group)).then_some(())).unwrap();
    }
}
