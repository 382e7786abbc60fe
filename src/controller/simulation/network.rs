//! The way from a controller to the API server: late, deaf, cut, or lying.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::body::{Body, to_bytes};
use futures::{Stream, stream};
use kube::client::Body as RequestBody;
use parking_lot::Mutex;
use serde_json::{Value, json};
use testbed::fake_api::Target;
use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
};

use super::{
    CLAIM, Kind, Random, TROUBLED, Write, chance, span,
    world::{Shared, Writer},
};
use crate::clock::{Clock, Instant};

/// What is watched, in the plural.
pub(super) const KINDS: [&str; 7] =
    ["consullocks", "namespaces", "pods", "nodes", "services", "endpointslices", "jobs"];

/// How long a write may be under way.
const LATEST_MILLIS: u64 = 20_000;
/// After this long a call that has no answer ends with an error, as the client's own time limit
/// makes it.
const SILENCE: Duration = Duration::from_secs(30);

/// The network between one process and the API server.
pub(super) struct Network {
    pub(super) clock: Clock,
    pub(super) random: Random,
    pub(super) world: Shared,
    pub(super) kind: Kind,
    pub(super) faults: Mutex<Faults>,
    /// Wakes every watch; each looks whether it was meant.
    pub(super) changed: Notify,
    underway: Mutex<JoinSet<()>>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Faults {
    /// Nothing is answered before this instant.
    pub(super) down_until: Option<Instant>,
    /// How often a request, and a reply, is lost.
    pub(super) loss: f64,
    /// The longest that a message takes.
    pub(super) delay_millis: u64,
    /// How often a write takes much longer.
    pub(super) lateness: f64,
    /// How often somebody else writes to the object first.
    pub(super) rivalry: f64,
    /// What is wrong with the watches, by kind.
    pub(super) watches: [WatchFaults; KINDS.len()],
}

#[derive(Clone, Copy, Default)]
pub(super) struct WatchFaults {
    /// How late events are.
    pub(super) delay: Duration,
    /// Events that are due before this instant are swallowed; then the watch is told to list anew.
    pub(super) gap_until: Option<Instant>,
    /// A change ends the watches that there are.
    pub(super) cuts: u64,
}

type Response = http::Response<Body>;

impl Network {
    pub(super) fn new(clock: Clock, random: Random, world: Shared, kind: Kind) -> Arc<Network> {
        Arc::new(Network {
            clock,
            random,
            world,
            kind,
            faults: Mutex::default(),
            changed: Notify::new(),
            underway: Mutex::default(),
        })
    }

    pub(super) fn client(self: &Arc<Network>) -> kube::Client {
        let network = Arc::clone(self);
        let service = tower::service_fn(move |request| Arc::clone(&network).carry(request));
        kube::Client::new(service, "default")
    }

    fn faults(&self) -> Faults {
        *self.faults.lock()
    }

    fn is_down(&self) -> bool {
        self.faults().down_until.is_some_and(|end| self.clock.now() < end)
    }

    async fn carry(self: Arc<Self>, request: http::Request<RequestBody>) -> io::Result<Response> {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map(http::uri::PathAndQuery::as_str);
        let target = Target::parse(path.unwrap_or_default());
        let body = to_bytes(Body::new(body), usize::MAX).await.map_err(io::Error::other)?;
        let method = head.method.as_str().to_owned();
        if let Some(after) = target.watch_after {
            self.travel(0.0).await?;
            let lines = watch(Arc::clone(&self), target, after);
            return Ok(http::Response::new(Body::from_stream(lines)));
        }
        if method == "GET" {
            self.travel(0.0).await?;
            let answer = self.world.lock().call("GET", &target, b"", Writer::Other);
            self.travel(0.0).await?;
            return Ok(response(answer.code, &answer.body));
        }
        self.write(method, target, body.to_vec()).await
    }

    /// A write goes on when its sender has given up, as it does in life.
    async fn write(
        self: Arc<Self>,
        method: String,
        target: Target,
        body: Vec<u8>,
    ) -> io::Result<Response> {
        let content: Value = serde_json::from_slice(&body).unwrap_or_default();
        let generation = {
            let mut world = self.world.lock();
            world.sends(&target, &content);
            world.generation
        };
        if self.kind.swallows_claims && target.name.as_deref() == Some(CLAIM) {
            std::future::pending::<()>().await;
        }
        let (reply, answer) = oneshot::channel();
        let network = Arc::clone(&self);
        let is_slow = self.kind.delays(Write::of(&method, &target, &content), &target);
        let work = async move {
            let lateness = if is_slow { 1.0 } else { network.faults().lateness };
            let answer = match network.travel(lateness).await {
                Ok(()) => Ok(network.land(&method, &target, body, content, generation)),
                Err(error) => Err(error),
            };
            if network.travel(0.0).await.is_ok() {
                let _ = reply.send(answer); // an error says that nobody waits any more
            }
        };
        if self.is_calm() && !is_slow {
            work.await;
        } else {
            let mut underway = self.underway.lock();
            while underway.try_join_next().is_some() {}
            underway.spawn(work);
        }
        match answer.await {
            Ok(answer) => answer,
            Err(_) => std::future::pending().await,
        }
    }

