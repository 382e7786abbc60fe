//! The chart on a real node with the real Helm: installed, examined, upgraded, rolled back and
//! uninstalled, while a pod leads. What is typed for it is what the pages print.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};
use testbed::{
    Authority, CertFiles, Cluster, Consul, Enforced, Folder, Helm, Stopwatch, request, say,
    wait_for,
};

use crate::{
    bed::{PATIENCE, Space, disturbed_cluster, pod},
    image::{consul_by_name, import},
    printed::{Page, Reader},
};

/// What the pages call the release, and its namespace.
const RELEASE: &str = "consul-lock";

/// The pages about its life.
const HELM: &str = "install/helm.md";
const CONSUL_PAGE: &str = "install/consul.md";
const UPGRADES: &str = "operations/upgrades.md";

/// The pages' Consul.
const CONSUL: &str = "consul-server.consul.svc";

/// The claim, its Service and the label of its pod.
const NAME: &str = "billing";

/// How long a controller may take from when its container is made until it is ready; a release takes a
/// tenth, see `make ready`.
const START_ALLOWED: Duration = Duration::from_secs(10);

/// A release in a namespace that takes restricted pods alone, and a claim in another.
struct Scene {
    own: Space,
    claims: Space,
    reader: Reader,
    consul: Consul,
    /// By name, with the port.
    address: String,
    values: Value,
    /// For the values.
    folder: Folder,
}

/// A tenure, as Consul and the claim's status tell it. The key's own indexes are no part of it: a
/// leader that adopts a tenure writes the key anew.
#[derive(Debug, PartialEq)]
struct Tenure {
    session: String,
    token: String,
    transitions: Value,
    endpoints: Vec<String>,
}

impl Scene {
    fn set(cluster: &'static Cluster) -> Scene {
        import(cluster);
        let (consul, address) = consul_by_name(cluster, true);
        let reader = Reader::of(cluster, &consul);
        let page = Page::open(CONSUL_PAGE);
        reader.types(&page.block("sh", "acl policy create"));
        let own = Space { cluster, namespace: RELEASE.to_owned() };
        let restricted = "pod-security.kubernetes.io/enforce=restricted";
        own.kubectl(&["label", "namespace", RELEASE, restricted]);
        let mut values: Value =
            serde_saphyr::from_str(&page.block("yaml", "tokenSecret: {name:")).unwrap();
        values["consul"]["address"] = json!(address);
        values["image"] = json!({"pullPolicy": "Never"});
        values["dns"] = json!({"policy": "None", "nameservers": [cluster.gateway()]});
        values["admissionPolicy"] = json!({"enabled": true});
        let folder = Folder::new("values").unwrap();
        Scene {
            own,
            claims: Space::on(cluster, "charted"),
            reader,
            consul,
            address,
            values,
            folder,
        }
    }

    /// Types a command of Helm's that a page prints, with more behind it, and returns what it says.
    #[track_caller]
    fn helm(&self, page: &'static str, words: &str, more: &str) -> String {
        let printed = Page::open(page).command(words);
        let printed = printed.split(" # ").next().unwrap();
        let printed = printed.replace("REGISTRY", "consullock.dev");
        let printed = printed.replace(&format!("{CONSUL}:8500"), &self.address);
        self.reader.tries(&format!("{printed} {more}")).unwrap_or_else(|error| {
            let pods = self.own.try_kubectl(&["describe", "pods"]);
            let logs = self.own.try_kubectl(&["logs", "deployment/consul-lock"]);
            panic!("{error}\n{}\n{logs:?}", pods.unwrap_or_default())
        })
    }

    /// The flags for a release with these values that is waited for.
    fn with(&self, values: &Value) -> String {
        let file = self.folder.write("values.json", values.to_string()).unwrap();
        format!("--values {} --wait --timeout=120s", file.display())
    }

