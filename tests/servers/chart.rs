//! The Helm chart, rendered by the real Helm: what it refuses, and what the real API server makes of
//! what it renders. Installed it is in `tests/cluster/chart.rs`.

use std::{collections::BTreeSet, path::Path, thread};

use serde_json::{Value, json};
use testbed::{Folder, Helm, run, wait_for};

use crate::{
    fixtures::{PATIENCE, claims_client, control_plane, unique},
    kubectl::{Plugin, Said},
    site::Site,
};

/// Every value that makes an object or a field, where it does not exclude another.
fn everything() -> Value {
    json!({
        "consul": {
            "address": "https://$(HOST_IP):8501/consul",
            "tls": {
                "caSecret": {"name": "ca"},
                "clientSecret": {"name": "client"},
                "serverName": "server.dc1.consul",
            },
            "tokenSecret": {"name": "token"},
            "namespace": "locks",
            "partition": "eu",
        },
        "image": {"digest": format!("sha256:{}", "0".repeat(64)), "pullSecrets": ["registry"]},
        "clusterName": "eu-1",
        "metrics": {
            "serviceMonitor": {
                "enabled": true, "interval": "30s", "labels": {"release": "prometheus"},
            },
            "prometheusRule": {
                "enabled": true, "labels": {"release": "prometheus"},
                "runbook": "https://docs/runbook.html",
            },
            "dashboard": {"enabled": true, "annotations": {"grafana_folder": "Consul"}},
        },
        "serviceAccount": {"annotations": {"a/b": "c"}},
        "admissionPolicy": {"enabled": true},
        "networkPolicy": {
            "metricsFrom": [{
                "namespaceLabels": {"name": "monitoring"}, "podLabels": {"app": "prometheus"},
            }],
            "apiServer": {"cidrs": ["10.0.0.1/32"]},
            "consul": {
                "cidrs": ["10.0.0.0/8"],
                "namespaceLabels": {"name": "consul"}, "podLabels": {"app": "consul"},
            },
        },
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "locks", "operator": "Exists", "effect": "NoSchedule"}],
        "dns": {"policy": "None", "nameservers": ["10.0.0.10"], "searches": ["consul"]},
        "podLabels": {"team": "platform"},
        "podAnnotations": {"note": "x"},
        "extraEnv": {"CONSUL_LOCK_LEASE_DURATION": "15s"},
    })
}

/// What the chart renders for a release in a namespace.
pub(crate) fn render(namespace: &str, values: &Value) -> Result<Vec<Value>, String> {
    let helm = Helm::new(Path::new("/nowhere")).unwrap();
    let args = ["template", "locks", "--namespace", namespace];
    let rendered = helm.with_chart(&args, values).map_err(|error| error.to_string())?;
    let documents = rendered
        .split("\n---\n")
        .map(|one| serde_saphyr::from_str::<Value>(one.trim_start_matches("---\n")).unwrap());
    Ok(documents.filter(|one| !one.is_null()).collect())
}

pub(crate) fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// Runs kubectl with these objects in a file.
fn kubectl(args: &[&str], objects: &[Value]) -> Result<String, String> {
    let folder = Folder::new("objects").unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let file = folder.write("objects.json", list.to_string()).unwrap();
    let mut command = control_plane().kubectl(args.iter().copied()).unwrap();
    run(command.arg("-f").arg(file), PATIENCE).map_err(|error| error.to_string())
}

// ---- values ----

