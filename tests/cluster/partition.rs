//! A controller that its network cuts off from Consul, and one in another cluster that takes over.

use serde_json::{Value, json};
use testbed::{Cluster, Consul, ConsulConfig, Stopwatch, say, wait_for};

use crate::{
    bed::{PATIENCE, Space, cluster, disturbed_cluster},
    controller::{Replica, install_definition},
};

const CLAIM: &str = "shared";

/// A cluster with a controller inside its network, and a namespace with one claim.
struct Side {
    space: Space,
    _controller: Replica,
}

impl Side {
    /// Allowed to reach the key of all sides; the claim is not there yet.
    fn start(cluster: &'static Cluster, label: &str, consul: &Consul) -> Side {
        let space = Space::on(cluster, label);
        install_definition(&space);
        let allowed = "consullock.dev/key-prefixes=both-sides/";
        space.kubectl(&["annotate", "namespace", &space.namespace, allowed]);
        let controller = Replica::start(&space, consul);
        Side { space, _controller: controller }
    }

    fn claim(&self) {
        self.space.apply(&json!({
            "apiVersion": "consullock.dev/v1alpha1", "kind": "ConsulLock",
            "metadata": {"name": CLAIM},
            "spec": {"key": "both-sides/key", "session": {"ttl": "10s", "lockDelay": "0s"}},
        }));
    }

    fn status(&self) -> Value {
        self.space.get("consullock", CLAIM)["status"].clone()
    }

    fn holds(&self) -> bool {
        self.status()["phase"] == json!("Held")
    }

    fn token(&self) -> u64 {
        self.status()["fencingToken"].as_str().unwrap().parse().unwrap()
    }

    #[track_caller]
    fn wait_for_phase(&self, phase: &str) {
        let what = format!("{phase} in {}", self.space.namespace);
        let found = || (self.status()["phase"] == json!(phase)).then_some(());
        wait_for(what, PATIENCE, found).unwrap();
    }
}

#[test]
fn holder_that_is_cut_off_has_let_go_before_the_other_cluster_holds_the_key() {
    let Some(other) = cluster() else { return };
    let Some(cut) = disturbed_cluster() else { return };
    let config =
        ConsulConfig { also_on: vec![other.gateway(), cut.gateway()], ..Default::default() };
    let consul = Consul::start(config).unwrap();
    let holder = Side::start(*cut, "holder", &consul);
    let waiter = Side::start(other, "waiter", &consul);
    holder.claim();
    holder.wait_for_phase("Held");
    waiter.claim();
    waiter.wait_for_phase("Waiting");
    let token = holder.token();

    let watch = Stopwatch::start();
    cut.cut().unwrap();
    let (mut let_go, mut at_once) = (None, false);
    wait_for("the other cluster to hold the key", PATIENCE, || {
        // In this order: who held and who holds do so at once, as far as anybody can tell.
        let (held, holds) = (holder.holds(), waiter.holds());
        at_once |= held && holds;
        if !held {
            let_go.get_or_insert(watch.elapsed());
        }
        holds.then_some(())
    })
    .unwrap();
    assert!(!at_once, "two clusters said that they hold the key");
    let (let_go, taken) = (let_go.unwrap(), watch.elapsed());
    say(format!(
        "cut off, a TTL of 10 s: let go after {:.1} s, taken after {:.1} s",
        let_go.as_secs_f32(),
        taken.as_secs_f32()
    ));
    assert!(waiter.token() > token, "{} after {token}", waiter.token());

    cut.heal().unwrap();
    holder.wait_for_phase("Waiting");
    assert!(waiter.holds());
}