    /// Puts the NetworkPolicy into force that the chart is about to make.
    fn enforce(&self) -> Enforced<'static> {
        let args = ["template", RELEASE, "--namespace", RELEASE];
        let args = [&args[..], &["--show-only", "templates/networkpolicy.yaml"]].concat();
        let helm = Helm::new(self.own.cluster.kubeconfig()).unwrap();
        let policy = helm.with_chart(&args, &self.values).unwrap();
        let policy: Value = serde_saphyr::from_str(policy.trim_start_matches("---\n")).unwrap();
        self.own.cluster.enforce(&policy).unwrap()
    }

    /// A pod, its Service, and a claim that elects it.
    fn elect(&self) {
        self.claims.apply(&pod("leader", &json!({"app": NAME})));
        self.claims.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }));
        self.claims.apply(&json!({
            "apiVersion": "consullock.dev/v1alpha1", "kind": "ConsulLock",
            "metadata": {"name": NAME},
            "spec": {
                "candidates": {"selector": {"matchLabels": {"app": NAME}}},
                "routing": {"service": NAME},
            },
        }));
    }

    fn key(&self) -> String {
        format!("consul-lock/{}/{NAME}", self.claims.namespace)
    }

    /// Or what there is while nobody leads, or the status is behind.
    fn tenure(&self) -> Result<Tenure, Value> {
        let pair = self.consul.request("GET", &format!("/v1/kv/{}", self.key()), b"").unwrap();
        let pair = if pair.ok() { pair.json()[0].clone() } else { Value::Null };
        let status = self.claims.get("consullock", NAME)["status"].clone();
        let of = format!("--selector=kubernetes.io/service-name={NAME}");
        let slices = self.claims.list("endpointslices", &[&of]);
        let endpoints: Vec<String> = slices
            .iter()
            .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
            .filter_map(|one| one["targetRef"]["name"].as_str().map(str::to_owned))
            .collect();
        let token = status["fencingToken"].as_str().unwrap_or_default().to_owned();
        match &pair["Session"] {
            Value::String(session) if !token.is_empty() && !endpoints.is_empty() => Ok(Tenure {
                session: session.clone(),
                token,
                transitions: status["transitions"].clone(),
                endpoints,
            }),
            _ => Err(json!({"key": pair, "status": status, "slices": slices})),
        }
    }

    #[track_caller]
    fn led(&self) -> Tenure {
        let led = wait_for("a leader", PATIENCE, || self.tenure().ok());
        led.unwrap_or_else(|late| panic!("{late}: {:#}", self.tenure().unwrap_err()))
    }

    /// The release's pods that are not about to go.
    fn pods(&self) -> Vec<Value> {
        let controllers = "--selector=app.kubernetes.io/component=controller";
        let mut pods = self.own.list("pods", &[controllers]);
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods
    }
}

/// Asks Consul's administrator for something.
fn administer(consul: &Consul, method: &str, path: &str, body: Value) -> Value {
    let reply = consul.request(method, path, body.to_string().as_bytes()).unwrap();
    assert!(reply.ok(), "{path}: {}", reply.text());
    reply.json()
}

/// How many tokens there are that logins have made.
fn logins(consul: &Consul) -> usize {
    let tokens = administer(consul, "GET", "/v1/acl/tokens?authmethod=my-cluster", Value::Null);
    tokens.as_array().unwrap().len()
}

/// When the last part of a controller was ready.
fn ready(log: &str) -> Timestamp {
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |words: &str| {
        let line = lines.iter().find(|line| line["message"] == words);
        let line = line.unwrap_or_else(|| panic!("no {words:?} in {log}"));
        line["timestamp"].as_str().unwrap().parse::<Timestamp>().unwrap()
    };
    said("Consul answers").max(said("the caches are synced"))
}

