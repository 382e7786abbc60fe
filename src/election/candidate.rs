//! A pod as an election sees it.

use std::{fmt, sync::Arc};

use jiff::Timestamp;

use crate::api::GateSettings;

/// The scheduling gate that comes off an elected pod.
/// <https://kubernetes.io/docs/concepts/scheduling-eviction/pod-scheduling-readiness/>
pub const GATE: &str = "consullock.dev/held";

/// A pod that a claim may elect, or has elected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: Arc<str>,
    /// Its UID.
    pub uid: Arc<str>,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Whether it matches the claim's selector.
    pub matches: bool,
    /// When it was created.
    pub created: Timestamp,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Since when it is Ready, if it is.
    pub ready_since: Option<Timestamp>,
    /// The annotation `consullock.dev/priority`; 0 where it is missing or no number.
    pub priority: i64,
    /// Whether it waits at the scheduling gate [`GATE`].
    pub gated: bool,
    /// Whether its phase is Succeeded or Failed, and no container of it runs.
    pub finished: bool,
    /// Whether it finished, and its phase is Succeeded.
    pub succeeded: bool,
    /// What made it.
    pub origin: Origin,
    /// Whether what it was made for has been done, by what was recorded.
    pub already_ran: bool,
    /// What the kubelet reports of its containers; init containers, and with them native sidecars,
    /// aside.
    pub containers: Vec<Container>,
    /// What is known of its node.
    pub reach: Reach,
}

/// What made a pod, as far as it matters for `OncePerSchedule`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// No Job.
    Other,
    /// A Job that has not been seen yet.
    UnknownJob,
    /// A Job.
    Job {
        /// Its name.
        name: Arc<str>,
        /// Its UID.
        uid: Arc<str>,
        /// When it was due, if a CronJob made it for some time.
        scheduled: Option<Timestamp>,
    },
}

impl Origin {
    /// When the pod's work was due.
    pub fn scheduled(&self) -> Option<Timestamp> {
        match self {
            Origin::Job { scheduled, .. } => *scheduled,
            Origin::Other | Origin::UnknownJob => None,
        }
    }
}

/// A container as the kubelet reported it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: Arc<str>,
    /// The runtime's ID of the run that is reported.
    pub id: Option<Arc<str>>,
    /// How often it was restarted.
    pub restarts: i32,
    /// It runs.
    pub running: bool,
    /// It has ended, and was not started again.
    pub terminated: bool,
    /// When the run that ended last did so, by the clock of its node.
    pub ended: Option<Timestamp>,
}

/// Whether a node can tell of its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Its kubelet reports.
    Reachable,
    /// It is NotReady or gone.
    Unreachable,
    /// It carries the taint `node.kubernetes.io/out-of-service`: an operator warrants that nothing
    /// runs there.
    /// <https://kubernetes.io/docs/reference/labels-annotations-taints/#node-kubernetes-io-out-of-service>
    OutOfService,
}

/// Why a pod may not be elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ineligible {
    /// It is being deleted.
    Deleting,
    /// Its node is NotReady, gone or out of service.
    NodeAway,
    /// It has no container of the name that `candidates.container` gives.
    NoSuchContainer,
    /// It is not Ready.
    NotReady,
    /// It has done its work, or failed at it (`gate`).
    Finished,
    /// It was made by a Job that has not been seen yet (`OncePerSchedule`).
    UnknownJob,
    /// What it was made for has been done (`OncePerSchedule`).
    AlreadyRan,
}

impl Candidate {
    /// The containers whose end is the pod's.
    pub fn counting(&self, container: Option<&str>) -> impl Iterator<Item = &Container> {
        self.containers
            .iter()
            .filter(move |known| container.is_none_or(|name| *known.name == *name))
    }

    /// Whether a claim with a gate may elect it: a pod that waits at the gate, or is past it and at
    /// work.
    ///
    /// # Errors
    /// Why not.
    pub fn eligibility_at_gate(&self, policy: GateSettings) -> Result<(), Ineligible> {
        if self.deleting {
            Err(Ineligible::Deleting)
        } else if self.finished {
            Err(Ineligible::Finished)
        } else if policy == GateSettings::OncePerSchedule && self.origin == Origin::UnknownJob {
            Err(Ineligible::UnknownJob)
        } else if self.gated && self.already_ran {
            Err(Ineligible::AlreadyRan)
        } else if self.reach != Reach::Reachable {
            Err(Ineligible::NodeAway)
        } else {
            Ok(())
        }
    }

