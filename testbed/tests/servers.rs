//! The servers come up and answer.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testbed::{
    Answer, Consul, ConsulCluster, ConsulClusterConfig, ConsulConfig, ControlPlane, Fault,
    Postgres, Proxy, wait_for,
};

#[test]
fn consul_answers_and_keeps_its_data_over_a_kill() {
    let config = ConsulConfig { persistent: true, ..ConsulConfig::default() };
    let consul = Consul::start(config).unwrap();
    assert!(consul.request("PUT", "/v1/kv/key", b"value").unwrap().ok());
    consul.server().kill().unwrap();
    consul.server().start_again().unwrap();
    let output = consul.cli(["kv", "get", "key"]).unwrap().output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "value\n");
}

#[test]
fn consul_with_tls_and_acls_wants_a_certificate_and_a_token() {
    let config = ConsulConfig { tls: true, acl: true, unix_socket: true, ..Default::default() };
    let consul = Consul::start(config).unwrap();
    let put = |strip: &str| {
        let mut command = consul.cli(["kv", "put", "key", "value"]).unwrap();
        command.env_remove(strip).output().unwrap().status.success()
    };
    assert!(put(""));
    assert!(!put("CONSUL_CLIENT_CERT") && !put("CONSUL_HTTP_TOKEN") && !put("CONSUL_CACERT"));
    assert!(consul.unix_socket().exists());
}

/// Starts a command and hands out the lines that it prints.
fn lines_of(command: &mut Command) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines.map(Result::unwrap))
}

fn wait_for_end(mut child: Child) {
    drop(child.stdin.take());
    let ended = wait_for("its end", Duration::from_secs(20), || child.try_wait().unwrap());
    assert!(ended.unwrap().success());
}

#[test]
fn consuls_own_go_client_locks_and_hears_of_a_cut_through_a_proxy() {
    let consul = Consul::start(ConsulConfig::default()).unwrap();
    let proxy = Proxy::http(consul.http()).unwrap();
    let lock = || {
        let mut command = consul.api_lock(["-ttl", "10s", "some/key"]).unwrap();
        command.env("CONSUL_HTTP_ADDR", proxy.address().to_string());
        lines_of(&mut command)
    };

    let (child, mut lines) = lock();
    assert!(lines.next().unwrap().starts_with("locked "));
    wait_for_end(child);
    assert_eq!(lines.next().unwrap(), "unlocked");
    assert_eq!(proxy.requests("PUT /v1/session/create"), 1);

    proxy.answer_next(1, "GET /v1/kv/some/key", Answer::Late(Duration::from_millis(50)));
    let (child, mut lines) = lock();
    assert!(lines.next().unwrap().starts_with("locked "));
    proxy.set(Fault::Cut);
    assert_eq!(lines.next().unwrap(), "lost");
    wait_for_end(child);
    let closed = || (proxy.open_connections() == 0).then_some(());
    wait_for("the end of its connections", Duration::from_secs(10), closed).unwrap();
}

#[test]
fn a_cluster_of_three_elects_another_leader() {
    let cluster = ConsulCluster::start(&ConsulClusterConfig::default()).unwrap();
    let first = cluster.wait_for_leader_other_than(None).unwrap();
    cluster.servers()[first].server().kill().unwrap();
    let second = cluster.wait_for_leader_other_than(Some(first)).unwrap();
    cluster.servers()[first].server().start_again().unwrap();
    cluster.wait_for_voters(3).unwrap();
    cluster.servers()[second].leave().unwrap();
    let third = cluster.wait_for_leader_other_than(Some(second)).unwrap();
    assert_ne!(third, second);
}

#[test]
fn the_control_plane_answers_and_knows_who_may_do_what() {
    let kubernetes = ControlPlane::start().unwrap();
    let ready = kubernetes.kubectl(["get", "--raw", "/readyz"]).unwrap().output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ready.stdout), "ok");

    let nobody = kubernetes.kubeconfig_for("nobody", Some("strangers")).unwrap();
    let mut ask = kubernetes.kubectl(["auth", "can-i", "list", "pods"]).unwrap();
    let answer = ask.env("KUBECONFIG", nobody).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "no\n");

    kubernetes.apiserver().restart().unwrap();
    assert!(kubernetes.kubectl(["get", "namespaces"]).unwrap().output().unwrap().status.success());
}

#[test]
fn postgres_has_databases_and_says_what_is_wrong_with_a_statement() {
    if Postgres::skips() {
        return;
    }
    let postgres = Postgres::start().unwrap();
    let (one, two) = (postgres.database("one").unwrap(), postgres.database("two").unwrap());
    one.sql("CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, 'x'), (2, 'y')").unwrap();
    assert_eq!(one.sql("SELECT a, b FROM t ORDER BY a").unwrap(), "1|x\n2|y");
    let error = two.sql("SELECT a FROM t").unwrap_err().to_string();
    assert!(error.contains("relation \"t\" does not exist"), "{error}");
    postgres.server().restart().unwrap();
    assert_eq!(one.sql("SELECT count(*) FROM t").unwrap(), "2");
}
