//! `consul-lock run` with a real Consul: the command, its guard, and what ends them.

use std::{io::Write as _, path::PathBuf, process::Stdio, time::Duration};

use consul_lock::{
    api::{ConsulLockStatus, Phase},
    clock::Clock,
};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use testbed::{Fault, Proxy, wait_for};

use crate::{
    consul_access::token,
    fixtures::{LOCK_FLAGS, PATIENCE, guarded_consul, shared_consul, unique},
    site::{self, Site},
    terminal::Terminal,
};

mod cgroups;
mod cluster;
mod instants;
pub(crate) mod scene;
mod trials;

use scene::{
    Scene, VALID_UNTIL_FILE, all_gone, all_gone_and_told, assert_ended, child, foreground,
    is_alive, is_stopped, kill, parent, sessions, valid_until, variable,
};

/// A TTL that leaves room for a few renewals, a grace, and little patience.
const QUICK: [&str; 3] = ["--ttl=4s", "--grace=1s", "--lock-delay=0s"];

/// What writes its number down and then sleeps.
const SLEEPER: &str = "echo $$ > $F/sleeper; exec sleep 90";

/// Whatever a command may leave behind: a child that does not hear SIGTERM, a daemon that left its
/// group and session and closed its descriptors, and the command itself, which does not hear it
/// either.
const BROOD: &str = r#"
    trap "" TERM
    sleep 90 & echo $! > $F/child
    (setsid sh -c 'echo $$ > $F/daemon; exec sleep 90 <&- >&- 2>&-' &)
    (setsid sh -c '(trap "" TERM; sh -c "echo \$PPID" > $F/grandchild; sleep 90 & wait) &' &)
    until [ -s $F/daemon ] && [ -s $F/grandchild ]; do sleep 0.01; done
    echo $$ > $F/sleeper
    while :; do sleep 90; done
"#;

fn brood(scene: &Scene) -> Vec<Pid> {
    ["sleeper", "child", "daemon", "grandchild"].map(|file| scene.process(file)).to_vec()
}

// ---- the ordinary way ----

#[test]
fn command_holds_the_key_that_it_is_told_of_and_nothing_is_left_of_it_afterwards() {
    let scene = Scene::new("plain");
    let script = "env; read line; echo got $line; exit 7";
    let mut command = scene.command(&["--name=plain", "--value=for others"], &["sh", "-c", script]);
    let command = command.stdin(Stdio::piped()).env("CONSUL_HTTP_TOKEN", "");
    let mut run = command.spawn().unwrap();
    let session = scene.wait_held();
    let pair = scene.pair().unwrap();
    let infos = shared_consul().request("GET", &format!("/v1/session/info/{session}"), b"");
    let info = infos.unwrap().json()[0].clone();
    run.stdin.take().unwrap().write_all(b"it\n").unwrap();
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("got it\n"), "{said}");
    let variable = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("no {name} in {said}")).to_owned()
    };
    assert_eq!(variable("CONSUL_LOCK_HELD"), "true");
    assert_eq!(variable("CONSUL_LOCK_KEY"), scene.key);
    assert_eq!(variable("CONSUL_LOCK_SESSION"), session);
    assert_eq!(variable("CONSUL_LOCK_TOKEN"), pair["ModifyIndex"].to_string());
    assert!(!PathBuf::from(variable("CONSUL_LOCK_VALID_UNTIL_FILE")).exists());
    assert_eq!(pair["Flags"], LOCK_FLAGS);
    assert_eq!(info["NodeChecks"], serde_json::json!([]));
    assert!(info["Name"].as_str().unwrap().contains("/plain/"), "{info}");
    scene.assert_nothing_left();

    let next = scene.run(&["--name=plain"], &["sh", "-c", "echo $CONSUL_LOCK_TOKEN"]);
    let next: u64 = String::from_utf8(next.stdout).unwrap().trim().parse().unwrap();
    assert!(next > pair["ModifyIndex"].as_u64().unwrap(), "tokens only rise");
}

