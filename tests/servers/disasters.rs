//! What `docs/src/operations/disasters.md` says, tried on real servers: a Consul that is restored from a
//! snapshot, one that loses its quorum for good, and a key prefix that is changed.

use std::{path::Path, time::Duration};

use consul_lock::{
    api::{ConsulLockStatus, Phase},
    names::Key,
};
use serde_json::{Value, json};
use testbed::{Consul, ConsulCluster, ConsulClusterConfig, ConsulConfig, Folder, run};
use tokio::task::{block_in_place, spawn_blocking};

use crate::{
    fixtures::{Lab, client_of},
    site::{Site, eventually, token},
};

/// How long servers may take to be what they should, on a busy machine.
const SERVERS: Duration = Duration::from_secs(90);

async fn consul_of_ones_own() -> Consul {
    let config = ConsulConfig { persistent: true, ..ConsulConfig::default() };
    spawn_blocking(|| Consul::start(config).unwrap()).await.unwrap()
}

fn consul_cli(consul: &Consul, args: &[&str]) -> String {
    block_in_place(|| run(&mut consul.cli(args.iter().copied()).unwrap(), SERVERS).unwrap())
}

/// Saves a snapshot into the folder; its file.
fn save(consul: &Consul, folder: &Folder) -> String {
    let file = folder.path().join("snapshot").display().to_string();
    consul_cli(consul, &["snapshot", "save", &file]);
    file
}

fn began_after(earlier: u64) -> impl Fn(&ConsulLockStatus) -> bool {
    move |status| status.phase == Some(Phase::Held) && token(status) > earlier
}

/// Waits for longer than a poll takes: Consul may answer the one that a restore interrupts with what
/// was before, and hold the next one up for its whole minute, as the index has fallen.
async fn after_a_poll(
    site: &Site,
    name: &str,
    good: impl Fn(&ConsulLockStatus) -> bool,
) -> ConsulLockStatus {
    let clock = site.clock();
    let deadline = clock.now() + SERVERS;
    loop {
        let status = site.status(name).await;
        if good(&status) {
            return status;
        }
        assert!(clock.now() < deadline, "{name} stays {status:#?}");
        clock.sleep_until(clock.now() + Duration::from_millis(100)).await;
    }
}

