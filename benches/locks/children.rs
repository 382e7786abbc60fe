//! Rows about processes: `consul-lock run` beside `consul lock`, and a program on `api.Lock`.

use std::{
    ffi::OsString,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use testbed::{
    Consul, ConsulCluster, ConsulClusterConfig, Fault, Folder, Proxy,
    bench::{
        process,
        table::{Aim, Row, Table, milliseconds},
    },
    reaper, say, wait_for,
};

use crate::{Failure, Outcome};

/// Until a contender that was started waits for the key.
const SETTLE: Duration = Duration::from_millis(1500);
/// What anything gets, at most; `consul lock` needs four minutes to notice silence.
const PATIENCE: Duration = Duration::from_secs(400);
/// After this long without an end nobody is waited for.
const LONGEST: Duration = Duration::from_secs(300);

/// By what a command is run under a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    Run,
    /// With the shortest TTL that Consul allows, a short grace, and without a lock-delay.
    RunBrisk,
    /// With the same TTL and grace, bound to the health of the machine. What gossip says may be
    /// wrong, so the lock-delay is as long as the TTL.
    RunChecked,
    /// A program on our crate, with this TTL and lock-delay. It counts as the command for as long as
    /// it believes that it holds the lock.
    CrateBrisk,
    ConsulLock,
    /// The same of a program on Go's `api.Lock`.
    ApiLock,
}

/// Says that a program holds, and ends when that says that it has lost.
const BELIEVER: &str = r#"file=$1; shift
sleep 900 | "$@" | while read word rest; do case $word in
    locked) echo $$ $(date +%s%N) >> "$file" ;;
    lost) kill -9 $$ ;;
esac; done"#;
/// Of [`Means::RunBrisk`].
const BRISK: [&str; 3] = ["--ttl=10s", "--grace=500ms", "--lock-delay=0s"];
/// How old a session is when somebody dies, at least.
const SETTLED: Duration = Duration::from_secs(10);
/// Of [`Means::RunChecked`].
const CHECKED: [&str; 4] = ["--ttl=10s", "--grace=500ms", "--lock-delay=10s", "--check=serfHealth"];

/// A key, and what becomes of the commands under it.
struct Scene {
    means: Means,
    key: String,
    folder: Folder,
}

/// A command that was started: its process, and when by the wall clock.
#[derive(Clone, Copy, Debug)]
struct Started {
    pid: Pid,
    at: i128,
}

/// Somebody who wants to run the command. Killed when dropped, with all that came of it.
struct Contender(Child);

impl Scene {
    fn new(means: Means) -> Outcome<Scene> {
        let key = format!("bench/{means:?}-{:08x}", rand::random::<u32>());
        Ok(Scene { means, key, folder: Folder::new("children")? })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("started")
    }

    /// `address`: of a Consul, or of what stands before it.
    fn start(&self, consul: &Consul, address: &str) -> Outcome<Contender> {
        let node = &consul.server().name();
        let script = format!("echo $$ $(date +%s%N) >> {}; exec sleep 900", self.file().display());
        let mut command = match self.means {
            Means::Run | Means::RunBrisk | Means::RunChecked => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_consul-lock"));
                command.args(["run", "--log=error", "--key", &self.key]);
                match self.means {
                    Means::RunBrisk => drop(command.args(BRISK)),
                    Means::RunChecked => drop(command.args(CHECKED).args(["--node", node])),
                    _ => {}
                }
                command.args(["--", "sh", "-c", &script]);
                command
            }
            Means::ConsulLock => consul.cli(["lock", &self.key, &script])?,
            Means::ApiLock => {
                self.believer(consul, [consul.api_lock([])?.get_program().to_owned()])
            }
            Means::CrateBrisk => {
                self.believer(consul, [std::env::current_exe()?.into_os_string(), "hold".into()])
            }
        };
        command.env("CONSUL_HTTP_ADDR", address);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Contender(reaper::spawn(&mut command)?))
    }

    /// A program that is given the key and says what becomes of the lock.
    fn believer<const N: usize>(&self, consul: &Consul, program: [OsString; N]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", BELIEVER, "believer"]).arg(self.file());
        command.args(program).arg(&self.key).envs(consul.env());
        command
    }

    fn started(&self) -> Vec<Started> {
        let text = fs::read_to_string(self.file()).unwrap_or_default();
        let parse = |line: &str| {
            let (pid, at) = line.split_once(' ')?;
            Some(Started { pid: Pid::from_raw(pid.parse().ok()?)?, at: at.parse().ok()? })
        };
        text.lines().filter_map(parse).collect()
    }

    /// The command's n-th start.
    fn wait_start(&self, number: usize) -> Outcome<Started> {
        let look = || self.started().get(number - 1).copied();
        Ok(wait_for(format!("start {number} under {:?}", self.means), PATIENCE, look)?)
    }
}

impl Contender {
    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        kill_family(self.pid());
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
        reaper::forget_process(self.0.id());
    }
}