#[test]
fn exit_codes_are_as_documented() {
    let scene = Scene::new("codes");
    for (command, code, said) in [
        (&["true"][..], 0, ""),
        (&["sh", "-c", "exit 255"], 255, ""),
        (&["sh", "-c", "kill -9 $$"], 137, ""),
        (&["no-such-command"], 127, "cannot run \"no-such-command\""),
        (&["/etc/passwd"], 126, "cannot run \"/etc/passwd\""),
    ] {
        let output = scene.run(&[], command);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{command:?}: {errors}");
        assert!(errors.contains(said), "{command:?}: {errors}");
        scene.assert_nothing_left();
    }
    let nobody = Scene::through("codes", "127.0.0.1:1").run(&["--try-once"], &["true"]);
    assert_eq!(nobody.status.code(), Some(69), "{nobody:?}");
    let mut guarded = Scene::through("codes", &guarded_consul().address()).command(&[], &["true"]);
    let denied = guarded.env("CONSUL_HTTP_TOKEN", "").output().unwrap();
    assert_eq!(denied.status.code(), Some(77), "{denied:?}");
}

#[test]
fn consul_that_does_not_answer_is_tried_again_as_often_as_one_likes() {
    let proxy = Proxy::tcp(shared_consul().http()).unwrap();
    proxy.set(Fault::Cut);
    let scene = Scene::through("retries", &proxy.address().to_string());
    let flags = ["--retries=2", "--retry-interval=100ms", "--log=warn"];
    let given_up = scene.run(&flags, &["true"]);
    let said = String::from_utf8(given_up.stderr).unwrap();
    assert_eq!(given_up.status.code(), Some(69), "{said}");
    assert_eq!(said.matches("out of reach; trying again").count(), 2, "{said}");
    let waited = scene.run(&["--wait=1s"], &["true"]);
    assert_eq!(waited.status.code(), Some(69), "{waited:?}");

    let flags = ["--retries=100", "--retry-interval=100ms"];
    let mut patient = scene.start(&flags, "true");
    let again = || {
        let said = patient.said();
        (said.matches("out of reach; trying again").count() > 2).then_some(())
    };
    wait_for("it to try again", PATIENCE, again).unwrap();
    proxy.set(Fault::None);
    assert_eq!(patient.wait().0, 0);
    scene.assert_nothing_left();
}

#[test]
fn check_that_turns_critical_loses_the_lock() {
    let scene = Scene::new("check");
    let (node, check) = (unique("node"), "disk");
    let flags = [&QUICK[..], &["--node", &node, "--check", check]].concat();
    let early = scene.run(&flags, &["true"]);
    let said = String::from_utf8(early.stderr).unwrap();
    assert_eq!(early.status.code(), Some(2), "{said}");
    assert!(said.contains("Missing check 'disk' registration"), "{said}");
    let report = |status: &str| {
        let check = json!({ "Node": node, "CheckID": check, "Name": check, "Status": status });
        let body = json!({ "Node": node, "SkipNodeUpdate": true, "Check": check }).to_string();
        let body = body.as_bytes();
        assert!(shared_consul().request("PUT", "/v1/catalog/register", body).unwrap().ok());
    };
    report("passing");
    let mut run = scene.start(&flags, SLEEPER);
    let sleeper = scene.process("sleeper");
    report("critical");
    assert_eq!(run.wait().0, 79);
    assert!(!is_alive(sleeper));
}

#[test]
fn rules_that_are_documented_are_enough() {
    let scene = Scene::through("rules", &guarded_consul().address());
    let name = unique("node");
    let printed =
        include_str!("../../../docs/src/install/consul.md").split_once("```hcl\n").unwrap().1;
    let rules = printed.replace("shop/billing", &scene.key).replace("consul-lock-run", &name);
    let rules: Vec<&str> = rules.lines().take_while(|line| *line != "```").collect();
    let [key, session, node] = rules[..] else { panic!("{rules:?}") };
    let ended = |name: &str, rules: &[&str]| {
        let (_, secret) = token(&rules.join("\n"));
        let mut command = scene.command(&["--node", name], &["true"]);
        command.env("CONSUL_HTTP_TOKEN", secret).output().unwrap().status.code()
    };
    assert_eq!(ended(&name, &[key, session]), Some(77), "there is no such node yet");
    assert_eq!(ended(&name, &[key, node]), Some(77));
    assert_eq!(ended(&name, &[node, session]), Some(77));
    assert_eq!(ended(&name, &[key, node, session]), Some(0));
    assert_eq!(ended(&name, &[key, session]), Some(0), "now there is");
}

