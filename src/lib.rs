//! Locks that live in HashiCorp Consul, for programs that hold them themselves; and the parts of
//! `consul-lock`, which does so for Kubernetes and for commands.
//!
//! A *key* of Consul's is locked. One unbroken holding of it is a *tenure*; its identity is its
//! *fencing token*, which rises with every tenure. It may be relied on up to *valid until*: the send
//! time of the last good renewal + TTL. Whoever else wants the key is a *contender*, such as
//! `consul lock`, a Go program with `api.Lock`, or a `ConsulLock` of a cluster.
//!
//! ```
//! use consul_lock::{Connection, Locks, Prefix, Settings};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let consul = testbed::Consul::start(testbed::ConsulConfig::default())?;
//! # let address = consul.address();
//! // Or Connection::from_env(): CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN and the like.
//! let settings = Settings::new(Prefix::new("jobs/")?);
//! let locks = Locks::connect(Connection::to(address), settings)?;
//!
//! let held = locks.acquire("jobs/nightly").await?;
//! let work = async { held.token().map(|token| format!("done under fencing token {token}")) };
//! tokio::select! {
//!     done = work => println!("{}", done.ok_or("lost before it began")?),
//!     () = held.lost() => println!("stop: somebody else may hold it now"),
//! }
//! held.release().await?;
//! locks.close().await?;
//! # assert!(consul.request("GET", "/v1/kv/jobs/nightly", b"")?.json()[0]["Session"].is_null());
//! # Ok(())
//! # }
//! ```
//!
//! [`Locks`] are what a process holds under one prefix; [`Held`] is one lock. All spans are
//! [`Duration`](std::time::Duration)s; instants are readings of a clock that counts on while the
//! machine sleeps. Every error says what was wrong and what is allowed; every async function says
//! what becomes of it when it is dropped. Nothing blocks a thread, and nothing panics.
//!
//! # Guarantees
//!
//! There is one holder of a key, as long as every contender goes through Consul and clocks tick at
//! rates within a factor of two of one another. A lock is not relied on at *valid until* nor after,
//! whatever the network does; Consul ends a session no sooner than a TTL after the last renewal that
//! it saw, so the old holder has stopped before a new one can start. What cannot be known is
//! reported as unknown.
//!
//! A command that is run under a lock is gone at *valid until*, and the key is not given up before.
//!
//! At most one replica of the controller acts at any instant. One that takes over adopts the
//! sessions that are recorded: a restart or failover costs no tenure.
//!
//! # Not guaranteed
//!
//! No lock makes a frozen process safe: it may sleep through the end of its tenure and then write.
//! The protected resource must refuse a fencing token smaller than one that it has seen. Strangers
//! do not stop by themselves. If no controller runs for longer than a TTL, sessions expire.
//!
//! # The map of the house
//!
//! For those who work on it. All of it is one package, so the binary, the tests and the benchmarks
//! reach its modules; they are no part of the face, are not shown here, and change without notice.
//! From the bottom up; who may use whom is the table in `tests/layers.rs`.
//!
//! - `clock`: the one door to time. `names`: keys, sessions, nodes, tokens as types.
//! - `api`: the `ConsulLock` types, their rules and the generated definition. No client.
//! - `lock`: the protocol, pure: what a session and a lock do next, given what happened and when.
//! - `election`: which candidate should lead, where traffic should go, what the pod carries. Pure.
//! - `consul`: a narrow trait for what we ask of Consul; the HTTP client; an in-memory fake that
//!   passes the same tests.
//! - `telemetry`: metrics, logs, the admin port.
//! - `keeper`: drives the protocol against Consul and the clock: one pair of keepers per claim, or
//!   one session for many locks.
//! - `controller`: observe (memory) -> plan (pure) -> apply (I/O) -> status (pure) -> one patch, if
//!   it differs.
//! - `holder`: one lock held by this process, for those who hold one where the work is.
//! - `agent`: holds a lock where the work is: `run -- CMD` and the guard of its command; or beside
//!   the work: the sidecar, and the guard of the app.
//! - `kubectl`: what an operator sees and does by hand: `kubectl consullock`.
//! - `locks`: the crate's face, what is shown here.
//! - `replicas`: which of the controller's replicas acts.
//! - `cli`: flags and environment become one validated configuration.
//! - `fuzz`: what is done with any bytes in the place of text that others wrote. In tests, and for
//!   `make fuzz`.
//!
//! Session and lock are two machines. A session keeper knows create, renew, valid until, lost,
//! destroy; a lock keeper borrows the session's validity and knows waiting, lock-delay, held,
//! releasing. Decisions are data made by pure functions, with a reason and a message that feed
//! condition, event, metric and log alike. Execution is dull. No task is detached: one that ends
//! early ends the process.

#[doc(hidden)]
pub mod agent;
#[doc(hidden)]
pub mod api;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod clock;
#[doc(hidden)]
pub mod consul;
#[doc(hidden)]
pub mod controller;
#[doc(hidden)]
pub mod election;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
#[doc(hidden)]
pub mod holder;
#[doc(hidden)]
pub mod keeper;
#[doc(hidden)]
pub mod kubectl;
#[doc(hidden)]
pub mod lock;
mod locks;
#[doc(hidden)]
pub mod names;
#[doc(hidden)]
pub mod replicas;
#[doc(hidden)]
pub mod telemetry;

#[doc(inline)]
pub use clock::Instant;
pub use locks::{
    AcquireError, CloseError, ConnectError, Connection, Held, LockDelay, Locks, Name, Prefix,
    ReleaseError, Settings, SettingsError, Ttl,
};
#[doc(inline)]
pub use names::{FencingToken, Key, KeyError};

/// The page of the book about this crate. What it shows compiles.
#[cfg(doctest)]
#[doc = include_str!("../docs/src/guide/rust.md")]
struct Page;
