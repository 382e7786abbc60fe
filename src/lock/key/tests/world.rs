//! One lock against a model of Consul, strangers and an operator included: calls that are carried
//! out late, answers and sightings that arrive in any legal order, replies that are lost.
//!
//! What must hold at every step is asserted where it happens; what must hold once everything was
//! answered and seen, in [`World::check_quiet`].

use std::collections::{BTreeSet, VecDeque};

use super::*;

/// Whom a key belongs to in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Session(u32),
    Stranger,
}

/// A key in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    holder: Option<Holder>,
    is_lock: bool,
    value: u32,
}

/// A state of the key and its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Raw {
    index: u64,
    entry: Option<Entry>,
}

#[derive(Clone, Debug)]
struct Call {
    effect: Effect,
    session: u32,
    value: u32,
    /// What Consul answered, once it has carried the call out.
    answer: Option<Answer>,
}

#[derive(Clone, Debug)]
enum Answer {
    Event(Event),
    Read { raw: Raw, session_alive: bool },
}

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Turn {
    CarryOut,
    Answer,
    LoseReply,
    LoseRequest,
    Fail,
    CarryOutLate,
    SeeNext,
    SeeLast,
    SessionWork,
    Expire,
    DestroySession,
    DeleteKey,
    PlainPut,
    StrangerTakes,
    StrangerReleases,
    LockDelay(bool),
    Want(bool),
    HandOver,
    Value,
    Retry,
    Pass(u8),
}

#[derive(Debug)]
struct World {
    lock: Lock,
    now: Instant,
    index: u64,
    key: Option<Entry>,
    key_index: u64,
    delayed: bool,
    alive: BTreeSet<u32>,
    session: u32,
    valid: bool,
    value: u32,
    wanted: bool,
    call: Option<Call>,
    /// Given up, and perhaps carried out all the same.
    late: Vec<Call>,
    unseen: VecDeque<Raw>,
    sighted: Option<Raw>,
    newest_token: u64,
    /// The fate of an acquisition is open, and the key was not read since.
    in_the_dark: bool,
    /// An attempt failed at this instant, and nothing was learnt since.
    failed_at: Option<Instant>,
}

impl World {
    fn new(settings: Settings, recorded: Option<bool>) -> World {
        let mut world = World {
            lock: Lock::contending(settings, at(0)),
            now: at(0),
            index: 10,
            key: None,
            key_index: 10,
            delayed: false,
            alive: BTreeSet::new(),
            session: 0,
            valid: false,
            value: 0,
            wanted: true,
            call: None,
            late: Vec::new(),
            unseen: VecDeque::new(),
            sighted: None,
            newest_token: 0,
            in_the_dark: false,
            failed_at: None,
        };
        if let Some(with_token) = recorded {
            world.session = 1;
            world.alive.insert(1);
            world.write(Some(Entry { holder: Some(Holder::Session(1)), is_lock: true, value: 0 }));
            let token = FencingToken::new(world.key_index);
            let tenure = with_token.then_some(Tenure { token, since: at(0) });
            world.newest_token = world.key_index - 1;
            world.lock = Lock::adopting(settings, tenure);
        } else {
            world.unseen.push_back(Raw { index: 10, entry: None });
        }
        world
    }

    // ---- Consul ----

    fn write(&mut self, entry: Option<Entry>) -> u64 {
        if self.key != entry {
            self.index += 1;
            self.key_index = self.index;
            self.key = entry;
            self.unseen.push_back(Raw { index: self.index, entry });
        }
        self.key_index
    }

    fn holder(&self) -> Option<Holder> {
        self.key?.holder
    }

    fn end_session(&mut self, session: u32) {
        self.alive.remove(&session);
        if self.holder() == Some(Holder::Session(session)) {
            self.write(self.key.map(|key| Entry { holder: None, ..key }));
        }
    }

