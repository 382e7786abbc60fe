//! One tenure after another, for one pod after another, with nobody between.

use super::*;

/// The pod that the present tenure is for.
fn pod(one: &Contender) -> Option<String> {
    match one.view().lock {
        LockView::Held { leader, .. } => leader.map(|leader| leader.pod.to_string()),
        _ => None,
    }
}

fn pod_in_value(lab: &Lab) -> serde_json::Value {
    serde_json::from_slice::<serde_json::Value>(&lab.pair().value).unwrap()["pod"].clone()
}

async fn holding_for(lab: &Lab, name: &str) -> (Contender, FencingToken) {
    let mut one = lab.contender("one");
    one.wanted.stance = for_pod(name);
    let token = one.holds(lab).await;
    (one, token)
}

#[tokio::test(start_paused = true)]
async fn another_leader_gets_a_tenure_of_its_own_and_nobody_gets_between() {
    let lab = Lab::new();
    let (mut one, first) = holding_for(&lab, "a").await;
    assert_eq!((pod(&one).as_deref(), pod_in_value(&lab)), (Some("a"), "a".into()));
    let mut other = lab.contender("other");
    other.wanted.stance = for_pod("z");
    other.set();
    lab.pass(S).await;

    one.change(|wanted| wanted.stance = for_pod("b"));
    assert!(one.token().is_some(), "nothing has happened yet");
    lab.until(MOMENT, "b's tenure", || pod(&one).as_deref() == Some("b")).await;
    let second = one.token().unwrap();
    assert!(second > first);
    assert_eq!(second.get(), lab.pair().modify_index, "Consul's word");
    assert_eq!(pod_in_value(&lab), "b");
    assert_eq!(one.last_end(), Some((first, EndReason::PodDied)));
    assert_eq!(one.view().ended.last().unwrap().pod.as_deref(), Some("a"));
    lab.pass(S * 5).await;
    assert_eq!((one.token(), other.token()), (Some(second), None));
}

#[tokio::test(start_paused = true)]
async fn neither_token_may_be_relied_on_while_the_change_is_on_its_way() {
    let lab = Lab::new();
    let (mut one, _) = holding_for(&lab, "a").await;
    one.line.next(Operation::Transaction, Fate::Slow(S * 2));
    one.change(|wanted| wanted.stance = for_pod("b"));
    lab.pass(S).await;
    assert!(matches!(one.view().lock, LockView::HandingOver { reason: EndReason::PodDied, .. }));
    assert_eq!(one.token(), None);
    lab.until(S + MOMENT, "b's tenure", || pod(&one).as_deref() == Some("b")).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_reply_was_lost_ends_in_one_tenure_with_the_key_s_own_index() {
    for fate in [Fate::LoseReply, Fate::LoseRequest, Fate::Late(S * 20)] {
        let lab = Lab::new();
        let (mut one, first) = holding_for(&lab, "a").await;
        one.line.next(Operation::Transaction, fate);
        one.change(|wanted| wanted.stance = for_pod("b"));
        lab.until(S * 15, "b's tenure", || pod(&one).as_deref() == Some("b")).await;
        let second = one.token().unwrap();
        assert!(second > first, "{fate:?}");
        lab.pass(S * 30).await;
        assert_eq!((one.token(), pod_in_value(&lab)), (Some(second), "b".into()), "{fate:?}");
        assert_eq!(second.get(), lab.pair().modify_index, "{fate:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn leader_that_changes_while_the_lock_is_on_its_way_gets_a_tenure_of_its_own() {
    let lab = Lab::new();
    let mut one = lab.contender("one");
    one.wanted.stance = for_pod("a");
    one.line.next(Operation::Transaction, Fate::Slow(S * 2));
    one.set();
    lab.pass(S).await;
    one.change(|wanted| wanted.stance = for_pod("b"));
    lab.until(S + MOMENT, "b's tenure", || pod(&one).as_deref() == Some("b")).await;
    assert_eq!(pod_in_value(&lab), "b");
}

#[tokio::test(start_paused = true)]
async fn adopted_tenure_keeps_its_leader_and_gives_way_to_another() {
    let lab = Lab::new();
    let (one, first) = holding_for(&lab, "a").await;
    let recorded = one.recorded();
    drop(one);
    let mut two = lab.contender("one");
    two.wanted.stance = for_pod("a");
    two.keepers.set(&two.id, two.wanted.clone(), Some(recorded.clone()));
    lab.until(MOMENT, "the adoption", || two.token() == Some(first)).await;
    assert_eq!((pod(&two).as_deref(), two.view().ended.len()), (Some("a"), 0));
    drop(two);

    let mut three = lab.contender("one");
    three.wanted.stance = for_pod("b");
    three.keepers.set(&three.id, three.wanted.clone(), Some(recorded));
    lab.until(MOMENT, "b's tenure", || pod(&three).as_deref() == Some("b")).await;
    assert!(three.token().unwrap() > first);
    assert_eq!(three.last_end(), Some((first, EndReason::PodDied)));
}

#[tokio::test(start_paused = true)]
async fn key_lost_during_a_change_is_contended_for_again() {
    let lab = Lab::new();
    let (mut one, first) = holding_for(&lab, "a").await;
    one.line.next(Operation::Transaction, Fate::Late(S));
    one.change(|wanted| wanted.stance = for_pod("b"));
    let stranger = lab.stranger(S).await;
    lab.consul.delete(&key()).await.unwrap();
    assert!(lab.acquire(&stranger).await);
    lab.pass(S * 10).await;
    assert_eq!(
        (one.view().lock, one.last_end()),
        (LockView::Waiting, Some((first, EndReason::PodDied)))
    );
    assert!(lab.release(&stranger).await);
    lab.until(S * 5, "b's tenure", || pod(&one).as_deref() == Some("b")).await;
}
