//! Keepers against the in-memory Consul in paused time, scenario by scenario.

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    sync::OnceLock,
};

use super::{
    wire::{Underway, Wire, Wired},
    *,
};
use crate::{
    consul::{
        Class, ConsulError, KvPair, Operation, PutMode, Renewal, SessionInfo, SessionRequest,
        fake::FakeConsul,
    },
    lock::{EndReason, FailReason, LOCK_FLAGS},
};

mod faults;
mod following;
mod handing_over;
mod holding;
mod records;
mod sharing;
mod vigil;
mod waiting;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const TTL: Duration = Duration::from_secs(15);
const KEY: &str = "lab/one";
/// How long anything may take that is not meant to wait.
const MOMENT: Duration = Duration::from_millis(300);

/// One registry for all tests: making one costs more than a test.
static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// Consul never hears of it.
    LoseRequest,
    /// Consul carries it out, and nobody hears of that.
    LoseReply,
    /// Consul carries it out, and the answer takes this long.
    Slow(Duration),
    /// Consul carries it out, and the answer arrives at this instant.
    AnsweredAt(Instant),
    /// It takes this long to reach Consul, which a write does even if nobody waits any more.
    Late(Duration),
    /// Consul, or something before it, refuses.
    Refuse(Class),
}

/// A contender's line to Consul, that can be cut, and that keeps count.
#[derive(Clone)]
struct Line(Arc<LineState>);

struct LineState {
    clock: Clock,
    faults: Mutex<Faults>,
    sent: Mutex<Vec<(Instant, Operation)>>,
    underway: Underway,
}

#[derive(Default)]
struct Faults {
    away_until: Option<Instant>,
    /// For the next call of the kind.
    next: BTreeMap<&'static str, Fate>,
    /// For every call of the kind.
    every: BTreeMap<&'static str, Fate>,
    granted_ttl: Option<Duration>,
}

impl Line {
    fn new(clock: &Clock) -> Line {
        let (faults, sent, underway) = Default::default();
        Line(Arc::new(LineState { clock: clock.clone(), faults, sent, underway }))
    }

    /// No message passes for so long; those under way are lost.
    fn cut(&self, span: Duration) {
        self.0.faults.lock().away_until = Some(self.0.clock.now() + span);
    }

    fn next(&self, operation: Operation, fate: Fate) {
        self.0.faults.lock().next.insert(operation.as_str(), fate);
    }

    fn every(&self, operation: Operation, fate: Fate) {
        self.0.faults.lock().every.insert(operation.as_str(), fate);
    }

    fn mend(&self) {
        *self.0.faults.lock() = Faults::default();
    }

    /// When calls of a kind were sent.
    fn sent(&self, operation: Operation) -> Vec<Instant> {
        let sent = self.0.sent.lock();
        sent.iter().filter(|(_, kind)| *kind == operation).map(|(at, _)| *at).collect()
    }

    /// All calls sent since `begin`, but for the parked polls.
    fn sent_since(&self, begin: Instant) -> Vec<Operation> {
        let sent = self.0.sent.lock();
        sent.iter().filter(|(at, _)| *at >= begin).map(|(_, kind)| *kind).collect()
    }

    async fn pass(&self) {
        let away = self.0.faults.lock().away_until;
        if away.is_some_and(|end| self.0.clock.now() < end) {
            pending::<()>().await;
        }
    }
}

impl Wire for Line {
    async fn call<T: Send>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, ConsulError>> + Send,
    ) -> Result<T, ConsulError> {
        self.0.sent.lock().push((self.0.clock.now(), operation));
        let fate = {
            let mut faults = self.0.faults.lock();
            let next = faults.next.remove(operation.as_str());
            next.or_else(|| faults.every.get(operation.as_str()).copied())
        };
        self.pass().await;
        match fate {
            Some(Fate::LoseRequest) => pending().await,
            Some(Fate::Refuse(class)) => {
                Err(ConsulError { operation, class, message: "refused by the test".to_owned() })
            }
            Some(Fate::LoseReply) => {
                drop(work.await);
                pending().await
            }
            Some(Fate::Slow(span)) => {
                let answer = work.await;
                self.0.clock.sleep_until(self.0.clock.now() + span).await;
                answer
            }
            Some(Fate::AnsweredAt(instant)) => {
                let answer = work.await;
                self.0.clock.sleep_until(instant).await;
                answer
            }
            Some(Fate::Late(span)) => {
                self.0.clock.sleep_until(self.0.clock.now() + span).await;
                work.await
            }
            None => {
                let answer = work.await;
                self.pass().await;
                answer
            }
        }
    }

    fn is_calm(&self) -> bool {
        false
    }

    fn underway(&self) -> &Underway {
        &self.0.underway
    }

    fn granted(&self, renewal: Renewal) -> Renewal {
        self.0.faults.lock().granted_ttl.map_or(renewal, |ttl| Renewal { ttl })
    }
}

/// A Consul and its clock.
struct Lab {
    consul: FakeConsul,
    clock: Clock,
}

impl Lab {
    fn new() -> Lab {
        let clock = Clock::simulated();
        Lab { consul: FakeConsul::new(clock.clone()), clock }
    }

