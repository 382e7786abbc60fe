//! The lock machine's transitions that matter, one by one; then, over arbitrary sequences of
//! events, the rules that none may break.

use proptest::prelude::*;

use super::*;
use crate::names::SessionId;

mod handing_over;
mod world;

const S: Duration = Duration::from_secs(1);
const INTACT: KeyState = KeyState::Ours { intact: true };
const SPOILT: KeyState = KeyState::Ours { intact: false };

fn at(seconds: u64) -> Instant {
    Instant::from_boot(S * 1_000) + S * u32::try_from(seconds).unwrap()
}

fn release(index: u64) -> Effect {
    Effect::ReleaseKey { index }
}

fn begin_anew(index: u64) -> Effect {
    Effect::BeginAnew { index }
}

fn other() -> KeyState {
    KeyState::Other(SessionId::new("a stranger's"))
}

fn seen(index: u64, key: KeyState) -> Seen {
    Seen { epoch: 0, index, key }
}

fn read(index: u64, key: KeyState) -> Event {
    Event::Read { seen: seen(index, key), session_alive: true }
}

/// A lock and the time; every event must be legal.
struct Desk {
    lock: Lock,
    now: Instant,
}

impl Desk {
    fn new(lock: Lock) -> Desk {
        Desk { lock, now: at(0) }
    }

    fn contending(settings: Settings) -> Desk {
        Desk::new(Lock::contending(settings, at(0)))
    }

    /// Under a session, with the key free at index 5: the acquisition is on its way.
    fn acquiring(settings: Settings) -> Desk {
        let mut desk = Desk::contending(settings);
        assert_eq!(desk.on(Event::SessionUp), None);
        assert_eq!(desk.sees(5, KeyState::Free), Some(Effect::LockKey(Expect::Index(5))));
        desk
    }

    /// Holding the key with token 6.
    fn holding(settings: Settings) -> Desk {
        let mut desk = Desk::acquiring(settings);
        assert_eq!(desk.on(Event::Locked(6)), None);
        assert_eq!(desk.token(), Some(6));
        desk
    }

    fn on(&mut self, event: Event) -> Option<Effect> {
        self.lock.step(event, self.now, 0.5).unwrap()
    }

    fn sees(&mut self, index: u64, key: KeyState) -> Option<Effect> {
        self.on(Event::Seen(seen(index, key)))
    }

    /// Time passes, and nothing else.
    fn later(&mut self, instant: Instant) -> Option<Effect> {
        self.now = instant;
        self.on(Event::Tick)
    }

    fn token(&self) -> Option<u64> {
        match self.lock.state() {
            State::Held { tenure, .. } => Some(tenure.token.get()),
            _ => None,
        }
    }

    fn waiting(&self) -> Waiting {
        match self.lock.state() {
            State::Waiting(waiting) => waiting,
            other => panic!("{other:?}"),
        }
    }
}

fn once() -> Settings {
    Settings { try_once: true, ..Settings::default() }
}

fn max_hold(seconds: u32) -> Settings {
    Settings { max_hold: Some(S * seconds), ..Settings::default() }
}

#[test]
fn an_acquisition_that_is_seen_before_its_answer_hides_not_when_the_key_was_freed() {
    let mut desk = Desk::contending(Settings::default());
    assert_eq!(desk.on(Event::SessionUp), None);
    assert_eq!(desk.sees(5, other()), None);
    desk.now = at(7);
    assert_eq!(desk.sees(6, KeyState::Free), Some(Effect::LockKey(Expect::Index(6))));
    desk.now = at(8);
    assert_eq!(desk.sees(7, KeyState::Ours { intact: true }), None);
    assert_eq!(desk.lock.freed(), Some(at(7)));
    assert_eq!(desk.on(Event::Locked(7)), None);
    assert_eq!(desk.token(), Some(7));
    desk.now = at(9);
    assert_eq!(desk.sees(8, other()), Some(Effect::ReadKey));
    assert_eq!(desk.lock.freed(), None);
}

