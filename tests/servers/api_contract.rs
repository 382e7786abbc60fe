//! What the controller relies on of a Kubernetes API server: one body of tests, run against the
//! real one and against the one in memory that simulations use.

use std::sync::Arc;

use parking_lot::Mutex;

use consul_lock::api::ConsulLock;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    core::v1::{Pod, ServiceAccount},
    discovery::v1::EndpointSlice,
    events::v1::Event,
};
use kube::{
    Api, Client, ResourceExt,
    api::{
        DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent,
        WatchParams,
    },
    client::Body,
    core::PartialObjectMeta,
};
use serde_json::{Value, json};
use testbed::fake_api::{FakeApi, Target};

use crate::{
    fixtures::{claims_client, create_namespace, unique},
    site::claim,
};

/// Runs each test on both.
macro_rules! contract {
    ($($name:ident,)+) => {
        mod real {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&super::Place::real().await).await;
            })+
        }
        mod fake {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&super::Place::fake().await).await;
            })+
        }
    };
}

contract! {
    every_write_makes_a_new_version_and_one_that_changes_nothing_does_not,
    a_replacement_of_an_outdated_version_is_refused,
    a_replacement_of_what_is_not_there_is_refused,
    a_merge_patch_with_an_outdated_version_is_refused,
    a_merge_patch_with_another_pod_s_uid_is_invalid_and_changes_nothing,
    a_merge_patch_of_what_is_not_there_is_refused,
    a_null_in_a_merge_patch_removes_and_lists_are_replaced,
    a_second_object_of_a_name_is_refused,
    a_generated_name_is_unique,
    a_deletion_with_another_uid_is_refused,
    a_deletion_of_what_is_not_there_is_refused,
    a_pod_on_a_node_stays_until_its_kubelet_is_done,
    a_claim_with_a_finalizer_stays_until_it_is_off,
    status_and_the_rest_are_written_apart,
    only_the_spec_moves_the_generation,
    a_watch_tells_everything_after_its_version_in_order,
    the_last_word_about_an_object_is_the_object,
}

/// A namespace to try something in.
struct Place {
    pods: Api<Pod>,
    slices: Api<EndpointSlice>,
    claims: Api<ConsulLock>,
    events: Api<Event>,
}

impl Place {
    async fn real() -> Place {
        let client = claims_client().await;
        let namespace = unique("api");
        create_namespace(&client, &namespace).await;
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &namespace);
        let mut account = ServiceAccount::default();
        account.metadata.name = Some("default".to_owned());
        accounts.create(&PostParams::default(), &account).await.unwrap();
        Place::of(&client, &namespace)
    }

    async fn fake() -> Place {
        let api = FakeApi::new(|| "2026-01-02T03:04:05Z".to_owned());
        let api = Arc::new(Mutex::new(api));
        let service = tower::service_fn(move |request| serve(Arc::clone(&api), request));
        Place::of(&Client::new(service, "default"), "shop")
    }

    fn of(client: &Client, namespace: &str) -> Place {
        Place {
            pods: Api::namespaced(client.clone(), namespace),
            slices: Api::namespaced(client.clone(), namespace),
            claims: Api::namespaced(client.clone(), namespace),
            events: Api::namespaced(client.clone(), namespace),
        }
    }

    async fn pod(&self, name: &str) -> Pod {
        let pod = json!({
            "metadata": { "name": name, "labels": { "app": "x" } },
            "spec": { "nodeName": "n-1", "containers": [{ "name": "app", "image": "none" }] },
        });
        let pod = serde_json::from_value(pod).unwrap();
        self.pods.create(&PostParams::default(), &pod).await.unwrap()
    }

    async fn slice(&self, name: &str) -> EndpointSlice {
        self.slices.create(&PostParams::default(), &slice(name)).await.unwrap()
    }

    async fn claim(&self, name: &str) -> ConsulLock {
        self.claims.create(&PostParams::default(), &claim(name, json!({}))).await.unwrap()
    }
}

