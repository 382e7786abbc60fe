//! Clusters that lose their way to Consul, or one of their servers.

use serde_json::json;
use testbed::{Consul, ConsulConfig, wait_for};

use crate::bed::{
    PATIENCE, Space, cluster, disturbed_cluster, get_from_inside, pod, wait_for_answer, who_answers,
};

#[test]
fn two_clusters_reach_one_consul_until_one_of_them_is_cut_off() {
    let Some(steady) = cluster() else { return };
    let Some(cut) = disturbed_cluster() else { return };
    let config =
        ConsulConfig { also_on: vec![steady.gateway(), cut.gateway()], ..ConsulConfig::default() };
    let consul = Consul::start(config).unwrap();
    let put = consul.request("PUT", "/v1/kv/shared", b"by all").unwrap();
    assert!(put.ok());
    let space = Space::on(*cut, "cut");
    space.apply(&pod("client", &json!({})));
    let client = (space.wait_for_pod("client"), 8080).into();

    let url = |gateway| format!("http://{gateway}:{}/v1/kv/shared?raw", consul.http().port());
    let (steady_url, cut_url) = (url(steady.gateway()), url(cut.gateway()));
    let from_pod = || space.try_kubectl(&["exec", "client", "--", "/backend", "get", &cut_url]);
    assert_eq!(get_from_inside(steady, &steady_url).unwrap(), "by all");
    assert_eq!(get_from_inside(*cut, &cut_url).unwrap(), "by all");
    assert_eq!(from_pod().unwrap(), "by all");

    cut.cut().unwrap();
    let silence = get_from_inside(*cut, &cut_url).unwrap_err().to_string();
    assert!(silence.contains("Timeout"), "packets vanish, nobody refuses: {silence}");
    assert!(from_pod().unwrap_err().to_string().contains("Timeout"));
    assert_eq!(get_from_inside(steady, &steady_url).unwrap(), "by all");
    // What the tests need goes another way.
    assert_eq!(who_answers(client).unwrap(), "client");

    cut.heal().unwrap();
    assert_eq!(get_from_inside(*cut, &cut_url).unwrap(), "by all");
    assert_eq!(from_pod().unwrap(), "by all");
}

#[test]
fn pods_go_on_while_kubelet_containerd_and_api_server_are_away() {
    let Some(cluster) = disturbed_cluster() else { return };
    let space = Space::on(*cluster, "alone");
    space.apply(&pod("steady", &json!({})));
    let address = (space.wait_for_pod("steady"), 8080).into();
    let identity = || space.get("pod", "steady")["status"]["containerStatuses"][0].clone();
    let before = identity();

    cluster.kubelet().kill().unwrap();
    let node = format!("node/{}", cluster.node_name());
    space.kubectl(&["wait", "--for=condition=Ready=Unknown", &node, "--timeout=60s"]);
    wait_for_answer(address, "steady");
    cluster.kubelet().start_again().unwrap();
    space.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=60s"]);

    cluster.containerd().kill().unwrap();
    assert_eq!(who_answers(address).unwrap(), "steady");
    cluster.containerd().start_again().unwrap();

    cluster.apiserver().kill().unwrap();
    assert!(space.try_kubectl(&["get", "pods"]).is_err());
    assert_eq!(who_answers(address).unwrap(), "steady");
    cluster.apiserver().start_again().unwrap();

    cluster.kubelet().restart().unwrap();
    // Everybody works again, for old pods and for new ones.
    space.apply(&pod("new", &json!({})));
    space.wait_for_pod("new");
    space.kubectl(&["logs", "steady"]);
    let same = || {
        let now = identity();
        (now["containerID"] == before["containerID"]
            && now["restartCount"] == json!(0)
            && now["ready"] == json!(true))
        .then_some(())
    };
    wait_for("the same container as before", PATIENCE, same).unwrap();
}
