//! Consul away, slow, forgetful; sessions ended by others.

use super::*;

fn requested(name: &str) -> SessionRequest {
    let settings = wanted(name).session;
    SessionRequest {
        name: settings.name,
        node: settings.node,
        ttl: settings.ttl,
        lock_delay: settings.lock_delay,
        behavior: settings.behavior,
        node_checks: Vec::new(),
        service_checks: Vec::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn session_whose_creation_reply_was_lost_is_found_by_its_name() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.line.next(Operation::CreateSession, Fate::LoseReply);
    one.set();
    one.gets_it(&lab, S * 6).await;
    assert_eq!(lab.sessions_named("one").len(), 1);
    assert_eq!(one.line.sent(Operation::CreateSession).len(), 1);
    assert_eq!(one.view().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn trouble_of_a_creation_is_over_when_its_session_is_found() {
    let lab = Lab::new();
    let stranger = lab.stranger(S).await;
    assert!(lab.acquire(&stranger).await);
    let one = lab.contender("one");
    one.line.next(Operation::CreateSession, Fate::LoseReply);
    one.set();
    lab.until(S * 6, "a session", || one.view().session.valid_until.is_some()).await;
    assert_eq!(one.view().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn session_created_late_is_not_left_over() {
    let lab = Lab::new();
    let one = lab.contender("one");
    // It is given up after five seconds and looked up, and then it arrives.
    one.line.next(Operation::CreateSession, Fate::Late(S * 6));
    one.set();
    one.gets_it(&lab, S * 6).await;
    assert_eq!(lab.sessions_named("one").len(), 1);
    let session = one.session();
    lab.until(S * 2, "the late creation", || lab.sessions_named("one").len() == 2).await;
    let alone = || lab.sessions_named("one").len() == 1;
    lab.until(TTL, "the end of the double", alone).await;
    assert_eq!(lab.sessions_named("one")[0].id, session);
    assert!(one.token().is_some());
}

#[tokio::test(start_paused = true)]
async fn session_created_late_is_not_left_over_even_if_the_first_look_fails() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.line.next(Operation::CreateSession, Fate::LoseRequest);
    one.set();
    one.gets_it(&lab, S * 6).await;
    lab.consul.create_session(&requested("one")).await.unwrap();
    one.line.next(Operation::RenewSession, Fate::Refuse(Class::Transient));
    one.line.next(Operation::ListSessions, Fate::Refuse(Class::Transient));
    let alone = || lab.sessions_named("one").len() == 1;
    lab.until(TTL, "the end of the double", alone).await;
}

#[tokio::test(start_paused = true)]
async fn consul_away_for_five_seconds_is_jeopardy_and_no_loss() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let token = one.holds(&lab).await;
    lab.pass(S * 14).await;
    one.line.cut(S * 5);
    let jeopardy = || one.view().session.health == SessionHealth::Jeopardy;
    lab.until(S * 5 + TTL / 4, "jeopardy", jeopardy).await;
    assert_eq!(one.token(), Some(token));
    assert_eq!(one.view().trouble.unwrap().operation, Operation::RenewSession);
    let healthy = || one.view().session.health == SessionHealth::Healthy;
    lab.until(S * 5, "health", healthy).await;
    assert_eq!(one.token(), Some(token));
    assert_eq!((one.view().trouble, one.view().ended.len()), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn token_is_gone_at_valid_until_and_comes_back_higher() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let token = one.holds(&lab).await;
    lab.pass(S * 31).await;
    let renewed = *one.line.sent(Operation::RenewSession).last().unwrap();
    let valid_until = renewed + TTL;
    one.line.cut(S * 60);
    lab.clock.sleep_until(valid_until - MS).await;
    assert_eq!(one.token(), Some(token));
    let before = one.view();
    lab.clock.sleep_until(valid_until).await;
    assert_eq!(one.token(), None, "{:?}", one.view());
    assert_eq!(before.token(valid_until), None, "an old view answers no longer");
    lab.until(MS * 5, "the end", || one.last_end() == Some((token, EndReason::Expired))).await;
    assert_eq!(one.view().session.health, SessionHealth::Lost);
    let again = one.gets_it(&lab, S * 70).await;
    assert!(again > token);
    assert_eq!(lab.sessions_named("one").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn valid_until_counts_from_the_sending_and_not_from_the_reply() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.line.every(Operation::CreateSession, Fate::Slow(S * 2));
    one.line.every(Operation::RenewSession, Fate::Slow(S * 2));
    one.set();
    one.gets_it(&lab, S * 3).await;
    let created = one.line.sent(Operation::CreateSession)[0];
    assert_eq!(one.valid_until(), created + TTL);
    let renewed = || one.valid_until() > created + TTL;
    lab.until(TTL, "a renewal", renewed).await;
    assert_eq!(one.valid_until(), one.line.sent(Operation::RenewSession)[0] + TTL);
}

#[tokio::test(start_paused = true)]
async fn session_ended_by_an_operator_is_a_loss_once_it_is_confirmed() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let token = one.holds(&lab).await;
    lab.pass(S).await;
    lab.consul.destroy_session(&one.session()).await.unwrap();
    lab.until(TTL / 2, "a new tenure", || one.token().is_some_and(|new| new > token)).await;
    assert_eq!(one.last_end(), Some((token, EndReason::SessionInvalidated)));
    assert_eq!(lab.sessions_named("one").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn renewal_that_wrongly_calls_the_session_lost_is_no_loss() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let token = one.holds(&lab).await;
    one.line.next(Operation::RenewSession, Fate::Refuse(Class::Lost));
    lab.pass(TTL).await;
    assert_eq!(one.token(), Some(token));
    assert_eq!(one.view().ended.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn renewals_that_keep_calling_the_session_lost_are_not_repeated_without_end() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.holds(&lab).await;
    one.line.every(Operation::RenewSession, Fate::Refuse(Class::Lost));
    lab.pass(TTL).await;
    let sent = one.line.sent(Operation::RenewSession).len();
    assert!(sent < 40, "{sent} renewals");
}

#[tokio::test(start_paused = true)]
async fn refused_transaction_is_no_trouble_any_more_once_another_holds_the_key() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.line.next(Operation::Transaction, Fate::Refuse(Class::Transient));
    one.set();
    lab.until(MOMENT, "trouble", || one.view().trouble.is_some()).await;
    let stranger = lab.stranger(S * 5).await;
    assert!(lab.acquire(&stranger).await);
    let sighted = || matches!(one.view().key, Some(KeySeen::Held(_)));
    lab.until(MOMENT, "the stranger", sighted).await;
    assert_eq!(one.view().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn watch_that_is_refused_is_shown_as_trouble() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.line.every(Operation::WatchPrefix, Fate::Refuse(Class::Denied));
    one.set();
    let shown = || one.view().trouble.is_some_and(|t| t.operation == Operation::WatchPrefix);
    lab.until(S, "the trouble", shown).await;
    one.line.mend();
    one.gets_it(&lab, S * 15).await;
    assert_eq!(one.view().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn key_that_cannot_be_read_any_more_is_not_held_for_ever_after_a_contradiction() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.holds(&lab).await;
    lab.pass(S).await;
    one.line.every(Operation::ReadKey, Fate::Refuse(Class::Denied));
    let stranger = lab.stranger(S).await;
    lab.consul.delete(&key()).await.unwrap();
    assert!(lab.acquire(&stranger).await);
    lab.until(S * 11, "the loss", || one.token().is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn node_that_somebody_removed_is_registered_again() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let token = one.holds(&lab).await;
    lab.consul.deregister_node(&NodeName::new("virtual"));
    lab.until(TTL, "a new tenure", || one.token().is_some_and(|new| new > token)).await;
    assert_eq!(lab.sessions_named("one").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn release_that_arrives_late_does_not_end_the_next_tenure() {
    let lab = Lab::new();
    let mut one = lab.contender("one");
    one.wanted.acquire.max_hold = Some(S * 10);
    let first = one.holds(&lab).await;
    lab.pass(S * 9).await;
    // Repeated after three seconds, and answered; the next tenure begins a second later.
    one.line.next(Operation::Transaction, Fate::Late(S * 6));
    let next = || one.token().is_some_and(|token| token > first);
    lab.until(S * 8, "the next tenure", next).await;
    let second = one.token();
    lab.pass(S * 8).await;
    assert_eq!(one.token(), second, "{:#?}", one.view().ended);
}

#[tokio::test(start_paused = true)]
async fn acquisition_answered_as_the_session_expires_begins_no_tenure() {
    let lab = Lab::new();
    let stranger = lab.stranger(S).await;
    assert!(lab.acquire(&stranger).await);
    let one = lab.contender("one");
    one.line.every(Operation::RenewSession, Fate::Refuse(Class::Transient));
    one.set();
    lab.until(MOMENT, "a session", || one.view().session.valid_until.is_some()).await;
    let (valid_until, session) = (one.valid_until(), one.session());
    lab.clock.sleep_until(valid_until - S * 2).await;
    one.line.next(Operation::Transaction, Fate::AnsweredAt(valid_until));
    assert!(lab.release(&stranger).await);
    lab.until(MOMENT, "the acquisition", || lab.pair().session == Some(one.session())).await;
    lab.clock.sleep_until(valid_until + MS).await;
    assert_eq!(one.view().ended.len(), 0, "{:#?}", one.view());
    assert_ne!(one.view().session.id, Some(session), "it may be held again, under another");
}
