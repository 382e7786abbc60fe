//! A whole Kubernetes cluster of one node that runs real pods, on one machine and without any
//! download: control plane, controllers, scheduler, containerd, kubelet, kube-proxy.
//!
//! It lives in a network namespace, so several stand side by side, each with its own link to the
//! world that can be cut. Needs Linux and root.
//!
//! # Guarantees
//! Two clusters share no address, cgroup, folder or mount, also those of different processes.
//! Nothing of one outlives the process that started it. What does all the same, as the reaper was
//! killed too, is removed by the next start, but for files in the temporary folder.
//!
//! # Not guaranteed
//! Isolation: pods share the machine's kernel and resources, and a kubelet obeys whoever has a
//! certificate of the cluster's authority. Version 2 of cgroups: it was tried on version 1 alone.

mod cgroups;
mod containerd;
mod enclosure;
mod host;
mod island;
mod kubelet;
mod leftovers;
mod loops;
mod network;
mod policy;
mod slot;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use containerd::Containerd;
use enclosure::Enclosure;
pub use island::Island;
use jiff::Timestamp;
use loops::Place;
use network::Network;

use crate::control_plane::{ControlPlane, Setting};
use crate::folder::{Folder, tail};
use crate::image::{Image, Layer};
use crate::process::{BedError, Recipe, Server};
use crate::run::run;
use crate::tools::Tool;
use crate::wait::{say, wait_for};

/// `required` makes [`Cluster::why_not`] a failure rather than a reason to skip; `skip` is such a
/// reason by itself.
const WISH: &str = "TESTBED_NODE";

/// How long the first pod may have to wait on a busy machine.
const ALLOWED: Duration = Duration::from_secs(120);

/// How long importing an image of some megabytes may take, or one question to the API server.
const STEP_ALLOWED: Duration = Duration::from_secs(60);

/// A pod that is cut off. Dropping this ends it: another pod may get the address.
#[derive(Debug)]
pub struct PodCut<'a> {
    network: &'a Network,
    pod: Ipv4Addr,
}

impl Drop for PodCut<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.network.heal_pod(self.pod) {
            say(format!("{} may still be cut off: {error}", self.pod));
        }
    }
}

/// A NetworkPolicy in force. Dropping this ends it.
#[derive(Debug)]
pub struct Enforced<'a>(&'a Network);

impl Drop for Enforced<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.nft(&format!("delete table ip {}", policy::TABLE)) {
            say(format!("a NetworkPolicy may still be in force: {error}"));
        }
    }
}

/// A running cluster. Dropping it ends it.
pub struct Cluster {
    // In the order in which they end.
    proxy: Server,
    kubelet: Server,
    containerd: Containerd,
    _enclosure: Enclosure,
    scheduler: Server,
    controller_manager: Server,
    control_plane: ControlPlane,
    network: Network,
    folder: Folder,
    node_name: String,
}

impl Cluster {
    /// Why none can run here; nothing if one can. It needs Linux and root. With the variable
    /// `TESTBED_NODE` set to `skip`, that is why.
    ///
    /// # Panics
    /// None can run here, and `TESTBED_NODE` says `required`: skipping is not wanted.
    #[must_use]
    pub fn why_not() -> Option<String> {
        let wish = std::env::var(WISH).unwrap_or_default();
        if wish == "skip" {
            return Some(format!("{WISH}={wish}"));
        }
        let why = host::why_not()?;
        assert!(wish != "required", "{WISH}=required, but no node can run here: {why}");
        Some(why)
    }

    /// Whether none can run here, so that a test has to be skipped; says so, and why.
    ///
    /// # Panics
    /// As [`Cluster::why_not`].
    #[must_use]
    pub fn skips() -> bool {
        let why = Cluster::why_not();
        if let Some(why) = &why {
            let test = std::thread::current();
            say(format!("SKIPPED: {}: {why}", test.name().unwrap_or("a test")));
        }
        why.is_some()
    }

