//! An HTTP server that says what a test wants it to say, and remembers what it was asked.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What happens once a request has come whole.
#[derive(Clone)]
pub(crate) enum Reply {
    /// These bytes, then the end of the connection.
    Bytes(Vec<u8>),
    /// Nothing, for ever.
    Silence,
}

impl Reply {
    /// A well-formed answer.
    pub(crate) fn of(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Reply {
        let body = body.as_ref();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
            body.len()
        );
        Reply::Bytes([head.as_bytes(), body].concat())
    }
}

/// Gives every request the same reply, until it is dropped.
pub(crate) struct Scripted {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<String>>>,
    _server: JoinSet<()>,
}

impl Scripted {
    pub(crate) async fn start(reply: Reply) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut server = JoinSet::new();
        server.spawn(serve(listener, reply, requests.clone()));
        Scripted { address, requests, _server: server }
    }

    /// Head and body of every request so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }
}

async fn serve(listener: TcpListener, reply: Reply, requests: Arc<Mutex<Vec<String>>>) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let (reply, requests) = (reply.clone(), requests.clone());
        connections.spawn(async move {
            let Some(request) = request(&mut stream).await else {
                return;
            };
            requests.lock().push(request);
            match reply {
                // A client that is gone already is some tests' point.
                Reply::Bytes(bytes) => drop(stream.write_all(&bytes).await),
                Reply::Silence => std::future::pending().await,
            }
        });
    }
}

/// `None`: the client closed first.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && body.len() >= content_length(head)
        {
            return Some(text.into_owned());
        }
        if stream.read_buf(&mut seen).await.ok()? == 0 {
            return None;
        }
    }
}

fn content_length(head: &str) -> usize {
    let header = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
    });
    header.unwrap_or(0)
}

/// A gateway that serves `target` under a path prefix, as `http://<address><prefix>`.
pub(crate) struct Gateway {
    pub(crate) address: String,
    _server: JoinSet<()>,
}

impl Gateway {
    pub(crate) async fn start(target: SocketAddr, prefix: &'static str) -> Gateway {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}{prefix}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(pass_on(stream, target, prefix));
            }
        });
        Gateway { address, _server: server }
    }
}

/// One request per connection, so that each path can be cut.
async fn pass_on(mut stream: TcpStream, target: SocketAddr, prefix: &str) {
    let Some(request) = request(&mut stream).await else {
        return;
    };
    let (first, rest) = request.split_once("\r\n").unwrap();
    let Some((method, path)) = first.split_once(' ') else {
        return;
    };
    let Some(path) = path.strip_prefix(prefix) else {
        let Reply::Bytes(bytes) = Reply::of("404 Not Found", "", "no such route") else {
            return;
        };
        return drop(stream.write_all(&bytes).await);
    };
    let cut = format!("{method} {path}\r\nConnection: close\r\n{rest}");
    let mut consul = TcpStream::connect(target).await.unwrap();
    consul.write_all(cut.as_bytes()).await.unwrap();
    drop(tokio::io::copy(&mut consul, &mut stream).await);
}
