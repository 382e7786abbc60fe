//! The control loops: what turns a Deployment into pods, gives these a node, and makes Services
//! work on it.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::containerd::path_with;
use super::network::Network;
use crate::control_plane::ControlPlane;
use crate::folder::Folder;
use crate::http::request;
use crate::process::{BedError, GRACE, Recipe, Server};
use crate::tools::Tool;

/// How long each may take on a busy machine.
const ALLOWED: Duration = Duration::from_secs(60);

/// How long an attempt to connect may take.
const CONNECT_ALLOWED: Duration = Duration::from_secs(5);

/// How long a kubelet may be silent until its node is not ready any more. Kubernetes' default is
/// 50 s; a busy machine may well hold one up for five.
const NODE_GRACE: &str = "12s";

const CONTROLLER_MANAGER_PORT: u16 = 10257;
const SCHEDULER_PORT: u16 = 10259;
const PROXY_HEALTH_PORT: u16 = 10256;
const PROXY_METRICS_PORT: u16 = 10249;

/// What all of a cluster's servers need to know.
pub(super) struct Place<'a> {
    pub(super) network: &'a Network,
    pub(super) folder: &'a Folder,
    pub(super) control_plane: &'a ControlPlane,
    pub(super) node_name: &'a str,
}

pub(super) fn flag(name: &str, value: impl Display) -> OsString {
    format!("--{name}={value}").into()
}

impl Place<'_> {
    fn at(&self, port: u16) -> SocketAddr {
        (self.network.bed(), port).into()
    }

    fn kubeconfig(&self, component: &str) -> Result<PathBuf, BedError> {
        self.control_plane.kubeconfig_for(&format!("system:{component}"), None)
    }

    /// One of them in the network namespace.
    fn launch(
        &self,
        tool: Tool,
        args: Vec<OsString>,
        probe: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Result<Server, BedError> {
        let recipe = Recipe {
            name: tool.name().to_owned(),
            program: tool.path()?,
            args,
            env: vec![("PATH".to_owned(), path_with(&[])?)],
            log: self.folder.path().join(format!("{}.log", tool.name())),
            allowed: ALLOWED,
            grace: GRACE,
        };
        let server = Server::prepare(recipe.entering(&self.network.enter()), probe);
        server.launch()?;
        Ok(server)
    }
}

/// All controllers that Kubernetes runs by default.
pub(super) fn launch_controller_manager(place: &Place<'_>) -> Result<Server, BedError> {
    let kubeconfig = place.kubeconfig("kube-controller-manager")?;
    let args = vec![
        flag("kubeconfig", kubeconfig.display()),
        flag("bind-address", place.network.bed()),
        flag("secure-port", CONTROLLER_MANAGER_PORT),
        flag("leader-elect", false),
        flag("use-service-account-credentials", true),
        flag("service-account-private-key-file", place.control_plane.account_key().display()),
        flag("root-ca-file", place.control_plane.authority().ca_file().display()),
        // Its default is a folder of the host, which it would create.
        flag("flex-volume-plugin-dir", place.folder.path().join("volume-plugins").display()),
        flag("node-monitor-grace-period", NODE_GRACE),
        flag("node-monitor-period", "1s"),
    ];
    let probe = listening(place.at(CONTROLLER_MANAGER_PORT));
    place.launch(Tool::KubeControllerManager, args, probe)
}

/// Gives pods their node.
pub(super) fn launch_scheduler(place: &Place<'_>) -> Result<Server, BedError> {
    let kubeconfig = place.kubeconfig("kube-scheduler")?;
    let args = vec![
        flag("kubeconfig", kubeconfig.display()),
        flag("bind-address", place.network.bed()),
        flag("secure-port", SCHEDULER_PORT),
        flag("leader-elect", false),
    ];
    place.launch(Tool::KubeScheduler, args, listening(place.at(SCHEDULER_PORT)))
}

/// Services, by rules of nftables. Starts faster when the node is registered already.
pub(super) fn launch_proxy(place: &Place<'_>) -> Result<Server, BedError> {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": place.kubeconfig("kube-proxy")?},
        "hostnameOverride": place.node_name,
        "bindAddress": place.network.node(),
        "healthzBindAddress": place.at(PROXY_HEALTH_PORT).to_string(),
        "metricsBindAddress": place.at(PROXY_METRICS_PORT).to_string(),
        "mode": "nftables",
        "clusterCIDR": place.network.pod_range(),
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
        "conntrack": {"maxPerCore": 0}, // limits of the whole machine
        "oomScoreAdj": 0,
    });
    let config = place.folder.write("kube-proxy.json", config.to_string())?;
    let health = place.at(PROXY_HEALTH_PORT);
    place.launch(Tool::KubeProxy, vec![flag("config", config.display())], move || {
        let reply =
            request(health, "GET", "/healthz", &[], b"").map_err(|error| error.to_string())?;
        if reply.ok() { Ok(()) } else { Err(reply.text()) }
    })
}

/// Ready means: it listens. That it works is seen by its work.
fn listening(address: SocketAddr) -> impl Fn() -> Result<(), String> + Send + Sync + 'static {
    move || {
        TcpStream::connect_timeout(&address, CONNECT_ALLOWED)
            .map(drop)
            .map_err(|error| error.to_string())
    }
}
