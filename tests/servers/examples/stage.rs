//! Where an example is played: its database, a folder, and the processes that take part.

use std::{
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use testbed::{
    Database, Folder, Postgres, reaper,
    tools::{Tool, repository},
    wait_for,
};

use crate::{
    fixtures::{
        LOCK_FLAGS, PATIENCE, claims_client, control_plane, create_namespace, kube_client,
        shared_consul, unique,
    },
    run::scene::{is_alive, is_stopped, kill, stat},
};

/// What `consul-lock run` gets where a test waits for the end of a session.
pub(super) const QUICK: [&str; 3] = ["--ttl=4s", "--grace=1s", "--lock-delay=0s"];

/// What a program gets for a command that shall take until [`Stage::go`] is called with its name.
pub(super) const UNTIL_GO: &str = "until [ -e $F/go-$NAME ]; do sleep 0.02; done";

/// Held by whoever applies a manifest: of two that create one object at once, one is refused.
static APPLYING: Mutex<()> = Mutex::new(());

/// An example's database, and a folder (`$F`).
pub(super) struct Stage {
    pub(super) database: Database,
    pub(super) folder: Folder,
    /// The example's own folder.
    example: PathBuf,
}

/// A process that plays a part, and those that came of it.
pub(super) struct Actor {
    process: Child,
    log: PathBuf,
}

impl Stage {
    /// Where there is no PostgreSQL there is no stage; that is said, and why.
    pub(super) fn new(example: &str) -> Option<Stage> {
        if Postgres::skips() {
            return None;
        }
        static POSTGRES: OnceLock<Postgres> = OnceLock::new();
        let postgres = POSTGRES.get_or_init(|| Postgres::start().unwrap());
        let database = postgres.database(&unique(example)).unwrap();
        let folder = Folder::new(example).unwrap();
        let example = repository().join("examples").join(example);
        database.file(&example.join("schema.sql")).unwrap();
        Some(Stage { database, folder, example })
    }

    /// What a statement returns.
    #[track_caller]
    pub(super) fn sql(&self, statement: &str) -> String {
        self.database.sql(statement).unwrap()
    }

    /// Starts what is written in a shell or in a manifest, with the programs on PATH. `$NAME` is
    /// this name.
    pub(super) fn start(&self, name: &str, words: &[&str], env: &[(&str, &str)]) -> Actor {
        let log = self.folder.path().join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(&self.example).env("PATH", self.path());
        command.envs(self.database.env().iter().cloned());
        command.env("CONSUL_HTTP_ADDR", shared_consul().address());
        command.env("F", self.folder.path()).env("NAME", name).envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Actor { process: reaper::spawn(&mut command).unwrap(), log }
    }

    /// Our binary, the examples' programs and psql, before whatever else is there.
    fn path(&self) -> OsString {
        let (ours, examples) = (env!("CARGO_BIN_EXE_consul-lock"), Tool::EXAMPLES[0].path());
        let programs = [Path::new(ours), &examples.unwrap(), self.database.psql()];
        let folders = programs.map(|program| program.parent().unwrap().to_owned());
        let folders = folders.into_iter().chain([self.example.clone()]);
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        std::env::join_paths(folders.chain(std::env::split_paths(&inherited))).unwrap()
    }

    /// Lets go whoever waits as [`UNTIL_GO`] does.
    pub(super) fn go(&self, name: &str) {
        self.folder.write(&format!("go-{name}"), "").unwrap();
    }

    /// A file of the example.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.example.join(name)
    }

    /// Waits until somebody has made this file.
    #[track_caller]
    pub(super) fn has(&self, name: &str) {
        let path = self.folder.path().join(name);
        wait_for(format!("the file {name}"), PATIENCE, || path.exists().then_some(())).unwrap();
    }

    /// What a file of the example says, document by document. The API server has accepted it, in
    /// the namespace `shop`.
    pub(super) fn manifest(&self, file: &str) -> Vec<Value> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            claims_client().await;
            create_namespace(&kube_client().await, "shop").await;
        });
        let file = self.file(file);
        let apply = ["apply", "-f", file.to_str().unwrap()];
        let _one = APPLYING.lock();
        let applied = control_plane().kubectl(apply).unwrap().output().unwrap();
        assert!(applied.status.success(), "{applied:?}");
        serde_saphyr::from_multiple(&std::fs::read_to_string(&file).unwrap()).unwrap()
    }
}

