//! Login through an auth method: Consul gives a token for a bearer token, such as the JWT of a pod's
//! service account (<https://developer.hashicorp.com/consul/api-docs/acl#login-to-auth-method>).
//!
//! # Guarantees
//! The bearer token's file is read anew for every login. A token that expires is replaced before it
//! does, and one that Consul does not know any more after that was heard of; sessions outlive the
//! token that made them. While the next login fails, the last token serves for as long as it lives.
//! Neither token is in an error or a `Debug`.
//! # Not guaranteed
//! That a new token is known to every server at once: that answer is [`Class::Transient`].

use std::{fmt, fs, path::PathBuf, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};

use super::{errors, token::Token};
use crate::{
    clock::{Clock, Instant},
    consul::Class,
};

/// Where Kubernetes puts the token of a pod's service account, and keeps it fresh.
pub const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// After this part of its life a token is replaced, at the earliest; at most a sixth later, so that
/// the replicas of a Deployment do not come all at once.
const SPENT: f64 = 0.6;
const SPREAD: f64 = 1.0 / 6.0;
/// After a login that failed, how long the last token serves before the next one is tried.
const AGAIN: Duration = Duration::from_secs(5);
/// For this long Consul may not know a token on every server.
const FRESH: Duration = Duration::from_secs(3);

/// How to log in.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginSettings {
    /// The auth method's name.
    pub method: String,
    /// The file that holds the bearer token.
    pub bearer_token_file: PathBuf,
    /// Said of the token in Consul's audit log and `consul acl token read`.
    pub meta: Vec<(String, String)>,
}

impl fmt::Debug for LoginSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginSettings")
            .field("method", &self.method)
            .field("bearer_token_file", &self.bearer_token_file)
            .finish_non_exhaustive()
    }
}

/// Why nobody is logged in: a class, and words without a secret.
#[derive(Clone, Debug)]
pub(super) struct LoginError {
    pub(super) class: Class,
    pub(super) message: String,
}

/// What is sent.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Request<'a> {
    auth_method: &'a str,
    bearer_token: &'a str,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    meta: serde_json::Map<String, serde_json::Value>,
}

/// What comes back. The times are by Consul's clock.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Granted {
    #[serde(rename = "SecretID")]
    secret_id: String,
    create_time: Option<Timestamp>,
    expiration_time: Option<Timestamp>,
}

/// A token that was got by a login.
#[derive(Clone, Debug)]
struct Known {
    token: Token,
    since: Instant,
    /// When to get the next one.
    spent: Option<Instant>,
    /// When Consul forgets it.
    ends: Option<Instant>,
}

/// An answer to what was sent: its status and body. An error is what the transport says.
pub(super) type Answered = Result<(StatusCode, Vec<u8>), LoginError>;

pub(super) struct Login {
    settings: LoginSettings,
    pub(super) url: Url,
    known: Mutex<Option<Known>>,
    /// Who has it logs in; the instant before which nobody need try again.
    turn: tokio::sync::Mutex<Option<Instant>>,
}

