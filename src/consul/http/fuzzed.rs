//! What any answer in the place of Consul's comes to, for `crate::fuzz`.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::StatusCode;
use serde_json::json;

use super::{Address, Answer, errors, kv_path, login, transport::Reply, url, wire};
use crate::{
    consul::{Class, ConsulError, KvPair, Operation, SessionInfo, Txn, TxnOp},
    names::{Key, NodeName, SessionId},
};

/// What an error may say, in characters: it goes into conditions and logs.
const MESSAGE_MAX: usize = 500;

/// A duration as it is sent to Consul.
pub(crate) fn sent(span: Duration) -> String {
    wire::go_text(span)
}

/// A duration as it is read from Consul.
pub(crate) fn read(text: &str) -> Option<Duration> {
    wire::go_duration(text)
}

/// The path by which a key is asked for.
pub(crate) fn path(key: &Key) -> String {
    let address = Address::parse("consul:8500").expect("an address of the documentation");
    url(&address, &[], kv_path(key.as_str())).path().to_owned()
}

/// An answer: in the first line its status, `X-Consul-Index` and whether ACLs hid something
/// (`200 17 filtered`); then its body.
pub(crate) fn reply(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (head, body) = (&input[..end], input.get(end + 1..).unwrap_or_default());
    let Ok(head) = std::str::from_utf8(head) else { return };
    let mut words = head.splitn(3, ' ');
    let status = words.next().and_then(|word| StatusCode::from_bytes(word.as_bytes()).ok());
    let Some(status) = status else { return };
    let index = words.next().and_then(|word| word.parse().ok());
    let rest = words.next();
    let answer = |operation| Answer {
        operation,
        reply: Reply {
            status,
            body: body.to_vec(),
            index,
            filtered: rest == Some("filtered"),
            date: rest.map(str::to_owned),
        },
    };
    match status {
        // What `HttpConsul` has its calls bring it.
        _ if status.is_success() => understood(answer),
        StatusCode::NOT_FOUND => keys(answer),
        StatusCode::CONFLICT => transactions(answer),
        _ => {}
    }
    if !status.is_success() {
        refused(status, body);
    }
    login(status, body);
}

/// Whatever was asked, an answer is understood, or it is said that it is none.
fn understood(answer: impl Fn(Operation) -> Answer) {
    let (id, node) = (SessionId::new("s"), NodeName::new("n"));
    for write in [Operation::RegisterNode, Operation::DestroySession, Operation::DeleteKey] {
        misunderstood(answer(write).done());
    }
    misunderstood(answer(Operation::WriteKey).verdict());
    misunderstood(answer(Operation::CreateSession).created());
    if let Some(renewal) = misunderstood(answer(Operation::RenewSession).renewal(&id)) {
        assert!(!renewal.ttl.is_zero(), "a session that never expires is none of ours");
    }
    let sessions = misunderstood(answer(Operation::ListSessions).sessions_of(&node));
    if let Some(sessions) = sessions {
        come_back(&sessions);
        let one = misunderstood(answer(Operation::ReadSession).session()).flatten();
        assert_eq!(one.as_ref(), sessions.first());
    }
    misunderstood(answer(Operation::ListSessions).census());
    let leader = misunderstood(answer(Operation::ReadLeader).leader()).flatten();
    assert_ne!(leader.as_deref(), Some(""));
    misunderstood(answer(Operation::ReadToken).token());
    answer(Operation::ReadLeader).date();
    keys(&answer);
    transactions(&answer);
}

