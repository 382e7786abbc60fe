//! Certificates that somebody rotates: the CA, Consul's own and ours, under locks that are held and change
//! hands, the token with them; and the metrics that tell when certificates expire.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use consul_lock::{
    Connection, Held, Locks, Prefix, Settings, Ttl,
    clock::Clock,
    consul::{
        Consistency, Consul as _,
        http::{HttpConfig, HttpConsul},
    },
    names::Key,
};
use jiff::{civil, tz::TimeZone};
use rustix::process::Signal;
use testbed::{Authority, CertFiles, Consul, ConsulConfig, Fault, Folder, Proxy, wait_for};
use tokio::task::JoinSet;

use crate::{
    agent,
    consul_access::token_of,
    fixtures::{PATIENCE, unique},
    run::scene::{Scene, valid_until},
};

/// When the certificates end that come by a rotation.
const NEW_CA_ENDS: i32 = 2095;
const NEW_CLIENT_ENDS: i32 = 2094;

/// A Consul over HTTPS, whose files are overwritten by those of another authority.
struct Bed {
    consul: &'static Consul,
    /// All connections go through it, so that they can be cut.
    proxy: Proxy,
    /// Our own copies: `ca.pem`, `cert.pem`, `key.pem`.
    ours: Folder,
    new: Authority,
    folder: Folder,
}

impl Bed {
    fn new() -> Bed {
        Bed::with(ConsulConfig::default())
    }

    fn with(config: ConsulConfig) -> Bed {
        let config = ConsulConfig { tls: true, ..config };
        let consul: &'static Consul = Box::leak(Box::new(Consul::start(config).unwrap()));
        let (ours, folder) = (Folder::new("ours").unwrap(), Folder::new("authority").unwrap());
        let files = consul.client_cert().unwrap();
        for (from, to) in [
            (consul.ca_file().unwrap(), "ca.pem"),
            (&files.cert, "cert.pem"),
            (&files.key, "key.pem"),
        ] {
            fs::copy(from, ours.path().join(to)).unwrap();
        }
        let proxy = Proxy::tcp(consul.https()).unwrap();
        let new = Authority::create_until(folder.path(), "new", NEW_CA_ENDS).unwrap();
        Bed { consul, proxy, ours, new, folder }
    }

    fn address(&self) -> String {
        format!("https://{}", self.proxy.address())
    }

    /// The flags that name our copies.
    fn flags(&self) -> [String; 3] {
        [("cacert", "ca.pem"), ("client-cert", "cert.pem"), ("client-key", "key.pem")].map(
            |(flag, name)| format!("--consul-{flag}={}", self.ours.path().join(name).display()),
        )
    }

    /// Consul's own file of this name.
    fn theirs(&self, name: &str) -> std::path::PathBuf {
        self.consul.ca_file().unwrap().with_file_name(name)
    }

    fn reload(&self) {
        assert!(self.consul.request("PUT", "/v1/agent/reload", b"").unwrap().ok());
    }

    /// Both trust both authorities, or the new one alone.
    fn trust(&self, with_old: bool) {
        let ca = fs::read_to_string(self.new.ca_file()).unwrap();
        let old = fs::read_to_string(self.ours.path().join("ca.pem")).unwrap();
        let bundle = if with_old { format!("{old}{ca}") } else { ca };
        replace(&self.theirs("consul-ca.pem"), &bundle);
        replace(&self.ours.path().join("ca.pem"), &bundle);
        self.reload();
    }

    fn rotate(&self) {
        let server = self.new.server("consul-server", &[], &[]).unwrap();
        let client = self.new.client_until("consul-client", None, NEW_CLIENT_ENDS).unwrap();
        copy(&server, &self.theirs("consul-server.crt"), &self.theirs("consul-server.key"));
        let ours = self.ours.path();
        copy(&client, &ours.join("cert.pem"), &ours.join("key.pem"));
        self.reload();
    }

