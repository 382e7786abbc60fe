//! Every reason that a condition can have: of [`Reason`] what a verdict says of the whole claim, of
//! [`Detail`] what only one condition says. Each is explained in
//! `docs/src/operations/troubleshooting.md`, and a test below sees to that; the reference has what is
//! said here.

/// An enumeration whose variants are called in public what they are called here, and a list of them
/// that none can be missing from.
macro_rules! named {
    (
        $(#[$about:meta])*
        $vis:vis enum $name:ident { $($(#[$what:meta])* $variant:ident),+ $(,)? }
    ) => {
        $(#[$about])*
        $vis enum $name { $($(#[$what])* $variant),+ }

        impl $name {
            /// All of them.
            #[allow(dead_code, reason = "of details only a test asks for all")]
            $vis const ALL: &[$name] = &[$($name::$variant),+];

            /// As a condition's reason, and as a metric label.
            $vis const fn as_str(self) -> &'static str {
                match self { $($name::$variant => stringify!($variant)),+ }
            }
        }
    };
}

named! {
    /// Why something is said of a claim. The reasons of conditions and events.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub(super) enum Reason {
        /// `acquire.timeout` passed before the key was free. A change of the spec lets the claim
        /// contend again.
        AcquireTimeout,
        /// Consul's ACLs forbid something that the claim needs. The message says what.
        ConsulDenied,
        /// Consul takes a request of ours for invalid, such as a session whose check does not pass.
        ConsulRefused,
        /// Consul does not answer, or has no leader. It is tried again.
        ConsulUnavailable,
        /// `acquire.tryOnce`, and the key was not free at the one attempt. A change of the spec lets
        /// the claim contend again.
        Contended,
        /// The key is free, and the claim, or a pod of it, is about to take it.
        Contending,
        /// The claim is being deleted, and gives its key up first.
        Deleting,
        /// The session could not be renewed in time: the key may be somebody else's now.
        Expired,
        /// One tenure has ended, and the next is being begun.
        HandingOver,
        /// The key is held. Somebody asked for a handover that cannot be; the message says why.
        HandoverRefused,
        /// The key is held.
        Held,
        /// Somebody else holds the key. The message says who.
        HeldElsewhere,
        /// The spec means nothing. The message names the field.
        InvalidSpec,
        /// The key holds something that is not a lock. It is left alone.
        KeyConflict,
        /// The key is outside the prefixes of the claim's namespace.
        KeyNotAllowed,
        /// Nobody holds the key, and nobody may yet: its last holder was lost.
        LockDelay,
        /// Whether the key is allowed stands on the Namespace, which cannot be read.
        NamespaceUnknown,
        /// No pod may be elected: none matches, or none that does is Ready.
        NoCandidate,
        /// `spec.paused`: the claim stands by.
        Paused,
        /// Pods, or what else an election needs, cannot be listed.
        PodsUnknown,
        /// The key is being given up. The message says why.
        Releasing,
        /// The record of runs beside the key is no record; nothing starts until it is put right.
        RunsUnreadable,
        /// Consul has not said yet how the key stands.
        Starting,
        /// A pod holds the key itself, and has not told its fencing token yet.
        TokenUnknown,
    }
}

named! {
    /// Why a single condition is as it is, where the verdict does not say so.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub(super) enum Detail {
        /// Consul answers.
        Answering,
        /// The key holds something that is not a lock. The message has its flags.
        FlagsDiffer,
        /// Consul shows the key held under the pod's own session (`mode: Agent`).
        HoldsKey,
        /// Renewals fail; the session may still be relied on.
        Jeopardy,
        /// Consul ended the session, or it could not be renewed in time.
        Lost,
        /// The key holds a lock, or nothing.
        NoConflict,
        /// Traffic goes nowhere, as it should. The message says why.
        NoEndpoint,
        /// There is no Service of the name in `routing.service`.
        NoService,
        /// The claim has no session, and needs none.
        NoSession,
        /// Nothing is asked of Consul for this claim.
        NotAsked,
        /// The elected pod has no address of a family that the Service wants.
        PodLacksAddress,
        /// The elected pod has no container port of a name that the Service wants.
        PodLacksPort,
        /// The last renewal succeeded.
        Renewed,
        /// Traffic goes to the pod that the message names.
        Routed,
        /// The Service has a selector, by which Kubernetes itself routes it.
        ServiceHasSelector,
        /// The Service is of type ExternalName, which has no endpoints.
        ServiceIsExternalName,
        /// An EndpointSlice of somebody else serves the Service already.
        ServiceServedByOthers,
        /// Services or EndpointSlices cannot be listed.
        ServicesUnknown,
        /// Label, token, gate or endpoint could not be written. The message says why.
        WriteFailed,
    }
}

impl Reason {
    /// The reason by which a claim gave up, of its name in a status.
    pub(super) fn gave_up(name: &str) -> Option<Reason> {
        [Reason::AcquireTimeout, Reason::Contended]
            .into_iter()
            .find(|reason| reason.as_str() == name)
    }

    /// The reason of this name.
    pub(super) fn named(name: &str) -> Option<Reason> {
        Reason::ALL.iter().copied().find(|reason| reason.as_str() == name)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;
    use crate::{api::Phase, lock::EndReason};

    /// What the tables of a section of the troubleshooting page begin their rows with.
    fn explained(section: &str) -> BTreeSet<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"));
        let page = path.join("docs/src/operations/troubleshooting.md");
        let page = fs::read_to_string(page).unwrap();
        let (_, after) = page.split_once(&format!("\n## {section}\n")).unwrap();
        let body = after.split("\n## ").next().unwrap();
        let rows = body.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        rows.map(|(word, _)| word.to_owned()).collect()
    }

    fn words(words: impl IntoIterator<Item = &'static str>) -> BTreeSet<String> {
        words.into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn every_phase_and_reason_is_explained_on_the_troubleshooting_page_and_no_other() {
        assert_eq!(explained("Phases"), words(Phase::ALL.map(Phase::as_str)));
        let reasons = Reason::ALL.iter().map(|reason| reason.as_str());
        assert_eq!(explained("Reasons of Ready"), words(reasons));
        let single = ["ConsulReachable", "SessionHealthy", "KeyConflict", "RoutingSynced"];
        // Two of the verdict's have a row of their own there.
        let shared = [Reason::ConsulUnavailable.as_str(), Reason::Starting.as_str()];
        let details = Detail::ALL.iter().map(|detail| detail.as_str());
        let found: BTreeSet<String> = single.into_iter().flat_map(explained).collect();
        assert_eq!(found, words(details.chain(shared)));
        assert_eq!(explained("Why a tenure ended"), words(EndReason::ALL.map(EndReason::as_str)));
    }
}
