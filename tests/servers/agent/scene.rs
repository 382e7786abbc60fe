//! Agents as tests start and ask them, and the apps beside them.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use consul_lock::clock::Instant;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use testbed::{Folder, Port, reaper, wait_for};

use crate::{
    fixtures::{PATIENCE, shared_consul, unique},
    run::scene::{is_alive, kill, stat},
};

/// One key, a folder (`$F`), and the name of an app.
pub(crate) struct Scene {
    pub(crate) key: String,
    pub(crate) folder: Folder,
    /// Where its agents think that Consul is.
    pub(super) address: String,
    /// What its app's program is called.
    pub(super) app: String,
}

impl Scene {
    pub(crate) fn new(what: &str) -> Scene {
        Scene::through(what, &shared_consul().address())
    }

    pub(crate) fn through(what: &str, address: &str) -> Scene {
        let name = unique(what);
        let folder = Folder::new("agent").unwrap();
        let app = format!("app-of-{name}-{}", std::process::id());
        Scene { key: format!("agent/{name}"), folder, address: address.to_owned(), app }
    }

    pub(crate) fn command(&self, flags: &[&str]) -> (Command, Port) {
        let port = Port::reserve().unwrap();
        let mut agent = Command::new(env!("CARGO_BIN_EXE_consul-lock"));
        agent.arg("agent").args(flags).arg(format!("--listen={}", port.address()));
        agent.env("CONSUL_HTTP_ADDR", &self.address).env("F", self.folder.path());
        agent.env("CONSUL_LOCK_LOG", "info").env_remove("KUBECONFIG");
        agent.env("HOME", self.folder.path()).stdin(Stdio::null());
        (agent, port)
    }

    /// Starts an agent for the scene's key.
    pub(crate) fn start(&self, flags: &[&str]) -> Agent {
        let key = format!("--key={}", self.key);
        self.spawn(self.command(&[&[key.as_str()], flags].concat()))
    }

    pub(crate) fn spawn(&self, (mut command, port): (Command, Port)) -> Agent {
        let said = self.folder.path().join(unique("said"));
        let file = File::create(&said).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Agent { process: reaper::spawn(&mut command).unwrap(), port, said }
    }

    /// Starts an app that runs until it is ended; `trap` is what it does about SIGTERM.
    pub(super) fn app(&self, trap: &str) -> App {
        let mut sh = Command::new("sh");
        sh.arg0(&self.app).arg("-c");
        sh.arg(format!(
            "{trap}\nsleep 120 & echo > $F/{0}; while :; do wait; sleep 1; done",
            self.app
        ));
        sh.env("F", self.folder.path()).stdin(Stdio::null());
        let app = App(reaper::spawn(&mut sh).unwrap());
        let up = || self.folder.path().join(&self.app).exists().then_some(());
        wait_for("the app to be up", PATIENCE, up).unwrap();
        std::fs::remove_file(self.folder.path().join(&self.app)).unwrap();
        app
    }

    /// What is in this file, once it is there.
    pub(crate) fn file(&self, name: &str) -> String {
        let read = || std::fs::read_to_string(self.folder.path().join(name)).ok();
        wait_for(format!("the file {name}"), PATIENCE, || {
            read().filter(|text| text.ends_with('\n'))
        })
        .unwrap()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.folder.path().join(name).exists()
    }

    /// The key as Consul has it.
    pub(super) fn pair(&self) -> Option<Value> {
        let path = format!("/v1/kv/{}?consistent&token=", self.key);
        let reply = shared_consul().request("GET", &path, b"").unwrap();
        reply.ok().then(|| reply.json()[0].clone())
    }

    /// The session that holds the key.
    pub(super) fn holder(&self) -> Option<String> {
        Some(self.pair()?.get("Session")?.as_str()?.to_owned())
    }

    /// Ends a session, as an operator would.
    pub(super) fn end(&self, session: &str) {
        let path = format!("/v1/session/destroy/{session}");
        assert!(shared_consul().request("PUT", &path, b"").unwrap().ok());
    }
}

