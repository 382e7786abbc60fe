//! Where the servers come from.
//!
//! Each is pinned by a Go module of ours under `tools/`. A tool is looked for in this order:
//! built before from exactly these pins (`tools/.cache/`), on PATH in a fitting version, and
//! otherwise it is built now, which takes minutes and says so.

mod build;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::wait::{TimedOut, wait_for};

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
    #[error("cannot build {tool} in {module}:\n{output}")]
    Build {
        /// What was to be built.
        tool: &'static str,
        /// Its module.
        module: PathBuf,
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
}

/// A Go module of ours that builds one tool or several.
struct Module {
    name: &'static str,
    /// Relative to the root of the repository.
    folder: &'static str,
    /// What `go build` builds.
    package: &'static str,
    ldflags: &'static str,
    /// How long a first build takes on two cores, for people who wait.
    takes: &'static str,
}

const CONSUL: Module = Module {
    name: "consul",
    folder: "tools/consul",
    package: "tool",
    ldflags: "-s -w -X github.com/hashicorp/consul/version.GitDescribe=v1.21.0",
    takes: "4 to 8 minutes",
};
const ETCD: Module = Module {
    name: "etcd",
    folder: "tools/etcd",
    package: "tool",
    ldflags: "-s -w",
    takes: "a minute",
};
const KUBERNETES: Module = Module {
    name: "kubernetes",
    folder: "tools/kubernetes",
    package: "tool",
    ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3",
    takes: "4 to 6 minutes",
};
const API_LOCK: Module = Module {
    name: "api-lock",
    folder: "benches/peers/api-lock",
    package: ".",
    ldflags: "-s -w",
    takes: "a few seconds",
};

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
    /// All of them.
    pub const ALL: [Tool; 5] = [
        Tool::Consul,
        Tool::Etcd,
        Tool::KubeApiserver,
        Tool::Kubectl,
        Tool::ApiLock,
    ];

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Tool::Consul => "consul",
            Tool::Etcd => "etcd",
            Tool::KubeApiserver => "kube-apiserver",
            Tool::Kubectl => "kubectl",
            Tool::ApiLock => "api-lock",
        }
    }

    /// Where it is; builds it if need be. Each process looks once.
    ///
    /// # Errors
    /// It is neither there nor can it be built.
    pub fn path(self) -> Result<PathBuf, ToolError> {
        static FOUND: Mutex<Option<HashMap<Tool, PathBuf>>> = Mutex::new(None);
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
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
            None => "it is part of this repository".to_owned(),
        };
        cached.build(&why)
    }

    fn module(self) -> &'static Module {
        match self {
            Tool::Consul => &CONSUL,
            Tool::Etcd => &ETCD,
            Tool::KubeApiserver | Tool::Kubectl => &KUBERNETES,
            Tool::ApiLock => &API_LOCK,
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
            Tool::KubeApiserver => (&["--version"], 1, 36, 0),
            Tool::Kubectl => (&["version", "--client"], 1, 36, 1),
            Tool::ApiLock => return None,
        };
        Some(Fitting {
            program: self.name(),
            version_args,
            major,
            minor,
            skew,
        })
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

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
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
    let ended = wait_for("a version", VERSION_PATIENCE, || {
        child.try_wait().transpose()
    });
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
        assert_eq!(
            first("Consul v1.21.0+ent\nBuild Date 1970-01-01"),
            Some((1, 21))
        );
        assert_eq!(first("etcd Version: 3.6.6\nGit SHA: x"), Some((3, 6)));
        assert_eq!(
            first("Client Version: v1.36.3\nKustomize Version: v5.8.1"),
            Some((1, 36))
        );
        assert_eq!(first("no version here"), None);
    }

    #[test]
    fn what_is_not_on_path_does_not_fit_and_says_so() {
        let fitting = Fitting {
            program: "no-such-program",
            version_args: &[],
            major: 1,
            minor: 0,
            skew: 0,
        };
        let Look::DoesNotFit(why) = fitting.look() else {
            panic!("found")
        };
        assert_eq!(why, "no no-such-program on PATH");
    }
}
