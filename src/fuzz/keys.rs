//! Keys, what keys begin with, and the names that stand in them.

use crate::{
    api,
    cli::{ClusterName, Name},
    consul::http::fuzzed as consul,
    controller::{KeyPrefix, fuzzed as controller},
    locks::Prefix,
    names::{FencingToken, KEY_MAX_BYTES, Key},
};

/// Any text in the place of a key; from the second line on, of a Namespace's annotation that allows
/// key prefixes.
pub(super) fn key(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (text, annotation) = text.split_once('\n').unwrap_or((text, ""));
    names(text);
    let key = Key::new(text);
    let fits = (1..=KEY_MAX_BYTES).contains(&text.len());
    assert_eq!(key.is_ok(), fits && api::fuzzed::admits_key(text), "as the schema: {text:?}");
    let Ok(key) = key else { return };
    assert_eq!(key.as_str(), text);
    // Consul answers with a redirect to what Go's path.Clean makes of the path if that is another.
    let path = format!("/v1/kv/{text}");
    assert_eq!(consul::path(&key), path, "nothing is escaped, folded or cut");
    assert_eq!(cleaned(&path), path);
    controller::reach(&key, annotation);
}

/// A path as Go's `path.Clean` writes it; it begins with a slash.
fn cleaned(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn names(text: &str) {
    // What these allow stands between slashes of a key or a path.
    if let Ok(name) = text.parse::<Name>() {
        assert_eq!(name.as_str(), text);
        assert!(Key::new(text).is_ok() && text.len() <= 63, "{text:?}");
    }
    if let Ok(name) = text.parse::<ClusterName>() {
        assert!(Key::new(name.as_str()).is_ok(), "{text:?}");
    }
    // A slash at the end is all that a prefix has over a key.
    let stem = Key::new(text.strip_suffix('/').unwrap_or(text));
    assert_eq!(Prefix::new(text).is_ok(), stem.is_ok(), "{text:?}");
    assert_eq!(KeyPrefix::new(text), stem.map(KeyPrefix::from), "{text:?}");
    if let Ok(token) = text.parse::<FencingToken>() {
        assert_eq!(token.to_string().parse(), Ok(token), "as printed");
    }
}
