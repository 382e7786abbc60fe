//! `consul-lock agent`: what to hold, and whom to tell of it.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgMatches, Args};
use rustix::process::Signal;

use super::{
    CliError, ClusterName, Name,
    consul::ConsulFlags,
    lock::{LockFlags, LogFlags, SECOND, between, name},
};
use crate::{
    agent::{AgentSettings, AppSettings, ClaimSettings, Notice, NoticeError, PodSettings},
    consul::http::HttpConfig,
    holder::this_host,
    names::{Key, NodeName},
    telemetry::logs::{Filter, Format},
};

const AFTER_HELP: &str = "\
Others are told by GET /leader (200 or 503, JSON), GET /token, and GET /events (server-sent events) \
on --listen, by --file, --on-acquire, --on-loss, and --process or --pid-file with --signal. \
Whoever leads is told that it has to stop before the lock may be relied on no longer: a --grace and \
a margin before that, unless it can renew meanwhile.

Exit codes: 0 stopped by SIGTERM or SIGINT; 1 a part of the process failed while running; 2 wrong \
usage, or a claim that is not for an agent; 3 could not start (the address is taken). A Consul or \
Kubernetes that does not answer is waited for.";

/// A validated `consul-lock agent`.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// How to reach Consul.
    pub consul: HttpConfig,
    /// What to hold, and whom to tell of it.
    pub settings: AgentSettings,
    /// Where it is asked.
    pub listen: SocketAddr,
    /// Started by a guard.
    pub guarded: bool,
    /// How log lines look.
    pub log_format: Format,
    /// Which are written.
    pub log: Filter,
}

/// Why there is no [`AgentConfig`].
#[derive(Debug, thiserror::Error)]
pub enum AgentConfigError {
    /// The work could not be stopped in time.
    #[error(transparent)]
    Notice(#[from] NoticeError),
    /// Where the claim is, is not told.
    #[error("--claim {0}: give --namespace, too; outside of a pod nothing else tells it")]
    NoNamespace(String),
    /// A pod that is known in part.
    #[error(
        "--pod-name, --pod-namespace, --pod-uid: give all of them or none; in a pod's YAML they are \
         CONSUL_LOCK_POD_NAME, CONSUL_LOCK_POD_NAMESPACE and CONSUL_LOCK_POD_UID, from the fields \
         metadata.name, metadata.namespace and metadata.uid"
    )]
    PartOfAPod,
}

#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct RawAgent {
    /// The key to hold. With --claim: what the claim's key is said to be, for when it cannot be read
    #[arg(long, env = "CONSUL_LOCK_KEY", value_name = "KEY", required_unless_present = "claim")]
    key: Option<Key>,

    /// The ConsulLock whose spec says what to hold, and how. It is read with `get`, and nothing
    /// else is asked of Kubernetes
    #[arg(long, env = "CONSUL_LOCK_CLAIM", value_name = "NAME")]
    claim: Option<Name>,

    /// The claim's namespace. Default: the pod's
    #[arg(long, env = "CONSUL_LOCK_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<Name>,

    /// How often the claim is read again; 1s to 1h
    #[arg(long, env = "CONSUL_LOCK_REREAD", value_name = "DURATION")]
    #[arg(default_value = "15s", value_parser = reread)]
    reread: Duration,

    /// This cluster's name in Consul. Default: the first eight characters of the kube-system
    /// Namespace's UID, if that may be read, else none
    #[arg(long, env = "CONSUL_LOCK_CLUSTER_NAME", value_name = "NAME")]
    cluster_name: Option<ClusterName>,

    /// The pod that this runs in. An agent that is started again in the same pod goes on with its
    /// session
    #[arg(long, env = "CONSUL_LOCK_POD_NAME", value_name = "NAME", value_parser = object)]
    pod_name: Option<String>,

    /// Its namespace
    #[arg(long, env = "CONSUL_LOCK_POD_NAMESPACE", value_name = "NAMESPACE")]
    pod_namespace: Option<Name>,

    /// Its UID
    #[arg(long, env = "CONSUL_LOCK_POD_UID", value_name = "UID", value_parser = object)]
    pod_uid: Option<String>,

    /// What to call the holder, for others to see, where there is no claim. Default: the pod's
    /// name, else agent
    #[arg(long, env = "CONSUL_LOCK_NAME", value_name = "NAME", value_parser = name)]
    name: Option<String>,

    /// The node of Consul's catalog that the session sits on; it is made if there is none. Default:
    /// consul-lock-<cluster>-<namespace>, else consul-lock-agent
    #[arg(long, env = "CONSUL_LOCK_NODE", value_name = "NAME", value_parser = name)]
    node: Option<String>,

    #[command(flatten)]
    lock: LockFlags,

    /// Where to serve /leader, /token, /events, /healthz and /metrics. Whoever reaches it may ask:
    /// the containers of the pod, unless another address is given
    #[arg(long, env = "CONSUL_LOCK_LISTEN", value_name = "IP:PORT")]
    #[arg(default_value = "127.0.0.1:8700", value_parser = listen)]
    listen: SocketAddr,

    /// A file to keep the same JSON in as /leader answers; it is replaced at every change
    #[arg(long, env = "CONSUL_LOCK_FILE", value_name = "PATH")]
    file: Option<PathBuf>,

    /// A command for /bin/sh when a tenure begins, or is gone on with by an agent that was started
    /// again. It sees CONSUL_LOCK_HELD, CONSUL_LOCK_KEY, CONSUL_LOCK_SESSION and CONSUL_LOCK_TOKEN
    #[arg(long, env = "CONSUL_LOCK_ON_ACQUIRE", value_name = "COMMAND")]
    on_acquire: Option<String>,

    /// The same when the work has to stop. The lock is not released before it has ended; after
    /// --grace it is killed
    #[arg(long, env = "CONSUL_LOCK_ON_LOSS", value_name = "COMMAND")]
    on_loss: Option<String>,

    /// The app's program, whose processes are ended when the work has to stop. In a pod that takes
    /// shareProcessNamespace, and the app's user, or root with the capability KILL
    #[arg(long, env = "CONSUL_LOCK_PROCESS", value_name = "NAME", value_parser = program)]
    process: Option<String>,

    /// The file with the number of the app's process, instead, or in addition
    #[arg(long, env = "CONSUL_LOCK_PID_FILE", value_name = "PATH")]
    pid_file: Option<PathBuf>,

    /// What they are sent: TERM, INT, HUP, QUIT, USR1, USR2 or KILL; after --grace it is SIGKILL
    #[arg(long, env = "CONSUL_LOCK_SIGNAL", value_name = "SIGNAL")]
    #[arg(default_value = "TERM", value_parser = signal)]
    signal: i32,

    #[command(flatten)]
    consul: ConsulFlags,

    #[command(flatten)]
    log: LogFlags,

    /// Given by the guard
    #[arg(long, hide = true)]
    guarded: bool,
}

