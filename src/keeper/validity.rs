//! What a lock keeper borrows: a session's validity, from a keeper of its own
//! ([`SessionKeeper`](super::session::SessionKeeper)) or from one that many locks share
//! ([`Share`](super::joint::Share)).

use std::{future::Future, time::Duration};

use super::{SessionSettings, SessionView};
use crate::{clock::Instant, lock::session::Session, names::SessionId};

/// A session, as the keeper of a claim deals with it.
pub(super) trait Validity: Send {
    fn state(&self) -> Session;

    /// The session's id, once one is known.
    fn id(&self) -> Option<&SessionId>;

    fn settings(&self) -> &SessionSettings;

    /// The session's lock-delay, if it is known.
    fn lock_delay(&self) -> Option<Duration>;

    /// Settings for the next session. Of no effect on one that exists.
    fn set_settings(&mut self, settings: SessionSettings);

    /// When to stop waiting for Consul to confirm a clean stop that is wanted at `now`: Consul has
    /// surely ended the session by then. `None`: others go on renewing it.
    fn give_up(&self, now: Instant) -> Option<Instant>;

    /// Creates a session if there is none and one is due.
    fn want(&mut self, now: Instant);

    /// Ends the session, once that can be: a creation under way is waited for. No key may be held
    /// under it.
    fn end(&mut self);

    /// Consul said elsewhere that it does not know the session `id`.
    fn suspect(&mut self, id: &SessionId);

    /// Must be called before anything else that happened by `now` is looked at.
    fn expire(&mut self, now: Instant);

    /// When time alone changes something; `wanted`: a session is.
    fn next_due(&self, wanted: bool) -> Option<Instant>;

    /// Sends a renewal if one is due.
    fn tick(&mut self, now: Instant);

    /// Waits for the answer to the call under way, for ever if there is none, and takes it in.
    /// Cancel-safe: the call stays under way.
    fn advance(&mut self) -> impl Future<Output = ()> + Send;

    /// What is shown of it.
    fn view(&self) -> SessionView;
}
