//! A process of the test bed that is about to end without running any destructor.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testbed::wait_for;

/// How long anything may take to be gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// The process, one of its servers and that one's folder.
pub(crate) struct Doomed {
    process: Child,
    pub(crate) server: u32,
    pub(crate) folder: PathBuf,
}

impl Doomed {
    /// Waits until its server runs.
    pub(crate) fn start(how: &str) -> Doomed {
        Doomed::run(Command::new(env!("CARGO_BIN_EXE_testbed")).args(["end-badly", how]))
    }

    /// The same, with settings of the command.
    pub(crate) fn run(command: &mut Command) -> Doomed {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (server, folder) = line.trim().split_once(' ').unwrap();
        Doomed { process, server: server.parse().unwrap(), folder: folder.into() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits for the process's end and then for that of its server.
    pub(crate) fn wait_until_server_ended(&mut self) {
        self.wait_until_ended();
        wait_for("the end of its server", PATIENCE, || (!runs(self.server)).then_some(())).unwrap();
    }

    pub(crate) fn wait_until_ended(&mut self) {
        wait_for("the end of the process", PATIENCE, || self.process.try_wait().unwrap()).unwrap();
    }
}

pub(crate) fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// A zombie does not run: it only waits for somebody to look at it.
pub(crate) fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

pub(crate) fn wait_until_gone(path: &Path) {
    wait_for("the removal of a folder", PATIENCE, || (!path.exists()).then_some(())).unwrap();
}
