//! Runs seeds of the fleet simulation by hand: `roadstead_simulation::seeds` says what they are.
//!
//! `roadstead-simulate --from 1 --seeds 200` prints each seed that breaks an invariant and ends with 1 if there is any;
//! `--from N --seeds 1` replays one with its faults, and with `RUST_LOG=roadstead=info` what the product says.

use clap::Parser;
use roadstead_simulation::seeds;
use std::process::ExitCode;
use tracing_subscriber::{EnvFilter, fmt::format::Writer, fmt::time::FormatTime};

#[derive(Debug, Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
}

/// Log lines carry the simulation's time.
struct SimulatedTime;

impl FormatTime for SimulatedTime {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{:?}", turmoil::sim_elapsed().unwrap_or_default())
    }
}

#[expect(clippy::print_stdout, reason = "the report is this program's output")]
fn main() -> ExitCode {
    if std::env::var_os("RUST_LOG").is_some() {
        let lines = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env());
        lines.with_timer(SimulatedTime).with_ansi(false).init();
    }
    let args = Args::parse();
    let mut failed = 0;
    for seed in args.from..args.from.saturating_add(args.seeds) {
        match seeds::run(seed, args.seeds == 1) {
            Ok(report) => println!("seed {seed}: {report:?}"),
            Err(why) => {
                failed += 1;
                println!("seed {seed} FAILS: {why}\n  replay: roadstead-simulate --from {seed} --seeds 1");
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
