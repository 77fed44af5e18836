//! What a session sends: batches from the cursor on, a snapshot, or nothing.
//!
//! The writer pulls rows by cursor and remembers only numbers, so a slow cluster agent costs no memory; 64 frames or
//! 1 MiB may be on their way unacknowledged (protocol.md §3 rule 7).

use super::{
    frames::{deltas, parts},
    mode::Resume,
    session::{End, Session},
};
use crate::store::{Begun, Content, Hello, StoreError};
use prost::Message as _;
use roadstead_contract::fleet::{
    Digest, SnapshotBegin, SnapshotEnd, StateSum, batch::Purpose, hub_frame::Body,
};
use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};
use tokio::time::Instant;

/// Frames on their way.
const CREDIT_FRAMES: usize = 64;
/// Before the database is read again after it did not answer.
const AGAIN: Duration = Duration::from_secs(1);
/// Bytes on their way.
const CREDIT_BYTES: usize = 1024 * 1024;
/// Rows of one read. With documents of the largest inline size this is 4 MiB for a moment.
const PAGE: usize = 64;

#[derive(Debug)]
pub(super) struct Writer {
    task: Task,
    /// Through which revision batches were sent.
    pub(super) sent: u64,
    /// Through which revision they were ever sent in this session: a resumption goes back, what is on its way does not.
    reached: u64,
    /// Through which revision the cluster agent has them on disk.
    pub(super) acked: u64,
    /// Batches on their way: the cursor each moves to, and its bytes.
    outstanding: VecDeque<(u64, usize)>,
    /// Since when the oldest batch waits for its acknowledgement.
    waiting_since: Instant,
    /// The desired set may hold more than was sent.
    stirred: bool,
    approved_deletes: u64,
    /// The approval that a snapshot carried which was just taken.
    pub(super) taken: Option<u64>,
    /// What is not acknowledged for twice this long has stalled.
    stall: Duration,
    /// The database did not answer: nothing is read before.
    paused_until: Option<Instant>,
}

#[derive(Debug)]
enum Task {
    Delta,
    Snapshot(Box<Snapshot>),
    /// Waits for the acknowledgement of a snapshot of this revision.
    Acknowledgement(u64),
    Hold,
}

#[derive(Debug)]
struct Snapshot {
    begun: Option<u64>,
    /// What is still to be sent, last first.
    uids: Vec<String>,
    count: u64,
    sum: StateSum,
}

impl Snapshot {
    fn new() -> Box<Self> {
        Box::new(Self {
            begun: None,
            uids: Vec::new(),
            count: 0,
            sum: StateSum::default(),
        })
    }
}

impl Writer {
    pub(super) fn new(
        hello: &Hello,
        begun: &Begun,
        resume: &Resume,
        (held, stall): (bool, Duration),
    ) -> Self {
        let task = match resume {
            Resume::Delta | Resume::Diff => Task::Delta,
            Resume::Snapshot => Task::Snapshot(Snapshot::new()),
            Resume::Hold(_) | Resume::Behind(_) => Task::Hold,
        };
        Self {
            task,
            sent: hello.cursor,
            reached: hello.cursor,
            acked: hello.cursor,
            outstanding: VecDeque::new(),
            waiting_since: Instant::now(),
            stirred: true,
            // An approval is for the hold that the inbox tells of; without one it is of another time.
            approved_deletes: if held { begun.approved_deletes } else { 0 },
            taken: None,
            stall,
            paused_until: None,
        }
    }

    /// Something may be there to send.
    pub(super) fn stir(&mut self) {
        self.stirred = true;
    }

    /// `true` when there is work and credit for it.
    pub(super) fn ready(&self) -> bool {
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        match &self.task {
            Task::Delta => {
                let bytes: usize = self.outstanding.iter().map(|(_, bytes)| bytes).sum();
                self.stirred && self.outstanding.len() < CREDIT_FRAMES && bytes < CREDIT_BYTES
            }
            Task::Snapshot(_) => true,
            Task::Acknowledgement(_) | Task::Hold => false,
        }
    }