fn wall() -> i128 {
    testbed::wall().as_nanosecond()
}

fn between(from: i128, to: i128) -> Duration {
    Duration::from_nanos(u64::try_from(to - from).unwrap_or(0))
}

/// A process and all that came of it, as the kernel has it now.
fn family(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (_, rest) = stat.rsplit_once(')')?;
            Some((pid, rest.split_whitespace().nth(1)?.parse().ok()?))
        })
        .collect();
    let mut family = vec![root];
    let mut known = 0;
    while known < family.len() {
        let parent = family[known];
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        known += 1;
    }
    family
}

fn kill_family(root: u32) {
    let pids = family(root).into_iter().filter_map(|pid| Pid::from_raw(pid.cast_signed()));
    for pid in pids {
        // It may have ended already.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let is_zombie = stat.is_ok_and(|stat| {
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    });
    test_kill_process(pid).is_ok() && !is_zombie
}

/// Halfway between the two in the middle, if there are two.
fn median(mut times: Vec<Duration>) -> Outcome<Duration> {
    times.sort();
    let upper = times.get(times.len() / 2).copied();
    let lower = times.get(times.len().saturating_sub(1) / 2).copied();
    let both = lower.zip(upper).map(|(lower, upper)| (lower + upper) / 2);
    both.ok_or_else(|| Failure::Odd("nothing was measured".to_owned()))
}

/// A command is killed, and the next one is started.
pub(crate) fn killed(consul: &Consul, count: usize, table: &mut Table) -> Outcome<()> {
    say(format!("{count} commands are killed"));
    let mut medians = Vec::new();
    let mut memory = Vec::new();
    for means in [Means::Run, Means::ConsulLock] {
        let mut times = Vec::new();
        for _ in 0..count.max(1) {
            let scene = Scene::new(means)?;
            let first = scene.start(consul, &consul.address())?;
            let victim = scene.wait_start(1)?;
            let second = scene.start(consul, &consul.address())?;
            sleep(SETTLE);
            let at = wall();
            kill_process(victim.pid, Signal::KILL).map_err(std::io::Error::from)?;
            times.push(between(at, scene.wait_start(2)?.at));
            memory.push((means, process::memory(second.pid())?.0));
            drop(first);
        }
        medians.push(median(times)?);
    }
    let what = "child killed -> next child started, p50";
    let row = Row::new(what).value(milliseconds(medians[0])).floor(milliseconds(medians[1]));
    let met = medians[0] <= medians[1];
    table.push(row.ratio(medians[0], medians[1]).aim(Aim::Wish, "no slower", met));
    let most = |wanted| {
        let of_means = memory.iter().filter(|(means, _)| *means == wanted);
        let most = of_means.map(|(_, megabytes)| *megabytes).fold(0.0, f64::max);
        format!("{most:.1} MB")
    };
    let row = Row::new("memory of a `run` that holds (without its guard)");
    table.push(row.value(most(Means::Run)).floor(most(Means::ConsulLock)));
    Ok(())
}

/// Starts a holder and somebody who waits, and lets the holder's machine die when this `part` of the
/// time between two of its renewals has passed since one. Returns how long it took until the other held.
fn dies(consul: &Consul, means: Means, part: f64) -> Outcome<Duration> {
    let scene = Scene::new(means)?;
    let proxy = Proxy::http(consul.http())?;
    let first = scene.start(consul, &proxy.address().to_string())?;
    scene.wait_start(1)?;
    let _second = scene.start(consul, &consul.address())?;
    let renewal = |number| {
        let seen = || (proxy.requests("PUT /v1/session/renew/") >= number).then(wall);
        wait_for(format!("renewal {number} under {means:?}"), PATIENCE, seen)
    };
    let (one, next) = (renewal(2)?, renewal(3)?);
    sleep(between(one, next).mul_f64(part));
    let at = wall();
    kill_family(first.pid());
    Ok(between(at, scene.wait_start(2)?.at))
}