#[test]
fn a_claim_keeps_its_token_over_an_upgrade_and_a_rollback_and_is_there_after_an_uninstall() {
    let Some(cluster) = disturbed_cluster() else { return };
    let scene = Scene::set(*cluster);
    let enforced = scene.enforce();
    let notes = scene.helm(HELM, "helm install", &scene.with(&scene.values));
    assert!(notes.contains("looks after all namespaces"), "{notes}");
    let pods = scene.pods();
    assert_eq!(pods.len(), 2);
    for pod in &pods {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], json!(0), "{pod:#}");
        let name = pod["metadata"]["name"].as_str().unwrap();
        let made = cluster.made(&scene.own.namespace, name, "controller").unwrap();
        let took = ready(&scene.own.kubectl(&["logs", name])).duration_since(made);
        let took = Duration::try_from(took).unwrap();
        say(format!("a controller was ready {:.2} s after its container", took.as_secs_f32()));
        assert!(took < START_ALLOWED, "{took:?}");
    }
    scene.elect();
    let tenure = scene.led();
    assert_eq!(tenure.endpoints, ["leader"]);
    let said = scene.helm(HELM, "helm test", "--timeout=120s");
    let row = said.lines().find(|line| line.starts_with("RBAC: patch on consullocks/status "));
    assert!(row.is_some_and(|row| row.contains(" OK ")) && !said.contains("cannot tell"), "{said}");

    confined(&scene, enforced);
    first_lock(&scene);

    // From the token of a Secret to a login by the service account, and to TLS.
    scene.reader.types(&Page::open(CONSUL_PAGE).block("sh", "acl auth-method create"));
    let rotation = Rotation::prepare(&scene);
    scene.helm(UPGRADES, "helm upgrade", &scene.with(&rotation.values()));
    let env = |pod: &Value| pod["spec"]["containers"][0]["env"].to_string();
    let all = |with: bool| {
        scene.pods().iter().all(|pod| env(pod).contains("CONSUL_LOGIN_AUTH_METHOD") == with)
    };
    assert!(all(true));
    assert!(logins(&scene.consul) >= 2);
    assert_eq!(scene.led(), tenure);
    rotation.turn();
    assert_eq!(scene.led(), tenure);
    scene.helm(UPGRADES, "helm rollback", "--wait --timeout=120s");
    assert!(all(false));
    assert_eq!(scene.led(), tenure);
    let out = || (logins(&scene.consul) == 0).then_some(());
    wait_for("the controllers to have logged out", PATIENCE, out).unwrap();
    upgrade_the_definition(&scene);
    assert_eq!(scene.led(), tenure);

    let notes = scene.reader.types("helm get notes consul-lock --namespace consul-lock");
    scene.helm(UPGRADES, "helm uninstall", "--wait --timeout=120s");
    wait_for("the controllers to go", PATIENCE, || {
        scene
            .own
            .list("pods", &["--selector=app.kubernetes.io/name=consul-lock"])
            .is_empty()
            .then_some(())
    })
    .unwrap();
    assert!(!scene.claims.get("consullock", NAME)["metadata"]["finalizers"].is_null());
    finish(&scene, &notes);
}

/// What the pages have next: a first lock, who holds it, and whether all is there.
fn first_lock(scene: &Scene) {
    let types = |script: &str| scene.reader.types(script);
    types(&Page::open(HELM).block("sh", "kubectl apply -f examples/billing.yaml"));
    types(&Page::open("guide/lock.md").command("kubectl -n shop wait"));
    let list = types(&Page::open(HELM).command("kubectl get consullocks"));
    let row: Vec<&str> = list.lines().filter(|line| line.starts_with("shop ")).collect();
    let words: Vec<&str> = row[0].split_whitespace().collect();
    assert_eq!(words[..4], ["shop", "billing", "Held", "shop/billing"], "{list}");
    let said = types(&Page::open(CONSUL_PAGE).command("kubectl consullock"));
    assert!(said.contains("RBAC: patch on consullocks/status "), "{said}");
}

