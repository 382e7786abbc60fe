//! The ways to a real Consul: sockets, gateways, TLS, tokens, and limits on connections.

use std::{path::PathBuf, sync::OnceLock, time::Duration};

use consul_lock::{
    clock::Clock,
    consul::{
        Blocking, Class, Consistency, Consul, ConsulError, PutMode, TxnOp,
        http::{HttpConfig, HttpConsul, Token, TokenSource},
    },
    names::{Key, NodeName},
};
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    fixtures::{Lab, PATIENCE, guarded_consul, shared_consul, unique},
    scripted::Gateway,
};

fn client(address: impl Into<String>, change: impl FnOnce(&mut HttpConfig)) -> HttpConsul {
    let mut config = HttpConfig::new(address);
    change(&mut config);
    HttpConsul::new(config).unwrap()
}

fn key() -> Key {
    Key::new(&unique("access")).unwrap()
}

/// Everything works: a read, a write, a poll and a session.
async fn works(consul: HttpConsul) {
    let lab = Lab::on(consul).await;
    let (target, session) = (lab.key("k"), lab.session().await);
    let held = lab.lock(&target, &session).await.unwrap();
    let blocking = Blocking { after: held.modify_index, wait: PATIENCE };
    let poll = lab.consul.watch_key(&target, blocking, Consistency::Default);
    let (seen, released) = tokio::join!(poll, lab.release(&target, &session));
    assert!(released && seen.unwrap().pair.unwrap().session.is_none());
    lab.consul.destroy_session(&session).await.unwrap();
}

// ---- addresses and TLS ----

/// A Consul on HTTPS with an authority of its own, and on a Unix socket.
pub(crate) fn armoured_consul() -> &'static testbed::Consul {
    static CONSUL: OnceLock<testbed::Consul> = OnceLock::new();
    let config = testbed::ConsulConfig { tls: true, unix_socket: true, ..Default::default() };
    CONSUL.get_or_init(|| testbed::Consul::start(config).unwrap())
}

fn with_certificates(config: &mut HttpConfig) {
    let consul = armoured_consul();
    config.ca_file = consul.ca_file().map(PathBuf::from);
    config.client_cert = consul.client_cert().map(|files| files.cert.clone());
    config.client_key = consul.client_cert().map(|files| files.key.clone());
}

#[tokio::test]
async fn consul_is_reached_by_a_unix_socket() {
    let socket = armoured_consul().unix_socket();
    works(client(format!("unix://{}", socket.display()), |_| {})).await;
}

#[tokio::test]
async fn consul_is_reached_under_a_path_prefix() {
    let gateway = Gateway::start(shared_consul().http(), "/consul/eu").await;
    works(client(format!("{}/", gateway.address), |_| {})).await;
    let elsewhere = client(gateway.address.replace("/eu", "/us"), |_| {});
    let error = elsewhere.get(&key(), Consistency::Default).await.unwrap_err();
    assert_eq!(error.class, Class::Invalid, "{error}");
}

#[tokio::test]
async fn consul_is_reached_with_its_own_ca_and_a_client_certificate() {
    works(client(armoured_consul().address(), with_certificates)).await;
}