// ---- a snapshot ----

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_restored_into_living_servers_costs_only_what_is_younger_and_no_token_falls() {
    let (consul, folder) = (consul_of_ones_own().await, Folder::new("snapshot").unwrap());
    let site = Site::on("restored", &consul.address()).await;
    let _replica = site.start_with(&[]).await;
    site.create("old", json!({})).await;
    let old = site.tenures(&["old"]).await;
    let snapshot = save(&consul, &folder);
    site.create("young", json!({ "session": { "lockDelay": "0s" } })).await;
    let young = site.held("young").await;

    consul_cli(&consul, &["snapshot", "restore", &snapshot]);
    let again = after_a_poll(&site, "young", began_after(young)).await;
    let lost = &again.history[0];
    assert_eq!(lost.token, young.to_string());
    assert!(["KeyDeleted", "SessionInvalidated"].contains(&&*lost.reason), "{lost:?}");
    assert_eq!(site.tenures(&["old"]).await, old, "what the snapshot has goes on");
    site.change("old", json!({ "paused": true })).await;
    site.wait_phase("old", Phase::Paused).await;
    site.change("old", json!({ "paused": false })).await;
    assert!(site.held("old").await > token(&again), "tokens only rise");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_built_anew_from_a_snapshot_repeat_tokens_unless_their_index_is_raised_first() {
    let (consul, folder) = (consul_of_ones_own().await, Folder::new("rebuilt").unwrap());
    let site = Site::on("rebuilt", &consul.address()).await;
    let replica = site.start_with(&[]).await;
    site.create("lock", json!({ "session": { "lockDelay": "0s" } })).await;
    site.held("lock").await;
    let snapshot = save(&consul, &folder);
    for index in 0..200 {
        consul.request("PUT", &format!("/v1/kv/busy/{index}"), b"x").unwrap();
    }
    site.change("lock", json!({ "paused": true })).await;
    site.wait_phase("lock", Phase::Paused).await;
    site.change("lock", json!({ "paused": false })).await;
    let highest = site.held("lock").await;
    replica.server.kill().unwrap();
    drop(consul);

    let rebuilt = consul_of_ones_own().await;
    consul_cli(&rebuilt, &["snapshot", "restore", &snapshot]);
    let lab = Lab::on(client_of(&rebuilt)).await;
    let session = lab.session().await;
    let falls = lab.lock(&lab.key("other"), &session).await.unwrap().modify_index;
    assert!(falls < highest, "{falls} would be a token after {highest}");

    raise_index(&rebuilt, highest, folder.path());
    let address = format!("--consul-http-addr={}", rebuilt.address());
    let site = site.observed_at(&rebuilt.address());
    let replica = site.start_with(&[&address]).await;
    site.wait("lock", "a tenure after the disaster", began_after(highest)).await;
    replica.server.terminate().unwrap();
}

/// Runs the commands that the page gives, word for word.
fn raise_index(consul: &Consul, highest: u64, folder: &Path) {
    let page = testbed::tools::repository().join("docs/src/operations/disasters.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, after) = page.split_once("```sh\nHIGHEST=").unwrap();
    let script = after.split("```").next().unwrap().split_once('\n').unwrap().1;
    let binary = testbed::tools::Tool::Consul.path().unwrap();
    let mut command = std::process::Command::new("sh");
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    command.env("PATH", path).envs(consul.env()).env("HIGHEST", highest.to_string());
    block_in_place(|| run(command.current_dir(folder).args(["-euc", script]), SERVERS).unwrap());
}

// ---- quorum ----

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_that_is_lost_for_good_costs_the_tenures_and_one_server_brings_the_locks_back() {
    let start = || ConsulCluster::start(&ConsulClusterConfig::default()).unwrap();
    let cluster = spawn_blocking(start).await.unwrap();
    let [first, second, survivor] = cluster.servers() else { panic!("{cluster:?}") };
    let site = Site::on("quorum", &survivor.address()).await;
    let _replica = site.start_with(&[]).await;
    site.create("lock", json!({ "session": { "ttl": "10s", "lockDelay": "0s" } })).await;
    let before = site.held("lock").await;

    first.server().kill().unwrap();
    second.server().kill().unwrap();
    let unknown = site.wait_phase("lock", Phase::Unknown).await;
    assert_eq!(unknown.holder, None, "nobody is said to hold what nobody can know of");

    block_in_place(|| survivor.server().stop()).unwrap();
    let peers = json!([{
        "id": std::fs::read_to_string(survivor.data().join("node-id")).unwrap().trim(),
        "address": survivor.rpc().to_string(),
        "non_voter": false,
    }]);
    std::fs::write(survivor.data().join("raft/peers.json"), peers.to_string()).unwrap();
    block_in_place(|| survivor.server().start_again()).unwrap();
    let after = site.wait("lock", "a tenure after the recovery", began_after(before)).await;
    assert_eq!(after.history[0].reason, "Expired");
    site.serves_another_claim().await;
}

// ---- another prefix ----

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_prefix_moves_claims_to_their_new_keys_and_frees_the_old_ones() {
    let site = Site::new("prefix").await;
    let replica = site.start_with(&[]).await;
    site.create("lock", json!({})).await;
    site.held("lock").await;
    let old = site.key("lock");
    let held = |pair: Option<consul_lock::consul::KvPair>| pair.and_then(|pair| pair.session);
    let session = held(site.pair(&old).await).unwrap();
    replica.server.kill().unwrap();

    let other = format!("--key-prefix={}-other", site.cluster());
    let _replica = site.start_with(&[&other]).await;
    let new = Key::new(&format!("{}-other/{}/lock", site.cluster(), site.namespace)).unwrap();
    let moved = |status: &ConsulLockStatus| {
        status.phase == Some(Phase::Held) && status.key.as_deref() == Some(new.as_str())
    };
    site.wait("lock", "to hold its new key", moved).await;
    eventually("the old key to be free", || async {
        match held(site.pair(&old).await) {
            None => Ok(()),
            Some(session) => Err(session),
        }
    })
    .await;
    let now = held(site.pair(&new).await).unwrap();
    assert_ne!(now, session);
    let live: Vec<_> = site.sessions().await.into_iter().map(|one| one.id).collect();
    assert_eq!(live, [now], "no session is left behind");
    let status: Value = serde_json::to_value(site.status("lock").await).unwrap();
    assert_eq!(status["history"][0]["reason"], "Stopped", "{status}");
}
