//! The JSON in a held key, for other readers. Pure.
//!
//! ```json
//! {"holder": "shop/billing", "cluster": "eu-1", "pod": "billing-7c9f", "uid": "0f2a…",
//!  "since": "2026-01-02T03:04:05Z", "token": "1482", "value": "the user's text"}
//! ```
//! `pod` is there when the tenure is for one. `uid` and `token` are there when a pod holds the key
//! by itself: the token is known only once the key is locked, so such a tenure writes its value
//! twice, and whoever reads one without a token has looked in between.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Recorded, RecordedTenure};
use crate::{consul::KvPair, names::FencingToken};

/// What the holder writes into the key; `since`, `token` and the `pod` that it elected are filled
/// in by the keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// `<namespace>/<name>` of the claim.
    pub holder: String,
    /// The cluster's name.
    pub cluster: String,
    /// The user's text; empty for none.
    pub value: String,
    /// The pod that holds the key by itself; `None`: somebody holds it for others, or outside of
    /// every cluster.
    pub pod: Option<PodIdentity>,
}

/// A pod, as it knows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// Its name.
    pub name: Arc<str>,
    /// Its UID: another pod of the same name is another holder.
    pub uid: Arc<str>,
}

#[derive(Serialize)]
struct Written<'a> {
    holder: &'a str,
    cluster: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    value: &'a str,
}

/// What tells a tenure again.
#[derive(Deserialize)]
struct Mark {
    uid: String,
    since: Timestamp,
    token: Option<String>,
}

impl Payload {
    /// The value of a key that is held since then. `elected`: for this pod; `token`: in this tenure,
    /// if it is known yet.
    pub(super) fn written(
        &self,
        elected: Option<&str>,
        since: &str,
        token: Option<FencingToken>,
    ) -> Vec<u8> {
        let own = self.pod.as_ref();
        let value = Written {
            holder: &self.holder,
            cluster: &self.cluster,
            pod: own.map(|pod| &*pod.name).or(elected),
            uid: own.map(|pod| &*pod.uid),
            since: since.to_owned(),
            token: token.filter(|_| own.is_some()).map(|token| token.to_string()),
            value: &self.value,
        };
        serde_json::to_vec(&value).expect("a few strings are JSON")
    }

    /// What an earlier process of the same pod left in the key, for this one to go on with: the
    /// session, and the tenure under it, if its token was written.
    pub fn left_behind(&self, pair: &KvPair) -> Option<Recorded> {
        let session = pair.session.clone()?;
        let mark = serde_json::from_slice::<Mark>(&pair.value).ok()?;
        let is_ours = self.pod.as_ref().is_some_and(|pod| *pod.uid == *mark.uid);
        let token = mark.token.as_deref().and_then(|token| token.parse().ok());
        let tenure = token.map(|token| RecordedTenure { token, since: mark.since, leader: None });
        is_ours.then_some(Recorded { session, tenure })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::SessionId;

    const SINCE: &str = "2026-01-02T03:04:05Z";

    fn payload(pod: Option<(&str, &str)>) -> Payload {
        let identity =
            |(name, uid): (&str, &str)| PodIdentity { name: name.into(), uid: uid.into() };
        Payload {
            holder: "shop/billing".to_owned(),
            cluster: "eu-1".to_owned(),
            value: "text".to_owned(),
            pod: pod.map(identity),
        }
    }

    fn text(value: &[u8]) -> &str {
        std::str::from_utf8(value).unwrap()
    }

    #[test]
    fn pod_that_holds_the_key_by_itself_is_told_with_its_uid_and_its_token() {
        let (payload, token) = (payload(Some(("b-1", "0f2a"))), Some(FencingToken::new(17)));
        assert_eq!(
            text(&payload.written(None, SINCE, token)),
            r#"{"holder":"shop/billing","cluster":"eu-1","pod":"b-1","uid":"0f2a","since":"2026-01-02T03:04:05Z","token":"17","value":"text"}"#
        );
        assert!(!text(&payload.written(None, SINCE, None)).contains("token"));
    }

    #[test]
    fn whoever_holds_the_key_for_others_tells_no_token() {
        let (payload, token) = (payload(None), Some(FencingToken::new(17)));
        assert_eq!(
            text(&payload.written(Some("b-1"), SINCE, token)),
            r#"{"holder":"shop/billing","cluster":"eu-1","pod":"b-1","since":"2026-01-02T03:04:05Z","value":"text"}"#
        );
        assert_eq!(payload.written(None, SINCE, None), payload.written(None, SINCE, token));
    }

    #[test]
    fn what_a_process_left_is_told_again_by_the_same_pod_and_by_no_other() {
        let ours = payload(Some(("b-1", "0f2a")));
        let session = SessionId::new("s");
        let pair = |value: &[u8], session: Option<&SessionId>| KvPair {
            key: "k".to_owned(),
            value: value.to_vec(),
            flags: 0,
            session: session.cloned(),
            lock_index: 1,
            create_index: 1,
            modify_index: 18,
        };
        let value = ours.written(None, SINCE, Some(FencingToken::new(17)));
        let recorded = ours.left_behind(&pair(&value, Some(&session))).unwrap();
        let tenure = recorded.tenure.unwrap();
        assert_eq!((recorded.session, tenure.token.get()), (session.clone(), 17));
        assert_eq!(tenure.since.to_string(), SINCE);
        for other in [payload(Some(("b-1", "ffff"))), payload(None)] {
            assert_eq!(other.left_behind(&pair(&value, Some(&session))), None);
        }
        assert_eq!(ours.left_behind(&pair(&value, None)), None, "it is free");
        assert_eq!(ours.left_behind(&pair(b"theirs", Some(&session))), None);
        let early = ours.written(None, SINCE, None);
        let recorded = ours.left_behind(&pair(&early, Some(&session))).unwrap();
        assert_eq!((recorded.session, recorded.tenure), (session, None));
    }
}
