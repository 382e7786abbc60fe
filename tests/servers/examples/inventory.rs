//! Many workers sell of one stock.

use serde_json::Value;

use super::stage::{Actor, QUICK, Stage, UNTIL_GO, end_session};
use crate::fixtures::unique;

const SELLERS: u32 = 6;

/// Fewer pieces than the sellers want, who want two each.
const PIECES: u32 = 6;

fn stage(pieces: u32) -> Option<Stage> {
    let stage = Stage::new("inventory")?;
    stage.sql(&format!("INSERT INTO stock (item, pieces) VALUES ('chair', {pieces})"));
    Some(stage)
}

/// How many are left, and how many were sold.
fn count(stage: &Stage) -> (u32, u32) {
    let row = stage.sql("SELECT pieces, (SELECT count(*) FROM sale) FROM stock");
    let (left, sold) = row.split_once('|').unwrap();
    (left.parse().unwrap(), sold.parse().unwrap())
}

#[test]
fn without_the_lock_more_is_sold_than_there_is() {
    let Some(stage) = stage(PIECES) else { return };
    let sell = |_| {
        let env =
            [("CONSUL_LOCK_TOKEN", "0"), ("PACK", "until [ -e $F/go-all ]; do sleep 0.02; done")];
        stage.start(&unique("seller"), &["inventory", "chair", "2"], &env)
    };
    let mut sellers: Vec<Actor> = (0..SELLERS).map(sell).collect();
    for seller in &sellers {
        seller.says("packing one of 6");
    }
    stage.go("all");
    for seller in &mut sellers {
        assert_eq!(seller.ended(), 0, "{}", seller.said());
    }
    let (left, sold) = count(&stage);
    assert!(sold > PIECES && PIECES - left < sold, "{left} left, {sold} sold");
}

#[test]
fn with_the_lock_the_count_is_exact() {
    let Some(stage) = stage(PIECES) else { return };
    // As the Job's pods would.
    let job = stage.manifest("sellers.yaml").remove(0);
    let pod = &job["spec"]["template"]["spec"]["containers"][0];
    let words: Vec<&str> =
        pod["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(job["spec"]["completions"], SELLERS);
    let sell = |_| stage.start(&unique("seller"), &words, &[("PACK", "sleep 0.02")]);
    let mut sellers: Vec<Actor> = (0..SELLERS).map(sell).collect();
    for seller in &mut sellers {
        assert_eq!(seller.ended(), 0, "{}", seller.said());
    }
    assert_eq!(count(&stage), (0, PIECES));
    let late = sellers.iter().filter(|seller| seller.said().contains("sold out")).count();
    assert_eq!(late, 3, "three got two each");
}

/// A seller is frozen between reading and writing, until another one has read. What it said at the
/// end, how many are left of two, and how many were sold.
fn frozen_seller(stage: &Stage, tenure_ends: impl FnOnce(&str)) -> (String, u32, u32) {
    let key = format!("shop/stock/{}", unique("frozen"));
    let sell = |name: &str| {
        let key = format!("--key={key}");
        let run = [&["consul-lock", "run", &key][..], &QUICK, &["--", "inventory", "chair", "1"]];
        stage.start(name, &run.concat(), &[("PACK", UNTIL_GO)])
    };
    let mut first = sell("first");
    first.says("packing one of 2");
    let frozen = first.freeze();
    tenure_ends(&key);
    let mut second = sell("second");
    second.says("packing one of 2");
    stage.go("first");
    frozen.command_wakes_up_first();
    stage.go("second");
    assert_eq!(second.ended(), 0, "{}", second.said());
    frozen.wake_up();
    first.ended();
    let (left, sold) = count(stage);
    (first.said(), left, sold)
}

#[test]
fn who_was_frozen_past_its_tenure_cannot_write() {
    let Some(stage) = stage(2) else { return };
    // Nobody ends it but Consul.
    let (said, left, sold) = frozen_seller(&stage, |_| ());
    assert!(said.contains("is stale") && !said.contains("sold"), "{said}");
    assert_eq!((left, sold), (1, 1));
}

#[test]
fn without_the_fence_who_was_frozen_sells_a_piece_again() {
    let Some(stage) = stage(2) else { return };
    stage.sql("DROP TRIGGER fence ON stock");
    let (said, left, sold) = frozen_seller(&stage, end_session);
    assert!(said.contains("sold one of 2"), "{said}");
    assert_eq!((left, sold), (1, 2), "two were sold, and one was deducted");
}
