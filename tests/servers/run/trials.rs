//! What only shows when it is done often: never two at once.

use std::{path::PathBuf, sync::OnceLock, time::Duration};

use consul_lock::clock::{Clock, Instant};
use rustix::process::{Pid, Signal};
use testbed::{Cluster, Consul, ConsulConfig, Fault, Island, Proxy, say, wait_for};

use super::scene::{
    Run, Scene, VALID_UNTIL_FILE, is_alive, kill, started, told, valid_until, variable,
};

/// A TTL that only a server takes which allows it, and the shortest that a stock one does.
const SHORT: (u64, &[&str]) = (2, &["--ttl=2s", "--grace=500ms", "--lock-delay=0s"]);
const STOCK: (u64, &[&str]) = (10, &["--ttl=10s", "--grace=2s", "--lock-delay=0s"]);

/// How long a stranger that holds on is watched beside its successor.
const WATCHED: Duration = Duration::from_secs(3);

/// A Consul for crowds, where so many connections are nobody's loss.
fn crowded_consul() -> &'static Consul {
    static CONSUL: OnceLock<Consul> = OnceLock::new();
    CONSUL.get_or_init(|| Consul::start(crowded()).unwrap())
}

fn crowded() -> ConsulConfig {
    ConsulConfig { http_max_conns_per_client: Some(2000), ..Default::default() }
}

/// A holder that Consul will not hear from any more, and somebody who waits.
struct Trial {
    scene: Scene,
    first: Run,
    second: Run,
    holder: Pid,
}

/// Writes its number into this file.
fn writes(file: &str) -> String {
    format!("echo $$ > $F/{file}; exec sleep 300")
}

impl Trial {
    /// The holder reaches Consul by this address, and is started on this island, if there is one.
    fn begin(
        flags: &[&str],
        consul: &'static Consul,
        address: &str,
        island: Option<&Island>,
    ) -> Trial {
        let behind = Scene { address: address.to_owned(), ..Scene::at("silent", consul) };
        let command = behind.command(flags, &["sh", "-c", &writes("first")]);
        let mut command = match island {
            Some(island) => island.inside(&command),
            None => command,
        };
        let first = behind.beside(&mut command);
        let holder = behind.process("first");
        let scene = Scene { address: consul.address(), ..behind };
        // It waits for the slowest of all, maybe for longer than a busy machine lets a short TTL be.
        let second = scene.start(&["--ttl=60s"], &writes("second"));
        Trial { scene, first, second, holder }
    }
}

/// Silences their holders all at once, and watches who runs when. `ttl`: the longest of theirs.
#[track_caller]
fn silence(what: &str, ttl: u64, mut trials: Vec<Trial>, silence: impl FnOnce()) {
    let clock = Clock::boot();
    let file = |trial: &Trial| variable(trial.holder, VALID_UNTIL_FILE);
    let files: Vec<PathBuf> = trials.iter().map(file).collect();
    let cut = clock.now();
    silence();
    let mut ends: Vec<Instant> = trials.iter().map(|trial| valid_until(trial.holder)).collect();
    let mut last_seen = vec![cut; trials.len()];
    let patience = Duration::from_secs(4 * ttl + 20);
    let all = wait_for("every successor to run", patience, || {
        let seen = last_seen.iter_mut().zip(&mut ends).zip(&files);
        for (trial, ((last, end), file)) in trials.iter().zip(seen) {
            let now = clock.now();
            if is_alive(trial.holder) {
                *last = now;
                *end = told(file).unwrap_or(*end);
            }
        }
        let is_up = |trial: &Trial| trial.scene.folder.path().join("second").exists();
        (trials.iter().all(is_up) && !trials.iter().any(|trial| is_alive(trial.holder)))
            .then_some(())
    });
    all.unwrap();
    let (mut least, mut longest) = (Duration::MAX, Duration::ZERO);
    for (number, trial) in trials.iter_mut().enumerate() {
        let successor = trial.scene.process("second");
        let last = last_seen[number];
        let end = ends[number];
        assert!(last < end, "{number}: it went on until {last:?}, and not {end:?}");
        // The kernel tells hundredths of a second.
        let began = started(successor) + Duration::from_millis(10);
        assert!(began > last, "{number}: two at once, from {began:?} to {last:?}");
        least = least.min(began.since(last));
        longest = longest.max(last.since(cut));
        assert_eq!(trial.first.wait().0, 79);
        kill(successor, Signal::KILL);
        assert_eq!(trial.second.wait().0, 137);
    }
    let count = trials.len();
    say(format_args!(
        "{count} silent losses ({what}): the work went on for {longest:.1?} at most, nobody worked \
         for {least:.1?} at least, two did for 0 s"
    ));
}

