//! A Kubernetes control plane: etcd and the API server. No nodes, no controllers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rcgen::KeyPair;
use serde_json::json;

use crate::certs::{Authority, CertFiles};
use crate::folder::Folder;
use crate::http::request;
use crate::ports::Port;
use crate::process::{BedError, GRACE, Recipe, Server, with_free_ports};
use crate::tools::Tool;
use crate::wait::wait_for;

/// How long etcd may take on a busy machine.
const ETCD_ALLOWED: Duration = Duration::from_secs(60);

/// How long the API server may take on a busy machine; alone it takes four seconds.
const APISERVER_ALLOWED: Duration = Duration::from_secs(120);

/// The addresses of Services, of both families; a Service has the first alone unless it asks for
/// more.
const SERVICE_RANGE: &str = "10.96.0.0/16,fd00:10:96::/112";

/// A running control plane. Dropping it ends it.
pub struct ControlPlane {
    apiserver: Server, // first: it ends before its etcd, and both before their folder
    etcd: Server,
    port: Port,
    _etcd_ports: [Port; 2],
    authority: Authority,
    kubeconfig: PathBuf,
    folder: Folder,
}

impl ControlPlane {
    /// Starts one, and waits until it is ready and has made its first namespaces.
    ///
    /// # Errors
    /// It did not come up; with the end of the log of what failed.
    pub fn start() -> Result<ControlPlane, BedError> {
        Tool::Kubectl.path()?; // together with the servers, rather than while they wait
        with_free_ports(ControlPlane::start_once)
    }

    /// One for all tests of this process that leave it running and keep to namespaces of their
    /// own.
    ///
    /// # Panics
    /// It did not come up.
    pub fn shared() -> &'static ControlPlane {
        static SHARED: OnceLock<ControlPlane> = OnceLock::new();
        SHARED.get_or_init(|| ControlPlane::start().unwrap_or_else(|error| panic!("{error}")))
    }

    fn start_once() -> Result<ControlPlane, BedError> {
        let folder = Folder::new("kubernetes")?;
        let etcd_ports = Port::reserve_many()?;
        let port = Port::reserve()?;
        let etcd = start_etcd(&folder, &etcd_ports)?;

        let authority = Authority::create(folder.path(), "kubernetes-ca")?;
        let admin = authority.client("admin", Some("system:masters"))?;
        let kubeconfig = write_kubeconfig(&folder, port.number(), &authority, "admin", &admin)?;
        let recipe = apiserver_recipe(&folder, &port, &etcd_ports[0], &authority)?;
        let probe_config = kubeconfig.clone();
        let apiserver = Server::start(recipe, move || apiserver_ready(&probe_config))?;
        Ok(ControlPlane {
            apiserver,
            etcd,
            port,
            _etcd_ports: etcd_ports,
            authority,
            kubeconfig,
            folder,
        })
    }

    /// The kubeconfig file of an administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A kubeconfig file for somebody else, without any right but what RBAC grants to the user or
    /// the group.
    ///
    /// # Errors
    /// It could not be made or written.
    pub fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> Result<PathBuf, BedError> {
        let client = self.authority.client(user, group)?;
        write_kubeconfig(&self.folder, self.port.number(), &self.authority, user, &client)
    }

    /// A kubeconfig file like [`ControlPlane::kubeconfig`] that goes to another address on
    /// 127.0.0.1, such as a [`crate::Proxy`]'s.
    ///
    /// # Errors
    /// It could not be made or written.
    pub fn kubeconfig_through(&self, port: u16) -> Result<PathBuf, BedError> {
        let client = self.authority.client("admin", Some("system:masters"))?;
        let name = format!("admin-through-{port}");
        write_kubeconfig(&self.folder, port, &self.authority, &name, &client)
    }

    /// Where the API server listens.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        (std::net::Ipv4Addr::LOCALHOST, self.port.number()).into()
    }

    /// `kubectl` as the administrator.
    ///
    /// # Errors
    /// There is no `kubectl` and it cannot be built.
    pub fn kubectl<'a>(
        &self,
        args: impl IntoIterator<Item = &'a str>,
    ) -> Result<Command, BedError> {
        kubectl(&self.kubeconfig, args)
    }

    /// The API server's process, to pause, kill and restart.
    #[must_use]
    pub fn apiserver(&self) -> &Server {
        &self.apiserver
    }

    /// etcd's process.
    #[must_use]
    pub fn etcd(&self) -> &Server {
        &self.etcd
    }
}

