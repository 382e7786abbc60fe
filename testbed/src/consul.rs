//! One Consul.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use crate::certs::{Authority, CertFiles};
use crate::folder::Folder;
use crate::http::{Reply, request};
use crate::ports::Port;
use crate::process::{BedError, GRACE, Recipe, Server, with_free_ports};
use crate::tools::Tool;

/// The management token where ACLs are on.
const MANAGEMENT_TOKEN: &str = "8f1bd6a2-5a5c-4f26-9d0b-4c1f2d9d1e11";

/// How long an agent may take to elect itself on a busy machine.
const ALLOWED: Duration = Duration::from_secs(60);

/// How long leaving its cluster may take a server; Consul itself drains for five seconds.
const LEAVE_ALLOWED: Duration = Duration::from_secs(30);

/// What kind of Consul.
#[derive(Clone, Debug)]
pub struct ConsulConfig {
    /// The shortest TTL a session may have; Consul's own default is `10s`.
    pub session_ttl_min: String,
    /// Deny by default; requests need [`Consul::token`].
    pub acl: bool,
    /// Connections allowed per client address.
    pub http_max_conns_per_client: Option<u32>,
    /// Leave the cluster on SIGTERM.
    pub leave_on_terminate: bool,
    /// Serve HTTPS with a certificate of an own authority, to clients that present one of it.
    pub tls: bool,
    /// Listen on a Unix socket as well.
    pub unix_socket: bool,
    /// Keep data on disk, so that [`Server::kill`] and [`Server::start_again`] lose nothing.
    /// Otherwise it is a `-dev` agent that forgets everything when it ends.
    pub persistent: bool,
    /// Serve on these addresses as well, such as [`crate::Cluster::gateway`].
    pub also_on: Vec<Ipv4Addr>,
    /// Answer DNS on port 53 of this address, such as [`crate::Cluster::gateway`]; that takes root.
    /// A service `x` of its catalog is there called `x.service.consul`.
    pub dns_on: Option<Ipv4Addr>,
    /// Anything else, merged over the agent's configuration at the top level.
    pub extra: Value,
}

impl Default for ConsulConfig {
    fn default() -> ConsulConfig {
        ConsulConfig {
            session_ttl_min: "1s".to_owned(),
            acl: false,
            http_max_conns_per_client: None,
            leave_on_terminate: false,
            tls: false,
            unix_socket: false,
            persistent: false,
            also_on: Vec::new(),
            dns_on: None,
            extra: Value::Null,
        }
    }
}

/// A running Consul agent, a server of its own. Dropping it ends it.
#[derive(Debug)]
pub struct Consul {
    server: Server, // first: it ends before its folder goes
    place: Place,
    folder: Folder,
    token: Option<&'static str>,
    tls: Option<Tls>,
}

/// Where an agent listens. It keeps its ports over a restart.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) ip: Ipv4Addr,
    http: Port,
    https: Port,
    rpc: Port,
    serf: Port,
}

#[derive(Debug)]
struct Tls {
    ca: PathBuf,
    server: CertFiles,
    client: CertFiles,
}

impl Consul {
    /// Starts one on 127.0.0.1, and waits until it has elected itself.
    ///
    /// # Errors
    /// It did not come up; with the end of its log.
    pub fn start(config: ConsulConfig) -> Result<Consul, BedError> {
        with_free_ports(|| {
            let consul = Consul::prepare(&config, Place::reserve(Ipv4Addr::LOCALHOST)?, "consul")?;
            consul.server.start_again()?;
            Ok(consul)
        })
    }

