//! Pods without a kubelet, their Services and claims, and a watch on their EndpointSlices.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use consul_lock::{
    api::ConsulLock,
    clock::{Clock, Instant},
};
use futures::StreamExt;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};

use crate::{Failure, Outcome, bed::Field};

const NODE: &str = "bench-node";
const PATIENCE: Duration = Duration::from_secs(120);

/// Who has the traffic of a claim's Service.
#[derive(Clone, Debug)]
pub(crate) struct Led {
    pub(crate) pod: String,
    pub(crate) token: u64,
    /// The slice that has the endpoint. A Service of two families has another one without.
    slice: String,
    /// When the watch told.
    pub(crate) seen: Instant,
}

/// Everything about pods, in one namespace.
pub(crate) struct Cast {
    clock: Clock,
    claims: Api<ConsulLock>,
    pods: Api<Pod>,
    services: Api<Service>,
    slices: Api<EndpointSlice>,
    /// How often each pod's container was restarted.
    restarts: Mutex<HashMap<String, u32>>,
    led: Arc<Mutex<HashMap<String, Led>>>,
    changes: watch::Sender<u64>,
    _watching: JoinSet<()>,
}

impl Cast {
    pub(crate) async fn gather(field: &Field, namespace: &str) -> Outcome<Cast> {
        let client = field.client.clone();
        let mut account = ServiceAccount::default();
        account.metadata.name = Some("default".to_owned());
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
        accounts.create(&PostParams::default(), &account).await?;
        let nodes = Api::<Node>::all(client.clone());
        let mut node = Node::default();
        node.metadata.name = Some(NODE.to_owned());
        nodes.create(&PostParams::default(), &node).await?;
        let ready = json!({ "status": { "conditions": [{
            "type": "Ready", "status": "True", "reason": "Bench", "message": "",
            "lastTransitionTime": "2026-01-02T03:04:05Z",
        }] } });
        nodes.patch_status(NODE, &PatchParams::default(), &Patch::Strategic(ready)).await?;
        let slices = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
        let (led, changes) = (Arc::default(), watch::Sender::new(0));
        let mut watching = JoinSet::new();
        let watched =
            follow(slices.clone(), field.clock.clone(), Arc::clone(&led), changes.clone());
        watching.spawn(watched);
        Ok(Cast {
            clock: field.clock.clone(),
            claims: Api::namespaced(client.clone(), namespace),
            pods: Api::namespaced(client.clone(), namespace),
            services: Api::namespaced(client, namespace),
            slices,
            restarts: Mutex::default(),
            led,
            changes,
            _watching: watching,
        })
    }