fn start_etcd(folder: &Folder, [client, peer]: &[Port; 2]) -> Result<Server, BedError> {
    let client_url = format!("http://127.0.0.1:{}", client.number());
    let peer_url = format!("http://127.0.0.1:{}", peer.number());
    let data = folder.path().join("etcd");
    let recipe = Recipe {
        name: "etcd".to_owned(),
        program: Tool::Etcd.path()?,
        args: [
            "--name=default".to_owned(),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={client_url}"),
            format!("--advertise-client-urls={client_url}"),
            format!("--listen-peer-urls={peer_url}"),
            format!("--initial-advertise-peer-urls={peer_url}"),
            format!("--initial-cluster=default={peer_url}"),
            "--unsafe-no-fsync".to_owned(), // its data lives no longer than the test
            "--log-level=warn".to_owned(),
        ]
        .map(Into::into)
        .to_vec(),
        log: folder.path().join("etcd.log"),
        env: Vec::new(),
        allowed: ETCD_ALLOWED,
        grace: GRACE,
    };
    let address = ([127, 0, 0, 1], client.number()).into();
    Server::start(recipe, move || {
        let reply =
            request(address, "GET", "/health", &[], b"").map_err(|error| error.to_string())?;
        if reply.ok() { Ok(()) } else { Err(reply.text()) }
    })
}

fn apiserver_recipe(
    folder: &Folder,
    port: &Port,
    etcd: &Port,
    authority: &Authority,
) -> Result<Recipe, BedError> {
    let server = authority.server("apiserver", &["kubernetes.default.svc"])?;
    let accounts = KeyPair::generate()?;
    let signing = folder.write("service-accounts.key", accounts.serialize_pem())?;
    let verifying = folder.write("service-accounts.pub", accounts.public_key_pem())?;
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let args = [
        format!("--etcd-servers=http://127.0.0.1:{}", etcd.number()),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", port.number()),
        // Nobody reaches it by the Service `kubernetes`, whose endpoints may not be loopback.
        "--advertise-address=127.0.0.1".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        flag("tls-cert-file", &server.cert),
        flag("tls-private-key-file", &server.key),
        flag("client-ca-file", authority.ca_file()),
        flag("service-account-key-file", &verifying),
        flag("service-account-signing-key-file", &signing),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--allow-privileged=true".to_owned(),
    ];
    Ok(Recipe {
        name: "kube-apiserver".to_owned(),
        program: Tool::KubeApiserver.path()?,
        args: args.map(Into::into).to_vec(),
        log: folder.path().join("kube-apiserver.log"),
        env: Vec::new(),
        allowed: APISERVER_ALLOWED,
        grace: GRACE,
    })
}

/// Ready means: all its own checks pass, and the first namespaces are there (they are made by a
/// loop in the background).
fn apiserver_ready(kubeconfig: &Path) -> Result<(), String> {
    let ask = |args: &[&str]| {
        let mut command =
            kubectl(kubeconfig, args.iter().copied()).map_err(|error| error.to_string())?;
        run_quietly(command.arg("--request-timeout=5s"))
    };
    ask(&["get", "--raw", "/readyz"])?;
    ask(&["get", "namespaces", "default", "kube-system", "-o", "name"])
}

fn run_quietly(command: &mut Command) -> Result<(), String> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| error.to_string())?;
    let ended = wait_for("kubectl", Duration::from_secs(15), || child.try_wait().transpose());
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(_) => {
            let output = child.wait_with_output().map_err(|error| error.to_string())?;
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
        Err(late) => {
            // It may end by itself right now; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
            Err(late.to_string())
        }
    }
}

fn kubectl<'a>(
    kubeconfig: &Path,
    args: impl IntoIterator<Item = &'a str>,
) -> Result<Command, BedError> {
    let mut command = Tool::Kubectl.command(args)?;
    command.env("KUBECONFIG", kubeconfig);
    // Otherwise it fills ~/.kube with what it discovered about servers of a minute.
    command.env("KUBECACHEDIR", kubeconfig.with_extension("cache"));
    Ok(command)
}

fn write_kubeconfig(
    folder: &Folder,
    port: u16,
    authority: &Authority,
    user: &str,
    client: &CertFiles,
) -> Result<PathBuf, BedError> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority": authority.ca_file(),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate": client.cert,
            "client-key": client.key,
        }}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": user}}],
        "current-context": "testbed",
    });
    let name = format!("{}.kubeconfig", user.replace([':', '/'], "-"));
    Ok(folder.write(&name, format!("{config:#}\n"))?)
}
