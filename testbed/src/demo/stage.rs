//! What the story is played on: servers, replicas, a stranger, and a shell to talk to them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use testbed::tools::{Tool, repository};
use testbed::{
    BedError, Consul, ConsulConfig, ControlPlane, Folder, Port, Recipe, Server, Stopwatch, reaper,
    tail, wait_for,
};

use super::DemoError;
use super::screen::Screen;

/// How long one command may take: longer than any `--timeout` that the story gives.
const COMMAND_ALLOWED: Duration = Duration::from_secs(90);

/// How long a replica may take until its caches are synced and Consul has answered.
const REPLICA_ALLOWED: Duration = Duration::from_secs(60);

/// How long a job of ours may take to end.
const GRACE: Duration = Duration::from_secs(10);

/// How long a job may take to end: `consul lock` gives its command five seconds.
const JOB_ALLOWED: Duration = Duration::from_secs(60);

/// The servers and all that runs on them. Dropping it ends them.
pub(super) struct Stage {
    job: Option<Server>, // clients before servers, so that they end in peace
    replicas: Vec<Replica>,
    consul: Consul,
    kwok: Server,
    cluster: ControlPlane,
    folder: Folder,
}

/// One replica of the controller.
pub(super) struct Replica {
    pub(super) server: Server,
    admin: Port,
}

impl Stage {
    /// Starts the servers.
    pub(super) fn build(screen: &mut Screen) -> Result<Stage, DemoError> {
        screen.step(
            "Start a real Consul, etcd and kube-apiserver",
            &[
                "As ordinary processes of yours: no root, no containers, random ports on 127.0.0.1.",
                "Beside them kwok, which will play the nodes.",
            ],
        )?;
        let folder = Folder::new("demo")?;
        collect_programs(&folder)?;
        screen.aside("starting, some seconds ...")?;
        let watch = Stopwatch::start();
        let (consul, cluster) = thread::scope(|scope| {
            let consul = scope.spawn(|| Consul::start(ConsulConfig::default()));
            let cluster = ControlPlane::start();
            (consul.join(), cluster)
        });
        let consul = consul.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let cluster = cluster?;
        let kwok = start_kwok(&cluster, &folder)?;
        let stage = Stage { job: None, replicas: Vec::new(), consul, kwok, cluster, folder };
        for server in stage.servers().into_iter().chain([&stage.kwok]) {
            let (name, pid) = (server.name(), server.pid().unwrap_or_default());
            screen.aside(format!("{name:<15} pid {pid:<8} log {}", server.log().display()))?;
        }
        screen.aside(format!("all ready after {:.1} s\n", watch.elapsed().as_secs_f32()))?;
        stage.print_exports(screen)?;
        Ok(stage)
    }

    fn servers(&self) -> [&Server; 3] {
        [self.consul.server(), self.cluster.etcd(), self.cluster.apiserver()]
    }

    fn print_exports(&self, screen: &Screen) -> Result<(), DemoError> {
        let unset = disturbing_variables();
        if !unset.is_empty() {
            screen.command(&format!("unset {}", unset.join(" ")))?;
        }
        let folder = self.folder.path();
        screen.command(&format!("export PATH={}:$PATH", folder.join("bin").display()))?;
        for (name, value) in self.variables() {
            screen.command(&format!("export {name}={value}"))?;
        }
        Ok(())
    }

