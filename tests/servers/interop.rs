//! Our keepers and Consul's own locks on one key of a real Consul: stock `consul lock`, and a Go
//! program that uses `api.Lock`. Each blocks the other, and each goes on when the other lets go.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use parking_lot::Mutex;

use consul_lock::{
    clock::Clock,
    consul::{Behavior, Consistency, Consul as _, KvPair, http::HttpConsul},
    keeper::{
        AcquireSettings, ClaimId, KeeperView, Keepers, KeySeen, LockView, Payload, SessionSettings,
        Stance, StopState, Wanted,
    },
    lock::EndReason,
    names::{Key, NodeName, SessionName},
    telemetry::Metrics,
};
use testbed::Consul;
use tokio::task::JoinSet;

use crate::fixtures::{LOCK_FLAGS, PATIENCE, client_of, shared_consul, unique};

/// How often the key changes hands in either direction.
const ROUNDS: usize = 10;

/// Nanoseconds of the wall clock, by which children of the same machine print, too.
type Nanos = i128;

/// Somebody relied on the key from one instant to another.
#[derive(Clone, Copy, Debug)]
struct Span {
    who: &'static str,
    from: Nanos,
    to: Nanos,
}

fn wall() -> Nanos {
    Clock::boot().wall().as_nanosecond()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let clock = Clock::boot();
    let deadline = clock.now() + PATIENCE;
    while !done() {
        assert!(clock.now() < deadline, "waited {PATIENCE:?} in vain for: {what}");
        clock.sleep_until(clock.now() + Duration::from_millis(2)).await;
    }
}

/// A claim of ours and its keepers.
struct Ours {
    consul: HttpConsul,
    keepers: Arc<Keepers<HttpConsul>>,
    id: ClaimId,
    wanted: Wanted,
    spans: Arc<Mutex<Vec<Span>>>,
    ended: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Ours {
    /// Contends for `key`, which starts with `prefix`.
    fn start(key: &str, prefix: &str) -> Ours {
        let consul = client_of(shared_consul());
        let (wake, mut woken) = tokio::sync::mpsc::unbounded_channel();
        let jitter = Arc::new(|| 0.5);
        let metrics = Metrics::new(false);
        let keepers = Keepers::new(consul.clone(), Clock::boot(), metrics, jitter, wake);
        let name = unique("ours");
        let wanted = Wanted {
            key: Key::new(key).unwrap(),
            prefix: prefix.into(),
            session: SessionSettings {
                name: SessionName::new(name.as_str()),
                node: NodeName::new(unique("virtual")),
                ttl: Duration::from_secs(15),
                lock_delay: Duration::from_secs(15),
                behavior: Behavior::Release,
                node_checks: Vec::new(),
                service_checks: Vec::new(),
                lent: None,
                notice: Duration::ZERO,
            },
            acquire: AcquireSettings::default(),
            payload: Payload {
                holder: name.clone(),
                cluster: "test".to_owned(),
                value: String::new(),
                pod: None,
            },
            stance: Stance::FOR_ITSELF,
            record: None,
            attempt: 1,
        };
        let mut ours = Ours {
            consul,
            keepers: Arc::new(keepers),
            id: ClaimId(name.as_str().into()),
            wanted,
            spans: Arc::default(),
            ended: Arc::default(),
            tasks: JoinSet::new(),
        };
        ours.tasks.spawn(async move { while woken.recv().await.is_some() {} });
        ours.pause(false);
        ours.observe();
        ours
    }

    /// Writes down when the token may be relied on, a millisecond at a time.
    fn observe(&mut self) {
        let (keepers, id) = (Arc::clone(&self.keepers), self.id.clone());
        let (spans, ended) = (Arc::clone(&self.spans), Arc::clone(&self.ended));
        self.tasks.spawn(async move {
            let clock = Clock::boot();
            let mut holding = false;
            while !ended.load(Ordering::Relaxed) {
                let before = wall();
                let relied_on =
                    keepers.view(&id).is_some_and(|view| view.token(clock.now()).is_some());
                let now = wall();
                match (relied_on, holding) {
                    (true, true) => spans.lock().last_mut().unwrap().to = before,
                    (true, false) => {
                        spans.lock().push(Span { who: "ours", from: now, to: now });
                    }
                    (false, _) => {}
                }
                holding = relied_on;
                clock.sleep_until(clock.now() + Duration::from_millis(1)).await;
            }
        });
    }

    fn pause(&mut self, paused: bool) {
        self.wanted.stance = match paused {
            true => Stance::StandBy(EndReason::Paused),
            false => Stance::FOR_ITSELF,
        };
        self.keepers.set(&self.id, self.wanted.clone(), None);
    }

    fn view(&self) -> KeeperView {
        self.keepers.view(&self.id).unwrap()
    }

    async fn holds(&self) {
        until("our token", || self.view().token(Clock::boot().now()).is_some()).await;
        let pair = self.pair().await.unwrap();
        assert_eq!((pair.flags, pair.session), (LOCK_FLAGS, self.view().session.id));
    }

    async fn pair(&self) -> Option<KvPair> {
        self.consul.get(&self.wanted.key, Consistency::Consistent).await.unwrap().pair
    }

    /// The peer holds the key, and we see who it is and wait.
    async fn waits_for(&self, session_name: &str) {
        until("the stranger in view", || match self.view().key {
            Some(KeySeen::Held(holder)) => holder.session_name.as_deref() == Some(session_name),
            _ => false,
        })
        .await;
        let view = self.view();
        let Some(KeySeen::Held(holder)) = view.key else { panic!("{view:#?}") };
        assert_eq!(holder.node.as_deref(), Some("consul"), "the agent's own node");
        assert!(matches!(view.lock, LockView::Waiting | LockView::Standby), "{:?}", view.lock);
        assert_eq!(self.pair().await.unwrap().flags, LOCK_FLAGS);
    }

    /// Stops cleanly; when it was relied on.
    async fn end(self) -> Vec<Span> {
        self.keepers.stop(&self.id);
        let clean = || self.keepers.stopped(&self.id) == Some(StopState::Clean);
        until("a clean stop", clean).await;
        self.ended.store(true, Ordering::Relaxed);
        self.spans.lock().clone()
    }
}

/// A process that holds the key by Consul's own means until its input ends.
struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    session_name: String,
}

