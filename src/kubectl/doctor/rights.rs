//! The rights that the controller needs in Kubernetes, as the book lists them, and the check of
//! each by using it.
//!
//! What only reads is done. What writes is a dry run, on an object that is there or under a name
//! that is not: the API server looks at the right first, so `not found` says that it is there.

use futures::{StreamExt, future::join_all};
use kube::{
    Api, Client,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
        WatchEvent, WatchParams,
    },
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use super::{super::access::CALL_WITHIN, finding::Finding};
use crate::{
    api::{CandidatesSettings, GateSettings, Settings},
    clock::Clock,
};

/// The name of what is made for the purpose, in dry runs alone.
const NAME: &str = "consul-lock-doctor";

/// What may be done to one kind of object.
pub(super) struct Rule {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    /// With its subresource, if it is about one.
    resource: &'static str,
    verbs: &'static [&'static str],
    within: Within,
    needed: fn(&Settings) -> bool,
    /// What needs it, in words.
    by: &'static str,
}

/// Where the objects are that a rule is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    /// In the claims' namespaces.
    Namespaces,
    /// In none.
    Cluster,
    /// In the Lease's namespace.
    Lease,
}

const fn always(_: &Settings) -> bool {
    true
}

const fn elects(settings: &Settings) -> bool {
    settings.candidates.is_some()
}

const fn routes(settings: &Settings) -> bool {
    settings.service.is_some()
}

const fn deletes(settings: &Settings) -> bool {
    settings.delete_lost
}

fn once(settings: &Settings) -> bool {
    let gate = |candidates: &CandidatesSettings| candidates.gate;
    settings.candidates.as_ref().and_then(gate) == Some(GateSettings::OncePerSchedule)
}

const RULES: &[Rule] = &[
    Rule {
        group: "consullock.dev",
        version: "v1alpha1",
        kind: "ConsulLock",
        resource: "consullocks",
        verbs: &["list", "watch", "patch"],
        within: Within::Namespaces,
        needed: always,
        by: "the controller",
    },
    Rule {
        group: "consullock.dev",
        version: "v1alpha1",
        kind: "ConsulLock",
        resource: "consullocks/status",
        verbs: &["patch"],
        within: Within::Namespaces,
        needed: always,
        by: "the controller",
    },
    Rule {
        group: "",
        version: "v1",
        kind: "Namespace",
        resource: "namespaces",
        verbs: &["get", "list", "watch"],
        within: Within::Cluster,
        needed: always,
        by: "the controller",
    },
    Rule {
        group: "events.k8s.io",
        version: "v1",
        kind: "Event",
        resource: "events",
        verbs: &["create"],
        within: Within::Namespaces,
        needed: always,
        by: "the controller",
    },
    Rule {
        group: "coordination.k8s.io",
        version: "v1",
        kind: "Lease",
        resource: "leases",
        verbs: &["get", "create", "update"],
        within: Within::Lease,
        needed: always,
        by: "the controller",
    },
    Rule {
        group: "",
        version: "v1",
        kind: "Pod",
        resource: "pods",
        verbs: &["list", "watch", "patch"],
        within: Within::Namespaces,
        needed: elects,
        by: "spec.candidates",
    },
    Rule {
        group: "",
        version: "v1",
        kind: "Pod",
        resource: "pods",
        verbs: &["delete"],
        within: Within::Namespaces,
        needed: deletes,
        by: "spec.onLost: DeletePod",
    },
    Rule {
        group: "",
        version: "v1",
        kind: "Node",
        resource: "nodes",
        verbs: &["list", "watch"],
        within: Within::Cluster,
        needed: elects,
        by: "spec.candidates",
    },
    Rule {
        group: "",
        version: "v1",
        kind: "Service",
        resource: "services",
        verbs: &["list", "watch"],
        within: Within::Namespaces,
        needed: routes,
        by: "spec.routing",
    },
    Rule {
        group: "discovery.k8s.io",
        version: "v1",
        kind: "EndpointSlice",
        resource: "endpointslices",
        verbs: &["list", "watch", "create", "update", "patch", "delete"],
        within: Within::Namespaces,
        needed: routes,
        by: "spec.routing",
    },
    Rule {
        group: "batch",
        version: "v1",
        kind: "Job",
        resource: "jobs",
        verbs: &["list", "watch", "delete"],
        within: Within::Namespaces,
        needed: once,
        by: "spec.gate.policy: OncePerSchedule",
    },
];

