//! What was typed, and what it means: flags and environment become a [`Job`], validated once.
//! Nothing below doubts it again.
//!
//! Every flag has a variable. Ours are the flag in capitals behind `CONSUL_LOCK_`; Consul's are
//! the ones that its own tools read. A flag wins over its variable, and a
//! variable that is set to nothing counts as not set.
//!
//! # Guarantees
//! An error names the flag and says what is allowed. Secrets appear in no error, no help text and
//! no `Debug`.

use std::{ffi::OsString, fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{
    Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, builder::Resettable,
};
use clap_complete::Shell;

use crate::{
    agent::GUARD,
    api::GoDuration,
    consul::http::HttpConfig,
    kubectl::KubectlSettings,
    names::{KEY_MAX_BYTES, Key},
    replicas::{TimingError, Timings},
    telemetry::logs::{Filter, Format},
};

mod agent;
mod consul;
mod generated;
mod kubectl;
mod lock;
mod run;

use agent::RawAgent;
pub use agent::{AgentConfig, AgentConfigError, own_arguments};
pub use consul::ConsulConfigError;
use consul::ConsulFlags;
use kubectl::{RawKubectl, RawPlugin, RawPluginCommand};
use run::RawRun;
pub use run::{RunConfig, RunConfigError};

/// Room that a key prefix leaves for `/<namespace>/<name>`.
const PREFIX_MAX_BYTES: usize = KEY_MAX_BYTES - 2 * 64;

/// What the process is to do.
#[derive(Debug)]
pub enum Job {
    /// `consul-lock controller`
    Controller(Box<ControllerConfig>),
    /// `consul-lock run`
    Run(Box<RunConfig>),
    /// `consul-lock agent`
    Agent(Box<AgentConfig>),
    /// The guard, which only `run` starts, by a name of its own: program and arguments.
    Guard(Vec<OsString>),
    /// `kubectl consullock …`
    Kubectl(Box<KubectlSettings>),
    /// `consul-lock completion`: the script.
    Completion(Vec<u8>),
    /// `consul-lock man`: where to put the pages, and their names and contents.
    Man(PathBuf, Vec<(String, Vec<u8>)>),
    /// `consul-lock crd`
    Crd,
}

/// A validated `consul-lock controller`.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// How to reach Consul.
    pub consul: HttpConfig,
    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    pub admin_addr: SocketAddr,
    /// What every key begins with that a claim does not name itself.
    pub key_prefix: Key,
    /// `None`: from the UID of the Namespace kube-system.
    pub cluster_name: Option<ClusterName>,
    /// `None`: where this process runs.
    pub lease_namespace: Option<Name>,
    /// The Lease that the replicas share.
    pub lease_name: Name,
    /// How the replicas elect.
    pub timings: Timings,
    /// Whose claims are looked at; empty: everybody's.
    pub watch_namespaces: Vec<Name>,
    /// Two series for each claim.
    pub per_claim_metrics: bool,
    /// How log lines look.
    pub log_format: Format,
    /// Which are written.
    pub log: Filter,
}

