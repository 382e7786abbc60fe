//! A Kubernetes control plane: etcd and the API server. No nodes, no controllers.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use rcgen::KeyPair;
use serde_json::json;

use crate::certs::{Authority, CertFiles};
use crate::folder::Folder;
use crate::http::request;
use crate::ports::Port;
use crate::process::{BedError, GRACE, Recipe, Server, with_free_ports};
use crate::rights;
use crate::run::run;
use crate::tools::Tool;

/// How long etcd may take on a busy machine.
const ETCD_ALLOWED: Duration = Duration::from_secs(60);

/// How long the API server may take on a busy machine; alone it takes four seconds.
const APISERVER_ALLOWED: Duration = Duration::from_secs(120);

/// How long one question of ours to it may take.
const ANSWER_ALLOWED: Duration = Duration::from_secs(15);

/// How long a copy of what etcd holds may take.
const COPY_ALLOWED: Duration = Duration::from_secs(30);

/// Where a control plane lives.
pub(crate) struct Setting {
    /// Where its servers listen.
    pub(crate) address: Ipv4Addr,
    /// What for: the API server, etcd's clients, etcd's peers.
    pub(crate) ports: [u16; 3],
    /// The words that enter its network namespace, if it has one.
    pub(crate) enter: Vec<OsString>,
    /// The addresses of its Services.
    pub(crate) service_range: String,
    /// The first of them, by which pods reach the API server.
    pub(crate) first_service: Ipv4Addr,
}
/// The addresses of Services, of both families; a Service has the first alone unless it asks for
/// more.
const SERVICE_RANGE: &str = "10.96.0.0/16,fd00:10:96::/112";

/// The group that all service accounts are in.
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// A running control plane. Dropping it ends it.
pub struct ControlPlane {
    apiserver: Server, // first: it ends before its etcd, and both before their folder
    etcd: Server,
    address: SocketAddr,
    _reserved: Vec<Port>,
    authority: Authority,
    kubeconfig: PathBuf,
    folder: Folder,
}

/// What a control plane held at some instant; see [`ControlPlane::restore`].
pub struct Backup(Folder);