    /// What every command gets beside PATH.
    fn variables(&self) -> [(&'static str, String); 3] {
        [
            ("KUBECONFIG", self.cluster.kubeconfig().display().to_string()),
            // Otherwise kubectl fills ~/.kube with what it discovered about servers of a minute.
            ("KUBECACHEDIR", self.folder.path().join("kube-cache").display().to_string()),
            ("CONSUL_HTTP_ADDR", self.consul.address()),
        ]
    }

    /// Runs a shell's line in the root of the repository and shows both it and what it prints. It
    /// must succeed.
    pub(super) fn run(&self, screen: &Screen, line: &str) -> Result<(), DemoError> {
        screen.command(line)?;
        let (status, output) = self.shell(line)?;
        if !output.is_empty() {
            screen.text(output.trim_end())?;
        }
        match status.success() {
            true => Ok(()),
            // What it printed has just been shown.
            false => {
                Err(DemoError::Command { line: line.to_owned(), status, output: String::new() })
            }
        }
    }

    /// Runs a line without showing it; what it prints.
    pub(super) fn ask(&self, line: &str) -> Result<String, DemoError> {
        let (status, output) = self.shell(line)?;
        match status.success() {
            true => Ok(output),
            false => Err(DemoError::Command { line: line.to_owned(), status, output }),
        }
    }

    fn shell(&self, line: &str) -> Result<(ExitStatus, String), DemoError> {
        let log = self.folder.path().join("output");
        let output = File::create(&log)?;
        let mut command = Command::new("env");
        command.args(self.environment()).args(["sh", "-c", line]);
        command.current_dir(repository()).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        let mut child = reaper::spawn(&mut command)?;
        // If it is late it stays the reaper's: we are about to fail.
        let status =
            wait_for(format!("`{line}`"), COMMAND_ALLOWED, || child.try_wait().transpose())??;
        reaper::forget_process(child.id());
        Ok((status, fs::read_to_string(log)?))
    }

    /// Arguments of `env` that make a command see the servers of this stage and nothing else.
    fn environment(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        for name in disturbing_variables() {
            args.extend(["-u".into(), name.into()]);
        }
        let mut path = OsString::from("PATH=");
        path.push(self.folder.path().join("bin"));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        args.push(path);
        args.push("SHELL=/bin/sh".into()); // `consul lock` runs its command with it
        args.extend(self.variables().map(|(name, value)| format!("{name}={value}").into()));
        args
    }

    /// Starts a line that goes on in the background; its output goes into a log.
    fn start(
        &self,
        screen: &Screen,
        name: &str,
        line: &str,
        ready: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Result<Server, DemoError> {
        let log = self.folder.path().join(format!("{name}.log"));
        screen.command(&format!("{line} >{} 2>&1 &", log.display()))?;
        let mut args = self.environment();
        // One process from here to there: `kill` shall reach the program and not a shell.
        args.extend(["sh".into(), "-c".into(), format!("exec env {line}").into()]);
        let recipe = Recipe {
            name: name.to_owned(),
            program: "env".into(),
            args,
            env: Vec::new(),
            log,
            allowed: REPLICA_ALLOWED,
            grace: GRACE,
        };
        let server = Server::prepare(recipe, ready);
        server.launch()?;
        Ok(server)
    }

    /// Starts a replica of the controller, without waiting until it is ready.
    pub(super) fn start_replica(&mut self, screen: &Screen) -> Result<(), DemoError> {
        let name = format!("consul-lock-{}", self.replicas.len());
        let admin = Port::reserve()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, admin.number()));
        let line = format!(
            "HOSTNAME={name} consul-lock controller --admin-addr={address} \
             --lease-namespace=consul-lock"
        );
        let server = self.start(screen, &name, &line, move || match ask(address, "/readyz") {
            Some(reply) if reply.ok() => Ok(()),
            Some(reply) => Err(reply.text()),
            None => Err(format!("no answer on {address}")),
        })?;
        self.replicas.push(Replica { server, admin });
        Ok(())
    }

    /// Starts a watch, which goes on until it is dropped.
    pub(super) fn start_watch(
        &self,
        screen: &Screen,
        name: &str,
        line: &str,
    ) -> Result<Server, DemoError> {
        self.start(screen, name, line, || Ok(()))
    }

    /// Starts a job under a lock; its log is [`Stage::job_log`].
    pub(super) fn start_job(
        &mut self,
        screen: &Screen,
        name: &str,
        line: &str,
    ) -> Result<(), DemoError> {
        self.job = Some(self.start(screen, name, line, || Ok(()))?);
        Ok(())
    }

