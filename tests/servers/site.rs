//! A site: a namespace of its own on the shared control plane, a cluster name and a key prefix of
//! its own in a Consul, and replicas of the controller that look after this namespace alone. Sites
//! do not disturb one another, so tests run side by side.

use std::{fmt::Debug, path::PathBuf, time::Duration};

use consul_lock::{
    api::{ConsulLock, ConsulLockStatus, KEY_PREFIXES_ANNOTATION, Phase},
    clock::Clock,
    consul::{
        Consistency, Consul, KvPair, SessionInfo,
        http::{HttpConfig, HttpConsul, Token, TokenSource},
    },
    names::{Key, NodeName, SessionId},
};
use k8s_openapi::api::{core::v1::Namespace, events::v1::Event};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use testbed::{ControlPlane, Folder, Port, Server};

use crate::fixtures::{
    Lab, PATIENCE, claims_client, client_by, control_plane, create_namespace, install_crd,
    shared_consul, unique,
};
use crate::rights;

/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// A namespace with its Consul and its controllers.
pub(crate) struct Site {
    pub(crate) namespace: String,
    pub(crate) client: Client,
    pub(crate) claims: Api<ConsulLock>,
    pub(crate) consul: HttpConsul,
    kubeconfig: PathBuf,
    consul_address: String,
    consul_token: Option<String>,
    clock: Clock,
}

/// How a site's controllers reach the API server, and as whom.
pub(crate) enum Way {
    /// As the service account of a release of the chart, with the rights that this grants.
    Straight,
    /// The same by a port of 127.0.0.1: a proxy.
    Through(u16),
    /// By this kubeconfig file.
    By(PathBuf),
}

/// A tenure with everything that renewals and adoption leave as it is, and nothing else does.
#[derive(Debug, PartialEq)]
pub(crate) struct Tenure {
    claim: String,
    pub(crate) token: u64,
    session: Option<String>,
    transitions: i64,
    /// The session that holds the key, as Consul has it.
    held_by: Option<SessionId>,
}

/// Somebody of whom the controllers know nothing, and who holds a key.
pub(crate) struct Stranger {
    lab: Lab<HttpConsul>,
    key: Key,
    session: SessionId,
}

/// One replica of the controller.
pub(crate) struct Replica {
    pub(crate) server: Server,
    admin: Port,
    folder: Folder,
}

impl Site {
    /// A site on the shared Consul.
    pub(crate) async fn new(what: &str) -> Site {
        let consul = tokio::task::spawn_blocking(|| shared_consul().address()).await.unwrap();
        Site::on(what, &consul).await
    }

    /// A site whose controllers reach Consul at `consul`: a proxy, say.
    pub(crate) async fn on(what: &str, consul: &str) -> Site {
        Site::through(what, consul, None, Way::Straight).await
    }

    /// A site with a Consul token, and whose controllers reach the API server in another way.
    pub(crate) async fn through(what: &str, consul: &str, token: Option<&str>, way: Way) -> Site {
        let client = claims_client().await;
        Site::build(unique(what), client, (control_plane(), way), consul, token).await
    }

    /// A site on a control plane of its own, which may be broken, and on the shared Consul.
    pub(crate) async fn beside(what: &str, cluster: &ControlPlane) -> Site {
        let client = client_by(cluster.kubeconfig()).await;
        install_crd(&client).await;
        Site::anew(unique(what), cluster).await
    }

    /// The namespace of another site, built anew on a control plane where ConsulLocks are known.
    pub(crate) async fn moved(&self, cluster: &ControlPlane) -> Site {
        Site::anew(self.namespace.clone(), cluster).await
    }

    async fn anew(namespace: String, cluster: &ControlPlane) -> Site {
        let client = client_by(cluster.kubeconfig()).await;
        let consul = tokio::task::spawn_blocking(|| shared_consul().address()).await.unwrap();
        Site::build(namespace, client, (cluster, Way::Straight), &consul, None).await
    }

