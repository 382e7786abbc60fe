//! One session for all claims of a process.

use super::*;

/// A process whose claims share a session called `name`.
fn sharing(lab: &Lab, name: &str) -> Contender {
    let mut process = lab.contender(name);
    process.wanted.acquire.single = true;
    let session = process.wanted.session.clone();
    process.keepers = process.keepers.sharing(session, &"lab/".into());
    process
}

impl Contender {
    /// Contends for another key, under the id of the same name.
    fn wants(&self, key: &str) -> Follower {
        let id = ClaimId(key.into());
        let wanted = Wanted { key: Key::new(key).unwrap(), ..self.wanted.clone() };
        self.keepers.set(&id, wanted, None);
        self.keepers.follow(&id).unwrap()
    }

    /// As whoever drops a lock does.
    fn dismiss(&self, key: &str) {
        let id = ClaimId(key.into());
        self.keepers.stop(&id);
        self.keepers.forget(&id);
    }

    async fn holds_all(&self, lab: &Lab, keys: &[&str]) -> Vec<Follower> {
        let followers: Vec<_> = keys.iter().map(|key| self.wants(key)).collect();
        for follower in &followers {
            let holds = || follower.view().token(self.clock.now()).is_some();
            lab.until(MOMENT, "a token", holds).await;
        }
        followers
    }
}

fn holder_of(lab: &Lab, key: &str) -> Option<SessionId> {
    lab.consul.peek(&Key::new(key).unwrap()).and_then(|pair| pair.session)
}

#[tokio::test(start_paused = true)]
async fn many_locks_have_one_session_and_its_renewals() {
    let lab = Lab::new();
    let process = sharing(&lab, "many");
    let keys = ["lab/a", "lab/b", "lab/c"];
    let held = process.holds_all(&lab, &keys).await;
    lab.pass(10 * TTL).await;
    assert!(held.iter().all(|one| one.view().token(lab.now()).is_some()));
    let ids: Vec<_> = keys.iter().map(|key| holder_of(&lab, key)).collect();
    assert!(ids[0].is_some() && ids.iter().all(|id| *id == ids[0]));
    assert_eq!(process.line.sent(Operation::CreateSession).len(), 1);
    assert!(process.line.sent(Operation::RenewSession).len() < 40, "as of one");

    process.dismiss("lab/a");
    lab.until(MOMENT, "a release", || holder_of(&lab, "lab/a").is_none()).await;
    assert!(held[1].view().token(lab.now()).is_some(), "the others stay");
    assert!(process.keepers.close().await);
    assert_eq!(holder_of(&lab, "lab/b"), None);
    assert_eq!(lab.sessions_named("many").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn key_that_we_gave_up_ourselves_is_acquired_again_with_one_call() {
    let lab = Lab::new();
    let process = sharing(&lab, "again");
    process.holds_all(&lab, &["lab/a"]).await;
    for _ in 0..5 {
        process.dismiss("lab/a");
        lab.until(MOMENT, "a release", || holder_of(&lab, "lab/a").is_none()).await;
        let begin = lab.now();
        process.holds_all(&lab, &["lab/a"]).await;
        let calls = process.line.sent_since(begin);
        let calls = calls.into_iter().filter(|call| *call != Operation::WatchPrefix);
        assert_eq!(calls.collect::<Vec<_>>(), [Operation::Transaction]);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_relies_on_a_shared_session_at_its_valid_until() {
    let lab = Lab::new();
    let process = sharing(&lab, "silence");
    let held = process.holds_all(&lab, &["lab/a", "lab/b"]).await;
    lab.pass(TTL).await;
    let until = held[0].view().session.valid_until.unwrap();
    process.line.cut(4 * TTL);
    lab.pass((until - MS).since(lab.now())).await;
    assert!(held.iter().all(|one| one.view().token(lab.now()).is_some()));
    lab.pass(MS).await;
    assert!(held.iter().all(|one| one.view().token(lab.now()).is_none()));
    let first = holder_of(&lab, "lab/a");

    // A tenure that was lost is not taken up again; a new claim gets a session of its own time.
    lab.pass(5 * TTL).await;
    assert!(held.iter().all(|one| one.view().token(lab.now()).is_none()));
    assert!(held.iter().all(|one| one.view().lock == LockView::Standby));
    process.holds_all(&lab, &["lab/c"]).await;
    assert_ne!(holder_of(&lab, "lab/c"), first);
    assert_eq!(lab.sessions_named("silence").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn shared_session_that_consul_ended_ends_every_tenure_and_is_followed_by_another() {
    let lab = Lab::new();
    let process = sharing(&lab, "ended");
    let held = process.holds_all(&lab, &["lab/a", "lab/b"]).await;
    let session = held[0].view().session.id.unwrap();
    lab.consul.destroy_session(&session).await.unwrap();
    let nobody = || held.iter().all(|one| one.view().token(lab.now()).is_none());
    lab.until(MOMENT, "nobody to rely on it", nobody).await;
    process.holds_all(&lab, &["lab/c"]).await;
    assert_ne!(holder_of(&lab, "lab/c"), Some(session));
}

#[tokio::test(start_paused = true)]
async fn trouble_with_the_shared_session_is_shown_to_every_lock() {
    let lab = Lab::new();
    let process = lab.contender("denied");
    process.line.every(Operation::CreateSession, Fate::Refuse(Class::Denied));
    let session = process.wanted.session.clone();
    let process =
        Contender { keepers: process.keepers.sharing(session, &"lab/".into()), ..process };
    let (first, second) = (process.wants("lab/a"), process.wants("lab/b"));
    let class = |one: &Follower| one.view().trouble.map(|trouble| trouble.class);
    let both = || [&first, &second].into_iter().all(|one| class(one) == Some(Class::Denied));
    lab.until(S, "trouble", both).await;
    let late = process.wants("lab/c");
    lab.until(MOMENT, "trouble", || class(&late) == Some(Class::Denied)).await;
    process.line.mend();
    process.holds_all(&lab, &[]).await;
    let held = || first.view().token(lab.now()).is_some();
    lab.until(12 * S, "a token", held).await;
    assert_eq!(class(&first), None);
}

#[tokio::test(start_paused = true)]
async fn turn_is_over_only_when_nothing_is_under_way_any_more() {
    let lab = Lab::new();
    let process = sharing(&lab, "turn");
    process.holds_all(&lab, &["lab/other"]).await;
    process.line.next(Operation::Transaction, Fate::Slow(2 * S));
    let (until, over) = tokio::sync::oneshot::channel::<()>();
    let id = ClaimId("lab/a".into());
    let wanted = Wanted { key: Key::new("lab/a").unwrap(), ..process.wanted.clone() };
    process.keepers.set_until(&id, wanted, None, until);
    lab.until(MOMENT, "the key", || holder_of(&lab, "lab/a").is_some()).await;
    // Given up before the answer came: whoever is next has to wait for the release.
    process.dismiss("lab/a");
    assert!(over.await.is_err());
    assert_eq!(holder_of(&lab, "lab/a"), None);
}