fn stand() -> Event {
    Event::Wanted(Want::Stand(EndReason::Paused))
}

// ---- contending ----

#[test]
fn nothing_is_sent_before_there_is_a_session_and_the_key_was_seen() {
    let mut desk = Desk::contending(Settings::default());
    assert_eq!(desk.on(Event::Tick), None);
    assert_eq!(desk.sees(5, KeyState::Missing), None);
    assert_eq!(desk.on(Event::SessionUp), Some(Effect::LockKey(Expect::Missing)));
    let mut desk = Desk::contending(Settings::default());
    assert_eq!(desk.on(Event::SessionUp), None);
    assert_eq!(desk.sees(5, KeyState::Free), Some(Effect::LockKey(Expect::Index(5))));
}

#[test]
fn key_of_another_or_with_other_flags_is_not_tried() {
    for key in [other(), KeyState::Conflict] {
        let mut desk = Desk::contending(Settings::default());
        desk.on(Event::SessionUp);
        assert_eq!(desk.sees(5, key), None);
        assert_eq!(desk.later(at(1_000)), None);
        assert_eq!(desk.lock.due(), None);
        assert_eq!(desk.sees(6, KeyState::Free), Some(Effect::LockKey(Expect::Index(6))));
    }
}

#[test]
fn attempt_that_failed_is_repeated_after_its_pause_and_not_before() {
    let mut desk = Desk::acquiring(Settings::default());
    assert_eq!(desk.on(Event::LockFailed { pause: S }), None);
    assert_eq!(desk.later(at(0)), None);
    assert_eq!(desk.lock.due(), Some(at(1)));
    assert_eq!(desk.later(at(1)), Some(Effect::LockKey(Expect::Index(5))));
}

#[test]
fn lost_race_is_followed_by_a_read_and_a_pause() {
    let mut desk = Desk::acquiring(Settings::default());
    assert_eq!(desk.on(Event::RefusedChanged), Some(Effect::ReadKey));
    assert_eq!(desk.on(read(7, KeyState::Free)), None);
    assert!(desk.waiting().not_before > desk.now, "an attempt at once would be a hot loop");
    let due = desk.lock.due().unwrap();
    assert_eq!(desk.later(due), Some(Effect::LockKey(Expect::Index(7))));
}

#[test]
fn lost_race_pauses_whatever_the_jitter() {
    let mut desk = Desk::acquiring(Settings::default());
    let mut step = |event| desk.lock.step(event, at(0), 0.0).unwrap();
    assert_eq!(step(Event::RefusedHeld), Some(Effect::ReadKey));
    assert_eq!(step(read(7, KeyState::Free)), None);
    assert_eq!(step(Event::Tick), None, "again at once");
}

#[test]
fn acquisition_whose_fate_is_open_is_looked_up_and_found() {
    let mut desk = Desk::acquiring(Settings::default());
    assert_eq!(desk.on(Event::LockUnclear), Some(Effect::ReadKey));
    assert_eq!(desk.on(read(6, INTACT)), Some(Effect::RewriteKey));
    assert_eq!(desk.token(), None, "a read gives no token");
    assert_eq!(desk.on(Event::Rewritten(6)), None);
    assert_eq!(desk.token(), Some(6));
}

#[test]
fn acquisition_whose_fate_is_open_is_looked_up_and_repeated() {
    let mut desk = Desk::acquiring(Settings::default());
    desk.on(Event::LockUnclear);
    assert_eq!(desk.on(read(5, KeyState::Free)), None);
    let due = desk.lock.due().unwrap();
    assert_eq!(desk.later(due), Some(Effect::LockKey(Expect::Index(5))));
}

