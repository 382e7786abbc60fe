//! Firings of a CronJob that is applied to two clusters: of each, one run succeeds.
//!
//! The Jobs are made here, with the annotation of the CronJob controller, because a CronJob fires
//! once a minute at most; everything else is real.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testbed::{Cluster, Consul, ConsulConfig, say, wait_for};

use crate::{
    bed::{PATIENCE, Space, cluster, disturbed_cluster},
    controller::{Replica, install_definition},
};

const FIRINGS: usize = 20;

/// A cluster with a controller and the claim.
struct Side {
    space: Space,
    controller: Replica,
}

/// A run, by the kubelet's report.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ran {
    from: String,
    to: String,
    pod: String,
}

impl Side {
    fn start(cluster: &'static Cluster, label: &str, consul: &Consul) -> Side {
        let space = Space::on(cluster, label);
        install_definition(&space);
        let allowed = "consullock.dev/key-prefixes=both/";
        space.kubectl(&["annotate", "namespace", &space.namespace, allowed]);
        let controller = Replica::start(&space, consul);
        space.apply(&json!({
            "apiVersion": "consullock.dev/v1alpha1", "kind": "ConsulLock",
            "metadata": {"name": "books"},
            "spec": {
                "key": "both/books",
                "session": {"ttl": "10s", "lockDelay": "0s"},
                "candidates": {"selector": {"matchLabels": {"app": "books"}}},
                "gate": {"policy": "OncePerSchedule"},
                "onLost": "DeletePod",
            },
        }));
        Side { space, controller }
    }

    /// What the CronJob controller makes when a CronJob is due.
    fn fire(&self, due: &str, number: usize, work: &str) {
        self.space.apply(&json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {
                "name": format!("books-{number}"),
                "annotations": {"batch.kubernetes.io/cronjob-scheduled-timestamp": due},
            },
            "spec": {"backoffLimit": 6, "template": {
                "metadata": {"labels": {"app": "books", "firing": number.to_string()}},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 1,
                    "schedulingGates": [{"name": "consullock.dev/held"}],
                    "containers": [{
                        "name": "app", "image": testbed::BACKEND_IMAGE,
                        "imagePullPolicy": "Never", "command": ["/backend", "get", work],
                    }],
                },
            }},
        }));
    }

    fn pods(&self) -> Vec<Value> {
        let pods = self.space.kubectl(&["get", "pods", "-l", "app=books", "-o", "json"]);
        let pods: Value = serde_json::from_str(&pods).unwrap();
        pods["items"].as_array().unwrap().clone()
    }

    /// The runs that succeeded, by firing.
    fn succeeded(&self) -> BTreeMap<usize, Vec<Ran>> {
        let mut runs: BTreeMap<usize, Vec<Ran>> = BTreeMap::new();
        for pod in self.pods() {
            let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            if pod["status"]["phase"] == json!("Succeeded") {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let firing = text(&pod["metadata"]["labels"]["firing"]).parse().unwrap();
                let (from, to) = (text(&ended["startedAt"]), text(&ended["finishedAt"]));
                let pod = format!("{}/{}", self.space.namespace, text(&pod["metadata"]["name"]));
                runs.entry(firing).or_default().push(Ran { from, to, pod });
            }
        }
        runs
    }

    /// Whether a pod of a firing has been let through its gate and started.
    fn has_begun(&self, firing: usize) -> bool {
        let of = json!(firing.to_string());
        self.pods().iter().any(|pod| {
            pod["metadata"]["labels"]["firing"] == of
                && !pod["status"]["containerStatuses"][0]["containerID"].is_null()
        })
    }

    fn running(&self) -> Vec<String> {
        let pods = self.pods().into_iter();
        let running = pods.filter(|pod| {
            pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
                && pod["metadata"]["deletionTimestamp"].is_null()
        });
        running.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }
}

fn due(number: usize) -> String {
    format!("2026-01-02T{:02}:{:02}:00Z", number / 60, number % 60)
}

#[test]
fn of_twenty_firings_in_two_clusters_each_has_one_successful_run_and_never_two_at_once() {
    let Some(one) = cluster() else { return };
    let Some(two) = disturbed_cluster() else { return };
    let gateways = vec![one.gateway(), two.gateway()];
    let consul = Consul::start(ConsulConfig { also_on: gateways, ..Default::default() }).unwrap();
    let mut sides =
        [Side::start(one, "books-one", &consul), Side::start(*two, "books-two", &consul)];
    let port = consul.http().port();
    // Work that needs Consul to answer, and takes a second of its time: nothing changes there.
    assert!(consul.request("PUT", "/v1/kv/none", b"").unwrap().ok());
    let none = consul.request("GET", "/v1/kv/none", b"").unwrap().json();
    let index = none[0]["ModifyIndex"].as_u64().unwrap();
    let work = |side: &Side| {
        let gateway = side.space.cluster.gateway();
        format!("http://{gateway}:{port}/v1/kv/none?index={index}&wait=1s")
    };

    for number in 0..FIRINGS {
        // One cluster's clock is ahead, now this one's and now that one's.
        let (first, second) = if number % 2 == 0 { (0, 1) } else { (1, 0) };
        sides[first].fire(&due(number), number, &work(&sides[first]));
        let begun = || {
            let begun = sides.iter().any(|side| side.has_begun(number));
            (begun || number % 4 == 2).then_some(())
        };
        wait_for(format!("firing {number} to run"), PATIENCE, begun).unwrap();
        // A firing that one cluster missed.
        if number % 7 != 3 {
            sides[second].fire(&due(number), number, &work(&sides[second]));
        }
        match number {
            // The controller of the cluster where it runs.
            5 | 12 => {
                sides[first].controller.kill();
                sides[first].controller = Replica::start(&sides[first].space, &consul);
            }
            // The cluster where it runs, but for the one that nobody may cut.
            9 | 15 => {
                two.cut().unwrap();
                let taken_up = || sides[0].has_begun(number).then_some(());
                wait_for(format!("firing {number} to be taken up"), PATIENCE, taken_up).unwrap();
                two.heal().unwrap();
            }
            _ => {}
        }
        let (here, there) = (sides[0].running(), sides[1].running());
        assert!(here.len() + there.len() <= 1, "two at once: {here:?} {there:?}");
        // Some come before the last one is over.
        if number % 4 != 1 {
            let done = || sides.iter().any(|side| side.succeeded().contains_key(&number));
            let done = wait_for(format!("firing {number}"), PATIENCE, || done().then_some(()));
            done.unwrap();
        }
    }
    let all = || {
        let mut runs = sides[0].succeeded();
        for (firing, more) in sides[1].succeeded() {
            runs.entry(firing).or_default().extend(more);
        }
        runs
    };
    let done = wait_for("every firing to have run", PATIENCE * 3, || {
        let runs = all();
        (runs.len() == FIRINGS).then_some(runs)
    });
    let runs = done.unwrap_or_else(|late| panic!("{late}: {:#?}", all()));
    for (firing, runs) in &runs {
        assert_eq!(runs.len(), 1, "firing {firing}: {runs:?}");
    }
    let mut in_order: Vec<&Ran> = runs.values().flatten().collect();
    in_order.sort();
    for pair in in_order.windows(2) {
        assert!(pair[0].to <= pair[1].from, "two at once: {pair:?}");
    }
    let by_one = runs.values().flatten().filter(|run| run.pod.starts_with("books-one")).count();
    say(format!(
        "{FIRINGS} firings: {by_one} ran in one cluster, {} in the other",
        FIRINGS - by_one
    ));
}
