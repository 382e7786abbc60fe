//! The controller's binary as it runs in a pod: in a cluster's network, on the way to Consul that
//! can be cut.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU16, Ordering},
};

use parking_lot::Mutex;
use serde_json::json;
use testbed::{
    Consul, Folder, Recipe, Server, request,
    rights::{RELEASE, of_chart},
    wait_for,
};

use crate::bed::{PATIENCE, Space};

/// One replica, which looks after one namespace.
pub(crate) struct Replica {
    /// The first part of its name in the Lease.
    pub(crate) name: String,
    server: Server,
    _folder: Folder,
}

impl Replica {
    /// Starts one and waits until it is ready.
    pub(crate) fn start(space: &Space, consul: &Consul) -> Replica {
        static NEXT: AtomicU16 = AtomicU16::new(8081);
        let cluster = space.cluster;
        let admin = SocketAddr::from((cluster.address(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let folder = Folder::new("controller").unwrap();
        let flags = [
            format!("--consul-http-addr={}:{}", cluster.gateway(), consul.http().port()),
            format!("--lease-namespace={}", space.namespace),
            format!("--watch-namespaces={}", space.namespace),
            format!("--cluster-name={}", space.namespace),
        ];
        let program = env!("CARGO_BIN_EXE_consul-lock");
        let kubeconfig = granted(space);
        let recipe = testbed::replica(program, &kubeconfig, admin, &folder, flags);
        let recipe = Recipe { allowed: PATIENCE, ..recipe };
        let name = recipe.name.clone();
        let ready = move || match request(admin, "GET", "/readyz", &[], b"") {
            Ok(reply) if reply.ok() => Ok(()),
            other => Err(format!("{other:?}")),
        };
        let server = Server::start(cluster.recipe_inside(recipe), ready).unwrap();
        Replica { name, server, _folder: folder }
    }

    /// SIGKILL.
    pub(crate) fn kill(&self) {
        self.server.kill().unwrap();
    }

    /// SIGSTOP.
    pub(crate) fn pause(&self) {
        self.server.pause().unwrap();
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.server.resume().unwrap();
    }

    /// The end of its log; for people.
    pub(crate) fn log(&self) -> String {
        testbed::tail(self.server.log())
    }
}

/// Grants a release of the chart in this namespace what it is granted, and makes a kubeconfig file of
/// its service account.
fn granted(space: &Space) -> PathBuf {
    let objects = of_chart(&space.namespace, &space.namespace).unwrap();
    space.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}));
    let account = format!("system:serviceaccount:{}:{RELEASE}", space.namespace);
    for right in [
        ["list", "consullocks.consullock.dev"],
        ["create", "leases.coordination.k8s.io"],
        ["watch", "nodes"],
    ] {
        let ask = [&["auth", "can-i"], &right[..], &["--as", &account]].concat();
        wait_for(format!("{account} to have its rights"), PATIENCE, || {
            space.try_kubectl(&ask).ok()
        })
        .unwrap();
    }
    space.cluster.control_plane().kubeconfig_of_release(&space.namespace, None).unwrap()
}

/// Makes ConsulLocks known to the cluster. One at a time: of two that apply what is not there yet, one
/// fails.
pub(crate) fn install_definition(space: &Space) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    let definition = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/consullocks.yaml");
    space.kubectl(&["apply", "-f", definition]);
    space.kubectl(&["wait", "--for=condition=Established", "crd/consullocks.consullock.dev"]);
}
