//! Agents of claims: what they read, and what they do when they cannot.

use std::time::Duration;

use serde_json::{Value, json};
use testbed::{ControlPlane, Fault, Proxy, SERVICE_ACCOUNTS, wait_for};

use super::scene::{Agent, Scene, token};
use crate::fixtures::{PATIENCE, claims_client, control_plane, unique};

/// A claim in a namespace of its own.
struct Claim {
    namespace: String,
    scene: Scene,
}

fn kubectl(args: &[&str]) -> String {
    let cluster: &ControlPlane = control_plane();
    let ran = cluster.kubectl(args.iter().copied()).unwrap().output().unwrap();
    assert!(ran.status.success(), "{args:?}: {ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

/// Writes the key into a claim's status, as its controller would.
fn work_out(namespace: &str, claim: &str, key: &str) {
    let status = json!({ "status": { "key": key } }).to_string();
    let of = ["-n", namespace, "patch", "consullock", claim, "--subresource=status"];
    kubectl(&[&of[..], &["--type=merge", "-p", &status]].concat());
}

impl Claim {
    /// `spec` beside what every claim of an agent has.
    fn new(what: &str, spec: Value) -> Claim {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(claims_client());
        let namespace = unique(what);
        kubectl(&["create", "namespace", &namespace]);
        let mut whole = json!({
            "mode": "Agent",
            "candidates": { "selector": { "matchLabels": { "app": "billing" } } },
        });
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let key = format!("consul-lock/{namespace}/billing");
        let claim = Claim { namespace, scene: Scene { key, ..Scene::new(what) } };
        let object = json!({
            "apiVersion": "consullock.dev/v1alpha1",
            "kind": "ConsulLock",
            "metadata": { "name": "billing", "namespace": claim.namespace },
            "spec": whole,
        });
        let file = claim.scene.folder.write("claim.json", object.to_string()).unwrap();
        kubectl(&["apply", "-f", file.to_str().unwrap()]);
        work_out(&claim.namespace, "billing", &claim.scene.key);
        claim
    }

    fn patch(&self, spec: &str) {
        let patch = format!(r#"{{"spec":{spec}}}"#);
        let of = ["-n", &self.namespace, "patch", "consullock", "billing", "--type=merge"];
        kubectl(&[&of[..], &["-p", &patch]].concat());
    }

    /// An agent of the claim, as the user of this kubeconfig.
    fn start(&self, kubeconfig: &std::path::Path, flags: &[&str]) -> Agent {
        let namespace = format!("--namespace={}", self.namespace);
        let own = ["--claim=billing", "--reread=1s", &namespace];
        let (mut command, port) = self.scene.command(&[&own[..], flags].concat());
        command.env("KUBECONFIG", kubeconfig);
        self.scene.spawn((command, port))
    }
}

#[test]
fn claim_says_what_to_hold_and_when_to_give_it_up() {
    let spec = json!({ "value": "claim's", "session": { "ttl": "20s", "lockDelay": "60s" } });
    let claim = Claim::new("claimed", spec);
    // All that an agent may do.
    let user = unique("agent");
    let of = ["-n", &claim.namespace];
    kubectl(
        &[&of[..], &["create", "role", &user, "--verb=get", "--resource=consullocks"]].concat(),
    );
    let binding = ["create", "rolebinding", &user, "--role", &user, "--user", &user];
    kubectl(&[&of[..], &binding].concat());
    let kubeconfig = control_plane().kubeconfig_for(&user, None).unwrap();
    let mut agent = claim.start(&kubeconfig, &["--cluster-name=eu-1"]);
    let first = agent.leads();
    assert_eq!(first["key"], claim.scene.key);
    assert!(first["remaining_ms"].as_u64().unwrap() > 15_000, "the claim's TTL: {first}");
    let path = format!("/v1/session/info/{}", first["session"].as_str().unwrap());
    let info = crate::fixtures::shared_consul().request("GET", &path, b"").unwrap().json();
    let node = format!("consul-lock-eu-1-{}", claim.namespace);
    assert_eq!(
        (&info[0]["Node"], &info[0]["LockDelay"]),
        (&node.into(), &60_000_000_000_u64.into())
    );

    claim.patch(r#"{"paused":true}"#);
    let paused = agent.stands_so("standing-by");
    assert_eq!(paused["trouble"], "the claim is paused");
    let free = || claim.scene.holder().is_none().then_some(());
    wait_for("the key to be free", PATIENCE, free).unwrap();
    claim.patch(r#"{"paused":false}"#);
    let next = agent.leads();
    assert!(token(&next) > token(&first), "and there was no lock-delay");
    agent.stop();
}

#[test]
fn agent_that_is_told_the_key_reads_its_claim_before_it_contends_on_other_terms() {
    let paused = json!({ "paused": true, "session": { "ttl": "20s" } });
    let claim = Claim::new("read-first", paused);
    let proxy = Proxy::tcp(control_plane().address()).unwrap();
    let kubeconfig = control_plane().kubeconfig_through(proxy.address().port()).unwrap();
    let flags = ["--cluster-name=eu-1", &format!("--key={}", claim.scene.key)];
    // Consul is quicker.
    proxy.set(Fault::Delay(Duration::from_millis(75)));
    let mut agent = claim.start(&kubeconfig, &flags);
    agent.stands_so("standing-by");
    assert_eq!(claim.scene.pair(), None, "nobody has ever had it");
    claim.patch(r#"{"paused":false}"#);
    let told = agent.leads();
    assert!(told["remaining_ms"].as_u64().unwrap() > 15_000, "the claim's TTL: {told}");
    agent.stop();

    // It is not waited for longer than a second: an app may work already.
    proxy.set(Fault::Blackhole);
    let mut agent = claim.start(&kubeconfig, &flags);
    let watch = testbed::Stopwatch::start();
    agent.leads();
    let took = watch.elapsed();
    assert!(took < Duration::from_secs(4), "a reading may take five: {took:?}");
    agent.stop();
}

#[test]
fn claim_that_the_controller_holds_is_refused() {
    let claim = Claim::new("managed", json!({ "mode": "Managed" }));
    let mut agent = claim.start(control_plane().kubeconfig(), &[]);
    assert_eq!(agent.ended(), 2);
    let said = agent.said();
    assert!(said.contains("spec.mode: Managed") && said.contains("spec.mode: Agent"), "{said}");
}

#[test]
fn agent_that_may_not_read_its_claim_needs_to_be_told_the_key() {
    let claim = Claim::new("forbidden", json!({}));
    let kubeconfig = control_plane().kubeconfig_for(&unique("nobody"), None).unwrap();
    let mut agent = claim.start(&kubeconfig, &[]);
    let waits = agent.wait("the trouble", |told| told["trouble"].is_string());
    assert_eq!(waits["state"], "starting");
    assert!(waits["trouble"].as_str().unwrap().contains("forbidden"), "{waits}");
    agent.stop();
    let key = format!("--key={}", claim.scene.key);
    let mut agent = claim.start(&kubeconfig, &[&key]);
    assert_eq!(agent.leads()["key"], claim.scene.key);
    agent.stop();
}

#[test]
fn agents_go_on_without_the_api_server() {
    let claim = Claim::new("alone", json!({}));
    let proxy = Proxy::tcp(control_plane().address()).unwrap();
    let kubeconfig = control_plane().kubeconfig_through(proxy.address().port()).unwrap();
    let mut agent = claim.start(&kubeconfig, &["--cluster-name=eu-1"]);
    let told = agent.leads();
    proxy.set(Fault::Cut);
    let failed = || agent.said().contains("cannot read the claim").then_some(());
    wait_for("a reading to fail", PATIENCE, failed).unwrap();
    claim.patch(r#"{"paused":true}"#);
    let renewed = agent.wait("renewals", |now| {
        super::valid_until(now) > super::valid_until(&told) + Duration::from_secs(4)
    });
    assert_eq!((&renewed["leader"], &renewed["token"]), (&true.into(), &told["token"]));
    // And so does one that is started now, if it knows the key.
    let mut other =
        claim.start(&kubeconfig, &["--cluster-name=eu-1", &format!("--key={}", claim.scene.key)]);
    other.stands_so("waiting");
    other.stop();
    proxy.set(Fault::None);
    agent.stands_so("standing-by");
    agent.stop();
}

#[test]
fn example_is_accepted_word_for_word_and_its_sidecar_does_what_it_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(claims_client());
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/sidecar/payroll.yaml");
    kubectl(&["apply", "-f", file]);
    work_out("shop", "payroll", "consul-lock/shop/payroll");
    let deployment = kubectl(&["-n", "shop", "get", "deployment", "payroll", "-o", "json"]);
    let deployment: Value = serde_json::from_str(&deployment).unwrap();
    let sidecar = &deployment["spec"]["template"]["spec"]["initContainers"][0];
    let key = "consul-lock/shop/payroll".to_owned();
    let scene = Scene { key, app: "payroll".to_owned(), ..Scene::new("example") };
    // As the kubelet would start it, but for Consul's address and the file's place.
    let path = scene.folder.path().join("leader.json");
    let args = sidecar["args"].as_array().unwrap().iter().skip(1);
    let args = args.map(|arg| {
        let arg = arg.as_str().unwrap();
        arg.replace("/run/lock/leader.json", path.to_str().unwrap())
    });
    let args: Vec<String> = args.collect();
    let (mut command, port) = scene.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    for variable in sidecar["env"].as_array().unwrap() {
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("metadata.name") => "payroll-1",
            Some("metadata.namespace") => "shop",
            Some("metadata.uid") => "1d9b2cc4-6a53-4f0e-9f3c-5c7c9f2f3b11",
            _ => continue,
        };
        command.env(variable["name"].as_str().unwrap(), value);
    }
    let account = "system:serviceaccount:shop:payroll";
    let kubeconfig = control_plane().kubeconfig_for(account, Some(SERVICE_ACCOUNTS)).unwrap();
    command.env("KUBECONFIG", kubeconfig);
    let mut agent = scene.spawn((command, port));
    let told = agent.leads();
    assert_eq!(told["holder"], "shop/payroll-1");
    let app = scene.app("");
    let written: Value = serde_json::from_str(&scene.file("leader.json")).unwrap();
    assert_eq!(written["token"], told["token"]);
    agent.stop();
    assert!(!app.is_alive());
    assert!(!agent.said().contains("cannot read the claim"), "{}", agent.said());
}
