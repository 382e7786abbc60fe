//! What the kubelet reports when a container ends: the proof of death.

use serde_json::{Value, json};
use testbed::{Stopwatch, request, say, wait_for};

use crate::bed::{PATIENCE, Space, pod};

/// The one container of a pod, as the API server knows it.
fn container(space: &Space, pod: &str) -> Value {
    space.get("pod", pod)["status"]["containerStatuses"][0].clone()
}

/// How a container ended that had this ID, whether another runs in its place or not.
fn end_of(status: &Value, id: &str) -> Option<Value> {
    [&status["state"]["terminated"], &status["lastState"]["terminated"]]
        .into_iter()
        .find(|ended| ended["containerID"] == json!(id))
        .cloned()
}

/// Waits until the API server knows of the end of the container with this ID.
#[track_caller]
fn wait_for_end(space: &Space, pod: &str, id: &str) -> Value {
    let what = format!("the report that {id} has ended");
    wait_for(what, PATIENCE, || end_of(&container(space, pod), id)).unwrap()
}

#[test]
fn killed_container_is_reported_as_ended_and_restarted() {
    let Some(space) = Space::create("killed") else { return };
    space.apply(&pod("victim", &json!({})));
    space.wait_for_pod("victim");
    let before = container(&space, "victim");
    let id = before["containerID"].as_str().unwrap().to_owned();
    assert_eq!((&before["restartCount"], end_of(&before, &id)), (&json!(0), None));

    let watch = Stopwatch::start();
    space.cluster.kill_container(&space.namespace, "victim", "app").unwrap();
    let killed = watch.elapsed();
    let ended = wait_for_end(&space, "victim", &id);
    let (all, killing) = (watch.elapsed().as_secs_f32(), killed.as_secs_f32());
    say(format!("a kill ({killing:.2} s for it) was in the pod's status after {all:.2} s"));
    assert_eq!(ended["exitCode"], json!(137), "{ended}");

    let restarted = || {
        let now = container(&space, "victim");
        let another = now["state"]["running"].is_object() && now["containerID"] != json!(id);
        another.then_some(now)
    };
    let after = wait_for("its restart", PATIENCE, restarted).unwrap();
    assert_eq!(after["restartCount"], json!(1));
    assert!(end_of(&after, &id).is_some(), "{after}");
}

#[test]
fn container_that_exits_is_reported_with_its_code_and_stays_ended_if_it_should() {
    let Some(space) = Space::create("exits") else { return };
    let mut quitter = pod("quitter", &json!({}));
    quitter["spec"]["restartPolicy"] = json!("Never");
    space.apply(&quitter);
    let address = space.wait_for_pod("quitter");
    let id = container(&space, "quitter")["containerID"].as_str().unwrap().to_owned();

    // It ends before it answers.
    request((address, 8080).into(), "POST", "/exit?code=3", &[], b"").unwrap_err();
    assert_eq!(wait_for_end(&space, "quitter", &id)["exitCode"], json!(3));
    space.kubectl(&["wait", "--for=jsonpath={.status.phase}=Failed", "pod/quitter"]);
    assert_eq!(container(&space, "quitter")["restartCount"], json!(0));
}
