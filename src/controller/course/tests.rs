//! What is to be done about pods and traffic, for each standing of a claim with its key.

use jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::{
    controller::{
        electorate::{LostTenure, Traffic},
        ledger::Worn,
        sample::{at, claim, electorate, leader},
        tenancy::NamespaceSeen,
    },
    election::{Backend, Candidate, Container, Handover, Origin, Present, Reach, slice_name},
    keeper::ClaimId,
};

mod agents;
mod traffic;
mod unknown;

const SPEC: &str =
    "{candidates: {selector: {matchLabels: {app: billing}}}, routing: {service: billing}}";

/// The pod of [`leader`], alive and ready.
fn candidate(pod: &str) -> Candidate {
    Candidate {
        name: pod.into(),
        uid: format!("uid-{pod}").into(),
        node: Some("n-1".into()),
        matches: true,
        created: Timestamp::UNIX_EPOCH,
        deleting: false,
        ready_since: Some(Timestamp::UNIX_EPOCH),
        priority: 0,
        gated: false,
        finished: false,
        succeeded: false,
        origin: Origin::Other,
        already_ran: false,
        containers: vec![Container {
            name: "app".into(),
            id: Some(format!("{pod}-1").into()),
            restarts: 0,
            running: true,
            terminated: false,
            ended: None,
        }],
        reach: Reach::Reachable,
    }
}

fn dead(pod: &str) -> Candidate {
    let mut dead = candidate(pod);
    dead.ready_since = None;
    dead.containers[0].terminated = true;
    dead
}

fn present(pod: Candidate) -> Present {
    Present {
        leader: Arc::new(leader(&pod.name)),
        reach: pod.reach,
        pod: Some(pod),
        exists: true,
        unready_since: None,
        unreachable_since: None,
        handover: None,
    }
}

/// A tenure for this pod, with token 41, since 5.
fn held(pod: Option<&str>) -> Standing {
    let leader = pod.map(|pod| Arc::new(leader(pod)));
    Standing::Held { leader, token: FencingToken::new(41), began: at(5), record: None }
}

fn adopting(pod: &str) -> Standing {
    Standing::Adopting { leader: Some(Arc::new(leader(pod))) }
}

/// These pods, of which the leader is one if there is a leader.
fn scene(standing: Standing, pods: Vec<Candidate>) -> Electorate {
    let elected = standing.leader().map(|leader| Arc::clone(&leader.uid));
    let led = pods.iter().find(|pod| Some(&pod.uid) == elected.as_ref());
    let backend = led.zip(standing.token()).map(|(pod, token)| Backend {
        pod: Arc::clone(&pod.name),
        uid: Arc::clone(&pod.uid),
        node: pod.node.clone(),
        addresses: vec!["10.0.0.7".parse().unwrap()],
        ports: vec![("web".into(), "TCP".into(), 8080)],
        ready: pod.ready_since.is_some(),
        token,
    });
    let service = json!({
        "metadata": { "name": "billing", "namespace": "shop" },
        "spec": { "ports": [{ "port": 80, "targetPort": "web" }] },
    });
    let service = Some(Arc::new(serde_json::from_value(service).unwrap()));
    Electorate {
        present: led.cloned().map(present),
        leaders_version: led.map(|_| "v-1".to_owned()),
        backend,
        candidates: pods,
        traffic: Traffic { concerned: true, known: true, service, ..Traffic::default() },
        ..electorate(standing)
    }
}

fn badged(pod: &str, token: &str) -> Badged {
    Badged {
        pod: pod.into(),
        uid: format!("uid-{pod}").into(),
        labelled: true,
        token: Some(token.to_owned()),
        deleting: false,
    }
}

fn worn(pod: &str, token: &str, over: Option<&str>) -> Worn {
    Worn { badged: badged(pod, token), over: over.map(str::to_owned) }
}

fn seen(electorate: Electorate, spec: &str) -> Seen {
    let object = claim(spec);
    Seen {
        id: ClaimId("uid-1".into()),
        settings: object.spec.settings(),
        object: Arc::new(object),
        electorate,
        namespace: NamespaceSeen::Annotated(None),
        view: None,
        stop: None,
        since: at(1),
    }
}

/// The course of a claim that may contend, at 10.
fn course_of(electorate: Electorate) -> Course {
    contending(electorate, SPEC, at(10))
}

fn contending(electorate: Electorate, spec: &str, now: Instant) -> Course {
    let seen = seen(electorate, spec);
    let settings = seen.settings.clone().unwrap();
    course(&seen, &May::Contend(&settings), "west", now)
}