/// Why no [`Job`] came of it; also how `--help` and `--version` end.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line could not be parsed, or asked for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The lease timings are unsafe together.
    #[error("--lease-duration, --lease-renew-deadline, --lease-retry-period: {0}")]
    Timings(#[from] TimingError),
    /// The command cannot be run under these settings.
    #[error(transparent)]
    Run(#[from] RunConfigError),
    /// The agent cannot work under these settings.
    #[error(transparent)]
    Agent(#[from] AgentConfigError),
    /// Consul cannot be reached with this.
    #[error(transparent)]
    Consul(#[from] ConsulConfigError),
}

impl CliError {
    /// Writes the error, or the help text that was asked for, to where it belongs. `true` if all
    /// is well.
    pub fn report(&self) -> bool {
        let (shown, well) = match self {
            CliError::Usage(error) => (error.print(), !error.use_stderr()),
            other => {
                eprintln!("error: {other}\n\nFor more information, try '--help'.");
                (Ok(()), false)
            }
        };
        // A closed pipe, most likely: whoever reads no help needs none.
        drop(shown);
        well
    }
}

/// Reads a command line and the environment.
///
/// # Errors
/// [`CliError`], also when `--help` or `--version` is all that is wanted.
pub fn parse(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Job, CliError> {
    let unset = |command: clap::Command| command.mut_args(unset_if_empty);
    let mut args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    if args.first().is_some_and(|program| *program == GUARD) {
        // Somebody waits for the command: what its words mean to us is not looked at.
        return Ok(Job::Guard(args.split_off(1)));
    }
    if args.first().is_some_and(|program| kubectl::is_plugin(program)) {
        let matches = kubectl::plugin().try_get_matches_from(args)?;
        return match RawPlugin::from_arg_matches(&matches)?.command {
            RawPluginCommand::Kubectl(raw) => Ok(Job::Kubectl(Box::new(raw.validate(&matches)?))),
            RawPluginCommand::Completion { shell } => {
                Ok(Job::Completion(generated::completion(kubectl::plugin(), shell)))
            }
        };
    }
    if args.first().is_some_and(|program| kubectl::is_completer(program)) {
        let candidates = generated::candidates(kubectl::plugin(), args);
        return Ok(Job::Completion(candidates.unwrap_or_default()));
    }
    let with_variables = ["controller", "run", "agent", "release", "doctor"];
    let command = with_variables
        .into_iter()
        .fold(Raw::command(), |command, name| command.mut_subcommand(name, unset));
    let matches = command.try_get_matches_from(args)?;
    match Raw::from_arg_matches(&matches)?.command {
        RawCommand::Crd => Ok(Job::Crd),
        RawCommand::Completion { shell } => {
            Ok(Job::Completion(generated::completion(Raw::command(), shell)))
        }
        RawCommand::Man { folder } => {
            Ok(Job::Man(folder, commands().into_iter().flat_map(generated::man_pages).collect()))
        }
        RawCommand::Kubectl(raw) => Ok(Job::Kubectl(Box::new(raw.validate(&matches)?))),
        RawCommand::Run(raw) => {
            let matches = matches.subcommand_matches("run").unwrap_or(&matches);
            Ok(Job::Run(Box::new(raw.validate(matches)?)))
        }
        RawCommand::Agent(raw) => {
            let matches = matches.subcommand_matches("agent").unwrap_or(&matches);
            Ok(Job::Agent(Box::new(raw.validate(matches)?)))
        }
        RawCommand::Controller(raw) => {
            let matches = matches.subcommand_matches("controller").unwrap_or(&matches);
            Ok(Job::Controller(Box::new(raw.validate(matches)?)))
        }
    }
}

/// The definitions of `consul-lock` and of `kubectl consullock`, for what is generated of them.
pub fn commands() -> [clap::Command; 2] {
    [Raw::command(), kubectl::plugin()]
}

/// A variable that is set to nothing, as manifests often have them, counts as not set.
fn unset_if_empty(arg: Arg) -> Arg {
    let empty =
        |name| std::env::var_os(name).is_some_and(|v| v.to_string_lossy().trim().is_empty());
    if arg.get_env().is_some_and(empty) { arg.env(Resettable::Reset) } else { arg }
}

const EXIT_CODES: &str = "Exit codes: 0 done, or stopped by SIGTERM or SIGINT; 1 a part of the \
    process failed while running; 2 wrong usage; 3 could not start (the admin address is taken, \
    no Kubernetes configuration). A Kubernetes or Consul that does not answer is waited for.";

/// Locks and leader election for Kubernetes that reach beyond one cluster, because they live in
/// HashiCorp Consul.
#[derive(Parser)]
#[command(name = "consul-lock", version)]
struct Raw {
    #[command(subcommand)]
    command: RawCommand,
}

#[derive(Subcommand)]
enum RawCommand {
    /// Run the operator: turn ConsulLock objects into Consul sessions and locked keys
    ///
    /// Kubernetes is found as kubectl finds it: KUBECONFIG, ~/.kube/config, or the pod's service
    /// account.
    #[command(after_help = EXIT_CODES)]
    Controller(Box<RawController>),
    /// Run a command while a lock is held, and stop it before the lock may be relied on no longer
    Run(Box<RawRun>),
    /// Hold a lock beside the work, as a sidecar, and tell the work when it leads and has to stop
    ///
    /// Kubernetes is found as kubectl finds it, and needed for --claim alone.
    Agent(Box<RawAgent>),
    #[command(flatten)]
    Kubectl(RawKubectl),
    /// Print a script that completes this command in a shell
    Completion {
        /// Which
        shell: Shell,
    },
    /// Write the man pages into a folder
    Man {
        /// The folder, which must be there
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
    },
    /// Print the CustomResourceDefinition as YAML
    Crd,
}

#[derive(Args)]
struct RawController {
    #[command(flatten)]
    consul: ConsulFlags,

    /// Where to serve /metrics, /healthz and /readyz
    #[arg(long, env = "CONSUL_LOCK_ADMIN_ADDR", value_name = "IP:PORT")]
    #[arg(default_value = "0.0.0.0:8080", value_parser = admin_addr)]
    admin_addr: SocketAddr,

    #[command(flatten)]
    installation: InstallationFlags,

    /// How long the Lease must not have changed before another replica takes it
    #[arg(long, env = "CONSUL_LOCK_LEASE_DURATION", value_name = "DURATION")]
    #[arg(default_value = "8s", value_parser = duration)]
    lease_duration: Duration,

    /// How long after its last good renewal the leader stops acting
    #[arg(long, env = "CONSUL_LOCK_LEASE_RENEW_DEADLINE", value_name = "DURATION")]
    #[arg(default_value = "5s", value_parser = duration)]
    lease_renew_deadline: Duration,

    /// How often the leader renews the Lease and the others look at it
    #[arg(long, env = "CONSUL_LOCK_LEASE_RETRY_PERIOD", value_name = "DURATION")]
    #[arg(default_value = "1s", value_parser = duration)]
    lease_retry_period: Duration,

    /// Serve two metric series for each claim
    #[arg(long, env = "CONSUL_LOCK_PER_CLAIM_METRICS", value_name = "BOOL")]
    #[arg(num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", value_parser = boolean)]
    per_claim_metrics: bool,

    /// How log lines look: text or json
    #[arg(long, env = "CONSUL_LOCK_LOG_FORMAT", value_name = "FORMAT")]
    #[arg(default_value = "text", value_parser = log_format)]
    log_format: Format,

    /// What is logged: a level, or a comma list of target=level
    #[arg(long, env = "CONSUL_LOCK_LOG", value_name = "FILTER", default_value = "info")]
    log: Filter,
}

/// What sets one installation of the controller apart from another, for whoever has to know it.
#[derive(Args)]
struct InstallationFlags {
    /// What the key of a claim begins with that names none: <prefix>/<namespace>/<name>
    #[arg(long, env = "CONSUL_LOCK_KEY_PREFIX", value_name = "KEY")]
    #[arg(default_value = "consul-lock", value_parser = key_prefix)]
    key_prefix: Key,

    /// This cluster's name in Consul. It must stay the same, and no other cluster may have it.
    /// Default: the first eight characters of the kube-system Namespace's UID
    #[arg(long, env = "CONSUL_LOCK_CLUSTER_NAME", value_name = "NAME")]
    cluster_name: Option<ClusterName>,

    /// Look at the claims of these namespaces only (comma list). Default: all
    #[arg(long, env = "CONSUL_LOCK_WATCH_NAMESPACES", value_name = "NAMES")]
    #[arg(value_delimiter = ',')]
    watch_namespaces: Vec<Name>,

    /// The Lease by which the replicas elect a leader
    #[arg(long, env = "CONSUL_LOCK_LEASE_NAME", value_name = "NAME")]
    #[arg(default_value = "consul-lock")]
    lease_name: Name,

    /// The Lease's namespace. Default: the pod's own, else the kubeconfig's
    #[arg(long, env = "CONSUL_LOCK_LEASE_NAMESPACE", value_name = "NAMESPACE")]
    lease_namespace: Option<Name>,
}

impl RawController {
    fn validate(self, matches: &ArgMatches) -> Result<ControllerConfig, CliError> {
        let installation = self.installation;
        Ok(ControllerConfig {
            consul: self.consul.validate_patiently(matches)?,
            admin_addr: self.admin_addr,
            key_prefix: installation.key_prefix,
            cluster_name: installation.cluster_name,
            lease_namespace: installation.lease_namespace,
            lease_name: installation.lease_name,
            timings: Timings::new(
                self.lease_duration,
                self.lease_renew_deadline,
                self.lease_retry_period,
            )?,
            watch_namespaces: installation.watch_namespaces,
            per_claim_metrics: self.per_claim_metrics,
            log_format: self.log_format,
            log: self.log,
        })
    }
}

/// A cluster's name in Consul: part of node and session names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterName(String);

/// Why a text is no [`ClusterName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a cluster's name has 1 to 32 characters, each one of a-z, 0-9 and -")]
pub struct ClusterNameError;

impl ClusterName {
    /// The default: the beginning of the kube-system Namespace's UID, which lasts as long as the
    /// cluster.
    ///
    /// # Errors
    /// [`ClusterNameError`] if that is no UID.
    pub fn of_uid(uid: &str) -> Result<ClusterName, ClusterNameError> {
        uid.get(..8).unwrap_or(uid).parse()
    }

    /// The bare text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = ClusterNameError;
    fn from_str(raw: &str) -> Result<ClusterName, ClusterNameError> {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if (1..=32).contains(&raw.len()) && raw.bytes().all(allowed) {
            Ok(ClusterName(raw.to_owned()))
        } else {
            Err(ClusterNameError)
        }
    }
}

/// The name of a Kubernetes object that is used in URLs: a DNS label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

/// Why a text is no [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 63 characters, each one of a-z, 0-9 and -, and no - at either end")]
pub struct NameError;

impl Name {
    /// The bare text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(raw: &str) -> Result<Name, NameError> {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let edge = raw.starts_with('-') || raw.ends_with('-');
        if (1..=63).contains(&raw.len()) && raw.bytes().all(allowed) && !edge {
            Ok(Name(raw.to_owned()))
        } else {
            Err(NameError)
        }
    }
}

fn admin_addr(raw: &str) -> Result<SocketAddr, String> {
    raw.parse().map_err(|_| {
        "give an IP address and a port, such as 0.0.0.0:8080, 127.0.0.1:9090 or [::]:8080"
            .to_owned()
    })
}

fn key_prefix(raw: &str) -> Result<Key, String> {
    let key = Key::new(raw.strip_suffix('/').unwrap_or(raw)).map_err(|e| e.to_string())?;
    if key.as_str().len() > PREFIX_MAX_BYTES {
        return Err(format!("a key prefix has at most {PREFIX_MAX_BYTES} bytes"));
    }
    Ok(key)
}

fn duration(raw: &str) -> Result<Duration, String> {
    GoDuration::new(raw).parse().map_err(|e| e.to_string())
}

fn boolean(raw: &str) -> Result<bool, String> {
    match raw.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("give true or false".to_owned()),
    }
}

fn log_format(raw: &str) -> Result<Format, String> {
    match raw {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err("give text or json".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(args: &[&str]) -> Result<ControllerConfig, CliError> {
        let args = ["consul-lock", "controller"].iter().chain(args);
        match parse(args)? {
            Job::Controller(config) => Ok(*config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_a_configuration() {
        let config = controller(&[
            "--consul-http-addr=consul:8500",
            "--admin-addr=127.0.0.1:0",
            "--key-prefix=locks/eu/",
            "--cluster-name=eu-1",
            "--lease-namespace=ops",
            "--watch-namespaces=shop,billing",
            "--lease-duration=2s",
            "--lease-renew-deadline=1s",
            "--lease-retry-period=250ms",
            "--per-claim-metrics",
            "--log-format=json",
            "--log=warn",
        ])
        .unwrap();
        assert_eq!(config.consul.address, "consul:8500");
        assert_eq!(config.key_prefix.as_str(), "locks/eu");
        assert_eq!(config.cluster_name.unwrap().as_str(), "eu-1");
        assert_eq!(config.lease_namespace.unwrap().as_str(), "ops");
        assert_eq!(config.watch_namespaces.len(), 2);
        assert_eq!(config.timings.retry(), Duration::from_millis(250));
        assert!(config.per_claim_metrics);
        assert_eq!(config.log_format, Format::Json);
    }

    #[test]
    fn bad_input_names_the_flag_and_what_is_allowed() {
        for (args, flag, allowed) in [
            (&["--admin-addr=localhost"][..], "--admin-addr", "0.0.0.0:8080"),
            (&["--admin-addr=:8080"], "--admin-addr", "an IP address and a port"),
            (&["--key-prefix=a//b"], "--key-prefix", "may be empty"),
            (&["--key-prefix=/"], "--key-prefix", "1 to 512 bytes"),
            (&["--key-prefix=schlüssel"], "--key-prefix", "letters, digits"),
            (&[&*format!("--key-prefix={}", "a".repeat(385))], "--key-prefix", "at most 384"),
            (&["--cluster-name=EU"], "--cluster-name", "a-z, 0-9 and -"),
            (&["--cluster-name=123456789012345678901234567890123"], "--cluster-name", "1 to 32"),
            (&["--watch-namespaces=shop,-x"], "--watch-namespaces", "no - at either end"),
            (&["--lease-namespace=a/b"], "--lease-namespace", "a-z, 0-9 and -"),
            (&["--lease-name="], "--lease-name", "1 to 63"),
            (&["--lease-duration=8"], "--lease-duration", "15s, 1m30s or 500ms"),
            (&["--lease-duration=2s"], "--lease-renew-deadline", "shorter than the lease duration"),
            (&["--lease-retry-period=6s"], "--lease-retry-period", "shorter than the renew"),
            (&["--per-claim-metrics=perhaps"], "--per-claim-metrics", "true or false"),
            (&["--log-format=xml"], "--log-format", "text or json"),
            (&["--log=loud"], "--log", "error, warn, info"),
        ] {
            let error = controller(args).unwrap_err().to_string();
            assert!(error.contains(flag) && error.contains(allowed), "{args:?}: {error}");
        }
        let error = parse(["consul-lock", "control"]).unwrap_err().to_string();
        assert!(error.contains("controller"), "{error}");
    }

    #[test]
    fn default_cluster_name_is_the_beginning_of_a_uid() {
        let name = ClusterName::of_uid("1f0c9b7a-6f0d-4d0e-9a53-0a4d5b6c7d8e").unwrap();
        assert_eq!(name.as_str(), "1f0c9b7a");
        assert_eq!(ClusterName::of_uid(""), Err(ClusterNameError));
    }

    #[test]
    fn every_flag_has_a_variable_of_its_name() {
        let command = Raw::command();
        let subcommands = ["controller", "run"].map(|name| command.find_subcommand(name).unwrap());
        let arguments = subcommands.into_iter().flat_map(clap::Command::get_arguments);
        let flags = arguments.filter(|argument| argument.get_long().is_some());
        // A session's variable would be the one that a command under a lock sees, and would be taken
        // for an order by whatever run that command starts.
        let without = ["help", "session"];
        for flag in flags.filter(|flag| !without.contains(&flag.get_id().as_str())) {
            let name = flag.get_long().unwrap().to_uppercase().replace('-', "_");
            let variable = flag.get_env().unwrap().to_str().unwrap();
            let expected =
                if name.starts_with("CONSUL_") { name } else { format!("CONSUL_LOCK_{name}") };
            assert_eq!(variable, expected);
        }
        Raw::command().debug_assert();
    }
}