/// Where and for whom the rights are looked at.
pub(super) struct Examined<'a> {
    pub(super) client: &'a Client,
    pub(super) clock: &'a Clock,
    /// The namespaces that the controller is confined to; none: all.
    pub(super) confined: &'a [String],
    /// A namespace to write in, if it is not confined.
    pub(super) namespace: &'a str,
    pub(super) lease_namespace: &'a str,
    pub(super) lease_name: &'a str,
    /// What the claims mean; `None`: they may not be listed, and anything may be needed.
    pub(super) claims: Option<&'a [Settings]>,
    /// Whose rights they are, if it is known.
    pub(super) user: Option<&'a str>,
}

/// What came of using one right.
enum Use {
    Allowed,
    Denied(String),
    Unclear(String),
}

pub(super) async fn examine(examined: &Examined<'_>) -> Vec<Finding> {
    join_all(RULES.iter().map(|rule| rule.examine(examined))).await
}

impl Rule {
    fn check(&self) -> String {
        format!("RBAC: {} on {}", self.verbs.join(", "), self.resource)
    }

    async fn examine(&self, examined: &Examined<'_>) -> Finding {
        let places: Vec<Option<&str>> = match self.within {
            Within::Cluster => vec![None],
            Within::Lease => vec![Some(examined.lease_namespace)],
            Within::Namespaces if examined.confined.is_empty() => vec![None],
            Within::Namespaces => {
                examined.confined.iter().map(|name| Some(name.as_str())).collect()
            }
        };
        let (mut denied, mut unclear) = (Vec::new(), Vec::new());
        let uses = places.iter().flat_map(|place| self.verbs.iter().map(|verb| (*place, *verb)));
        let uses = uses.map(|(place, verb)| async move {
            (place, verb, self.used(examined, place, verb).await)
        });
        for (place, verb, came) in join_all(uses).await {
            match came {
                Use::Allowed => {}
                Use::Denied(words) => denied.push((place, verb, words)),
                Use::Unclear(words) => unclear.push(words),
            }
        }
        match (denied.first(), unclear.first()) {
            (None, None) => Finding::ok(self.check(), "done, or done as a dry run"),
            (None, Some(words)) => Finding::unknown(self.check(), words),
            (Some(_), _) if !self.is_needed(examined) => {
                let by = self.by;
                Finding::ok(self.check(), format!("not allowed, and no claim needs it ({by})"))
            }
            (Some((_, _, words)), _) => {
                let repair = self.repair(&denied, examined.user);
                Finding::problem(self.check(), format!("{words}; needed by {}", self.by), repair)
            }
        }
    }

    fn is_needed(&self, examined: &Examined<'_>) -> bool {
        examined.claims.is_none_or(|claims| {
            let fundamental = self.by == "the controller";
            fundamental || claims.iter().any(self.needed)
        })
    }