fn with(electorate: Electorate, may: fn(&api::Settings) -> May<'_>) -> Course {
    let seen = seen(electorate, SPEC);
    let settings = seen.settings.clone().unwrap();
    course(&seen, &may(&settings), "west", at(10))
}

/// The slice as it is while traffic goes to this pod, as the cache would have it.
fn filled(pod: &str) -> Arc<EndpointSlice> {
    let course = course_of(scene(held(Some(pod)), vec![candidate(pod)]));
    let [advance] = &course.advance[..] else { panic!("{course:?}") };
    let mut slice = advance.slice.clone();
    slice.metadata.resource_version = Some("s-1".to_owned());
    Arc::new(slice)
}

fn blank() -> EndpointSlice {
    let course = course_of(scene(held(Some("a")), vec![candidate("a")]));
    course.advance[0].blank.clone()
}

/// For whom the key is wanted, and why not for another; or why it is not wanted.
fn wanted(course: &Course) -> Option<(Option<&str>, EndReason)> {
    course.stance.as_ref().map(|stance| match stance {
        Stance::Contend { leader, instead } => {
            (leader.as_ref().map(|leader| &*leader.pod), *instead)
        }
        Stance::StandBy(reason) => (None, *reason),
        Stance::Follow { .. } => panic!("{course:?}"),
    })
}

fn stripped(course: &Course) -> Vec<(&str, bool)> {
    course.strip.iter().map(|strip| (&*strip.pod, strip.delete)).collect()
}

fn retreats(course: &Course) -> Vec<String> {
    let of = |retreat: &Retreat| match retreat {
        Retreat::Empty(slice) => format!("empty {}", slice.name_any()),
        Retreat::Delete(slice) => format!("delete {}", slice.name_any()),
    };
    course.retreat.iter().map(of).collect()
}

fn is_quiet(course: &Course) -> bool {
    course.retreat.is_empty()
        && course.strip.is_empty()
        && course.dress.is_none()
        && course.advance.is_empty()
}

// ---- a change of leader ----

#[test]
fn a_new_tenure_gives_badge_and_endpoint_in_one_course() {
    let course = course_of(scene(held(Some("a")), vec![candidate("a"), candidate("b")]));
    assert_eq!(wanted(&course), Some((Some("a"), EndReason::NoCandidate)));
    let dress = course.dress.as_ref().unwrap();
    assert_eq!((&*dress.uid, dress.token.get(), dress.over.as_deref()), ("uid-a", 41, Some("v-1")));
    let [advance] = &course.advance[..] else { panic!("{course:?}") };
    assert_eq!(advance.slice.metadata.name.as_deref(), Some("consullock-billing-ipv4"));
    assert_eq!(advance.slice.endpoints.len(), 1);
    assert!(advance.blank.endpoints.is_empty());
    assert_eq!(advance.slice.metadata.resource_version, None, "there is none to replace");
    assert_eq!(course.told.routing, Some(Routing::To("a".into())));
    assert!(course.retreat.is_empty() && course.strip.is_empty());
}

#[test]
fn a_steady_tenure_needs_nothing() {
    let mut steady = scene(held(Some("a")), vec![candidate("a")]);
    steady.badged = vec![badged("a", "41")];
    steady.traffic.own = vec![filled("a")];
    steady.worn = vec![worn("a", "41", Some("v-1"))];
    steady.traffic.filled = vec![blank()];
    assert!(is_quiet(&course_of(steady)));
}

#[test]
fn a_leader_that_has_to_go_loses_endpoint_and_badge_before_anybody_else_has_them() {
    let mut dying = scene(held(Some("a")), vec![dead("a"), candidate("b")]);
    dying.badged = vec![badged("a", "41")];
    dying.traffic.own = vec![filled("a")];
    let course = course_of(dying);
    assert_eq!(wanted(&course), Some((Some("b"), EndReason::PodDied)));
    assert_eq!(stripped(&course), [("a", false)]);
    assert_eq!(retreats(&course), ["empty consullock-billing-ipv4"]);
    assert_eq!((&course.dress, &course.advance), (&None, &vec![]), "the key has not moved yet");
    assert_eq!(course.told.routing, Some(Routing::Nowhere("no pod holds the key")));
}

#[test]
fn a_leader_that_is_leaving_has_no_endpoint_and_keeps_its_badge() {
    let going = Candidate { deleting: true, ..candidate("a") };
    let mut leaving = scene(held(Some("a")), vec![going, candidate("b")]);
    leaving.badged = vec![badged("a", "41")];
    leaving.traffic.own = vec![filled("a")];
    let course = course_of(leaving);
    assert_eq!(wanted(&course), Some((Some("a"), EndReason::NoCandidate)));
    assert_eq!(retreats(&course), ["empty consullock-billing-ipv4"]);
    assert_eq!((stripped(&course), &course.advance), (vec![], &vec![]));
    assert_eq!(course.told.routing, Some(Routing::Nowhere("the elected pod is going")));
}

