//! Both sides over a simulated network with faults; protocol.md §5. A seed decides everything, and repeats.
//!
//! Two hub replicas over one model of the database, three clusters with link and inbox as shipped, and for each a
//! relay that meddles with frames. Chance changes documents, kills, cuts, stalls and slows; then everything is mended
//! and both sides must agree. What must hold all the while stands in [`World`].

mod keys;
mod live;
mod relay;
mod store;
mod world;

pub use world::{Report, World};

/// Runs one seed, which repeats exactly as the first of a process: libraries beneath seed the order in which they look
/// at futures by counters of the whole process. `Err` says what did not hold. `telling` prints the faults as they come.
///
/// # Errors
/// The message of the invariant that broke.
pub fn run(seed: u64, telling: bool) -> Result<Report, String> {
    crate::install_crypto();
    let ran = std::panic::catch_unwind(|| World::new(seed, telling).run());
    ran.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_else(|| "a panic without words".to_owned())
    })
}