    /// Roles and bindings for what is denied, one pair for each place.
    fn repair(&self, denied: &[(Option<&str>, &str, String)], user: Option<&str>) -> Vec<String> {
        let resource = match (self.group, self.resource.split_once('/')) {
            ("", _) => self.resource.to_owned(),
            (group, None) => format!("{}.{group}", self.resource),
            (group, Some((resource, sub))) => format!("{resource}.{group}/{sub}"),
        };
        let subject = subject(user);
        let mut commands = Vec::new();
        let mut places: Vec<Option<&str>> = denied.iter().map(|(place, ..)| *place).collect();
        places.dedup();
        for place in places {
            let verbs = denied.iter().filter(|(at, ..)| *at == place).map(|(_, verb, _)| *verb);
            let verbs = verbs.collect::<Vec<_>>().join(",");
            let name = format!(
                "consul-lock-{}-{}",
                self.resource.replace('/', "-"),
                verbs.replace(',', "-")
            );
            let (role, namespace) = match place {
                None => ("clusterrole", String::new()),
                Some(namespace) => ("role", format!(" -n {namespace}")),
            };
            commands.push(format!(
                "kubectl create {role} {name}{namespace} --verb={verbs} --resource={resource}"
            ));
            commands.push(format!(
                "kubectl create {role}binding {name}{namespace} --{role}={name} {subject}"
            ));
        }
        commands
    }

    /// Uses a right, in this namespace or in all.
    async fn used(&self, examined: &Examined<'_>, place: Option<&str>, verb: &str) -> Use {
        let plural = self.resource.split('/').next().unwrap_or(self.resource);
        let kind = GroupVersionKind::gvk(self.group, self.version, self.kind);
        let kind = ApiResource::from_gvk_with_plural(&kind, plural);
        let (client, all) = (examined.client.clone(), self.within == Within::Cluster);
        let reads = matches!(verb, "list" | "watch");
        let api: Api<DynamicObject> = match place {
            Some(namespace) => Api::namespaced_with(client, namespace, &kind),
            None if all || reads => Api::all_with(client, &kind),
            None => Api::namespaced_with(client, examined.namespace, &kind),
        };
        let used = self.attempt(&api, &kind, verb, examined);
        match examined.clock.timeout(CALL_WITHIN, used).await {
            Ok(Ok(())) => Use::Allowed,
            Ok(Err(error)) => judged(verb, error),
            Err(elapsed) => Use::Unclear(format!("{verb} {}: {elapsed}", self.resource)),
        }
    }

    async fn attempt(
        &self,
        api: &Api<DynamicObject>,
        kind: &ApiResource,
        verb: &str,
        examined: &Examined<'_>,
    ) -> Result<(), kube::Error> {
        let post = PostParams { dry_run: true, ..PostParams::default() };
        let dry = PatchParams { dry_run: true, ..PatchParams::default() };
        let nothing = Patch::Merge(json!({ "metadata": { "annotations": {} } }));
        // The right to get and update may be confined to the one Lease that it is needed for.
        let name = match self.kind {
            "Lease" => examined.lease_name,
            _ => NAME,
        };
        match verb {
            "get" => api.get(name).await.map(drop),
            "list" => api.list(&ListParams::default().limit(1)).await.map(drop),
            "watch" => watched(api).await,
            "create" => api.create(&post, &self.sample(kind, NAME)).await.map(drop),
            "update" => {
                let present = api.get_opt(name).await.ok().flatten();
                let object = present.unwrap_or_else(|| self.sample(kind, name));
                api.replace(name, &post, &object).await.map(drop)
            }
            "delete" => {
                let dry = DeleteParams { dry_run: true, ..DeleteParams::default() };
                api.delete(NAME, &dry).await.map(drop)
            }
            // The one that is left.
            _ if self.resource.ends_with("/status") => {
                api.patch_status(NAME, &dry, &nothing).await.map(drop)
            }
            _ => api.patch(NAME, &dry, &nothing).await.map(drop),
        }
    }

    /// An object that the API server would take.
    fn sample(&self, kind: &ApiResource, name: &str) -> DynamicObject {
        let mut object = DynamicObject::new(name, kind);
        object.data = match self.kind {
            "Event" => json!({
                "eventTime": "2026-01-01T00:00:00.000000Z", "action": "Lock", "reason": "Examined",
                "type": "Normal", "note": "a dry run", "reportingController": "consullock.dev/doctor",
                "reportingInstance": "doctor",
                "regarding": { "kind": "ConsulLock", "name": name },
            }),
            "EndpointSlice" => json!({ "addressType": "IPv4", "endpoints": [] }),
            _ => Value::Object(serde_json::Map::default()),
        };
        object
    }
}