#[test]
fn a_leader_that_is_gone_without_proof_keeps_the_key_and_nothing_else() {
    let mut gone = scene(held(Some("a")), vec![candidate("a"), candidate("b")]);
    gone.candidates.remove(0);
    gone.backend = None;
    let now = gone.present.as_mut().unwrap();
    (now.pod, now.exists, now.unreachable_since) = (None, false, Some(at(9)));
    gone.traffic.own = vec![filled("a")];
    let course = course_of(gone);
    assert_eq!(wanted(&course), Some((Some("a"), EndReason::NoCandidate)));
    assert_eq!(retreats(&course), ["empty consullock-billing-ipv4"]);
    assert_eq!((&course.dress, &course.advance), (&None, &vec![]));
    assert_eq!(course.again, Some(at(9 + 30)));
}

#[test]
fn with_nobody_eligible_the_key_is_given_up() {
    let mut alone = scene(held(Some("a")), vec![dead("a")]);
    alone.badged = vec![badged("a", "41")];
    let course = course_of(alone);
    assert_eq!(wanted(&course), Some((None, EndReason::PodDied)));
    assert_eq!(stripped(&course), [("a", false)]);
    let nobody = course.told.nobody().unwrap();
    assert!(nobody.ends_with("1 not ready"), "{nobody}");
}

#[test]
fn a_tenure_of_the_claim_itself_gives_way_to_one_for_a_pod_and_back() {
    let course = course_of(scene(held(None), vec![candidate("a")]));
    assert_eq!(wanted(&course), Some((Some("a"), EndReason::NoCandidate)));
    assert!(is_quiet(&course), "nobody has anything yet: {course:?}");
    let mut led = scene(held(Some("a")), vec![candidate("a")]);
    led.badged = vec![badged("a", "41")];
    led.traffic.own = vec![filled("a")];
    let course = contending(led, "{}", at(10));
    assert_eq!(wanted(&course), Some((None, EndReason::PodUnmatched)));
    assert_eq!(stripped(&course), [("a", false)]);
    assert_eq!(retreats(&course), ["delete consullock-billing-ipv4"]);
    assert_eq!(course.told, Told::default());
}

#[test]
fn max_hold_takes_endpoint_and_badge_first() {
    let spec = "{candidates: {selector: {matchLabels: {app: billing}}}, \
                routing: {service: billing}, acquire: {maxHold: 20s}}";
    let led = || {
        let mut led = scene(held(Some("a")), vec![candidate("a")]);
        led.badged = vec![badged("a", "41")];
        led.traffic.own = vec![filled("a")];
        led
    };
    let before = contending(led(), spec, at(24));
    assert!(is_quiet(&before) && !before.max_hold_is_over);
    assert_eq!(before.again, Some(at(25)));
    let over = contending(led(), spec, at(25));
    assert!(over.max_hold_is_over);
    assert_eq!((stripped(&over), retreats(&over).len()), (vec![("a", false)], 1));
    assert_eq!((&over.dress, &over.advance), (&None, &vec![]));
}

// ---- handing over by request ----

fn handover(to: Option<&str>) -> Handover {
    Handover { token: FencingToken::new(41), to: to.map(Arc::from) }
}

#[test]
fn a_handover_takes_endpoint_and_badge_first_like_any_change_of_leader() {
    let mut led = scene(held(Some("a")), vec![candidate("a"), candidate("b"), candidate("c")]);
    led.badged = vec![badged("a", "41")];
    led.traffic.own = vec![filled("a")];
    led.handover = Some(Ok(handover(Some("c"))));
    led.present.as_mut().unwrap().handover = Some(handover(Some("c")));
    let course = course_of(led);
    assert_eq!(wanted(&course), Some((Some("c"), EndReason::HandedOver)));
    assert_eq!((stripped(&course), retreats(&course).len()), (vec![("a", false)], 1));
    assert_eq!((&course.dress, &course.advance), (&None, &vec![]), "c holds nothing yet");
    assert_eq!((course.give_way, course.told.refused), (None, None));
}