/// Carries a call to the fake without any fault. A watch tells what there is and ends.
async fn serve(
    api: Arc<Mutex<FakeApi>>,
    request: http::Request<Body>,
) -> Result<http::Response<axum::body::Body>, axum::Error> {
    let (head, body) = request.into_parts();
    let target = Target::parse(head.uri.path_and_query().unwrap().as_str());
    let body = axum::body::to_bytes(axum::body::Body::new(body), usize::MAX).await?;
    let mut api = api.lock();
    if let Some(mut version) = target.watch_after {
        let mut lines = String::new();
        while let Some(change) = api.after(&target, version) {
            version = change.version;
            lines.push_str(&change.line());
        }
        return Ok(http::Response::new(lines.into()));
    }
    let answer = api.call(head.method.as_str(), &target, &body);
    let mut response = http::Response::new(answer.body.to_string().into());
    *response.status_mut() = http::StatusCode::from_u16(answer.code).unwrap();
    Ok(response)
}

fn slice(name: &str) -> EndpointSlice {
    let slice = json!({
        "metadata": { "name": name, "annotations": { "a": "1", "b": "2" } },
        "addressType": "IPv4", "endpoints": [{ "addresses": ["10.0.0.7"] }], "ports": [],
    });
    serde_json::from_value(slice).unwrap()
}

fn code<T>(answer: kube::Result<T>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
    }
}

const NO_PARAMS: PatchParams =
    PatchParams { dry_run: false, force: false, field_manager: None, field_validation: None };

fn annotated(version: Option<&str>, value: Value) -> Patch<Value> {
    let mut metadata = json!({ "annotations": { "a": value } });
    if let Some(version) = version {
        metadata["resourceVersion"] = version.into();
    }
    Patch::Merge(json!({ "metadata": metadata }))
}

async fn every_write_makes_a_new_version_and_one_that_changes_nothing_does_not(place: &Place) {
    let first = place.slice("s").await.resource_version();
    let patch = annotated(None, json!("2"));
    let second = place.slices.patch("s", &NO_PARAMS, &patch).await.unwrap().resource_version();
    assert!(first.is_some() && first != second);
    let third = place.slices.patch("s", &NO_PARAMS, &patch).await.unwrap().resource_version();
    assert_eq!(second, third);
}

async fn a_replacement_of_an_outdated_version_is_refused(place: &Place) {
    let first = place.slice("s").await;
    let mut second = first.clone();
    second.endpoints.clear();
    let replaced = place.slices.replace("s", &PostParams::default(), &second).await.unwrap();
    assert!(replaced.endpoints.is_empty());
    assert_eq!(replaced.uid(), first.uid());
    assert_eq!(code(place.slices.replace("s", &PostParams::default(), &first).await), 409);
    assert!(place.slices.get("s").await.unwrap().endpoints.is_empty());
}

async fn a_replacement_of_what_is_not_there_is_refused(place: &Place) {
    let gone = place.slice("s").await;
    place.slices.delete("s", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(place.slices.replace("s", &PostParams::default(), &gone).await), 404);
    // Nor does it take the place of another of its name.
    place.slice("s").await;
    assert_eq!(code(place.slices.replace("s", &PostParams::default(), &gone).await), 409);
}

async fn a_merge_patch_with_an_outdated_version_is_refused(place: &Place) {
    let first = place.claim("c").await.resource_version();
    let change = |value: &str| annotated(first.as_deref(), json!(value));
    assert_eq!(code(place.claims.patch("c", &NO_PARAMS, &change("2")).await), 200);
    assert_eq!(code(place.claims.patch("c", &NO_PARAMS, &change("3")).await), 409);
    let status = json!({ "metadata": { "resourceVersion": first }, "status": { "phase": "Held" } });
    assert_eq!(code(place.claims.patch_status("c", &NO_PARAMS, &Patch::Merge(status)).await), 409);
    let claim = place.claims.get("c").await.unwrap();
    assert_eq!(claim.annotations()["a"], "2");
    assert_eq!(claim.status, None);
}

async fn a_merge_patch_with_another_pod_s_uid_is_invalid_and_changes_nothing(place: &Place) {
    let pod = place.pod("p").await;
    let patch = |uid: &str| {
        let metadata = json!({ "uid": uid, "labels": { "badge": "holder" } });
        Patch::Merge(json!({ "metadata": metadata }))
    };
    let api: &Api<Pod> = &place.pods;
    let strange = patch("7d9f6c5e-0000-4000-8000-000000000000");
    let refused = api.patch_metadata("p", &NO_PARAMS, &strange).await;
    let Err(kube::Error::Api(status)) = refused else { panic!("{refused:?}") };
    let causes = status.details.unwrap().causes;
    let named = causes.iter().any(|cause| cause.field == "metadata.uid");
    assert_eq!((status.code, named), (422, true), "{causes:?}");
    assert!(!api.get("p").await.unwrap().labels().contains_key("badge"));
    let own = patch(&pod.uid().unwrap());
    assert_eq!(code(api.patch_metadata("p", &NO_PARAMS, &own).await), 200);
    assert_eq!(api.get("p").await.unwrap().labels()["badge"], "holder");
}

