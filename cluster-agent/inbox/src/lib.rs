//! The durable copy of what the hub said, the journal of its commands, and the outbox of run records on their way to it.
//!
//! One SQLite file with one writer (WAL, `synchronous = FULL`): when a call here returns, what it did survives a
//! crash. The cluster agent works from this copy alone while the hub is away. Rules of protocol.md §3 that are kept
//! here, so that no caller can break them: a batch is taken only at the cursor; a generation never goes back; a
//! document is deleted by a tombstone, or by a complete and verified snapshot within the delete budget, and by
//! nothing else.
//!
//! What can go wrong: the disk is full or gone (every call answers [`InboxError::Storage`], nothing is half-written,
//! and the session does not acknowledge); another process holds the file ([`InboxError::InUse`]). A file that is lost
//! comes back empty with a new incarnation: the hub then sends a snapshot, and run records that it had not
//! acknowledged are sent again by the engines.

mod apply;
mod commands;
mod core;
mod executor;
mod outbox;
mod schema;
mod snapshot;
#[cfg(test)]
mod tests;

use executor::Executor;
use roadstead_contract::{
    fleet::{Digest, NackCode},
    run::RunRecord,
};
use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::watch;

pub use commands::{Act, Command, CommandResult, Taking};
pub use outbox::{PendingRun, RefusedRun};
pub use snapshot::SnapshotEnd;

/// A document as the hub sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub uid: String,
    pub generation: u64,
    pub digest: Digest,
    /// The name of a [`roadstead_contract::documents::Kind`].
    pub kind: String,
    pub project: String,
    pub name: String,
    /// The document as JSON: exactly the bytes whose SHA-256 is `digest`.
    pub json: Vec<u8>,
}

/// What is known of a document without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub uid: String,
    pub generation: u64,
    pub digest: Digest,
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Upsert {
        revision: u64,
        document: Document,
    },
    /// The document's content could not be had (`document.json` is empty): it is noted as refused, the version
    /// before stays.
    Missing {
        revision: u64,
        document: Document,
        code: NackCode,
        detail: String,
    },
    Tombstone {
        revision: u64,
        uid: String,
        generation: u64,
    },
}

/// Why a batch is sent; see `Batch.Purpose` in fleet.proto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Delta,
    Repair,
    Snapshot,
}

/// Changes from revision `from` (exclusive) through `through`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub from: u64,
    pub through: u64,
    pub purpose: Purpose,
    pub changes: Vec<Change>,
}

/// A document that was not taken; the hub hears of it by a Nack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub uid: String,
    pub generation: u64,
    pub code: NackCode,
    pub detail: String,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// On disk.
    Taken {
        position: Position,
        refused: Vec<Refusal>,
    },
    /// Everything in it was here before; nothing changed.
    Repeated { cursor: u64 },
    /// It begins after the cursor: something is missing in between; nothing changed.
    Gap { cursor: u64 },
}

/// What became of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotOutcome {
    /// The inbox holds what the snapshot held; the cursor is its revision.
    Taken { position: Position, deleted: u64 },
    /// It verified, but deletes more than the budget: the cursor moved, nothing was deleted, a person is needed.
    Held { position: Position, held: Held },
    /// Incomplete, or its count or root differs from what arrived: nothing was deleted and the cursor stays.
    Unverified { detail: String },
}

/// Deletions that wait for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub revision: u64,
    pub deletes: u64,
    pub documents: u64,
}

/// Where the inbox is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Random, made with the file.
    pub incarnation: String,
    pub cursor: u64,
    /// State root over every document, refused ones with what was refused: a refusal is known to both sides.
    pub root: Digest,
    pub documents: u64,
    pub held: Option<Held>,
}

/// What a watcher of the inbox sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The cursor.
    pub revision: u64,
    /// Counts every change of any document since the process began: a repair changes documents at the same cursor.
    pub changes: u64,
}

