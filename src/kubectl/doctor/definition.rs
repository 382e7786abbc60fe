//! Whether the API server knows ConsulLocks as this version does.

use kube::Client;
use serde_json::Value;

use super::finding::Finding;
use crate::api;

const CHECK: &str = "Kubernetes: knows ConsulLocks as this version does";

/// Everybody who has logged in may read it.
const SCHEMAS: &str = "/openapi/v3/apis/consullock.dev/v1alpha1";

pub(super) async fn examine(client: &Client) -> Finding {
    let repair = || vec!["consul-lock crd | kubectl apply --server-side -f -".to_owned()];
    let request = http::Request::get(SCHEMAS).body(Vec::new());
    let request = match request {
        Ok(request) => request,
        Err(error) => return Finding::unknown(CHECK, error.to_string()),
    };
    match client.request::<Value>(request).await {
        Ok(served) => {
            let theirs = schema(&served).unwrap_or(&Value::Null);
            let missing = ours().map(|ours| missing(&ours, theirs, ""));
            match missing {
                Ok(missing) if missing.is_empty() => Finding::ok(CHECK, "all fields are there"),
                Ok(missing) => {
                    let words = format!("the definition lacks {}", missing.join(", "));
                    Finding::problem(CHECK, words, repair())
                }
                Err(words) => Finding::unknown(CHECK, words),
            }
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            Finding::problem(CHECK, "the definition is not installed", repair())
        }
        Err(error) => Finding::unknown(CHECK, error.to_string()),
    }
}

/// The schema of our kind among those that are served.
fn schema(served: &Value) -> Option<&Value> {
    let schemas = served.pointer("/components/schemas")?.as_object()?;
    schemas.iter().find(|(name, _)| name.ends_with(".ConsulLock")).map(|(_, schema)| schema)
}

fn ours() -> Result<Value, String> {
    let definition: Value =
        serde_saphyr::from_str(&api::crd_yaml()).map_err(|error| error.to_string())?;
    let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema").cloned();
    schema.ok_or_else(|| "this version's own definition cannot be read".to_owned())
}

/// The fields and values of `ours` that `theirs` does not have.
fn missing(ours: &Value, theirs: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (name, field) in ours["properties"].as_object().into_iter().flatten() {
        // Its schema is the API server's own.
        if path.is_empty() && matches!(name.as_str(), "metadata" | "apiVersion" | "kind") {
            continue;
        }
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match theirs["properties"].get(name) {
            Some(theirs) => found.extend(missing(field, theirs, &path)),
            None => found.push(path),
        }
    }
    if ours["items"].is_object() {
        found.extend(missing(&ours["items"], &theirs["items"], &format!("{path}[]")));
    }
    let values = |schema: &Value| schema["enum"].as_array().cloned().unwrap_or_default();
    let known = values(theirs);
    let lacking = values(ours).into_iter().filter(|value| !known.contains(value));
    found.extend(lacking.map(|value| format!("{path} {value}")));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_is_compared_by_its_fields_and_values() {
        let whole = ours().unwrap();
        assert_eq!(missing(&whole, &whole, ""), Vec::<String>::new());
        let mut old = whole.clone();
        let spec = old.pointer_mut("/properties/spec/properties").unwrap();
        spec.as_object_mut().unwrap().remove("gate").unwrap();
        let phases = old.pointer_mut("/properties/status/properties/phase/enum").unwrap();
        phases.as_array_mut().unwrap().retain(|phase| phase != "Paused");
        assert_eq!(missing(&whole, &old, ""), ["spec.gate", "status.phase \"Paused\""]);
        assert!(missing(&whole, &Value::Null, "").contains(&"spec".to_owned()));
    }
}