#[test]
fn try_once_fails_at_another_holder_and_at_a_lock_delay() {
    let contended = State::Failed(FailReason::Contended);
    let mut desk = Desk::contending(once());
    desk.on(Event::SessionUp);
    desk.sees(5, other());
    assert_eq!(desk.lock.state(), contended);

    let mut desk = Desk::acquiring(once());
    desk.on(Event::RefusedHeld);
    assert_eq!(desk.lock.state(), contended);

    let mut desk = Desk::acquiring(once());
    desk.on(Event::RefusedDelay(None));
    assert_eq!(desk.lock.state(), contended);
    assert!(!desk.lock.wants_session());
    assert_eq!(desk.sees(9, KeyState::Free), None, "once");
    desk.on(Event::Retry);
    assert_eq!(desk.on(Event::Tick), Some(Effect::LockKey(Expect::Index(9))));
}

#[test]
fn try_once_that_is_refused_while_pausing_stands_by_and_does_not_fail() {
    for refusal in [Event::RefusedHeld, Event::RefusedDelay(None)] {
        let mut desk = Desk::acquiring(once());
        desk.on(stand());
        desk.on(refusal);
        assert_eq!(desk.lock.state(), State::Standby);
        desk.on(Event::Wanted(Want::Contend));
        desk.waiting();
    }
}

#[test]
fn contender_for_one_tenure_stands_by_after_it_however_it_ends() {
    let settings = Settings { single: true, ..Settings::default() };
    let mut desk = Desk::holding(settings);
    desk.on(Event::SessionLost(Loss::Invalidated));
    assert_eq!(desk.lock.state(), State::Standby);
    desk.on(Event::SessionUp);
    assert_eq!(desk.sees(9, KeyState::Free), None);
    assert_eq!(desk.lock.state(), State::Standby);

    let mut desk = Desk::holding(settings);
    assert_eq!(desk.on(Event::SessionLost(Loss::Expired)), Some(release(6)));
    desk.on(Event::Released(Some(7)));
    assert_eq!(desk.lock.state(), State::Standby);

    // Before there was one, it goes on.
    let mut desk = Desk::acquiring(settings);
    desk.on(Event::SessionLost(Loss::Invalidated));
    desk.waiting();
}

#[test]
fn contending_ends_at_its_timeout() {
    let settings = Settings { timeout: Some(S * 30), ..Settings::default() };
    let mut desk = Desk::contending(settings);
    desk.on(Event::SessionUp);
    desk.sees(5, other());
    assert_eq!(desk.lock.due(), Some(at(30)));
    desk.later(at(29));
    desk.waiting();
    desk.later(at(30));
    assert_eq!(desk.lock.state(), State::Failed(FailReason::AcquireTimeout));
    // A pause and its end start the time anew.
    desk.on(stand());
    desk.on(Event::Wanted(Want::Contend));
    assert_eq!(desk.lock.due(), Some(at(60)));
}

#[test]
fn attempt_under_way_at_the_timeout_may_still_succeed() {
    let settings = Settings { timeout: Some(S * 30), ..Settings::default() };
    let mut desk = Desk::acquiring(settings);
    desk.later(at(31));
    desk.on(Event::Locked(6));
    assert_eq!(desk.token(), Some(6));
}

// ---- lock-delay ----

#[test]
fn end_of_a_lock_delay_is_timed_from_the_release_seen() {
    let mut desk = Desk::contending(Settings::default());
    desk.on(Event::SessionUp);
    desk.sees(5, other());
    desk.now = at(10);
    assert!(desk.sees(6, KeyState::Free).is_some());
    desk.now = at(12);
    desk.on(Event::RefusedDelay(Some(S * 5)));
    assert_eq!(desk.waiting().delay, Some(Some(at(15))));
    assert_eq!(desk.later(at(14)), None);
    let due = desk.lock.due().unwrap();
    assert!(due >= at(15) && due.since(at(15)) < S / 10, "{due:?}");
    assert!(desk.later(due).is_some());
    // Consul's clock is a little behind ours: again soon, and not at once.
    desk.on(Event::RefusedDelay(Some(S * 5)));
    let again = desk.lock.due().unwrap();
    assert!(again > due && again.since(due) <= S / 4, "{again:?}");
}

