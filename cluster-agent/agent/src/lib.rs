//! The composition root of the cluster agent.
//!
//! [`Agent::start`] puts the parts together: the link fills the inbox; the controller plans what the inbox holds and
//! gives the steps to the runtime; what the runtime sees goes back up as acknowledgements and statuses; calls that
//! come down the tunnel go to engines over loopback. Everything lives in one folder:
//!
//! ```text
//! <state>/lock        held while a cluster agent runs here
//!        /inbox.db    documents, commands and waiting run records (roadstead-inbox)
//!        /link/       key and certificate (roadstead-link)
//!        /agents/, /engines/   journals, logs, tokens (roadstead-runtime)
//! ```
//!
//! What can go wrong: the hub is away (everything goes on from the inbox); the link gives up because a person must
//! act ([`Agent::gave_up`]; engines go on); the inbox cannot be read (engines go on, readiness says so).

mod agent;
mod allow;
mod commands;
mod controller;
pub mod doctor;
mod documents;
mod probe;
mod report;
#[cfg(test)]
mod testing;
mod tunnel;

pub use agent::{Agent, Config, StartError, joined};
pub use roadstead_link::{LinkError, LinkState};
pub use roadstead_plan::{MODEL_KEY, Programs};
pub use roadstead_runtime::{ConfigError, EngineStatus, Phase, find_engine};

/// The version of this cluster agent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
