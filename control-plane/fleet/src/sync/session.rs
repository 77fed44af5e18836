//! One session on the hub's side: from the Hello to its end, in one task.
//!
//! It holds nothing that the database does not: where the cluster agent is, what was sent and not acknowledged yet,
//! and a difference being looked into. Closing it at any point loses nothing.

use super::{
    begin,
    commands::Commands,
    diff::Diff,
    frames::hub,
    owed::Owed,
    settle::{Settling, settled},
    trust::Trust,
    write::Writer,
};
use crate::{
    bucket::Bucket,
    listen::{Peer, status},
    registry::{EXPIRED_GRACE, Greeting, Reason, Seat, is_over},
    serve::{Inner, LOOK_LIMIT, late},
    store::{Event, Hints, Session as Fence, StoreError, What},
};
use futures::StreamExt as _;
use roadstead_contract::fleet::{ClusterFrame, Drain, HubFrame, HubKeys, Revoked, hub_frame::Body};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// Heartbeats in a row that were missed (protocol.md §3 rule 8).
const MISSED: u32 = 4;
/// Frames a second from one cluster agent, and at once: far more than one ever has to say (S51).
pub(super) const FRAMES: (f64, f64) = (1_000.0, 8_000.0);
/// Frames that are heard before what they say is written, if more wait.
const TOGETHER: usize = 64;
/// Resumptions from a gap: each is a frame that went missing on a stream that loses none.
pub(super) const RESUMES: (f64, f64) = (0.2, 20.0);
/// Renewals: one in two days is usual, a few more after failures.
pub(super) const RENEWALS: (f64, f64) = (0.02, 5.0);
/// Comparisons of state roots, each of which reads the whole set without content: one in ten minutes is usual.
pub(super) const ROOTS: (f64, f64) = (0.2, 10.0);

/// Why a session ends.
#[derive(Debug)]
pub(super) enum End {
    /// The cluster agent has gone, or said goodbye.
    Gone,
    /// It is told why.
    Status(Status),
    /// It is told by a last frame.
    Last(Box<Body>),
}

impl End {
    pub(super) fn last(body: Body) -> Self {
        Self::Last(Box::new(body))
    }
}

/// A seat that is left when the session ends, however it does.
pub(super) struct Seated {
    pub(super) seat: Arc<Seat>,
    pub(super) hub: Arc<Inner>,
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.hub.registry.leave(&self.seat, self.hub.clock.now_ms());
    }
}

impl std::ops::Deref for Seated {
    type Target = Seat;
    fn deref(&self) -> &Seat {
        &self.seat
    }
}

pub(super) struct Session {
    pub(super) hub: Arc<Inner>,
    pub(super) peer: Peer,
    pub(super) seat: Seated,
    pub(super) fence: Fence,
    pub(super) inbound: Streaming<ClusterFrame>,
    /// Yields when something of the cluster may have changed.
    pub(super) hints: Hints,
    pub(super) frames: mpsc::Sender<Result<HubFrame, Status>>,
    pub(super) writer: Writer,
    pub(super) commands: Commands,
    pub(super) diff: Diff,
    /// Deletions wait for a person in the cluster: roots differ, and both sides know why.
    pub(super) held: bool,
    /// A report of a foreign document was audited in this session.
    pub(super) accused: bool,
    /// The revision of the snapshot that would have deleted them.
    pub(super) held_at: u64,
    pub(super) owed: Owed,
    /// A write of what was owed, under way.
    pub(super) settling: Option<Settling>,
    /// It says that a snapshot was taken.
    pub(super) taking: bool,
    /// Frames that were heard since the last one began.
    pub(super) unwritten: usize,
    /// The cluster is ahead of this hub: what it says of its documents is of another timeline.
    pub(super) behind: bool,
    /// So it is noted in the database, until a person decides.
    pub(super) ahead: bool,
    pub(super) keys: watch::Receiver<HubKeys>,
    pub(super) trust: Trust,
    pub(super) flood: Bucket,
    pub(super) resumes: Bucket,
    pub(super) renewals: Bucket,
    pub(super) roots: Bucket,
    pub(super) heard: Instant,
}

