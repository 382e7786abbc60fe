//! The servers come up and answer.

use testbed::{Consul, ConsulCluster, ConsulClusterConfig, ConsulConfig, ControlPlane};

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
