//! The fleet simulator (protocol.md §5): up to 10,000 cluster agents and a hub in one process, of the shipped crates.
//!
//! Each cluster agent is link and inbox as they are shipped, the inbox in memory; the hub is the fleet service over the
//! model of its truth or over its database. Between them lie byte streams in memory with real mutual TLS. First everybody
//! is healthy, and what is asked of a large fleet is measured; then some flap, read late, lie or share their identity with
//! a second one, while documents change; then the faults end, and what protocol.md promises must hold for all the others.

mod apart;
mod enrol;
mod figures;
mod honest;
mod hub;
mod liar;
mod network;
mod truth;
mod verdict;
mod witness;
mod world;

pub use apart::agents;
pub use figures::Figures;
pub use truth::Kept;
use world::World;

use std::{path::PathBuf, time::Duration};

/// What is simulated.
#[derive(Clone, Debug, clap::Parser)]
pub struct Plan {
    /// Cluster agents.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clusters: u32,
    /// Of chance; with the model and one thread it decides nearly everything.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where the hub keeps its truth.
    #[arg(long, value_enum, default_value = "memory")]
    pub truth: Kept,
    /// Percent whose connections break at random.
    #[arg(long, default_value_t = 5)]
    pub flapping: u32,
    /// Percent that read late.
    #[arg(long, default_value_t = 5)]
    pub slow: u32,
    /// Percent that lie.
    #[arg(long, default_value_t = 1)]
    pub lying: u32,
    /// Percent whose identity a second cluster agent has, too.
    #[arg(long, default_value_t = 1)]
    pub cloned: u32,
    /// Seconds of faults; 0 leaves them out.
    #[arg(long, default_value_t = 60)]
    pub faults: u64,
    /// Documents for one cluster, one after another, that are timed.
    #[arg(long, default_value_t = 200)]
    pub ones: u32,
    /// Documents for all clusters, one after another, that are timed.
    #[arg(long, default_value_t = 5)]
    pub alls: u32,
    /// About so many bytes in a document.
    #[arg(long, default_value_t = 500)]
    pub bytes: usize,
    /// Connections and sessions that the hub admits a second.
    #[arg(long, default_value_t = 200.0)]
    pub admission: f64,
    /// Snapshots that it admits a second.
    #[arg(long, default_value_t = 50.0)]
    pub snapshots: f64,
    /// Tunnel streams that each cluster agent keeps parked.
    #[arg(long, default_value_t = 4)]
    pub tunnel_streams: u32,
    /// Seconds between heartbeats.
    #[arg(long, default_value_t = 25)]
    pub heartbeat: u64,
    /// Seconds in which a state must be reached.
    #[arg(long, default_value_t = 1_200)]
    pub patience: u64,
    /// One thread, and a clock that goes on only when everything waits: what is measured in seconds is the protocol's
    /// alone, however fast the machine is. Not with a database, whose answers come from other threads.
    #[arg(long)]
    pub paused: bool,
    /// Put the cluster agents into a process of their own, over TCP, and only connect them: what memory does each side
    /// take? At most as many as the limit of open files allows.
    #[arg(long)]
    pub apart: bool,
    /// This is that process: the hub's address.
    #[arg(long, hide = true, requires = "folder")]
    pub agents_of: Option<String>,
    #[arg(long, hide = true)]
    pub folder: Option<PathBuf>,
}

/// Percent of the clusters, at least one unless it is 0.
fn share(clusters: usize, percent: u32) -> usize {
    match percent {
        0 => 0,
        _ => (clusters * percent as usize / 100).max(1),
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    pub figures: Figures,
    /// What did not hold; nothing when all is well.
    pub violations: Vec<String>,
    /// Sessions that began in all.
    pub sessions: u64,
}

/// Runs a plan; `tell` is told how it goes on.
///
/// # Errors
/// What is to be reached is not, or the hub cannot be made.
pub async fn run(plan: Plan, tell: &(dyn Fn(&str) + Sync)) -> anyhow::Result<Report> {
    crate::install_crypto();
    anyhow::ensure!(
        !plan.paused || (plan.truth == Kept::Memory && !plan.apart),
        "--paused is for the model in memory, in one process"
    );
    if plan.apart {
        return apart::run(Plan { faults: 0, ..plan }, tell).await;
    }
    let mut world = World::new(plan, tell).await?;
    world.connect().await?;
    world.write_one().await?;
    world.write_all().await?;
    world.restart().await?;
    if world.plan.faults > 0 {
        world.faults(Duration::from_secs(world.plan.faults)).await?;
    }
    world.verdict().await
}
