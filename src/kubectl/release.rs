//! `release`: takes a key from whoever holds it, by force.
//!
//! # Guarantees
//! What is released is what was shown: the same session under the same version of the key, in one
//! transaction. A stranger's session is destroyed afterwards, so no lock-delay keeps others from the
//! key. One of ours is left alone: its holder hears of a released key, may have other keys under the
//! session, and may have this one again before the session could be destroyed. What is no lock is left
//! alone, too.
//! # Not guaranteed
//! That the holder has stopped: nobody but the holder can see to that.

use std::fmt::Write as _;

use kube::ResourceExt;

use super::{Cluster, KubectlError, Screen, table::clean};
use crate::{
    api::{ConsulLock, HolderStatus},
    consul::{Consistency, Consul, ConsulError, KvPair, SessionInfo, Txn, TxnOp},
    controller,
    keeper::SeenHolder,
    lock::LOCK_FLAGS,
    names::{Key, SessionId},
};

/// A tenure as it was found, whoever's it is.
struct Found {
    claim: String,
    key: Key,
    pair: KvPair,
    session: SessionId,
    /// `None`: it may not be read.
    info: Option<SessionInfo>,
    holder: HolderStatus,
    /// Of the claim's own tenure.
    token: Option<String>,
}

/// Shows what would be done, asks unless `agreed`, and does it; what came of it.
pub(super) async fn release<C: Consul>(
    cluster: &Cluster,
    consul: &C,
    name: &str,
    agreed: bool,
    screen: &Screen,
) -> Result<String, KubectlError> {
    let claim = cluster.claim(name).await?;
    let found = find(consul, &claim).await?;
    screen.say(&found.shown())?;
    if !agreed && !screen.agrees("Release it?")? {
        return Err(KubectlError::Declined);
    }
    found.end(consul).await
}

async fn find<C: Consul>(consul: &C, claim: &ConsulLock) -> Result<Found, KubectlError> {
    let name = format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any());
    let status = claim.status.as_ref();
    let key = status.and_then(|status| status.key.as_ref()).or(claim.spec.key.as_ref());
    let key = key.and_then(|key| Key::new(key).ok()).ok_or_else(|| {
        KubectlError::Refused(format!("which key {name} wants is not known: its status is empty"))
    })?;
    let read = consul.get(&key, Consistency::Consistent).await;
    let pair = read.map_err(failed("read the key"))?.pair;
    let Some((pair, session)) = pair.and_then(|pair| Some((pair.clone(), pair.session?))) else {
        return Err(KubectlError::Refused(format!("nobody holds {key}, the key of {name}")));
    };
    if pair.flags != LOCK_FLAGS {
        let flags = pair.flags;
        return Err(KubectlError::Refused(format!(
            "{key}, the key of {name}, holds something that is not a lock (its flags are \
             {flags:#x}); it is left alone"
        )));
    }
    // Who may not read sessions may release a key all the same.
    let info = consul.session(&session, Consistency::Consistent).await.ok().flatten();
    let seen = SeenHolder {
        session: session.clone(),
        session_name: info.as_ref().map(|info| info.name.as_str().to_owned()),
        node: info.as_ref().map(|info| info.node.as_str().to_owned()),
        value: pair.value.clone(),
    };
    let own = status.and_then(|status| status.session.as_ref()?.id.as_deref());
    let token = status.filter(|_| own == Some(session.as_str()));
    Ok(Found {
        holder: controller::holder_on_key(&seen),
        token: token.and_then(|status| status.fencing_token.clone()),
        claim: name,
        key,
        pair,
        session,
        info,
    })
}

