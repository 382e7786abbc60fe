//! The CEL rules of the schema, each with the message that its refusal shows.
//!
//! The API server runs a rule even when the schema's own pattern already failed, so a rule about
//! a text begins by checking its form: the message that says what is allowed is then always there,
//! and `duration()` is never asked about a text that it cannot read.

use kube::core::{Message, Reason, Rule};

use super::duration;

/// The form of a key: non-empty parts of a narrow set, joined by single slashes. The same as
/// [`crate::names::Key`], but for `.` and `..`, which [`key_parts`] refuses.
pub(super) const KEY_PATTERN: &str = r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$";

/// The form of a check's ID: printable ASCII without blanks at the ends.
pub(super) const CHECK_PATTERN: &str = r"^[!-~]([ -~]*[!-~])?$";

/// The form of a container's name: an RFC 1123 label.
pub(super) const CONTAINER_PATTERN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// The form of a Service's name: an RFC 1035 label.
pub(super) const SERVICE_PATTERN: &str = r"^[a-z]([-a-z0-9]*[a-z0-9])?$";

pub(super) fn name() -> Rule {
    Rule::new("self.metadata.name.size() <= 63")
        .message("the name of a ConsulLock has at most 63 characters")
}

pub(super) fn key_is_immutable() -> Rule {
    Rule::new("has(self.key) == has(oldSelf.key) && (!has(self.key) || self.key == oldSelf.key)")
        .message(
            "key cannot be changed, added or removed later; \
             delete the ConsulLock and create it with the other key",
        )
        .reason(Reason::FieldValueForbidden)
        .field_path(".key")
}

pub(super) fn key_characters() -> Rule {
    Rule::new(format!("self.matches(r'{KEY_PATTERN}')")).message(
        "a key has parts of letters, digits, '_', '.' and '-', joined by single slashes: \
         no slash at either end, no '//', no other characters",
    )
}

pub(super) fn key_parts() -> Rule {
    Rule::new("!self.split('/').exists(part, part == '.' || part == '..')")
        .message("no part of a key between slashes may be '.' or '..'")
}

pub(super) fn between(least: &str, most: &str) -> Rule {
    let form = duration::PATTERN;
    Rule::new(format!(
        "self.matches(r'{form}') && duration(self) >= duration('{least}') \
         && duration(self) <= duration('{most}')"
    ))
    .message(Message::Message(format!(
        "must be a duration from {least} to {most}, such as 15s, 1m30s or 500ms \
         (units: h, m, s, ms)"
    )))
}

pub(super) fn no_check_twice() -> Rule {
    Rule::new("!has(self.node) || !has(self.service) || self.node.all(id, !(id in self.service))")
        .message("a check is either a node check or a service check: no ID may be in both lists")
}

pub(super) fn no_serf_health() -> Rule {
    Rule::new("!('serfHealth' in self)").message(
        "serfHealth is the gossip check of a Consul agent; sessions sit on a catalog node \
         without an agent, which cannot have it",
    )
}

pub(super) fn one_way_to_give_up() -> Rule {
    Rule::new("!(has(self.timeout) && has(self.tryOnce) && self.tryOnce)").message(
        "tryOnce gives up after one attempt and timeout after a while: set one of them, not both",
    )
}

pub(super) fn between_or_never(least: &str, most: &str) -> Rule {
    let (form, never) = (duration::PATTERN, duration::DurationOrNever::NEVER);
    Rule::new(format!(
        "self == '{never}' || (self.matches(r'{form}') && duration(self) >= duration('{least}') \
         && duration(self) <= duration('{most}'))"
    ))
    .message(Message::Message(format!(
        "must be \"{never}\" or a duration from {least} to {most}, such as 30s or 1m30s \
         (units: h, m, s, ms)"
    )))
}

pub(super) fn selects_something() -> Rule {
    Rule::new(
        "(has(self.matchLabels) && self.matchLabels.size() > 0) \
         || (has(self.matchExpressions) && self.matchExpressions.size() > 0)",
    )
    .message("an empty selector would match every pod: give matchLabels or matchExpressions")
}

pub(super) fn values_fit_the_operator() -> Rule {
    Rule::new(
        "self.operator in ['Exists', 'DoesNotExist'] \
         ? !has(self.values) || self.values.size() == 0 \
         : has(self.values) && self.values.size() > 0",
    )
    .message("In and NotIn need values; Exists and DoesNotExist take none")
}

pub(super) fn routing_needs_candidates() -> Rule {
    Rule::new("!has(self.routing) || has(self.candidates)")
        .message("routing sends traffic to the elected pod: it needs candidates")
}

pub(super) fn on_lost_needs_candidates() -> Rule {
    Rule::new("!has(self.onLost) || self.onLost == 'Unlabel' || has(self.candidates)")
        .message("onLost: DeletePod is about the elected pod: it needs candidates")
}

pub(super) fn gate_needs_candidates() -> Rule {
    Rule::new("!has(self.gate) || has(self.candidates)")
        .message("gate is about the pods that may be elected: it needs candidates")
}

pub(super) fn gated_pods_are_not_replaced() -> Rule {
    Rule::new(
        "!has(self.gate) || !has(self.candidates) \
         || (!(has(self.candidates.preempt) && self.candidates.preempt) \
         && !has(self.candidates.unreadyAfter) && !has(self.candidates.container))",
    )
    .message(
        "a pod that has passed its gate leads until it has finished: with gate, candidates takes \
         no preempt, unreadyAfter or container",
    )
}

pub(super) fn agents_need_candidates() -> Rule {
    Rule::new("!has(self.mode) || self.mode != 'Agent' || has(self.candidates)")
        .message("mode: Agent is about pods that hold the key themselves: it needs candidates")
}

pub(super) fn agents_are_not_elected() -> Rule {
    Rule::new(
        "!has(self.mode) || self.mode != 'Agent' || (!has(self.gate) && (!has(self.candidates) \
         || (!(has(self.candidates.preempt) && self.candidates.preempt) \
         && (!has(self.candidates.strategy) || self.candidates.strategy == 'OldestReady') \
         && !has(self.candidates.unreadyAfter) \
         && (!has(self.candidates.unreachableAfter) \
         || self.candidates.unreachableAfter in ['30s', 'never']))))",
    )
    .message(
        "with mode: Agent the pods take the key themselves, and without proof of its death nobody \
         replaces a holder: it takes no gate, and in candidates no preempt, no strategy: Priority, \
         no unreadyAfter, and no unreachableAfter but its default and never",
    )
}
