//! Pods that wait for their turn, and what they are told.

use serde_json::{Value, json};
use testbed::{Stopwatch, say, wait_for};

use crate::bed::{PATIENCE, Space, ask, pod};

/// The gate that comes off the elected pod.
const GATE: &str = "consullock.dev/held";

#[test]
fn gated_pod_starts_only_after_its_gate_is_gone() {
    let Some(space) = Space::create("gate") else { return };
    let mut gated = pod("gated", &json!({}));
    gated["spec"]["schedulingGates"] = json!([{"name": GATE}]);
    space.apply(&gated);
    space.apply(&pod("later", &json!({})));
    // The scheduler, the kubelet and the network serve one that came later.
    space.wait_for_pod("later");
    let waiting = space.get("pod", "gated");
    assert_eq!(waiting["spec"]["nodeName"], Value::Null);
    assert_eq!(waiting["status"]["phase"], json!("Pending"));
    let conditions = waiting["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|known| known["reason"] == json!("SchedulingGated")));

    let watch = Stopwatch::start();
    let off = r#"[{"op": "remove", "path": "/spec/schedulingGates"}]"#;
    space.kubectl(&["patch", "pod", "gated", "--type=json", "-p", off]);
    space.wait_for_pod("gated");
    say(format!("a pod was ready {:.1} s after its gate was gone", watch.elapsed().as_secs_f32()));
    assert_eq!(space.get("pod", "gated")["spec"]["nodeName"], json!(space.cluster.node_name()));
}

#[test]
fn annotation_reaches_the_running_pod_as_a_file() {
    let Some(space) = Space::create("token") else { return };
    space.apply(&pod("reader", &json!({})));
    let address = (space.wait_for_pod("reader"), 8080).into();
    assert_eq!(ask(address), Some(json!({"pod": "reader", "token": ""})));

    let watch = Stopwatch::start();
    space.kubectl(&["annotate", "pod", "reader", "token.consullock.dev/billing=1482"]);
    wait_for("the token in the pod", PATIENCE, || {
        ask(address).filter(|answer| answer["token"] == json!("1482"))
    })
    .unwrap();
    say(format!("a token was in the pod after {:.1} s", watch.elapsed().as_secs_f32()));
}
