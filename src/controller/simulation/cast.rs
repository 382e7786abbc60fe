//! Everybody in the cluster but the controller: pods with their kubelets, nodes, a user, a rival.

use serde_json::{Value, json};

use super::{
    CLAIM, NAMESPACE, Random, SERVICE, chance, name_of, pick, text,
    world::{Shared, World},
};

const PODS: &str = "/api/v1/namespaces/shop/pods";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";
const CLAIMS: &str = "/apis/consullock.dev/v1alpha1/namespaces/shop/consullocks";
const SERVICES: &str = "/api/v1/namespaces/shop/services";
const NODES: &str = "/api/v1/nodes";

/// The nodes, and how many pods there are at most.
const NODE_NAMES: [&str; 2] = ["n-0", "n-1"];
const PODS_MAX: usize = 4;

pub(super) struct Cast {
    world: Shared,
    random: Random,
    /// A pod that went is followed by one of its name, as in a StatefulSet.
    names_return: bool,
    dual_stack: bool,
    made: usize,
}

impl Cast {
    /// The namespace, the nodes, the Service and the claim.
    pub(super) fn new(world: &Shared, random: &Random, spec: &Value) -> Cast {
        let cast = Cast {
            world: world.clone(),
            random: random.clone(),
            names_return: chance(random, 0.5),
            dual_stack: chance(random, 0.2),
            made: 0,
        };
        let mut world = cast.world.lock();
        world.act("POST", "/api/v1/namespaces", &json!({ "metadata": { "name": NAMESPACE } }));
        for node in NODE_NAMES {
            world.act("POST", NODES, &json!({ "metadata": { "name": node }, "spec": {} }));
            node_is(&mut world, node, "True");
        }
        cast.serve(&mut world);
        drop(world);
        cast.declare(CLAIM, spec);
        cast
    }

    pub(super) fn declare(&self, name: &str, spec: &Value) {
        let claim = json!({
            "apiVersion": "consullock.dev/v1alpha1", "kind": "ConsulLock",
            "metadata": { "name": name }, "spec": spec,
        });
        self.world.lock().act("POST", CLAIMS, &claim);
    }

