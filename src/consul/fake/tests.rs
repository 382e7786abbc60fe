//! What the contract tests cannot see in real time: instants, and what a simulation sets.

use super::*;
use crate::{consul::Behavior, names::SessionName};

const TTL: Duration = Duration::from_secs(10);

fn key(raw: &str) -> Key {
    Key::new(raw).unwrap()
}

fn request(lock_delay: u64, behavior: Behavior) -> SessionRequest {
    SessionRequest {
        name: SessionName::new("test"),
        node: NodeName::new("virtual"),
        ttl: TTL,
        lock_delay: Duration::from_secs(lock_delay),
        behavior,
        node_checks: Vec::new(),
        service_checks: Vec::new(),
    }
}

async fn started() -> (FakeConsul, Clock) {
    let clock = Clock::simulated();
    let consul = FakeConsul::new(clock.clone());
    consul.register_node(&NodeName::new("virtual")).await.unwrap();
    (consul, clock)
}

async fn session(consul: &FakeConsul, lock_delay: u64) -> SessionId {
    consul.create_session(&request(lock_delay, Behavior::Release)).await.unwrap()
}

async fn acquire(consul: &FakeConsul, at: &Key, session: &SessionId) -> bool {
    consul.put(at, b"v", Some(7), PutMode::Acquire(session.clone())).await.unwrap()
}

fn secs(span: Duration) -> u64 {
    (span.as_secs_f64()).round() as u64
}

