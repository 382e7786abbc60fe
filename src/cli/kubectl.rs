//! `kubectl consullock …`, and the same commands of `consul-lock`.

use std::{ffi::OsStr, path::PathBuf, time::Duration};

use clap::{ArgMatches, Args, Command, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use super::{CliError, ConsulFlags, InstallationFlags, Name, boolean, duration, unset_if_empty};
use crate::kubectl::{Access, DoctorSettings, Format, KubectlSettings, Order, Patience, Scope};

/// The name under which kubectl finds its plugin.
const PLUGIN: &str = "kubectl-consullock";

/// The name under which kubectl asks what may be typed behind the plugin's
/// (<https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/>).
const COMPLETER: &str = "kubectl_complete-consullock";

const EXIT_CODES: &str = "Exit codes: 0 done; 1 refused, or the API server or Consul said no, or \
    doctor found something; 2 wrong usage; 75 it did not come about within --timeout.";

/// Whether the program was started as kubectl's plugin.
pub(super) fn is_plugin(program: &OsStr) -> bool {
    std::path::Path::new(program).file_name().is_some_and(|name| name == PLUGIN)
}

/// Whether kubectl wants to know what may be typed.
pub(super) fn is_completer(program: &OsStr) -> bool {
    std::path::Path::new(program).file_name().is_some_and(|name| name == COMPLETER)
}

/// Who holds which Consul lock, and what to do about it by hand
#[derive(Parser)]
#[command(name = PLUGIN, bin_name = "kubectl consullock", version, after_help = EXIT_CODES)]
pub(super) struct RawPlugin {
    #[command(subcommand)]
    pub(super) command: RawPluginCommand,
}

#[derive(Subcommand)]
pub(super) enum RawPluginCommand {
    #[command(flatten)]
    Kubectl(RawKubectl),
    /// Print a script that completes kubectl-consullock in a shell
    Completion {
        /// Which
        shell: Shell,
    },
}

/// The plugin's command. kubectl's own flags may stand before the subcommand as well as behind it.
pub(super) fn plugin() -> Command {
    let flags = KubeFlags::augment_args(Command::new(PLUGIN));
    let flags: Vec<_> = flags.get_arguments().cloned().map(|flag| flag.global(true)).collect();
    let command = RawPlugin::command().args(flags);
    let unset = |command: Command| command.mut_args(unset_if_empty);
    command.mut_subcommand("release", unset).mut_subcommand("doctor", unset)
}

#[derive(Subcommand)]
pub(super) enum RawKubectl {
    /// List claims: who holds which lock, since when, and who is next in line
    List(RawList),
    /// Show everything about claims, with a timeline of their tenures
    Describe(RawDescribe),
    /// Show the tenures of claims, the newest first
    History(RawHistory),
    /// Follow the tenures of claims: a line for each that begins or ends
    Watch(RawHistory),
    /// Have a claim's tenure end in favour of another pod or contender
    ///
    /// A claim with candidates hands over to the pod that --to names, or to the next in line, in
    /// the order of any change of leader: endpoint away, label away, the key moves with a higher
    /// token. Any other claim gives its key up and leaves it to others for five seconds.
    Handover(RawHandover),
    /// Take a claim's key from whoever holds it, by force
    ///
    /// Shows who holds it and what will be done, and asks. The key is released on the holder's
    /// behalf, if it still is as shown; of a stranger the session is destroyed, too. A holder that
    /// lives may go on working: it is not stopped by this. Consul is reached with the variables that
    /// its own tools read; with ACLs the token needs key:write on the key and, for a stranger,
    /// session:write on its node.
    Release(Box<RawRelease>),
    /// Examine everything that the controller needs, and print what to run to repair it
    ///
    /// Run it as the controller would run: in its pod, or with --as
    /// system:serviceaccount:NAMESPACE:NAME, and with the controller's variables for Consul. Rights
    /// are examined by using them: what writes in Kubernetes is a dry run, and what is made in
    /// Consul is taken away again. Exit code 0 only if all is well.
    Doctor(Box<RawDoctor>),
    /// Have a claim release its key and stand by, until it is resumed
    Pause(RawPause),
    /// Have a paused claim contend again
    Resume(RawPause),
}

/// kubectl's own flags.
#[derive(Args)]
#[command(next_help_heading = "Kubernetes")]
pub(super) struct KubeFlags {
    /// The namespace to look in. Default: the kubeconfig's
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,

    /// The kubeconfig to use, instead of KUBECONFIG and ~/.kube/config
    #[arg(long, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,

    /// The kubeconfig's context to use
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// The user to act as, such as system:serviceaccount:NAMESPACE:NAME
    #[arg(long = "as", value_name = "USER")]
    user: Option<String>,

    /// A group to act with; may be given more than once
    #[arg(long = "as-group", value_name = "GROUP", requires = "user")]
    groups: Vec<String>,
}

#[derive(Args)]
pub(super) struct OutputFlag {
    /// How to write it: table, wide, json or yaml
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = format)]
    output: Format,
}

