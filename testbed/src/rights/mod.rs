//! The rights that the chart and the examples grant, held against the API servers' audit logs: each
//! of them was used, and nothing else was.
//!
//! With [`AUDIT`] set every API server that this crate starts writes such a log, and with `make test`
//! all tests of all binaries do, so that one look at the end sees what all of them did.
//!
//! # Not guaranteed
//! That each use was needed: whoever asks for what it does not need has a right to it here. Nor is a
//! confinement to names (`resourceNames`) looked at; the API server sees to it.

mod audit;

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use std::fmt;
use std::fs;
use std::path::Path;

pub(crate) use audit::POLICY;
use audit::Request;
use serde_json::{Value, json};

use crate::helm::Helm;
use crate::process::BedError;
use crate::tools::repository;

/// Names the folder for the audit logs. Without it there are none.
pub const AUDIT: &str = "TESTBED_AUDIT";

/// What the chart's release is called in tests; its service account, Lease and roles are as well.
pub const RELEASE: &str = "consul-lock";

/// What the namespace of a release and that of its claims are called until they have names.
const ITS_OWN: &str = "namespace-of-the-release";
const CLAIMS: &str = "namespace-of-the-claims";

/// What agents are granted.
const EXAMPLES: [&str; 2] = ["examples/sidecar/payroll.yaml", "examples/standby/standby.yaml"];

/// What one verb may be done to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Right {
    grant: Grant,
    /// With its group and its subresource, as kubectl writes it: `consullocks.consullock.dev/status`.
    resource: String,
    verb: String,
}

/// By what it is granted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Grant {
    /// The chart's Role in each namespace of claims, or its ClusterRole if it looks after all.
    Claims,
    /// The chart's ClusterRole, of what lies in no namespace.
    Cluster,
    /// The chart's Role in its own namespace.
    Lease,
    /// That of an example, for a service account of this name.
    Example(String),
}

impl fmt::Display for Right {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} {} by {}", self.verb, self.resource, self.grant)
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Grant::Claims => to.write_str("the chart's role for namespaces of claims"),
            Grant::Cluster => to.write_str("the chart's ClusterRole"),
            Grant::Lease => to.write_str("the chart's Role for its Lease"),
            Grant::Example(account) => write!(to, "the example's Role for {account}"),
        }
    }
}

/// The roles and bindings of a release of the chart in one namespace that looks after the claims of
/// another, or of its own. Its service account is called [`RELEASE`].
///
/// # Errors
/// Helm could not render it.
pub fn of_chart(its_own: &str, claims: &str) -> Result<Vec<Value>, BedError> {
    static RENDERED: Mutex<Option<String>> = Mutex::new(None);
    let mut rendered = RENDERED.lock();
    let text = match rendered.as_ref() {
        Some(text) => text,
        None => rendered.insert(render()?),
    };
    let mut objects = documents(&text.replace(ITS_OWN, its_own).replace(CLAIMS, claims))?;
    let of_rights = ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
    objects.retain(|object| of_rights.iter().any(|kind| object["kind"] == *kind));
    Ok(objects)
}

fn render() -> Result<String, BedError> {
    let values = json!({"watchNamespaces": [CLAIMS]});
    let args = ["template", RELEASE, "--namespace", ITS_OWN];
    Helm::new(Path::new("/nowhere"))?.with_chart(&args, &values)
}

fn documents(text: &str) -> Result<Vec<Value>, BedError> {
    serde_saphyr::from_multiple(text)
        .map_err(|error| BedError::Impossible(format!("not YAML: {error}")))
}

/// Holds what is granted against the logs in the folder; what there is to say about them.
///
/// # Errors
/// A right was not used, or more was wanted than is granted; which.
pub fn compare(logs: &Path) -> Result<String, String> {
    let granted = granted().map_err(|error| error.to_string())?;
    let requests = audit::read(logs).map_err(|error| format!("{}: {error}", logs.display()))?;
    judge(&granted, &requests)
}