async fn a_merge_patch_of_what_is_not_there_is_refused(place: &Place) {
    let patch = annotated(None, json!("1"));
    assert_eq!(code(place.slices.patch("s", &NO_PARAMS, &patch).await), 404);
    assert_eq!(code(place.pods.patch_metadata("p", &NO_PARAMS, &patch).await), 404);
}

async fn a_null_in_a_merge_patch_removes_and_lists_are_replaced(place: &Place) {
    place.slice("s").await;
    let patch = json!({
        "metadata": { "annotations": { "a": null, "never": null } }, "endpoints": [],
    });
    let slice = place.slices.patch("s", &NO_PARAMS, &Patch::Merge(patch)).await.unwrap();
    assert_eq!(slice.annotations().keys().collect::<Vec<_>>(), ["b"]);
    assert!(slice.endpoints.is_empty());
}

async fn a_second_object_of_a_name_is_refused(place: &Place) {
    place.slice("s").await;
    assert_eq!(code(place.slices.create(&PostParams::default(), &slice("s")).await), 409);
}

async fn a_generated_name_is_unique(place: &Place) {
    let event = json!({
        "metadata": { "generateName": "lock-" }, "eventTime": "2026-01-02T03:04:05.000000Z",
        "type": "Normal", "reason": "R", "action": "A", "note": "n",
        "reportingController": "consullock.dev/controller", "reportingInstance": "i",
    });
    let event: Event = serde_json::from_value(event).unwrap();
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut event = event.clone();
        event.metadata.namespace = place.events.namespace().map(str::to_owned);
        event.regarding = Some(k8s_openapi::api::core::v1::ObjectReference {
            namespace: event.metadata.namespace.clone(),
            ..Default::default()
        });
        names.push(place.events.create(&PostParams::default(), &event).await.unwrap().name_any());
    }
    assert!(names.iter().all(|name| name.starts_with("lock-")) && names[0] != names[1]);
}

fn only(uid: Option<String>) -> DeleteParams {
    let preconditions = Some(Preconditions { uid, resource_version: None });
    DeleteParams { preconditions, ..DeleteParams::default() }
}

async fn a_deletion_with_another_uid_is_refused(place: &Place) {
    let (slice, pod) = (place.slice("s").await, place.pod("p").await);
    for refused in [
        place.slices.delete("s", &only(pod.uid())).await.map(drop),
        place.pods.delete("p", &only(slice.uid())).await.map(drop),
    ] {
        // The only thing by which it can be told from other conflicts.
        let Err(kube::Error::Api(status)) = refused else { panic!("{refused:?}") };
        assert_eq!(status.code, 409);
        assert!(status.message.contains("UID in the precondition"), "{}", status.message);
    }
    assert_eq!(code(place.slices.delete("s", &only(slice.uid())).await), 200);
    assert_eq!(code(place.slices.get("s").await), 404);
}

async fn a_deletion_of_what_is_not_there_is_refused(place: &Place) {
    assert_eq!(code(place.slices.delete("s", &DeleteParams::default()).await), 404);
}

async fn a_pod_on_a_node_stays_until_its_kubelet_is_done(place: &Place) {
    let pod = place.pod("p").await;
    for _ in 0..2 {
        assert_eq!(code(place.pods.delete("p", &only(pod.uid())).await), 200);
        let seen = place.pods.get("p").await.unwrap();
        assert!(seen.metadata.deletion_timestamp.is_some());
        let label = json!({ "metadata": { "labels": { "app": null } } });
        place.pods.patch("p", &NO_PARAMS, &Patch::Merge(label)).await.unwrap();
    }
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    place.pods.delete("p", &at_once).await.unwrap();
    assert_eq!(code(place.pods.get("p").await), 404);
}