#[derive(Args)]
pub(super) struct RawList {
    /// All namespaces. This is the default unless --namespace is given
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    #[command(flatten)]
    output: OutputFlag,
    #[command(flatten)]
    kube: KubeFlags,
}

#[derive(Args)]
pub(super) struct RawDescribe {
    /// The claims. Default: all of the namespace
    #[arg(value_name = "CLAIM")]
    claims: Vec<String>,
    #[command(flatten)]
    output: OutputFlag,
    #[command(flatten)]
    kube: KubeFlags,
}

#[derive(Args)]
pub(super) struct RawHistory {
    /// The claim. Default: all of the namespace
    #[arg(value_name = "CLAIM")]
    claim: Option<String>,
    /// The claims of all namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "claim"])]
    all_namespaces: bool,
    #[command(flatten)]
    output: OutputFlag,
    #[command(flatten)]
    kube: KubeFlags,
}

#[derive(Args)]
pub(super) struct WaitFlags {
    /// Wait until it is done
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "true", default_missing_value = "true", value_parser = boolean)]
    wait: bool,

    /// Wait no longer than this
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    timeout: Duration,
}

#[derive(Args)]
pub(super) struct RawHandover {
    /// The claim
    #[arg(value_name = "CLAIM")]
    claim: String,
    /// The pod that is to follow. Default: the next in line
    #[arg(long, value_name = "POD")]
    to: Option<String>,
    #[command(flatten)]
    wait: WaitFlags,
    #[command(flatten)]
    kube: KubeFlags,
}

#[derive(Args)]
pub(super) struct RawRelease {
    /// The claim
    #[arg(value_name = "CLAIM")]
    claim: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    kube: KubeFlags,
    #[command(flatten)]
    consul: ConsulFlags,
}

#[derive(Args)]
pub(super) struct RawDoctor {
    #[command(flatten)]
    installation: InstallationFlags,

    #[command(flatten)]
    output: OutputFlag,
    #[command(flatten)]
    kube: KubeFlags,
    #[command(flatten)]
    consul: ConsulFlags,
}

#[derive(Args)]
pub(super) struct RawPause {
    /// The claim
    #[arg(value_name = "CLAIM")]
    claim: String,
    #[command(flatten)]
    wait: WaitFlags,
    #[command(flatten)]
    kube: KubeFlags,
}

impl RawKubectl {
    /// `matches`: of the program, whose subcommand this is.
    pub(super) fn validate(self, matches: &ArgMatches) -> Result<KubectlSettings, CliError> {
        Ok(match self {
            RawKubectl::List(raw) => {
                let confined = raw.kube.namespace.is_some();
                raw.kube.with(Order::List { confined, format: raw.output.output })
            }
            RawKubectl::Describe(raw) => {
                let order = Order::Describe { claims: raw.claims, format: raw.output.output };
                raw.kube.with(order)
            }
            RawKubectl::History(raw) => {
                let order = Order::History { scope: raw.scope(), format: raw.output.output };
                raw.kube.with(order)
            }
            RawKubectl::Watch(raw) => {
                let order = Order::Watch { scope: raw.scope(), format: raw.output.output };
                raw.kube.with(order)
            }
            RawKubectl::Handover(raw) => {
                let patience = raw.wait.patience();
                raw.kube.with(Order::Handover { claim: raw.claim, to: raw.to, patience })
            }
            RawKubectl::Pause(raw) => raw.validate(true),
            RawKubectl::Resume(raw) => raw.validate(false),
            RawKubectl::Release(raw) => {
                let matches = matches.subcommand_matches("release").unwrap_or(matches);
                let consul = Box::new(raw.consul.validate(matches)?);
                raw.kube.with(Order::Release { claim: raw.claim, agreed: raw.yes, consul })
            }
            RawKubectl::Doctor(raw) => {
                let matches = matches.subcommand_matches("doctor").unwrap_or(matches);
                let installation = raw.installation;
                let text = |name: &Name| name.as_str().to_owned();
                let settings = DoctorSettings {
                    consul: raw.consul.validate(matches)?,
                    key_prefix: installation.key_prefix,
                    cluster_name: installation.cluster_name.map(|name| name.as_str().to_owned()),
                    watch_namespaces: installation.watch_namespaces.iter().map(text).collect(),
                    lease_namespace: installation.lease_namespace.as_ref().map(text),
                    lease_name: text(&installation.lease_name),
                    format: raw.output.output,
                };
                raw.kube.with(Order::Doctor(Box::new(settings)))
            }
        })
    }
}

