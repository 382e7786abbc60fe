//! `kubectl consullock doctor`: all is well with what the book lists, and each rule that is
//! missing makes its own row fail and no other.

use consul_lock::consul::Consul;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::Api;
use serde_json::{Value, json};
use testbed::{Consul as Server, ConsulConfig};
use tokio::task::JoinSet;

use crate::{
    consul_access::token,
    faults_kubernetes::{put, subject},
    fixtures::{guarded_consul, unique},
    kubectl::Plugin,
    pods::{Cast, candidates},
    site::{Site, Way},
};

/// The rules of the book: its row, and what it allows. The last two are about what belongs to the
/// whole cluster.
fn rules() -> Vec<(&'static str, Value)> {
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs });
    let slices = ["list", "watch", "create", "update", "patch", "delete"];
    let group = "consullock.dev";
    vec![
        (
            "RBAC: list, watch, patch on consullocks",
            rule(group, "consullocks", &["get", "list", "watch", "patch"]),
        ),
        ("RBAC: patch on consullocks/status", rule(group, "consullocks/status", &["patch"])),
        ("RBAC: create on events", rule("events.k8s.io", "events", &["create"])),
        (
            "RBAC: get, create, update on leases",
            rule("coordination.k8s.io", "leases", &["get", "create", "update"]),
        ),
        ("RBAC: list, watch, patch on pods", rule("", "pods", &["list", "watch", "patch"])),
        ("RBAC: delete on pods", rule("", "pods", &["delete"])),
        ("RBAC: list, watch on services", rule("", "services", &["list", "watch"])),
        (
            "RBAC: list, watch, create, update, patch, delete on endpointslices",
            rule("discovery.k8s.io", "endpointslices", &slices),
        ),
        ("RBAC: list, watch, delete on jobs", rule("batch", "jobs", &["list", "watch", "delete"])),
        ("RBAC: get, list, watch on namespaces", rule("", "namespaces", &["get", "list", "watch"])),
        ("RBAC: list, watch on nodes", rule("", "nodes", &["list", "watch"])),
    ]
}

/// A user with these rules in the site's namespace, and in the cluster.
async fn user_with(site: &Site, local: Vec<Value>, global: Vec<Value>) -> String {
    let (user, client) = (unique("examiner"), site.client.clone());
    let reference =
        |kind: &str| json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": user });
    let binding = |kind: &str| {
        json!({
            "metadata": { "name": user },
            "roleRef": reference(kind), "subjects": [subject(&user)],
        })
    };
    let role = |rules: Vec<Value>| json!({ "metadata": { "name": user }, "rules": rules });
    let namespace = &site.namespace;
    put(Api::<Role>::namespaced(client.clone(), namespace), &user, role(local)).await;
    put(Api::<RoleBinding>::namespaced(client.clone(), namespace), &user, binding("Role")).await;
    put(Api::<ClusterRole>::all(client.clone()), &user, role(global)).await;
    put(Api::<ClusterRoleBinding>::all(client), &user, binding("ClusterRole")).await;
    user
}

/// A site whose claims need every right that there is, held by a controller that has it.
async fn site_on_guarded_consul() -> (Site, Cast, crate::site::Replica) {
    let consul = tokio::task::spawn_blocking(guarded_consul).await.unwrap();
    let site = Site::through("examined", &consul.address(), consul.token(), Way::Straight).await;
    let (cast, replica) = (Cast::new(&site).await, site.start().await);
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    let mut spec = candidates(json!({}));
    spec["routing"] = json!({ "service": "billing" });
    spec["onLost"] = json!("DeletePod");
    site.create("lock", spec).await;
    let mut gated = candidates(json!({}));
    gated["candidates"]["selector"] = json!({ "matchLabels": { "app": "nightly" } });
    gated["gate"] = json!({ "policy": "OncePerSchedule" });
    site.create("nightly", gated).await;
    cast.led_by("lock", "a").await;
    (site, cast, replica)
}

/// The rows that are not OK, by verdict; and all that was said.
struct Examination {
    code: Option<i32>,
    problems: Vec<String>,
    unknown: Vec<String>,
    said: Value,
}