/// Every right, in the chart and in the examples.
fn granted() -> Result<Vec<Right>, BedError> {
    let mut rights = Vec::new();
    for role in of_chart(ITS_OWN, CLAIMS)? {
        let grant = match (role["kind"].as_str(), role["metadata"]["namespace"].as_str()) {
            (Some("ClusterRole"), _) => Grant::Cluster,
            (Some("Role"), Some(CLAIMS)) => Grant::Claims,
            (Some("Role"), _) => Grant::Lease,
            _ => continue,
        };
        rights.extend(rights_of(&role, &grant));
    }
    for example in EXAMPLES {
        let objects = documents(&fs::read_to_string(repository().join(example))?)?;
        let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind);
        let account = of_kind("ServiceAccount").and_then(|one| one["metadata"]["name"].as_str());
        let grant = Grant::Example(account.unwrap_or_default().to_owned());
        rights.extend(of_kind("Role").into_iter().flat_map(|role| rights_of(role, &grant)));
    }
    Ok(rights)
}

fn rights_of(role: &Value, grant: &Grant) -> Vec<Right> {
    let words = |rule: &Value, field: &str| -> Vec<String> {
        let words = rule[field].as_array().into_iter().flatten();
        words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                let (name, sub) = resource.split_once('/').unwrap_or((&resource, ""));
                let resource = audit::resource(name, &group, sub);
                rights.extend(words(rule, "verbs").into_iter().map(|verb| Right {
                    grant: grant.clone(),
                    resource: resource.clone(),
                    verb,
                }));
            }
        }
    }
    rights
}

/// The grant by which a request was allowed, if it is one of ours.
fn grant_of(request: &Request, granted: &[Right]) -> Option<Grant> {
    let account = request.account.as_str();
    if granted.iter().any(|right| right.grant == Grant::Example(account.to_owned())) {
        return Some(Grant::Example(account.to_owned()));
    }
    let is = |grant: &Grant| {
        granted.iter().any(|right| {
            right.grant == *grant
                && right.resource == request.resource
                && right.verb == request.verb
        })
    };
    match request.role.as_deref()?.rsplit_once(RELEASE)?.1 {
        "-lease" => Some(Grant::Lease),
        // One that looks after all namespaces has a ClusterRole for everything.
        "" if request.by_cluster_role && is(&Grant::Cluster) => Some(Grant::Cluster),
        "" => Some(Grant::Claims),
        _ => None,
    }
}

/// Whose requests are looked at: the chart's and the examples' service accounts.
fn is_ours(request: &Request, granted: &[Right]) -> bool {
    request.account.ends_with(RELEASE)
        || granted.iter().any(|right| right.grant == Grant::Example(request.account.clone()))
}

fn judge(granted: &[Right], requests: &[Request]) -> Result<String, String> {
    let mut used: BTreeMap<&Right, u64> = granted.iter().map(|right| (right, 0)).collect();
    let mut complaints = Vec::new();
    let ours: Vec<&Request> = requests.iter().filter(|one| is_ours(one, granted)).collect();
    let allowed: BTreeSet<_> =
        ours.iter().filter(|one| one.allowed).map(|one| one.plea()).collect();
    for request in &ours {
        if !request.allowed {
            // A server that has just started knows no rights yet, and the same is asked again.
            if !allowed.contains(&request.plea()) {
                complaints.push(format!("used and not granted: {request}"));
            }
            continue;
        }
        // What everybody may: ask who one is, which API there is.
        if request.role.as_deref().is_some_and(|role| role.starts_with("system:")) {
            continue;
        }
        let right = grant_of(request, granted).map(|grant| Right {
            grant,
            resource: request.resource.clone(),
            verb: request.verb.clone(),
        });
        match right.and_then(|right| used.get_mut(&right).map(|count| *count += 1)) {
            Some(()) => {}
            None => complaints.push(format!("allowed by what we do not grant: {request}")),
        }
    }
    for (right, count) in &used {
        if *count == 0 {
            complaints.push(format!("granted and never used: {right}"));
        }
        if right.verb == "*" || right.resource.contains('*') || right.resource == "secrets" {
            complaints.push(format!("must not be granted: {right}"));
        }
    }
    complaints.sort();
    // Once, in whatever namespaces.
    complaints.dedup_by_key(|one| one.split(" in ").next().map(str::to_owned));
    match complaints.as_slice() {
        [] => Ok(summary(&used, ours.len())),
        _ => Err(complaints.join("\n")),
    }
}

