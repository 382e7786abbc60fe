//! Walks, step by step, with caches that know what a test tells them, an API server that answers as
//! a test says, and the in-memory Consul: what is written, in which order, and what is not.

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use futures::{FutureExt, stream};
use http::{Method, Request, Response};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Client,
    client::Body,
    runtime::watcher::{self, Event},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::{
    api::FINALIZER,
    clock::Clock,
    consul::fake::FakeConsul,
    controller::{
        Caches,
        cache::{Cache, Cached},
        events::Publisher,
        kinds::{Node, Pod},
        observe::observe,
        plan::plan,
        sample::config,
        writer::Writer,
    },
    keeper::{Keepers, LockView},
    telemetry::Metrics,
};

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// It is refused.
    Refused,
    /// There is another object of that name already.
    Taken,
    /// The object of that name is another one.
    Another,
    /// Whether it happened is never known.
    Unanswered,
    /// Before the answer arrives the key is given up.
    Overtaken,
}

/// The API server: what was written, and what becomes of what.
#[derive(Default)]
struct Desk {
    written: Vec<String>,
    fates: BTreeMap<String, Fate>,
}

struct Walker {
    leader: Arc<Leader<FakeConsul>>,
    clock: Clock,
    name: ObjectName,
    desk: Arc<Mutex<Desk>>,
    overtaken: mpsc::UnboundedReceiver<()>,
    _woken: mpsc::UnboundedReceiver<ClaimId>,
}

static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();

const STRIP_A: &str = "PATCH pods/a off";
const DRESS_A: &str = "PATCH pods/a on";
const MAKE: &str = "POST endpointslices";
const FILL: &str = "PUT endpointslices/consullock-billing-ipv4";
const EMPTY: &str = "PATCH endpointslices/consullock-billing-ipv4";

