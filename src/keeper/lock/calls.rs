//! The lock keeper's calls: each a future that owns what it needs, and ends with an [`Answer`].

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;

use crate::{
    consul::{Class, Consistency, Consul, ConsulError, KvPair, Operation, SessionInfo, Txn, TxnOp},
    keeper::{
        retry::Backoff,
        shared::{Answers, Shared},
    },
    names::{Key, SessionId},
};

/// The time limit of an acquisition.
pub(super) const LOCK: Duration = Duration::from_secs(5);

/// What became of a call.
pub(super) enum Answer {
    Locked { result: Result<Txn, ConsulError> },
    Read { pair: Option<KvPair>, index: u64, session_alive: bool },
    Rewritten(Txn),
    BegunAnew(Txn),
    Released(Txn),
}

/// The index of the commit, if there was one.
pub(super) fn written_index(txn: &Txn) -> Option<u64> {
    match txn {
        Txn::Committed(pairs) => pairs.last().map(|pair| pair.modify_index),
        Txn::RolledBack(_) => None,
    }
}

pub(super) async fn pending_or<T>(call: &mut Option<BoxFuture<'static, T>>) -> T {
    match call {
        Some(call) => call.await,
        None => std::future::pending().await,
    }
}

pub(super) async fn acquire<C: Consul>(shared: Arc<Shared<C>>, steps: Vec<TxnOp>) -> Answer {
    let transaction = shared.consul.transaction(&steps);
    Answer::Locked { result: shared.attempt(Operation::Transaction, LOCK, transaction).await }
}

pub(super) async fn transact<C: Consul>(
    shared: Arc<Shared<C>>,
    answers: Answers,
    steps: Vec<TxnOp>,
    answer: fn(Txn) -> Answer,
) -> Answer {
    let transaction = || shared.consul.transaction(&steps);
    answer(shared.until_answered(&answers, Operation::Transaction, transaction).await)
}

/// The key and, where it is not ours, whether our session lives: both consistently.
pub(super) async fn read<C: Consul>(
    shared: Arc<Shared<C>>,
    answers: Answers,
    key: Key,
    session: SessionId,
) -> Answer {
    let get = || shared.consul.get(&key, Consistency::Consistent);
    let reading = shared.until_answered(&answers, Operation::ReadKey, get).await;
    let ours = reading.pair.as_ref().is_some_and(|pair| pair.session.as_ref() == Some(&session));
    let session_alive = ours || session_lives(&shared, &session).await;
    Answer::Read { pair: reading.pair, index: reading.index, session_alive }
}

/// The value of a key, consistently; empty if there is none.
pub(super) async fn value_of<C: Consul>(
    shared: Arc<Shared<C>>,
    answers: Answers,
    key: Key,
) -> Arc<[u8]> {
    let pair = pair_of(shared, answers, key).await;
    pair.map_or_else(|| Arc::from([]), |pair| pair.value.into())
}

/// A key, consistently.
pub(super) async fn pair_of<C: Consul>(
    shared: Arc<Shared<C>>,
    answers: Answers,
    key: Key,
) -> Option<KvPair> {
    let get = || shared.consul.get(&key, Consistency::Consistent);
    shared.until_answered(&answers, Operation::ReadKey, get).await.pair
}

/// Unless Consul says otherwise within a few attempts, it does: the next renewal will tell.
async fn session_lives<C: Consul>(shared: &Shared<C>, session: &SessionId) -> bool {
    let mut backoff = Backoff::default();
    for _ in 0..3 {
        let read = shared.consul.session(session, Consistency::Consistent);
        match shared.attempt(Operation::ReadSession, LOCK, read).await {
            Ok(info) => return info.is_some(),
            Err(error) if error.class == Class::Denied => return true,
            Err(error) => {
                let pause = backoff.pause(error.class, shared.jitter());
                shared.clock.sleep_until(shared.clock.now() + pause).await;
            }
        }
    }
    true
}

/// What is heard of another holder's session.
pub(super) enum Holder {
    /// The session; `None` if it is gone, or not ours to read.
    Known(Option<SessionInfo>),
    /// Consul did not tell.
    Unknown(SessionId),
}

/// The session of another holder. `patient`: asked for until there is an answer.
pub(super) async fn holders_session<C: Consul>(
    shared: Arc<Shared<C>>,
    session: SessionId,
    patient: bool,
) -> Holder {
    let mut backoff = Backoff::default();
    loop {
        let read = shared.consul.session(&session, Consistency::Default);
        match shared.attempt(Operation::ReadSession, LOCK, read).await {
            Ok(info) => return Holder::Known(info),
            Err(error) if matches!(error.class, Class::Denied | Class::Invalid) => {
                return Holder::Known(None);
            }
            Err(_) if !patient => return Holder::Unknown(session),
            Err(error) => {
                let pause = backoff.pause(error.class, shared.jitter());
                shared.clock.sleep_until(shared.clock.now() + pause).await;
            }
        }
    }
}
