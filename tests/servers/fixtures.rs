//! What the tests share: servers that are started once, names that nobody else uses, time.

use std::{
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use consul_lock::{
    api::ConsulLock,
    clock::{Clock, Instant},
    consul::{
        Behavior, Consistency, Consul, KvPair, PutMode, Refusal, SessionRequest, Txn, TxnOp,
        fake::FakeConsul,
        http::{HttpConfig, HttpConsul},
    },
    names::{Key, NodeName, SessionId, SessionName},
};
use k8s_openapi::{
    api::core::v1::Namespace,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use testbed::ControlPlane;

/// What every test that waits for something in the world gives it, at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The flags that mark a lock's key for Consul's own clients.
pub(crate) const LOCK_FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;

/// A Consul without ACLs for whoever keeps to names of his own. `session_ttl_min` is 1 s.
pub(crate) fn shared_consul() -> &'static testbed::Consul {
    static CONSUL: OnceLock<testbed::Consul> = OnceLock::new();
    CONSUL.get_or_init(|| testbed::Consul::start(testbed::ConsulConfig::default()).unwrap())
}

/// A Consul that denies by default; see [`testbed::Consul::token`].
pub(crate) fn guarded_consul() -> &'static testbed::Consul {
    static CONSUL: OnceLock<testbed::Consul> = OnceLock::new();
    let config = testbed::ConsulConfig { acl: true, ..Default::default() };
    CONSUL.get_or_init(|| testbed::Consul::start(config).unwrap())
}

/// A client with the usual settings.
pub(crate) fn client_of(consul: &testbed::Consul) -> HttpConsul {
    HttpConsul::new(HttpConfig::new(consul.address())).unwrap()
}

/// A name that no other test of this process has.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A Consul to try something on, with a registered node and a key prefix of one's own.
pub(crate) struct Lab<C> {
    pub(crate) consul: C,
    pub(crate) node: NodeName,
    /// Ends in `/`.
    pub(crate) prefix: String,
    pub(crate) clock: Clock,
}

impl Lab<HttpConsul> {
    pub(crate) async fn real() -> Lab<HttpConsul> {
        Lab::on(client_of(shared_consul())).await
    }
}

impl Lab<FakeConsul> {
    pub(crate) async fn fake() -> Lab<FakeConsul> {
        let consul = FakeConsul::new(Clock::boot());
        consul.set_session_ttl_min(Duration::from_secs(1));
        Lab::on(consul).await
    }
}

impl<C: Consul> Lab<C> {
    pub(crate) async fn on(consul: C) -> Lab<C> {
        let node = NodeName::new(unique("virtual"));
        consul.register_node(&node).await.unwrap();
        let (prefix, clock) = (format!("{}/", unique("lab")), Clock::boot());
        Lab { consul, node, prefix, clock }
    }

    pub(crate) fn key(&self, name: &str) -> Key {
        Key::new(&format!("{}{name}", self.prefix)).unwrap()
    }

    /// Everything a session needs; no lock-delay, and time enough for any test.
    pub(crate) fn request(&self) -> SessionRequest {
        SessionRequest {
            name: SessionName::new(unique("session")),
            node: self.node.clone(),
            ttl: Duration::from_secs(60),
            lock_delay: Duration::ZERO,
            behavior: Behavior::Release,
            node_checks: Vec::new(),
            service_checks: Vec::new(),
        }
    }

    pub(crate) async fn session(&self) -> SessionId {
        self.consul.create_session(&self.request()).await.unwrap()
    }

    pub(crate) async fn session_with_delay(&self, lock_delay: Duration) -> SessionId {
        let request = SessionRequest { lock_delay, ..self.request() };
        self.consul.create_session(&request).await.unwrap()
    }

    pub(crate) async fn read(&self, key: &Key) -> Option<KvPair> {
        self.consul.get(key, Consistency::Consistent).await.unwrap().pair
    }