    /// All connections that there are end, whoever made them.
    fn cut(&self) {
        self.proxy.set(Fault::Cut);
        let cut = || (self.proxy.open_connections() == 0).then_some(());
        wait_for("the connections to end", PATIENCE, cut).unwrap();
        self.proxy.set(Fault::None);
    }
}

/// By renaming, as Kubernetes does.
fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, path).unwrap();
}

fn copy(from: &CertFiles, cert: &Path, key: &Path) {
    replace(cert, &fs::read_to_string(&from.cert).unwrap());
    replace(key, &fs::read_to_string(&from.key).unwrap());
}

#[test]
fn a_lock_is_held_on_while_the_ca_and_all_certificates_are_rotated() {
    let bed = Bed::new();
    let scene = Scene { address: bed.address(), ..Scene::at("rotated", bed.consul) };
    let [ca, cert, key] = bed.flags();
    let mut run = scene.start(
        &[&ca, &cert, &key, "--ttl=4s", "--grace=500ms"],
        "echo $$ > $F/worker; exec sleep 600",
    );
    let worker = scene.process("worker");
    let held = scene.pair().unwrap();
    let old = fs::read(bed.ours.path().join("cert.pem")).unwrap();
    let old_key = fs::read(bed.ours.path().join("key.pem")).unwrap();

    bed.trust(true);
    bed.rotate();
    bed.trust(false);
    // Whatever connection there is was made with what is no good any more.
    bed.cut();
    let rotated = Clock::boot().now();
    let ttl = Duration::from_secs(4);
    let renewed = || (valid_until(worker) > rotated + ttl).then_some(());
    wait_for("a renewal over a new connection", PATIENCE, renewed).unwrap();
    assert_eq!(scene.pair().unwrap(), held, "{}", run.said());

    // The old ones are really no good any more.
    let outdated = |change: &dyn Fn(&mut HttpConfig)| {
        let mut config = HttpConfig::new(bed.address());
        config.ca_file = Some(bed.new.ca_file().to_owned());
        config.client_cert = Some(bed.ours.path().join("cert.pem"));
        config.client_key = Some(bed.ours.path().join("key.pem"));
        change(&mut config);
        let consul = HttpConsul::new(config).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let target = Key::new(&unique("outdated")).unwrap();
        runtime.block_on(consul.get(&target, Consistency::Default)).map(drop)
    };
    assert!(outdated(&|_| {}).is_ok());
    let cert = bed.folder.write("old.crt", &old).unwrap();
    let key = bed.folder.write("old.key", &old_key).unwrap();
    assert!(
        outdated(&|config| {
            config.client_cert = Some(cert.clone());
            config.client_key = Some(key.clone());
        })
        .is_err()
    );
    run.send(Signal::TERM);
    assert_eq!(run.wait().0, 143, "{}", run.said());
    assert_eq!(scene.holder(), None);
}

/// So many locks are held all the time, and so many others change hands meanwhile.
const HELD: usize = 50;
const WORKERS: usize = 8;
/// Of its sessions.
const TTL: Duration = Duration::from_secs(10);

/// Workers that acquire and release, each a key of its own.
struct Load {
    locks: Locks,
    prefix: String,
    turns: AtomicU64,
    is_over: AtomicBool,
}

