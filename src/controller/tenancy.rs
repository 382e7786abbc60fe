//! Which keys a claim may reach.
//!
//! A claim reaches the keys under `<key prefix>/<its namespace>/`, and those under the prefixes
//! that cluster administrators list in the Namespace's annotation
//! [`KEY_PREFIXES_ANNOTATION`]. Pure.

use std::sync::Arc;

use crate::{
    api::KEY_PREFIXES_ANNOTATION,
    names::{Key, KeyError},
};

/// What the keys of all claims begin with, unless an administrator allowed others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPrefix(Key);

impl From<Key> for KeyPrefix {
    fn from(stem: Key) -> KeyPrefix {
        KeyPrefix(stem)
    }
}

impl KeyPrefix {
    /// A prefix, with its final slash or without.
    ///
    /// # Errors
    /// [`KeyError`] if no key can begin with it.
    pub fn new(raw: &str) -> Result<KeyPrefix, KeyError> {
        Key::new(raw.strip_suffix('/').unwrap_or(raw)).map(KeyPrefix)
    }

    /// The key of a claim that names none.
    ///
    /// # Errors
    /// [`KeyError`] if it would be too long.
    pub(super) fn default_key(&self, namespace: &str, name: &str) -> Result<Key, KeyError> {
        Key::new(&format!("{}/{namespace}/{name}", self.0))
    }

    /// The one prefix that covers every default key.
    fn shared(&self) -> Arc<str> {
        format!("{}/", self.0).into()
    }
}

/// What is known of the claim's Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NamespaceSeen {
    /// Nothing: the watch has not told us yet, or is not allowed to.
    Unknown,
    /// Its annotation, if it has one.
    Annotated(Option<String>),
}

/// Whether a claim may contend for its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tenancy {
    /// It may. `prefix` covers the key and is watched for it.
    Allowed { prefix: Arc<str> },
    /// It may not; the message says what it may.
    Refused { message: String },
    /// That depends on a Namespace that we cannot see.
    Unknown,
}

/// Whether a claim in `namespace` may contend for `key`, and what is wrong with the annotation.
pub(super) fn judge(
    key: &Key,
    namespace: &str,
    key_prefix: &KeyPrefix,
    seen: &NamespaceSeen,
) -> (Tenancy, Vec<String>) {
    let own = format!("{}/{namespace}/", key_prefix.0);
    let (listed, malformed) = match seen {
        NamespaceSeen::Annotated(Some(annotation)) => prefixes(annotation),
        NamespaceSeen::Annotated(None) | NamespaceSeen::Unknown => Default::default(),
    };
    if key.as_str().starts_with(&own) {
        let prefix = key_prefix.shared();
        return (Tenancy::Allowed { prefix }, malformed);
    }
    let covering = listed.iter().find(|prefix| key.as_str().starts_with(**prefix));
    let tenancy = match (covering, seen) {
        (Some(prefix), _) => Tenancy::Allowed { prefix: (*prefix).into() },
        (None, NamespaceSeen::Unknown) => Tenancy::Unknown,
        (None, NamespaceSeen::Annotated(_)) => {
            Tenancy::Refused { message: refusal(key, &own, &listed) }
        }
    };
    (tenancy, malformed)
}

/// The annotation's usable prefixes, and what is wrong with the others.
fn prefixes(annotation: &str) -> (Vec<&str>, Vec<String>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for entry in annotation.split(',').map(str::trim) {
        match entry.strip_suffix('/') {
            _ if entry.is_empty() => {}
            None => bad.push(format!("{entry:?} does not end in /")),
            Some(stem) => match Key::new(stem) {
                Ok(_) => good.push(entry),
                Err(error) => bad.push(format!("{entry:?}: {error}")),
            },
        }
    }
    (good, bad)
}

fn refusal(key: &Key, own: &str, listed: &[&str]) -> String {
    let more = match listed {
        [] => String::new(),
        listed => format!(" or {}", listed.join(" or ")),
    };
    format!(
        "the key {key} is outside this namespace: keys here begin with {own}{more}; a cluster \
         administrator can allow other prefixes with the annotation {KEY_PREFIXES_ANNOTATION} on \
         the Namespace"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(key: &str, seen: &NamespaceSeen) -> (Tenancy, Vec<String>) {
        let key_prefix = KeyPrefix::new("consul-lock").unwrap();
        judge(&Key::new(key).unwrap(), "shop", &key_prefix, seen)
    }

    fn annotated(annotation: &str) -> NamespaceSeen {
        NamespaceSeen::Annotated(Some(annotation.into()))
    }

    fn allowed(prefix: &str) -> Tenancy {
        Tenancy::Allowed { prefix: prefix.into() }
    }

    #[test]
    fn own_keys_are_allowed_whatever_is_known_of_the_namespace() {
        for seen in [NamespaceSeen::Unknown, NamespaceSeen::Annotated(None), annotated("shared/")] {
            let (tenancy, _) = judged("consul-lock/shop/billing", &seen);
            assert_eq!(tenancy, allowed("consul-lock/"));
        }
    }

    #[test]
    fn other_keys_need_the_annotation() {
        let seen = annotated("jobs/, shared/shop/ ,,");
        assert_eq!(judged("shared/shop/x", &seen).0, allowed("shared/shop/"));
        assert_eq!(judged("jobs/.lock", &seen).0, allowed("jobs/"));
        for key in [
            "shared/other/x",
            "consul-lock/shopping/x",
            "consul-lock/other/x",
            "consul-lock/shop",
            "jobs",
            "job/x",
        ] {
            let (tenancy, _) = judged(key, &seen);
            let Tenancy::Refused { message } = tenancy else {
                panic!("{key}: {tenancy:?}");
            };
            assert!(message.contains("consul-lock/shop/ or jobs/ or shared/shop/"), "{message}");
        }
    }

    #[test]
    fn an_unseen_namespace_refuses_nothing_and_allows_nothing() {
        assert_eq!(judged("jobs/x", &NamespaceSeen::Unknown).0, Tenancy::Unknown);
        let none = NamespaceSeen::Annotated(None);
        assert!(matches!(judged("jobs/x", &none).0, Tenancy::Refused { .. }));
    }

    #[test]
    fn malformed_entries_are_named_and_ignored() {
        let (tenancy, malformed) = judged("jobs/x", &annotated("jobs, /, a//b/, ../, ok/"));
        assert!(matches!(tenancy, Tenancy::Refused { .. }));
        assert_eq!(malformed.len(), 4, "{malformed:?}");
        assert!(malformed[0].contains("\"jobs\" does not end in /"));
    }

    #[test]
    fn default_keys_lie_in_the_claims_own_namespace() {
        let key_prefix = KeyPrefix::new("team/locks/").unwrap();
        let key = key_prefix.default_key("shop", "billing").unwrap();
        assert_eq!(key.as_str(), "team/locks/shop/billing");
        let seen = NamespaceSeen::Unknown;
        assert_eq!(judge(&key, "shop", &key_prefix, &seen).0, allowed("team/locks/"));
        assert!(KeyPrefix::new("/a").is_err());
    }
}