#[test]
fn lock_delay_of_unknown_length_is_probed_every_second_or_so() {
    let mut desk = Desk::acquiring(Settings::default());
    desk.on(Event::RefusedDelay(None));
    assert_eq!(desk.waiting().delay, Some(None));
    let due = desk.lock.due().unwrap();
    assert!(due >= at(0) + S / 2 && due <= at(1), "{due:?}");
}

#[test]
fn lock_delay_that_another_has_sat_out_keeps_nobody_waiting() {
    let mut desk = Desk::contending(Settings::default());
    desk.on(Event::SessionUp);
    desk.sees(5, other());
    desk.sees(6, KeyState::Free);
    desk.on(Event::RefusedDelay(Some(S * 60)));
    // Consul was restarted and forgot the delay; somebody took the key and gave it back.
    assert_eq!(desk.sees(7, other()), None);
    assert_eq!(desk.waiting().delay, None);
    assert_eq!(desk.sees(8, KeyState::Free), Some(Effect::LockKey(Expect::Index(8))));
}

// ---- holding ----

#[test]
fn tenure_is_released_after_max_hold_and_leaves_room_for_others() {
    let mut desk = Desk::holding(max_hold(60));
    assert_eq!(desk.lock.due(), Some(at(60)));
    assert_eq!(desk.later(at(60)), Some(release(6)));
    assert_eq!(desk.token(), None);
    assert_eq!(desk.lock.state(), State::Releasing(EndReason::MaxHold));
    assert_eq!(desk.on(Event::Released(Some(9))), None);
    assert_eq!(desk.lock.due(), Some(at(61)));
    assert_eq!(desk.later(at(60)), None);
    assert_eq!(desk.later(at(61)), Some(Effect::LockKey(Expect::Index(9))));
}

#[test]
fn tenure_that_is_to_give_way_is_released_at_once_and_others_have_their_chance() {
    let mut desk = Desk::holding(Settings::default());
    let of = |token| Settings { give_way: Some(FencingToken::new(token)), ..Settings::default() };
    desk.lock.set_settings(of(5));
    assert_eq!((desk.on(Event::Tick), desk.lock.due()), (None, None), "another tenure is meant");
    desk.lock.set_settings(of(6));
    assert!(desk.lock.due().is_some_and(|due| due <= desk.now));
    assert_eq!(desk.on(Event::Tick), Some(release(6)));
    assert_eq!(desk.lock.state(), State::Releasing(EndReason::HandedOver));
    assert_eq!(desk.on(Event::Released(Some(9))), None);
    assert_eq!(desk.later(at(4)), None);
    assert_eq!(desk.later(at(5)), Some(Effect::LockKey(Expect::Index(9))));
    desk.on(Event::Locked(10));
    assert_eq!((desk.on(Event::Tick), desk.token()), (None, Some(10)), "nobody is asked twice");
}

#[test]
fn key_that_is_gone_or_taken_ends_the_tenure_once_a_read_agrees() {
    for (found, reason) in [
        (KeyState::Missing, EndReason::KeyDeleted),
        (other(), EndReason::KeyTaken),
        (KeyState::Free, EndReason::KeyTaken),
        (KeyState::Conflict, EndReason::KeyTaken),
    ] {
        let mut desk = Desk::holding(Settings::default());
        assert_eq!(desk.sees(8, found.clone()), Some(Effect::ReadKey));
        assert_eq!(desk.token(), Some(6), "a stale read may be wrong");
        let (before, event) = (desk.lock.state(), read(8, found));
        desk.on(event.clone());
        let ended = ended(before, &event, desk.lock.state()).unwrap();
        assert_eq!((ended.0.token.get(), ended.1), (6, reason));
        desk.waiting();
    }
}

