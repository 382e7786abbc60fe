//! One HTTP exchange: permit, token, time limit, size limit.

use std::{ops::Range, time::Duration};

use jiff::Timestamp;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{CONTENT_TYPE, DATE, HeaderMap, HeaderValue},
};
use tokio::sync::Semaphore;

use super::{
    HttpConfig, HttpConfigError,
    address::Address,
    client::Carrier,
    errors::{self, Tls},
    life::{Certificates, Told},
    login::{Answered, LoginError},
    token::{Token, Tokens},
};
use crate::{
    clock::Clock,
    consul::{Class, ConsulError, Operation},
};

/// A token and what is told of it.
const ANSWER_TO_LOGIN_MAX: usize = 64 * 1024;
/// Whoever ends does not wait for longer until a token is given back.
const LOG_OUT_MAX: Duration = Duration::from_secs(2);
/// The refusals of a login, which are understood elsewhere.
const ALL_REFUSALS: &[StatusCode] = &[
    StatusCode::BAD_REQUEST,
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::INTERNAL_SERVER_ERROR,
];
/// Of an error's body no more is read.
const ERROR_BODY_MAX: usize = 4 * 1024;

/// What to ask.
pub(super) struct Call {
    pub(super) operation: Operation,
    pub(super) method: Method,
    pub(super) url: Url,
    /// Always of known length: Consul silently ignores the body of a chunked session creation.
    pub(super) body: Option<Body>,
    /// Largest answer.
    pub(super) body_max: usize,
    /// Of a blocking query.
    pub(super) wait: Option<Duration>,
    /// Besides success, the statuses whose bodies the caller reads itself.
    pub(super) also: &'static [StatusCode],
}

pub(super) enum Body {
    Json(Vec<u8>),
    Raw(Vec<u8>),
}

/// An answer that came whole.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    /// `X-Consul-Index`.
    pub(super) index: Option<u64>,
    /// `X-Consul-Results-Filtered-By-ACLs`.
    pub(super) filtered: bool,
    /// `Date`.
    pub(super) date: Option<String>,
}

pub(super) struct Transport {
    carrier: Carrier,
    tokens: Tokens,
    told: Told,
    calls: Semaphore,
    polls: Semaphore,
    timeout: Duration,
    tls: Tls,
    clock: Clock,
}

impl Transport {
    pub(super) fn new(
        config: &HttpConfig,
        address: &Address,
        login: Url,
        clock: Clock,
    ) -> Result<Transport, HttpConfigError> {
        let tokens = Tokens::new(&config.token, &clock, login, config.wait_for_files)?;
        Ok(Transport {
            carrier: Carrier::new(config, address, clock.now())?,
            tokens,
            told: Told::default(),
            calls: Semaphore::new(config.max_in_flight.max(1)),
            polls: Semaphore::new(config.max_polls.max(1)),
            timeout: config.timeout,
            tls: match (address.is_https(), &config.client_cert) {
                (false, _) => Tls::No,
                (true, None) => Tls::WithoutIdentity,
                (true, Some(_)) => Tls::WithIdentity,
            },
            clock,
        })
    }

    /// Ends within the call's time limit, whatever the network does.
    pub(super) async fn exchange(&self, call: Call) -> Result<Reply, ConsulError> {
        let (gate, limit) = match call.wait {
            None => (&self.calls, self.timeout),
            // Consul adds up to a sixteenth to the wait.
            Some(wait) => (&self.polls, wait + wait / 16 + Duration::from_secs(5)),
        };
        let operation = call.operation;
        let fail = |class, message| ConsulError { operation, class, message };
        let began = self.clock.now();
        let permit = match self.clock.timeout(limit, gate.acquire()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => {
                let words = format!("too many calls to Consul in flight for {limit:?}; not sent");
                return Err(fail(Class::Transient, words));
            }
        };
        let left = limit.saturating_sub(self.clock.now().since(began));
        // Boxed, so that the many calls that wait for a permit are small.
        let sending = Box::pin(self.send_as_ourselves(call));
        let reply = match self.clock.timeout(left, sending).await {
            Ok(reply) => reply,
            Err(_) => {
                Err(fail(errors::unanswered(operation), format!("no answer within {limit:?}")))
            }
        };
        // The connection goes back to the pool in tasks of its own. A call that got our turn before
        // that would open another one.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        drop(permit);
        reply
    }

    /// With the present token, which is in no error.
    async fn send_as_ourselves(&self, call: Call) -> Result<Reply, ConsulError> {
        let token = self.token(call.operation).await?;
        let reply = self.send(call, token.as_ref()).await;
        if let (Tokens::Login(login), Some(token), Err(error)) = (&self.tokens, &token, &reply)
            && errors::is_unknown_token(&error.message)
        {
            login.doubt(token, self.clock.now());
        }
        reply.map_err(|error| redacted(error, token.as_ref()))
    }

    async fn token(&self, operation: Operation) -> Result<Option<Token>, ConsulError> {
        match &self.tokens {
            Tokens::Fixed(token) => Ok(token.clone()),
            Tokens::File(file) => {
                let token = file.current(self.clock.now()).map(Some);
                token.map_err(|error| awaits(operation, &error))
            }
            Tokens::Login(login) => {
                let send = async |body| self.send_login(login.url.clone(), body).await;
                let token = login.token(&self.clock, send).await;
                token.map(Some).map_err(|LoginError { class, message }| ConsulError {
                    operation,
                    class,
                    message,
                })
            }
        }
    }

