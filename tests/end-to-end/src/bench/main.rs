//! `make bench`: the figures of docs/benchmarks.md, measured on release binaries, printed as tables.
//!
//! Everything of one table is measured in one run on one machine: ratios are worth more than the numbers.

mod alone;
mod call;
mod clients;
mod delivery;
mod disk;
mod engine;
mod figures;
mod hub;
mod layout;
mod own;
mod procfs;
mod served;
mod sessions;

use clap::Parser;
use std::path::PathBuf;

/// Measures Roadstead and prints Markdown.
#[derive(Debug, Parser)]
struct Args {
    /// Which tables; all without one.
    #[arg(value_enum)]
    tables: Vec<Table>,
    /// Seconds of each load phase.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Where hubs and cluster agents keep their state. Repeat to measure delivery on several disks.
    #[arg(long, value_name = "DIR", default_values_os_t = [std::env::temp_dir()])]
    state: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Table {
    Delivery,
    Served,
    Engine,
    Sessions,
    /// No table: writes which functions run in every process, for the linker (needs valgrind). Only when named.
    Layout,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // An error says that somebody installed one before, which is just as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let wanted = |table| args.tables.is_empty() || args.tables.contains(&table);
    if wanted(Table::Delivery) {
        for folder in &args.state {
            delivery::measure(folder).await?.print();
        }
    }
    if wanted(Table::Served) {
        let folder = args.state.first().cloned().unwrap_or_else(std::env::temp_dir);
        served::measure(&folder).await?.print();
    }
    if args.tables.contains(&Table::Layout) {
        layout::write().await?;
    }
    // Last: they give up a core for good.
    if wanted(Table::Engine) {
        engine::measure(args.seconds).await?.print();
    }
    if wanted(Table::Sessions) {
        sessions::measure().await?.print();
    }
    Ok(())
}
