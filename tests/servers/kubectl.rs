//! The kubectl plugin, as its users start it: the real binary by the plugin's name, between a real
//! API server, a real Consul and a real controller.

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    process::{Command, Output, Stdio},
    sync::mpsc,
};

use consul_lock::api::{ConsulLockStatus, Phase};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use testbed::{Folder, reaper, tools::Tool};

use crate::{
    fixtures::{PATIENCE, control_plane},
    pods::{Cast, candidates, routed},
    site::{Site, condition},
    witness::Witness,
};

/// A folder with the plugin in it, to be put into `PATH`.
pub(crate) struct Plugin(Folder);

/// What a command said, and its exit code.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Plugin {
    pub(crate) fn install() -> Plugin {
        let folder = Folder::new("plugin").unwrap();
        let program = env!("CARGO_BIN_EXE_consul-lock");
        symlink(program, folder.path().join("kubectl-consullock")).unwrap();
        Plugin(folder)
    }

    /// The plugin, confined to the site's namespace.
    pub(crate) fn command(&self, site: &Site, args: &[&str]) -> Command {
        let mut command = Command::new(self.0.path().join("kubectl-consullock"));
        command.env("KUBECONFIG", control_plane().kubeconfig());
        command.args(["-n", &site.namespace]).args(args).stdin(Stdio::null());
        command
    }

    pub(crate) async fn run(&self, site: &Site, args: &[&str]) -> Said {
        Said::of(self.command(site, args)).await
    }

    /// It must succeed; what it said.
    pub(crate) async fn ok(&self, site: &Site, args: &[&str]) -> String {
        let said = self.run(site, args).await;
        assert_eq!(said.code, Some(0), "{args:?}: {said:?}");
        said.out
    }

    pub(crate) async fn json(&self, site: &Site, args: &[&str]) -> Value {
        let text = self.ok(site, &[args, &["-o", "json"]].concat()).await;
        serde_json::from_str(&text).unwrap()
    }
}

impl Said {
    pub(crate) async fn of(mut command: Command) -> Said {
        let ended = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
        let Output { status, stdout, stderr } = ended.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { code: status.code(), out: text(stdout), err: text(stderr) }
    }

    #[track_caller]
    pub(crate) fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in: {}", self.err);
        }
    }
}

