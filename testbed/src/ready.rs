//! How long the image takes until it is ready: the chart on a real node, whose one controller is started
//! anew for each figure.
//!
//! What is told is counted from the moment when containerd has made the container. It starts it a little
//! later, so no figure is too small.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use testbed::{BedError, Cluster, Consul, ConsulConfig, Helm, request, run, wait_closely, wall};

/// How many starts.
const STARTS: usize = 10;

/// How often it is looked at what is timed.
const CLOSELY: Duration = Duration::from_millis(2);

/// How long anything may take on a busy machine.
const ALLOWED: Duration = Duration::from_secs(120);

const NAMESPACE: &str = "consul-lock";
const DEPLOYMENT: &str = "deployment/consul-lock";
const CONTROLLERS: &str = "--selector=app.kubernetes.io/component=controller";

/// One start: from when the container was made until …
struct Start {
    /// … it logged its first line.
    logged: Duration,
    /// … `/readyz` said so.
    ready: Duration,
    /// … the pod was `Ready`: the kubelet asks when the probe's period comes round.
    seen: Duration,
}

struct Scene {
    cluster: Cluster,
    _consul: Consul,
}

/// Prints the figures of an archive that `make image` made.
pub(crate) fn measure(archive: &Path) -> Result<(), BedError> {
    let scene = Scene::set(archive)?;
    println!("Seconds from when the container was made until");
    println!("{:>16}{:>16}{:>16}", "the first line", "/readyz is 200", "the pod's Ready");
    let mut slowest = Duration::ZERO;
    for _ in 0..STARTS {
        let Start { logged, ready, seen } = scene.start()?;
        let columns = [logged, ready, seen].map(|time| format!("{:>16.3}", time.as_secs_f64()));
        println!("{}", columns.concat());
        slowest = slowest.max(ready);
    }
    println!("/readyz is 200 after {:.3} s at most", slowest.as_secs_f64());
    Ok(())
}

impl Scene {
    /// Installs the chart, so that it has run once.
    fn set(archive: &Path) -> Result<Scene, BedError> {
        let cluster = Cluster::start()?;
        cluster.import_archive(archive)?;
        let gateway = cluster.gateway();
        let consul =
            Consul::start(ConsulConfig { also_on: vec![gateway], ..ConsulConfig::default() })?;
        let values = json!({
            "image": {"pullPolicy": "Never"},
            "replicas": 1,
            "consul": {"address": format!("{gateway}:{}", consul.http().port())},
        });
        let install = ["install", "consul-lock", "--namespace", NAMESPACE, "--create-namespace"];
        let install = [&install[..], &["--wait", "--timeout=120s"]].concat();
        let helm = Helm::new(cluster.kubeconfig())?;
        helm.with_chart(&install, &values)?;
        Ok(Scene { cluster, _consul: consul })
    }

    fn kubectl(&self, args: &[&str]) -> Result<String, BedError> {
        run(self.cluster.kubectl(["--namespace", NAMESPACE])?.args(args), ALLOWED + ALLOWED)
    }

    /// Starts it with nothing else going on.
    fn start(&self) -> Result<Start, BedError> {
        self.kubectl(&["scale", DEPLOYMENT, "--replicas=0"])?;
        self.kubectl(&["wait", "--for=delete", "pod", CONTROLLERS, "--timeout=120s"])?;
        let before = self.cluster.pod_addresses()?;
        self.kubectl(&["scale", DEPLOYMENT, "--replicas=1"])?;
        let address = wait_closely(CLOSELY, "the pod's address", ALLOWED, || {
            self.cluster.pod_addresses().ok()?.difference(&before).next().copied()
        })?;
        let ready = wait_closely(CLOSELY, "/readyz", ALLOWED, || ready(address).then(wall))?;
        self.kubectl(&["wait", "--for=condition=Ready", "pod", CONTROLLERS, "--timeout=120s"])?;
        let seen = wall();
        let pod = self.kubectl(&["get", "pods", CONTROLLERS, "-o", "name"])?;
        let name = pod.trim().trim_start_matches("pod/");
        let logged = first_line(&self.kubectl(&["logs", name])?)?;
        let made = self.cluster.made(NAMESPACE, name, "controller")?;
        let since = |then: Timestamp| {
            let odd = |_| BedError::Impossible(format!("made at {made}, {then} is before it"));
            Duration::try_from(then.duration_since(made)).map_err(odd)
        };
        Ok(Start { logged: since(logged)?, ready: since(ready)?, seen: since(seen)? })
    }
}

/// Whether a controller says that it is. Packets to an address that is just being set up are lost, so
/// that connecting has little time.
fn ready(address: Ipv4Addr) -> bool {
    let admin: SocketAddr = (address, 8080).into();
    TcpStream::connect_timeout(&admin, 10 * CLOSELY).is_ok()
        && request(admin, "GET", "/readyz", &[], b"").is_ok_and(|reply| reply.ok())
}

fn first_line(log: &str) -> Result<Timestamp, BedError> {
    let line: Value =
        serde_json::from_str(log.lines().next().unwrap_or_default()).unwrap_or_default();
    let time = line["timestamp"].as_str().and_then(|time| time.parse().ok());
    time.ok_or_else(|| BedError::Impossible(format!("an odd log: {log}")))
}