/// Whether a watch begins: it says something, or nothing and ends.
async fn watched(api: &Api<DynamicObject>) -> Result<(), kube::Error> {
    let watch = api.watch(&WatchParams::default().timeout(1), "0").await?;
    match Box::pin(watch).next().await {
        Some(Ok(WatchEvent::Error(status))) => Err(kube::Error::Api(status)),
        Some(Ok(_)) | None => Ok(()),
        Some(Err(error)) => Err(error),
    }
}

/// The API server looks at the right before anything else: what it complains of behind that says
/// that the right is there.
fn judged(verb: &str, error: kube::Error) -> Use {
    match error {
        kube::Error::Api(status) if status.is_forbidden() => {
            let message = status.message.clone();
            // Where it needs more than the verb, that is somebody else's row.
            match message.contains("cannot ") && !message.contains(&format!("cannot {verb} ")) {
                true => Use::Allowed,
                false => Use::Denied(message),
            }
        }
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 401 => {
            Use::Allowed
        }
        other => Use::Unclear(other.to_string()),
    }
}

fn subject(user: Option<&str>) -> String {
    let account = user.and_then(|user| user.strip_prefix("system:serviceaccount:"));
    match (account, user) {
        (Some(account), _) => format!("--serviceaccount={account}"),
        (None, Some(user)) => format!("--user={user}"),
        (None, None) => "--serviceaccount=NAMESPACE:NAME".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn refused(code: u16, message: &str) -> kube::Error {
        let mut status =
            Status::failure(message, if code == 403 { "Forbidden" } else { "NotFound" });
        status.code = code;
        kube::Error::Api(Box::new(status))
    }

    #[test]
    fn what_is_not_found_was_allowed_and_what_is_forbidden_was_not() {
        let denied = r#"pods is forbidden: User "x" cannot patch resource "pods""#;
        assert!(matches!(judged("patch", refused(404, "not found")), Use::Allowed));
        assert!(matches!(judged("patch", refused(403, denied)), Use::Denied(_)));
        assert!(matches!(judged("update", refused(403, denied)), Use::Allowed), "another right");
        assert!(matches!(judged("get", refused(401, "Unauthorized")), Use::Unclear(_)));
        assert!(matches!(judged("get", refused(503, "busy")), Use::Unclear(_)));
    }

    #[test]
    fn a_repair_is_a_role_and_its_binding_where_the_right_is_missing() {
        let status = RULES.iter().find(|rule| rule.resource == "consullocks/status").unwrap();
        let denied = [(None, "patch", String::new())];
        let user = Some("system:serviceaccount:ops:consul-lock");
        assert_eq!(
            status.repair(&denied, user),
            [
                "kubectl create clusterrole consul-lock-consullocks-status-patch --verb=patch \
                 --resource=consullocks.consullock.dev/status",
                "kubectl create clusterrolebinding consul-lock-consullocks-status-patch \
                 --clusterrole=consul-lock-consullocks-status-patch \
                 --serviceaccount=ops:consul-lock",
            ]
        );
        let lease = RULES.iter().find(|rule| rule.resource == "leases").unwrap();
        let at = Some("ops");
        let denied = [(at, "create", String::new()), (at, "update", String::new())];
        assert_eq!(
            lease.repair(&denied, Some("jane")),
            [
                "kubectl create role consul-lock-leases-create-update -n ops \
                 --verb=create,update --resource=leases.coordination.k8s.io",
                "kubectl create rolebinding consul-lock-leases-create-update -n ops \
                 --role=consul-lock-leases-create-update --user=jane",
            ]
        );
    }
}