fn summary(used: &BTreeMap<&Right, u64>, requests: usize) -> String {
    let mut text = format!("{} rights, each used, in {requests} requests:\n", used.len());
    for (right, count) in used {
        text += &format!("{count:>8} {right}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chart's rights on Pods, and one that all have.
    fn rules() -> Vec<Right> {
        let role = json!({"rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
            {"apiGroups": ["consullock.dev"], "resources": ["consullocks/status"], "verbs": ["patch"]},
        ]});
        rights_of(&role, &Grant::Claims)
    }

    fn by(role: &str, verb: &str, resource: &str) -> Request {
        Request {
            home: "ops".to_owned(),
            account: "consul-lock".to_owned(),
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            namespace: "shop".to_owned(),
            allowed: !role.is_empty(),
            role: (!role.is_empty()).then(|| role.to_owned()),
            by_cluster_role: false,
        }
    }

    fn all() -> Vec<Request> {
        vec![
            by("consul-lock", "list", "pods"),
            by("x:consul-lock", "watch", "pods"),
            by("consul-lock", "patch", "consullocks.consullock.dev/status"),
            by("system:basic-user", "create", "selfsubjectreviews.authentication.k8s.io"),
        ]
    }

    #[test]
    fn rights_that_are_all_used_and_nothing_else_are_no_matter() {
        assert!(judge(&rules(), &all()).unwrap().starts_with("3 rights, each used"));
    }

    #[test]
    fn a_right_that_nobody_used_is_named_and_so_are_all_without_a_log() {
        let said = judge(&rules(), &all()[1..]).unwrap_err();
        assert_eq!(
            said,
            "granted and never used: list pods by the chart's role for namespaces of claims"
        );
        assert_eq!(judge(&rules(), &[]).unwrap_err().lines().count(), 3);
    }

    #[test]
    fn what_is_wanted_and_not_granted_is_named_whether_it_was_allowed_or_not() {
        let mut requests = all();
        requests.push(by("", "list", "secrets"));
        requests.push(by("cluster-admin", "delete", "pods"));
        let said = judge(&rules(), &requests).unwrap_err();
        assert_eq!(
            said,
            "allowed by what we do not grant: consul-lock may delete pods in shop by cluster-admin\n\
             used and not granted: consul-lock may not list secrets in shop"
        );
    }

    #[test]
    fn what_is_refused_until_the_server_knows_better_is_no_matter() {
        let mut requests = all();
        requests.push(by("", "list", "pods"));
        judge(&rules(), &requests).unwrap();
        requests.push(Request { namespace: "elsewhere".to_owned(), ..by("", "list", "pods") });
        let said = judge(&rules(), &requests).unwrap_err();
        assert_eq!(said, "used and not granted: consul-lock may not list pods in elsewhere");
    }

    #[test]
    fn nobody_may_do_everything_or_read_secrets() {
        let role = json!({"rules": [
            {"apiGroups": [""], "resources": ["*"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]},
        ]});
        let said = judge(&rights_of(&role, &Grant::Claims), &[]).unwrap_err();
        assert!(said.contains("must not be granted: get * by"), "{said}");
        assert!(said.contains("must not be granted: list secrets by"), "{said}");
    }
}