impl Walker {
    /// A claim with candidates and a Service, and pods `a` and `b`, of which `a` is older.
    async fn new() -> Walker {
        let clock = Clock::simulated();
        let metrics = Arc::clone(METRICS.get_or_init(|| Metrics::new(false)));
        let (wake, woken) = mpsc::unbounded_channel();
        let (overtake, overtaken) = mpsc::unbounded_channel();
        let desk = Arc::new(Mutex::new(Desk::default()));
        let client = api_server(&desk, overtake);
        let writer = Arc::new(Writer::new(client, clock.clone(), Arc::new(|| true)));
        let (publisher, _) = Publisher::new(Arc::clone(&writer), "replica-1".to_owned());
        let keepers = Keepers::new(
            FakeConsul::new(clock.clone()),
            clock.clone(),
            Arc::clone(&metrics),
            Arc::new(|| 0.5),
            wake,
        );
        let caches = Caches {
            claims: Cache::new("consullocks", 1),
            namespaces: Cache::new("namespaces", 1),
            pods: Cache::new("pods", 1),
            nodes: Cache::new("nodes", 1),
            services: Cache::new("services", 1),
            slices: Cache::new("endpointslices", 1),
            jobs: Cache::new("jobs", 1),
        };
        let leader = Leader {
            config: config(),
            clock: clock.clone(),
            metrics,
            caches: Arc::new(caches),
            keepers: Arc::new(keepers),
            jitter: Arc::new(|| 0.5),
            ledger: Arc::default(),
            writer,
            publisher,
        };
        let walker = Walker {
            leader: Arc::new(leader),
            clock,
            name: ObjectName::new("shop", "billing"),
            desk,
            overtaken,
            _woken: woken,
        };
        let caches = &walker.leader.caches;
        let spec = json!({
            "candidates": { "selector": { "matchLabels": { "app": "billing" } } },
            "routing": { "service": "billing" }, "session": { "lockDelay": "0s" },
        });
        walker.list(&caches.claims, vec![claim(spec)]).await;
        walker.list(&caches.namespaces, Vec::new()).await;
        let node = json!({
            "metadata": { "name": "n-1", "resourceVersion": "1" },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        walker.list::<Node>(&caches.nodes, vec![node]).await;
        let service = json!({
            "metadata": { "name": "billing", "namespace": "shop", "resourceVersion": "1" },
            "spec": { "ports": [{ "port": 80 }] },
        });
        walker.list(&caches.services, vec![service]).await;
        walker.list::<EndpointSlice>(&caches.slices, Vec::new()).await;
        walker.pods(vec![pod("a", 1, false), pod("b", 2, false)]).await;
        walker
    }

    /// The cache learns that this is all there is.
    async fn list<K>(&self, cache: &Cache<K>, objects: Vec<Value>)
    where
        K: Cached + serde::de::DeserializeOwned,
    {
        let all =
            objects.into_iter().map(|one| Event::InitApply(serde_json::from_value(one).unwrap()));
        let events = [Event::Init].into_iter().chain(all).chain([Event::InitDone]);
        let events = events.map(watcher::Result::Ok).collect::<Vec<_>>();
        let mut events = Some(stream::iter(events));
        let watch = || events.take().expect("started once");
        cache.follow(None, watch, &self.leader.metrics).await;
    }

    async fn pods(&self, pods: Vec<Value>) {
        self.list::<Pod>(&self.leader.caches.pods, pods).await;
    }

    /// One walk; why it failed, if it did.
    async fn walk(&self) -> Option<String> {
        let observed = observe(&self.leader, &self.name);
        let plan = plan(&observed, &self.leader.config);
        let applied = apply(&self.leader, &self.name, &observed, &plan).await;
        let failed = applied.unwrap().unwrap().failed;
        let words = |error: Error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {source:?}")
        };
        // Keepers act between walks.
        tokio::time::sleep(Duration::from_millis(200)).await;
        failed.map(words)
    }

    /// A walk by which `a` is elected, and holds the key; its token.
    async fn elected(&self) -> u64 {
        assert!(self.walk().await.is_none());
        let (pod, token) = self.holds().unwrap();
        assert_eq!(pod, "a");
        self.take_written();
        token
    }

    /// Whom the key is held for, and with which token.
    fn holds(&self) -> Option<(String, u64)> {
        let view = self.leader.keepers.view(&ClaimId("uid-1".into()))?;
        let token = view.token(self.clock.now())?.get();
        let LockView::Held { leader, .. } = view.lock else { return None };
        Some((leader?.pod.to_string(), token))
    }

    fn take_written(&self) -> Vec<String> {
        std::mem::take(&mut self.desk.lock().written)
    }

    /// The fate of a write from now on.
    fn fate(&self, write: &str, fate: Option<Fate>) {
        let mut desk = self.desk.lock();
        match fate {
            Some(fate) => drop(desk.fates.insert(write.to_owned(), fate)),
            None => drop(desk.fates.remove(write)),
        }
    }

    /// The key is given up while the first of the writes is under way.
    async fn walk_overtaken(&mut self) -> Option<Error> {
        let leader = Arc::clone(&self.leader);
        let overtaken = &mut self.overtaken;
        let stop = async {
            overtaken.recv().await;
            leader.keepers.stop(&ClaimId("uid-1".into()));
            std::future::pending::<()>().await;
        };
        let stop = std::pin::pin!(stop);
        let observed = observe(&self.leader, &self.name);
        let plan = plan(&observed, &self.leader.config);
        tokio::select! {
            applied = apply(&self.leader, &self.name, &observed, &plan) => {
                applied.unwrap().unwrap().failed
            }
            () = stop => unreachable!("it never ends"),
        }
    }
}

fn claim(spec: Value) -> Value {
    json!({
        "apiVersion": "consullock.dev/v1alpha1", "kind": "ConsulLock",
        "metadata": {
            "name": "billing", "namespace": "shop", "uid": "uid-1", "resourceVersion": "7",
            "generation": 1, "finalizers": [FINALIZER],
        },
        "spec": spec,
    })
}

fn pod(name: &str, second: u32, ended: bool) -> Value {
    let state = match ended {
        true => json!({ "terminated": { "exitCode": 1 } }),
        false => json!({ "running": {} }),
    };
    let version = if ended { "2" } else { "1" };
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"),
            "labels": { "app": "billing" }, "resourceVersion": format!("{name}-{version}"),
        },
        "spec": { "nodeName": "n-1", "containers": [{ "name": "app" }] },
        "status": {
            "podIPs": [{ "ip": "10.0.0.7" }],
            "conditions": [{
                "type": "Ready", "status": if ended { "False" } else { "True" },
                "lastTransitionTime": format!("2026-01-02T03:04:{second:02}Z"),
            }],
            "containerStatuses": [{
                "name": "app", "containerID": format!("{name}-1"), "restartCount": 0, "state": state,
            }],
        },
    })
}

