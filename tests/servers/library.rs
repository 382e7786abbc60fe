//! The crate as other programs use it, with a real Consul.

use std::{future::Future, time::Duration};

use consul_lock::{
    AcquireError, Connection, Held, LockDelay, Locks, Name, Prefix, Settings, Ttl, clock::Clock,
};
use serde_json::Value;
use testbed::{Fault, Proxy};

use crate::fixtures::{LOCK_FLAGS, PATIENCE, guarded_consul, shared_consul, unique};

const S: Duration = Duration::from_secs(1);
/// Long enough for a few things to be done under it.
const QUICK: Duration = Duration::from_secs(2);

/// A prefix of its own, and who holds locks under it.
struct Place {
    name: String,
    key: String,
}

impl Place {
    fn new(what: &str) -> Place {
        let name = unique(what);
        Place { key: format!("{name}/lock"), name }
    }

    fn settings(&self) -> Settings {
        Settings::new(Prefix::new(&format!("{}/", self.name)).unwrap())
            .name(Name::new(&self.name).unwrap())
    }

    fn locks(&self) -> Locks {
        Locks::connect(Connection::to(shared_consul().address()), self.settings()).unwrap()
    }

    fn pair(&self) -> Value {
        let path = format!("/v1/kv/{}?consistent", self.key);
        shared_consul().request("GET", &path, b"").unwrap().json()[0].clone()
    }

    fn is_held(&self) -> bool {
        !self.pair()["Session"].is_null()
    }

    /// The IDs of all sessions of this place's holders.
    fn sessions(&self) -> Vec<String> {
        let path = "/v1/session/node/consul-lock-library?consistent";
        let sessions = shared_consul().request("GET", path, b"").unwrap().json();
        let is_ours = |session: &&Value| {
            session["Name"].as_str().unwrap().contains(&format!("/{}/", self.name))
        };
        let sessions = sessions.as_array().into_iter().flatten().filter(is_ours);
        sessions.map(|session| session["ID"].as_str().unwrap().to_owned()).collect()
    }
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = Clock::boot().timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let clock = Clock::boot();
    soon(what, async {
        while !done() {
            clock.sleep_until(clock.now() + S / 50).await;
        }
    })
    .await;
}