    /// A Service and as many pods that match `app: NAME`, all ready.
    pub(crate) async fn stage(&self, name: &str, pods: usize) -> Outcome<()> {
        let params = PostParams::default();
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "clusterIP": "None", "ports": [{ "port": 80, "targetPort": 8080 }] },
        });
        self.services.create(&params, &object(service)?).await?;
        for number in 0..pods {
            self.enter(name, &pod(name, number)).await?;
        }
        Ok(())
    }

    /// A pod that matches `app: NAME`, ready.
    async fn enter(&self, name: &str, pod: &str) -> Outcome<()> {
        let new = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": pod, "labels": { "app": name } },
            "spec": { "nodeName": NODE, "containers": [{ "name": "app", "image": "none" }] },
        });
        self.pods.create(&PostParams::default(), &object(new)?).await?;
        self.report(pod, true).await
    }

    /// Somebody deletes the pod, which its containers survive for the moment.
    pub(crate) async fn delete(&self, pod: &str) -> Outcome<()> {
        self.pods.delete(pod, &DeleteParams::default()).await?;
        Ok(())
    }

    /// The kubelet is done with a deleted pod, and another one comes in its place: the one that has
    /// been ready for the shortest.
    pub(crate) async fn replace(&self, name: &str, pod: &str) -> Outcome<()> {
        self.pods.delete(pod, &DeleteParams::default().grace_period(0)).await?;
        *self.restarts.lock().entry(pod.to_owned()).or_default() += 1;
        self.enter(name, pod).await
    }

    /// Waits until nobody is served.
    pub(crate) async fn vacant(&self, name: &str) -> Outcome<()> {
        let mut changes = self.changes.subscribe();
        let gone = || !self.led.lock().contains_key(name);
        let waited = self.clock.timeout(PATIENCE, changes.wait_for(|_| gone())).await.is_ok();
        waited.then_some(()).ok_or_else(|| Failure::InVain(format!("the end of {name}'s traffic")))
    }

    /// The claim, with more in its candidates.
    pub(crate) async fn declare(&self, name: &str, more: Value) -> Outcome<()> {
        let mut candidates = json!({ "selector": { "matchLabels": { "app": name } } });
        if let (Value::Object(all), Value::Object(more)) = (&mut candidates, more) {
            all.extend(more);
        }
        let claim = json!({
            "apiVersion": "consullock.dev/v1alpha1", "kind": "ConsulLock",
            "metadata": { "name": name },
            "spec": { "candidates": candidates, "routing": { "service": name } },
        });
        self.claims.create(&PostParams::default(), &object(claim)?).await?;
        Ok(())
    }

    /// A Service, its pods and the claim, with more in its candidates; who leads first.
    pub(crate) async fn open(&self, name: &str, pods: usize, more: Value) -> Outcome<Led> {
        self.stage(name, pods).await?;
        self.declare(name, more).await?;
        self.next(name, 0).await
    }

    /// The kubelet reports that the container was restarted, and is ready again.
    pub(crate) async fn restart(&self, pod: &str) -> Outcome<()> {
        *self.restarts.lock().entry(pod.to_owned()).or_default() += 1;
        self.report(pod, true).await
    }

    /// The kubelet reports that the container has ended.
    pub(crate) async fn end(&self, pod: &str) -> Outcome<()> {
        self.report(pod, false).await
    }

    async fn report(&self, pod: &str, runs: bool) -> Outcome<()> {
        let restarts = self.restarts.lock().get(pod).copied().unwrap_or(0);
        let id = format!("bench://{pod}-{restarts}");
        let state = match runs {
            true => json!({ "running": { "startedAt": "2026-01-02T03:04:05Z" } }),
            false => json!({ "terminated": { "exitCode": 137, "containerID": id } }),
        };
        // In the order of their restarts: who was started last has been ready for the shortest.
        let since = jiff::Timestamp::from_second(1_767_323_045 + i64::from(restarts));
        let patch = json!({ "status": {
            "phase": "Running", "podIP": "10.1.2.3", "podIPs": [{ "ip": "10.1.2.3" }],
            "conditions": [{
                "type": "Ready", "status": if runs { "True" } else { "False" },
                "lastTransitionTime": since.map(|since| since.to_string()).unwrap_or_default(),
            }],
            "containerStatuses": [{
                "name": "app", "image": "none", "imageID": "", "ready": runs,
                "containerID": id, "restartCount": restarts, "state": state,
            }],
        } });
        let patch = Patch::Strategic(patch);
        self.pods.patch_status(pod, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    pub(crate) async fn prioritise(&self, pod: &str, priority: usize) -> Outcome<()> {
        let annotations = json!({ "consullock.dev/priority": priority.to_string() });
        let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
        self.pods.patch(pod, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Another of a claim's pods.
    pub(crate) fn other_than(&self, name: &str, leader: &str, turn: usize, pods: usize) -> String {
        let others = (0..pods).map(|number| pod(name, number)).filter(|pod| pod != leader);
        others.cycle().nth(turn % (pods - 1)).unwrap_or_default()
    }

    /// Waits for an endpoint of a later tenure.
    pub(crate) async fn next(&self, name: &str, after: u64) -> Outcome<Led> {
        let mut changes = self.changes.subscribe();
        let found = || self.led.lock().get(name).filter(|led| led.token > after).cloned();
        let wait = changes.wait_for(|_| found().is_some());
        let waited = self.clock.timeout(PATIENCE, wait).await.is_ok();
        found().filter(|_| waited).ok_or_else(|| Failure::InVain(format!("a leader of {name}")))
    }

    /// The versions of every claim, pod and slice.
    pub(crate) async fn versions(&self) -> Outcome<Vec<Option<String>>> {
        let params = ListParams::default();
        let mut versions = Vec::new();
        versions.extend(self.claims.list(&params).await?.iter().map(|one| one.resource_version()));
        versions.extend(self.pods.list(&params).await?.iter().map(|one| one.resource_version()));
        versions.extend(self.slices.list(&params).await?.iter().map(|one| one.resource_version()));
        Ok(versions)
    }
}

fn pod(name: &str, number: usize) -> String {
    format!("{name}-{number}")
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Outcome<T> {
    serde_json::from_value(value).map_err(|error| Failure::Odd(error.to_string()))
}

async fn follow(
    slices: Api<EndpointSlice>,
    clock: Clock,
    led: Arc<Mutex<HashMap<String, Led>>>,
    changes: watch::Sender<u64>,
) {
    let mut events = std::pin::pin!(watcher(slices, watcher::Config::default()));
    while let Some(event) = events.next().await {
        let Ok(Event::Apply(slice) | Event::InitApply(slice)) = event else { continue };
        let seen = clock.now();
        let service = slice.labels().get("kubernetes.io/service-name").cloned();
        let token = slice.annotations().get("consullock.dev/fencing-token");
        let token = token.and_then(|token| token.parse().ok());
        let pod = slice.endpoints.first().and_then(|one| one.target_ref.as_ref()?.name.clone());
        let (Some(service), slice) = (service, slice.name_any()) else { continue };
        let mut led = led.lock();
        match (token, pod) {
            (Some(token), Some(pod)) => {
                led.insert(service, Led { pod, token, slice, seen });
            }
            _ if led.get(&service).is_some_and(|led| led.slice == slice) => {
                led.remove(&service);
            }
            _ => continue,
        }
        drop(led);
        changes.send_modify(|count| *count += 1);
    }
}
