//! Services and the pods behind them, through kube-proxy.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::{Value, json};
use testbed::{Stopwatch, say, wait_for};

use crate::bed::{PATIENCE, Space, get_from_inside, pod, pod_spec, wait_for_answer, who_answers};

/// More than enough to meet another pod, if there were one behind the Service.
const MANY: usize = 20;

#[test]
fn deployment_becomes_available_and_both_its_pods_answer_behind_a_service() {
    let Some(space) = Space::create("deployment") else { return };
    let labels = json!({"app": "web"});
    let watch = Stopwatch::start();
    space.apply(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec()},
        },
    }));
    space.kubectl(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"]);
    say(format!("two pods were available {:.1} s after they were asked for", seconds(&watch)));
    space.apply(&service("web", Some(&labels)));
    let service = space.service("web");

    let mut seen = BTreeSet::new();
    wait_for("answers of two pods", PATIENCE, || {
        seen.extend(who_answers(service));
        (seen.len() == 2).then_some(())
    })
    .unwrap();
    let inside = get_from_inside(space.cluster, &format!("http://{service}/")).unwrap();
    let inside: Value = serde_json::from_str(&inside).unwrap();
    assert!(seen.contains(inside["pod"].as_str().unwrap()), "{inside}");
}

#[test]
fn endpoint_slice_of_ours_routes_to_its_one_pod_and_then_to_another() {
    let Some(space) = Space::create("slice") else { return };
    for name in ["first", "second"] {
        space.apply(&pod(name, &json!({})));
    }
    let [first, second] = ["first", "second"].map(|name| space.wait_for_pod(name));
    space.apply(&service("single", None));
    let service = space.service("single");

    space.apply(&slice("single", &[first]));
    wait_for_answer(service, "first");
    assert_eq!(next_answers(service), BTreeSet::from(["first".to_owned()]));

    let watch = Stopwatch::start();
    space.apply(&slice("single", &[second]));
    wait_for_answer(service, "second");
    say(format!("traffic followed the EndpointSlice after {:.2} s", seconds(&watch)));
    assert_eq!(next_answers(service), BTreeSet::from(["second".to_owned()]));

    // Were there two, the answers would have told.
    space.apply(&slice("single", &[first, second]));
    let both = || (next_answers(service).len() == 2).then_some(());
    wait_for("answers of two endpoints", PATIENCE, both).unwrap();
}

fn seconds(watch: &Stopwatch) -> f32 {
    watch.elapsed().as_secs_f32()
}

/// Who answers the next requests, each of which must be answered.
fn next_answers(service: std::net::SocketAddr) -> BTreeSet<String> {
    (0..MANY).map(|_| who_answers(service).unwrap()).collect()
}

fn service(name: &str, selector: Option<&Value>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {
            "selector": selector,
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    })
}

/// Endpoints made by hand.
fn slice(service: &str, pods: &[IpAddr]) -> Value {
    let endpoint = |pod| json!({"addresses": [pod], "conditions": {"ready": true}});
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-by-hand"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
    })
}
