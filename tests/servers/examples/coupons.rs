//! One run over two clusters.

use serde_json::Value;

use super::stage::{Actor, QUICK, Stage, end_session, holder, release};
use crate::fixtures::unique;

const CUSTOMERS: [&str; 4] = ["ann", "bob", "cat", "dan"];

/// The voucher service: looks whether the customer has a coupon, and takes its time, at bob's until
/// [`Stage::go`]. When it is told to stop it finishes what it has begun.
const ISSUE: &str = r#"
    trap 'echo > $F/told-$NAME' TERM
    if grep -qx "$CUSTOMER" $F/vouchers; then exit; fi
    echo > $F/$NAME-at-$CUSTOMER
    until [ $CUSTOMER != bob ] || [ -e $F/go-$NAME ]; do sleep 0.02; done
    echo $CUSTOMER >> $F/vouchers
"#;

/// Time to finish what was begun. A release starts no lock-delay, forged or not.
const LONG: [&str; 3] = ["--ttl=60s", "--grace=20s", "--lock-delay=60s"];

fn stage() -> Option<Stage> {
    let stage = Stage::new("coupons")?;
    stage.sql("INSERT INTO run (campaign) VALUES ('spring')");
    for name in CUSTOMERS {
        stage.sql(&format!("INSERT INTO customer VALUES ('{name}')"));
    }
    stage.folder.write("vouchers", "").unwrap();
    Some(stage)
}

/// What the voucher service has issued.
fn vouchers(stage: &Stage) -> Vec<String> {
    let text = std::fs::read_to_string(stage.folder.path().join("vouchers")).unwrap();
    let mut all: Vec<String> = text.lines().map(str::to_owned).collect();
    all.sort();
    all
}

fn key() -> String {
    format!("shop/coupons/{}", unique("spring"))
}

/// The job of a cluster.
fn job(stage: &Stage, cluster: &str, key: &str, flags: &[&str], silence: &str) -> Actor {
    let (key, name) = (format!("--key={key}"), format!("--name={cluster}"));
    let run = [&["consul-lock", "run", &key, &name][..], flags, &["--", "coupons", "spring"]];
    stage.start(cluster, &run.concat(), &[("ISSUE", ISSUE), ("SILENCE", silence)])
}

#[test]
fn without_the_lock_customers_get_two_coupons() {
    let Some(stage) = stage() else { return };
    unchecked(&stage);
    let mut jobs = ["eu", "us"].map(|cluster| {
        let env = [("CONSUL_LOCK_TOKEN", "0"), ("ISSUE", ISSUE)];
        let job = stage.start(cluster, &["coupons", "spring"], &env);
        stage.has(&format!("{cluster}-at-bob"));
        job
    });
    stage.go("eu");
    stage.go("us");
    for job in &mut jobs {
        job.ended();
    }
    let bobs = vouchers(&stage).iter().filter(|one| *one == "bob").count();
    assert_eq!(bobs, 2);
}

