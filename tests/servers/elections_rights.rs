//! Elections while the controller may not do or see what it would: writes that are refused, and
//! rights that are missing.

use std::collections::BTreeMap;

use consul_lock::api::Phase;
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    faults_controller::renewals,
    faults_kubernetes::{allow, put, subject, without_rights},
    fixtures::unique,
    pods::{Cast, candidates, routed},
    site::{Replica, Site, condition, eventually, token},
    witness::Witness,
};

// ---- writes that are refused ----

/// Refuses some writes in a site's namespace for as long as it is not lifted.
struct Ban {
    name: String,
    bindings: Api<ValidatingAdmissionPolicyBinding>,
}

impl Ban {
    /// Refuses updates of this resource for which the expression is false; `probe` says whether
    /// it is in force.
    async fn on<F: Future<Output = bool>>(
        site: &Site,
        (group, resource): (&str, &str),
        expression: &str,
        probe: impl Fn() -> F,
    ) -> Ban {
        let name = unique("ban");
        let rule = json!({
            "apiGroups": [group], "apiVersions": ["v1"],
            "resources": [resource], "operations": ["UPDATE"],
        });
        let policy = json!({ "metadata": { "name": name }, "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": {
                    "matchLabels": { "kubernetes.io/metadata.name": site.namespace },
                },
                "resourceRules": [rule],
            },
            "validations": [{ "expression": expression, "message": "banned by the test" }],
        } });
        let binding = json!({ "metadata": { "name": name }, "spec": {
            "policyName": name, "validationActions": ["Deny"],
        } });
        let policies = Api::<ValidatingAdmissionPolicy>::all(site.client.clone());
        put(policies, &name, policy).await;
        let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(site.client.clone());
        put(bindings.clone(), &name, binding).await;
        eventually("the ban to be in force", || async {
            if probe().await { Ok(()) } else { Err("not yet") }
        })
        .await;
        Ban { name, bindings }
    }

    async fn lift(self) {
        self.bindings.delete(&self.name, &DeleteParams::default()).await.unwrap();
    }
}

fn dry_run() -> PatchParams {
    PatchParams { dry_run: true, ..PatchParams::default() }
}