    /// Whether a claim without a gate may elect it.
    ///
    /// # Errors
    /// Why not.
    pub fn eligibility(&self, container: Option<&str>) -> Result<(), Ineligible> {
        if self.deleting {
            Err(Ineligible::Deleting)
        } else if self.reach != Reach::Reachable {
            Err(Ineligible::NodeAway)
        } else if self.ready_since.is_none() {
            Err(Ineligible::NotReady)
        } else if container.is_some() && self.counting(container).next().is_none() {
            Err(Ineligible::NoSuchContainer)
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ineligible::Deleting => "being deleted",
            Ineligible::NodeAway => "on a node that is away",
            Ineligible::NoSuchContainer => "without the container of candidates.container",
            Ineligible::NotReady => "not ready",
            Ineligible::Finished => "finished",
            Ineligible::UnknownJob => "of a Job that has not been seen yet",
            Ineligible::AlreadyRan => "whose firing has run already",
        })
    }
}

#[cfg(test)]
pub(crate) fn ready(name: &str, second: i64) -> Candidate {
    let since = Timestamp::from_second(1_000_000 + second).unwrap();
    Candidate {
        name: name.into(),
        uid: format!("uid-{name}").into(),
        node: Some("n-1".into()),
        matches: true,
        created: Timestamp::from_second(1_000_000).unwrap(),
        deleting: false,
        ready_since: Some(since),
        priority: 0,
        gated: false,
        finished: false,
        succeeded: false,
        origin: Origin::Other,
        already_ran: false,
        containers: vec![Container {
            name: "app".into(),
            id: Some(format!("{name}-1").into()),
            restarts: 0,
            running: true,
            terminated: false,
            ended: None,
        }],
        reach: Reach::Reachable,
    }
}

/// A pod that waits at its gate since it was created.
#[cfg(test)]
pub(super) fn gated(name: &str, second: i64) -> Candidate {
    Candidate {
        created: Timestamp::from_second(1_000_000 + second).unwrap(),
        node: None,
        ready_since: None,
        gated: true,
        containers: Vec::new(),
        ..ready(name, second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ready_pod_that_stays_may_be_elected() {
        let good = ready("a", 0);
        assert_eq!(good.eligibility(None), Ok(()));
        assert_eq!(good.eligibility(Some("app")), Ok(()));
        assert_eq!(good.eligibility(Some("web")), Err(Ineligible::NoSuchContainer));
        let deleting = Candidate { deleting: true, ..good.clone() };
        assert_eq!(deleting.eligibility(None), Err(Ineligible::Deleting));
        let unready = Candidate { ready_since: None, ..good.clone() };
        assert_eq!(unready.eligibility(None), Err(Ineligible::NotReady));
        for reach in [Reach::Unreachable, Reach::OutOfService] {
            let away = Candidate { reach, ..good.clone() };
            assert_eq!(away.eligibility(None), Err(Ineligible::NodeAway));
        }
    }

    #[test]
    fn a_gated_pod_may_be_elected_while_it_waits_and_while_it_works() {
        let waits = gated("a", 0);
        assert_eq!(waits.eligibility_at_gate(GateSettings::EachInTurn), Ok(()));
        assert_eq!(waits.eligibility(None), Err(Ineligible::NotReady), "by a claim without gate");
        let works = Candidate { gated: false, node: Some("n-1".into()), ..waits.clone() };
        assert_eq!(works.eligibility_at_gate(GateSettings::EachInTurn), Ok(()));
        let away = Candidate { reach: Reach::Unreachable, ..works.clone() };
        assert_eq!(away.eligibility_at_gate(GateSettings::EachInTurn), Err(Ineligible::NodeAway));
        let done = Candidate { finished: true, ..works };
        assert_eq!(done.eligibility_at_gate(GateSettings::EachInTurn), Err(Ineligible::Finished));
        let going = Candidate { deleting: true, ..waits };
        assert_eq!(going.eligibility_at_gate(GateSettings::EachInTurn), Err(Ineligible::Deleting));
    }

    #[test]
    fn a_firing_that_has_run_is_not_run_again_and_one_that_is_not_known_waits() {
        let once = GateSettings::OncePerSchedule;
        let done = Candidate { already_ran: true, ..gated("a", 0) };
        assert_eq!(done.eligibility_at_gate(once), Err(Ineligible::AlreadyRan));
        let works = Candidate { gated: false, ..done };
        assert_eq!(works.eligibility_at_gate(once), Ok(()), "it has begun");
        let unknown = Candidate { origin: Origin::UnknownJob, ..gated("a", 0) };
        assert_eq!(unknown.eligibility_at_gate(once), Err(Ineligible::UnknownJob));
        assert_eq!(unknown.eligibility_at_gate(GateSettings::EachInTurn), Ok(()));
    }
}
