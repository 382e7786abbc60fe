//! `kubectl consullock release`: takes a real key from whoever holds it, by force.

use std::process::Stdio;

use consul_lock::{
    api::Phase,
    consul::{Consistency, Consul as _},
    names::Key,
};
use serde_json::json;
use testbed::{reaper, wait_for};

use crate::{
    fixtures::{PATIENCE, control_plane, shared_consul},
    kubectl::{Plugin, Said},
    pods::{Cast, candidates},
    site::Site,
    terminal::Terminal,
    witness::Witness,
};

/// The command's answer, without a terminal.
async fn release(plugin: &Plugin, site: &Site, args: &[&str]) -> Said {
    let mut command = plugin.command(site, &[&["release"], args].concat());
    command.envs(shared_consul().env());
    Said::of(command).await
}

/// The command on a terminal, where this is answered to its question; exit code and all that was
/// shown.
async fn answered(
    plugin: &Plugin,
    site: &Site,
    claim: &str,
    answer: &str,
) -> (Option<i32>, String) {
    let command = plugin.command(site, &["release", claim]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.display())).collect();
    let kubeconfig = control_plane().kubeconfig().display().to_string();
    let variables = [("KUBECONFIG", kubeconfig)].into_iter().chain(shared_consul().env());
    let mut terminal = Terminal::start(&words.join(" "), variables);
    terminal.type_in(&format!("{answer}\n"));
    tokio::task::spawn_blocking(move || terminal.shown()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_stock_consul_lock_is_taken_by_force_and_no_lock_delay_keeps_the_claim_from_it() {
    let (site, plugin) = (Site::new("forced").await, Plugin::install());
    let _replica = site.start().await;
    let folder = site.key("lock");
    let key = Key::new(&format!("{folder}/.lock")).unwrap();
    let mut stranger = shared_consul().cli(["lock", folder.as_str(), "sleep 600"]).unwrap();
    stranger.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut stranger = reaper::spawn(&mut stranger).unwrap();
    site.create("lock", json!({ "key": key.as_str() })).await;
    let waits = site.wait("lock", "a stranger's tenure", |status| {
        status.holder.as_ref().is_some_and(|holder| holder.stranger)
    });
    assert_eq!(waits.await.phase, Some(Phase::Waiting));
    let session = site.pair(&key).await.unwrap().session.unwrap();
    let info = site.consul.session(&session, Consistency::Consistent).await;
    let lock_delay = info.unwrap().unwrap().lock_delay;

    let asked = release(&plugin, &site, &["lock"]).await;
    asked.refused(2, &["--yes"]);
    assert!(asked.out.contains("(a stranger"), "{}", asked.out);
    assert_eq!(site.pair(&key).await.unwrap().session.as_ref(), Some(&session), "nobody agreed");

    let began = site.clock().now();
    let said = release(&plugin, &site, &["lock", "--yes"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    for words in [session.as_str(), "see that it has ended", "and its session destroyed"] {
        assert!(said.out.contains(words), "no {words:?} in: {}", said.out);
    }
    let token = site.held("lock").await;
    assert!(site.clock().now().since(began) < lock_delay, "a lock-delay was served");
    assert!(token > 0);
    // It hears of it, and gives up.
    wait_for("consul lock to end", PATIENCE, || stranger.try_wait().unwrap()).unwrap();
    reaper::forget_process(stranger.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn release_asks_and_takes_no_for_no_and_yes_for_a_new_tenure_with_a_higher_token() {
    let (site, cast, _replica) = Cast::on_stage("asked").await;
    let plugin = Plugin::install();
    cast.ready("a", 1).await;
    site.create("lock", candidates(json!({}))).await;
    let witness = Witness::of(&site, "lock", "none").await;
    let token = cast.led_by("lock", "a").await;
    let session = site.status("lock").await.session;

    for answer in ["n", "", "yes please"] {
        let (code, shown) = answered(&plugin, &site, "lock", answer).await;
        assert_eq!(code, Some(1), "{answer:?}: {shown}");
        for words in ["Release it? [y/N]", "nothing was done", "pod a", site.cluster()] {
            assert!(shown.contains(words), "{answer:?}: no {words:?} in: {shown}");
        }
    }
    assert_eq!(cast.led_by("lock", "a").await, token, "nothing has changed");

    let (code, shown) = answered(&plugin, &site, "lock", "y").await;
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains(&format!("Token:      {token}")), "{shown}");
    let anew = site.wait("lock", "another tenure", |status| {
        status.fencing_token.as_ref().is_some_and(|now| now.parse::<u64>().unwrap() > token)
    });
    let anew = anew.await;
    assert_eq!(anew.history[0].token, token.to_string());
    assert_eq!(anew.session, session, "others may hold keys under it");
    assert!(cast.led_by("lock", "a").await > token);
    witness.catches_up(&site).await;
    witness.assert_orderly();
}

#[tokio::test]
async fn what_nobody_holds_and_what_is_no_lock_is_not_released() {
    let (site, plugin) = (Site::new("unheld").await, Plugin::install());
    release(&plugin, &site, &["x", "--yes"]).await.refused(1, &["\"x\" not found"]);
    site.create("lock", json!({})).await;
    let unknown = release(&plugin, &site, &["lock", "--yes"]).await;
    unknown.refused(1, &["which key", "its status is empty"]);
    let _replica = site.start().await;
    site.held("lock").await;
    site.change("lock", json!({ "paused": true })).await;
    site.wait_phase("lock", Phase::Paused).await;
    release(&plugin, &site, &["lock", "--yes"]).await.refused(1, &["nobody holds"]);
}
