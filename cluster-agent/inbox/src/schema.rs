//! The file: its tables, its settings and its version.

use crate::{InboxError, commands::conclude_interrupted};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _};
use std::path::Path;

/// Kept in `user_version`.
const VERSION: i64 = 3;

const TABLES: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
  uid TEXT PRIMARY KEY,
  -- What the hub sent last, taken or refused.
  generation INTEGER NOT NULL,
  digest BLOB NOT NULL,
  -- What runs: the last that was taken; NULL where nothing was.
  good_generation INTEGER,
  good_digest BLOB,
  kind TEXT NOT NULL,
  project TEXT NOT NULL,
  name TEXT NOT NULL,
  json BLOB
);
-- Deleted documents. A document may come back to this cluster, but only by a later revision.
CREATE TABLE tombstones (uid TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX tombstones_by_revision ON tombstones (revision);
CREATE TABLE runs (position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, json BLOB NOT NULL);
";

/// Since version 2.
const REFUSED_RUNS: &str = "
CREATE TABLE refused_runs (position INTEGER PRIMARY KEY, id TEXT NOT NULL, json BLOB NOT NULL, reason TEXT NOT NULL);
";

/// Since version 3.
const COMMANDS: &str = "
CREATE TABLE commands (
  id TEXT NOT NULL UNIQUE,
  expires_ms INTEGER NOT NULL,
  -- JSON.
  act TEXT NOT NULL,
  -- Of its result; NULL while it is done.
  code INTEGER,
  detail TEXT NOT NULL,
  acknowledged INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX commands_open ON commands (acknowledged, expires_ms);
";

/// Opens or makes the file. One process at a time: the lock is held until the connection closes.
pub(crate) fn open(path: &Path) -> Result<Connection, InboxError> {
    for_this_user_alone(path)?;
    let mut connection = Connection::open(path)?;
    prepare(&mut connection).map_err(|error| match error {
        InboxError::Storage(rusqlite::Error::SqliteFailure(failure, _))
            if matches!(failure.code, ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) =>
        {
            InboxError::InUse
        }
        other => other,
    })?;
    Ok(connection)
}

/// One without a file.
pub(crate) fn in_memory() -> Result<Connection, InboxError> {
    let mut connection = Connection::open_in_memory()?;
    prepare(&mut connection)?;
    Ok(connection)
}

/// Documents are nobody else's to read, whatever the umask says. SQLite gives its other files the mode of this one.
fn for_this_user_alone(path: &Path) -> Result<(), InboxError> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let mut options = std::fs::OpenOptions::new();
    let file = options.create(true).append(true).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    Ok(())
}

fn prepare(connection: &mut Connection) -> Result<(), InboxError> {
    connection.busy_timeout(std::time::Duration::ZERO)?;
    // EXCLUSIVE keeps the lock and spares the shared-memory file; the cache is small because documents are read whole.
    connection.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         PRAGMA cache_size = -256; PRAGMA journal_size_limit = 1048576;",
    )?;
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match found {
        0 => {
            transaction.execute_batch(TABLES)?;
            transaction.execute_batch(REFUSED_RUNS)?;
            transaction.execute_batch(COMMANDS)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            transaction.execute(
                "INSERT INTO meta (key, value) VALUES ('incarnation', lower(hex(randomblob(16)))), ('cursor', '0')",
                [],
            )?;
        }
        1 | 2 => {
            if found == 1 {
                transaction.execute_batch(REFUSED_RUNS)?;
            }
            transaction.execute_batch(COMMANDS)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        VERSION => {}
        _ => {
            return Err(InboxError::Version {
                found,
                known: VERSION,
            });
        }
    }
    conclude_interrupted(&transaction)?;
    transaction.commit()?;
    Ok(())
}

pub(crate) fn meta(connection: &Connection, key: &str) -> Result<Option<String>, rusqlite::Error> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}

pub(crate) fn set_meta(connection: &Connection, key: &str, value: &str) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached(
            "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
        )?
        .execute([key, value])?;
    Ok(())
}

pub(crate) fn clear_meta(connection: &Connection, key: &str) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached("DELETE FROM meta WHERE key = ?1")?
        .execute([key])?;
    Ok(())
}
