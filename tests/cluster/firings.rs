//! Firings of a CronJob that is applied to two clusters: of each, one run succeeds.
//!
//! A CronJob fires once a minute at most. So for the twenty firings the Jobs are made here, with the
//! annotation of the CronJob controller; a real CronJob has another test, and fires twice.

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
        self.space.list("pods", &["--selector=app=books"])
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

/// Of each Job that a CronJob has made, for which time, and whether it has succeeded.
fn jobs(side: &Side) -> Vec<(String, bool)> {
    let jobs = side.space.list("jobs", &[]).into_iter().map(|job| {
        let due =
            &job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"];
        (due.as_str().unwrap().to_owned(), job["status"]["succeeded"] == json!(1))
    });
    jobs.collect()
}

/// What the events tell of Jobs that were removed because their firing had run elsewhere.
fn removals(side: &Side) -> Vec<String> {
    let about = ["--field-selector=reason=AlreadyRan"];
    let events = side.space.list("events.events.k8s.io", &about);
    events.iter().map(|event| event["note"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_cronjob_that_is_applied_twice_unchanged_runs_once_for_each_of_its_times() {
    let Some(cluster) = cluster() else { return };
    let config = ConsulConfig { also_on: vec![cluster.gateway()], ..Default::default() };
    let consul = Consul::start(config).unwrap();
    // Two that know nothing of each other but the key: each watches its own namespace.
    let sides =
        [Side::start(cluster, "cron-one", &consul), Side::start(cluster, "cron-two", &consul)];
    let example = include_str!("../../examples/nightly-once.yaml");
    let documents: Vec<Value> = serde_saphyr::from_multiple(example).unwrap();
    let mut cronjob = documents.into_iter().find(|one| one["kind"] == json!("CronJob")).unwrap();
    cronjob["metadata"]["namespace"].take();
    cronjob["spec"]["schedule"] = json!("* * * * *");
    let template = &mut cronjob["spec"]["jobTemplate"]["spec"]["template"];
    template["metadata"]["labels"]["app"] = json!("books");
    let container = &mut template["spec"]["containers"][0];
    container["image"] = json!(testbed::BACKEND_IMAGE);
    container["imagePullPolicy"] = json!("Never");
    let work = format!("http://{}:{}/v1/status/leader", cluster.gateway(), consul.http().port());
    container["command"] = json!(["/backend", "get", work]);
    for side in &sides {
        side.space.apply(&cronjob);
    }

    const TIMES: usize = 2;
    wait_for("two firings to have run", PATIENCE * 2, || {
        let all: Vec<(String, bool)> = sides.iter().flat_map(jobs).collect();
        let done = all.iter().filter(|(_, succeeded)| *succeeded).count();
        // Who came too late is gone.
        let waiting = all.iter().any(|(_, succeeded)| !succeeded);
        let removed: usize = sides.iter().map(|side| removals(side).len()).sum();
        (done >= TIMES && !waiting && removed >= TIMES).then_some(())
    })
    .unwrap();
    for side in &sides {
        side.space.kubectl(&["delete", "cronjob", "--all", "--cascade=orphan"]);
    }
    let all: Vec<(String, bool)> = sides.iter().flat_map(jobs).collect();
    let mut times: Vec<&String> = all.iter().filter(|one| one.1).map(|(due, _)| due).collect();
    let runs = times.len();
    times.sort();
    times.dedup();
    assert_eq!(times.len(), runs, "a time has run twice: {all:?}");
    let told: Vec<String> = sides.iter().flat_map(removals).collect();
    assert!(told.iter().all(|note| note.contains("cron-")), "where it ran: {told:?}");
    say(format!("{runs} times of a CronJob: one run each; {} removed", told.len()));
}