impl RawAgent {
    pub(super) fn validate(self, matches: &ArgMatches) -> Result<AgentConfig, CliError> {
        let _ = Notice::new(self.lock.ttl, self.lock.grace).map_err(AgentConfigError::from)?;
        let pod = match (self.pod_name, self.pod_namespace, self.pod_uid) {
            (Some(name), Some(namespace), Some(uid)) => {
                Some(PodSettings { namespace: namespace.to_string(), name, uid })
            }
            (None, None, None) => None,
            _ => return Err(AgentConfigError::PartOfAPod.into()),
        };
        let claim = self.claim.map(|claim| {
            let given = self.namespace.map(|namespace| namespace.to_string());
            let namespace = given.or(pod.as_ref().map(|pod| pod.namespace.clone()));
            let name = claim.to_string();
            match namespace {
                Some(namespace) => Ok(ClaimSettings { namespace, name, again: self.reread }),
                None => Err(AgentConfigError::NoNamespace(name)),
            }
        });
        let has_app = self.process.is_some() || self.pid_file.is_some();
        let settings = AgentSettings {
            key: self.key,
            claim: claim.transpose()?,
            name: self
                .name
                .or_else(|| pod.as_ref().map(|pod| pod.name.clone()))
                .unwrap_or_else(|| "agent".to_owned()),
            host: this_host(),
            pod,
            cluster: self.cluster_name.map(|name| name.as_str().to_owned()),
            node: self.node.map(NodeName::new),
            grace: self.lock.grace,
            lock: self.lock.into(),
            file: self.file,
            on_acquire: self.on_acquire,
            on_loss: self.on_loss,
            app: has_app.then_some(AppSettings {
                name: self.process,
                pid_file: self.pid_file,
                signal: self.signal,
            }),
        };
        Ok(AgentConfig {
            consul: self.consul.validate(matches)?,
            settings,
            listen: self.listen,
            guarded: self.guarded,
            log_format: self.log.format,
            log: self.log.log,
        })
    }
}

fn reread(raw: &str) -> Result<Duration, String> {
    between(raw, SECOND, 3600 * SECOND)
}

/// What Kubernetes calls an object, and a UID.
fn object(raw: &str) -> Result<String, String> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c);
    if (1..=253).contains(&raw.len()) && raw.bytes().all(allowed) {
        Ok(raw.to_owned())
    } else {
        Err("it has 1 to 253 characters, each one of a-z, 0-9, - and .".to_owned())
    }
}

fn program(raw: &str) -> Result<String, String> {
    match raw {
        "consul-lock" => Err("that is the agent itself".to_owned()),
        "" => Err("give a program's name, such as postgres".to_owned()),
        _ if raw.contains('/') => Err("give the program's name without its folder".to_owned()),
        _ => Ok(raw.to_owned()),
    }
}