    async fn build(
        namespace: String,
        client: Client,
        (cluster, way): (&ControlPlane, Way),
        consul: &str,
        token: Option<&str>,
    ) -> Site {
        create_namespace(&client, &namespace).await;
        let through = match &way {
            Way::Through(port) => Some(*port),
            Way::Straight | Way::By(_) => None,
        };
        let kubeconfig = match way {
            Way::By(kubeconfig) => kubeconfig,
            Way::Straight | Way::Through(_) => {
                rights::grant(&client, &namespace, &namespace).await;
                cluster.kubeconfig_of_release(&namespace, through).unwrap()
            }
        };
        let mut config = HttpConfig::new(consul);
        if let Some(token) = token {
            config.token = TokenSource::Value(Token::new(token).unwrap());
        }
        Site {
            claims: Api::namespaced(client.clone(), &namespace),
            client,
            consul: HttpConsul::new(config).unwrap(),
            kubeconfig,
            consul_address: consul.to_owned(),
            consul_token: token.map(str::to_owned),
            clock: Clock::boot(),
            namespace,
        }
    }

    /// The same site, but reached by its administrator at another Consul address than its
    /// controllers use: past a proxy that is about to misbehave.
    pub(crate) fn observed_at(mut self, consul: &str) -> Site {
        let mut config = HttpConfig::new(consul);
        if let Some(token) = &self.consul_token {
            config.token = TokenSource::Value(Token::new(token).unwrap());
        }
        self.consul = HttpConsul::new(config).unwrap();
        self
    }

    /// A replica with short Lease times.
    pub(crate) async fn start(&self) -> Replica {
        let lease =
            ["--lease-duration=2s", "--lease-renew-deadline=1s", "--lease-retry-period=250ms"];
        self.start_with(&lease).await
    }

    /// A replica with these flags beside the site's own.
    pub(crate) async fn start_with(&self, flags: &[&str]) -> Replica {
        let (admin, folder) = (Port::reserve().unwrap(), Folder::new("controller").unwrap());
        let own = [
            format!("--lease-namespace={}", self.namespace),
            format!("--watch-namespaces={}", self.namespace),
            format!("--cluster-name={}", self.cluster()),
            format!("--key-prefix={}", self.cluster()),
        ];
        let name = |flag: &str| flag.split('=').next().map(str::to_owned);
        let own = own.into_iter().filter(|own| !flags.iter().any(|flag| name(flag) == name(own)));
        let log = flags.iter().find(|flag| flag.starts_with("--log="));
        let log = log.is_none().then(|| "--log=info,consul_lock=debug".to_owned());
        let flags = own.chain(log).chain(flags.iter().map(ToString::to_string));
        let program = env!("CARGO_BIN_EXE_consul-lock");
        let mut recipe =
            testbed::replica(program, &self.kubeconfig, admin.address(), &folder, flags);
        recipe.env.push(("CONSUL_HTTP_ADDR".to_owned(), self.consul_address.clone()));
        if let Some(token) = &self.consul_token {
            recipe.env.push(("CONSUL_HTTP_TOKEN".to_owned(), token.clone()));
        }
        let server = Server::prepare(recipe, || Ok(()));
        server.launch().unwrap();
        Replica { server, admin, folder }
    }

    /// The cluster's name, and the first part of its keys.
    pub(crate) fn cluster(&self) -> &str {
        &self.namespace
    }

    /// The default key of a claim.
    pub(crate) fn key(&self, claim: &str) -> Key {
        Key::new(&format!("{}/{}/{claim}", self.cluster(), self.namespace)).unwrap()
    }

    /// Lets this site's claims use the keys of another's.
    pub(crate) async fn share_keys_of(&self, other: &Site) {
        self.allow_keys(&format!("{}/{}/", other.cluster(), other.namespace)).await;
    }

    /// Lets this site's claims use keys that begin so: a comma list.
    pub(crate) async fn allow_keys(&self, prefixes: &str) {
        let annotations = json!({ KEY_PREFIXES_ANNOTATION: prefixes });
        let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
        let namespaces = Api::<Namespace>::all(self.client.clone());
        namespaces.patch(&self.namespace, &PatchParams::default(), &patch).await.unwrap();
    }

    pub(crate) async fn create(&self, name: &str, spec: Value) -> ConsulLock {
        self.claims.create(&PostParams::default(), &claim(name, spec)).await.unwrap()
    }

