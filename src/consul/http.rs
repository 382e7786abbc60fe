//! The client that asks a real Consul over its HTTP API.
//!
//! # Guarantees
//! Every call ends within its time limit: [`HttpConfig::timeout`], or a blocking query's wait, a
//! sixteenth of it and 5 s. No redirect is followed, no proxy of the environment is used, nothing
//! is sent twice. At most [`HttpConfig::max_in_flight`] short calls and [`HttpConfig::max_polls`]
//! blocking queries are open at a time; each uses a connection of its own over plain HTTP. The
//! token is sent in a header only and appears in no error and no `Debug`. The files of token, CA, client
//! certificate and key are read again whenever they change.
//! # Not guaranteed
//! Calls are capped, connections only by consequence: the pool opens another
//! whenever a call begins before the last one's connection is back in it, and keeps as many idle
//! ones as calls are allowed. That is one too many as a rule, and can be several on a busy machine.
//!
//! The anonymous token is special: Consul does not tell it that ACLs hid something, so an empty
//! answer to it may be a denial.

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use jiff::Timestamp;
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;

use crate::{
    clock::Clock,
    consul::{
        Blocking, Class, Consistency, Consul, ConsulError, Listing, Operation, PutMode, Reading,
        Renewal, SessionInfo, SessionRequest, TokenInfo, Txn, TxnOp,
    },
    names::{Key, NodeName, SessionId},
};

mod address;
mod answer;
mod client;
mod config;
mod errors;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;
mod life;
mod login;
mod survey;
mod token;
mod transport;
mod wire;

pub use address::AddressError;
pub use client::ensure_tls_provider;
pub use config::{HttpConfig, HttpConfigError, Observer};
pub use life::Certificates;
pub use login::{LoginSettings, SERVICE_ACCOUNT_TOKEN};
pub use survey::{Census, date};
pub use token::{Token, TokenError, TokenFileError, TokenSource};

use address::Address;
use answer::Answer;
use transport::{Body, Call, Transport};

/// The largest answer that concerns one key or session.
const SMALL: usize = 2 * 1024 * 1024;
/// The largest answer that lists a prefix.
const LARGE: usize = 256 * 1024 * 1024;
/// An abandoned blocking query stays with Consul until its wait ends.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What a request's URL is, for whichever tenant.
fn url<'a>(
    address: &Address,
    tenant: &[(&'static str, String)],
    segments: impl IntoIterator<Item = &'a str>,
) -> Url {
    let mut url = address.url(segments);
    for (name, value) in tenant {
        url.query_pairs_mut().append_pair(name, value);
    }
    url
}

/// The client. Clones share connections and limits.
#[derive(Clone)]
pub struct HttpConsul(Arc<Inner>);

struct Inner {
    address: Address,
    /// `ns` and `partition`, as every request carries them.
    tenant: Vec<(&'static str, String)>,
    transport: Transport,
    clock: Clock,
    observer: Option<Observer>,
}

impl fmt::Debug for HttpConsul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConsul").field("address", &self.0.address).finish_non_exhaustive()
    }
}

impl HttpConsul {
    /// Reads the files that the configuration names; connects to nothing yet.
    ///
    /// # Errors
    /// [`HttpConfigError`], which says what is wrong with which setting.
    pub fn new(config: HttpConfig) -> Result<HttpConsul, HttpConfigError> {
        let clock = Clock::boot();
        let mut address = Address::parse(&config.address)?;
        config::needs_tls(&config, &address)?;
        // Certificates are looked at under another name, if one is given; the connection goes here.
        let place = address.clone();
        if let Some(name) = &config.tls_server_name {
            // An IP address would be connected to instead of looked up.
            let named = address.base.set_host(Some(name)).is_ok();
            if !named || !matches!(address.base.domain(), Some(host) if !host.is_empty()) {
                return Err(HttpConfigError::ServerName(name.clone()));
            }
        }
        let tenant = [("ns", config.namespace.clone()), ("partition", config.partition.clone())];
        let tenant: Vec<_> =
            tenant.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let login = url(&address, &tenant, ["v1", "acl", "login"]);
        let transport = Transport::new(&config, &place, login, clock.clone())?;
        let observer = config.observer;
        Ok(HttpConsul(Arc::new(Inner { address, tenant, transport, clock, observer })))
    }

    /// Gives the token back that was got by a login, if there is one. Whoever asks for something
    /// afterwards logs in anew. Ends within two seconds; what Consul does not answer is logged.
    ///
    /// # Cancellation
    /// Dropped, it may leave the token to its own end.
    pub async fn log_out(&self) {
        let url = url(&self.0.address, &self.0.tenant, ["v1", "acl", "logout"]);
        self.0.transport.log_out(url).await;
    }

