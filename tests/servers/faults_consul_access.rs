//! ACLs that lack a rule, and tokens that change while locks are held.

use consul_lock::{
    api::{ConsulLockStatus, Phase},
    consul::{
        Consul, PutMode,
        http::{HttpConfig, HttpConsul, Token, TokenSource},
    },
};
use serde_json::{Value, json};
use testbed::{Folder, Reply};

use crate::{
    faults_consul::{Scene, losses, never_lost, one_session_each, renewed, requests},
    fixtures::{LOCK_FLAGS, guarded_consul, unique},
    site::{Replica, Site, condition},
};

/// Speaks to the guarded Consul as its administrator.
fn administer(method: &str, path: &str, body: &Value) -> Reply {
    let reply = guarded_consul().request(method, path, body.to_string().as_bytes()).unwrap();
    assert!(reply.ok(), "{path}: {} {}", reply.status, reply.text());
    reply
}

/// A policy that changes while a token has it.
struct Policy {
    name: String,
    id: String,
}

impl Policy {
    fn new(rules: &str) -> Policy {
        let name = unique("faults");
        let body = json!({ "Name": name, "Rules": rules });
        let id = administer("PUT", "/v1/acl/policy", &body).json()["ID"].as_str().unwrap().into();
        Policy { name, id }
    }

    fn change(&self, rules: &str) {
        let body = json!({ "ID": self.id, "Name": self.name, "Rules": rules });
        administer("PUT", &format!("/v1/acl/policy/{}", self.id), &body);
    }

    /// A new token: its accessor and its secret.
    fn token(&self) -> (String, String) {
        let body = json!({ "Policies": [{ "Name": self.name }] });
        let token = administer("PUT", "/v1/acl/token", &body).json();
        let field = |name: &str| token[name].as_str().unwrap().to_owned();
        (field("AccessorID"), field("SecretID"))
    }
}

/// A scene on the guarded Consul, seen with its administrator's eyes.
async fn guarded(what: &str) -> Scene {
    let consul = tokio::task::spawn_blocking(guarded_consul).await.unwrap();
    let mut scene = Scene::before(what, consul).await;
    let mut config = HttpConfig::new(consul.address());
    config.token = TokenSource::Value(Token::new(consul.token().unwrap()).unwrap());
    scene.site.consul = HttpConsul::new(config).unwrap();
    scene
}

/// A replica whose token is in a file of the folder.
async fn start_with_token(site: &Site, folder: &Folder, secret: &str) -> Replica {
    let file = folder.write("token", secret).unwrap();
    let file = format!("--consul-http-token-file={}", file.display());
    site.start_with(&[
        "--lease-duration=2s",
        "--lease-renew-deadline=1s",
        "--lease-retry-period=250ms",
        &file,
    ])
    .await
}

/// Waits until the claim says that a rule is missing.
async fn denied(site: &Site, name: &str, rule: &str) -> ConsulLockStatus {
    let named = |status: &ConsulLockStatus| {
        let (truth, reason, message) = condition(status, "Ready");
        truth == "False" && reason == "ConsulDenied" && message.contains(rule)
    };
    site.wait(name, &format!("denied for want of {rule}"), named).await
}

