//! Where an agent stands, as it tells others. Pure.

use serde::Serialize;
use serde_json::Value;

use crate::{
    agent::notice::Notice,
    clock::Instant,
    holder::Tenure,
    keeper::{KeeperView, KeySeen, LockView, SeenHolder},
    names::Key,
};

/// Where an agent stands. What it says of the tenure holds until the work has to stop, which is
/// before *valid until*: from then on nobody is told any more that this is the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) key: Option<Key>,
    /// What we are called when we hold the key.
    pub(super) me: String,
    pub(super) state: State,
    /// Who holds the key, if it is somebody else.
    pub(super) other: Option<String>,
    /// What stands in the way, in words.
    pub(super) trouble: Option<String>,
}

/// What an agent is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is known yet.
    Starting,
    /// Somebody else holds the key, or nobody may.
    Waiting,
    /// The key is held, and work may go on.
    Held { tenure: Tenure, stop_by: Instant },
    /// The work is being stopped, and the key given up.
    Stopping,
    /// The claim is paused, or cannot be followed: `trouble` says which.
    StandingBy,
    /// Given up contending, as the claim wants it.
    Failed,
}

/// The JSON that everybody is told. `valid_until` counts seconds since the machine started, as
/// `/proc/uptime` does, so that a reader can judge by itself.
#[derive(Serialize)]
struct Told<'a> {
    leader: bool,
    state: &'static str,
    key: Option<&'a str>,
    holder: Option<&'a str>,
    token: Option<String>,
    session: Option<&'a str>,
    remaining_ms: u64,
    valid_until: Option<f64>,
    trouble: Option<&'a str>,
}

impl State {
    /// A lock that is held on these terms.
    pub(super) fn held(tenure: Tenure, notice: Notice) -> State {
        State::Held { stop_by: notice.deadlines(tenure.valid_until).term, tenure }
    }

    /// What keepers show of a lock that is contended for.
    pub(super) fn of(view: &KeeperView) -> State {
        match view.lock {
            LockView::Starting => State::Starting,
            LockView::Failed { .. } => State::Failed,
            LockView::Releasing { .. } => State::Stopping,
            LockView::Waiting
            | LockView::LockDelay { .. }
            | LockView::Held { .. }
            | LockView::HandingOver { .. }
            | LockView::Standby
            | LockView::Following { .. } => State::Waiting,
        }
    }

    fn as_str(&self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Waiting => "waiting",
            State::Held { .. } => "held",
            State::Stopping => "stopping",
            State::StandingBy => "standing-by",
            State::Failed => "failed",
        }
    }
}

impl Standing {
    /// The tenure, if work may begin or go on in it.
    pub(super) fn tenure(&self, now: Instant) -> Option<&Tenure> {
        match &self.state {
            State::Held { tenure, stop_by } if now < *stop_by => Some(tenure),
            _ => None,
        }
    }

    /// As JSON, in one line.
    pub(super) fn json(&self, now: Instant) -> String {
        let tenure = self.tenure(now);
        let left = tenure.map_or(0, |tenure| tenure.valid_until.since(now).as_millis());
        let state = match self.state {
            State::Held { .. } if tenure.is_none() => State::Stopping.as_str(),
            _ => self.state.as_str(),
        };
        let told = Told {
            leader: tenure.is_some(),
            state,
            key: self.key.as_ref().map(Key::as_str),
            holder: if tenure.is_some() { Some(&self.me) } else { self.other.as_deref() },
            token: tenure.map(|tenure| tenure.token.to_string()),
            session: tenure.map(|tenure| tenure.session.as_str()),
            remaining_ms: u64::try_from(left).unwrap_or(u64::MAX),
            valid_until: tenure.map(|tenure| seconds(tenure.valid_until)),
            trouble: self.trouble.as_deref(),
        };
        serde_json::to_string(&told).expect("strings and numbers are JSON")
    }
}