impl RawHistory {
    fn scope(&self) -> Scope {
        match &self.claim {
            Some(claim) => Scope::Claim(claim.clone()),
            None if self.all_namespaces => Scope::Everywhere,
            None => Scope::Namespace,
        }
    }
}

impl RawPause {
    fn validate(self, paused: bool) -> KubectlSettings {
        let patience = self.wait.patience();
        self.kube.with(Order::Pause { claim: self.claim, paused, patience })
    }
}

impl WaitFlags {
    fn patience(&self) -> Patience {
        self.wait.then_some(self.timeout)
    }
}

impl KubeFlags {
    fn with(self, order: Order) -> KubectlSettings {
        KubectlSettings {
            access: Access {
                kubeconfig: self.kubeconfig,
                context: self.context,
                namespace: self.namespace,
                user: self.user,
                groups: self.groups,
            },
            order,
        }
    }
}

fn format(raw: &str) -> Result<Format, String> {
    match raw {
        "table" => Ok(Format::Table),
        "wide" => Ok(Format::Wide),
        "json" => Ok(Format::Json),
        "yaml" => Ok(Format::Yaml),
        _ => Err("give table, wide, json or yaml".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Job, parse},
        *,
    };

    fn settings(program: &str, args: &[&str]) -> Result<KubectlSettings, CliError> {
        match parse([program].iter().chain(args))? {
            Job::Kubectl(settings) => Ok(*settings),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_plugin_s_commands_are_ours_too_and_mean_the_same() {
        for program in ["/usr/bin/kubectl-consullock", "consul-lock"] {
            let settings = settings(program, &["handover", "billing", "--to=b-7", "-n", "shop"]);
            let settings = settings.unwrap();
            assert_eq!(settings.access.namespace.as_deref(), Some("shop"));
            let Order::Handover { claim, to, patience } = settings.order else { panic!() };
            assert_eq!((claim.as_str(), to.as_deref()), ("billing", Some("b-7")));
            assert_eq!(patience, Some(Duration::from_secs(30)));
        }
    }

    #[test]
    fn kubectl_s_flags_may_stand_before_the_plugin_s_command() {
        let args = ["-n", "shop", "--context=west", "pause", "billing", "--wait=false"];
        let settings = settings(PLUGIN, &args).unwrap();
        assert_eq!(settings.access.namespace.as_deref(), Some("shop"));
        assert_eq!(settings.access.context.as_deref(), Some("west"));
        assert!(matches!(settings.order, Order::Pause { paused: true, patience: None, .. }));
    }

    #[test]
    fn a_list_is_of_all_namespaces_unless_one_is_named() {
        let confined = |args: &[&str]| match settings(PLUGIN, args).unwrap().order {
            Order::List { confined, .. } => confined,
            other => panic!("{other:?}"),
        };
        assert!(!confined(&["list"]) && !confined(&["list", "-A"]));
        assert!(confined(&["list", "-n", "shop"]) && confined(&["-n", "shop", "list"]));
    }

    #[test]
    fn what_is_looked_at_is_a_claim_a_namespace_or_everything() {
        let scope = |args: &[&str]| match settings(PLUGIN, args).unwrap().order {
            Order::History { scope, .. } | Order::Watch { scope, .. } => scope,
            other => panic!("{other:?}"),
        };
        assert_eq!(scope(&["history", "billing"]), Scope::Claim("billing".to_owned()));
        assert_eq!(scope(&["watch"]), Scope::Namespace);
        assert_eq!(scope(&["watch", "-A", "-o", "json"]), Scope::Everywhere);
    }

    #[test]
    fn wrong_usage_says_what_is_allowed() {
        for (args, word) in [
            (&["list", "-o", "xml"][..], "table, wide, json or yaml"),
            (&["handover"], "<CLAIM>"),
            (&["pause", "a", "--timeout=soon"], "--timeout"),
            (&["list", "-A", "-n", "shop"], "--namespace"),
            (&["history", "a", "-A"], "--all-namespaces"),
            (&["list", "--as-group=g"], "--as"),
        ] {
            let error = settings(PLUGIN, args).unwrap_err().to_string();
            assert!(error.contains(word), "{args:?}: {error}");
        }
    }
}
