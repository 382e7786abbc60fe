//! Several replicas against an API server of a few lines, in paused time: slow, deaf, forgetful,
//! and with replicas that freeze.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
};

use futures::future::poll_fn;
use http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
};

use super::*;

const MS: Duration = Duration::from_millis(1);

/// The API server: one Lease, optimistic locking, and trouble while `faulty`.
#[derive(Clone)]
struct Server(Arc<Mutex<Inner>>);

struct Inner {
    lease: Option<Value>,
    version: u64,
    writes: u64,
    rng: SmallRng,
    faulty: bool,
    /// Requests go on when their sender has given up, as they do in life.
    underway: JoinSet<()>,
}

impl Server {
    fn new(seed: u64) -> Server {
        Server(Arc::new(Mutex::new(Inner {
            lease: None,
            version: 0,
            writes: 0,
            rng: SmallRng::seed_from_u64(seed),
            faulty: false,
            underway: JoinSet::new(),
        })))
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "test")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let (reply, replied) = oneshot::channel();
        {
            let mut inner = self.0.lock();
            let faulty = inner.faulty;
            let mut after = |likely: f64| match inner.rng.random_bool(likely) {
                true => MS * inner.rng.random_range(200..9000),
                false => MS * inner.rng.random_range(1..20),
            };
            let (there, back) =
                (after(if faulty { 0.3 } else { 0.0 }), after(if faulty { 0.3 } else { 0.0 }));
            let server = self.clone();
            inner.underway.spawn(async move {
                tokio::time::sleep(there).await;
                let answer = server.carry_out(&parts.method, &body);
                tokio::time::sleep(back).await;
                let _ = reply.send(answer);
            });
            while inner.underway.try_join_next().is_some() {}
        }
        replied.await.unwrap()
    }

    fn carry_out(&self, method: &Method, body: &[u8]) -> Response<Body> {
        let mut inner = self.0.lock();
        let version = inner.lease.as_ref().map(|l| l["metadata"]["resourceVersion"].clone());
        let mut sent: Value = serde_json::from_slice(body).unwrap_or_default();
        match (method, version) {
            (&Method::GET | &Method::PUT, None) => return refusal(404, "NotFound"),
            (&Method::GET, Some(_)) => {}
            (&Method::POST, Some(_)) => return refusal(409, "AlreadyExists"),
            (&Method::PUT, Some(version)) if version != sent["metadata"]["resourceVersion"] => {
                return refusal(409, "Conflict");
            }
            (&Method::POST | &Method::PUT, _) => {
                inner.version += 1;
                inner.writes += 1;
                sent["metadata"]["resourceVersion"] = json!(inner.version.to_string());
                inner.lease = Some(sent);
            }
            (other, _) => panic!("unexpected {other}"),
        }
        Response::new(Body::from(inner.lease.as_ref().unwrap().to_string().into_bytes()))
    }

    fn lease(&self) -> LeaseSpec {
        let lease = self.0.lock().lease.clone().unwrap();
        serde_json::from_value(lease["spec"].clone()).unwrap()
    }

    fn delete(&self) {
        self.0.lock().lease = None;
    }

    /// All that it holds, to be set back to.
    fn back_up(&self) -> (Option<Value>, u64) {
        let inner = self.0.lock();
        (inner.lease.clone(), inner.version)
    }

    fn set_back(&self, (lease, version): (Option<Value>, u64)) {
        let mut inner = self.0.lock();
        (inner.lease, inner.version) = (lease, version);
    }

    fn faulty(&self, faulty: bool) {
        self.0.lock().faulty = faulty;
    }
}

