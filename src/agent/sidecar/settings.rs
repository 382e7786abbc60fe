//! What an agent is told to do, and what that means in the light of its claim. Pure.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    app::AppSettings,
    claims::{Claim, Spec},
};
use crate::{
    agent::{notice::Notice, settings::LockSettings},
    api::{ModeSettings, SessionBehavior},
    consul::Behavior,
    keeper::{AcquireSettings, Payload, PodIdentity, SessionSettings, Stance, Wanted},
    names::{Key, NodeName, SessionName},
};

/// The node that sessions sit on outside of every known cluster.
const NODE: &str = "consul-lock-agent";

/// What to hold, and whom to tell of it.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// The key; `None`: the claim's.
    pub key: Option<Key>,
    /// The claim that says more than the flags.
    pub claim: Option<ClaimSettings>,
    /// What the holder is called.
    pub name: String,
    /// This machine's name.
    pub host: String,
    /// The pod that this runs in.
    pub pod: Option<PodSettings>,
    /// The cluster's name in Consul.
    pub cluster: Option<String>,
    /// The catalog node that sessions sit on; `None`: that of the cluster and the namespace.
    pub node: Option<NodeName>,
    /// How the lock is held, where no claim says otherwise.
    pub lock: LockSettings,
    /// From the first word to the work that it has to stop, to its end by force.
    pub grace: Duration,
    /// The file that says where the agent stands.
    pub file: Option<PathBuf>,
    /// What is run when a tenure begins.
    pub on_acquire: Option<String>,
    /// What is run when work has to stop.
    pub on_loss: Option<String>,
    /// The processes that are ended then.
    pub app: Option<AppSettings>,
}

/// A claim to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimSettings {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How often it is read.
    pub again: Duration,
}

/// A pod, as the downward API tells it of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSettings {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// What there is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Contend for a key.
    Contend(Box<Wanted>, Option<Duration>),
    /// Nothing, for this reason.
    StandBy(String),
    /// Nothing is known yet; what stands in the way.
    Starting(Option<String>),
    /// It cannot be done.
    Refuse(String),
}

impl AgentSettings {
    /// What there is to do for this claim, if one was asked for.
    pub(super) fn request(&self, claim: Option<&Claim>) -> Request {
        match (claim, &self.key) {
            (None, Some(key)) | (Some(Claim::Unread(Some(_))), Some(key)) => {
                let lock = &self.lock;
                let acquire = AcquireSettings::default();
                Request::Contend(Box::new(self.wanted(key, lock, acquire, 1)), lock.max_hold)
            }
            (Some(Claim::Unread(why)), _) => Request::Starting(why.clone()),
            (Some(Claim::Missing), _) => {
                Request::StandBy(format!("there is no claim {}", self.holder()))
            }
            (Some(Claim::Read(spec)), _) => self.as_claimed(spec),
            (None, None) => Request::Refuse("there is neither a claim nor a key".to_owned()),
        }
    }

    fn as_claimed(&self, spec: &Spec) -> Request {
        let settings = &spec.settings;
        if settings.mode == ModeSettings::Managed {
            return Request::Refuse(format!(
                "the claim {} has spec.mode: Managed, so the controller holds its key; an agent is \
                 for spec.mode: Agent",
                self.holder()
            ));
        }
        if settings.paused {
            return Request::StandBy("the claim is paused".to_owned());
        }
        let named = settings.key.clone().map(Ok);
        let worked_out = || spec.status_key.as_deref().map(Key::new);
        let key = match named.or_else(worked_out).transpose() {
            Ok(key) => key,
            Err(error) => return Request::Refuse(format!("the claim's key: {error}")),
        };
        let key = match (key, &self.key) {
            (Some(key), Some(ours)) if *ours != key => {
                return Request::Refuse(format!(
                    "--key {ours}: the claim {} is for the key {key}; give that, or no key",
                    self.holder()
                ));
            }
            (Some(key), _) => key,
            (None, Some(ours)) => ours.clone(),
            // A default of ours might be another lock than the controller's.
            (None, None) => {
                return Request::Starting(Some(format!(
                    "the claim {} has no spec.key, and no controller has worked one out yet \
                     (status.key); --key would name one",
                    self.holder()
                )));
            }
        };
        let session = &settings.session;
        let lock = LockSettings {
            ttl: session.ttl,
            lock_delay: session.lock_delay,
            behavior: match session.behavior {
                SessionBehavior::Release => Behavior::Release,
                SessionBehavior::Delete => Behavior::Delete,
            },
            node_checks: session.node_checks.clone(),
            service_checks: session.service_checks.clone(),
            value: settings.value.clone(),
            max_hold: settings.acquire.max_hold,
        };
        let acquire = AcquireSettings {
            timeout: settings.acquire.timeout,
            try_once: settings.acquire.try_once,
            max_hold: None,
            give_way: None,
            single: false,
        };
        let wanted = self.wanted(&key, &lock, acquire, spec.generation);
        Request::Contend(Box::new(wanted), lock.max_hold)
    }

