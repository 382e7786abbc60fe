//! The control group of a command, where one can be made.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Pid, Signal};
use testbed::{reaper, say, wait_for};

use super::{
    BROOD, INNER, QUICK, brood,
    scene::{Run, Scene, all_gone, is_alive, kill, parent, valid_until},
};
use crate::fixtures::{PATIENCE, unique};

/// Waits until the command is in its group, which is made beside it.
const IN_GROUP: &str = "until grep -q consul-lock-run /proc/$$/cgroup; do sleep 0.01; done;";

/// What forks, ends and leaves its process group without end, and does not hear SIGTERM.
const COMETS: &str = r#"
    for one in 1 2 3; do
        perl -MPOSIX -e '$SIG{TERM} = "IGNORE"; while (1) { fork and POSIX::_exit(0); setsid }' &
    done
    echo $$ > $F/sleeper
    exec sleep 90
"#;

/// Where version 2 of cgroups is mounted.
fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.into_iter().find(|fields| fields[2] == "cgroup2").map(|fields| fields[1].into())
}

/// The folder of the group that the process is in.
fn group(process: Pid) -> PathBuf {
    let file = format!("/proc/{}/cgroup", process.as_raw_nonzero());
    let groups = fs::read_to_string(file).unwrap();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    mount().unwrap().join(group)
}

/// Whether no group can be made here; says so, and why.
fn skips() -> bool {
    let probe = || {
        let mount = mount().ok_or("version 2 of cgroups is not mounted")?;
        let probe = group(rustix::process::getpid()).join(format!("probe-{}", std::process::id()));
        fs::create_dir(&probe).map_err(|error| format!("{}: {error}", mount.display()))?;
        let can_kill = probe.join("cgroup.kill").exists();
        fs::remove_dir(probe).unwrap();
        if can_kill { Ok(()) } else { Err("older than Linux 5.14".to_owned()) }
    };
    let why: Result<(), String> = probe();
    if let Err(why) = &why {
        let test = std::thread::current();
        say(format_args!("SKIPPED: {}: no cgroup: {why}", test.name().unwrap_or("a test")));
    }
    why.is_err()
}

fn gone(group: &Path) -> Option<()> {
    (!group.exists()).then_some(())
}

/// A group in which no other test's guard looks for what was left.
struct Place(PathBuf);

impl Place {
    fn new(what: &str) -> Place {
        let name = format!("{}-{}", unique(what), std::process::id());
        let place = group(rustix::process::getpid()).join(name);
        fs::create_dir(&place).unwrap();
        Place(place)
    }

    /// Starts a run in it.
    fn start(&self, scene: &Scene, script: &str) -> Run {
        let run = scene.command(&QUICK, &["sh", "-c", script]);
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#]).arg(&self.0);
        command.arg(run.get_program()).args(run.get_args());
        command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        scene.beside(&mut command)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What a test that failed left in it stays.
        drop(fs::remove_dir(&self.0));
    }
}

#[test]
fn command_has_a_cgroup_of_its_own_that_goes_with_it() {
    if skips() {
        return;
    }
    for (victim, code) in [("the command", 137), ("the guard", 79), ("run", -1)] {
        let scene = Scene::new("cgroup");
        let mut run = scene.start(&QUICK, &format!("{IN_GROUP} {BROOD}"));
        let processes = brood(&scene);
        let (guard, own) = (parent(processes[0]), group(processes[0]));
        assert!(processes.iter().all(|pid| group(*pid) == own), "all that comes of it");
        assert_eq!((own.parent().unwrap(), &group(guard)), (&*group(run.pid()), &group(run.pid())));
        match victim {
            "the command" => kill(processes[0], Signal::KILL),
            "the guard" => kill(guard, Signal::KILL),
            _ => run.send(Signal::KILL),
        }
        assert_eq!(run.wait().0, code, "{victim}");
        all_gone(&processes);
        if victim == "the guard" {
            // The group of a guard that was killed goes when the next one comes.
            assert!(scene.run(&QUICK, &["true"]).status.success());
        }
        wait_for("the cgroup to be gone", PATIENCE, || gone(&own)).unwrap();
    }
}

#[test]
fn cgroup_of_an_inner_run_is_in_that_of_the_outer_one() {
    if skips() {
        return;
    }
    let scene = Scene::new("cgroup-nested");
    let sleeper = "echo $$ > $F/sleeper; exec sleep 90";
    let script = format!("{IN_GROUP} {INNER} '{IN_GROUP} {sleeper}'; exit $?").replace(
        // Both would find the outer one's.
        &format!("'{IN_GROUP}"),
        "'until grep -q consul-lock-run.*consul-lock-run /proc/$$/cgroup; do sleep 0.01; done;",
    );
    let mut outer = scene.start(&QUICK, &script);
    let sleeper = scene.process("sleeper");
    let (inner, own) = (parent(parent(sleeper)), group(sleeper));
    assert_eq!(own.parent().unwrap(), group(inner));
    assert_eq!(group(inner).parent().unwrap(), group(outer.pid()));
    // Whatever the inner one would have removed.
    let outermost = group(inner);
    kill(inner, Signal::STOP);
    kill(parent(sleeper), Signal::STOP);
    scene.end_session();
    assert_eq!(outer.wait().0, 79);
    assert!(!is_alive(sleeper));
    wait_for("the cgroup to be gone", PATIENCE, || gone(&outermost)).unwrap();
}