impl Found {
    /// What there is, and what is about to become of it.
    fn shown(&self) -> String {
        let mut text = String::new();
        let mut fact = |name: &str, value: &str| {
            let _ = writeln!(text, "{:12}{value}", format!("{name}:"));
        };
        let index = self.pair.modify_index;
        fact("ConsulLock", &self.claim);
        fact("Key", &format!("{}, version {index}", self.key));
        fact("Holder", &self.who());
        if let Some(token) = &self.token {
            fact("Token", token);
        }
        let session = match &self.info {
            Some(info) => {
                let ttl = info.ttl.map_or_else(
                    || "no TTL".to_owned(),
                    |ttl| format!("TTL {}", crate::api::GoDuration::from(ttl)),
                );
                let (name, node) = (clean(info.name.as_str()), clean(info.node.as_str()));
                let delay = crate::api::GoDuration::from(info.lock_delay);
                format!("{} {name:?} on node {node}, {ttl}, lock-delay {delay}", self.session)
            }
            None => format!("{}, which cannot be read", self.session),
        };
        fact("Session", &session);
        let _ = write!(text, "\nThis will\n  {}\n{}\n", self.steps(), self.consequence());
        text
    }

    fn who(&self) -> String {
        let cluster = self.holder.cluster.as_ref().map(|cluster| format!("cluster {cluster}"));
        let pod = self.holder.pod.as_ref().map(|pod| format!("pod {pod}"));
        let stranger = self.holder.stranger.then(|| "a stranger".to_owned());
        let more = [stranger, cluster, pod].into_iter().flatten().collect::<Vec<_>>().join(", ");
        match more.as_str() {
            "" => self.holder.identity.clone(),
            more => format!("{} ({more})", self.holder.identity),
        }
    }

    fn steps(&self) -> &'static str {
        if self.holder.stranger {
            "1. release the key on the holder's behalf, if it still is as shown;\n  \
             2. destroy the session. What else it holds gets its lock-delay; this key is free at once."
        } else {
            "release the key on the holder's behalf, if it still is as shown. It is free at once."
        }
    }

    /// What a living holder makes of it.
    fn consequence(&self) -> &'static str {
        if self.holder.stranger {
            "A stranger that lives may go on working and not notice for long: see that it has ended."
        } else if self.holder.cluster.is_some() {
            "Its controller, if it runs, notices at once, takes label and endpoint away from the \
             pod, if there is one, and contends anew. The pod goes on working unless onLost \
             deletes it."
        } else {
            "The run or agent that holds it, if it lives, notices at once and stops its work."
        }
    }

    /// Ends the tenure that was shown, and no other.
    async fn end<C: Consul>(&self, consul: &C) -> Result<String, KubectlError> {
        let (key, session) = (self.key.clone(), self.session.clone());
        let steps = [
            TxnOp::CheckIndex { key: key.clone(), index: self.pair.modify_index },
            TxnOp::Unlock { key, session, value: Vec::new(), flags: LOCK_FLAGS },
        ];
        match consul.transaction(&steps).await.map_err(failed("release the key"))? {
            Txn::Committed(_) => {}
            Txn::RolledBack(_) => {
                return Err(KubectlError::Refused(format!(
                    "{} has changed since it was shown; nothing was done. Look again",
                    self.key
                )));
            }
        }
        let mut done = format!("{} was released on behalf of {}", self.key, self.holder.identity);
        if self.holder.stranger {
            let destroyed = consul.destroy_session(&self.session).await;
            destroyed.map_err(failed("destroy the session; the key is released already"))?;
            done.push_str(", and its session destroyed");
        }
        Ok(format!("{done}\n"))
    }
}

