//! The agent's HTTP, for the containers of its pod.
//!
//! - `GET /leader`: 200 while this is the leader, else 503; where it stands, as JSON.
//! - `GET /token`: the fencing token and nothing else, or 503.
//! - `GET /events`: server-sent events, the present standing first: `leader` when work may begin,
//!   `renewed` when *valid until* has moved, `follower` when work has to stop or something else
//!   about the lock has changed. Each carries the JSON.
//! - `GET /healthz`: this process lives. It says nothing about leadership, nor does anything that a
//!   probe should ask.
//! - `GET /metrics`.
//!
//! # Guarantees
//! Whoever is told to lead is told so before work has to stop, by a clock that is read when the
//! answer is written.
//! # Not guaranteed
//! That an answer arrives in time: count `remaining_ms` from before the question, or compare
//! `valid_until` with `/proc/uptime`.

use std::{convert::Infallible, future::Future, io, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::get,
};
use futures::{Stream, stream};
use tokio::{net::TcpListener, sync::watch};

use super::standing::Standing;
use crate::{clock::Clock, names::FencingToken, telemetry::Metrics};

/// What is served.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) standing: watch::Receiver<Standing>,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
}

/// Serves until `stop` is ready. Streams that are open then are cut.
pub(super) async fn serve(
    listener: TcpListener,
    served: Served,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let app = Router::new()
        .route("/leader", get(leader))
        .route("/token", get(token))
        .route("/events", get(events))
        .route("/healthz", get(async || "ok\n"))
        .route("/metrics", get(metrics))
        .fallback(async || {
            (StatusCode::NOT_FOUND, "try /leader, /token, /events, /healthz or /metrics\n")
        })
        .with_state(served);
    tokio::select! {
        ended = axum::serve(listener, app) => ended,
        () = stop => Ok(()),
    }
}

async fn leader(State(served): State<Served>) -> Response {
    let (now, standing) = (served.clock.now(), served.standing.borrow().clone());
    let code = match standing.tenure(now) {
        Some(_) => StatusCode::OK,
        None => StatusCode::SERVICE_UNAVAILABLE,
    };
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (code, headers, standing.json(now) + "\n").into_response()
}

async fn token(State(served): State<Served>) -> Response {
    let (now, standing) = (served.clock.now(), served.standing.borrow().clone());
    match standing.tenure(now) {
        Some(tenure) => format!("{}\n", tenure.token).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "not the leader\n").into_response(),
    }
}

async fn metrics(State(served): State<Served>) -> Response {
    const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], served.metrics.render()).into_response()
}

async fn events(State(served): State<Served>) -> impl IntoResponse {
    Sse::new(told(served))
}

/// What somebody who listens was told last.
struct Listener {
    served: Served,
    /// The token of the tenure that it was told of; `None` before the first event.
    last: Option<Option<FencingToken>>,
}

fn told(served: Served) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Listener { served, last: None }, |mut listener| async {
        if listener.last.is_some() {
            listener.news().await?;
        }
        let now = listener.served.clock.now();
        let standing = listener.served.standing.borrow_and_update().clone();
        let token = standing.tenure(now).map(|tenure| tenure.token);
        let kind = match (token, listener.last) {
            (Some(token), Some(Some(known))) if token == known => "renewed",
            (Some(_), _) => "leader",
            (None, _) => "follower",
        };
        listener.last = Some(token);
        Some((Ok(Event::default().event(kind).data(standing.json(now))), listener))
    })
}

impl Listener {
    /// Returns when there is something to tell: the standing changed, or the work has to stop.
    /// `None`: nobody will ever change it again.
    async fn news(&mut self) -> Option<()> {
        let due = match &self.served.standing.borrow().state {
            super::standing::State::Held { stop_by, .. } if self.last != Some(None) => {
                Some(*stop_by)
            }
            _ => None,
        };
        let clock = self.served.clock.clone();
        let passed = async {
            match due {
                Some(due) => clock.sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = passed => Some(()),
            changed = self.served.standing.changed() => changed.ok(),
        }
    }
}
