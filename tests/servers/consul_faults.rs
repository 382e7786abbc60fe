//! What the HTTP client makes of a server that is broken, hostile or not Consul at all.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use consul_lock::{
    clock::Clock,
    consul::{
        Behavior, Blocking, Class, Consistency, Consul, ConsulError, Operation, PutMode,
        SessionRequest, TxnOp,
        http::{HttpConfig, HttpConsul, Token, TokenSource},
    },
    names::{Key, NodeName, SessionId, SessionName},
};

use crate::scripted::{Reply, Scripted};

const TOKEN: &str = "5ec2e700-0000-4000-8000-00000000cafe";

fn key() -> Key {
    Key::new("a/key").unwrap()
}

fn client_with(address: &str, change: impl FnOnce(&mut HttpConfig)) -> HttpConsul {
    let mut config = HttpConfig::new(address);
    config.token = TokenSource::Value(Token::new(TOKEN).unwrap());
    config.timeout = Duration::from_secs(5);
    change(&mut config);
    HttpConsul::new(config).unwrap()
}

async fn against(reply: Reply) -> (Scripted, HttpConsul) {
    let server = Scripted::start(reply).await;
    let client = client_with(&server.address, |_| {});
    (server, client)
}

async fn read(consul: &HttpConsul) -> ConsulError {
    consul.get(&key(), Consistency::Consistent).await.unwrap_err()
}

async fn write(consul: &HttpConsul) -> ConsulError {
    consul.put(&key(), b"v", Some(1), PutMode::Plain).await.unwrap_err()
}

fn request() -> SessionRequest {
    SessionRequest {
        name: SessionName::new("name"),
        node: NodeName::new("node"),
        ttl: Duration::from_secs(15),
        lock_delay: Duration::from_secs(15),
        behavior: Behavior::Release,
        node_checks: Vec::new(),
        service_checks: Vec::new(),
    }
}

/// A read is tried again; a write may have happened.
async fn is_unanswered(reply: Reply) {
    let (_server, consul) = against(reply).await;
    let (read, write) = (read(&consul).await, write(&consul).await);
    assert_eq!((read.class, write.class), (Class::Transient, Class::UnknownOutcome), "{read}");
    let id = SessionId::new("id");
    for error in [
        consul.create_session(&request()).await.unwrap_err(),
        consul.renew_session(&id).await.unwrap_err(),
        consul.destroy_session(&id).await.unwrap_err(),
        consul.transaction(&[TxnOp::Delete { key: key() }]).await.unwrap_err(),
    ] {
        assert_eq!(error.class, Class::UnknownOutcome, "{error}");
    }
}