#[test]
fn a_hundred_silent_losses_and_never_two_at_once() {
    let consul = crowded_consul();
    for (ttl, flags) in [SHORT, SHORT, SHORT, SHORT, STOCK] {
        let proxies: Vec<Proxy> = (0..20).map(|_| Proxy::tcp(consul.http()).unwrap()).collect();
        let trial = |proxy: &Proxy| Trial::begin(flags, consul, &proxy.address().to_string(), None);
        let trials = proxies.iter().map(trial).collect();
        silence(&format!("a proxy, a TTL of {ttl} s"), ttl, trials, || {
            proxies.iter().for_each(|proxy| proxy.set(Fault::Blackhole));
        });
    }
}

/// A cut-off network, and Consul for it and for the host.
struct Isles {
    dropping: Island,
    unplugged: Island,
    consul: Consul,
}

impl Isles {
    fn create() -> Isles {
        let (dropping, unplugged) = (Island::create().unwrap(), Island::create().unwrap());
        let also_on = vec![dropping.gateway(), unplugged.gateway()];
        let consul = Consul::start(ConsulConfig { also_on, ..crowded() }).unwrap();
        Isles { dropping, unplugged, consul }
    }

    fn address(&self, island: &Island) -> String {
        format!("{}:{}", island.gateway(), self.consul.http().port())
    }
}

/// Stock `consul lock` on an island, and another on the host that waits for it.
struct Strangers {
    scene: Scene,
    first: Run,
    second: Run,
}

impl Strangers {
    fn begin(isles: &'static Isles, island: &Island) -> Strangers {
        let scene = Scene::at("stranger", &isles.consul);
        let lock = |file: &str| {
            let mut command = isles.consul.cli(["lock", &scene.key, &writes(file)]).unwrap();
            command.env("F", scene.folder.path());
            command
        };
        let mut first = lock("first");
        first.env("CONSUL_HTTP_ADDR", isles.address(island));
        let first = scene.beside(&mut island.inside(&first));
        scene.process("first");
        let second = scene.beside(&mut lock("second"));
        Strangers { scene, first, second }
    }

    /// Waits for the second, and says how long the first went on beside it.
    fn watch(self, cut: Instant) {
        let (holder, clock) = (self.scene.process("first"), Clock::boot());
        let up = || self.scene.folder.path().join("second").exists().then_some(());
        wait_for("the next stranger", Duration::from_secs(120), up).unwrap();
        let successor = self.scene.process("second");
        let began = started(successor);
        let until = clock.now() + WATCHED;
        let gone = || (!is_alive(holder) || clock.now() > until).then_some(());
        wait_for("the first stranger", 2 * WATCHED, gone).unwrap();
        say(format_args!(
            "the same with stock `consul lock`: {:.1?} after the cut the first one's command {} \
             beside the next one's, which began {:.1?} ago",
            clock.now().since(cut),
            if is_alive(holder) { "still runs" } else { "has ended" },
            clock.now().since(began),
        ));
        self.first.end();
        self.second.end();
        // `consul lock` may give its command a group of its own.
        [holder, successor].into_iter().filter(|pid| is_alive(*pid)).for_each(|pid| {
            kill(pid, Signal::KILL);
        });
    }
}

/// Takes most of a minute, for stock `consul lock` has a TTL and a lock-delay of 15 s.
#[test]
fn networks_that_are_cut_off_and_never_two_at_once() {
    static ISLES: OnceLock<Isles> = OnceLock::new();
    if Cluster::skips() {
        return;
    }
    let isles = ISLES.get_or_init(Isles::create);
    let islands = [&isles.dropping, &isles.unplugged];
    let strangers = islands.map(|island| Strangers::begin(isles, island));
    let mut trials = Vec::new();
    for (island, (_, flags)) in islands.into_iter().flat_map(|one| [(one, SHORT), (one, STOCK)]) {
        let begin = |_| Trial::begin(flags, &isles.consul, &isles.address(island), Some(island));
        trials.extend((0..6).map(begin));
    }
    let cut = Clock::boot().now();
    silence("networks cut off and unplugged, TTLs of 2 and 10 s", STOCK.0, trials, || {
        isles.dropping.cut().unwrap();
        isles.unplugged.unplug().unwrap();
    });
    strangers.into_iter().for_each(|strangers| strangers.watch(cut));
}

#[test]
fn fifty_contenders_all_get_their_turn_and_never_two_at_once() {
    let scene = Scene::at("crowd", crowded_consul());
    let works = "mkdir $F/inside || touch $F/two-at-once; sleep 0.01; rmdir $F/inside";
    let mut runs: Vec<Run> = (0..50).map(|_| scene.start(&["--ttl=60s"], works)).collect();
    for run in &mut runs {
        let (code, said) = run.wait();
        assert_eq!((code, said.as_str()), (0, ""));
    }
    assert!(!scene.folder.path().join("two-at-once").exists());
    assert_eq!(scene.holder(), None);
}
