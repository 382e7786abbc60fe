//! What changed from one sight of a claim to the next, for `watch`. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::{ResourceExt, runtime::watcher::Event};
use serde::Serialize;

use super::{
    rows::{self, Row},
    screen::Paint,
};
use crate::api::ConsulLock;

/// One line of `watch`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Change {
    /// When it was seen.
    at: Timestamp,
    what: What,
    /// The claim as it is now, or as it was when it went.
    claim: Row,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum What {
    /// It is there when we begin to look.
    Present,
    Created,
    /// A tenure of the claim's began.
    Began,
    /// A tenure of the claim's ended, and none follows yet.
    Ended,
    /// Somebody else holds the key, or another phase has begun.
    Changed,
    Deleted,
}

/// The claims as they were last seen.
#[derive(Default)]
pub(super) struct Changes {
    known: BTreeMap<String, Row>,
    /// Those that a list under way has named.
    listed: BTreeMap<String, Row>,
    /// The first list is complete.
    begun: bool,
}

impl Changes {
    /// Takes in what the watch says; what is new about it.
    pub(super) fn take_in(&mut self, event: Event<ConsulLock>, at: Timestamp) -> Vec<Change> {
        let named = |claim: &ConsulLock| {
            let name = format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any());
            (name, Row::of(claim))
        };
        let change = |what, claim| Change { at, what, claim };
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(claim) => {
                let (name, row) = named(&claim);
                self.listed.insert(name, row);
                Vec::new()
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let mut changes = Vec::new();
                let gone: Vec<String> =
                    self.known.keys().filter(|name| !listed.contains_key(*name)).cloned().collect();
                for name in gone {
                    let claim = self.known.remove(&name);
                    changes.extend(claim.map(|claim| change(What::Deleted, claim)));
                }
                for (name, row) in listed {
                    changes.extend(self.sight(name, row).map(|(what, row)| change(what, row)));
                }
                self.begun = true;
                changes
            }
            Event::Apply(claim) => {
                let (name, row) = named(&claim);
                let seen = self.sight(name, row);
                seen.map(|(what, row)| change(what, row)).into_iter().collect()
            }
            Event::Delete(claim) => {
                let (name, row) = named(&claim);
                self.known.remove(&name);
                vec![change(What::Deleted, row)]
            }
        }
    }

    fn sight(&mut self, name: String, row: Row) -> Option<(What, Row)> {
        let before = self.known.insert(name, row.clone());
        let what = match &before {
            None if self.begun => What::Created,
            None => What::Present,
            Some(before) if before.token != row.token && row.token.is_some() => What::Began,
            Some(before) if before.token != row.token => What::Ended,
            Some(before) if before.phase != row.phase || before.holder != row.holder => {
                What::Changed
            }
            Some(_) => return None,
        };
        Some((what, row))
    }
}

impl Change {
    /// The time, the claim, and how it stands.
    pub(super) fn line(&self, paint: Paint) -> String {
        let Change { at, what, claim } = self;
        let at = at.round(jiff::Unit::Millisecond).unwrap_or(*at);
        let phase = paint.with(rows::tone(claim.phase), claim.phase);
        let holder = claim.holder.as_ref().map(|holder| match claim.stranger {
            true => format!("held by the stranger {holder}"),
            false => format!("held by {holder}"),
        });
        let token = claim.token.as_ref().map(|token| format!("with token {token}"));
        let standing = match what {
            What::Deleted => "deleted".to_owned(),
            _ => [Some(phase), holder, token].into_iter().flatten().collect::<Vec<_>>().join(" "),
        };
        format!("{at}  {}/{}  {standing}\n", claim.namespace, claim.name)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sample, *};

    fn take(changes: &mut Changes, event: Event<ConsulLock>) -> Vec<(What, String)> {
        let taken = changes.take_in(event, sample::now());
        taken.into_iter().map(|change| (change.what, change.claim.name)).collect()
    }

    fn begun(claims: &[ConsulLock]) -> Changes {
        let mut changes = Changes::default();
        take(&mut changes, Event::Init);
        for claim in claims {
            assert_eq!(take(&mut changes, Event::InitApply(claim.clone())), []);
        }
        let present = take(&mut changes, Event::InitDone);
        assert!(present.iter().all(|(what, _)| *what == What::Present));
        assert_eq!(present.len(), claims.len());
        changes
    }

    #[test]
    fn tenures_that_begin_and_end_are_told_and_nothing_that_merely_moves() {
        let mut claim = sample::elected();
        let mut changes = begun(std::slice::from_ref(&claim));
        let billing = || "billing".to_owned();
        assert_eq!(take(&mut changes, Event::Apply(claim.clone())), []);
        let status = claim.status.as_mut().unwrap();
        status.candidates.as_mut().unwrap().eligible = 7;
        assert_eq!(take(&mut changes, Event::Apply(claim.clone())), []);
        let status = claim.status.as_mut().unwrap();
        status.fencing_token = Some("42".to_owned());
        assert_eq!(take(&mut changes, Event::Apply(claim.clone())), [(What::Began, billing())]);
        let status = claim.status.as_mut().unwrap();
        status.fencing_token = None;
        assert_eq!(take(&mut changes, Event::Apply(claim.clone())), [(What::Ended, billing())]);
        claim.status.as_mut().unwrap().holder = None;
        assert_eq!(take(&mut changes, Event::Apply(claim.clone())), [(What::Changed, billing())]);
        assert_eq!(take(&mut changes, Event::Delete(claim)), [(What::Deleted, billing())]);
    }

    #[test]
    fn what_came_and_went_while_the_watch_was_broken_is_told() {
        let mut changes = begun(&[sample::elected(), sample::paused()]);
        take(&mut changes, Event::Init);
        take(&mut changes, Event::InitApply(sample::paused()));
        take(&mut changes, Event::InitApply(sample::waiting()));
        let told = take(&mut changes, Event::InitDone);
        let (gone, new) = ("billing".to_owned(), "migrate".to_owned());
        assert_eq!(told, [(What::Deleted, gone), (What::Created, new)]);
    }

    #[test]
    fn a_line_says_when_whose_and_how_it_stands() {
        let line = |claim: &ConsulLock| {
            let at = sample::now();
            Change { at, what: What::Present, claim: Row::of(claim) }.line(Paint::PLAIN)
        };
        assert_eq!(
            line(&sample::elected()),
            "2026-01-02T03:04:00Z  shop/billing  Held held by shop/billing-a with token 41\n"
        );
        assert_eq!(
            line(&sample::waiting()),
            "2026-01-02T03:04:00Z  shop/migrate  Waiting held by the stranger Consul API Lock[31m \
             on vm7\n"
        );
        assert_eq!(line(&sample::paused()), "2026-01-02T03:04:00Z  shop/reports  Paused\n");
    }
}
