//! What is known of an engine.

use roadstead_processes::Id;
use std::net::SocketAddr;

/// Where an engine is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// No process yet, or one that has not accepted a revision.
    #[default]
    Starting,
    /// Serves.
    Ready,
    /// A process that accepted a revision and takes no new tasks.
    NotReady,
    /// The last process died; another is started after a wait.
    Waiting,
    /// Finishes what runs, then ends.
    Draining,
    Ended,
}

/// A revision that the engine did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub generation: u64,
    pub digest: String,
    pub reason: String,
}

/// One engine, as its supervisor sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStatus {
    pub phase: Phase,
    /// Why it is not ready; empty when it is.
    pub reason: String,
    /// Loopback address of the A2A interface, while a process listens.
    pub address: Option<SocketAddr>,
    /// What serves: generation and digest of the bundle.
    pub applied: Option<(u64, String)>,
    /// What was asked for last.
    pub wanted: (u64, String),
    /// Set while the wanted revision is refused and an earlier one serves, or none.
    pub refused: Option<Refusal>,
    pub pid: Option<u32>,
    /// The same, told from whoever has the number later.
    pub process: Option<Id>,
    /// Processes started after the first.
    pub restarts: u64,
    /// Processes that died, one after another, without an answer to the wanted revision.
    pub failures: u32,
    /// Resource wishes that this runtime does not enforce.
    pub unenforced: Vec<&'static str>,
}

impl EngineStatus {
    #[must_use]
    pub fn ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether the wanted revision has its answer: it serves, or was refused.
    #[must_use]
    pub fn settled(&self) -> bool {
        let refused = self.refused.as_ref().map(|r| &r.digest);
        let applied = self.applied.as_ref().map(|(_, digest)| digest);
        let wanted = Some(&self.wanted.1);
        applied == wanted || refused == wanted
    }
}
