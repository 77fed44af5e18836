//! The one thread that writes. Everything queued goes into one transaction, then all who wait are answered: many
//! small writes cost one commit, and none is answered before it is kept.

use super::{Health, JournalError, Options, Tx, schema};
use rusqlite::Connection;
use std::{
    fs::{DirBuilder, File, Permissions},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};
use tokio::sync::{oneshot, watch};

/// Most writes in one transaction: bounds how long the first of them waits.
const GROUP: usize = 512;
/// How long a predecessor that is going down may hold the lock.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// A write with somebody waiting for it.
pub(super) trait Job: Send {
    fn run(&mut self, tx: &Tx<'_>) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, outcome: Result<(), JournalError>);
}

pub(super) struct Write<F, T> {
    pub(super) work: Option<F>,
    pub(super) value: Option<T>,
    pub(super) waiter: oneshot::Sender<Result<T, JournalError>>,
}

impl<F, T> Job for Write<F, T>
where
    F: FnOnce(&Tx<'_>) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn run(&mut self, tx: &Tx<'_>) -> rusqlite::Result<()> {
        if let Some(work) = self.work.take() {
            self.value = Some(work(tx)?);
        }
        Ok(())
    }
    fn answer(self: Box<Self>, outcome: Result<(), JournalError>) {
        let Self { value, waiter, .. } = *self;
        let gone = || JournalError("the write was not run".to_owned());
        let answer = outcome.and_then(|()| value.ok_or_else(gone));
        // The waiter may have been cancelled; the write stands all the same.
        let _ = waiter.send(answer);
    }
}

pub(super) struct Writer {
    options: Options,
    health: watch::Sender<Health>,
    open: Option<Open>,
    tried: Option<Instant>,
}

struct Open {
    conn: Connection,
    incarnation: i64,
    inherited: i64,
    /// Held as long as this process lives; the system lets go of it at any kind of end.
    _lock: File,
}

impl Writer {
    pub(super) fn new(options: Options, health: watch::Sender<Health>) -> Self {
        Self {
            options,
            health,
            open: None,
            tried: None,
        }
    }

    /// Runs until the last handle is gone.
    pub(super) fn run(mut self, jobs: &Receiver<Box<dyn Job>>) {
        self.ensure_open();
        while let Ok(first) = jobs.recv() {
            let mut group = vec![first];
            group.extend(jobs.try_iter().take(GROUP - 1));
            let outcome = self.commit(&mut group);
            let health = match &outcome {
                Ok(()) => Health::Good,
                Err(error) => Health::Failed(error.0.clone()),
            };
            self.health.send_if_modified(|now| {
                let changed = *now != health;
                *now = health;
                changed
            });
            for job in group {
                job.answer(outcome.clone());
            }
        }
        if let Some(open) = self.open {
            // Best effort: the next start recovers from the WAL just as well.
            let _ = open.conn.close();
        }
    }

    fn commit(&mut self, group: &mut [Box<dyn Job>]) -> Result<(), JournalError> {
        self.ensure_open();
        let Some(open) = &mut self.open else {
            return Err(match &*self.health.borrow() {
                Health::Failed(reason) => JournalError(reason.clone()),
                _ => JournalError("not open".to_owned()),
            });
        };
        let transaction = open
            .conn
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(failed)?;
        let owner: i64 = transaction
            .prepare_cached("SELECT incarnation FROM meta")
            .and_then(|mut s| s.query_row([], |r| r.get(0)))
            .map_err(failed)?;
        if owner != open.incarnation {
            return Err(JournalError("another engine owns this journal now".to_owned()));
        }
        let tx = Tx {
            conn: &transaction,
            incarnation: open.incarnation,
            inherited: open.inherited,
        };
        for job in group.iter_mut() {
            job.run(&tx).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }

    /// Opens the file; while that fails it is tried again at most once a second.
    fn ensure_open(&mut self) {
        let recent = self.tried.is_some_and(|at| at.elapsed() < Duration::from_secs(1));
        if self.open.is_some() || recent {
            return;
        }
        self.tried = Some(Instant::now());
        match open(&self.options) {
            Ok(open) => {
                self.open = Some(open);
                self.health.send_replace(Health::Good);
            }
            Err(reason) => {
                tracing::error!(reason, "the journal does not open");
                self.health.send_replace(Health::Failed(reason));
            }
        }
    }
}

fn failed(error: rusqlite::Error) -> JournalError {
    JournalError(error.to_string())
}

fn open(options: &Options) -> Result<Open, String> {
    let at = |e: std::io::Error| format!("{}: {e}", options.folder.display());
    // Conversations are for their owner alone, whatever the folder's own mode is.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&options.folder)
        .map_err(at)?;
    private(&options.file()).map_err(at)?;
    let lock = lock(&options.folder.join("engine.lock")).map_err(at)?;
    let conn = schema::open_writer(&options.file(), options.full_sync).map_err(|e| e.to_string())?;
    let incarnation = conn
        .query_row(
            "UPDATE meta SET incarnation = incarnation + 1 RETURNING incarnation",
            [],
            |r| r.get(0),
        )
        .map_err(|e| e.to_string())?;
    let inherited = conn
        .query_row("SELECT coalesce(max(id), 0) FROM tasks", [], |r| r.get(0))
        .map_err(|e| e.to_string())?;
    if let Some(pages) = options.max_pages {
        conn.pragma_update(None, "max_page_count", pages)
            .map_err(|e| e.to_string())?;
    }
    Ok(Open {
        conn,
        incarnation,
        inherited,
        _lock: lock,
    })
}

/// The file, created where it is not there, for its owner alone. SQLite gives the files beside it the same mode.
fn private(path: &std::path::Path) -> std::io::Result<File> {
    let file = File::options().create(true).append(true).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

fn lock(path: &std::path::Path) -> std::io::Result<File> {
    let file = private(path)?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if began.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(std::io::Error::other("another engine uses this state folder"));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}