impl Login {
    /// By calls of `url`.
    pub(super) fn new(settings: LoginSettings, url: Url) -> Login {
        Login { settings, url, known: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// The token to use now. `send` makes one call with this body.
    ///
    /// # Errors
    /// Nobody is logged in, and Consul does not let us in.
    ///
    /// # Cancellation
    /// Dropped, it may leave a token behind in Consul, which ends by the auth method's
    /// `MaxTokenTTL`.
    pub(super) async fn token(
        &self,
        clock: &Clock,
        send: impl AsyncFnOnce(Vec<u8>) -> Answered,
    ) -> Result<Token, LoginError> {
        let usable = self.known().filter(|known| known.ends.is_none_or(|end| clock.now() < end));
        let (known, mut turn) = match usable {
            Some(known) if known.spent.is_none_or(|spent| clock.now() < spent) => {
                return Ok(known.token);
            }
            // It does for now, so nobody waits for the one who logs in.
            Some(known) => match self.turn.try_lock() {
                Err(_) => return Ok(known.token),
                Ok(turn) if turn.is_some_and(|again| clock.now() < again) => {
                    return Ok(known.token);
                }
                Ok(turn) => (Some(known), turn),
            },
            None => {
                let turn = self.turn.lock().await;
                if let Some(known) = self.known().filter(|known| known.is_fresh(clock.now())) {
                    return Ok(known.token);
                }
                (None, turn)
            }
        };
        match self.log_in(clock, send).await {
            Ok(new) => {
                let token = new.token.clone();
                *self.known.lock() = Some(new);
                Ok(token)
            }
            Err(error) => {
                *turn = Some(clock.now() + AGAIN);
                tracing::warn!(method = %self.settings.method, error = %error.message, "cannot log in");
                known.map(|known| known.token).ok_or(error)
            }
        }
    }

    /// Consul did not know this token. Unless it is a new one, the next call logs in anew.
    pub(super) fn doubt(&self, token: &Token, now: Instant) {
        let mut known = self.known.lock();
        if known.as_ref().is_some_and(|known| known.token == *token && !known.is_fresh(now)) {
            *known = None;
        }
    }

    /// The token that is to be given back, and is not used any more.
    pub(super) fn end(&self) -> Option<Token> {
        self.known.lock().take().map(|known| known.token)
    }

    /// Whether the next call logs in.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.known().is_none_or(|known| known.spent.is_some_and(|spent| now >= spent))
    }

    /// The last token, if it was not given back or found to be unknown.
    pub(super) fn last(&self) -> Option<Token> {
        self.known().map(|known| known.token)
    }

    fn known(&self) -> Option<Known> {
        self.known.lock().clone()
    }

    async fn log_in(
        &self,
        clock: &Clock,
        send: impl AsyncFnOnce(Vec<u8>) -> Answered,
    ) -> Result<Known, LoginError> {
        let fail = |class, why: &str| LoginError {
            class,
            message: format!("cannot log in by the auth method {:?}: {why}", self.settings.method),
        };
        let path = &self.settings.bearer_token_file;
        let read = fs::read_to_string(path).map_err(|error| error.to_string());
        let bearer = read.and_then(|text| Token::new(&text).map_err(|error| error.to_string()));
        let bearer = bearer.map_err(|why| {
            let words = format!("the bearer token file {}: {why}", path.display());
            fail(Class::Invalid, &words)
        })?;
        let hidden = |error: LoginError| fail(error.class, &bearer.redact(error.message));
        let began = clock.now();
        let (status, body) = send(self.request(&bearer)).await.map_err(hidden)?;
        let (granted, token) = granted(status, &body).map_err(hidden)?;
        Ok(granted.known(token, began, rand::random_range(0.0..1.0)))
    }

    fn request(&self, bearer: &Token) -> Vec<u8> {
        let meta = &self.settings.meta;
        let request = Request {
            auth_method: &self.settings.method,
            bearer_token: bearer.word(),
            meta: meta.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect(),
        };
        serde_json::to_vec(&request).expect("strings can be written as JSON")
    }
}

/// What an answer to a login gives.
fn granted(status: StatusCode, body: &[u8]) -> Result<(Granted, Token), LoginError> {
    if !status.is_success() {
        let words = errors::words(body);
        let class = of_refusal(status, &words);
        return Err(LoginError { class, message: format!("{}: {words}", status.as_u16()) });
    }
    let odd = |error: &dyn fmt::Display| LoginError {
        class: Class::Transient,
        message: format!("an odd answer: {}", errors::words(error.to_string().as_bytes())),
    };
    let granted: Granted = serde_json::from_slice(body).map_err(|error| odd(&error))?;
    let token = Token::new(&granted.secret_id).map_err(|error| odd(&error))?;
    Ok((granted, token))
}

/// Any answer to a login, for `crate::fuzz`: what is known of the token then.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzzed(status: StatusCode, body: &[u8]) -> Result<(), LoginError> {
    let (granted, token) = granted(status, body)?;
    let sent = Instant::from_boot(Duration::from_secs(1));
    let known = granted.known(token, sent, 1.0);
    assert_eq!(known.spent.is_some(), known.ends.is_some());
    assert!(known.spent <= known.ends, "it is replaced before it ends");
    Ok(())
}

impl Granted {
    /// Counted from when the login was sent.
    fn known(&self, token: Token, sent: Instant, jitter: f64) -> Known {
        let life = match (self.create_time, self.expiration_time) {
            (Some(from), Some(to)) => Duration::try_from(to.duration_since(from)).ok(),
            _ => None,
        };
        let spent = life.map(|life| sent + life.mul_f64(SPENT + SPREAD * jitter));
        Known { token, since: sent, spent, ends: life.map(|life| sent + life) }
    }
}

impl Known {
    fn is_fresh(&self, now: Instant) -> bool {
        now < self.since + FRESH
    }
}

