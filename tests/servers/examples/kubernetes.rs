//! The Kubernetes side of an example: a cluster with a controller, in which pods are made of the
//! example's own manifest. There is no kubelet: the test starts what a pod would run.

use std::path::PathBuf;

use consul_lock::names::Key;
use k8s_openapi::api::{authorization::v1::ResourceAttributes, core::v1::Pod};
use kube::api::PostParams;
use serde_json::{Value, json};
use testbed::SERVICE_ACCOUNTS;

use crate::{
    fixtures::control_plane,
    pods::Cast,
    rights,
    site::{Replica, Site},
};

/// A cluster's namespace, its controller and its pods.
pub(super) struct Cluster {
    pub(super) site: Site,
    pub(super) cast: Cast,
    pub(super) replica: Replica,
}

impl Cluster {
    pub(super) async fn new(name: &str) -> Cluster {
        let site = Site::new(name).await;
        let (cast, replica) = (Cast::new(&site).await, site.start().await);
        Cluster { site, cast, replica }
    }

    /// Creates the manifest's claim, with the key of another cluster's if need be, and with no
    /// lock-delay and time for any test.
    pub(super) async fn claim(&self, manifest: &[Value], key: Option<&Key>) {
        let claim = of_kind(manifest, "ConsulLock");
        let mut spec = claim["spec"].clone();
        spec["session"] = json!({ "ttl": "60s", "lockDelay": "0s" });
        if let Some(key) = key {
            spec["key"] = json!(key.as_str());
        }
        self.site.create(claim["metadata"]["name"].as_str().unwrap(), spec).await;
    }

    /// The kubeconfig file of the manifest's service account, which may here what its Role says.
    pub(super) async fn account(&self, manifest: &[Value]) -> PathBuf {
        let namespace = &self.site.namespace;
        for kind in ["Role", "RoleBinding"] {
            let mut object = of_kind(manifest, kind).clone();
            object["metadata"]["namespace"] = json!(namespace);
            if kind == "RoleBinding" {
                object["subjects"][0]["namespace"] = json!(namespace);
            }
            rights::apply(&self.site.client, object).await;
        }
        let name = of_kind(manifest, "ServiceAccount")["metadata"]["name"].as_str().unwrap();
        let account = format!("system:serviceaccount:{namespace}:{name}");
        let text = |text: &str| Some(text.to_owned());
        let right = ResourceAttributes {
            group: text("consullock.dev"),
            resource: text("consullocks"),
            name: of_kind(manifest, "ConsulLock")["metadata"]["name"].as_str().map(str::to_owned),
            namespace: text(namespace),
            verb: text("get"),
            ..ResourceAttributes::default()
        };
        rights::effective(&self.site.client, &account, right).await;
        control_plane().kubeconfig_for(&account, Some(SERVICE_ACCOUNTS)).unwrap()
    }

    /// Creates a pod of this template, with this owner if it has one.
    pub(super) async fn pod(&self, template: &Value, name: &str, owner: Option<Value>) {
        let mut spec = template["spec"].clone();
        if spec["schedulingGates"].is_null() {
            spec["nodeName"] = json!(self.cast.node);
        }
        // Nobody made one.
        spec.as_object_mut().unwrap().remove("serviceAccountName");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "labels": template["metadata"]["labels"],
                "ownerReferences": Vec::from_iter(owner),
            },
            "spec": spec,
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.cast.pods.create(&PostParams::default(), &pod).await.unwrap();
    }

    /// What a kubelet puts into the environment of this container of a pod.
    pub(super) async fn environment(&self, container: &Value, pod: &str) -> Vec<(String, String)> {
        let pod = serde_json::to_value(self.cast.pods.get(pod).await.unwrap()).unwrap();
        let field = |path: &str| match path.split_once("annotations['") {
            Some((_, name)) => pod["metadata"]["annotations"][name.trim_end_matches("']")].clone(),
            None => pod.pointer(&format!("/{}", path.replace('.', "/"))).unwrap().clone(),
        };
        let variables = container["env"].as_array().unwrap().iter().map(|variable| {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some(path) => field(path),
                None => variable["value"].clone(),
            };
            let value = value.as_str().unwrap_or_else(|| panic!("{variable} in {pod}")).to_owned();
            (variable["name"].as_str().unwrap().to_owned(), value)
        });
        variables.collect()
    }
}

/// The manifest's only object of this kind.
pub(super) fn of_kind<'a>(manifest: &'a [Value], kind: &str) -> &'a Value {
    manifest.iter().find(|one| one["kind"] == kind).unwrap()
}

/// Of a list of words.
pub(super) fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// Runs a test that asks the API server.
pub(super) fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}