#[test]
fn values_that_are_misspelled_or_contradict_each_other_are_refused_by_name() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let cases = [
        (json!({"replicass": 3}), "replicass"),
        (json!({"replicas": "two"}), "/replicas"),
        (json!({"replicas": 0}), "/replicas"),
        (json!({"replicas": null}), "replicas"),
        (json!({"consul": {"adress": "consul:8500"}}), "adress"),
        (json!({"consul": {"address": "ftp://consul"}}), "/consul/address"),
        (json!({"consul": {"address": ""}}), "/consul/address"),
        (json!({"consul": {"token": "s3cret"}}), "token"),
        (json!({"consul": {"tls": {"caSecret": {"name": "ca"}}}}), "/consul/tls/caSecret/name"),
        (json!({"consul": {"tls": {"serverName": "a.b"}}}), "/consul/tls/serverName"),
        (
            json!({"consul": {"tls": {"clientSecret": {"name": "client"}}}}),
            "/consul/tls/clientSecret/name",
        ),
        (
            json!({"consul": {"login": {"authMethod": "a"}, "tokenSecret": {"name": "token"}}}),
            "/consul/tokenSecret/name",
        ),
        (json!({"consul": {"login": {"meta": {"a": "b"}}}}), "/consul/login/meta"),
        (json!({"image": {"tag": "1", "digest": digest}}), "/image/tag"),
        (json!({"image": {"digest": "1.0"}}), "/image/digest"),
        (json!({"rbac": {"clusterReads": false}}), "/watchNamespaces"),
        (json!({"rbac": {"clusterReads": false}, "watchNamespaces": ["shop"]}), "/clusterName"),
        (json!({"watchNamespaces": ["Shop"]}), "/watchNamespaces/0"),
        (json!({"watchNamespaces": "shop"}), "/watchNamespaces"),
        (json!({"serviceAccount": {"create": false}}), "/serviceAccount/name"),
        (
            json!({"networkPolicy": {"enabled": false, "metricsFrom": [{"podLabels": {}}]}}),
            "/networkPolicy/metricsFrom",
        ),
        (json!({"networkPolicy": {"consul": {"port": 8500}}}), "port"),
        (json!({"dns": {"policy": "None"}}), "/dns/nameservers"),
        (json!({"keyPrefix": "a//b"}), "/keyPrefix"),
        (json!({"keyPrefix": "a/../b"}), "/keyPrefix"),
        (json!({"clusterName": "EU"}), "/clusterName"),
        (json!({"extraEnv": {"CONSUL_HTTP_ADDR": "x"}}), "CONSUL_HTTP_ADDR"),
        (json!({"podLabels": {"app.kubernetes.io/name": "x"}}), "app.kubernetes.io/name"),
        (json!({"priorityClass": {"name": "system-node-critical"}}), "/priorityClass/name"),
        (json!({"tolerations": [{"kee": "x"}]}), "kee"),
        (json!({"log": {"format": "xml"}}), "/log/format"),
        (json!({"metrics": {"serviceMonitor": {"enable": true}}}), "enable"),
        (json!({"resources": {"limits": {"memmory": "1Gi"}}}), "memmory"),
    ];
    render("x", &json!({})).unwrap();
    thread::scope(|scope| {
        for (values, name) in &cases {
            scope.spawn(move || {
                let said = render("x", values).expect_err(&format!("{values} was taken"));
                assert!(said.contains(name), "no {name:?} in: {said}");
            });
        }
    });
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    let helm = Helm::new(Path::new("/nowhere")).unwrap();
    for values in [json!({}), everything()] {
        let said = helm.with_chart(&["lint", "--strict"], &values).unwrap();
        assert!(said.contains("0 chart(s) failed"), "{said}");
    }
}

// ---- what it renders ----

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_takes_what_the_chart_renders_to_the_last_field() {
    let site = Site::new("rendered").await;
    let namespace = site.namespace.clone();
    let confined = json!({"watchNamespaces": [namespace]});
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    let label = ["label", "namespace", &namespace, restricted];
    run(&mut control_plane().kubectl(label).unwrap(), PATIENCE).unwrap();
    install_prometheus_operator_definitions();
    for values in [json!({}), everything(), confined] {
        let objects = render(&namespace, &values).unwrap();
        // A pod is refused without it.
        kubectl(&["apply"], &[of_kind(&objects, "ServiceAccount")[0].clone()]).unwrap();
        let args = ["apply", "--dry-run=server", "--validate=strict"];
        kubectl(&args, &objects).unwrap_or_else(|error| panic!("{values}: {error}"));
    }
}