    fn carry_out(&mut self, call: &Call) -> Answer {
        let ours = Some(Holder::Session(call.session));
        let locked = Entry { holder: ours, is_lock: true, value: call.value };
        Answer::Event(match call.effect {
            Effect::LockKey(expect) => self.try_lock(expect, call.session, locked),
            Effect::ReadKey => {
                let index = if self.key.is_some() { self.key_index } else { self.index };
                let raw = Raw { index, entry: self.key };
                return Answer::Read { raw, session_alive: self.alive.contains(&call.session) };
            }
            Effect::RewriteKey if self.holder() == ours => {
                Event::Rewritten(self.write(Some(locked)))
            }
            Effect::RewriteKey => Event::RewriteRefused,
            Effect::BeginAnew { index } | Effect::ReleaseKey { index }
                if self.holder() == ours && index != self.key_index =>
            {
                Event::ReleaseRefused
            }
            Effect::BeginAnew { .. } if self.holder() == ours => {
                self.write(Some(Entry { holder: None, ..locked }));
                Event::Locked(self.write(Some(locked)))
            }
            Effect::ReleaseKey { .. } if self.holder() == ours => {
                let free = Entry { holder: None, is_lock: true, value: 0 };
                Event::Released(Some(self.write(Some(free))))
            }
            Effect::BeginAnew { .. } | Effect::ReleaseKey { .. } => Event::Released(None),
        })
    }

    fn try_lock(&mut self, expect: Expect, session: u32, locked: Entry) -> Event {
        let as_expected = match expect {
            Expect::Missing => self.key.is_none(),
            Expect::Index(index) => self.key.is_some() && index == self.key_index,
        };
        if self.delayed {
            Event::RefusedDelay(None)
        } else if !self.alive.contains(&session) {
            Event::LockFailed { pause: S }
        } else if self.holder().is_some_and(|holder| holder != Holder::Session(session)) {
            Event::RefusedHeld
        } else if !as_expected {
            Event::RefusedChanged
        } else {
            let foreign = self.key.is_some_and(|key| !key.is_lock && key.holder.is_none());
            assert!(!foreign, "somebody's data was overwritten");
            Event::Locked(self.write(Some(locked)))
        }
    }

    // ---- the driver ----

    fn classify(&self, raw: Raw) -> Seen {
        let key = match raw.entry {
            None => KeyState::Missing,
            Some(entry) => match entry.holder {
                Some(Holder::Session(session)) if session == self.session => {
                    KeyState::Ours { intact: entry.is_lock && entry.value == self.value }
                }
                Some(holder) => KeyState::Other(SessionId::new(format!("{holder:?}"))),
                None if entry.is_lock => KeyState::Free,
                None => KeyState::Conflict,
            },
        };
        Seen { epoch: 0, index: raw.index, key }
    }

    fn on(&mut self, event: Event) {
        let before = self.lock.state();
        self.look_back(&event);
        let effect = self.lock.step(event.clone(), self.now, 0.0).unwrap();
        let after = self.lock.state();
        if let State::Held { tenure, .. } = after {
            let begins = !matches!(before, State::Held { .. });
            assert!(!begins || tenure.token.get() > self.newest_token, "{event:?} {self:#?}");
            self.newest_token = tenure.token.get();
        }
        if std::mem::discriminant(&before) != std::mem::discriminant(&after) {
            self.late.extend(self.call.take());
        }
        if let Some(effect) = effect {
            self.late.extend(self.call.take());
            if let Effect::LockKey(_) = effect {
                assert!(self.valid, "locked without a session");
                assert!(!self.in_the_dark, "locked before the last attempt was looked up");
                assert!(self.failed_at != Some(self.now), "again at once: {self:#?}");
            }
            let (session, value) = (self.session, self.value);
            self.call = Some(Call { effect, session, value, answer: None });
        }
    }

    /// Keeps what the assertions need of the past.
    fn look_back(&mut self, event: &Event) {
        match event {
            Event::LockUnclear => self.in_the_dark = true,
            Event::Read { .. } | Event::Released(_) => self.in_the_dark = false,
            Event::RefusedHeld
            | Event::RefusedChanged
            | Event::RefusedDelay(_)
            | Event::LockFailed { .. } => self.failed_at = Some(self.now),
            Event::Seen(_) | Event::SessionUp | Event::Wanted(_) | Event::Retry => {
                self.failed_at = None;
            }
            _ => {}
        }
    }

    fn see(&mut self, raw: Raw) {
        self.sighted = Some(raw);
        self.on(Event::Seen(self.classify(raw)));
    }

    fn answer(&mut self) {
        let Some(mut call) = self.call.take() else { return };
        let answer = match call.answer.take() {
            Some(answer) => answer,
            None => self.carry_out(&call),
        };
        self.on(match answer {
            Answer::Event(event) => event,
            Answer::Read { raw, session_alive } => {
                Event::Read { seen: self.classify(raw), session_alive }
            }
        });
    }