    /// One for all tests of this process that leave it as it is and keep to keys and nodes of
    /// their own; with Consul's defaults but for short TTLs.
    ///
    /// # Panics
    /// It did not come up.
    pub fn shared() -> &'static Consul {
        static SHARED: OnceLock<Consul> = OnceLock::new();
        SHARED.get_or_init(|| {
            Consul::start(ConsulConfig::default()).unwrap_or_else(|error| panic!("{error}"))
        })
    }

    /// One that is ready to be started.
    pub(crate) fn prepare(
        config: &ConsulConfig,
        place: Place,
        node: &str,
    ) -> Result<Consul, BedError> {
        let folder = Folder::new("consul")?;
        let tls = config.tls.then(|| Tls::create(folder.path())).transpose()?;
        let token = config.acl.then_some(MANAGEMENT_TOKEN);
        let file = agent_config(config, &place, &folder, tls.as_ref(), node);
        let file = folder.write("consul.json", file.to_string())?;
        let mut args = vec!["agent".into()];
        if !config.persistent {
            args.push("-dev".into());
        }
        args.extend(["-config-file".into(), file.into()]);
        let recipe = Recipe {
            name: node.to_owned(),
            program: Tool::Consul.path()?,
            args,
            log: folder.path().join(format!("{node}.log")),
            env: Vec::new(),
            allowed: ALLOWED,
            grace: if config.leave_on_terminate { LEAVE_ALLOWED } else { GRACE },
        };
        let http = place.http();
        let name = node.to_owned();
        let server = Server::prepare(recipe, move || ready(http, &name, token));
        Ok(Consul { server, place, folder, token, tls })
    }

    /// Where clients reach it, as `CONSUL_HTTP_ADDR` wants it: `127.0.0.1:8500`, or
    /// `https://localhost:8501` with [`ConsulConfig::tls`].
    #[must_use]
    pub fn address(&self) -> String {
        match self.tls {
            Some(_) => format!("https://localhost:{}", self.place.https.number()),
            None => self.http().to_string(),
        }
    }

    /// Its plain HTTP port. It has one even where clients are meant to use TLS.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.place.http()
    }

    /// Its HTTPS port; nobody listens there without [`ConsulConfig::tls`].
    #[must_use]
    pub fn https(&self) -> SocketAddr {
        (self.place.ip, self.place.https.number()).into()
    }

    /// Where its servers talk to each other; what `/v1/status/leader` calls it.
    #[must_use]
    pub fn rpc(&self) -> SocketAddr {
        (self.place.ip, self.place.rpc.number()).into()
    }

    /// Where others join it.
    pub(crate) fn serf(&self) -> SocketAddr {
        self.place.serf()
    }

    /// Its Unix socket; nobody listens there without [`ConsulConfig::unix_socket`].
    #[must_use]
    pub fn unix_socket(&self) -> PathBuf {
        unix_socket(&self.folder)
    }

    /// The management token, where ACLs are on.
    #[must_use]
    pub fn token(&self) -> Option<&'static str> {
        self.token
    }

    /// The certificate of the authority, where TLS is on.
    #[must_use]
    pub fn ca_file(&self) -> Option<&Path> {
        self.tls.as_ref().map(|tls| tls.ca.as_path())
    }

    /// A client's certificate, where TLS is on.
    #[must_use]
    pub fn client_cert(&self) -> Option<&CertFiles> {
        self.tls.as_ref().map(|tls| &tls.client)
    }

    /// The process, to pause, kill and restart.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The variables that a client of it needs.
    #[must_use]
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let mut env = vec![("CONSUL_HTTP_ADDR", self.address())];
        env.extend(self.token.map(|token| ("CONSUL_HTTP_TOKEN", token.to_owned())));
        if let Some(tls) = &self.tls {
            env.push(("CONSUL_CACERT", tls.ca.display().to_string()));
            env.push(("CONSUL_CLIENT_CERT", tls.client.cert.display().to_string()));
            env.push(("CONSUL_CLIENT_KEY", tls.client.key.display().to_string()));
        }
        env
    }

    /// Where one that is [persistent](ConsulConfig::persistent) keeps its data.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The stock command line against this Consul: `consul.cli(["kv", "get", "key"])`.
    ///
    /// # Errors
    /// There is no `consul` and it cannot be built.
    pub fn cli<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<Command, BedError> {
        let mut command = Tool::Consul.command(args)?;
        command.envs(self.env());
        Ok(command)
    }

    /// Consul's own Go client holding `key`: see `benches/peers/api-lock`.
    ///
    /// # Errors
    /// It cannot be built.
    pub fn api_lock<'a>(
        &self,
        args: impl IntoIterator<Item = &'a str>,
    ) -> Result<Command, BedError> {
        let mut command = Tool::ApiLock.command(args)?;
        command.envs(self.env());
        Ok(command)
    }

    /// Makes one request with the management token, past whatever is being tested:
    /// `consul.request("PUT", "/v1/kv/key", b"value")`.
    ///
    /// # Errors
    /// No answer. An answer with an error status is an answer.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Reply> {
        ask(self.http(), self.token, method, path, body)
    }

    /// Has it leave its cluster, which ends it.
    ///
    /// # Errors
    /// It refused, or would not end.
    pub fn leave(&self) -> Result<(), BedError> {
        let reply = self.request("PUT", "/v1/agent/leave", b"")?;
        if !reply.ok() {
            return Err(self.refused("leave", &reply));
        }
        self.server.wait_ended(LEAVE_ALLOWED).map(drop)
    }

    fn refused(&self, attempt: &str, reply: &Reply) -> BedError {
        BedError::Refused {
            name: self.server.name(),
            attempt: attempt.to_owned(),
            answer: format!("{} {}", reply.status, reply.text()),
        }
    }
}

