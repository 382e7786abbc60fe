//! Sessions that nobody keeps, and that are renewed all the same.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A contender that holds the key and is dropped; the vigil over its session.
async fn bereaved(lab: &Lab) -> (Vigil<FakeConsul>, SessionId, Arc<AtomicBool>) {
    let one = lab.contender("one");
    one.holds(lab).await;
    let session = one.session();
    let bequests = one.keepers.bequests();
    assert_eq!(bequests.len(), 1);
    drop(one);
    let relieved = Arc::<AtomicBool>::default();
    let told = Arc::clone(&relieved);
    let relief = Arc::new(move || told.load(Ordering::Relaxed));
    let vigil = Vigil::new(lab.consul.clone(), lab.clock.clone(), Arc::new(|| 0.5), relief);
    vigil.keep(bequests);
    (vigil, session, relieved)
}

fn lives(lab: &Lab, session: &SessionId) -> bool {
    lab.pair().session.as_ref() == Some(session)
}

#[tokio::test(start_paused = true)]
async fn a_session_outlives_its_term_and_is_adopted_as_it_was() {
    let lab = Lab::new();
    let one = lab.contender("one");
    let token = one.holds(&lab).await;
    let (recorded, bequests) = (one.recorded(), one.keepers.bequests());
    drop(one);
    let nobody = Arc::new(|| false);
    let vigil = Vigil::new(lab.consul.clone(), lab.clock.clone(), Arc::new(|| 0.5), nobody);
    vigil.keep(bequests);
    lab.pass(TTL * 10).await;
    let two = lab.contender("one");
    two.keepers.set(&two.id, two.wanted.clone(), Some(recorded));
    lab.until(MOMENT, "the adoption", || two.token() == Some(token)).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_vigil_it_does_not() {
    let lab = Lab::new();
    let one = lab.contender("one");
    one.holds(&lab).await;
    let session = one.session();
    drop(one);
    lab.pass(TTL * 3).await;
    assert!(!lives(&lab, &session));
}

#[tokio::test(start_paused = true)]
async fn a_vigil_ends_when_somebody_else_leads() {
    let lab = Lab::new();
    let (_vigil, session, relieved) = bereaved(&lab).await;
    lab.pass(TTL * 10).await;
    assert!(lives(&lab, &session));
    relieved.store(true, Ordering::Relaxed);
    lab.pass(TTL * 3).await;
    assert!(!lives(&lab, &session));
}

#[tokio::test(start_paused = true)]
async fn a_vigil_ends_with_its_session_and_with_whoever_keeps_it() {
    let lab = Lab::new();
    let (vigil, session, _) = bereaved(&lab).await;
    lab.pass(TTL).await;
    lab.consul.destroy_session(&session).await.unwrap();
    lab.pass(TTL).await;
    assert!(lab.consul.sessions().is_empty());
    drop(vigil);

    let lab = Lab::new();
    let (vigil, session, _) = bereaved(&lab).await;
    drop(vigil);
    lab.pass(TTL * 3).await;
    assert!(!lives(&lab, &session));
}

#[tokio::test(start_paused = true)]
async fn a_vigil_does_not_last_for_ever() {
    let lab = Lab::new();
    let (_vigil, session, _) = bereaved(&lab).await;
    lab.pass(LIMIT - S).await;
    assert!(lives(&lab, &session));
    lab.pass(TTL * 3).await;
    assert!(!lives(&lab, &session));
}
