//! What has run: the record beside a key by which of what a CronJob made for one scheduled time, in
//! whatever cluster, one run succeeds.
//!
//! A JSON object in `<key>/.last-run`, which only holders of the key write, in the transaction that
//! ends their tenure: `{"upTo": TIME, "runs": [{"scheduled": TIME, "cluster", "namespace", "job",
//! "pod", "token"}]}`, the newest first. `scheduled` is the time that the CronJob was due
//! (`batch.kubernetes.io/cronjob-scheduled-timestamp` of its Job), which is the same in every
//! cluster, however their clocks differ.
//!
//! # Guarantees
//! What is recorded is never forgotten: a run that falls out of the list leaves `upTo` behind, and
//! whatever was scheduled up to then counts as done.
//! # Not guaranteed
//! That a run which succeeded is recorded: it is not if its tenure was lost before. And a firing
//! that failed everywhere counts as done once it is older than every run that is listed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::names::FencingToken;

/// How many runs are listed.
const LISTED: usize = 64;

/// What the record's key ends in, after the lock's key.
pub const RECORD_SUFFIX: &str = "/.last-run";

/// The runs that succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Runs {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    up_to: Option<Timestamp>,
    runs: Vec<Run>,
}

/// A run that succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// When it was due.
    pub scheduled: Timestamp,
    /// Where it ran.
    pub cluster: String,
    /// The namespace of its Job and pod.
    pub namespace: String,
    /// Its Job.
    pub job: String,
    /// Its pod.
    pub pod: String,
    /// The fencing token of its tenure, as text.
    pub token: String,
}

/// A record that somebody else wrote, or a later version of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record of runs beside the key cannot be read: {0}")]
pub struct Unreadable(pub String);

impl Runs {
    /// What a record says; an empty one says that nothing has run.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn read(record: &[u8]) -> Result<Runs, Unreadable> {
        if record.is_empty() {
            return Ok(Runs::default());
        }
        serde_json::from_slice(record).map_err(|error| Unreadable(error.to_string()))
    }

    /// The record.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and times are JSON")
    }

    /// Whether what was due then has run; the run, if it is listed still.
    pub fn find(&self, scheduled: Timestamp) -> Option<Option<&Run>> {
        let run = self.runs.iter().find(|run| run.scheduled == scheduled);
        let passed = self.up_to.is_some_and(|up_to| scheduled <= up_to);
        (run.is_some() || passed).then_some(run)
    }

    /// With one more run.
    #[must_use]
    pub fn with(&self, run: Run) -> Runs {
        let mut runs = self.clone();
        if runs.find(run.scheduled).is_none() {
            runs.runs.push(run);
        }
        runs.runs.sort_by_key(|run| std::cmp::Reverse(run.scheduled));
        for past in runs.runs.drain(LISTED.min(runs.runs.len())..) {
            runs.up_to = runs.up_to.max(Some(past.scheduled));
        }
        runs
    }
}

impl Run {
    /// Who ran it, in words.
    pub fn place(&self) -> String {
        format!("pod {}/{} of cluster {}", self.namespace, self.pod, self.cluster)
    }

    /// The token as the record has it.
    pub fn token(token: FencingToken) -> String {
        token.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn run(second: i64) -> Run {
        Run {
            scheduled: due(second),
            cluster: "west".to_owned(),
            namespace: "shop".to_owned(),
            job: format!("nightly-{second}"),
            pod: format!("nightly-{second}-x"),
            token: Run::token(FencingToken::new(41)),
        }
    }

    #[test]
    fn what_was_recorded_comes_back() {
        let runs = Runs::read(b"").unwrap().with(run(60)).with(run(120));
        assert_eq!(Runs::read(&runs.write()), Ok(runs.clone()));
        assert_eq!(runs.find(due(60)).unwrap(), Some(&run(60)));
        assert_eq!(runs.find(due(180)), None);
        assert_eq!(runs.find(due(0)), None, "older, but nobody says that it ran");
    }

    #[test]
    fn a_run_is_recorded_once() {
        let runs = Runs::default().with(run(60));
        assert_eq!(runs.with(Run { cluster: "east".to_owned(), ..run(60) }), runs);
    }

    #[test]
    fn what_falls_out_of_the_list_and_all_before_it_counts_as_done() {
        let mut runs = Runs::default();
        for minute in 0..100 {
            runs = runs.with(run(60 * minute));
        }
        assert_eq!(runs.runs.len(), LISTED);
        assert_eq!(runs.find(due(60 * 99)).unwrap(), Some(&run(60 * 99)));
        for old in [0, 60 * 35, 60 * 20 + 1] {
            assert_eq!(runs.find(due(old)), Some(None), "{old}");
        }
        assert_eq!(runs.find(due(60 * 100)), None);
    }

    #[test]
    fn what_is_no_record_is_neither_guessed_at_nor_overwritten() {
        for odd in [&b"scribble"[..], b"[]", b"{\"runs\": [{}]}", b"\xff"] {
            assert!(Runs::read(odd).is_err(), "{odd:?}");
        }
    }
}