impl Place {
    pub(crate) fn reserve(ip: Ipv4Addr) -> io::Result<Place> {
        let [http, https, rpc, serf] = Port::reserve_many()?;
        Ok(Place { ip, http, https, rpc, serf })
    }

    fn http(&self) -> SocketAddr {
        (self.ip, self.http.number()).into()
    }

    /// Where others join it.
    pub(crate) fn serf(&self) -> SocketAddr {
        (self.ip, self.serf.number()).into()
    }
}

impl Tls {
    fn create(folder: &Path) -> Result<Tls, BedError> {
        let authority = Authority::create(folder, "consul-ca")?;
        Ok(Tls {
            server: authority.server("consul-server", &[], &[])?,
            client: authority.client("consul-client", None)?,
            ca: authority.ca_file().to_owned(),
        })
    }
}

fn unix_socket(folder: &Folder) -> PathBuf {
    folder.path().join("http.sock")
}

/// The agent's configuration file.
fn agent_config(
    config: &ConsulConfig,
    place: &Place,
    folder: &Folder,
    tls: Option<&Tls>,
    node: &str,
) -> Value {
    let ip = place.ip.to_string();
    let mut http = ip.clone();
    for address in &config.also_on {
        http.push_str(&format!(" {address}"));
    }
    let all = http.clone();
    if config.unix_socket {
        http.push_str(&format!(" unix://{}", unix_socket(folder).display()));
    }
    let https = tls.map_or(-1, |_| i32::from(place.https.number()));
    let mut file = json!({
        "node_name": node,
        "bind_addr": ip,
        "addresses": {"http": http, "https": all},
        "ports": {
            "http": place.http.number(), "https": https,
            "server": place.rpc.number(), "serf_lan": place.serf.number(),
            "serf_wan": -1, "dns": -1, "grpc": -1, "grpc_tls": -1,
        },
        "connect": {"enabled": false},
        "performance": {"raft_multiplier": 1},
        "session_ttl_min": config.session_ttl_min,
        "leave_on_terminate": config.leave_on_terminate,
        "disable_update_check": true,
    });
    if config.persistent {
        file["server"] = json!(true);
        file["bootstrap_expect"] = json!(1);
        file["data_dir"] = json!(folder.path().join("data"));
    }
    if config.acl {
        let mut tokens = json!({"initial_management": MANAGEMENT_TOKEN, "agent": MANAGEMENT_TOKEN});
        if config.dns_on.is_some() {
            tokens["dns"] = json!(MANAGEMENT_TOKEN); // whoever asks DNS shows no token
        }
        file["acl"] = json!({"enabled": true, "default_policy": "deny", "tokens": tokens});
    }
    if let Some(address) = config.dns_on {
        file["addresses"]["dns"] = json!(address);
        file["ports"]["dns"] = json!(53);
    }
    if let Some(limit) = config.http_max_conns_per_client {
        file["limits"] = json!({"http_max_conns_per_client": limit});
    }
    if let Some(tls) = tls {
        file["tls"] = json!({"https": {
            "ca_file": tls.ca, "cert_file": tls.server.cert, "key_file": tls.server.key,
            "verify_incoming": true,
        }});
    }
    for (name, value) in config.extra.as_object().into_iter().flatten() {
        file[name] = value.clone();
    }
    file
}

/// Ready means: a leader is known, and it has this node in its catalog. Only then do sessions on
/// the agent's own node work.
fn ready(http: SocketAddr, node: &str, token: Option<&str>) -> Result<(), String> {
    let path = format!("/v1/catalog/node/{node}");
    let reply = ask(http, token, "GET", &path, b"").map_err(|error| error.to_string())?;
    match reply.ok() && !reply.json()["Node"].is_null() {
        true => Ok(()),
        false => Err(format!("{} {}", reply.status, reply.text())),
    }
}

fn ask(
    http: SocketAddr,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: &[u8],
) -> io::Result<Reply> {
    let header = token.map(|token| ("X-Consul-Token", token));
    request(http, method, path, header.as_slice(), body)
}
