//! A run inside another that holds the same key: it takes part in that one's tenure instead of
//! waiting for itself.
//!
//! # Guarantees
//! It relies on the tenure no longer than the outermost run, which alone renews and releases.

use std::{path::PathBuf, time::Duration};

use super::{
    holder::{Broken, Hold, Tenure},
    notice::Notice,
    run::{RunError, RunSettings},
    valid_until,
    work::Terms,
};
use crate::{
    clock::Clock,
    consul::{Consistency, Consul, ConsulError},
    keeper::Trouble,
    names::{FencingToken, SessionId},
};

/// How long Consul may take over each of two questions.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the file is read. A renewal that is heard of late costs nothing but time.
const AGAIN: Duration = Duration::from_millis(250);

/// The tenure that this process runs under, as its environment has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outer {
    /// The session that holds the key.
    pub session: SessionId,
    /// The tenure's token.
    pub token: FencingToken,
    /// The file that says until when it may be relied on.
    pub valid_until_file: PathBuf,
}

/// Follows the tenure of an outer run by its file.
pub(super) struct Nested {
    outer: Outer,
    clock: Clock,
}

impl Outer {
    /// Asks Consul whether this tenure goes on, and on which terms. `None`: the environment is that
    /// of a tenure which is over.
    pub(super) async fn join<C: Consul>(
        &self,
        consul: &C,
        clock: &Clock,
        settings: &RunSettings,
    ) -> Result<Option<(Nested, Terms)>, RunError> {
        let key = consul.get(&settings.key, Consistency::Consistent);
        let key = clock.timeout(PATIENCE, key).await.map_err(|_| RunError::Silent)?;
        let holder = key.map_err(refused)?.pair.and_then(|pair| pair.session);
        if holder.as_ref() != Some(&self.session) {
            return Ok(None);
        }
        let session = consul.session(&self.session, Consistency::Consistent);
        let session = clock.timeout(PATIENCE, session).await.map_err(|_| RunError::Silent)?;
        let Some(session) = session.map_err(refused)? else { return Ok(None) };
        let Some(ttl) = session.ttl else { return Ok(None) };
        let notice = Notice::new(ttl, settings.notice.grace())?;
        let nested = Nested { outer: self.clone(), clock: clock.clone() };
        Ok(Some((nested, Terms { notice, lock_delay: session.lock_delay })))
    }
}

impl Hold for Nested {
    fn tenure(&self) -> Option<Tenure> {
        let valid_until = valid_until::read(&self.outer.valid_until_file)?;
        (self.clock.now() < valid_until).then(|| Tenure {
            token: self.outer.token,
            session: self.outer.session.clone(),
            valid_until,
        })
    }

    async fn changed(&mut self) -> Result<(), Broken> {
        self.clock.sleep_until(self.clock.now() + AGAIN).await;
        Ok(())
    }
}

fn refused(error: ConsulError) -> RunError {
    RunError::of(Trouble::from(error))
}