    /// The token in use, as far as it is known without a login.
    fn token_in_use(&self) -> Option<Token> {
        match &self.tokens {
            Tokens::Fixed(token) => token.clone(),
            Tokens::File(file) => file.current(self.clock.now()).ok(),
            Tokens::Login(login) => login.last(),
        }
    }

    /// Whether the next call logs in.
    pub(super) fn is_login_due(&self) -> bool {
        match &self.tokens {
            Tokens::Login(login) => login.is_due(self.clock.now()),
            Tokens::Fixed(_) | Tokens::File(_) => false,
        }
    }

    /// The token in use, if Consul has not told yet until when it is good.
    pub(super) fn untold_token(&self) -> Option<Token> {
        self.token_in_use().filter(|token| self.told.of(token).is_none())
    }

    /// What Consul told when `token` was in use, unless it was replaced meanwhile.
    pub(super) fn told(&self, token: Token, life: Option<Range<Timestamp>>) {
        if self.token_in_use().as_ref() == Some(&token) {
            self.told.note(token, life);
        }
    }

    /// From when until when the token in use is good, if that is known and it expires.
    pub(super) fn token_life(&self) -> Option<Range<Timestamp>> {
        self.told.of(&self.token_in_use()?)?
    }

    pub(super) fn certificates(&self) -> Certificates {
        self.carrier.certificates(self.clock.now())
    }

    async fn send_login(&self, url: Url, body: Vec<u8>) -> Answered {
        let operation = Operation::ReadToken;
        let call = Call {
            operation,
            method: Method::POST,
            url,
            body: Some(Body::Json(body)),
            body_max: ANSWER_TO_LOGIN_MAX,
            wait: None,
            also: ALL_REFUSALS,
        };
        match self.send(call, None).await {
            Ok(reply) => Ok((reply.status, reply.body)),
            // That a login came to nothing harms nobody: the token it made ends by itself.
            Err(error) => Err(LoginError { class: Class::Transient, message: error.message }),
        }
    }

    /// Gives a token that was got by a login back, as far as Consul answers.
    pub(super) async fn log_out(&self, url: Url) {
        let Tokens::Login(login) = &self.tokens else { return };
        let Some(token) = login.end() else { return };
        let (operation, method) = (Operation::ReadToken, Method::POST);
        let call = Call { operation, method, url, body: None, body_max: 0, wait: None, also: &[] };
        let left = match self.clock.timeout(LOG_OUT_MAX, self.send(call, Some(&token))).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => redacted(error, Some(&token)).to_string(),
            Err(elapsed) => elapsed.to_string(),
        };
        tracing::warn!(error = left, "not logged out: the token lives on for as long as it may");
    }

    async fn send(&self, call: Call, token: Option<&Token>) -> Result<Reply, ConsulError> {
        let operation = call.operation;
        let broken = |error: reqwest::Error| {
            let (class, message) = errors::of_transport(operation, error, self.tls);
            ConsulError { operation, class, message }
        };
        let client =
            self.carrier.client(self.clock.now()).map_err(|error| awaits(operation, &error))?;
        let mut request = client.request(call.method, call.url);
        if let Some(token) = token {
            request = request.header("X-Consul-Token", token.header());
        }
        request = match call.body {
            None => request,
            Some(Body::Raw(bytes)) => request.body(bytes),
            Some(Body::Json(bytes)) => {
                let json = HeaderValue::from_static("application/json");
                request.header(CONTENT_TYPE, json).body(bytes)
            }
        };
        let mut response = request.send().await.map_err(broken)?;
        let status = response.status();
        if !status.is_success() && !call.also.contains(&status) {
            return Err(refused(operation, response).await);
        }
        let (index, filtered) = (index(response.headers()), filtered(response.headers()));
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
        let date = date.map(str::to_owned);
        let body = whole(operation, &mut response, call.body_max).await?;
        Ok(Reply { status, body, index, filtered, date })
    }
}

/// Nothing can be sent before somebody puts a file right.
fn awaits(operation: Operation, error: &HttpConfigError) -> ConsulError {
    let message = format!("{error}; it is read again until it is put right");
    ConsulError { operation, class: Class::Transient, message }
}

fn redacted(error: ConsulError, token: Option<&Token>) -> ConsulError {
    match token {
        Some(token) => ConsulError { message: token.redact(error.message), ..error },
        None => error,
    }
}

async fn refused(operation: Operation, mut response: Response) -> ConsulError {
    let status = response.status();
    let mut body = Vec::new();
    // What is missing of the text because the connection broke is not needed to classify it.
    while body.len() < ERROR_BODY_MAX
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk);
    }
    body.truncate(ERROR_BODY_MAX);
    errors::refusal(operation, status, &body)
}

async fn whole(
    operation: Operation,
    response: &mut Response,
    max: usize,
) -> Result<Vec<u8>, ConsulError> {
    let class = errors::unanswered(operation);
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > max => {
                let message = format!("the answer is longer than {max} bytes");
                return Err(ConsulError { operation, class, message });
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body),
            Err(error) => {
                let message = format!("the answer broke off: {}", errors::chain(error));
                return Err(ConsulError { operation, class, message });
            }
        }
    }
}

fn index(headers: &HeaderMap) -> Option<u64> {
    headers.get("X-Consul-Index")?.to_str().ok()?.parse().ok()
}

fn filtered(headers: &HeaderMap) -> bool {
    headers.get("X-Consul-Results-Filtered-By-ACLs").is_some_and(|value| value == "true")
}
