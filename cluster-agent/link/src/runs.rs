//! Which run records of the outbox are on their way to the hub in this session.

use roadstead_inbox::PendingRun;
use std::time::Duration;
use tokio::time::Instant;

/// Records sent and not acknowledged yet; more wait in the outbox.
const ON_THEIR_WAY: usize = 512;
/// Without an acknowledgement for so long everything is sent again; the hub knows each by its id.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The window over the outbox.
#[derive(Debug)]
pub(crate) struct Window {
    sent_through: u64,
    unacknowledged: usize,
    heard: Instant,
}

impl Window {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            sent_through: 0,
            unacknowledged: 0,
            heard: now,
        }
    }

    /// Where to read on and how many records, while the window has room.
    pub(crate) fn room(&self) -> Option<(u64, usize)> {
        let room = ON_THEIR_WAY.saturating_sub(self.unacknowledged);
        (room > 0).then_some((self.sent_through, room))
    }

    pub(crate) fn sent(&mut self, runs: &[PendingRun], now: Instant) {
        if self.unacknowledged == 0 {
            self.heard = now;
        }
        self.unacknowledged += runs.len();
        self.sent_through = runs.last().map_or(self.sent_through, |run| run.position);
    }

    pub(crate) fn acknowledged(&mut self, count: usize, now: Instant) {
        self.unacknowledged = self.unacknowledged.saturating_sub(count);
        self.heard = now;
    }

    /// When everything unacknowledged is to be sent again; `None` when nothing is.
    pub(crate) fn again_at(&self) -> Option<Instant> {
        (self.unacknowledged > 0).then(|| self.heard + AGAIN_AFTER)
    }

    /// Begins anew at the head of the outbox.
    pub(crate) fn rewind(&mut self, now: Instant) {
        *self = Self::new(now);
    }
}