    /// When an unacknowledged batch has waited too long; `None` while nothing is on its way.
    pub(super) fn stalled_at(&self) -> Option<Instant> {
        let waits = !self.outstanding.is_empty() || matches!(self.task, Task::Acknowledgement(_));
        // Twice: a large document that is fetched by Bulk holds up its batch.
        waits.then(|| self.waiting_since + self.stall * 2)
    }

    /// Nothing is on its way and nothing more is known to send.
    pub(super) fn idle_at(&self, cursor: u64) -> bool {
        matches!(self.task, Task::Delta) && self.outstanding.is_empty() && self.sent == cursor
    }

    /// `false` for a revision that was never sent.
    pub(super) fn acknowledge(&mut self, revision: u64) -> bool {
        if let Task::Acknowledgement(snapshot) = self.task
            && revision == snapshot
        {
            self.task = Task::Delta;
            self.stirred = true;
            self.taken = Some(std::mem::take(&mut self.approved_deletes));
        }
        if revision > self.reached {
            return false;
        }
        if matches!(self.task, Task::Delta) {
            self.sent = self.sent.max(revision);
        }
        while self
            .outstanding
            .front()
            .is_some_and(|(through, _)| *through <= revision)
        {
            self.outstanding.pop_front();
        }
        self.waiting_since = Instant::now();
        self.acked = self.acked.max(revision);
        true
    }

    /// Frames were missed: go on from `cursor`. `false` for a revision that was never sent.
    pub(super) fn resume(&mut self, cursor: u64) -> bool {
        if cursor > self.reached {
            return false;
        }
        if matches!(self.task, Task::Delta) {
            self.sent = cursor;
            self.outstanding.clear();
            self.stirred = true;
        }
        true
    }

    /// Sends everything again, as a snapshot.
    pub(super) fn begin_snapshot(&mut self) {
        if matches!(self.task, Task::Delta) {
            self.outstanding.clear();
            self.task = Task::Snapshot(Snapshot::new());
        }
    }

    /// Carries out deletions that a person allowed. Not while another snapshot is under way: the look around comes
    /// back to it.
    pub(super) fn approve(&mut self, deletes: u64) {
        if matches!(self.task, Task::Delta) {
            self.approved_deletes = deletes;
            self.begin_snapshot();
        }
    }

    /// When the database is asked again after it did not answer; `None` while it does.
    pub(super) fn again_at(&self) -> Option<Instant> {
        self.paused_until.filter(|until| Instant::now() < *until)
    }

    /// The database did not answer: the same again in a while.
    fn pause(&mut self) {
        self.stirred = true;
        self.paused_until = Some(Instant::now() + AGAIN);
    }

    pub(super) fn holds(&self) -> bool {
        matches!(self.task, Task::Hold)
    }

    fn reach(&mut self, revision: u64) {
        self.sent = revision;
        self.reached = self.reached.max(revision);
    }

    fn count_out(&mut self, through: u64, bytes: usize) {
        if self.outstanding.is_empty() {
            self.waiting_since = Instant::now();
        }
        self.outstanding.push_back((through, bytes));
    }
}

impl Session {
    /// One step of what is to be sent.
    pub(super) async fn write(&mut self) -> Result<(), End> {
        match std::mem::replace(&mut self.writer.task, Task::Hold) {
            Task::Delta => {
                self.writer.task = Task::Delta;
                self.write_delta().await
            }
            Task::Snapshot(snapshot) => self.write_snapshot(snapshot).await,
            idle @ (Task::Acknowledgement(_) | Task::Hold) => {
                self.writer.task = idle;
                Ok(())
            }
        }
    }