#[test]
fn of_two_clusters_one_issues_and_the_other_finds_that_it_is_done() {
    let Some(stage) = stage() else { return };
    let job = stage.manifest("issuing.yaml").remove(0);
    let pod = &job["spec"]["template"]["spec"]["containers"][0];
    let words: Vec<&str> =
        pod["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let env = [("ISSUE", ISSUE)];
    let mut jobs = ["eu", "us"].map(|cluster| stage.start(cluster, &words, &env));
    stage.go("eu");
    stage.go("us");
    for job in &mut jobs {
        assert_eq!(job.ended(), 0, "{}", job.said());
    }
    assert_eq!(vouchers(&stage), CUSTOMERS);
    let idle = jobs.iter().filter(|job| job.said() == "began\ndone\n").count();
    assert_eq!(idle, 1);
}

#[test]
fn when_the_first_dies_the_other_goes_on_and_nobody_gets_two() {
    let Some(stage) = stage() else { return };
    let key = key();
    let mut first = job(&stage, "eu", &key, &QUICK, "1");
    stage.has("eu-at-bob");
    let mut second = job(&stage, "us", &key, &QUICK, "1");
    first.freeze().dies();
    first.ended();
    stage.go("us");
    assert_eq!(second.ended(), 0, "{}", second.said());
    assert!(second.said().contains("began\nissuing to bob"), "{}", second.said());
    assert_eq!(vouchers(&stage), CUSTOMERS);
    let by = stage.sql("SELECT count(*), count(DISTINCT token) FROM coupon");
    assert_eq!(by, "4|2");
}

/// While the first is at bob's somebody releases the key in its name, and the second says this so
/// often. What both said, and what was issued.
fn forged_release(stage: &Stage, (words, times): (&str, usize)) -> (String, String, Vec<String>) {
    let key = key();
    let mut first = job(stage, "eu", &key, &LONG, "4");
    stage.has("eu-at-bob");
    let mut second = job(stage, "us", &key, &LONG, "4");
    stage.go("us");
    // It would notice at once, and may be the first to take the key again.
    first.pause();
    release(&key, &holder(&key).unwrap());
    second.says_often(words, times);
    first.resume();
    stage.has("told-eu");
    stage.go("eu");
    first.ended();
    assert_eq!(second.ended(), 0, "{}", second.said());
    (first.said(), second.said(), vouchers(stage))
}

#[test]
fn after_a_forged_release_the_other_waits_until_the_first_has_let_go() {
    let Some(stage) = stage() else { return };
    // For longer than silence may last: the first gives signs of life.
    let waits = ("waiting for the owner", 12);
    let (first, second, vouchers) = forged_release(&stage, waits);
    assert!(!first.contains("issuing to cat"), "{first}");
    assert!(second.contains("began\nissuing to cat\n"), "{second}");
    assert_eq!(vouchers, CUSTOMERS);
}

/// Whoever has the lock begins, whoever is at work.
fn unchecked(stage: &Stage) {
    let schema = std::fs::read_to_string(stage.file("schema.sql")).unwrap();
    let functions = &schema[schema.find("CREATE FUNCTION take_run").unwrap()..];
    let mut functions = functions.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION");
    for check in [" AND (owner IS NULL OR beat < clock_timestamp() - silence)", " AND owner = me"] {
        assert!(functions.contains(check), "{functions}");
        functions = functions.replace(check, "");
    }
    stage.sql(&functions);
}

#[test]
fn without_the_owner_a_forged_release_makes_two_coupons() {
    let Some(stage) = stage() else { return };
    unchecked(&stage);
    let (_, second, vouchers) = forged_release(&stage, ("done", 1));
    assert!(second.starts_with("began\nissuing to bob\n"), "{second}");
    assert_eq!(vouchers, ["ann", "bob", "bob", "cat", "dan"]);
}

#[test]
fn what_can_be_read_in_consul_does_not_let_go_of_a_run() {
    let Some(stage) = stage() else { return };
    let key = key();
    let mut first = job(&stage, "eu", &key, &LONG, "30");
    stage.has("eu-at-bob");
    let session = holder(&key).unwrap();
    // Somebody who may connect, and has no right to any table.
    let forger = unique("forger");
    stage.sql(&format!("CREATE ROLE \"{forger}\""));
    let forge = |statement: &str| {
        stage
            .database
            .sql(&format!("SET ROLE \"{forger}\"; {statement}"))
            .map_err(|e| e.to_string())
    };
    let let_go = format!("SELECT let_go('spring', '{session}')");
    assert_eq!(forge(&let_go).unwrap(), "f");
    let record = format!("SELECT record_coupon('spring', 999999, '{session}', 'dan')");
    assert_eq!(forge(&record).unwrap(), "f");
    for attempt in ["SELECT owner FROM run", "UPDATE run SET owner = NULL"] {
        let error = forge(attempt).unwrap_err();
        assert!(error.contains("permission denied for table run"), "{attempt}: {error}");
    }
    stage.go("eu");
    assert_eq!(first.ended(), 0, "{}", first.said());

    // An owner that is called as its session would be at everybody's mercy.
    stage.sql("INSERT INTO run (campaign) VALUES ('summer')");
    let take = format!("SELECT take_run('summer', 1, '{session}', '1 hour')");
    assert_eq!(stage.sql(&take), "t");
    assert_eq!(forge(&let_go.replace("spring", "summer")).unwrap(), "t");
}

#[test]
fn who_was_taken_for_dead_records_nothing_any_more() {
    let Some(stage) = stage() else { return };
    let key = key();
    let mut first = job(&stage, "eu", &key, &QUICK, "1");
    stage.has("eu-at-bob");
    let frozen = first.freeze();
    end_session(&key);
    let mut second = job(&stage, "us", &key, &QUICK, "1");
    stage.go("us");
    assert_eq!(second.ended(), 0, "{}", second.said());
    stage.go("eu");
    frozen.command_wakes_up_first();
    frozen.wake_up();
    first.ended();
    assert!(first.said().contains("another one has taken over"), "{}", first.said());
    assert_eq!(stage.sql("SELECT count(*) FROM coupon"), "4");
    // Nor does it begin again.
    let token = stage.sql("SELECT min(token) FROM coupon");
    let take = format!("SELECT take_run('spring', {token}, gen_random_uuid(), '1 hour')");
    let error = stage.database.sql(&take).unwrap_err().to_string();
    assert!(error.contains("is stale"), "{error}");
}
