//! When something is due in a session. Each timer is spread by randomness, so that a fleet does not beat in time.

use super::Context;
use crate::{Identity, clock::between, runs::Window};
use std::time::Duration;
use tokio::time::Instant;

/// Roots are compared again about every ten minutes (protocol.md §3 rule 2).
const ROOT_EVERY: (Duration, Duration) = (Duration::from_secs(480), Duration::from_secs(720));
/// Heartbeats in a row without any frame of the hub (protocol.md §3 rule 8).
const MISSED: u32 = 4;
/// Without a heartbeat interval from the hub.
const HEARTBEAT: Duration = Duration::from_secs(25);
/// Whatever the hub names: neither a busy loop nor a hub that is never missed.
const HEARTBEATS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));
/// A renewal that brought nothing is tried again after this part of the certificate's life, so that several
/// attempts fit into what is left of it.
const RENEW_AGAIN: u32 = 20;

#[derive(Debug)]
pub(super) struct Timers {
    heartbeat: Duration,
    pub(super) beat_at: Instant,
    pub(super) root_at: Instant,
    pub(super) renew_at: Instant,
    heard_at: Instant,
}

impl Timers {
    pub(super) fn new(now: Instant, heartbeat: Duration, identity: &Identity, context: &Context) -> Self {
        let heartbeat = match heartbeat.is_zero() {
            true => HEARTBEAT,
            false => heartbeat.clamp(HEARTBEATS.0, HEARTBEATS.1),
        };
        let mut timers = Self {
            heartbeat,
            beat_at: now,
            root_at: now,
            renew_at: now + identity.renew_in(&*context.clock, &*context.random),
            heard_at: now,
        };
        timers.beaten(context);
        timers.compared(context);
        timers
    }

    /// The next moment at which something is due.
    pub(super) fn next(&self, runs: &Window) -> Instant {
        let silent_at = self.heard_at + self.heartbeat * MISSED;
        let mut next = self.beat_at.min(self.root_at).min(self.renew_at).min(silent_at);
        if let Some(again) = runs.again_at() {
            next = next.min(again);
        }
        next
    }

    pub(super) fn heard(&mut self) {
        self.heard_at = Instant::now();
    }

    /// `true` when the hub has said nothing for too long.
    pub(super) fn silent(&self, now: Instant) -> bool {
        now >= self.heard_at + self.heartbeat * MISSED
    }

    pub(super) fn beaten(&mut self, context: &Context) {
        let (from, to) = (self.heartbeat.mul_f64(0.8), self.heartbeat.mul_f64(1.2));
        self.beat_at = Instant::now() + between(&*context.random, from, to);
    }

    pub(super) fn compared(&mut self, context: &Context) {
        self.root_at = Instant::now() + between(&*context.random, ROOT_EVERY.0, ROOT_EVERY.1);
    }

    /// A renewal is under way or failed: the next attempt.
    pub(super) fn renew_again(&mut self, identity: &Identity, context: &Context) {
        let step = Duration::from_secs(identity.not_after.abs_diff(identity.not_before)) / RENEW_AGAIN;
        self.renew_at = Instant::now() + between(&*context.random, step / 2, step) + Duration::from_millis(1);
    }
}