#[test]
fn key_that_a_read_finds_ours_after_all_is_kept() {
    let mut desk = Desk::holding(Settings::default());
    desk.sees(8, KeyState::Missing);
    assert_eq!(desk.on(read(6, INTACT)), None);
    assert_eq!(desk.token(), Some(6));
}

#[test]
fn overwritten_key_is_restored_without_a_new_token() {
    let mut desk = Desk::holding(Settings::default());
    assert_eq!(desk.sees(8, SPOILT), Some(Effect::RewriteKey));
    assert_eq!(desk.on(Event::Rewritten(9)), None);
    assert_eq!(desk.token(), Some(6));
    assert_eq!(desk.sees(8, SPOILT), None, "older than our own write");
}

#[test]
fn rewrite_that_is_refused_is_followed_by_a_read() {
    let mut desk = Desk::holding(Settings::default());
    desk.sees(8, SPOILT);
    assert_eq!(desk.on(Event::RewriteRefused), Some(Effect::ReadKey));
    desk.on(read(9, other()));
    assert_eq!(desk.token(), None);
}

#[test]
fn changed_value_is_written_without_a_new_token() {
    let mut desk = Desk::holding(Settings::default());
    assert_eq!(desk.on(Event::ValueChanged), Some(Effect::RewriteKey));
    desk.on(Event::Rewritten(7));
    assert_eq!(desk.token(), Some(6));
}

#[test]
fn value_that_changed_while_the_key_was_being_locked_is_written_afterwards() {
    let mut desk = Desk::acquiring(Settings::default());
    desk.on(Event::ValueChanged);
    assert_eq!(desk.on(Event::Locked(6)), Some(Effect::ReadKey));
    assert_eq!(desk.on(read(6, SPOILT)), Some(Effect::RewriteKey));
}

#[test]
fn key_that_a_watch_sees_taken_before_the_locks_own_answer_is_asked_for() {
    let mut desk = Desk::acquiring(Settings::default());
    // The answer "locked at 6" lingers; meanwhile the key was deleted and taken by another.
    desk.sees(6, INTACT);
    desk.sees(8, other());
    assert_eq!(desk.on(Event::Locked(6)), Some(Effect::ReadKey));
    desk.on(read(8, other()));
    assert_eq!(desk.token(), None, "two would hold it");
}

#[test]
fn key_that_a_watch_sees_taken_during_a_rewrite_is_asked_for() {
    // The rewrite may never be answered: an ACL may have been taken away meanwhile.
    let mut desk = Desk::holding(Settings::default());
    desk.on(Event::ValueChanged);
    assert_eq!(desk.sees(9, other()), Some(Effect::ReadKey));
    desk.on(read(9, other()));
    assert_eq!(desk.token(), None);
}

#[test]
fn key_that_a_watch_sees_taken_during_a_read_is_asked_for_again() {
    let mut desk = Desk::holding(Settings::default());
    assert_eq!(desk.sees(7, KeyState::Missing), Some(Effect::ReadKey));
    desk.sees(9, other());
    assert_eq!(desk.on(read(6, INTACT)), Some(Effect::ReadKey), "it was sent before the sighting");
    desk.on(read(9, other()));
    assert_eq!(desk.token(), None);
}

#[test]
fn doubt_that_nobody_settles_ends_the_tenure() {
    // Renewals go on, but the read is denied, say.
    let mut desk = Desk::holding(Settings::default());
    desk.sees(7, other());
    let due = desk.lock.due().unwrap();
    assert_eq!(due, at(10));
    assert_eq!(desk.later(at(9)), None);
    assert_eq!(desk.later(due), None);
    assert_eq!(desk.token(), None);
    // Whoever relied on it may not know yet: it is taken anew, and not left to others.
    assert_eq!(desk.sees(8, INTACT), Some(Effect::LockKey(Expect::Index(8))));
    assert_eq!(desk.on(Event::Locked(9)), None);
    assert_eq!(desk.token(), Some(9));
}

