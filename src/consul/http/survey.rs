//! What an examination of a Consul asks beyond what keepers need: all sessions, the server's clock,
//! and the end of a node that was made for the purpose.

use jiff::{Timestamp, fmt::rfc2822};
use reqwest::Method;
use serde::Serialize;

use super::{Answer, HttpConsul, LARGE, json, with_consistency};
use crate::{
    consul::{Consistency, ConsulError, Operation, SessionInfo},
    names::NodeName,
};

/// All sessions of a datacenter, as far as they may be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// Those that may be seen.
    pub sessions: Vec<SessionInfo>,
    /// Whether ACLs hid others. The anonymous token is not told.
    pub is_filtered: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Deregistration<'a> {
    node: &'a str,
}

impl HttpConsul {
    /// All sessions, read consistently. `GET /v1/session/list`, needs `session:read`.
    ///
    /// # Errors
    /// [`ConsulError`].
    pub async fn census(&self) -> Result<Census, ConsulError> {
        let mut call = self.call(Operation::ListSessions, Method::GET, ["v1", "session", "list"]);
        with_consistency(&mut call.url, Consistency::Consistent);
        call.body_max = LARGE;
        self.ask(call, Answer::census).await
    }

    /// Takes a node out of the catalog, and with it every session on it.
    /// `PUT /v1/catalog/deregister`, needs `node:write` on it.
    ///
    /// # Errors
    /// [`ConsulError`].
    pub async fn deregister_node(&self, node: &NodeName) -> Result<(), ConsulError> {
        let operation = Operation::DeregisterNode;
        let mut call = self.call(operation, Method::PUT, ["v1", "catalog", "deregister"]);
        call.body = Some(json(operation, &Deregistration { node: node.as_str() })?);
        self.ask(call, Answer::done).await
    }

    /// What the answering server's clock says, in whole seconds; `None` if it does not say.
    ///
    /// # Errors
    /// [`ConsulError`].
    pub async fn date(&self) -> Result<Option<Timestamp>, ConsulError> {
        let call = self.call(Operation::ReadLeader, Method::GET, ["v1", "status", "leader"]);
        self.ask(call, |answer| Ok(answer.date())).await
    }
}

/// The time of a `Date` header.
pub fn date(header: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(header).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_header_is_read() {
        let expected = "2026-11-25T22:02:32Z".parse().unwrap();
        assert_eq!(date("Wed, 25 Nov 2026 22:02:32 GMT"), Some(expected));
        assert_eq!(date("soon"), None);
    }
}
