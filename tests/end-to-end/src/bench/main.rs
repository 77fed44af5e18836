//! `make bench`: the figures of docs/benchmarks.md, measured on release binaries, printed as tables.
//!
//! Everything of one table is measured in one run on one machine: ratios are worth more than the numbers.

mod call;
mod engine;
mod figures;
mod procfs;

use clap::Parser;

/// Measures Roadstead and prints Markdown.
#[derive(Debug, Parser)]
struct Args {
    /// Which tables; all without one.
    #[arg(value_enum)]
    tables: Vec<Table>,
    /// Seconds of each load phase.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Table {
    Engine,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let wanted = |table| args.tables.is_empty() || args.tables.contains(&table);
    if wanted(Table::Engine) {
        engine::measure(args.seconds).await?.print();
    }
    Ok(())
}
