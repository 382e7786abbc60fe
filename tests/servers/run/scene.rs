//! Runs as tests start and watch them.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use consul_lock::clock::{Clock, Instant};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use testbed::{Consul, Folder, reaper, wait_for};

use crate::fixtures::{PATIENCE, shared_consul, unique};

/// One key, and a folder (`$F`) for what commands have to say.
pub(crate) struct Scene {
    pub(crate) key: String,
    pub(crate) folder: Folder,
    /// Where its runs think that Consul is.
    pub(crate) address: String,
    pub(crate) consul: &'static Consul,
}

impl Scene {
    pub(crate) fn new(what: &str) -> Scene {
        Scene::at(what, shared_consul())
    }

    pub(crate) fn at(what: &str, consul: &'static Consul) -> Scene {
        let key = format!("run/{}", unique(what));
        Scene { key, folder: Folder::new("run").unwrap(), address: consul.address(), consul }
    }

    /// A scene whose runs reach the shared Consul by this address.
    pub(crate) fn through(what: &str, address: &str) -> Scene {
        Scene { address: address.to_owned(), ..Scene::new(what) }
    }

    pub(crate) fn command(&self, flags: &[&str], command: &[&str]) -> Command {
        let mut run = Command::new(env!("CARGO_BIN_EXE_consul-lock"));
        run.env("CONSUL_LOCK_NAME", self.name());
        run.arg("run").args(["--key", &self.key]).args(flags).arg("--").args(command);
        run.env("CONSUL_HTTP_ADDR", &self.address).env("F", self.folder.path());
        run.env("B", env!("CARGO_BIN_EXE_consul-lock"));
        run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        run
    }

    /// What its runs are called, unless they are told otherwise.
    pub(crate) fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap()
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, flags: &[&str], command: &[&str]) -> Output {
        self.command(flags, command).output().unwrap()
    }

    /// Starts it by `env` with this flag, which says what becomes of signals.
    pub(crate) fn start_by_env(&self, flag: &str, script: &str, variables: &[(&str, &str)]) -> Run {
        let run = self.command(&[], &["sh", "-c", script]);
        let mut command = Command::new("env");
        command.arg(flag).arg(run.get_program()).args(run.get_args());
        command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.envs(variables.iter().copied());
        self.beside(command.stdin(Stdio::null()))
    }

    /// Starts it, to be ended by [`Run::wait`] or with the test.
    pub(crate) fn start(&self, flags: &[&str], script: &str) -> Run {
        let mut command = self.command(flags, &["sh", "-c", script]);
        self.beside(&mut command)
    }

    /// What it prints goes into a file: the end of a pipe would be that of all who hold it, and so
    /// hide that somebody is left.
    pub(crate) fn beside(&self, command: &mut Command) -> Run {
        let said = self.folder.path().join(unique(".said"));
        let file = File::create(&said).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Run { run: reaper::spawn(command).unwrap(), said }
    }

    /// Waits for the process that wrote its number into this file.
    pub(crate) fn process(&self, file: &str) -> Pid {
        let path = self.folder.path().join(file);
        let read = || std::fs::read_to_string(&path).ok()?.trim().parse().ok();
        Pid::from_raw(wait_for(format!("a process in {file}"), PATIENCE, read).unwrap()).unwrap()
    }

    /// The key as Consul has it.
    pub(crate) fn pair(&self) -> Option<Value> {
        let path = format!("/v1/kv/{}?consistent", self.key);
        let reply = self.consul.request("GET", &path, b"").unwrap();
        reply.ok().then(|| reply.json()[0].clone())
    }

    /// The session that holds the key.
    pub(crate) fn holder(&self) -> Option<String> {
        Some(self.pair()?.get("Session")?.as_str()?.to_owned())
    }

    pub(crate) fn wait_held(&self) -> String {
        wait_for("the key to be held", PATIENCE, || self.holder()).unwrap()
    }

    /// Ends the session that holds the key, as an operator would.
    pub(crate) fn end_session(&self) {
        let path = format!("/v1/session/destroy/{}", self.wait_held());
        assert!(self.consul.request("PUT", &path, b"").unwrap().ok());
    }

    /// Neither the key is held, nor has any of our sessions survived.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.holder(), None);
        assert_eq!(sessions(self.name()), Vec::<Value>::new());
    }
}