#[test]
fn key_that_is_not_free_is_waited_for_as_long_as_one_likes() {
    let scene = Scene::new("taken");
    let mut holder = scene.start(&[], SLEEPER);
    let sleeper = scene.process("sleeper");
    for flag in ["--try-once", "--wait=1s"] {
        let refused = scene.run(&[flag], &["true"]);
        assert_eq!(refused.status.code(), Some(75), "{refused:?}");
        assert!(
            String::from_utf8(refused.stderr).unwrap().contains(flag.split('=').next().unwrap())
        );
    }
    let mut told_to_stop = scene.start(&["--name=told-to-stop"], "true");
    let waits = || (!sessions("told-to-stop").is_empty()).then_some(());
    wait_for("a session that waits", PATIENCE, waits).unwrap();
    told_to_stop.send(Signal::TERM);
    assert_eq!(told_to_stop.wait().0, 143);
    assert_eq!(sessions("told-to-stop"), Vec::<Value>::new());

    let mut patient = scene.start(&["--wait=30s"], "echo mine");
    assert!(is_alive(sleeper));
    holder.send(Signal::TERM);
    assert_eq!(holder.wait().0, 143);
    assert_eq!(patient.wait(), (0, "mine\n".to_owned()));
}

#[test]
fn guard_waits_for_the_lock_too_and_may_be_killed_meanwhile() {
    let scene = Scene::new("ready");
    let mut holder = scene.start(&[], SLEEPER);
    scene.process("sleeper");
    let (mut patient, mut killed) = (scene.start(&[], "echo mine"), scene.start(&[], "true"));
    let guard = |run: Pid| wait_for("a guard", PATIENCE, || child(run)).unwrap();
    let guards = [guard(patient.pid()), guard(killed.pid())];
    kill(guards[0], Signal::KILL);
    killed.send(Signal::KILL);
    assert_eq!(killed.wait().0, -1);
    all_gone(&guards);
    holder.send(Signal::TERM);
    assert_eq!(holder.wait().0, 143);
    assert_eq!(patient.wait(), (0, "mine\n".to_owned()));
}

#[test]
fn signals_are_passed_on_to_the_whole_group() {
    let scene = Scene::new("signals");
    let listens = r#"
        for name in INT TERM HUP QUIT USR1 USR2 WINCH; do
            trap "echo $name >> $F/heard-by-$who" $name
        done
        echo $$ > $F/$who
        while :; do sleep 0.05; done
    "#;
    // No `&`: what a shell puts into the background is deaf to INT and QUIT. The shell itself hears
    // them, too, and would end.
    let script = "trap : INT TERM HUP QUIT USR1 USR2 WINCH
        who=child sh -c \"$LISTENS\" | who=sleeper sh -c \"$LISTENS\"";
    let mut run = scene.start_by_env("--default-signal", script, &[("LISTENS", listens)]);
    let child = scene.process("child");
    let sleeper = scene.process("sleeper");
    let names = ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "WINCH"];
    let signals = [
        Signal::INT,
        Signal::TERM,
        Signal::HUP,
        Signal::QUIT,
        Signal::USR1,
        Signal::USR2,
        Signal::WINCH,
    ];
    for (name, signal) in names.into_iter().zip(signals) {
        run.send(signal);
        let heard = || {
            let by = |who| std::fs::read_to_string(scene.folder.path().join(who)).ok();
            let heard = [by("heard-by-sleeper")?, by("heard-by-child")?];
            heard.iter().all(|heard| heard.lines().any(|line| line == name)).then_some(())
        };
        wait_for(format!("{name} to be heard"), PATIENCE, heard).unwrap();
    }
    assert!(is_alive(sleeper) && is_alive(child), "they decide themselves what that means");
    kill(sleeper, Signal::KILL);
    kill(child, Signal::KILL);
    assert_eq!(run.wait().0, 137);
    scene.assert_nothing_left();
}

