//! The JSON that Consul speaks, and its translation into the types of [`crate::consul`].

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use super::life;
use crate::{
    consul::{
        Behavior, KvPair, Refusal, SessionInfo, SessionRequest, TokenInfo, TxnOp, TxnRefusal,
    },
    names::{NodeName, SessionId, SessionName},
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Registration<'a> {
    node: &'a str,
    address: &'a str,
    skip_node_update: bool,
}

impl<'a> Registration<'a> {
    /// Consul insists on an address; this one leads nowhere. A node that is there already keeps
    /// its own.
    pub(super) fn of(node: &'a NodeName) -> Registration<'a> {
        Registration { node: node.as_str(), address: "127.0.0.1", skip_node_update: true }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NewSession<'a> {
    name: &'a str,
    node: &'a str,
    #[serde(rename = "TTL")]
    ttl: String,
    lock_delay: String,
    behavior: &'static str,
    /// Sent even when empty: without it Consul adds `serfHealth`.
    node_checks: &'a [String],
    service_checks: Vec<ServiceCheck<'a>>,
}

#[derive(Serialize)]
struct ServiceCheck<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
}

impl<'a> NewSession<'a> {
    pub(super) fn of(request: &'a SessionRequest) -> NewSession<'a> {
        let checks = request.service_checks.iter();
        NewSession {
            name: request.name.as_str(),
            node: request.node.as_str(),
            ttl: go_text(request.ttl),
            lock_delay: go_text(request.lock_delay),
            behavior: match request.behavior {
                Behavior::Release => "release",
                Behavior::Delete => "delete",
            },
            node_checks: &request.node_checks,
            service_checks: checks.map(|id| ServiceCheck { id }).collect(),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct CreatedSession {
    #[serde(rename = "ID")]
    pub(super) id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Session {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    name: String,
    node: String,
    /// Nanoseconds.
    #[serde(default)]
    lock_delay: i64,
    #[serde(default)]
    behavior: String,
    #[serde(rename = "TTL", default)]
    ttl: String,
    create_index: u64,
}

impl From<Session> for SessionInfo {
    fn from(wire: Session) -> SessionInfo {
        SessionInfo {
            id: SessionId::new(wire.id),
            name: SessionName::new(wire.name),
            node: NodeName::new(wire.node),
            ttl: go_duration(&wire.ttl).filter(|ttl| !ttl.is_zero()),
            lock_delay: Duration::from_nanos(u64::try_from(wire.lock_delay).unwrap_or(0)),
            behavior: match wire.behavior.as_str() {
                "delete" => Behavior::Delete,
                _ => Behavior::Release,
            },
            create_index: wire.create_index,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Kv {
    key: String,
    #[serde(default)]
    value: Option<String>,
    flags: u64,
    #[serde(default)]
    session: Option<String>,
    create_index: u64,
    modify_index: u64,
    lock_index: u64,
}

impl TryFrom<Kv> for KvPair {
    type Error = base64::DecodeError;
    fn try_from(wire: Kv) -> Result<KvPair, base64::DecodeError> {
        Ok(KvPair {
            key: wire.key,
            value: STANDARD.decode(wire.value.unwrap_or_default())?,
            flags: wire.flags,
            session: wire.session.filter(|id| !id.is_empty()).map(SessionId::new),
            create_index: wire.create_index,
            modify_index: wire.modify_index,
            lock_index: wire.lock_index,
        })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) struct Step<'a> {
    kv: KvStep<'a>,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "PascalCase")]
struct KvStep<'a> {
    verb: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
}

impl<'a> From<&'a TxnOp> for Step<'a> {
    fn from(step: &'a TxnOp) -> Step<'a> {
        let bare = |verb, key| KvStep { verb, key, ..KvStep::default() };
        let written = |verb, key, value: &[u8], flags: u64| KvStep {
            value: Some(STANDARD.encode(value)),
            flags: Some(flags),
            ..bare(verb, key)
        };
        let kv = match step {
            TxnOp::Lock { key, session, value, flags } => KvStep {
                session: Some(session.as_str()),
                ..written("lock", key.as_str(), value, *flags)
            },
            TxnOp::Unlock { key, session, value, flags } => KvStep {
                session: Some(session.as_str()),
                ..written("unlock", key.as_str(), value, *flags)
            },
            TxnOp::Set { key, value, flags } => written("set", key.as_str(), value, *flags),
            TxnOp::Delete { key } => bare("delete", key.as_str()),
            TxnOp::CheckIndex { key, index } => {
                KvStep { index: Some(*index), ..bare("check-index", key.as_str()) }
            }
            TxnOp::CheckSession { key, session } => {
                KvStep { session: Some(session.as_str()), ..bare("check-session", key.as_str()) }
            }
            TxnOp::CheckNotExists { key } => bare("check-not-exists", key.as_str()),
        };
        Step { kv }
    }
}

/// What a step leaves in the results of a transaction that was carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trace {
    Nothing,
    Looked,
    Wrote,
}

impl Trace {
    pub(super) const fn of(step: &TxnOp) -> Trace {
        match step {
            TxnOp::Lock { .. } | TxnOp::Unlock { .. } | TxnOp::Set { .. } => Trace::Wrote,
            TxnOp::CheckIndex { .. } | TxnOp::CheckSession { .. } => Trace::Looked,
            TxnOp::Delete { .. } | TxnOp::CheckNotExists { .. } => Trace::Nothing,
        }
    }
}

/// Consul handles a transaction without such steps as a read.
pub(super) fn changes_something(steps: &[TxnOp]) -> bool {
    let writes =
        |step: &TxnOp| matches!(step, TxnOp::Delete { .. }) || Trace::of(step) == Trace::Wrote;
    steps.iter().any(writes)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Txn {
    #[serde(deserialize_with = "present")]
    pub(super) results: Option<Vec<TxnResult>>,
    #[serde(default)]
    pub(super) errors: Option<Vec<TxnError>>,
}

/// `null` is an answer; a field that is not there is somebody else's.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    field: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(field)
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) struct TxnResult {
    pub(super) kv: Kv,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TxnError {
    op_index: usize,
    pub(super) what: String,
}

impl From<TxnError> for TxnRefusal {
    fn from(wire: TxnError) -> TxnRefusal {
        let says = |part: &str| wire.what.contains(part);
        let reason = if says("lock is already held") {
            Refusal::Held
        } else if says("due to lock delay") {
            Refusal::LockDelay
        } else if says("invalid session") {
            Refusal::InvalidSession
        } else {
            Refusal::Check(super::errors::words(wire.what.as_bytes()))
        };
        TxnRefusal { op: wire.op_index, reason }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Token {
    #[serde(rename = "AccessorID")]
    accessor_id: String,
    create_time: Option<Timestamp>,
    expiration_time: Option<Timestamp>,
}

impl From<Token> for TokenInfo {
    fn from(wire: Token) -> TokenInfo {
        let life = life::of_token(wire.create_time, wire.expiration_time);
        TokenInfo { accessor_id: wire.accessor_id, life }
    }
}

/// A span as Go reads it. Always with a unit: Consul takes bare small numbers for seconds.
pub(super) fn go_text(span: Duration) -> String {
    if span.subsec_nanos() == 0 {
        format!("{}s", span.as_secs())
    } else if span.subsec_nanos().is_multiple_of(1_000_000) {
        format!("{}ms", span.as_millis())
    } else {
        format!("{}ns", span.as_nanos())
    }
}

/// A span as Go writes it (`1h0m0s`, `1.5s`, `300ms`); sessions of strangers have any.
pub(super) fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, tail) = rest.split_at(unit_at);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let span = number.parse::<f64>().ok()? * seconds;
        total = total.checked_add(Duration::try_from_secs_f64(span).ok()?)?;
        rest = next;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Key;

    #[test]
    fn spans_go_out_with_a_unit_and_come_back() {
        for (span, text) in [
            (Duration::from_secs(15), "15s"),
            (Duration::ZERO, "0s"),
            (Duration::from_millis(1500), "1500ms"),
            (Duration::from_nanos(1), "1ns"),
        ] {
            assert_eq!(go_text(span), text);
            assert_eq!(go_duration(text), Some(span));
        }
        assert_eq!(go_duration("24h0m0s"), Some(Duration::from_secs(86_400)));
        assert_eq!(go_duration("1m1.5s"), Some(Duration::from_millis(61_500)));
        for odd in ["", "+", "15", "s", "1x", "-5s", "1..5s", "9e99h"] {
            assert_eq!(go_duration(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_session_is_asked_for_with_every_field() {
        let request = SessionRequest {
            name: SessionName::new("n"),
            node: NodeName::new("virtual"),
            ttl: Duration::from_secs(15),
            lock_delay: Duration::ZERO,
            behavior: Behavior::Delete,
            node_checks: Vec::new(),
            service_checks: vec!["db".into()],
        };
        assert_eq!(
            serde_json::to_value(NewSession::of(&request)).unwrap(),
            serde_json::json!({"Name": "n", "Node": "virtual", "TTL": "15s", "LockDelay": "0s",
                "Behavior": "delete", "NodeChecks": [], "ServiceChecks": [{"ID": "db"}]})
        );
    }

    #[test]
    fn steps_carry_what_their_verb_needs() {
        let (key, session) = (Key::new("k").unwrap(), SessionId::new("s"));
        let lock = TxnOp::Lock { key: key.clone(), session, value: b"v".to_vec(), flags: u64::MAX };
        assert_eq!(
            serde_json::to_value(Step::from(&lock)).unwrap(),
            serde_json::json!({"KV": {"Verb": "lock", "Key": "k", "Value": "dg==",
                "Flags": u64::MAX, "Session": "s"}})
        );
        let check = TxnOp::CheckIndex { key, index: 7 };
        assert_eq!(
            serde_json::to_value(Step::from(&check)).unwrap(),
            serde_json::json!({"KV": {"Verb": "check-index", "Key": "k", "Index": 7}})
        );
        assert!(changes_something(&[check.clone(), lock]) && !changes_something(&[check]));
    }

    #[test]
    fn a_strangers_entry_is_read_as_it_is() {
        let raw = r#"{"LockIndex":0,"Key":"ü x","Flags":16210313421097356768,"Value":null,
            "CreateIndex":1,"ModifyIndex":2,"New":{}}"#;
        let pair = KvPair::try_from(serde_json::from_str::<Kv>(raw).unwrap()).unwrap();
        assert_eq!((pair.key.as_str(), pair.flags), ("ü x", 0xe0f6_9a2b_aa41_4de0));
        assert!(pair.value.is_empty() && pair.session.is_none());
    }
}
