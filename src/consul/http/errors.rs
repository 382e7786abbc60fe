//! What Consul's and the transport's failures mean: the one place where words become a [`Class`].

use std::error::Error;

use reqwest::StatusCode;

use crate::consul::{Class, ConsulError, Operation};

/// How much of an error's text is kept, in characters.
const WORDS_MAX: usize = 300;

/// Refusals that Consul gives as 500, though no repetition will change them.
const INVALID: &[&str] = &[
    "Invalid Session TTL",
    "Session TTL '",
    "Invalid Behavior setting",
    "Missing node registration",
    "Missing check '",
    "is in critical state",
    "Conflicting flags",
    "cross datacenter lock must be created at server agent",
];

/// Whether Consul may have changed something when an answer is missing.
const fn writes(operation: Operation) -> bool {
    match operation {
        Operation::RegisterNode
        | Operation::DeregisterNode
        | Operation::CreateSession
        | Operation::RenewSession
        | Operation::DestroySession
        | Operation::WriteKey
        | Operation::DeleteKey
        | Operation::Transaction => true,
        Operation::ReadSession
        | Operation::ListSessions
        | Operation::ReadKey
        | Operation::WatchKey
        | Operation::WatchPrefix
        | Operation::ReadLeader
        | Operation::ReadToken => false,
    }
}

/// A call that was sent and whose answer never came, or made no sense.
pub(super) const fn unanswered(operation: Operation) -> Class {
    if writes(operation) { Class::UnknownOutcome } else { Class::Transient }
}

/// hyper's words for a server that talks before it is asked. Consul does so to a connection over
/// `http_max_conns_per_client`: its 429 arrives before the request could be written.
const SPOKE_FIRST: &str = "received unexpected message from connection";
/// hyper's words for a request that it gives back because the connection ended before any of it
/// was written.
const GIVEN_BACK: &str = "client error (Canceled)";

/// A transport error: its class and words. Where nothing was sent, a write is open to be repeated;
/// hyper tells some of these cases by words alone.
pub(super) fn of_transport(
    operation: Operation,
    error: reqwest::Error,
    tls: Tls,
) -> (Class, String) {
    let (builder, connect) = (error.is_builder(), error.is_connect());
    let text = chain(error);
    if builder {
        return (Class::Invalid, text);
    }
    if text.contains(SPOKE_FIRST) {
        let hint = "Consul refused the connection: too many from this address, or it is not HTTP";
        return (Class::Transient, format!("{hint} ({text})"));
    }
    let class = match connect || text.contains(GIVEN_BACK) {
        true => Class::Transient,
        false => unanswered(operation),
    };
    let closed = CLOSED.iter().any(|words| text.contains(words));
    let text = match (CURES.iter().any(|(cause, _)| text.contains(cause)), closed, tls) {
        (false, true, Tls::WithoutIdentity) => format!("{WANTS_IDENTITY} ({text})"),
        (false, true, Tls::WithIdentity) => format!("{REFUSES_IDENTITY} ({text})"),
        _ => explained(text),
    };
    (class, text)
}

/// Whether there is TLS, and whether we show who we are. By TLS 1.3 a server looks at that when we have
/// begun to speak, and mostly its words are lost with the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    No,
    WithoutIdentity,
    WithIdentity,
}

/// How a connection looks that was closed on us.
const CLOSED: &[&str] = &["connection closed", "broken pipe", "Broken pipe", "onnection reset"];
const WANTS_IDENTITY: &str = "the connection was closed: if that goes on, Consul wants a client certificate; \
    see CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY";
const REFUSES_IDENTITY: &str =
    "the connection was closed: if that goes on, Consul does not accept the client certificate";

/// What to do about words that name a cause and no cure.
const CURES: &[(&str, &str)] = &[
    (
        "UnknownIssuer",
        "Consul's certificate is of an authority that is not trusted; name its CA with CONSUL_CACERT",
    ),
    (
        "not valid for name",
        "Consul's certificate has another name; see CONSUL_HTTP_ADDR and CONSUL_TLS_SERVER_NAME",
    ),
    ("certificate expired", "Consul's certificate has expired, or this machine's clock is wrong"),
    (
        "certificate not valid yet",
        "Consul's certificate is not valid yet, or this machine's clock is wrong",
    ),
    (
        "fatal alert: CertificateRequired",
        "Consul wants a client certificate; see CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY",
    ),
    ("fatal alert: ", "Consul does not accept the client certificate, or no connection at all"),
    (
        "InvalidContentType",
        "there is no TLS at that port; Consul's address there begins with http://",
    ),
    (
        "HTTP request to an HTTPS server",
        "there is TLS at that port; Consul's address there begins with https://",
    ),
    ("<html", "not an answer of Consul's, so look at its address"),
    ("<!DOCTYPE", "not an answer of Consul's, so look at its address"),
    (
        "ACL not found",
        "Consul does not know the token: it was deleted, or is too new, or a wrong one",
    ),
];

/// With the cure first, as whatever is too long is cut off at its end.
pub(super) fn explained(text: String) -> String {
    match CURES.iter().find(|(cause, _)| text.contains(cause)) {
        Some((_, cure)) => format!("{cure} ({text})"),
        None => text,
    }
}

