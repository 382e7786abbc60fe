//! Which claim is looked at next, and when. Pure: time is a parameter.
//!
//! # Guarantees
//! A claim is never walked over twice at once. A claim that is added while it is being walked over
//! is walked over again afterwards. Of several times for one claim the earliest counts.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::cache::ObjectName;
use crate::clock::Instant;

/// Claims by the instant at which they are due.
#[derive(Default)]
pub(super) struct Queue {
    due: BTreeSet<(Instant, ObjectName)>,
    by_name: HashMap<ObjectName, Instant>,
    /// Taken and not finished.
    walking: HashSet<ObjectName>,
    /// Due, but being walked over already.
    again: HashMap<ObjectName, Instant>,
}

impl Queue {
    /// The claim is due at `at`, if it is not due earlier.
    pub(super) fn add(&mut self, name: ObjectName, at: Instant) {
        if self.walking.contains(&name) {
            let earliest = self.again.entry(name).or_insert(at);
            *earliest = at.min(*earliest);
            return;
        }
        match self.by_name.get(&name) {
            Some(known) if *known <= at => return,
            Some(known) => drop(self.due.remove(&(*known, name.clone()))),
            None => {}
        }
        self.by_name.insert(name.clone(), at);
        self.due.insert((at, name));
    }

    /// The claim that has been due for longest, if one is due by `now`.
    pub(super) fn take(&mut self, now: Instant) -> Option<ObjectName> {
        let (at, _) = self.due.first()?;
        if *at > now {
            return None;
        }
        let (_, name) = self.due.pop_first()?;
        self.by_name.remove(&name);
        self.walking.insert(name.clone());
        Some(name)
    }

    /// The walk over a claim that was taken is over.
    pub(super) fn finish(&mut self, name: &ObjectName) {
        self.walking.remove(name);
        if let Some(at) = self.again.remove(name) {
            self.add(name.clone(), at);
        }
    }

    /// When the next claim is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    fn name(name: &str) -> ObjectName {
        ObjectName::new("shop", name)
    }

    #[test]
    fn the_earliest_time_counts() {
        let mut queue = Queue::default();
        queue.add(name("a"), at(9));
        queue.add(name("a"), at(5));
        queue.add(name("a"), at(7));
        assert_eq!(queue.next_due(), Some(at(5)));
        assert_eq!(queue.take(at(4)), None);
        assert_eq!(queue.take(at(5)), Some(name("a")));
        assert_eq!(queue.take(at(99)), None);
    }

    #[test]
    fn what_changes_during_a_walk_is_walked_over_again_and_not_twice_at_once() {
        let mut queue = Queue::default();
        queue.add(name("a"), at(1));
        assert_eq!(queue.take(at(1)), Some(name("a")));
        queue.add(name("a"), at(3));
        queue.add(name("a"), at(2));
        assert_eq!(queue.take(at(5)), None);
        queue.finish(&name("a"));
        assert_eq!(queue.next_due(), Some(at(2)));
        assert_eq!(queue.take(at(5)), Some(name("a")));
    }

    #[test]
    fn who_waited_longest_comes_first() {
        let mut queue = Queue::default();
        for (claim, due) in [("a", 3), ("b", 1), ("c", 2)] {
            queue.add(name(claim), at(due));
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.take(at(9))).collect();
        assert_eq!(order, [name("b"), name("c"), name("a")]);
    }
}