#[tokio::test]
async fn truncated_json_leaves_a_write_open() {
    is_unanswered(Reply::of("200 OK", "X-Consul-Index: 7\r\n", r#"[{"Key": "a/k"#)).await;
}

#[tokio::test]
async fn json_of_somebody_else_leaves_a_write_open() {
    is_unanswered(Reply::of("200 OK", "X-Consul-Index: 7\r\n", r#"{"hello": 1}"#)).await;
}

#[tokio::test]
async fn a_connection_cut_in_the_body_leaves_a_write_open() {
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\nX-Consul-Index: 7\r\n\r\ntrue";
    is_unanswered(Reply::Bytes(cut.into())).await;
}

#[tokio::test]
async fn a_connection_cut_before_the_answer_leaves_a_write_open() {
    is_unanswered(Reply::Bytes(Vec::new())).await;
}

#[tokio::test]
async fn an_answer_that_is_too_long_leaves_a_write_open() {
    let body = vec![b' '; 2 * 1024 * 1024 + 1];
    is_unanswered(Reply::of("200 OK", "X-Consul-Index: 7\r\n", body)).await;
}

#[tokio::test]
async fn garbage_leaves_a_write_open() {
    is_unanswered(Reply::Bytes(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec())).await;
}

#[tokio::test]
async fn a_reply_that_never_comes_is_given_up_in_time() {
    let server = Scripted::start(Reply::Silence).await;
    let limit = Duration::from_millis(300);
    let consul = client_with(&server.address, |config| config.timeout = limit);
    let (clock, begin) = (Clock::boot(), Clock::boot().now());
    assert_eq!(read(&consul).await.class, Class::Transient);
    let error = write(&consul).await;
    assert_eq!(error.class, Class::UnknownOutcome);
    assert_eq!(error.message, "no answer within 300ms");
    let took = clock.now().since(begin);
    assert!(took >= 2 * limit && took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_write_that_was_never_sent_is_transient() {
    let port = testbed::Port::reserve().unwrap(); // nobody listens there
    let consul = client_with(&format!("127.0.0.1:{}", port.number()), |_| {});
    let error = write(&consul).await;
    assert_eq!(error.class, Class::Transient, "{error}");
    assert!(error.message.contains("Connection refused"), "{error}");
    let consul = client_with("unix:///nonexistent/consul.sock", |_| {});
    assert_eq!(write(&consul).await.class, Class::Transient);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Scripted::start(Reply::of("200 OK", "", "true")).await;
    let location = format!("Location: http://{}/v1/kv/a/key\r\n", elsewhere.address);
    let (_server, consul) = against(Reply::of("307 Temporary Redirect", &location, "")).await;
    for error in [read(&consul).await, write(&consul).await] {
        assert_eq!(error.class, Class::Invalid, "{error}");
        assert!(error.message.contains("redirects are not followed"), "{error}");
    }
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn a_404_of_somebody_else_is_no_missing_key() {
    let (_server, consul) = against(Reply::of("404 Not Found", "", "404 page not found")).await;
    assert_eq!(read(&consul).await.class, Class::Invalid);
    let renewal = consul.renew_session(&SessionId::new("id")).await.unwrap_err();
    assert_eq!(renewal.class, Class::Invalid);
}

#[tokio::test]
async fn an_empty_list_of_somebody_else_is_no_lost_session() {
    let (_server, consul) = against(Reply::of("200 OK", "", "[]")).await;
    let error = consul.session(&SessionId::new("id"), Consistency::Consistent).await.unwrap_err();
    assert_eq!(error.class, Class::Transient);
    let error = consul.node_sessions(&NodeName::new("node")).await.unwrap_err();
    assert_eq!(error.class, Class::Transient);
}

#[tokio::test]
async fn what_acls_hid_is_denied_and_not_missing() {
    let headers = "X-Consul-Index: 7\r\nX-Consul-Results-Filtered-By-ACLs: true\r\n";
    let (_server, consul) = against(Reply::of("200 OK", headers, "[]")).await;
    let blocking = Blocking { after: 0, wait: Duration::from_secs(1) };
    let id = SessionId::new("id");
    for error in [
        consul.session(&id, Consistency::Consistent).await.unwrap_err(),
        consul.node_sessions(&NodeName::new("node")).await.unwrap_err(),
        consul.watch_prefix("a/", blocking, Consistency::Default).await.unwrap_err(),
    ] {
        assert_eq!(error.class, Class::Denied, "{error}");
    }
}

#[tokio::test]
async fn too_many_connections_is_transient_even_for_a_write() {
    let words = "Your IP is issuing too many concurrent connections, please rate limit your calls";
    let (_server, consul) = against(Reply::of("429 Too Many Requests", "", words)).await;
    let error = write(&consul).await;
    assert_eq!(error.class, Class::Transient);
    assert_eq!(error.message, format!("429: {words}"));
}

#[tokio::test]
async fn an_error_is_one_short_line_without_the_token() {
    let body = format!("bad\r\n\x1b[31mtoken {TOKEN} {}", "x".repeat(3 * 1024 * 1024));
    let (_server, consul) = against(Reply::of("500 Internal Server Error", "", body)).await;
    let error = read(&consul).await;
    assert!(error.message.starts_with("500: bad[31mtoken <token> xxx"), "{error}");
    assert!(error.message.chars().count() < 320 && !error.message.contains(TOKEN));
    assert!(!format!("{error:?} {consul:?}").contains(TOKEN));
}

#[tokio::test]
async fn a_denied_step_of_a_transaction_is_denied() {
    let body = r#"{"Results":null,"Errors":[{"OpIndex":0,"What":"Permission denied: token with
        AccessorID 'x' lacks permission 'key:write' on \"a/key\""}]}"#;
    let body = body.replace('\n', " ");
    let (_server, consul) = against(Reply::of("409 Conflict", "", body)).await;
    let error = consul.transaction(&[TxnOp::Delete { key: key() }]).await.unwrap_err();
    assert_eq!(error.class, Class::Denied);
    assert!(error.message.contains("'key:write' on \"a/key\""), "{error}");
}

#[tokio::test]
async fn a_request_carries_token_and_tenant_and_a_body_of_known_length() {
    let server = Scripted::start(Reply::of("200 OK", "", r#"{"ID": "new"}"#)).await;
    let consul = client_with(&server.address, |config| {
        config.namespace = Some("team a".into());
        config.partition = Some("eu".into());
    });
    assert_eq!(consul.create_session(&request()).await.unwrap(), SessionId::new("new"));
    let sent = server.requests().remove(0);
    let (head, body) = sent.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("PUT /v1/session/create?ns=team+a&partition=eu HTTP/1.1\r\n"));
    assert!(head.contains(&format!("x-consul-token: {TOKEN}")), "{head}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert!(body.contains(r#""NodeChecks":[]"#), "{body}");
}

#[tokio::test]
async fn reads_say_which_server_may_answer() {
    let server = Scripted::start(Reply::of("404 Not Found", "X-Consul-Index: 7\r\n", "")).await;
    let consul = client_with(&server.address, |_| {});
    for consistency in [Consistency::Default, Consistency::Stale, Consistency::Consistent] {
        assert_eq!(consul.get(&key(), consistency).await.unwrap().pair, None);
    }
    let blocking = Blocking { after: 7, wait: Duration::from_secs(3600) };
    let missing = consul.watch_prefix("a/", blocking, Consistency::Stale).await.unwrap();
    assert_eq!((missing.pairs.len(), missing.index), (0, 7));
    let first_lines: Vec<String> =
        server.requests().iter().map(|sent| sent.lines().next().unwrap().to_owned()).collect();
    assert_eq!(
        first_lines,
        [
            "GET /v1/kv/a/key HTTP/1.1",
            "GET /v1/kv/a/key?stale HTTP/1.1",
            "GET /v1/kv/a/key?consistent HTTP/1.1",
            "GET /v1/kv/a/?recurse&stale&index=7&wait=60s HTTP/1.1",
        ]
    );
}

#[tokio::test]
async fn calls_wait_for_their_turn_and_polls_have_turns_of_their_own() {
    let server = Scripted::start(Reply::Silence).await;
    let consul = client_with(&server.address, |config| {
        config.max_in_flight = 1;
        config.timeout = Duration::from_secs(1);
    });
    let target = key();
    let first = consul.get(&target, Consistency::Default);
    let second = async {
        tokio::task::yield_now().await; // behind the first
        write(&consul).await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.unwrap_err().message, "no answer within 1s");
    assert_eq!(second.class, Class::Transient);
    assert!(second.message.ends_with("not sent"), "{second}");
    assert_eq!(server.requests().len(), 1);

    let blocking = Blocking { after: 1, wait: Duration::from_secs(60) };
    let poll = consul.watch_key(&target, blocking, Consistency::Default);
    let call = consul.get(&target, Consistency::Default);
    tokio::select! {
        early = poll => panic!("{early:?}"),
        late = call => assert_eq!(late.unwrap_err().message, "no answer within 1s"),
    }
    assert_eq!(server.requests().len(), 3); // the poll was sent, and so was the call beside it
}

#[tokio::test]
async fn the_observer_hears_of_every_call() {
    let server = Scripted::start(Reply::of("200 OK", "", "true")).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = heard.clone();
    let consul = client_with(&server.address, |config| {
        config.observer = Some(Arc::new(move |operation, result, latency| {
            assert!(latency < Duration::from_secs(5));
            sink.lock().push((operation, result));
        }));
    });
    consul.delete(&key()).await.unwrap();
    read(&consul).await;
    assert_eq!(
        *heard.lock(),
        [(Operation::DeleteKey, Ok(())), (Operation::ReadKey, Err(Class::Transient))]
    );
}
