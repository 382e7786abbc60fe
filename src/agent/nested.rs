//! A run inside another that holds the same key: it takes part in that one's tenure instead of
//! waiting for itself.
//!
//! # Guarantees
//! It relies on the tenure no longer than the outermost run, which alone renews and releases.

use std::{path::PathBuf, time::Duration};

use super::{
    run::{RunError, RunSettings},
    terms::{self, Terms},
    valid_until,
};
use crate::{
    clock::Clock,
    consul::Consul,
    holder::{Broken, Hold, Tenure},
    names::{FencingToken, SessionId},
};

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
        let holder = terms::holder(consul, clock, &settings.key).await?;
        if holder.as_ref() != Some(&self.session) {
            return Ok(None);
        }
        let Some(session) = terms::session(consul, clock, &self.session).await? else {
            return Ok(None);
        };
        let terms = Terms::of(&session, settings.notice.grace())?;
        Ok(Some((Nested { outer: self.clone(), clock: clock.clone() }, terms)))
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