    /// Starts one, and waits until its node is ready for pods.
    ///
    /// # Errors
    /// It did not come up; with the end of the log of what failed.
    pub fn start() -> Result<Cluster, BedError> {
        if let Some(why) = host::why_not() {
            return Err(BedError::Impossible(format!("no node can run here: {why}")));
        }
        host::check_programs()?;
        for tool in Tool::NODE.iter().chain(&[Tool::Etcd, Tool::KubeApiserver, Tool::Kubectl]) {
            tool.path()?; // rather than while servers wait
        }
        let network = Network::create()?;
        let folder = Folder::new("cluster")?;
        cgroups::create(&network.name())?;
        let node_name = format!("node-{}", network.number());
        let (control_plane, enclosure, containerd) = start_ground(&network, &folder)?;
        let place = Place {
            network: &network,
            folder: &folder,
            control_plane: &control_plane,
            node_name: &node_name,
        };
        let controller_manager = loops::launch_controller_manager(&place)?;
        let scheduler = loops::launch_scheduler(&place)?;
        let kubelet = kubelet::launch(&place, &enclosure, &containerd)?;
        kubelet.wait_ready()?;
        wait_until_registered(&control_plane, &node_name)
            .map_err(|error| not_ready(&kubelet, &error))?;
        let proxy = loops::launch_proxy(&place)?;
        let cluster = Cluster {
            proxy,
            kubelet,
            containerd,
            _enclosure: enclosure,
            scheduler,
            controller_manager,
            control_plane,
            network,
            folder,
            node_name,
        };
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// Waits until everything runs, the node is ready, and pods can be made.
    fn wait_ready(&self) -> Result<(), BedError> {
        for server in [&self.controller_manager, &self.scheduler, &self.proxy] {
            server.wait_ready()?;
        }
        let allowed = format!("--timeout={}s", ALLOWED.as_secs());
        let wait = |condition: &str, what: &str| {
            let mut wait = self.kubectl(["wait", &allowed, condition, what])?;
            run(&mut wait, ALLOWED + STEP_ALLOWED)
        };
        wait("--for=condition=Ready", &format!("node/{}", self.node_name))
            .map_err(|error| not_ready(&self.kubelet, &error))?;
        // Pods cannot be made before it.
        wait("--for=create", "serviceaccount/default")
            .map_err(|error| not_ready(&self.controller_manager, &error))?;
        Ok(())
    }

    /// The API server, etcd, and kubeconfig files for others than the administrator.
    #[must_use]
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The kubeconfig file of an administrator. It is good on the host and inside, and whether the
    /// cluster is cut or not.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        self.control_plane.kubeconfig()
    }

    /// `kubectl` as the administrator, on the host.
    ///
    /// # Errors
    /// There is no `kubectl` and it cannot be built.
    pub fn kubectl<'a>(
        &self,
        args: impl IntoIterator<Item = &'a str>,
    ) -> Result<Command, BedError> {
        self.control_plane.kubectl(args)
    }

    /// The kubelet's process, to pause, kill and restart. Its pods go on without it.
    #[must_use]
    pub fn kubelet(&self) -> &Server {
        &self.kubelet
    }

    /// The API server's process.
    #[must_use]
    pub fn apiserver(&self) -> &Server {
        self.control_plane.apiserver()
    }

    /// The process that makes Services work. Its rules stay in force without it.
    #[must_use]
    pub fn proxy(&self) -> &Server {
        &self.proxy
    }

    /// The process behind Deployments, Jobs and EndpointSlices.
    #[must_use]
    pub fn controller_manager(&self) -> &Server {
        &self.controller_manager
    }

    /// The process that gives pods their node.
    #[must_use]
    pub fn scheduler(&self) -> &Server {
        &self.scheduler
    }

    /// containerd's process.
    #[must_use]
    pub fn containerd(&self) -> &Server {
        &self.containerd.server
    }

    /// What its node is called.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// The host's address for everything inside, over the link that [`Cluster::cut`] cuts. Have a
    /// Consul serve on it: [`crate::ConsulConfig::also_on`].
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.network.gateway()
    }

    /// The node's address for the host, whether the cluster is cut or not. Pods and Services are
    /// reached by their own addresses.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.network.bed()
    }

    /// Cuts the cluster off from the world, and so from Consul and from other clusters: packets
    /// vanish without a word. The API server, pods and Services can still be reached from the
    /// host.
    ///
    /// # Errors
    /// The rules could not be set, or are set already.
    pub fn cut(&self) -> Result<(), BedError> {
        self.network.cut()
    }

    /// Ends [`Cluster::cut`].
    ///
    /// # Errors
    /// It was not cut.
    pub fn heal(&self) -> Result<(), BedError> {
        self.network.heal()
    }

    /// Cuts one pod off from everybody, by its address: packets vanish without a word, and its
    /// sockets stay as they are.
    ///
    /// # Errors
    /// The rules could not be set, or are set already.
    pub fn cut_pod(&self, pod: Ipv4Addr) -> Result<PodCut<'_>, BedError> {
        self.network.cut_pod(pod)?;
        Ok(PodCut { network: &self.network, pod })
    }

    /// Puts a NetworkPolicy into force for all pods, whichever it selects.
    ///
    /// # Errors
    /// It is not understood to its last field, or one is in force already.
    pub fn enforce(&self, policy: &serde_json::Value) -> Result<Enforced<'_>, BedError> {
        let rules = policy::rules(policy, &self.network.pod_range())
            .map_err(|why| BedError::Impossible(format!("a NetworkPolicy: {why}")))?;
        self.network.nft(&format!("create table ip {}", policy::TABLE))?;
        let enforced = Enforced(&self.network);
        self.network.nft(&rules)?;
        Ok(enforced)
    }

    /// A command on the host's files and inside the cluster's network, such as a client of its
    /// Services, or a controller.
    #[must_use]
    pub fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        let words = self.network.enter();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program);
        command
    }

    /// The recipe of a server that is to run there.
    #[must_use]
    pub fn recipe_inside(&self, recipe: Recipe) -> Recipe {
        recipe.entering(&self.network.enter())
    }

    /// Makes an image known to the node. Its name must have a tag.
    ///
    /// # Errors
    /// It could not be written or imported.
    pub fn import(&self, image: &Image) -> Result<(), BedError> {
        import(&self.containerd, image, &self.folder)
    }

    /// The same of an archive, such as `make image` makes.
    ///
    /// # Errors
    /// It could not be imported.
    pub fn import_archive(&self, archive: &Path) -> Result<(), BedError> {
        import_archive(&self.containerd, archive)
    }

    /// Ends the first process of a container without warning (SIGKILL), as a crash would.
    ///
    /// # Errors
    /// There is no such container, or it does not run.
    pub fn kill_container(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<(), BedError> {
        let id = self.container(namespace, pod, container)?;
        let mut kill = self.containerd.ctr(["tasks", "kill", "--signal", "SIGKILL", &id])?;
        run(&mut kill, STEP_ALLOWED).map(drop)
    }

    /// When a container was made, as containerd has noted it: a moment before it was started.
    ///
    /// # Errors
    /// There is no such container.
    pub fn made(&self, namespace: &str, pod: &str, container: &str) -> Result<Timestamp, BedError> {
        self.containerd.made(&self.container(namespace, pod, container)?)
    }

    /// What containerd calls a container.
    fn container(&self, namespace: &str, pod: &str, name: &str) -> Result<String, BedError> {
        let path =
            format!("jsonpath={{.status.containerStatuses[?(@.name==\"{name}\")].containerID}}");
        let mut get = self.kubectl(["get", "pod", pod, "--namespace", namespace, "-o", &path])?;
        let id = run(&mut get, STEP_ALLOWED)?;
        Ok(id.trim().trim_start_matches("containerd://").to_owned())
    }

    /// The addresses that pods have, each from before anything of its pod runs.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn pod_addresses(&self) -> Result<BTreeSet<Ipv4Addr>, BedError> {
        self.containerd.addresses()
    }
}