#[test]
fn stale_sightings_are_ignored() {
    let mut desk = Desk::holding(Settings::default());
    for key in [KeyState::Free, other(), KeyState::Missing] {
        assert_eq!(desk.sees(5, key), None);
    }
    assert_eq!(desk.token(), Some(6));
    assert_eq!(desk.lock.seen(), Some(&seen(6, INTACT)));
}

#[test]
fn fallen_indexes_count_again_in_a_new_epoch() {
    let mut desk = Desk::holding(Settings::default());
    let restored = Seen { epoch: 1, index: 3, key: KeyState::Free };
    assert_eq!(desk.on(Event::Seen(restored.clone())), Some(Effect::ReadKey));
    assert_eq!(desk.lock.seen(), Some(&restored));
    let late = Seen { epoch: 0, index: 99, key: other() };
    desk.on(Event::Seen(late));
    assert_eq!(desk.lock.seen(), Some(&restored));
}

#[test]
fn answer_from_before_a_fallen_index_does_not_hide_what_comes_after() {
    let mut desk = Desk::contending(Settings::default());
    desk.on(Event::SessionUp);
    assert!(desk.sees(500, KeyState::Free).is_some());
    desk.on(Event::Seen(Seen { epoch: 1, index: 3, key: KeyState::Free }));
    desk.on(Event::Locked(501));
    let after = Seen { epoch: 1, index: 4, key: other() };
    desk.on(Event::Seen(after.clone()));
    assert_eq!(desk.lock.seen(), Some(&after));
}

// ---- giving up ----

#[test]
fn holder_that_appears_before_our_release_is_answered_stays_in_view() {
    let mut desk = Desk::holding(Settings::default());
    assert_eq!(desk.on(stand()), Some(release(6)));
    desk.sees(9, other());
    desk.on(Event::Released(Some(8)));
    assert_eq!(desk.lock.state(), State::Standby);
    assert_eq!(desk.lock.seen(), Some(&seen(9, other())));
}

#[test]
fn release_of_a_key_that_was_overwritten_is_repeated_with_its_index() {
    let mut desk = Desk::holding(Settings::default());
    desk.on(stand());
    assert_eq!(desk.on(Event::ReleaseRefused), Some(Effect::ReadKey));
    assert_eq!(desk.on(read(9, SPOILT)), Some(release(9)));
    desk.on(Event::Released(Some(10)));
    assert_eq!(desk.lock.state(), State::Standby);
}

#[test]
fn acquisition_that_is_answered_when_nobody_wants_it_any_more_is_given_back() {
    let mut desk = Desk::acquiring(Settings::default());
    assert_eq!(desk.on(stand()), None);
    assert_eq!(desk.on(Event::Locked(6)), Some(release(6)));
    assert_eq!(desk.token(), None);
    desk.on(Event::Released(Some(7)));
    assert_eq!(desk.lock.state(), State::Standby);
}

#[test]
fn want_that_changes_twice_while_the_lock_is_in_flight_ends_in_a_tenure() {
    let mut desk = Desk::acquiring(Settings::default());
    desk.on(stand());
    desk.on(Event::Wanted(Want::Contend));
    desk.on(Event::Locked(6));
    assert_eq!(desk.token(), Some(6));
}

#[test]
fn lost_session_ends_the_tenure_and_releases_what_may_still_be_held() {
    let mut desk = Desk::holding(Settings::default());
    assert_eq!(desk.on(Event::SessionLost(Loss::Expired)), Some(release(6)));
    assert_eq!(desk.token(), None);
    desk.on(Event::Released(None));
    assert_eq!(desk.on(Event::Tick), None, "no session is up");

    let mut desk = Desk::holding(Settings::default());
    assert_eq!(desk.on(Event::SessionLost(Loss::Invalidated)), None);
    desk.waiting();
}

#[test]
fn session_that_expires_while_the_lock_is_in_flight_gives_up_whatever_it_took() {
    let mut desk = Desk::acquiring(Settings::default());
    assert_eq!(desk.on(Event::SessionLost(Loss::Expired)), Some(Effect::ReadKey));
    assert_eq!(desk.on(read(6, INTACT)), Some(release(6)));
    desk.on(Event::Released(Some(7)));
    desk.waiting();
}

