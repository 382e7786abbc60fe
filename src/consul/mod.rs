//! The Consul client: one narrow trait, [`Consul`], that says what we ask of Consul; the HTTP
//! client ([`http::HttpConsul`]) that asks a real one; and an in-memory fake ([`fake::FakeConsul`])
//! for simulations in paused time, which passes the same contract tests as the real server.
//!
//! Used by `keeper` and by the outer layers that build a client. Knows nothing of locks, claims
//! or Kubernetes.
//!
//! # Guarantees
//! Every call ends: with an answer, with a classified [`ConsulError`], or within the client's own
//! time limit. Dropping a call's future gives the call up; whether Consul carried it out is then
//! unknown. The token appears in no error and no `Debug`.
//! # Not guaranteed
//! A [`Class::Transient`] error of a write does not say that nothing was written unless it says
//! so: writes whose fate is open are [`Class::UnknownOutcome`].

use std::{fmt, future::Future, ops::Range, time::Duration};

use jiff::Timestamp;

use crate::names::{Key, NodeName, SessionId, SessionName};

pub mod fake;
pub mod gated;
pub mod http;

/// What a lost session does to the keys it holds. Consul: `Behavior`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Behavior {
    /// The key stays and is free.
    Release,
    /// The key is deleted.
    Delete,
}

/// Everything a session is created with. All fields are sent, since Consul's defaults (the
/// answering agent's node, its gossip health check, no TTL) would tie a lock to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRequest {
    /// Derived from the owner, so that a session whose creation reply was lost is found again.
    pub name: SessionName,
    /// The catalog node that the session is bound to. It must be registered.
    pub node: NodeName,
    /// Consul ends the session between TTL and 2×TTL after the last renewal it saw.
    pub ttl: Duration,
    /// How long nobody may take a key whose holder's session ended uncleanly. At most 60 s count.
    pub lock_delay: Duration,
    /// What a lost session does to its keys.
    pub behavior: Behavior,
    /// Node checks that end the session when critical. Empty: none, and no gossip check either.
    pub node_checks: Vec<String>,
    /// Service checks (by check id) that end the session when critical.
    pub service_checks: Vec<String>,
}

/// A session as Consul reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its identifier.
    pub id: SessionId,
    /// Its name; empty if its creator gave none.
    pub name: SessionName,
    /// The node it is bound to.
    pub node: NodeName,
    /// `None`: it never expires by itself.
    pub ttl: Option<Duration>,
    /// Its lock-delay.
    pub lock_delay: Duration,
    /// What its end does to its keys.
    pub behavior: Behavior,
    /// The Raft index of its creation: of two sessions of one name the lower came first.
    pub create_index: u64,
}

/// A renewal that Consul granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The TTL from now on. Consul's contract lets it grow, so the reply counts, not the request.
    pub ttl: Duration,
}

/// One KV entry.
#[derive(Clone, PartialEq, Eq)]
pub struct KvPair {
    /// The key as Consul returned it; strangers' keys need not be valid [`Key`]s.
    pub key: String,
    /// The raw value; empty for none.
    pub value: Vec<u8>,
    /// The flags word, by which lock recipes tell their keys from others.
    pub flags: u64,
    /// The session that holds the key.
    pub session: Option<SessionId>,
    /// Raft index of the key's creation.
    pub create_index: u64,
    /// Raft index of the last change.
    pub modify_index: u64,
    /// Consul's count of acquisitions; restarts when the key is deleted or plainly written.
    pub lock_index: u64,
}

impl fmt::Debug for KvPair {
    /// Leaves the value out: payloads are users' data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvPair")
            .field("key", &self.key)
            .field("bytes", &self.value.len())
            .field("flags", &self.flags)
            .field("session", &self.session)
            .field("modify_index", &self.modify_index)
            .field("lock_index", &self.lock_index)
            .finish_non_exhaustive()
    }
}

/// Which server may answer a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// The leader, by its lease: a partitioned old leader may answer for a while.
    Default,
    /// Any server, with data of any age.
    Stale,
    /// The leader, after a quorum confirmed it: the only reading that may decide who holds a key.
    Consistent,
}

/// One key as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// `None`: there is no such key.
    pub pair: Option<KvPair>,
    /// The index to block on next (`X-Consul-Index`).
    pub index: u64,
}

