//! A controller whose way to Consul is wrong from the start: it starts, says what is wrong in its log,
//! on `/readyz` and in the claims' conditions, and works once it is put right. So do `run`s say it.

use std::{fs, path::Path};

use serde_json::{Value, json};
use testbed::{Answer, Authority, CertFiles, Consul, ConsulConfig, Fault, Folder, Proxy, Validity};

use crate::{
    consul_access::armoured_consul,
    consul_login::{Door, administer},
    fixtures::{guarded_consul, shared_consul},
    run::scene::Scene,
    site::{Replica, Site, Way, eventually},
};

/// A controller with these flags, and one claim of it.
struct Misled {
    site: Site,
    replica: Replica,
}

impl Misled {
    async fn start(what: &str, address: &str, flags: &[String]) -> Misled {
        let site = Site::through(what, address, None, Way::Straight).await;
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let replica = site.start_with(&flags).await;
        site.create("claim", json!({})).await;
        Misled { site, replica }
    }

    /// Waits until log, `/readyz` and a condition say this.
    async fn says(&self, words: &str) {
        self.shows(words).await;
        let readyz = || async {
            let reply = self.replica.get("/readyz").map(|reply| (reply.status, reply.text()));
            match &reply {
                Some((503, text)) if text.contains("[-] consul: ") && text.contains(words) => {
                    Ok(())
                }
                _ => Err(reply),
            }
        };
        eventually(&format!("/readyz to say {words:?}"), readyz).await;
        assert!(self.replica.log().contains(words), "no {words:?} in: {}", self.replica.log());
    }

    /// Waits until a condition says this.
    async fn shows(&self, words: &str) {
        let told = |status: &consul_lock::api::ConsulLockStatus| {
            status.conditions.iter().any(|condition| condition.message.contains(words))
        };
        self.site.wait("claim", words, told).await;
    }

    /// It was put right.
    async fn recovers(&self) {
        self.site.held("claim").await;
        self.replica.wait_ready().await;
        self.site
            .wait("claim", "no trouble", |status| {
                let truth = |name: &str| crate::site::condition(status, name).0;
                truth("ConsulReachable") == "True" && truth("Ready") == "True"
            })
            .await;
        assert!(self.replica.server.pid().is_some(), "it was not started again");
    }
}

/// Runs `true` under a lock, which must come to nothing and say why.
async fn run_says(consul: &'static Consul, address: String, flags: &[String], words: &'static str) {
    let flags = flags.to_vec();
    let run = move || {
        let scene = Scene { address, ..Scene::at("misled", consul) };
        let flags = ["--retries=0"].into_iter().chain(flags.iter().map(String::as_str));
        let flags: Vec<&str> = flags.collect();
        let ended = scene.run(&flags, &["true"]);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(matches!(ended.status.code(), Some(2 | 69)), "{:?}: {said}", ended.status);
        assert!(said.contains(words), "no {words:?} in: {said}");
    };
    tokio::task::spawn_blocking(run).await.unwrap();
}

/// By renaming, as Kubernetes does.
fn replace(path: &Path, text: impl AsRef<[u8]>) {
    let next = path.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, path).unwrap();
}

fn flag(name: &str, folder: &Folder, file: &str) -> String {
    format!("--consul-{name}={}", folder.path().join(file).display())
}

fn identity(folder: &Folder) -> [String; 3] {
    [("cacert", "ca.pem"), ("client-cert", "cert.pem"), ("client-key", "key.pem")]
        .map(|(name, file)| flag(name, folder, file))
}

fn put_identity(folder: &Folder, files: &CertFiles) {
    replace(&folder.path().join("key.pem"), fs::read(&files.key).unwrap());
    replace(&folder.path().join("cert.pem"), fs::read(&files.cert).unwrap());
}

// ---- Consul's certificate ----

/// A Consul over HTTPS that has the certificates of another authority.
struct Impostor {
    consul: &'static Consul,
    authority: Authority,
    folder: Folder,
}

impl Impostor {
    fn new() -> Impostor {
        let config = ConsulConfig { tls: true, ..ConsulConfig::default() };
        let consul: &'static Consul = Box::leak(Box::new(Consul::start(config).unwrap()));
        let folder = Folder::new("impostor").unwrap();
        let authority = Authority::create(folder.path(), "ca").unwrap();
        put_identity(&folder, &authority.client("us", None).unwrap());
        replace(consul.ca_file().unwrap(), fs::read(authority.ca_file()).unwrap());
        Impostor { consul, authority, folder }
    }

