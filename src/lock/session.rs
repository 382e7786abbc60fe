//! The session machine: create, renew, *valid until*, lost, destroy.
//!
//! ```text
//! Absent -> Creating -> Live <-> Confirming -> Lost -> Ending -> Absent
//!              |  ^
//!           Seeking -> Adopting -> Live
//! ```
//! A creation whose reply was lost is never repeated before its name was looked up (`Seeking`):
//! Consul's session create is not idempotent.

use super::Illegal;
use crate::clock::Instant;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// There is none.
    Absent,
    /// The creation was sent.
    Creating,
    /// The creation's fate is open; the name is being looked up.
    Seeking,
    /// A session is known by its id (recorded, or found by name); its first renewal was sent.
    Adopting,
    /// It may be relied on before `valid_until`.
    Live {
        /// Send time of the last good renewal + TTL.
        valid_until: Instant,
        /// Whether the newest renewal failed.
        jeopardy: bool,
    },
    /// A renewal said that Consul does not know it; a consistent read was sent. It may still be
    /// relied on before `valid_until`.
    Confirming {
        /// As in `Live`.
        valid_until: Instant,
    },
    /// It may not be relied on any more.
    Lost(Loss),
    /// Its destruction was sent.
    Ending,
}

/// How a session was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// *Valid until* passed. Consul may still know it.
    Expired,
    /// Consul does not know it.
    Invalidated,
}

/// What happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session is wanted, and none is known.
    CreationDue,
    /// A session of an earlier life is known by its id.
    Recorded,
    /// Consul created it; counted from the send time.
    Created(Instant),
    /// Nothing was created.
    CreateFailed,
    /// It may have been created.
    CreateUnclear,
    /// A session of the name exists.
    Found,
    /// None exists.
    NotFound,
    /// Consul renewed it; counted from the send time.
    Renewed(Instant),
    /// The renewal failed, or its fate is open.
    RenewFailed,
    /// Consul said that it does not know the session, or a key says that it is gone.
    Missing,
    /// A consistent read found it after all.
    ConfirmedPresent,
    /// A consistent read did not find it.
    ConfirmedMissing,
    /// *Valid until* has passed.
    ValidUntilPassed,
    /// Nobody needs it any more, and no key is held under it.
    EndWanted,
    /// Consul destroyed it, or does not know it.
    Destroyed,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send the creation.
    Create,
    /// Look the session up by its name.
    FindByName,
    /// Send a renewal now.
    Renew,
    /// Read the session consistently.
    Confirm,
    /// Destroy it, until answered.
    Destroy,
}

impl Session {
    /// The instant from which on it may not be relied on; `None` if it may not be even now.
    pub fn valid_until(self) -> Option<Instant> {
        match self {
            Session::Live { valid_until, .. } | Session::Confirming { valid_until } => {
                Some(valid_until)
            }
            _ => None,
        }
    }

