//! An in-memory Kubernetes API server for simulations: a store of JSON objects with resource
//! versions, preconditions, deletion in two steps and a log for watches.
//!
//! It lives here, and not beside what it is used for, because the unit tests of `consul-lock` and
//! its tests against real servers both need it, and neither the library nor the binary should carry
//! it. It is synchronous and knows no client: whoever uses it carries calls to it and answers from
//! it, with whatever faults are wanted.
//!
//! # Guarantees
//! Passes the contract tests that the real server passes (`tests/servers/api_contract.rs`). Given
//! the same calls it answers the same.
//! # Not guaranteed
//! Anything that those tests do not name: there is no schema, no validation, no defaulting, no
//! access control, no selector, no paging, no garbage collection, and a watch never begins too far
//! back.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use serde_json::{Map, Value, json};

mod target;

pub use target::Target;

/// Kinds whose status is written by itself alone.
const WITH_STATUS: &[&str] = &["pods", "nodes", "services", "consullocks"];

/// Kinds of which nobody asks what became of them.
const NOT_LOGGED: &[&str] = &["events"];

/// The fake.
pub struct FakeApi {
    version: u64,
    objects: BTreeMap<ObjectKey, Arc<Value>>,
    log: Vec<Change>,
    wall: Box<dyn Fn() -> String + Send>,
}

/// Kind (in the plural), namespace and name.
type ObjectKey = (String, String, String);

/// What is answered: a status code, and an object, a list or a `Status`.
#[derive(Clone, Debug)]
pub struct Answer {
    /// As in HTTP.
    pub code: u16,
    /// The body.
    pub body: Arc<Value>,
}

/// One event of a watch.
#[derive(Debug)]
pub struct Change {
    /// The kind, in the plural.
    pub plural: String,
    /// The object's namespace; empty for what belongs to the whole cluster.
    pub namespace: String,
    /// The version that it made.
    pub version: u64,
    event: &'static str,
    object: Arc<Value>,
    line: OnceLock<Arc<str>>,
}

impl Change {
    /// As a watch tells it: a line of JSON.
    pub fn line(&self) -> Arc<str> {
        let line =
            || format!("{}\n", json!({ "type": self.event, "object": &*self.object })).into();
        Arc::clone(self.line.get_or_init(line))
    }
}