fn refusal(code: u16, reason: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": reason, "reason": reason, "code": code});
    let mut response = Response::new(Body::from(status.to_string().into_bytes()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

/// One running replica.
struct Replica {
    leadership: Leadership,
    frozen: Arc<AtomicBool>,
    /// Whether the leader's work is running.
    works: watch::Receiver<bool>,
    stop: Option<oneshot::Sender<()>>,
}

struct Group {
    server: Server,
    clock: Clock,
    replicas: Vec<Replica>,
    tasks: JoinSet<Ended<()>>,
}

/// Says that the work runs, until it is dropped.
struct Working(watch::Sender<bool>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

impl Group {
    fn new(seed: u64) -> Group {
        Group {
            server: Server::new(seed),
            clock: Clock::simulated(),
            replicas: Vec::new(),
            tasks: JoinSet::new(),
        }
    }

    fn start(&mut self, timings: Timings) -> usize {
        let me = format!("replica-{}", self.replicas.len());
        let client = self.server.client();
        let mut replica = Replicas::new(client, "test", "lease", &me, timings, self.clock.clone());
        replica.rng = SmallRng::seed_from_u64(self.replicas.len() as u64);
        let (stop, stopped) = oneshot::channel();
        let (running, works) = watch::channel(false);
        let frozen = Arc::new(AtomicBool::new(false));
        self.replicas.push(Replica {
            leadership: replica.leadership(),
            frozen: Arc::clone(&frozen),
            works,
            stop: Some(stop),
        });
        let run = replica.run(
            move || {
                let working = Working(running.clone());
                working.0.send_replace(true);
                async move {
                    let _working = working;
                    std::future::pending().await
                }
            },
            async { drop(stopped.await) },
        );
        self.tasks.spawn(freezable(frozen, run));
        self.replicas.len() - 1
    }

    fn stop(&mut self, replica: usize) {
        // Whoever drops the sender says stop.
        self.replicas[replica].stop = None;
    }

    fn leaders(&self) -> Vec<usize> {
        let acting = |r: &Replica| r.leadership.may_act();
        (0..self.replicas.len()).filter(|i| acting(&self.replicas[*i])).collect()
    }

    /// Waits until somebody leads, and says who and how long that took.
    async fn leader_within(&self, limit: Duration) -> (usize, Duration) {
        let start = self.clock.now();
        loop {
            match self.leaders()[..] {
                [leader] => return (leader, self.clock.now().since(start)),
                [] => {}
                _ => panic!("two leaders"),
            }
            let waited = self.clock.now().since(start);
            assert!(waited <= limit, "no leader after {waited:?}");
            tokio::time::sleep(10 * MS).await;
        }
    }
}

/// `work`, which does not move while `frozen`, as under SIGSTOP.
async fn freezable<T>(frozen: Arc<AtomicBool>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        let moved = poll_fn(|cx| {
            if frozen.load(Ordering::Relaxed) {
                return Poll::Ready(None);
            }
            work.as_mut().poll(cx).map(Some)
        });
        match moved.await {
            Some(done) => return done,
            None => tokio::time::sleep(10 * MS).await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_lease_says_who() {
    let mut group = Group::new(1);
    group.start(Timings::default());
    group.start(Timings::default());
    let (leader, took) = group.leader_within(Duration::from_secs(10)).await;
    assert!(took >= Duration::from_secs(8), "took a fresh Lease after {took:?}");
    let spec = group.server.lease();
    assert_eq!(spec.holder_identity, Some(format!("replica-{leader}")));
    assert_eq!(spec.lease_duration_seconds, Some(8));
    assert_eq!(spec.lease_transitions, Some(0));
    assert!(*group.replicas[leader].works.borrow());
    // It goes on leading.
    for _ in 0..600 {
        tokio::time::sleep(100 * MS).await;
        assert_eq!(group.leaders(), [leader]);
    }
    assert_eq!(group.server.lease().lease_transitions, Some(0));
}

#[tokio::test(start_paused = true)]
async fn stopped_leader_hands_over_within_the_retry_period() {
    let mut group = Group::new(2);
    group.start(Timings::default());
    group.start(Timings::default());
    let (first, _) = group.leader_within(Duration::from_secs(10)).await;
    let works = group.replicas[first].works.clone();
    group.stop(first);
    assert_eq!(group.tasks.join_next().await.unwrap().unwrap(), Ended::Stopped);
    assert!(!*works.borrow(), "work was dropped before the Lease was released");
    let (second, took) = group.leader_within(Duration::from_secs(2)).await;
    assert_ne!(second, first);
    assert!(took <= Duration::from_millis(1200), "{took:?}");
    assert_eq!(group.server.lease().lease_transitions, Some(1));
}

#[tokio::test(start_paused = true)]
async fn frozen_leader_does_not_act_when_it_wakes_after_another_took_over() {
    let mut group = Group::new(3);
    group.start(Timings::default());
    group.start(Timings::default());
    let (sleeper, _) = group.leader_within(Duration::from_secs(10)).await;
    group.replicas[sleeper].frozen.store(true, Ordering::Relaxed);
    let asleep = group.clock.now();
    // Until then it may have been reading its last instructions.
    tokio::time::sleep(5100 * MS).await;
    let (other, _) = group.leader_within(Duration::from_secs(6)).await;
    assert_ne!(other, sleeper);
    group.clock.sleep_until(asleep + Duration::from_secs(20)).await;
    group.replicas[sleeper].frozen.store(false, Ordering::Relaxed);
    let mut works = group.replicas[sleeper].works.clone();
    works.wait_for(|works| !works).await.unwrap();
    for _ in 0..300 {
        assert_eq!(group.leaders(), [other]);
        tokio::time::sleep(50 * MS).await;
    }
}

#[tokio::test(start_paused = true)]
async fn deleted_lease_makes_no_second_leader() {
    let mut group = Group::new(4);
    group.start(Timings::default());
    let (alone, _) = group.leader_within(Duration::from_secs(10)).await;
    group.server.delete();
    for _ in 0..300 {
        tokio::time::sleep(50 * MS).await;
        assert_eq!(group.leaders(), [alone], "a lone leader makes it anew");
    }
    // Deleted as soon as it was made, before the other has looked.
    for _ in 0..3 {
        group.start(Timings::default());
    }
    for _ in 0..1000 {
        group.server.delete();
        tokio::time::sleep(50 * MS).await;
        assert!(group.leaders().len() <= 1);
    }
    group.leader_within(Duration::from_secs(12)).await;
}

#[tokio::test(start_paused = true)]
async fn leader_whose_api_server_is_set_back_does_not_go_on_by_what_it_knew() {
    let mut group = Group::new(6);
    let before_it_began = group.server.back_up();
    group.start(Timings::default());
    let (alone, _) = group.leader_within(Duration::from_secs(10)).await;
    let mut works = group.replicas[alone].works.clone();
    tokio::time::sleep(3000 * MS).await;
    let while_it_led = group.server.back_up();
    for backup in [while_it_led, before_it_began] {
        tokio::time::sleep(20_000 * MS).await;
        assert!(*works.borrow_and_update());
        group.server.set_back(backup);
        let stopped = works.wait_for(|works| !works);
        tokio::time::timeout(3000 * MS, stopped).await.unwrap().unwrap();
        let restarted = works.wait_for(|works| *works);
        tokio::time::timeout(20_000 * MS, restarted).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn lone_write_on_a_lease_that_changed_is_no_leadership() {
    let server = Server::new(5);
    let timings = Timings::default();
    let clock = Clock::simulated();
    let new =
        |me: &str| Replicas::new(server.client(), "test", "lease", me, timings, clock.clone());
    let (mut first, mut second) = (new("first"), new("second"));
    first.place().await;
    assert!(!first.leadership.may_act(), "placing is not leading");
    // Both saw the same and want the same.
    assert!(first.read().await && second.read().await);
    first.bid().await;
    second.bid().await;
    assert!(first.leadership.may_act());
    assert!(!second.leadership.may_act());
    assert!(second.unclear, "it has to look again");
}

/// Two minutes of faults, then half a minute without. Says what went wrong, if anything.
async fn churn(seed: u64, timings: Timings) -> Result<(), String> {
    let mut group = Group::new(seed);
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..3 {
        group.start(timings);
    }
    group.server.faulty(true);
    for _ in 0..120_000 / 50 {
        tokio::time::sleep(50 * MS).await;
        let leaders = group.leaders();
        if leaders.len() > 1 {
            return Err(format!("seed {seed}: {leaders:?} lead at {:?}", group.clock.now()));
        }
        match rng.random_range(0..400) {
            0..3 => {
                let anyone = rng.random_range(0..group.replicas.len());
                group.replicas[anyone].frozen.fetch_xor(true, Ordering::Relaxed);
            }
            3 => group.server.delete(),
            4 => {
                let gone = rng.random_range(0..group.replicas.len());
                group.stop(gone);
                group.start(timings);
            }
            _ => {}
        }
    }
    group.server.faulty(false);
    for replica in &group.replicas {
        replica.frozen.store(false, Ordering::Relaxed);
    }
    let (_, _) = group.leader_within(Duration::from_secs(30)).await;
    Ok(())
}

#[test]
fn never_two_leaders_whatever_happens_and_one_in_the_end() {
    for seed in 0..30 {
        simulated(churn(seed, Timings::default())).unwrap();
    }
}

#[test]
fn two_leaders_would_be_noticed() {
    let secs = Duration::from_secs;
    let unsafe_timings = Timings::unchecked(secs(5), secs(12), secs(1));
    let caught = (0..200).any(|seed| simulated(churn(seed, unsafe_timings)).is_err());
    assert!(caught);
}

fn simulated<T>(work: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(work)
}