#[test]
fn signal_that_we_were_started_to_ignore_is_ignored_by_the_command_too() {
    let scene = Scene::new("nohup");
    let mut run = scene.start_by_env("--ignore-signal=HUP", SLEEPER, &[]);
    let sleeper = scene.process("sleeper");
    run.send(Signal::HUP);
    kill(sleeper, Signal::HUP);
    run.send(Signal::TERM);
    assert_eq!(run.wait().0, 143);
}

#[test]
fn our_consul_token_is_shown_to_nobody_who_may_not_have_it() {
    let scene = Scene::new("secret");
    let said = |flags: &[&str]| {
        let mut command = scene.command(flags, &["env"]);
        let output = command.env("CONSUL_HTTP_TOKEN", "s3cret").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // Without ACLs any token will do.
    assert!(!said(&[]).contains("s3cret"));
    assert!(said(&["--pass-consul-token"]).contains("CONSUL_HTTP_TOKEN=s3cret\n"));
}

#[test]
fn a_hold_that_lasts_too_long_is_ended_and_the_next_one_begins() {
    let scene = Scene::new("max-hold");
    let mut first = scene.start(&["--max-hold=1s", "--grace=1s"], BROOD);
    let processes = brood(&scene);
    let looks = "for one in $F/*; do kill -0 $(cat $one) && echo $one is alive; done; echo mine";
    let mut second = scene.start(&[], looks);
    assert_eq!(first.wait().0, 124);
    let (code, said) = second.wait();
    assert_eq!(code, 0);
    assert!(said.contains("mine\n") && !said.contains("alive"), "two at once: {said}");
    assert_ended(&processes);
}

#[test]
fn what_a_command_leaves_behind_ends_before_the_release() {
    let scene = Scene::new("left-behind");
    let ends = BROOD.replace("while :; do sleep 90; done", "exit 3");
    let mut run = scene.start(&QUICK, &ends);
    let processes = brood(&scene);
    assert_eq!(run.wait().0, 3);
    assert_ended(&processes);
    scene.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_and_a_run_take_turns_and_know_one_another() {
    let site = Site::new("turns").await;
    let _replica = site.start().await;
    let key = site.key("lock").as_str().to_owned();
    let scene = Scene { key, ..Scene::new("turns") };
    let mut first = scene.start(&["--name=vm"], SLEEPER);
    let sleeper = scene.process("sleeper");
    site.create("lock", json!({})).await;
    let shown = |status: &ConsulLockStatus| {
        let holder = status.holder.as_ref();
        holder.is_some_and(|holder| holder.identity.ends_with("/vm") && !holder.stranger)
    };
    assert_eq!(site.wait("lock", "the run", shown).await.phase, Some(Phase::Waiting));
    kill(sleeper, Signal::TERM);
    assert_eq!(first.wait().0, 143);
    let token = site.held("lock").await;

    let mut second = scene.start(&[], "echo $CONSUL_LOCK_TOKEN");
    site.change("lock", json!({ "paused": true })).await;
    let (code, said) = second.wait();
    assert_eq!(code, 0, "{said}");
    let between: u64 = said.trim().parse().unwrap();
    assert!(between > token, "tokens only rise: {said}");
    site.change("lock", json!({ "paused": false })).await;
    // So short a pause need not be seen in the status, which may tell of the tenure before it.
    let is_next = |status: &ConsulLockStatus| {
        status.phase == Some(Phase::Held) && site::token(status) > between
    };
    site.wait("lock", "the next tenure", is_next).await;
}

// ---- a session that is there already ----

/// A session of somebody's, with this TTL.
fn make_session(ttl: &str) -> String {
    let body = json!({ "Name": "lent", "TTL": ttl, "LockDelay": "0s", "NodeChecks": [] });
    let reply = shared_consul().request("PUT", "/v1/session/create", body.to_string().as_bytes());
    reply.unwrap().json()["ID"].as_str().unwrap().to_owned()
}

fn session_exists(session: &str) -> bool {
    let path = format!("/v1/session/info/{session}?consistent");
    shared_consul().request("GET", &path, b"").unwrap().json() != json!([])
}

#[test]
fn session_that_is_lent_is_used_and_kept() {
    let scene = Scene::new("lent");
    let session = make_session("8s");
    let flags = ["--grace=1s", "--session", &session];
    let script = "echo $CONSUL_LOCK_SESSION; exec sleep 90";
    let mut run = scene.start(&flags, &format!("echo $$ > $F/sleeper; {script}"));
    let sleeper = scene.process("sleeper");
    assert_eq!(scene.wait_held(), session);
    let again = scene.run(&flags, &["true"]);
    let said = String::from_utf8(again.stderr).unwrap();
    assert_eq!(again.status.code(), Some(2), "{said}");
    assert!(said.contains("held by session"), "{said}");
    // Longer than Consul would let it live, if nobody renewed it.
    let first = valid_until(sleeper);
    let renewed = || (valid_until(sleeper) > first + Duration::from_secs(8)).then_some(());
    wait_for("renewals", PATIENCE, renewed).unwrap();
    run.send(Signal::TERM);
    assert_eq!(run.wait(), (143, format!("{session}\n")));
    assert_eq!(scene.holder(), None);
    assert!(session_exists(&session));

    let mut run = scene.start(&flags, SLEEPER);
    scene.end_session();
    assert_eq!(run.wait().0, 79);
    assert!(!session_exists(&session) && scene.holder().is_none(), "it was replaced");
    assert!(!is_alive(scene.process("sleeper")));
}

#[test]
fn session_that_is_no_good_is_refused() {
    let scene = Scene::new("not-lent");
    let (short, endless) = (make_session("2s"), make_session(""));
    for (session, said) in [
        ("adf4238a-882b-9ddc-4a9d-5b6758e4159e", "there is no session adf4238a"),
        (&short, "--ttl 12s or more, or --grace 800ms or less"),
        (&endless, "has no TTL"),
    ] {
        let refused = scene.run(&["--session", session], &["true"]);
        let errors = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{errors}");
        assert!(errors.contains(said), "{errors}");
    }
}

// ---- one run inside another ----

/// A run of the same key, as a command of an outer one.
const INNER: &str = "$B run --key $CONSUL_LOCK_KEY --re-entrant --grace=1s -- sh -c";

#[test]
fn a_run_inside_another_takes_part_in_its_tenure_and_releases_nothing() {
    let scene = Scene::new("nested");
    let told = "echo $CONSUL_LOCK_TOKEN $CONSUL_LOCK_SESSION";
    let script = format!("{told}; {INNER} '{told}; exit 5'; echo $?; touch $F/after; read wait");
    let mut outer = scene.command(&[], &["sh", "-c", &script]);
    let mut outer = outer.stdin(Stdio::piped()).spawn().unwrap();
    let after = || scene.folder.path().join("after").exists().then_some(());
    wait_for("the inner run to end", PATIENCE, after).unwrap();
    let session = scene.holder().expect("the outer run holds it still");
    assert_eq!(sessions(scene.name()).len(), 1, "of two runs");
    outer.stdin.take().unwrap().write_all(b"\n").unwrap();
    let said = String::from_utf8(outer.wait_with_output().unwrap().stdout).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[0] == lines[1] && lines[0].ends_with(&session), "{said}");
    assert_eq!(lines[2], "5");
    scene.assert_nothing_left();
}

#[test]
fn whoever_runs_under_a_tenure_that_is_over_contends_like_anybody() {
    let scene = Scene::new("nested-late");
    let first = scene.run(&[], &["env"]);
    let first = String::from_utf8(first.stdout).unwrap();
    let mut second = scene.command(&["--re-entrant"], &["sh", "-c", "echo $CONSUL_LOCK_TOKEN"]);
    let inherited = first.lines().filter(|line| line.starts_with("CONSUL_LOCK_"));
    second.envs(inherited.filter_map(|line| line.split_once('=')));
    let second = String::from_utf8(second.output().unwrap().stdout).unwrap();
    let token = |line: &str| line.trim().parse::<u64>().unwrap();
    let of_first = first.lines().find_map(|line| line.strip_prefix("CONSUL_LOCK_TOKEN=")).unwrap();
    assert!(token(&second) > token(of_first), "{second} after {of_first}");
    scene.assert_nothing_left();
}

#[test]
fn command_of_an_inner_run_stops_before_valid_until_when_the_outer_one_is_frozen() {
    let scene = Scene::new("nested-frozen");
    let script = format!("{INNER} 'echo $$ > $F/sleeper; exec sleep 90'; exit $?");
    let mut outer = scene.start(&QUICK, &script);
    let sleeper = scene.process("sleeper");
    // The guard of the outer run would end them all; without it the inner one has to.
    let inner = parent(parent(sleeper));
    let outer_guard = parent(parent(inner));
    assert_eq!(parent(outer_guard), outer.pid());
    kill(outer_guard, Signal::STOP);
    outer.send(Signal::STOP);
    let last = valid_until(sleeper);
    assert!(all_gone(&[sleeper]) < last, "it went on for too long");
    outer.send(Signal::CONT);
    kill(outer_guard, Signal::CONT);
    assert_eq!(outer.wait().0, 79);
    scene.assert_nothing_left();
}

// ---- the lock is lost ----

#[test]
fn session_that_an_operator_ends_stops_everything_that_came_of_the_command() {
    let scene = Scene::new("ended");
    let mut run = scene.start(&QUICK, BROOD);
    let processes = brood(&scene);
    scene.end_session();
    assert_eq!(run.wait().0, 79);
    assert_ended(&processes);
    scene.assert_nothing_left();
}

#[test]
fn whoever_lost_the_lock_may_contend_again() {
    let scene = Scene::new("restart");
    let flags = [&QUICK[..], &["--restart"]].concat();
    let mut run = scene.start(&flags, SLEEPER);
    let first = scene.process("sleeper");
    std::fs::remove_file(scene.folder.path().join("sleeper")).unwrap();
    scene.end_session();
    let second = scene.process("sleeper");
    assert!(!is_alive(first));
    run.send(Signal::TERM);
    assert_eq!(run.wait().0, 143);
    assert!(!is_alive(second));
    scene.assert_nothing_left();
}

#[test]
fn silence_stops_the_command_before_valid_until_and_the_next_begins_after_it() {
    let proxy = Proxy::tcp(shared_consul().http()).unwrap();
    let scene = Scene::through("silence", &proxy.address().to_string());
    let mut run = scene.start(&QUICK, BROOD);
    let processes = brood(&scene);
    let beside = Scene { key: scene.key.clone(), ..Scene::new("silence") };
    let mut next = beside.start(&QUICK, SLEEPER);
    let file = variable(processes[0], VALID_UNTIL_FILE);
    proxy.set(Fault::Blackhole);
    let (gone, last) = all_gone_and_told(&processes, &file);
    assert!(gone < last, "it went on for too long");
    assert!(scene.holder().is_some(), "the other cannot have it yet");
    let successor = beside.process("sleeper");
    assert!(Clock::boot().now() >= last, "two at once");
    assert_eq!(run.wait().0, 79);
    proxy.set(Fault::None);
    kill(successor, Signal::KILL);
    assert_eq!(next.wait().0, 137);
}

// ---- somebody is frozen or killed ----

#[test]
fn command_of_a_frozen_run_stops_before_valid_until() {
    let scene = Scene::new("frozen");
    let mut run = scene.start(&QUICK, BROOD);
    let processes = brood(&scene);
    run.send(Signal::STOP);
    let last = valid_until(processes[0]);
    assert!(all_gone(&processes) < last, "it went on for too long");
    run.send(Signal::CONT);
    assert_eq!(run.wait().0, 79);
    scene.assert_nothing_left();
}

#[test]
fn command_of_a_killed_run_stops_and_so_does_the_guard() {
    let scene = Scene::new("killed");
    let run = scene.start(&["--ttl=8s", "--grace=1s", "--lock-delay=0s"], BROOD);
    let mut processes = brood(&scene);
    processes.push(parent(processes[0]));
    let file = variable(processes[0], "CONSUL_LOCK_VALID_UNTIL_FILE");
    let last = valid_until(processes[0]);
    run.send(Signal::KILL);
    // By its deadlines alone the guard would kill them within the last second.
    assert!(all_gone(&processes) + Duration::from_secs(2) < last, "it went on for too long");
    assert!(!file.parent().unwrap().exists(), "a file is left");
    let free = || scene.holder().is_none().then_some(());
    wait_for("the session to expire", PATIENCE, free).unwrap();
}

#[test]
fn command_of_a_killed_guard_stops() {
    let scene = Scene::new("guard-killed");
    let mut run = scene.start(&QUICK, BROOD);
    let processes = brood(&scene);
    kill(parent(processes[0]), Signal::KILL);
    assert_eq!(run.wait().0, 79);
    assert_ended(&processes);
    scene.assert_nothing_left();
}

#[test]
fn command_of_a_frozen_guard_stops_before_valid_until() {
    let scene = Scene::new("guard-frozen");
    let mut run = scene.start(&QUICK, BROOD);
    let processes = brood(&scene);
    kill(parent(processes[0]), Signal::STOP);
    let last = valid_until(processes[0]);
    scene.end_session();
    let (code, said) = run.wait();
    // The last renewal may have come after we looked.
    assert!(Clock::boot().now() < last + Duration::from_secs(3), "it went on for too long");
    assert_eq!(code, 79, "{said}");
    assert_ended(&processes);
    scene.assert_nothing_left();
}

// ---- a terminal ----

/// A terminal with this scene's variables.
fn terminal(scene: &Scene, command: &str) -> Terminal {
    let folder = scene.folder.path().display().to_string();
    let variables = [
        ("CONSUL_HTTP_ADDR", scene.address.clone()),
        ("F", folder),
        ("B", env!("CARGO_BIN_EXE_consul-lock").to_owned()),
        ("K", scene.key.clone()),
    ];
    Terminal::start(command, variables)
}

#[test]
fn command_may_read_from_the_terminal_and_whoever_started_us_may_again_afterwards() {
    let scene = Scene::new("terminal");
    let script = "$B run --key $K -- sh -c 'read one; echo first $one'; read two; echo then $two";
    let mut terminal = terminal(&scene, script);
    terminal.type_in("hello\nworld\n");
    let (_, shown) = terminal.shown();
    assert!(shown.contains("first hello\r\n") && shown.contains("then world\r\n"), "{shown}");
}

#[test]
fn command_may_be_stopped_and_continued_on_the_terminal() {
    let scene = Scene::new("stopped");
    let mut terminal = terminal(&scene, "bash --norc -i");
    terminal.type_in(&format!("$B run --key $K -- sh -c '{SLEEPER}'\n"));
    let sleeper = scene.process("sleeper");
    let guard = parent(sleeper);
    let run = parent(guard);
    // Until then keys are for the run.
    let lent = || (foreground(sleeper) == Some(sleeper)).then_some(());
    wait_for("the command to have the terminal", PATIENCE, lent).unwrap();
    let stopped = |pid| if is_stopped(pid) { Some(()) } else { None };
    terminal.type_in("\x1a");
    wait_for("both to be stopped", PATIENCE, || stopped(sleeper).and(stopped(run))).unwrap();
    assert!(!is_stopped(guard), "it has to go on");
    terminal.type_in("fg\n");
    let goes_on = |pid| if is_stopped(pid) { None } else { Some(()) };
    wait_for("both to go on", PATIENCE, || goes_on(sleeper).and(goes_on(run))).unwrap();
    terminal.type_in("\x03");
    all_gone(&[sleeper, guard, run]);
    terminal.type_in("echo code $?\nexit\n");
    let (_, shown) = terminal.shown();
    assert!(shown.contains("code 130\r\n"), "{shown}");
    scene.assert_nothing_left();
}