type Refusal = (u16, &'static str, String);

impl FakeApi {
    /// An empty one. `wall` tells the time, as in a `creationTimestamp`.
    pub fn new(wall: impl Fn() -> String + Send + 'static) -> FakeApi {
        FakeApi { version: 1, objects: BTreeMap::new(), log: Vec::new(), wall: Box::new(wall) }
    }

    /// The version that the last write made.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// All objects of a kind, given in the plural.
    pub fn all<'a>(&'a self, plural: &'a str) -> impl Iterator<Item = &'a Arc<Value>> {
        let of_kind = self.objects.iter().filter(move |((kind, _, _), _)| kind == plural);
        of_kind.map(|(_, object)| object)
    }

    /// The first event after `version` that a watch of this target tells; whether it lies in the
    /// future is for the caller to say.
    #[must_use]
    pub fn after(&self, target: &Target, version: u64) -> Option<&Change> {
        let from = self.log.partition_point(|change| change.version <= version);
        let meant = |change: &&Change| {
            let namespace = target.namespace.as_deref();
            change.plural == target.plural && namespace.is_none_or(|name| name == change.namespace)
        };
        self.log[from..].iter().find(meant)
    }

    /// Answers a call. `body` counts for whatever is not a GET.
    pub fn call(&mut self, method: &str, target: &Target, body: &[u8]) -> Answer {
        let body = || match body {
            [] => Ok(Value::Null),
            body => {
                serde_json::from_slice(body).map_err(|error| (400, "BadRequest", error.to_string()))
            }
        };
        let answer = match (method, &target.name) {
            ("GET", None) => Ok((200, Arc::new(self.list(target)))),
            ("GET", Some(name)) => self.find(target, name).map(|object| (200, object)),
            ("POST", None) => body().and_then(|object| self.create(target, object)),
            ("PUT", Some(name)) => body().and_then(|object| self.replace(target, name, object)),
            ("PATCH", Some(name)) => body().and_then(|patch| self.patch(target, name, &patch)),
            ("DELETE", Some(name)) => {
                body().and_then(|options| self.delete(target, name, &options))
            }
            _ => Err((405, "MethodNotAllowed", format!("{method} is not for this"))),
        };
        match answer {
            Ok((code, body)) => Answer { code, body },
            Err((code, reason, message)) => {
                // An invalid field is named, as far as it has a name of its own.
                let field = message.split(':').next().filter(|_| code == 422);
                let causes = field.map(|field| json!([{ "field": field, "message": message }]));
                let body = Arc::new(json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": message, "reason": reason, "code": code,
                    "details": { "causes": causes.unwrap_or_else(|| json!([])) },
                }));
                Answer { code, body }
            }
        }
    }

    fn list(&self, target: &Target) -> Value {
        let namespace = target.namespace.as_deref();
        let items = self.objects.iter().filter(|((plural, of, _), _)| {
            *plural == target.plural && namespace.is_none_or(|name| name == of)
        });
        let items: Vec<Value> = items.map(|(_, object)| (**object).clone()).collect();
        let version = self.version.to_string();
        json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": { "resourceVersion": version }, "items": items,
        })
    }

    fn find(&self, target: &Target, name: &str) -> Result<Arc<Value>, Refusal> {
        let missing = || (404, "NotFound", format!("{} {name:?} not found", target.plural));
        self.objects.get(&target.key(name)).cloned().ok_or_else(missing)
    }

    fn create(&mut self, target: &Target, mut object: Value) -> Result<(u16, Arc<Value>), Refusal> {
        let metadata = entry(&mut object, "metadata");
        if !metadata.contains_key("name") {
            let prefix = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
            let name = format!("{prefix}{:05}", self.version);
            metadata.insert("name".to_owned(), name.into());
        }
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        let key = target.key(&name);
        if self.objects.contains_key(&key) {
            let words = format!("{} {name:?} already exists", target.plural);
            return Err((409, "AlreadyExists", words));
        }
        metadata.insert("uid".to_owned(), format!("uid-{}", self.version + 1).into());
        metadata.insert("creationTimestamp".to_owned(), (self.wall)().into());
        metadata.insert("generation".to_owned(), 1.into());
        if let Some(namespace) = &target.namespace {
            metadata.insert("namespace".to_owned(), namespace.clone().into());
        }
        if WITH_STATUS.contains(&&*target.plural) {
            // Whoever creates something does not tell how it fares.
            without(&mut object, "status");
        }
        Ok((201, self.write(key, "ADDED", object)))
    }

    fn replace(
        &mut self,
        target: &Target,
        name: &str,
        object: Value,
    ) -> Result<(u16, Arc<Value>), Refusal> {
        let old = self.find(target, name)?;
        self.update(target, name, &old, object, false)
    }

    fn patch(
        &mut self,
        target: &Target,
        name: &str,
        patch: &Value,
    ) -> Result<(u16, Arc<Value>), Refusal> {
        let old = self.find(target, name)?;
        let mut object = (*old).clone();
        merge(&mut object, patch);
        self.update(target, name, &old, object, true)
    }

    fn update(
        &mut self,
        target: &Target,
        name: &str,
        old: &Arc<Value>,
        mut object: Value,
        is_patch: bool,
    ) -> Result<(u16, Arc<Value>), Refusal> {
        let before = &old["metadata"];
        for (field, patched) in [("uid", (422, "Invalid")), ("resourceVersion", (409, "Conflict"))]
        {
            let (asked, is) = (&object["metadata"][field], &before[field]);
            if !asked.is_null() && asked != is {
                let (code, reason) = if is_patch { patched } else { (409, "Conflict") };
                let words = format!("metadata.{field}: {asked} was asked for, {is} is there");
                return Err((code, reason, words));
            }
        }
        let with_status = WITH_STATUS.contains(&&*target.plural);
        if target.subresource.as_deref() == Some("status") {
            let status = object["status"].take();
            object = (**old).clone();
            keep(&mut object, "status", &status);
        } else if with_status {
            keep(&mut object, "status", &old["status"]);
        }
        let metadata = entry(&mut object, "metadata");
        for field in [
            "resourceVersion",
            "uid",
            "name",
            "namespace",
            "creationTimestamp",
            "deletionTimestamp",
            "generation",
        ] {
            match &before[field] {
                Value::Null => drop(metadata.remove(field)),
                known => drop(metadata.insert(field.to_owned(), known.clone())),
            }
        }
        if object == **old {
            return Ok((200, Arc::clone(old))); // as it was: no new version, and no event
        }
        if object["spec"] != old["spec"] {
            let generation = before["generation"].as_i64().unwrap_or(0) + 1;
            object["metadata"]["generation"] = generation.into();
        }
        let (key, leaves) = (target.key(name), is_free_to_go(&object));
        let written = self.write(key.clone(), "MODIFIED", object);
        if leaves {
            self.remove(&key);
        }
        Ok((200, written))
    }

    fn delete(
        &mut self,
        target: &Target,
        name: &str,
        options: &Value,
    ) -> Result<(u16, Arc<Value>), Refusal> {
        let old = self.find(target, name)?;
        for (field, what) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            let (asked, known) = (&options["preconditions"][field], &old["metadata"][field]);
            if !asked.is_null() && asked != known {
                let message = format!(
                    "the {what} in the precondition ({asked}) does not match the {what} in record \
                     ({known})"
                );
                return Err((409, "Conflict", message));
            }
        }
        let key = target.key(name);
        let at_once = options["gracePeriodSeconds"] == 0;
        let lingers = target.plural == "pods" && old["spec"]["nodeName"].is_string() && !at_once;
        let held_back = !old["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        if !lingers && !held_back {
            return Ok((200, self.remove(&key).unwrap_or(old)));
        }
        if !old["metadata"]["deletionTimestamp"].is_null() {
            return Ok((200, old));
        }
        let mut object = (*old).clone();
        object["metadata"]["deletionTimestamp"] = (self.wall)().into();
        if lingers {
            object["metadata"]["deletionGracePeriodSeconds"] = 30.into();
        }
        Ok((200, self.write(key, "MODIFIED", object)))
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Arc<Value>> {
        let last = self.objects.remove(key)?;
        let object = self.log(key, "DELETED", (*last).clone());
        Some(object)
    }

    fn write(&mut self, key: ObjectKey, event: &'static str, object: Value) -> Arc<Value> {
        let object = self.log(&key, event, object);
        self.objects.insert(key, Arc::clone(&object));
        object
    }

    fn log(&mut self, key: &ObjectKey, event: &'static str, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let object = Arc::new(object);
        let (plural, namespace, _) = key;
        if !NOT_LOGGED.contains(&&**plural) {
            self.log.push(Change {
                plural: plural.clone(),
                namespace: namespace.clone(),
                version: self.version,
                event,
                object: Arc::clone(&object),
                line: OnceLock::new(),
            });
        }
        object
    }
}

/// Being deleted, and held back by nothing. A pod's kubelet is not asked here: it deletes at once.
fn is_free_to_go(object: &Value) -> bool {
    let metadata = &object["metadata"];
    !metadata["deletionTimestamp"].is_null()
        && metadata["deletionGracePeriodSeconds"].is_null()
        && metadata["finalizers"].as_array().is_none_or(Vec::is_empty)
}

/// A field that is an object, made if it is missing.
fn entry<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !object[field].is_object() {
        object[field] = json!({});
    }
    object[field].as_object_mut().expect("just made one")
}

fn keep(object: &mut Value, field: &str, value: &Value) {
    match value {
        Value::Null => without(object, field),
        value => object[field] = value.clone(),
    }
}

fn without(object: &mut Value, field: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(field);
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let fields = target.as_object_mut().expect("just made one");
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}