/// Why a call failed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    #[error("another process holds this inbox: stop the other cluster agent first")]
    InUse,
    #[error("the inbox is of version {found}, this cluster agent knows version {known}: use a newer one")]
    Version { found: i64, known: i64 },
    #[error("the inbox cannot be read or written: {0}")]
    Storage(#[from] rusqlite::Error),
    #[error("the inbox's file cannot be opened: {0}")]
    File(#[from] std::io::Error),
    #[error("the inbox's writer has ended")]
    Ended,
}

impl InboxError {
    /// Whether the same call may succeed later without a new process: a full disk gets room again.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Storage(_))
    }
}

/// The handle: cheap to clone; calls from many tasks are done one after another.
#[derive(Clone, Debug)]
pub struct Inbox {
    executor: Executor,
    watchers: core::Watchers,
    /// No command is taken any more.
    closed: Arc<AtomicBool>,
}

impl Inbox {
    /// Opens or makes the file and starts its writer thread, which ends with the last clone.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub fn open(path: &Path) -> Result<Self, InboxError> {
        Self::with(path, true)
    }

    /// As [`Self::open`], but each call is done by its caller: no thread, so that a simulation repeats by its seed.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub fn open_inline(path: &Path) -> Result<Self, InboxError> {
        Self::with(path, false)
    }

    /// One that ends with its last clone, each call done by its caller: for simulations of a fleet, in which each cluster
    /// agent would need two open files.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub fn in_memory() -> Result<Self, InboxError> {
        Ok(Self::on(core::Core::in_memory()?, false))
    }

    fn with(path: &Path, thread: bool) -> Result<Self, InboxError> {
        Ok(Self::on(core::Core::open(path)?, thread))
    }

    fn on(core: core::Core, thread: bool) -> Self {
        let watchers = core.watchers();
        let executor = if thread {
            Executor::thread(core)
        } else {
            Executor::inline(core)
        };
        Self {
            executor,
            watchers,
            closed: Arc::default(),
        }
    }

    /// Changes whenever a document or the cursor does.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Seen> {
        self.watchers.documents.clone()
    }

    /// Changes whenever a run record is appended.
    #[must_use]
    pub fn watch_runs(&self) -> watch::Receiver<u64> {
        self.watchers.runs.clone()
    }

    /// # Errors
    /// See [`InboxError`]; so for every call below.
    pub async fn position(&self) -> Result<Position, InboxError> {
        self.executor.run(|core| Ok(core.position())).await
    }

    /// Takes a batch, whole or not at all. On disk when it returns [`Outcome::Taken`].
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn apply(&self, batch: Batch) -> Result<Outcome, InboxError> {
        self.executor.run(move |core| core.apply(batch)).await
    }

    /// A snapshot begins; batches of [`Purpose::Snapshot`] follow. Forgets one that was under way.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn begin_snapshot(&self, revision: u64) -> Result<(), InboxError> {
        self.executor
            .run(move |core| {
                core.begin_snapshot(revision);
                Ok(())
            })
            .await
    }

    /// Verifies the snapshot and takes its revision and its deletions.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn end_snapshot(&self, end: SnapshotEnd) -> Result<SnapshotOutcome, InboxError> {
        self.executor.run(move |core| core.end_snapshot(&end)).await
    }

    /// Every document with content at one revision, in order of kind, project, name, uid.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn documents(&self) -> Result<(Seen, Vec<Document>), InboxError> {
        self.executor.run(|core| core.documents()).await
    }

    /// One document; `None` without content or at all.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn document(&self, uid: &str) -> Result<Option<Document>, InboxError> {
        let uid = uid.to_owned();
        self.executor.run(move |core| core.document(&uid)).await
    }

    /// Those of these documents that are here, with content or refused.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn known(&self, uids: Vec<String>) -> Result<BTreeSet<String>, InboxError> {
        self.executor.run(move |core| core.known(uids)).await
    }

    /// A page of what the inbox holds, in order of uid, after `after`; with the cursor it belongs to.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn have(&self, after: Option<String>, limit: usize) -> Result<(u64, Vec<Entry>), InboxError> {
        self.executor
            .run(move |core| core.have(after.as_deref(), limit))
            .await
    }

    /// Keeps run records until the hub has them, in the order given. A record whose id waits already is not added
    /// again. On disk when it returns: the engine may then forget them.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn append_runs(&self, records: Vec<RunRecord>) -> Result<(), InboxError> {
        self.executor.run(move |core| core.append_runs(&records)).await
    }

    /// The oldest waiting run records after position `after`, at most `limit` and about 128 KiB.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn pending_runs(&self, after: u64, limit: usize) -> Result<Vec<PendingRun>, InboxError> {
        self.executor
            .run(move |core| core.pending_runs(after, limit))
            .await
    }

    /// The hub has these (or will never take them): forget them.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn forget_runs(&self, ids: Vec<String>) -> Result<(), InboxError> {
        self.executor.run(move |core| core.forget_runs(&ids)).await
    }

    /// The hub will never take these, for the reasons given: they wait no longer, and are kept for a person.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn set_runs_aside(&self, refused: Vec<(String, String)>) -> Result<(), InboxError> {
        self.executor.run(move |core| core.set_runs_aside(&refused)).await
    }

    /// The run records that the hub refused, oldest first.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn refused_runs(&self) -> Result<Vec<RefusedRun>, InboxError> {
        self.executor.run(|core| core.refused_runs()).await
    }

    /// Changes whenever a command is taken.
    #[must_use]
    pub fn watch_commands(&self) -> watch::Receiver<u64> {
        self.watchers.taken.clone()
    }

    /// Changes whenever a result is to be said.
    #[must_use]
    pub fn watch_results(&self) -> watch::Receiver<u64> {
        self.watchers.results.clone()
    }

    /// Writes a command down. On disk when it returns [`Taking::Taken`]: then it may be begun. `now_ms` is of the clock
    /// that its expiry is judged by.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn take_command(&self, command: Command, now_ms: i64) -> Result<Taking, InboxError> {
        if self.closed.load(Ordering::Acquire) {
            return Ok(Taking::Closed);
        }
        self.executor
            .run(move |core| core.take_command(&command, now_ms))
            .await
    }

    /// No command is taken from now on: this process ends, and the hub sends them to the next one.
    pub fn close_commands(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Commands that were taken since this was asked last: each is given out once.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn begin_commands(&self) -> Result<Vec<Command>, InboxError> {
        self.executor.run(|core| core.begin_commands()).await
    }

    /// Keeps what came of a command, the first that is said.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn conclude_command(&self, result: CommandResult) -> Result<(), InboxError> {
        self.executor
            .run(move |core| core.conclude_command(&result))
            .await
    }

    /// Results that the hub has not acknowledged, oldest first; not all of them at once.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn pending_results(&self) -> Result<Vec<CommandResult>, InboxError> {
        self.executor.run(|core| core.pending_results()).await
    }

    /// The hub has the results of these commands (or will never take them).
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn acknowledge_results(&self, ids: Vec<String>) -> Result<(), InboxError> {
        self.executor
            .run(move |core| core.acknowledge_results(&ids))
            .await
    }

    /// Whether the inbox can be written now, with some room: something is written and taken back.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn check(&self) -> Result<(), InboxError> {
        self.executor.run(|core| core.check()).await
    }

    /// Lets the file grow to so many pages and no further, as a full disk would; for tests of what happens then.
    /// `None` lets it grow again.
    ///
    /// # Errors
    /// See [`InboxError`].
    pub async fn limit_pages(&self, pages: Option<u32>) -> Result<(), InboxError> {
        self.executor.run(move |core| core.limit_pages(pages)).await
    }
}

/// Shared by the executor's kinds.
type Shared<T> = Arc<parking_lot::Mutex<T>>;
