//! A double click.

use super::stage::{Actor, QUICK, Stage, end_session};
use crate::{fixtures::unique, run::scene::sessions};

/// Notes the charge, and takes its time.
const CHARGE: &str = "echo charged >> $F/charges; until [ -e $F/go-$NAME ]; do sleep 0.02; done";

fn stage() -> Option<Stage> {
    let stage = Stage::new("orders")?;
    stage.sql("INSERT INTO cart (id) VALUES (17)");
    Some(stage)
}

/// How many orders there are, and how often somebody was charged.
fn count(stage: &Stage) -> (String, usize) {
    let charges = std::fs::read_to_string(stage.folder.path().join("charges")).unwrap();
    (stage.sql("SELECT count(*) FROM orders"), charges.lines().count())
}

/// A click, which is called so in Consul, too.
fn click(stage: &Stage, key: &str, flags: &[&str], name: &str) -> Actor {
    let (key, called) = (format!("--key={key}"), format!("--name={name}"));
    let run = ["consul-lock", "run", &key, &called, "--wait=20s"];
    let words = [&run[..], flags, &["--", "./checkout", "17"]].concat();
    stage.start(name, &words, &[("CHARGE", CHARGE)])
}

#[test]
fn without_the_lock_a_double_click_is_charged_and_ordered_twice() {
    let Some(stage) = stage() else { return };
    let click = |name| {
        let env = [("CONSUL_LOCK_TOKEN", "0"), ("CHARGE", CHARGE)];
        stage.start(name, &["./checkout", "17"], &env)
    };
    let mut clicks = ["first", "second"].map(click);
    clicks.iter().for_each(|click| click.says("charging"));
    stage.go("first");
    stage.go("second");
    for click in &mut clicks {
        assert_eq!(click.ended(), 0, "{}", click.said());
    }
    assert_eq!(count(&stage), ("2".to_owned(), 2));
}

#[test]
fn with_the_lock_a_double_click_is_one_order() {
    let Some(stage) = stage() else { return };
    let key = format!("shop/carts/{}", unique("cart"));
    let (one, two) = (unique("click"), unique("click"));
    let mut first = click(&stage, &key, &[], &one);
    first.says("charging");
    let mut second = click(&stage, &key, &[], &two);
    let waits = || (!sessions(&two).is_empty()).then_some(());
    testbed::wait_for("the second click to wait", crate::fixtures::PATIENCE, waits).unwrap();
    stage.go(&one);
    assert_eq!(first.ended(), 0, "{}", first.said());
    assert_eq!(second.ended(), 0, "{}", second.said());
    let order = stage.sql("SELECT id FROM orders");
    assert!(first.said().ends_with(&format!("ordered: {order}\n")), "{}", first.said());
    assert_eq!(second.said(), format!("ordered before: {order}\n"));
    assert_eq!(count(&stage), ("1".to_owned(), 1));
}

/// The first click is frozen while it charges, and the second one orders. What the first said at the
/// end.
fn frozen_click(stage: &Stage) -> String {
    let key = format!("shop/carts/{}", unique("frozen"));
    let (one, two) = (unique("click"), unique("click"));
    let mut first = click(stage, &key, &QUICK, &one);
    first.says("charging");
    let frozen = first.freeze();
    end_session(&key);
    let mut second = click(stage, &key, &QUICK, &two);
    second.says("charging");
    stage.go(&one);
    frozen.command_wakes_up_first();
    stage.go(&two);
    assert_eq!(second.ended(), 0, "{}", second.said());
    frozen.wake_up();
    first.ended();
    first.said()
}

#[test]
fn a_click_that_was_frozen_past_its_tenure_cannot_order() {
    let Some(stage) = stage() else { return };
    let said = frozen_click(&stage);
    assert!(said.contains("is stale") && !said.contains("ordered"), "{said}");
    assert_eq!(count(&stage), ("1".to_owned(), 2), "the charge is not the database's to prevent");
}

#[test]
fn without_the_fence_a_click_that_was_frozen_orders_again() {
    let Some(stage) = stage() else { return };
    stage.sql("DROP TRIGGER fence ON cart");
    let said = frozen_click(&stage);
    assert!(said.contains("ordered: 1"), "{said}");
    assert_eq!(count(&stage), ("2".to_owned(), 2));
}

#[test]
fn an_unknown_cart_is_not_charged() {
    let Some(stage) = stage() else { return };
    let env = [("CONSUL_LOCK_TOKEN", "0"), ("CHARGE", CHARGE)];
    let mut click = stage.start("click", &["./checkout", "18"], &env);
    assert_eq!((click.ended(), click.said().as_str()), (1, "there is no cart 18\n"));
}