    /// Logs in anew if that is due, and has Consul tell until when a token is good that it has not told
    /// of. Otherwise nothing is asked, so it may be called again and again: whoever has nothing to ask
    /// for a long time still has a token that is good.
    ///
    /// # Errors
    /// [`ConsulError`].
    pub async fn look_after_token(&self) -> Result<(), ConsulError> {
        let transport = &self.0.transport;
        if transport.is_login_due() {
            self.token_self().await?;
        }
        let Some(token) = transport.untold_token() else { return Ok(()) };
        match self.token_self().await {
            Ok(info) => transport.told(token, info.life),
            // It has no ACLs, or no such question.
            Err(error) if error.class == Class::Invalid => transport.told(token, None),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// From when until when the token is good that calls are made with now, by Consul's clock. `None`: it
    /// does not expire, or Consul has not told; see [`HttpConsul::look_after_token`].
    pub fn token_life(&self) -> Option<Range<Timestamp>> {
        self.0.transport.token_life()
    }

    /// The same of the certificates, as their files say.
    pub fn certificates(&self) -> Certificates {
        self.0.transport.certificates()
    }

    /// A call with small answer and the usual time limit, to be adorned further.
    fn call<'a>(
        &self,
        operation: Operation,
        method: Method,
        segments: impl IntoIterator<Item = &'a str>,
    ) -> Call {
        let url = url(&self.0.address, &self.0.tenant, segments);
        Call { operation, method, url, body: None, body_max: SMALL, wait: None, also: &[] }
    }

    /// Carries a call out, has its answer understood, and reports to the observer.
    async fn ask<T>(
        &self,
        call: Call,
        understand: impl FnOnce(&Answer) -> Result<T, ConsulError>,
    ) -> Result<T, ConsulError> {
        let (operation, began) = (call.operation, self.0.clock.now());
        let reply = self.0.transport.exchange(call).await;
        let understood = reply.and_then(|reply| understand(&Answer { operation, reply }));
        if let Some(observer) = &self.0.observer {
            let result = understood.as_ref().map(|_| ()).map_err(|error| error.class);
            observer(operation, result, self.0.clock.now().since(began));
        }
        understood
    }

    async fn read_key(&self, mut call: Call, key: &Key) -> Result<Reading, ConsulError> {
        call.also = &[StatusCode::NOT_FOUND];
        self.ask(call, |answer| answer.reading(key)).await
    }
}

fn json(operation: Operation, value: &impl Serialize) -> Result<Body, ConsulError> {
    serde_json::to_vec(value).map(Body::Json).map_err(|error| ConsulError {
        operation,
        class: Class::Invalid,
        message: error.to_string(),
    })
}

fn with_consistency(url: &mut Url, consistency: Consistency) {
    match consistency {
        Consistency::Default => {}
        Consistency::Stale => drop(url.query_pairs_mut().append_key_only("stale")),
        Consistency::Consistent => drop(url.query_pairs_mut().append_key_only("consistent")),
    }
}

fn with_blocking(call: &mut Call, blocking: Blocking) {
    // A wait of nothing would mean Consul's default of five minutes.
    let wait = blocking.wait.clamp(Duration::from_millis(1), WAIT_MAX);
    call.url
        .query_pairs_mut()
        .append_pair("index", &blocking.after.to_string())
        .append_pair("wait", &wire::go_text(wait));
    call.wait = Some(wait);
}

/// Path segments of a key or prefix, whose slashes stay slashes.
fn kv_path(key: &str) -> impl Iterator<Item = &str> {
    ["v1", "kv"].into_iter().chain(key.split('/'))
}

impl Consul for HttpConsul {
    async fn register_node(&self, node: &NodeName) -> Result<(), ConsulError> {
        let operation = Operation::RegisterNode;
        let mut call = self.call(operation, Method::PUT, ["v1", "catalog", "register"]);
        call.body = Some(json(operation, &wire::Registration::of(node))?);
        self.ask(call, Answer::done).await
    }

    async fn create_session(&self, request: &SessionRequest) -> Result<SessionId, ConsulError> {
        let operation = Operation::CreateSession;
        let mut call = self.call(operation, Method::PUT, ["v1", "session", "create"]);
        call.body = Some(json(operation, &wire::NewSession::of(request))?);
        self.ask(call, Answer::created).await
    }

    async fn renew_session(&self, id: &SessionId) -> Result<Renewal, ConsulError> {
        let path = ["v1", "session", "renew", id.as_str()];
        let call = self.call(Operation::RenewSession, Method::PUT, path);
        self.ask(call, |answer| answer.renewal(id)).await
    }

