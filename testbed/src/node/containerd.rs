//! What runs the kubelet's containers: containerd, with runc and a CNI network.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::enclosure::Enclosure;
use super::host;
use super::network::Network;
use crate::folder::Folder;
use crate::image::SANDBOX_IMAGE;
use crate::process::{BedError, GRACE, Recipe, Server};
use crate::run::run;
use crate::tools::Tool;

/// How long it may take on a busy machine.
const ALLOWED: Duration = Duration::from_secs(60);

/// A running containerd.
#[derive(Debug)]
pub(super) struct Containerd {
    pub(super) server: Server,
    home: PathBuf,
    socket: PathBuf,
}

/// What the network of its pods is called.
const NETWORK: &str = "pods";

impl Containerd {
    pub(super) fn start(
        network: &Network,
        enclosure: &Enclosure,
        folder: &Folder,
    ) -> Result<Containerd, BedError> {
        let home = folder.path().join("containerd");
        fs::create_dir_all(home.join("cni"))?;
        let socket = home.join("containerd.sock");
        let config = home.join("config.toml");
        fs::write(
            home.join("cni/ptp.conflist"),
            cni_config(network, &addresses(&home)).to_string(),
        )?;
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
        let server = Server::start(recipe.entering(&enclosure.enter()), move || {
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
        Ok(Containerd { server, home, socket })
    }

    /// The addresses that pods have.
    pub(super) fn addresses(&self) -> Result<BTreeSet<Ipv4Addr>, BedError> {
        let folder = addresses(&self.home).join(NETWORK);
        if !folder.exists() {
            return Ok(BTreeSet::new()); // no pod was made yet
        }
        let mut taken = BTreeSet::new();
        for entry in fs::read_dir(folder)? {
            taken.extend(entry?.file_name().to_string_lossy().parse::<Ipv4Addr>().ok());
        }
        Ok(taken)
    }

    /// When a container was made.
    pub(super) fn made(&self, container: &str) -> Result<Timestamp, BedError> {
        let told = run(&mut self.ctr(["containers", "info", container])?, ALLOWED)?;
        let told: Value = serde_json::from_str(&told).unwrap_or_default();
        let made = told["CreatedAt"].as_str().and_then(|time| time.parse().ok());
        made.ok_or_else(|| BedError::Impossible(format!("when {container} was made: {told}")))
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

/// Where the plugin that gives addresses keeps a file for each.
fn addresses(home: &Path) -> PathBuf {
    home.join("addresses")
}

/// Each pod has a link of its own to the node, which routes.
fn cni_config(network: &Network, addresses: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": NETWORK,
        "plugins": [{
            "type": "ptp",
            "ipMasq": false, // the network does that, for what leaves the cluster alone
            "ipam": {
                "type": "host-local",
                "dataDir": addresses,
                "ranges": [[{"subnet": network.pod_range()}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}
