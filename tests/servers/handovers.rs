//! `consul-lock run`, stock `consul lock` and a Go program that uses `api.Lock` hand one key on to
//! one another, two hundred times each way.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use testbed::{Folder, Stopwatch, reaper, say, wait_for};

use crate::fixtures::{PATIENCE, shared_consul, unique};

/// Keys that are handed on at the same time, and how often each goes round.
const KEYS: usize = 8;
const ROUNDS: usize = 25;

/// What a command does under the lock, until its input ends: `$I` is a folder that only one can
/// make at a time.
const INSIDE: &str = "mkdir $I && echo locked || echo two at once; cat >/dev/null; rmdir $I";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Ours,
    ConsulLock,
    ApiLock,
}

/// The order in which a key goes round.
const CIRCLE: [Who; 4] = [Who::Ours, Who::ConsulLock, Who::Ours, Who::ApiLock];

/// A process that contends for the key, and holds it until its input ends.
struct Contender {
    who: Who,
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    inside: PathBuf,
}

impl Contender {
    /// `place` is the prefix that `consul lock` is given; `inside` only one can make at a time.
    fn start(who: Who, place: &str, inside: PathBuf) -> Contender {
        let (name, key) = (unique("handover"), format!("{place}/.lock"));
        let consul = shared_consul();
        let mut command = match who {
            Who::Ours => {
                let mut run = Command::new(env!("CARGO_BIN_EXE_consul-lock"));
                run.args(["run", "--key", &key, "--name", &name, "--", "sh", "-c", INSIDE]);
                run.env("CONSUL_HTTP_ADDR", consul.address());
                run
            }
            Who::ConsulLock => {
                consul.cli(["lock", "-pass-stdin", "-name", &name, place, INSIDE]).unwrap()
            }
            Who::ApiLock => consul.api_lock(["-session-name", &name, &key]).unwrap(),
        };
        command.env("I", &inside).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = reaper::spawn(&mut command).unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        // Ends with the child's output.
        thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        let input = child.stdin.take();
        Contender { who, name, child, input, lines, inside }
    }

    /// Waits until it has a session, and so waits for the key or is about to.
    fn contends(&self) {
        let mine = || {
            let sessions = shared_consul().request("GET", "/v1/session/list", b"").unwrap().json();
            let names = sessions.as_array().into_iter().flatten();
            let mut names = names.filter_map(|session| session["Name"].as_str());
            names.any(|name| name.contains(&self.name)).then_some(())
        };
        wait_for("a session", PATIENCE, mine).unwrap();
    }

    fn holds(&self) {
        let line = self.lines.recv_timeout(PATIENCE).unwrap();
        assert_eq!(line.split(' ').next(), Some("locked"), "{:?}: {line}", self.who);
        if self.who == Who::ApiLock {
            // It has no command that would.
            std::fs::create_dir(&self.inside).expect("two at once");
        }
    }

    fn let_go(&mut self) {
        if self.who == Who::ApiLock {
            std::fs::remove_dir(&self.inside).unwrap();
        }
        self.input = None;
    }

    fn ended(&mut self) {
        let child = &mut self.child;
        let ended = wait_for("its end", PATIENCE, || child.try_wait().unwrap()).unwrap();
        reaper::forget_process(child.id());
        assert!(ended.success(), "{:?}: {ended}", self.who);
    }
}

/// From whom to whom, and how often.
type Handovers = BTreeMap<(Who, Who), usize>;

/// Hands one key round.
fn go_round() -> Handovers {
    let (place, folder) = (unique("round"), Folder::new("round").unwrap());
    let start = |who| Contender::start(who, &place, folder.path().join("inside"));
    let mut handovers = Handovers::new();
    let mut holder = start(CIRCLE[0]);
    holder.holds();
    for who in CIRCLE.into_iter().cycle().skip(1).take(ROUNDS * CIRCLE.len()) {
        let next = start(who);
        next.contends();
        holder.let_go();
        next.holds();
        holder.ended();
        *handovers.entry((holder.who, who)).or_default() += 1;
        holder = next;
    }
    holder.let_go();
    holder.ended();
    handovers
}

#[test]
fn two_hundred_handovers_each_way_and_never_two_at_once() {
    let watch = Stopwatch::start();
    let mut all = Handovers::new();
    thread::scope(|scope| {
        let keys: Vec<_> = (0..KEYS).map(|_| scope.spawn(go_round)).collect();
        for (ways, count) in keys.into_iter().flat_map(|key| key.join().unwrap()) {
            *all.entry(ways).or_default() += count;
        }
    });
    say(format_args!("handovers in {:.1?}, never two at once: {all:?}", watch.elapsed()));
    assert_eq!(all.len(), 4);
    assert!(all.values().all(|count| *count >= 200), "{all:?}");
}