impl ControlPlane {
    /// Starts one, and waits until it is ready and has made its first namespaces.
    ///
    /// # Errors
    /// It did not come up; with the end of the log of what failed.
    pub fn start() -> Result<ControlPlane, BedError> {
        Tool::Kubectl.path()?; // together with the servers, rather than while they wait
        with_free_ports(|| {
            let ports = Port::reserve_many::<3>()?;
            let setting = Setting {
                address: Ipv4Addr::LOCALHOST,
                ports: ports.each_ref().map(Port::number),
                enter: Vec::new(),
                service_range: SERVICE_RANGE.to_owned(),
                first_service: Ipv4Addr::new(10, 96, 0, 1),
            };
            let started = ControlPlane::start_in(&setting)?;
            Ok(ControlPlane { _reserved: ports.into(), ..started })
        })
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

    /// Starts one elsewhere than on random ports of the loopback address.
    pub(crate) fn start_in(setting: &Setting) -> Result<ControlPlane, BedError> {
        let folder = Folder::new("kubernetes")?;
        let address = SocketAddr::from((setting.address, setting.ports[0]));
        let etcd = start_etcd(&folder, setting)?;
        let authority = Authority::create(folder.path(), "kubernetes-ca")?;
        let admin = authority.client("admin", Some("system:masters"))?;
        let kubeconfig = write_kubeconfig(&folder, address, &authority, "admin", &admin)?;
        let recipe = apiserver_recipe(&folder, setting, &authority)?;
        let probe_config = kubeconfig.clone();
        let apiserver = Server::start(recipe, move || apiserver_ready(&probe_config))?;
        Ok(ControlPlane {
            apiserver,
            etcd,
            address,
            _reserved: Vec::new(),
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
        write_kubeconfig(&self.folder, self.address, &self.authority, user, &client)
    }

    /// A kubeconfig file for the service account of a release of the chart in this namespace, which
    /// has what its roles grant ([`rights::of_chart`]). By another port on 127.0.0.1 if there is one,
    /// such as a [`crate::Proxy`]'s.
    ///
    /// # Errors
    /// It could not be made or written.
    pub fn kubeconfig_of_release(
        &self,
        namespace: &str,
        through: Option<u16>,
    ) -> Result<PathBuf, BedError> {
        let account = format!("system:serviceaccount:{namespace}:{}", rights::RELEASE);
        let client = self.authority.client(&account, Some(SERVICE_ACCOUNTS))?;
        let address = through.map_or(self.address, |port| (Ipv4Addr::LOCALHOST, port).into());
        write_kubeconfig(&self.folder, address, &self.authority, &account, &client)
    }

    /// A kubeconfig file like [`ControlPlane::kubeconfig`] that goes to another address on
    /// 127.0.0.1, such as a [`crate::Proxy`]'s.
    ///
    /// # Errors
    /// It could not be made or written.
    pub fn kubeconfig_through(&self, port: u16) -> Result<PathBuf, BedError> {
        let client = self.authority.client("admin", Some("system:masters"))?;
        let name = format!("admin-through-{port}");
        let proxy = (Ipv4Addr::LOCALHOST, port).into();
        write_kubeconfig(&self.folder, proxy, &self.authority, &name, &client)
    }

    /// Where the API server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who signs for it.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The key that service accounts' tokens are signed with.
    pub(crate) fn account_key(&self) -> PathBuf {
        account_key(&self.folder)
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

    /// All that Kubernetes holds at this instant.
    ///
    /// # Errors
    /// It could not be copied.
    pub fn back_up(&self) -> Result<Backup, BedError> {
        let backup = Folder::new("backup")?;
        // What is copied while nobody writes is what a power failure would leave.
        self.etcd.pause()?;
        let copied = copy(&etcd_data(&self.folder), &etcd_data(&backup));
        self.etcd.resume()?;
        copied.map(|()| Backup(backup))
    }

    /// Sets all of Kubernetes back, while none of its servers runs, and waits until it is ready again.
    /// Its revision is that of the backup.
    ///
    /// # Errors
    /// It could not be stopped, set back, or started.
    pub fn restore(&self, backup: &Backup) -> Result<(), BedError> {
        self.apiserver.kill()?;
        self.etcd.kill()?;
        let data = etcd_data(&self.folder);
        std::fs::remove_dir_all(&data)?;
        copy(&etcd_data(&backup.0), &data)?;
        self.etcd.start_again()?;
        self.apiserver.start_again()
    }
}

fn etcd_data(folder: &Folder) -> PathBuf {
    folder.path().join("etcd")
}

fn copy(from: &Path, to: &Path) -> Result<(), BedError> {
    run(Command::new("cp").arg("--archive").args([from, to]), COPY_ALLOWED).map(drop)
}

fn start_etcd(folder: &Folder, setting: &Setting) -> Result<Server, BedError> {
    let [_, client, peer] = setting.ports.map(|port| SocketAddr::from((setting.address, port)));
    let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
    let data = etcd_data(folder);
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
    Server::start(recipe.entering(&setting.enter), move || {
        let reply =
            request(client, "GET", "/health", &[], b"").map_err(|error| error.to_string())?;
        if reply.ok() { Ok(()) } else { Err(reply.text()) }
    })
}

fn account_key(folder: &Folder) -> PathBuf {
    folder.path().join("service-accounts.key")
}

fn apiserver_recipe(
    folder: &Folder,
    setting: &Setting,
    authority: &Authority,
) -> Result<Recipe, BedError> {
    let address = setting.address;
    let addresses = [address, setting.first_service];
    let server = authority.server("apiserver", &["kubernetes.default.svc"], &addresses)?;
    let kubelet_client = authority.client("kube-apiserver", Some("system:masters"))?;
    let accounts = KeyPair::generate()?;
    std::fs::write(account_key(folder), accounts.serialize_pem())?;
    let verifying = folder.write("service-accounts.pub", accounts.public_key_pem())?;
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let args = [
        format!("--etcd-servers=http://{address}:{}", setting.ports[1]),
        format!("--bind-address={address}"),
        format!("--secure-port={}", setting.ports[0]),
        format!("--advertise-address={address}"),
        // The Service `kubernetes` is for pods, and its endpoints may not be loopback.
        format!(
            "--endpoint-reconciler-type={}",
            if address.is_loopback() { "none" } else { "lease" }
        ),
        flag("tls-cert-file", &server.cert),
        flag("tls-private-key-file", &server.key),
        flag("client-ca-file", authority.ca_file()),
        flag("service-account-key-file", &verifying),
        flag("service-account-signing-key-file", &account_key(folder)),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-cluster-ip-range={}", setting.service_range),
        flag("kubelet-client-certificate", &kubelet_client.cert),
        flag("kubelet-client-key", &kubelet_client.key),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--allow-privileged=true".to_owned(),
    ];
    let args = args.into_iter().chain(audit_flags(folder)?);
    let recipe = Recipe {
        name: "kube-apiserver".to_owned(),
        program: Tool::KubeApiserver.path()?,
        args: args.map(Into::into).collect(),
        log: folder.path().join("kube-apiserver.log"),
        env: Vec::new(),
        allowed: APISERVER_ALLOWED,
        grace: GRACE,
    };
    Ok(recipe.entering(&setting.enter))
}

/// Has it log what service accounts ask for, if somebody wants to know.
fn audit_flags(folder: &Folder) -> Result<Vec<String>, BedError> {
    let Some(logs) = std::env::var_os(rights::AUDIT) else { return Ok(Vec::new()) };
    std::fs::create_dir_all(&logs)?;
    let policy = folder.write("audit-policy.yaml", rights::POLICY)?;
    // Folders have names that nobody else has.
    let name = folder.path().file_name().unwrap_or_default();
    let log = Path::new(&logs).join(name).with_extension("jsonl");
    Ok(vec![
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", log.display()),
    ])
}

/// Ready means: all its own checks pass, and the first namespaces are there (they are made by a
/// loop in the background).
fn apiserver_ready(kubeconfig: &Path) -> Result<(), String> {
    let ask = |args: &[&str]| {
        let mut command =
            kubectl(kubeconfig, args.iter().copied()).map_err(|error| error.to_string())?;
        let answer = run(command.arg("--request-timeout=5s"), ANSWER_ALLOWED);
        answer.map(drop).map_err(|error| error.to_string())
    };
    ask(&["get", "--raw", "/readyz"]).map_err(|answer| unwell(&answer).unwrap_or(answer))?;
    ask(&["get", "namespaces", "default", "kube-system", "-o", "name"])
}

/// What of an answer of `/readyz` is not well. kubectl prints all of it in one line, line ends quoted.
fn unwell(answer: &str) -> Option<String> {
    let parts = answer.split("\\n").filter_map(|part| part.strip_prefix("[-]"));
    let parts: Vec<&str> = parts.collect();
    (!parts.is_empty()).then(|| format!("/readyz: {}", parts.join(", ")))
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
    address: SocketAddr,
    authority: &Authority,
    user: &str,
    client: &CertFiles,
) -> Result<PathBuf, BedError> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": {
            "server": format!("https://{address}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_answer_that_is_long_only_what_is_not_well_is_shown() {
        let answer =
            r#"an error ("[+]ping ok\n[-]rbac failed: withheld\n[+]log ok\ncheck failed")"#;
        assert_eq!(unwell(answer).as_deref(), Some("/readyz: rbac failed: withheld"));
        assert_eq!(unwell("connection refused"), None);
    }
}
