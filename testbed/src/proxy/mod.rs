//! A proxy that misbehaves on demand, in front of any server.
//!
//! [`Proxy::tcp`] passes bytes on and knows the network's own faults ([`Fault`]). [`Proxy::http`]
//! reads plain HTTP/1.1 as well, and can answer single requests wrongly, late or not at all
//! ([`Answer`]). Faults are switched at run time; dropping the proxy closes all its connections.

mod gate;
mod http;
mod tcp;

use std::io;

use parking_lot::Mutex;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gate::Gate;

use crate::ports::Port;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: bytes pass.
    None,
    /// Connections stay open and new ones are accepted, but no byte passes in either direction.
    /// What was sent meanwhile arrives when the fault ends, as TCP would have it.
    Blackhole,
    /// Connections are closed and new ones refused.
    Cut,
    /// Bytes pass this much later, in each direction.
    Delay(Duration),
    /// Each connection is closed when this many bytes of replies have passed since the fault
    /// began. Only on a [`Proxy::tcp`]; for HTTP there is [`Answer::CutShort`].
    TruncateReplies(u64),
}

/// What a client gets instead of the server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This answer; the server never sees the request.
    Canned {
        /// The status code.
        status: u16,
        /// The body, sent as `application/json`.
        body: Vec<u8>,
    },
    /// The beginning of an answer that announces more, and then the end of the connection. The
    /// server never sees the request.
    CutShort {
        /// The status code.
        status: u16,
        /// What is sent of the body.
        body: Vec<u8>,
    },
    /// Nothing, for as long as the client waits; the server never sees the request.
    Never,
    /// The end of the connection; the server never sees the request.
    RequestLost,
    /// The end of the connection, after the server did what it was asked to do.
    ReplyLost,
    /// The server's answer, this much later.
    Late(Duration),
}

impl Answer {
    /// An answer with a text.
    #[must_use]
    pub fn text(status: u16, body: &str) -> Answer {
        Answer::Canned { status, body: body.as_bytes().to_vec() }
    }
}

/// A running proxy.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
    _port: Port,
}

/// What the proxy's threads share.
struct Shared {
    upstream: SocketAddr,
    gate: Gate,
    rules: Mutex<Vec<Rule>>,
    requests: Mutex<Vec<String>>,
    accepted: AtomicUsize,
    sockets: Mutex<Vec<Arc<Pair>>>,
}

/// The next `left` requests that match get `answer`.
struct Rule {
    /// `PUT /v1/session/create`, or a path alone for any method.
    prefix: String,
    left: usize,
    answer: Answer,
}

/// The two sockets of one connection.
pub(crate) struct Pair {
    client: TcpStream,
    upstream: TcpStream,
}

impl Pair {
    fn close(&self) {
        // Either may be closed already.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.upstream.shutdown(Shutdown::Both);
    }
}

/// Serves one connection until it ends.
type Serve = fn(&Shared, &Pair) -> io::Result<()>;

impl Proxy {
    /// Passes bytes on to `upstream`, whatever they mean.
    ///
    /// # Errors
    /// There is no free port.
    pub fn tcp(upstream: SocketAddr) -> io::Result<Proxy> {
        Proxy::start(upstream, tcp::serve)
    }

    /// Passes plain HTTP/1.1 on to `upstream`.
    ///
    /// # Errors
    /// There is no free port.
    pub fn http(upstream: SocketAddr) -> io::Result<Proxy> {
        Proxy::start(upstream, http::serve)
    }

