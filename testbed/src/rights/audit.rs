//! What an API server's audit log says: who asked for what, and by which role it was allowed.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use serde_json::Value;

/// What is logged: what service accounts ask for, but for Kubernetes' own. A watch may still be open
/// when the server is killed, so its begin counts as well.
pub(crate) const POLICY: &str = r#"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
  - {level: None, userGroups: ["system:serviceaccounts:kube-system"]}
  - {level: Metadata, userGroups: ["system:serviceaccounts"]}
  - {level: None}
"#;

/// What comes before the namespace and the name of a service account.
const ACCOUNT: &str = "system:serviceaccount:";

/// Who has the doctor as well asks as the controller, for everything.
const DOCTOR: &str = "-doctor";

/// What somebody asked for, as often as it may be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Request {
    /// The service account's own namespace.
    pub(super) home: String,
    /// Its name.
    pub(super) account: String,
    pub(super) verb: String,
    pub(super) resource: String,
    /// Empty: in all, or in none.
    pub(super) namespace: String,
    pub(super) allowed: bool,
    /// By which it was allowed.
    pub(super) role: Option<String>,
    pub(super) by_cluster_role: bool,
}

impl Request {
    /// Who asks for what, whatever the answer.
    pub(super) fn plea(&self) -> [&str; 5] {
        [&self.home, &self.account, &self.verb, &self.resource, &self.namespace]
    }
}

impl fmt::Display for Request {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (account, verb, resource) = (&self.account, &self.verb, &self.resource);
        let may = if self.allowed { "may" } else { "may not" };
        write!(to, "{account} {may} {verb} {resource}")?;
        match self.namespace.as_str() {
            "" => {}
            namespace => write!(to, " in {namespace}")?,
        }
        match &self.role {
            Some(role) => write!(to, " by {role}"),
            None => Ok(()),
        }
    }
}

/// As kubectl writes it.
pub(super) fn resource(name: &str, group: &str, sub: &str) -> String {
    let dot = if group.is_empty() { "" } else { "." };
    let slash = if sub.is_empty() { "" } else { "/" };
    format!("{name}{dot}{group}{slash}{sub}")
}

/// What is in all logs of the folder.
pub(super) fn read(folder: &Path) -> io::Result<Vec<Request>> {
    let mut requests = Vec::new();
    for entry in fs::read_dir(folder)? {
        for line in BufReader::new(File::open(entry?.path())?).lines() {
            // The last line of a server that was killed may be cut short.
            let event = serde_json::from_str::<Value>(&line?).ok();
            requests.extend(event.as_ref().and_then(request));
        }
    }
    Ok(requests)
}

/// What an event is about, if a service account asks for an object or a list.
fn request(event: &Value) -> Option<Request> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let user = &event["user"];
    let (home, account) = user["username"].as_str()?.strip_prefix(ACCOUNT)?.split_once(':')?;
    let pod = &user["extra"]["authentication.kubernetes.io/pod-name"][0];
    if pod.as_str().is_some_and(|pod| pod.ends_with(DOCTOR)) {
        return None;
    }
    let object = event["objectRef"].as_object()?;
    let field = |name: &str| object.get(name).map(text).unwrap_or_default();
    let notes = &event["annotations"];
    let allowed = notes["authorization.k8s.io/decision"] == "allow";
    let (kind, role) = allowing(notes["authorization.k8s.io/reason"].as_str().unwrap_or_default());
    Some(Request {
        home: home.to_owned(),
        account: account.to_owned(),
        verb: text(&event["verb"]),
        resource: resource(&field("resource"), &field("apiGroup"), &field("subresource")),
        namespace: field("namespace"),
        allowed,
        role: role.map(str::to_owned),
        by_cluster_role: kind == Some("ClusterRole"),
    })
}

/// Kind and name of the role, of `RBAC: allowed by RoleBinding "b/n" of Role "r" to …`.
fn allowing(reason: &str) -> (Option<&str>, Option<&str>) {
    let of = reason.split_once("\" of ").map(|(_, role)| role);
    let kind = of.and_then(|of| of.split(' ').next());
    (kind, of.and_then(|of| of.split('"').nth(1)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(reason: &str, pod: &str) -> Value {
        json!({
            "verb": "patch",
            "user": {
                "username": "system:serviceaccount:ops:consul-lock",
                "extra": {"authentication.kubernetes.io/pod-name": [pod]},
            },
            "objectRef": {
                "resource": "consullocks", "apiGroup": "consullock.dev", "subresource": "status",
                "namespace": "shop", "name": "billing",
            },
            "annotations": {
                "authorization.k8s.io/decision": if reason.is_empty() { "forbid" } else { "allow" },
                "authorization.k8s.io/reason": reason,
            },
        })
    }

    #[test]
    fn an_event_tells_who_did_what_where_and_by_which_role() {
        let reason = r#"RBAC: allowed by ClusterRoleBinding "ops:x" of ClusterRole "ops:x" to ServiceAccount "consul-lock/ops""#;
        let found = request(&event(reason, "consul-lock-1")).unwrap();
        assert!(found.by_cluster_role);
        assert_eq!(
            found.to_string(),
            "consul-lock may patch consullocks.consullock.dev/status in shop by ops:x"
        );
        let refused = request(&event("", "consul-lock-1")).unwrap();
        assert!(!refused.allowed && refused.role.is_none());
    }

    #[test]
    fn the_doctor_and_others_than_service_accounts_do_not_count() {
        assert_eq!(request(&event("", "consul-lock-doctor")), None);
        let mut other = event("", "x");
        other["user"]["username"] = json!("admin");
        assert_eq!(request(&other), None);
    }
}
