//! The same CronJob in two clusters.

use serde_json::{Value, json};

use super::{
    kubernetes::{Cluster, block_on, of_kind, words},
    stage::{Actor, Stage, end_session},
};
use crate::{fixtures::unique, gates::removed, site::eventually};

const DAY: &str = "2026-01-01";

/// When it is due, in both.
const TWO: &str = "2026-01-02T02:00:00Z";

/// What sends the report.
const REPORT: &str = "echo $DAY >> $F/reports; until [ -e $F/go-$NAME ]; do sleep 0.02; done";

fn stage() -> Option<Stage> {
    let stage = Stage::new("nightly")?;
    stage.sql(
        "INSERT INTO sale VALUES ('2026-01-01', 'cash', 10), ('2026-01-01', 'cash', 7), \
         ('2026-01-01', 'card', 5), ('2026-01-02', 'cash', 3)",
    );
    Some(stage)
}

/// What was booked, and how often the report was sent.
fn booked(stage: &Stage) -> (String, usize) {
    let bookings = stage.sql("SELECT account, amount FROM booking ORDER BY account");
    let reports = std::fs::read_to_string(stage.folder.path().join("reports")).unwrap();
    (bookings.replace('\n', " "), reports.lines().count())
}

const ONCE: &str = "card|5 cash|17";
const TWICE: &str = "card|5 card|5 cash|17 cash|17";

/// The two clusters, and what is applied to both.
struct Night {
    manifest: Vec<Value>,
    west: Cluster,
    east: Cluster,
}

impl Night {
    /// Both clusters want to close the day, and the west has begun to.
    async fn begins(stage: &Stage, manifest: Vec<Value>) -> (Night, Actor) {
        let night = Night::falls(manifest).await;
        night.is_due(&night.west).await;
        let west = night.starts(&night.west, stage, "west").await;
        night.is_due(&night.east).await;
        (night, west)
    }

    async fn falls(manifest: Vec<Value>) -> Night {
        let west = Cluster::new(&unique("night-west")).await;
        let east = Cluster::new(&unique("night-east")).await;
        east.site.share_keys_of(&west.site).await;
        let key = west.site.key("day-end");
        west.claim(&manifest, None).await;
        east.claim(&manifest, Some(&key)).await;
        Night { manifest, west, east }
    }

    fn template(&self) -> &Value {
        &of_kind(&self.manifest, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
    }

    /// What the CronJob makes when its time has come: a Job, and that its pod.
    async fn is_due(&self, cluster: &Cluster) {
        cluster.cast.job("two", Some(TWO)).await;
        let uid = cluster.cast.jobs.get("two").await.unwrap().metadata.uid;
        let owner = json!({
            "apiVersion": "batch/v1", "kind": "Job", "name": "two", "uid": uid, "controller": true,
        });
        cluster.pod(self.template(), "a", Some(owner)).await;
    }

    /// Runs the pod of a cluster as soon as nobody holds it back.
    async fn starts(&self, cluster: &Cluster, stage: &Stage, name: &str) -> Actor {
        eventually("the gate to be opened", || async {
            let gates = cluster.cast.gates("a").await;
            if gates.is_empty() { Ok(()) } else { Err(gates) }
        })
        .await;
        cluster.cast.runs("a").await;
        let container = &self.template()["spec"]["containers"][0];
        let variables = cluster.environment(container, "a").await;
        let mut env = vec![("DAY", DAY), ("REPORT", REPORT)];
        env.extend(variables.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        stage.start(name, &words(&container["command"]), &env)
    }
}

#[test]
fn without_the_gate_both_clusters_close_the_day() {
    let Some(stage) = stage() else { return };
    let env = [("CONSUL_LOCK_TOKEN", "0"), ("DAY", DAY), ("REPORT", REPORT)];
    let mut runs = ["west", "east"].map(|cluster| stage.start(cluster, &["day-end"], &env));
    runs.iter().for_each(|run| run.says("sending the report"));
    stage.go("west");
    stage.go("east");
    for run in &mut runs {
        assert_eq!(run.ended(), 0, "{}", run.said());
    }
    assert_eq!(booked(&stage), (TWICE.to_owned(), 2));
}

#[test]
fn with_the_gate_one_of_two_clusters_closes_the_day() {
    let Some(stage) = stage() else { return };
    let manifest = stage.manifest("day-end.yaml");
    block_on(async {
        let (night, mut west) = Night::begins(&stage, manifest).await;
        west.says("sending the report");
        stage.go("west");
        assert_eq!(west.ended(), 0, "{}", west.said());
        night.west.cast.finished("a", "Succeeded").await;
        removed(&night.east.cast, "two").await;
        assert_eq!(night.east.cast.gates("a").await, ["consullock.dev/held"], "it never started");
        night.east.site.event("day-end", "AlreadyRan").await;
    });
    assert_eq!(booked(&stage), (ONCE.to_owned(), 1));
}

#[test]
fn a_run_that_fails_is_taken_up_by_the_other_cluster() {
    let Some(stage) = stage() else { return };
    let manifest = stage.manifest("day-end.yaml");
    block_on(async {
        let (night, mut west) = Night::begins(&stage, manifest).await;
        stage.has("reports");
        west.kill();
        west.ended();
        night.west.cast.finished("a", "Failed").await;
        let mut east = night.starts(&night.east, &stage, "east").await;
        stage.go("east");
        assert_eq!(east.ended(), 0, "{}", east.said());
    });
    assert_eq!(booked(&stage), (ONCE.to_owned(), 2), "the report was sent before it failed");
}

/// One cluster is cut off while its run is frozen, and the other closes the day. What the first said
/// at the end.
fn cut_off(stage: &Stage) -> String {
    let manifest = stage.manifest("day-end.yaml");
    block_on(async {
        let (night, mut west) = Night::begins(stage, manifest).await;
        west.says("sending the report");
        west.pause();
        // Nobody renews any more: the session ends.
        night.west.replica.server.kill().unwrap();
        let key = night.west.site.key("day-end");
        end_session(key.as_str());
        let mut east = night.starts(&night.east, stage, "east").await;
        east.says("sending the report");
        stage.go("west");
        west.resume();
        west.ended();
        stage.go("east");
        assert_eq!(east.ended(), 0, "{}", east.said());
        west.said()
    })
}

#[test]
fn a_run_of_a_cluster_that_was_cut_off_books_nothing() {
    let Some(stage) = stage() else { return };
    let said = cut_off(&stage);
    assert!(said.contains("is stale") && !said.contains("closed"), "{said}");
    assert_eq!(booked(&stage), (ONCE.to_owned(), 2), "a report is not the database's to prevent");
}

#[test]
fn without_the_fence_a_run_of_a_cluster_that_was_cut_off_books_again() {
    let Some(stage) = stage() else { return };
    stage.sql("DROP TRIGGER fence ON day");
    let said = cut_off(&stage);
    assert!(said.contains("closed"), "{said}");
    assert_eq!(booked(&stage), (TWICE.to_owned(), 2));
}
