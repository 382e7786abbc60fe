//! What an operator watches: the dashboard's queries put to a real Prometheus that scrapes a real
//! controller, the alerts judged by promtool, and a runbook that has an entry for each.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};
use testbed::{Folder, Prometheus, tools::repository};

use crate::chart::{of_kind, render};

mod dashboard;

/// As the alerts file calls the controller's job.
const JOB: &str = "job=\"consul-lock-metrics\"";

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap()
}

/// The alerts as they lie in the chart.
fn alerts_file() -> Value {
    serde_saphyr::from_str(&read("charts/consul-lock/monitoring/alerts.yaml")).unwrap()
}

/// Each alert of such a file.
fn alerts(file: &Value) -> Vec<&Value> {
    let groups = file["groups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_array().unwrap()).collect()
}

fn name(alert: &Value) -> &str {
    alert["alert"].as_str().unwrap()
}

fn names(file: &Value) -> BTreeSet<String> {
    alerts(file).into_iter().map(|alert| name(alert).to_owned()).collect()
}

// ---- alerts ----

#[test]
fn promtool_finds_that_each_alert_fires_when_it_should_and_not_otherwise() {
    if Prometheus::skips() {
        return;
    }
    let folder = Folder::new("alerts").unwrap();
    let mut file = alerts_file();
    folder.write("alerts.json", file.to_string()).unwrap();
    Prometheus::promtool(&["check", "rules", "alerts.json"], folder.path()).unwrap();

    // Words are not compared.
    for group in file["groups"].as_array_mut().unwrap() {
        for rule in group["rules"].as_array_mut().unwrap() {
            rule.as_object_mut().unwrap().remove("annotations");
        }
    }
    folder.write("alerts.json", file.to_string()).unwrap();
    let cases = read("tests/servers/monitoring/alerts.yaml").replace("ALERTS", "alerts.json");
    folder.write("cases.yaml", cases).unwrap();
    Prometheus::promtool(&["test", "rules", "cases.yaml"], folder.path()).unwrap();
}

#[test]
fn each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() {
    let cases: Value =
        serde_saphyr::from_str(&read("tests/servers/monitoring/alerts.yaml")).unwrap();
    let cases = cases["tests"].as_array().unwrap().iter();
    let cases: Vec<&Value> =
        cases.flat_map(|case| case["alert_rule_test"].as_array().unwrap()).collect();
    let of = |fires: bool| -> BTreeSet<String> {
        let is_so = |case: &&&Value| case["exp_alerts"].as_array().unwrap().is_empty() != fires;
        let name = |case: &&Value| case["alertname"].as_str().unwrap().to_owned();
        cases.iter().filter(is_so).map(name).collect()
    };
    assert_eq!(of(true), names(&alerts_file()));
    assert_eq!(of(false), names(&alerts_file()));
}

#[test]
fn each_alert_has_an_entry_in_the_runbook_and_each_entry_an_alert() {
    let runbook = read("docs/src/operations/runbook.md");
    let headings = runbook.lines().filter_map(|line| line.strip_prefix("## "));
    let entries: BTreeSet<String> =
        headings.filter(|title| title.starts_with("ConsulLock")).map(str::to_owned).collect();
    let file = alerts_file();
    assert_eq!(entries, names(&file));
    for alert in alerts(&file) {
        let url = alert["annotations"]["runbook_url"].as_str().unwrap();
        // What both a book and a forge make of a heading.
        let anchor = name(alert).to_lowercase();
        assert_eq!(url, format!("docs/src/operations/runbook.md#{anchor}"));
        for word in ["summary", "description"] {
            assert!(
                alert["annotations"][word].as_str().is_some_and(|text| text.ends_with('.')),
                "{alert}"
            );
        }
        assert!(["warning", "critical"].contains(&alert["labels"]["severity"].as_str().unwrap()));
    }
}

#[test]
fn the_chart_s_rule_holds_the_same_alerts_about_its_own_controllers() {
    let values = json!({"metrics": {"prometheusRule": {
        "enabled": true, "runbook": "https://docs.example/runbook.html",
    }}});
    let objects = render("ops", &values).unwrap();
    let [rule] = of_kind(&objects, "PrometheusRule")[..] else { panic!("{objects:#?}") };
    let [service] = of_kind(&objects, "Service")[..] else { panic!("{objects:#?}") };
    let job = service["metadata"]["name"].as_str().unwrap();
    let own = json!(format!("namespace=\"ops\",job=\"{job}\"")).to_string();
    let expected = alerts_file()
        .to_string()
        .replace(json!(JOB).to_string().trim_matches('"'), own.trim_matches('"'))
        .replace("docs/src/operations/runbook.md", "https://docs.example/runbook.html");
    assert_eq!(rule["spec"], serde_json::from_str::<Value>(&expected).unwrap());
    let alerts = alerts(&rule["spec"]);
    let of_ours = |alert: &&Value| alert["expr"].as_str().unwrap().contains(job);
    assert_eq!(alerts.iter().copied().filter(of_ours).count(), alerts.len());
}

#[test]
fn every_metric_of_a_query_is_one_that_the_tables_describe() {
    let tables = METRICS.map(read).concat();
    let mut queries: Vec<String> = alerts(&alerts_file())
        .iter()
        .map(|alert| alert["expr"].as_str().unwrap().to_owned())
        .collect();
    queries.extend(dashboard::queries().into_iter().map(|(_, query)| query));
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for word in queries.iter().flat_map(|query| query.split(|c| !is_name(c))) {
        if let Some(metric) = word.strip_prefix("consul_lock_") {
            let metric = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| metric.strip_suffix(suffix))
                .unwrap_or(metric);
            assert!(tables.contains(&format!("consul_lock_{metric}")), "{metric} is not described");
        }
    }
}

/// Where metrics are described.
const METRICS: [&str; 2] = ["README.md", "docs/src/reference/metrics.md"];

#[test]
fn the_dashboard_s_config_map_has_the_label_that_grafana_s_sidecar_looks_for() {
    let objects = render("ops", &json!({"metrics": {"dashboard": {"enabled": true}}})).unwrap();
    let [map] = of_kind(&objects, "ConfigMap")[..] else { panic!("{objects:#?}") };
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let shown: Value =
        serde_json::from_str(map["data"]["consul-lock.json"].as_str().unwrap()).unwrap();
    assert_eq!(shown, dashboard::file());
    let without = render("ops", &json!({})).unwrap();
    assert!(
        of_kind(&without, "ConfigMap").is_empty() && of_kind(&without, "PrometheusRule").is_empty()
    );
    assert!(Path::new("charts/consul-lock/dashboards").is_dir());
}
