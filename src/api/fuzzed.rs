//! What the schema admits, for `crate::fuzz` to compare with what we do.

use std::sync::LazyLock;

use regex::Regex;

use super::{duration, rules};

static DURATION: LazyLock<Regex> = LazyLock::new(|| pattern(duration::PATTERN));
static KEY: LazyLock<Regex> = LazyLock::new(|| pattern(rules::KEY_PATTERN));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern of the schema, which an API server takes")
}

/// Whether the schema lets a text stand where a duration does.
pub(crate) fn admits_duration(text: &str) -> bool {
    text.chars().count() <= duration::MAX_LENGTH && DURATION.is_match(text)
}

/// Whether a claim's key may be this, its length aside.
pub(crate) fn admits_key(text: &str) -> bool {
    // As `key_parts` says in CEL.
    KEY.is_match(text) && !text.split('/').any(|part| part == "." || part == "..")
}