pub(super) async fn run(
    hub: Arc<Inner>,
    peer: Peer,
    inbound: Streaming<ClusterFrame>,
    frames: mpsc::Sender<Result<HubFrame, Status>>,
    greeting: Greeting,
) {
    let stall = hub.settings.stall;
    let end = match begin::begin(hub.clone(), peer, inbound, frames.clone(), greeting).await {
        Err(end) => end,
        Ok(mut session) => {
            let end = match session.live().await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            let cluster = session.fence.peer.cluster;
            tracing::info!(cluster.id = %cluster, epoch = session.fence.epoch, ?end, "a session ended");
            session.write_rest();
            end
        }
    };
    let last = match end {
        End::Gone => return,
        End::Status(status) => Err(status),
        End::Last(body) => Ok(super::frames::hub(*body)),
    };
    // The connection may be gone; then nobody is there to be told.
    let _ = timeout(stall, frames.send(last)).await;
}

pub(super) enum Never {}

/// What the database answers. While a session waits it hears nothing: not for longer than a look does, and not beyond its
/// own end, at which there is no answer.
pub(super) async fn answered<T>(
    end: &CancellationToken,
    asked: impl Future<Output = Result<T, StoreError>>,
) -> Option<Result<T, StoreError>> {
    tokio::select! {
        biased;
        () = end.cancelled() => None,
        answer = timeout(LOOK_LIMIT, asked) => Some(answer.unwrap_or_else(late)),
    }
}

impl Session {
    async fn live(&mut self) -> Result<Never, End> {
        let seat = self.seat.seat.clone();
        loop {
            // While a difference is looked into, the cursor must stay where it is.
            let ready = self.writer.ready() && !self.diff.pending();
            let commands = self.commands.ready();
            let until = self.until();
            let room = self.owed.has_room();
            let due = self.settling.is_none() && self.owed.due();
            // Frames that wait are heard first, to be written together; but not for ever.
            if due && (self.unwritten >= TOGETHER || !room) {
                self.write_owed();
            }
            // Without the database frames are heard all the same: what does not fit is said again.
            let hears = room || self.settling.is_none();
            tokio::select! {
                biased;
                () = seat.end.cancelled() => return Err(self.ended(&seat.reason())),
                // Before what the cluster agent says: its certificate may be worth nothing any more.
                changed = self.trust.changed.recv() => {
                    if matches!(changed, Err(RecvError::Closed)) {
                        return Err(End::Gone);
                    }
                    self.trust_changed().await?;
                }
                settled = settled(&mut self.settling) => self.take_settled(settled?).await?,
                frame = self.inbound.message(), if hears => {
                    let frame = frame.map_err(|status| self.broken(status))?.ok_or(End::Gone)?;
                    self.heard = Instant::now();
                    if self.flood.take().is_err() {
                        return Err(self.abuse("too many frames").await);
                    }
                    self.expired()?;
                    self.unwritten += 1;
                    self.hear(frame.body).await?;
                }
                () = std::future::ready(()), if commands => self.send_commands().await?,
                () = std::future::ready(()), if ready => {
                    self.write().await?;
                    self.write_owed();
                }
                () = std::future::ready(()), if due => self.write_owed(),
                Some(hint) = self.hints.next() => {
                    if hint.commands {
                        self.commands.stir();
                    }
                    if hint.desired {
                        self.writer.stir();
                        self.decided().await?;
                    }
                }
                () = seat.commands.notified() => self.commands.stir(),
                () = seat.wake.notified() => {
                    self.writer.stir();
                    self.decided().await?;
                }
                changed = self.keys.changed() => {
                    changed.map_err(|_| End::Gone)?;
                    let keys = self.keys.borrow_and_update().clone();
                    self.send(Body::Keys(keys)).await?;
                }
                () = tokio::time::sleep_until(until) => {
                    self.check()?;
                    self.trust_due().await?;
                    self.resume_difference().await?;
                }
            }
        }
    }

    /// When something is to be looked at if nothing happens before.
    fn until(&self) -> Instant {
        let silent = self.heard + self.hub.settings.heartbeat * MISSED;
        let others = [
            self.writer.stalled_at(),
            self.writer.again_at(),
            self.diff.late_at(),
            self.diff.again_at(),
            // While a write is under way its end comes by itself.
            self.owed.again_at().filter(|_| self.settling.is_none()),
            self.over_at(),
            self.trust.due_at(),
            self.commands.due_at(),
        ];
        others.into_iter().flatten().fold(silent, Instant::min)
    }

    /// When the certificate's time is over, by the clock as it goes now.
    fn over_at(&self) -> Option<Instant> {
        let not_after = self.peer.identified().ok()?.1;
        let end = not_after.saturating_mul(1_000);
        let left =
            Duration::from_millis(u64::try_from(end.saturating_sub(self.hub.clock.now_ms())).unwrap_or(0));
        Instant::now().checked_add(left + EXPIRED_GRACE + Duration::from_millis(1))
    }

