//! What may be there though nobody has seen it, and what cannot be known.

use super::*;

// ---- what may be there though nobody has seen it ----

#[test]
fn a_badge_that_may_have_been_written_is_taken_off() {
    let mut moved = scene(held(Some("b")), vec![candidate("a"), candidate("b")]);
    moved.worn = vec![worn("a", "40", None)];
    assert_eq!(stripped(&course_of(moved)), [("a", false)]);
}

#[test]
fn a_badge_counts_as_written_only_while_the_cache_cannot_know_better() {
    for (over, again) in [(Some("v-1"), false), (Some("v-0"), true), (None, true)] {
        let mut led = scene(held(Some("a")), vec![candidate("a")]);
        led.worn = vec![worn("a", "41", over)];
        assert_eq!(course_of(led).dress.is_some(), again, "{over:?}");
    }
}

#[test]
fn a_slice_that_may_have_been_filled_is_emptied_before_the_key_moves() {
    let mut dying = scene(held(Some("a")), vec![dead("a"), candidate("b")]);
    dying.traffic.filled = vec![blank()];
    assert_eq!(retreats(&course_of(dying)), ["empty consullock-billing-ipv4"], "unseen");
    let mut dying = scene(held(Some("a")), vec![dead("a"), candidate("b")]);
    dying.traffic.filled = vec![blank()];
    dying.traffic.own = vec![filled("a")];
    assert_eq!(retreats(&course_of(dying)).len(), 1, "once");
    let mut dying = scene(held(Some("a")), vec![dead("a"), candidate("b")]);
    dying.traffic.filled = vec![blank()];
    dying.traffic.own = vec![Arc::new(blank())];
    assert_eq!(retreats(&course_of(dying)).len(), 1, "seen as it was before");
}

#[test]
fn a_slice_that_may_have_been_filled_is_emptied_though_its_service_is_not_ours_any_more() {
    let refused = |pods| {
        let mut refused = scene(held(Some("a")), pods);
        refused.traffic.service = None;
        refused.traffic.filled = vec![blank()];
        refused
    };
    for pods in [vec![candidate("a")], vec![dead("a")]] {
        let course = course_of(refused(pods));
        assert_eq!(retreats(&course), ["empty consullock-billing-ipv4"]);
        assert_eq!(course.told.routing, Some(Routing::Refused(Refusal::NoService)));
    }
    let mut unrouted = scene(held(Some("a")), vec![candidate("a")]);
    unrouted.traffic.filled = vec![blank()];
    let course = contending(unrouted, DELETE, at(10));
    assert_eq!(retreats(&course), ["empty consullock-billing-ipv4"]);
}

// ---- what is not known ----

#[test]
fn whoever_held_the_key_goes_on_while_pods_cannot_be_listed() {
    for (standing, leads) in [
        (held(Some("a")), Some(Some("a"))),
        (adopting("a"), Some(Some("a"))),
        (held(None), Some(None)),
        (Standing::Adopting { leader: None }, Some(None)),
        (Standing::None, None),
    ] {
        let mut blind = scene(standing.clone(), Vec::new());
        blind.known = false;
        blind.traffic.own = vec![filled("a")];
        blind.present = standing.leader().map(|leader| Present {
            leader: Arc::clone(leader),
            pod: None,
            exists: false,
            reach: Reach::Reachable,
            unready_since: None,
            unreachable_since: Some(at(1)),
            handover: None,
        });
        let course = course_of(blind);
        assert_eq!(wanted(&course).map(|(leader, _)| leader), leads, "{standing:?}");
        assert!(course.told.unlisted.is_some() && course.told.election.is_none());
        let keeps_endpoint = leads == Some(Some("a"));
        assert_eq!(retreats(&course).is_empty(), keeps_endpoint, "{standing:?}");
        assert_eq!((&course.dress, &course.advance), (&None, &vec![]));
    }
}

