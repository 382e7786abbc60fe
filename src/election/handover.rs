//! A request that the present tenure be handed over: an annotation of the claim that names the
//! tenure by its fencing token, and the pod that is to follow, if it is to be a certain one.
//!
//! # Guarantees
//! It concerns the tenure of that token alone. Once that is over it means nothing, whoever leaves it
//! standing: nobody is asked to go twice.

use std::{fmt, str::FromStr, sync::Arc};

use super::Ineligible;
use crate::names::FencingToken;

/// The claim's annotation.
pub const HANDOVER_ANNOTATION: &str = "consullock.dev/handover";

/// What somebody asked for: `<fencing token>`, or `<fencing token> <pod>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The tenure that is to end.
    pub token: FencingToken,
    /// Who is to follow; `None`: whoever ranks first of the others.
    pub to: Option<Arc<str>>,
}

/// An annotation that asks for nothing that is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the annotation {HANDOVER_ANNOTATION} is {0:?}; it is to be the fencing token of the present \
     tenure, and behind a blank the name of a pod if a certain one is to follow"
)]
pub struct NoHandover(String);

/// Why a tenure is not handed over, though somebody asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoverRefusal {
    /// The claim elects no pods.
    ElectsNobody,
    /// Pods that are past the gate lead until they have finished.
    Gate,
    /// The leader is being deleted or cannot be reached: it is followed when its end is known.
    Leaving,
    /// It is the leader.
    Leads(Arc<str>),
    /// No pod of the name matches the selector.
    NoCandidate(Arc<str>),
    /// It may not be elected.
    Ineligible(Arc<str>, Ineligible),
    /// No other pod may be elected.
    NobodyElse,
    /// With `preempt` this one would take the lock back at once.
    Outranked(Arc<str>),
}

impl FromStr for Handover {
    type Err = NoHandover;
    fn from_str(raw: &str) -> Result<Handover, NoHandover> {
        let mut words = raw.split_whitespace();
        let token = words.next().and_then(|word| word.parse().ok());
        let to = words.next().map(Arc::from);
        match (token, words.next()) {
            (Some(token), None) => Ok(Handover { token, to }),
            _ => Err(NoHandover(raw.chars().take(100).collect())),
        }
    }
}

impl fmt::Display for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Some(pod) => write!(f, "{} {pod}", self.token),
            None => self.token.fmt(f),
        }
    }
}

impl fmt::Display for HandoverRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandoverRefusal::ElectsNobody => {
                f.write_str("the claim has no spec.candidates, so it cannot be to a pod")
            }
            HandoverRefusal::Gate => f.write_str(
                "with spec.gate the pod that works leads until it has finished; to stop it, \
                 delete it",
            ),
            HandoverRefusal::Leaving => f.write_str(
                "the leader is being deleted or cannot be reached, and is followed as soon as its \
                 end is known",
            ),
            HandoverRefusal::Leads(pod) => write!(f, "pod {pod} is the leader already"),
            HandoverRefusal::NoCandidate(pod) => {
                write!(f, "there is no pod {pod} that matches candidates.selector")
            }
            HandoverRefusal::Ineligible(pod, why) => {
                write!(f, "pod {pod} may not be elected: it is {why}")
            }
            HandoverRefusal::NobodyElse => f.write_str("no other pod may be elected"),
            HandoverRefusal::Outranked(first) => write!(
                f,
                "with candidates.preempt pod {first}, which ranks higher, would take the lock \
                 back at once"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_as_it_is_written() {
        for (text, to) in [("41", None), ("41 b-7", Some("b-7"))] {
            let handover = Handover { token: FencingToken::new(41), to: to.map(Arc::from) };
            assert_eq!(handover.to_string(), text);
            assert_eq!(text.parse(), Ok(handover));
        }
        assert_eq!(" 41\tb-7\n".parse::<Handover>().unwrap().to_string(), "41 b-7");
    }

    #[test]
    fn anything_else_asks_for_nothing_and_is_told_what_is_allowed() {
        for odd in ["", "b-7", "41 b-7 c-8", "-1", "b-7 41"] {
            let error = odd.parse::<Handover>().unwrap_err().to_string();
            assert!(error.contains("the fencing token"), "{error}");
        }
    }
}
