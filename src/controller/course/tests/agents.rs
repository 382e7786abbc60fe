//! Pods that hold the key themselves.

use super::*;
use crate::{
    controller::{follow::Holding, recorded::Followed},
    names::SessionId,
};

const AGENTS: &str = "{mode: Agent, candidates: {selector: {matchLabels: {app: billing}}}, \
                      routing: {service: billing}}";

/// A tenure of this pod, seen at index 43.
fn followed(pod: &str, token: Option<u64>) -> Followed {
    Followed {
        leader: Arc::new(leader(pod)),
        session: Some(SessionId::new("s-a")),
        index: Some(43),
        token: token.map(FencingToken::new),
        since: Timestamp::UNIX_EPOCH,
        since_said: Some("1970-01-01T00:00:00Z".into()),
        noticed: Some(at(5)),
    }
}

/// These pods, of which one holds the key.
fn holds(followed: Followed, pods: Vec<Candidate>) -> Electorate {
    let holding = Some(Holding::Pod(followed.clone()));
    Electorate { holding, ..scene(Standing::Followed(followed), pods) }
}

fn following(electorate: Electorate) -> Course {
    let seen = seen(electorate, AGENTS);
    let settings = seen.settings.clone().unwrap();
    course(&seen, &May::Follow(&settings), "west", at(10))
}

/// The tenure that is to be ended, of a course that follows.
fn release(course: &Course) -> Option<&DeadTenure> {
    match &course.stance {
        Some(Stance::Follow { release }) => release.as_ref(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_pod_that_holds_the_key_gets_label_token_and_endpoint_and_nothing_is_asked_of_consul() {
    let course = following(holds(followed("a", Some(41)), vec![candidate("a"), candidate("b")]));
    assert_eq!(release(&course), None);
    let dress = course.dress.as_ref().unwrap();
    assert_eq!((&*dress.pod, dress.token), ("a", FencingToken::new(41)));
    assert_eq!(course.advance.len(), 1);
    assert!(course.strip.is_empty() && course.retreat.is_empty(), "{course:?}");
    assert_eq!(course.told.contenders, Some(Contenders { matching: 2, eligible: 2 }));
}

#[test]
fn a_pod_that_has_not_told_its_token_is_given_nothing_and_whoever_led_before_loses_all() {
    let mut pods = holds(followed("a", None), vec![candidate("a"), candidate("b")]);
    pods.badged = vec![badged("b", "40")];
    pods.traffic.own = vec![filled("b")];
    let course = following(pods);
    assert_eq!(stripped(&course), [("b", false)]);
    assert_eq!(retreats(&course), ["empty consullock-billing-ipv4"]);
    assert!(course.dress.is_none() && course.advance.is_empty());
}

#[test]
fn the_key_of_the_dead_is_freed_after_label_and_endpoint_are_gone() {
    let mut pods = holds(followed("a", Some(41)), vec![dead("a"), candidate("b")]);
    pods.badged = vec![badged("a", "41")];
    pods.traffic.own = vec![filled("a")];
    let course = following(pods);
    let expected = DeadTenure { session: SessionId::new("s-a"), index: 43, end_session: false };
    assert_eq!(release(&course), Some(&expected));
    assert_eq!(stripped(&course), [("a", false)]);
    assert_eq!(retreats(&course), ["empty consullock-billing-ipv4"]);
    assert!(course.dress.is_none() && course.advance.is_empty());
}

#[test]
fn the_session_of_the_dead_is_ended_where_nobody_is_left_to_use_it() {
    let end_session = |pods: Electorate| release(&following(pods)).unwrap().end_session;
    let finished = Candidate { finished: true, ..dead("a") };
    assert!(end_session(holds(followed("a", Some(41)), vec![finished])));
    let away = Candidate { reach: Reach::OutOfService, ..candidate("a") };
    assert!(end_session(holds(followed("a", Some(41)), vec![away])));
    let mut gone = holds(followed("a", Some(41)), vec![dead("a")]);
    gone.present.as_mut().unwrap().exists = false;
    assert!(end_session(gone));
}

#[test]
fn without_proof_of_death_the_key_is_left_alone() {
    let going = Candidate { deleting: true, ..candidate("a") };
    let unready = Candidate { ready_since: None, ..candidate("a") };
    let away = Candidate { reach: Reach::Unreachable, ..candidate("a") };
    for pod in [going, unready, away] {
        let mut pods = holds(followed("a", Some(41)), vec![pod.clone()]);
        let present = pods.present.as_mut().unwrap();
        (present.unready_since, present.unreachable_since) = (Some(at(0)), Some(at(0)));
        assert_eq!(release(&following(pods)), None, "{pod:?}");
    }
    let mut forced = holds(followed("a", Some(41)), vec![candidate("a")]);
    forced.present.as_mut().unwrap().exists = false;
    assert_eq!(release(&following(forced)), None);
    let mut unlisted = holds(followed("a", Some(41)), vec![dead("a")]);
    unlisted.known = false;
    assert_eq!(release(&following(unlisted)), None, "what is known of pods may be out of date");
}

#[test]
fn what_was_recorded_keeps_what_it_has_until_the_key_was_seen() {
    let recorded = Followed { index: None, noticed: None, ..followed("a", Some(41)) };
    let mut pods = scene(Standing::Followed(recorded), vec![candidate("a")]);
    pods.badged = vec![badged("a", "41")];
    pods.traffic.own = vec![filled("a")];
    let course = following(pods);
    assert!(is_quiet(&course), "{course:?}");
}

/// What an earlier term sent for a pod that the key has left may be under way.
#[test]
fn the_pod_that_the_key_has_left_and_its_slices_get_another_version_whatever_they_look_like() {
    let mut pods = holds(followed("b", Some(45)), vec![candidate("a"), candidate("b")]);
    pods.former = Some(present(candidate("a")));
    let empty = EndpointSlice { endpoints: Vec::new(), ..(*filled("a")).clone() };
    pods.traffic.own = vec![Arc::new(empty)];
    let course = following(pods);
    assert_eq!(stripped(&course), [("a", false)]);
    assert_eq!(retreats(&course), ["empty consullock-billing-ipv4"]);
    assert_eq!(&*course.dress.unwrap().pod, "b");

    let mut done = holds(followed("b", Some(45)), vec![candidate("a"), candidate("b")]);
    done.former = Some(present(candidate("a")));
    done.relieved = Some("uid-a".into());
    done.badged = vec![badged("b", "45")];
    done.traffic.own = vec![filled("b")];
    let course = following(done);
    assert!(course.strip.is_empty() && course.retreat.is_empty(), "{course:?}");
}

#[test]
fn a_tenure_of_ours_ends_before_the_key_is_left_to_the_pods() {
    let mut pods = scene(held(Some("a")), vec![candidate("a")]);
    pods.badged = vec![badged("a", "41")];
    pods.traffic.own = vec![filled("a")];
    let course = following(pods);
    assert_eq!((release(&course), stripped(&course)), (None, vec![("a", false)]));
    assert_eq!(retreats(&course), ["empty consullock-billing-ipv4"]);
    // What its pod has of it goes first, and that is not known here.
    let mut unlisted = scene(held(Some("a")), vec![candidate("a")]);
    unlisted.known = false;
    assert_eq!(wanted(&following(unlisted)), Some((Some("a"), EndReason::NoCandidate)));
}