fn listen(raw: &str) -> Result<SocketAddr, String> {
    raw.parse().map_err(|_| {
        "give an IP address and a port, such as 127.0.0.1:8700 or [::1]:8700".to_owned()
    })
}

fn signal(raw: &str) -> Result<i32, String> {
    let name = raw.to_ascii_uppercase();
    let signal = match name.strip_prefix("SIG").unwrap_or(&name) {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "KILL" => Signal::KILL,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "TERM" => Signal::TERM,
        _ => return Err("give TERM, INT, HUP, QUIT, USR1, USR2 or KILL".to_owned()),
    };
    Ok(signal.as_raw())
}

/// The arguments that a guard gives its agent: its own, from the subcommand on.
pub fn own_arguments() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Job, parse};

    fn agent(args: &[&str]) -> Result<AgentConfig, CliError> {
        match parse(["consul-lock", "agent"].iter().chain(args))? {
            Job::Agent(config) => Ok(*config),
            other => panic!("{other:?}"),
        }
    }

    fn by_words(flags: &str) -> Result<AgentConfig, CliError> {
        agent(&flags.split_whitespace().collect::<Vec<_>>())
    }

    #[test]
    fn flags_become_settings() {
        let config = by_words(
            "--claim=billing --namespace=shop --reread=5s --key=shared/billing --cluster-name=eu-1 \
             --pod-name=billing-1 --pod-namespace=shop --pod-uid=0f2a --ttl=30s --lock-delay=1s \
             --value=v --max-hold=1h --grace=10s --listen=[::1]:0 --file=/run/leader.json \
             --process=pay --pid-file=/run/pay.pid --signal=sigusr1 --node=vms",
        )
        .unwrap();
        let settings = config.settings;
        let claim = settings.claim.unwrap();
        assert_eq!((claim.namespace.as_str(), claim.name.as_str()), ("shop", "billing"));
        assert_eq!(claim.again, 5 * SECOND);
        assert_eq!(settings.key.unwrap().as_str(), "shared/billing");
        assert_eq!(settings.cluster.as_deref(), Some("eu-1"));
        assert_eq!(settings.pod.unwrap().uid, "0f2a");
        assert_eq!((settings.lock.ttl, settings.grace), (30 * SECOND, 10 * SECOND));
        assert_eq!(settings.lock.max_hold, Some(3600 * SECOND));
        assert_eq!(config.listen.to_string(), "[::1]:0");
        let app = settings.app.unwrap();
        assert_eq!((app.name.as_deref(), app.signal), (Some("pay"), Signal::USR1.as_raw()));
        assert!(!config.guarded);
    }

    #[test]
    fn little_has_to_be_told() {
        let config = by_words("--key=k").unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8700");
        let settings = config.settings;
        assert_eq!((settings.name.as_str(), settings.node, settings.app), ("agent", None, None));
        let config =
            by_words("--claim=billing --pod-name=billing-1 --pod-namespace=shop --pod-uid=0f2a");
        let settings = config.unwrap().settings;
        assert_eq!(settings.name, "billing-1");
        assert_eq!(settings.claim.unwrap().namespace, "shop", "the pod's");
    }

    #[test]
    fn bad_input_names_the_flag_and_what_is_allowed() {
        for (flags, flag, allowed) in [
            ("", "--key", "required"),
            ("--key=a//b", "--key", "may be empty"),
            ("--claim=Billing --namespace=shop", "--claim", "a-z, 0-9"),
            ("--claim=billing", "--claim billing", "give --namespace"),
            ("--claim=b --namespace=shop --reread=10ms", "--reread", "give 1s to 1h"),
            ("--key=k --pod-name=b-1", "--pod-uid", "all of them or none"),
            ("--key=k --pod-uid=A", "--pod-uid", "a-z, 0-9"),
            ("--key=k --cluster-name=EU", "--cluster-name", "a-z, 0-9"),
            ("--key=k --name=a/b", "--name", "1 to 64 characters"),
            ("--key=k --node=", "--node", "1 to 64 characters"),
            ("--key=k --ttl=900ms", "--ttl", "give 1s to 24h"),
            ("--key=k --ttl=10s", "--grace 5s", "--ttl 12s or more, or --grace 4s or less"),
            ("--key=k --listen=localhost", "--listen", "127.0.0.1:8700"),
            ("--key=k --process=/bin/pay", "--process", "without its folder"),
            ("--key=k --process=consul-lock", "--process", "the agent itself"),
            ("--key=k --process=", "--process", "such as postgres"),
            ("--key=k --signal=STOP", "--signal", "TERM, INT, HUP"),
            ("--key=k --log=loud", "--log", "error, warn, info"),
        ] {
            let error = by_words(flags).unwrap_err().to_string();
            assert!(error.contains(flag) && error.contains(allowed), "{flags}: {error}");
        }
    }
}