    fn check(&self) -> Result<(), End> {
        let now = Instant::now();
        if now >= self.heard + self.hub.settings.heartbeat * MISSED {
            return Err(End::Status(Status::deadline_exceeded("no heartbeat")));
        }
        if self.writer.stalled_at().is_some_and(|at| now >= at) {
            return Err(End::Status(Status::deadline_exceeded(
                "batches are not acknowledged",
            )));
        }
        if self.diff.late_at().is_some_and(|at| now >= at) {
            return Err(End::Status(Status::deadline_exceeded(
                "the inbox's list takes too long",
            )));
        }
        self.expired()
    }

    /// The certificate's time is over: a live stream does not outlive it.
    pub(super) fn expired(&self) -> Result<(), End> {
        let not_after = self.peer.identified().map_err(End::Status)?.1;
        if is_over(not_after, self.hub.clock.now_ms()) {
            return Err(End::Status(Status::unauthenticated(
                "the certificate has expired",
            )));
        }
        Ok(())
    }

    fn ended(&self, reason: &Reason) -> End {
        match reason {
            Reason::Superseded => End::Status(Status::aborted("a newer session of this cluster has begun")),
            Reason::Revoked => End::last(Body::Revoked(Revoked {
                reason: "the certificate is revoked".to_owned(),
            })),
            Reason::Drain => End::last(Body::Drain(Drain {
                within_ms: self.hub.window_ms(),
            })),
        }
    }

    pub(super) async fn send(&self, body: Body) -> Result<(), End> {
        match timeout(self.hub.settings.stall, self.frames.send(Ok(hub(body)))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => Err(End::Status(Status::deadline_exceeded(
                "the cluster agent takes no frame",
            ))),
        }
    }

    /// How a store's error ends the session. Without the database it goes on: see [`super::owed`].
    pub(super) async fn store(&self, error: StoreError) -> End {
        match &error {
            StoreError::Foreign(what) => {
                let what = what.clone();
                self.forged(&what).await
            }
            // The revocation, or the deletion of the cluster, is in the audit log; that it took effect is no event.
            StoreError::Refused(_) => {
                // The cluster agent goes once it is told: its calls must not look broken off by chance.
                self.hub.registry.stands(&self.fence.peer, None);
                End::last(Body::Revoked(Revoked {
                    reason: error.to_string(),
                }))
            }
            StoreError::Unknown(_) | StoreError::Superseded | StoreError::Unavailable(_) => {
                End::Status(status(&error))
            }
        }
    }

    /// A message names what is not this cluster's, or what cannot be (S45).
    pub(super) async fn forged(&self, what: &str) -> End {
        self.tell(What::Forged, what.to_owned()).await;
        End::Status(Status::permission_denied(what.to_owned()))
    }

    /// A message breaks the protocol or its limits (S51).
    pub(super) async fn abuse(&self, what: &str) -> End {
        self.tell(What::Abuse, what.to_owned()).await;
        End::Status(Status::resource_exhausted(what.to_owned()))
    }

    pub(super) async fn tell(&self, what: What, detail: String) {
        let peer = Some(self.fence.peer.clone());
        self.hub
            .audit(Event {
                peer,
                source: self.peer.source,
                what,
                detail,
            })
            .await;
    }

    /// The stream broke, or a frame did not decode or was too large: tonic's status says which.
    fn broken(&self, status: Status) -> End {
        match status.code() {
            tonic::Code::OutOfRange | tonic::Code::ResourceExhausted | tonic::Code::Internal => {
                tracing::info!(cluster.id = %self.fence.peer.cluster, %status, "a frame is refused");
                End::Status(status)
            }
            _ => End::Gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    /// The time is simulated: it goes on when nothing else does.
    #[tokio::test(start_paused = true)]
    async fn a_database_that_never_answers_is_away_and_the_end_of_a_session_does_not_wait_for_it() {
        let end = CancellationToken::new();
        let began = Instant::now();
        let late = answered(&end, pending::<Result<(), _>>()).await;
        assert!(matches!(late, Some(Err(StoreError::Unavailable(_)))), "{late:?}");
        assert_eq!(began.elapsed(), LOOK_LIMIT);
        assert!(matches!(answered(&end, async { Ok(1) }).await, Some(Ok(1))));
        let (ended, ()) = tokio::join!(answered(&end, pending::<Result<(), _>>()), async {
            tokio::task::yield_now().await;
            end.cancel();
        });
        assert!(ended.is_none(), "{ended:?}");
        assert_eq!(began.elapsed(), LOOK_LIMIT, "at once");
    }
}