// ---- adopting ----

fn adopting(token: Option<u64>) -> Desk {
    let tenure = token.map(|token| Tenure { token: FencingToken::new(token), since: at(0) });
    Desk::new(Lock::adopting(Settings::default(), tenure))
}

#[test]
fn recorded_tenure_goes_on_once_a_read_finds_the_key_ours() {
    for found in [INTACT, SPOILT] {
        let mut desk = adopting(Some(4));
        assert_eq!(desk.sees(4, INTACT), None, "a stale read confirms nothing");
        assert_eq!(desk.on(Event::SessionUp), Some(Effect::ReadKey));
        // A release that the earlier process sent may still arrive: it expects index 4.
        assert_eq!(desk.on(read(4, found)), Some(begin_anew(4)));
        assert_eq!(desk.token(), None);
        assert_eq!(desk.on(Event::Locked(9)), None);
        assert_eq!(desk.token(), Some(4), "a holding without a break");
    }
}

#[test]
fn key_that_is_ours_without_a_recorded_token_is_begun_anew() {
    let mut desk = adopting(None);
    desk.on(Event::SessionUp);
    assert_eq!(desk.on(read(4, INTACT)), Some(begin_anew(4)));
    assert_eq!(desk.token(), None);
    desk.on(Event::Locked(7));
    assert_eq!(desk.token(), Some(7));
}

#[test]
fn recorded_tenure_whose_key_is_not_ours_has_ended() {
    for (found, alive, reason) in [
        (other(), true, EndReason::KeyTaken),
        (KeyState::Missing, true, EndReason::KeyDeleted),
        (KeyState::Free, false, EndReason::SessionInvalidated),
    ] {
        let mut desk = adopting(Some(4));
        desk.on(Event::SessionUp);
        let before = desk.lock.state();
        let event = Event::Read { seen: seen(9, found), session_alive: alive };
        desk.on(event.clone());
        assert_eq!(ended(before, &event, desk.lock.state()).map(|ended| ended.1), Some(reason));
        desk.waiting();
    }
}

#[test]
fn later_tenure_than_the_recorded_one_is_begun_anew() {
    let mut desk = adopting(Some(4));
    desk.on(Event::SessionUp);
    let before = desk.lock.state();
    assert_eq!(desk.on(Event::Superseded), None);
    let ended = ended(before, &Event::Superseded, desk.lock.state()).unwrap();
    assert_eq!((ended.0.token.get(), ended.1), (4, EndReason::Superseded));
    assert_eq!(desk.on(read(9, INTACT)), Some(begin_anew(9)));
}

#[test]
fn settings_that_change_during_an_adoption_are_no_fault() {
    let mut desk = adopting(Some(4));
    assert_eq!(desk.on(Event::Retry), None);
    desk.on(Event::SessionUp);
    desk.on(read(4, INTACT));
    assert_eq!(desk.on(Event::Retry), None);
    desk.on(Event::Locked(9));
    assert_eq!(desk.token(), Some(4));
}

#[test]
fn adoption_for_a_paused_claim_releases() {
    let mut desk = adopting(Some(4));
    desk.on(stand());
    desk.on(Event::SessionUp);
    assert_eq!(desk.on(read(4, INTACT)), Some(release(4)));
    assert_eq!(desk.lock.state(), State::Releasing(EndReason::Paused));
}

// ---- over arbitrary sequences ----

fn key_state() -> impl Strategy<Value = KeyState> {
    prop_oneof![
        Just(KeyState::Missing),
        Just(KeyState::Free),
        Just(KeyState::Conflict),
        any::<bool>().prop_map(|intact| KeyState::Ours { intact }),
        Just(other()),
    ]
}