    fn has(&self, validity: Validity, name: &str) {
        let files = self.authority.server_called(name, validity).unwrap();
        let theirs = |file: &str| self.consul.ca_file().unwrap().with_file_name(file);
        replace(&theirs("consul-server.key"), fs::read(files.key).unwrap());
        replace(&theirs("consul-server.crt"), fs::read(files.cert).unwrap());
        assert!(self.consul.request("PUT", "/v1/agent/reload", b"").unwrap().ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consul_whose_certificate_is_expired_not_yet_valid_or_another_s_is_refused_by_name() {
    let impostor = tokio::task::spawn_blocking(Impostor::new).await.unwrap();
    impostor.has(Validity::Past, "localhost");
    let (flags, consul) = (identity(&impostor.folder), impostor.consul);
    let misled = Misled::start("impostor", &consul.address(), &flags).await;
    for (validity, name, words) in [
        (Validity::Past, "localhost", "Consul's certificate has expired"),
        (Validity::Future, "localhost", "Consul's certificate is not valid yet"),
        (Validity::Present, "elsewhere", "Consul's certificate has another name"),
    ] {
        impostor.has(validity, name);
        misled.says(words).await;
        run_says(consul, consul.address(), &flags, words).await;
    }
    impostor.has(Validity::Present, "localhost");
    misled.recovers().await;
}

// ---- our own files ----

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_missing_no_certificates_or_not_ours_are_named_until_they_are_right()
{
    let consul = tokio::task::spawn_blocking(armoured_consul).await.unwrap();
    let (folder, others) = (Folder::new("ours").unwrap(), Folder::new("others").unwrap());
    let file = |name: &str| folder.path().join(name);
    let other = Authority::create(others.path(), "other").unwrap();
    let (right, wrong) = (consul.client_cert().unwrap(), other.client("us", None).unwrap());
    let misled = Misled::start("files", &consul.address(), &identity(&folder)).await;

    misled.says(&format!("the CA file {} cannot be read", file("ca.pem").display())).await;
    replace(&file("ca.pem"), "hello");
    misled.says(&format!("the CA file {} is no PEM file", file("ca.pem").display())).await;
    replace(&file("ca.pem"), fs::read(other.ca_file()).unwrap());
    misled.says("the client certificate file").await;
    replace(&file("cert.pem"), fs::read(&right.cert).unwrap());
    replace(&file("key.pem"), fs::read(&wrong.key).unwrap());
    misled.says("cannot be used together").await;
    put_identity(&folder, &wrong);
    misled.says("of an authority that is not trusted").await;
    replace(&file("ca.pem"), fs::read(consul.ca_file().unwrap()).unwrap());
    misled.says("Consul does not accept the client certificate").await;
    put_identity(&folder, right);
    misled.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_is_waited_for_and_a_token_that_consul_does_not_know_or_that_lacks_a_rule_named()
 {
    let folder = Folder::new("token").unwrap();
    let file = folder.path().join("token");
    let flags = [flag("http-token-file", &folder, "token")];
    let consul = tokio::task::spawn_blocking(guarded_consul).await.unwrap();
    let misled = Misled::start("token", &consul.address(), &flags).await;
    misled.says(&format!("the token file {} cannot be used: No such file", file.display())).await;
    replace(&file, "");
    misled.says("the token is empty").await;
    replace(&file, "11111111-2222-3333-4444-555555555555");
    misled.says("Consul does not know the token").await;
    let none = json!({"Policies": []});
    replace(&file, secret(&administer("PUT", "/v1/acl/token".to_owned(), none)));
    misled.shows("lacks permission 'node:write'").await;
    misled.replica.wait_ready().await;
    replace(&file, consul.token().unwrap());
    misled.recovers().await;
}

fn secret(token: &Value) -> String {
    token["SecretID"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_fails_says_why_until_it_is_let_in() {
    let door = Door::new("misled").await;
    let folder = Folder::new("bearer").unwrap();
    let file = folder.path().join("bearer");
    let flags = [
        format!("--consul-login-auth-method={}", door.method),
        flag("login-bearer-token-file", &folder, "bearer"),
    ];
    let misled = Misled::start("login", &guarded_consul().address(), &flags).await;
    misled.says(&format!("the bearer token file {}: No such file", file.display())).await;
    replace(&file, door.jwt("other").await);
    misled.says("403: Permission denied").await;
    let method = format!("/v1/acl/auth-method/{}", door.method);
    administer("DELETE", method, Value::Null);
    replace(&file, door.jwt("worker").await);
    misled.says(&format!("auth method \"{}\" not found", door.method)).await;
    door.open().await;
    misled.recovers().await;
}

// ---- the address ----

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_where_there_is_tls_and_tls_where_there_is_none_and_no_client_certificate_are_told()
 {
    let consul = tokio::task::spawn_blocking(armoured_consul).await.unwrap();
    let ca = vec![format!("--consul-cacert={}", consul.ca_file().unwrap().display())];
    for (what, address, flags, words) in [
        (
            "plain",
            format!("http://localhost:{}", consul.https().port()),
            vec![],
            "Consul's address there begins with https://",
        ),
        (
            "no-tls",
            format!("https://localhost:{}", consul.http().port()),
            ca.clone(),
            "Consul's address there begins with http://",
        ),
        ("no-identity", consul.address(), ca.clone(), "Consul wants a client certificate"),
    ] {
        let misled = Misled::start(what, &address, &flags).await;
        misled.says(words).await;
        run_says(consul, address, &flags, words).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_consul_is_taken_for_what_it_is_until_consul_is_there() {
    let consul = tokio::task::spawn_blocking(shared_consul).await.unwrap();
    let proxy = Proxy::http(consul.http()).unwrap();
    let always = |answer: Answer| {
        proxy.forget_answers();
        proxy.answer_next(usize::MAX, "/", answer);
    };
    always(Answer::text(200, "<html><body>It works!</body></html>"));
    let misled = Misled::start("not-consul", &proxy.address().to_string(), &[]).await;
    misled.says("not an answer of Consul's").await;
    always(Answer::text(404, "<html>404 Not Found</html>"));
    misled.says("not an answer of Consul's, so look at its address (<html>404").await;
    // As a server of Consul's answers that has lost its leader.
    always(Answer::text(500, "No cluster leader"));
    proxy.answer_next(usize::MAX, "GET /v1/status/leader", Answer::text(200, "\"\""));
    misled.says("No cluster leader").await;
    proxy.set(Fault::None);
    proxy.forget_answers();
    misled.recovers().await;
}
