use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::*;
use crate::{
    controller::{
        electorate::Standing,
        sample::{at, claim, claim_with_status, config, electorate, held_status, wall},
        tenancy::NamespaceSeen,
    },
    keeper::RecordedTenure,
    names::FencingToken,
};

fn seen(object: ConsulLock) -> Seen {
    let recorded = recorded::of(&object, &config()).and_then(|known| known.tenure);
    Seen {
        id: ClaimId("uid-1".into()),
        settings: object.spec.settings(),
        electorate: electorate(Standing::of(None, recorded, at(2))),
        object: Arc::new(object),
        namespace: NamespaceSeen::Annotated(None),
        view: None,
        stop: None,
        since: at(1),
    }
}

fn planned(seen: Seen) -> ClaimPlan {
    let observed =
        Observed { claim: Some(seen), former: Vec::new(), orphans: Vec::new(), now: at(2) };
    plan(&observed, &config()).claim.unwrap()
}

fn stopping(mut seen: Seen, stop: StopState) -> Seen {
    seen.stop = Some(stop);
    seen
}

fn deleted(mut claim: ConsulLock) -> ConsulLock {
    claim.metadata.deletion_timestamp = Some(Time(wall(0)));
    claim
}

fn is_paused(wanted: &Wanted) -> bool {
    matches!(wanted.stance, Stance::StandBy(_))
}