fn failed(attempt: &'static str) -> impl Fn(ConsulError) -> KubectlError {
    move |source| KubectlError::Consul { attempt, source }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::sample, *};
    use crate::{
        clock::Clock,
        consul::{Behavior, PutMode, SessionRequest, fake::FakeConsul},
        names::{NodeName, SessionName},
    };

    const KEY: &str = "shop/migrate/.lock";

    async fn held(consul: &FakeConsul, name: &str, value: &[u8]) -> SessionId {
        let node = NodeName::new("vm-7");
        consul.register_node(&node).await.unwrap();
        let request = SessionRequest {
            name: SessionName::new(name),
            node,
            ttl: Duration::from_secs(15),
            lock_delay: Duration::from_secs(15),
            behavior: Behavior::Release,
            node_checks: Vec::new(),
            service_checks: Vec::new(),
        };
        let session = consul.create_session(&request).await.unwrap();
        let mode = PutMode::Acquire(session.clone());
        assert!(consul.put(&key(), value, Some(LOCK_FLAGS), mode).await.unwrap());
        session
    }

    fn key() -> Key {
        Key::new(KEY).unwrap()
    }

    fn refusal(result: Result<Found, KubectlError>) -> String {
        result.err().unwrap().to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_shown_is_what_is_released() {
        let consul = FakeConsul::new(Clock::simulated());
        let session = held(&consul, "Consul API Lock", b"").await;
        let found = find(&consul, &sample::waiting()).await.unwrap();
        let shown = found.shown();
        for words in [
            KEY,
            session.as_str(),
            "Consul API Lock on vm-7 (a stranger)",
            "TTL 15s, lock-delay 15s",
            "release the key on the holder's behalf",
        ] {
            assert!(shown.contains(words), "no {words:?} in: {shown}");
        }
        found.end(&consul).await.unwrap();
        let pair = consul.get(&key(), Consistency::Consistent).await.unwrap().pair.unwrap();
        assert_eq!((pair.session, pair.flags), (None, LOCK_FLAGS));
        assert_eq!(consul.session(&session, Consistency::Consistent).await.unwrap(), None);
        assert!(refusal(find(&consul, &sample::waiting()).await).contains("nobody holds"));
    }

    #[tokio::test(start_paused = true)]
    async fn session_of_one_of_ours_is_left_alone() {
        let consul = FakeConsul::new(Clock::simulated());
        let value = br#"{"holder":"eu-1/shop/migrate","cluster":"eu-1"}"#;
        let session = held(&consul, "consul-lock/eu-1/uid", value).await;
        let found = find(&consul, &sample::waiting()).await.unwrap();
        assert!(!found.shown().contains("destroy"), "{}", found.shown());
        assert!(!found.end(&consul).await.unwrap().contains("destroyed"));
        let pair = consul.get(&key(), Consistency::Consistent).await.unwrap().pair.unwrap();
        assert_eq!(pair.session, None);
        assert!(consul.session(&session, Consistency::Consistent).await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn another_tenure_than_the_one_that_was_shown_is_left_alone() {
        let consul = FakeConsul::new(Clock::simulated());
        let session = held(&consul, "Consul API Lock", b"").await;
        let found = find(&consul, &sample::waiting()).await.unwrap();
        let mode = PutMode::Release(session.clone());
        assert!(consul.put(&key(), b"", Some(LOCK_FLAGS), mode).await.unwrap());
        let mode = PutMode::Acquire(session.clone());
        assert!(consul.put(&key(), b"", Some(LOCK_FLAGS), mode).await.unwrap());
        let error = found.end(&consul).await.unwrap_err().to_string();
        assert!(error.contains("has changed since it was shown"), "{error}");
        let pair = consul.get(&key(), Consistency::Consistent).await.unwrap().pair.unwrap();
        assert_eq!(pair.session.as_ref(), Some(&session));
        assert!(consul.session(&session, Consistency::Consistent).await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_lock_is_left_alone() {
        let consul = FakeConsul::new(Clock::simulated());
        let session = held(&consul, "Consul API Lock", b"").await;
        let mode = PutMode::Acquire(session);
        assert!(consul.put(&key(), b"precious", Some(7), mode).await.unwrap());
        let refused = refusal(find(&consul, &sample::waiting()).await);
        assert!(refused.contains("is not a lock (its flags are 0x7)"), "{refused}");
    }
}