/// The key has not moved since it got this token, and does not while walks fail again and again.
async fn the_key_stays(site: &Site, replica: &Replica, token: u64) {
    let failed = || {
        let series = "consul_lock_reconcile_errors_total{class=\"Invalid\"}";
        replica.metric(series).unwrap_or(0.0)
    };
    let until = failed() + 3.0;
    eventually("walks to fail", || async {
        if failed() >= until { Ok(()) } else { Err(failed()) }
    })
    .await;
    let pair = site.pair(&site.key("lock")).await.unwrap();
    assert_eq!((pair.modify_index, pair.session.is_some()), (token, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_does_not_move_while_the_last_leader_s_label_cannot_be_taken_away() {
    let (site, cast, replica) = Cast::on_stage("label-ban").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    cast.with("probe", 3, json!({ "probe": "1" })).await;
    let other = Patch::Merge(json!({ "metadata": { "labels": { "app": "other" } } }));
    cast.pods.patch("probe", &Default::default(), &other).await.unwrap();
    site.create("lock", routed(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    let witness = Witness::of(&site, "lock", "billing").await;
    let keeps = "(!has(oldObject.metadata.annotations) \
                 || (!('probe' in oldObject.metadata.annotations) \
                     && !('token.consullock.dev/lock' in oldObject.metadata.annotations)) \
                 || (has(object.metadata.annotations) \
                     && ('probe' in object.metadata.annotations \
                         || 'token.consullock.dev/lock' in object.metadata.annotations)))";
    let ban = Ban::on(&site, ("", "pods"), keeps, || async {
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { "probe": null } } }));
        cast.pods.patch("probe", &dry_run(), &patch).await.is_err()
    })
    .await;

    cast.ended("a").await;
    let said = site.wait("lock", "what is wrong", |status| {
        condition(status, "RoutingSynced").1 == "WriteFailed"
    });
    let (truth, _, message) = condition(&said.await, "RoutingSynced");
    assert_eq!(truth, "False");
    assert!(message.starts_with("cannot take label and token off a pod: "), "{message}");
    assert!(message.contains("banned by the test"), "{message}");
    the_key_stays(&site, &replica, first).await;
    assert!(replica.log().contains("cannot take label and token off a pod"));
    cast.routed("billing", None).await;
    assert_eq!(cast.badges("lock").await, BTreeMap::from([("a".to_owned(), Some(first))]));
    assert_eq!(token(&site.status("lock").await), first);
    // Other claims are none the worse for it.
    site.serves_another_claim().await;

    ban.lift().await;
    assert!(cast.led_by("lock", "b").await > first);
    cast.routed("billing", Some("b")).await;
    site.wait("lock", "that all is well", |s| condition(s, "RoutingSynced").1 == "Routed").await;
    witness.catches_up(&site).await;
    witness.assert_orderly();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_does_not_move_while_the_last_leader_s_endpoint_cannot_be_taken_away() {
    let (site, cast, replica) = Cast::on_stage("slice-ban").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    let witness = Witness::of(&site, "lock", "billing").await;
    let probe = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "probe" }, "endpoints": [{ "addresses": ["10.1.1.1"] }],
    });
    let probe = serde_json::from_value(probe).unwrap();
    cast.slices.create(&PostParams::default(), &probe).await.unwrap();
    let keeps = "!has(oldObject.endpoints) || oldObject.endpoints.size() == 0 \
                 || (has(object.endpoints) && object.endpoints.size() > 0)";
    let ban = Ban::on(&site, ("discovery.k8s.io", "endpointslices"), keeps, || async {
        let patch = Patch::Merge(json!({ "endpoints": [] }));
        cast.slices.patch("probe", &dry_run(), &patch).await.is_err()
    })
    .await;

    cast.ended("a").await;
    let said = site.wait("lock", "what is wrong", |status| {
        condition(status, "RoutingSynced").1 == "WriteFailed"
    });
    let (_, _, message) = condition(&said.await, "RoutingSynced");
    assert!(message.starts_with("cannot take the endpoint out of an EndpointSlice: "), "{message}");
    site.event("lock", "RoutingFailed").await;
    the_key_stays(&site, &replica, first).await;
    assert_eq!(cast.badges("lock").await, BTreeMap::from([("a".to_owned(), Some(first))]));
    ban.lift().await;
    assert!(cast.led_by("lock", "b").await > first);
    cast.routed("billing", Some("b")).await;
    witness.catches_up(&site).await;
    witness.assert_orderly();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_badge_that_could_not_be_given_is_given_later_and_the_endpoint_waits_for_it() {
    let (site, cast, replica) = Cast::on_stage("dress-ban").await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    let lacks = "!has(object.metadata.annotations) \
                 || !('token.consullock.dev/lock' in object.metadata.annotations)";
    let ban = Ban::on(&site, ("", "pods"), lacks, || async {
        let annotations = json!({ "token.consullock.dev/lock": "1" });
        let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
        cast.pods.patch("a", &dry_run(), &patch).await.is_err()
    })
    .await;
    site.create("lock", routed(json!({}))).await;
    let said = site.wait("lock", "what is wrong", |status| {
        condition(status, "RoutingSynced").1 == "WriteFailed"
    });
    let (_, _, message) = condition(&said.await, "RoutingSynced");
    assert!(message.starts_with("cannot give the elected pod its label and token: "), "{message}");
    let first = site.held("lock").await;
    the_key_stays(&site, &replica, first).await;
    assert_eq!((cast.badges("lock").await.len(), cast.endpoints("billing").await.len()), (0, 0));
    ban.lift().await;
    assert_eq!(cast.led_by("lock", "a").await, first);
    cast.routed("billing", Some("a")).await;
}

// ---- rights ----

/// Gives a controller rights in the site's namespace, under a name by which they can be taken back.
async fn grant(site: &Site, user: &str, name: &str, rules: Value) {
    let name = format!("{user}-{name}");
    let role = json!({ "metadata": { "name": name }, "rules": rules });
    put(Api::<Role>::namespaced(site.client.clone(), &site.namespace), &name, role).await;
    let binding = json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
        "subjects": [subject(user)],
    });
    put(Api::<RoleBinding>::namespaced(site.client.clone(), &site.namespace), &name, binding).await;
}

async fn revoke(site: &Site, user: &str, name: &str) {
    let bindings = Api::<RoleBinding>::namespaced(site.client.clone(), &site.namespace);
    bindings.delete(&format!("{user}-{name}"), &DeleteParams::default()).await.unwrap();
}

fn rule(group: &str, resource: &str, verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs })
}

const WATCH: [&str; 2] = ["list", "watch"];
const CHANGE: [&str; 6] = ["get", "create", "update", "patch", "delete", "list"];

async fn grant_pods(site: &Site, user: &str) {
    let change = rule("", "pods", &["get", "patch", "delete"]);
    grant(site, user, "pods", json!([change, rule("", "pods", &WATCH)])).await;
}

async fn grant_slices(site: &Site, user: &str) {
    let group = "discovery.k8s.io";
    let (change, watch) =
        (rule(group, "endpointslices", &CHANGE), rule(group, "endpointslices", &["watch"]));
    grant(site, user, "slices", json!([change, watch, rule("", "services", &WATCH)])).await;
}

