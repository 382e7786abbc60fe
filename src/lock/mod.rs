//! The protocol, pure: what a session and a lock do next, given what just happened and what time
//! it is. No clock, no I/O, no tokio; `keeper` drives it.
//!
//! Two machines. [`session::Session`] knows create, renew, *valid until*, lost, destroy.
//! [`key::Lock`] borrows a session's validity and knows waiting, lock-delay, held, releasing. A
//! claim joins one of each.
//!
//! # Guarantees
//! A tenure begins only with Consul's own confirmation, and [`key::Lock`] is told of the end of a
//! session before anything else that happened at the same time. A key that holds something else
//! than a lock is never written.
//! # Not guaranteed
//! That a tenure ends because the machine says so: whoever relies on a token compares *valid
//! until* with the clock at the moment of use.

pub mod key;
pub mod session;

/// The flags that mark a key as a lock: those of Consul's own `api.Lock` and `consul lock`, so that
/// they and we contend for the same keys. <https://pkg.go.dev/github.com/hashicorp/consul/api#LockFlagValue>
pub const LOCK_FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;

/// Why a tenure ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// The claim was paused.
    Paused,
    /// The claim was deleted, or its keepers were told to stop.
    Stopped,
    /// `acquire.maxHold` passed.
    MaxHold,
    /// Somebody asked that the tenure be handed over.
    HandedOver,
    /// No pod may be elected.
    NoCandidate,
    /// Another candidate ranks before the pod that the tenure was for (`candidates.preempt`).
    Preempted,
    /// The pod that the tenure was for has done its work, or failed at it (`gate`).
    PodFinished,
    /// What the pod was to do has been done elsewhere (`gate`).
    AlreadyRan,
    /// There is proof of death of the pod that the tenure was for.
    PodDied,
    /// The pod was deleted, and has ended.
    PodDeleted,
    /// The pod was out of reach for `candidates.unreachableAfter`.
    PodUnreachable,
    /// The pod was not ready for `candidates.unreadyAfter`.
    PodUnready,
    /// The pod does not match `candidates.selector` any more.
    PodUnmatched,
    /// The pod that held the key itself (`mode: Agent`) gave it up in order, for a reason of its own.
    Released,
    /// The same, or it lost the key: another holder followed before anybody saw which.
    PassedOn,
    /// *Valid until* passed without a renewal.
    Expired,
    /// Consul ended the session.
    SessionInvalidated,
    /// The key was deleted under us.
    KeyDeleted,
    /// The key lost its session, or another session has it.
    KeyTaken,
    /// How is not known: when whoever recorded the tenure was gone, the key was held by a later
    /// one of the same contender.
    Superseded,
}

impl EndReason {
    /// Every reason, for metrics.
    pub const ALL: [EndReason; 20] = [
        EndReason::Paused,
        EndReason::Stopped,
        EndReason::MaxHold,
        EndReason::HandedOver,
        EndReason::NoCandidate,
        EndReason::Preempted,
        EndReason::PodFinished,
        EndReason::AlreadyRan,
        EndReason::PodDied,
        EndReason::PodDeleted,
        EndReason::PodUnreachable,
        EndReason::PodUnready,
        EndReason::PodUnmatched,
        EndReason::Released,
        EndReason::PassedOn,
        EndReason::Expired,
        EndReason::SessionInvalidated,
        EndReason::KeyDeleted,
        EndReason::KeyTaken,
        EndReason::Superseded,
    ];

    /// As a condition reason, event reason and metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            EndReason::Paused => "Paused",
            EndReason::Stopped => "Stopped",
            EndReason::MaxHold => "MaxHold",
            EndReason::HandedOver => "HandedOver",
            EndReason::NoCandidate => "NoCandidate",
            EndReason::Preempted => "Preempted",
            EndReason::PodFinished => "PodFinished",
            EndReason::AlreadyRan => "AlreadyRan",
            EndReason::PodDied => "PodDied",
            EndReason::PodDeleted => "PodDeleted",
            EndReason::PodUnreachable => "PodUnreachable",
            EndReason::PodUnready => "PodUnready",
            EndReason::PodUnmatched => "PodUnmatched",
            EndReason::Released => "Released",
            EndReason::PassedOn => "PassedOn",
            EndReason::Expired => "Expired",
            EndReason::SessionInvalidated => "SessionInvalidated",
            EndReason::KeyDeleted => "KeyDeleted",
            EndReason::KeyTaken => "KeyTaken",
            EndReason::Superseded => "Superseded",
        }
    }

    /// The reason of this name.
    pub fn named(name: &str) -> Option<EndReason> {
        EndReason::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// Whether the tenure was given up by its own side, in order, or nothing else is known of one that
    /// nobody of ours held.
    pub const fn is_clean(self) -> bool {
        !matches!(
            self,
            EndReason::Expired
                | EndReason::SessionInvalidated
                | EndReason::KeyDeleted
                | EndReason::KeyTaken
                | EndReason::Superseded
        )
    }
}

/// Why contending was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailReason {
    /// `acquire.timeout` passed.
    AcquireTimeout,
    /// `acquire.tryOnce`, and the one attempt met another holder or a lock-delay.
    Contended,
}

impl FailReason {
    /// As a condition reason and event reason.
    pub const fn as_str(self) -> &'static str {
        match self {
            FailReason::AcquireTimeout => "AcquireTimeout",
            FailReason::Contended => "Contended",
        }
    }
}

/// An event that a state cannot meet: a fault in the program. The state stays as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event} cannot happen to {state}")]
pub struct Illegal {
    /// The state, printed.
    pub state: String,
    /// The event, printed.
    pub event: String,
}

impl Illegal {
    fn new(state: &impl std::fmt::Debug, event: &impl std::fmt::Debug) -> Illegal {
        Illegal { state: format!("{state:?}"), event: format!("{event:?}") }
    }
}