#[test]
fn a_handover_that_cannot_be_changes_nothing_and_is_told_of() {
    let mut led = scene(held(Some("a")), vec![candidate("a")]);
    led.badged = vec![badged("a", "41")];
    led.traffic.own = vec![filled("a")];
    led.handover = Some(Ok(handover(Some("x"))));
    led.present.as_mut().unwrap().handover = Some(handover(Some("x")));
    let course = course_of(led);
    assert_eq!(wanted(&course), Some((Some("a"), EndReason::NoCandidate)));
    assert!(is_quiet(&course));
    let refused = course.told.refused.unwrap();
    assert!(refused.contains("no pod x that matches"), "{refused}");
}

#[test]
fn a_claim_that_contends_for_itself_makes_room_if_it_is_asked_to() {
    let asked = |handover| {
        let mut alone = scene(held(None), Vec::new());
        alone.handover = Some(handover);
        contending(alone, "{}", at(10))
    };
    let course = asked(Ok(handover(None)));
    assert_eq!((course.give_way, course.told.refused), (Some(FencingToken::new(41)), None));
    let course = asked(Ok(handover(Some("a"))));
    assert_eq!(course.give_way, None);
    assert!(course.told.refused.unwrap().contains("no spec.candidates"));
    let course = asked("a".parse());
    assert_eq!(course.give_way, None);
    assert!(course.told.refused.unwrap().contains("consullock.dev/handover"));
}

// ---- a tenure that is being adopted ----

#[test]
fn while_a_tenure_is_adopted_its_leader_keeps_what_it_has_and_gets_nothing_new() {
    let mut adopted = scene(adopting("a"), vec![candidate("a"), candidate("b")]);
    adopted.badged = vec![badged("a", "41"), badged("b", "7")];
    adopted.traffic.own = vec![filled("a")];
    let course = course_of(adopted);
    assert_eq!(wanted(&course), Some((Some("a"), EndReason::NoCandidate)));
    assert_eq!(stripped(&course), [("b", false)], "what a crash left behind");
    assert_eq!((retreats(&course), &course.dress), (vec![], &None));
    assert!(course.advance.is_empty(), "not before Consul has confirmed the tenure");
    let bare = course_of(scene(adopting("a"), vec![candidate("a")]));
    assert!(is_quiet(&bare), "{bare:?}");
}

#[test]
fn a_leader_that_died_unseen_loses_everything_while_its_tenure_is_adopted() {
    let mut adopted = scene(adopting("a"), vec![dead("a"), candidate("b")]);
    adopted.badged = vec![badged("a", "41")];
    adopted.traffic.own = vec![filled("a")];
    let course = course_of(adopted);
    assert_eq!(wanted(&course), Some((Some("b"), EndReason::PodDied)));
    assert_eq!((stripped(&course), retreats(&course).len()), (vec![("a", false)], 1));
}

// ---- no tenure ----

#[test]
fn without_a_tenure_nobody_has_anything() {
    let mut none = scene(Standing::None, vec![candidate("a"), candidate("b")]);
    none.badged = vec![badged("a", "41"), badged("b", "40")];
    none.traffic.own = vec![filled("a")];
    let course = course_of(none);
    assert_eq!(wanted(&course), Some((Some("a"), EndReason::NoCandidate)));
    assert_eq!(stripped(&course), [("a", false), ("b", false)]);
    assert_eq!(retreats(&course), ["empty consullock-billing-ipv4"]);
    assert_eq!((&course.dress, &course.advance), (&None, &vec![]));
}

#[test]
fn whoever_is_being_handed_the_lock_is_elected_and_has_nothing_yet() {
    let beginning = |pod: &str| Standing::Beginning { leader: Some(Arc::new(leader(pod))) };
    let mut handing = scene(beginning("b"), vec![candidate("a"), candidate("b")]);
    handing.badged = vec![badged("a", "41"), badged("b", "40")];
    handing.traffic.own = vec![filled("b")];
    let course = course_of(handing);
    assert_eq!(wanted(&course), Some((Some("b"), EndReason::NoCandidate)));
    assert_eq!(stripped(&course), [("a", false), ("b", false)]);
    assert_eq!(retreats(&course), ["empty consullock-billing-ipv4"]);
    assert_eq!((&course.dress, &course.advance), (&None, &vec![]));

    let other = Candidate { matches: false, ..candidate("b") };
    let course = course_of(scene(beginning("b"), vec![candidate("a"), other]));
    assert_eq!(wanted(&course), Some((Some("a"), EndReason::PodUnmatched)));
}

const DELETE: &str = "{candidates: {selector: {matchLabels: {app: billing}}}, onLost: DeletePod}";

fn lost(pod: &str, token: &str) -> LostTenure {
    LostTenure { pod: pod.into(), token: token.to_owned() }
}

