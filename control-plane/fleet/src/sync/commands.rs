//! Commands on their way to the cluster agent (protocol.md §3 rule 12): each goes out in every session until it has its
//! result. The database says which those are; here is only when it is asked.

use super::session::{End, Session, answered};
use crate::store::StoreError;
use roadstead_contract::fleet::hub_frame::Body;
use std::time::Duration;
use tokio::time::Instant;

/// Commands without a result are sent again after this time: their frame, or that of the result, was lost.
const AGAIN: Duration = Duration::from_secs(15);
/// Before the database is asked again after it did not answer.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Commands {
    /// When to ask; `None`: once there is something new.
    at: Option<Instant>,
}

impl Commands {
    /// `waiting`: there are some.
    pub(super) fn new(waiting: bool) -> Self {
        Self {
            at: waiting.then(Instant::now),
        }
    }

    /// There may be some to send.
    pub(super) fn stir(&mut self) {
        self.at = Some(Instant::now());
    }

    pub(super) fn ready(&self) -> bool {
        self.at.is_some_and(|at| Instant::now() >= at)
    }

    pub(super) fn due_at(&self) -> Option<Instant> {
        self.at
    }
}

impl Session {
    /// Sends every command that has no result. A cluster agent that is held gets none: neither one that is too old, nor
    /// one that is ahead of this database, which may have done them all.
    pub(super) async fn send_commands(&mut self) -> Result<(), End> {
        self.commands.at = None;
        if self.writer.holds() {
            return Ok(());
        }
        let asked = self.hub.store.commands(&self.fence);
        let commands = match answered(&self.seat.end, asked).await {
            // The session ends, and is told why.
            None => return Ok(()),
            Some(Ok(commands)) => commands,
            Some(Err(StoreError::Unavailable(_))) => {
                self.commands.at = Some(Instant::now() + RETRY);
                return Ok(());
            }
            Some(Err(error)) => return Err(self.store(error).await),
        };
        if !commands.is_empty() {
            self.commands.at = Some(Instant::now() + AGAIN);
        }
        for command in commands {
            self.send(Body::Command(command)).await?;
        }
        Ok(())
    }
}