#[test]
fn while_services_cannot_be_listed_nothing_moves() {
    let blind = |pods| {
        let mut blind = scene(held(Some("a")), pods);
        blind.traffic.known = false;
        blind.traffic.own = vec![filled("a")];
        blind
    };
    let course = course_of(blind(vec![candidate("a")]));
    assert_eq!(course.told.routing, Some(Routing::Unknown));
    assert!(course.retreat.is_empty() && course.advance.is_empty());
    // There may be an endpoint that nobody here knows of.
    let course = course_of(blind(vec![dead("a"), candidate("b")]));
    assert!(course.retreat.is_empty() && course.advance.is_empty());
    let Some(Stance::Contend { leader: Some(kept), .. }) = course.stance else { panic!() };
    assert_eq!(&*kept.pod, "a");
}

#[test]
fn a_key_that_is_not_to_be_held_stays_while_it_is_unknown_what_its_leader_has() {
    let led = |pods_known, traffic_known| {
        let mut led = scene(adopting("a"), vec![candidate("a")]);
        led.known = pods_known;
        led.traffic.known = traffic_known;
        led.traffic.own = vec![filled("a")];
        led
    };
    let leads = |course: &Course| match &course.stance {
        Some(Stance::Contend { leader: Some(leader), .. }) => &*leader.pod == "a",
        _ => false,
    };
    for (pods, traffic) in [(false, true), (true, false)] {
        let paused = with(led(pods, traffic), |settings| May::StandBy(settings));
        assert!(leads(&paused));
        let alone = contending(led(pods, traffic), "{}", at(10));
        assert!(leads(&alone), "a spec that wants no pod any more moves the key just as well");
        let deleted = with(led(pods, traffic), |_| May::Nothing);
        assert!(deleted.told.unlisted.is_some());
    }
    let mut held_for_long = scene(held(Some("a")), vec![candidate("a")]);
    held_for_long.traffic.known = false;
    let spec = format!("{{acquire: {{maxHold: 1s}}, {}", &SPEC[1..]);
    assert!(!contending(held_for_long, &spec, at(10)).max_hold_is_over);
    let paused = with(led(true, true), |settings| May::StandBy(settings));
    assert_eq!(paused.stance, Some(Stance::StandBy(EndReason::Paused)));
    let deleted = with(led(true, false), |_| May::Nothing);
    assert_eq!(retreats(&deleted), ["empty consullock-billing-ipv4"], "not all is known yet");
    let unrouted = Traffic { concerned: false, ..led(true, false).traffic };
    let unrouted = Electorate { traffic: unrouted, ..led(true, false) };
    assert_eq!(with(unrouted, |_| May::Nothing).told.unlisted, None);
}

#[test]
fn before_the_key_moves_even_a_slice_that_looks_empty_is_emptied_once_in_a_term() {
    let led = |pod| {
        let mut led = scene(held(Some("a")), vec![pod, candidate("b")]);
        led.traffic.own = vec![Arc::new(blank())];
        led
    };
    let mut leaving = candidate("a");
    leaving.deleting = true;
    assert_eq!(retreats(&course_of(led(leaving))), [""; 0], "the key stays");
    assert_eq!(retreats(&course_of(led(dead("a")))), ["empty consullock-billing-ipv4"]);
    let mut emptied = led(dead("a"));
    emptied.traffic.emptied = ["consullock-billing-ipv4".to_owned()].into();
    assert_eq!(retreats(&course_of(emptied)), [""; 0]);
}

#[test]
fn before_the_key_moves_even_a_leader_that_wears_no_label_is_relieved_once_in_a_term() {
    let led = || scene(held(Some("a")), vec![dead("a"), candidate("b")]);
    assert_eq!(stripped(&course_of(led())), [("a", false)], "one may be on its way");
    let mut relieved = led();
    relieved.relieved = Some("uid-a".into());
    assert_eq!(stripped(&course_of(relieved)), []);
    let mut gone = led();
    gone.present.as_mut().unwrap().exists = false;
    assert_eq!(stripped(&course_of(gone)), []);
}

#[test]
fn while_it_is_undecided_whether_the_key_is_allowed_everything_stays() {
    let mut led = scene(adopting("a"), vec![dead("a"), candidate("b")]);
    led.badged = vec![badged("a", "41")];
    led.traffic.own = vec![filled("a")];
    let course = with(led, |settings| May::Undecided(settings));
    assert_eq!(course.stance, None);
    assert!(is_quiet(&course), "{course:?}");
}
