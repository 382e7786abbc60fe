//! What every Consul does: one body of tests, run against the real server and against the fake.

use std::time::Duration;

use consul_lock::{
    consul::{
        Behavior, Blocking, Class, Consistency, Consul, PutMode, Refusal, SessionRequest, Txn,
        TxnOp, TxnRefusal,
    },
    names::{Key, NodeName, SessionId},
};

use crate::fixtures::{LOCK_FLAGS, Lab, PATIENCE, lock, unlock};

/// Runs each test on both.
macro_rules! contract {
    ($($name:ident,)+) => {
        mod real {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&super::Lab::real().await).await;
            })+
        }
        mod fake {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&super::Lab::fake().await).await;
            })+
        }
    };
}

contract! {
    a_session_lives_on_a_node_without_an_agent,
    a_session_is_found_by_its_name,
    a_session_needs_its_node_registered,
    a_session_needs_its_checks_registered,
    a_ttl_outside_the_bounds_is_refused,
    a_session_that_is_not_renewed_ends_after_twice_its_ttl,
    a_session_that_is_renewed_lives_on,
    a_dead_session_is_lost,
    destroying_an_unknown_session_succeeds,
    a_lock_delay_keeps_the_key_from_everybody,
    a_lock_delay_of_zero_is_none,
    a_release_starts_no_lock_delay,
    the_end_of_a_lock_delay_wakes_no_watcher,
    behavior_delete_deletes_the_key_and_leaves_a_lock_delay,
    a_held_key_is_refused_to_others,
    locking_again_changes_no_index,
    the_holder_rewrites_the_value_under_the_same_lock_index,
    unlock_and_lock_in_one_transaction_hand_over,
    a_handover_from_somebody_else_changes_nothing,
    unlock_and_lock_by_one_session_give_a_new_token,
    a_plain_write_keeps_the_session_and_forgets_the_lock_index,
    a_delete_restarts_the_lock_index_but_not_the_token,
    a_release_overwrites_flags_and_value,
    a_release_by_another_session_is_refused,
    a_tenure_is_ended_by_whoever_knows_session_and_index_and_a_later_one_is_not,
    a_session_that_ends_leaves_the_value_in_the_key,
    a_transaction_has_at_most_128_steps,
    a_transaction_fences_writes_by_the_session,
    checks_alone_are_answered_too,
    values_and_flags_come_back_as_they_went,
    a_value_has_at_most_512_kib,
    a_watch_ends_with_a_change_of_the_key,
    a_watch_without_a_change_ends_with_its_wait,
    a_watch_of_a_missing_key_sleeps_through_other_writes,
    a_watch_of_a_missing_key_ends_when_it_is_created,
    a_watch_sees_the_end_of_the_holders_session,
    a_watch_of_a_prefix_returns_all_of_it,
    a_watch_of_a_prefix_ends_with_a_delete,
    a_watch_of_an_empty_prefix_ends_with_its_first_key,
    the_leader_is_known,
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Block after `after`, for a while that no test should reach.
const fn changed_since(after: u64) -> Blocking {
    Blocking { after, wait: PATIENCE }
}

// ---- sessions ----

async fn a_session_lives_on_a_node_without_an_agent(lab: &Lab<impl Consul>) {
    lab.consul.register_node(&lab.node).await.unwrap(); // again: harmless
    let request = SessionRequest {
        ttl: Duration::from_millis(2500),
        lock_delay: Duration::from_millis(1),
        behavior: Behavior::Delete,
        ..lab.request()
    };
    let id = lab.consul.create_session(&request).await.unwrap();
    let seen = lab.consul.session(&id, Consistency::Consistent).await.unwrap().unwrap();
    assert_eq!((&seen.id, &seen.name, &seen.node), (&id, &request.name, &lab.node));
    assert_eq!((seen.ttl, seen.lock_delay), (Some(request.ttl), request.lock_delay));
    assert_eq!(seen.behavior, Behavior::Delete);
    assert_eq!(lab.consul.renew_session(&id).await.unwrap().ttl, request.ttl);
}

async fn a_session_is_found_by_its_name(lab: &Lab<impl Consul>) {
    let request = lab.request();
    lab.session().await;
    let first = lab.consul.create_session(&request).await.unwrap(); // say its reply was lost
    let second = lab.consul.create_session(&request).await.unwrap();
    let all = lab.consul.node_sessions(&lab.node).await.unwrap();
    assert_eq!(all.len(), 3);
    let mut found: Vec<_> = all.into_iter().filter(|info| info.name == request.name).collect();
    found.sort_by_key(|info| info.create_index);
    assert_eq!(found.iter().map(|info| &info.id).collect::<Vec<_>>(), [&first, &second]);
    lab.consul.destroy_session(&second).await.unwrap();
    assert_eq!(lab.consul.node_sessions(&lab.node).await.unwrap().len(), 2);
    let nobodys = NodeName::new("no-such-node");
    assert!(lab.consul.node_sessions(&nobodys).await.unwrap().is_empty());
}

async fn a_session_needs_its_node_registered(lab: &Lab<impl Consul>) {
    let request = SessionRequest { node: NodeName::new("no-such-node"), ..lab.request() };
    let error = lab.consul.create_session(&request).await.unwrap_err();
    assert_eq!(error.class, Class::Invalid, "{error}");
    assert!(error.message.contains("Missing node registration"), "{error}");
}

async fn a_session_needs_its_checks_registered(lab: &Lab<impl Consul>) {
    let odd = vec!["odd".to_owned()];
    let by_node = SessionRequest { node_checks: odd.clone(), ..lab.request() };
    let by_service = SessionRequest { service_checks: odd, ..lab.request() };
    for request in [by_node, by_service] {
        let error = lab.consul.create_session(&request).await.unwrap_err();
        assert_eq!(error.class, Class::Invalid, "{error}");
        assert!(error.message.contains("Missing check 'odd' registration"), "{error}");
    }
}

async fn a_ttl_outside_the_bounds_is_refused(lab: &Lab<impl Consul>) {
    for ttl in [Duration::from_millis(999), seconds(24 * 3600 + 1)] {
        let request = SessionRequest { ttl, ..lab.request() };
        let error = lab.consul.create_session(&request).await.unwrap_err();
        assert_eq!(error.class, Class::Invalid, "{error}");
        let nanos = ttl.as_nanos();
        let words = format!("Invalid Session TTL '{nanos}', must be between [1s=24h0m0s]");
        assert!(error.message.contains(&words), "{error}");
    }
}

async fn a_session_that_is_not_renewed_ends_after_twice_its_ttl(lab: &Lab<impl Consul>) {
    let key = lab.key("k");
    let begin = lab.now();
    let request = SessionRequest { ttl: seconds(3), ..lab.request() };
    let id = lab.consul.create_session(&request).await.unwrap();
    let held = lab.lock(&key, &id).await.unwrap();
    let freed = lab.consul.watch_key(&key, changed_since(held.modify_index), Consistency::Default);
    let freed = freed.await.unwrap().pair.unwrap();
    let took = lab.since(begin);
    assert!(took >= Duration::from_millis(5900) && took < seconds(10), "{took:?}");
    assert_eq!((freed.session, freed.value, freed.flags), (None, b"held".to_vec(), LOCK_FLAGS));
    assert_eq!(freed.lock_index, 1);
    assert_eq!(lab.consul.session(&id, Consistency::Consistent).await.unwrap(), None);
}

async fn a_session_that_is_renewed_lives_on(lab: &Lab<impl Consul>) {
    let request = SessionRequest { ttl: seconds(1), ..lab.request() };
    let id = lab.consul.create_session(&request).await.unwrap();
    let begin = lab.now();
    while lab.since(begin) < seconds(4) {
        lab.consul.renew_session(&id).await.unwrap();
        lab.clock.sleep_until(lab.now() + Duration::from_millis(300)).await;
    }
}

async fn a_dead_session_is_lost(lab: &Lab<impl Consul>) {
    let (key, id) = (lab.key("k"), lab.session().await);
    lab.consul.destroy_session(&id).await.unwrap();
    let error = lab.consul.renew_session(&id).await.unwrap_err();
    assert_eq!(error.class, Class::Lost, "{error}");
    assert!(error.message.contains(&format!("Session id '{id}' not found")), "{error}");
    assert_eq!(lab.lock(&key, &id).await, Err(Refusal::InvalidSession));
    let acquire = lab.consul.put(&key, b"", Some(1), PutMode::Acquire(id.clone())).await;
    let error = acquire.unwrap_err();
    assert_eq!(error.class, Class::Lost, "{error}");
    assert!(error.message.contains(&format!("invalid session \"{id}\"")), "{error}");
    assert_eq!(lab.read(&key).await, None);
}

async fn destroying_an_unknown_session_succeeds(lab: &Lab<impl Consul>) {
    let id = SessionId::new("01234567-89ab-cdef-0123-456789abcdef");
    lab.consul.destroy_session(&id).await.unwrap();
    assert_eq!(lab.consul.session(&id, Consistency::Consistent).await.unwrap(), None);
    assert_eq!(lab.consul.renew_session(&id).await.unwrap_err().class, Class::Lost);
}

// ---- lock-delay ----

async fn a_lock_delay_keeps_the_key_from_everybody(lab: &Lab<impl Consul>) {
    let key = lab.key("k");
    let (first, second) = (lab.session_with_delay(seconds(2)).await, lab.session().await);
    lab.lock(&key, &first).await.unwrap();
    let begin = lab.now();
    lab.consul.destroy_session(&first).await.unwrap();
    assert_eq!(lab.lock(&key, &second).await, Err(Refusal::LockDelay));
    assert!(!lab.acquire(&key, &second).await);
    let took = lab.lock_when_free(&key, &second, begin).await;
    assert!(took >= Duration::from_millis(1950) && took < seconds(5), "{took:?}");
}

async fn a_lock_delay_of_zero_is_none(lab: &Lab<impl Consul>) {
    let key = lab.key("k");
    let (first, second) = (lab.session_with_delay(Duration::ZERO).await, lab.session().await);
    lab.lock(&key, &first).await.unwrap();
    lab.consul.destroy_session(&first).await.unwrap();
    lab.lock(&key, &second).await.unwrap();
}

async fn a_release_starts_no_lock_delay(lab: &Lab<impl Consul>) {
    let key = lab.key("k");
    let (first, second) = (lab.session_with_delay(seconds(60)).await, lab.session().await);
    lab.lock(&key, &first).await.unwrap();
    assert!(lab.release(&key, &first).await);
    lab.consul.destroy_session(&first).await.unwrap();
    lab.lock(&key, &second).await.unwrap();
}

async fn the_end_of_a_lock_delay_wakes_no_watcher(lab: &Lab<impl Consul>) {
    let key = lab.key("k");
    let first = lab.session_with_delay(seconds(1)).await;
    lab.lock(&key, &first).await.unwrap();
    lab.consul.destroy_session(&first).await.unwrap();
    let after = lab.read(&key).await.unwrap().modify_index;
    let begin = lab.now();
    let blocking = Blocking { after, wait: seconds(3) };
    lab.consul.watch_key(&key, blocking, Consistency::Default).await.unwrap();
    assert!(lab.since(begin) >= seconds(3));
}

async fn behavior_delete_deletes_the_key_and_leaves_a_lock_delay(lab: &Lab<impl Consul>) {
    let key = lab.key("k");
    let request =
        SessionRequest { behavior: Behavior::Delete, lock_delay: seconds(2), ..lab.request() };
    let (first, second) = (lab.consul.create_session(&request).await.unwrap(), lab.session().await);
    lab.lock(&key, &first).await.unwrap();
    let begin = lab.now();
    lab.consul.destroy_session(&first).await.unwrap();
    assert_eq!(lab.read(&key).await, None);
    assert_eq!(lab.lock(&key, &second).await, Err(Refusal::LockDelay));
    let took = lab.lock_when_free(&key, &second, begin).await;
    assert!(took >= Duration::from_millis(1950) && took < seconds(5), "{took:?}");
}

// ---- locking ----

async fn a_held_key_is_refused_to_others(lab: &Lab<impl Consul>) {
    let (key, holder, other) = (lab.key("k"), lab.session().await, lab.session().await);
    let held = lab.lock(&key, &holder).await.unwrap();
    assert_eq!((&held.session, held.lock_index), (&Some(holder), 1));
    assert_eq!((held.flags, held.value.len()), (LOCK_FLAGS, 0)); // the reply leaves values out
    assert_eq!(lab.lock(&key, &other).await, Err(Refusal::Held));
    assert!(!lab.acquire(&key, &other).await);
    let seen = lab.read(&key).await.unwrap();
    assert_eq!((seen.modify_index, seen.value), (held.modify_index, b"held".to_vec()));
}

async fn locking_again_changes_no_index(lab: &Lab<impl Consul>) {
    let (key, holder) = (lab.key("k"), lab.session().await);
    let held = lab.lock(&key, &holder).await.unwrap();
    assert_eq!(lab.lock(&key, &holder).await.unwrap(), held);
    assert!(lab.acquire(&key, &holder).await);
    assert_eq!(lab.read(&key).await.unwrap().modify_index, held.modify_index);
}

async fn the_holder_rewrites_the_value_under_the_same_lock_index(lab: &Lab<impl Consul>) {
    let (key, holder) = (lab.key("k"), lab.session().await);
    let held = lab.lock(&key, &holder).await.unwrap();
    let (session, value) = (holder.clone(), b"new".to_vec());
    let rewrite = TxnOp::Lock { key: key.clone(), session, value, flags: LOCK_FLAGS };
    let rewritten = lab.try_all(&[rewrite]).await.unwrap().remove(0);
    assert!(rewritten.modify_index > held.modify_index);
    assert_eq!(rewritten.lock_index, held.lock_index);
    assert_eq!(lab.read(&key).await.unwrap().value, b"new");
}

async fn unlock_and_lock_in_one_transaction_hand_over(lab: &Lab<impl Consul>) {
    let (key, first, second) = (lab.key("k"), lab.session().await, lab.session().await);
    let before = lab.lock(&key, &first).await.unwrap();
    let steps = [unlock(&key, &first), lock(&key, &second)];
    let after = lab.try_all(&steps).await.unwrap().remove(1);
    assert_eq!((&after.session, after.lock_index), (&Some(second), before.lock_index + 1));
    assert!(after.modify_index > before.modify_index);
    assert_eq!(lab.read(&key).await.unwrap().modify_index, after.modify_index);
}

async fn a_handover_from_somebody_else_changes_nothing(lab: &Lab<impl Consul>) {
    let (key, holder) = (lab.key("k"), lab.session().await);
    let (other, third) = (lab.session().await, lab.session().await);
    lab.lock(&key, &holder).await.unwrap();
    let before = lab.read(&key).await;
    let steps = [unlock(&key, &other), lock(&key, &third)];
    let Txn::RolledBack(refused) = lab.consul.transaction(&steps).await.unwrap() else {
        panic!("handed over by somebody who did not hold it");
    };
    let words =
        format!("failed to unlock key \"{key}\", lock isn't held, or is held by another session");
    assert_eq!(
        refused,
        [
            TxnRefusal { op: 0, reason: Refusal::Check(words) },
            TxnRefusal { op: 1, reason: Refusal::Held },
        ]
    );
    assert_eq!(lab.read(&key).await, before);
}

async fn unlock_and_lock_by_one_session_give_a_new_token(lab: &Lab<impl Consul>) {
    let (key, holder) = (lab.key("k"), lab.session().await);
    let before = lab.lock(&key, &holder).await.unwrap();
    let steps = [unlock(&key, &holder), lock(&key, &holder)];
    let after = lab.try_all(&steps).await.unwrap().remove(1);
    assert!(after.modify_index > before.modify_index);
    assert_eq!((after.lock_index, after.session), (before.lock_index + 1, Some(holder)));
}

async fn a_plain_write_keeps_the_session_and_forgets_the_lock_index(lab: &Lab<impl Consul>) {
    let (key, holder) = (lab.key("k"), lab.session().await);
    let held = lab.lock(&key, &holder).await.unwrap();
    assert!(lab.consul.put(&key, b"mine now", None, PutMode::Plain).await.unwrap());
    let seen = lab.read(&key).await.unwrap();
    assert_eq!((seen.session, seen.lock_index, seen.flags), (Some(holder), 0, 0));
    assert_eq!((seen.value, seen.create_index), (b"mine now".to_vec(), held.create_index));
    assert!(seen.modify_index > held.modify_index);
}

async fn a_delete_restarts_the_lock_index_but_not_the_token(lab: &Lab<impl Consul>) {
    let (key, first, second) = (lab.key("k"), lab.session().await, lab.session().await);
    lab.lock(&key, &first).await.unwrap();
    let steps = [unlock(&key, &first), lock(&key, &first)];
    let before = lab.try_all(&steps).await.unwrap().remove(1);
    assert_eq!(before.lock_index, 2);
    lab.consul.delete(&key).await.unwrap();
    assert_eq!(lab.read(&key).await, None);
    lab.consul.delete(&key).await.unwrap(); // again: nothing to do
    let after = lab.lock(&key, &second).await.unwrap();
    assert_eq!(after.lock_index, 1);
    assert!(after.modify_index > before.modify_index);
}

async fn a_release_overwrites_flags_and_value(lab: &Lab<impl Consul>) {
    let (key, holder) = (lab.key("k"), lab.session().await);
    lab.lock(&key, &holder).await.unwrap();
    let release = PutMode::Release(holder.clone());
    assert!(lab.consul.put(&key, b"", None, release).await.unwrap());
    let seen = lab.read(&key).await.unwrap();
    assert_eq!((seen.session, seen.flags, seen.value.len()), (None, 0, 0));
    assert_eq!(seen.lock_index, 1);
    assert!(!lab.release(&key, &holder).await); // it holds the key no more
}

async fn a_release_by_another_session_is_refused(lab: &Lab<impl Consul>) {
    let (key, holder, other) = (lab.key("k"), lab.session().await, lab.session().await);
    lab.lock(&key, &holder).await.unwrap();
    let before = lab.read(&key).await;
    assert!(!lab.release(&key, &other).await);
    assert!(!lab.release(&lab.key("missing"), &other).await);
    assert_eq!(lab.read(&key).await, before);
}

// ---- transactions ----

/// What ends the tenure of a holder that has died.
fn end(key: &Key, session: &SessionId, index: u64) -> [TxnOp; 3] {
    let (key, session) = (key.clone(), session.clone());
    [
        TxnOp::CheckIndex { key: key.clone(), index },
        TxnOp::CheckSession { key: key.clone(), session: session.clone() },
        unlock(&key, &session),
    ]
}

async fn a_tenure_is_ended_by_whoever_knows_session_and_index_and_a_later_one_is_not(
    lab: &Lab<impl Consul>,
) {
    let (key, dead, other) =
        (lab.key("k"), lab.session_with_delay(seconds(30)).await, lab.session().await);
    let held = lab.lock(&key, &dead).await.unwrap();
    // It wrote something else meanwhile, by which it has shown to be alive.
    let rewritten = TxnOp::Lock {
        key: key.clone(),
        session: dead.clone(),
        value: b"with a token".to_vec(),
        flags: LOCK_FLAGS,
    };
    let now = lab.try_all(&[rewritten]).await.unwrap().remove(0).modify_index;
    let refused = lab.try_all(&end(&key, &dead, held.modify_index)).await.unwrap_err();
    assert!(matches!(refused, Refusal::Check(_)), "{refused:?}");
    assert!(lab.try_all(&end(&key, &other, now)).await.is_err(), "of another session");
    lab.try_all(&end(&key, &dead, now)).await.unwrap();
    let free = lab.read(&key).await.unwrap();
    assert_eq!((free.session, free.value.len(), free.flags), (None, 0, LOCK_FLAGS));
    // And the end of its session comes too late to delay anybody.
    lab.consul.destroy_session(&dead).await.unwrap();
    assert!(lab.lock(&key, &other).await.is_ok());
    assert!(lab.try_all(&end(&key, &dead, now)).await.is_err(), "arrived twice");
    assert_eq!(lab.read(&key).await.unwrap().session, Some(other));
}

async fn a_session_that_ends_leaves_the_value_in_the_key(lab: &Lab<impl Consul>) {
    let (key, session) = (lab.key("k"), lab.session().await);
    lab.lock(&key, &session).await.unwrap();
    lab.consul.destroy_session(&session).await.unwrap();
    let left = lab.read(&key).await.unwrap();
    assert_eq!((left.session, left.flags), (None, LOCK_FLAGS));
    assert_eq!(left.value, b"held");
}

async fn a_transaction_has_at_most_128_steps(lab: &Lab<impl Consul>) {
    let set = |nth| TxnOp::Set { key: lab.key(&format!("{nth}")), value: vec![1], flags: nth };
    let mut steps: Vec<TxnOp> = (0..128).map(set).collect();
    let written = lab.try_all(&steps).await.unwrap();
    assert!(written.iter().map(|pair| pair.flags).eq(0..128));
    steps.push(set(128));
    let error = lab.consul.transaction(&steps).await.unwrap_err();
    assert_eq!(error.class, Class::Invalid, "{error}");
    assert!(error.message.contains("too many operations (129 > 128)"), "{error}");
}

async fn a_transaction_fences_writes_by_the_session(lab: &Lab<impl Consul>) {
    let (key, data, holder) = (lab.key("k"), lab.key("data"), lab.session().await);
    let held = lab.lock(&key, &holder).await.unwrap();
    let write = |value: &[u8]| {
        let check = TxnOp::CheckSession { key: key.clone(), session: holder.clone() };
        [check, TxnOp::Set { key: data.clone(), value: value.to_vec(), flags: 5 }]
    };
    let written = lab.try_all(&write(b"1")).await.unwrap();
    assert_eq!((written.len(), &written[0].key), (1, &data.as_str().to_owned()));
    lab.consul.destroy_session(&holder).await.unwrap();
    let Err(Refusal::Check(words)) = lab.try_all(&write(b"2")).await else {
        panic!("written without the lock");
    };
    let expected = format!("failed session check for key \"{key}\", current session \"\" != ");
    assert!(words.starts_with(&expected), "{words}");
    assert_eq!(lab.read(&data).await.unwrap().value, b"1");
    assert!(lab.read(&key).await.unwrap().modify_index > held.modify_index);
}

async fn checks_alone_are_answered_too(lab: &Lab<impl Consul>) {
    let (key, holder) = (lab.key("k"), lab.session().await);
    let token = lab.lock(&key, &holder).await.unwrap().modify_index;
    let (missing, session) = (lab.key("missing"), holder.clone());
    let good = [
        TxnOp::CheckSession { key: key.clone(), session },
        TxnOp::CheckNotExists { key: missing.clone() },
        TxnOp::CheckIndex { key: key.clone(), index: token },
    ];
    assert_eq!(lab.consul.transaction(&good).await.unwrap(), Txn::Committed(Vec::new()));
    let bad = [
        TxnOp::CheckSession { key: missing.clone(), session: holder },
        TxnOp::CheckNotExists { key: key.clone() },
        TxnOp::CheckIndex { key: key.clone(), index: token + 1 },
        TxnOp::CheckIndex { key: missing.clone(), index: 1 },
    ];
    let reasons = [
        format!("failed to check session, key \"{missing}\" doesn't exist"),
        format!("key \"{key}\" exists"),
        format!(
            "failed index check for key \"{key}\", current modify index {token} != {}",
            token + 1
        ),
        format!("failed to check index, key \"{missing}\" doesn't exist"),
    ];
    let expected = reasons.into_iter().enumerate();
    let expected = expected.map(|(op, why)| TxnRefusal { op, reason: Refusal::Check(why) });
    assert_eq!(lab.consul.transaction(&bad).await.unwrap(), Txn::RolledBack(expected.collect()));
}

// ---- keys ----

async fn values_and_flags_come_back_as_they_went(lab: &Lab<impl Consul>) {
    let key = lab.key("a/b.c_d-e/.lock");
    let value: Vec<u8> = (0..=255).collect();
    assert_eq!(lab.read(&key).await, None);
    assert!(lab.consul.put(&key, &value, Some(u64::MAX), PutMode::Plain).await.unwrap());
    for consistency in [Consistency::Default, Consistency::Stale, Consistency::Consistent] {
        let seen = lab.consul.get(&key, consistency).await.unwrap();
        let pair = seen.pair.unwrap();
        assert_eq!((pair.key.as_str(), pair.flags), (key.as_str(), u64::MAX));
        assert_eq!((pair.value, pair.session, pair.lock_index), (value.clone(), None, 0));
        assert_eq!((pair.modify_index, pair.create_index), (seen.index, seen.index));
    }
}

async fn a_value_has_at_most_512_kib(lab: &Lab<impl Consul>) {
    let (key, mut value) = (lab.key("k"), vec![b'x'; 512 * 1024]);
    assert!(lab.consul.put(&key, &value, None, PutMode::Plain).await.unwrap());
    assert_eq!(lab.read(&key).await.unwrap().value.len(), value.len());
    value.push(b'x');
    let error = lab.consul.put(&key, &value, None, PutMode::Plain).await.unwrap_err();
    assert_eq!(error.class, Class::Invalid, "{error}");
    assert!(error.message.contains("(524289 bytes) too large, max size: 524288"), "{error}");
}

// ---- watching ----

async fn a_watch_ends_with_a_change_of_the_key(lab: &Lab<impl Consul>) {
    let (key, holder) = (lab.key("k"), lab.session().await);
    let held = lab.lock(&key, &holder).await.unwrap();
    let watch = lab.consul.watch_key(&key, changed_since(held.modify_index), Consistency::Default);
    let (seen, released) = tokio::join!(watch, lab.release(&key, &holder));
    assert!(released);
    let seen = seen.unwrap();
    assert!(seen.index > held.modify_index);
    assert_eq!(seen.pair.unwrap().session, None);
    let at_once = Blocking { after: 0, wait: PATIENCE };
    let again = lab.consul.watch_key(&key, at_once, Consistency::Consistent).await.unwrap();
    assert_eq!(again.index, seen.index);
}

async fn a_watch_without_a_change_ends_with_its_wait(lab: &Lab<impl Consul>) {
    let key = lab.key("k");
    lab.consul.put(&key, b"", None, PutMode::Plain).await.unwrap();
    let before = lab.consul.get(&key, Consistency::Consistent).await.unwrap();
    let begin = lab.now();
    let blocking = Blocking { after: before.index, wait: seconds(1) };
    let after = lab.consul.watch_key(&key, blocking, Consistency::Stale).await.unwrap();
    let took = lab.since(begin);
    assert!(took >= seconds(1) && took < seconds(5), "{took:?}");
    assert_eq!(after, before);
}

async fn a_watch_of_a_missing_key_sleeps_through_other_writes(lab: &Lab<impl Consul>) {
    let (key, other) = (lab.key("a/missing"), lab.key("other"));
    let before = lab.consul.get(&key, Consistency::Consistent).await.unwrap();
    let begin = lab.now();
    let blocking = Blocking { after: before.index, wait: seconds(2) };
    let watch = async {
        // Another test's write may have come between the reading and the watch.
        let mut blocking = blocking;
        loop {
            let seen = lab.consul.watch_key(&key, blocking, Consistency::Default).await.unwrap();
            assert_eq!(seen.pair, None);
            if lab.since(begin) >= seconds(2) {
                return seen;
            }
            blocking.after = seen.index;
        }
    };
    let write = async {
        for nth in 0..10 {
            lab.clock.sleep_until(begin + Duration::from_millis(100 * nth)).await;
            lab.consul.put(&other, &[nth as u8], None, PutMode::Plain).await.unwrap();
        }
    };
    let (seen, ()) = tokio::join!(watch, write);
    assert!(seen.index > before.index);
}

async fn a_watch_of_a_missing_key_ends_when_it_is_created(lab: &Lab<impl Consul>) {
    let key = lab.key("k");
    let before = lab.consul.get(&key, Consistency::Consistent).await.unwrap();
    assert_eq!(before.pair, None);
    let watch = async {
        let mut after = before.index;
        loop {
            let blocking = changed_since(after);
            let seen = lab.consul.watch_key(&key, blocking, Consistency::Default).await.unwrap();
            if seen.pair.is_some() {
                return;
            }
            after = seen.index;
        }
    };
    let begin = lab.now();
    let create = async {
        lab.clock.sleep_until(begin + Duration::from_millis(300)).await;
        lab.consul.put(&key, b"x", None, PutMode::Plain).await.unwrap();
    };
    tokio::join!(watch, create);
    assert!(lab.since(begin) < PATIENCE);
}

async fn a_watch_sees_the_end_of_the_holders_session(lab: &Lab<impl Consul>) {
    let (key, holder) = (lab.key("k"), lab.session().await);
    let held = lab.lock(&key, &holder).await.unwrap();
    let watch = lab.consul.watch_key(&key, changed_since(held.modify_index), Consistency::Default);
    let (seen, destroyed) = tokio::join!(watch, lab.consul.destroy_session(&holder));
    destroyed.unwrap();
    let freed = seen.unwrap().pair.unwrap();
    assert_eq!((freed.session, freed.lock_index), (None, 1));
    assert_eq!(freed.value, b"held");
}

async fn a_watch_of_a_prefix_returns_all_of_it(lab: &Lab<impl Consul>) {
    for name in ["b", "a/2", "a/1"] {
        lab.consul.put(&lab.key(name), b"v", Some(3), PutMode::Plain).await.unwrap();
    }
    let now = Blocking { after: 0, wait: PATIENCE };
    let before = lab.consul.watch_prefix(&lab.prefix, now, Consistency::Consistent).await.unwrap();
    let keys: Vec<&str> = before.pairs.iter().map(|pair| pair.key.as_str()).collect();
    assert_eq!(keys, ["a/1", "a/2", "b"].map(|name| lab.key(name).as_str().to_owned()));
    assert_eq!(Some(before.index), before.pairs.iter().map(|pair| pair.modify_index).max());

    let blocking = changed_since(before.index);
    let watch = lab.consul.watch_prefix(&lab.prefix, blocking, Consistency::Stale);
    let changed = lab.key("a/1");
    let change = lab.consul.put(&changed, b"new", Some(3), PutMode::Plain);
    let (after, done) = tokio::join!(watch, change);
    let (after, _) = (after.unwrap(), done.unwrap());
    assert_eq!((after.pairs.len(), after.pairs[0].value.as_slice()), (3, b"new".as_slice()));
    assert_eq!(after.index, after.pairs[0].modify_index);
}

async fn a_watch_of_a_prefix_ends_with_a_delete(lab: &Lab<impl Consul>) {
    let (kept, deleted) = (lab.key("kept"), lab.key("deleted"));
    for key in [&kept, &deleted] {
        lab.consul.put(key, b"", None, PutMode::Plain).await.unwrap();
    }
    let now = Blocking { after: 0, wait: PATIENCE };
    let before = lab.consul.watch_prefix(&lab.prefix, now, Consistency::Consistent).await.unwrap();
    let blocking = changed_since(before.index);
    let watch = lab.consul.watch_prefix(&lab.prefix, blocking, Consistency::Default);
    let (after, done) = tokio::join!(watch, lab.consul.delete(&deleted));
    let (after, ()) = (after.unwrap(), done.unwrap());
    assert_eq!((after.pairs.len(), after.pairs[0].key.as_str()), (1, kept.as_str()));
    assert!(after.index > before.index && after.index > after.pairs[0].modify_index);
}

async fn a_watch_of_an_empty_prefix_ends_with_its_first_key(lab: &Lab<impl Consul>) {
    let begin = lab.now();
    let watch = async {
        let mut after = 0;
        loop {
            let blocking = changed_since(after);
            let seen = lab.consul.watch_prefix(&lab.prefix, blocking, Consistency::Default);
            let seen = seen.await.unwrap();
            if !seen.pairs.is_empty() {
                return seen;
            }
            after = seen.index;
        }
    };
    let create = async {
        lab.clock.sleep_until(begin + Duration::from_millis(300)).await;
        lab.consul.put(&lab.key("k"), b"x", None, PutMode::Plain).await.unwrap();
    };
    let (seen, ()) = tokio::join!(watch, create);
    assert_eq!((seen.pairs.len(), seen.index), (1, seen.pairs[0].modify_index));
    assert!(lab.since(begin) < PATIENCE);
}

async fn the_leader_is_known(lab: &Lab<impl Consul>) {
    assert!(lab.consul.leader().await.unwrap().is_some());
}
