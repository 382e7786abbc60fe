//! The part of the store that knows sessions, their nodes and their ends.

use std::{sync::Arc, time::Duration};

use super::{Refused, Session, Store};
use crate::{
    clock::Instant,
    consul::{Behavior, SessionInfo, SessionRequest},
    names::{NodeName, SessionId},
};

/// Consul's `MaxLockDelay`.
const LOCK_DELAY_MAX: Duration = Duration::from_secs(60);
/// Consul's `SessionTTLMax`.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

impl Store {
    pub(in crate::consul::fake) fn register(&mut self, node: &NodeName) {
        self.index += 1;
        self.nodes.insert(node.clone());
    }

    /// Takes the node's sessions along, as Consul does.
    pub(in crate::consul::fake) fn deregister(&mut self, node: &NodeName, now: Instant) {
        self.index += 1;
        self.nodes.remove(node);
        let bound: Vec<SessionId> = self.sessions_of(node).map(|info| info.id.clone()).collect();
        for id in bound {
            self.end_session(&id, now);
        }
    }

    pub(in crate::consul::fake) fn create_session(
        &mut self,
        request: &SessionRequest,
        now: Instant,
    ) -> Result<SessionId, Refused> {
        let ttl = (!request.ttl.is_zero()).then_some(request.ttl);
        if let Some(ttl) = ttl
            && (ttl < self.ttl_min || ttl > TTL_MAX)
        {
            return Err(Refused::Invalid(format!(
                "Invalid Session TTL '{}', must be between [{}=24h0m0s]",
                ttl.as_nanos(),
                go_seconds(self.ttl_min)
            )));
        }
        self.index += 1;
        if !self.nodes.contains(&request.node) {
            return Err(Refused::Invalid("Missing node registration".into()));
        }
        if let Some(check) = request.node_checks.iter().chain(&request.service_checks).next() {
            return Err(Refused::Invalid(format!("Missing check '{check}' registration")));
        }
        let id = SessionId::new(format!("00000000-0000-4000-8000-{:012x}", self.index));
        let info = SessionInfo {
            id: id.clone(),
            name: request.name.clone(),
            node: request.node.clone(),
            ttl,
            lock_delay: request.lock_delay,
            behavior: request.behavior,
            create_index: self.index,
        };
        let expires = None;
        self.sessions.insert(id.clone(), Session { info, expires });
        self.rearm(&id, now);
        Ok(id)
    }

    /// `None`: there is no such session.
    pub(in crate::consul::fake) fn renew(
        &mut self,
        id: &SessionId,
        now: Instant,
    ) -> Option<SessionInfo> {
        let info = self.sessions.get(id)?.info.clone();
        self.rearm(id, now);
        Some(info)
    }

    /// What a new leader does: every session gets its full time again.
    pub(in crate::consul::fake) fn rearm_all(&mut self, now: Instant) {
        let ids: Vec<SessionId> = self.sessions.keys().cloned().collect();
        for id in ids {
            self.rearm(&id, now);
        }
    }

    fn rearm(&mut self, id: &SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        let Some(ttl) = session.info.ttl else { return };
        let expires = now + ttl.mul_f64((self.factor)().clamp(1.0, 2.0));
        if let Some(before) = session.expires.replace(expires) {
            self.expiries.remove(&(before, id.clone()));
            // A blocked query sleeps until the expiry that it saw; this one comes sooner.
            self.wakes |= expires < before;
        }
        self.expiries.insert((expires, id.clone()));
    }

    pub(in crate::consul::fake) fn destroy_session(&mut self, id: &SessionId, now: Instant) {
        self.index += 1;
        self.end_session(id, now);
    }

    pub(super) fn end_session(&mut self, id: &SessionId, now: Instant) {
        let Some(session) = self.sessions.remove(id) else {
            return;
        };
        if let Some(expires) = session.expires {
            self.expiries.remove(&(expires, id.clone()));
        }
        let delay = session.info.lock_delay.min(LOCK_DELAY_MAX);
        let held: Vec<Arc<str>> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.session.as_ref() == Some(id))
            .map(|(key, _)| key.clone())
            .collect();
        self.undo.clear();
        for key in held {
            match session.info.behavior {
                Behavior::Release => self.free(&key),
                Behavior::Delete => self.remove(&key, now),
            }
            if !delay.is_zero() {
                self.lock_delays.insert(key, now + delay);
            }
        }
    }

    pub(in crate::consul::fake) fn session(&self, id: &SessionId) -> Option<SessionInfo> {
        self.sessions.get(id).map(|session| session.info.clone())
    }

    pub(in crate::consul::fake) fn sessions_of(
        &self,
        node: &NodeName,
    ) -> impl Iterator<Item = &SessionInfo> {
        self.sessions().filter(move |info| info.node == *node)
    }

    pub(in crate::consul::fake) fn sessions(&self) -> impl Iterator<Item = &SessionInfo> {
        self.sessions.values().map(|session| &session.info)
    }
}

/// A span as Go prints whole seconds below a minute.
fn go_seconds(span: Duration) -> String {
    format!("{}s", span.as_secs_f64())
}