#[tokio::test]
async fn claims_and_their_tenures_are_listed_described_and_told_of_by_kubectl_s_own_plugin() {
    let (site, cast, _replica) = Cast::on_stage("shown").await;
    let plugin = Plugin::install();
    cast.service("billing", json!({})).await;
    cast.ready("a", 1).await;
    cast.ready("b", 2).await;
    site.create("lock", routed(json!({}))).await;
    let first = cast.led_by("lock", "a").await;
    cast.ended("a").await;
    let second = cast.led_by("lock", "b").await;
    cast.restarted("a", 9).await;
    site.wait("lock", "who is next", |status| {
        status.candidates.as_ref().is_some_and(|one| one.next.as_deref() == Some("a"))
    })
    .await;
    let holder = format!("{}/b", site.namespace);

    let listed = plugin.json(&site, &["list"]).await;
    let [row] = listed.as_array().unwrap().as_slice() else { panic!("{listed}") };
    for (field, value) in [
        ("namespace", site.namespace.clone()),
        ("name", "lock".to_owned()),
        ("phase", "Held".to_owned()),
        ("holder", holder.clone()),
        ("token", second.to_string()),
        ("next", "a".to_owned()),
        ("key", site.key("lock").to_string()),
    ] {
        assert_eq!(row[field], value, "{row}");
    }
    // By the real kubectl, which finds the plugin by its name; without colour, for nobody looks.
    let mut kubectl = control_plane().kubectl(["consullock", "list"]).unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(
        [plugin.0.path().to_owned()].into_iter().chain(std::env::split_paths(&path)),
    );
    kubectl.env("PATH", path.unwrap()).env("KUBECONFIG", control_plane().kubeconfig());
    let said = Said::of(kubectl).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let line = said.out.lines().find(|line| line.starts_with(&site.namespace)).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let token = second.to_string();
    assert_eq!(words[1..5], ["lock", "Held", &holder, &token], "{line}");
    assert_eq!(words[6], "a", "{line}");

    let history = plugin.json(&site, &["history", "lock"]).await;
    assert_eq!(history[0]["token"], second.to_string());
    assert_eq!((&history[0]["to"], &history[0]["reason"]), (&Value::Null, &Value::Null));
    assert_eq!(history[1]["token"], first.to_string());
    assert_eq!(history[1]["reason"], "PodDied");

    let text = plugin.ok(&site, &["describe", "lock"]).await;
    for words in [
        format!("Key:          {}", site.key("lock")),
        format!("{holder} (cluster {}, pod b, node {})", site.cluster(), cast.node),
        format!("token {second}  holds"),
        format!("token {first}"),
        "then PodDied".to_owned(),
        "Next in line: a".to_owned(),
        "RoutingSynced".to_owned(),
        "Acquired".to_owned(),
    ] {
        assert!(text.contains(&words), "no {words:?} in: {text}");
    }
    plugin.run(&site, &["describe", "nobody"]).await.refused(1, &["\"nobody\" not found"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_of_each_tenure_and_ends_with_ctrl_c() {
    let site = Site::new("watched").await;
    let plugin = Plugin::install();
    let _replica = site.start().await;
    site.create("old", json!({})).await;
    let old = site.held("old").await;
    let mut command = plugin.command(&site, &["watch", "-o", "json"]);
    let mut watch = reaper::spawn(command.stdout(Stdio::piped())).unwrap();
    let (lines, told) = mpsc::channel();
    let out = BufReader::new(watch.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        for line in out.lines() {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            let claim = &line["claim"];
            let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
            let shown = (text(&line["what"]), text(&claim["name"]), text(&claim["token"]));
            if lines.send(shown).is_err() {
                break;
            }
        }
    });
    let next = |what: &str, name: &str| {
        let until = (what.to_owned(), name.to_owned());
        tokio::task::block_in_place(|| {
            loop {
                let (what, name, token) = told.recv_timeout(PATIENCE).expect(&until.0);
                if (&what, &name) == (&until.0, &until.1) {
                    return token;
                }
            }
        })
    };
    assert_eq!(next("Present", "old"), old.to_string());
    site.create("new", json!({})).await;
    let new = site.held("new").await;
    assert_eq!(next("Began", "new"), new.to_string());
    site.change("new", json!({ "paused": true })).await;
    assert_eq!(next("Ended", "new"), "");
    site.delete("old").await;
    next("Deleted", "old");
    let pid = rustix::process::Pid::from_child(&watch);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = tokio::task::spawn_blocking(move || watch.wait()).await.unwrap().unwrap();
    reaper::forget_process(pid.as_raw_pid().unsigned_abs());
    assert_eq!(ended.code(), Some(0));
    drop(told);
    reader.join().unwrap();
}

#[tokio::test]
async fn a_tenure_is_handed_over_to_the_next_in_line_or_a_named_pod_in_order() {
    let (site, cast, _replica) = Cast::on_stage("handover").await;
    let plugin = Plugin::install();
    cast.service("billing", json!({})).await;
    for (pod, second) in [("a", 1), ("b", 2), ("c", 3)] {
        cast.ready(pod, second).await;
    }
    site.create("lock", routed(json!({}))).await;
    let mut token = cast.led_by("lock", "a").await;
    cast.routed("billing", Some("a")).await;
    let witness = Witness::of(&site, "lock", "billing").await;
    for (args, follows) in [
        (&["handover", "lock"][..], "b"),
        (&["handover", "lock", "--to", "c"], "c"),
        (&["handover", "lock"], "a"),
        (&["handover", "lock", "--to=b"], "b"),
    ] {
        let said = plugin.ok(&site, args).await;
        let next = cast.led_by("lock", follows).await;
        assert!(next > token, "{next} after {token}");
        let words = format!("{}/{follows} holds the key with token {next}", site.namespace);
        assert!(said.contains(&words), "no {words:?} in: {said}");
        cast.routed("billing", Some(follows)).await;
        let status = site.status("lock").await;
        assert_eq!(status.history[0].reason, "HandedOver");
        token = next;
    }
    // Nothing is left behind that could be taken for a wish later.
    let claim = site.claims.get("lock").await.unwrap();
    assert_eq!(claim.metadata.annotations.unwrap_or_default().len(), 0);
    assert_eq!(site.status("lock").await.transitions, 5);
    witness.catches_up(&site).await;
    witness.assert_orderly();
}

#[test]
fn kubectl_completes_the_plugin_s_commands_and_flags() {
    let folder = Folder::new("completes").unwrap();
    for name in ["kubectl-consullock", "kubectl_complete-consullock"] {
        symlink(env!("CARGO_BIN_EXE_consul-lock"), folder.path().join(name)).unwrap();
    }
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let completed = |words: &[&str]| {
        let asked = [&["__complete", "consullock"], words].concat();
        let mut kubectl = Tool::Kubectl.command(asked).unwrap();
        let said = kubectl.env("PATH", &path).output().unwrap();
        assert!(said.status.success(), "{said:?}");
        String::from_utf8(said.stdout).unwrap()
    };
    assert_eq!(
        completed(&["hand"]),
        "handover\tHave a claim's tenure end in favour of another pod or contender\n:4\n"
    );
    let flags = completed(&["handover", "--t"]);
    for flag in ["--to\t", "--timeout\t"] {
        assert!(flags.contains(flag), "no {flag:?} in: {flags}");
    }
    assert_eq!(completed(&["x"]), ":4\n");
}

#[tokio::test]
async fn a_handover_that_cannot_be_is_refused_and_changes_nothing() {
    let (site, cast, replica) = Cast::on_stage("no-handover").await;
    let plugin = Plugin::install();
    cast.ready("a", 1).await;
    site.create("lock", candidates(json!({}))).await;
    let token = cast.led_by("lock", "a").await;
    // The controller alone can know that there is nobody else.
    let alone = plugin.run(&site, &["handover", "lock"]).await;
    alone.refused(1, &["no other pod may be elected"]);
    let eligible = async |count| {
        let seen = |status: &ConsulLockStatus| status.candidates.as_ref().map(|seen| seen.eligible);
        site.wait("lock", "the candidates", |status| seen(status) == Some(count)).await;
    };
    cast.ready("b", 2).await;
    eligible(2).await;
    cast.unready("b").await;
    // A controller that does not know it yet would hand over.
    eligible(1).await;
    for (pod, word) in [
        ("a", "is the leader already"),
        ("b", "it is not ready"),
        ("x", "no pod x that matches candidates.selector"),
    ] {
        let said = plugin.run(&site, &["handover", "lock", "--to", pod]).await;
        said.refused(1, &[word]);
    }
    plugin.run(&site, &["handover", "x"]).await.refused(1, &["\"x\" not found"]);

    // By hand, past the plugin.
    let ask = async |text: &str| {
        let annotations = json!({ "consullock.dev/handover": text });
        let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
        site.claims.patch("lock", &PatchParams::default(), &patch).await.unwrap();
    };
    for (text, word) in [
        (format!("{token} b"), "pod b may not be elected: it is not ready"),
        ("b please".to_owned(), "it is to be the fencing token"),
    ] {
        ask(&text).await;
        let told =
            site.wait("lock", "the refusal", |status| condition(status, "Ready").2.contains(word));
        assert_eq!(condition(&told.await, "Ready").1, "HandoverRefused");
    }
    site.event("lock", "HandoverRefused").await;
    ask(&format!("{} b", token + 1)).await;
    site.wait("lock", "that all is well", |status| condition(status, "Ready").1 == "Held").await;
    assert_eq!(cast.led_by("lock", "a").await, token, "nothing has changed");

    // Nobody carries it out: it is withdrawn.
    replica.server.kill().unwrap();
    cast.report("b", "True", 2, vec![crate::pods::running("app", "b", 0)]).await;
    let said = plugin.run(&site, &["handover", "lock", "--timeout=1s"]).await;
    said.refused(75, &["not handed over within 1s", "withdrawn"]);
    let claim = site.claims.get("lock").await.unwrap();
    assert_eq!(claim.metadata.annotations.unwrap_or_default().len(), 0);
}

#[tokio::test]
async fn a_claim_that_contends_for_itself_hands_over_to_whoever_waits_in_another_cluster() {
    let (west, east) = (Site::new("gives").await, Site::new("takes").await);
    let plugin = Plugin::install();
    let key = west.key("lock").as_str().to_owned();
    east.share_keys_of(&west).await;
    let (_one, _two) = (west.start().await, east.start().await);
    west.create("lock", json!({})).await;
    let first = west.held("lock").await;
    east.create("lock", json!({ "key": key })).await;
    east.wait("lock", "the other's holder", |status| status.holder.is_some()).await;

    let elsewhere = plugin.run(&east, &["handover", "lock"]).await;
    elsewhere.refused(1, &["is to be asked there", "release lock", west.cluster()]);
    let said = plugin.ok(&west, &["handover", "lock"]).await;
    assert!(said.contains(&format!("{}/lock holds the key", east.namespace)), "{said}");
    let second = east.held("lock").await;
    assert!(second > first);
    assert_eq!(west.status("lock").await.history[0].reason, "HandedOver");

    // Nobody else wants it: it is not taken back at once, but then.
    west.change("lock", json!({ "paused": true })).await;
    west.wait_phase("lock", Phase::Paused).await;
    let said = plugin.ok(&east, &["handover", "lock"]).await;
    assert!(said.contains(", for nobody else took it"), "{said}");
    assert!(east.held("lock").await > second);
}

#[tokio::test]
async fn a_claim_is_paused_and_resumed() {
    let (site, plugin) = (Site::new("paused").await, Plugin::install());
    let replica = site.start().await;
    site.create("lock", json!({})).await;
    let first = site.held("lock").await;
    let said = plugin.ok(&site, &["pause", "lock"]).await;
    assert!(said.contains("lock paused"), "{said}");
    let status = site.status("lock").await;
    assert_eq!((status.phase, status.fencing_token), (Some(Phase::Paused), None));
    plugin.run(&site, &["handover", "lock"]).await.refused(1, &["does not hold its key"]);
    let said = plugin.ok(&site, &["resume", "lock"]).await;
    assert!(said.contains("lock resumed"), "{said}");
    assert!(site.held("lock").await > first);
    plugin.run(&site, &["pause", "x"]).await.refused(1, &["\"x\" not found"]);
    replica.server.kill().unwrap();
    let said = plugin.run(&site, &["pause", "lock", "--timeout=1s"]).await;
    said.refused(75, &["no controller has carried it out within 1s"]);
    plugin.ok(&site, &["resume", "lock", "--wait=false"]).await;
}