/// All keys under a prefix as they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// In Consul's (lexical) order.
    pub pairs: Vec<KvPair>,
    /// The index to block on next (`X-Consul-Index`).
    pub index: u64,
}

/// A blocking read: wait until something changed after an index, or `wait` has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocking {
    /// The index of the previous answer; 0 answers at once.
    pub after: u64,
    /// At most 60 s: an abandoned poll stays with Consul until its wait ends. Consul adds up to a
    /// sixteenth to it.
    pub wait: Duration,
}

/// One step of a transaction. All of them happen in one commit, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the parameter of Consul's verb of the same name")]
pub enum TxnOp {
    /// Takes the key for the session; also rewrites value and flags of a key that it holds.
    Lock { key: Key, session: SessionId, value: Vec<u8>, flags: u64 },
    /// Gives the key up; writes value and flags.
    Unlock { key: Key, session: SessionId, value: Vec<u8>, flags: u64 },
    /// A plain write, whoever holds the key.
    Set { key: Key, value: Vec<u8>, flags: u64 },
    /// Deletes the key, whoever holds it.
    Delete { key: Key },
    /// Fails unless the key's `ModifyIndex` is this.
    CheckIndex { key: Key, index: u64 },
    /// Fails unless the session holds the key.
    CheckSession { key: Key, session: SessionId },
    /// Fails if the key exists.
    CheckNotExists { key: Key },
}

/// What became of a transaction that Consul judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Txn {
    /// Everything happened. The entries that `Lock`, `Unlock` and `Set` wrote, in the order of the
    /// steps, without their values.
    Committed(Vec<KvPair>),
    /// Nothing happened, for these reasons.
    RolledBack(Vec<TxnRefusal>),
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnRefusal {
    /// Position of the step, from 0.
    pub op: usize,
    /// The reason.
    pub reason: Refusal,
}

/// The reasons that Consul gives in a 409 of `/v1/txn`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `lock is already held`: another session has it.
    Held,
    /// `due to lock delay`: nobody has it, and nobody may have it yet.
    LockDelay,
    /// `invalid session`: the session that should take it is gone.
    InvalidSession,
    /// A check failed, or an unlock by somebody who does not hold the key; Consul's words.
    Check(String),
}

/// How `PUT /v1/kv` treats the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// A plain write, which no lock prevents.
    Plain,
    /// `?acquire=`: write and take the key, if it is free or the session's own.
    Acquire(SessionId),
    /// `?release=`: write and free the key, if it is the session's own.
    Release(SessionId),
}

/// The ACL token that Consul sees us with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// Consul's public identifier of the token.
    pub accessor_id: String,
    /// From when until when it is good, by Consul's clock, if it expires.
    pub life: Option<Range<Timestamp>>,
}

