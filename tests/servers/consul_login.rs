//! Login with the token of a service account: a real Consul has a real API server review it.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use consul_lock::{
    clock::Clock,
    consul::{
        Class, Consistency, Consul as _, Operation, PutMode,
        http::{HttpConfig, HttpConsul, LoginSettings, Token, TokenSource},
    },
    names::Key,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{Api, Client, api::PostParams, config::Kubeconfig};
use rustix::process::Signal;
use serde_json::{Value, json};
use testbed::{Folder, wait_for};

use crate::{
    agent,
    faults_kubernetes::put,
    fixtures::{
        PATIENCE, control_plane, create_namespace, guarded_consul, kube_client, shared_consul,
        unique,
    },
    run::scene::Scene,
    site::{Replica, Site, Way, eventually},
};

/// The shortest that Consul allows.
const TOKENS_LIVE: Duration = Duration::from_secs(60);

/// An auth method of Consul's, by which one service account of a namespace may log in.
pub(crate) struct Door {
    pub(crate) method: String,
    namespace: String,
    client: Client,
    folder: Folder,
}

pub(crate) fn administer(method: &'static str, path: String, body: Value) -> Value {
    let reply = guarded_consul().request(method, &path, body.to_string().as_bytes()).unwrap();
    assert!(reply.ok(), "{path}: {} {}", reply.status, reply.text());
    serde_json::from_str(&reply.text()).unwrap_or_default()
}

impl Door {
    pub(crate) async fn new(what: &str) -> Door {
        let (client, namespace) = (kube_client().await, unique(what));
        create_namespace(&client, &namespace).await;
        let method = namespace.clone();
        let door = Door { method, namespace, client, folder: Folder::new("login").unwrap() };
        let rules = r#"key_prefix "" { policy = "write" }
            session_prefix "" { policy = "write" }
            node_prefix "" { policy = "write" }"#;
        let name = door.method.clone();
        tokio::task::spawn_blocking(move || {
            let policy = json!({ "Name": name, "Rules": rules });
            administer("PUT", "/v1/acl/policy".to_owned(), policy);
            let role = json!({ "Name": name, "Policies": [{ "Name": name }] });
            administer("PUT", "/v1/acl/role".to_owned(), role);
        })
        .await
        .unwrap();
        door.open().await;
        door
    }

    /// Makes the auth method and its rule, which go together.
    pub(crate) async fn open(&self) {
        let settings = self.settings(&self.reviewer().await);
        let name = self.method.clone();
        let selector =
            format!(r#"serviceaccount.namespace=="{name}" and serviceaccount.name=="worker""#);
        tokio::task::spawn_blocking(move || {
            administer("PUT", "/v1/acl/auth-method".to_owned(), settings);
            let rule = json!({
                "AuthMethod": name, "BindType": "role", "BindName": name, "Selector": selector,
            });
            administer("PUT", "/v1/acl/binding-rule".to_owned(), rule);
        })
        .await
        .unwrap();
    }

    /// As whom Consul has tokens reviewed.
    async fn reviewer(&self) -> String {
        let name = unique("reviewer");
        let subject =
            json!([{ "kind": "ServiceAccount", "name": "reviewer", "namespace": self.namespace }]);
        let rules = json!([
            {
                "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"],
                "verbs": ["create"],
            },
            { "apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"] },
        ]);
        let role = json!({ "metadata": { "name": name }, "rules": rules });
        put(Api::<ClusterRole>::all(self.client.clone()), &name, role).await;
        let binding = json!({
            "metadata": { "name": name }, "subjects": subject,
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name,
            },
        });
        put(Api::<ClusterRoleBinding>::all(self.client.clone()), &name, binding).await;
        self.jwt("reviewer").await
    }

    fn settings(&self, reviewer: &str) -> Value {
        let kubeconfig = Kubeconfig::read_from(control_plane().kubeconfig()).unwrap();
        let cluster = kubeconfig.clusters[0].cluster.clone().unwrap();
        let authority = std::fs::read_to_string(cluster.certificate_authority.unwrap()).unwrap();
        json!({
            "Name": self.method, "Type": "kubernetes",
            "MaxTokenTTL": format!("{}s", TOKENS_LIVE.as_secs()),
            "Config": {
                "Host": cluster.server.unwrap(), "CACert": authority,
                "ServiceAccountJWT": reviewer,
            },
        })
    }

    /// A token of this service account, which is made if need be.
    pub(crate) async fn jwt(&self, account: &str) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        put(accounts.clone(), account, json!({ "metadata": { "name": account } })).await;
        let spec = TokenRequestSpec { expiration_seconds: Some(600), ..Default::default() };
        let request = TokenRequest { spec, ..Default::default() };
        let made = accounts.create_token_request(account, &PostParams::default(), &request).await;
        made.unwrap().status.unwrap().token
    }

    async fn bearer_token_of(&self, account: &str) -> PathBuf {
        self.folder.write(account, self.jwt(account).await).unwrap()
    }

    fn client(&self, bearer_token_file: PathBuf) -> HttpConsul {
        let meta = vec![("pod".to_owned(), "shop/worker".to_owned())];
        let mut config = HttpConfig::new(guarded_consul().address());
        let method = self.method.clone();
        config.token = TokenSource::Login(LoginSettings { method, bearer_token_file, meta });
        HttpConsul::new(config).unwrap()
    }

    /// The tokens that logins have made and nobody has given back.
    fn tokens(&self) -> Vec<String> {
        let path = format!("/v1/acl/tokens?authmethod={}", self.method);
        let tokens = administer("GET", path, Value::Null);
        let accessor = |token: &Value| token["AccessorID"].as_str().unwrap().to_owned();
        tokens.as_array().into_iter().flatten().map(accessor).collect()
    }
}