/// Makes ServiceMonitor and PrometheusRule known to the shared control plane, as the Prometheus Operator
/// defines them.
fn install_prometheus_operator_definitions() {
    for file in testbed::tools::prometheus_operator_definitions().unwrap() {
        let mut command = control_plane().kubectl(["apply", "--server-side", "-f"]).unwrap();
        run(command.arg(file), PATIENCE).unwrap();
    }
    let of = |kind: &str| format!("customresourcedefinition/{kind}.monitoring.coreos.com");
    let established = ["wait", "--for=condition=Established", "--timeout=30s"];
    let mut command = control_plane().kubectl(established).unwrap();
    run(command.args([of("servicemonitors"), of("prometheusrules")]), PATIENCE).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_the_prometheus_operator_does_not_know_would_be_noticed() {
    let site = Site::new("operator").await;
    install_prometheus_operator_definitions();
    let objects = render(&site.namespace, &everything()).unwrap();
    let args = ["apply", "--dry-run=server", "--validate=strict"];
    for (kind, list) in [("ServiceMonitor", "/spec/endpoints"), ("PrometheusRule", "/spec/groups")]
    {
        let mut object = of_kind(&objects, kind)[0].clone();
        kubectl(&args, std::slice::from_ref(&object)).unwrap();
        object.pointer_mut(list).unwrap()[0]["intervall"] = json!("30s");
        let said = kubectl(&args, &[object]).unwrap_err();
        assert!(said.contains("intervall"), "{said}");
    }
}

/// The pod that the chart's Deployment makes.
fn controller(objects: &[Value]) -> Value {
    let [deployment] = of_kind(objects, "Deployment")[..] else { panic!("{objects:#?}") };
    deployment["spec"]["template"].clone()
}

/// Name and value of its variables, in their order.
fn variables(pod: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let env = pod["spec"]["containers"][0]["env"].as_array().unwrap().iter();
    env.map(|one| (text(&one["name"]), text(&one["value"]))).collect()
}

#[test]
fn every_setting_reaches_the_controller_as_its_variable() {
    let pod = controller(&render("ops", &everything()).unwrap());
    let env = variables(&pod);
    assert_eq!(env[0].0, "HOST_IP", "it must come before what names it");
    let has = |name: &str, value: &str| {
        assert!(env.contains(&(name.to_owned(), value.to_owned())), "no {name}={value}: {env:?}");
    };
    has("CONSUL_HTTP_ADDR", "https://$(HOST_IP):8501/consul");
    has("CONSUL_HTTP_TOKEN_FILE", "/etc/consul-lock/token");
    has("CONSUL_CACERT", "/etc/consul-lock/ca.crt");
    has("CONSUL_CLIENT_CERT", "/etc/consul-lock/client.crt");
    has("CONSUL_CLIENT_KEY", "/etc/consul-lock/client.key");
    has("CONSUL_TLS_SERVER_NAME", "server.dc1.consul");
    has("CONSUL_NAMESPACE", "locks");
    has("CONSUL_PARTITION", "eu");
    has("CONSUL_LOCK_CLUSTER_NAME", "eu-1");
    has("CONSUL_LOCK_LEASE_NAME", "locks-consul-lock");
    has("CONSUL_LOCK_LEASE_NAMESPACE", "ops");
    has("CONSUL_LOCK_LEASE_DURATION", "15s");
    let login = json!({"consul": {"login": {"authMethod": "a", "meta": {"x": "1", "y": "2"}}}});
    let env = variables(&controller(&render("ops", &login).unwrap()));
    let login: Vec<&str> = env
        .iter()
        .filter(|(name, _)| name.starts_with("CONSUL_LOGIN_"))
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(login, ["a", "x=1,y=2"]);
}

#[test]
fn every_file_that_a_variable_names_is_mounted() {
    let pod = controller(&render("ops", &everything()).unwrap());
    let sources = &pod["spec"]["volumes"][0]["projected"]["sources"];
    let items = |source: &Value| source["secret"]["items"].as_array().unwrap().clone();
    let items: Vec<Value> = sources.as_array().unwrap().iter().flat_map(items).collect();
    let paths: BTreeSet<&str> = items.iter().map(|item| item["path"].as_str().unwrap()).collect();
    let mount = &pod["spec"]["containers"][0]["volumeMounts"][0];
    let mount = format!("{}/", mount["mountPath"].as_str().unwrap());
    let env = variables(&pod);
    let named: BTreeSet<&str> =
        env.iter().filter_map(|(_, value)| value.strip_prefix(&mount)).collect();
    assert_eq!((paths, named.len()), (named.clone(), 4));
}

#[test]
fn image_labels_and_dns_are_as_asked_for() {
    let pod = controller(&render("ops", &everything()).unwrap());
    let image = format!("consullock.dev/consul-lock@sha256:{}", "0".repeat(64));
    assert_eq!(pod["spec"]["containers"][0]["image"], json!(image));
    assert_eq!(pod["metadata"]["labels"]["team"], "platform");
    assert_eq!(pod["metadata"]["annotations"], json!({"note": "x"}));
    assert_eq!(pod["spec"]["dnsPolicy"], "None");
    assert_eq!(pod["spec"]["dnsConfig"]["nameservers"], json!(["10.0.0.10"]));
    assert_eq!(pod["spec"]["nodeSelector"], json!({"disk": "ssd"}));
    assert_eq!(pod["spec"]["tolerations"][0]["key"], "locks");
}

#[test]
fn a_service_monitor_finds_the_metrics_service() {
    let objects = render("ops", &everything()).unwrap();
    let [monitor] = of_kind(&objects, "ServiceMonitor")[..] else { panic!("{objects:#?}") };
    let [service] = of_kind(&objects, "Service")[..] else { panic!("{objects:#?}") };
    assert_eq!(monitor["spec"]["endpoints"][0]["port"], service["spec"]["ports"][0]["name"]);
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    for (name, value) in monitor["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(service["metadata"]["labels"][name], *value);
    }
}

#[test]
fn the_network_policy_names_whom_it_is_told_of() {
    let objects = render("ops", &everything()).unwrap();
    let [policy] = of_kind(&objects, "NetworkPolicy")[..] else { panic!("{objects:#?}") };
    let ports = |rule: &Value| {
        let ports = rule["ports"].as_array().unwrap().iter();
        ports.map(|port| port["port"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let egress: Vec<_> = policy["spec"]["egress"].as_array().unwrap().iter().map(ports).collect();
    assert_eq!(egress, [vec![53, 53], vec![443, 6443], vec![8501]]);
    assert_eq!(policy["spec"]["ingress"][0]["from"].as_array().unwrap().len(), 1);
    assert_eq!(policy["spec"]["egress"][1]["to"].as_array().unwrap().len(), 1);
    assert_eq!(policy["spec"]["egress"][2]["to"].as_array().unwrap().len(), 2);
}

#[test]
fn the_network_policy_lets_out_to_the_port_of_consul_s_address() {
    let port = |address: &str| {
        let objects = render("x", &json!({"consul": {"address": address}})).unwrap();
        let policy = of_kind(&objects, "NetworkPolicy")[0].clone();
        assert_eq!(policy["spec"]["ingress"], Value::Null, "nobody is let in");
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        policy["spec"]["egress"][2]["ports"][0]["port"].as_u64().unwrap()
    };
    for (address, expected) in [
        ("consul:8500", 8500),
        ("consul", 80),
        ("https://consul", 443),
        ("https://consul/eu", 443),
        ("http://consul:8600/eu", 8600),
        ("$(HOST_IP):8500", 8500),
        ("[fd00::1]:8501", 8501),
    ] {
        assert_eq!(port(address), expected, "{address}");
    }
}

// ---- rights ----

/// Resource and verb of every right that the roles allow, each once.
fn granted(objects: &[Value]) -> BTreeSet<(String, String)> {
    let roles = of_kind(objects, "ClusterRole").into_iter().chain(of_kind(objects, "Role"));
    let rules = roles.flat_map(|role| role["rules"].as_array().unwrap());
    let mut rights = BTreeSet::new();
    for rule in rules {
        let words = |field: &str| -> Vec<String> {
            let words = rule[field].as_array().unwrap().iter();
            words.map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        for resource in words("resources") {
            for verb in words("verbs") {
                assert!(resource != "*" && verb != "*" && words("apiGroups") != ["*"], "{rule}");
                let new = rights.insert((resource.clone(), verb));
                assert!(new, "{rule} allows what another allows");
            }
        }
    }
    rights
}

/// The doctor's rows about rights.
async fn examined(site: &Site, account: &str, confined: bool) -> Vec<Value> {
    let (cluster, namespace) = (site.cluster(), &site.namespace);
    let mut args = vec![
        "doctor".to_owned(),
        "-o=json".to_owned(),
        format!("--as=system:serviceaccount:{namespace}:{account}"),
        format!("--cluster-name={cluster}"),
        format!("--key-prefix={cluster}"),
        format!("--lease-namespace={namespace}"),
        format!("--lease-name={account}"),
    ];
    if confined {
        args.push(format!("--watch-namespaces={namespace}"));
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let plugin = Plugin::install();
    let mut command = plugin.command(site, &args);
    command.env("CONSUL_HTTP_ADDR", crate::fixtures::shared_consul().address());
    let said = Said::of(command).await;
    let Ok(Value::Array(rows)) = serde_json::from_str(&said.out) else { panic!("{said:?}") };
    let about_rights = |row: &Value| row["check"].as_str().unwrap().starts_with("RBAC: ");
    rows.into_iter().filter(about_rights).collect()
}

/// Resource and verb of what a row is about.
fn rights_of(row: &Value) -> Vec<(String, String)> {
    let words = row["check"].as_str().unwrap().strip_prefix("RBAC: ").unwrap();
    let (verbs, resource) = words.split_once(" on ").unwrap();
    verbs.split(", ").map(|verb| (resource.to_owned(), verb.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chart_grants_what_the_doctor_examines_and_nothing_else() {
    let site = Site::new("granted").await;
    let namespace = site.namespace.clone();
    for (what, values) in [
        ("all", json!({})),
        ("some", json!({"watchNamespaces": [namespace]})),
        (
            "bare",
            json!({
                "watchNamespaces": [namespace], "clusterName": "x", "rbac": {"clusterReads": false},
            }),
        ),
    ] {
        let account = unique(what);
        let mut values = values;
        values["fullnameOverride"] = json!(account);
        let objects = render(&namespace, &values).unwrap();
        let kinds = ["ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
        let of_rights = |one: &&Value| kinds.contains(&one["kind"].as_str().unwrap());
        let of_rights: Vec<Value> = objects.iter().filter(of_rights).cloned().collect();
        kubectl(&["apply"], &of_rights).unwrap();

        let rows = examined(&site, &account, what != "all").await;
        let used = |row: &&Value| row["detail"] == "done, or done as a dry run";
        let may: BTreeSet<_> = rows.iter().filter(used).flat_map(rights_of).collect();
        assert_eq!(granted(&objects), may, "{rows:#?}");
        let denied = rows.iter().filter(|row| !used(row)).flat_map(rights_of).map(|(what, _)| what);
        let denied: BTreeSet<String> = denied.collect();
        let expected = if what == "bare" { vec!["namespaces", "nodes"] } else { vec![] };
        assert_eq!(denied, expected.into_iter().map(str::to_owned).collect(), "{rows:#?}");
        // A ClusterRole would reach every namespace.
        let everywhere =
            granted(&of_kind(&objects, "ClusterRole").into_iter().cloned().collect::<Vec<_>>());
        assert_eq!(everywhere.iter().any(|(resource, _)| resource == "pods"), what == "all");
    }
}

// ---- the admission policy ----

#[tokio::test(flavor = "multi_thread")]
async fn the_admission_policy_keeps_claims_to_their_namespace_s_prefixes() {
    claims_client().await;
    let (fenced, free) = (Site::new("fenced").await, Site::new("unfenced").await);
    let namespace = fenced.namespace.as_str();
    let values = json!({
        "admissionPolicy": {"enabled": true},
        "keyPrefix": "locks/eu",
        "watchNamespaces": [namespace],
    });
    let mut objects = render(namespace, &values).unwrap();
    objects.retain(|one| one["kind"].as_str().unwrap().starts_with("ValidatingAdmission"));
    assert_eq!(objects.len(), 2);
    kubectl(&["apply", "--validate=strict"], &objects).unwrap();
    let claim = |namespace: &str, spec: Value| {
        json!({
            "apiVersion": "consullock.dev/v1alpha1", "kind": "ConsulLock",
            "metadata": {"name": unique("claim"), "namespace": namespace}, "spec": spec,
        })
    };
    let create = |namespace: &str, spec: Value| {
        kubectl(&["create", "--dry-run=server"], &[claim(namespace, spec)])
    };
    let foreign = json!({"key": "locks/eu/other/x"});
    let said = wait_for("the policy to be in force", PATIENCE, || {
        create(namespace, foreign.clone()).err()
    })
    .unwrap();
    let words = format!("keys here begin with locks/eu/{namespace}/; a cluster administrator");
    assert!(said.contains("the key locks/eu/other/x is outside"), "{said}");
    assert!(said.contains(&words), "{said}");
    create(&free.namespace, foreign.clone()).unwrap();
    create(namespace, json!({})).unwrap();
    create(namespace, json!({"key": format!("locks/eu/{namespace}/x")})).unwrap();
    create(namespace, json!({"key": "locks/eu"})).unwrap_err();
    create(namespace, json!({"key": format!("locks/eu/{namespace}x/y")})).unwrap_err();

    // What the annotation lists is allowed as well, by the controller's own reading of it.
    let annotate = |text: &str| {
        let text = format!("consullock.dev/key-prefixes={text}");
        let args = ["annotate", "--overwrite", "namespace", namespace, &text];
        run(&mut control_plane().kubectl(args).unwrap(), PATIENCE).unwrap();
    };
    annotate(" shared/jobs/ ,half,,");
    let allowed = || create(namespace, json!({"key": "shared/jobs/x"})).ok();
    wait_for("the annotation to be seen", PATIENCE, allowed).unwrap();
    let said = create(namespace, json!({"key": "half/x"})).unwrap_err();
    assert!(said.contains("or shared/jobs/; a cluster"), "{said}");

    // A claim that is there already can still be changed and deleted.
    let mut there = claim(namespace, json!({"key": "shared/jobs/there"}));
    there["metadata"]["finalizers"] = json!(["consullock.dev/release"]);
    kubectl(&["create"], &[there.clone()]).unwrap();
    annotate("");
    wait_for("the annotation to be gone", PATIENCE, || {
        create(namespace, json!({"key": "shared/jobs/x"})).err()
    })
    .unwrap();
    there["metadata"]["finalizers"] = json!([]);
    kubectl(&["replace"], &[there.clone()]).unwrap();
    kubectl(&["delete", "--timeout=20s"], &[there]).unwrap();
    kubectl(&["delete"], &objects).unwrap();
}
