//! What the elected pod carries: the label and the annotation by which it, and everybody else, can
//! tell that it holds the lock.

use std::sync::Arc;

use crate::names::FencingToken;

/// The annotation by which a pod ranks with `strategy: Priority`.
pub const PRIORITY_ANNOTATION: &str = "consullock.dev/priority";

/// The label's value.
pub const BADGE: &str = "holder";

const LABEL_PREFIX: &str = "consullock.dev/";
const TOKEN_PREFIX: &str = "token.consullock.dev/";
const RELIEVED_PREFIX: &str = "relieved.consullock.dev/";

/// The label that the pod elected by `claim` carries.
pub fn label(claim: &str) -> String {
    format!("{LABEL_PREFIX}{claim}")
}

/// The annotation that tells it its fencing token.
pub fn token_annotation(claim: &str) -> String {
    format!("{TOKEN_PREFIX}{claim}")
}

/// The annotation that tells when a pod was last relieved of label and token.
pub fn relieved_annotation(claim: &str) -> String {
    format!("{RELIEVED_PREFIX}{claim}")
}

/// The claim whose badge a label of a pod is, if it is one.
pub fn claim_of_label(key: &str) -> Option<&str> {
    key.strip_prefix(LABEL_PREFIX)
}

/// The claim whose token an annotation of a pod is, if it is one.
pub fn claim_of_annotation(key: &str) -> Option<&str> {
    key.strip_prefix(TOKEN_PREFIX)
}

/// A pod that carries label, annotation or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Badged {
    /// Its name.
    pub pod: Arc<str>,
    /// Its UID.
    pub uid: Arc<str>,
    /// Whether it carries the label, with the right value.
    pub labelled: bool,
    /// What the annotation says.
    pub token: Option<String>,
    /// Whether it is being deleted.
    pub deleting: bool,
}

impl Badged {
    /// Whether it carries what the elected pod of this tenure should.
    pub fn shows(&self, uid: &str, token: FencingToken) -> bool {
        *self.uid == *uid && self.labelled && self.token.as_deref() == Some(&*token.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_badge_names_its_claim() {
        assert_eq!(claim_of_label(&label("billing")), Some("billing"));
        assert_eq!(claim_of_annotation(&token_annotation("billing")), Some("billing"));
        assert_eq!(claim_of_label("app"), None);
        assert_eq!(claim_of_annotation(PRIORITY_ANNOTATION), None);
        assert_eq!(claim_of_annotation(&relieved_annotation("billing")), None);
    }
}
