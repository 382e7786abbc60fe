//! Elections among real pods behind a real Service, with clients that call it without a pause.

use std::net::SocketAddr;

use serde_json::{Value, json};
use testbed::{Cluster, Consul, ConsulConfig, Stopwatch, say, wait_for};

use crate::{
    bed::{PATIENCE, Space, cluster, disturbed_cluster, pod_spec},
    controller::{Replica, install_definition},
    service::Clients,
};

/// The claim, its Service and the label of its pods. The pods read the token of this claim.
const NAME: &str = "billing";

/// A namespace with a controller, pods, a Service and a claim.
struct Scene {
    space: Space,
    controllers: Vec<Replica>,
}

/// Who leads, as the claim's status says, and with which token.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
struct Lead {
    token: u64,
    pod: String,
}

impl Scene {
    /// On a cluster, with `replicas` pods. The claim is not there yet.
    fn set(cluster: &'static Cluster, label: &str, consul: &Consul, replicas: u32) -> Scene {
        let space = Space::on(cluster, label);
        install_definition(&space);
        let allowed = "consullock.dev/key-prefixes=both/";
        space.kubectl(&["annotate", "namespace", &space.namespace, allowed]);
        let controllers = vec![Replica::start(&space, consul)];
        space.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }));
        let labels = json!({"app": NAME});
        space.apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod_spec()},
            },
        }));
        let scene = Scene { space, controllers };
        scene.available();
        scene
    }

    fn available(&self) {
        let deployment = format!("deployment/{NAME}");
        self.space.kubectl(&["rollout", "status", &deployment, "--timeout=60s"]);
    }

    /// Applies the claim, with more in its candidates.
    fn claim(&self, key: &str, more: Value) {
        let mut candidates = json!({"selector": {"matchLabels": {"app": NAME}}});
        candidates.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.space.apply(&json!({
            "apiVersion": "consullock.dev/v1alpha1", "kind": "ConsulLock",
            "metadata": {"name": NAME},
            "spec": {
                "key": format!("both/{key}"),
                "session": {"ttl": "10s", "lockDelay": "0s"},
                "candidates": candidates,
                "routing": {"service": NAME},
            },
        }));
    }

    fn service(&self) -> SocketAddr {
        self.space.service(NAME)
    }

    fn status(&self) -> Value {
        self.space.get("consullock", NAME)["status"].clone()
    }

    fn lead(&self) -> Option<Lead> {
        let status = self.status();
        let pod = status["holder"]["pod"].as_str()?.to_owned();
        let token = status["fencingToken"].as_str()?.parse().ok()?;
        Some(Lead { token, pod })
    }

    /// The pods that the Service's slices name.
    fn endpoints(&self) -> Vec<String> {
        let of = format!("--selector=kubernetes.io/service-name={NAME}");
        let slices = self.space.list("endpointslices", &[&of]);
        let endpoints =
            slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        endpoints.map(|one| one["targetRef"]["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until another tenure than `last` is led and heard at the Service.
    #[track_caller]
    fn next(&self, clients: &Clients, last: Option<&Lead>, what: &str, watch: &Stopwatch) -> Lead {
        let newer = |lead: &Lead| last.is_none_or(|last| lead.token > last.token);
        let lead =
            wait_for(format!("the next leader: {what}"), PATIENCE, || self.lead().filter(newer));
        let lead = lead.unwrap_or_else(|late| panic!("{late}: {:#}", self.status()));
        let led = watch.elapsed().as_secs_f32();
        let heard = || clients.heard(&lead.pod, lead.token).then_some(());
        wait_for(format!("the answer of {lead:?}"), PATIENCE, heard).unwrap();
        let heard = watch.elapsed().as_secs_f32();
        say(format!("{what}: led again after {led:.2} s, with its token heard after {heard:.2} s"));
        lead
    }

    /// Kills the controller that leads, and waits until another does.
    #[track_caller]
    fn crash_leading_controller(&mut self) {
        let holder = || {
            let lease = self.space.get("lease", "consul-lock");
            lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
        };
        let leads = |replica: &Replica, holder: &str| holder.starts_with(&replica.name);
        let leader = wait_for("a controller to lead", PATIENCE, || {
            let holder = holder();
            self.controllers.iter().position(|replica| leads(replica, &holder))
        });
        let leader = leader.unwrap();
        self.controllers[leader].kill();
        wait_for("another controller to lead", PATIENCE, || {
            let holder = holder();
            let mut others = self.controllers.iter().enumerate();
            others.any(|(one, replica)| one != leader && leads(replica, &holder)).then_some(())
        })
        .unwrap();
    }

    fn last_end(&self) -> String {
        self.status()["history"][0]["reason"].as_str().unwrap().to_owned()
    }
}

#[test]
fn whatever_happens_to_the_pods_no_two_answer_as_leader_and_tokens_never_go_back() {
    let Some(cluster) = cluster() else { return };
    let config = ConsulConfig { also_on: vec![cluster.gateway()], ..Default::default() };
    let consul = Consul::start(config).unwrap();
    let scene = Scene::set(cluster, "traffic", &consul, 3);
    scene.claim("traffic", json!({}));
    let clients = Clients::of(scene.service());
    let first = scene.next(&clients, None, "the first election", &Stopwatch::start());

    let watch = Stopwatch::start();
    cluster.kill_container(&scene.space.namespace, &first.pod, "app").unwrap();
    let second = scene.next(&clients, Some(&first), "its container was killed", &watch);
    assert_eq!(scene.last_end(), "PodDied");
    assert_ne!(second.pod, first.pod, "others have been ready for longer");

    let watch = Stopwatch::start();
    scene.space.kubectl(&["delete", "pod", &second.pod, "--wait=false"]);
    let third = scene.next(&clients, Some(&second), "it was deleted, with grace", &watch);
    assert_eq!(scene.last_end(), "PodDeleted");
    scene.available();

    let watch = Stopwatch::start();
    scene.space.kubectl(&["rollout", "restart", &format!("deployment/{NAME}")]);
    scene.available();
    let fourth = scene.next(&clients, Some(&third), "a rolling update", &watch);

    let deployment = format!("deployment/{NAME}");
    scene.space.kubectl(&["scale", &deployment, "--replicas=0"]);
    let nobody = || (scene.status()["phase"] == json!("Waiting")).then_some(());
    wait_for("nobody to lead", PATIENCE, nobody).unwrap();
    assert_eq!(scene.endpoints(), Vec::<String>::new());
    let watch = Stopwatch::start();
    scene.space.kubectl(&["scale", &deployment, "--replicas=2"]);
    let fifth = scene.next(&clients, Some(&fourth), "scaled to 0 and back", &watch);
    assert!(fifth > fourth);
    clients.check();
}

#[test]
fn a_leader_whose_kubelet_is_gone_is_followed_by_the_other_cluster_in_time_or_on_an_operators_word()
{
    let Some(other) = cluster() else { return };
    let Some(turn) = disturbed_cluster() else { return };
    let gateways = vec![other.gateway(), turn.gateway()];
    let consul = Consul::start(ConsulConfig { also_on: gateways, ..Default::default() }).unwrap();
    let (lost, heir) =
        (Scene::set(*turn, "lost", &consul, 1), Scene::set(other, "heir", &consul, 1));
    lost.claim("node", json!({"unreachableAfter": "2s"}));
    let clients = Clients::of(lost.service());
    let first = lost.next(&clients, None, "the first election", &Stopwatch::start());
    heir.claim("node", json!({}));

    turn.kubelet().kill().unwrap();
    let watch = Stopwatch::start();
    let heard = Clients::of(heir.service());
    let second = heir.next(&heard, Some(&first), "its kubelet was killed: no proof", &watch);
    assert_eq!(lost.last_end(), "PodUnreachable");
    assert_eq!(lost.endpoints(), Vec::<String>::new());
    turn.kubelet().start_again().unwrap();
    let node = format!("node/{}", turn.node_name());
    lost.space.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=60s"]);

    // Back, and to be followed on proof alone.
    lost.claim("node", json!({"unreachableAfter": "never"}));
    heir.space.kubectl(&["scale", &format!("deployment/{NAME}"), "--replicas=0"]);
    let third = lost.next(&clients, Some(&second), "the heir is gone", &Stopwatch::start());
    heir.space.kubectl(&["scale", &format!("deployment/{NAME}"), "--replicas=1"]);
    heir.available();
    turn.kubelet().kill().unwrap();
    lost.space.kubectl(&["wait", "--for=condition=Ready=Unknown", &node, "--timeout=60s"]);
    assert_eq!(lost.lead().as_ref(), Some(&third));
    let watch = Stopwatch::start();
    let taint = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";
    lost.space.kubectl(&["taint", "node", turn.node_name(), taint]);
    heir.next(&heard, Some(&third), "its node was taken out of service", &watch);
    lost.space.kubectl(&["taint", "node", turn.node_name(), &format!("{taint}-")]);
    turn.kubelet().start_again().unwrap();
    lost.space.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=60s"]);
    heard.check();
}

#[test]
fn a_cluster_that_is_cut_off_from_consul_has_no_endpoint_when_the_other_one_takes_over() {
    let Some(other) = cluster() else { return };
    let Some(turn) = disturbed_cluster() else { return };
    let gateways = vec![other.gateway(), turn.gateway()];
    let consul = Consul::start(ConsulConfig { also_on: gateways, ..Default::default() }).unwrap();
    let (cut, heir) =
        (Scene::set(*turn, "cut", &consul, 2), Scene::set(other, "taker", &consul, 2));
    cut.claim("cut", json!({}));
    let (here, there) = (Clients::of(cut.service()), Clients::of(heir.service()));
    let first = cut.next(&here, None, "the first election", &Stopwatch::start());
    heir.claim("cut", json!({}));
    wait_for("the other's holder in the status", PATIENCE, || {
        let status = heir.status();
        (status["holder"]["cluster"] == json!(cut.space.namespace)).then_some(())
    })
    .unwrap();

    turn.cut().unwrap();
    let watch = Stopwatch::start();
    let mut both = Vec::new();
    wait_for("the other cluster's pod to be routed", PATIENCE, || {
        // In this order: an endpoint here that is seen before one there was there with it.
        let (here, there) = (cut.endpoints(), heir.endpoints());
        if !here.is_empty() && !there.is_empty() {
            both.push((here, there.clone()));
        }
        (!there.is_empty()).then_some(())
    })
    .unwrap();
    assert!(both.is_empty(), "two endpoints at once: {both:?}");
    let second = heir.next(&there, Some(&first), "its cluster was cut off from Consul", &watch);
    assert_eq!(cut.last_end(), "Expired");
    assert!(cut.lead().is_none_or(|lead| lead.pod != first.pod));
    turn.heal().unwrap();
    wait_for("the first cluster to wait", PATIENCE, || {
        (cut.status()["holder"]["pod"] == json!(second.pod)).then_some(())
    })
    .unwrap();
    assert_eq!(cut.endpoints(), Vec::<String>::new());
    there.check();
}

#[test]
fn an_api_server_that_is_away_and_a_controller_that_crashes_cost_no_tenure() {
    let Some(turn) = disturbed_cluster() else { return };
    let config = ConsulConfig { also_on: vec![turn.gateway()], ..Default::default() };
    let consul = Consul::start(config).unwrap();
    let mut scene = Scene::set(*turn, "steady", &consul, 2);
    scene.claim("steady", json!({}));
    let clients = Clients::of(scene.service());
    let first = scene.next(&clients, None, "the first election", &Stopwatch::start());
    scene.controllers.push(Replica::start(&scene.space, &consul));

    turn.apiserver().kill().unwrap();
    // Longer than the session would live without renewals.
    let session = || {
        let sessions = consul.request("GET", "/v1/session/list", b"").unwrap().json();
        sessions.as_array().map(Vec::len)
    };
    let away = Stopwatch::start();
    wait_for("more than twice the TTL to pass", PATIENCE, || {
        assert_eq!(session(), Some(1), "the controller goes on renewing");
        (away.elapsed().as_secs() > 21).then_some(())
    })
    .unwrap();
    turn.apiserver().start_again().unwrap();
    wait_for("the status again", PATIENCE, || {
        let answers = scene.space.try_kubectl(&["get", "consullock", NAME]).is_ok();
        answers.then_some(())
    })
    .unwrap();
    assert_eq!(scene.lead().as_ref(), Some(&first));

    scene.crash_leading_controller();
    assert_eq!(scene.lead().as_ref(), Some(&first));
    assert_eq!(scene.endpoints(), std::slice::from_ref(&first.pod));
    // The one that is left acts.
    let pause = r#"{"spec": {"paused": true}}"#;
    scene.space.kubectl(&["patch", "consullock", NAME, "--type=merge", "-p", pause]);
    let gone = || scene.endpoints().is_empty().then_some(());
    wait_for("the endpoint to be taken away", PATIENCE, gone).unwrap();
    // Left alone, the kubelet may take a minute until it looks at its node again.
    turn.kubelet().kill().unwrap();
    turn.kubelet().start_again().unwrap();
    let node = format!("node/{}", turn.node_name());
    scene.space.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=60s"]);
    clients.check();
}
