//! Who was elected, as they were then.

use std::sync::Arc;

use super::{Candidate, Container};

/// A pod that was elected, and its containers at that moment: by them their end is told later, even
/// when the kubelet has restarted them meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The pod's name.
    pub pod: Arc<str>,
    /// Its UID: another pod of the same name is another leader.
    pub uid: Arc<str>,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// The containers whose end is the leader's; none: the pod's own end is, as of a gated one, whose
    /// containers had not begun when it was elected, and may be restarted.
    pub containers: Vec<ContainerMark>,
    /// Why it was elected before others.
    pub why: Arc<str>,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerMark {
    /// The container's name.
    pub name: Arc<str>,
    /// The runtime's ID of this run, if the kubelet told.
    pub id: Option<Arc<str>>,
    /// How often the container had been restarted before.
    pub restarts: i32,
}

impl Leader {
    /// The pod as it is now. `container`: the one whose end counts; `None`: all.
    pub fn of(pod: &Candidate, container: Option<&str>, why: &str) -> Leader {
        let containers = pod.counting(container).map(ContainerMark::of).collect();
        Leader { containers, ..Leader::of_whole_pod(pod, why) }
    }

    /// The pod, whose own end is to be the leader's.
    pub fn of_whole_pod(pod: &Candidate, why: &str) -> Leader {
        Leader {
            pod: Arc::clone(&pod.name),
            uid: Arc::clone(&pod.uid),
            node: pod.node.clone(),
            containers: Vec::new(),
            why: why.into(),
        }
    }

    /// Whether the kubelet has reported the end of every run that counts.
    pub fn has_ended(&self, pod: &Candidate) -> bool {
        let ended = |mark: &ContainerMark| {
            pod.containers.iter().any(|now| now.name == mark.name && mark.has_ended(now))
        };
        match self.containers.is_empty() {
            true => pod.finished,
            false => self.containers.iter().all(ended),
        }
    }
}

impl ContainerMark {
    /// The run that is there, or else the one that comes next.
    fn of(container: &Container) -> ContainerMark {
        let is_over = !container.running && container.id.is_some();
        ContainerMark {
            name: Arc::clone(&container.name),
            id: container.id.clone().filter(|_| !is_over),
            restarts: container.restarts + i32::from(is_over),
        }
    }

    /// A run has ended when its container is terminated, or runs or waits to run once more. A
    /// missing ID says nothing: a kubelet that was restarted may not know it for a moment.
    fn has_ended(&self, now: &Container) -> bool {
        let another =
            self.id.as_ref().zip(now.id.as_ref()).is_some_and(|(elected, now)| elected != now);
        let ended = now.terminated && now.restarts >= self.restarts;
        ended || another || now.restarts > self.restarts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, id: Option<&str>, restarts: i32, terminated: bool) -> Container {
        let (name, id) = (name.into(), id.map(Into::into));
        Container { name, id, restarts, running: !terminated, terminated, ended: None }
    }

    fn pod(containers: &[Container]) -> Candidate {
        Candidate { containers: containers.to_vec(), ..super::super::candidate::ready("a", 0) }
    }

    fn leader(marks: &[(&str, Option<&str>, i32)]) -> Leader {
        let mark = |(name, id, restarts): &(&str, Option<&str>, i32)| ContainerMark {
            name: (*name).into(),
            id: id.map(Into::into),
            restarts: *restarts,
        };
        Leader {
            pod: "a".into(),
            uid: "uid-a".into(),
            node: None,
            containers: marks.iter().map(mark).collect(),
            why: "".into(),
        }
    }

    #[test]
    fn a_run_has_ended_when_it_is_terminated_or_another_one_follows() {
        let elected = leader(&[("app", Some("c-1"), 0)]);
        for (now, ended) in [
            (container("app", Some("c-1"), 0, false), false),
            (container("app", Some("c-1"), 0, true), true),
            // Restarted already: a last state, another ID, a higher count.
            (container("app", Some("c-2"), 1, false), true),
            (container("app", Some("c-1"), 1, false), true),
            // A kubelet that has just started may not know.
            (container("app", None, 0, false), false),
            (container("other", Some("c-1"), 0, true), false),
        ] {
            assert_eq!(elected.has_ended(&pod(std::slice::from_ref(&now))), ended, "{now:?}");
        }
    }

    #[test]
    fn a_run_that_was_over_before_proves_nothing() {
        let over = container("app", Some("c-1"), 0, true);
        let waits = Container { running: false, terminated: false, ..over.clone() };
        let runs = container("app", Some("c-2"), 1, false);
        for before in [over.clone(), waits.clone()] {
            let leader = Leader::of(&pod(std::slice::from_ref(&before)), None, "");
            for alive in [&over, &waits, &runs] {
                assert!(
                    !leader.has_ended(&pod(std::slice::from_ref(alive))),
                    "{before:?} {alive:?}"
                );
            }
            let ended = container("app", Some("c-2"), 1, true);
            assert!(leader.has_ended(&pod(&[ended])), "{before:?}");
        }
        let new = Container { id: None, running: false, ..waits };
        let leader = Leader::of(&pod(&[new]), None, "");
        assert!(!leader.has_ended(&pod(&[container("app", Some("c-1"), 0, false)])), "its first");
        assert!(leader.has_ended(&pod(&[over])));
    }

    #[test]
    fn every_container_that_counts_has_to_have_ended() {
        let elected = leader(&[("app", Some("c-1"), 0), ("web", Some("w-1"), 0)]);
        let ended = container("app", Some("c-1"), 0, true);
        let runs = container("web", Some("w-1"), 0, false);
        assert!(!elected.has_ended(&pod(&[ended.clone(), runs])));
        let restarted = container("web", Some("w-2"), 1, false);
        assert!(elected.has_ended(&pod(&[ended.clone(), restarted])));
        assert!(
            !elected.has_ended(&pod(&[ended])),
            "a container that is not reported says nothing"
        );
    }

    #[test]
    fn a_pod_that_was_elected_as_a_whole_ends_as_a_whole() {
        let elected = leader(&[]);
        let restarting = pod(&[container("app", Some("c-2"), 3, true)]);
        assert!(!elected.has_ended(&restarting), "its container is started again");
        assert!(elected.has_ended(&Candidate { finished: true, ..restarting }));
    }
}