/// Whose work was waited for in vain; with the end of its log.
fn not_ready(server: &Server, error: &BedError) -> BedError {
    BedError::NotReady {
        name: server.name(),
        allowed: ALLOWED,
        last: error.to_string(),
        tail: tail(server.log()),
    }
}

fn setting(network: &Network) -> Setting {
    Setting {
        address: network.bed(),
        ports: [6443, 2379, 2380],
        enter: network.enter(),
        service_range: network.service_range(),
        first_service: network.first_service(),
    }
}

/// What everything else stands on. The halves need nothing of each other, so they start together.
fn start_ground(
    network: &Network,
    folder: &Folder,
) -> Result<(ControlPlane, Enclosure, Containerd), BedError> {
    let (control_plane, runtime) = std::thread::scope(|scope| {
        let runtime = scope.spawn(|| start_runtime(network, folder));
        let control_plane = ControlPlane::start_in(&setting(network));
        (control_plane, runtime.join())
    });
    let (enclosure, containerd) =
        runtime.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok((control_plane?, enclosure, containerd))
}

/// Namespaces, containerd, and the images that every cluster has.
fn start_runtime(network: &Network, folder: &Folder) -> Result<(Enclosure, Containerd), BedError> {
    let enclosure = Enclosure::start(network, folder)?;
    let containerd = Containerd::start(network, &enclosure, folder)?;
    for image in [Image::sandbox()?, Image::backend()?] {
        import(&containerd, &image, folder)?;
    }
    Ok((enclosure, containerd))
}

fn import(containerd: &Containerd, image: &Image, folder: &Folder) -> Result<(), BedError> {
    let archive = folder.path().join(format!("{}.tar", image.name.replace(['/', ':'], "-")));
    image.write(&archive, Layer::Plain)?;
    import_archive(containerd, &archive)?;
    Ok(std::fs::remove_file(archive)?)
}

fn import_archive(containerd: &Containerd, archive: &Path) -> Result<(), BedError> {
    let mut command = containerd.ctr(["images", "import"])?;
    run(command.arg(archive), STEP_ALLOWED).map(drop)
}

fn wait_until_registered(control_plane: &ControlPlane, node: &str) -> Result<(), BedError> {
    wait_for(format!("the kubelet to register {node}"), ALLOWED, || {
        let known = control_plane
            .kubectl(["get", "node", node, "-o", "name"])
            .and_then(|mut command| run(&mut command, STEP_ALLOWED));
        known.ok()
    })?;
    Ok(())
}
