//! What is seen of a key that the pods hold themselves (`mode: Agent`). Pure.
//!
//! An agent writes into the key that it holds who it is: `{"holder", "cluster", "pod", "uid",
//! "since", "token", "value"}`; `token` a moment later, by a second write.
//!
//! # Guarantees
//! Whoever may write the key can write anything into it. So a pod is taken for the holder only if
//! this cluster and this very claim are named, and a pod of that UID is in the claim's namespace
//! and matches its selector; all else that is told of the pod comes from the pod. Everybody else is
//! shown, and given nothing.
//! # Not guaranteed
//! That the pod wrote the value: whoever may write the key can have any candidate labelled. And of a
//! tenure that was begun and ended between two looks nothing is told.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;

use super::{
    holder::SESSION_PREFIX,
    recorded::{Followed, identity},
};
use crate::{
    api::{ConsulLock, SessionBehavior, Settings},
    consul::KvPair,
    keeper::{KeySeen, SeenHolder},
    lock::{EndReason, LOCK_FLAGS},
    names::{FencingToken, SessionId},
};

/// Who holds a key that is followed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Holding {
    /// Nobody.
    Nobody,
    /// Somebody else than a pod of the claim.
    Others,
    /// A pod of the claim.
    Pod(Followed),
}

/// What the holder of a key says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) session: SessionId,
    pub(super) index: u64,
    pub(super) uid: Arc<str>,
    pub(super) since: Arc<str>,
    pub(super) token: Option<FencingToken>,
}

#[derive(Deserialize)]
struct Payload {
    holder: String,
    cluster: String,
    uid: Option<Arc<str>>,
    since: Option<Arc<str>>,
    token: Option<String>,
}

impl Payload {
    fn token(&self) -> Option<FencingToken> {
        self.token.as_ref()?.parse().ok()
    }
}

impl Said {
    /// When the tenure began, by the holder's own clock, which may be wrong, but not ahead of ours.
    pub(super) fn began(&self, wall: Timestamp) -> Timestamp {
        self.since.parse().map_or(wall, |since: Timestamp| since.min(wall))
    }

    /// Whether this is the tenure that was noticed before under the same session.
    pub(super) fn is(&self, known: &Followed) -> bool {
        let same_token = match (self.token, known.token) {
            (Some(said), Some(known)) => said == known,
            // No agent takes its token back: the key was taken anew.
            (None, Some(_)) => false,
            (_, None) => known.since_said.as_ref() == Some(&self.since),
        };
        let session = known.session.as_ref() == Some(&self.session);
        session && known.leader.uid == self.uid && same_token
    }
}

/// What the holder says of itself, if it says that it is a pod of this claim.
pub(super) fn said(
    pair: &KvPair,
    seen: Option<&KeySeen>,
    claim: &ConsulLock,
    cluster: &str,
) -> Option<Said> {
    let session = pair.session.clone()?;
    // A name that cannot be read says nothing.
    if let Some(KeySeen::Held(SeenHolder { session: known, session_name: Some(name), .. })) = seen
        && *known == session
        && !name.starts_with(SESSION_PREFIX)
    {
        return None;
    }
    let payload: Payload = serde_json::from_slice(&pair.value).ok()?;
    let ours = payload.cluster == cluster && payload.holder == identity(claim);
    let token = payload.token();
    Some(Said {
        session,
        index: pair.modify_index,
        uid: payload.uid.filter(|_| ours)?,
        since: payload.since.unwrap_or_default(),
        token,
    })
}

/// Why the tenure that the status speaks of has ended, now that the key is seen like this. `said`:
/// what its present holder says, if that is a pod of this claim. `died`: there is proof of the death
/// of who held it.
pub(super) fn end(
    recorded: &Followed,
    pair: Option<&KvPair>,
    said: Option<&Said>,
    died: Option<EndReason>,
    settings: &Settings,
) -> EndReason {
    let same = said.is_some_and(|said| said.is(recorded));
    match (died, pair) {
        // It is held still, by a pod that is no candidate any more.
        (_, Some(_)) if same => EndReason::PodUnmatched,
        (Some(died), _) => died,
        (None, None) if settings.session.behavior == SessionBehavior::Delete => {
            EndReason::SessionInvalidated
        }
        (None, None) => EndReason::KeyDeleted,
        (None, Some(pair)) => match &pair.session {
            Some(session) if recorded.session.as_ref() == Some(session) => EndReason::Released,
            Some(_) => EndReason::PassedOn,
            None if pair.flags != LOCK_FLAGS => EndReason::KeyTaken,
            // Whoever gives a key up leaves it empty; Consul leaves it as it is.
            None if pair.value.is_empty() && settings.paused => EndReason::Paused,
            None if pair.value.is_empty() => EndReason::Released,
            None if tells(&pair.value, recorded.token) => EndReason::SessionInvalidated,
            None => EndReason::PassedOn,
        },
    }
}

