//! The lock machine: what one contender does about one key, under a session whose validity it
//! borrows.
//!
//! ```text
//! Adopting ----------------.
//!    |                     v
//! Waiting -> Acquiring -> Held -> Releasing -> Waiting | Standby
//!    ^  |       |         ^  |
//!    |  |       |         |  '-> HandingOver (another tenure of ours, with nobody between)
//!    |  |       |         '----------'
//!    |  |       '-> Unclear (refused, or its fate is open: read, then decide)
//!    |  '-> Failed
//! Standby
//! ```
//! Calls that an effect asks for are repeated by the driver until they are answered, except
//! [`Effect::LockKey`], whose every outcome is an event of its own.
//!
//! A watch may be quicker than the answer to our own call, and what it saw may be newer. So no
//! answer hides a newer sighting, and a tenure that begins or goes on by an answer is doubted when
//! a watch saw the key in another state meanwhile.

use std::time::Duration;

use super::{EndReason, FailReason, Illegal, session::Loss};
use crate::{clock::Instant, names::FencingToken};

mod terms;
#[cfg(test)]
mod tests;

pub use terms::*;

/// After a release that made room for others (`maxHold`), how long not to contend.
const AFTER_MAX_HOLD: Duration = Duration::from_secs(1);
/// The same after a handover: longer, for somebody asked that another have the key.
const AFTER_HANDOVER: Duration = Duration::from_secs(5);
/// Between attempts in a lock-delay of unknown length.
const DELAY_PROBE: Duration = Duration::from_secs(1);
/// Between attempts after the expected end of a lock-delay.
const DELAY_OVERDUE: Duration = Duration::from_millis(250);
/// After losing a race for a free key, times the number of races lost in a row.
const RACE_BACKOFF: Duration = Duration::from_millis(20);
/// The most that lost races slow an attempt down.
const RACE_BACKOFF_MAX: Duration = Duration::from_millis(200);
/// How long a tenure outlives a sighting that contradicts it while no consistent read is answered:
/// the shortest TTL that Consul grants.
const DOUBT_MAX: Duration = Duration::from_secs(10);

/// A lock of one contender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    state: State,
    want: Want,
    settings: Settings,
    session_up: bool,
    seen: Option<Seen>,
    /// When the key was first seen free after somebody held it.
    freed: Option<Instant>,
    /// Epoch and index of what was known of the key when the call under way was sent.
    asked_at: (u64, u64),
    /// Since it was sent the key was seen otherwise than we would leave it, or the value changed.
    stirred: bool,
    /// There was a tenure.
    served: bool,
}

impl Lock {
    /// A lock that contends from `now` on.
    pub fn contending(settings: Settings, now: Instant) -> Lock {
        Lock::new(State::Waiting(Waiting::from(now, now)), settings)
    }

    /// A lock that goes on with what an earlier process recorded.
    pub fn adopting(settings: Settings, tenure: Option<Tenure>) -> Lock {
        Lock::new(State::Adopting(tenure), settings)
    }