fn relied_on(held: &Held) -> bool {
    let asked = [held.token().is_some(), held.valid_until().is_some(), !held.remaining().is_zero()];
    assert!(asked.iter().all(|one| *one == asked[0]), "{held:?}");
    asked[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_is_what_consul_says_and_its_token_rises() {
    let place = Place::new("face");
    let locks = place.locks();
    let mut last = 0;
    for _ in 0..3 {
        let held = soon("the lock", locks.acquire(&place.key)).await.unwrap();
        let pair = place.pair();
        let token = held.token().unwrap().get();
        assert_eq!(
            (pair["ModifyIndex"].as_u64(), &pair["Flags"]),
            (Some(token), &LOCK_FLAGS.into())
        );
        assert!(token > last, "{token} after {last}");
        assert_eq!(place.sessions(), [pair["Session"].as_str().unwrap()]);
        assert!(held.remaining() <= Ttl::DEFAULT.get() && held.remaining() > 5 * S, "{held:?}");
        last = token;
        held.release().await.unwrap();
        assert!(!place.is_held());
    }
    locks.close().await.unwrap();
    assert_eq!(place.sessions(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_ends_at_valid_until_when_everything_is_silent() {
    let place = Place::new("silence");
    let proxy = Proxy::tcp(shared_consul().http()).unwrap();
    let connection = Connection::to(proxy.address().to_string());
    let settings = place.settings().ttl(Ttl::new(QUICK).unwrap());
    let locks = Locks::connect(connection, settings).unwrap();
    let held = soon("the lock", locks.acquire(&place.key)).await.unwrap();
    let lost = held.lost();
    proxy.set(Fault::Blackhole);
    let (clock, mut last) = (Clock::boot(), None);
    soon("its end", async {
        let mut lost = std::pin::pin!(lost);
        loop {
            // Read before the token is: at the end it may be a moment too early, never too late.
            last = held.valid_until().or(last);
            tokio::select! {
                () = &mut lost => return,
                () = clock.sleep_until(clock.now() + S / 500) => {}
            }
        }
    })
    .await;
    let (now, end) = (clock.now(), last.unwrap());
    assert!(now >= end && now.since(end) < S, "{now:?} is not {end:?}");
    assert!(!relied_on(&held));
    soon("a second look", held.lost()).await;
    let error = held.release().await.unwrap_err();
    assert!(error.to_string().contains(&place.key), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_ends_at_once_with_its_session_and_is_not_taken_up_again() {
    let place = Place::new("destroyed");
    let settings = place.settings().lock_delay(LockDelay::new(Duration::ZERO).unwrap());
    let connection = Connection::to(shared_consul().address());
    let locks = Locks::connect(connection, settings.ttl(Ttl::new(60 * S).unwrap())).unwrap();
    let held = soon("the lock", locks.acquire(&place.key)).await.unwrap();
    let first = held.token().unwrap();
    let path = format!("/v1/session/destroy/{}", place.sessions()[0]);
    assert!(shared_consul().request("PUT", &path, b"").unwrap().ok());
    soon("its end", held.lost()).await;
    assert!(!relied_on(&held));
    // Whoever still has it does not keep the key from the next one, of this process or another.
    let other = place.locks();
    let second = soon("the next", other.acquire(&place.key)).await.unwrap();
    assert!(second.token().unwrap() > first && !relied_on(&held));
    second.release().await.unwrap();
    held.release().await.unwrap();
    let third = soon("a session of its own", locks.acquire(&place.key)).await.unwrap();
    third.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn acquisition_that_is_dropped_leaves_no_lock_at_any_moment() {
    let place = Place::new("dropped");
    let (first, second) = (place.locks(), place.locks());
    let held = soon("the lock", first.acquire(&place.key)).await.unwrap();
    let waits = second.acquire(&place.key);
    tokio::select! {
        acquired = waits => panic!("two at once: {acquired:?}"),
        () = until("a second session", || place.sessions().len() == 2) => {}
    }
    held.release().await.unwrap();
    // Soon enough for some to be dropped before their request, and for some after its answer.
    let clock = Clock::boot();
    for step in 0..40 {
        let span = Duration::from_micros(100 * step);
        drop(clock.timeout(span, first.acquire(&place.key)).await);
    }
    let held = soon("the lock", second.acquire(&place.key)).await.unwrap();
    assert!(relied_on(&held));
    held.release().await.unwrap();
    second.close().await.unwrap();
    first.close().await.unwrap();
    assert!(!place.is_held());
    assert_eq!(place.sessions(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_lock_is_released_in_the_background() {
    let place = Place::new("let-go");
    let locks = place.locks();
    let held = soon("the lock", locks.acquire(&place.key)).await.unwrap();
    let lost = held.lost();
    drop(held);
    soon("its end", lost).await;
    // Without a release the lock-delay would be in the way.
    until("the key to be free", || !place.is_held()).await;
    let other = place.locks();
    let next = soon("the next", other.try_acquire(&place.key)).await.unwrap();
    next.release().await.unwrap();
    // With everything else gone nothing is sent.
    let held = soon("the lock", locks.acquire(&place.key)).await.unwrap();
    drop((locks, held));
    assert!(place.is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_want_to_wait_need_not() {
    let place = Place::new("wait");
    let (first, second) = (place.locks(), place.locks());
    let held = soon("the lock", first.acquire(&place.key)).await.unwrap();
    for locks in [&first, &second] {
        let refused = soon("an answer", locks.try_acquire(&place.key)).await;
        assert!(matches!(refused, Err(AcquireError::NotFree(_))), "{refused:?}");
        let refused = soon("an answer", locks.acquire_within(&place.key, S / 4)).await;
        assert!(matches!(refused, Err(AcquireError::TimedOut { .. })), "{refused:?}");
    }
    // Of those who wait in one process the first is served first.
    let order = parking_lot::Mutex::new(Vec::new());
    let next = async |name| {
        let held = first.acquire(&place.key).await.unwrap();
        order.lock().push(name);
        held.release().await.unwrap();
    };
    let all = async {
        tokio::join!(biased; next(1), next(2), next(3), async {
            held.release().await.unwrap();
        })
    };
    soon("all of them", all).await;
    assert_eq!(*order.lock(), [1, 2, 3]);
    soon("the other process", second.acquire_within(&place.key, PATIENCE)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() {
    let place = Place::new("wrong");
    let locks = place.locks();
    let said = |result: Result<Held, AcquireError>| result.unwrap_err().to_string();
    assert!(said(locks.acquire("a//b").await).contains("may be empty"));
    let elsewhere = said(locks.acquire("elsewhere/lock").await);
    assert!(elsewhere.contains(&place.name), "{elsewhere}");

    let through =
        |address: String, settings| Locks::connect(Connection::to(address), settings).unwrap();
    let nobody = through("127.0.0.1:1".to_owned(), place.settings());
    let refused = soon("an answer", nobody.try_acquire(&place.key)).await;
    assert!(matches!(refused, Err(AcquireError::Unreachable(_))), "{refused:?}");
    let refused = soon("an answer", nobody.acquire_within(&place.key, S)).await;
    assert!(matches!(refused, Err(AcquireError::Unreachable(_))), "{refused:?}");
    let guarded = through(guarded_consul().address(), place.settings());
    let refused = soon("an answer", guarded.acquire(&place.key)).await;
    assert!(matches!(refused, Err(AcquireError::Denied(_))), "{refused:?}");
}

#[test]
fn without_a_runtime_it_says_so() {
    let place = Place { name: "nowhere".to_owned(), key: String::new() };
    let error = Locks::connect(Connection::to("127.0.0.1:1"), place.settings()).unwrap_err();
    assert!(error.to_string().contains("tokio runtime"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_locks_of_a_process_cost_one_session() {
    let place = Place::new("many");
    let locks = place.locks();
    let keys: Vec<_> = (0..50).map(|number| format!("{}/{number}", place.name)).collect();
    let all = futures::future::join_all(keys.iter().map(|key| locks.acquire(key)));
    let held = soon("all of them", all).await;
    assert!(held.iter().all(|one| relied_on(one.as_ref().unwrap())));
    assert_eq!(place.sessions().len(), 1);
    locks.close().await.unwrap();
    assert!(held.iter().all(|one| !relied_on(one.as_ref().unwrap())));
    assert_eq!(place.sessions(), Vec::<String>::new());
}
