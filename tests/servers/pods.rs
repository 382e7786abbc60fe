//! Pods and nodes without a kubelet: the test writes what a kubelet would report.

use std::collections::BTreeMap;

use consul_lock::{api::ConsulLock, clock::Clock};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::site::{Replica, Site, eventually};

/// The pods of a site, on one node of their own.
pub(crate) struct Cast {
    claims: Api<ConsulLock>,
    pub(crate) pods: Api<Pod>,
    pub(crate) services: Api<Service>,
    pub(crate) slices: Api<EndpointSlice>,
    pub(crate) jobs: Api<Job>,
    nodes: Api<Node>,
    pub(crate) node: String,
}

/// An endpoint as a client of the Service would find it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    pub(crate) pod: String,
    pub(crate) address: String,
    pub(crate) ready: bool,
    pub(crate) token: Option<u64>,
}

impl Cast {
    /// A site of its own with a replica, and its pods to be.
    pub(crate) async fn on_stage(what: &str) -> (Site, Cast, Replica) {
        let site = Site::new(what).await;
        let (cast, replica) = (Cast::new(&site).await, site.start().await);
        (site, cast, replica)
    }

    pub(crate) async fn new(site: &Site) -> Cast {
        let (client, namespace) = (site.client.clone(), &site.namespace);
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
        let mut account = ServiceAccount::default();
        account.metadata.name = Some("default".to_owned());
        accounts.create(&PostParams::default(), &account).await.unwrap();
        let cast = Cast {
            claims: site.claims.clone(),
            pods: Api::namespaced(client.clone(), namespace),
            services: Api::namespaced(client.clone(), namespace),
            slices: Api::namespaced(client.clone(), namespace),
            jobs: Api::namespaced(client.clone(), namespace),
            nodes: Api::all(client),
            node: format!("{namespace}-node"),
        };
        let mut node = Node::default();
        node.metadata.name = Some(cast.node.clone());
        cast.nodes.create(&PostParams::default(), &node).await.unwrap();
        cast.node_is("True").await;
        cast
    }

    /// The node's Ready condition: True, False or Unknown.
    pub(crate) async fn node_is(&self, ready: &str) {
        let condition = json!({
            "type": "Ready", "status": ready, "reason": "Test", "message": "",
            "lastTransitionTime": "2026-01-02T03:04:05Z",
        });
        let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
        self.nodes.patch_status(&self.node, &PatchParams::default(), &patch).await.unwrap();
    }

    /// An operator takes the node out of service.
    pub(crate) async fn out_of_service(&self) {
        let taint = json!({
            "key": "node.kubernetes.io/out-of-service", "effect": "NoExecute",
        });
        let patch = Patch::Strategic(json!({ "spec": { "taints": [taint] } }));
        self.nodes.patch(&self.node, &PatchParams::default(), &patch).await.unwrap();
    }

    /// A pod that matches `app: billing`, and has been ready since this second of some minute.
    pub(crate) async fn ready(&self, name: &str, second: u32) {
        self.with(name, second, json!({})).await;
    }

    /// The same with annotations.
    pub(crate) async fn with(&self, name: &str, second: u32, annotations: Value) {
        self.create(name, annotations, &["app"]).await;
        self.report(name, "True", second, vec![running("app", name, 0)]).await;
    }

    /// The same with these containers, all of them running.
    pub(crate) async fn with_containers(&self, name: &str, second: u32, containers: &[&str]) {
        self.create(name, json!({}), containers).await;
        let running = containers.iter().map(|container| running(container, name, 0));
        self.report(name, "True", second, running.collect()).await;
    }