    fn start(upstream: SocketAddr, serve: Serve) -> io::Result<Proxy> {
        let port = Port::reserve()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let listener = TcpListener::bind(address)?;
        let shared = Arc::new(Shared {
            upstream,
            gate: Gate::new(),
            rules: Mutex::default(),
            requests: Mutex::default(),
            accepted: AtomicUsize::new(0),
            sockets: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = thread::spawn(move || accept(&accepting, listener, address, serve));
        Ok(Proxy { shared, address, acceptor: Some(acceptor), _port: port })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the network does this.
    pub fn set(&self, fault: Fault) {
        let listening = self.shared.gate.set(fault);
        if fault == Fault::Cut {
            self.shared.close_all();
            if listening {
                self.wake_acceptor();
            }
        }
        // Only then does a new connection meet the new fault, rather than the end of the old one.
        self.shared.gate.wait_for_listener(fault != Fault::Cut);
    }

    /// The next `count` requests get `answer`, if they begin with `prefix`: a method and a path
    /// (`PUT /v1/session/create`), or a path alone. Rules are tried in the order they came.
    pub fn answer_next(&self, count: usize, prefix: &str, answer: Answer) {
        self.shared.rules.lock().push(Rule { prefix: prefix.to_owned(), left: count, answer });
    }

    /// How many answers of [`Proxy::answer_next`] are still to be given.
    #[must_use]
    pub fn answers_left(&self) -> usize {
        self.shared.rules.lock().iter().map(|rule| rule.left).fold(0, usize::saturating_add)
    }

    /// Forgets what [`Proxy::answer_next`] was told.
    pub fn forget_answers(&self) {
        self.shared.rules.lock().clear();
    }

    /// How many requests began with `prefix`, as in [`Proxy::answer_next`]. Only on a
    /// [`Proxy::http`].
    #[must_use]
    pub fn requests(&self, prefix: &str) -> usize {
        self.shared.requests.lock().iter().filter(|request| matches(request, prefix)).count()
    }

    /// How many connections were accepted so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open now.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.shared.sockets.lock().len()
    }

    fn wake_acceptor(&self) {
        // If this fails there is no listener left to wake.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let listening = self.shared.gate.close();
        self.shared.close_all();
        if listening {
            self.wake_acceptor();
        }
        if let Some(acceptor) = self.acceptor.take() {
            // Its panic would have been printed; there is nothing left to save.
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn close_all(&self) {
        self.sockets.lock().iter().for_each(|pair| pair.close());
    }

    /// Notes a request and finds what was ordered for it.
    fn answer_to(&self, request: &str) -> Option<Answer> {
        self.requests.lock().push(request.to_owned());
        let mut rules = self.rules.lock();
        let rule = rules.iter_mut().find(|rule| rule.left > 0 && matches(request, &rule.prefix))?;
        rule.left -= 1;
        Some(rule.answer.clone())
    }
}

/// Whether a request (`PUT /v1/kv/key`) begins with a prefix, with or without a method.
fn matches(request: &str, prefix: &str) -> bool {
    let path = request.split_once(' ').map_or("", |(_, path)| path);
    request.starts_with(prefix) || path.starts_with(prefix)
}

/// Accepts until the proxy is dropped; while the network is cut, nobody listens.
fn accept(shared: &Arc<Shared>, first: TcpListener, address: SocketAddr, serve: Serve) {
    let mut listener = Some(first);
    loop {
        if shared.gate.is_closed() {
            return;
        }
        if shared.gate.fault() == Fault::Cut {
            drop(listener.take());
            shared.gate.listening(false);
            shared.gate.wait_until_not_cut();
            continue;
        }
        let Some(open) = &listener else {
            listener = TcpListener::bind(address).ok();
            match &listener {
                Some(_) => shared.gate.listening(true),
                None => crate::wait::pause(), // the last connections of the old one still close
            }
            continue;
        };
        let accepted = open.accept();
        if shared.gate.is_closed() || shared.gate.fault() == Fault::Cut {
            continue; // this was our own call to wake up, or came too late
        }
        match accepted {
            Ok((client, _)) => spawn_connection(shared, client, serve),
            Err(_) => crate::wait::pause(), // out of descriptors, or the client left at once
        }
    }
}

/// Serves one client in threads of its own, which end when the proxy or either side closes.
fn spawn_connection(shared: &Arc<Shared>, client: TcpStream, serve: Serve) {
    shared.accepted.fetch_add(1, Ordering::SeqCst);
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let Ok(upstream) = TcpStream::connect_timeout(&shared.upstream, Duration::from_secs(5))
        else {
            return; // the client sees its connection closed, as without the proxy
        };
        // Whether small writes wait for acknowledgements is not ours to decide.
        let _ = client.set_nodelay(true);
        let _ = upstream.set_nodelay(true);
        let pair = Arc::new(Pair { client, upstream });
        shared.sockets.lock().push(Arc::clone(&pair));
        if !shared.gate.is_closed() && shared.gate.fault() != Fault::Cut {
            // An error is a connection that broke, which is what this is for.
            let _ = serve(&shared, &pair);
        }
        pair.close();
        shared.sockets.lock().retain(|open| !Arc::ptr_eq(open, &pair));
    });
}

#[cfg(test)]
mod tests;