    /// What the session keeper beside it would do.
    fn work_on_session(&mut self) {
        let may_hold =
            !matches!(self.lock.state(), State::Waiting(_) | State::Standby | State::Failed(_));
        if self.valid && !self.alive.contains(&self.session) {
            self.valid = false;
            self.on(Event::SessionLost(Loss::Invalidated));
        } else if self.valid && !may_hold && !self.lock.wants_session() {
            self.end_session(self.session);
            self.valid = false;
            self.on(Event::SessionLost(Loss::Invalidated));
        } else if !self.valid && matches!(self.lock.state(), State::Adopting(_)) {
            self.valid = self.alive.contains(&self.session);
            self.on(match self.valid {
                true => Event::SessionUp,
                false => Event::SessionLost(Loss::Invalidated),
            });
        } else if !self.valid && !may_hold && self.lock.wants_session() {
            self.end_session(self.session);
            self.session += 1;
            self.alive.insert(self.session);
            self.valid = true;
            self.in_the_dark = false;
            if let Some(raw) = self.sighted {
                self.see(raw);
            }
            self.on(Event::SessionUp);
        }
    }

    /// Whether a tenure is relied on, with good reason.
    fn is_held(&self) -> bool {
        let ours = self.holder() == Some(Holder::Session(self.session));
        ours && matches!(self.lock.state(), State::Held { .. })
    }

    fn locking(&self) -> bool {
        self.call.as_ref().is_some_and(|call| matches!(call.effect, Effect::LockKey(_)))
    }

    fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::CarryOut => {
                if let Some(mut call) = self.call.take() {
                    if call.answer.is_none() {
                        call.answer = Some(self.carry_out(&call));
                    }
                    self.call = Some(call);
                }
            }
            Turn::Answer => self.answer(),
            Turn::LoseReply | Turn::LoseRequest => {
                if let Some(call) = self.call.clone() {
                    match turn {
                        Turn::LoseReply if call.answer.is_none() => drop(self.carry_out(&call)),
                        _ => self.late.push(Call { answer: None, ..call }),
                    }
                    if self.locking() {
                        self.call = None;
                        self.on(Event::LockUnclear);
                    }
                }
            }
            Turn::Fail if self.locking() => {
                self.call = None;
                self.on(Event::LockFailed { pause: S / 10 });
            }
            Turn::Fail => {}
            Turn::CarryOutLate => {
                if !self.late.is_empty() {
                    let call = self.late.remove(0);
                    if call.answer.is_none() {
                        let relied_on = self.is_held();
                        drop(self.carry_out(&call));
                        assert!(!relied_on || self.is_held(), "{call:?} ended a tenure: {self:#?}");
                    }
                }
            }
            Turn::SeeNext => {
                if let Some(raw) = self.unseen.pop_front() {
                    self.see(raw);
                }
            }
            Turn::SeeLast => {
                let last = self.unseen.pop_back();
                self.unseen.clear();
                if let Some(raw) = last {
                    self.see(raw);
                }
            }
            Turn::SessionWork => self.work_on_session(),
            Turn::Expire if self.valid => {
                self.valid = false;
                self.on(Event::SessionLost(Loss::Expired));
            }
            Turn::Expire => {}
            Turn::Value => {
                self.value += 1;
                self.on(Event::ValueChanged);
            }
            Turn::Want(wanted) => {
                self.wanted = wanted;
                let stand = Want::Stand(EndReason::Paused);
                self.on(Event::Wanted(if wanted { Want::Contend } else { stand }));
            }
            Turn::HandOver => self.on(Event::HandOver(EndReason::PodDied)),
            Turn::Retry => self.on(Event::Retry),
            Turn::Pass(tenths) => self.now = self.now + S / 10 * u32::from(tenths),
            _ => self.meddle(turn),
        }
        self.on(Event::Tick);
    }

    /// What operators and strangers do.
    fn meddle(&mut self, turn: Turn) {
        match turn {
            Turn::DestroySession => self.end_session(self.session),
            Turn::DeleteKey => {
                self.write(None);
            }
            Turn::PlainPut => {
                let holder = self.holder();
                self.write(Some(Entry { holder, is_lock: false, value: 0 }));
            }
            Turn::StrangerTakes if self.holder().is_none() && !self.delayed => {
                let holder = Some(Holder::Stranger);
                self.write(Some(Entry { holder, is_lock: true, value: 0 }));
            }
            Turn::StrangerReleases if self.holder() == Some(Holder::Stranger) => {
                self.write(Some(Entry { holder: None, is_lock: true, value: 0 }));
            }
            Turn::LockDelay(delayed) => self.delayed = delayed,
            _ => {}
        }
    }

    /// Lets everything be carried out, answered and seen, and time pass where it is waited for.
    fn come_to_rest(&mut self) {
        self.meddle(Turn::LockDelay(false));
        while !self.late.is_empty() {
            self.turn(Turn::CarryOutLate);
        }
        for _ in 0..60 {
            let (before, session) = (self.lock.clone(), self.session);
            self.turn(Turn::SeeLast);
            self.turn(Turn::SessionWork);
            self.turn(Turn::Answer);
            self.late.clear();
            let nothing_open = self.call.is_none() && self.unseen.is_empty();
            let waits = matches!(self.lock.state(), State::Waiting(_));
            if let Some(due) = self.lock.due().filter(|_| nothing_open && waits) {
                self.now = due.max(self.now);
                self.turn(Turn::Pass(0));
            } else if nothing_open && self.lock == before && self.session == session {
                return;
            }
        }
        panic!("no rest: {self:#?}");
    }

    fn check_quiet(&self) {
        let truth = self.classify(Raw { index: self.key_index, entry: self.key }).key;
        let knows = self.lock.seen().map(|seen| seen.key.clone());
        let agree = match (&knows, &truth) {
            (Some(KeyState::Ours { .. }), KeyState::Ours { .. }) => true,
            (known, truth) => known.as_ref() == Some(truth),
        };
        assert!(agree, "{knows:?} is not {truth:?}: {self:#?}");
        let free = matches!(truth, KeyState::Missing | KeyState::Free) && !self.delayed;
        let fits = match self.lock.state() {
            State::Standby => !self.wanted,
            State::Waiting(_) => self.wanted && !free,
            State::Held { errand: None, .. } => self.wanted && truth == INTACT,
            State::Failed(_) => self.wanted && self.lock.settings != Settings::default(),
            _ => false,
        };
        assert!(fits, "{self:#?}");
    }
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        4 => Just(Turn::CarryOut),
        8 => Just(Turn::Answer),
        2 => Just(Turn::LoseReply),
        2 => Just(Turn::LoseRequest),
        1 => Just(Turn::Fail),
        2 => Just(Turn::CarryOutLate),
        4 => Just(Turn::SeeNext),
        4 => Just(Turn::SeeLast),
        8 => Just(Turn::SessionWork),
        1 => Just(Turn::Expire),
        1 => Just(Turn::DestroySession),
        1 => Just(Turn::DeleteKey),
        1 => Just(Turn::PlainPut),
        2 => Just(Turn::StrangerTakes),
        2 => Just(Turn::StrangerReleases),
        1 => any::<bool>().prop_map(Turn::LockDelay),
        2 => any::<bool>().prop_map(Turn::Want),
        2 => Just(Turn::HandOver),
        1 => Just(Turn::Value),
        1 => Just(Turn::Retry),
        4 => (0u8..30).prop_map(Turn::Pass),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    prop_oneof![
        4 => Just(Settings::default()),
        1 => Just(once()),
        1 => Just(max_hold(9)),
        1 => Just(Settings { timeout: Some(S * 7), ..Settings::default() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Tokens rise and come from Consul, nobody's data is overwritten, no attempt is repeated at
    /// once; and when all is answered and seen, the lock and the key agree.
    #[test]
    fn lock_and_key_agree_in_the_end(
        settings in settings(),
        recorded in prop::option::of(any::<bool>()),
        turns in prop::collection::vec(turn(), 0..80),
    ) {
        let mut world = World::new(settings, recorded);
        for turn in turns {
            world.turn(turn);
        }
        world.come_to_rest();
        world.check_quiet();
        // What stands by, stands by; what is wanted again, is contended for again.
        world.turn(Turn::Want(false));
        world.come_to_rest();
        world.check_quiet();
        world.turn(Turn::Want(true));
        world.come_to_rest();
        world.check_quiet();
    }
}
