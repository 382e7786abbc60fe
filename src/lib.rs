//! Locks and leader election for Kubernetes that reach beyond one cluster, because they live in
//! HashiCorp Consul.
//!
//! A *claim* (one `ConsulLock` object) is a cluster's standing request for a Consul *key*. One
//! unbroken holding of the key is a *tenure*; its identity is its *fencing token*, which rises with
//! every tenure. A session, and so a tenure under it, may be relied on up to *valid until*: the send
//! time of its last good renewal + TTL. Whoever else wants the key is a *contender*; one that is
//! not ours is a *stranger*.
//!
//! # The map of the house
//!
//! From the bottom up; who may use whom is the table in `tests/layers.rs`.
//!
//! - [`clock`]: the one door to time. [`names`]: keys, sessions, nodes, tokens as types.
//! - [`api`]: the `ConsulLock` types, their rules and the generated definition. No client.
//! - [`lock`]: the protocol, pure: what a session and a lock do next, given what happened and when.
//! - [`election`]: which candidate should lead, where traffic should go, what the pod carries. Pure.
//! - [`consul`]: a narrow trait for what we ask of Consul; the HTTP client; an in-memory fake that
//!   passes the same tests.
//! - [`telemetry`]: metrics, logs, the admin port.
//! - [`keeper`]: drives the protocol against Consul and the clock, one pair of keepers per claim.
//! - [`controller`]: observe (memory) -> plan (pure) -> apply (I/O) -> status (pure) -> one patch, if
//!   it differs.
//! - [`holder`]: one lock held by this process, for those who hold one where the work is.
//! - [`agent`]: holds a lock where the work is: `run -- CMD` and the guard of its command; or beside
//!   the work: the sidecar, and the guard of the app.
//! - [`kubectl`]: what an operator sees and does by hand: `kubectl consullock`.
//! - [`replicas`]: which of the controller's replicas acts.
//! - [`cli`]: flags and environment become one validated configuration.
//!
//! Session and lock are two machines. A session keeper knows create, renew, valid until, lost,
//! destroy; a lock keeper borrows the session's validity and knows waiting, lock-delay, held,
//! releasing. Decisions are data made by pure functions, with a reason and a message that feed
//! condition, event, metric and log alike. Execution is dull. No task is detached: one that ends
//! early ends the process.
//!
//! # Guarantees
//!
//! There is one holder of a key, as long as every contender goes through Consul and clocks tick at
//! rates within a factor of two of one another. A keeper stops relying on a session at *valid
//! until* and not a moment later, whatever the network does; Consul ends a session no sooner than a
//! TTL after the last renewal that it saw, so the old holder has stopped before a new one can
//! start. What cannot be known is reported as unknown.
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

pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod consul;
pub mod controller;
pub mod election;
pub mod holder;
pub mod keeper;
pub mod kubectl;
pub mod lock;
pub mod names;
pub mod replicas;
pub mod telemetry;
