//! Holding the key: what others do to it, what its owner changes, adoption, stopping.

use super::*;

#[tokio::test(start_paused = true)]
async fn deleted_key_ends_the_tenure_and_begins_another() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let first = one.holds(&lab).await;
    let session = one.session();
    lab.consul.delete(&key()).await.unwrap();
    lab.until(MOMENT, "a new tenure", || one.token().is_some_and(|token| token > first)).await;
    assert_eq!(one.last_end(), Some((first, EndReason::KeyDeleted)));
    assert_eq!(one.session(), session, "the session is as good as before");
    assert_eq!(one.token().unwrap().get(), lab.pair().modify_index);
}

#[tokio::test(start_paused = true)]
async fn key_that_was_deleted_and_taken_is_lost() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let first = one.holds(&lab).await;
    let stranger = lab.stranger(S).await;
    lab.consul.delete(&key()).await.unwrap();
    assert!(lab.acquire(&stranger).await);
    lab.until(MOMENT, "the loss", || one.token().is_none()).await;
    assert_eq!(one.last_end(), Some((first, EndReason::KeyTaken)));
}

#[tokio::test(start_paused = true)]
async fn key_taken_while_our_write_goes_unanswered_is_lost_all_the_same() {
    let lab = Lab::new();
    let mut one = lab.contender("one");
    one.holds(&lab).await;
    lab.pass(S).await;
    one.line.every(Operation::Transaction, Fate::Refuse(Class::Denied));
    one.change(|wanted| wanted.payload.value = "new".to_owned());
    lab.pass(S).await;
    let stranger = lab.stranger(S).await;
    lab.consul.delete(&key()).await.unwrap();
    assert!(lab.acquire(&stranger).await);
    lab.until(MOMENT, "the loss", || one.token().is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn plain_put_is_no_loss_and_is_put_right() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let token = one.holds(&lab).await;
    let before = lab.pair();
    lab.pass(S).await;
    lab.consul.put(&key(), b"scribble", None, PutMode::Plain).await.unwrap();
    let restored = || (lab.pair().value, lab.pair().flags) == (before.value.clone(), LOCK_FLAGS);
    lab.until(MOMENT, "flags and value as before", restored).await;
    lab.pass(S).await;
    assert_eq!(one.token(), Some(token));
    assert_eq!(one.view().ended.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn changed_value_is_written_and_costs_no_token() {
    let lab = Lab::new();
    let mut one = lab.contender("one");
    let token = one.holds(&lab).await;
    lab.pass(S).await;
    one.change(|wanted| wanted.payload.value = "new".to_owned());
    let written = || String::from_utf8(lab.pair().value).unwrap().contains(r#""value":"new""#);
    lab.until(MOMENT, "the new value", written).await;
    lab.pass(S).await;
    assert_eq!(one.token(), Some(token));
}

#[tokio::test(start_paused = true)]
async fn value_changed_while_the_lock_is_on_its_way_is_written() {
    let lab = Lab::new();
    let mut one = lab.contender("one");
    one.line.next(Operation::Transaction, Fate::Slow(S * 2));
    one.set();
    lab.pass(S).await;
    assert!(lab.pair().session.is_some() && one.token().is_none(), "the answer lingers");
    one.change(|wanted| wanted.payload.value = "new".to_owned());
    let written = || String::from_utf8(lab.pair().value).unwrap().contains(r#""value":"new""#);
    lab.until(S + MOMENT, "the new value", written).await;
}

#[tokio::test(start_paused = true)]
async fn changed_terms_of_the_session_take_effect_with_the_next() {
    let lab = Lab::new();
    let mut one = lab.contender("one");
    let token = one.holds(&lab).await;
    let session = one.session();
    one.change(|wanted| wanted.session.ttl = S * 40);
    lab.pass(S * 60).await;
    assert_eq!((one.token(), one.session()), (Some(token), session.clone()));
    lab.consul.delete(&key()).await.unwrap();
    lab.until(S, "a new tenure", || one.token().is_some_and(|new| new > token)).await;
    assert_ne!(one.session(), session);
    assert_eq!(lab.sessions_named("one").len(), 1);
    assert_eq!(lab.sessions_named("one")[0].ttl, Some(S * 40));
    assert_eq!(one.view().session.ttl, S * 40);
}

#[tokio::test(start_paused = true)]
async fn changed_terms_replace_the_session_of_one_that_waits() {
    let lab = Lab::new();
    let stranger = lab.stranger(S).await;
    assert!(lab.acquire(&stranger).await);
    let mut one = lab.contender("one");
    one.set();
    lab.until(MOMENT, "a session", || one.view().session.valid_until.is_some()).await;
    one.change(|wanted| wanted.session.lock_delay = S * 7);
    let changed = || {
        let mut sessions = lab.sessions_named("one").into_iter();
        sessions.len() == 1 && sessions.all(|session| session.lock_delay == S * 7)
    };
    lab.until(MOMENT, "the new session", changed).await;
    assert!(lab.release(&stranger).await);
    one.gets_it(&lab, MOMENT).await;
}

#[tokio::test(start_paused = true)]
async fn renewals_go_out_at_two_fifths_of_the_ttl_or_a_little_before() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.holds(&lab).await;
    lab.pass(S * 120).await;
    let sent = one.line.sent(Operation::RenewSession);
    let gaps: Vec<_> = sent.windows(2).map(|pair| pair[1].since(pair[0])).collect();
    assert!(gaps.iter().all(|gap| *gap > TTL / 3 && *gap <= TTL * 2 / 5), "{gaps:?}");
    assert!(sent.len() >= 20, "{}", sent.len());
    assert_eq!(one.valid_until(), *sent.last().unwrap() + TTL);
}

#[tokio::test(start_paused = true)]
async fn renewals_go_out_sooner_for_whoever_needs_notice() {
    let lab = Lab::new();
    let mut one = lab.contender("one");
    one.change(|wanted| wanted.session.notice = TTL * 2 / 5);
    one.holds(&lab).await;
    lab.pass(S * 60).await;
    let sent = one.line.sent(Operation::RenewSession);
    let gaps: Vec<_> = sent.windows(2).map(|pair| pair[1].since(pair[0])).collect();
    assert!(gaps.iter().all(|gap| *gap > TTL / 5 && *gap <= TTL * 6 / 25), "{gaps:?}");
    assert!(sent.len() >= 16, "{}", sent.len());
}

#[tokio::test(start_paused = true)]
async fn longer_ttl_that_a_renewal_grants_counts() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.holds(&lab).await;
    one.line.0.faults.lock().granted_ttl = Some(S * 60);
    lab.until(TTL, "the longer TTL", || one.view().session.ttl == S * 60).await;
    let sent = *one.line.sent(Operation::RenewSession).last().unwrap();
    assert_eq!(one.valid_until(), sent + S * 60);
}

#[tokio::test(start_paused = true)]
async fn key_that_changed_hands_unseen_is_not_rewritten_into_the_old_tenure() {
    let lab = Lab::new();
    let mut one = lab.contender("one");
    one.holds(&lab).await;
    lab.pass(S).await;
    // The poll that is parked answers once more; the next is slow.
    one.line.every(Operation::WatchPrefix, Fate::Slow(S * 20));
    let other = Key::new("lab/other").unwrap();
    lab.consul.put(&other, b"", None, PutMode::Plain).await.unwrap();
    lab.pass(S).await;
    let stranger = lab.stranger(S).await;
    lab.consul.delete(&key()).await.unwrap();
    assert!(lab.acquire(&stranger).await);
    let strangers = lab.pair().modify_index;
    assert!(lab.release(&stranger).await);
    one.change(|wanted| wanted.payload.value = "new".to_owned());
    lab.pass(S).await;
    let token = one.token().unwrap().get();
    assert!(token > strangers, "{token} is older than the stranger's {strangers}");
}

// ---- a pod that holds the key by itself ----

fn by_pod(lab: &Lab) -> Contender {
    let mut one = lab.contender("one");
    one.wanted.payload.pod = Some(PodIdentity { name: "pod-1".into(), uid: "0f2a".into() });
    one
}

/// What the key says: whose it is, and in which tenure.
fn written(lab: &Lab) -> (String, Option<String>) {
    let value: serde_json::Value = serde_json::from_slice(&lab.pair().value).unwrap();
    let field = |name: &str| value[name].as_str().map(str::to_owned);
    (field("uid").unwrap_or_default(), field("token"))
}

#[tokio::test(start_paused = true)]
async fn token_of_a_pod_that_holds_the_key_by_itself_is_written_beside_it_and_stays() {
    let lab = Lab::new();
    let mut one = by_pod(&lab);
    let token = one.holds(&lab).await;
    let told = ("0f2a".to_owned(), Some(token.to_string()));
    lab.until(MOMENT, "the token in the key", || written(&lab) == told).await;
    assert!(lab.pair().modify_index > token.get(), "it was written by another commit");
    one.change(|wanted| wanted.payload.value = "new".to_owned());
    lab.pass(TTL * 2).await;
    assert_eq!((one.token(), written(&lab)), (Some(token), told));
    assert_eq!(one.line.sent(Operation::Transaction).len(), 3);
    assert_eq!(one.view().ended.len(), 0);

    lab.consul.delete(&key()).await.unwrap();
    lab.until(MOMENT, "a new tenure", || one.token().is_some_and(|new| new > token)).await;
    let told = one.token().map(|token| token.to_string());
    lab.until(MOMENT, "the new token in the key", || written(&lab).1 == told).await;
}

#[tokio::test(start_paused = true)]
async fn key_that_is_held_for_others_is_written_once() {
    let lab = Lab::new();
    let mut one = lab.contender("one");
    one.wanted.stance = for_pod("a");
    one.holds(&lab).await;
    lab.pass(TTL * 2).await;
    assert_eq!(one.line.sent(Operation::Transaction).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn tenure_that_the_key_tells_of_is_adopted_with_its_token() {
    let lab = Lab::new();
    let one = by_pod(&lab);
    let token = one.holds(&lab).await;
    lab.until(MOMENT, "the token in the key", || written(&lab).1.is_some()).await;
    let session = one.session();
    drop(one);
    lab.pass(S * 3).await;
    let before = lab.pair();
    let new = by_pod(&lab);
    let recorded = new.wanted.payload.left_behind(&before);
    assert_eq!(recorded.as_ref().map(|recorded| &recorded.session), Some(&session));
    new.keepers.set(&new.id, new.wanted.clone(), recorded);
    assert_eq!(new.gets_it(&lab, MOMENT).await, token);
    lab.pass(TTL * 2).await;
    assert_eq!((new.token(), lab.pair().value), (Some(token), before.value));
}

// ---- adoption ----

#[tokio::test(start_paused = true)]
async fn adopted_tenure_keeps_its_token() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let token = one.holds(&lab).await;
    lab.pass(S * 7).await;
    let recorded = one.recorded();
    drop(one);
    let before = lab.pair();
    lab.pass(S * 3).await;
    let new = lab.contender("one");
    new.keepers.set(&new.id, new.wanted.clone(), Some(recorded.clone()));
    assert_eq!(new.gets_it(&lab, MOMENT).await, token);
    lab.pass(TTL * 3).await;
    assert_eq!(new.token(), Some(token));
    assert_eq!(new.recorded(), recorded);
    assert_eq!((lab.pair().value, lab.pair().session), (before.value, before.session));
    assert_eq!(lab.sessions_named("one").len(), 1);
    assert_eq!(new.line.sent(Operation::CreateSession), []);
}

#[tokio::test(start_paused = true)]
async fn recorded_session_without_a_token_begins_a_tenure_with_a_higher_one() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let token = one.holds(&lab).await;
    let session = one.session();
    drop(one);
    let new = lab.contender("one");
    let recorded = Recorded { session: session.clone(), tenure: None };
    new.keepers.set(&new.id, new.wanted.clone(), Some(recorded));
    assert!(new.gets_it(&lab, MOMENT).await > token);
    assert_eq!(new.session(), session);
}

#[tokio::test(start_paused = true)]
async fn session_that_nobody_recorded_is_found_by_its_name() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let token = one.holds(&lab).await;
    let session = one.session();
    lab.pass(S * 2).await;
    drop(one);
    let new = lab.contender("one");
    assert!(new.holds(&lab).await > token);
    assert_eq!(new.session(), session);
    assert_eq!(lab.sessions_named("one").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn recorded_session_that_is_gone_ends_the_tenure() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let token = one.holds(&lab).await;
    let recorded = one.recorded();
    drop(one);
    lab.pass(TTL * 3).await;
    let new = lab.contender("one");
    new.keepers.set(&new.id, new.wanted.clone(), Some(recorded));
    let second = new.gets_it(&lab, MOMENT).await;
    assert!(second > token);
    assert_eq!(new.last_end(), Some((token, EndReason::SessionInvalidated)));
    assert_eq!(lab.sessions_named("one").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn tenure_that_is_newer_than_the_recorded_one_is_not_adopted_under_the_old_token() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.holds(&lab).await;
    let recorded = one.recorded();
    lab.pass(S * 2).await;
    let stranger = lab.stranger(S).await;
    lab.consul.delete(&key()).await.unwrap();
    assert!(lab.acquire(&stranger).await);
    let strangers = lab.pair().modify_index;
    lab.pass(S).await;
    assert!(lab.release(&stranger).await);
    lab.until(MOMENT, "the second tenure", || one.token().is_some()).await;
    drop(one); // before its status was written
    let new = lab.contender("one");
    new.keepers.set(&new.id, new.wanted.clone(), Some(recorded));
    let token = new.gets_it(&lab, MOMENT).await;
    assert!(token.get() > strangers, "{token} is older than the stranger's {strangers}");
}

#[tokio::test(start_paused = true)]
async fn adoption_that_is_answered_too_late_does_not_stand_still() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.holds(&lab).await;
    let recorded = one.recorded();
    drop(one);
    let new = lab.contender("one");
    // Granted for no longer than the reply takes.
    new.line.next(Operation::RenewSession, Fate::Slow(S * 2));
    new.line.0.faults.lock().granted_ttl = Some(S);
    new.keepers.set(&new.id, new.wanted.clone(), Some(recorded));
    lab.pass(S * 3).await;
    new.line.0.faults.lock().granted_ttl = None;
    new.gets_it(&lab, S * 2).await;
}

// ---- stopping ----

#[tokio::test(start_paused = true)]
async fn stop_while_consul_is_away_is_given_up_when_the_session_has_expired() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.holds(&lab).await;
    lab.pass(S * 20).await;
    let renewed = *one.line.sent(Operation::RenewSession).last().unwrap();
    one.line.cut(S * 600);
    lab.pass(S).await;
    one.keepers.stop(&one.id);
    lab.until(TTL * 2, "the end", || one.stopped() == Some(StopState::Abandoned)).await;
    assert!(lab.now() <= renewed + TTL * 2 + MS * 2, "{:?}", lab.now().since(renewed));
    assert_eq!(one.token(), None);
}

#[tokio::test(start_paused = true)]
async fn stop_releases_before_it_destroys() {
    let lab = Lab::new();
    let mut one = lab.contender("one");
    one.wanted.session.lock_delay = S * 60;
    one.holds(&lab).await;
    let session = one.session();
    // The release takes its time; the session must live that long.
    one.line.next(Operation::Transaction, Fate::LoseRequest);
    one.keepers.stop(&one.id);
    lab.pass(S).await;
    assert_eq!(lab.pair().session, Some(session.clone()));
    assert_eq!(lab.sessions_named("one").len(), 1, "destroyed before the release");
    lab.until(S * 10, "a clean stop", || one.stopped() == Some(StopState::Clean)).await;
    assert_eq!(lab.sessions_named("one"), []);
    let stranger = lab.stranger(S).await;
    assert!(lab.acquire(&stranger).await, "a lock-delay follows");
}

#[tokio::test(start_paused = true)]
async fn dropping_the_keepers_releases_nothing() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.holds(&lab).await;
    let (before, line) = (lab.pair(), one.line.clone());
    drop(one);
    let begin = lab.now() + MS;
    lab.pass(S * 10).await;
    assert_eq!(lab.pair(), before);
    assert_eq!(lab.sessions_named("one").len(), 1);
    assert_eq!(line.sent_since(begin), []);
}
