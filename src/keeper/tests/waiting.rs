//! Getting the key, or not getting it.

use super::*;

#[tokio::test(start_paused = true)]
async fn free_key_is_held_within_a_moment() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let token = one.holds(&lab).await;
    let pair = lab.pair();
    assert_eq!((pair.modify_index, pair.flags), (token.get(), LOCK_FLAGS));
    assert_eq!(pair.session, Some(one.session()));
    let value: serde_json::Value = serde_json::from_slice(&pair.value).unwrap();
    let since = "1970-01-01T00:00:00Z";
    let expected = serde_json::json!({
        "holder": "one", "cluster": "lab", "since": since, "value": ""
    });
    assert_eq!(value, expected);
    assert_eq!(one.view().key, Some(KeySeen::Ours));
    assert_eq!(one.view().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn clean_release_hands_over_without_a_lock_delay() {
    let lab = Lab::new();
    let (mut one, two) = (lab.contender("one"), lab.contender("two"));
    one.wanted.session.lock_delay = S * 30;
    let first = one.holds(&lab).await;
    two.set();
    lab.pass(S * 20).await;
    assert_eq!(two.view().lock, LockView::Waiting);
    let Some(KeySeen::Held(holder)) = two.view().key else { panic!("{:#?}", two.view()) };
    assert_eq!((holder.session, holder.session_name), (one.session(), Some("one".to_owned())));
    assert_eq!(holder.node.as_deref(), Some("virtual"));
    one.keepers.stop(&one.id);
    let second = two.gets_it(&lab, MOMENT).await;
    assert!(second > first);
    lab.until(MOMENT, "a clean stop", || one.stopped() == Some(StopState::Clean)).await;
    assert_eq!(lab.sessions_named("one"), []);
    assert_eq!(one.last_end(), Some((first, EndReason::Stopped)));
}

#[tokio::test(start_paused = true)]
async fn end_of_a_lock_delay_is_timed() {
    let lab = Lab::new();
    let (mut one, two) = (lab.contender("one"), lab.contender("two"));
    one.wanted.session.lock_delay = S * 5;
    one.holds(&lab).await;
    two.set();
    lab.pass(S).await;
    let session = one.session();
    drop(one);
    lab.consul.destroy_session(&session).await.unwrap();
    let freed = lab.now();
    let shown = || matches!(two.view().lock, LockView::LockDelay { until: Some(_) });
    lab.until(MOMENT, "LockDelay with an end", shown).await;
    let LockView::LockDelay { until: Some(until) } = two.view().lock else { unreachable!() };
    assert!(until.since(freed) <= S * 5 + MOMENT && until >= freed + S * 5, "{until:?}");
    two.gets_it(&lab, S * 10).await;
    let took = lab.now().since(freed);
    assert!(took >= S * 5 && took < S * 5 + MOMENT, "{took:?}");
    assert!(two.line.sent(Operation::Transaction).len() <= 3, "it is not polled");
}

#[tokio::test(start_paused = true)]
async fn lock_delay_of_our_own_lost_session_is_not_mistaken_for_an_earlier_holders() {
    let lab = Lab::new();
    let stranger = lab.stranger(S * 60).await;
    assert!(lab.acquire(&stranger).await);
    let mut one = lab.contender("one");
    one.wanted.session.lock_delay = S * 3;
    one.set();
    lab.pass(S).await;
    assert!(lab.release(&stranger).await);
    one.gets_it(&lab, MOMENT).await;
    lab.pass(S).await;
    lab.consul.destroy_session(&one.session()).await.unwrap();
    let lost = lab.now();
    lab.until(TTL / 2, "the loss", || one.token().is_none()).await;
    one.gets_it(&lab, S * 10).await;
    let took = lab.now().since(lost);
    let renewal = TTL * 2 / 5; // which is how the loss is noticed, at the latest
    assert!(took >= S * 3 && took < renewal.max(S * 3) + MOMENT, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn first_holder_is_not_shown_before_its_name_unless_consul_does_not_tell() {
    for (fate, seen_after) in [
        (Fate::Slow(S), Some("Consul API Lock")),
        (Fate::LoseReply, None),
        (Fate::Refuse(Class::Transient), None),
        (Fate::Refuse(Class::Denied), None),
    ] {
        let lab = Lab::new();
        let stranger = lab.stranger(S).await;
        assert!(lab.acquire(&stranger).await);
        let one = lab.contender("one");
        one.line.every(Operation::ReadSession, fate);
        one.set();
        let first = async || {
            lab.until(S * 10, "the stranger", || one.view().key.is_some()).await;
            one.view()
        };
        let view = first().await;
        assert_eq!(view.lock, LockView::Waiting, "{fate:?}");
        let Some(KeySeen::Held(holder)) = view.key else { panic!("{fate:?}") };
        assert_eq!(holder.session_name.as_deref(), seen_after, "{fate:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn holder_whose_session_could_not_be_read_at_first_is_named_later() {
    let lab = Lab::new();
    let stranger = lab.stranger(S).await;
    assert!(lab.acquire(&stranger).await);
    let one = lab.contender("one");
    one.line.next(Operation::ReadSession, Fate::Refuse(Class::Transient));
    one.set();
    let named = || match one.view().key {
        Some(KeySeen::Held(holder)) => holder.session_name.as_deref() == Some("Consul API Lock"),
        _ => false,
    };
    lab.until(S, "the stranger's name", named).await;
}

#[tokio::test(start_paused = true)]
async fn paused_claim_releases_and_goes_on_observing() {
    let lab = Lab::new();
    let mut one = lab.contender("one");
    let token = one.holds(&lab).await;
    one.change(|wanted| wanted.stance = Stance::StandBy(EndReason::Paused));
    lab.until(MOMENT, "the release", || one.view().lock == LockView::Standby).await;
    assert_eq!(one.last_end(), Some((token, EndReason::Paused)));
    lab.until(MOMENT, "the session's end", || lab.sessions_named("one").is_empty()).await;
    assert_eq!(one.view().session.health, SessionHealth::Absent);
    assert_eq!((lab.pair().session, lab.pair().flags), (None, LOCK_FLAGS));
    let stranger = lab.stranger(S).await;
    assert!(lab.acquire(&stranger).await, "no lock-delay follows a clean release");
    let observed = || matches!(one.view().key, Some(KeySeen::Held(_)));
    lab.until(MOMENT, "the stranger in view", observed).await;
    one.change(|wanted| wanted.stance = Stance::FOR_ITSELF);
    assert!(lab.release(&stranger).await);
    let again = one.gets_it(&lab, MOMENT).await;
    assert!(again > token);
}

#[tokio::test(start_paused = true)]
async fn try_once_fails_at_a_held_key_and_tries_again_when_asked() {
    let lab = Lab::new();
    let stranger = lab.stranger(S).await;
    assert!(lab.acquire(&stranger).await);
    let mut one = lab.contender("one");
    one.wanted.acquire.try_once = true;
    one.set();
    let contended = || one.failed() == Some(FailReason::Contended);
    lab.until(MOMENT, "the failure", contended).await;
    lab.until(MOMENT, "the session's end", || lab.sessions_named("one").is_empty()).await;
    assert!(lab.release(&stranger).await);
    lab.pass(S * 30).await;
    assert!(contended(), "once");
    one.change(|wanted| wanted.attempt = 2);
    one.gets_it(&lab, MOMENT).await;
}

#[tokio::test(start_paused = true)]
async fn timeout_ends_contending() {
    let lab = Lab::new();
    let stranger = lab.stranger(S).await;
    assert!(lab.acquire(&stranger).await);
    let mut one = lab.contender("one");
    one.wanted.acquire.timeout = Some(S * 20);
    one.set();
    let gave_up = || one.failed() == Some(FailReason::AcquireTimeout);
    let took = lab.until(S * 30, "the failure", gave_up).await;
    assert!(took >= S * 20 && took < S * 20 + MOMENT, "{took:?}");
    lab.until(MOMENT, "the session's end", || lab.sessions_named("one").is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn max_hold_lets_one_that_waits_have_it() {
    let lab = Lab::new();
    let (mut one, two) = (lab.contender("one"), lab.contender("two"));
    one.wanted.acquire.max_hold = Some(S * 30);
    let first = one.holds(&lab).await;
    two.set();
    lab.pass(S * 29).await;
    assert_eq!(one.token(), Some(first));
    two.gets_it(&lab, S + MOMENT).await;
    assert_eq!(one.last_end(), Some((first, EndReason::MaxHold)));
    lab.pass(S * 5).await;
    assert_eq!(one.view().lock, LockView::Waiting);
}

#[tokio::test(start_paused = true)]
async fn who_gives_way_lets_one_that_waits_have_it_and_takes_it_back_if_nobody_does() {
    let lab = Lab::new();
    let (mut one, two) = (lab.contender("one"), lab.contender("two"));
    let first = one.holds(&lab).await;
    two.set();
    lab.pass(S).await;
    one.wanted.acquire.give_way = Some(first);
    one.set();
    two.gets_it(&lab, MOMENT).await;
    assert_eq!(one.last_end(), Some((first, EndReason::HandedOver)));
    two.keepers.stop(&two.id);
    one.gets_it(&lab, S * 5 + MOMENT).await;
    let again = one.token().unwrap();
    lab.pass(S * 30).await;
    assert_eq!(one.token(), Some(again), "another tenure is not meant");
    one.wanted.acquire.give_way = Some(again);
    one.set();
    lab.until(MOMENT, "the release", || one.token().is_none()).await;
    lab.pass(S * 4).await;
    assert_eq!(one.token(), None, "somebody may be slow");
    one.gets_it(&lab, S + MOMENT).await;
}

#[tokio::test(start_paused = true)]
async fn key_that_is_no_lock_is_never_written() {
    let lab = Lab::new();
    lab.consul.put(&key(), b"precious", Some(7), PutMode::Plain).await.unwrap();
    let one = lab.contender("one");
    one.set();
    let conflict = || one.view().key == Some(KeySeen::Conflict { flags: 7 });
    lab.until(MOMENT, "the conflict", conflict).await;
    lab.pass(S * 120).await;
    let pair = lab.pair();
    assert_eq!((pair.value.as_slice(), pair.flags, pair.session), (&b"precious"[..], 7, None));
    lab.consul.delete(&key()).await.unwrap();
    one.gets_it(&lab, MOMENT).await;
}

#[tokio::test(start_paused = true)]
async fn data_that_appears_while_the_lock_is_on_its_way_is_not_overwritten() {
    for key_existed in [false, true] {
        let lab = Lab::new();
        if key_existed {
            lab.consul.put(&key(), b"", Some(LOCK_FLAGS), PutMode::Plain).await.unwrap();
        }
        let one = lab.contender("one");
        one.line.next(Operation::Transaction, Fate::Late(S * 2));
        one.set();
        lab.pass(S).await;
        assert_eq!(one.line.sent(Operation::Transaction).len(), 1);
        lab.consul.put(&key(), b"precious", Some(7), PutMode::Plain).await.unwrap();
        lab.pass(S * 60).await;
        let pair = lab.pair();
        assert_eq!((pair.value.as_slice(), pair.flags), (&b"precious"[..], 7), "{key_existed}");
        assert_eq!(one.token(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_that_wait_send_renewals_and_one_parked_poll() {
    let lab = Lab::new();
    let many = lab.contender("holder");
    let stranger = lab.stranger(S).await;
    for number in 0..1_000 {
        let name = format!("claim-{number}");
        let key = Key::new(&format!("lab/{number}")).unwrap();
        let mode = PutMode::Acquire(stranger.clone());
        assert!(lab.consul.put(&key, b"", Some(LOCK_FLAGS), mode).await.unwrap());
        let wanted = Wanted { key, ..wanted(&name) };
        many.keepers.set(&ClaimId(name.as_str().into()), wanted, None);
    }
    let ids: Vec<_> = (0..1_000).map(|n| ClaimId(format!("claim-{n}").as_str().into())).collect();
    let waits = |id| many.keepers.view(id).is_some_and(|view| view.lock == LockView::Waiting);
    lab.until(S, "all to wait", || ids.iter().all(waits)).await;
    lab.consul.renew_session(&stranger).await.unwrap();
    lab.pass(S).await;
    let begin = lab.now();
    lab.pass(S * 29).await; // less than the stranger's session lives
    let sent = many.line.sent_since(begin);
    let polls = sent.iter().filter(|kind| **kind == Operation::WatchPrefix).count();
    let renewals = sent.iter().filter(|kind| **kind == Operation::RenewSession).count();
    assert_eq!(polls + renewals, sent.len(), "nothing else: {:?}", &sent[..sent.len().min(20)]);
    assert!(polls <= 1, "{polls} polls");
    assert!((5_000..=7_500).contains(&renewals), "{renewals} renewals");
}

#[tokio::test(start_paused = true)]
async fn key_that_is_watched_alone_is_waited_for_as_well_and_longer_ones_are_not_read() {
    let lab = Lab::new();
    let (mut one, mut two) = (lab.contender("one"), lab.contender("two"));
    (one.wanted.prefix, two.wanted.prefix) = (KEY.into(), KEY.into());
    one.holds(&lab).await;
    two.set();
    lab.pass(S).await;
    assert_eq!(two.view().lock, LockView::Waiting);
    let begin = lab.now();
    for suffix in 0..9 {
        let longer = Key::new(&format!("{KEY}{suffix}")).unwrap();
        lab.consul.put(&longer, b"no lock", None, PutMode::Plain).await.unwrap();
        lab.pass(S / 5).await;
    }
    assert_eq!(two.line.sent_since(begin), [], "nothing that concerns it");
    one.keepers.stop(&one.id);
    two.gets_it(&lab, MOMENT).await;
    assert_eq!(two.line.sent(Operation::WatchPrefix), []);
}

#[tokio::test(start_paused = true)]
async fn session_that_is_lent_twice_gives_the_key_to_one_after_the_other() {
    let lab = Lab::new();
    let session = lab.stranger(Duration::ZERO).await;
    let (mut one, mut two) = (lab.contender("one"), lab.contender("two"));
    for contender in [&mut one, &mut two] {
        contender.wanted.session.lent = Some(session.clone());
    }
    // They may even be called the same.
    two.wanted.payload = one.wanted.payload.clone();
    one.set();
    two.set();
    lab.pass(S).await;
    let (first, second) = if one.token().is_some() { (one, two) } else { (two, one) };
    let token = first.gets_it(&lab, MOMENT).await;
    lab.pass(S * 20).await;
    assert_eq!((first.token(), second.token()), (Some(token), None));
    first.keepers.stop(&first.id);
    assert!(second.gets_it(&lab, MOMENT).await > token);
}

#[tokio::test(start_paused = true)]
async fn whoever_acts_on_what_was_seen_sends_before_the_next_poll() {
    let lab = Lab::new();
    let session = lab.stranger(Duration::ZERO).await;
    assert!(lab.acquire(&session).await);
    let two = lab.contender("two");
    two.set();
    lab.until(S, "it waits", || two.view().lock == LockView::Waiting).await;
    lab.pass(10 * S).await;

    let begin = lab.now();
    assert!(lab.release(&session).await);
    lab.until(S, "it holds", || two.token().is_some()).await;
    lab.pass(S).await;
    let sent = two.line.sent_since(begin);
    let first = |wanted| sent.iter().position(|operation| *operation == wanted).unwrap();
    assert!(first(Operation::Transaction) < first(Operation::WatchPrefix), "{sent:?}");
}
