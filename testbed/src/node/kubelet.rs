//! The node's own agent.

use std::time::Duration;

use serde_json::json;

use super::containerd::{Containerd, path_with};
use super::enclosure::Enclosure;
use super::loops::{self, Place};
use crate::http::request;
use crate::process::{BedError, GRACE, Recipe, Server};
use crate::tools::Tool;

/// How long it may take on a busy machine until it looks after pods.
const ALLOWED: Duration = Duration::from_secs(60);

const PORT: u16 = 10250;
const HEALTH_PORT: u16 = 10248;

/// Starts the process; [`Server::wait_ready`] waits for it.
pub(super) fn launch(
    place: &Place<'_>,
    enclosure: &Enclosure,
    containerd: &Containerd,
) -> Result<Server, BedError> {
    let home = place.folder.path().join("kubelet");
    std::fs::create_dir_all(&home)?;
    let name = place.node_name;
    let kubeconfig =
        place.control_plane.kubeconfig_for(&format!("system:node:{name}"), Some("system:nodes"))?;
    let config = place.folder.write("kubelet.json", config(place, containerd)?.to_string())?;
    let recipe = Recipe {
        name: "kubelet".to_owned(),
        program: Tool::Kubelet.path()?,
        args: vec![
            loops::flag("config", config.display()),
            loops::flag("kubeconfig", kubeconfig.display()),
            loops::flag("hostname-override", name),
            loops::flag("node-ip", place.network.node()),
            loops::flag("root-dir", home.display()),
            loops::flag("cert-dir", home.join("pki").display()),
        ],
        env: vec![("PATH".to_owned(), path_with(&[])?)],
        log: place.folder.path().join("kubelet.log"),
        allowed: ALLOWED,
        grace: GRACE,
    };
    let health = (place.network.bed(), HEALTH_PORT).into();
    let server = Server::prepare(recipe.entering(&enclosure.enter()), move || {
        let reply =
            request(health, "GET", "/healthz", &[], b"").map_err(|error| error.to_string())?;
        if reply.ok() { Ok(()) } else { Err(reply.text()) }
    });
    server.launch()?;
    Ok(server)
}

fn config(place: &Place<'_>, containerd: &Containerd) -> Result<serde_json::Value, BedError> {
    let folder = place.folder.path();
    Ok(json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": place.network.node(),
        "port": PORT,
        "healthzBindAddress": place.network.bed(),
        "healthzPort": HEALTH_PORT,
        // The API server is the only one with a certificate who asks.
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": false},
            "x509": {"clientCAFile": place.control_plane.authority().ca_file()},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": format!("unix://{}", containerd.socket().display()),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", place.network.name()),
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "podLogsDir": folder.join("pods"),
        "volumePluginDir": folder.join("volume-plugins"),
        "resolvConf": place.folder.write("resolv.conf", "")?,
        "makeIPTablesUtilChains": false,
        // A test machine may be as full as it likes.
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        // With the grace period of the controller manager, a dead node is noticed soon.
        "nodeLeaseDurationSeconds": 8,
    }))
}