    async fn write_delta(&mut self) -> Result<(), End> {
        // Before the read: a change that comes meanwhile stirs again.
        self.writer.stirred = false;
        let read = self
            .hub
            .store
            .changes(&self.fence.peer, self.writer.sent, PAGE)
            .await;
        let changes = match read {
            Ok(changes) => changes,
            Err(error) => return self.unread(error).await,
        };
        let last = changes.rows.last().map_or(self.writer.sent, |row| row.revision);
        // What was read, not what the revision says: it may be ahead of the rows, and a hint may be lost meanwhile.
        self.seat.read.fetch_max(last, Ordering::Relaxed);
        self.writer.stirred |= !changes.rows.is_empty() && last < changes.revision;
        for batch in deltas(self.writer.sent, changes.rows) {
            self.writer.reach(batch.through);
            self.writer.count_out(batch.through, batch.encoded_len());
            self.send(Body::Batch(batch)).await?;
        }
        Ok(())
    }

    async fn write_snapshot(&mut self, mut snapshot: Box<Snapshot>) -> Result<(), End> {
        let Some(revision) = snapshot.begun else {
            let desired = match self.hub.store.desired(&self.fence.peer).await {
                Ok(desired) => desired,
                Err(error) => {
                    self.writer.task = Task::Snapshot(snapshot);
                    return self.unread(error).await;
                }
            };
            let begin = SnapshotBegin {
                revision: desired.revision,
                count: desired.entries.len() as u64,
            };
            snapshot.begun = Some(desired.revision);
            snapshot.uids = desired.entries.into_iter().rev().map(|entry| entry.uid).collect();
            self.writer.task = Task::Snapshot(snapshot);
            return self.send(Body::SnapshotBegin(begin)).await;
        };
        if snapshot.uids.is_empty() {
            return self.end_snapshot(revision, &snapshot).await;
        }
        let mut page = snapshot.uids.split_off(snapshot.uids.len().saturating_sub(PAGE));
        let mut rows = match self.hub.store.rows(&self.fence.peer, &page).await {
            Ok(rows) => rows,
            Err(error) => {
                snapshot.uids.append(&mut page);
                self.writer.task = Task::Snapshot(snapshot);
                return self.unread(error).await;
            }
        };
        // Deleted meanwhile: not part of the snapshot; its tombstone follows with the delta. Changed meanwhile: sent
        // as it is now, and counted so.
        rows.retain(|row| row.content != Content::Gone);
        for row in &rows {
            if let Content::Document { digest, .. } = &row.content {
                snapshot.sum.add(&row.uid, row.generation, *digest);
                snapshot.count += 1;
            }
        }
        self.writer.task = Task::Snapshot(snapshot);
        for batch in parts(revision, Purpose::Snapshot, rows) {
            self.send(Body::Batch(batch)).await?;
        }
        Ok(())
    }

    /// Sessions stay up without the database; any other error ends them.
    async fn unread(&mut self, error: StoreError) -> Result<(), End> {
        if let StoreError::Unavailable(_) = error {
            self.writer.pause();
            return Ok(());
        }
        Err(self.store(error).await)
    }

    async fn end_snapshot(&mut self, revision: u64, snapshot: &Snapshot) -> Result<(), End> {
        let end = SnapshotEnd {
            revision,
            count: snapshot.count,
            root: snapshot.sum.root().to_vec(),
            complete: true,
            approved_deletes: self.writer.approved_deletes,
        };
        self.writer.reach(revision);
        self.writer.waiting_since = Instant::now();
        self.writer.task = Task::Acknowledgement(revision);
        self.send(Body::SnapshotEnd(end)).await
    }

    /// Sends what a difference showed; the cursor stays.
    pub(super) async fn repair(
        &mut self,
        cursor: u64,
        rows: Vec<crate::store::Row>,
        root: Option<Digest>,
    ) -> Result<(), End> {
        let mut batches = parts(cursor, Purpose::Repair, rows);
        if let (Some(last), Some(root)) = (batches.last_mut(), root) {
            last.root = root.to_vec();
        }
        for batch in batches {
            self.send(Body::Batch(batch)).await?;
        }
        Ok(())
    }
}
