//! Repeating a call until Consul answers it.

use std::{future::Future, time::Duration};

use super::shared::{Answers, Shared};
use crate::consul::{Class, Consul, ConsulError, Operation};

/// The time limit of one attempt.
const ATTEMPT: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// What somebody has to put right first is asked for less often.
const LONGEST_PAUSE_DENIED: Duration = Duration::from_secs(10);

/// Pauses between failed attempts: doubling, with jitter.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure of this class. `jitter` in 0.0..1.0.
    pub(super) fn pause(&mut self, class: Class, jitter: f64) -> Duration {
        let longest = match class {
            Class::Denied | Class::Invalid => LONGEST_PAUSE_DENIED,
            Class::Transient | Class::UnknownOutcome | Class::Lost => LONGEST_PAUSE,
        };
        let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.failures.min(10));
        self.failures += 1;
        pause.min(longest).mul_f64(0.5 + jitter / 2.0)
    }

    /// The same while something is held that will be lost: nothing is worth waiting for longer.
    pub(super) fn pause_in_jeopardy(&mut self, jitter: f64) -> Duration {
        self.pause(Class::Transient, jitter)
    }

    pub(super) fn clear(&mut self) {
        self.failures = 0;
    }
}

impl<C: Consul> Shared<C> {
    /// One attempt: `work`, for no longer than `within`. Running out of time leaves the outcome
    /// open.
    pub(super) fn attempt<T>(
        &self,
        operation: Operation,
        within: Duration,
        work: impl Future<Output = Result<T, ConsulError>>,
    ) -> impl Future<Output = Result<T, ConsulError>> {
        // By value every future around it would have room for a copy or two of its own, a thousand
        // times where a thousand locks are wanted at once.
        let work = Box::pin(work);
        async move {
            match self.clock.timeout(within, work).await {
                Ok(result) => result,
                Err(elapsed) => {
                    // The client, whose call was cut off, cannot count it.
                    let class = Class::UnknownOutcome;
                    self.metrics.consul_answered(operation.as_str(), class.as_str(), within);
                    Err(ConsulError { operation, class, message: elapsed.to_string() })
                }
            }
        }
    }

    /// Attempts until one succeeds; every failure is shown to the claim. For calls that may be
    /// repeated.
    pub(super) async fn until_answered<T, F>(
        &self,
        answers: &Answers,
        operation: Operation,
        mut work: impl FnMut() -> F,
    ) -> T
    where
        F: Future<Output = Result<T, ConsulError>>,
    {
        let mut backoff = Backoff::default();
        loop {
            match self.attempt(operation, ATTEMPT, work()).await {
                Ok(answer) => {
                    answers.succeeded(operation);
                    return answer;
                }
                Err(error) => {
                    let pause = backoff.pause(error.class, self.jitter());
                    answers.failed(error);
                    self.clock.sleep_until(self.clock.now() + pause).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_renewal_of_a_live_session_is_repeated_as_soon_as_any_other() {
        let (mut idle, mut live) = (Backoff::default(), Backoff::default());
        for _ in 0..8 {
            idle.pause(Class::Denied, 1.0);
            live.pause_in_jeopardy(1.0);
        }
        assert_eq!(idle.pause(Class::Denied, 1.0), LONGEST_PAUSE_DENIED);
        assert_eq!(live.pause_in_jeopardy(1.0), LONGEST_PAUSE);
    }
}
