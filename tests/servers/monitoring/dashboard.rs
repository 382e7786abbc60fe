//! The dashboard: each of its panels shows something when there is something to show.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use testbed::{Consul, ConsulConfig, Fault, Prometheus, Proxy, wait_for};

use super::{of_kind, read, render};
use crate::{
    fixtures::{claims_client, control_plane, shared_consul},
    pods::{Cast, routed},
    site::{Replica, Site, Way, eventually},
};

/// How long Prometheus may take to have scraped what a query asks for, and to have seen it change.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn file() -> Value {
    serde_json::from_str(&read("charts/consul-lock/dashboards/consul-lock.json")).unwrap()
}

/// The title of each panel, with each of its queries.
pub(super) fn queries() -> Vec<(String, String)> {
    let file = file();
    let panels = file["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let queries = panels.flat_map(|panel| {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap().iter();
        targets.map(move |target| (title.to_owned(), target["expr"].as_str().unwrap().to_owned()))
    });
    queries.collect()
}

#[test]
fn panels_have_queries_and_places_of_their_own() {
    let file = file();
    let panels = file["panels"].as_array().unwrap();
    let mut cells = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in panels {
        let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{panel}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(cells.insert((x, y)), "two panels lie at {x},{y}");
            }
        }
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let is_row = panel["type"] == "row";
        assert!(is_row || !panel["targets"].as_array().unwrap().is_empty(), "{panel}");
        assert!(is_row || panel["datasource"]["uid"] == "${datasource}", "{panel}");
    }
    assert!(queries().len() >= 35, "{}", queries().len());
    assert!(panels.iter().any(|panel| panel["type"] == "state-timeline"));
}

/// A controller whose ways to Kubernetes and to Consul can be cut, another one beside it, and a Prometheus
/// that scrapes both by what the chart's ServiceMonitor says, with the chart's alerts.
struct Stage {
    site: Site,
    cast: Cast,
    replica: Replica,
    prometheus: Prometheus,
    ways: [Proxy; 2],
    _mortal: Mortal,
}

/// A controller without claims, whose certificates and token expire.
struct Mortal {
    replica: Replica,
    _site: Site,
    _consul: Consul,
}

impl Mortal {
    async fn start() -> Mortal {
        let started = tokio::task::spawn_blocking(|| {
            let config = ConsulConfig { tls: true, acl: true, ..ConsulConfig::default() };
            let consul = Consul::start(config).unwrap();
            let token = token_for_an_hour(&consul);
            (consul, token)
        });
        let (consul, token) = started.await.unwrap();
        let site = Site::through("mortal", &consul.address(), Some(&token), Way::Straight).await;
        let (ca, client) = (consul.ca_file().unwrap(), consul.client_cert().unwrap());
        let (cert, key) = (client.cert.as_path(), client.key.as_path());
        let files = [("cacert", ca), ("client-cert", cert), ("client-key", key)];
        let files = files.map(|(flag, file)| format!("--consul-{flag}={}", file.display()));
        let replica = site.start_with(&files.each_ref().map(String::as_str)).await;
        Mortal { replica, _site: site, _consul: consul }
    }
}

fn token_for_an_hour(consul: &Consul) -> String {
    let body = json!({"Policies": [{"Name": "global-management"}], "ExpirationTTL": "1h"});
    let reply = consul.request("PUT", "/v1/acl/token", body.to_string().as_bytes()).unwrap();
    assert!(reply.ok(), "{}", reply.text());
    reply.json()["SecretID"].as_str().unwrap().to_owned()
}

impl Stage {
    async fn set() -> Stage {
        claims_client().await;
        let ways = tokio::task::spawn_blocking(|| {
            let consul = shared_consul().address();
            let consul = consul.trim_start_matches("http://").parse().unwrap();
            [Proxy::tcp(control_plane().address()).unwrap(), Proxy::tcp(consul).unwrap()]
        });
        let ways = ways.await.unwrap();
        let consul = ways[1].address().to_string();
        let site =
            Site::through("dashboard", &consul, None, Way::Through(ways[0].address().port())).await;
        let site = site.observed_at(&shared_consul().address());
        let cast = Cast::new(&site).await;
        // With the Lease's own times: on a machine with much to do a short one is lost all the time.
        let replica = site.start_with(&["--per-claim-metrics"]).await;
        replica.wait_leads().await;
        let mortal = Mortal::start().await;
        let config = scraping(&replica, &mortal.replica).to_string();
        let started = tokio::task::spawn_blocking(move || Prometheus::start(&config));
        let prometheus = started.await.unwrap().unwrap();
        Stage { site, cast, replica, prometheus, ways, _mortal: mortal }
    }

    fn set_both(&self, fault: Fault) {
        self.ways.iter().for_each(|way| way.set(fault));
    }
}