    fn is_calm(&self) -> bool {
        let Faults { loss, delay_millis, lateness, .. } = self.faults();
        loss == 0.0 && delay_millis == 0 && lateness == 0.0 && !self.is_down()
    }

    /// A write reaches the API server.
    fn land(
        &self,
        method: &str,
        target: &Target,
        mut body: Vec<u8>,
        mut content: Value,
        generation: u64,
    ) -> Response {
        let mut world = self.world.lock();
        let write = Write::of(method, target, &content);
        if self.kind.forges(write, &mut content) {
            let answer = world.call("GET", target, b"", Writer::Other);
            return response(answer.code, &answer.body);
        }
        if !content.is_null() {
            body = content.to_string().into_bytes();
        }
        if self.kind.deletes_leaders && write == Write::Retreat && target.plural == "pods" {
            world.call("DELETE", target, b"", Writer::Controller(generation));
        }
        let rivalry = self.faults().rivalry;
        if target.name.is_some() && rivalry > 0.0 && chance(&self.random, rivalry) {
            let rival = Target { subresource: None, ..target.clone() };
            let note = json!({ "metadata": { "annotations": { "rival": self.clock.wall() } } });
            world.call("PATCH", &rival, note.to_string().as_bytes(), Writer::Other);
        }
        let answer = world.call(method, target, &body, Writer::Controller(generation));
        drop(world);
        self.changed.notify_waiters();
        response(answer.code, &answer.body)
    }

    /// One way over the network.
    async fn travel(&self, lateness: f64) -> io::Result<()> {
        let faults = self.faults();
        if faults.loss > 0.0 && chance(&self.random, faults.loss) {
            self.clock.sleep_until(self.clock.now() + SILENCE).await;
            return Err(io::Error::other("no answer"));
        }
        let longest = match lateness > 0.0 && chance(&self.random, lateness) {
            true => LATEST_MILLIS,
            false => faults.delay_millis,
        };
        if longest > 0 {
            let delay = span(&self.random, 0..longest);
            self.clock.sleep_until(self.clock.now() + delay).await;
        }
        match self.is_down() {
            true => Err(io::Error::other("connection refused")),
            false => Ok(()),
        }
    }
}

fn response(code: u16, body: &Value) -> Response {
    let mut response = http::Response::new(Body::from(body.to_string()));
    *response.status_mut() = http::StatusCode::from_u16(code).expect("a code of HTTP");
    response
}

/// A watch: everything after a version, later than it happened.
fn watch(
    network: Arc<Network>,
    target: Target,
    after: u64,
) -> impl Stream<Item = Result<Vec<u8>, Infallible>> + Send {
    let kind = KINDS.iter().position(|kind| *kind == target.plural).expect("a kind that is known");
    let cuts = network.faults().watches[kind].cuts;
    let ends = network.clock.now() + Duration::from_secs(60);
    let silent_from = Instant::from_boot(TROUBLED * 3 / 4);
    let watch = Watch { network, target, kind, after, cuts, ends, silent_from, missed: false };
    stream::unfold(watch, |mut watch| async {
        let line = watch.next().await?;
        Some((Ok(line), watch))
    })
}

struct Watch {
    network: Arc<Network>,
    target: Target,
    kind: usize,
    after: u64,
    cuts: u64,
    ends: Instant,
    silent_from: Instant,
    /// Something was swallowed.
    missed: bool,
}

impl Watch {
    /// The next line; `None`: the connection ends.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let network = Arc::clone(&self.network);
        loop {
            let mut changed = std::pin::pin!(network.changed.notified());
            changed.as_mut().enable(); // before the look, or a change right after it is missed
            let now = network.clock.now();
            let faults = network.faults().watches[self.kind];
            let silent = network.kind.silences_pods && self.target.plural == "pods";
            let gap = match silent && now > self.silent_from {
                true => Some(self.ends),
                false => faults.gap_until.filter(|end| now < *end),
            };
            if faults.cuts != self.cuts || network.is_down() || now >= self.ends {
                return None;
            }
            if self.missed && gap.is_none() {
                let gone = json!({ "kind": "Status", "status": "Failure", "code": 410,
                    "reason": "Expired", "message": "too old resource version" });
                return Some(format!("{}\n", json!({ "type": "ERROR", "object": gone })).into());
            }
            let found = {
                let world = network.world.lock();
                let change = world.api.after(&self.target, self.after);
                if change.is_none() {
                    self.after = world.api.version();
                }
                change.map(|change| (change.version, change.line(), world.time_of(change.version)))
            };
            let wait = match found {
                Some((version, line, at)) if now >= at + faults.delay => {
                    self.after = version;
                    if gap.is_some() {
                        self.missed = true;
                        continue;
                    }
                    return Some(line.as_bytes().to_vec());
                }
                Some((_, _, at)) => at + faults.delay,
                None => gap.unwrap_or(self.ends),
            };
            tokio::select! {
                biased;
                () = changed => {}
                () = network.clock.sleep_until(wait.min(self.ends)) => {}
            }
        }
    }
}