fn key() -> Key {
    Key::new(&unique("login")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_logs_in_once_and_logs_out() {
    let door = Door::new("door").await;
    let consul = door.client(door.bearer_token_of("worker").await);
    let target = key();
    let writes = (0..20).map(|_| consul.put(&target, b"", None, PutMode::Plain));
    for wrote in futures::future::join_all(writes).await {
        assert!(wrote.unwrap());
    }
    let [accessor] = door.tokens().try_into().unwrap();
    let token = administer("GET", format!("/v1/acl/token/{accessor}"), Value::Null);
    let description = token["Description"].as_str().unwrap();
    assert!(description.contains(r#""pod":"shop/worker""#), "{description}");
    consul.log_out().await;
    assert_eq!(door.tokens(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_not_log_in_is_told_why() {
    let door = Door::new("shut").await;
    let refused = async |consul: HttpConsul| {
        let error = consul.get(&key(), Consistency::Default).await.unwrap_err();
        assert!(error.message.contains("cannot log in by the auth method"), "{error}");
        error
    };
    // No binding rule is for it.
    let other = door.bearer_token_of("other").await;
    let error = refused(door.client(other)).await;
    assert_eq!(error.class, Class::Denied, "{error}");
    let jwt = "header.payload.signature";
    let error = refused(door.client(door.folder.write("forged", jwt).unwrap())).await;
    assert_eq!(error.class, Class::Invalid, "{error}");
    assert!(!error.message.contains(jwt), "{error}");
    let elsewhere = Door { method: unique("no-such-method"), ..Door::new("elsewhere").await };
    let error = refused(elsewhere.client(elsewhere.bearer_token_of("worker").await)).await;
    assert_ne!(error.class, Class::Transient, "{error}");
    let missing = door.client(PathBuf::from("/nonexistent/token"));
    let error = refused(missing).await;
    assert!(error.message.contains("/nonexistent/token: No such file"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_held_on_while_tokens_are_taken_away_and_expire() {
    let door = Door::new("expiring").await;
    let file = door.bearer_token_of("worker").await;
    let idle = Idle::start().await;
    tokio::task::spawn_blocking(move || {
        let scene = Scene::at("expiring", guarded_consul());
        let method = format!("--consul-login-auth-method={}", door.method);
        let bearer = format!("--consul-login-bearer-token-file={}", file.display());
        let mut run = scene.start(
            &[&method, &bearer, "--ttl=10s", "--grace=1s"],
            "echo $CONSUL_LOCK_TOKEN > $F/token; env > $F/env; echo $$ > $F/worker; exec sleep 600",
        );
        scene.process("worker");
        let held = scene.pair().unwrap();
        let other_than = |old: &[String]| {
            let tokens = door.tokens();
            tokens.iter().any(|token| !old.contains(token)).then_some(tokens)
        };
        // An administrator takes it away.
        let first = door.tokens();
        administer("DELETE", format!("/v1/acl/token/{}", first[0]), Value::Null);
        let second = wait_for("another token", PATIENCE, || other_than(&first)).unwrap();
        // The next is got before this one ends.
        wait_for("the next token", TOKENS_LIVE, || other_than(&second)).unwrap();
        assert_eq!(scene.pair().unwrap(), held, "{}", run.said());
        let environment = std::fs::read_to_string(scene.folder.path().join("env")).unwrap();
        assert!(!environment.contains("CONSUL_LOGIN_BEARER"), "{environment}");
        run.send(Signal::TERM);
        assert_eq!(run.wait().0, 143);
        assert_eq!(scene.holder(), None);
        // All but the one that was in use until the last login, which ends by itself.
        let logged_out = || (door.tokens().len() <= 1).then_some(());
        wait_for("the log-out", PATIENCE, logged_out).unwrap();
    })
    .await
    .unwrap();
    idle.has_logged_in_again().await;
}

/// A controller without a claim, which has nothing to ask Consul for.
struct Idle {
    replica: Replica,
    first: f64,
    _site: Site,
    /// The bearer token's file is its.
    _door: Door,
}

impl Idle {
    const EXPIRY: &str = "consul_lock_consul_token_expiry_timestamp_seconds";

    async fn start() -> Idle {
        let door = Door::new("idle").await;
        let site = Site::through("idle", &guarded_consul().address(), None, Way::Straight).await;
        let method = format!("--consul-login-auth-method={}", door.method);
        let bearer = door.bearer_token_of("worker").await;
        let bearer = format!("--consul-login-bearer-token-file={}", bearer.display());
        let replica = site.start_with(&[&method, &bearer]).await;
        let known = || async { replica.metric(Idle::EXPIRY).ok_or("nothing is known") };
        let first = eventually("the token's end to be known", known).await;
        assert!((0.0..=TOKENS_LIVE.as_secs_f64()).contains(&left(first)), "{}", left(first));
        Idle { replica, first, _site: site, _door: door }
    }

    /// By itself, and before the last token has expired.
    async fn has_logged_in_again(&self) {
        let other = || async {
            let end = self.replica.metric(Idle::EXPIRY).ok_or(0.0)?;
            assert!(left(end) > 0.0, "it expired {} s ago", -left(end));
            if end > self.first { Ok(()) } else { Err(left(end)) }
        };
        eventually("the next login", other).await;
    }
}

/// For how many seconds what ends then is still good.
fn left(end: f64) -> f64 {
    end - Clock::boot().wall().as_second() as f64
}

/// A token that may do anything, for as long as this, or for ever: its secret, and when it ends.
fn token_for(life: Option<&str>) -> (String, Option<Timestamp>) {
    let mut wanted = json!({ "Policies": [{ "Name": "global-management" }] });
    if let Some(life) = life {
        wanted["ExpirationTTL"] = life.into();
    }
    let token = administer("PUT", "/v1/acl/token".to_owned(), wanted);
    let ends = token["ExpirationTime"].as_str().map(|end| end.parse().unwrap());
    (token["SecretID"].as_str().unwrap().to_owned(), ends)
}

#[test]
fn an_agent_s_metrics_tell_when_its_token_expires_and_follow_a_rotation() {
    let scene = agent::scene::Scene::through("expiry", &guarded_consul().address());
    let [(first, ends), (second, ends_later), (third, never)] =
        [Some("1h"), Some("2h"), None].map(token_for);
    assert!(never.is_none() && ends < ends_later);
    let file = scene.folder.write("secret", first).unwrap();
    let mut agent = scene.start(&[&format!("--consul-http-token-file={}", file.display())]);
    let name = "consul_lock_consul_token_expiry_timestamp_seconds";
    let told =
        |ends: Option<Timestamp>| agent.measures(&format!("{name} {}", ends.unwrap().as_second()));
    told(ends);
    scene.folder.write("secret", second).unwrap();
    told(ends_later);
    scene.folder.write("secret", third).unwrap();
    let gone = || (!agent.get("/metrics")?.1.contains(name)).then_some(());
    wait_for("a token that does not expire", PATIENCE, gone).unwrap();
    agent.leads();
    agent.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_is_asked_once_for_each_token_until_when_it_is_good() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = |token: TokenSource| {
        let (asked, mut config) = (Arc::clone(&asked), HttpConfig::new(guarded_consul().address()));
        config.token = token;
        config.observer = Some(Arc::new(move |operation, _, _| {
            assert_eq!(operation, Operation::ReadToken);
            asked.fetch_add(1, Ordering::Relaxed);
        }));
        HttpConsul::new(config).unwrap()
    };
    let folder = Folder::new("token").unwrap();
    let made = tokio::task::spawn_blocking(|| [Some("1h"), None].map(token_for)).await.unwrap();
    let [(mortal, ends), (immortal, _)] = made;
    let file = folder.write("token", mortal).unwrap();
    let consul = counted(TokenSource::File(file.clone()));
    assert_eq!(consul.token_life(), None, "Consul has not told");
    for _ in 0..3 {
        consul.look_after_token().await.unwrap();
        let life = consul.token_life().unwrap();
        assert_eq!(Some(life.end), ends);
        assert_eq!(life.end.duration_since(life.start), SignedDuration::from_hours(1));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    folder.write("token", immortal).unwrap();
    let another = || async {
        consul.look_after_token().await.unwrap();
        if asked.load(Ordering::Relaxed) > 1 { Ok(()) } else { Err(()) }
    };
    eventually("the other token", another).await;
    consul.look_after_token().await.unwrap();
    assert_eq!((consul.token_life(), asked.load(Ordering::Relaxed)), (None, 2));

    let door = Door::new("told").await;
    let bearer_token_file = door.bearer_token_of("worker").await;
    let settings = LoginSettings { method: door.method.clone(), bearer_token_file, meta: vec![] };
    let consul = counted(TokenSource::Login(settings));
    consul.look_after_token().await.unwrap();
    let [accessor] = door.tokens().try_into().unwrap();
    let token = administer("GET", format!("/v1/acl/token/{accessor}"), Value::Null);
    let ends: Timestamp = token["ExpirationTime"].as_str().unwrap().parse().unwrap();
    assert_eq!(consul.token_life().map(|life| life.end), Some(ends));
    consul.log_out().await;
    assert_eq!(consul.token_life(), None);

    // There are no ACLs here.
    let mut config = HttpConfig::new(shared_consul().address());
    config.token = TokenSource::Value(Token::new("any").unwrap());
    let consul = HttpConsul::new(config).unwrap();
    consul.look_after_token().await.unwrap();
    assert_eq!(consul.token_life(), None);
}
