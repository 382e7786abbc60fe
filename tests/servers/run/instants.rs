//! Commands that end in the very instant in which the lock is acquired, or lost.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use testbed::say;

use super::scene::{Scene, is_alive};

/// So many at a time.
const BESIDE: u32 = 6;

/// Commands that end at once, and with which code.
const SHORT_LIVED: [(&[&str], i32); 6] = [
    (&["true"], 0),
    (&["sh", "-c", "exit 7"], 7),
    (&["sh", "-c", "kill -9 $$"], 137),
    (&["sh", "-c", "kill -TERM $$"], 143),
    (&["no-such-command"], 127),
    // A daemon that would go on.
    (&["sh", "-c", "setsid sleep 90 <&- >&- 2>&- & echo $! > $F/daemon-$$; exit 3"], 3),
];

/// The folder for the files of runs is there, and empty.
#[track_caller]
fn assert_no_file_left(scene: &Scene) {
    let left: Vec<_> = std::fs::read_dir(scene.folder.path().join("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Of commands that left their numbers in files whose names begin so, none is alive.
#[track_caller]
fn assert_none_alive(scene: &Scene, prefix: &str) {
    for entry in std::fs::read_dir(scene.folder.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with(prefix) {
            assert!(!is_alive(scene.process(&name)), "{name}");
        }
    }
}

#[test]
fn commands_that_end_in_the_instant_of_acquisition_end_as_they_would() {
    let scene = Scene::new("instant");
    let temporary = scene.folder.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let contend = |nth: u32| {
        for round in 0..12 {
            let (command, code) = SHORT_LIVED[((nth + round) % 6) as usize];
            let output = scene.command(&[], command).env("TMPDIR", &temporary).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{command:?}: {errors}");
        }
    };
    thread::scope(|scope| {
        (0..BESIDE).for_each(|nth| drop(scope.spawn(move || contend(nth))));
    });
    scene.assert_nothing_left();
    assert_no_file_left(&scene);
    assert_none_alive(&scene, "daemon-");
}

/// One round: a command that ends by itself, and its session that is ended `after` that long.
fn lose(scene: &Scene, after: Duration, script: &str) -> i32 {
    let temporary = scene.folder.path().join("tmp");
    let flags = ["--ttl=10s", "--grace=1s", "--lock-delay=0s"];
    let mut command = scene.command(&flags, &["sh", "-c", script]);
    let mut run = scene.beside(command.env("TMPDIR", temporary));
    let session = scene.wait_held();
    scene.process("sleeper");
    thread::sleep(after);
    let path = format!("/v1/session/destroy/{session}");
    assert!(scene.consul.request("PUT", &path, b"").unwrap().ok());
    run.wait().0
}

#[test]
fn commands_that_end_in_the_instant_of_a_loss_end_as_they_would_or_with_79() {
    const ROUNDS: u32 = 16;
    /// When they end by themselves, after they have begun.
    const LIFE: Duration = Duration::from_millis(150);
    let next = AtomicU32::new(0);
    let counts = thread::scope(|scope| {
        let lane = || {
            let mut counts: BTreeMap<i32, u32> = BTreeMap::new();
            while let Some(round) =
                Some(next.fetch_add(1, Ordering::Relaxed)).filter(|round| *round < BESIDE * ROUNDS)
            {
                // From well before the command's own end until well after it.
                let after = LIFE * 2 * round / (BESIDE * ROUNDS);
                let scene = Scene::new("loss");
                std::fs::create_dir(scene.folder.path().join("tmp")).unwrap();
                let begins = "echo $$ > $F/sleeper; sleep 0.15";
                let (script, own) = match round % 3 {
                    0 => (format!("{begins}; exit 5"), 5),
                    1 => (format!("{begins}; kill -9 $$"), 137),
                    _ => (format!("setsid sleep 90 & {begins}; exit 6"), 6),
                };
                let code = lose(&scene, after, &script);
                assert!(
                    [own, 79].contains(&code),
                    "{code} instead of {own} or 79, after {after:?}"
                );
                *counts.entry(code).or_default() += 1;
                scene.assert_nothing_left();
                assert_no_file_left(&scene);
                assert_none_alive(&scene, "sleeper");
            }
            counts
        };
        let lanes: Vec<_> = (0..BESIDE).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().flat_map(|lane| lane.join().unwrap()).fold(
            BTreeMap::new(),
            |mut all: BTreeMap<i32, u32>, (code, count)| {
                *all.entry(code).or_default() += count;
                all
            },
        )
    });
    say(format_args!("exit codes at the moment of a loss, and how often: {counts:?}"));
    assert!(counts.len() == 4, "nothing was lost, or everything: {counts:?}");
}