    fn wanted(
        &self,
        key: &Key,
        lock: &LockSettings,
        acquire: AcquireSettings,
        attempt: i64,
    ) -> Wanted {
        Wanted {
            key: key.clone(),
            prefix: key.as_str().into(),
            session: SessionSettings {
                name: self.session_name(key),
                node: self.node(),
                ttl: lock.ttl,
                lock_delay: lock.lock_delay,
                behavior: lock.behavior,
                node_checks: lock.node_checks.clone(),
                service_checks: lock.service_checks.clone(),
                lent: None,
                notice: Notice::fitting(lock.ttl, self.grace).length(),
            },
            // `maxHold` is ours to see to: the work has to be stopped before.
            acquire,
            payload: Payload {
                holder: self.holder(),
                cluster: self.cluster.clone().unwrap_or_default(),
                value: lock.value.clone(),
                pod: self.pod.as_ref().map(|pod| PodIdentity {
                    name: pod.name.as_str().into(),
                    uid: pod.uid.as_str().into(),
                }),
            },
            stance: Stance::FOR_ITSELF,
            record: None,
            attempt,
        }
    }

    /// A pod's is derived, so that an agent that was started again finds what the last one left: its
    /// UID is no other pod's anywhere. Outside of pods every contender has one of its own, for
    /// keepers adopt what they find under theirs.
    fn session_name(&self, key: &Key) -> SessionName {
        let name = match &self.pod {
            Some(pod) => format!("consul-lock/pod/{}/{key}", pod.uid),
            None => format!("consul-lock/{}/{:016x}", self.holder(), rand::random::<u64>()),
        };
        SessionName::new(name)
    }

    fn node(&self) -> NodeName {
        let derived = self.cluster.as_ref().zip(self.namespace()).map(|(cluster, namespace)| {
            NodeName::new(format!("consul-lock-{cluster}-{namespace}"))
        });
        self.node.clone().or(derived).unwrap_or_else(|| NodeName::new(Arc::from(NODE)))
    }

    fn namespace(&self) -> Option<&str> {
        let claims = self.claim.as_ref().map(|claim| claim.namespace.as_str());
        claims.or(self.pod.as_ref().map(|pod| pod.namespace.as_str()))
    }

    /// As it is written into the key.
    fn holder(&self) -> String {
        match (&self.claim, &self.pod) {
            (Some(claim), _) => format!("{}/{}", claim.namespace, claim.name),
            (None, Some(pod)) => format!("{}/{}", pod.namespace, self.name),
            (None, None) => format!("{}/{}", self.host, self.name),
        }
    }

