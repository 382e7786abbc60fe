//! What `docs/src/operations/disasters.md` says of Kubernetes, tried on real servers: all of it set back
//! to a backup of etcd, and a cluster built anew beside one that is drained, or lost.

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use consul_lock::api::{ConsulLockStatus, Phase};
use serde_json::{Value, json};
use testbed::{ControlPlane, run};
use tokio::task::{block_in_place, spawn_blocking};

use crate::{
    fixtures::{PATIENCE, client_by, control_plane, install_crd, shared_consul},
    kubectl::{Plugin, Said},
    pods::{Cast, candidates},
    site::{Replica, Site, eventually, token},
};

/// Within this a key that is given up, or taken by force, is somebody else's. Left to its session it
/// would take longer.
const AT_ONCE: Duration = Duration::from_secs(5);

fn terms(lock_delay: &str) -> Value {
    json!({ "ttl": "10s", "lockDelay": lock_delay })
}

// ---- set back ----

/// Claims that are about to fare as they are called.
const MEANWHILE: [&str; 5] = ["kept", "resumed", "deleted", "remade", "taken"];

async fn hold_all(site: &Site, cast: &Cast) {
    for name in MEANWHILE {
        site.create(name, json!({ "session": terms("0s") })).await;
    }
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    let mut elected = candidates(json!({}));
    elected["session"] = terms("0s");
    site.create("elected", elected).await;
    cast.led_by("elected", "a").await;
    for name in MEANWHILE {
        site.held(name).await;
    }
}

/// What a backup that was made before does not know of; the newest token of each key.
async fn live_on(site: &Site, cast: &Cast, elsewhere: &Site) -> BTreeMap<&'static str, u64> {
    for name in ["resumed", "taken"] {
        site.change(name, json!({ "paused": true })).await;
        site.wait_phase(name, Phase::Paused).await;
    }
    site.change("resumed", json!({ "paused": false })).await;
    let mut newest = BTreeMap::from([("resumed", site.held("resumed").await)]);
    for name in ["deleted", "remade"] {
        newest.insert(name, token(&site.status(name).await));
        site.delete(name).await;
        site.gone(name).await;
    }
    site.create("remade", json!({ "session": terms("0s") })).await;
    newest.insert("remade", site.held("remade").await);
    elsewhere.create("taken", json!({ "key": site.key("taken").as_str() })).await;
    newest.insert("taken", elsewhere.held("taken").await);
    cast.ended("a").await;
    newest.insert("elected", cast.led_by("elected", "b").await);
    site.create("young", json!({ "session": terms("0s") })).await;
    site.held("young").await;
    newest
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_set_back_to_a_backup_costs_no_tenure_that_it_knows_and_no_token_falls() {
    let cluster = spawn_blocking(ControlPlane::start).await.unwrap().unwrap();
    let site = Site::beside("set-back", &cluster).await;
    let elsewhere = Site::new("elsewhere").await;
    elsewhere.share_keys_of(&site).await;
    let cast = Cast::new(&site).await;
    let (replica, _other) = (site.start().await, elsewhere.start().await);
    hold_all(&site, &cast).await;
    let kept = site.tenures(&["kept"]).await;
    let backup = block_in_place(|| cluster.back_up()).unwrap();
    let newest = live_on(&site, &cast, &elsewhere).await;
    let theirs = site.pair(&site.key("taken")).await.unwrap();

    block_in_place(|| cluster.restore(&backup)).unwrap();
    assert!(site.claims.get_opt("young").await.unwrap().is_none(), "nothing was set back");
    replica.wait_leads().await;
    let rises = |claim: &'static str| {
        let newest = newest[claim];
        move |status: &ConsulLockStatus| status.phase == Some(Phase::Held) && token(status) > newest
    };
    for claim in ["resumed", "deleted"] {
        site.wait(claim, "a token that rises", rises(claim)).await;
    }
    let taken = site.wait_phase("taken", Phase::Waiting).await;
    assert_eq!(taken.holder.unwrap().cluster.as_deref(), Some(elsewhere.cluster()));
    assert!(cast.led_by("elected", "a").await > newest["elected"]);
    assert_eq!(site.tenures(&["kept"]).await, kept);

    // What only the lost history knows of is renewed by nobody.
    site.wait("remade", "a token that rises", rises("remade")).await;
    eventually("the key of young to be free", || async {
        match site.pair(&site.key("young")).await.and_then(|pair| pair.session) {
            Some(session) => Err(session),
            None => Ok(()),
        }
    })
    .await;
    assert_eq!(site.pair(&site.key("taken")).await.unwrap(), theirs);
    elsewhere.delete("taken").await;
    let regained = site.wait("taken", "a token that rises", rises("taken")).await;
    assert_eq!(regained.transitions, 2, "it held while another did: {regained:#?}");
    assert_eq!(site.sessions().await.len(), MEANWHILE.len() + 1, "a session is left behind");
}