/// With the policy in force nobody gets in, and a controller's pod gets out to no other port than it
/// needs, which without it is no matter.
fn confined(scene: &Scene, enforced: Enforced<'_>) {
    let pod = scene.pods().remove(0);
    let name = pod["metadata"]["name"].as_str().unwrap();
    let address: Ipv4Addr = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
    let gets_in = || request((address, 8080).into(), "GET", "/metrics", &[], b"").is_ok();
    let host = TcpListener::bind((scene.own.cluster.gateway(), 0)).unwrap();
    host.set_nonblocking(true).unwrap();
    let elsewhere = format!("--consul-http-addr={}", host.local_addr().unwrap());
    let gets_out = || {
        let run = ["/consul-lock", "run", "--key=x", "--retries=0", &elsewhere, "--", "/no"];
        let said = scene.own.try_kubectl(&[&["exec", name, "--"], &run[..]].concat()).unwrap_err();
        (host.accept().is_ok(), said.to_string())
    };
    assert!(!gets_in(), "a stranger gets at the metrics");
    let (out, said) = gets_out();
    assert!(!out && said.contains("Consul is out of reach"), "{said}");
    drop(enforced);
    assert!(gets_in() && gets_out().0, "it is the policy that keeps them apart");
}

/// Certificates and CA that change while the release runs, and Consul with them.
struct Rotation<'a> {
    scene: &'a Scene,
    new: Authority,
    /// Has the new authority's files.
    _folder: Folder,
}

