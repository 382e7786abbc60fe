//! What the real Consul does on the wire, below what our client can be made to send: why the
//! client is as it is.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use consul_lock::{
    consul::{Class, Consul, TxnOp},
    names::{Key, NodeName, SessionId},
};
use serde_json::{Value, json};

use crate::fixtures::{Lab, client_of, shared_consul, unique};

/// Sends bytes as they are and returns the whole answer.
fn raw(request: &str) -> String {
    let mut stream = TcpStream::connect(shared_consul().http()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(path: &str) -> String {
    raw(&format!("GET {path} HTTP/1.1\r\nHost: consul\r\nConnection: close\r\n\r\n"))
}

fn ask(method: &str, path: &str, body: &Value) -> Value {
    let body = body.to_string();
    shared_consul().request(method, path, body.as_bytes()).unwrap().json()
}

/// A session in Consul's own words.
fn session(id: &Value) -> Value {
    ask("GET", &format!("/v1/session/info/{}", id.as_str().unwrap()), &Value::Null)[0].take()
}

#[test]
fn a_chunked_session_request_is_silently_ignored() {
    let body = json!({"Name": "chunked", "TTL": "15s", "NodeChecks": []}).to_string();
    let answer = raw(&format!(
        "PUT /v1/session/create HTTP/1.1\r\nHost: consul\r\nConnection: close\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    ));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let created: Value =
        serde_json::from_str(&answer[answer.find('{').unwrap()..=answer.rfind('}').unwrap()])
            .unwrap();
    let seen = session(&created["ID"]);
    assert_eq!((&seen["Name"], &seen["TTL"]), (&json!(""), &json!("")), "{seen}");
    assert_eq!(seen["NodeChecks"], json!(["serfHealth"]));
    assert_eq!(seen["LockDelay"], json!(15_000_000_000_u64));
    ask("PUT", &format!("/v1/session/destroy/{}", created["ID"].as_str().unwrap()), &Value::Null);
}

#[test]
fn paths_with_dots_or_double_slashes_are_redirected() {
    for path in ["/v1/kv/a/../b", "/v1/kv/a//b", "/v1/kv/a/./b"] {
        let answer = get(path);
        let status = answer.lines().next().unwrap();
        assert!(status.contains(" 301 ") || status.contains(" 307 "), "{path}: {status}");
    }
}

#[test]
fn control_characters_in_a_key_are_refused() {
    for path in ["/v1/kv/a%00b", "/v1/kv/a%0Ab"] {
        let answer = get(path);
        assert!(answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
    }
}

#[test]
fn a_bare_number_is_a_lock_delay_in_seconds() {
    let node = unique("wire");
    ask("PUT", "/v1/catalog/register", &json!({"Node": node, "Address": "127.0.0.1"}));
    let create = |delay: Value| {
        let body = json!({"Node": node, "NodeChecks": [], "TTL": "60s", "LockDelay": delay});
        session(&ask("PUT", "/v1/session/create", &body)["ID"])["LockDelay"].take()
    };
    assert_eq!(create(json!(5)), json!(5_000_000_000_u64));
    assert_eq!(create(json!("5ms")), json!(5_000_000));
}

#[tokio::test]
async fn our_sessions_are_bound_to_no_check() {
    let lab = Lab::real().await;
    let seen = session(&json!(lab.session().await.as_str()));
    assert_eq!((&seen["NodeChecks"], &seen["ServiceChecks"]), (&json!([]), &json!([])), "{seen}");
}

#[tokio::test]
async fn a_node_that_is_there_keeps_its_address_and_its_sessions() {
    let (consul, name) = (client_of(shared_consul()), unique("owned"));
    let theirs = json!({"Node": name, "Address": "192.0.2.7", "NodeMeta": {"owner": "them"}});
    ask("PUT", "/v1/catalog/register", &theirs);
    let create = json!({"Node": name, "NodeChecks": [], "TTL": "60s"});
    let id = SessionId::new(ask("PUT", "/v1/session/create", &create)["ID"].as_str().unwrap());
    consul.register_node(&NodeName::new(name.clone())).await.unwrap();
    let node = ask("GET", &format!("/v1/catalog/node/{name}"), &Value::Null)["Node"].take();
    assert_eq!((&node["Address"], &node["Meta"]), (&json!("192.0.2.7"), &json!({"owner": "them"})));
    consul.renew_session(&id).await.unwrap();
}

#[tokio::test]
async fn strangers_keys_in_a_prefix_are_read_as_they_are() {
    let lab = Lab::real().await;
    let odd = format!("/v1/kv/{}%20%C3%BC%25?flags=16210313421097356768", lab.prefix);
    assert!(shared_consul().request("PUT", &odd, b"").unwrap().ok());
    let now = consul_lock::consul::Blocking { after: 0, wait: std::time::Duration::from_secs(1) };
    let default = consul_lock::consul::Consistency::Default;
    let seen = lab.consul.watch_prefix(&lab.prefix, now, default).await.unwrap();
    assert_eq!(seen.pairs[0].key, format!("{} ü%", lab.prefix));
    assert_eq!(seen.pairs[0].flags, 0xe0f6_9a2b_aa41_4de0);
}

#[tokio::test]
async fn a_transaction_that_is_too_long_in_bytes_is_invalid() {
    let lab = Lab::real().await;
    let set = |nth: usize| TxnOp::Set {
        key: Key::new(&format!("{}{nth}", lab.prefix)).unwrap(),
        value: vec![b'x'; 400 * 1024],
        flags: 0,
    };
    let error = lab.consul.transaction(&[set(0), set(1)]).await.unwrap_err();
    assert_eq!(error.class, Class::Invalid, "{error}");
    assert!(error.message.contains("too large"), "{error}");
}

#[tokio::test]
async fn without_acls_there_is_no_token_to_ask_about() {
    let error = client_of(shared_consul()).token_self().await.unwrap_err();
    assert_eq!(error.class, Class::Invalid);
    assert!(error.message.contains("ACL support disabled"), "{error}");
}