/// Which of Consul's own means.
#[derive(Clone, Copy, Debug)]
enum Means {
    ConsulLock,
    ApiLock,
}

impl Means {
    /// What `consul lock` and `api.Lock` want to be told for one and the same key.
    fn start(self, consul: &Consul, folder: &str) -> Peer {
        let session_name = unique("stranger");
        let key = self.key(folder);
        let mut command = match self {
            Means::ConsulLock => {
                let script = "date +'locked %s%N'; cat >/dev/null; date +'unlocked %s%N'";
                consul.cli(["lock", "-pass-stdin", "-name", &session_name, folder, script])
            }
            Means::ApiLock => consul.api_lock(["-session-name", &session_name, &key]),
        }
        .unwrap();
        Peer::start(&mut command, session_name)
    }

    fn key(self, folder: &str) -> String {
        match self {
            Means::ConsulLock => format!("{folder}/.lock"),
            Means::ApiLock => folder.to_owned(),
        }
    }
}

impl Peer {
    fn start(command: &mut Command, session_name: String) -> Peer {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        // Ends with the child's output.
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        let input = child.stdin.take();
        Peer { child, input, lines, session_name }
    }

    /// Has made its session, and so contends or is about to.
    async fn contends(&self, ours: &Ours) {
        let clock = Clock::boot();
        let deadline = clock.now() + PATIENCE;
        let node = NodeName::new("consul");
        loop {
            let sessions = ours.consul.node_sessions(&node).await.unwrap();
            if sessions.iter().any(|one| one.name.as_str() == self.session_name) {
                return;
            }
            assert!(clock.now() < deadline, "{} does not contend", self.session_name);
            clock.sleep_until(clock.now() + Duration::from_millis(20)).await;
        }
    }