    fn serve(&self, world: &mut World) {
        let families = if self.dual_stack { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
        let service = json!({
            "metadata": { "name": SERVICE },
            "spec": {
                "ipFamilies": families,
                "ports": [{ "name": "http", "port": 80, "targetPort": "web" }],
            },
        });
        world.act("POST", SERVICES, &service);
    }

    /// Something happens.
    pub(super) fn strike(&mut self) {
        let world = self.world.clone();
        let mut world = world.lock();
        let pods: Vec<Value> = world.api.all("pods").map(|pod| (**pod).clone()).collect();
        let pod = (!pods.is_empty()).then(|| pods[pick(&self.random, pods.len())].clone());
        let node = NODE_NAMES[pick(&self.random, NODE_NAMES.len())];
        match (pick(&self.random, 20), pod) {
            (0..=3, _) => self.create(&mut world),
            (4 | 5, Some(pod)) => report(&mut world, &pod, !is_ready(&pod), 0),
            (6, Some(pod)) => die(&mut world, &pod),
            (7 | 8, Some(pod)) => report(&mut world, &pod, true, 1),
            (9 | 10, Some(pod)) => drop(world.act("DELETE", &path(&pod), &Value::Null)),
            (11, Some(pod)) => remove(&mut world, &pod),
            (12, _) => take_down(&mut world, node),
            (13, _) => bring_back(&mut world, node),
            (14, _) => out_of_service(&mut world, node),
            (15 | 16, _) => {
                let paused = world.claim()["spec"]["paused"] == true;
                pause(&mut world, !paused);
            }
            (17, _) if world.api.all("services").next().is_some() => {
                world.act("DELETE", &format!("{SERVICES}/{SERVICE}"), &Value::Null);
            }
            (17, _) => self.serve(&mut world),
            (18, _) => rival(&mut world, &self.random),
            _ => {}
        }
    }

    /// What kubelets do by themselves: they end what is being deleted, sooner or later.
    pub(super) fn tick(&mut self) {
        let mut world = self.world.lock();
        let leaving: Vec<Value> = world
            .api
            .all("pods")
            .filter(|pod| is_deleting(pod) && is_up(&world, text(&pod["spec"]["nodeName"])))
            .map(|pod| (**pod).clone())
            .collect();
        for pod in leaving {
            if chance(&self.random, 0.5) {
                die(&mut world, &pod);
                remove(&mut world, &pod);
            }
        }
    }

    /// Everybody is well again.
    pub(super) fn heal(&mut self) {
        let world = self.world.clone();
        let mut world = world.lock();
        for node in NODE_NAMES {
            bring_back(&mut world, node);
        }
        let pods: Vec<Value> = world.api.all("pods").map(|pod| (**pod).clone()).collect();
        for pod in pods.iter().filter(|pod| is_deleting(pod)) {
            die(&mut world, pod);
            remove(&mut world, pod);
        }
        if world.api.all("services").next().is_none() {
            self.serve(&mut world);
        }
        if chance(&self.random, 0.9) {
            pause(&mut world, false);
        }
        let no_end = json!({ "spec": { "acquire": null } });
        world.act("PATCH", &format!("{CLAIMS}/{CLAIM}"), &no_end);
    }

    fn create(&mut self, world: &mut World) {
        let names: Vec<String> = world.api.all("pods").map(|pod| name_of(pod).to_owned()).collect();
        if names.len() >= PODS_MAX {
            return;
        }
        self.made += 1;
        let name = match self.names_return {
            true => (0..).map(|at| format!("p-{at}")).find(|name| !names.contains(name)),
            false => Some(format!("p-{}", self.made)),
        };
        let name = name.expect("there are numbers enough");
        let node = NODE_NAMES[pick(&self.random, NODE_NAMES.len())];
        let pod = json!({
            "metadata": { "name": name, "labels": { "app": "billing" } },
            "spec": {
                "nodeName": node,
                "containers": [{
                    "name": "app", "ports": [{ "name": "web", "containerPort": 8080 }],
                }],
            },
        });
        let made = world.act("POST", PODS, &pod).body;
        let ready = chance(&self.random, 0.8) && is_up(world, node);
        report(world, &made, ready, 0);
    }
}

fn path(pod: &Value) -> String {
    format!("{PODS}/{}", name_of(pod))
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"][0]["status"] == "True"
}

pub(super) fn is_deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

pub(super) fn is_eligible(world: &World, pod: &Value) -> bool {
    is_ready(pod) && !is_deleting(pod) && is_up(world, text(&pod["spec"]["nodeName"]))
}

fn node<'a>(world: &'a World, name: &str) -> &'a Value {
    world.api.all("nodes").find(|node| name_of(node) == name).expect("nodes stay")
}

fn is_up(world: &World, name: &str) -> bool {
    let node = node(world, name);
    node["status"]["conditions"][0]["status"] == "True" && node["spec"]["taints"].is_null()
}

fn pause(world: &mut World, paused: bool) {
    world.act("PATCH", &format!("{CLAIMS}/{CLAIM}"), &json!({ "spec": { "paused": paused } }));
}

fn node_is(world: &mut World, name: &str, ready: &str) {
    let conditions = json!([{ "type": "Ready", "status": ready }]);
    let status = json!({ "status": { "conditions": conditions } });
    world.act("PATCH", &format!("{NODES}/{name}/status"), &status);
}

fn on_node(world: &World, name: &str) -> Vec<Value> {
    let pods = world.api.all("pods").filter(|pod| pod["spec"]["nodeName"] == name);
    pods.map(|pod| (**pod).clone()).collect()
}