    fn contender(&self, name: &str) -> Contender {
        Contender::new(self, name)
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    async fn pass(&self, span: Duration) {
        self.clock.sleep_until(self.now() + span).await;
    }

    /// Waits until `done` says so; that must be within `limit`.
    async fn until(&self, limit: Duration, what: &str, mut done: impl FnMut() -> bool) -> Duration {
        let begin = self.now();
        while !done() {
            assert!(self.now().since(begin) < limit, "waited {limit:?} in vain for: {what}");
            self.pass(MS).await;
        }
        self.now().since(begin)
    }

    fn pair(&self) -> KvPair {
        self.consul.peek(&key()).unwrap()
    }

    fn sessions_named(&self, name: &str) -> Vec<SessionInfo> {
        let all = self.consul.sessions().into_iter();
        all.filter(|session| session.name.as_str() == name).collect()
    }

    /// A session of somebody else's.
    async fn stranger(&self, lock_delay: Duration) -> SessionId {
        let node = NodeName::new("elsewhere");
        self.consul.register_node(&node).await.unwrap();
        let request = SessionRequest {
            name: SessionName::new("Consul API Lock"),
            node,
            ttl: TTL,
            lock_delay,
            behavior: Behavior::Release,
            node_checks: Vec::new(),
            service_checks: Vec::new(),
        };
        self.consul.create_session(&request).await.unwrap()
    }

    async fn acquire(&self, session: &SessionId) -> bool {
        let mode = PutMode::Acquire(session.clone());
        self.consul.put(&key(), b"theirs", Some(LOCK_FLAGS), mode).await.unwrap()
    }

    async fn release(&self, session: &SessionId) -> bool {
        let mode = PutMode::Release(session.clone());
        self.consul.put(&key(), b"", Some(LOCK_FLAGS), mode).await.unwrap()
    }
}

fn key() -> Key {
    Key::new(KEY).unwrap()
}

/// Contending for a pod; a tenure for another gives way because that died.
fn for_pod(name: &str) -> Stance {
    let pod: Arc<str> = name.into();
    let leader =
        Leader { uid: Arc::clone(&pod), pod, node: None, containers: Vec::new(), why: "".into() };
    Stance::Contend { leader: Some(Arc::new(leader)), instead: EndReason::PodDied }
}

fn wanted(name: &str) -> Wanted {
    Wanted {
        key: key(),
        prefix: "lab/".into(),
        session: SessionSettings {
            name: SessionName::new(name),
            node: NodeName::new("virtual"),
            ttl: TTL,
            lock_delay: Duration::ZERO,
            behavior: Behavior::Release,
            node_checks: Vec::new(),
            service_checks: Vec::new(),
            lent: None,
            notice: Duration::ZERO,
        },
        acquire: AcquireSettings::default(),
        payload: Payload {
            holder: name.to_owned(),
            cluster: "lab".to_owned(),
            value: String::new(),
            pod: None,
        },
        stance: Stance::FOR_ITSELF,
        record: None,
        attempt: 1,
    }
}

/// A process with keepers, of which a test follows one.
struct Contender {
    id: ClaimId,
    keepers: Keepers<Wired<Line>>,
    line: Line,
    clock: Clock,
    wanted: Wanted,
    _woken: mpsc::UnboundedReceiver<ClaimId>,
}

impl Contender {
    fn new(lab: &Lab, name: &str) -> Contender {
        let line = Line::new(&lab.clock);
        let way = Wired { consul: lab.consul.clone(), wire: line.clone() };
        let metrics = Arc::clone(METRICS.get_or_init(|| Metrics::new(false)));
        let (wake, woken) = mpsc::unbounded_channel();
        let keepers = Keepers::new(way, lab.clock.clone(), metrics, Arc::new(|| 0.5), wake);
        Contender {
            id: ClaimId(name.into()),
            keepers,
            line,
            clock: lab.clock.clone(),
            wanted: wanted(name),
            _woken: woken,
        }
    }

    /// Sets what is wanted now.
    fn set(&self) {
        self.keepers.set(&self.id, self.wanted.clone(), None);
    }

    fn change(&mut self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.wanted);
        self.set();
    }

    fn view(&self) -> KeeperView {
        self.keepers.view(&self.id).unwrap()
    }

    fn token(&self) -> Option<FencingToken> {
        self.view().token(self.clock.now())
    }

    fn session(&self) -> SessionId {
        self.view().session.id.unwrap()
    }

    fn valid_until(&self) -> Instant {
        self.view().session.valid_until.unwrap()
    }

    fn last_end(&self) -> Option<(FencingToken, EndReason)> {
        self.view().ended.last().map(|ended| (ended.token, ended.reason))
    }

    fn failed(&self) -> Option<FailReason> {
        match self.view().lock {
            LockView::Failed { reason } => Some(reason),
            _ => None,
        }
    }

    fn stopped(&self) -> Option<StopState> {
        self.keepers.stopped(&self.id)
    }

    /// What a status would have recorded.
    fn recorded(&self) -> Recorded {
        let view = self.view();
        let LockView::Held { token, since, leader, .. } = view.lock else { panic!("{view:#?}") };
        let tenure = Some(RecordedTenure { token, since, leader });
        Recorded { session: view.session.id.unwrap(), tenure }
    }

    /// Contends, and has it within a moment.
    async fn holds(&self, lab: &Lab) -> FencingToken {
        self.set();
        self.gets_it(lab, MOMENT).await
    }

    async fn gets_it(&self, lab: &Lab, limit: Duration) -> FencingToken {
        lab.until(limit, "a token", || self.token().is_some()).await;
        self.token().unwrap()
    }
}