    /// What the job printed.
    pub(super) fn job_log(&self) -> PathBuf {
        self.job.as_ref().map(|job| job.log().to_owned()).unwrap_or_default()
    }

    /// Asks the job to end, and waits until it did.
    pub(super) fn end_job(&self, screen: &Screen) -> Result<(), DemoError> {
        let Some((job, pid)) = self.job.as_ref().and_then(|job| Some((job, job.pid()?))) else {
            return Ok(()); // it has ended by itself
        };
        self.run(screen, &format!("kill -TERM {pid} # {}", job.name()))?;
        job.wait_ended(JOB_ALLOWED)?;
        Ok(())
    }

    pub(super) fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// Our Consul, to look at it past the command line.
    pub(super) fn consul(&self) -> &Consul {
        &self.consul
    }

    /// An object, or a list of some, as `kubectl get` tells of it.
    pub(super) fn object(&self, what: &str) -> Result<Value, DemoError> {
        Ok(json_of(&self.ask(&format!("kubectl get {what} -o json"))?))
    }

    /// A claim in the namespace `shop`.
    pub(super) fn claim(&self, name: &str) -> Result<Claim, DemoError> {
        let status = self.object(&format!("-n shop consullock {name}"))?["status"].take();
        Ok(Claim { name: name.to_owned(), status })
    }

    /// How to go on by hand.
    pub(super) fn look_around(&self, screen: &Screen) -> Result<(), DemoError> {
        self.print_exports(screen)?;
        screen.text("\n   Then for example:\n")?;
        screen.command("kubectl get consullocks -A -o wide --watch")?;
        screen.command("kubectl consullock list")?;
        screen.command("kubectl consullock -n shop describe ledger")?;
        screen.command("kubectl consullock -n shop handover ledger")?;
        screen.command("kubectl -n shop get events --sort-by=.metadata.creationTimestamp")?;
        screen.command("kubectl explain consullock.spec --recursive")?;
        screen.command("consul kv get -detailed consul-lock/shop/billing")?;
        screen.command("consul lock -verbose shop/migrate 'echo mine; sleep 60'")?;
        for replica in self.replicas.iter().filter(|replica| replica.server.pid().is_some()) {
            screen.command(&format!("curl http://{}/metrics", replica.address()))?;
            screen.command(&format!("tail -f {}", replica.server.log().display()))?;
        }
        Ok(())
    }

    /// The ends of the logs of what the story is about, and of servers that have ended, for whoever
    /// wants to know why it failed.
    pub(super) fn print_logs(&self) {
        let ended =
            self.servers().into_iter().filter(|server| server.wait_ended(Duration::ZERO).is_ok());
        let players = self.replicas.iter().map(|replica| &replica.server).chain(&self.job);
        for server in players.chain([&self.kwok]).chain(ended) {
            eprintln!("{}", tail(server.log()));
        }
    }
}

impl Replica {
    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.admin.number()).into()
    }

    /// The value of a metric, by its name with its labels.
    pub(super) fn metric(&self, series: &str) -> Option<f64> {
        let text = ask(self.address(), "/metrics")?.text();
        let line = text
            .lines()
            .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    pub(super) fn leads(&self) -> bool {
        self.metric("consul_lock_leader") == Some(1.0)
    }
}

/// What a claim's status says.
pub(super) struct Claim {
    pub(super) name: String,
    status: Value,
}

impl Claim {
    pub(super) fn phase(&self) -> &str {
        self.text("/phase")
    }

    pub(super) fn holder(&self) -> &str {
        self.text("/holder/identity")
    }

    /// The pod that the key is held for.
    pub(super) fn pod(&self) -> &str {
        self.text("/holder/pod")
    }

    pub(super) fn held_by_stranger(&self) -> bool {
        self.status.pointer("/holder/stranger") == Some(&Value::Bool(true))
    }

    pub(super) fn session(&self) -> &str {
        self.text("/session/id")
    }