fn keys(answer: impl Fn(Operation) -> Answer) {
    let (status, filtered) = {
        let reply = answer(Operation::WatchPrefix).reply;
        (reply.status, reply.filtered)
    };
    let key = Key::new("k").expect("a key");
    let listing = misunderstood(answer(Operation::WatchPrefix).listing("k"));
    let reading = misunderstood(answer(Operation::ReadKey).reading(&key));
    assert_eq!(listing.is_some(), reading.is_some());
    let (Some(listing), Some(reading)) = (listing, reading) else { return };
    assert!(!filtered, "what ACLs hide is not missing");
    assert!(listing.index > 0 && reading.index == listing.index, "0 would not block");
    assert!(status.is_success() || listing.pairs.is_empty());
    assert_eq!(reading.pair.as_ref(), listing.pairs.first());
    for pair in &listing.pairs {
        assert!(pair.session.as_ref().is_none_or(|session| !session.as_str().is_empty()));
        assert_eq!(&written_again(pair), pair);
    }
}

/// As Consul would write it, and read anew.
fn written_again(pair: &KvPair) -> KvPair {
    let json = json!({
        "Key": pair.key, "Value": STANDARD.encode(&pair.value), "Flags": pair.flags,
        "Session": pair.session.as_ref().map(SessionId::as_str),
        "CreateIndex": pair.create_index, "ModifyIndex": pair.modify_index,
        "LockIndex": pair.lock_index,
    });
    let wire: wire::Kv = serde_json::from_value(json).expect("the form of Consul's answers");
    KvPair::try_from(wire).expect("base64")
}

fn come_back(sessions: &[SessionInfo]) {
    for session in sessions {
        assert!(session.ttl.is_none_or(|ttl| !ttl.is_zero()), "0 is Consul's word for never");
    }
}

fn transactions(answer: impl Fn(Operation) -> Answer) {
    let (key, session) = (Key::new("k").expect("a key"), SessionId::new("s"));
    let lock = TxnOp::Lock { key: key.clone(), session, value: Vec::new(), flags: 0 };
    let (check, delete) = (TxnOp::CheckNotExists { key: key.clone() }, TxnOp::Delete { key });
    for (steps, writes) in [
        (&[][..], 0),
        (&[lock.clone()][..], 1),
        (&[check.clone(), lock.clone(), delete, lock.clone()], 2),
        (&[check], 0),
    ] {
        match misunderstood(answer(Operation::Transaction).transaction(steps)) {
            Some(Txn::Committed(pairs)) => assert_eq!(pairs.len(), writes, "{steps:?}"),
            Some(Txn::RolledBack(reasons)) => assert!(!reasons.is_empty()),
            None => {}
        }
    }
}

/// What a call came to, after what its error says was looked at. That Consul does not know a session
/// is never concluded from an answer that came with success.
fn misunderstood<T>(outcome: Result<T, ConsulError>) -> Option<T> {
    let error = match outcome {
        Ok(understood) => return Some(understood),
        Err(error) => error,
    };
    reads_well(&error.message);
    let written = errors::unanswered(error.operation) == Class::UnknownOutcome;
    match error.class {
        Class::UnknownOutcome => assert!(written, "{error}"),
        Class::Transient => assert!(!written, "it may have been carried out: {error}"),
        Class::Denied | Class::Invalid => {}
        Class::Lost => panic!("{error}"),
    }
    None
}

fn reads_well(message: &str) {
    assert!(message.chars().count() <= MESSAGE_MAX, "too long: {message}");
    assert!(!message.contains(char::is_control), "more than a line: {message:?}");
}

fn refused(status: StatusCode, body: &[u8]) {
    for operation in [Operation::RenewSession, Operation::WriteKey, Operation::ReadKey] {
        let error = errors::refusal(operation, status, body);
        reads_well(&error.message);
        assert!(error.message.starts_with(status.as_str()), "{error}");
        let lost = error.class == Class::Lost;
        assert!(!lost || error.message.to_lowercase().contains("session"), "{error}");
    }
}

fn login(status: StatusCode, body: &[u8]) {
    if let Err(error) = login::fuzzed(status, body) {
        reads_well(&error.message);
        assert!(matches!(error.class, Class::Transient | Class::Denied | Class::Invalid));
    }
}
