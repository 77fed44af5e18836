//! The journal: what makes the engine's story true after a kill at any instruction. The only place that names SQL.
//!
//! One writer thread owns the file and commits in groups (`writer`); one reader thread, started at the first need,
//! has a connection of its own. WAL with `synchronous=NORMAL` survives the death of the process, `FULL` that of the
//! machine. Rows are appended; a task's row alone changes, and it holds no text of the conversation. When the disk is
//! full or the file is corrupt, writes answer [`JournalError`], reads go on as far as they can, and [`Health`] says so.

mod read;
mod results;
mod rows;
mod schema;
mod write;
mod writer;

pub(crate) use read::Said;
pub use read::{ListFilter, OpenTask, StoredTask, TaskPage};
pub use results::{Part, Whole};
pub use rows::{
    Approval, Change, Counters, Decision, Entry, InPart, NewStep, Origin, Question, Spent, Step, StepResult,
    StepState, TaskState,
};
pub use write::{Begin, Begun, Decide, Decided, Finish, ModelDone, NewApproval, Written};

use rusqlite::Connection;
use std::{
    path::PathBuf,
    pin::Pin,
    sync::{Arc, mpsc},
    task::{Context, Poll},
};
use tokio::sync::{oneshot, watch};
use writer::{Job, Write, Writer};

/// A write or read that failed: the journal's disk or file. Nothing of it was kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("journal: {0}")]
pub struct JournalError(pub(crate) String);

/// Whether writes are kept at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The file is being opened.
    Opening,
    Good,
    /// Why not.
    Failed(String),
}

/// Where the journal is and how it is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Created where it is not there; one engine at a time.
    pub folder: PathBuf,
    /// `synchronous=FULL`: also survives the death of the machine, for an fsync a commit.
    pub full_sync: bool,
    /// Most pages of 4 KiB; for tests of a full disk.
    pub max_pages: Option<u32>,
}

impl Options {
    fn file(&self) -> PathBuf {
        self.folder.join("journal.sqlite")
    }
}

/// One transaction with the incarnation that writes it.
#[derive(Debug)]
pub struct Tx<'a> {
    conn: &'a Connection,
    incarnation: i64,
    /// The last task that was there when this incarnation began.
    inherited: i64,
}

/// A write that is queued; resolves when it is kept. Dropping it does not undo the write.
#[derive(Debug)]
#[must_use = "a write is only known to be kept once this has been awaited"]
pub struct Kept<T>(oneshot::Receiver<Result<T, JournalError>>);

impl<T> Future for Kept<T> {
    type Output = Result<T, JournalError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let stopped = |_| Err(JournalError("the writer has stopped".to_owned()));
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|answer| answer.unwrap_or_else(stopped))
    }
}

type Read = Box<dyn FnOnce(&mut Option<Connection>, &Options) + Send>;

/// A handle; clones share the threads.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: Options,
    jobs: mpsc::Sender<Box<dyn Job>>,
    reads: parking_lot::Mutex<Option<mpsc::Sender<Read>>>,
    health: watch::Receiver<Health>,
}

/// SQLite needs little; the default of 2 MiB would be touched in part and never given back.
const STACK: usize = 256 * 1024;

impl Journal {
    /// Starts the writer, which opens the file; returns at once. [`Journal::health`] tells how that went.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn open(options: Options) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let (health_tx, health) = watch::channel(Health::Opening);
        let writer = Writer::new(options.clone(), health_tx);
        std::thread::Builder::new()
            .name("journal".to_owned())
            .stack_size(STACK)
            .spawn(move || writer.run(&queue))?;
        let reads = parking_lot::Mutex::new(None);
        Ok(Self(Arc::new(Inner {
            options,
            jobs,
            reads,
            health,
        })))
    }

    /// Whether writes are kept; changes as they fail and succeed again.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.clone()
    }

    /// Queues `work` and waits until it is committed. Work queued first is done first; work whose future is dropped
    /// is done all the same.
    fn write<T, F>(&self, work: F) -> Kept<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let (waiter, answer) = oneshot::channel();
        let job = Write {
            work: Some(work),
            value: None,
            waiter,
        };
        // A writer that has stopped drops the job with its waiter, and the answer says so.
        let _ = self.0.jobs.send(Box::new(job));
        Kept(answer)
    }

    /// Runs `work` on the reader's connection; it sees everything that was committed before.
    async fn read<T, F>(&self, work: F) -> Result<T, JournalError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (waiter, answer) = oneshot::channel();
        let job: Read = Box::new(move |slot, options| {
            // A waiter that has gone away needs no answer.
            let _ = waiter.send(with_reader(slot, options, work));
        });
        let stopped = || JournalError("the reader has stopped".to_owned());
        self.reader()
            .map_err(|e| JournalError(e.to_string()))?
            .send(job)
            .map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    fn reader(&self) -> std::io::Result<mpsc::Sender<Read>> {
        let mut slot = self.0.reads.lock();
        if let Some(sender) = &*slot {
            return Ok(sender.clone());
        }
        let (sender, queue) = mpsc::channel::<Read>();
        let options = self.0.options.clone();
        std::thread::Builder::new()
            .name("journal-read".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let mut conn = None;
                while let Ok(job) = queue.recv() {
                    job(&mut conn, &options);
                }
            })?;
        Ok(slot.insert(sender).clone())
    }
}

fn with_reader<T>(
    slot: &mut Option<Connection>,
    options: &Options,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<T, JournalError> {
    let failed = |e: rusqlite::Error| JournalError(e.to_string());
    let conn = match slot.take() {
        Some(conn) => conn,
        None => schema::open_reader(&options.file()).map_err(failed)?,
    };
    let answer = work(&conn).map_err(failed);
    // After an error the next read opens the file anew: it may have been mended or replaced.
    if answer.is_ok() {
        *slot = Some(conn);
    }
    answer
}
