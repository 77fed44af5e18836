//! Both sides under faults, by seeds (protocol.md §5). A failing seed is printed and replays by itself:
//! `roadstead-simulate --from SEED --seeds 1`.

use roadstead_simulation::seeds;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// Of every run of the tests.
const SEEDS: u64 = 200;

#[test]
fn two_hundred_seeds_of_faults_break_nothing() {
    let next = AtomicU64::new(1);
    let worker = || {
        let mut failed = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > SEEDS {
                return failed;
            }
            if let Err(why) = seeds::run(seed, false) {
                eprintln!("seed {seed} fails: {why}\n  replay: roadstead-simulate --from {seed} --seeds 1");
                failed.push(seed);
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let failed: Vec<u64> = thread::scope(|scope| {
        let started: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        started
            .into_iter()
            .flat_map(|one| one.join().expect("a worker"))
            .collect()
    });
    assert!(failed.is_empty(), "seeds that break an invariant: {failed:?}");
}

#[test]
fn a_seed_repeats() {
    let once = seeds::run(7, false).expect("seed 7 holds");
    assert_eq!(seeds::run(7, false), Ok(once));
}