    /// Merges `spec` into the claim's.
    pub(crate) async fn change(&self, name: &str, spec: Value) -> ConsulLock {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.claims.patch(name, &PatchParams::default(), &patch).await.unwrap()
    }

    pub(crate) async fn delete(&self, name: &str) {
        self.claims.delete(name, &DeleteParams::default()).await.unwrap();
    }

    pub(crate) async fn status(&self, name: &str) -> ConsulLockStatus {
        self.claims.get(name).await.unwrap().status.unwrap_or_default()
    }

    /// Looks at the claim's status until it is as wanted.
    pub(crate) async fn wait(
        &self,
        name: &str,
        what: &str,
        good: impl Fn(&ConsulLockStatus) -> bool,
    ) -> ConsulLockStatus {
        let look = || async {
            let status = self.status(name).await;
            if good(&status) { Ok(status) } else { Err(status) }
        };
        eventually(&format!("{name}: {what}"), look).await
    }

    pub(crate) async fn wait_phase(&self, name: &str, phase: Phase) -> ConsulLockStatus {
        let what = format!("phase {phase:?}");
        self.wait(name, &what, |status| status.phase == Some(phase)).await
    }

    /// Waits until the claim is held; its token.
    pub(crate) async fn held(&self, name: &str) -> u64 {
        token(&self.wait_phase(name, Phase::Held).await)
    }

    /// The tenures of claims that are held, in Consul and in their statuses.
    pub(crate) async fn tenures(&self, claims: &[&str]) -> Vec<Tenure> {
        let mut tenures = Vec::new();
        for claim in claims {
            let token = self.held(claim).await;
            let status = self.status(claim).await;
            tenures.push(Tenure {
                claim: (*claim).to_owned(),
                token,
                session: status.session.and_then(|session| session.id),
                transitions: status.transitions,
                held_by: self.pair(&self.key(claim)).await.and_then(|pair| pair.session),
            });
        }
        tenures
    }

    /// A stranger who takes the key, which must be free, and keeps it for a minute at most.
    pub(crate) async fn stranger(&self, key: Key) -> Stranger {
        let lab = Lab::on(self.consul.clone()).await;
        let session = lab.session().await;
        assert!(lab.acquire(&key, &session).await, "{key} is not free");
        Stranger { lab, key, session }
    }

    /// A stranger who waits for a claim's key to be free, and takes it then.
    pub(crate) async fn stranger_when_free(&self, claim: &str) -> Stranger {
        let free = || async {
            match self.pair(&self.key(claim)).await {
                Some(pair) if pair.session.is_some() => Err(pair),
                _ => Ok(()),
            }
        };
        eventually(&format!("the key of {claim} to be free"), free).await;
        self.stranger(self.key(claim)).await
    }

    /// Creates a claim, waits until it is held, deletes it and waits until it is gone.
    pub(crate) async fn serves_another_claim(&self) {
        let name = unique("another");
        self.create(&name, json!({})).await;
        self.held(&name).await;
        self.delete(&name).await;
        self.gone(&name).await;
        let free = |pair: KvPair| pair.session.is_none();
        assert!(self.pair(&self.key(&name)).await.is_none_or(free), "{name} was left locked");
    }

    /// Waits until the claim is gone.
    pub(crate) async fn gone(&self, name: &str) {
        let look = || async {
            match self.claims.get_opt(name).await.unwrap() {
                None => Ok(()),
                Some(claim) => Err(claim.metadata),
            }
        };
        eventually(&format!("{name} to be gone"), look).await;
    }

    /// The reasons of the events about the claim, oldest first.
    pub(crate) async fn events(&self, name: &str) -> Vec<String> {
        let events = Api::<Event>::namespaced(self.client.clone(), &self.namespace);
        let mut events = events.list(&ListParams::default()).await.unwrap().items;
        events.retain(|event| {
            event.regarding.as_ref().and_then(|regarding| regarding.name.as_deref()) == Some(name)
        });
        events.sort_by_key(|event| event.event_time.as_ref().map(|time| time.0));
        events.into_iter().filter_map(|event| event.reason).collect()
    }