/// What a write leaves behind: null in a merge patch takes a field away.
fn stored(mut written: Value) -> Value {
    if let Some(fields) = written.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
        fields.values_mut().for_each(|value| *value = stored(value.take()));
    }
    written
}

/// An API server that keeps nothing but a list of what was written.
fn api_server(desk: &Arc<Mutex<Desk>>, overtake: mpsc::UnboundedSender<()>) -> Client {
    let desk = Arc::clone(desk);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (desk, overtake) = (Arc::clone(&desk), overtake.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body: Value = serde_json::from_slice(&body.collect_bytes().await?).unwrap();
            let path = parts.uri.path().rsplit("namespaces/shop/").next().unwrap().to_owned();
            let mut write = format!("{} {path}", parts.method);
            if parts.method == Method::PATCH && path.starts_with("pods/") {
                let takes_off = body["metadata"]["labels"]["consullock.dev/billing"].is_null();
                write += if takes_off { " off" } else { " on" };
            }
            let fate = {
                let mut desk = desk.lock();
                desk.written.push(write.clone());
                desk.fates.get(&write).copied()
            };
            let (code, answer) = match fate {
                Some(Fate::Refused) => (500, json!({
                    "kind": "Status", "status": "Failure", "code": 500, "reason": "Internal",
                    "message": "refused by the test",
                })),
                Some(Fate::Taken) => (409, json!({
                    "kind": "Status", "status": "Failure", "code": 409, "reason": "AlreadyExists",
                    "message": "it exists",
                })),
                Some(Fate::Another) => (422, json!({
                    "kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid",
                    "message": "metadata.uid: field is immutable",
                    "details": { "causes": [{ "field": "metadata.uid", "reason": "x", "message": "x" }] },
                })),
                Some(Fate::Unanswered) => std::future::pending().await,
                Some(Fate::Overtaken) => {
                    overtake.send(()).unwrap();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    (200, stored(body))
                }
                None => (200, stored(body)),
            };
            let answer = Body::from(answer.to_string().into_bytes());
            let answer = Response::builder().status(code).body(answer).unwrap();
            Ok::<_, tower::BoxError>(answer)
        }
        .boxed()
    });
    Client::new(service, "shop")
}

#[tokio::test(start_paused = true)]
async fn badge_and_endpoint_follow_the_key_in_this_order() {
    let walker = Walker::new().await;
    walker.elected().await;
    assert_eq!(walker.walk().await, None);
    assert_eq!(walker.take_written(), [DRESS_A, MAKE, FILL]);
}

