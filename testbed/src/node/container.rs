//! What the node's own processes run in: PID and mount namespaces of their own, and containerd.
//!
//! With the first process of the PID namespace everything in it ends, pods included, and with the
//! last process of the mount namespace all mounts are gone. So nothing can be left that would
//! have to be found and ended one by one.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::host;
use super::image::SANDBOX_IMAGE;
use super::network::Network;
use crate::folder::Folder;
use crate::process::{BedError, GRACE, Recipe, Server};
use crate::run::run;
use crate::tools::Tool;

/// How long the namespaces and containerd may take on a busy machine.
const ALLOWED: Duration = Duration::from_secs(60);

/// Makes the mounts its own, hides the folders of the host that containerd and the kubelet write
/// to whatever they are told, and becomes a first process that collects orphans.
const FIRST_PROCESS: &str = r#"
set -e
mount --make-rshared /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /var/lib/cni
mount -t tmpfs tmpfs /var/lib/cni
echo ready
exec "$1" pause
"#;

/// The namespaces of one node, as long as their first process runs.
#[derive(Debug)]
pub(super) struct Container {
    first: Server,
}

impl Container {
    pub(super) fn start(network: &Network, folder: &Folder) -> Result<Container, BedError> {
        let log = folder.path().join("node.log");
        let mut args: Vec<OsString> =
            ["--mount", "--propagation=private", "--pid", "--mount-proc"].map(Into::into).to_vec();
        args.extend(["--fork", "--kill-child", "sh", "-c", FIRST_PROCESS, "sh"].map(Into::into));
        args.push(Tool::Backend.path()?.into());
        let recipe = Recipe {
            name: "the node's first process".to_owned(),
            program: "unshare".into(),
            args,
            env: Vec::new(),
            log: log.clone(),
            allowed: ALLOWED,
            grace: GRACE,
        };
        let first = Server::start(recipe.entering(&network.enter()), move || {
            match fs::read_to_string(&log).is_ok_and(|text| text.contains("ready")) {
                true => Ok(()),
                false => Err("its mounts are not there".to_owned()),
            }
        })?;
        Ok(Container { first })
    }

    /// The words before a command that runs it in here.
    ///
    /// `nsenter` stays as its parent. So that whoever asks both to end waits until it has ended,
    /// `nsenter` does not listen.
    pub(super) fn enter(&self) -> Vec<OsString> {
        let process = format!("/proc/{}/ns", self.first.pid().unwrap_or_default());
        vec![
            "env".into(),
            "--ignore-signal=TERM".into(),
            "nsenter".into(),
            format!("--net={process}/net").into(),
            format!("--mount={process}/mnt").into(),
            // Its own is still the host's: it is the parent of the first process.
            format!("--pid={process}/pid_for_children").into(),
            "env".into(),
            "--default-signal=TERM".into(),
        ]
    }
}

/// containerd, with runc and a CNI network.
#[derive(Debug)]
pub(super) struct Containerd {
    pub(super) server: Server,
    socket: PathBuf,
}

impl Containerd {
    pub(super) fn start(
        network: &Network,
        container: &Container,
        folder: &Folder,
    ) -> Result<Containerd, BedError> {
        let home = folder.path().join("containerd");
        fs::create_dir_all(home.join("cni"))?;
        let socket = home.join("containerd.sock");
        let config = home.join("config.toml");
        fs::write(home.join("cni/ptp.conflist"), cni_config(network, &home).to_string())?;
        fs::write(&config, containerd_config(&home, &socket)?)?;
        let recipe = Recipe {
            name: "containerd".to_owned(),
            program: Tool::Containerd.path()?,
            args: vec!["--config".into(), config.into()],
            // It finds its shim there.
            env: vec![("PATH".to_owned(), path_with(&[Tool::ContainerdShim, Tool::Runc])?)],
            log: folder.path().join("containerd.log"),
            allowed: ALLOWED,
            grace: GRACE,
        };
        let probe = socket.clone();
        let server = Server::start(recipe.entering(&container.enter()), move || {
            // By its socket, which needs no namespace.
            let mut command =
                ctr(&probe, ["plugins", "list"]).map_err(|error| error.to_string())?;
            let plugins = run(&mut command, ALLOWED).map_err(|error| error.to_string())?;
            let cri =
                plugins.lines().find(|line| line.contains("grpc.v1 ") && line.contains(" cri "));
            match cri {
                Some(line) if line.trim_end().ends_with("ok") => Ok(()),
                other => Err(format!("its CRI plugin: {other:?}")),
            }
        })?;
        Ok(Containerd { server, socket })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// containerd's own command line, about Kubernetes' containers.
    pub(super) fn ctr<'a>(
        &self,
        args: impl IntoIterator<Item = &'a str>,
    ) -> Result<Command, BedError> {
        ctr(&self.socket, args)
    }
}

fn ctr<'a>(socket: &Path, args: impl IntoIterator<Item = &'a str>) -> Result<Command, BedError> {
    let mut command = Tool::Ctr.command(["--namespace", "k8s.io", "--address"])?;
    command.arg(socket).args(args);
    Ok(command)
}

/// This process's PATH, with the folders of some tools before it.
pub(super) fn path_with(tools: &[Tool]) -> Result<String, BedError> {
    let mut folders = Vec::new();
    for tool in tools {
        folders.push(tool.path()?.with_file_name("").display().to_string());
    }
    folders.push(std::env::var("PATH").unwrap_or_default());
    folders.push("/usr/sbin:/sbin".to_owned());
    Ok(folders.join(":"))
}

/// TOML, in which what JSON writes as a string or a boolean is the same.
fn containerd_config(home: &Path, socket: &Path) -> Result<String, BedError> {
    let path = |name: &str| json!(home.join(name));
    let plugins = Tool::CniPtp.path()?.with_file_name("");
    Ok(format!(
        r#"version = 3
root = {root}
state = {state}
[grpc]
address = {socket}
[plugins."io.containerd.cri.v1.images"]
snapshotter = "native" # overlays do not work everywhere, and our images are small
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{SANDBOX_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = {restrict}
netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = {runc}
SystemdCgroup = false
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [{plugins}]
conf_dir = {cni}
"#,
        root = path("root"),
        state = path("state"),
        socket = json!(socket),
        restrict = !host::may_lower_oom_score(),
        runc = json!(Tool::Runc.path()?),
        plugins = json!(plugins),
        cni = path("cni"),
    ))
}

/// Each pod has a link of its own to the node, which routes.
fn cni_config(network: &Network, home: &Path) -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false, // the network does that, for what leaves the cluster alone
            "ipam": {
                "type": "host-local",
                "dataDir": home.join("addresses"),
                "ranges": [[{"subnet": network.pod_range()}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}
