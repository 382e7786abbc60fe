//! The corpus of good and bad objects in `tests/corpus/`, against a real API server.
//!
//! A bad object must be refused with the message that its annotation `refusal` quotes; a good one
//! must be accepted, get its defaults, and be understood by the controller. Where an annotation
//! `before` gives a spec, the object is first created with that.

use std::path::Path;

use consul_lock::api::{ConsulLock, ConsulLockSpec};
use http::{Method, Request};
use kube::{Client, ResourceExt, api::DynamicObject};
use serde_json::Value;

use crate::fixtures;

#[tokio::test]
async fn bad_objects_are_refused_with_what_is_allowed() {
    let corpus = read("bad");
    assert!(corpus.len() >= 110, "only {} bad objects", corpus.len());
    let objects = objects("corpus-bad").await;
    let mut wrong = Vec::new();
    for case in &corpus {
        let expected = &case.annotation("refusal").expect("a bad object says why");
        match case.submit(&objects).await {
            Ok(_) => wrong.push(format!("{case} was accepted")),
            Err(refusal) if refusal.contains(expected) => {}
            Err(other) => wrong.push(format!("{case}: expected {expected:?}, got {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn good_objects_are_accepted_and_understood() {
    let corpus = read("good");
    assert!(corpus.len() >= 55, "only {} good objects", corpus.len());
    let objects = objects("corpus-good").await;
    let mut wrong = Vec::new();
    for case in &corpus {
        let stored = match case.submit(&objects).await {
            Ok(stored) => stored,
            Err(refusal) => {
                wrong.push(format!("{case} was refused: {refusal}"));
                continue;
            }
        };
        let claim: ConsulLock = stored.try_parse().expect("what is stored can be read");
        if let Err(error) = claim.spec.settings() {
            wrong.push(format!("{case} is not understood: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// An object that an older schema let in must meet the same refusal in the controller.
#[test]
fn the_controller_refuses_what_the_schema_refuses() {
    let by_fields = |case: &&Case| !case.file.ends_with("outside-the-fields.yaml");
    for case in read("bad").iter().filter(by_fields) {
        let only_as_a_change = case.annotation("refusal").is_some_and(|r| r.contains("later"));
        let meaning = case.spec().map(|spec| spec.settings().map_err(|error| error.to_string()));
        assert!(only_as_a_change || !matches!(meaning, Ok(Ok(_))), "{case} has settings");
    }
}

/// One object of the corpus.
struct Case {
    file: String,
    object: Value,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.object["metadata"]["name"], self.file)
    }
}

impl Case {
    fn annotation(&self, name: &str) -> Option<String> {
        let text = self.object["metadata"]["annotations"][name].as_str();
        text.map(str::to_owned)
    }

    fn spec(&self) -> Result<ConsulLockSpec, serde_json::Error> {
        serde_json::from_value(self.object["spec"].clone())
    }

    /// Creates the object, by way of its earlier spec if it has one; the server's words if refused.
    async fn submit(&self, objects: &Objects) -> Result<DynamicObject, String> {
        let Some(before) = self.annotation("before") else {
            return write(objects, None, &self.object).await;
        };
        let mut earlier = self.object.clone();
        earlier["spec"] = serde_saphyr::from_str(&before).expect("`before` is a spec");
        let earlier = write(objects, None, &earlier).await.expect("the earlier spec is good");
        write(objects, Some(&earlier), &self.object).await
    }
}

/// Creates the object, or replaces `over` by it. Field validation is strict, as kubectl's is: an
/// unknown field is refused.
async fn write(
    objects: &Objects,
    over: Option<&DynamicObject>,
    object: &Value,
) -> Result<DynamicObject, String> {
    let mut object = object.clone();
    let collection =
        format!("/apis/consullock.dev/v1alpha1/namespaces/{}/consullocks", objects.namespace);
    let (method, path) = match over {
        None => (Method::POST, collection),
        Some(earlier) => {
            object["metadata"]["resourceVersion"] = earlier.resource_version().into();
            (Method::PUT, format!("{collection}/{}", earlier.name_any()))
        }
    };
    let request = Request::builder()
        .method(method)
        .uri(format!("{path}?fieldValidation=Strict"))
        .header("content-type", "application/json")
        .body(object.to_string().into_bytes())
        .expect("a request of fixed parts");
    let written = objects.client.request(request).await;
    written.map_err(|error| error.to_string())
}

/// Where the corpus is submitted.
struct Objects {
    client: Client,
    namespace: &'static str,
}

async fn objects(namespace: &'static str) -> Objects {
    let client = fixtures::claims_client().await;
    fixtures::create_namespace(&client, namespace).await;
    Objects { client, namespace }
}

fn read(kind: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(kind);
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the corpus is there") {
        let path = entry.expect("the corpus can be listed").path();
        let text = std::fs::read_to_string(&path).expect("the corpus can be read");
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("the corpus is YAML");
        cases.extend(
            objects.into_iter().map(|object| Case { file: path.display().to_string(), object }),
        );
    }
    cases
}
