//! The controller's binary as it runs in a pod: in a cluster's network, on the way to Consul that
//! can be cut.

use std::{
    ffi::OsString,
    net::SocketAddr,
    sync::atomic::{AtomicU16, Ordering},
};

use testbed::{Consul, Folder, Recipe, Server, request};

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
        let (folder, name) =
            (Folder::new("controller").unwrap(), format!("replica-{}", admin.port()));
        let args = [
            "controller".to_owned(),
            format!("--consul-http-addr={}:{}", cluster.gateway(), consul.http().port()),
            format!("--admin-addr={admin}"),
            format!("--lease-namespace={}", space.namespace),
            format!("--watch-namespaces={}", space.namespace),
            format!("--cluster-name={}", space.namespace),
        ];
        let recipe = Recipe {
            name: format!("a controller of {}", space.namespace),
            program: env!("CARGO_BIN_EXE_consul-lock").into(),
            args: args.map(OsString::from).to_vec(),
            env: vec![
                ("KUBECONFIG".to_owned(), cluster.kubeconfig().to_str().unwrap().to_owned()),
                ("HOSTNAME".to_owned(), name.clone()),
            ],
            log: folder.path().join("controller.log"),
            allowed: PATIENCE,
            grace: PATIENCE,
        };
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
}

/// Makes ConsulLocks known to the cluster.
pub(crate) fn install_definition(space: &Space) {
    let definition = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/consullocks.yaml");
    space.kubectl(&["apply", "-f", definition]);
    space.kubectl(&["wait", "--for=condition=Established", "crd/consullocks.consullock.dev"]);
}
