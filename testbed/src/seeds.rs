//! Seeds of simulations, run on all cores.

use std::ops::Range;

/// Runs seeds on all cores; returns those whose outcome `bad` picks, with what they came to.
///
/// # Panics
/// A run did.
pub fn search<O: Send>(
    seeds: Range<u64>,
    run: impl Fn(u64) -> O + Sync,
    bad: impl Fn(&O) -> bool + Sync,
) -> Vec<(u64, O)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (run, bad) = (&run, &bad);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores)
            .map(|worker| {
                let mine = seeds.clone().skip(worker).step_by(cores);
                scope.spawn(move || {
                    mine.map(|seed| (seed, run(seed)))
                        .filter(|(_, outcome)| bad(outcome))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let joined = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.flatten().collect()
    })
}