/// An answer with a status other than success.
pub(super) fn refusal(operation: Operation, status: StatusCode, body: &[u8]) -> ConsulError {
    let words = words(body);
    let class = of_answer(operation, status, &words);
    let words = match (status.is_redirection(), words.is_empty()) {
        (true, _) => ": redirects are not followed; check Consul's address".to_owned(),
        (false, true) => String::new(),
        (false, false) => format!(": {}", explained(words)),
    };
    ConsulError { operation, class, message: format!("{}{words}", status.as_u16()) }
}

/// Its class. Substrings, since forwarded errors carry
/// `rpc error making call:` in front.
fn of_answer(operation: Operation, status: StatusCode, words: &str) -> Class {
    let says = |part: &str| words.contains(part);
    if status == StatusCode::TOO_MANY_REQUESTS || says("rate limit exceeded") {
        return Class::Transient;
    }
    // Consul says so as 500. A proxy's page or redirect that has these words in it is none of its.
    if status.is_server_error() && says("invalid session") {
        return Class::Lost;
    }
    match status {
        StatusCode::FORBIDDEN => of_denial(words),
        StatusCode::NOT_FOUND if operation == Operation::RenewSession && says("Session id") => {
            Class::Lost
        }
        _ if !status.is_server_error() => Class::Invalid,
        _ if INVALID.iter().any(|part| says(part)) => Class::Invalid,
        _ if says("No cluster leader") => Class::Transient,
        _ => unanswered(operation),
    }
}

/// A fresh token is unknown to some servers for a while; every other denial stays.
pub(super) fn of_denial(words: &str) -> Class {
    if is_unknown_token(words) { Class::Transient } else { Class::Denied }
}

/// Whether Consul says that it does not know the token of a call.
pub(super) fn is_unknown_token(words: &str) -> bool {
    words.contains("ACL not found")
}

/// A body's text as one line that fits into a condition.
pub(super) fn words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line: String = text.trim().chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect();
    line
}

/// A transport error with its causes, without the URL: the caller knows what it asked.
pub(super) fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = next.source();
    }
    words(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(operation: Operation, status: u16, words: &str) -> Class {
        of_answer(operation, StatusCode::from_u16(status).unwrap(), words)
    }

    #[test]
    fn what_consul_says_has_the_class_of_the_table() {
        use Class::*;
        use Operation::*;
        for (operation, status, words, expected) in [
            (WriteKey, 500, "No cluster leader", Transient),
            (ReadKey, 500, "rpc error making call: No cluster leader", Transient),
            (ReadKey, 500, "Raft leader not found in server lookup mapping", Transient),
            (WatchKey, 500, "Not ready to serve consistent reads", Transient),
            (ReadKey, 500, "something new", Transient),
            (WriteKey, 500, "something new", UnknownOutcome),
            (WriteKey, 502, "<html>bad gateway</html>", UnknownOutcome),
            (ReadKey, 503, "", Transient),
            (
                Transaction,
                500,
                "raft apply failed: leadership lost while committing log",
                UnknownOutcome,
            ),
            (RenewSession, 500, "rpc error making call: EOF", UnknownOutcome),
            (WriteKey, 429, "Your IP is issuing too many concurrent connections", Transient),
            (WriteKey, 500, "RPC rate limit exceeded", Transient),
            (CreateSession, 503, "rate limit exceeded for operation that can only", Transient),
            (ReadKey, 403, "rpc error making call: ACL not found", Transient),
            (WriteKey, 403, "Permission denied: anonymous token lacks permission", Denied),
            (
                WriteKey,
                500,
                "rpc error making call: raft apply failed: invalid session \"x\"",
                Lost,
            ),
            (WriteKey, 302, "invalid session", Invalid),
            (WriteKey, 404, "<html>invalid session</html>", Invalid),
            (RenewSession, 404, "Session id 'x' not found", Lost),
            (RenewSession, 404, "404 page not found", Invalid),
            (ReadKey, 404, "no such route", Invalid),
            (CreateSession, 500, "Invalid Session TTL '9000000000', must be between", Invalid),
            (CreateSession, 500, "apply failed: Missing node registration", Invalid),
            (CreateSession, 500, "Missing check 'x' registration", Invalid),
            (CreateSession, 500, "Check 'x' is in critical state", Invalid),
            (WriteKey, 400, "Conflicting flags: acquire=&release=", Invalid),
            (Transaction, 413, "Transaction contains too many operations (129 > 128)", Invalid),
            (ReadToken, 401, "ACL support disabled", Invalid),
            (ReadKey, 307, "", Invalid),
        ] {
            assert_eq!(class(operation, status, words), expected, "{status} {words}");
        }
    }

    #[test]
    fn words_are_one_short_line() {
        assert_eq!(words(b" a\nb\x1b[31m\0 "), "ab[31m");
        assert_eq!(words("ü".repeat(1000).as_bytes()).chars().count(), WORDS_MAX);
        assert_eq!(words(&[0xff, b'x']), "\u{fffd}x");
    }
}