/// The sessions of runs that are called so.
pub(crate) fn sessions(name: &str) -> Vec<Value> {
    let name = format!("/{name}/");
    let all = shared_consul().request("GET", "/v1/session/node/consul-lock-run", b"").unwrap();
    let all = all.json();
    let ours = |session: &&Value| session["Name"].as_str().unwrap_or_default().contains(&name);
    all.as_array().into_iter().flatten().filter(ours).cloned().collect()
}

/// A run that goes on beside the test.
pub(crate) struct Run {
    run: Child,
    said: PathBuf,
}

impl Run {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.run)
    }

    /// The end of everybody in its process group.
    pub(crate) fn end(mut self) {
        kill_process_group(self.pid(), Signal::KILL).unwrap();
        self.wait();
    }

    pub(crate) fn send(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// What it and its command have printed.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    /// Its exit code, and what it printed.
    pub(crate) fn wait(&mut self) -> (i32, String) {
        let run = &mut self.run;
        let ended = wait_for("the run to end", PATIENCE, || run.try_wait().unwrap()).unwrap();
        reaper::forget_process(run.id());
        (ended.code().unwrap_or(-1), self.said())
    }
}

/// The fields of `/proc/PID/stat` after the name: state, parent, group…
pub(crate) fn stat(pid: Pid) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    Some(stat.rsplit(") ").next()?.split(' ').map(str::to_owned).collect())
}

pub(crate) fn is_alive(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| stat[0] != "Z" && stat[0] != "X")
}

#[track_caller]
pub(crate) fn assert_ended(processes: &[Pid]) {
    let left: Vec<_> = processes.iter().filter(|pid| is_alive(**pid)).collect();
    assert!(left.is_empty(), "something is left: {left:?} of {processes:?}");
}

pub(crate) fn is_stopped(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| stat[0] == "T")
}

/// The process group in the foreground of this process's terminal.
pub(crate) fn foreground(pid: Pid) -> Option<Pid> {
    Pid::from_raw(stat(pid)?[5].parse().ok()?)
}

pub(crate) fn parent(pid: Pid) -> Pid {
    Pid::from_raw(stat(pid).unwrap()[1].parse().unwrap()).unwrap()
}

/// One of its children.
pub(crate) fn child(pid: Pid) -> Option<Pid> {
    let pid = pid.as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}

pub(crate) fn kill(pid: Pid, signal: Signal) {
    kill_process(pid, signal).unwrap();
}

/// Waits until none of them is alive; returns when that was seen.
#[track_caller]
pub(crate) fn all_gone(processes: &[Pid]) -> Instant {
    let gone = || processes.iter().all(|pid| !is_alive(*pid)).then_some(());
    wait_for("every process to be gone", PATIENCE, gone).unwrap();
    Clock::boot().now()
}

/// What the command of this process is told of *valid until*.
pub(crate) fn valid_until(command: Pid) -> Instant {
    told(&variable(command, VALID_UNTIL_FILE)).unwrap()
}

/// The variable with the file that tells of *valid until*.
pub(crate) const VALID_UNTIL_FILE: &str = "CONSUL_LOCK_VALID_UNTIL_FILE";

/// What the file tells of *valid until*, while it is there. A renewal that was answered before a
/// silence may be told of after it.
pub(crate) fn told(file: &Path) -> Option<Instant> {
    let said = std::fs::read_to_string(file).ok()?;
    Some(Instant::from_boot(Duration::from_secs_f64(said.trim().parse().unwrap())))
}

/// Waits until none of them is alive; returns when that was seen, and the last that the file told.
#[track_caller]
pub(crate) fn all_gone_and_told(processes: &[Pid], file: &Path) -> (Instant, Instant) {
    let mut last = told(file).unwrap();
    let gone = || {
        last = told(file).unwrap_or(last);
        processes.iter().all(|pid| !is_alive(*pid)).then_some(())
    };
    wait_for("every process to be gone", PATIENCE, gone).unwrap();
    (Clock::boot().now(), last)
}

/// A variable of its environment.
pub(crate) fn variable(process: Pid, name: &str) -> PathBuf {
    let all = std::fs::read(format!("/proc/{}/environ", process.as_raw_nonzero())).unwrap();
    let all = String::from_utf8(all).unwrap();
    let found = all.split('\0').find_map(|one| one.strip_prefix(&format!("{name}=")));
    found.unwrap_or_else(|| panic!("no {name} in {all:?}")).into()
}

/// When the kernel started it, in hundredths of a second.
pub(crate) fn started(pid: Pid) -> Instant {
    let ticks: u64 = stat(pid).unwrap()[19].parse().unwrap();
    Instant::from_boot(Duration::from_millis(ticks * 10))
}