#[test]
fn the_pod_that_lost_its_tenure_is_deleted_by_the_token_that_it_carries() {
    for (badge, lost_one, delete) in [
        (badged("a", "41"), lost("a", "41"), true),
        // A later tenure of the same pod was given up in order.
        (badged("a", "45"), lost("a", "41"), false),
        // Another pod, whoever wrote the token on it.
        (badged("b", "41"), lost("a", "41"), false),
        (Badged { token: None, ..badged("a", "41") }, lost("a", "41"), false),
        (Badged { deleting: true, ..badged("a", "41") }, lost("a", "41"), false),
    ] {
        let mut none = scene(Standing::None, vec![candidate("a"), candidate("b")]);
        none.badged = vec![badge.clone()];
        none.lost = vec![lost_one];
        let course = contending(none, DELETE, at(10));
        assert_eq!(stripped(&course), [(&*badge.pod, delete)], "{badge:?}");
    }
}

#[test]
fn a_pod_that_may_carry_the_lost_token_is_deleted_though_the_cache_does_not_know() {
    for seen in [vec![], vec![badged("a", "39")]] {
        let mut none = scene(Standing::None, vec![candidate("a")]);
        (none.badged, none.worn) = (seen, vec![worn("a", "41", None)]);
        none.lost = vec![lost("a", "41")];
        assert_eq!(stripped(&contending(none, DELETE, at(10))), [("a", true)]);
    }
}

#[test]
fn a_loss_that_another_tenure_followed_at_once_is_not_overlooked() {
    let mut again = scene(held(Some("a")), vec![candidate("a"), candidate("b")]);
    again.badged = vec![badged("a", "40")];
    again.lost = vec![lost("a", "40")];
    let course = contending(again, DELETE, at(10));
    assert_eq!((stripped(&course), &course.dress), (vec![("a", true)], &None));
    let mut unlabel = scene(held(Some("a")), vec![candidate("a")]);
    unlabel.badged = vec![badged("a", "40")];
    unlabel.lost = vec![lost("a", "40")];
    let course = course_of(unlabel);
    assert_eq!(stripped(&course), [], "it may lead on, with another token");
    assert_eq!(course.dress.unwrap().token.get(), 41);
}

// ---- standing by ----

#[test]
fn a_claim_that_stands_by_or_may_nothing_takes_everything_back() {
    let led = || {
        let mut led = scene(held(Some("a")), vec![candidate("a")]);
        led.badged = vec![badged("a", "41")];
        led.traffic.own = vec![filled("a")];
        led
    };
    let paused = with(led(), |settings| May::StandBy(settings));
    assert_eq!(wanted(&paused), Some((None, EndReason::Paused)));
    assert_eq!(stripped(&paused), [("a", false)]);
    assert_eq!(retreats(&paused), ["empty consullock-billing-ipv4"], "the slice stays for later");
    let deleted = with(led(), |_| May::Nothing);
    assert_eq!((&deleted.stance, stripped(&deleted)), (&None, vec![("a", false)]));
    assert_eq!(retreats(&deleted), ["delete consullock-billing-ipv4"]);
    assert_eq!(deleted.told, Told::default());
}

// ---- what was lost ----

#[test]
fn losses_are_those_of_the_keepers_of_the_clock_and_of_the_status() {
    use crate::{
        controller::{
            electorate,
            sample::{claim_with_status, ended, held_status, holding},
        },
        keeper::{EndedTenure, LockView},
    };
    let of_pod =
        |token, pod: &str, reason| EndedTenure { pod: Some(pod.into()), ..ended(token, reason) };
    let mut view = holding(41);
    view.ended = Arc::new(vec![
        of_pod(38, "a", EndReason::PodDied),
        of_pod(39, "b", EndReason::KeyTaken),
        ended(40, EndReason::Expired),
    ]);
    if let LockView::Held { leader: tenant, .. } = &mut view.lock {
        *tenant = Some(Arc::new(leader("c")));
    }
    let past = |holder: &str, token: &str, reason: &str| {
        json!({
            "holder": holder, "token": token, "reason": reason,
            "from": "2026-01-02T03:04:05Z", "to": "2026-01-02T03:05:05Z",
        })
    };
    let mut status = held_status();
    status["history"] = json!([past("shop/d", "37", "Expired"), past("shop/e", "36", "Preempted")]);
    let claim = claim_with_status("{}", status);
    let at = |second| electorate::lost(Some(&view), None, claim.status.as_ref(), at(second));
    assert_eq!(at(99), [lost("b", "39"), lost("d", "37")]);
    assert_eq!(at(100), [lost("c", "41"), lost("b", "39"), lost("d", "37")], "valid until");
}
