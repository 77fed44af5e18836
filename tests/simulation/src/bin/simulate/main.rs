//! Both sides over a simulated network with faults; protocol.md §5. A seed decides everything and repeats.
//!
//! `roadstead-simulate --from 1 --seeds 200` prints each seed that breaks an invariant and ends with 1 if there is any;
//! `--seeds 1 --from n` replays one. It is a tool and not yet a part of the tests: docs/plan.md says which seeds are open.

mod store;
mod world;

use clap::Parser;
use std::{panic, process::ExitCode};
use world::World;

#[derive(Debug, Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
}

#[expect(clippy::print_stdout, reason = "the report is this program's output")]
fn main() -> ExitCode {
    roadstead_simulation::install_crypto();
    let args = Args::parse();
    let mut failed = 0;
    for seed in args.from..args.from.saturating_add(args.seeds) {
        match panic::catch_unwind(|| World::new(seed, args.seeds == 1).run()) {
            Ok(report) => println!("seed {seed}: {report:?}"),
            Err(_) => {
                failed += 1;
                println!("seed {seed} FAILS: replay it with --from {seed} --seeds 1");
            }
        }
    }
    println!("{} seeds, {failed} failed", args.seeds);
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
