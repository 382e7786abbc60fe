//! Who else holds the key, as far as Consul tells: what is in the key, and the session that holds it.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};

use super::calls::{Holder, holders_session, pending_or};
use crate::{
    consul::{Consul, KvPair, SessionInfo},
    keeper::{SeenHolder, shared::Shared},
    names::SessionId,
};

/// The holder that is not ours, or was the last one.
pub(super) struct Rival<C> {
    shared: Arc<Shared<C>>,
    holder: Option<SeenHolder>,
    /// What nobody gets the key for after an unclean end of that holder's session; `None`: unknown.
    lock_delay: Option<Duration>,
    call: Option<BoxFuture<'static, Holder>>,
    /// Who the first holder is was asked, with or without an answer.
    asked: bool,
}

impl<C: Consul> Rival<C> {
    pub(super) fn nobody(shared: Arc<Shared<C>>) -> Rival<C> {
        Rival { shared, holder: None, lock_delay: None, call: None, asked: false }
    }

    /// `session` holds the key, which looks so. Asks Consul about a session not met before.
    pub(super) fn see(&mut self, pair: &KvPair, session: SessionId) {
        if let Some(holder) = self.holder.as_mut().filter(|holder| holder.session == session) {
            holder.value.clone_from(&pair.value);
            return;
        }
        self.lock_delay = None;
        let value = pair.value.clone();
        self.holder =
            Some(SeenHolder { session: session.clone(), session_name: None, node: None, value });
        self.call = Some(holders_session(Arc::clone(&self.shared), session, self.asked).boxed());
    }

    /// It holds the key no more. `lock_delay`: of whoever holds it now, if that is known.
    pub(super) fn gone(&mut self, lock_delay: Option<Duration>) {
        (self.holder, self.lock_delay) = (None, lock_delay);
    }

    pub(super) fn lock_delay(&self) -> Option<Duration> {
        self.lock_delay
    }

    /// Nobody is shown the first holder before its name, so that whoever goes on with what others
    /// have shown need not take the name back.
    pub(super) fn is_first_asked_for(&self) -> bool {
        !self.asked && self.call.is_some()
    }

    /// What there is to show of the holder with this session.
    pub(super) fn shown(&self, session: &SessionId) -> SeenHolder {
        let known = self.holder.as_ref().filter(|holder| holder.session == *session);
        known.cloned().unwrap_or_else(|| SeenHolder {
            session: session.clone(),
            session_name: None,
            node: None,
            value: Vec::new(),
        })
    }

    /// Waits for the answer to what was asked, and takes it in. Cancel-safe.
    pub(super) async fn advance(&mut self) {
        let answer = pending_or(&mut self.call).await;
        self.asked = true;
        self.call = match answer {
            Holder::Known(info) => {
                self.learn(info);
                None
            }
            Holder::Unknown(session) => {
                Some(holders_session(Arc::clone(&self.shared), session, true).boxed())
            }
        };
    }

    fn learn(&mut self, info: Option<SessionInfo>) {
        if let (Some(info), Some(holder)) = (info, self.holder.as_mut())
            && info.id == holder.session
        {
            holder.session_name = Some(info.name.as_str().to_owned());
            holder.node = Some(info.node.as_str().to_owned());
            self.lock_delay = Some(info.lock_delay);
        }
    }
}