impl Actor {
    /// Everything that it and its like have printed.
    pub(super) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it has said so.
    #[track_caller]
    pub(super) fn says(&self, words: &str) {
        self.says_often(words, 1);
    }

    /// Waits until it has said so as often as this.
    #[track_caller]
    pub(super) fn says_often(&self, words: &str, times: usize) {
        let heard = || (self.said().matches(words).count() >= times).then_some(());
        let heard = wait_for(format!("{words:?}, {times} times"), PATIENCE, heard);
        heard.unwrap_or_else(|error| panic!("{error}\n{}", self.said()));
    }

    /// Its exit code.
    #[track_caller]
    pub(super) fn ended(&mut self) -> i32 {
        let process = &mut self.process;
        let ended = wait_for("its end", PATIENCE, || process.try_wait().unwrap());
        let ended = ended.unwrap_or_else(|error| panic!("{error}\n{}", self.said()));
        reaper::forget_process(self.process.id());
        ended.code().unwrap_or(-1)
    }

    /// Freezes it, but what came of it only as far as it is in its process group: of
    /// `consul-lock run` neither the guard nor the command.
    pub(super) fn pause(&self) {
        self.send(Signal::STOP);
    }

    /// It goes on.
    pub(super) fn resume(&self) {
        self.send(Signal::CONT);
    }

    pub(super) fn kill(&self) {
        self.send(Signal::KILL);
    }

    fn send(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Freezes `consul-lock run`, its guard and its command, as a machine that is suspended does.
    pub(super) fn freeze(&self) -> Frozen {
        let run = Pid::from_child(&self.process);
        let guard = child_of(run);
        let frozen = Frozen { run, guard, command: child_of(guard) };
        for pid in frozen.all() {
            kill(pid, Signal::STOP);
        }
        let stopped = || frozen.all().into_iter().all(is_stopped).then_some(());
        wait_for("all to be frozen", PATIENCE, stopped).unwrap();
        frozen
    }
}

/// A run that is frozen.
pub(super) struct Frozen {
    run: Pid,
    guard: Pid,
    command: Pid,
}

impl Frozen {
    fn all(&self) -> [Pid; 3] {
        [self.run, self.guard, self.command]
    }

    /// The command is the first to wake up, before anybody could stop it; and works to its end.
    pub(super) fn command_wakes_up_first(&self) {
        kill(self.command, Signal::CONT);
        let ended = || (!is_alive(self.command)).then_some(());
        wait_for("the command to end", PATIENCE, ended).unwrap();
    }

    /// Nobody wakes up any more: neither they nor what the command has started.
    pub(super) fn dies(self) {
        kill_process_group(self.command, Signal::KILL).unwrap();
        kill(self.guard, Signal::KILL);
        kill(self.run, Signal::KILL);
    }

    /// The others wake up, too.
    pub(super) fn wake_up(self) {
        kill(self.guard, Signal::CONT);
        kill(self.run, Signal::CONT);
    }
}

/// The only child of a process.
fn child_of(of: Pid) -> Pid {
    let find = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut pids = pids.filter_map(|pid: i32| Pid::from_raw(pid));
        pids.find(|pid| {
            is_alive(*pid)
                && stat(*pid).is_some_and(|stat| stat[1] == of.as_raw_nonzero().to_string())
        })
    };
    wait_for("a child", PATIENCE, find).unwrap()
}

/// The session that holds a key.
pub(super) fn holder(key: &str) -> Option<String> {
    let reply = shared_consul().request("GET", &format!("/v1/kv/{key}?consistent"), b"").unwrap();
    let pair = reply.ok().then(|| reply.json()[0].clone())?;
    Some(pair.get("Session")?.as_str()?.to_owned())
}

/// Ends the session that holds a key, as an operator would.
pub(super) fn end_session(key: &str) {
    let path = format!("/v1/session/destroy/{}", holder(key).unwrap());
    assert!(shared_consul().request("PUT", &path, b"").unwrap().ok());
}

/// Releases a key in the name of the session that holds it, as anybody can who may write it.
pub(super) fn release(key: &str, session: &str) {
    let path = format!("/v1/kv/{key}?release={session}&flags={LOCK_FLAGS}");
    let reply = shared_consul().request("PUT", &path, b"").unwrap();
    assert_eq!((reply.ok(), reply.text().trim()), (true, "true"));
}