    fn new(state: State, settings: Settings) -> Lock {
        Lock {
            state,
            want: Want::Contend,
            settings,
            session_up: false,
            seen: None,
            freed: None,
            asked_at: (0, 0),
            stirred: false,
            served: false,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when nobody has held the key that somebody held before.
    pub fn freed(&self) -> Option<Instant> {
        self.freed
    }

    /// The key as last seen.
    pub fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// How to contend from now on.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Whether a session is of use to it.
    pub fn wants_session(&self) -> bool {
        !matches!(self.state, State::Standby | State::Failed(_))
    }

    /// When time alone changes something; `None` if it does not.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Waiting(waiting) => {
                let attempt =
                    (self.session_up && self.expect().is_some()).then_some(waiting.not_before);
                [attempt, self.gives_up(waiting)].into_iter().flatten().min()
            }
            State::Held { tenure, errand } => {
                let max_hold = self.settings.max_hold.map(|span| tenure.since + span);
                let doubt = match errand {
                    Some(Errand::Doubt { until }) => Some(until),
                    Some(Errand::Rewrite) | None => None,
                };
                let give_way = self.gives_way(tenure).then_some(tenure.since);
                [max_hold, doubt, give_way].into_iter().flatten().min()
            }
            _ => None,
        }
    }

    /// Carries on after `event`.
    ///
    /// `jitter` in 0.0..1.0 spreads contenders that were woken by the same change.
    ///
    /// # Errors
    /// [`Illegal`] for an event that cannot happen in this state, which then stays as it was.
    pub fn step(
        &mut self,
        event: Event,
        now: Instant,
        jitter: f64,
    ) -> Result<Option<Effect>, Illegal> {
        let mut after = self.clone();
        if !after.take_note(&event, now) {
            return Ok(None);
        }
        let (state, effect) = match after.next(event, now, jitter)? {
            (State::Held { tenure, errand: None }, None) if after.stirred => doubt(tenure, now),
            // Whoever relied on the one tenure has to hear of its end, not of another.
            (State::Waiting(_), None) if after.served && after.settings.single => {
                (State::Standby, None)
            }
            decided => decided,
        };
        after.served |= matches!(state, State::Held { .. });
        after.state = state;
        if effect.is_some() {
            after.asked_at = after.position();
            after.stirred = false;
        }
        *self = after;
        Ok(effect)
    }

    /// Takes in what an event says, whatever it leads to. `false`: it is old news.
    fn take_note(&mut self, event: &Event, now: Instant) -> bool {
        match event {
            Event::Seen(seen) => {
                if !self.is_news(seen) {
                    return false;
                }
                self.stirred |= seen.key != KeyState::Ours { intact: true };
                self.note(seen.clone(), now);
            }
            Event::Read { seen, .. } if self.is_overtaken(seen.index) => {}
            Event::Read { seen, .. } => self.note(seen.clone(), now),
            Event::Locked(index) | Event::Rewritten(index) => {
                self.wrote(*index, KeyState::Ours { intact: true }, now);
            }
            Event::Released(Some(index)) => self.wrote(*index, KeyState::Free, now),
            Event::ValueChanged => self.stirred = true,
            Event::SessionUp => self.session_up = true,
            Event::SessionLost(_) => self.session_up = false,
            Event::Wanted(want) => self.want = *want,
            _ => {}
        }
        true
    }

    /// The transitions. `want`, `session_up` and `seen` are already up to date.
    fn next(
        &self,
        event: Event,
        now: Instant,
        jitter: f64,
    ) -> Result<(State, Option<Effect>), Illegal> {
        use Event as E;
        use State as S;
        match (self.state, event) {
            // What an earlier process left: nothing is decided before Consul was asked.
            (S::Adopting(tenure), E::SessionUp) => Ok((S::Adopting(tenure), Some(Effect::ReadKey))),
            (S::Adopting(tenure), E::Read { seen, session_alive }) => {
                Ok(self.adopt(tenure, &seen, session_alive, now))
            }
            (S::Adopting(_), E::SessionLost(Loss::Expired)) => Ok(self.release(EndReason::Expired)),
            (S::Adopting(_), E::SessionLost(Loss::Invalidated)) => {
                Ok((self.contend_or_stand(now), None))
            }
            (
                S::Adopting(tenure),
                E::Wanted(_) | E::HandOver(_) | E::Seen(_) | E::ValueChanged | E::Retry | E::Tick,
            ) => Ok((S::Adopting(tenure), None)),
            (S::Adopting(_), E::Superseded) => Ok((S::Adopting(None), None)),
            // The read said the key is ours. It was given up and retaken in one commit: a holding
            // without a break, so a recorded token stays.
            (S::Adopting(None), E::Locked(index)) => Ok(self.locked(index, now)),
            (S::Adopting(Some(tenure)), E::Locked(_)) => Ok(self.hold(tenure)),
            (S::Adopting(_), E::Released(_)) => Ok((self.contend_or_stand(now), None)),
            (S::Adopting(tenure), E::ReleaseRefused) => {
                Ok((S::Adopting(tenure), Some(Effect::ReadKey)))
            }

            (S::Standby, E::Wanted(Want::Contend)) => {
                Ok((S::Waiting(Waiting::from(now, now)), None))
            }
            (S::Standby, E::Wanted(Want::Stand(_))) => Ok((S::Standby, None)),
            (
                S::Standby,
                E::HandOver(_)
                | E::SessionUp
                | E::SessionLost(_)
                | E::Seen(_)
                | E::ValueChanged
                | E::Retry
                | E::Tick,
            ) => Ok((S::Standby, None)),

            (S::Waiting(_), E::Wanted(Want::Stand(_))) => Ok((S::Standby, None)),
            (S::Waiting(waiting), E::Seen(_) | E::SessionUp | E::Tick) => {
                Ok(self.try_attempt(waiting, now))
            }
            (
                S::Waiting(waiting),
                E::SessionLost(_)
                | E::Wanted(Want::Contend)
                | E::HandOver(_)
                | E::ValueChanged
                | E::Retry,
            ) => Ok((S::Waiting(waiting), None)),

            (S::Acquiring(_) | S::Unclear(_), E::Locked(index)) => Ok(self.locked(index, now)),
            (S::Acquiring(_), E::RefusedHeld) if self.settings.try_once => {
                Ok((self.fail(FailReason::Contended), None))
            }
            (S::Acquiring(waiting), E::RefusedHeld | E::RefusedChanged) => Ok(look(waiting)),
            (S::Acquiring(waiting), E::RefusedDelay(delay)) => {
                Ok(self.delayed(waiting, delay, now, jitter))
            }
            (S::Acquiring(waiting), E::LockFailed { pause }) => {
                Ok((self.back_to(Waiting { not_before: now + pause, ..waiting }), None))
            }
            (S::Acquiring(waiting), E::LockUnclear) => {
                Ok((S::Unclear(waiting), Some(Effect::ReadKey)))
            }
            // Still in flight, and perhaps carried out: give up whatever it took.
            (S::Acquiring(_) | S::Unclear(_), E::SessionLost(Loss::Expired)) => {
                Ok(self.release(EndReason::Expired))
            }
            (S::Acquiring(waiting) | S::Unclear(waiting), E::SessionLost(Loss::Invalidated)) => {
                Ok((self.back_to(waiting), None))
            }
            (S::Unclear(waiting), E::Read { seen, .. }) => match seen.key {
                KeyState::Ours { .. } => Ok((S::Unclear(waiting), Some(Effect::RewriteKey))),
                _ => Ok((self.back_to(waiting.after_race(now, jitter)), None)),
            },
            // The key is ours; a lock by its holder answers with the index of the commit.
            (S::Unclear(_), E::Rewritten(index)) => Ok(self.locked(index, now)),
            (S::Unclear(waiting), E::RewriteRefused) => Ok(look(waiting)),
            (
                state @ (S::Acquiring(_) | S::Unclear(_)),
                E::Wanted(_)
                | E::HandOver(_)
                | E::Seen(_)
                | E::ValueChanged
                | E::SessionUp
                | E::Retry
                | E::Tick,
            ) => Ok((state, None)),

            (S::Held { .. }, E::Wanted(Want::Stand(reason))) => Ok(self.release(reason)),
            (S::Held { .. }, E::SessionLost(Loss::Expired)) => Ok(self.release(EndReason::Expired)),
            (S::Held { .. }, E::SessionLost(Loss::Invalidated)) => {
                Ok((self.contend_or_stand(now), None))
            }
            (S::Held { .. }, E::HandOver(reason)) => Ok(self.hand_over(reason, now)),
            (S::Held { tenure, .. }, E::Tick)
                if self.settings.max_hold.is_some_and(|span| now >= tenure.since + span) =>
            {
                Ok(self.release(EndReason::MaxHold))
            }
            (S::Held { tenure, .. }, E::Tick) if self.gives_way(tenure) => {
                Ok(self.release(EndReason::HandedOver))
            }
            // Renewals may go on for ever while the key cannot be read. If it is ours after all,
            // it is not released: whoever relied on the tenure has to hear of its end first.
            (S::Held { errand: Some(Errand::Doubt { until }), .. }, E::Tick) if now >= until => {
                Ok((self.contend_or_stand(now), None))
            }
            // The read under way decides; if it is too old to, it is repeated.
            (held @ S::Held { errand: Some(Errand::Doubt { .. }), .. }, E::Seen(_)) => {
                Ok((held, None))
            }
            (held @ S::Held { tenure, errand }, E::Seen(seen)) => Ok(match (seen.key, errand) {
                (KeyState::Ours { intact: true }, _) => (held, None),
                (KeyState::Ours { intact: false }, None) => rewrite(tenure),
                (KeyState::Ours { intact: false }, Some(_)) => (held, None),
                // A rewrite under way may never be answered.
                _ => doubt(tenure, now),
            }),
            (held @ S::Held { errand: Some(Errand::Doubt { .. }), .. }, E::ValueChanged) => {
                Ok((held, None))
            }
            (S::Held { tenure, .. }, E::ValueChanged) => Ok(rewrite(tenure)),
            (S::Held { tenure, .. }, E::Rewritten(_)) => {
                Ok((S::Held { tenure, errand: None }, None))
            }
            (S::Held { tenure, .. }, E::RewriteRefused) => Ok(doubt(tenure, now)),
            (S::Held { tenure, .. }, E::Read { seen, .. }) => match seen.key {
                KeyState::Ours { intact: true } => Ok((S::Held { tenure, errand: None }, None)),
                KeyState::Ours { intact: false } => Ok(rewrite(tenure)),
                _ => Ok((self.contend_or_stand(now), None)),
            },
            (
                held @ S::Held { .. },
                E::Wanted(Want::Contend) | E::SessionUp | E::Retry | E::Tick,
            ) => Ok((held, None)),

            (S::HandingOver { .. }, E::Locked(index)) => Ok(self.locked(index, now)),
            (handing @ S::HandingOver { .. }, E::ReleaseRefused) => {
                Ok((handing, Some(Effect::ReadKey)))
            }
            (handing @ S::HandingOver { .. }, E::Read { seen, .. }) => Ok(match seen.key {
                KeyState::Ours { .. } => (handing, Some(Effect::BeginAnew { index: seen.index })),
                _ => (self.contend_or_stand(now), None),
            }),
            // It was not ours any more.
            (S::HandingOver { .. }, E::Released(_) | E::SessionLost(Loss::Invalidated)) => {
                Ok((self.contend_or_stand(now), None))
            }
            (S::HandingOver { .. }, E::SessionLost(Loss::Expired)) => {
                Ok(self.release(EndReason::Expired))
            }
            (S::HandingOver { .. }, E::Wanted(Want::Stand(reason))) => Ok(self.release(reason)),
            (
                handing @ S::HandingOver { .. },
                E::Wanted(Want::Contend)
                | E::HandOver(_)
                | E::Seen(_)
                | E::ValueChanged
                | E::SessionUp
                | E::Retry
                | E::Tick,
            ) => Ok((handing, None)),

            (S::Releasing(reason), E::Released(_)) => Ok((self.released(reason, now), None)),
            (S::Releasing(reason), E::ReleaseRefused) => {
                Ok((S::Releasing(reason), Some(Effect::ReadKey)))
            }
            (S::Releasing(reason), E::Read { seen, .. }) => Ok(match seen.key {
                KeyState::Ours { .. } => {
                    (S::Releasing(reason), Some(Effect::ReleaseKey { index: seen.index }))
                }
                _ => (self.released(reason, now), None),
            }),
            (S::Releasing(_), E::SessionLost(Loss::Invalidated)) => {
                Ok((self.contend_or_stand(now), None))
            }
            (
                releasing @ S::Releasing(_),
                E::Wanted(_)
                | E::HandOver(_)
                | E::Seen(_)
                | E::ValueChanged
                | E::SessionUp
                | E::SessionLost(Loss::Expired)
                | E::Retry
                | E::Tick,
            ) => Ok((releasing, None)),

            (S::Failed(_), E::Wanted(Want::Stand(_))) => Ok((S::Standby, None)),
            (S::Failed(_), E::Retry) => Ok((self.contend_or_stand(now), None)),
            (
                failed @ S::Failed(_),
                E::Wanted(Want::Contend)
                | E::HandOver(_)
                | E::Seen(_)
                | E::ValueChanged
                | E::SessionUp
                | E::SessionLost(_)
                | E::Tick,
            ) => Ok((failed, None)),

            (state, event) => Err(Illegal::new(&state, &event)),
        }
    }

    fn adopt(
        &self,
        tenure: Option<Tenure>,
        seen: &Seen,
        session_alive: bool,
        now: Instant,
    ) -> (State, Option<Effect>) {
        match (&seen.key, self.want) {
            (KeyState::Ours { .. }, Want::Stand(reason)) if session_alive => self.release(reason),
            (KeyState::Ours { .. }, Want::Contend) if session_alive => {
                (State::Adopting(tenure), Some(Effect::BeginAnew { index: seen.index }))
            }
            _ => (self.contend_or_stand(now), None),
        }
    }

    fn locked(&self, index: u64, now: Instant) -> (State, Option<Effect>) {
        self.hold(Tenure { token: FencingToken::new(index), since: now })
    }

    fn hold(&self, tenure: Tenure) -> (State, Option<Effect>) {
        match self.want {
            Want::Contend => (State::Held { tenure, errand: None }, None),
            // Not wanted any more by the time it came.
            Want::Stand(reason) => self.release(reason),
        }
    }

    /// Ends the present tenure for another one.
    fn hand_over(&self, reason: EndReason, now: Instant) -> (State, Option<Effect>) {
        let effect = match &self.seen {
            Some(Seen { index, key: KeyState::Ours { .. }, .. }) => {
                Effect::BeginAnew { index: *index }
            }
            _ => Effect::ReadKey,
        };
        (State::HandingOver { reason, since: now }, Some(effect))
    }

    /// Gives up whatever we may hold.
    fn release(&self, reason: EndReason) -> (State, Option<Effect>) {
        let effect = match &self.seen {
            Some(Seen { index, key: KeyState::Ours { .. }, .. }) => {
                Effect::ReleaseKey { index: *index }
            }
            _ => Effect::ReadKey,
        };
        (State::Releasing(reason), Some(effect))
    }

    /// An attempt, if one is possible and due; else whatever time has brought.
    fn try_attempt(&self, waiting: Waiting, now: Instant) -> (State, Option<Effect>) {
        if self.gives_up(waiting).is_some_and(|end| now >= end) {
            return (State::Failed(FailReason::AcquireTimeout), None);
        }
        match self.expect() {
            None if self.settings.try_once && self.seen.is_some() => {
                (State::Failed(FailReason::Contended), None)
            }
            // Somebody took it: whatever delay there was is over.
            None if waiting.delay.is_some() => {
                (State::Waiting(Waiting { delay: None, not_before: now, ..waiting }), None)
            }
            None => (State::Waiting(waiting), None),
            Some(expect) if self.session_up && now >= waiting.not_before => {
                (State::Acquiring(waiting), Some(Effect::LockKey(expect)))
            }
            Some(_) => (State::Waiting(waiting), None),
        }
    }

    fn delayed(
        &self,
        waiting: Waiting,
        holders_delay: Option<Duration>,
        now: Instant,
        jitter: f64,
    ) -> (State, Option<Effect>) {
        if self.settings.try_once {
            return (self.fail(FailReason::Contended), None);
        }
        let end = match (self.freed, holders_delay) {
            (Some(freed), Some(delay)) => Some(freed + delay),
            _ => None,
        };
        let not_before = match end {
            Some(end) if end > now => end + DELAY_OVERDUE.mul_f64(jitter / 4.0),
            Some(_) => now + DELAY_OVERDUE.mul_f64(0.5 + jitter / 2.0),
            None => now + DELAY_PROBE.mul_f64(0.5 + jitter / 2.0),
        };
        (self.back_to(Waiting { not_before, delay: Some(end), ..waiting }), None)
    }

    fn released(&self, reason: EndReason, now: Instant) -> State {
        let pause = match reason {
            EndReason::MaxHold => AFTER_MAX_HOLD,
            EndReason::HandedOver => AFTER_HANDOVER,
            _ => Duration::ZERO,
        };
        match self.want {
            Want::Stand(_) => State::Standby,
            Want::Contend => State::Waiting(Waiting::from(now, now + pause)),
        }
    }

    fn contend_or_stand(&self, now: Instant) -> State {
        self.back_to(Waiting::from(now, now))
    }

    fn back_to(&self, waiting: Waiting) -> State {
        match self.want {
            Want::Contend => State::Waiting(waiting),
            Want::Stand(_) => State::Standby,
        }
    }

    fn fail(&self, reason: FailReason) -> State {
        match self.want {
            Want::Contend => State::Failed(reason),
            Want::Stand(_) => State::Standby,
        }
    }

    fn gives_way(&self, tenure: Tenure) -> bool {
        self.settings.give_way == Some(tenure.token)
    }

    fn gives_up(&self, waiting: Waiting) -> Option<Instant> {
        self.settings.timeout.map(|span| waiting.since + span)
    }

    /// What the key would have to be for an acquisition; `None` while it is no use to try.
    fn expect(&self) -> Option<Expect> {
        let seen = self.seen.as_ref()?;
        match seen.key {
            KeyState::Missing => Some(Expect::Missing),
            // Ours without a tenure: an acquisition that we gave up on was carried out after all.
            KeyState::Free | KeyState::Ours { .. } => Some(Expect::Index(seen.index)),
            KeyState::Conflict | KeyState::Other(_) => None,
        }
    }

    /// Whether a watch's sighting is newer than what is known.
    fn is_news(&self, seen: &Seen) -> bool {
        self.seen.as_ref().is_none_or(|known| {
            seen.epoch > known.epoch
                || (seen.epoch == known.epoch && seen.index >= known.index && seen != known)
        })
    }

    /// Our own write.
    fn wrote(&mut self, index: u64, key: KeyState, now: Instant) {
        if !self.is_overtaken(index) {
            let (epoch, _) = self.asked_at;
            self.note(Seen { epoch, index, key }, now);
        }
    }

    /// Whether a watch was quicker than the answer that speaks of this index, and saw a newer
    /// state. What it sees only now and then is not seen twice.
    fn is_overtaken(&self, index: u64) -> bool {
        let (asked_in, _) = self.asked_at;
        let (epoch, newest) = self.position();
        self.position() != self.asked_at && (epoch != asked_in || newest > index)
    }

    fn position(&self) -> (u64, u64) {
        self.seen.as_ref().map_or((0, 0), |seen| (seen.epoch, seen.index))
    }

    fn note(&mut self, seen: Seen, now: Instant) {
        let held = |key: &KeyState| matches!(key, KeyState::Other(_) | KeyState::Ours { .. });
        let was_held = self.seen.as_ref().is_some_and(|known| held(&known.key));
        let is_sent = matches!(self.state, State::Acquiring(_) | State::Unclear(_));
        match &seen.key {
            // Our acquisition, before the answer to it.
            KeyState::Ours { .. } if is_sent => {}
            key if held(key) => self.freed = None,
            _ if was_held => self.freed = Some(now),
            _ => {}
        }
        self.seen = Some(seen);
    }
}