/// A kubelet's report: readiness, and by how many its container was restarted since the last.
fn report(world: &mut World, pod: &Value, ready: bool, restarts: u64) {
    let up = is_up(world, text(&pod["spec"]["nodeName"]));
    let first = pod["status"].is_null();
    let dead = !pod["status"]["containerStatuses"][0]["state"]["terminated"].is_null();
    if is_deleting(pod) || (!up && !first) || (dead && restarts == 0) {
        return;
    }
    let before = &pod["status"]["containerStatuses"][0]["restartCount"];
    let count = before.as_u64().unwrap_or(0) + restarts;
    let state = json!({ "running": {} });
    write_report(world, pod, ready, count, &state);
}

/// Its container ends and is not started again.
fn die(world: &mut World, pod: &Value) {
    let count = pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0);
    if is_up(world, text(&pod["spec"]["nodeName"])) {
        write_report(world, pod, false, count, &json!({ "terminated": { "exitCode": 1 } }));
    }
}

fn write_report(world: &mut World, pod: &Value, ready: bool, restarts: u64, state: &Value) {
    let uid = text(&pod["metadata"]["uid"]);
    let number: u64 = uid.trim_start_matches("uid-").parse().unwrap_or(0);
    let (v4, v6) = (format!("10.0.{}.{}", number / 250, number % 250), format!("fd00::{number:x}"));
    let since = match is_ready(pod) == ready && restarts == 0 {
        true => pod["status"]["conditions"][0]["lastTransitionTime"].clone(),
        false => Value::Null,
    };
    let since = if since.is_null() { world.wall().into() } else { since };
    let status = json!({ "status": {
        "podIPs": [{ "ip": v4 }, { "ip": v6 }],
        "conditions": [{
            "type": "Ready", "status": if ready { "True" } else { "False" },
            "lastTransitionTime": since,
        }],
        "containerStatuses": [{
            "name": "app", "containerID": format!("sim://{uid}-{restarts}"),
            "restartCount": restarts, "state": state,
        }],
    } });
    world.act("PATCH", &format!("{}/status", path(pod)), &status);
}

/// The object goes at once: what a kubelet does in the end, or an operator by force.
fn remove(world: &mut World, pod: &Value) {
    world.act("DELETE", &path(pod), &json!({ "gracePeriodSeconds": 0 }));
}

/// Its kubelet is heard of no more; somebody else says that its pods are not ready.
fn take_down(world: &mut World, name: &str) {
    for pod in on_node(world, name) {
        report(world, &pod, false, 0);
    }
    node_is(world, name, "Unknown");
}

fn bring_back(world: &mut World, name: &str) {
    node_is(world, name, "True");
    world.act("PATCH", &format!("{NODES}/{name}"), &json!({ "spec": { "taints": null } }));
    for pod in on_node(world, name) {
        report(world, &pod, true, 0);
    }
}

/// An operator warrants that nothing runs there; the pods are removed by force.
fn out_of_service(world: &mut World, name: &str) {
    take_down(world, name);
    let taints = json!([{ "key": "node.kubernetes.io/out-of-service", "effect": "NoExecute" }]);
    world.act("PATCH", &format!("{NODES}/{name}"), &json!({ "spec": { "taints": taints } }));
    for pod in on_node(world, name) {
        remove(world, &pod);
    }
}

/// Somebody else writes to one of the objects that the controller writes to.
fn rival(world: &mut World, random: &Random) {
    let kind = ["pods", "endpointslices", "consullocks"][pick(random, 3)];
    let names: Vec<String> = world.api.all(kind).map(|one| name_of(one).to_owned()).collect();
    if let Some(name) = names.first() {
        let folder = match kind {
            "pods" => PODS,
            "endpointslices" => SLICES,
            _ => CLAIMS,
        };
        let note = json!({ "metadata": { "annotations": { "rival": world.wall() } } });
        world.act("PATCH", &format!("{folder}/{name}"), &note);
    }
}