async fn a_claim_with_a_finalizer_stays_until_it_is_off(place: &Place) {
    place.claim("c").await;
    let finalizers = |names: Value| Patch::Merge(json!({ "metadata": { "finalizers": names } }));
    let on = finalizers(json!(["consullock.dev/release"]));
    place.claims.patch("c", &NO_PARAMS, &on).await.unwrap();
    place.claims.delete("c", &DeleteParams::default()).await.unwrap();
    let parting = place.claims.get("c").await.unwrap();
    assert!(parting.metadata.deletion_timestamp.is_some());
    let left = place.claims.patch("c", &NO_PARAMS, &finalizers(json!([]))).await.unwrap();
    assert!(left.finalizers().is_empty());
    assert_eq!(code(place.claims.get("c").await), 404);
}

async fn status_and_the_rest_are_written_apart(place: &Place) {
    place.claim("c").await;
    let both = json!({
        "metadata": { "annotations": { "a": "1" } },
        "spec": { "value": "v" }, "status": { "phase": "Held" },
    });
    let by_status = place.claims.patch_status("c", &NO_PARAMS, &Patch::Merge(&both)).await;
    let by_status = by_status.unwrap();
    assert!(by_status.status.is_some() && by_status.spec.value.is_empty());
    assert!(by_status.annotations().is_empty());
    let paused = json!({ "spec": { "paused": true }, "status": { "phase": "Paused" } });
    let by_main = place.claims.patch("c", &NO_PARAMS, &Patch::Merge(&paused)).await.unwrap();
    assert!(by_main.spec.paused);
    assert_eq!(by_main.status, by_status.status);
}

async fn only_the_spec_moves_the_generation(place: &Place) {
    let first = place.claim("c").await.metadata.generation;
    let status = Patch::Merge(json!({ "status": { "phase": "Held" } }));
    let told = place.claims.patch_status("c", &NO_PARAMS, &status).await.unwrap();
    let noted = place.claims.patch("c", &NO_PARAMS, &annotated(None, json!("2"))).await.unwrap();
    assert_eq!((told.metadata.generation, noted.metadata.generation), (first, first));
    let spec = Patch::Merge(json!({ "spec": { "paused": true } }));
    let changed = place.claims.patch("c", &NO_PARAMS, &spec).await.unwrap();
    assert_eq!(changed.metadata.generation, first.map(|first| first + 1));
}

/// The first `count` events about slices after `version`: type, the annotation `a`, and version.
async fn watched(place: &Place, version: &str, count: usize) -> Vec<(String, String, String)> {
    let watch = place.slices.watch(&WatchParams::default(), version).await.unwrap();
    let events: Vec<_> = watch.boxed().take(count).try_collect().await.unwrap();
    let told = events.into_iter().map(|event| {
        let (kind, slice) = match event {
            WatchEvent::Added(slice) => ("added", slice),
            WatchEvent::Modified(slice) => ("modified", slice),
            WatchEvent::Deleted(slice) => ("deleted", slice),
            other => panic!("{other:?}"),
        };
        let note = slice.annotations().get("a").cloned().unwrap_or_default();
        (kind.to_owned(), note, slice.resource_version().unwrap())
    });
    told.collect()
}

async fn a_watch_tells_everything_after_its_version_in_order(place: &Place) {
    place.slice("before").await;
    let list = place.slices.list(&ListParams::default()).await.unwrap();
    let version = list.metadata.resource_version.unwrap();
    place.slice("s").await;
    for value in ["2", "3"] {
        place.slices.patch("s", &NO_PARAMS, &annotated(None, json!(value))).await.unwrap();
    }
    let told = watched(place, &version, 3).await;
    let order: Vec<_> = told.iter().map(|(kind, note, _)| (&**kind, &**note)).collect();
    assert_eq!(order, [("added", "1"), ("modified", "2"), ("modified", "3")]);
    // One that goes on where another ended.
    let rest = watched(place, &told[0].2, 2).await;
    assert_eq!(rest, told[1..]);
}

async fn the_last_word_about_an_object_is_the_object(place: &Place) {
    let made = place.slice("s").await.resource_version().unwrap();
    place.slices.patch("s", &NO_PARAMS, &annotated(None, json!("9"))).await.unwrap();
    place.slices.delete("s", &DeleteParams::default()).await.unwrap();
    let told = watched(place, &made, 2).await;
    assert_eq!((&*told[1].0, &*told[1].1), ("deleted", "9"));
    assert_ne!(told[1].2, told[0].2, "the end has a version of its own");
    let _: Vec<PartialObjectMeta<Pod>> =
        place.pods.list_metadata(&ListParams::default()).await.unwrap().items;
}
