//! The clusters, and a namespace on one for each test.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Deref,
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use testbed::{Cluster, run, tools::Tool, wait_for};

/// What every wait gets, at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The cluster of tests that keep to a namespace of their own. Nothing, and a line that says why,
/// where none can run.
pub(crate) fn cluster() -> Option<&'static Cluster> {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    started(&CLUSTER)
}

/// A second cluster for one test at a time, which may stop its servers and cut its link, and
/// leaves it as it was.
pub(crate) fn disturbed_cluster() -> Option<Turn> {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock();
    Some(Turn { cluster: started(&CLUSTER)?, _turn: turn })
}

/// One test's turn on the cluster that is disturbed.
pub(crate) struct Turn {
    cluster: &'static Cluster,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Turn {
    type Target = &'static Cluster;

    fn deref(&self) -> &&'static Cluster {
        &self.cluster
    }
}

fn started(cluster: &'static OnceLock<Cluster>) -> Option<&'static Cluster> {
    if Cluster::skips() {
        return None;
    }
    Some(cluster.get_or_init(|| Cluster::start().unwrap_or_else(|error| panic!("{error}"))))
}

/// A namespace of one's own.
pub(crate) struct Space {
    pub(crate) cluster: &'static Cluster,
    pub(crate) namespace: String,
}

impl Space {
    /// On the cluster that nobody disturbs.
    pub(crate) fn create(label: &str) -> Option<Space> {
        Some(Space::on(cluster()?, label))
    }

    /// Waits for the namespace's service account, without which there are no pods.
    pub(crate) fn on(cluster: &'static Cluster, label: &str) -> Space {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("{label}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let space = Space { cluster, namespace };
        space.kubectl(&["create", "namespace", &space.namespace]);
        space.kubectl(&["wait", "--for=create", "serviceaccount/default", "--timeout=60s"]);
        space
    }

    /// Runs kubectl in the namespace, which must succeed.
    #[track_caller]
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args).unwrap()
    }

    pub(crate) fn try_kubectl(&self, args: &[&str]) -> Result<String, testbed::BedError> {
        let mut command = self.cluster.kubectl(["--namespace", &self.namespace])?;
        run(command.args(args), PATIENCE + PATIENCE)
    }

    #[track_caller]
    pub(crate) fn apply(&self, object: &Value) {
        let folder = testbed::Folder::new("apply").unwrap();
        let file = folder.write("object.json", object.to_string()).unwrap();
        self.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    }

    #[track_caller]
    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"])).unwrap()
    }

    /// The objects of a kind, or those that the selectors pick.
    #[track_caller]
    pub(crate) fn list(&self, kind: &str, selectors: &[&str]) -> Vec<Value> {
        let list = self.kubectl(&[&["get", kind, "-o", "json"], selectors].concat());
        let mut list: Value = serde_json::from_str(&list).unwrap();
        serde_json::from_value(list["items"].take()).unwrap()
    }

    /// Waits until the pod is ready, and returns its address.
    #[track_caller]
    pub(crate) fn wait_for_pod(&self, name: &str) -> IpAddr {
        let pod = format!("pod/{name}");
        self.kubectl(&["wait", "--for=condition=Ready", &pod, "--timeout=60s"]);
        self.get("pod", name)["status"]["podIP"].as_str().unwrap().parse().unwrap()
    }

    /// The address of a Service, for clients on the host.
    #[track_caller]
    pub(crate) fn service(&self, name: &str) -> SocketAddr {
        let service = self.get("service", name);
        let address: IpAddr = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
        (address, service["spec"]["ports"][0]["port"].as_u64().unwrap() as u16).into()
    }
}

/// What the backend behind an address says; nothing if there is no answer.
pub(crate) fn ask(address: SocketAddr) -> Option<Value> {
    let reply = testbed::request(address, "GET", "/", &[], b"").ok()?;
    reply.ok().then(|| reply.json())
}

/// Which pod answers at an address; nothing if there is no answer.
pub(crate) fn who_answers(address: SocketAddr) -> Option<String> {
    ask(address)?["pod"].as_str().map(str::to_owned)
}

/// Waits until somebody answers who is as wanted.
#[track_caller]
pub(crate) fn wait_for_answer(address: SocketAddr, from: &str) {
    let what = format!("an answer of {from} from {address}");
    let look = || who_answers(address).filter(|pod| pod == from);
    wait_for(what, PATIENCE, look).unwrap();
}

/// The test bed's HTTP client, as a program for `Cluster::inside`. It gives up after two seconds.
pub(crate) fn get_from_inside(cluster: &Cluster, url: &str) -> Result<String, testbed::BedError> {
    let mut command: Command = cluster.inside(Tool::Backend.path()?);
    run(command.args(["get", url]), PATIENCE)
}

/// A pod that answers HTTP on 8080 with its own name and with the fencing token that the
/// annotation `token.consullock.dev/billing` hands it.
pub(crate) fn pod(name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": pod_spec(),
    })
}

pub(crate) fn pod_spec() -> Value {
    let token = "metadata.annotations['token.consullock.dev/billing']";
    json!({
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 2,
        "containers": [{
            "name": "app",
            "image": testbed::BACKEND_IMAGE,
            "imagePullPolicy": "Never",
            "ports": [{"containerPort": 8080}],
            "env": [
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "TOKEN_FILE", "value": "/consul-lock/token"},
            ],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
            "volumeMounts": [{"name": "consul-lock", "mountPath": "/consul-lock"}],
        }],
        "volumes": [{"name": "consul-lock", "downwardAPI": {"items": [
            {"path": "token", "fieldRef": {"fieldPath": token}},
        ]}}],
    })
}
