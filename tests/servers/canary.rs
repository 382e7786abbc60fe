//! A token that is looked for wherever a secret could come to light, while everything is told at trace
//! level, and denied and unknown tokens are met too.

use std::process::{Command, Stdio};

use consul_lock::consul::http::{HttpConfig, HttpConsul, Token, TokenSource};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};
use rustix::process::Signal;
use serde_json::json;
use testbed::reaper;

use crate::{
    agent,
    consul_access::token,
    fixtures::{PATIENCE, guarded_consul},
    run::scene::{Scene, is_alive},
    site::{Site, Way, condition},
};

/// May do everything, but for one key.
const RULES: &str = r#"
    key_prefix "" { policy = "write" }
    session_prefix "" { policy = "write" }
    node_prefix "" { policy = "write" }
"#;

/// A new token: its accessor and its secret.
async fn canary(rules: String) -> (String, String) {
    tokio::task::spawn_blocking(move || token(&rules)).await.unwrap()
}

#[track_caller]
fn unseen(secret: &str, place: &str, text: &str) {
    assert!(!text.is_empty(), "nothing is in {place}");
    assert!(!text.contains(secret), "the token is in {place}: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controllers_token_is_in_no_log_event_status_metric_or_key() {
    let hidden = crate::fixtures::unique("canary-hidden");
    let rules = format!(r#"{RULES} key_prefix "{hidden}" {{ policy = "deny" }}"#);
    let (accessor, secret) = canary(rules).await;
    let address = guarded_consul().address();
    let mut site = Site::through("canary", &address, Some(&secret), Way::Straight).await;
    let replica = site.start_with(&["--log=trace"]).await;
    site.allow_keys(&format!("{hidden}/,{}/", site.cluster())).await;
    site.create("well", json!({})).await;
    site.held("well").await;
    site.create("denied", json!({ "key": format!("{hidden}/k") })).await;
    let denied = |status: &_| condition(status, "Ready").1 == "ConsulDenied";
    site.wait("denied", "the denial", denied).await;
    let pair = site.pair(&site.key("well")).await.unwrap();
    // From now on Consul does not know it, and says so.
    let gone = format!("/v1/acl/token/{accessor}");
    assert!(guarded_consul().request("DELETE", &gone, b"").unwrap().ok());
    let unknown = |status: &_| condition(status, "ConsulReachable").0 != "True";
    site.wait("well", "an unknown token", unknown).await;
    let mut administrators = HttpConfig::new(&address);
    let management = Token::new(guarded_consul().token().unwrap()).unwrap();
    administrators.token = TokenSource::Value(management);
    site.consul = HttpConsul::new(administrators).unwrap();

    let events = Api::<Event>::namespaced(site.client.clone(), &site.namespace);
    let events = events.list(&ListParams::default()).await.unwrap();
    let claims = site.claims.list(&ListParams::default()).await.unwrap();
    let metrics = replica.get("/metrics").unwrap().text();
    for (place, text) in [
        ("the log", replica.log()),
        ("the events", serde_json::to_string(&events.items).unwrap()),
        ("the claims", serde_json::to_string(&claims.items).unwrap()),
        ("the metrics", metrics),
        ("readiness", replica.get("/readyz").unwrap().text()),
        ("the key", String::from_utf8(pair.value).unwrap()),
        ("the sessions", format!("{:?}", site.sessions().await)),
    ] {
        unseen(&secret, place, &text);
    }
    assert!(replica.log().contains("TRACE"), "little is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runs_and_an_agents_token_is_in_no_log_answer_file_or_environment() {
    let (_, secret) = canary(RULES.to_owned()).await;
    tokio::task::spawn_blocking(move || {
        let scene = Scene::at("canary", guarded_consul());
        let mut command = scene.command(&["--log=trace"], &["sh", "-c", "env; echo $$ > $F/it"]);
        let mut run = scene.beside(command.env("CONSUL_HTTP_TOKEN", &secret));
        scene.process("it");
        assert_eq!(run.wait().0, 0, "{}", run.said());
        let said = run.said();
        assert!(said.contains("TRACE") && said.contains("CONSUL_LOCK_TOKEN="), "{said}");
        unseen(&secret, "what a run and its command say", &said);

        let scene = agent::scene::Scene::through("canary", &guarded_consul().address());
        let hook = "--on-acquire=env > $F/hook";
        let file = format!("--file={}", scene.folder.path().join("leader.json").display());
        let key = format!("--key={}", scene.key);
        let (mut command, port) = scene.command(&[&key, hook, &file]);
        command.env("CONSUL_HTTP_TOKEN", &secret).env("CONSUL_LOCK_LOG", "trace");
        let mut agent = scene.spawn((command, port));
        let told = agent.leads();
        for (place, text) in [
            ("the answer", told.to_string()),
            ("the metrics", agent.get("/metrics").unwrap().1),
            ("the hook's environment", scene.file("hook")),
            ("the file", scene.file("leader.json")),
        ] {
            unseen(&secret, place, &text);
        }
        agent.stop();
        unseen(&secret, "what an agent says", &agent.said());
    })
    .await
    .unwrap();
}

/// What others of the same user could read of its memory a core would hold, too.
#[test]
fn neither_a_core_nor_another_process_of_the_same_user_gets_at_a_token() {
    let scene = Scene::new("memory");
    let as_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let folder = scene.folder.path();
    std::os::unix::fs::chown(folder, Some(65534), Some(65534)).unwrap();
    let run = scene.command(&[], &["sh", "-c", "echo $$ > $F/it; exec sleep 60"]);
    let mut command = Command::new("setpriv");
    command.args(as_nobody).arg(run.get_program()).args(run.get_args());
    command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
        .stdin(Stdio::null())
        .env("CONSUL_HTTP_TOKEN", "no-secret-to-Consul")
        .env("TMPDIR", folder);
    let mut run = scene.beside(&mut command);
    let sleeper = scene.process("it");
    let may_read = |pid: rustix::process::Pid, file: &str| {
        let mut reader = Command::new("setpriv");
        let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
        reader.args(as_nobody).args(["head", "-c1", &path]).stdout(Stdio::null());
        let mut reader = reaper::spawn(reader.stderr(Stdio::null())).unwrap();
        let ended = testbed::wait_for("a reader", PATIENCE, || reader.try_wait().unwrap());
        reaper::forget_process(reader.id());
        ended.unwrap().success()
    };
    assert!(may_read(sleeper, "environ"), "of its own processes it may");
    assert!(!may_read(run.pid(), "environ") && is_alive(run.pid()));
    run.send(Signal::TERM);
    assert_eq!(run.wait().0, 143, "{}", run.said());
}