    /// Waits for an event about the claim.
    pub(crate) async fn event(&self, name: &str, reason: &str) {
        let look = || async {
            let reasons = self.events(name).await;
            if reasons.iter().any(|known| known == reason) { Ok(()) } else { Err(reasons) }
        };
        eventually(&format!("{name}: an event {reason}"), look).await;
    }

    /// The sessions of this site's claims.
    pub(crate) async fn sessions(&self) -> Vec<SessionInfo> {
        let node = NodeName::new(format!("consul-lock-{}-{}", self.cluster(), self.namespace));
        self.consul.node_sessions(&node).await.unwrap()
    }

    /// The key as Consul has it.
    pub(crate) async fn pair(&self, key: &Key) -> Option<KvPair> {
        self.consul.get(key, Consistency::Consistent).await.unwrap().pair
    }

    /// Waits until nothing of this site is left in Consul.
    pub(crate) async fn no_sessions(&self) {
        let look = || async {
            let sessions = self.sessions().await;
            if sessions.is_empty() { Ok(()) } else { Err(sessions) }
        };
        eventually("no session to be left", look).await;
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl Stranger {
    /// Whether the key is still the stranger's.
    pub(crate) async fn holds(&self) -> bool {
        let pair = self.lab.read(&self.key).await;
        pair.and_then(|pair| pair.session) == Some(self.session.clone())
    }

    /// Gives the key up, which must still be the stranger's.
    pub(crate) async fn leave(self) {
        assert!(self.lab.release(&self.key, &self.session).await, "{} was taken", self.key);
        self.lab.consul.destroy_session(&self.session).await.unwrap();
    }
}

impl Replica {
    /// Where its metrics are.
    pub(crate) fn admin_address(&self) -> std::net::SocketAddr {
        self.admin.address()
    }

    /// Its folder, which goes when it does.
    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// What the admin port says on `path`, if it answers.
    pub(crate) fn get(&self, path: &str) -> Option<testbed::Reply> {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], self.admin.number()));
        testbed::request(address, "GET", path, &[], b"").ok()
    }

    pub(crate) fn leads(&self) -> bool {
        self.metric("consul_lock_leader") == Some(1.0)
    }

    /// The value of a metric, by its name with its labels.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let text = self.get("/metrics")?.text();
        let line = text
            .lines()
            .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    pub(crate) async fn wait_ready(&self) {
        let look = || async {
            match self.get("/readyz") {
                Some(reply) if reply.status == 200 => Ok(()),
                other => Err(other.map(|reply| reply.text())),
            }
        };
        eventually("the controller to be ready", look).await;
    }

    pub(crate) async fn wait_leads(&self) {
        let look = || async { if self.leads() { Ok(()) } else { Err("standby") } };
        eventually("the replica to lead", look).await;
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("controller.log")).unwrap()
    }
}

/// A claim, not yet created.
pub(crate) fn claim(name: &str, spec: Value) -> ConsulLock {
    serde_json::from_value(json!({
        "apiVersion": "consullock.dev/v1alpha1",
        "kind": "ConsulLock",
        "metadata": { "name": name },
        "spec": spec,
    }))
    .unwrap()
}

/// The status's token; it must have one.
#[track_caller]
pub(crate) fn token(status: &ConsulLockStatus) -> u64 {
    status.fencing_token.as_ref().unwrap().parse().unwrap()
}

/// The status, reason and message of a condition.
pub(crate) fn condition(status: &ConsulLockStatus, type_: &str) -> (String, String, String) {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_);
    found.map_or_else(Default::default, |condition| {
        (condition.status.clone(), condition.reason.clone(), condition.message.clone())
    })
}

/// Looks until `look` is content; panics with what it said last when patience ends.
pub(crate) async fn eventually<T, E: Debug, F>(what: &str, look: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
{
    let clock = Clock::boot();
    let deadline = clock.now() + PATIENCE;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(last) if clock.now() >= deadline => {
                panic!("waited {PATIENCE:?} for {what}; last: {last:#?}")
            }
            Err(_) => clock.sleep_until(clock.now() + GLANCE).await,
        }
    }
}
