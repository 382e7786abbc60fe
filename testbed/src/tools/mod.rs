//! Where the servers come from.
//!
//! Each is pinned by a Go module of ours under `tools/`. A tool is looked for in this order:
//! built before from exactly these pins (`tools/.cache/`), on PATH in a fitting version, and
//! otherwise it is built now, which takes minutes and says so.

mod build;
mod definitions;

use std::collections::HashMap;

use parking_lot::Mutex;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::wait::{TimedOut, wait_for};

pub use definitions::prometheus_operator_definitions;

/// How long a program may take to say its version.
const VERSION_PATIENCE: Duration = Duration::from_secs(20);

/// Why a tool cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// There is no Go.
    #[error(
        "`go` is needed to build {tool} and is not on PATH: install Go (https://go.dev/dl, or \
         Debian's package `golang`, in the version that {module}/go.mod asks for)"
    )]
    NoGo {
        /// What was to be built.
        tool: &'static str,
        /// Its module.
        module: PathBuf,
    },
    /// The build failed.
    #[error("cannot build {tool} in {module}{needs}:\n{output}")]
    Build {
        /// What was to be built.
        tool: &'static str,
        /// Its module.
        module: PathBuf,
        /// What it needs beside Go, if anything.
        needs: &'static str,
        /// The end of what `go build` printed.
        output: String,
    },
    /// Somebody else's build, or ours, takes too long.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// A file of the cache.
    #[error("cannot prepare {tool}")]
    Io {
        /// What was to be built.
        tool: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A program that the test bed runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tool {
    /// HashiCorp's `consul`: agent and command line.
    Consul,
    /// The store of the control plane.
    Etcd,
    /// The Kubernetes API server.
    KubeApiserver,
    /// The Kubernetes command line.
    Kubectl,
    /// Holds a key through Consul's own Go client; see `benches/peers/api-lock`.
    ApiLock,
    /// Elects a leader with client-go; see `benches/peers/leader-election`.
    LeaderElection,
    /// Plays nodes: pods on them count as running, without a kubelet.
    Kwok,
    /// Installs charts.
    Helm,
    /// The loops behind Deployments, Jobs, EndpointSlices, service accounts.
    KubeControllerManager,
    /// Gives pods their node.
    KubeScheduler,
    /// Runs a node's pods.
    Kubelet,
    /// Makes Services work on a node.
    KubeProxy,
    /// Runs the kubelet's containers.
    Containerd,
    /// What containerd keeps beside each pod.
    ContainerdShim,
    /// containerd's own command line.
    Ctr,
    /// What the shim makes containers with.
    Runc,
    /// The network plugin that gives a pod its link.
    CniPtp,
    /// The network plugin for a pod's loopback.
    CniLoopback,
    /// The network plugin that hands out addresses.
    CniHostLocal,
    /// What runs in the pods of tests; see `testbed/backend`.
    Backend,
    /// Issues coupons; see `examples/coupons`.
    Coupons,
    /// Sells stock; see `examples/inventory`.
    Inventory,
    /// Hands out numbers; see `examples/standby`.
    Standby,
}

/// A Go module of ours that builds one tool or several.
struct Module {
    name: &'static str,
    /// Relative to the root of the repository.
    folder: &'static str,
    /// What `go build` builds.
    package: &'static str,
    ldflags: &'static str,
    /// Build tags, separated by commas.
    tags: &'static str,
    /// Whether it needs a C compiler, `pkg-config` and libseccomp's headers.
    cgo: bool,
    /// How long a first build takes on two cores, for people who wait.
    takes: &'static str,
}

/// What most have in common.
const PLAIN: Module = Module {
    name: "",
    folder: "",
    package: "tool",
    ldflags: "-s -w",
    tags: "",
    cgo: false,
    takes: "a minute",
};
const CONSUL: Module = Module {
    name: "consul",
    folder: "tools/consul",
    ldflags: "-s -w -X github.com/hashicorp/consul/version.GitDescribe=v1.21.0",
    takes: "4 to 8 minutes",
    ..PLAIN
};
const ETCD: Module = Module { name: "etcd", folder: "tools/etcd", ..PLAIN };
const KUBERNETES: Module = Module {
    name: "kubernetes",
    folder: "tools/kubernetes",
    ldflags: KUBERNETES_VERSION,
    takes: "4 to 6 minutes",
    ..PLAIN
};
/// Apart from [`KUBERNETES`], so that who runs no node builds none.
const KUBERNETES_NODE: Module = Module {
    name: "kubernetes-node",
    folder: "tools/kubernetes-node",
    ldflags: KUBERNETES_VERSION,
    takes: "3 to 6 minutes",
    ..PLAIN
};
const CONTAINERD: Module = Module {
    name: "containerd",
    folder: "tools/containerd",
    ldflags: "-s -w -X github.com/containerd/containerd/v2/version.Version=v2.4.2",
    tags: "no_btrfs,no_zfs,no_devmapper", // they need headers, and nobody here uses them
    ..PLAIN
};
const CNI: Module = Module { name: "cni", folder: "tools/cni", ..PLAIN };
const RUNC: Module = Module {
    name: "runc",
    folder: "tools/runc",
    tags: "seccomp",
    cgo: true, // it enters namespaces in C before Go starts, and uses libseccomp
    takes: "half a minute",
    ..PLAIN
};
const API_LOCK: Module = Module {
    name: "api-lock",
    folder: "benches/peers/api-lock",
    package: ".",
    takes: "a few seconds",
    ..PLAIN
};
const LEADER_ELECTION: Module = Module {
    name: "leader-election",
    folder: "benches/peers/leader-election",
    package: ".",
    takes: "a minute",
    ..PLAIN
};
const KWOK: Module = Module { name: "kwok", folder: "tools/kwok", takes: "2 minutes", ..PLAIN };
const HELM: Module = Module {
    name: "helm",
    folder: "tools/helm",
    ldflags: "-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1",
    takes: "3 to 5 minutes",
    ..PLAIN
};
const BACKEND: Module = Module {
    name: "backend",
    folder: "testbed/backend",
    package: ".",
    takes: "a few seconds",
    ..PLAIN
};

/// The programs of the worked examples, a folder for each.
const EXAMPLES: Module = Module {
    name: "examples",
    folder: "examples",
    package: "./...",
    takes: "half a minute",
    ..PLAIN
};

/// What Kubernetes' programs say they are.
const KUBERNETES_VERSION: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3";

/// Which versions on PATH will do.
struct Fitting {
    program: &'static str,
    version_args: &'static [&'static str],
    major: u32,
    minor: u32,
    /// How far the minor version may be off.
    skew: u32,
}