#[test]
fn what_forks_faster_than_it_can_be_looked_for_is_ended_in_time() {
    if skips() {
        return;
    }
    let scene = Scene::new("comets");
    let mut run = scene.start(&QUICK, &format!("{IN_GROUP} {COMETS}"));
    let own = group(scene.process("sleeper"));
    let inhabitants = || fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
    let before = inhabitants();
    let moved = || (inhabitants() != before).then_some(());
    wait_for("them to move on", PATIENCE, moved).unwrap();
    // Just renewed, so that no renewal is half way through when it is stopped.
    let sleeper = scene.process("sleeper");
    let told = valid_until(sleeper);
    wait_for("a renewal", PATIENCE, || (valid_until(sleeper) != told).then_some(())).unwrap();
    run.send(Signal::STOP);
    let last = valid_until(sleeper);
    // The kernel takes its time to remove a group, in which nothing runs.
    wait_for("them to end", PATIENCE, || inhabitants().is_empty().then_some(())).unwrap();
    assert!(consul_lock::clock::Clock::boot().now() < last, "they went on for too long");
    wait_for("the cgroup to be gone", PATIENCE, || gone(&own)).unwrap();
    run.send(Signal::CONT);
    assert_eq!(run.wait().0, 79);
    scene.assert_nothing_left();
}

#[test]
fn what_is_left_of_a_run_that_was_killed_with_its_guard_ends_before_the_next_command_starts() {
    if skips() {
        return;
    }
    let (scene, place) = (Scene::new("both-killed"), Place::new("both-killed"));
    let mut first = place.start(&scene, &format!("{IN_GROUP} {BROOD}"));
    let processes = brood(&scene);
    let own = group(processes[0]);
    let both = [parent(processes[0]), first.pid()];
    both.into_iter().for_each(|pid| kill(pid, Signal::STOP));
    both.into_iter().for_each(|pid| kill(pid, Signal::KILL));
    assert_eq!(first.wait().0, -1);
    // A guard minds its group until it is gone.
    all_gone(&both);
    assert!(processes.iter().all(|pid| is_alive(*pid)), "nobody is left to end them");
    scene.end_session();
    let looks = r#"
        for one in $F/*; do
            read -r stat 2>&- </proc/$(cat $one)/stat || continue
            case ${stat##*)} in " Z"*) ;; *) echo $one is alive ;; esac
        done
        echo mine
    "#;
    let (code, said) = place.start(&scene, looks).wait();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("mine\n") && !said.contains("alive"), "two at once: {said}");
    assert!(!own.exists());
    scene.assert_nothing_left();
}

#[test]
fn what_another_guard_is_about_to_end_is_waited_for() {
    if skips() {
        return;
    }
    let (scene, place) = (Scene::new("swept"), Place::new("swept"));
    let left = place.0.join("consul-lock-run-left");
    fs::create_dir(&left).unwrap();
    let mut sleeper = reaper::spawn(Command::new("sleep").arg("90")).unwrap();
    fs::write(left.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
    // As another guard does before it ends what is in there.
    let lock = fs::File::open(&left).unwrap();
    lock.lock().unwrap();
    let looks = format!("test -d {} && echo is there; echo mine", left.display());
    let mut run = place.start(&scene, &looks);
    scene.wait_held();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    reaper::forget_process(sleeper.id());
    fs::remove_dir(&left).unwrap();
    assert_eq!(run.wait(), (0, "mine\n".to_owned()));
}

/// As in a container.
#[test]
fn where_no_cgroup_can_be_made_a_run_does_without() {
    if skips() {
        return;
    }
    let scene = Scene::new("no-cgroup");
    let run = scene.command(&QUICK, &["sh", "-c", BROOD]);
    let mut command = Command::new("unshare");
    let read_only = r#"mount -o remount,bind,ro "$0" && exec "$@""#;
    command.args(["--mount", "sh", "-c", read_only]).arg(mount().unwrap());
    command.arg(run.get_program()).args(run.get_args());
    command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut run = scene.beside(&mut command);
    let processes = brood(&scene);
    assert_eq!(group(processes[0]), group(run.pid()));
    scene.end_session();
    let (code, said) = run.wait();
    assert_eq!(code, 79, "{said}");
    assert!(processes.iter().all(|pid| !is_alive(*pid)), "something is left");
    scene.assert_nothing_left();
}
