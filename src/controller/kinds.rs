//! The kinds of objects that are watched, each with only those fields that are used, and what they
//! can be found by.
//!
//! One watch per kind, or per kind and namespace, serves all claims. A change of an object is told
//! to the claims that have asked for one of its keys: a claim asks for the pods of a label of its
//! selector, for its Service and for the slices of it.

use std::{net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Resource, ResourceExt,
    core::{ObjectMeta, PartialObjectMeta},
};
use serde::Deserialize;

use super::cache::{Cached, ObjectName};
use crate::{
    api::ConsulLock,
    election::{
        BADGE, Badged, Candidate, Container, GATE, MANAGED_BY, MANAGED_BY_LABEL, Origin,
        PRIORITY_ANNOTATION, Reach, SERVICE_LABEL, claim_of_annotation, claim_of_label, label,
        token_annotation,
    },
};

/// A pod, as far as it matters to an election.
#[derive(Resource, Clone, Debug, Default, PartialEq, Deserialize)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
pub(super) struct Pod {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<Arc<str>>,
    scheduling_gates: Vec<Gate>,
    containers: Vec<ContainerSpec>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Gate {
    name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct ContainerSpec {
    name: Arc<str>,
    ports: Vec<PortSpec>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PortSpec {
    name: Option<String>,
    protocol: Option<String>,
    container_port: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
    conditions: Vec<ConditionSeen>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConditionSeen {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    last_transition_time: Option<Time>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    name: Arc<str>,
    #[serde(rename = "containerID")]
    container_id: Option<Arc<str>>,
    restart_count: i32,
    state: ContainerState,
    last_state: ContainerState,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct ContainerState {
    running: Option<There>,
    terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Terminated {
    finished_at: Option<Time>,
}

/// That there is one is all that matters.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct There {}

/// A node, as far as it matters to an election.
#[derive(Resource, Clone, Debug, Default, PartialEq, Deserialize)]
#[resource(inherit = "k8s_openapi::api::core::v1::Node")]
pub(super) struct Node {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct NodeSpec {
    taints: Vec<Taint>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Taint {
    key: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct NodeStatus {
    conditions: Vec<ConditionSeen>,
}

/// A Job, as far as it matters to `OncePerSchedule`.
#[derive(Resource, Clone, Debug, Default, PartialEq, Deserialize)]
#[resource(inherit = "k8s_openapi::api::batch::v1::Job")]
pub(super) struct Job {
    pub(super) metadata: ObjectMeta,
}

/// When the CronJob was due that made a Job.
/// <https://kubernetes.io/docs/reference/labels-annotations-taints/#batch-kubernetes-io-cronjob-scheduled-timestamp>
const SCHEDULED_ANNOTATION: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// <https://kubernetes.io/docs/reference/labels-annotations-taints/#node-kubernetes-io-out-of-service>
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The key by which claims are told of every pod of a namespace.
fn any_pod(namespace: &str) -> String {
    format!("pods {namespace}")
}

fn labelled(namespace: &str, label: &str, value: &str) -> String {
    format!("label {namespace} {label}={value}")
}

/// The key of pods that carry a claim's badge.
pub(super) fn badge_of(namespace: &str, claim: &str) -> String {
    format!("badge {namespace} {claim}")
}

/// The claim whose badge a key is about, whether it exists or not.
pub(super) fn bearer(key: &str) -> Option<ObjectName> {
    let (namespace, claim) = key.strip_prefix("badge ")?.split_once(' ')?;
    Some(ObjectName::new(namespace, claim))
}

/// The key of a pod by its UID.
pub(super) fn uid(uid: &str) -> String {
    format!("uid {uid}")
}

/// The key of pods on a node.
pub(super) fn on_node(node: &str) -> String {
    format!("node {node}")
}

/// The key of a Service, and of the slices that serve it.
pub(super) fn of_service(namespace: &str, service: &str) -> String {
    format!("service {namespace} {service}")
}

/// The key of what an object owns: of a claim its slices, of a Job its pods.
pub(super) fn owned_by(uid: &str) -> String {
    format!("owner {uid}")
}

/// The key of what an object owns, by the key of its UID.
pub(super) fn owned_by_key(key: &str) -> Option<String> {
    key.strip_prefix("uid ").map(owned_by)
}

/// The key by which the pods that a claim may elect are found.
pub(super) fn candidates_of(namespace: &str, label: Option<&(String, String)>) -> String {
    match label {
        Some((label, value)) => labelled(namespace, label, value),
        None => any_pod(namespace),
    }
}

fn namespace_of(object: &impl Resource) -> &str {
    object.meta().namespace.as_deref().unwrap_or_default()
}

impl Cached for ConsulLock {
    /// What the claim wants to be told of.
    fn keys(&self) -> Vec<String> {
        let namespace = namespace_of(self);
        let candidates = self.spec.candidates.as_ref().map(|candidates| {
            let label = candidates.selector.match_labels.first_key_value();
            let label = label.map(|(label, value)| (label.clone(), value.clone()));
            candidates_of(namespace, label.as_ref())
        });
        let routing = self.spec.routing.as_ref();
        let service = routing.map(|routing| of_service(namespace, &routing.service));
        let badge = badge_of(namespace, &self.name_any());
        let slices = self.uid().map(|uid| owned_by(&uid));
        [Some(badge), candidates, service, slices].into_iter().flatten().collect()
    }
}

impl Cached for PartialObjectMeta<k8s_openapi::api::core::v1::Namespace> {}

impl Cached for Pod {
    fn keys(&self) -> Vec<String> {
        let namespace = namespace_of(self);
        let mut keys = vec![any_pod(namespace)];
        keys.extend(self.labels().iter().map(|(k, v)| labelled(namespace, k, v)));
        let badges = self.labels().keys().filter_map(|key| claim_of_label(key));
        let tokens = self.annotations().keys().filter_map(|key| claim_of_annotation(key));
        for claim in badges.chain(tokens) {
            let badge = badge_of(namespace, claim);
            if !keys.contains(&badge) {
                keys.push(badge);
            }
        }
        keys.extend(self.metadata.uid.as_deref().map(uid));
        keys.extend(self.spec.node_name.as_deref().map(on_node));
        keys.extend(self.job().map(owned_by));
        keys
    }

    fn is_same(&self, other: &Pod) -> bool {
        let version = other.metadata.resource_version.clone();
        let metadata = ObjectMeta { resource_version: version, ..self.metadata.clone() };
        metadata == other.metadata && self.spec == other.spec && self.status == other.status
    }
}

impl Cached for Node {
    fn keys(&self) -> Vec<String> {
        vec![on_node(&self.name_any())]
    }

    fn is_same(&self, other: &Node) -> bool {
        self.reach() == other.reach()
    }
}

impl Cached for Job {
    fn keys(&self) -> Vec<String> {
        self.metadata.uid.as_deref().map(uid).into_iter().collect()
    }

    fn is_same(&self, other: &Job) -> bool {
        self.annotations() == other.annotations()
    }
}

impl Cached for Service {
    fn keys(&self) -> Vec<String> {
        vec![of_service(namespace_of(self), &self.name_any())]
    }

    fn is_same(&self, other: &Service) -> bool {
        self.spec == other.spec
    }
}

impl Cached for EndpointSlice {
    fn keys(&self) -> Vec<String> {
        let served = self.labels().get(SERVICE_LABEL);
        let mut keys = Vec::from_iter(served.map(|name| of_service(namespace_of(self), name)));
        keys.extend(self.owner_references().iter().map(|owner| owned_by(&owner.uid)));
        keys
    }
}

impl Pod {
    /// Drops what is not used: the rest of the metadata, and conditions but `Ready`.
    pub(super) fn slim(&mut self) {
        let metadata = std::mem::take(&mut self.metadata);
        let ours = |key: &String| key == PRIORITY_ANNOTATION || claim_of_annotation(key).is_some();
        self.metadata = ObjectMeta {
            annotations: metadata.annotations.map(|mut annotations| {
                annotations.retain(|key, _| ours(key));
                annotations
            }),
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
            labels: metadata.labels,
            name: metadata.name,
            namespace: metadata.namespace,
            resource_version: metadata.resource_version,
            owner_references: metadata.owner_references.map(|mut owners| {
                owners.retain(|owner| owner.kind == "Job" && owner.controller == Some(true));
                owners
            }),
            uid: metadata.uid,
            ..ObjectMeta::default()
        };
        self.status.conditions.retain(|condition| condition.kind == "Ready");
    }

    /// The UID of the Job that made it.
    pub(super) fn job(&self) -> Option<&str> {
        let mut owners = self.owner_references().iter();
        owners.find(|owner| owner.kind == "Job").map(|owner| owner.uid.as_str())
    }

    /// The pod as an election sees it. `matches`: whether the claim's selector does.
    pub(super) fn candidate(&self, matches: bool, reach: Reach) -> Candidate {
        let priority = self.annotations().get(PRIORITY_ANNOTATION);
        Candidate {
            name: self.name_any().into(),
            uid: self.uid().unwrap_or_default().into(),
            node: self.node(),
            matches,
            created: self.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            deleting: self.metadata.deletion_timestamp.is_some(),
            ready_since: ready(&self.status.conditions),
            gated: self.spec.scheduling_gates.iter().any(|gate| gate.name == GATE),
            finished: self.status.is_final(),
            succeeded: self.status.is_final() && self.status.phase == "Succeeded",
            origin: Origin::Other,
            already_ran: false,
            priority: priority.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
            containers: self.status.container_statuses.iter().map(container).collect(),
            reach,
        }
    }

    /// What it carries of a claim's badge, if anything.
    pub(super) fn badge(&self, claim: &str) -> Badged {
        Badged {
            pod: self.name_any().into(),
            uid: self.uid().unwrap_or_default().into(),
            labelled: self.labels().get(&label(claim)).is_some_and(|value| value == BADGE),
            token: self.annotations().get(&token_annotation(claim)).cloned(),
            deleting: self.metadata.deletion_timestamp.is_some(),
        }
    }

    pub(super) fn node(&self) -> Option<Arc<str>> {
        self.spec.node_name.clone()
    }

    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.status.pod_ips.iter().filter_map(|one| one.ip.parse().ok()).collect()
    }

    /// The ports that its containers name: name, protocol, number.
    pub(super) fn named_ports(&self) -> Vec<(String, String, i32)> {
        let ports = self.spec.containers.iter().flat_map(|container| &container.ports);
        let named = ports.filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some((port.name.clone()?, protocol, port.container_port))
        });
        named.collect()
    }
}

impl Job {
    /// Drops what is not used.
    pub(super) fn slim(&mut self) {
        let metadata = std::mem::take(&mut self.metadata);
        self.metadata = ObjectMeta {
            annotations: metadata.annotations.map(|mut annotations| {
                annotations.retain(|key, _| key == SCHEDULED_ANNOTATION);
                annotations
            }),
            name: metadata.name,
            namespace: metadata.namespace,
            resource_version: metadata.resource_version,
            uid: metadata.uid,
            ..ObjectMeta::default()
        };
    }

    /// As the origin of its pods.
    pub(super) fn origin(&self) -> Origin {
        let scheduled = self.annotations().get(SCHEDULED_ANNOTATION);
        Origin::Job {
            name: self.name_any().into(),
            uid: self.uid().unwrap_or_default().into(),
            scheduled: scheduled.and_then(|text| text.parse().ok()),
        }
    }
}

impl Node {
    /// Drops what is not used.
    pub(super) fn slim(&mut self) {
        let metadata = std::mem::take(&mut self.metadata);
        self.metadata = ObjectMeta {
            name: metadata.name,
            resource_version: metadata.resource_version,
            uid: metadata.uid,
            ..ObjectMeta::default()
        };
        self.status.conditions.retain(|condition| condition.kind == "Ready");
        self.spec.taints.retain(|taint| taint.key == OUT_OF_SERVICE);
    }

    pub(super) fn reach(&self) -> Reach {
        if self.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE) {
            Reach::OutOfService
        } else if ready(&self.status.conditions).is_some() {
            Reach::Reachable
        } else {
            Reach::Unreachable
        }
    }
}

impl PodStatus {
    /// The phase alone may be somebody's guess: that nothing runs is the kubelet's word.
    fn is_final(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
            && self.container_statuses.iter().all(|container| container.state.running.is_none())
    }
}

fn ready(conditions: &[ConditionSeen]) -> Option<Timestamp> {
    let is_ready = |one: &&ConditionSeen| one.kind == "Ready" && one.status == "True";
    let ready = conditions.iter().find(is_ready)?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

fn container(status: &ContainerStatus) -> Container {
    let over = status.state.terminated.as_ref().or(status.last_state.terminated.as_ref());
    Container {
        ended: over.and_then(|over| over.finished_at.as_ref()).map(|time| time.0),
        name: Arc::clone(&status.name),
        id: status.container_id.clone().filter(|id| !id.is_empty()),
        restarts: status.restart_count,
        running: status.state.running.is_some(),
        terminated: status.state.terminated.is_some(),
    }
}

/// Drops what is not used of a Service.
pub(super) fn slim_service(service: &mut Service) {
    service.metadata.managed_fields = None;
    service.metadata.annotations = None;
    service.status = None;
}

/// Drops what is not used of a slice; of slices that are not ours, what is in them.
pub(super) fn slim_slice(slice: &mut EndpointSlice) {
    slice.metadata.managed_fields = None;
    if slice.labels().get(MANAGED_BY_LABEL).is_none_or(|by| by != MANAGED_BY) {
        slice.endpoints.clear();
        slice.ports = None;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "name": "a", "namespace": "shop", "uid": "uid-a", "resourceVersion": "7",
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "labels": { "app": "billing", "consullock.dev/lock": "holder" },
                "annotations": {
                    "consullock.dev/priority": "7", "token.consullock.dev/lock": "41", "x": "y",
                },
                "managedFields": [{ "manager": "kubelet" }],
            },
            "spec": {
                "nodeName": "n-1",
                "containers": [
                    { "name": "app", "ports": [{ "name": "web", "containerPort": 8080 }] },
                ],
                "novelty": true,
            },
            "status": {
                "podIPs": [{ "ip": "10.0.0.7" }, { "ip": "fd00::7" }],
                "conditions": [
                    { "type": "Initialized", "status": "True" },
                    {
                        "type": "Ready", "status": "True",
                        "lastTransitionTime": "2026-01-02T03:05:05Z",
                    },
                ],
                "containerStatuses": [{
                    "name": "app", "containerID": "containerd://1", "restartCount": 2,
                    "state": {
                        "terminated": { "exitCode": 1, "finishedAt": "2026-01-02T03:06:05Z" },
                    },
                }],
            },
        }))
        .unwrap();
        pod.slim();
        pod
    }

    #[test]
    fn a_pod_becomes_a_candidate() {
        let candidate = pod().candidate(true, Reach::Reachable);
        assert_eq!((&*candidate.name, candidate.priority), ("a", 7));
        assert_eq!(candidate.ready_since.unwrap().to_string(), "2026-01-02T03:05:05Z");
        let [container] = &candidate.containers[..] else { panic!() };
        assert_eq!((container.id.as_deref(), container.restarts), (Some("containerd://1"), 2));
        assert!(container.terminated);
        assert_eq!(container.ended.unwrap().to_string(), "2026-01-02T03:06:05Z");
        assert_eq!(pod().addresses().len(), 2);
        assert_eq!(pod().named_ports(), [("web".to_owned(), "TCP".to_owned(), 8080)]);
    }

    #[test]
    fn a_pod_is_finished_when_its_phase_says_so_and_nothing_of_it_runs() {
        let finished = |phase: &str, state: serde_json::Value| {
            let mut pod = pod();
            pod.status.phase = phase.to_owned();
            pod.status.container_statuses[0].state = serde_json::from_value(state).unwrap();
            pod.candidate(true, Reach::Reachable).finished
        };
        let (ended, runs) = (json!({ "terminated": {} }), json!({ "running": {} }));
        assert!(finished("Succeeded", ended.clone()) && finished("Failed", ended.clone()));
        assert!(!finished("Running", ended), "it is started again");
        assert!(!finished("Failed", runs), "not the kubelet's word");
    }

    #[test]
    fn a_pod_waits_while_it_has_our_gate() {
        let gated = |names: &[&str]| {
            let mut pod = pod();
            let gates = names.iter().map(|name| Gate { name: (*name).to_owned() });
            pod.spec.scheduling_gates = gates.collect();
            pod.candidate(true, Reach::Reachable).gated
        };
        assert!(gated(&["other", GATE]) && !gated(&["other"]) && !gated(&[]));
    }

    #[test]
    fn a_pod_is_found_by_label_badge_uid_and_node_and_told_to_the_claims_that_ask() {
        let keys = pod().keys();
        for key in
            ["pods shop", "label shop app=billing", "badge shop lock", "uid uid-a", "node n-1"]
        {
            assert!(keys.iter().any(|known| known == key), "{key}: {keys:?}");
        }
        let spec = "{candidates: {selector: {matchLabels: {app: billing}}}, routing: {service: s}}";
        let asked = crate::controller::sample::claim(spec).keys();
        for key in ["badge shop billing", "label shop app=billing", "service shop s"] {
            assert!(asked.iter().any(|known| known == key), "{key}: {asked:?}");
        }
    }

    #[test]
    fn only_what_is_kept_counts_as_a_change() {
        let pod = pod();
        let mut later = pod.clone();
        later.metadata.resource_version = Some("8".to_owned());
        assert!(pod.is_same(&later));
        later.status.container_statuses[0].restart_count += 1;
        assert!(!pod.is_same(&later));
        assert_eq!(pod.annotations().len(), 2);
        assert_eq!(pod.metadata.managed_fields, None);
    }

    #[test]
    fn a_badge_is_read_from_label_and_annotation() {
        let badge = pod().badge("lock");
        assert!(badge.labelled && badge.token.as_deref() == Some("41"));
        let none = pod().badge("other");
        assert!(!none.labelled && none.token.is_none());
    }

    #[test]
    fn a_node_is_reachable_while_it_is_ready_and_not_out_of_service() {
        let node = |status: &str, taint: &str| {
            let mut node: Node = serde_json::from_value(json!({
                "metadata": { "name": "n-1" },
                "spec": { "taints": [{ "key": taint, "effect": "NoExecute" }] },
                "status": { "conditions": [{ "type": "Ready", "status": status }] },
            }))
            .unwrap();
            node.slim();
            node.reach()
        };
        assert_eq!(node("True", "other"), Reach::Reachable);
        assert_eq!(node("Unknown", "other"), Reach::Unreachable);
        assert_eq!(node("False", "other"), Reach::Unreachable);
        assert_eq!(node("Unknown", OUT_OF_SERVICE), Reach::OutOfService);
    }
}
