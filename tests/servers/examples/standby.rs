//! A service of two pods, one of which serves; in Go and in Python, beside real agents.

use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::{Value, json};
use testbed::{Port, wait_for};

use super::{
    kubernetes::{Cluster, block_on, of_kind, words},
    stage::{Actor, QUICK, Stage, end_session},
};
use crate::{
    agent::scene::{Agent, Scene},
    fixtures::PATIENCE,
    pods::running,
};

const GO: &str = "standby";
const PYTHON: &str = "./standby.py";

/// An app and the agent beside it.
struct Pair {
    app: Actor,
    agent: Agent,
    port: Port,
}

impl Pair {
    fn new(stage: &Stage, name: &str, program: &str, agent: Agent) -> Pair {
        let port = Port::reserve().unwrap();
        let (own, its) = (port.address().to_string(), format!("http://{}", agent.address()));
        let pair = Pair { app: stage.start(name, &[program, &own, &its], &[]), agent, port };
        let answers = || testbed::request(pair.port.address(), "GET", "/", &[], b"").ok();
        wait_for("the app to answer", PATIENCE, answers).unwrap();
        pair
    }

    /// What the app answers, if it does. A number that it hands out is gone.
    fn ask(&self) -> Option<(u16, String)> {
        ask(self.port.address())
    }

    /// Both are frozen, as their pod's machine is.
    fn freezes(&self) {
        self.agent.send(Signal::STOP);
        self.app.pause();
    }
}

fn ask(address: SocketAddr) -> Option<(u16, String)> {
    let reply = testbed::request(address, "GET", "/next", &[], b"").ok()?;
    Some((reply.status, reply.text().trim().to_owned()))
}

fn number(n: u32) -> Option<(u16, String)> {
    Some((200, n.to_string()))
}

fn not_my_turn() -> Option<(u16, String)> {
    Some((503, "not my turn".to_owned()))
}

/// Two pods of the Deployment: one in Go, which leads, and one in Python.
struct Service {
    manifest: Vec<Value>,
    cluster: Cluster,
    scene: Scene,
}

impl Service {
    async fn new(manifest: Vec<Value>) -> Service {
        let cluster = Cluster::new(&crate::fixtures::unique("standby")).await;
        let mut service = of_kind(&manifest, "Service").clone();
        service["metadata"]["namespace"].take();
        let service = serde_json::from_value(service).unwrap();
        cluster.cast.services.create(&Default::default(), &service).await.unwrap();
        cluster.claim(&manifest, None).await;
        Service { manifest, cluster, scene: Scene::new("standby") }
    }

    /// Starts what the manifest has in a pod, but for this program.
    async fn pod(&self, stage: &Stage, name: &str, program: &str) -> Pair {
        let template = &of_kind(&self.manifest, "Deployment")["spec"]["template"];
        self.cluster.pod(template, name, None).await;
        self.cluster.cast.report(name, "True", 1, vec![running("app", name, 0)]).await;
        let sidecar = &template["spec"]["initContainers"][0];
        let site = &self.cluster.site;
        let args = words(&sidecar["args"]).into_iter().skip(1).map(|arg| match arg {
            "--cluster-name=eu-1" => format!("--cluster-name={}", site.cluster()),
            "--key=consul-lock/shop/numbers" => format!("--key={}", site.key("numbers").as_str()),
            arg => arg.to_owned(),
        });
        let args: Vec<String> = args.collect();
        let args = args.iter().map(String::as_str);
        // As the claim says, should its first reading take too long.
        let args: Vec<&str> = args.chain(["--ttl=60s", "--lock-delay=0s"]).collect();
        let (mut command, port) = self.scene.command(&args);
        let variables = self.cluster.environment(sidecar, name).await;
        command.envs(variables.into_iter().filter(|(name, _)| name != "CONSUL_HTTP_ADDR"));
        command.env("KUBECONFIG", self.cluster.account(&self.manifest).await);
        Pair::new(stage, name, program, self.scene.spawn((command, port)))
    }

    /// Asks the Service, as soon as it is routed to this pod.
    async fn ask(&self, name: &str, pair: &Pair) -> Option<(u16, String)> {
        self.cluster.cast.routed("numbers", Some(name)).await;
        pair.ask()
    }
}

/// The Go pod is frozen while it leads, and the Python pod takes over. Then the Go app is the first to
/// wake up, and is asked for a number.
fn frozen_pod(stage: &Stage) -> Option<(u16, String)> {
    let manifest = stage.manifest("standby.yaml");
    block_on(async {
        let service = Service::new(manifest).await;
        let go = service.pod(stage, "a", GO).await;
        go.agent.leads();
        let python = service.pod(stage, "b", PYTHON).await;
        python.agent.stands_so("waiting");
        wait_for("its first number", PATIENCE, || (go.ask() == number(1)).then_some(())).unwrap();
        assert_eq!(service.ask("a", &go).await, number(2));
        assert_eq!(python.ask(), not_my_turn());

        go.freezes();
        end_session(service.cluster.site.key("numbers").as_str());
        python.agent.leads();
        assert_eq!(service.ask("b", &python).await, number(3));
        assert_eq!(service.ask("b", &python).await, number(4));

        go.app.resume();
        let said = go.ask();
        go.agent.send(Signal::CONT);
        let heard = || (go.ask() == not_my_turn()).then_some(());
        wait_for("its agent to say so", PATIENCE, heard).unwrap();
        said
    })
}

#[test]
fn a_pod_that_was_frozen_is_followed_by_the_other_and_hands_out_nothing() {
    let Some(stage) = Stage::new("standby") else { return };
    let (code, said) = frozen_pod(&stage).unwrap();
    assert!(code == 503 && said.contains("is stale"), "{code} {said}");
    assert_eq!(stage.sql("SELECT last FROM counter"), "4");
}

#[test]
fn without_the_fence_a_pod_that_was_frozen_hands_out_a_number_again() {
    let Some(stage) = Stage::new("standby") else { return };
    stage.sql("DROP TRIGGER fence ON counter");
    assert_eq!(frozen_pod(&stage), number(3));
}

#[test]
fn without_a_common_lock_both_hand_out_the_same_numbers() {
    let Some(stage) = Stage::new("standby") else { return };
    stage.sql("DROP TRIGGER fence ON counter");
    let (one, two) = (Scene::new("numbers-one"), Scene::new("numbers-two"));
    let go = Pair::new(&stage, "go", GO, one.start(&["--name=go"]));
    let python = Pair::new(&stage, "python", PYTHON, two.start(&["--name=python"]));
    go.agent.leads();
    python.agent.leads();
    wait_for("its first number", PATIENCE, || (go.ask() == number(1)).then_some(())).unwrap();
    assert_eq!(python.ask(), number(2));
    assert_eq!(go.ask(), number(2));
}

#[test]
fn an_app_whose_agent_is_frozen_stops_before_another_may_lead() {
    let Some(stage) = Stage::new("standby") else { return };
    for (name, program) in [("go", GO), ("python", PYTHON)] {
        let scene = Scene::new(name);
        let pair = Pair::new(&stage, name, program, scene.start(&QUICK));
        let next = scene.start(&QUICK);
        pair.agent.leads();
        let number = || pair.ask().filter(|(code, _)| *code == 200);
        wait_for("a number", PATIENCE, number).unwrap();
        pair.agent.send(Signal::STOP);
        wait_for("it to stop", PATIENCE, || (pair.ask() == not_my_turn()).then_some(())).unwrap();
        assert_eq!(next.stands().unwrap()["leader"], json!(false));
        next.leads();
        pair.agent.send(Signal::CONT);
    }
}