impl Tool {
    /// What every machine needs.
    pub const SERVERS: &[Tool] =
        &[Tool::Consul, Tool::Etcd, Tool::KubeApiserver, Tool::Kubectl, Tool::ApiLock, Tool::Kwok];

    /// What tests need that start no servers with it.
    pub const TESTS: &[Tool] = &[Tool::Helm];

    /// What a machine needs in addition that runs a [`crate::Cluster`].
    pub const NODE: &[Tool] = &[
        Tool::KubeControllerManager,
        Tool::KubeScheduler,
        Tool::Kubelet,
        Tool::KubeProxy,
        Tool::Containerd,
        Tool::ContainerdShim,
        Tool::Ctr,
        Tool::Runc,
        Tool::CniPtp,
        Tool::CniLoopback,
        Tool::CniHostLocal,
        Tool::Backend,
    ];

    /// The programs of the worked examples.
    pub const EXAMPLES: &[Tool] = &[Tool::Coupons, Tool::Inventory, Tool::Standby];

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Tool::Consul => "consul",
            Tool::Etcd => "etcd",
            Tool::KubeApiserver => "kube-apiserver",
            Tool::Kubectl => "kubectl",
            Tool::ApiLock => "api-lock",
            Tool::LeaderElection => "leader-election",
            Tool::Kwok => "kwok",
            Tool::Helm => "helm",
            Tool::KubeControllerManager => "kube-controller-manager",
            Tool::KubeScheduler => "kube-scheduler",
            Tool::Kubelet => "kubelet",
            Tool::KubeProxy => "kube-proxy",
            Tool::Containerd => "containerd",
            Tool::ContainerdShim => "containerd-shim-runc-v2",
            Tool::Ctr => "ctr",
            Tool::Runc => "runc",
            Tool::CniPtp => "ptp",
            Tool::CniLoopback => "loopback",
            Tool::CniHostLocal => "host-local",
            Tool::Backend => "backend",
            Tool::Coupons => "coupons",
            Tool::Inventory => "inventory",
            Tool::Standby => "standby",
        }
    }

    /// Where it is; builds it if need be. Each process looks once.
    ///
    /// # Errors
    /// It is neither there nor can it be built.
    pub fn path(self) -> Result<PathBuf, ToolError> {
        static FOUND: Mutex<Option<HashMap<Tool, PathBuf>>> = Mutex::new(None);
        let mut found = FOUND.lock();
        let found = found.get_or_insert_default();
        if let Some(path) = found.get(&self) {
            return Ok(path.clone());
        }
        let path = self.find()?;
        found.insert(self, path.clone());
        Ok(path)
    }

    /// A command that runs it.
    ///
    /// # Errors
    /// As [`Tool::path`].
    pub fn command<S: AsRef<OsStr>>(
        self,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Command, ToolError> {
        let mut command = Command::new(self.path()?);
        command.args(args);
        Ok(command)
    }

    fn find(self) -> Result<PathBuf, ToolError> {
        let cached = build::Cached::of(self)?;
        if cached.exists() {
            return Ok(cached.binary());
        }
        let why = match self.fitting().map(|fitting| fitting.look()) {
            Some(Look::Fits(path)) => return Ok(path),
            Some(Look::DoesNotFit(why)) => why,
            None => "it is not looked for on PATH".to_owned(),
        };
        cached.build(&why)
    }

    fn module(self) -> &'static Module {
        match self {
            Tool::Consul => &CONSUL,
            Tool::Etcd => &ETCD,
            Tool::KubeApiserver | Tool::Kubectl => &KUBERNETES,
            Tool::ApiLock => &API_LOCK,
            Tool::LeaderElection => &LEADER_ELECTION,
            Tool::Kwok => &KWOK,
            Tool::Helm => &HELM,
            Tool::KubeControllerManager | Tool::KubeScheduler | Tool::Kubelet | Tool::KubeProxy => {
                &KUBERNETES_NODE
            }
            Tool::Containerd | Tool::ContainerdShim | Tool::Ctr => &CONTAINERD,
            Tool::Runc => &RUNC,
            Tool::CniPtp | Tool::CniLoopback | Tool::CniHostLocal => &CNI,
            Tool::Backend => &BACKEND,
            Tool::Coupons | Tool::Inventory | Tool::Standby => &EXAMPLES,
        }
    }

    /// What `go build` calls it: the last part of the package's path.
    fn file_name(self) -> &'static str {
        match self {
            Tool::Etcd => "server",
            other => other.name(),
        }
    }

    /// Servers must be of the pinned minor version, kubectl within one of its server's.
    fn fitting(self) -> Option<Fitting> {
        let (version_args, major, minor, skew): (&[&str], _, _, _) = match self {
            Tool::Consul => (&["version"], 1, 21, 0),
            Tool::Etcd => (&["--version"], 3, 6, 0),
            Tool::KubeApiserver
            | Tool::KubeControllerManager
            | Tool::KubeScheduler
            | Tool::Kubelet
            | Tool::KubeProxy => (&["--version"], 1, 36, 0),
            Tool::Kubectl => (&["version", "--client"], 1, 36, 1),
            Tool::Kwok => (&["--version"], 0, 8, 0),
            Tool::Helm => (&["version", "--template={{.Version}}"], 4, 3, 0),
            Tool::Containerd | Tool::Ctr => (&["--version"], 2, 4, 0),
            Tool::ContainerdShim => (&["-v"], 2, 4, 0),
            Tool::Runc => (&["--version"], 1, 5, 1),
            // Ours, or nothing that lies on PATH.
            Tool::ApiLock
            | Tool::LeaderElection
            | Tool::CniPtp
            | Tool::CniLoopback
            | Tool::CniHostLocal
            | Tool::Backend
            | Tool::Coupons
            | Tool::Inventory
            | Tool::Standby => return None,
        };
        Some(Fitting { program: self.name(), version_args, major, minor, skew })
    }
}