impl Load {
    /// Until it is over. Whatever does not succeed is a panic.
    async fn work(&self, worker: usize) {
        let (key, mut last) = (format!("{}worker-{worker}", self.prefix), None);
        while !self.is_over.load(Ordering::Relaxed) {
            let held = self.locks.acquire(&key).await.unwrap();
            assert!(held.token() > last, "{:?} after {last:?}", held.token());
            last = held.token();
            held.release().await.unwrap();
            self.turns.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Blocks until some work has been done from now on.
    fn wait_goes_on(&self, under: &str) {
        let since = self.turns.load(Ordering::Relaxed);
        let goes_on = || (self.turns.load(Ordering::Relaxed) > since + 100).then_some(());
        wait_for(format!("work {under}"), PATIENCE, goes_on).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lock_is_lost_under_load_while_ca_certificates_and_token_are_rotated() {
    let bed = Bed::with(ConsulConfig { acl: true, ..ConsulConfig::default() });
    let prefix = format!("{}/", unique("load"));
    let rules = format!(
        r#"key_prefix "{prefix}" {{ policy = "write" }}
        session "consul-lock-library" {{ policy = "write" }}
        node "consul-lock-library" {{ policy = "write" }}"#
    );
    let (accessor, secret) = token_of(bed.consul, &rules);
    let token = bed.ours.write("token", secret).unwrap();
    let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| bed.ours.path().join(name));
    let connection =
        Connection::to(bed.address()).ca_file(ca).client_certificate(cert, key).token_file(&token);
    let settings = Settings::new(Prefix::new(&prefix).unwrap()).ttl(Ttl::new(TTL).unwrap());
    let locks = Locks::connect(connection, settings).unwrap();
    let load = Load { locks, prefix, turns: AtomicU64::new(0), is_over: AtomicBool::new(false) };
    let load = Arc::new(load);
    let mut held = Vec::new();
    for number in 0..HELD {
        held.push(load.locks.acquire(&format!("{}held-{number}", load.prefix)).await.unwrap());
    }
    let tokens = || held.iter().map(Held::token).collect::<Vec<_>>();
    let before = tokens();
    assert!(before.iter().all(Option::is_some), "{before:?}");
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let load = Arc::clone(&load);
        workers.spawn(async move { load.work(worker).await });
    }

    tokio::task::block_in_place(|| {
        load.wait_goes_on("before anything is rotated");
        bed.trust(true);
        bed.rotate();
        bed.trust(false);
        bed.cut();
        load.wait_goes_on("over connections made with what is new");
        let (_, next) = token_of(bed.consul, &rules);
        replace(&token, &next);
        // Taken away before everybody has read the new one.
        let old = format!("/v1/acl/token/{accessor}");
        assert!(bed.consul.request("DELETE", &old, b"").unwrap().ok());
        let rotated = Clock::boot().now();
        load.wait_goes_on("with the new token");
        let renewed =
            || held.iter().all(|held| held.valid_until() > Some(rotated + TTL)).then_some(());
        wait_for("a renewal with the new token", PATIENCE, renewed).unwrap();
    });
    load.is_over.store(true, Ordering::Relaxed);
    while let Some(worked) = workers.join_next().await {
        worked.unwrap();
    }
    assert_eq!(tokens(), before);
}

#[test]
fn metrics_tell_when_the_certificates_in_use_expire_and_follow_a_rotation() {
    let bed = Bed::new();
    let scene = agent::scene::Scene::through("expiry", &bed.address());
    let [ca, cert, key] = bed.flags();
    let mut agent = scene.start(&[&ca, &cert, &key, "--ttl=4s", "--grace=1s"]);
    let token = agent::scene::token(&agent.leads());
    let ends = |certificate: &str, year: i16| {
        let end = civil::date(year, 1, 1).to_zoned(TimeZone::UTC).unwrap();
        let labels = format!("{{certificate=\"{certificate}\"}}");
        let name = "consul_lock_consul_certificate_expiry_timestamp_seconds";
        agent.measures(&format!("{name}{labels} {}", end.timestamp().as_second()));
    };
    let (old, new_ca, new_client) = (4096, NEW_CA_ENDS as i16, NEW_CLIENT_ENDS as i16);
    ends("ca", old);
    ends("client", old);
    bed.trust(true);
    ends("ca", new_ca); // the first of the two to expire
    ends("client", old);
    bed.rotate();
    ends("client", new_client);
    bed.trust(false);
    ends("ca", new_ca);
    // What is no good is not in use.
    replace(&bed.ours.path().join("cert.pem"), "hello");
    let refused = || agent.said().contains("going on with the last").then_some(());
    wait_for("the file to be refused", PATIENCE, refused).unwrap();
    ends("client", new_client);
    assert_eq!(agent::scene::token(&agent.leads()), token, "{}", agent.said());
    agent.stop();
}
