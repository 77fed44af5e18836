//! Both sides under faults, by seeds (protocol.md §5). Each runs in a process of its own, as somebody who replays it
//! does: `roadstead-simulate --from SEED --seeds 1`.

use std::{
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// Of every run of the tests.
const SEEDS: u64 = 200;

/// What the seed ended with; `Err` with everything that was said when an invariant broke.
fn run(seed: u64) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_roadstead-simulate"))
        .args(["--from", &seed.to_string(), "--seeds", "1"])
        .output()
        .expect("the simulation starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let report = said
        .lines()
        .find(|line| line.starts_with(&format!("seed {seed}: ")));
    match report {
        Some(report) if output.status.success() => Ok(report.to_owned()),
        _ => Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr))),
    }
}

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
            if let Err(why) = run(seed) {
                eprintln!("{why}");
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
    // Without a rotation of roots, and with one.
    for seed in [7, 8] {
        let once = run(seed).expect("the seed holds");
        assert_eq!(run(seed), Ok(once));
    }
}
