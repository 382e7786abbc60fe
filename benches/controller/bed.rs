//! The servers, the clients, and the controller's process.

use std::time::Duration;

use consul_lock::{
    api::{ConsulLock, FINALIZER},
    clock::Clock,
    consul::http::{HttpConfig, HttpConsul},
};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::{
    api::core::v1::Namespace,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use testbed::{ControlPlane, Folder, Port, Server};

use crate::{Failure, Outcome, process, prometheus::Scrape};

/// The namespace that the controller looks after.
pub(crate) const OURS: &str = "bench";
/// The namespace of the floor, which nobody looks after.
pub(crate) const FLOOR: &str = "floor";
/// What our keys begin with, and the cluster's name in Consul.
pub(crate) const CLUSTER: &str = "bench";
/// Writes to the Kubernetes API that are under way at once, as in the controller.
pub(crate) const WRITES: usize = 32;

/// What anything in the world gets, at most.
const PATIENCE: Duration = Duration::from_secs(180);

/// The servers. Both forget everything when they end, and neither waits for a disk, so that the
/// controller is measured and not the disk.
pub(crate) struct Bed {
    pub(crate) consul: testbed::Consul,
    pub(crate) cluster: ControlPlane,
}

impl Bed {
    pub(crate) fn start() -> Outcome<Bed> {
        let consul = testbed::Consul::start(testbed::ConsulConfig::default())?;
        Ok(Bed { consul, cluster: ControlPlane::start()? })
    }

    /// An administrator with connections of its own.
    pub(crate) async fn kube(&self) -> Outcome<Client> {
        let file = Kubeconfig::read_from(self.cluster.kubeconfig())?;
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(file, &options).await?;
        config.default_retry = false;
        Ok(Client::try_from(config)?)
    }

    /// A Consul client with connections of its own, and the controller's settings.
    pub(crate) fn consul_client(&self) -> Outcome<HttpConsul> {
        Ok(HttpConsul::new(HttpConfig::new(self.consul.address()))?)
    }

    /// What all of this runs on.
    pub(crate) async fn machine(&self) -> Outcome<String> {
        let kubernetes = self.kube().await?.apiserver_version().await?.git_version;
        let agent = self.consul.request("GET", "/v1/agent/self", b"")?.json();
        let consul = agent["Config"]["Version"].as_str().unwrap_or("?").to_owned();
        let built = if cfg!(debug_assertions) { "a debug build" } else { "a release build" };
        Ok(format!(
            "{}; kube-apiserver {kubernetes} (etcd without fsync), Consul {consul} (in memory), \
             controller {} ({built}), all on this machine",
            process::machine(),
            env!("CARGO_PKG_VERSION"),
        ))
    }
}

/// Who measures: an administrator with warm connections.
pub(crate) struct Field {
    pub(crate) clock: Clock,
    pub(crate) client: Client,
    pub(crate) consul: HttpConsul,
    pub(crate) ours: Api<ConsulLock>,
    pub(crate) floor: Api<ConsulLock>,
    /// The floor's second client: the part that the controller has in the real thing.
    pub(crate) floor_writer: Api<ConsulLock>,
}

impl Field {
    /// Installs the definition and makes the namespaces.
    pub(crate) async fn prepare(bed: &Bed) -> Outcome<Field> {
        let client = bed.kube().await?;
        let definition: CustomResourceDefinition =
            serde_saphyr::from_str(&consul_lock::api::crd_yaml())
                .map_err(|error| Failure::Odd(format!("the definition: {error}")))?;
        Api::all(client.clone()).create(&PostParams::default(), &definition).await?;
        for name in [OURS, FLOOR] {
            let mut namespace = Namespace::default();
            namespace.metadata.name = Some(name.to_owned());
            Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        }
        let field = Field {
            clock: Clock::boot(),
            consul: bed.consul_client()?,
            ours: Api::namespaced(client.clone(), OURS),
            floor: Api::namespaced(client.clone(), FLOOR),
            floor_writer: Api::namespaced(bed.kube().await?, FLOOR),
            client,
        };
        let known = async || field.ours.list(&ListParams::default()).await.is_ok().then_some(());
        field.wait("ConsulLocks to be known", known).await?;
        Ok(field)
    }

    /// Looks until there is something to see.
    pub(crate) async fn wait<T>(
        &self,
        what: &str,
        look: impl AsyncFn() -> Option<T>,
    ) -> Outcome<T> {
        let deadline = self.clock.now() + PATIENCE;
        loop {
            match look().await {
                Some(found) => return Ok(found),
                None if self.clock.now() >= deadline => return Err(Failure::InVain(what.into())),
                None => self.pause(Duration::from_millis(100)).await,
            }
        }
    }

    pub(crate) async fn pause(&self, span: Duration) {
        self.clock.sleep_until(self.clock.now() + span).await;
    }

    /// The API server's count of requests.
    pub(crate) async fn api_requests(&self) -> Outcome<Scrape> {
        let request = http::Request::get("/metrics").body(Vec::new());
        let request = request.map_err(|error| Failure::Odd(error.to_string()))?;
        Ok(Scrape::new(self.client.request_text(request).await?))
    }

    /// Waits until nobody writes claims or events any more.
    pub(crate) async fn quiet(&self) -> Outcome<()> {
        let mut before = None;
        let mut quiet_since = self.clock.now();
        let deadline = self.clock.now() + PATIENCE;
        while self.clock.now().since(quiet_since) < Duration::from_secs(5) {
            let scrape = self.api_requests().await?;
            let now = ["consullocks", "events"].map(|resource| scrape.writes(resource));
            if before != Some(now) {
                (before, quiet_since) = (Some(now), self.clock.now());
            }
            if self.clock.now() >= deadline {
                return Err(Failure::InVain("the API server to be left alone".into()));
            }
            self.pause(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// Deletes every claim, ours and the floor's, and waits until they are gone.
    pub(crate) async fn clear(&self) -> Outcome<()> {
        self.clear_floor().await?;
        self.ours.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        gone(self, &self.ours).await
    }

    /// Deletes the floor's claims.
    pub(crate) async fn clear_floor(&self) -> Outcome<()> {
        let bare = Patch::Merge(json!({"metadata": {"finalizers": []}}));
        let claims = self.floor.list(&ListParams::default()).await?.items;
        let free = async |claim: ConsulLock| {
            let name = claim.metadata.name.unwrap_or_default();
            self.floor.patch(&name, &PatchParams::default(), &bare).await.map(drop)
        };
        let freed = stream::iter(claims).map(free).buffer_unordered(WRITES);
        freed.try_collect::<Vec<()>>().await?;
        self.floor.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        gone(self, &self.floor).await
    }
}

async fn gone(field: &Field, claims: &Api<ConsulLock>) -> Outcome<()> {
    let none = async || {
        let left = claims.list(&ListParams::default().limit(1)).await.ok()?;
        left.items.is_empty().then_some(())
    };
    field.wait("the claims to be gone", none).await
}

/// A claim with nothing but defaults, as somebody applies it.
pub(crate) fn claim(name: &str) -> ConsulLock {
    ConsulLock::new(name, Default::default())
}

/// A claim's finalizers once it is ours.
pub(crate) fn finalizers() -> Vec<String> {
    vec![FINALIZER.to_owned()]
}

/// The controller's process.
pub(crate) struct Replica {
    server: Server,
    admin: Port,
    _folder: Folder,
}

impl Replica {
    /// Starts one with its defaults and these flags; returns at once.
    pub(crate) fn start(bed: &Bed, flags: &[&str]) -> Outcome<Replica> {
        let (admin, folder) = (Port::reserve()?, Folder::new("controller")?);
        let own = [
            format!("--consul-http-addr={}", bed.consul.address()),
            format!("--lease-namespace={OURS}"),
            format!("--watch-namespaces={OURS}"),
            format!("--cluster-name={CLUSTER}"),
            format!("--key-prefix={CLUSTER}"),
        ];
        let flags = own.into_iter().chain(flags.iter().map(ToString::to_string));
        let program = env!("CARGO_BIN_EXE_consul-lock");
        let kubeconfig = bed.cluster.kubeconfig();
        let recipe = testbed::replica(program, kubeconfig, admin.address(), &folder, flags);
        let server = Server::prepare(recipe, || Ok(()));
        server.launch()?;
        Ok(Replica { server, admin, _folder: folder })
    }

    pub(crate) fn pid(&self) -> Outcome<u32> {
        self.server.pid().ok_or_else(|| Failure::Odd("the controller does not run".into()))
    }

    /// SIGKILL.
    pub(crate) fn kill(&self) -> Outcome<()> {
        Ok(tokio::task::block_in_place(|| self.server.kill())?)
    }

    /// Its metrics, if it answers.
    pub(crate) fn scrape(&self) -> Option<Scrape> {
        let ask = || testbed::request(self.admin.address(), "GET", "/metrics", &[], b"").ok();
        tokio::task::block_in_place(ask).map(|reply| Scrape::new(reply.text()))
    }

    pub(crate) fn leads(&self) -> bool {
        self.scrape().is_some_and(|scrape| scrape.sum("consul_lock_leader", &[]) == 1.0)
    }

    pub(crate) async fn wait_leads(&self) -> Outcome<()> {
        let clock = Clock::boot();
        let deadline = clock.now() + PATIENCE;
        while !self.leads() {
            if clock.now() >= deadline {
                return Err(Failure::InVain("the controller to lead".into()));
            }
            clock.sleep_until(clock.now() + Duration::from_millis(50)).await;
        }
        Ok(())
    }
}