fn any_seen() -> impl Strategy<Value = Seen> {
    (0u64..3, 0u64..20, key_state()).prop_map(|(epoch, index, key)| Seen { epoch, index, key })
}

fn loss() -> impl Strategy<Value = Loss> {
    prop_oneof![Just(Loss::Expired), Just(Loss::Invalidated)]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Wanted(Want::Contend)),
        Just(stand()),
        Just(Event::Retry),
        Just(Event::SessionUp),
        loss().prop_map(Event::SessionLost),
        any_seen().prop_map(Event::Seen),
        Just(Event::ValueChanged),
        (0u64..20).prop_map(Event::Locked),
        Just(Event::RefusedHeld),
        prop_oneof![Just(None), Just(Some(S * 5))].prop_map(Event::RefusedDelay),
        Just(Event::RefusedChanged),
        Just(Event::LockFailed { pause: S }),
        Just(Event::LockUnclear),
        (any_seen(), any::<bool>())
            .prop_map(|(seen, session_alive)| Event::Read { seen, session_alive }),
        Just(Event::Superseded),
        (0u64..20).prop_map(Event::Rewritten),
        Just(Event::RewriteRefused),
        prop_oneof![Just(None), (0u64..20).prop_map(Some)].prop_map(Event::Released),
        Just(Event::ReleaseRefused),
        Just(Event::Tick),
    ]
}

fn any_lock() -> impl Strategy<Value = Lock> {
    let settings = any::<[bool; 5]>().prop_map(|[a, b, c, d, single]| Settings {
        timeout: a.then_some(S * 7),
        try_once: b,
        max_hold: c.then_some(S * 9),
        give_way: d.then_some(FencingToken::new(2)),
        single,
    });
    (settings, prop_oneof![Just(None), Just(Some(None)), Just(Some(Some(2)))]).prop_map(
        |(settings, recorded)| match recorded {
            None => Lock::contending(settings, at(0)),
            Some(token) => {
                let token = token.map(FencingToken::new);
                let tenure = token.map(|token| Tenure { token, since: at(0) });
                Lock::adopting(settings, tenure)
            }
        },
    )
}

proptest! {
    /// Events that come out of order are refused without a trace, or met without harm.
    #[test]
    fn no_order_of_events_does_harm(
        mut lock in any_lock(),
        events in prop::collection::vec((any_event(), 0u64..4, 0.0..1.0), 0..60),
    ) {
        let mut now = at(0);
        let mut session_up = false;
        for (event, passed, jitter) in events {
            now = now + S * u32::try_from(passed).unwrap();
            let before = lock.clone();
            let Ok(effect) = lock.step(event.clone(), now, jitter) else {
                prop_assert_eq!(&lock, &before, "{:?} left a trace", event);
                continue;
            };
            match &event {
                Event::SessionUp => session_up = true,
                Event::SessionLost(_) => session_up = false,
                _ => {}
            }
            if let Some(Effect::LockKey(expect)) = effect {
                prop_assert!(session_up, "locked without a session");
                let known = lock.seen().unwrap();
                match known.key {
                    KeyState::Missing => prop_assert_eq!(expect, Expect::Missing),
                    KeyState::Free | KeyState::Ours { .. } => {
                        prop_assert_eq!(expect, Expect::Index(known.index));
                    }
                    KeyState::Conflict | KeyState::Other(_) => prop_assert!(false, "{:?}", known),
                }
            }
            let token = |state| match state {
                State::Held { tenure, .. } => Some(tenure.token),
                _ => None,
            };
            if let Some(new) = token(lock.state()) && token(before.state()) != Some(new) {
                let confirmed = match (before.state(), &event) {
                    (State::Adopting(Some(recorded)), Event::Locked(_)) => recorded.token == new,
                    (_, Event::Locked(index) | Event::Rewritten(index)) => new.get() == *index,
                    _ => false,
                };
                prop_assert!(confirmed, "{:?} after {:?} in {:?}", new, event, before.state());
            }
        }
    }
}