/// Prometheus' configuration, as its operator would make it of the chart's objects.
fn scraping(replica: &Replica, other: &Replica) -> Value {
    let values = json!({"metrics": {
        "serviceMonitor": {"enabled": true}, "prometheusRule": {"enabled": true},
    }});
    let objects = render("ops", &values).unwrap();
    let endpoint = &of_kind(&objects, "ServiceMonitor")[0]["spec"]["endpoints"][0];
    let service = &of_kind(&objects, "Service")[0]["metadata"]["name"];
    let targets = [replica, other].map(|one| one.admin_address().to_string());
    let rules = replica
        .folder()
        .write("alerts.json", of_kind(&objects, "PrometheusRule")[0]["spec"].to_string());
    json!({
        "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "500ms"},
        "rule_files": [rules.unwrap()],
        "scrape_configs": [{
            "job_name": service,
            "metrics_path": endpoint["path"],
            "honor_labels": endpoint["honorLabels"],
            "static_configs": [{
                "targets": targets,
                "labels": {"namespace": "ops", "service": service},
            }],
        }],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_shows_data_of_a_controller_that_has_been_through_a_failover_and_faults() {
    if Prometheus::skips() {
        return;
    }
    let stage = Stage::set().await;
    let (site, cast) = (&stage.site, &stage.cast);
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({}))).await;
    cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    wait_for_series(&stage, "consul_lock_claim_fencing_token").await;
    fail_over(&stage).await;
    lose_a_tenure_behind_both_ways(&stage).await;

    let prometheus = stage.prometheus;
    let namespace = site.namespace.clone();
    let checked = tokio::task::spawn_blocking(move || {
        for (panel, query) in queries() {
            let query = query
                .replace("$job", ".*")
                .replace("$namespace", &namespace)
                .replace("$__rate_interval", "2m")
                .replace("$__range", "5m");
            let found = wait_for(format!("{panel}: {query}"), PATIENCE, || {
                prometheus.query(&query).unwrap().into_iter().find(is_number)
            });
            found.unwrap();
        }
        // The whole way, from the counter to an alert of the chart's.
        let lost = |alert: &Value| alert["metric"]["alertname"] == "ConsulLockTenureLost";
        let fires = || prometheus.alerts().unwrap().into_iter().find(lost);
        wait_for("the alert about the lost tenure", PATIENCE, fires).unwrap();
        // What is good for long enough alarms nobody.
        let expiry = ["ConsulLockCertificateExpiresSoon", "ConsulLockTokenExpiresSoon"];
        for alert in prometheus.alerts().unwrap() {
            assert!(!expiry.iter().any(|name| alert["metric"]["alertname"] == *name), "{alert}");
        }
        parts_of_the_failover(&prometheus)
    });
    let parts = checked.await.unwrap();
    let named: Vec<&str> = parts.iter().map(|(part, _)| part.as_str()).collect();
    assert_eq!(named, ["acquisition", "detection", "lock_delay", "routing", "withdrawal"]);
    assert!(parts.iter().all(|(_, mean)| *mean < 10.0), "{parts:?}");
}

fn is_number(series: &Value) -> bool {
    let value = series["value"][1].as_str().and_then(|text| text.parse::<f64>().ok());
    value.is_some_and(f64::is_finite)
}

/// Each part that happened, and how long it took on average.
fn parts_of_the_failover(prometheus: &Prometheus) -> Vec<(String, f64)> {
    let mean = "sum by (part) (consul_lock_failover_seconds_sum) \
                / (sum by (part) (consul_lock_failover_seconds_count) > 0)";
    let found = prometheus.query(mean).unwrap();
    let mut parts: Vec<(String, f64)> = found
        .iter()
        .map(|series| {
            let value = series["value"][1].as_str().unwrap().parse().unwrap();
            (series["metric"]["part"].as_str().unwrap().to_owned(), value)
        })
        .collect();
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    parts
}

async fn wait_for_series(stage: &Stage, query: &str) {
    let look = || async {
        let found = stage.prometheus.query(query).unwrap();
        if found.is_empty() { Err("nothing") } else { Ok(()) }
    };
    eventually(query, look).await;
}

async fn fail_over(stage: &Stage) {
    stage.cast.ended("a").await;
    stage.cast.led_by("lock", "b").await;
    stage.cast.routed("billing", Some("b")).await;
}

/// Neither Kubernetes nor Consul answers for a while, in which somebody deletes the key.
async fn lose_a_tenure_behind_both_ways(stage: &Stage) {
    use consul_lock::consul::Consul;
    let (site, replica) = (&stage.site, &stage.replica);
    let before = site.held("lock").await;
    stage.ways[0].set(Fault::Cut);
    site.consul.delete(&site.key("lock")).await.unwrap();
    let counted = |series: &str| replica.get("/metrics").unwrap().text().contains(series);
    // The loss is noticed, and cannot be written down.
    eventually("failed walks and watches", || async {
        let seen = ["reconcile_errors_total{", "watch_errors_total{"].map(counted);
        if seen == [true, true] { Ok(()) } else { Err(seen) }
    })
    .await;
    stage.set_both(Fault::Cut);
    eventually("failed calls", || async {
        let failed = counted("class=\"Transient\"") || counted("class=\"UnknownOutcome\"");
        if failed { Ok(()) } else { Err(()) }
    })
    .await;
    stage.set_both(Fault::None);
    replica.wait_leads().await;
    let again = |status: &consul_lock::api::ConsulLockStatus| {
        status.fencing_token.as_ref().is_some_and(|token| token.parse::<u64>().unwrap() > before)
    };
    site.wait("lock", "a tenure after the loss", again).await;
}
