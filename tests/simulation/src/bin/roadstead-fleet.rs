//! The fleet simulator: `roadstead_simulation::simulator` says what it is.
//!
//! `roadstead-fleet --clusters 10000` prints how it goes on, then a table; it ends with 1 and the seed when something did
//! not hold. `RUST_LOG=roadstead=info` shows what the product says.

use clap::Parser as _;
use roadstead_simulation::simulator::{Plan, agents, run};
use std::{process::ExitCode, time::Instant};
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

/// As the hub and the cluster agent have it: memory is part of what is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if std::env::var_os("RUST_LOG").is_some() {
        let lines = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env());
        lines.with_writer(std::io::stderr).with_ansi(false).init();
    }
    let plan = Plan::parse();
    let runtime = match plan.paused {
        true => Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build(),
        false => Builder::new_multi_thread().enable_all().build(),
    };
    match runtime {
        Ok(runtime) => runtime.block_on(simulate(plan)),
        Err(error) => {
            eprintln!("no runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the table is this program's output")]
async fn simulate(plan: Plan) -> ExitCode {
    if let (Some(hub), Some(folder)) = (&plan.agents_of, &plan.folder) {
        return match agents(hub, folder, plan.clusters as usize).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let (seed, began) = (plan.seed, Instant::now());
    let tell = |line: &str| eprintln!("{:7.1} s  {line}", began.elapsed().as_secs_f64());
    let failed = match run(plan, &tell).await {
        Ok(report) => {
            println!("{}", report.figures.table());
            report.violations
        }
        Err(error) => vec![format!("{error:#}")],
    };
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    for what in &failed {
        println!("DOES NOT HOLD: {what}");
    }
    println!("seed {seed}: {} in all", failed.len());
    ExitCode::FAILURE
}
