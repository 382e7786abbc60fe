//! The terms of a session that a command runs under.

use std::time::Duration;

use super::{notice::Notice, run::RunError};
use crate::{
    clock::Clock,
    consul::{Consistency, Consul, ConsulError, SessionInfo},
    keeper::Trouble,
    names::{Key, SessionId},
};

/// How long Consul may take over a question.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a command's end depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) notice: Notice,
    /// How long nobody gets the lock after the session's end.
    pub(super) lock_delay: Duration,
}

impl Terms {
    /// Those of a session that is there already.
    ///
    /// # Errors
    /// [`RunError::Terms`] if a command that has this grace could not be stopped in time under it.
    pub(super) fn of(session: &SessionInfo, grace: Duration) -> Result<Terms, RunError> {
        let ttl = session.ttl.ok_or_else(|| RunError::NoTtl(session.id.clone()))?;
        let notice = Notice::new(ttl, grace).map_err(RunError::Terms)?;
        Ok(Terms { notice, lock_delay: session.lock_delay })
    }
}

/// The session that holds the key now.
pub(super) async fn holder<C: Consul>(
    consul: &C,
    clock: &Clock,
    key: &Key,
) -> Result<Option<SessionId>, RunError> {
    let reading = answer(clock, consul.get(key, Consistency::Consistent)).await?;
    Ok(reading.pair.and_then(|pair| pair.session))
}

/// The session as it is now; `None` if it is gone.
pub(super) async fn session<C: Consul>(
    consul: &C,
    clock: &Clock,
    id: &SessionId,
) -> Result<Option<SessionInfo>, RunError> {
    answer(clock, consul.session(id, Consistency::Consistent)).await
}

async fn answer<T>(
    clock: &Clock,
    call: impl Future<Output = Result<T, ConsulError>>,
) -> Result<T, RunError> {
    let answer = clock.timeout(PATIENCE, call).await.map_err(|_| RunError::Silent)?;
    answer.map_err(|error| RunError::of(Trouble::from(error)))
}
