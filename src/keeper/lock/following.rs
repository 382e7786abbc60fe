//! A key that is left to others: read consistently after each change, since a watch may be behind,
//! and every so often besides, since a watch that is silent may have nobody to hear; and freed for a
//! holder that has died.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};

use super::calls::{Holder, LOCK, holders_session, pair_of, pending_or};
use crate::{
    clock::Instant,
    consul::{Consul, KvPair, Operation, SessionInfo, Txn, TxnOp},
    keeper::{
        DeadTenure, KeySeen, SeenHolder,
        shared::{Answers, Shared},
    },
    lock::{LOCK_FLAGS, key::KeyState},
    names::Key,
};

/// The key, and the session that holds it.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) pair: Option<Arc<KvPair>>,
    /// `None`: nobody holds it, or Consul did not tell.
    pub(super) holder: Option<SessionInfo>,
}

impl Seen {
    /// The key in this state, as others are shown it.
    pub(super) fn shown(&self, key: KeyState) -> KeySeen {
        let (pair, holder) = (self.pair.as_ref(), self.holder.as_ref());
        match key {
            KeyState::Missing | KeyState::Free => KeySeen::Free,
            KeyState::Conflict => KeySeen::Conflict { flags: pair.map_or(0, |pair| pair.flags) },
            KeyState::Ours { .. } => KeySeen::Ours,
            KeyState::Other(session) => KeySeen::Held(SeenHolder {
                session,
                session_name: holder.map(|info| info.name.as_str().to_owned()),
                node: holder.map(|info| info.node.as_str().to_owned()),
                value: pair.map_or_else(Vec::new, |pair| pair.value.clone()),
            }),
        }
    }
}

pub(super) struct Following<C> {
    shared: Arc<Shared<C>>,
    answers: Answers,
    key: Key,
    seen: Option<Seen>,
    reading: Option<BoxFuture<'static, Seen>>,
    /// How long what was read is relied on without another look, and when that is due.
    pulse: Duration,
    due: Instant,
    /// The tenure that was last to be ended.
    dead: Option<DeadTenure>,
    releasing: Option<BoxFuture<'static, ()>>,
}

impl<C: Consul> Following<C> {
    pub(super) fn new(
        shared: &Arc<Shared<C>>,
        answers: &Answers,
        key: &Key,
        pulse: Duration,
    ) -> Following<C> {
        let mut following = Following {
            pulse,
            due: shared.clock.now(),
            shared: Arc::clone(shared),
            answers: answers.clone(),
            key: key.clone(),
            seen: None,
            reading: None,
            dead: None,
            releasing: None,
        };
        following.look();
        following
    }

    /// The key as it was read last; `None` before the first time.
    pub(super) fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// Reads the key: it has changed, or was not looked at for long.
    pub(super) fn look(&mut self) {
        self.due = self.shared.clock.now() + self.pulse.mul_f64(1.0 - self.shared.jitter() / 10.0);
        let (shared, answers) = (Arc::clone(&self.shared), self.answers.clone());
        let known = self.seen.as_ref().and_then(|seen| seen.holder.clone());
        self.reading = Some(read(shared, answers, self.key.clone(), known).boxed());
    }

    /// This tenure is to be ended. Another order, or none, takes back what was not sent yet.
    pub(super) fn release(&mut self, dead: Option<DeadTenure>) {
        if self.dead == dead {
            return;
        }
        self.dead.clone_from(&dead);
        if self.releasing.take().is_some() {
            // Whatever was wrong with it is of no interest any more.
            self.answers.succeeded(Operation::Transaction);
        }
        let (shared, answers) = (&self.shared, &self.answers);
        self.releasing = dead
            .map(|dead| end(Arc::clone(shared), answers.clone(), self.key.clone(), dead).boxed());
    }
}

/// Waits for the next answer and takes it in. Cancel-safe.
pub(super) async fn advance<C: Consul>(following: &mut Option<Following<C>>) {
    let Some(following) = following else { return std::future::pending().await };
    // One that is under way is repeated until it is answered.
    let is_due = following.reading.is_none();
    tokio::select! {
        biased;
        () = following.shared.clock.sleep_until(following.due), if is_due => following.look(),
        seen = pending_or(&mut following.reading) => {
            following.reading = None;
            following.seen = Some(seen);
        }
        () = pending_or(&mut following.releasing) => following.releasing = None,
    }
}

/// Nobody is shown as holder before it was asked for its name. `known`: the last holder.
async fn read<C: Consul>(
    shared: Arc<Shared<C>>,
    answers: Answers,
    key: Key,
    known: Option<SessionInfo>,
) -> Seen {
    let pair = pair_of(Arc::clone(&shared), answers, key).await;
    let session = pair.as_ref().and_then(|pair| pair.session.clone());
    let holder = match (session, known) {
        (None, _) => None,
        (Some(session), Some(known)) if known.id == session => Some(known),
        (Some(session), _) => match holders_session(shared, session, false).await {
            Holder::Known(info) => info,
            Holder::Unknown(_) => None,
        },
    };
    Seen { pair: pair.map(Arc::new), holder }
}

/// Ends the tenure, if it is still what it was when its holder was found dead.
async fn end<C: Consul>(shared: Arc<Shared<C>>, answers: Answers, key: Key, dead: DeadTenure) {
    let DeadTenure { session, index, end_session } = dead;
    let steps = [
        TxnOp::CheckIndex { key: key.clone(), index },
        TxnOp::CheckSession { key: key.clone(), session: session.clone() },
        TxnOp::Unlock { key, session: session.clone(), value: Vec::new(), flags: LOCK_FLAGS },
    ];
    let transaction = || shared.consul.transaction(&steps);
    let txn = shared.until_answered(&answers, Operation::Transaction, transaction).await;
    if end_session && matches!(txn, Txn::Committed(_)) {
        let destroyed = shared.consul.destroy_session(&session);
        if let Err(error) = shared.attempt(Operation::DestroySession, LOCK, destroyed).await {
            tracing::info!(%session, %error, "the dead holder's session is left to expire");
        }
    }
}
