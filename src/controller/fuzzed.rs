//! What the controller makes of what others wrote, for `crate::fuzz`.

use std::time::Duration;

use serde_json::Value;

use super::{
    Config, follow, holder,
    recorded::{self, identity},
    tenancy::{self, KeyPrefix, NamespaceSeen, Tenancy},
};
use crate::{
    api::{ConsulLock, ConsulLockSpec, Mode},
    consul::KvPair,
    election::{Handover, Runs},
    keeper::{Payload, PodIdentity, SeenHolder},
    lock::LOCK_FLAGS,
    names::{Key, SessionId},
};

const CLUSTER: &str = "west";
const UID: &str = "0f2a";

/// A claim as the API server may hold it.
pub(crate) fn claim(claim: &ConsulLock) {
    let json = |claim: &ConsulLock| serde_json::to_value(claim).expect("it was JSON");
    let again = serde_json::from_value(json(claim)).expect("what is written can be read");
    assert_eq!(json(claim), json(&again));
    if let Ok(settings) = claim.spec.settings() {
        let (ttl, delay) = (settings.session.ttl, settings.session.lock_delay);
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert!((10 * second..=24 * 60 * minute).contains(&ttl), "{ttl:?}");
        assert!(delay <= minute, "{delay:?}");
        assert!(settings.key.is_none_or(|key| Key::new(key.as_str()).is_ok()));
        assert!(settings.candidates.is_some() || settings.service.is_none());
    }
    let config = Config {
        key_prefix: prefix(),
        cluster: CLUSTER.to_owned(),
        namespaces: None,
        instance: "r".to_owned(),
    };
    let managed = recorded::of(claim, &config);
    let followed = recorded::followed(claim);
    assert!(managed.is_none() || followed.is_none(), "a session is ours, or a pod's");
    // What was held by others is not gone on with.
    if let Some(tenure) = managed.and_then(|recorded| recorded.tenure) {
        let status = claim.status.as_ref().expect("it is recorded there");
        let holder = status.holder.as_ref().expect("a tenure has a holder");
        assert!(!holder.stranger && holder.cluster.as_deref() == Some(CLUSTER));
        assert_eq!(status.fencing_token, Some(tenure.token.to_string()), "the token as it was");
        assert_ne!(status.mode, Some(Mode::Agent));
    }
    for note in claim.metadata.annotations.iter().flat_map(|notes| notes.values()) {
        if let Ok(handover) = note.parse::<Handover>() {
            assert!(note.contains(&handover.token.to_string()), "{note:?}");
        }
    }
}

/// A key that a claim of the namespace `shop` asks for, and the annotation of that Namespace.
pub(crate) fn reach(key: &Key, annotation: &str) {
    let key_prefix = prefix();
    for seen in [NamespaceSeen::Unknown, NamespaceSeen::Annotated(Some(annotation.to_owned()))] {
        let (tenancy, _) = tenancy::judge(key, "shop", &key_prefix, &seen);
        let Tenancy::Allowed { prefix } = tenancy else { continue };
        assert!(prefix.ends_with('/') && key.as_str().starts_with(&*prefix), "{key} by {prefix}");
        let own = key.as_str().starts_with("consul-lock/shop/");
        let listed = annotation.split(',').any(|entry| entry.trim() == &*prefix);
        assert!(own || (listed && seen != NamespaceSeen::Unknown), "{key} by {annotation:?}");
    }
}

/// The value of a key, and the name of the session that holds it.
pub(crate) fn holder(session_name: &str, value: &[u8]) {
    shown(session_name, value);
    // Of a field that nobody asks for, the reader does not look at the characters either.
    let told: Value = serde_json::from_str(&String::from_utf8_lossy(value)).unwrap_or_default();
    let pair = KvPair {
        key: "consul-lock/shop/billing".to_owned(),
        value: value.to_vec(),
        flags: LOCK_FLAGS,
        session: Some(SessionId::new("s")),
        create_index: 1,
        modify_index: 2,
        lock_index: 1,
    };
    let mut claim = ConsulLock::new("billing", ConsulLockSpec::default());
    claim.metadata.namespace = Some("shop".to_owned());
    if let Some(said) = follow::said(&pair, None, &claim, CLUSTER) {
        assert_eq!(told["cluster"], CLUSTER, "of another cluster");
        assert_eq!(told["holder"], identity(&claim), "of another claim");
        assert_eq!(told["uid"], *said.uid);
    }
    let ours = Payload {
        holder: identity(&claim),
        cluster: CLUSTER.to_owned(),
        value: String::new(),
        pod: Some(PodIdentity { name: "billing-1".into(), uid: UID.into() }),
    };
    if ours.left_behind(&pair).is_some() {
        assert_eq!(told["uid"], UID, "of another pod");
    }
    if let Ok(runs) = Runs::read(value) {
        assert_eq!(Runs::read(&runs.write()), Ok(runs), "as it is written");
    }
}

/// It ends up in a status, and on somebody's terminal.
fn shown(session_name: &str, value: &[u8]) {
    let seen = SeenHolder {
        session: SessionId::new("s"),
        session_name: Some(session_name.to_owned()),
        node: Some("n".to_owned()),
        value: value.to_vec(),
    };
    let holder = holder::of(&seen);
    let texts = [Some(holder.identity), holder.cluster, holder.namespace, holder.pod];
    for text in texts.into_iter().flatten() {
        assert!(!text.contains(char::is_control), "{text:?}");
        assert!(text.chars().count() <= 600, "{text:?}");
    }
    let named = session_name.starts_with(holder::SESSION_PREFIX);
    assert!(named || holder.stranger, "{session_name:?} is none of our names");
}

fn prefix() -> KeyPrefix {
    KeyPrefix::new("consul-lock").expect("the default")
}