/// An app that runs beside the test.
pub(super) struct App(Child);

impl App {
    pub(super) fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    pub(super) fn is_alive(&self) -> bool {
        is_alive(self.pid())
    }
}

/// An agent that runs beside the test.
pub(crate) struct Agent {
    process: Child,
    port: Port,
    said: PathBuf,
}

impl Agent {
    /// Its main process: the guard, if there is one.
    pub(super) fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// The agent that a guard has started.
    pub(super) fn guarded(&self) -> Pid {
        let find = || {
            let all = std::fs::read_dir("/proc").unwrap().flatten();
            let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            let mut pids = pids.filter_map(|pid: i32| Pid::from_raw(pid));
            pids.find(|pid| is_alive(*pid) && parent_of(*pid) == Some(self.pid()))
        };
        wait_for("the guarded agent", PATIENCE, find).unwrap()
    }

    pub(crate) fn send(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        let reply = testbed::request(self.address(), "GET", path, &[], b"").ok()?;
        Some((reply.status, reply.text()))
    }

    /// Waits until its metrics have this line.
    #[track_caller]
    pub(crate) fn measures(&self, line: &str) {
        let metrics = || self.get("/metrics").map(|(_, text)| text).unwrap_or_default();
        let found = || metrics().lines().any(|shown| shown == line).then_some(());
        let found = wait_for(line.to_owned(), PATIENCE, found);
        found.unwrap_or_else(|error| panic!("{error}: {}\n{}", metrics(), self.said()));
    }

    /// What it answers, if that is what it is asked for.
    pub(crate) fn stands(&self) -> Option<Value> {
        let (code, text) = self.get("/leader")?;
        let told: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(code == 200, told["leader"] == true, "{code}: {text}");
        Some(told)
    }

    #[track_caller]
    pub(super) fn wait(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let found = wait_for(what.to_owned(), PATIENCE, || self.stands().filter(&is_so));
        found.unwrap_or_else(|error| panic!("{error}: {:?}\n{}", self.stands(), self.said()))
    }

    #[track_caller]
    pub(crate) fn leads(&self) -> Value {
        self.wait("it to lead", |told| told["leader"] == true)
    }

    #[track_caller]
    pub(crate) fn stands_so(&self, state: &str) -> Value {
        self.wait(state, |told| told["state"] == state)
    }

    /// Its exit code.
    #[track_caller]
    pub(super) fn ended(&mut self) -> i32 {
        let process = &mut self.process;
        let ended = wait_for("the agent to end", PATIENCE, || process.try_wait().unwrap());
        reaper::forget_process(process.id());
        ended.unwrap().code().unwrap_or(-1)
    }

    /// Stops it in order.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.send(Signal::TERM);
        let code = self.ended();
        assert_eq!(code, 0, "{}", self.said());
    }

    pub(super) fn listen(&self) -> Events {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /events HTTP/1.1\r\nHost: agent\r\n\r\n").unwrap();
        Events(BufReader::new(stream))
    }
}

fn parent_of(pid: Pid) -> Option<Pid> {
    Pid::from_raw(stat(pid)?[1].parse().ok()?)
}

/// The events that an agent sends.
pub(super) struct Events(BufReader<TcpStream>);

impl Events {
    /// The next one's kind, and what it says.
    pub(super) fn next(&mut self) -> (String, Value) {
        let mut kind = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the stream has ended");
            if let Some(text) = line.strip_prefix("event: ") {
                kind = text.trim().to_owned();
            }
            if let Some(text) = line.strip_prefix("data: ") {
                return (kind, serde_json::from_str(text).unwrap());
            }
        }
    }
}

/// What an answer or a file says of *valid until*.
pub(super) fn valid_until(told: &Value) -> Instant {
    let seconds = told["valid_until"].as_f64().unwrap_or_else(|| panic!("{told}"));
    Instant::from_boot(Duration::from_secs_f64(seconds))
}

pub(crate) fn token(told: &Value) -> u64 {
    told["token"].as_str().unwrap_or_else(|| panic!("{told}")).parse().unwrap()
}