/// What was found on PATH.
enum Look {
    Fits(PathBuf),
    DoesNotFit(String),
}

impl Fitting {
    fn look(&self) -> Look {
        let Some(path) = on_path(self.program) else {
            return Look::DoesNotFit(format!("no {} on PATH", self.program));
        };
        let found = version_of(&path, self.version_args);
        match found {
            Some((major, minor))
                if major == self.major && minor.abs_diff(self.minor) <= self.skew =>
            {
                Look::Fits(path)
            }
            Some((major, minor)) => Look::DoesNotFit(format!(
                "{} is {major}.{minor}, needed is {}.{}",
                path.display(),
                self.major,
                self.minor
            )),
            None => Look::DoesNotFit(format!("{} does not tell its version", path.display())),
        }
    }
}

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Runs the program and takes the first `1.2` or `v1.2.3` of what it prints.
fn version_of(program: &Path, args: &[&str]) -> Option<(u32, u32)> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let ended = wait_for("a version", VERSION_PATIENCE, || child.try_wait().transpose());
    if !matches!(ended, Ok(Ok(_))) {
        let _ = child.kill();
        let _ = child.wait();
        return None;
    }
    let mut output = String::new();
    child.stdout.take()?.read_to_string(&mut output).ok()?;
    output.split_whitespace().find_map(major_and_minor)
}