#[tokio::test(start_paused = true)]
async fn the_key_does_not_move_while_the_endpoint_or_the_label_cannot_be_taken_away() {
    for refused in [EMPTY, STRIP_A] {
        let walker = Walker::new().await;
        let token = walker.elected().await;
        walker.walk().await;
        walker.take_written();
        walker.fate(refused, Some(Fate::Refused));
        walker.pods(vec![pod("a", 1, true), pod("b", 2, false)]).await;
        for _ in 0..5 {
            assert!(walker.walk().await.is_some());
            assert_eq!(walker.holds(), Some(("a".to_owned(), token)), "{refused}");
        }
        walker.fate(refused, None);
        assert_eq!(walker.walk().await, None);
        let (pod, next) = walker.holds().unwrap();
        assert!(pod == "b" && next > token, "{pod} {next}");
        let written = walker.take_written();
        let badges = written.iter().filter(|write| write.starts_with("PATCH pods/b"));
        assert_eq!(badges.count(), 0, "not in the same walk: {written:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_given_for_a_tenure_that_is_over() {
    let mut walker = Walker::new().await;
    walker.elected().await;
    walker.fate(DRESS_A, Some(Fate::Overtaken));
    walker.walk_overtaken().await;
    assert_eq!(walker.holds(), None);
    assert_eq!(walker.take_written(), [DRESS_A], "no endpoint after the key was given up");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_may_have_arrived_is_taken_away_before_the_key_moves() {
    let walker = Walker::new().await;
    let token = walker.elected().await;
    walker.fate(FILL, Some(Fate::Unanswered));
    assert!(walker.walk().await.is_some());
    walker.take_written();
    walker.fate(EMPTY, Some(Fate::Refused));
    walker.pods(vec![pod("a", 1, true), pod("b", 2, false)]).await;
    assert!(walker.walk().await.is_some());
    assert_eq!(walker.take_written(), [EMPTY], "though no slice was ever seen");
    assert_eq!(walker.holds(), Some(("a".to_owned(), token)));
    walker.fate(EMPTY, None);
    assert_eq!(walker.walk().await, None);
    assert_eq!(walker.take_written(), [EMPTY, STRIP_A]);
    assert_eq!(walker.holds().unwrap().0, "b");
}

#[tokio::test(start_paused = true)]
async fn a_badge_that_may_have_arrived_is_taken_off_before_the_key_moves() {
    for fate in [Some(Fate::Unanswered), None] {
        let walker = Walker::new().await;
        let token = walker.elected().await;
        walker.fate(DRESS_A, fate);
        walker.fate(FILL, Some(Fate::Refused));
        assert!(walker.walk().await.is_some());
        walker.take_written();
        // The cache has never seen it.
        walker.fate(STRIP_A, Some(Fate::Refused));
        walker.pods(vec![pod("a", 1, true), pod("b", 2, false)]).await;
        assert!(walker.walk().await.is_some());
        assert_eq!(walker.holds(), Some(("a".to_owned(), token)));
        walker.fate(STRIP_A, None);
        assert_eq!(walker.walk().await, None);
        assert_eq!(walker.take_written().last().map(String::as_str), Some(STRIP_A));
        assert_eq!(walker.holds().unwrap().0, "b");
    }
}

#[tokio::test(start_paused = true)]
async fn a_badge_that_was_written_is_not_written_again_before_the_cache_knows_of_it() {
    let walker = Walker::new().await;
    walker.elected().await;
    assert_eq!(walker.walk().await, None);
    walker.take_written();
    assert_eq!(walker.walk().await, None);
    assert!(!walker.take_written().contains(&DRESS_A.to_owned()));
    // The cache has a later version, and the badge is not on it.
    let mut later = pod("a", 1, false);
    later["metadata"]["resourceVersion"] = json!("a-9");
    walker.pods(vec![later, pod("b", 2, false)]).await;
    walker.walk().await;
    assert!(walker.take_written().contains(&DRESS_A.to_owned()), "somebody took it off");
}

#[tokio::test(start_paused = true)]
async fn a_slice_of_somebody_else_under_our_name_is_not_emptied() {
    let walker = Walker::new().await;
    walker.elected().await;
    walker.fate(MAKE, Some(Fate::Taken));
    assert!(walker.walk().await.is_some());
    walker.take_written();
    walker.pods(vec![pod("a", 1, true), pod("b", 2, false)]).await;
    assert_eq!(walker.walk().await, None);
    assert_eq!(walker.take_written(), [STRIP_A]);
    assert_eq!(walker.holds().unwrap().0, "b");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_took_the_name_of_the_last_leader_does_not_keep_the_key_from_moving() {
    let walker = Walker::new().await;
    walker.elected().await;
    walker.walk().await;
    walker.take_written();
    walker.pods(vec![pod("a", 1, true), pod("b", 2, false)]).await;
    // As the API server refuses a write that would change a UID.
    walker.fate(STRIP_A, Some(Fate::Another));
    assert_eq!(walker.walk().await, None);
    assert_eq!(walker.take_written(), [EMPTY, STRIP_A]);
    assert_eq!(walker.holds().unwrap().0, "b");
}
