//! Certificates that somebody rotates: the CA, Consul's own and ours, under a lock that is held, and with
//! them the metrics that tell when they expire.

use std::{fs, path::Path};

use consul_lock::{
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

use crate::{
    agent,
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
        let config = ConsulConfig { tls: true, ..ConsulConfig::default() };
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
    bed.proxy.set(Fault::Cut);
    let cut = || (bed.proxy.open_connections() == 0).then_some(());
    wait_for("the connections to end", PATIENCE, cut).unwrap();
    bed.proxy.set(Fault::None);
    let rotated = Clock::boot().now();
    let ttl = std::time::Duration::from_secs(4);
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