fn major_and_minor(word: &str) -> Option<(u32, u32)> {
    let mut parts = word.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_tools_print() {
        let first = |text: &str| text.split_whitespace().find_map(major_and_minor);
        assert_eq!(first("Consul v1.21.0+ent\nBuild Date 1970-01-01"), Some((1, 21)));
        assert_eq!(first("etcd Version: 3.6.6\nGit SHA: x"), Some((3, 6)));
        assert_eq!(first("Client Version: v1.36.3\nKustomize Version: v5.8.1"), Some((1, 36)));
        assert_eq!(first("Kubernetes v1.36.3"), Some((1, 36)));
        assert_eq!(first("containerd github.com/containerd/containerd/v2 v2.4.2 "), Some((2, 4)));
        assert_eq!(first("containerd-shim-runc-v2:\n  Version:  v2.4.2"), Some((2, 4)));
        assert_eq!(first("kwok version v0.8.0 go1.26.8 (linux/amd64)"), Some((0, 8)));
        assert_eq!(first("runc version 1.5.2\nspec: 1.3.0"), Some((1, 5)));
        assert_eq!(first("no version here"), None);
    }

    #[test]
    fn what_is_not_on_path_does_not_fit_and_says_so() {
        let fitting =
            Fitting { program: "no-such-program", version_args: &[], major: 1, minor: 0, skew: 0 };
        let Look::DoesNotFit(why) = fitting.look() else { panic!("found") };
        assert_eq!(why, "no no-such-program on PATH");
    }
}
