//! `make demo`, as somebody without a terminal and somebody with little patience see it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use testbed::{Folder, wait_for};

/// Alone it takes half a minute.
const PATIENCE: Duration = Duration::from_secs(180);

/// A run of the demo in folders of its own.
struct Run {
    process: Child,
    output: PathBuf,
    places: [PathBuf; 2],
    _folder: Folder,
}

impl Run {
    fn start() -> Run {
        let folder = Folder::new("demo-test").unwrap();
        let output = folder.path().join("output");
        let places = ["tmp", "home"].map(|name| folder.path().join(name));
        places.iter().for_each(|place| fs::create_dir(place).unwrap());
        let file = fs::File::create(&output).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_testbed"))
            .arg("demo")
            .env("TMPDIR", &places[0])
            .env("HOME", &places[1])
            // Somebody who has a Consul already.
            .env("CONSUL_HTTP_ADDR", "https://consul.invalid")
            .env("CONSUL_HTTP_TOKEN_FILE", "/no/such/file")
            .env("CONSUL_LOCK_LEASE_NAME", "theirs")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Run { process, output, places, _folder: folder }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    /// Waits until it has printed this; it must not end before.
    fn wait_until_printed(&mut self, words: &str) {
        let ended = wait_for(format!("{words:?} on the screen"), PATIENCE, || {
            let ended = self.process.try_wait().unwrap();
            (ended.is_some() || self.text().contains(words)).then_some(ended)
        });
        assert!(matches!(ended, Ok(None)), "{ended:?}: {}", self.text());
    }

    fn wait_until_ended(&mut self) -> ExitStatus {
        let ended = wait_for("the demo's end", PATIENCE, || self.process.try_wait().unwrap());
        ended.unwrap_or_else(|late| panic!("{late}: {}", self.text()))
    }

    #[track_caller]
    fn assert_nothing_is_left(&self) {
        for place in &self.places {
            let left: Vec<_> =
                fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(left.is_empty(), "left behind: {left:?}");
        }
        let left = processes_with(&format!("TMPDIR={}", self.places[0].display()));
        assert!(left.is_empty(), "still running: {left:?}");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            // Its reaper does the rest.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// The command lines of all processes that have this variable: the descendants of a demo.
fn processes_with(variable: &str) -> Vec<String> {
    let has = |process: &Path| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|one| one == variable.as_bytes())
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let found = processes.filter(|process| has(process));
    found.map(|process| fs::read_to_string(process.join("cmdline")).unwrap_or_default()).collect()
}

/// Asserts that the lines appear in this order.
#[track_caller]
fn assert_told(text: &str, story: &[&str]) {
    let mut rest = text;
    for line in story {
        let Some((_, after)) = rest.split_once(line) else {
            panic!("no {line:?} where it should be in:\n{text}");
        };
        rest = after;
    }
}

#[test]
fn demo_tells_its_story_and_leaves_nothing_behind() {
    let mut run = Run::start();
    let status = run.wait_until_ended();
    let text = run.text();
    assert_eq!(status.code(), Some(0), "{text}");
    assert_told(
        &text,
        &[
            "1. Start",
            "$ unset CONSUL_HTTP_ADDR CONSUL_HTTP_TOKEN_FILE CONSUL_LOCK_LEASE_NAME",
            "$ export KUBECONFIG=",
            "$ kubectl apply -f crds/consullocks.yaml",
            "$ HOSTNAME=consul-lock-1 consul-lock controller",
            "leads, after",
            "$ kubectl apply -f examples/",
            "consullock.consullock.dev/billing created",
            "=> three keys held after",
            "$ consul lock -verbose -name=vm-17 shop/migrate",
            "Attempting lock acquisition",
            "=> it waits",
            "{\"spec\":{\"paused\":true}}",
            "the migration runs",
            "vm-17 on consul",
            "=> the stranger had the key",
            "{\"spec\":{\"paused\":false}}",
            "Waiting   vm-17 on consul",
            "$ kill -TERM",
            "=> ours again",
            "$ consul-lock run --key=consul-lock/shop/billing",
            "consul-lock/shop/billing was not free",
            "exit code 75",
            "/vm-18",
            "paying with token ",
            "=> the command had ended and the claim had the key",
            "custom-columns='POD:.endpoints[*].targetRef.name",
            "$ kubectl apply -f testbed/demo/pods.yaml",
            "node/kwok-1 created",
            "pod/ledger-c created",
            "Held    shop/ledger-",
            "holder",
            "consullock-ledger-ipv4 ",
            " 10.244.",
            "has the label, the token",
            "terminated: {exitCode: 137",
            "$ kubectl -n shop patch pod ledger-",
            "patched",
            " ADDRESS\n",
            "<none> ",
            "0/1     Error",
            "ended: PodDied",
            "after the report",
            "$ kill -KILL",
            "same sessions, same tokens, same tenures",
            "$ export CONSUL_HTTP_ADDR=",
            "no terminal",
        ],
    );
    assert!(!text.contains('\x1b'), "colours without a terminal: {text}");
    run.assert_nothing_is_left();
}

#[test]
fn demo_that_is_interrupted_in_the_middle_leaves_nothing_behind() {
    let mut run = Run::start();
    // By now all of it runs: servers, kwok, replicas, a watch, and the command that was just shown.
    run.wait_until_printed("$ kubectl apply -f testbed/demo/pods.yaml");
    let pid = run.process.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let status = run.wait_until_ended();
    assert_eq!(status.code(), Some(130), "{}", run.text());
    run.assert_nothing_is_left();
}
