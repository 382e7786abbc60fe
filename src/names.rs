//! The names that every layer shares, as types: [`Key`], [`SessionId`], [`SessionName`],
//! [`NodeName`], [`FencingToken`].
//!
//! They stand at the bottom beside `clock` because both sides of `keeper` need them: the protocol
//! (`lock`), which may not know Consul's client, and the client (`consul`), which may not know the
//! protocol. Two `String`s side by side would be a bug waiting.

use std::{fmt, str::FromStr, sync::Arc};

/// The longest key that we accept, in bytes. Consul itself sets no limit of its own below its URL
/// length; this one keeps a key inside every Kubernetes field that shows it.
pub const KEY_MAX_BYTES: usize = 512;

/// A Consul KV key that can be locked.
///
/// Only `[A-Za-z0-9_./-]`, 1 to 512 bytes, no leading or trailing `/`, no `//`, no `.` or `..`
/// segment. Narrower than Consul on purpose: Consul answers `//` and `..` with a redirect, and
/// different releases refuse different characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

/// Why a string is no [`Key`]: says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Empty, or over [`KEY_MAX_BYTES`].
    #[error("a key has 1 to {KEY_MAX_BYTES} bytes, this one has {0}")]
    Length(usize),
    /// A character outside the set.
    #[error("a key is made of letters, digits and _ . / -, this one contains {0:?}")]
    Character(char),
    /// An empty, `.` or `..` segment.
    #[error("no part of a key between slashes may be empty, \".\" or \"..\"")]
    Segment,
}

impl Key {
    /// Validates `raw`.
    ///
    /// # Errors
    /// [`KeyError`] with the first rule that is broken.
    pub fn new(raw: &str) -> Result<Key, KeyError> {
        if raw.is_empty() || raw.len() > KEY_MAX_BYTES {
            return Err(KeyError::Length(raw.len()));
        }
        if let Some(odd) = raw.chars().find(|c| !(c.is_ascii_alphanumeric() || "_./-".contains(*c)))
        {
            return Err(KeyError::Character(odd));
        }
        if raw.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(KeyError::Segment);
        }
        Ok(Key(raw.into()))
    }

    /// The key as Consul knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = KeyError;
    fn from_str(raw: &str) -> Result<Key, KeyError> {
        Key::new(raw)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps `raw` as it is.
            pub fn new(raw: impl Into<Arc<str>>) -> $name {
                $name(raw.into())
            }

            /// The bare text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        shown!($name);
    };
}

macro_rules! shown {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), &*self.0)
            }
        }
    };
}

shown!(Key);

name! {
    /// The identifier that Consul gave a session (a UUID).
    SessionId
}
name! {
    /// The name that we gave a session: derived from its owner, so that it can be found again.
    SessionName
}
name! {
    /// A node of Consul's catalog.
    NodeName
}

/// The key's `ModifyIndex` at acquisition: rises with every tenure of a key, also over a delete of
/// the key. A protected resource refuses a write that carries a smaller token than it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl FencingToken {
    /// The token of an acquisition that was committed at `modify_index`.
    pub const fn new(modify_index: u64) -> FencingToken {
        FencingToken(modify_index)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for FencingToken {
    type Err = std::num::ParseIntError;
    fn from_str(raw: &str) -> Result<FencingToken, Self::Err> {
        raw.parse().map(FencingToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_keys_are_accepted() {
        for good in ["a", "consul-lock/shop/billing", "jobs/.lock", "a.b_c-D/9", &"x".repeat(512)] {
            assert_eq!(Key::new(good).map(|k| k.as_str().to_owned()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn keys_that_consul_may_redirect_or_refuse_are_not() {
        assert_eq!(Key::new(""), Err(KeyError::Length(0)));
        assert_eq!(Key::new(&"x".repeat(513)), Err(KeyError::Length(513)));
        for segment in ["/a", "a/", "a//b", "a/../b", "..", "a/.", "./a"] {
            assert_eq!(Key::new(segment), Err(KeyError::Segment), "{segment}");
        }
        for (odd, c) in
            [("a b", ' '), ("a\nb", '\n'), ("a\0", '\0'), ("schlüssel", 'ü'), ("a?b", '?')]
        {
            assert_eq!(Key::new(odd), Err(KeyError::Character(c)));
        }
    }
}