// ---- moved ----

/// A cluster that others move to.
async fn new_cluster() -> &'static ControlPlane {
    static CLUSTER: OnceLock<ControlPlane> = OnceLock::new();
    static INSTALLED: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    let start = || CLUSTER.get_or_init(|| ControlPlane::start().unwrap());
    let cluster = spawn_blocking(start).await.unwrap();
    let install = || async { install_crd(&client_by(cluster.kubeconfig()).await).await };
    INSTALLED.get_or_init(install).await;
    cluster
}

/// Claims that hold their keys, and the same in a new cluster, where they wait for them.
struct Move {
    old: Site,
    old_replica: Replica,
    new: Site,
    _new_replica: Replica,
    tokens: BTreeMap<&'static str, u64>,
}

/// Claims whose tenures in the old cluster are about to end so.
const MOVED: [&str; 4] = ["deleted", "paused", "forced", "lost"];

impl Move {
    /// To a cluster of this name, or of the same.
    async fn begin(what: &str, name: Option<&str>) -> Move {
        let old = Site::new(what).await;
        let old_replica = old.start().await;
        let mut tokens = BTreeMap::new();
        for claim in MOVED {
            old.create(claim, json!({ "session": terms("1s") })).await;
            tokens.insert(claim, old.held(claim).await);
        }
        let before = old.tenures(&MOVED).await;
        let cluster = new_cluster().await;
        let new = old.moved(cluster).await;
        let name = format!("--cluster-name={}", name.unwrap_or(old.cluster()));
        let new_replica = new.start_with(&[&name]).await;
        copy(&old, &new_replica, cluster);
        for claim in MOVED {
            let waits = new.wait_phase(claim, Phase::Waiting).await;
            assert_eq!(waits.holder.unwrap().cluster.as_deref(), Some(old.cluster()));
        }
        assert_eq!(old.tenures(&MOVED).await, before);
        Move { old, old_replica, new, _new_replica: new_replica, tokens }
    }

    /// Waits until the new cluster's claim holds the key; how long that took.
    async fn goes_on(&self, claim: &str) -> Duration {
        let began = self.new.clock().now();
        assert!(self.new.held(claim).await > self.tokens[claim], "the token of {claim} falls");
        self.new.clock().now().since(began)
    }
}

/// Saves the claims and makes them anew, as the page has it.
fn copy(old: &Site, new_replica: &Replica, to: &ControlPlane) {
    let save = ["get", "consullocks", "--namespace", &old.namespace, "-o", "yaml"];
    let mut save = control_plane().kubectl(save).unwrap();
    let saved = block_in_place(|| run(&mut save, PATIENCE)).unwrap();
    let file = new_replica.folder().write("before.yaml", saved).unwrap().display().to_string();
    let mut create = to.kubectl(["create", "-f", &file]).unwrap();
    block_in_place(|| run(&mut create, PATIENCE)).unwrap();
}

async fn a_cluster_moves(what: &str, name: Option<&str>) {
    let moved = Move::begin(what, name).await;
    let (old, new) = (&moved.old, &moved.new);
    old.delete("deleted").await;
    old.change("paused", json!({ "paused": true })).await;
    for claim in ["deleted", "paused"] {
        let took = moved.goes_on(claim).await;
        assert!(took < AT_ONCE, "{claim}: {took:?}");
    }

    moved.old_replica.server.kill().unwrap();
    let lost = new.clock().now();
    let plugin = Plugin::install();
    let mut release = plugin.command(new, &["release", "forced", "--yes"]);
    release.env("KUBECONFIG", new_cluster().await.kubeconfig()).envs(shared_consul().env());
    let said = Said::of(release).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let took = moved.goes_on("forced").await;
    assert!(took < AT_ONCE, "forced: {took:?}");
    moved.goes_on("lost").await;
    let took = new.clock().now().since(lost);
    assert!(took > AT_ONCE, "its session was good for longer than {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_in_a_new_cluster_of_the_old_ones_name_wait_until_its_tenures_have_ended() {
    a_cluster_moves("moved", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_in_a_new_cluster_of_another_name_wait_until_the_old_ones_tenures_have_ended() {
    a_cluster_moves("renamed", Some("another")).await;
}