async fn grant_nodes(site: &Site, user: &str) {
    let name = format!("{user}-nodes");
    let role = json!({ "metadata": { "name": name }, "rules": [rule("", "nodes", &WATCH)] });
    put(Api::<ClusterRole>::all(site.client.clone()), &name, role).await;
    let binding = json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [subject(user)],
    });
    put(Api::<ClusterRoleBinding>::all(site.client.clone()), &name, binding).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_pods_claims_without_candidates_go_on_and_an_elected_leader_stays() {
    let (site, user) = without_rights("no-pods").await;
    let cast = Cast::new(&site).await;
    allow(&site, &user, true).await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    let replica = site.start().await;
    site.create("plain", json!({})).await;
    let plain = site.held("plain").await;
    site.create("lock", routed(json!({}))).await;
    let waits = site.wait("lock", "what is missing", |s| condition(s, "Ready").1 == "PodsUnknown");
    let waits = waits.await;
    assert_eq!(waits.phase, Some(Phase::Pending));
    assert!(condition(&waits, "Ready").2.contains("pods cannot be listed"), "{waits:#?}");
    assert!(replica.log().contains("is forbidden"), "the log does not say what is missing");
    assert!(replica.metric("consul_lock_watch_errors_total{resource=\"pods\"}") > Some(0.0));
    grant_pods(&site, &user).await;
    grant_slices(&site, &user).await;
    let first = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;

    // The right is taken back, and a controller starts that has never seen a pod.
    replica.server.kill().unwrap();
    revoke(&site, &user, "pods").await;
    let witness = Witness::of(&site, "lock", "billing").await;
    let before = witness.newest();
    let replica = site.start().await;
    replica.wait_leads().await;
    let keeps = site.wait("lock", "what is missing", |status| {
        condition(status, "Held").2.contains("pods cannot be listed")
    });
    assert_eq!(token(&keeps.await), first);
    renewals(&replica, 4.0).await;
    assert_eq!(site.held("lock").await, first);
    assert_eq!(site.held("plain").await, plain);
    site.serves_another_claim().await;
    witness.catches_up(&site).await;
    assert_eq!(witness.newest(), before, "a pod or a slice was written");
    cast.routed("billing", Some("a")).await;
    assert_eq!(cast.led_by("lock", "a").await, first);

    grant_pods(&site, &user).await;
    site.wait("lock", "that nothing is missing", |status| {
        !condition(status, "Held").2.contains("cannot be listed")
    })
    .await;
    assert_eq!(cast.led_by("lock", "a").await, first);
    cast.ended("a").await;
    assert!(cast.led_by("lock", "b").await > first);
    cast.routed("billing", Some("b")).await;
    witness.catches_up(&site).await;
    witness.assert_orderly();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_services_and_slices_nobody_is_elected_to_be_routed_until_they_may_be_seen() {
    let (site, user) = without_rights("no-slices").await;
    let cast = Cast::new(&site).await;
    allow(&site, &user, true).await;
    grant_pods(&site, &user).await;
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    let _replica = site.start().await;
    site.create("lock", routed(json!({}))).await;
    site.create("unrouted", candidates(json!({}))).await;
    cast.led_by("unrouted", "a").await;
    // There may be an endpoint that nobody here knows of.
    let unknown = site.wait("lock", "what is missing", |status| {
        condition(status, "RoutingSynced").1 == "ServicesUnknown"
    });
    let unknown = unknown.await;
    let (truth, _, message) = condition(&unknown, "RoutingSynced");
    assert_eq!((truth.as_str(), message.contains("cannot be listed")), ("Unknown", true));
    let (_, _, message) = condition(&unknown, "Ready");
    assert!(message.starts_with("the Services or EndpointSlices cannot be listed"), "{message}");
    assert_eq!(cast.endpoints("billing").await, []);
    grant_slices(&site, &user).await;
    let first = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    cast.ended("a").await;
    assert!(cast.led_by("lock", "b").await > first);
    cast.routed("billing", Some("b")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_nodes_pods_are_elected_and_a_node_that_is_away_is_seen_once_it_may_be() {
    let (site, user) = without_rights("no-nodes").await;
    let cast = Cast::new(&site).await;
    allow(&site, &user, true).await;
    grant_pods(&site, &user).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    let replica = site.start().await;
    site.create("lock", candidates(json!({ "unreachableAfter": "1s" }))).await;
    let first = cast.led_by("lock", "a").await;
    assert!(replica.metric("consul_lock_watch_errors_total{resource=\"nodes\"}") > Some(0.0));
    cast.ended("a").await;
    let second = cast.led_by("lock", "b").await;
    assert!(second > first);
    cast.node_is("Unknown").await;
    site.serves_another_claim().await;
    assert_eq!(cast.led_by("lock", "b").await, second, "nobody can know");
    grant_nodes(&site, &user).await;
    let gone = site.wait("lock", "the node to be away", |status| status.fencing_token.is_none());
    assert_eq!(gone.await.history[0].reason, "PodUnreachable");
    cast.node_is("True").await;
    assert!(cast.led_by("lock", "b").await > second);
}