    /// Waits until it prints `<what> <nanoseconds>`.
    async fn prints(&mut self, what: &str) -> Nanos {
        let mut found = None;
        until(what, || {
            let mut words = self.lines.try_iter().map(|line| {
                let (word, stamp) = line.split_once(' ').unwrap_or((&line, ""));
                (word == what).then(|| stamp.parse().unwrap_or_else(|_| wall()))
            });
            found = words.find_map(|stamp| stamp);
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Lets go; when it had the key, having begun at `from`.
    async fn let_go(mut self, from: Nanos) -> Span {
        let asked = wall();
        drop(self.input.take());
        let said = self.prints("unlocked").await;
        until("its end", || self.child.try_wait().unwrap().is_some()).await;
        // One prints when its work ends, the other when the key is free already.
        Span { who: "the peer", from, to: said.min(asked) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn assert_apart(mut spans: Vec<Span>) {
    spans.sort_by_key(|span| span.from);
    for pair in spans.windows(2) {
        assert!(pair[0].to <= pair[1].from, "both at once: {:?} and {:?}", pair[0], pair[1]);
    }
    let turns = |who| spans.iter().filter(|span| span.who == who).count();
    assert!(turns("ours") > ROUNDS && turns("the peer") >= ROUNDS, "{spans:?}");
}

/// We hold, it waits; we let go, it holds and we wait; it lets go, and we hold again.
async fn hand_over_to_and_fro(means: Means) {
    let prefix = format!("{}/", unique("interop"));
    let folder = format!("{prefix}job");
    let mut ours = Ours::start(&means.key(&folder), &prefix);
    let mut spans = Vec::new();
    for _ in 0..ROUNDS {
        ours.holds().await;
        let mut peer = means.start(shared_consul(), &folder);
        peer.contends(&ours).await;
        ours.pause(true);
        let from = peer.prints("locked").await;
        ours.waits_for(&peer.session_name).await;
        ours.pause(false);
        let contends = || ours.view().lock == LockView::Waiting;
        until("us contending", contends).await;
        spans.push(peer.let_go(from).await);
    }
    ours.holds().await;
    // Until whoever writes it down has seen the last of them, too.
    until("the last span", || ours.spans.lock().len() > ROUNDS).await;
    spans.extend(ours.end().await);
    assert_apart(spans);
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_lock_and_we_hand_over_to_each_other() {
    hand_over_to_and_fro(Means::ConsulLock).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_lock_and_we_hand_over_to_each_other() {
    hand_over_to_and_fro(Means::ApiLock).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_that_was_first_keeps_the_key_while_we_wait() {
    for means in [Means::ConsulLock, Means::ApiLock] {
        let prefix = format!("{}/", unique("interop"));
        let folder = format!("{prefix}job");
        let mut peer = means.start(shared_consul(), &folder);
        let from = peer.prints("locked").await;
        let ours = Ours::start(&means.key(&folder), &prefix);
        ours.waits_for(&peer.session_name).await;
        assert_eq!(ours.view().lock, LockView::Waiting);
        let theirs = peer.let_go(from).await;
        ours.holds().await;
        let spans = ours.end().await;
        assert!(spans.iter().all(|span| span.from >= theirs.to), "{theirs:?} {spans:?}");
    }
}

/// `consul lock` deletes its key; we leave ours, with flags that it accepts.
#[tokio::test(flavor = "multi_thread")]
async fn key_that_consul_lock_deleted_is_locked_and_the_one_that_we_leave_is_accepted() {
    let prefix = format!("{}/", unique("interop"));
    let folder = format!("{prefix}job");
    let mut ours = Ours::start(&Means::ConsulLock.key(&folder), &prefix);
    ours.holds().await;
    ours.pause(true);
    until("us standing by", || ours.view().lock == LockView::Standby).await;
    let left = ours.pair().await.unwrap();
    assert_eq!((left.flags, left.session, left.value), (LOCK_FLAGS, None, Vec::new()));

    let mut peer = Means::ConsulLock.start(shared_consul(), &folder);
    let from = peer.prints("locked").await;
    peer.let_go(from).await;
    assert_eq!(ours.pair().await, None, "deleted");
    let first = ours.view().ended.last().unwrap().token;
    ours.pause(false);
    ours.holds().await;
    let second = ours.view().token(Clock::boot().now()).unwrap();
    assert!(second > first, "the token rises over the deletion");
    ours.end().await;
}