fn tells(value: &[u8], token: Option<FencingToken>) -> bool {
    let payload = serde_json::from_slice::<Payload>(value).ok();
    payload.is_some_and(|payload| token.is_some() && payload.token() == token)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::sample::{claim, leader};

    fn pair(session: Option<&str>, value: &Value) -> KvPair {
        KvPair {
            key: "consul-lock/shop/billing".to_owned(),
            value: value.to_string().into_bytes(),
            flags: LOCK_FLAGS,
            session: session.map(SessionId::new),
            create_index: 7,
            modify_index: 43,
            lock_index: 1,
        }
    }

    fn says() -> Value {
        json!({
            "holder": "shop/billing", "cluster": "west", "pod": "a", "uid": "uid-a",
            "since": "2026-01-02T03:04:05Z", "token": "41", "value": "",
        })
    }

    fn but(field: &str, value: Value) -> Value {
        let mut says = says();
        says[field] = value;
        says
    }

    fn heard(value: &Value, name: Option<&str>) -> Option<Said> {
        let seen = KeySeen::Held(SeenHolder {
            session: SessionId::new("s-a"),
            session_name: name.map(str::to_owned),
            node: None,
            value: Vec::new(),
        });
        said(&pair(Some("s-a"), value), Some(&seen), &claim("{}"), "west")
    }

    fn recorded() -> Followed {
        Followed {
            leader: Arc::new(leader("a")),
            session: Some(SessionId::new("s-a")),
            index: None,
            token: Some(FencingToken::new(41)),
            since: Timestamp::UNIX_EPOCH,
            since_said: None,
            noticed: None,
        }
    }

    #[test]
    fn an_agent_of_this_claim_is_heard() {
        let said = heard(&says(), Some("consul-lock/west/agent")).unwrap();
        assert_eq!(
            (&*said.uid, said.index, said.token),
            ("uid-a", 43, Some(FencingToken::new(41)))
        );
        assert!(said.is(&recorded()));
        let wall: Timestamp = "2026-01-03T00:00:00Z".parse().unwrap();
        assert_eq!(said.began(wall).to_string(), "2026-01-02T03:04:05Z");
        assert_eq!(said.began(Timestamp::UNIX_EPOCH), Timestamp::UNIX_EPOCH, "ahead of us");
        assert_eq!(heard(&but("token", json!(null)), None).unwrap().token, None, "in a moment");
        assert_eq!(heard(&but("token", json!("-1")), None).unwrap().token, None);
    }

    #[test]
    fn nobody_else_is() {
        for (value, name) in [
            (says(), "Consul API Lock"),
            (but("cluster", json!("east")), "consul-lock/x"),
            (but("holder", json!("shop/other")), "consul-lock/x"),
            (but("holder", json!("cart/billing")), "consul-lock/x"),
            (but("uid", json!(null)), "consul-lock/x"),
            (but("uid", json!(7)), "consul-lock/x"),
            (json!("scribble"), "consul-lock/x"),
            (json!([]), "consul-lock/x"),
        ] {
            assert_eq!(heard(&value, Some(name)), None, "{value} of {name}");
        }
        let free = pair(None, &says());
        assert_eq!(said(&free, None, &claim("{}"), "west"), None, "what it left behind");
    }

    #[test]
    fn a_tenure_is_known_by_session_pod_and_token_and_before_that_by_its_beginning() {
        let heard = |value: &Value| heard(value, None).unwrap();
        assert!(!heard(&but("token", json!("45"))).is(&recorded()), "another tenure");
        assert!(!heard(&but("uid", json!("uid-b"))).is(&recorded()));
        let elsewhere = Followed { session: Some(SessionId::new("s-b")), ..recorded() };
        assert!(!heard(&says()).is(&elsewhere));
        let silent = but("token", json!(null));
        assert!(!heard(&silent).is(&recorded()), "begun anew");
        let since = Some("2026-01-02T03:04:05Z".into());
        let noticed = Followed { token: None, since_said: since, ..recorded() };
        assert!(heard(&silent).is(&noticed) && heard(&says()).is(&noticed));
        let later = but("since", json!("2026-01-02T03:04:09Z"));
        assert!(!heard(&later).is(&noticed));
    }

    #[test]
    fn why_a_tenure_ended_is_told_as_far_as_the_key_tells_it() {
        const AGENT: &str = "mode: Agent, candidates: {selector: {matchLabels: {app: a}}}";
        let settings = |more: &str| claim(&format!("{{{AGENT}{more}}}")).spec.settings().unwrap();
        let (plain, paused) = (settings(""), settings(", paused: true"));
        let deletes = settings(", session: {behavior: Delete}");
        let empty = KvPair { value: Vec::new(), ..pair(None, &json!(null)) };
        let scribbled = KvPair { flags: 0, ..empty.clone() };
        let left = pair(None, &says());
        let others = pair(None, &but("token", json!("45")));
        let (same, next) = (pair(Some("s-a"), &says()), pair(Some("s-b"), &says()));
        for (pair, settings, reason) in [
            (Some(&empty), &plain, EndReason::Released),
            (Some(&empty), &paused, EndReason::Paused),
            (Some(&left), &plain, EndReason::SessionInvalidated),
            (Some(&others), &plain, EndReason::PassedOn),
            (Some(&scribbled), &plain, EndReason::KeyTaken),
            (Some(&next), &plain, EndReason::PassedOn),
            (Some(&same), &plain, EndReason::Released),
            (None, &plain, EndReason::KeyDeleted),
            (None, &deletes, EndReason::SessionInvalidated),
        ] {
            assert_eq!(end(&recorded(), pair, None, None, settings), reason, "{pair:?}");
            let died = Some(EndReason::PodDied);
            assert_eq!(end(&recorded(), pair, None, died, settings), EndReason::PodDied);
        }
        let still = heard(&says(), None);
        let unmatched = end(&recorded(), Some(&same), still.as_ref(), None, &plain);
        assert_eq!(unmatched, EndReason::PodUnmatched);
    }
}