impl<'a> Rotation<'a> {
    /// The Secrets as they are at first.
    fn prepare(scene: &'a Scene) -> Rotation<'a> {
        let folder = Folder::new("rotation").unwrap();
        let new = Authority::create(folder.path(), "new").unwrap();
        let rotation = Rotation { scene, new, _folder: folder };
        rotation.put_ca(&fs::read_to_string(scene.consul.ca_file().unwrap()).unwrap());
        rotation.put_client(scene.consul.client_cert().unwrap());
        rotation
    }

    fn put(&self, secret: &[&str]) {
        let made = [&["create", "secret"], secret, &["--dry-run=client", "-o", "json"]].concat();
        let made = self.scene.own.kubectl(&made);
        self.scene.own.apply(&serde_json::from_str(&made).unwrap());
    }

    fn put_ca(&self, pem: &str) {
        self.put(&["generic", "consul-ca-cert", &format!("--from-literal=tls.crt={pem}")]);
    }

    fn put_client(&self, files: &CertFiles) {
        let [cert, key] = [("cert", &files.cert), ("key", &files.key)]
            .map(|(flag, path)| format!("--{flag}={}", path.display()));
        self.put(&["tls", "consul-lock-client", &cert, &key]);
    }

    /// What changes in the values of the release.
    fn values(&self) -> Value {
        let page = Page::open(CONSUL_PAGE);
        let consul = |words: &str| -> Value {
            let values: Value = serde_saphyr::from_str(&page.block("yaml", words)).unwrap();
            values["consul"].clone()
        };
        let (mut tls, login) = (consul("tls:"), consul("login:"));
        assert_eq!(tls["address"], format!("https://{CONSUL}:8501"));
        let port = self.scene.consul.https().port();
        tls["address"] = json!(format!("https://locks.service.consul:{port}"));
        tls["tls"]["serverName"] = json!("localhost");
        tls["tokenSecret"] = json!({"name": ""});
        tls["login"] = login["login"].clone();
        json!({ "consul": tls })
    }

    /// Both sides trust both CAs, have new certificates, and trust the new CA alone.
    fn turn(&self) {
        let theirs = |name: &str| self.scene.consul.ca_file().unwrap().with_file_name(name);
        let [old, new] = [self.scene.consul.ca_file().unwrap(), self.new.ca_file()]
            .map(|file| fs::read_to_string(file).unwrap());
        let both = format!("{old}{new}");
        self.put_ca(&both);
        self.noticed(1);
        let server = self.new.server("server", &[], &[]).unwrap();
        fs::copy(server.cert, theirs("consul-server.crt")).unwrap();
        fs::copy(server.key, theirs("consul-server.key")).unwrap();
        fs::write(theirs("consul-ca.pem"), both).unwrap();
        // With all connections.
        self.scene.consul.server().kill().unwrap();
        self.scene.consul.server().start_again().unwrap();
        self.put_client(&self.new.client("controller", None).unwrap());
        self.put_ca(&new);
        self.noticed(2);
        fs::write(theirs("consul-ca.pem"), &new).unwrap();
        assert!(self.scene.consul.request("PUT", "/v1/agent/reload", b"").unwrap().ok());
        let before = self.renewals();
        let renewed = || (self.renewals() >= before + 2.0).then_some(());
        wait_for("renewals with the new certificate", PATIENCE, renewed).unwrap();
        for pod in self.scene.pods() {
            assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], json!(0), "{pod:#}");
        }
    }

    /// Waits until the leader has noticed so many changes; who stands by asks Consul nothing. The
    /// kubelet looks at a pod's Secrets when the pod changes, or after a minute; it may not have heard
    /// of theirs yet.
    fn noticed(&self, times: usize) {
        let (own, watch) = (&self.scene.own, Stopwatch::start());
        let controllers = "--selector=app.kubernetes.io/component=controller";
        let seen = || {
            let nudge = format!("nudge={}", watch.elapsed().as_millis());
            own.kubectl(&["annotate", "pods", controllers, "--overwrite", &nudge]);
            let logs = own.kubectl(&["logs", controllers, "--tail=-1"]);
            let words = "CA or client certificate for Consul changed";
            (logs.matches(words).count() >= times).then_some(())
        };
        wait_for(format!("change {times} to be noticed"), PATIENCE, seen).unwrap();
    }

    /// How many sessions the leader has renewed.
    fn renewals(&self) -> f64 {
        let namespace = &self.scene.own.namespace;
        let pods = self.scene.pods();
        let names = pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str());
        let counts = names.filter_map(|name| {
            let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:8080/proxy/metrics");
            let text = self.scene.own.kubectl(&["get", "--raw", &path]);
            let series = "consul_lock_renewals_total{result=\"ok\"} ";
            let line = text.lines().find_map(|line| line.strip_prefix(series));
            line.and_then(|count| count.parse::<f64>().ok())
        });
        counts.sum()
    }
}

/// A definition that lacks a field gets it as the page says, while claims are held.
fn upgrade_the_definition(scene: &Scene) {
    let name = "customresourcedefinition/consullocks.consullock.dev";
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let older = json!([{"op": "remove", "path": format!("{spec}/value")}]);
    scene.own.kubectl(&["patch", name, "--type=json", "-p", &older.to_string()]);
    let knows = || {
        let definition: Value =
            serde_json::from_str(&scene.own.kubectl(&["get", name, "-o", "json"])).unwrap();
        definition.pointer(&format!("{spec}/value")).is_some()
    };
    assert!(!knows());
    scene.reader.types(&Page::open(UPGRADES).command("kubectl apply"));
    assert!(knows());
}

/// Does what the notes say of a release that was uninstalled while there were claims, word for word.
fn finish(scene: &Scene, notes: &str) {
    let (_, last) = notes.split_once("To be rid of them without it").unwrap();
    let commands: Vec<&str> = last.lines().filter(|line| line.starts_with("  kubectl")).collect();
    assert_eq!(commands.len(), 2, "{notes}");
    commands.into_iter().for_each(|line| drop(scene.reader.types(line)));
    let definition = ["get", "customresourcedefinition/consullocks.consullock.dev"];
    let gone = scene.own.try_kubectl(&definition).unwrap_err().to_string();
    assert!(gone.contains("NotFound"), "{gone}");
}