#[tokio::test]
async fn each_missing_rule_is_named_until_it_is_there() {
    let scene = guarded("denied").await;
    let site = &scene.site;
    let policy = Policy::new("");
    let (_, secret) = policy.token();
    let folder = Folder::new("token").unwrap();
    // Of a key that is hidden, nobody can say whether it is held.
    site.consul.put(&site.key("past"), b"", Some(LOCK_FLAGS), PutMode::Plain).await.unwrap();
    let replica = start_with_token(site, &folder, &secret).await;
    site.create("a", json!({})).await;
    site.create("b", json!({})).await;
    let (cluster, node) =
        (site.cluster(), format!("consul-lock-{}-{}", site.cluster(), site.namespace));

    let mut rules = String::new();
    let mut grant = |rule: String| {
        rules += &rule;
        rules += "\n";
        policy.change(&rules);
    };
    let status = denied(site, "a", "node:write").await;
    assert_eq!(status.phase, Some(Phase::Pending));
    assert_eq!(status.session, None);
    grant(format!(r#"node "{node}" {{ policy = "write" }}"#));
    let status = denied(site, "a", "session:write").await;
    assert!(condition(&status, "Ready").2.contains(&node));
    site.event("a", "ConsulDenied").await;
    grant(format!(r#"session "{node}" {{ policy = "write" }}"#));
    denied(site, "a", "key:read").await;
    grant(format!(r#"key_prefix "{cluster}/" {{ policy = "read" }}"#));
    let status = denied(site, "a", "key:write").await;
    assert!(condition(&status, "Ready").2.contains(site.key("a").as_str()));
    assert_eq!(status.phase, Some(Phase::Waiting));

    grant(format!(r#"key "{}" {{ policy = "write" }}"#, site.key("b")));
    let other = site.held("b").await;
    assert_eq!(site.status("a").await.phase, Some(Phase::Waiting));
    grant(format!(r#"key "{}" {{ policy = "write" }}"#, site.key("a")));
    site.held("a").await;
    assert_eq!(condition(&site.status("a").await, "Ready").0, "True");
    never_lost(site, "b", other).await;
    assert!(requests(&replica, "transaction", "Denied") >= 1.0);
    assert!(!replica.log().contains(&secret), "the token must not be logged");
    one_session_each(site, 2).await;
    scene.end().await;
}

#[tokio::test]
async fn a_right_that_is_withdrawn_and_given_back_in_time_loses_nothing() {
    let scene = guarded("withdrawn").await;
    let site = &scene.site;
    let all = r#"
        node_prefix "" { policy = "write" }
        session_prefix "" { policy = "write" }
        key_prefix "" { policy = "write" }
    "#;
    let policy = Policy::new(all);
    let (_, secret) = policy.token();
    let folder = Folder::new("token").unwrap();
    let replica = start_with_token(site, &folder, &secret).await;
    site.create("a", json!({ "session": { "ttl": "10s" } })).await;
    site.create("b", json!({ "session": { "ttl": "60s" } })).await;
    let tokens = [site.held("a").await, site.held("b").await];
    policy.change("");
    let jeopardy = |status: &ConsulLockStatus| condition(status, "SessionHealthy").1 == "Jeopardy";
    let status = site.wait("a", "jeopardy", jeopardy).await;
    assert_eq!(status.phase, Some(Phase::Held));
    policy.change(all);
    for (name, token) in ["a", "b"].into_iter().zip(tokens) {
        let healthy = |status: &ConsulLockStatus| condition(status, "SessionHealthy").0 == "True";
        site.wait(name, "a healthy session", healthy).await;
        never_lost(site, name, token).await;
    }
    assert_eq!(losses(&replica, "Expired"), 0.0);
    one_session_each(site, 2).await;
    scene.end().await;
}

#[tokio::test]
async fn a_rotated_token_file_loses_nothing_though_the_old_token_is_gone() {
    let scene = guarded("rotated").await;
    let site = &scene.site;
    let policy = Policy::new(
        r#"
        node_prefix "" { policy = "write" }
        session_prefix "" { policy = "write" }
        key_prefix "" { policy = "write" }
        "#,
    );
    let (accessor, old) = policy.token();
    let folder = Folder::new("token").unwrap();
    let replica = start_with_token(site, &folder, &old).await;
    let mut tokens = Vec::new();
    for name in ["a", "b"] {
        site.create(name, json!({ "session": { "ttl": "10s" } })).await;
        tokens.push(site.held(name).await);
    }
    let (_, new) = policy.token();
    folder.write("token", &new).unwrap();
    // At once: whatever still uses the old one is refused.
    administer("DELETE", &format!("/v1/acl/token/{accessor}"), &Value::Null);
    renewed(&scene, 3).await;
    site.create("c", json!({})).await;
    site.held("c").await;
    for (name, token) in ["a", "b"].into_iter().zip(tokens) {
        let healthy = |status: &ConsulLockStatus| condition(status, "SessionHealthy").0 == "True";
        site.wait(name, "a healthy session", healthy).await;
        never_lost(site, name, token).await;
    }
    assert_eq!(losses(&replica, "Expired"), 0.0);
    for secret in [old, new] {
        assert!(!replica.log().contains(&secret), "the token must not be logged");
    }
    one_session_each(site, 3).await;
    scene.end().await;
}