/// Whole milliseconds, and never a later one.
fn seconds(at: Instant) -> f64 {
    let millis = u32::try_from(at.since_boot().as_millis() % 1000).unwrap_or(0);
    // Exact up to 2^53, which is more than a machine's life.
    #[expect(clippy::cast_precision_loss, reason = "a machine runs for less than 2^53 seconds")]
    let whole = at.since_boot().as_secs() as f64;
    whole + f64::from(millis) / 1000.0
}

/// Who holds the key, in the words of its value, or of its session.
pub(super) fn other(view: &KeeperView) -> Option<String> {
    let Some(KeySeen::Held(SeenHolder { session, session_name, node, value })) = &view.key else {
        return None;
    };
    let told = serde_json::from_slice::<Value>(value).unwrap_or_default();
    let holder = told["holder"].as_str();
    let namespace = holder.and_then(|holder| holder.split('/').next());
    Some(match (namespace, told["pod"].as_str(), holder, session_name, node) {
        (Some(namespace), Some(pod), ..) => format!("{namespace}/{pod}"),
        (_, _, Some(holder), ..) => holder.to_owned(),
        (.., Some(name), Some(node)) => format!("{name} on {node}"),
        _ => format!("session {session}"),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::names::{FencingToken, SessionId};

    const S: Duration = Duration::from_secs(1);

    fn held() -> Standing {
        let tenure = Tenure {
            token: FencingToken::new(1482),
            session: SessionId::new("s-1"),
            valid_until: Instant::from_boot(S * 100 + Duration::from_micros(1500)),
        };
        Standing {
            key: Some(Key::new("shop/billing").unwrap()),
            me: "shop/billing-1".to_owned(),
            state: State::held(tenure, Notice::new(S * 15, S * 5).unwrap()),
            other: None,
            trouble: None,
        }
    }

    #[test]
    fn leader_is_told_with_holder_token_and_what_remains() {
        let json = held().json(Instant::from_boot(S * 90));
        assert_eq!(
            json,
            r#"{"leader":true,"state":"held","key":"shop/billing","holder":"shop/billing-1","token":"1482","session":"s-1","remaining_ms":10001,"valid_until":100.001,"trouble":null}"#
        );
    }

    #[test]
    fn nobody_leads_from_the_instant_at_which_work_has_to_stop() {
        let standing = held();
        let term = Instant::from_boot(S * 94 + Duration::from_micros(1500));
        assert!(standing.tenure(term - Duration::from_nanos(1)).is_some());
        assert_eq!(standing.tenure(term), None);
        let json: Value = serde_json::from_str(&standing.json(term)).unwrap();
        assert_eq!((&json["leader"], &json["state"]), (&false.into(), &"stopping".into()));
        for hidden in ["token", "session", "valid_until", "holder"] {
            assert_eq!(json[hidden], Value::Null, "{hidden}");
        }
        assert_eq!(json["remaining_ms"], 0);
    }

    #[test]
    fn others_are_called_by_what_they_wrote_or_by_their_session() {
        let seen = |value: &str, name: Option<&str>| {
            let holder = SeenHolder {
                session: SessionId::new("s-2"),
                session_name: name.map(str::to_owned),
                node: Some("vm-17".to_owned()),
                value: value.as_bytes().to_vec(),
            };
            crate::agent::sidecar::tests::view(Some(KeySeen::Held(holder)))
        };
        for (value, name, called) in [
            (r#"{"holder":"shop/billing","pod":"billing-2"}"#, None, "shop/billing-2"),
            (r#"{"holder":"vm-17/pay"}"#, None, "vm-17/pay"),
            ("theirs", Some("Consul API Lock"), "Consul API Lock on vm-17"),
            ("", None, "session s-2"),
        ] {
            assert_eq!(other(&seen(value, name)).as_deref(), Some(called), "{value}");
        }
        assert_eq!(other(&crate::agent::sidecar::tests::view(Some(KeySeen::Ours))), None);
    }
}
