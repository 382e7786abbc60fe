//! Runs on three Consul servers, of which one after the other is taken away.
//!
//! `make soak` has fifty rounds of each, `make test` a few.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use consul_lock::clock::{Clock, Instant};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use testbed::{Consul, ConsulCluster, ConsulClusterConfig, say, wait_for};

use super::scene::{Run, Scene, is_alive, valid_until};
use crate::fixtures::PATIENCE;

/// How many rounds there are: a number, `ROUNDS` in the environment wins.
const ROUNDS: u32 = 2;

/// TTLs in seconds, and flags, of the runs that hold a lock through all rounds: the defaults, the
/// shortest TTL that a stock server takes, and a long one.
const TERMS: [(u64, &[&str]); 3] =
    [(15, &[]), (10, &["--ttl=10s", "--grace=1s"]), (60, &["--ttl=60s"])];

/// How long a server may take to end, or to be back, on a busy machine.
const SERVER: Duration = Duration::from_secs(90);

fn rounds() -> u32 {
    std::env::var("ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap())
}

/// Three servers, and the agent of the machine that the runs are on.
struct Bed {
    servers: ConsulCluster,
    agent: Consul,
}

impl Bed {
    fn start() -> Bed {
        // A server that came back counts as a voter after this long; the stock ten seconds are most
        // of a round.
        let extra = json!({ "autopilot": { "server_stabilization_time": "3s" } });
        let config = ConsulClusterConfig { leave_on_terminate: true, extra };
        let servers = ConsulCluster::start(&config).unwrap();
        let agent = servers.agent(4).unwrap();
        Bed { servers, agent }
    }

    /// The leader dies, another leads, and the first is back.
    fn kill_leader(&self) {
        let leader = self.servers.wait_for_leader_other_than(None).unwrap();
        self.servers.servers()[leader].server().kill().unwrap();
        self.servers.wait_for_leader_other_than(Some(leader)).unwrap();
        self.servers.servers()[leader].server().start_again().unwrap();
        self.servers.wait_for_voters(3).unwrap();
    }

    /// Each server leaves and is back, one after the other.
    fn roll(&self) {
        for consul in self.servers.servers() {
            consul.server().terminate().unwrap();
            consul.server().wait_ended(SERVER).unwrap();
            consul.server().start_again().unwrap();
            self.servers.wait_for_voters(3).unwrap();
        }
    }
}

/// A run that holds a lock through all rounds.
struct Holder {
    scene: Scene,
    run: Run,
    command: Pid,
    /// The key as it was locked.
    pair: Value,
    ttl: Duration,
}

impl Holder {
    fn start(consul: &'static Consul, (ttl, flags): (u64, &[&str])) -> Holder {
        let scene = Scene::at("rounds", consul);
        let run = scene.start(flags, "echo $$ > $F/sleeper; exec sleep 100000");
        let command = scene.process("sleeper");
        let pair = scene.pair().unwrap();
        Holder { scene, run, command, pair, ttl: Duration::from_secs(ttl) }
    }

    /// Waits for a renewal that was sent after this.
    fn wait_renewed(&self, after: Instant) {
        let renewed = || {
            let is_alive = is_alive(self.command);
            (!is_alive || valid_until(self.command) > after + self.ttl).then_some(())
        };
        wait_for("a renewal", self.ttl, renewed).unwrap();
    }

    #[track_caller]
    fn assert_held(&self, round: u32) {
        assert!(is_alive(self.command), "round {round}: {}", self.run.said());
        let now = wait_for("the key", PATIENCE, || self.scene.pair()).unwrap();
        assert_eq!(now, self.pair, "round {round}: {}", self.run.said());
    }

    /// Until it is told to stop: the least time that was left of *valid until*.
    fn watch(&self, stop: &AtomicBool) -> Duration {
        let (clock, mut least) = (Clock::boot(), Duration::MAX);
        while !stop.load(Ordering::Relaxed) && is_alive(self.command) {
            least = least.min(valid_until(self.command).since(clock.now()));
            thread::sleep(Duration::from_millis(50));
        }
        least
    }
}

/// Holds locks while `disturb` is repeated, and asserts that none was lost.
fn disturbed(bed: &'static Bed, what: &str, disturb: impl Fn(&Bed)) {
    let mut holders: Vec<Holder> =
        TERMS.iter().map(|terms| Holder::start(&bed.agent, *terms)).collect();
    let stop = AtomicBool::new(false);
    let least = thread::scope(|scope| {
        let watches: Vec<_> =
            holders.iter().map(|holder| scope.spawn(|| holder.watch(&stop))).collect();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 1..=rounds() {
                disturb(bed);
                // Servers that have just come back call themselves healthy before anybody is
                // served. Nobody sane takes the next one away before.
                let back = Clock::boot().now();
                holders[..2].iter().for_each(|holder| holder.wait_renewed(back));
                holders.iter().for_each(|holder| holder.assert_held(round));
                if round % 10 == 0 {
                    say(format_args!("{what}: {round} times, no lock lost"));
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let least: Vec<Duration> = watches.into_iter().map(|watch| watch.join().unwrap()).collect();
        done.map(|()| least).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    for (holder, terms) in holders.iter_mut().zip(TERMS) {
        holder.run.send(Signal::TERM);
        assert_eq!(holder.run.wait().0, 143, "{terms:?}");
        assert_eq!(holder.scene.holder(), None);
    }
    let left: Vec<String> = least.iter().map(|least| format!("{least:.1?}")).collect();
    say(format_args!(
        "{what} {} times: {} locks held throughout; of their TTL of 15, 10 and 60 s there was at \
         least left: {}",
        rounds(),
        holders.len(),
        left.join(", ")
    ));
}

#[test]
fn no_lock_is_lost_while_one_leader_after_the_other_dies() {
    static BED: OnceLock<Bed> = OnceLock::new();
    disturbed(BED.get_or_init(Bed::start), "leader killed", Bed::kill_leader);
}

#[test]
fn no_lock_is_lost_while_all_servers_are_rolled_one_by_one() {
    static BED: OnceLock<Bed> = OnceLock::new();
    disturbed(BED.get_or_init(Bed::start), "all servers rolled", Bed::roll);
}
