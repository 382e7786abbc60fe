//! The controller's process: probes, metrics, election and the end, with real servers.

use std::{path::Path, time::Duration};

use testbed::{Consul, ConsulConfig, ControlPlane, Folder, Port, Reply, Server, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);

/// One replica of the controller.
struct Replica {
    server: Server,
    admin: Port,
    _folder: Folder,
}

impl Replica {
    /// Starts it without waiting for anything. Alone in its namespace but for its like.
    fn launch(kubeconfig: &Path, consul: &str, namespace: &str) -> Replica {
        let confined = format!("--watch-namespaces={namespace}");
        Replica::launch_with(kubeconfig, consul, namespace, &[&confined])
    }

    fn launch_with(kubeconfig: &Path, consul: &str, namespace: &str, flags: &[&str]) -> Replica {
        let (admin, folder) = (Port::reserve().unwrap(), Folder::new("controller").unwrap());
        let own = [
            format!("--consul-http-addr={consul}"),
            format!("--lease-namespace={namespace}"),
            "--lease-duration=2s".to_owned(),
            "--lease-renew-deadline=1s".to_owned(),
            "--lease-retry-period=250ms".to_owned(),
        ];
        let flags = own.into_iter().chain(flags.iter().map(ToString::to_string));
        let program = env!("CARGO_BIN_EXE_consul-lock");
        let recipe = testbed::replica(program, kubeconfig, admin.address(), &folder, flags);
        let server = Server::prepare(recipe, || Ok(()));
        server.launch().unwrap();
        Replica { server, admin, _folder: folder }
    }

    fn get(&self, path: &str) -> Option<Reply> {
        testbed::request(self.admin.address(), "GET", path, &[], b"").ok()
    }

    /// Waits for an answer on `path` with this status and these words.
    #[track_caller]
    fn wait_for(&self, path: &str, status: u16, words: &str) {
        let what = format!("{status} with {words:?} on {path}");
        let found = wait_for(what, PATIENCE, || {
            let reply = self.get(path)?;
            (reply.status == status && reply.text().contains(words)).then_some(())
        });
        found.unwrap();
    }

    fn leads(&self) -> bool {
        self.get("/metrics").is_some_and(|reply| reply.text().contains("\nconsul_lock_leader 1\n"))
    }
}

/// Runs kubectl, which must succeed.
#[track_caller]
fn kubectl<const N: usize>(cluster: &ControlPlane, args: [&str; N]) {
    let ran = cluster.kubectl(args).unwrap().output().unwrap();
    assert!(ran.status.success(), "{args:?}: {ran:?}");
}

/// Installs the definition in a control plane of one's own.
fn install_definition(cluster: &ControlPlane) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/consullocks.yaml");
    kubectl(cluster, ["apply", "-f", file]);
}

/// The shared one, with what the chart grants in this namespace.
fn control_plane(namespace: &str) -> &'static ControlPlane {
    let cluster = crate::fixtures::control_plane();
    kubectl(cluster, ["create", "namespace", namespace]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = crate::fixtures::claims_client().await;
        crate::rights::grant(&client, namespace, namespace).await;
    });
    cluster
}

#[test]
fn standby_is_ready_too_and_takes_over_from_a_leader_that_is_told_to_stop() {
    let namespace = "process-handover";
    let cluster = control_plane(namespace);
    let consul = crate::fixtures::shared_consul();
    let account = cluster.kubeconfig_of_release(namespace, None).unwrap();
    let start = || Replica::launch(&account, &consul.address(), namespace);
    let replicas = [start(), start()];
    for replica in &replicas {
        replica.wait_for("/readyz", 200, "[+] consul");
        replica.wait_for("/healthz", 200, "[+] controller");
    }
    let leader = wait_for("a leader", PATIENCE, || replicas.iter().position(Replica::leads));
    let (leader, standby) = match leader.unwrap() {
        0 => (&replicas[0], &replicas[1]),
        _ => (&replicas[1], &replicas[0]),
    };
    assert!(!standby.leads());
    standby.wait_for("/readyz", 200, "ok");

    leader.server.terminate().unwrap();
    wait_for("the standby to lead", Duration::from_secs(2), || standby.leads().then_some(()))
        .unwrap();
    let status = leader.server.wait_ended(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0));
    standby.server.terminate().unwrap();
    assert_eq!(standby.server.wait_ended(PATIENCE).unwrap().code(), Some(0));
}

#[test]
fn not_ready_before_consul_answers_and_ready_without_a_restart_after() {
    let namespace = "process-consul-late";
    let cluster = control_plane(namespace);
    let consul = Consul::start(ConsulConfig { persistent: true, ..Default::default() }).unwrap();
    consul.server().stop().unwrap();
    let account = cluster.kubeconfig_of_release(namespace, None).unwrap();
    let replica = Replica::launch(&account, &consul.address(), namespace);
    replica.wait_for("/readyz", 503, "[-] consul");
    replica.wait_for("/healthz", 200, "ok");
    consul.server().start_again().unwrap();
    replica.wait_for("/readyz", 200, "[+] consul");
}

#[test]
fn missing_definition_is_waited_for() {
    let cluster = ControlPlane::start().unwrap();
    let consul = crate::fixtures::shared_consul();
    let replica = Replica::launch(cluster.kubeconfig(), &consul.address(), "default");
    replica.wait_for("/readyz", 503, "[-] caches\n");
    replica.wait_for("/readyz", 503, "[+] consul\n");
    replica.wait_for("/metrics", 200, "consul_lock_watch_errors_total{resource=\"consullocks\"}");
    install_definition(&cluster);
    replica.wait_for("/readyz", 200, "[+] caches");
    replica.wait_for("/healthz", 200, "ok");
    let file = format!("{}/examples/paused.yaml", env!("CARGO_MANIFEST_DIR"));
    let example = std::fs::read_to_string(file).unwrap().replace("shop", "default");
    let folder = Folder::new("late").unwrap();
    let claim = folder.write("claim.yaml", example.replace("paused: true", "paused: false"));
    kubectl(&cluster, ["apply", "-f", claim.unwrap().to_str().unwrap()]);
    let held = "jsonpath={.status.phase}=Held";
    kubectl(&cluster, ["wait", "--timeout=30s", "--for", held, "consullock/reports"]);
}

#[test]
fn examples_do_what_they_say() {
    let cluster = ControlPlane::start().unwrap();
    install_definition(&cluster);
    let consul = Consul::start(ConsulConfig::default()).unwrap();
    // It looks after every namespace, as an installed one would.
    let _replica = Replica::launch_with(cluster.kubeconfig(), &consul.address(), "default", &[]);
    // In this order: the first makes the namespace that the others are in.
    for (file, claim, phase) in [
        ("billing", "billing", "Held"),
        ("nightly", "nightly", "Held"),
        ("paused", "reports", "Paused"),
        ("stranger", "migrate", "Held"),
        // Nobody makes pods here, so nobody may be elected.
        ("elected", "ledger", "Waiting"),
        ("nightly-once", "close-books", "Waiting"),
    ] {
        let path = format!("{}/examples/{file}.yaml", env!("CARGO_MANIFEST_DIR"));
        kubectl(&cluster, ["apply", "-f", &path]);
        let shown = format!("jsonpath={{.status.phase}}={phase}");
        let object = format!("consullock/{claim}");
        kubectl(&cluster, ["wait", "--timeout=30s", "-n", "shop", "--for", &shown, &object]);
    }
}
