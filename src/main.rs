//! The binary: parse, run the subcommand, map the error to an exit code.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use consul_lock::{
    agent::{self, AgentError, Outcome, RunError, Surroundings},
    api,
    cli::{self, AgentConfig, ClusterName, ControllerConfig, Job, RunConfig},
    clock::Clock,
    consul::{
        Class, Consul,
        gated::Gated,
        http::{Certificates, HttpConfig, HttpConsul, ensure_tls_provider},
    },
    controller::{self, Controller},
    keeper::{Keepers, Vigil},
    kubectl::{self, KubectlError, KubectlSettings},
    replicas::{Ended, Replicas},
    telemetry::{
        Metrics,
        admin::{self, Admin, Alive, Part, Ready},
        logs,
    },
};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, config::KubeConfigOptions};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::Mutex,
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// All parts together may take this long to stop; pods have 30 s.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// One call to the Kubernetes API at the start.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked whether the Consul token is another one, or due to be replaced.
const TOKEN_EVERY: Duration = Duration::from_secs(5);
/// A connection to the Kubernetes API on which nothing has arrived for this long is dead: a watch
/// ends by itself after a minute, and everything else has shorter limits of its own.
const SILENCE: Duration = Duration::from_secs(75);

/// Why a subcommand did not do its work.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] io::Error),
    #[error("cannot serve {flag} {address}: {source}")]
    Bind { flag: &'static str, address: SocketAddr, source: io::Error },
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    #[error("no Kubernetes configuration (KUBECONFIG, ~/.kube/config, service account): {0}")]
    NoKubeconfig(#[from] kube::config::InferConfigError),
    #[error("the Kubernetes configuration KUBECONFIG={files} cannot be used: {source}")]
    Kubeconfig { files: String, source: kube::config::KubeconfigError },
    #[error("the Kubernetes configuration cannot be used: {0}")]
    KubeClient(#[source] kube::Error),
    #[error("Consul's configuration cannot be used: {0}")]
    Consul(#[from] consul_lock::consul::http::HttpConfigError),
    #[error("cannot guard: {0}")]
    Guard(#[source] io::Error),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Kubectl(#[from] KubectlError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
    #[error("cannot write {}: {source}", path.display())]
    Page { path: PathBuf, source: io::Error },
    #[error("the admin server ended: {0}")]
    Admin(#[source] io::Error),
    #[error("the part \"{0}\" ended early")]
    EndedEarly(&'static str),
    #[error("the part \"{0}\" failed: {1}")]
    Crashed(&'static str, tokio::task::JoinError),
    #[error("did not stop within {STOP_WITHIN:?}")]
    Stuck,
}

impl Failure {
    /// As `--help` lists them. 2 is for wrong usage.
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Run(error) => run_error_code(error),
            Failure::Kubectl(error) => error.exit_code(),
            Failure::Agent(AgentError::Refused(_)) => 2,
            Failure::Agent(AgentError::Signals(_) | AgentError::Line(_)) => 3,
            Failure::Agent(_) => 1,
            Failure::Runtime(_)
            | Failure::Bind { .. }
            | Failure::Signals(_)
            | Failure::NoKubeconfig(_)
            | Failure::Kubeconfig { .. }
            | Failure::KubeClient(_)
            | Failure::Guard(_)
            | Failure::Consul(_) => 3,
            Failure::Output(_)
            | Failure::Page { .. }
            | Failure::Admin(_)
            | Failure::EndedEarly(_)
            | Failure::Crashed(..)
            | Failure::Stuck => 1,
        }
    }
}

/// A token is in this process's memory and environment: no core is written of it, and no other process
/// of the same user may look into it. Does not concern what it starts.
fn keep_to_ourselves() {
    // The kernel refuses nobody.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

fn main() -> ExitCode {
    keep_to_ourselves();
    // Before any client is made: with none, or with two to choose from, they panic.
    ensure_tls_provider();
    let done = match cli::parse(std::env::args_os()) {
        Ok(Job::Crd) => print(api::crd_yaml().as_bytes()).map(|()| 0),
        Ok(Job::Controller(config)) => run_controller(*config).map(|()| 0),
        Ok(Job::Run(config)) => run_command(*config),
        Ok(Job::Agent(config)) => run_agent(*config),
        Ok(Job::Guard(command)) => agent::guard(&command).map_err(Failure::Guard).map(|()| 0),
        Ok(Job::Completion(script)) => print(&script).map(|()| 0),
        Ok(Job::Man(folder, pages)) => write_pages(&folder, &pages).map(|()| 0),
        Ok(Job::Kubectl(settings)) => run_kubectl(*settings),
        Err(error) => return ExitCode::from(if error.report() { 0 } else { 2 }),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // Whoever closed the pipe has read enough.
            if failure.exit_code() != 0 {
                eprintln!("error: {failure}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Standard codes where there are any: those of `sysexits.h`, and of a shell that cannot run a
/// command.
fn run_error_code(error: &RunError) -> u8 {
    match error {
        RunError::Unreachable(_) | RunError::Silent => 69,
        RunError::NotFree { .. } => 75,
        RunError::Refused(trouble) if trouble.class == Class::Denied => 77,
        RunError::Refused(_)
        | RunError::Terms(_)
        | RunError::NoTtl(_)
        | RunError::NoSession(_)
        | RunError::Holds { .. } => 2,
        RunError::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
        RunError::Start { .. } => 126,
        RunError::Guard(_) | RunError::Signals(_) => 3,
        RunError::Broken => 1,
    }
}

/// Its exit code, as `run --help` lists them.
fn run_command(config: RunConfig) -> Result<u8, Failure> {
    logs::install(config.log_format, &config.log);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().map_err(Failure::Runtime)?;
    let consul = HttpConsul::new(config.consul)?;
    let outcome = runtime.block_on(async {
        let outcome = agent::run(consul.clone(), Clock::boot(), &config.settings).await;
        consul.log_out().await;
        outcome
    });
    Ok(match outcome? {
        Outcome::Code(code) => code,
        Outcome::Signal(number) => 128 + number,
        Outcome::Lost => 79,
        // As timeout(1).
        Outcome::MaxHold => 124,
    })
}

/// Its exit code, as the plugin's `--help` lists them.
fn run_kubectl(settings: KubectlSettings) -> Result<u8, Failure> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().map_err(Failure::Runtime)?;
    Ok(runtime.block_on(kubectl::run(settings, Clock::boot()))?)
}

/// Its exit code, as `agent --help` lists them.
fn run_agent(config: AgentConfig) -> Result<u8, Failure> {
    if let Some(app) = config.settings.app.as_ref().filter(|_| !config.guarded) {
        let (arguments, grace) = (cli::own_arguments(), config.settings.grace);
        return agent::guard_agent(&arguments, app, grace).map_err(Failure::Guard);
    }
    if config.guarded {
        agent::hear_signals().map_err(Failure::Signals)?;
    }
    logs::install(config.log_format, &config.log);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().map_err(Failure::Runtime)?;
    runtime.block_on(serve_agent(config)).map(|()| 0)
}

async fn serve_agent(mut config: AgentConfig) -> Result<(), Failure> {
    let listener = bind("--listen", config.listen).await?;
    let metrics = Metrics::new(false);
    count_calls(&mut config.consul, &metrics);
    let (consul, clock) = (HttpConsul::new(config.consul)?, Clock::boot());
    tell_expiry(&consul, &metrics);
    let settings = &mut config.settings;
    let names_its_cluster = settings.cluster.is_some() || settings.pod.is_none();
    let kubernetes = match settings.claim.is_some() || !names_its_cluster {
        false => None,
        true => match kube_client().await {
            Ok((client, _)) => Some(client),
            Err(failure) if settings.key.is_none() => return Err(failure),
            Err(failure) => {
                tracing::warn!(%failure, "going on without Kubernetes");
                None
            }
        },
    };
    if let (Some(client), None) = (&kubernetes, &settings.cluster) {
        match kube_system(client, &clock).await {
            Ok(name) => settings.cluster = Some(name.as_str().to_owned()),
            Err(error) => tracing::info!(error, "this cluster has no name; see --cluster-name"),
        }
    }
    let guarded = config.guarded;
    let (kept, time) = (consul.clone(), clock.clone());
    let around =
        Surroundings { consul: consul.clone(), clock, metrics, listener, kubernetes, guarded };
    let ended = tokio::select! {
        ended = agent::agent(&config.settings, around) => ended,
        never = look_after_token(&kept, &time) => match never {},
    };
    consul.log_out().await;
    Ok(ended?)
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| Failure::Bind { flag, address, source })
}

/// Has every call to Consul counted.
fn count_calls(consul: &mut HttpConfig, metrics: &Arc<Metrics>) {
    let metrics = Arc::clone(metrics);
    consul.observer = Some(Arc::new(move |operation, result, took| {
        let class = result.err().map_or("ok", Class::as_str);
        metrics.consul_answered(operation.as_str(), class, took);
    }));
}

/// Has the metrics tell until when certificates and token are good.
fn tell_expiry(consul: &HttpConsul, metrics: &Metrics) {
    let certificates = consul.clone();
    metrics.report_certificates_from(move || {
        let Certificates { ca, client } = certificates.certificates();
        let named = [("ca", ca), ("client", client)].into_iter();
        named.filter_map(|(name, life)| Some((name, life?))).collect()
    });
    let token = consul.clone();
    metrics.report_token_from(move || token.token_life());
}

/// So that a process that has nothing to ask of Consul, as a replica that stands by, has a token that is
/// good when its turn comes, and knows until when.
async fn look_after_token(consul: &HttpConsul, clock: &Clock) -> Infallible {
    loop {
        if let Err(error) = consul.look_after_token().await {
            tracing::debug!(%error, "cannot ask after the token");
        }
        clock.sleep_until(clock.now() + TOKEN_EVERY).await;
    }
}

fn print(text: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text).and_then(|()| out.flush()).map_err(Failure::Output)
}

fn write_pages(folder: &Path, pages: &[(String, Vec<u8>)]) -> Result<(), Failure> {
    for (name, page) in pages {
        let path = folder.join(name);
        let written = std::fs::write(&path, page);
        written.map_err(|source| Failure::Page { path, source })?;
    }
    Ok(())
}

fn run_controller(config: ControllerConfig) -> Result<(), Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().build().map_err(Failure::Runtime)?;
    let done = runtime.block_on(serve(config));
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// What the parts of a controller share.
#[derive(Clone)]
struct Shared {
    config: Arc<ControllerConfig>,
    kube: Client,
    consul: HttpConsul,
    clock: Clock,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

/// Starts every part, waits for a signal or for one that ends early, and stops them: the leader's
/// work first, then the Lease, the admin server last.
async fn serve(mut config: ControllerConfig) -> Result<(), Failure> {
    logs::install(config.log_format, &config.log);
    let address = config.admin_addr;
    let listener = bind("--admin-addr", address).await?;
    tracing::info!(address = %listener.local_addr().unwrap_or(address), "admin server listens");

    let metrics = Metrics::new(config.per_claim_metrics);
    count_calls(&mut config.consul, &metrics);
    let (kube, own_namespace) = kube_client().await?;
    let replicas_client = kube_client().await?.0;
    let shared = Shared {
        consul: HttpConsul::new(config.consul.clone())?,
        config: Arc::new(config),
        kube,
        clock: Clock::boot(),
        metrics,
        stop: CancellationToken::new(),
    };
    tell_expiry(&shared.consul, &shared.metrics);
    let replicas = contend(&shared, replicas_client, &own_namespace);

    let (ready, mut parts) = (Ready::default(), Parts::default());
    let (alive, admin_stop) = (parts.alive.clone(), CancellationToken::new());
    let admin = Admin { metrics: Arc::clone(&shared.metrics), alive, ready: ready.clone() };
    let mut server = JoinSet::new();
    server.spawn(admin::serve(listener, admin, admin_stop.clone().cancelled_owned()));
    parts.start("consul", hear_from_consul(shared.clone(), ready.part("consul")));
    parts.start("controller", control(shared.clone(), replicas, ready.part("caches")));

    let ended = tokio::select! {
        signalled = signalled() => signalled,
        failure = parts.first_failure() => Err(failure),
        served = server.join_next() => Err(admin_failure(served)),
    };
    if let Err(failure) = &ended {
        tracing::error!(%failure, "stopping");
    }
    shared.stop.cancel();
    let stopped = shared.clock.timeout(STOP_WITHIN, parts.stopped()).await;
    // Sessions stay for the next leader; the token that they were made with is not needed for that.
    shared.consul.log_out().await;
    admin_stop.cancel();
    server.join_next().await;
    ended.and(stopped.unwrap_or(Err(Failure::Stuck)))
}

/// A client, and the namespace that this process lives in.
async fn kube_client() -> Result<(Client, String), Failure> {
    let mut config = match std::env::var_os("KUBECONFIG").filter(|files| !files.is_empty()) {
        // Named on purpose: if it is no good, another cluster will not do.
        Some(files) => kube::Config::from_kubeconfig(&KubeConfigOptions::default()).await.map_err(
            |source| Failure::Kubeconfig { files: files.to_string_lossy().into_owned(), source },
        )?,
        None => kube::Config::infer().await?,
    };
    // Fifteen silent retries would turn an error into a hang of many minutes.
    config.default_retry = false;
    config.connect_timeout = Some(CALL_WITHIN);
    config.write_timeout = Some(CALL_WITHIN);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let namespace = config.default_namespace.clone();
    Ok((Client::try_from(config).map_err(Failure::KubeClient)?, namespace))
}

/// This process's part in the election. It has a client of its own, so that no burst of other
/// calls delays a renewal.
fn contend(shared: &Shared, client: Client, own_namespace: &str) -> Replicas {
    let config = &shared.config;
    let namespace = config.lease_namespace.as_ref().map_or(own_namespace, |name| name.as_str());
    // A name of this process and not of its pod: a restarted container is another contender.
    let host = std::env::var("HOSTNAME").ok().filter(|host| !host.is_empty());
    let host = host.as_deref().unwrap_or("consul-lock");
    let me = format!("{host}_{:016x}", rand::random::<u64>());
    let lease = config.lease_name.as_str();
    let replicas =
        Replicas::new(client, namespace, lease, &me, config.timings, shared.clock.clone());
    let leadership = replicas.leadership();
    shared.metrics.report_leader_from(move || leadership.may_act());
    replicas
}

/// Keeps the caches, takes part in the election, and does a leader's work while it leads.
async fn control(shared: Shared, replicas: Replicas, caches: Part) {
    let stop = shared.stop.clone();
    let Some(cluster) = stop.run_until_cancelled(cluster_name(&shared)).await else {
        return;
    };
    tracing::info!(cluster = cluster.as_str(), "this cluster's name in Consul");
    let controller = Arc::new(controller_of(&shared, &cluster, &replicas));
    let watching = Arc::clone(&controller);
    let mut watch = JoinSet::new();
    watch.spawn(async move { watching.watch().await });
    let synced = async {
        controller.synced().await;
        caches.ready();
        tracing::info!("the caches are synced");
        std::future::pending::<()>().await;
    };
    let turn = Arc::default();
    let lead = || lead_apart(Arc::clone(&controller), Arc::clone(&turn));
    tokio::select! {
        ended = replicas.run(lead, stop.cancelled()) => if let Ended::WorkEnded(error) = ended {
            tracing::error!(%error, "the leader's work ended by itself");
        },
        ended = end_of(&mut watch) => {
            tracing::error!(error = %ended, "the caches ended by themselves");
        }
        () = synced => {}
    }
}

/// Leads in a task of its own, so that no long walk delays a renewal of the Lease. Dropping this
/// ends the task; `turn` keeps the next term from beginning before it is gone.
async fn lead_apart<C: Consul>(
    controller: Arc<Controller<C>>,
    turn: Arc<Mutex<()>>,
) -> controller::LeadError {
    let mut task = JoinSet::new();
    task.spawn(async move {
        let _turn = turn.lock().await;
        controller.lead().await
    });
    end_of(&mut task).await
}

/// What the only task ended with. Its panic is ours.
async fn end_of<T: 'static>(task: &mut JoinSet<T>) -> T {
    match task.join_next().await {
        Some(Ok(ended)) => ended,
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Aborted with the whole runtime, or there was none.
        Some(Err(_)) | None => std::future::pending().await,
    }
}

fn controller_of(
    shared: &Shared,
    cluster: &ClusterName,
    replicas: &Replicas,
) -> Controller<Gated<HttpConsul>> {
    let config = &shared.config;
    let names = config.watch_namespaces.iter().map(|name| name.as_str().to_owned()).collect();
    let settings = controller::Config {
        key_prefix: config.key_prefix.clone().into(),
        cluster: cluster.as_str().to_owned(),
        namespaces: Some(names),
        instance: replicas.me().to_owned(),
    };
    let may_act = replicas.leadership().gate();
    let consul = Gated::new(shared.consul.clone(), Arc::clone(&may_act));
    let (clock, metrics) = (shared.clock.clone(), Arc::clone(&shared.metrics));
    let make_keepers = move |wake| {
        let jitter = Arc::new(|| rand::random_range(0.0..1.0));
        Keepers::new(consul.clone(), clock.clone(), Arc::clone(&metrics), jitter, wake)
    };
    let stop = shared.stop.clone();
    // Without a gate: it renews when this replica does not lead.
    let vigil = Vigil::new(
        shared.consul.clone(),
        shared.clock.clone(),
        Arc::new(|| rand::random_range(0.0..1.0)),
        replicas.leadership().succession(),
    );
    Controller::new(
        settings,
        shared.kube.clone(),
        shared.clock.clone(),
        Arc::clone(&shared.metrics),
        may_act,
        Box::new(make_keepers),
    )
    .bequeathing(Box::new(move |bequests| {
        // Whoever is told to stop leaves the sessions to the next leader.
        if !stop.is_cancelled() {
            vigil.keep(bequests);
        }
    }))
}

/// The configured name, or the beginning of the kube-system Namespace's UID, as soon as the API
/// server tells it.
async fn cluster_name(shared: &Shared) -> ClusterName {
    if let Some(name) = &shared.config.cluster_name {
        return name.clone();
    }
    let mut pause = Pause::new(&shared.clock);
    loop {
        let trouble = match kube_system(&shared.kube, &shared.clock).await {
            Ok(name) => return name,
            Err(trouble) => trouble,
        };
        tracing::warn!(
            error = trouble,
            "cannot read the namespace kube-system, which names this cluster; \
             --cluster-name would, too"
        );
        pause.wait().await;
    }
}

/// The name that the kube-system Namespace gives its cluster, or why there is none.
async fn kube_system(client: &Client, clock: &Clock) -> Result<ClusterName, String> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = match clock.timeout(CALL_WITHIN, namespaces.get("kube-system")).await {
        Ok(read) => read.map_err(|error| error.to_string())?,
        Err(elapsed) => return Err(elapsed.to_string()),
    };
    let uid = namespace.metadata.uid.unwrap_or_default();
    ClusterName::of_uid(&uid).map_err(|error| format!("its UID is {uid:?}: {error}"))
}

/// Reports ready once Consul has answered as one does that can be worked with, and looks after the token
/// from then on.
async fn hear_from_consul(shared: Shared, part: Part) {
    let heard = async {
        let mut pause = Pause::new(&shared.clock);
        while let Err(error) = usable(&shared).await {
            tracing::warn!(error, "Consul does not answer yet");
            part.waits_for(error);
            pause.wait().await;
        }
        part.ready();
        tracing::info!("Consul answers");
        look_after_token(&shared.consul, &shared.clock).await
    };
    shared.stop.run_until_cancelled(heard).await;
}

/// Whether Consul has a leader and knows our token, or what is wrong. Which rules the token has is seen
/// by what claims need.
async fn usable(shared: &Shared) -> Result<(), String> {
    match shared.consul.leader().await {
        Err(error) => return Err(error.to_string()),
        Ok(None) => return Err("Consul has no leader; do its servers have a quorum?".to_owned()),
        Ok(Some(_)) => {}
    }
    shared.consul.look_after_token().await.map_err(|error| error.to_string())
}

/// Growing pauses between attempts, one to five seconds: whoever puts something right looks on.
struct Pause<'a> {
    clock: &'a Clock,
    next: Duration,
}

impl<'a> Pause<'a> {
    fn new(clock: &'a Clock) -> Pause<'a> {
        Pause { clock, next: Duration::from_secs(1) }
    }

    async fn wait(&mut self) {
        let pause = self.next.mul_f64(rand::random_range(0.5..1.0));
        self.next = (self.next * 2).min(Duration::from_secs(5));
        self.clock.sleep_until(self.clock.now() + pause).await;
    }
}

/// SIGTERM or SIGINT arrived.
async fn signalled() -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::Signals)?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM, stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT, stopping"),
    }
    Ok(())
}

fn admin_failure(served: Option<Result<io::Result<()>, tokio::task::JoinError>>) -> Failure {
    match served {
        Some(Ok(Err(error))) => Failure::Admin(error),
        Some(Err(error)) => Failure::Crashed("admin server", error),
        Some(Ok(Ok(()))) | None => Failure::EndedEarly("admin server"),
    }
}

/// The tasks that must run until the process is told to stop.
#[derive(Default)]
struct Parts {
    tasks: JoinSet<()>,
    names: HashMap<Id, &'static str>,
    alive: Alive,
}

impl Parts {
    fn start(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(work);
        self.names.insert(task.id(), name);
        self.alive.watch(name, task);
    }

    fn name(&self, id: Id) -> &'static str {
        self.names.get(&id).copied().unwrap_or("unknown")
    }

    /// Returns when a part ended, which none should by itself.
    async fn first_failure(&mut self) -> Failure {
        match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => Failure::EndedEarly(self.name(id)),
            Some(Err(error)) => Failure::Crashed(self.name(error.id()), error),
            None => std::future::pending().await,
        }
    }

    /// Returns when every part ended.
    async fn stopped(&mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        while let Some(ended) = self.tasks.join_next_with_id().await {
            if let Err(error) = ended {
                outcome = Err(Failure::Crashed(self.name(error.id()), error));
            }
        }
        outcome
    }
}