/// Watches until the key has no holder; the instant at which that was seen.
async fn freed(consul: &FakeConsul, clock: &Clock, at: &Key) -> Instant {
    let mut after = 0;
    loop {
        let blocking = Blocking { after, wait: Duration::from_secs(60) };
        let seen = consul.watch_key(at, blocking, Consistency::Consistent).await.unwrap();
        if seen.pair.is_none_or(|pair| pair.session.is_none()) {
            return clock.now();
        }
        after = seen.index;
    }
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_a_session_expire_at_twice_its_ttl() {
    let (consul, clock) = started().await;
    let begin = clock.now();
    let holder = session(&consul, 15).await;
    assert!(acquire(&consul, &key("k"), &holder).await);
    assert_eq!(secs(freed(&consul, &clock, &key("k")).await.since(begin)), 20);
    assert_eq!(consul.renew_session(&holder).await.unwrap_err().class, Class::Lost);
    assert!(consul.sessions().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_an_expiry_that_a_renewal_brought_forward() {
    let (consul, clock) = started().await;
    let begin = clock.now();
    let mut factors = [2.0, 1.0].into_iter();
    consul.set_expiry(move || factors.next().unwrap_or(1.0));
    let holder = session(&consul, 15).await;
    assert!(acquire(&consul, &key("k"), &holder).await);
    let renewed = async {
        clock.sleep_until(begin + Duration::from_secs(5)).await;
        consul.renew_session(&holder).await.unwrap();
    };
    let at = key("k");
    let (end, ()) = tokio::join!(freed(&consul, &clock, &at), renewed);
    assert_eq!(secs(end.since(begin)), 15); // renewed at 5, one TTL; the first expiry was at 20
}

#[tokio::test(start_paused = true)]
async fn lock_delay_counts_from_the_expiry_even_if_nobody_looked() {
    let (consul, clock) = started().await;
    let begin = clock.now();
    let (first, second) = (session(&consul, 15).await, session(&consul, 15).await);
    assert!(acquire(&consul, &key("k"), &first).await);
    for second_of in 1..=34 {
        clock.sleep_until(begin + Duration::from_secs(second_of)).await;
        consul.renew_session(&second).await.unwrap();
    }
    assert!(!acquire(&consul, &key("k"), &second).await); // 20 + 15 = 35
    clock.sleep_until(begin + Duration::from_secs(35)).await;
    assert!(acquire(&consul, &key("k"), &second).await);
}

#[tokio::test(start_paused = true)]
async fn lock_delay_is_capped_at_a_minute_and_lost_by_a_restart() {
    let (consul, clock) = started().await;
    let lock =
        |session: SessionId| [TxnOp::Lock { key: key("k"), session, value: Vec::new(), flags: 7 }];
    let first = session(&consul, 3600).await;
    assert!(acquire(&consul, &key("k"), &first).await);
    consul.destroy_session(&first).await.unwrap();
    clock.sleep_until(clock.now() + Duration::from_secs(59)).await;
    let second = session(&consul, 3600).await;
    assert!(matches!(
        consul.transaction(&lock(second.clone())).await.unwrap(),
        Txn::RolledBack(refused) if refused[0].reason == crate::consul::Refusal::LockDelay
    ));
    clock.sleep_until(clock.now() + Duration::from_secs(1)).await;
    assert!(matches!(consul.transaction(&lock(second.clone())).await.unwrap(), Txn::Committed(_)));
    consul.destroy_session(&second).await.unwrap();
    consul.forget_lock_delays();
    assert!(acquire(&consul, &key("k"), &session(&consul, 0).await).await);
}

#[tokio::test(start_paused = true)]
async fn an_election_gives_every_session_its_full_time_again() {
    let (consul, clock) = started().await;
    let begin = clock.now();
    let holder = session(&consul, 15).await;
    assert!(acquire(&consul, &key("k"), &holder).await);
    clock.sleep_until(begin + Duration::from_secs(19)).await;
    consul.elect();
    assert_eq!(secs(freed(&consul, &clock, &key("k")).await.since(begin)), 39);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_of_a_key_that_is_deleted_hears_of_it() {
    let (consul, clock) = started().await;
    consul.put(&key("k"), b"", None, PutMode::Plain).await.unwrap();
    let after = consul.get(&key("k"), Consistency::Consistent).await.unwrap().index;
    let begin = clock.now();
    let deleted = async {
        clock.sleep_until(begin + Duration::from_secs(3)).await;
        consul.delete(&key("k")).await.unwrap();
    };
    let at = key("k");
    let blocking = Blocking { after, wait: Duration::from_secs(60) };
    let (seen, ()) = tokio::join!(consul.watch_key(&at, blocking, Consistency::Default), deleted);
    assert_eq!(seen.unwrap().pair, None);
    assert_eq!(secs(clock.now().since(begin)), 3);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_of_a_missing_key_sleeps_through_other_writes() {
    let (consul, clock) = started().await;
    let (at, begin) = (key("a/missing"), clock.now());
    let after = consul.get(&at, Consistency::Consistent).await.unwrap().index;
    let written = async {
        for second_of in 1..=5 {
            clock.sleep_until(begin + Duration::from_secs(second_of)).await;
            consul.put(&key("other"), &[second_of as u8], None, PutMode::Plain).await.unwrap();
        }
    };
    let blocking = Blocking { after, wait: Duration::from_secs(30) };
    let (seen, ()) = tokio::join!(consul.watch_key(&at, blocking, Consistency::Default), written);
    assert_eq!(secs(clock.now().since(begin)), 30);
    assert!(seen.unwrap().index > after); // so the next watch blocks again
}

#[tokio::test(start_paused = true)]
async fn deleted_keys_count_in_their_prefix_for_a_quarter_of_an_hour() {
    let (consul, clock) = started().await;
    for name in ["p/a", "p/b"] {
        consul.put(&key(name), b"", None, PutMode::Plain).await.unwrap();
    }
    let now = |after| Blocking { after, wait: Duration::from_secs(1) };
    let before = consul.watch_prefix("p/", now(0), Consistency::Default).await.unwrap();
    consul.delete(&key("p/b")).await.unwrap();
    let after = consul.watch_prefix("p/", now(before.index), Consistency::Default).await.unwrap();
    assert_eq!((after.pairs.len(), after.index), (1, before.index + 1));
    clock.sleep_until(clock.now() + Duration::from_secs(15 * 60)).await;
    let reaped = consul.watch_prefix("p/", now(0), Consistency::Default).await.unwrap();
    assert_eq!(reaped.index, before.index - 1); // goes back, as Consul's does
}

#[tokio::test(start_paused = true)]
async fn a_refused_transaction_leaves_nothing_behind() {
    let (consul, _) = started().await;
    let (holder, other) = (session(&consul, 0).await, session(&consul, 0).await);
    assert!(acquire(&consul, &key("held"), &holder).await);
    consul.put(&key("gone"), b"x", None, PutMode::Plain).await.unwrap();
    let before = consul.watch_prefix("", Blocking { after: 0, wait: TTL }, Consistency::Default);
    let before = before.await.unwrap();
    let steps = [
        TxnOp::Set { key: key("new"), value: b"n".to_vec(), flags: 1 },
        TxnOp::Delete { key: key("gone") },
        TxnOp::Set { key: key("gone"), value: b"again".to_vec(), flags: 1 },
        TxnOp::Lock { key: key("held"), session: other, value: Vec::new(), flags: 0 },
    ];
    assert!(
        matches!(consul.transaction(&steps).await.unwrap(), Txn::RolledBack(r) if r[0].op == 3)
    );
    let after = consul.watch_prefix("", Blocking { after: 0, wait: TTL }, Consistency::Default);
    assert_eq!(after.await.unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn a_node_takes_its_sessions_along() {
    let (consul, _) = started().await;
    let holder = consul.create_session(&request(0, Behavior::Delete)).await.unwrap();
    assert!(acquire(&consul, &key("k"), &holder).await);
    consul.deregister_node(&NodeName::new("virtual"));
    assert_eq!(consul.peek(&key("k")), None);
    let refused = consul.create_session(&request(0, Behavior::Delete)).await.unwrap_err();
    assert_eq!(refused.message, "Missing node registration");
}