    /// Locks in one transaction, as the keepers do.
    pub(crate) async fn lock(&self, key: &Key, session: &SessionId) -> Result<KvPair, Refusal> {
        self.try_all(&[lock(key, session)]).await.map(|mut pairs| pairs.remove(0))
    }

    /// A transaction's entries, or its first refusal.
    pub(crate) async fn try_all(&self, steps: &[TxnOp]) -> Result<Vec<KvPair>, Refusal> {
        match self.consul.transaction(steps).await.unwrap() {
            Txn::Committed(pairs) => Ok(pairs),
            Txn::RolledBack(mut refused) => Err(refused.remove(0).reason),
        }
    }

    pub(crate) async fn release(&self, key: &Key, session: &SessionId) -> bool {
        let mode = PutMode::Release(session.clone());
        self.consul.put(key, b"", Some(LOCK_FLAGS), mode).await.unwrap()
    }

    pub(crate) async fn acquire(&self, key: &Key, session: &SessionId) -> bool {
        let mode = PutMode::Acquire(session.clone());
        self.consul.put(key, b"held", Some(LOCK_FLAGS), mode).await.unwrap()
    }

    /// The present, to measure from.
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    pub(crate) fn since(&self, begin: Instant) -> Duration {
        self.clock.now().since(begin)
    }

    /// Tries to lock until it works; how long that took since `begin`.
    pub(crate) async fn lock_when_free(
        &self,
        key: &Key,
        session: &SessionId,
        begin: Instant,
    ) -> Duration {
        while self.lock(key, session).await.is_err() {
            assert!(self.since(begin) < PATIENCE, "{key} never became free");
            self.clock.sleep_until(self.now() + Duration::from_millis(10)).await;
        }
        self.since(begin)
    }
}

pub(crate) fn lock(key: &Key, session: &SessionId) -> TxnOp {
    let (key, session) = (key.clone(), session.clone());
    TxnOp::Lock { key, session, value: b"held".to_vec(), flags: LOCK_FLAGS }
}

pub(crate) fn unlock(key: &Key, session: &SessionId) -> TxnOp {
    let (key, session) = (key.clone(), session.clone());
    TxnOp::Unlock { key, session, value: Vec::new(), flags: LOCK_FLAGS }
}

/// The control plane of whoever keeps to namespaces of his own. Ends with this process.
pub(crate) fn control_plane() -> &'static ControlPlane {
    static CLUSTER: OnceLock<ControlPlane> = OnceLock::new();
    CLUSTER.get_or_init(|| ControlPlane::start().unwrap())
}

/// An administrator of the shared control plane.
pub(crate) async fn kube_client() -> Client {
    let cluster = tokio::task::spawn_blocking(control_plane).await.unwrap();
    client_by(cluster.kubeconfig()).await
}

/// Whom a kubeconfig file makes one. A call is sent once and no more.
pub(crate) async fn client_by(kubeconfig: &Path) -> Client {
    consul_lock::consul::http::ensure_tls_provider();
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config =
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

pub(crate) async fn create_namespace(client: &Client, name: &str) {
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.into());
    let _ = Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await;
}

/// An administrator of the shared control plane, where ConsulLocks are known.
pub(crate) async fn claims_client() -> Client {
    static INSTALLED: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    let client = kube_client().await;
    INSTALLED.get_or_init(|| install_crd(&client)).await;
    client
}

/// Makes ConsulLocks known to a control plane that has not heard of them.
pub(crate) async fn install_crd(client: &Client) {
    let definition: CustomResourceDefinition =
        serde_saphyr::from_str(&consul_lock::api::crd_yaml()).unwrap();
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    api.create(&PostParams::default(), &definition).await.unwrap();
    let (claims, clock) = (Api::<ConsulLock>::all(client.clone()), Clock::boot());
    let begin = clock.now();
    while let Err(error) = claims.list(&ListParams::default()).await {
        assert!(clock.now().since(begin) < PATIENCE, "ConsulLocks stay unknown: {error}");
        clock.sleep_until(clock.now() + Duration::from_millis(20)).await;
    }
}
