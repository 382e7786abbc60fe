//! What only shows when it is done often: never two at once.

use std::{sync::OnceLock, time::Duration};

use consul_lock::clock::{Clock, Instant};
use rustix::process::{Pid, Signal};
use testbed::{Consul, ConsulConfig, Fault, Proxy, say, wait_for};

use super::scene::{Run, Scene, is_alive, kill, started, valid_until};

/// A Consul for crowds, where so many connections are nobody's loss.
fn crowded_consul() -> &'static Consul {
    static CONSUL: OnceLock<Consul> = OnceLock::new();
    let config = ConsulConfig { http_max_conns_per_client: Some(2000), ..Default::default() };
    CONSUL.get_or_init(|| Consul::start(config).unwrap())
}

/// A holder that Consul will not hear from any more, and somebody who waits.
struct Trial {
    scene: Scene,
    proxy: Proxy,
    first: Run,
    second: Run,
    holder: Pid,
}

/// Writes its number into this file.
fn writes(file: &str) -> String {
    format!("echo $$ > $F/{file}; exec sleep 90")
}

impl Trial {
    fn begin(flags: &[&str]) -> Trial {
        let proxy = Proxy::tcp(crowded_consul().http()).unwrap();
        let behind =
            Scene { address: proxy.address().to_string(), ..Scene::at("silent", crowded_consul()) };
        let first = behind.start(flags, &writes("first"));
        let holder = behind.process("first");
        let scene = Scene { address: crowded_consul().address(), ..behind };
        let second = scene.start(flags, &writes("second"));
        Trial { scene, proxy, first, second, holder }
    }
}

/// Ends them all silently at once, and watches who runs when.
#[track_caller]
fn silence(ttl: u64, flags: &[&str], count: usize) {
    let mut trials: Vec<Trial> = (0..count).map(|_| Trial::begin(flags)).collect();
    let clock = Clock::boot();
    let cut = clock.now();
    let cut_off = |trial: &Trial| {
        trial.proxy.set(Fault::Blackhole);
        valid_until(trial.holder)
    };
    let ends: Vec<Instant> = trials.iter().map(cut_off).collect();
    let mut last_seen = vec![cut; count];
    let patience = Duration::from_secs(4 * ttl + 20);
    let all = wait_for("every successor to run", patience, || {
        for (trial, last) in trials.iter().zip(&mut last_seen) {
            let now = clock.now();
            if is_alive(trial.holder) {
                *last = now;
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
        assert!(last < ends[number], "{number}: it went on for too long");
        // The kernel tells hundredths of a second.
        let began = started(successor) + Duration::from_millis(10);
        assert!(began > last, "{number}: two at once, from {began:?} to {last:?}");
        least = least.min(began.since(last));
        longest = longest.max(last.since(cut));
        assert_eq!(trial.first.wait().0, 79);
        kill(successor, Signal::KILL);
        assert_eq!(trial.second.wait().0, 137);
    }
    say(format_args!(
        "{count} silent losses at a TTL of {ttl} s: the work went on for {longest:.1?} at most, \
         nobody worked for {least:.1?} at least, two did for 0 s"
    ));
}

#[test]
fn a_hundred_silent_losses_and_never_two_at_once() {
    for _ in 0..4 {
        silence(2, &["--ttl=2s", "--grace=500ms", "--lock-delay=0s"], 20);
    }
    silence(10, &["--ttl=10s", "--grace=2s", "--lock-delay=0s"], 20);
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