    /// What we are called when we hold the key.
    pub(super) fn me(&self) -> String {
        let pod = self.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
        pod.unwrap_or_else(|| self.holder())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::{ConsulLockSpec, Mode};

    pub(in crate::agent::sidecar) fn settings() -> AgentSettings {
        AgentSettings {
            key: None,
            claim: Some(ClaimSettings {
                namespace: "shop".to_owned(),
                name: "billing".to_owned(),
                again: Duration::from_secs(15),
            }),
            name: "billing".to_owned(),
            host: "vm-17".to_owned(),
            pod: Some(PodSettings {
                namespace: "shop".to_owned(),
                name: "billing-1".to_owned(),
                uid: "0f2a".to_owned(),
            }),
            cluster: Some("eu-1".to_owned()),
            node: None,
            lock: LockSettings {
                ttl: Duration::from_secs(15),
                lock_delay: Duration::from_secs(15),
                behavior: Behavior::Release,
                node_checks: Vec::new(),
                service_checks: Vec::new(),
                value: "flags'".to_owned(),
                max_hold: None,
            },
            grace: Duration::from_secs(5),
            file: None,
            on_acquire: None,
            on_loss: None,
            app: None,
        }
    }

    fn read(spec: &str) -> Claim {
        let mut spec: ConsulLockSpec = serde_json::from_str(spec).unwrap();
        if spec.mode == Mode::Agent {
            let selector = r#"{"selector":{"matchLabels":{"app":"billing"}}}"#;
            spec.candidates = Some(serde_json::from_str(selector).unwrap());
        }
        let settings = spec.settings().unwrap();
        let status_key = Some("consul-lock/shop/billing".to_owned());
        Claim::Read(Box::new(Spec { settings, status_key, generation: 7 }))
    }

    const AGENTS: &str = r#"{"mode":"Agent"}"#;

    #[test]
    fn claim_that_the_controller_holds_is_refused() {
        let why = refusal(settings().request(Some(&read("{}"))));
        assert!(why.contains("shop/billing") && why.contains("spec.mode: Agent"), "{why}");
    }

    fn contends(request: Request) -> Wanted {
        match request {
            Request::Contend(wanted, _) => *wanted,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(request: Request) -> String {
        match request {
            Request::Refuse(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn claim_says_what_is_wanted_and_the_pod_who_wants_it() {
        let claim = r#"{"mode":"Agent","session":{"ttl":"20s","lockDelay":"1s","behavior":"Delete"},
            "value":"claim's","acquire":{"timeout":"5s","maxHold":"1h"}}"#;
        let Request::Contend(wanted, max_hold) = settings().request(Some(&read(claim))) else {
            panic!("it does not contend")
        };
        assert_eq!(max_hold, Some(Duration::from_secs(3600)));
        assert_eq!(wanted.key.as_str(), "consul-lock/shop/billing");
        assert_eq!(wanted.session.node.as_str(), "consul-lock-eu-1-shop");
        assert_eq!(wanted.session.name.as_str(), "consul-lock/pod/0f2a/consul-lock/shop/billing");
        assert_eq!(wanted.session.ttl, Duration::from_secs(20));
        let notice = Duration::from_secs(5 + 1);
        assert_eq!(wanted.session.notice, notice, "grace and margin: renewals go out sooner");
        assert_eq!(wanted.session.behavior, Behavior::Delete);
        assert_eq!((wanted.payload.holder.as_str(), wanted.attempt), ("shop/billing", 7));
        assert_eq!(wanted.payload.value, "claim's");
        assert_eq!(wanted.acquire.timeout, Some(Duration::from_secs(5)));
        assert_eq!(wanted.acquire.max_hold, None, "the work has to be stopped before");
        assert_eq!(settings().me(), "shop/billing-1");
    }

    #[test]
    fn key_is_the_specs_then_the_statuss_then_the_flags_and_never_a_guess() {
        let spec = read(r#"{"mode":"Agent","key":"shared/billing"}"#);
        assert_eq!(contends(settings().request(Some(&spec))).key.as_str(), "shared/billing");
        let Claim::Read(mut spec) = read(AGENTS) else { panic!() };
        spec.status_key = Some("locks/shop/billing".to_owned());
        let spec = Claim::Read(spec);
        assert_eq!(contends(settings().request(Some(&spec))).key.as_str(), "locks/shop/billing");
        let other = AgentSettings { key: Some(Key::new("other").unwrap()), ..settings() };
        let why = refusal(other.request(Some(&spec)));
        assert!(why.contains("--key other") && why.contains("locks/shop/billing"), "{why}");
        let Claim::Read(mut spec) = spec else { panic!() };
        spec.status_key = None;
        let spec = Claim::Read(spec);
        assert_eq!(contends(other.request(Some(&spec))).key.as_str(), "other");
        let Request::Starting(Some(why)) = settings().request(Some(&spec)) else { panic!() };
        assert!(why.contains("status.key") && why.contains("--key"), "{why}");
    }

    #[test]
    fn claim_that_cannot_be_read_leaves_the_key_unknown_unless_a_flag_tells_it() {
        let unread = Claim::Unread(Some("forbidden".to_owned()));
        let request = settings().request(Some(&unread));
        assert_eq!(request, Request::Starting(Some("forbidden".to_owned())));
        let told = AgentSettings { key: Some(Key::new("k").unwrap()), ..settings() };
        let wanted = contends(told.request(Some(&unread)));
        assert_eq!((wanted.key.as_str(), wanted.payload.value.as_str()), ("k", "flags'"));
        let unasked = told.request(Some(&Claim::Unread(None)));
        assert_eq!(unasked, Request::Starting(None), "it may say something else in a moment");
    }

    #[test]
    fn paused_and_missing_claims_are_not_contended_for() {
        for claim in [read(r#"{"mode":"Agent","paused":true}"#), Claim::Missing] {
            assert!(matches!(settings().request(Some(&claim)), Request::StandBy(_)), "{claim:?}");
        }
    }

    #[test]
    fn outside_of_pods_every_contender_has_a_session_name_of_its_own() {
        let alone = AgentSettings {
            key: Some(Key::new("k").unwrap()),
            claim: None,
            pod: None,
            cluster: None,
            ..settings()
        };
        let (one, other) = (contends(alone.request(None)), contends(alone.request(None)));
        assert_ne!(one.session.name, other.session.name);
        assert_eq!(one.payload.holder, "vm-17/billing");
        assert_eq!(one.session.node.as_str(), NODE);
        let named = AgentSettings { node: Some(NodeName::new("vms")), ..alone };
        assert_eq!(contends(named.request(None)).session.node.as_str(), "vms");
    }
}