    pub(super) fn key(&self) -> &str {
        self.text("/key")
    }

    pub(super) fn token(&self) -> Option<u64> {
        self.text("/fencingToken").parse().ok()
    }

    /// Who held the key before, and why it ended.
    pub(super) fn last_tenure(&self) -> (String, String) {
        (self.text("/history/0/holder").to_owned(), self.text("/history/0/reason").to_owned())
    }

    /// How many tenures began.
    pub(super) fn transitions(&self) -> u64 {
        self.status["transitions"].as_u64().unwrap_or_default()
    }

    fn text(&self, pointer: &str) -> &str {
        self.status.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:#}", self.name, self.status)
    }
}

fn ask(address: SocketAddr, path: &str) -> Option<testbed::Reply> {
    testbed::request(address, "GET", path, &[], b"").ok()
}

/// `null` if it is none: whoever looks for something in it will not find it, and say so.
pub(super) fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// Puts what a user needs on PATH into one folder. Builds the tools if need be.
fn collect_programs(folder: &Folder) -> Result<(), DemoError> {
    let controller = std::env::current_exe()?.with_file_name("consul-lock");
    if !controller.is_file() {
        return Err(DemoError::NoController(controller));
    }
    let bin = folder.path().join("bin");
    fs::create_dir(&bin)?;
    for name in ["consul-lock", "kubectl-consullock"] {
        symlink(&controller, bin.join(name))?;
    }
    for tool in [Tool::Consul, Tool::Kubectl] {
        symlink(tool.path().map_err(BedError::from)?, bin.join(tool.name()))?;
    }
    for tool in [Tool::Etcd, Tool::KubeApiserver, Tool::Kwok] {
        tool.path().map_err(BedError::from)?; // now, rather than while another server waits
    }
    Ok(())
}

/// kwok, for all nodes that there will be. It is no server: it listens nowhere.
fn start_kwok(cluster: &ControlPlane, folder: &Folder) -> Result<Server, DemoError> {
    let stages = repository().join("testbed/demo/kwok.yaml");
    let recipe = Recipe {
        name: "kwok".to_owned(),
        program: Tool::Kwok.path().map_err(BedError::from)?,
        args: [
            format!("--kubeconfig={}", cluster.kubeconfig().display()),
            format!("--config={}", stages.display()),
            "--manage-all-nodes".to_owned(),
        ]
        .map(Into::into)
        .to_vec(),
        // Otherwise it reads the configuration of whoever runs the demo as well.
        env: vec![("KWOK_WORKDIR".to_owned(), folder.path().display().to_string())],
        log: folder.path().join("kwok.log"),
        allowed: REPLICA_ALLOWED,
        grace: GRACE,
    };
    // Whether it does its work, the nodes will tell.
    Ok(Server::start(recipe, || Ok(()))?)
}

/// Variables of whoever runs the demo that would lead its programs elsewhere.
fn disturbing_variables() -> Vec<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut names: Vec<String> = names.filter(|name| disturbs(name)).collect();
    names.sort();
    names
}

fn disturbs(name: &str) -> bool {
    // The servers are on this machine; no proxy knows the way.
    name.starts_with("CONSUL_") || name.to_ascii_lowercase().ends_with("_proxy")
}

/// Whether a log has this in it.
pub(super) fn log_has(log: &Path, words: &str) -> bool {
    fs::read_to_string(log).is_ok_and(|text| text.contains(words))
}

#[cfg(test)]
mod tests {
    use super::disturbs;

    #[test]
    fn variables_for_another_consul_and_proxies_disturb() {
        assert!(
            ["CONSUL_HTTP_TOKEN", "CONSUL_LOCK_LEASE_NAME", "https_proxy"]
                .map(disturbs)
                .iter()
                .all(|d| *d)
        );
        assert!(!["PATH", "HOME", "KUBECONFIG"].map(disturbs).iter().any(|d| *d));
    }
}