    async fn create(&self, name: &str, annotations: Value, containers: &[&str]) {
        let container = |name: &&str| {
            // A port of one name is the first container's.
            let web = json!({ "name": "web", "containerPort": 8080 });
            let ports = Vec::from_iter((*name == containers[0]).then_some(web));
            json!({ "name": name, "image": "none", "ports": ports })
        };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "labels": { "app": "billing" }, "annotations": annotations,
            },
            "spec": {
                "nodeName": self.node,
                "containers": containers.iter().map(container).collect::<Vec<_>>(),
            },
        });
        let pod = serde_json::from_value(pod).unwrap();
        self.pods.create(&PostParams::default(), &pod).await.unwrap();
    }

    /// A Job that a CronJob made for a scheduled time, or that somebody made by hand.
    pub(crate) async fn job(&self, name: &str, scheduled: Option<&str>) {
        let annotations =
            scheduled.map(|due| json!({ "batch.kubernetes.io/cronjob-scheduled-timestamp": due }));
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": { "name": name, "annotations": annotations },
            "spec": { "template": { "spec": {
                "restartPolicy": "Never", "containers": [{ "name": "app", "image": "none" }],
            } } },
        });
        let job = serde_json::from_value(job).unwrap();
        self.jobs.create(&PostParams::default(), &job).await.unwrap();
    }

    /// A pod of a Job that waits at its gate.
    pub(crate) async fn gated_of(&self, job: &str, name: &str) {
        let uid = self.jobs.get(job).await.unwrap().metadata.uid;
        let owner = json!([{
            "apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid, "controller": true,
        }]);
        self.gated_with(name, owner).await;
    }

    /// A pod that waits at its gate.
    pub(crate) async fn gated(&self, name: &str) {
        self.gated_with(name, json!([])).await;
    }

    async fn gated_with(&self, name: &str, owners: Value) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "labels": { "app": "billing" }, "ownerReferences": owners,
            },
            "spec": {
                "restartPolicy": "Never",
                "schedulingGates": [{ "name": "consullock.dev/held" }, { "name": "example.com/other" }],
                "containers": [{ "name": "app", "image": "none" }],
            },
        });
        let pod = serde_json::from_value(pod).unwrap();
        self.pods.create(&PostParams::default(), &pod).await.unwrap();
    }

    /// The names of the gates at which a pod waits.
    pub(crate) async fn gates(&self, name: &str) -> Vec<String> {
        let spec = self.pods.get(name).await.unwrap().spec.unwrap();
        spec.scheduling_gates.into_iter().flatten().map(|gate| gate.name).collect()
    }

    /// What scheduler and kubelet do with a pod once all of its gates are open.
    pub(crate) async fn runs(&self, name: &str) {
        let open = Patch::Strategic(json!({ "spec": { "schedulingGates": [
            { "name": "example.com/other", "$patch": "delete" },
        ] } }));
        self.pods.patch(name, &PatchParams::default(), &open).await.unwrap();
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
            "target": { "apiVersion": "v1", "kind": "Node", "name": self.node },
        });
        let params = PostParams::default();
        let bound = self.pods.create_subresource("binding", name, &params, &binding);
        let _: Value = bound.await.unwrap();
        self.report(name, "True", 1, vec![running("app", name, 0)]).await;
    }

    /// It has done its work: Succeeded, or Failed.
    pub(crate) async fn finished(&self, name: &str, phase: &str) {
        self.ended(name).await;
        let patch = Patch::Strategic(json!({ "status": { "phase": phase } }));
        self.pods.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// The kubelet's report: readiness, since when, and of the containers.
    pub(crate) async fn report(
        &self,
        name: &str,
        ready: &str,
        second: u32,
        containers: Vec<Value>,
    ) {
        let last = name.bytes().last().unwrap();
        let (four, six) = (format!("10.9.8.{last}"), format!("fd00::{last:x}"));
        let patch = Patch::Strategic(json!({ "status": {
            "phase": "Running",
            "podIP": four, "podIPs": [{ "ip": four }, { "ip": six }],
            "conditions": [{
                "type": "Ready", "status": ready,
                "lastTransitionTime": format!("2026-01-02T03:04:{second:02}Z"),
            }],
            "containerStatuses": containers,
        } }));
        self.pods.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// It is alive, but not ready.
    pub(crate) async fn unready(&self, name: &str) {
        self.report(name, "False", 0, vec![running("app", name, 0)]).await;
    }

    /// Its container has ended, and is not started again.
    pub(crate) async fn ended(&self, name: &str) {
        self.report(name, "False", 0, vec![ended("app", name)]).await;
    }

    /// The kubelet has restarted the container already: only the count, the ID and the last state
    /// tell of it.
    pub(crate) async fn restarted(&self, name: &str, second: u32) {
        self.runs_for_the(name, 1, second).await;
    }

    /// The same for a container that has been restarted more often.
    pub(crate) async fn runs_for_the(&self, name: &str, restarts: i32, second: u32) {
        self.report(name, "True", second, vec![running("app", name, restarts)]).await;
    }

    /// Deleted as `kubectl delete` does: it stays until its kubelet is done with it.
    pub(crate) async fn delete(&self, name: &str) {
        self.pods.delete(name, &DeleteParams::default()).await.unwrap();
        assert!(self.pods.get(name).await.unwrap().metadata.deletion_timestamp.is_some());
    }

    /// The object goes at once: what a kubelet does in the end, or an operator by force.
    pub(crate) async fn remove(&self, name: &str) {
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.pods.delete(name, &at_once).await.unwrap();
    }

    /// A Service without a selector.
    pub(crate) async fn service(&self, name: &str, spec: Value) {
        let mut whole = json!({ "ports": [
            { "name": "http", "port": 80, "targetPort": "web" },
            { "name": "admin", "port": 81, "targetPort": 9000 },
        ] });
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": whole });
        let service = serde_json::from_value(service).unwrap();
        self.services.create(&PostParams::default(), &service).await.unwrap();
    }

    /// The endpoints of a Service.
    pub(crate) async fn endpoints(&self, service: &str) -> Vec<Found> {
        let of = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let slices = self.slices.list(&of).await.unwrap().items;
        let found = slices.iter().flat_map(|slice| {
            slice.endpoints.iter().map(|endpoint| Found {
                pod: endpoint
                    .target_ref
                    .as_ref()
                    .and_then(|to| to.name.clone())
                    .unwrap_or_default(),
                address: endpoint.addresses[0].clone(),
                ready: endpoint.conditions.as_ref().and_then(|known| known.ready).unwrap_or(false),
                token: slice
                    .annotations()
                    .get("consullock.dev/fencing-token")
                    .and_then(|token| token.parse().ok()),
            })
        });
        found.collect()
    }

    /// Waits until traffic goes to this pod, or to nobody.
    pub(crate) async fn routed(&self, service: &str, pod: Option<&str>) -> Option<Found> {
        let look = || async {
            let mut found = self.endpoints(service).await;
            match (found.len(), pod) {
                (0, None) => Ok(None),
                (1, Some(pod)) if found[0].pod == pod => Ok(found.pop()),
                _ => Err(found),
            }
        };
        eventually(&format!("{service} to be routed to {pod:?}"), look).await
    }

    /// The pods that carry the claim's label, with their tokens; and those with a token alone.
    pub(crate) async fn badges(&self, claim: &str) -> BTreeMap<String, Option<u64>> {
        let (label, token) =
            (format!("consullock.dev/{claim}"), format!("token.consullock.dev/{claim}"));
        let pods = self.pods.list(&ListParams::default()).await.unwrap().items;
        let badged = pods.iter().filter(|pod| {
            pod.labels().contains_key(&label) || pod.annotations().contains_key(&token)
        });
        let shown = badged.map(|pod| {
            let token = pod.annotations().get(&token).and_then(|token| token.parse().ok());
            (
                pod.name_any(),
                token.filter(|_| pod.labels().get(&label).is_some_and(|l| l == "holder")),
            )
        });
        shown.collect()
    }

    /// Waits until this pod alone carries label and token, and the status says the same; its token.
    pub(crate) async fn led_by(&self, claim: &str, pod: &str) -> u64 {
        let look = || async {
            let status = self.claims.get(claim).await.unwrap().status.unwrap_or_default();
            let badges = self.badges(claim).await;
            let holder = status.holder.as_ref().and_then(|holder| holder.pod.as_deref());
            let token = status.fencing_token.as_ref().and_then(|token| token.parse().ok());
            let expected = BTreeMap::from([(pod.to_owned(), token)]);
            match token {
                Some(token) if holder == Some(pod) && badges == expected => Ok(token),
                _ => Err((badges, status)),
            }
        };
        eventually(&format!("{claim} to be led by {pod}"), look).await
    }

    /// Waits until no pod carries anything of the claim's.
    pub(crate) async fn led_by_nobody(&self, claim: &str) {
        let look = || async {
            let badges = self.badges(claim).await;
            if badges.is_empty() { Ok(()) } else { Err(badges) }
        };
        eventually(&format!("{claim} to be led by nobody"), look).await;
    }
}

/// A claim's spec for the pods of a [`Cast`], with more beside the selector.
pub(crate) fn candidates(more: Value) -> Value {
    let mut candidates = json!({ "selector": { "matchLabels": { "app": "billing" } } });
    candidates.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "candidates": candidates, "session": { "lockDelay": "0s" } })
}

/// The same, routed.
pub(crate) fn routed(more: Value) -> Value {
    let mut spec = candidates(more);
    spec["routing"] = json!({ "service": "billing" });
    spec
}

/// A running container, after so many restarts.
pub(crate) fn running(name: &str, pod: &str, restarts: i32) -> Value {
    container(name, pod, restarts, json!({ "running": { "startedAt": "2026-01-02T03:04:05Z" } }))
}

/// A container that has ended and is not started again.
pub(crate) fn ended(name: &str, pod: &str) -> Value {
    let now = Clock::boot().wall().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let terminated = json!({ "exitCode": 137, "containerID": id(name, pod, 0), "finishedAt": now });
    container(name, pod, 0, json!({ "terminated": terminated }))
}

fn id(name: &str, pod: &str, restarts: i32) -> String {
    format!("test://{pod}-{name}-{restarts}")
}

fn container(name: &str, pod: &str, restarts: i32, state: Value) -> Value {
    json!({
        "name": name, "image": "none", "imageID": "", "ready": true,
        "containerID": id(name, pod, restarts), "restartCount": restarts, "state": state,
    })
}