    /// The next state and what to do about it.
    ///
    /// # Errors
    /// [`Illegal`] for an event that cannot happen in this state; late answers to calls that were
    /// given up are listed as harmless.
    pub fn step(self, event: Event) -> Result<(Session, Option<Effect>), Illegal> {
        use Event::*;
        use Session::*;
        let live = |valid_until| Live { valid_until, jeopardy: false };
        match (self, event) {
            (Absent, CreationDue) => Ok((Creating, Some(Effect::Create))),
            (Absent, Recorded) => Ok((Adopting, Some(Effect::Renew))),
            (Absent, EndWanted) => Ok((Absent, None)),

            (Creating, Created(valid_until)) => Ok((live(valid_until), None)),
            (Creating, CreateFailed) => Ok((Absent, None)),
            (Creating, CreateUnclear) => Ok((Seeking, Some(Effect::FindByName))),
            // Found before anything was created: an earlier process left it.
            (Creating | Seeking, Found) => Ok((Adopting, Some(Effect::Renew))),
            (Seeking, NotFound) => Ok((Absent, None)),

            (Adopting, Renewed(valid_until)) => Ok((live(valid_until), None)),
            (Adopting, RenewFailed) => Ok((Adopting, None)),
            // Nothing rests on it yet, so there is no loss to confirm.
            (Adopting, Missing) => Ok((Lost(Loss::Invalidated), None)),
            (Adopting, EndWanted) => Ok((Ending, Some(Effect::Destroy))),

            (Live { valid_until: old, .. }, Renewed(new)) => Ok((live(old.max(new)), None)),
            (Live { valid_until, .. }, RenewFailed) => {
                Ok((Live { valid_until, jeopardy: true }, None))
            }
            (Live { valid_until, .. }, Missing) => {
                Ok((Confirming { valid_until }, Some(Effect::Confirm)))
            }
            (Live { .. } | Confirming { .. }, ValidUntilPassed) => Ok((Lost(Loss::Expired), None)),
            (Live { .. } | Confirming { .. } | Lost(Loss::Expired), EndWanted) => {
                Ok((Ending, Some(Effect::Destroy)))
            }
            (Confirming { valid_until }, ConfirmedPresent) => Ok((live(valid_until), None)),
            (Confirming { .. }, ConfirmedMissing) => Ok((Lost(Loss::Invalidated), None)),
            (Confirming { valid_until }, Missing) => Ok((Confirming { valid_until }, None)),

            (Lost(Loss::Invalidated), EndWanted) => Ok((Absent, None)),

            (Ending, Destroyed) => Ok((Absent, None)),
            (Ending, EndWanted | Missing | ValidUntilPassed) => Ok((Ending, None)),

            (state, event) => Err(Illegal::new(&state, &event)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn unclear_creation_is_looked_up_before_it_is_repeated() {
        let (state, effect) = Session::Creating.step(Event::CreateUnclear).unwrap();
        assert_eq!((state, effect), (Session::Seeking, Some(Effect::FindByName)));
        assert!(state.step(Event::CreationDue).is_err());
        assert_eq!(state.step(Event::NotFound).unwrap(), (Session::Absent, None));
    }

    #[test]
    fn failed_renewal_is_jeopardy_and_moves_nothing() {
        let live = Session::Live { valid_until: at(15), jeopardy: false };
        let (state, effect) = live.step(Event::RenewFailed).unwrap();
        assert_eq!(state, Session::Live { valid_until: at(15), jeopardy: true });
        assert_eq!(effect, None);
    }

    #[test]
    fn unknown_session_is_no_loss_before_a_consistent_read_says_so() {
        let live = Session::Live { valid_until: at(15), jeopardy: false };
        let (state, effect) = live.step(Event::Missing).unwrap();
        assert_eq!(effect, Some(Effect::Confirm));
        assert_eq!(state.valid_until(), Some(at(15)));
        assert_eq!(
            state.step(Event::ConfirmedMissing).unwrap(),
            (Session::Lost(Loss::Invalidated), None)
        );
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::CreationDue),
            Just(Event::Recorded),
            (0u64..100).prop_map(|s| Event::Created(at(s))),
            Just(Event::CreateFailed),
            Just(Event::CreateUnclear),
            Just(Event::Found),
            Just(Event::NotFound),
            (0u64..100).prop_map(|s| Event::Renewed(at(s))),
            Just(Event::RenewFailed),
            Just(Event::Missing),
            Just(Event::ConfirmedPresent),
            Just(Event::ConfirmedMissing),
            Just(Event::ValidUntilPassed),
            Just(Event::EndWanted),
            Just(Event::Destroyed),
        ]
    }

    proptest! {
        /// Over any sequence of events: only a creation or a renewal makes a session valid, by no
        /// more than it says, and *valid until* never goes back while the session lives.
        #[test]
        fn validity_comes_from_consul_alone(events in prop::collection::vec(event(), 0..60)) {
            let mut state = Session::Absent;
            for event in events {
                let before = state.valid_until();
                if let Ok((next, _)) = state.step(event) {
                    match (before, next.valid_until(), event) {
                        (None, Some(until), Event::Created(granted) | Event::Renewed(granted)) => {
                            prop_assert_eq!(until, granted);
                        }
                        (None, Some(_), other) => prop_assert!(false, "valid after {other:?}"),
                        (Some(old), Some(new), Event::Renewed(granted)) => {
                            prop_assert_eq!(new, old.max(granted));
                        }
                        (Some(old), Some(new), _) => prop_assert_eq!(old, new),
                        (_, None, _) => {}
                    }
                    state = next;
                }
            }
        }

        /// A creation is sent only from `Absent`, so two are never under way at once, and one whose
        /// fate is open is looked up first.
        #[test]
        fn creations_never_overlap(events in prop::collection::vec(event(), 0..60)) {
            let mut state = Session::Absent;
            let mut open = false;
            for event in events {
                let Ok((next, effect)) = state.step(event) else { continue };
                match event {
                    Event::Created(_) | Event::CreateFailed | Event::Found | Event::NotFound => open = false,
                    _ => {}
                }
                if effect == Some(Effect::Create) {
                    prop_assert!(!open, "a second creation while one is open");
                    open = true;
                }
                state = next;
            }
        }
    }
}