/// What a TLS connection says that must not come about.
async fn refused(address: String, change: impl FnOnce(&mut HttpConfig)) -> ConsulError {
    let consul = client(address, |config| {
        with_certificates(config);
        change(config);
    });
    consul.put(&key(), b"", None, PutMode::Plain).await.unwrap_err()
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused() {
    let folder = testbed::Folder::new("other-ca").unwrap();
    let other = testbed::Authority::create(folder.path(), "other").unwrap();
    let error = refused(armoured_consul().address(), |config| {
        config.ca_file = Some(other.ca_file().to_owned());
    })
    .await;
    assert_eq!(error.class, Class::Transient, "{error}"); // nothing was sent
    assert!(error.message.contains("invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn consul_refuses_a_client_without_a_certificate() {
    let error = refused(armoured_consul().address(), |config| {
        config.client_cert = None;
        config.client_key = None;
    })
    .await;
    // Nothing was written if the refusal came early; over TLS 1.3 it may come late.
    assert!(matches!(error.class, Class::Transient | Class::UnknownOutcome), "{error}");
}

#[tokio::test]
async fn the_certificate_must_have_the_name_that_is_configured() {
    let address = format!("https://{}", armoured_consul().https());
    works(client(address.clone(), |config| {
        with_certificates(config);
        config.tls_server_name = Some("localhost".into());
    }))
    .await;
    let error = refused(address, |config| {
        config.tls_server_name = Some("consul.example".into());
    })
    .await;
    assert!(error.message.contains("not valid for name"), "{error}");
}

#[test]
fn a_server_name_is_a_dns_name() {
    for odd in ["", "127.0.0.1", "a b"] {
        let mut config = HttpConfig::new("https://localhost:8501");
        with_certificates(&mut config);
        config.tls_server_name = Some(odd.into());
        let error = HttpConsul::new(config).unwrap_err();
        assert!(error.to_string().contains("is no DNS name"), "{odd:?}: {error}");
    }
}

// ---- tokens ----

/// A new token with such rules: accessor and secret.
pub(crate) fn token(rules: &str) -> (String, String) {
    token_of(guarded_consul(), rules)
}

/// The same of another Consul.
pub(crate) fn token_of(consul: &testbed::Consul, rules: &str) -> (String, String) {
    let name = unique("policy");
    let made = |path: &str, body: serde_json::Value| {
        let reply = consul.request("PUT", path, body.to_string().as_bytes()).unwrap();
        assert!(reply.ok(), "{}", reply.text());
        reply.json()
    };
    made("/v1/acl/policy", json!({"Name": name, "Rules": rules}));
    let token = made("/v1/acl/token", json!({"Policies": [{"Name": name}]}));
    let field = |name: &str| token[name].as_str().unwrap().to_owned();
    (field("AccessorID"), field("SecretID"))
}

fn with_token(secret: &str) -> HttpConsul {
    let source = TokenSource::Value(Token::new(secret).unwrap());
    client(guarded_consul().address(), |config| config.token = source)
}

#[tokio::test]
async fn a_denial_names_the_missing_rule_and_never_the_token() {
    let (accessor, secret) = token(r#"key_prefix "elsewhere/" { policy = "read" }"#);
    let (consul, lab) = (with_token(&secret), guarded_lab().await);
    let (target, node) = (lab.key("k"), lab.node.as_str());
    let steps = [TxnOp::Set { key: target.clone(), value: Vec::new(), flags: 0 }];
    let (session, unknown) = (lab.session().await, NodeName::new(unique("unknown")));
    consul.register_node(&lab.node).await.unwrap(); // it is there: nothing to write, no rule needed
    for (error, rule, name) in [
        (consul.register_node(&unknown).await.unwrap_err(), "node:write", unknown.as_str()),
        (consul.create_session(&lab.request()).await.unwrap_err(), "session:write", node),
        (consul.renew_session(&session).await.unwrap_err(), "session:write", node),
        (consul.destroy_session(&session).await.unwrap_err(), "session:write", node),
        (consul.get(&target, Consistency::Default).await.unwrap_err(), "key:read", target.as_str()),
        (consul.delete(&target).await.unwrap_err(), "key:write", target.as_str()),
        (consul.transaction(&steps).await.unwrap_err(), "key:write", target.as_str()),
    ] {
        assert_eq!(error.class, Class::Denied, "{error}");
        let words = format!("lacks permission '{rule}' on \"{name}\"");
        assert!(error.message.contains(&words) && error.message.contains(&accessor), "{error}");
        assert!(!format!("{error:?}{error}{consul:?}").contains(&secret));
    }
}

async fn guarded_lab() -> Lab<HttpConsul> {
    Lab::on(with_token(guarded_consul().token().unwrap())).await
}

#[tokio::test]
async fn what_a_token_may_not_see_is_denied_and_not_missing() {
    let lab = guarded_lab().await;
    let (session, seen, hidden) = (lab.session().await, lab.key("seen"), lab.key("hidden"));
    for key in [&seen, &hidden] {
        lab.consul.put(key, b"", None, PutMode::Plain).await.unwrap();
    }
    let (_, secret) = token(&format!(r#"key "{seen}" {{ policy = "read" }}"#));
    let consul = with_token(&secret);
    let now = Blocking { after: 0, wait: Duration::from_secs(1) };
    for error in [
        consul.session(&session, Consistency::Consistent).await.unwrap_err(),
        consul.node_sessions(&lab.node).await.unwrap_err(),
        consul.watch_prefix(&lab.prefix, now, Consistency::Default).await.unwrap_err(),
    ] {
        assert_eq!(error.class, Class::Denied, "{error}");
        assert!(error.message.contains(":read"), "{error}");
    }
    assert!(consul.get(&seen, Consistency::Default).await.unwrap().pair.is_some());
    let nobody = NodeName::new("no-such-node");
    assert!(consul.node_sessions(&nobody).await.unwrap().is_empty()); // nothing hidden there
}

#[tokio::test]
async fn consul_hides_from_the_anonymous_that_it_hides_something() {
    let (lab, anonymous) = (guarded_lab().await, client(guarded_consul().address(), |_| {}));
    let session = lab.session().await;
    let seen = anonymous.session(&session, Consistency::Consistent).await.unwrap();
    assert_eq!(seen, None); // though it lives: why an empty answer alone proves no loss
    let error = anonymous.get(&lab.key("k"), Consistency::Consistent).await.unwrap_err();
    assert_eq!(error.class, Class::Denied);
    lab.consul.renew_session(&session).await.unwrap();
}

#[tokio::test]
async fn consul_says_who_it_takes_us_for() {
    let (accessor, secret) = token("");
    let info = with_token(&secret).token_self().await.unwrap();
    assert_eq!((info.accessor_id, info.life), (accessor, None));
}

#[tokio::test]
async fn a_token_that_consul_does_not_know_yet_is_worth_another_try() {
    let consul = with_token("11111111-2222-3333-4444-555555555555");
    let error = consul.get(&key(), Consistency::Default).await.unwrap_err();
    assert_eq!(error.class, Class::Transient, "{error}");
    assert!(error.message.contains("ACL not found"), "{error}");
}

#[tokio::test]
async fn a_rotated_token_file_is_used_without_a_denial() {
    let rules = r#"key_prefix "" { policy = "write" }"#;
    let ((old_accessor, old), (_, new)) = (token(rules), token(rules));
    let folder = testbed::Folder::new("token").unwrap();
    let file = folder.write("token", &old).unwrap();
    let source = TokenSource::File(file);
    let consul = client(guarded_consul().address(), |config| config.token = source);
    let target = key();
    consul.put(&target, b"", None, PutMode::Plain).await.unwrap();

    folder.write("token", "").unwrap(); // in the middle of being written
    consul.put(&target, b"", None, PutMode::Plain).await.unwrap();
    folder.write("token", format!("{new}\n")).unwrap();
    let gone = format!("/v1/acl/token/{old_accessor}");
    assert!(guarded_consul().request("DELETE", &gone, b"").unwrap().ok());
    let (clock, begin) = (Clock::boot(), Clock::boot().now());
    while let Err(error) = consul.put(&target, b"", None, PutMode::Plain).await {
        assert_eq!(error.class, Class::Transient, "{error}");
        assert!(clock.now().since(begin) < PATIENCE, "still the old token");
        clock.sleep_until(clock.now() + Duration::from_millis(50)).await;
    }
}

// ---- limits ----

fn narrow_consul(connections: u32) -> testbed::Consul {
    let config = testbed::ConsulConfig {
        http_max_conns_per_client: Some(connections),
        ..Default::default()
    };
    testbed::Consul::start(config).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_calls_at_once_share_a_few_connections() {
    // Five calls and two polls at a time; the pool may have a few more connections on their way
    // back, and on a busy machine several.
    let narrow = narrow_consul(24);
    let consul = client(narrow.address(), |config| config.timeout = PATIENCE);
    let blocking = Blocking { after: u64::MAX, wait: Duration::from_secs(60) };
    let mut polls = JoinSet::new();
    for target in [key(), key()] {
        let consul = consul.clone();
        polls.spawn(async move {
            consul.watch_key(&target, blocking, Consistency::Default).await.unwrap();
        });
    }
    let mut calls = JoinSet::new();
    for nth in 0..500_u64 {
        let (consul, target) = (consul.clone(), key());
        calls.spawn(async move {
            assert!(consul.put(&target, b"", Some(nth), PutMode::Plain).await.unwrap());
            let seen = consul.get(&target, Consistency::Consistent).await.unwrap();
            assert_eq!(seen.pair.unwrap().flags, nth);
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    assert!(polls.try_join_next().is_none(), "a poll ended early");
}

#[tokio::test]
async fn a_connection_too_many_is_refused_in_a_way_that_can_be_tried_again() {
    let narrow = narrow_consul(10);
    let consul = client(narrow.address(), |config| config.max_polls = 10);
    let taken = key();
    consul.put(&taken, b"", None, PutMode::Plain).await.unwrap();
    let after = consul.get(&taken, Consistency::Default).await.unwrap().index;
    let blocking = Blocking { after, wait: Duration::from_secs(60) };
    let mut polls = JoinSet::new();
    for _ in 0..10 {
        let (consul, taken) = (consul.clone(), taken.clone());
        polls.spawn(async move { consul.watch_key(&taken, blocking, Consistency::Stale).await });
    }
    // The polls are parked one after the other; from then on there is no room for a newcomer.
    let (clock, begin) = (Clock::boot(), Clock::boot().now());
    let error = loop {
        let newcomer = client(narrow.address(), |_| {});
        match newcomer.put(&key(), b"", None, PutMode::Plain).await {
            Err(error) => break error,
            Ok(_) => assert!(clock.now().since(begin) < PATIENCE, "never refused"),
        }
        clock.sleep_until(clock.now() + Duration::from_millis(20)).await;
    };
    assert_eq!(error.class, Class::Transient, "{error}");
    assert!(error.message.contains("too many"), "{error}");
}