impl Waiting {
    fn from(since: Instant, not_before: Instant) -> Waiting {
        Waiting { since, not_before, delay: None, races_lost: 0 }
    }

    /// After a lost race: the more in a row, the wider the contenders spread.
    fn after_race(self, now: Instant, jitter: f64) -> Waiting {
        let spread = (RACE_BACKOFF * self.races_lost.min(100)).min(RACE_BACKOFF_MAX);
        let pause = spread.mul_f64(0.5 + jitter / 2.0);
        Waiting { not_before: now + pause, delay: None, ..self }
    }
}

/// The tenure that a step ended, and why: `before` and `after` are the states around `event`.
pub fn ended(before: State, event: &Event, after: State) -> Option<(Tenure, EndReason)> {
    let (State::Held { tenure, .. } | State::Adopting(Some(tenure))) = before else {
        return None;
    };
    let reason = match (after, event) {
        (State::Adopting(None), _) => EndReason::Superseded,
        (State::Held { .. } | State::Adopting(_), _) => return None,
        (State::Releasing(reason) | State::HandingOver { reason, .. }, _) => reason,
        (_, Event::SessionLost(_) | Event::Read { session_alive: false, .. }) => {
            EndReason::SessionInvalidated
        }
        (_, Event::Read { seen, .. }) if seen.key == KeyState::Missing => EndReason::KeyDeleted,
        _ => EndReason::KeyTaken,
    };
    Some((tenure, reason))
}

/// What a watch said last is not so; ask.
fn look(waiting: Waiting) -> (State, Option<Effect>) {
    let races_lost = waiting.races_lost.saturating_add(1);
    (State::Unclear(Waiting { races_lost, ..waiting }), Some(Effect::ReadKey))
}

fn rewrite(tenure: Tenure) -> (State, Option<Effect>) {
    (State::Held { tenure, errand: Some(Errand::Rewrite) }, Some(Effect::RewriteKey))
}

fn doubt(tenure: Tenure, now: Instant) -> (State, Option<Effect>) {
    let errand = Some(Errand::Doubt { until: now + DOUBT_MAX });
    (State::Held { tenure, errand }, Some(Effect::ReadKey))
}
