//! The admin port: `/metrics`, `/healthz`, `/readyz`.
//!
//! - `/healthz` answers 200 while every part of the process that must run does run.
//! - `/readyz` answers 200 once every part has been reported ready. A standby replica is as ready
//!   as a leading one.
//!
//! Both list their parts one per line, `[+]` or `[-]`, with what a part waits for if it told, so that a
//! failing probe says why.

use std::{
    future::{Future, IntoFuture},
    io,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, task::AbortHandle};

use super::Metrics;
use crate::clock::Clock;

/// How long requests that are being answered may take once the server is told to stop. Whoever
/// reads slower than that is cut off: a probe's connection must not hold a shutdown up.
const DRAIN: Duration = Duration::from_millis(500);

/// What the admin port tells of.
#[derive(Clone, Debug)]
pub struct Admin {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/healthz`.
    pub alive: Alive,
    /// For `/readyz`.
    pub ready: Ready,
}

/// The tasks that must run for the process to be of use. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct Alive(Arc<Mutex<Vec<(&'static str, AbortHandle)>>>);

impl Alive {
    /// From now on the process counts as alive only while `task` has not ended.
    pub fn watch(&self, name: &'static str, task: AbortHandle) {
        self.0.lock().push((name, task));
    }

    fn parts(&self) -> Vec<Line> {
        let tasks = self.0.lock();
        let parts = tasks.iter().map(|(name, task)| (*name, !task.is_finished(), String::new()));
        parts.collect()
    }
}

/// What has to have happened once before the process is of use. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<Mutex<Vec<Part>>>);

/// One thing that has to happen before the process is ready. Clones stand for the same thing.
#[derive(Clone, Debug)]
#[must_use = "the process is not ready before this part reports that it is"]
pub struct Part {
    name: &'static str,
    /// What it waits for, as far as it told; `None`: it is ready.
    waits_for: Arc<Mutex<Option<String>>>,
}

/// A line of a probe's answer: the part, whether it is well, and what it waits for.
type Line = (&'static str, bool, String);

impl Ready {
    /// From now on the process is not ready before [`Part::ready`] was called.
    pub fn part(&self, name: &'static str) -> Part {
        let part = Part { name, waits_for: Arc::new(Mutex::new(Some(String::new()))) };
        self.0.lock().push(part.clone());
        part
    }

    /// Whether every part is ready.
    pub fn is_ready(&self) -> bool {
        self.parts().iter().all(|(_, done, _)| *done)
    }

    fn parts(&self) -> Vec<Line> {
        let line = |part: &Part| {
            let waits_for = part.waits_for.lock().clone();
            (part.name, waits_for.is_none(), waits_for.unwrap_or_default())
        };
        self.0.lock().iter().map(line).collect()
    }
}

impl Part {
    /// It has happened. Calling this again changes nothing.
    pub fn ready(&self) {
        *self.waits_for.lock() = None;
    }

    /// What it waits for, in one line, until it is ready.
    pub fn waits_for(&self, what: impl Into<String>) {
        if let Some(waits_for) = self.waits_for.lock().as_mut() {
            *waits_for = what.into();
        }
    }

    /// Whether it has happened.
    pub fn is_ready(&self) -> bool {
        self.waits_for.lock().is_none()
    }
}

/// Serves `admin` on `listener` until `stop` is ready, and then for at most half a second more.
///
/// # Errors
/// What the listener says when it cannot go on.
pub async fn serve(
    listener: TcpListener,
    admin: Admin,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(async || (StatusCode::NOT_FOUND, "try /metrics, /healthz or /readyz\n"))
        .with_state(admin);
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let server = axum::serve(listener, app).with_graceful_shutdown(async move {
        stop.await;
        // Refused only if the server, and with it the receiver, is gone.
        let _ = stopping.send(());
    });
    tokio::select! {
        ended = server.into_future() => ended,
        () = drained(stopped) => Ok(()),
    }
}

async fn drained(stopped: tokio::sync::oneshot::Receiver<()>) {
    if stopped.await.is_ok() {
        let clock = Clock::boot();
        clock.sleep_until(clock.now() + DRAIN).await;
    } else {
        std::future::pending().await
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], admin.metrics.render()).into_response()
}

async fn healthz(State(admin): State<Admin>) -> Response {
    probe(&admin.alive.parts())
}

async fn readyz(State(admin): State<Admin>) -> Response {
    probe(&admin.ready.parts())
}

fn probe(parts: &[Line]) -> Response {
    let well = parts.iter().all(|(_, ok, _)| *ok);
    let mut body = String::new();
    for (name, ok, trouble) in parts {
        body.push_str(if *ok { "[+] " } else { "[-] " });
        body.push_str(name);
        if !trouble.is_empty() {
            body.push_str(": ");
            body.push_str(trouble);
        }
        body.push('\n');
    }
    body.push_str(if well { "ok\n" } else { "not ok\n" });
    let code = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, body).into_response()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        sync::oneshot,
        task::JoinSet,
    };

    use super::*;

    struct Running {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        tasks: JoinSet<io::Result<()>>,
        admin: Admin,
    }

    async fn start() -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let admin = Admin {
            metrics: Metrics::new(false),
            alive: Alive::default(),
            ready: Ready::default(),
        };
        let (stop, stopped) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, admin.clone(), async { drop(stopped.await) }));
        Running { address, stop, tasks, admin }
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readyz_names_the_missing_part_until_all_are_ready() {
        let running = start().await;
        let caches = running.admin.ready.part("caches");
        let consul = running.admin.ready.part("consul");
        caches.ready();
        let answer = get(running.address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("[+] caches\n[-] consul\n"), "{answer}");
        consul.waits_for("no leader");
        let answer = get(running.address, "/readyz").await;
        assert!(answer.contains("[+] caches\n[-] consul: no leader\n"), "{answer}");
        consul.ready();
        let answer = get(running.address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("[+] caches\n[+] consul\n"), "{answer}");
    }

    #[tokio::test]
    async fn healthz_fails_once_a_task_has_ended() {
        let running = start().await;
        let mut tasks = JoinSet::new();
        running.admin.alive.watch("watches", tasks.spawn(std::future::pending::<()>()));
        assert!(get(running.address, "/healthz").await.starts_with("HTTP/1.1 200"));
        tasks.abort_all();
        assert!(tasks.join_next().await.unwrap().is_err());
        let answer = get(running.address, "/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("[-] watches\n"), "{answer}");
    }

    #[tokio::test]
    async fn metrics_are_served_as_text_and_other_paths_are_not_found() {
        let running = start().await;
        let answer = get(running.address, "/metrics").await;
        assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
        assert!(answer.contains("consul_lock_build_info"), "{answer}");
        assert!(get(running.address, "/").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn slow_client_does_not_hold_the_shutdown_up() {
        let mut running = start().await;
        let mut slow = TcpStream::connect(running.address).await.unwrap();
        slow.write_all(b"GET /metrics HTTP/1.1\r\nHo").await.unwrap();
        // Answered after the slow one was accepted: connections are taken in turn.
        get(running.address, "/healthz").await;
        running.stop.send(()).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(5), running.tasks.join_next()).await;
        ended.unwrap().unwrap().unwrap().unwrap();
    }
}