/// Consul says 403 for a bearer token that it does not accept, and for one that no binding rule is for;
/// and 500 for one that is none. A server without a leader, or an auth method whose own server does
/// not answer, is a matter of time.
fn of_refusal(status: StatusCode, words: &str) -> Class {
    match status {
        _ if words.contains("failed to parse and validate JWT") => Class::Invalid,
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Class::Denied,
        StatusCode::TOO_MANY_REQUESTS => Class::Transient,
        _ if status.is_server_error() => Class::Transient,
        _ => Class::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use serde_json::json;

    use super::*;

    const JWT: &str = "header.payload.signature";

    fn login(folder: &tempfile::TempDir) -> Login {
        let bearer_token_file = folder.path().join("jwt");
        fs::write(&bearer_token_file, format!("{JWT}\n")).unwrap();
        let meta = vec![("pod".to_owned(), "shop/a".to_owned())];
        let settings = LoginSettings { method: "k8s".to_owned(), bearer_token_file, meta };
        Login::new(settings, "http://consul/v1/acl/login".parse().unwrap())
    }

    /// A token that lives for a minute.
    fn granted(secret: &str) -> Answered {
        let body = json!({
            "SecretID": secret, "AccessorID": "a",
            "CreateTime": "2026-01-01T00:00:00Z", "ExpirationTime": "2026-01-01T00:01:00Z",
        });
        Ok((StatusCode::OK, body.to_string().into_bytes()))
    }

    fn refused(status: u16, words: &str) -> Answered {
        Ok((StatusCode::from_u16(status).unwrap(), words.as_bytes().to_vec()))
    }

    async fn nobody(_: Vec<u8>) -> Answered {
        panic!("there is a token that serves")
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_got_once_and_replaced_before_it_ends_for_a_bearer_token_read_anew() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::simulated());
        let login = login(&folder);
        let first = login.token(&clock, async |body: Vec<u8>| {
            let asked: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let meta = json!({ "pod": "shop/a" });
            assert_eq!(asked, json!({ "AuthMethod": "k8s", "BearerToken": JWT, "Meta": meta }));
            granted("one")
        });
        assert_eq!(first.await.unwrap().word(), "one");
        clock.sleep_until(clock.now() + Duration::from_secs(35)).await;
        assert_eq!(login.token(&clock, nobody).await.unwrap().word(), "one");
        assert!(!login.is_due(clock.now()));
        fs::write(folder.path().join("jwt"), "another").unwrap();
        clock.sleep_until(clock.now() + Duration::from_secs(12)).await;
        assert!(login.is_due(clock.now()) && login.last() == Token::new("one").ok());
        let next = login.token(&clock, async |body: Vec<u8>| {
            assert!(String::from_utf8(body).unwrap().contains("another"));
            granted("two")
        });
        assert_eq!(next.await.unwrap().word(), "two");
        assert!(!login.is_due(clock.now()) && login.last() == Token::new("two").ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_token_serves_while_the_next_login_fails_and_no_longer_than_it_lives() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::simulated());
        let (login, tried) = (login(&folder), AtomicU32::new(0));
        login.token(&clock, async |_| granted("one")).await.unwrap();
        clock.sleep_until(clock.now() + Duration::from_secs(48)).await;
        let fails = async |_| {
            tried.fetch_add(1, Ordering::Relaxed);
            refused(500, "No cluster leader")
        };
        for _ in 0..3 {
            assert_eq!(login.token(&clock, fails).await.unwrap().word(), "one");
        }
        assert_eq!(tried.load(Ordering::Relaxed), 1, "not with every call");
        clock.sleep_until(clock.now() + Duration::from_secs(12)).await;
        let error = login.token(&clock, fails).await.unwrap_err();
        assert_eq!(error.class, Class::Transient);
        assert!(error.message.contains("\"k8s\": 500: No cluster leader"), "{}", error.message);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_consul_does_not_know_is_replaced_unless_it_is_new() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::simulated());
        let login = login(&folder);
        let one = login.token(&clock, async |_| granted("one")).await.unwrap();
        login.doubt(&one, clock.now());
        assert_eq!(login.token(&clock, nobody).await.unwrap(), one, "servers hear of it in time");
        clock.sleep_until(clock.now() + FRESH).await;
        login.doubt(&one, clock.now());
        let two = login.token(&clock, async |_| granted("two")).await.unwrap();
        login.doubt(&one, clock.now() + FRESH);
        assert_eq!(login.token(&clock, nobody).await.unwrap(), two, "that was the last one");
        assert_eq!(login.end(), Some(two));
        assert_eq!(login.end(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_says_by_which_method_and_why_and_never_repeats_the_bearer_token() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::simulated());
        let login = login(&folder);
        for (status, words, class, told) in [
            (403, "Permission denied", Class::Denied, "403: Permission denied"),
            (403, JWT, Class::Denied, "403: <token>"),
            (400, "no such field", Class::Invalid, "400: no such field"),
            (503, "", Class::Transient, "503: "),
            (200, "hello", Class::Transient, "an odd answer"),
        ] {
            let error = login.token(&clock, async |_| refused(status, words)).await.unwrap_err();
            assert_eq!(error.class, class);
            assert!(error.message.contains("the auth method \"k8s\""), "{}", error.message);
            assert!(error.message.contains(told), "{}", error.message);
            assert!(!format!("{error:?}").contains(JWT));
        }
        fs::remove_file(folder.path().join("jwt")).unwrap();
        let error = login.token(&clock, nobody).await.unwrap_err();
        assert!(error.message.contains("/jwt: No such file"), "{}", error.message);
        assert_eq!(error.class, Class::Invalid);
    }
}
