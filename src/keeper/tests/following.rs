//! A key that is left to others: seen, freed for the dead, and otherwise let be.

use super::*;

/// The key as it is followed; `None`: it was not seen yet.
fn followed(one: &Contender) -> Option<Option<Arc<KvPair>>> {
    match one.view().lock {
        LockView::Following { pair } => Some(pair),
        _ => None,
    }
}

async fn following(lab: &Lab) -> Contender {
    let mut one = lab.contender("one");
    one.wanted.stance = Stance::Follow { release: None };
    one.set();
    lab.until(MOMENT, "the key", || followed(&one).is_some()).await;
    one
}

/// Waits until the key is seen to be held by this session.
async fn sees(lab: &Lab, one: &Contender, session: &SessionId) {
    let held =
        || followed(one).flatten().is_some_and(|pair| pair.session.as_ref() == Some(session));
    lab.until(MOMENT, "the holder", held).await;
}

fn dead(pair: &KvPair) -> Stance {
    let session = pair.session.clone().unwrap();
    let release = DeadTenure { session, index: pair.modify_index, end_session: true };
    Stance::Follow { release: Some(release) }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_left_to_others_is_seen_and_nothing_is_made_or_written() {
    let lab = Lab::new();
    let one = following(&lab).await;
    assert_eq!(followed(&one), Some(None), "there is no such key");
    let stranger = lab.stranger(Duration::ZERO).await;
    assert!(lab.acquire(&stranger).await);
    sees(&lab, &one, &stranger).await;
    lab.until(MOMENT, "its name", || match one.view().key {
        Some(KeySeen::Held(seen)) => seen.session_name.is_some() && seen.value == b"theirs",
        _ => false,
    })
    .await;
    assert!(lab.release(&stranger).await);
    lab.until(MOMENT, "the end", || one.view().key == Some(KeySeen::Free)).await;
    lab.pass(TTL * 3).await;
    assert!(lab.sessions_named("one").is_empty());
    for operation in [Operation::CreateSession, Operation::Transaction, Operation::WriteKey] {
        assert!(one.line.sent(operation).is_empty(), "{operation:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_tenure_of_the_dead_is_ended_with_its_session_and_no_lock_delay_follows() {
    let lab = Lab::new();
    let mut one = following(&lab).await;
    let stranger = lab.stranger(60 * S).await;
    assert!(lab.acquire(&stranger).await);
    sees(&lab, &one, &stranger).await;
    one.change(|wanted| wanted.stance = dead(&lab.pair()));
    lab.until(MOMENT, "the release", || lab.pair().session.is_none()).await;
    lab.until(MOMENT, "its session's end", || lab.sessions_named("Consul API Lock").is_empty())
        .await;
    let next = lab.stranger(Duration::ZERO).await;
    assert!(lab.acquire(&next).await, "at once");
    // The order stands, and is not carried out on anybody else.
    lab.pass(TTL).await;
    assert_eq!(lab.pair().session, Some(next));
}

#[tokio::test(start_paused = true)]
async fn an_order_that_arrives_late_leaves_a_later_tenure_alone() {
    let lab = Lab::new();
    let mut one = following(&lab).await;
    let stranger = lab.stranger(Duration::ZERO).await;
    assert!(lab.acquire(&stranger).await);
    sees(&lab, &one, &stranger).await;
    let before = lab.pair();
    one.line.next(Operation::Transaction, Fate::Late(2 * S));
    one.change(|wanted| wanted.stance = dead(&before));
    // The same session: its agent has given the key up, and taken it again.
    assert!(lab.release(&stranger).await && lab.acquire(&stranger).await);
    lab.pass(3 * S).await;
    assert_eq!(one.line.sent(Operation::Transaction).len(), 1);
    assert_eq!(lab.pair().session, Some(stranger));
    assert_eq!(lab.sessions_named("Consul API Lock").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_of_ours_is_given_up_cleanly_before_it_is_left_to_others_and_contended_for_after() {
    let lab = Lab::new();
    let mut one = lab.contender("one");
    let first = one.holds(&lab).await;
    one.change(|wanted| wanted.stance = Stance::Follow { release: None });
    lab.until(MOMENT, "the release", || followed(&one).is_some()).await;
    assert_eq!(one.last_end(), Some((first, EndReason::Stopped)));
    lab.until(MOMENT, "no session", || lab.sessions_named("one").is_empty()).await;
    let stranger = lab.stranger(Duration::ZERO).await;
    assert!(lab.acquire(&stranger).await, "no lock-delay");
    sees(&lab, &one, &stranger).await;
    one.change(|wanted| wanted.stance = Stance::FOR_ITSELF);
    lab.until(MOMENT, "to wait", || one.view().lock == LockView::Waiting).await;
    assert!(lab.release(&stranger).await);
    assert!(one.gets_it(&lab, S).await > first);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_in_trouble_until_it_can() {
    let lab = Lab::new();
    let one = following(&lab).await;
    one.line.cut(60 * S);
    // The watch is parked, and would not notice for longer.
    lab.until(TTL + 4 * S, "trouble", || one.view().trouble.is_some()).await;
    lab.until(60 * S, "no trouble", || one.view().trouble.is_none()).await;
}