/// What we ask of Consul. Implementations are shared by all keepers of a process.
///
/// Every method is cancel-safe in the sense that dropping its future leaves the client usable;
/// a write may or may not have happened then.
pub trait Consul: Send + Sync + 'static {
    /// Puts a node without address or health checks into the catalog; changes nothing if it is
    /// there. `PUT /v1/catalog/register`, needs `node:write` on it.
    fn register_node(
        &self,
        node: &NodeName,
    ) -> impl Future<Output = Result<(), ConsulError>> + Send;

    /// Creates a session. **Not idempotent**: after [`Class::UnknownOutcome`] look its name up
    /// with [`Consul::node_sessions`]. `PUT /v1/session/create`, needs `session:write` on the node.
    fn create_session(
        &self,
        request: &SessionRequest,
    ) -> impl Future<Output = Result<SessionId, ConsulError>> + Send;

    /// Renews a session. [`Class::Lost`] when Consul does not know it (404).
    fn renew_session(
        &self,
        id: &SessionId,
    ) -> impl Future<Output = Result<Renewal, ConsulError>> + Send;

    /// Ends a session. Ending one that is gone succeeds. Keys that it still holds get its
    /// lock-delay, so release them first.
    fn destroy_session(
        &self,
        id: &SessionId,
    ) -> impl Future<Output = Result<(), ConsulError>> + Send;

    /// Looks a session up. `None`: it is gone. An answer that ACLs filtered is
    /// [`Class::Denied`], never `None`.
    fn session(
        &self,
        id: &SessionId,
        consistency: Consistency,
    ) -> impl Future<Output = Result<Option<SessionInfo>, ConsulError>> + Send;

    /// All sessions bound to a node, read consistently.
    fn node_sessions(
        &self,
        node: &NodeName,
    ) -> impl Future<Output = Result<Vec<SessionInfo>, ConsulError>> + Send;

    /// Reads a key.
    fn get(
        &self,
        key: &Key,
        consistency: Consistency,
    ) -> impl Future<Output = Result<Reading, ConsulError>> + Send;

    /// Reads a key once it changed after `blocking.after`, or when the wait is over.
    fn watch_key(
        &self,
        key: &Key,
        blocking: Blocking,
        consistency: Consistency,
    ) -> impl Future<Output = Result<Reading, ConsulError>> + Send;

    /// Reads everything under `prefix` once something there changed after `blocking.after`, or
    /// when the wait is over. Any change returns the whole prefix.
    fn watch_prefix(
        &self,
        prefix: &str,
        blocking: Blocking,
        consistency: Consistency,
    ) -> impl Future<Output = Result<Listing, ConsulError>> + Send;

    /// Writes a key. `false`: `mode` did not allow it. Without `flags` Consul sets them to 0.
    fn put(
        &self,
        key: &Key,
        value: &[u8],
        flags: Option<u64>,
        mode: PutMode,
    ) -> impl Future<Output = Result<bool, ConsulError>> + Send;

    /// Deletes a key, whoever holds it.
    fn delete(&self, key: &Key) -> impl Future<Output = Result<(), ConsulError>> + Send;

    /// Carries out all steps in one commit, or none. At most 64 steps (Consul before 1.14).
    fn transaction(&self, steps: &[TxnOp])
    -> impl Future<Output = Result<Txn, ConsulError>> + Send;

    /// The address of the servers' leader; `None` during an election. `GET /v1/status/leader`,
    /// which needs no token.
    fn leader(&self) -> impl Future<Output = Result<Option<String>, ConsulError>> + Send;

    /// Who Consul takes us for. `GET /v1/acl/token/self`.
    fn token_self(&self) -> impl Future<Output = Result<TokenInfo, ConsulError>> + Send;
}

/// What an error means for whoever made the call. Drives retry, condition reason and metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Nothing happened; the same call may succeed later.
    Transient,
    /// The call may have been carried out; find out before repeating what is not idempotent.
    UnknownOutcome,
    /// The session is gone. To be confirmed with a consistent read before acting on it.
    Lost,
    /// An ACL rule is missing; the message names it where Consul does.
    Denied,
    /// Consul will never accept this request.
    Invalid,
}

impl Class {
    /// Every class, for metrics.
    pub const ALL: [Class; 5] =
        [Class::Transient, Class::UnknownOutcome, Class::Lost, Class::Denied, Class::Invalid];

    /// As a metric label or condition reason.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Transient => "Transient",
            Class::UnknownOutcome => "UnknownOutcome",
            Class::Lost => "Lost",
            Class::Denied => "Denied",
            Class::Invalid => "Invalid",
        }
    }
}

/// Which call failed; also the `operation` label of the request metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the method of the client of the same name")]
pub enum Operation {
    RegisterNode,
    DeregisterNode,
    CreateSession,
    RenewSession,
    DestroySession,
    ReadSession,
    ListSessions,
    ReadKey,
    WatchKey,
    WatchPrefix,
    WriteKey,
    DeleteKey,
    Transaction,
    ReadLeader,
    ReadToken,
}

impl Operation {
    /// As a metric label and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Operation::RegisterNode => "register_node",
            Operation::DeregisterNode => "deregister_node",
            Operation::CreateSession => "create_session",
            Operation::RenewSession => "renew_session",
            Operation::DestroySession => "destroy_session",
            Operation::ReadSession => "read_session",
            Operation::ListSessions => "list_sessions",
            Operation::ReadKey => "read_key",
            Operation::WatchKey => "watch_key",
            Operation::WatchPrefix => "watch_prefix",
            Operation::WriteKey => "write_key",
            Operation::DeleteKey => "delete_key",
            Operation::Transaction => "transaction",
            Operation::ReadLeader => "read_leader",
            Operation::ReadToken => "read_token",
        }
    }
}

/// A call that did not succeed: what was attempted, what it means, and what Consul or the
/// transport said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", operation.as_str())]
pub struct ConsulError {
    /// The call.
    pub operation: Operation,
    /// What the failure means.
    pub class: Class,
    /// Consul's or the transport's words; never the token.
    pub message: String,
}
