//! One tenure that gives way to another of ours.

use super::*;

fn hand_over() -> Event {
    Event::HandOver(EndReason::PodDied)
}

fn is_handing_over(state: State) -> bool {
    matches!(state, State::HandingOver { reason: EndReason::PodDied, .. })
}

#[test]
fn a_tenure_gives_way_to_another_in_one_commit_with_a_token_of_its_own() {
    let mut desk = Desk::holding(Settings::default());
    let before = desk.lock.state();
    assert_eq!(desk.on(hand_over()), Some(begin_anew(6)));
    let handing = desk.lock.state();
    assert!(is_handing_over(handing), "nobody may rely on either tenure: {handing:?}");
    let (tenure, reason) = ended(before, &hand_over(), handing).unwrap();
    assert_eq!((tenure.token.get(), reason), (6, EndReason::PodDied));
    assert_eq!(desk.on(hand_over()), None, "it is under way");
    assert_eq!(desk.on(Event::Locked(9)), None);
    assert_eq!(desk.token(), Some(9));
}

#[test]
fn a_change_that_met_another_index_is_read_and_repeated() {
    let mut desk = Desk::holding(Settings::default());
    desk.on(hand_over());
    assert_eq!(desk.on(Event::ReleaseRefused), Some(Effect::ReadKey));
    assert_eq!(desk.on(read(8, SPOILT)), Some(begin_anew(8)));
    assert_eq!(desk.on(Event::Locked(9)), None);
    assert_eq!(desk.token(), Some(9));
}

#[test]
fn a_change_of_a_key_that_is_not_ours_any_more_contends_anew() {
    for end in [
        Event::Released(None),
        Event::SessionLost(Loss::Invalidated),
        read(8, other()),
        read(8, KeyState::Missing),
    ] {
        let mut desk = Desk::holding(Settings::default());
        desk.on(hand_over());
        desk.on(end.clone());
        assert!(matches!(desk.lock.state(), State::Waiting(_)), "{end:?}");
    }
}

#[test]
fn a_change_that_nobody_wants_any_more_becomes_a_release() {
    let mut desk = Desk::holding(Settings::default());
    desk.on(hand_over());
    assert_eq!(desk.on(stand()), Some(release(6)));
    // The change was carried out all the same.
    assert_eq!(desk.on(Event::ReleaseRefused), Some(Effect::ReadKey));
    assert_eq!(desk.on(read(9, SPOILT)), Some(release(9)));
    desk.on(Event::Released(Some(10)));
    assert_eq!(desk.lock.state(), State::Standby);
}

#[test]
fn a_change_whose_session_expires_gives_up_whatever_it_took() {
    let mut desk = Desk::holding(Settings::default());
    desk.on(hand_over());
    assert_eq!(desk.on(Event::SessionLost(Loss::Expired)), Some(release(6)));
    assert_eq!(desk.lock.state(), State::Releasing(EndReason::Expired));
}

#[test]
fn a_change_is_nothing_to_whoever_holds_nothing() {
    let mut desk = Desk::contending(Settings::default());
    assert_eq!(desk.on(hand_over()), None);
    desk.waiting();
    let mut desk = Desk::acquiring(Settings::default());
    assert_eq!(desk.on(hand_over()), None);
    desk.on(Event::Locked(6));
    assert_eq!(desk.token(), Some(6));
}
