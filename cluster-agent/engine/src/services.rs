//! What every turn uses, made once per process.

use crate::{clock::Clock, journal::Journal, peers::PeerCalls};
use std::sync::Arc;
use tokio::sync::Notify;

/// Journal, clock and the ways out.
#[derive(Clone, Debug)]
pub struct Services {
    pub journal: Journal,
    pub clock: Arc<dyn Clock>,
    /// Calls to other engines.
    pub peers: Arc<dyn PeerCalls>,
    /// Who collects run records is told that there is a new one; `None` where nobody collects them, and then none is
    /// kept.
    pub runs: Option<Arc<Notify>>,
}