    async fn destroy_session(&self, id: &SessionId) -> Result<(), ConsulError> {
        let path = ["v1", "session", "destroy", id.as_str()];
        let call = self.call(Operation::DestroySession, Method::PUT, path);
        self.ask(call, Answer::done).await
    }

    async fn session(
        &self,
        id: &SessionId,
        consistency: Consistency,
    ) -> Result<Option<SessionInfo>, ConsulError> {
        let path = ["v1", "session", "info", id.as_str()];
        let mut call = self.call(Operation::ReadSession, Method::GET, path);
        with_consistency(&mut call.url, consistency);
        self.ask(call, Answer::session).await
    }

    async fn node_sessions(&self, node: &NodeName) -> Result<Vec<SessionInfo>, ConsulError> {
        let path = ["v1", "session", "node", node.as_str()];
        let mut call = self.call(Operation::ListSessions, Method::GET, path);
        with_consistency(&mut call.url, Consistency::Consistent);
        call.body_max = LARGE;
        self.ask(call, |answer| answer.sessions_of(node)).await
    }

    async fn get(&self, key: &Key, consistency: Consistency) -> Result<Reading, ConsulError> {
        let mut call = self.call(Operation::ReadKey, Method::GET, kv_path(key.as_str()));
        with_consistency(&mut call.url, consistency);
        self.read_key(call, key).await
    }

    async fn watch_key(
        &self,
        key: &Key,
        blocking: Blocking,
        consistency: Consistency,
    ) -> Result<Reading, ConsulError> {
        let mut call = self.call(Operation::WatchKey, Method::GET, kv_path(key.as_str()));
        with_consistency(&mut call.url, consistency);
        with_blocking(&mut call, blocking);
        self.read_key(call, key).await
    }

    async fn watch_prefix(
        &self,
        prefix: &str,
        blocking: Blocking,
        consistency: Consistency,
    ) -> Result<Listing, ConsulError> {
        let mut call = self.call(Operation::WatchPrefix, Method::GET, kv_path(prefix));
        call.url.query_pairs_mut().append_key_only("recurse");
        with_consistency(&mut call.url, consistency);
        with_blocking(&mut call, blocking);
        (call.body_max, call.also) = (LARGE, &[StatusCode::NOT_FOUND]);
        self.ask(call, |answer| answer.listing(prefix)).await
    }

    async fn put(
        &self,
        key: &Key,
        value: &[u8],
        flags: Option<u64>,
        mode: PutMode,
    ) -> Result<bool, ConsulError> {
        let mut call = self.call(Operation::WriteKey, Method::PUT, kv_path(key.as_str()));
        if let Some(flags) = flags {
            call.url.query_pairs_mut().append_pair("flags", &flags.to_string());
        }
        match &mode {
            PutMode::Plain => {}
            PutMode::Acquire(id) => {
                call.url.query_pairs_mut().append_pair("acquire", id.as_str());
            }
            PutMode::Release(id) => {
                call.url.query_pairs_mut().append_pair("release", id.as_str());
            }
        }
        call.body = Some(Body::Raw(value.to_vec()));
        self.ask(call, Answer::verdict).await
    }

    async fn delete(&self, key: &Key) -> Result<(), ConsulError> {
        let call = self.call(Operation::DeleteKey, Method::DELETE, kv_path(key.as_str()));
        self.ask(call, Answer::done).await
    }

    async fn transaction(&self, steps: &[TxnOp]) -> Result<Txn, ConsulError> {
        let operation = Operation::Transaction;
        let mut call = self.call(operation, Method::PUT, ["v1", "txn"]);
        if !wire::changes_something(steps) {
            // Checks alone count as a read, which any old leader may answer unless told otherwise.
            with_consistency(&mut call.url, Consistency::Consistent);
        }
        let body: Vec<wire::Step<'_>> = steps.iter().map(Into::into).collect();
        call.body = Some(json(operation, &body)?);
        call.also = &[StatusCode::CONFLICT];
        self.ask(call, |answer| answer.transaction(steps)).await
    }

    async fn leader(&self) -> Result<Option<String>, ConsulError> {
        let call = self.call(Operation::ReadLeader, Method::GET, ["v1", "status", "leader"]);
        self.ask(call, Answer::leader).await
    }

    async fn token_self(&self) -> Result<TokenInfo, ConsulError> {
        let call = self.call(Operation::ReadToken, Method::GET, ["v1", "acl", "token", "self"]);
        self.ask(call, Answer::token).await
    }
}