/// A machine dies with everything on it, and another one holds the lock.
pub(crate) fn machine_dies(consul: &Consul, count: usize, table: &mut Table) -> Outcome<()> {
    let count = count.max(1);
    say(format!("{count} machines die for each, which takes more than a minute"));
    let all = [Means::Run, Means::RunBrisk, Means::CrateBrisk, Means::ConsulLock, Means::ApiLock];
    let times = std::thread::scope(|scope| {
        let mut machines = Vec::new();
        for turn in 0..count {
            let part = (turn as f64 + 0.5) / count as f64;
            for means in all {
                machines.push((means, scope.spawn(move || dies(consul, means, part))));
            }
        }
        let time = |(means, machine): (_, std::thread::ScopedJoinHandle<'_, Outcome<Duration>>)| {
            let ended = machine.join();
            let time = ended.map_err(|_| Failure::Odd(format!("a panic under {means:?}")))??;
            Ok((means, time))
        };
        machines.into_iter().map(time).collect::<Outcome<Vec<(Means, Duration)>>>()
    })?;
    let of = |wanted| {
        let of_means = times.iter().filter(|(means, _)| *means == wanted);
        median(of_means.map(|(_, time)| *time).collect())
    };
    let peers = [of(Means::ConsulLock)?, of(Means::ApiLock)?];
    for (what, means, peer) in [
        ("holder killed with everything on it -> next holds, p50".to_owned(), Means::Run, peers[0]),
        (format!("- the same with {}", BRISK.join(" ")), Means::RunBrisk, peers[0]),
        (
            "- the crate with this TTL and lock-delay, beside api.Lock".to_owned(),
            Means::CrateBrisk,
            peers[1],
        ),
    ] {
        let ours = of(means)?;
        let row = Row::new(what).value(milliseconds(ours)).floor(milliseconds(peer));
        let met = ours <= peer.mul_f64(0.45);
        table.push(row.ratio(ours, peer).aim(Aim::Wish, "at most 0.45 of it", met));
    }
    table.note(
        "Consul ends a session two TTLs after its last renewal, and the lock-delay follows: both \
         are 15 s by default, with the peers as with us. Whoever renews more often waits for \
         longer, by half of the time between two renewals."
            .to_owned(),
    );
    Ok(())
}

/// The same where each machine has a Consul agent, which dies with it and is missed by the others.
/// One after the other: gossip is slower to miss many at once.
pub(crate) fn machine_dies_with_its_agent(count: usize, table: &mut Table) -> Outcome<()> {
    say("machines die with their Consul agents");
    let cluster = ConsulCluster::start(&ConsulClusterConfig::default())?;
    let server = &cluster.servers()[0];
    let (mut times, mut hosts) = ([Vec::new(), Vec::new()], 4..);
    for _ in 0..count.clamp(1, 3) {
        for (means, times) in [Means::RunChecked, Means::ConsulLock].into_iter().zip(&mut times) {
            let agent = cluster.agent(hosts.next().unwrap_or(u8::MAX))?;
            let scene = Scene::new(means)?;
            let first = scene.start(&agent, &agent.address())?;
            scene.wait_start(1)?;
            let _second = scene.start(server, &server.address())?;
            sleep(SETTLED);
            let at = wall();
            kill_family(first.pid());
            agent.server().kill()?;
            times.push(between(at, scene.wait_start(2)?.at));
        }
    }
    let [ours, peer] = times;
    let (ours, peer) = (median(ours)?, median(peer)?);
    let what = format!("- with a Consul agent on each machine: {}", CHECKED.join(" "));
    let row = Row::new(what).value(milliseconds(ours)).floor(milliseconds(peer));
    table.push(row.ratio(ours, peer).aim(Aim::Wish, "no slower", ours <= peer));
    Ok(())
}

/// Packets are dropped between a holder and Consul: how long two commands run.
pub(crate) fn silence(consul: &Consul, with_peer: bool, table: &mut Table) -> Outcome<()> {
    say("packets are dropped; the peers need minutes to notice");
    let everybody = [Means::Run, Means::ConsulLock, Means::ApiLock];
    let all = if with_peer { &everybody[..] } else { &everybody[..1] };
    let mut scenes = Vec::new();
    for means in all {
        let proxy = Proxy::tcp(consul.http())?;
        let scene = Scene::new(*means)?;
        let first = scene.start(consul, &proxy.address().to_string())?;
        let holder = scene.wait_start(1)?;
        let second = scene.start(consul, &consul.address())?;
        scenes.push((scene, proxy, holder, (first, second)));
    }
    sleep(SETTLE);
    for (_, proxy, ..) in &scenes {
        proxy.set(Fault::Blackhole);
    }
    let began = wall();
    let mut ends: Vec<Option<i128>> = vec![None; scenes.len()];
    let all_over = || {
        for ((_, _, holder, _), end) in scenes.iter().zip(&mut ends) {
            if end.is_none() && !is_alive(holder.pid) {
                *end = Some(wall());
            }
        }
        let done = ends.iter().all(Option::is_some) || between(began, wall()) > LONGEST;
        done.then_some(())
    };
    wait_for("the holders' commands to end", PATIENCE, all_over)?;
    let mut overlaps = Vec::new();
    for ((scene, ..), end) in scenes.iter().zip(&ends) {
        let next = scene.wait_start(2)?.at;
        overlaps.push(between(next, end.unwrap_or_else(wall)));
    }
    for (what, at) in [("packets dropped: two commands run for", 1), ("- beside api.Lock", 2)] {
        let row = Row::new(what).value(milliseconds(overlaps[0]));
        let peer = overlaps.get(at).map_or("left out".to_owned(), |peer| milliseconds(*peer));
        table.push(row.floor(peer).aim(Aim::Must, "0", overlaps[0].is_zero()));
    }
    Ok(())
}