async fn examine(site: &Site, user: &str, secret: &str) -> Examination {
    let plugin = Plugin::install();
    let (cluster, namespace) = (site.cluster(), &site.namespace);
    let args = [
        "doctor".to_owned(),
        "-o=json".to_owned(),
        format!("--as={user}"),
        format!("--cluster-name={cluster}"),
        format!("--key-prefix={cluster}"),
        format!("--watch-namespaces={namespace}"),
        format!("--lease-namespace={namespace}"),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = plugin.command(site, &args);
    command.env("CONSUL_HTTP_ADDR", guarded_consul().address()).env("CONSUL_HTTP_TOKEN", secret);
    let said = crate::kubectl::Said::of(command).await;
    assert!(!said.out.contains(secret) && !said.err.contains(secret), "{said:?}");
    let Ok(rows) = serde_json::from_str::<Value>(&said.out) else { panic!("{said:?}") };
    let of = |verdict: &str| {
        let rows = rows.as_array().unwrap().iter().filter(|row| row["verdict"] == verdict);
        rows.map(|row| row["check"].as_str().unwrap().to_owned()).collect()
    };
    Examination { code: said.code, problems: of("Problem"), unknown: of("Unknown"), said: rows }
}

/// The policy of the example for this cluster, rule by rule.
fn acl_rules(cluster: &str) -> Vec<String> {
    let policy = include_str!("../../examples/policies/controller.hcl");
    let named = |line: &str| {
        let line = line.replace("consul-lock-eu-1-", &format!("consul-lock-{cluster}-"));
        line.replace("\"consul-lock/", &format!("\"{cluster}/"))
    };
    let rules: Vec<_> =
        policy.lines().filter(|line| line.contains("policy = ")).map(named).collect();
    assert_eq!(rules.len(), 4, "{policy}");
    rules
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_documented_rights_all_is_well_and_each_that_is_missing_fails_its_own_row() {
    let (site, _cast, _replica) = site_on_guarded_consul().await;
    // Somebody whose session ACLs could hide.
    let stranger = site.stranger(site.key("other")).await;
    let (rules, acl) = (rules(), acl_rules(site.cluster()));
    let whole = |without: Option<usize>| {
        let kept = rules.iter().enumerate().filter(|(nth, _)| Some(*nth) != without);
        let (global, local): (Vec<_>, Vec<_>) = kept.partition(|(nth, _)| *nth >= rules.len() - 2);
        let plain = |rules: Vec<(usize, &(&str, Value))>| {
            rules.into_iter().map(|(_, (_, rule))| rule.clone()).collect::<Vec<_>>()
        };
        (plain(local), plain(global))
    };
    let tokens = |without: Option<usize>| {
        let kept = acl.iter().enumerate().filter(|(nth, _)| Some(*nth) != without);
        kept.map(|(_, rule)| rule.as_str()).collect::<Vec<_>>().join("\n")
    };
    let (local, global) = whole(None);
    let everybody = user_with(&site, local, global).await;
    let all = tokens(None);
    let (_, secret) = tokio::task::spawn_blocking(move || token(&all)).await.unwrap();
    let well = examine(&site, &everybody, &secret).await;
    assert_eq!((well.problems, well.unknown), (vec![], vec![]), "{:#}", well.said);
    assert_eq!(well.code, Some(0));

    let mut cases: Vec<(String, String, String)> = Vec::new();
    for (nth, (row, _)) in rules.iter().enumerate() {
        let (local, global) = whole(Some(nth));
        let user = user_with(&site, local, global).await;
        cases.push(((*row).to_owned(), user, secret.clone()));
    }
    for (nth, rule) in acl.iter().enumerate() {
        let less = tokens(Some(nth));
        let (_, secret) = tokio::task::spawn_blocking(move || token(&less)).await.unwrap();
        cases.push((format!("ACL: {rule}"), everybody.clone(), secret));
    }
    let site = std::sync::Arc::new(site);
    let mut examinations = JoinSet::new();
    for (row, user, secret) in cases {
        let site = std::sync::Arc::clone(&site);
        examinations.spawn(async move { (examine(&site, &user, &secret).await, row) });
    }
    while let Some(ended) = examinations.join_next().await {
        let (found, row) = ended.unwrap();
        assert_eq!(found.problems, std::slice::from_ref(&row), "{:#}", found.said);
        assert_eq!(found.code, Some(1), "{row}");
        let rows = found.said.as_array().unwrap();
        let failed = rows.iter().find(|one| one["check"] == row.as_str()).unwrap();
        let repair = failed["repair"][0].as_str().unwrap();
        let expected = match row.strip_prefix("ACL: ") {
            Some(rule) => format!("echo '{rule}'"),
            None => "kubectl create ".to_owned(),
        };
        assert!(repair.starts_with(&expected), "{failed:#}");
    }
    stranger.leave().await;
    nothing_is_left(&site).await;
}

/// Of an examination nothing is left in Consul: no node, no key.
async fn nothing_is_left(site: &Site) {
    let nodes = guarded_consul().request("GET", "/v1/catalog/nodes", b"").unwrap();
    let probe = format!("consul-lock-{}-doctor-", site.cluster());
    assert!(!nodes.text().contains(&probe), "{}", nodes.text());
    let prefix = format!("{}/consul-lock-doctor", site.cluster());
    let now = consul_lock::consul::Blocking { after: 0, wait: std::time::Duration::from_secs(1) };
    let listing = site.consul.watch_prefix(&prefix, now, consul_lock::consul::Consistency::Default);
    assert_eq!(listing.await.unwrap().pairs, []);
}

#[tokio::test]
async fn a_leaked_session_and_a_key_that_is_not_allowed_are_found_with_what_repairs_them() {
    let (site, _cast, _replica) = site_on_guarded_consul().await;
    site.create("outside", json!({ "key": format!("elsewhere/{}/key", site.namespace) })).await;
    site.wait("outside", "the refusal", |status| status.phase.is_some()).await;
    let sessions = site.sessions().await;
    let request = consul_lock::consul::SessionRequest {
        name: consul_lock::names::SessionName::new(format!("consul-lock/{}/gone", site.cluster())),
        node: sessions[0].node.clone(),
        ttl: std::time::Duration::from_secs(60),
        lock_delay: std::time::Duration::ZERO,
        behavior: consul_lock::consul::Behavior::Release,
        node_checks: Vec::new(),
        service_checks: Vec::new(),
    };
    let leaked = site.consul.create_session(&request).await.unwrap();
    let secret = guarded_consul().token().unwrap();
    // The administrator may everything.
    let plugin = Plugin::install();
    let (cluster, namespace) = (site.cluster(), &site.namespace);
    let flags = [
        format!("--cluster-name={cluster}"),
        format!("--key-prefix={cluster}"),
        format!("--watch-namespaces={namespace}"),
    ];
    let args = [&["doctor"][..], &flags.each_ref().map(String::as_str)].concat();
    let mut command = plugin.command(&site, &args);
    command.env("CONSUL_HTTP_ADDR", guarded_consul().address()).env("CONSUL_HTTP_TOKEN", secret);
    let said = crate::kubectl::Said::of(command).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    for words in [
        format!("/v1/session/destroy/{leaked}"),
        format!("kubectl annotate namespace {namespace} consullock.dev/key-prefixes=elsewhere/"),
    ] {
        assert!(said.out.contains(&words), "no {words:?} in: {}", said.out);
    }
    let problems = said.out.lines().filter(|line| line.contains("   PROBLEM   "));
    assert_eq!(problems.count(), 2, "{}", said.out);
    site.consul.destroy_session(&leaked).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consul_that_grants_no_ttl_as_short_as_a_claim_wants_is_found_with_the_setting_to_change()
{
    let config = ConsulConfig { session_ttl_min: "20s".to_owned(), ..ConsulConfig::default() };
    let consul = tokio::task::spawn_blocking(|| Server::start(config)).await.unwrap().unwrap();
    let site = Site::on("too-short", &consul.address()).await;
    site.create("brief", json!({ "session": { "ttl": "12s" } })).await;
    let (cluster, namespace) = (site.cluster(), &site.namespace);
    let flags = [
        format!("--cluster-name={cluster}"),
        format!("--key-prefix={cluster}"),
        format!("--watch-namespaces={namespace}"),
    ];
    let args = [&["doctor", "-o=json"][..], &flags.each_ref().map(String::as_str)].concat();
    let plugin = Plugin::install();
    let mut command = plugin.command(&site, &args);
    command.envs(consul.env());
    let said = crate::kubectl::Said::of(command).await;
    let rows: Value = serde_json::from_str(&said.out).unwrap();
    let row =
        rows.as_array().unwrap().iter().find(|row| row["check"] == "Consul: grants a TTL of 12s");
    let row = row.unwrap_or_else(|| panic!("no such row: {rows:#}"));
    assert_eq!(row["verdict"], "Problem", "{row:#}");
    let repair = row["repair"][0].as_str().unwrap();
    assert!(repair.contains("session_ttl_min") && repair.contains("spec.session.ttl"), "{row:#}");
    assert_eq!(said.code, Some(1));
}