#[track_caller]
fn set(plan: ClaimPlan) -> (Wanted, Option<Recorded>) {
    match plan.keepers {
        KeepersStep::Set(wanted, recorded) => (*wanted, recorded),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_claim_gets_its_finalizer_and_then_keepers() {
    let mut claim = claim("{session: {ttl: 20s}, value: hello}");
    claim.metadata.finalizers = Some(vec!["other/one".to_owned()]);
    let plan = planned(seen(claim));
    assert_eq!(plan.finalizer, FinalizerStep::Add);
    let (wanted, recorded) = set(plan);
    assert_eq!(recorded, None);
    assert_eq!(wanted.key.as_str(), "consul-lock/shop/billing");
    assert_eq!(&*wanted.prefix, "consul-lock/");
    assert_eq!(wanted.session.name.as_str(), "consul-lock/west/uid-1");
    assert_eq!(wanted.session.node.as_str(), "consul-lock-west-shop");
    assert_eq!(wanted.session.ttl, Duration::from_secs(20));
    assert_eq!(wanted.payload.holder, "shop/billing");
    assert_eq!((is_paused(&wanted), wanted.attempt), (false, 3));
}

#[test]
fn what_an_earlier_controller_recorded_is_handed_on_when_keepers_start() {
    let object = claim_with_status("{}", held_status());
    let (_, recorded) = set(planned(seen(object.clone())));
    let recorded = recorded.unwrap();
    assert_eq!(recorded.session.as_str(), "s-1");
    let since = "2026-01-02T03:04:05Z".parse().unwrap();
    let token = FencingToken::new(41);
    assert_eq!(recorded.tenure, Some(RecordedTenure { token, since, leader: None }));
    let running = stopping(seen(object), StopState::Running);
    assert_eq!(set(planned(running)).1, None, "only when they start");
}

#[test]
fn a_tenure_that_an_earlier_controller_could_not_confirm_is_handed_on() {
    let mut status = held_status();
    status["phase"] = json!("Unknown");
    let (_, recorded) = set(planned(seen(claim_with_status("{}", status.clone()))));
    assert!(recorded.unwrap().tenure.is_some());
    status.as_object_mut().unwrap().remove("fencingToken");
    let (_, recorded) = set(planned(seen(claim_with_status("{}", status))));
    assert_eq!(recorded.unwrap().tenure, None, "it was lost");
}

#[test]
fn a_tenure_of_somebody_else_is_not_handed_on() {
    for (field, value) in [
        ("phase", json!("Waiting")),
        ("fencingToken", json!("many")),
        ("holder", json!({"identity": "shop/billing", "cluster": "east"})),
        ("holder", json!({"identity": "shop/billing", "cluster": "west", "stranger": true})),
    ] {
        let mut status = held_status();
        status[field] = value;
        let (_, recorded) = set(planned(seen(claim_with_status("{}", status))));
        assert_eq!(recorded.unwrap().tenure, None, "{field}");
    }
}

#[test]
fn a_key_outside_the_tenancy_starts_nothing_and_stops_what_runs() {
    let object = claim("{key: shared/billing}");
    let plan = planned(seen(object.clone()));
    assert_eq!(plan.keepers, KeepersStep::Leave);
    assert!(matches!(plan.judged.judgement, Judgement::NotAllowed { .. }));
    for (stop, step) in [
        (StopState::Running, KeepersStep::Stop),
        (StopState::Stopping, KeepersStep::Leave),
        (StopState::Clean, KeepersStep::Forget),
        (StopState::Abandoned, KeepersStep::Forget),
    ] {
        assert_eq!(planned(stopping(seen(object.clone()), stop)).keepers, step);
    }
    let mut status = held_status();
    status["key"] = json!("shared/billing");
    let left = planned(seen(claim_with_status("{key: shared/billing}", status)));
    let KeepersStep::GiveUp(wanted, recorded) = left.keepers else {
        panic!("{left:?}");
    };
    assert_eq!((wanted.key.as_str(), &*wanted.prefix), ("shared/billing", "shared/"));
    assert_eq!(recorded.session.as_str(), "s-1");
}

#[test]
fn a_prefix_of_the_namespace_is_watched_for_the_keys_under_it() {
    let mut seen = seen(claim("{key: shared/billing}"));
    seen.namespace = NamespaceSeen::Annotated(Some("jobs/,shared/".to_owned()));
    assert_eq!(&*set(planned(seen)).0.prefix, "shared/");
}

#[test]
fn an_unseen_namespace_neither_starts_nor_stops_anything() {
    let unseen = |object| Seen { namespace: NamespaceSeen::Unknown, ..seen(object) };
    let fresh = planned(unseen(claim("{key: shared/billing}")));
    assert_eq!(fresh.keepers, KeepersStep::Leave);
    assert_eq!(fresh.finalizer, FinalizerStep::Keep);
    let running = stopping(unseen(claim("{key: shared/billing}")), StopState::Running);
    assert_eq!(planned(running).keepers, KeepersStep::Leave);
    let mut status = held_status();
    status["key"] = json!("shared/billing");
    let held = unseen(claim_with_status("{key: shared/billing}", status));
    let (wanted, recorded) = set(planned(held));
    assert_eq!(&*wanted.prefix, "shared/");
    assert!(recorded.unwrap().tenure.is_some(), "an earlier controller saw it");
}

#[test]
fn a_session_recorded_for_another_key_is_given_up_before_the_new_key_is_wanted() {
    let mut status = held_status();
    status["key"] = json!("former-prefix/shop/billing");
    let object = claim_with_status("{}", status);
    let plan = planned(seen(object.clone()));
    let KeepersStep::GiveUp(wanted, recorded) = &plan.keepers else { panic!("{plan:?}") };
    assert_eq!(wanted.key.as_str(), "former-prefix/shop/billing");
    assert_eq!(recorded.session.as_str(), "s-1");
    let shown = plan.judged.judgement.key().unwrap();
    assert_eq!(shown.as_str(), "former-prefix/shop/billing", "till then the status tells of it");
    let waits = planned(stopping(seen(object.clone()), StopState::Stopping));
    assert_eq!(waits.keepers, KeepersStep::Leave);
    for stop in [StopState::Clean, StopState::Abandoned] {
        let plan = planned(stopping(seen(object.clone()), stop));
        let KeepersStep::Restart(wanted) = plan.keepers else { panic!("{plan:?}") };
        assert_eq!(wanted.key.as_str(), "consul-lock/shop/billing");
    }
    let (wanted, _) = set(planned(stopping(seen(object), StopState::Running)));
    assert_eq!(wanted.key.as_str(), "consul-lock/shop/billing");
}

#[test]
fn an_invalid_spec_stops_what_runs() {
    let object = claim("{session: {ttl: 1s}}");
    let running = stopping(seen(object.clone()), StopState::Running);
    assert_eq!(planned(running).keepers, KeepersStep::Stop);
    let plan = planned(seen(object));
    assert_eq!(plan.keepers, KeepersStep::Leave);
    let Judgement::Invalid { problem } = plan.judged.judgement else {
        panic!("{:?}", plan.judged);
    };
    assert!(problem.contains("spec.session.ttl"), "{problem}");
}

#[test]
fn a_claim_that_gave_up_observes_until_its_spec_changes() {
    let condition = json!({
        "type": "Ready", "status": "False", "reason": "AcquireTimeout", "message": "m",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    });
    let status = |generation: i64, phase: &str| {
        json!({
            "observedGeneration": generation, "phase": phase, "conditions": [condition],
        })
    };
    let (wanted, _) = set(planned(seen(claim_with_status("{}", status(3, "Failed")))));
    assert!(is_paused(&wanted));
    for contends in [status(2, "Failed"), status(3, "Waiting")] {
        let (wanted, _) = set(planned(seen(claim_with_status("{}", contends))));
        assert!(!is_paused(&wanted));
    }
}

const AGENT: &str = "{mode: Agent, candidates: {selector: {matchLabels: {app: billing}}}}";

#[test]
fn the_key_of_a_claim_whose_pods_hold_it_is_followed_whatever_else_the_spec_says() {
    let follow = Stance::Follow { release: None };
    for spec in [AGENT, &AGENT.replace("mode", "paused: true, mode")] {
        let mut fresh = claim(spec);
        fresh.metadata.finalizers = None;
        let plan = planned(seen(fresh));
        assert_eq!(plan.finalizer, FinalizerStep::Add, "it may label a pod");
        assert_eq!(set(plan).0.stance, follow);
        let running = stopping(seen(claim(spec)), StopState::Running);
        assert_eq!(set(planned(running)).0.stance, follow);
    }
    // What the controller had itself is taken over, to be given up.
    let (wanted, recorded) = set(planned(seen(claim_with_status(AGENT, held_status()))));
    assert_eq!(wanted.stance, follow);
    assert!(recorded.unwrap().tenure.is_some());
}

#[test]
fn the_session_of_a_pod_s_own_is_neither_adopted_nor_given_up() {
    let mut status = held_status();
    status["mode"] = json!("Agent");
    for spec in [AGENT, "{}"] {
        let (_, recorded) = set(planned(seen(claim_with_status(spec, status.clone()))));
        assert_eq!(recorded, None, "{spec}");
    }
    let plan = planned(seen(deleted(claim_with_status(AGENT, status))));
    assert_eq!(plan.keepers, KeepersStep::Leave);
    assert_eq!(plan.finalizer, FinalizerStep::Remove { unclean: false });
}

#[test]
fn keepers_that_stopped_make_room_for_new_ones() {
    let stopped = planned(stopping(seen(claim("{}")), StopState::Clean));
    assert!(matches!(stopped.keepers, KeepersStep::Restart(_)));
    let stopping = planned(stopping(seen(claim("{}")), StopState::Stopping));
    assert_eq!(stopping.keepers, KeepersStep::Leave);
}

#[test]
fn a_deleted_claim_goes_after_its_release_whatever_its_spec() {
    const KEEP: FinalizerStep = FinalizerStep::Keep;
    const CLEAN: FinalizerStep = FinalizerStep::Remove { unclean: false };
    const UNCLEAN: FinalizerStep = FinalizerStep::Remove { unclean: true };
    for spec in ["{}", "{session: {ttl: 1s}}", "{key: not/allowed}"] {
        let object = deleted(claim(spec));
        for (stop, keepers, finalizer) in [
            (None, KeepersStep::Leave, CLEAN),
            (Some(StopState::Running), KeepersStep::Stop, KEEP),
            (Some(StopState::Stopping), KeepersStep::Leave, KEEP),
            (Some(StopState::Clean), KeepersStep::Forget, CLEAN),
            (Some(StopState::Abandoned), KeepersStep::Forget, UNCLEAN),
        ] {
            let mut seen = seen(object.clone());
            seen.stop = stop;
            let plan = planned(seen);
            assert_eq!((plan.keepers, plan.finalizer), (keepers, finalizer), "{stop:?}");
        }
    }
}

#[test]
fn a_deleted_claim_keeps_its_key_while_it_is_unknown_what_its_leader_has() {
    let mut status = held_status();
    status["holder"]["pod"] = json!("a");
    status["holder"]["uid"] = json!("uid-a");
    let object = deleted(claim_with_status("{}", status));
    for stop in [None, Some(StopState::Running)] {
        let mut blind = seen(object.clone());
        (blind.stop, blind.electorate.known) = (stop, false);
        let plan = planned(blind);
        let (keep, leave) = (FinalizerStep::Keep, KeepersStep::Leave);
        assert_eq!((plan.finalizer, plan.keepers), (keep, leave), "{stop:?}");
    }
}

#[test]
fn a_deleted_claim_of_an_earlier_controller_is_taken_over_to_be_released() {
    let object = deleted(claim_with_status("{session: {ttl: 1s}}", held_status()));
    let plan = planned(seen(object));
    assert_eq!(plan.finalizer, FinalizerStep::Keep);
    let KeepersStep::GiveUp(wanted, recorded) = plan.keepers else {
        panic!("{plan:?}");
    };
    assert_eq!(wanted.session.ttl, Duration::from_secs(20), "from the status");
    assert!(is_paused(&wanted) && recorded.tenure.is_some());
}

#[test]
fn a_deleted_claim_without_our_finalizer_is_left_to_others() {
    let mut object = deleted(claim_with_status("{}", held_status()));
    object.metadata.finalizers = Some(vec!["other/one".to_owned()]);
    let plan = planned(seen(object));
    assert_eq!((plan.finalizer, plan.keepers), (FinalizerStep::Keep, KeepersStep::Leave));
}

#[test]
fn keepers_of_former_claims_of_the_name_are_stopped_and_forgotten() {
    let observed = Observed {
        claim: None,
        former: vec![
            (ClaimId("a".into()), Some(StopState::Running)),
            (ClaimId("b".into()), Some(StopState::Stopping)),
            (ClaimId("c".into()), Some(StopState::Abandoned)),
            (ClaimId("d".into()), None),
        ],
        orphans: Vec::new(),
        now: at(1),
    };
    let plan = plan(&observed, &config());
    let steps: Vec<_> = plan.former.into_iter().map(|(_, step)| step).collect();
    let (stop, forget) = (FormerStep::Stop, FormerStep::Forget);
    assert_eq!(steps, [stop, FormerStep::Wait, forget, forget]);
}
