//! The journal's tables, and how its file is opened.

use rusqlite::{Connection, OpenFlags};
use std::path::Path;

/// Raised when a table changes, with a step below; an older engine refuses a newer file.
const VERSION: i64 = 3;

/// States are small integers so that a partial index holds the open ones alone: see `rows`.
const TABLES: &str = "
CREATE TABLE meta (
  id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL,
  incarnation INTEGER NOT NULL, run_sequence INTEGER NOT NULL);
INSERT INTO meta VALUES (1, 3, 0, 0);
CREATE TABLE revisions (digest TEXT PRIMARY KEY, bundle TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE subjects (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE sessions (
  id INTEGER PRIMARY KEY, subject INTEGER NOT NULL REFERENCES subjects(id),
  context TEXT NOT NULL, created_ms INTEGER NOT NULL, UNIQUE (subject, context));
CREATE TABLE tasks (
  id INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE,
  session INTEGER NOT NULL REFERENCES sessions(id),
  state INTEGER NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
  revision TEXT NOT NULL, incarnation INTEGER NOT NULL,
  created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
  counters TEXT NOT NULL, origin TEXT NOT NULL);
CREATE INDEX tasks_by_session ON tasks (session, id);
CREATE INDEX tasks_open ON tasks (session) WHERE state < 3;
CREATE TABLE messages (
  id INTEGER PRIMARY KEY, session INTEGER NOT NULL, task INTEGER NOT NULL REFERENCES tasks(id),
  kind INTEGER NOT NULL, body TEXT NOT NULL);
CREATE INDEX messages_by_session ON messages (session, id);
CREATE TABLE message_ids (
  subject INTEGER NOT NULL, message_id TEXT NOT NULL, task INTEGER NOT NULL,
  PRIMARY KEY (subject, message_id)) WITHOUT ROWID;
CREATE INDEX message_ids_by_task ON message_ids (task);
CREATE TABLE steps (
  id INTEGER PRIMARY KEY, task INTEGER NOT NULL REFERENCES tasks(id), message INTEGER,
  kind INTEGER NOT NULL, state INTEGER NOT NULL, server TEXT NOT NULL, tool TEXT NOT NULL,
  result TEXT);
CREATE INDEX steps_by_task ON steps (task, id);
CREATE TABLE approvals (
  uid TEXT PRIMARY KEY, task INTEGER NOT NULL REFERENCES tasks(id), step INTEGER NOT NULL,
  kind INTEGER NOT NULL, digest TEXT NOT NULL, expires_ms INTEGER NOT NULL,
  decision INTEGER, reason TEXT NOT NULL, decided_by TEXT NOT NULL, decided_ms INTEGER,
  change TEXT NOT NULL DEFAULT '') WITHOUT ROWID;
CREATE INDEX approvals_by_task ON approvals (task);
CREATE TABLE outbox (sequence INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE pins (
  server TEXT NOT NULL, tool TEXT NOT NULL, digest TEXT NOT NULL,
  PRIMARY KEY (server, tool)) WITHOUT ROWID;
CREATE TABLE tokens (issued INTEGER NOT NULL, id BLOB NOT NULL, PRIMARY KEY (issued, id)) WITHOUT ROWID;
CREATE TABLE results (
  session INTEGER NOT NULL, reference TEXT NOT NULL, at INTEGER NOT NULL, bytes INTEGER NOT NULL,
  task INTEGER NOT NULL REFERENCES tasks(id), text TEXT NOT NULL, PRIMARY KEY (session, reference, at));
CREATE INDEX results_by_task ON results (task);
";

/// What brings a file from the version at the place in the list, counted from 1, to the next.
const STEPS: [&str; 2] = [
    "
ALTER TABLE approvals ADD COLUMN change TEXT NOT NULL DEFAULT '';
CREATE TABLE tokens (issued INTEGER NOT NULL, id BLOB NOT NULL, PRIMARY KEY (issued, id)) WITHOUT ROWID;
",
    "
CREATE TABLE results (
  session INTEGER NOT NULL, reference TEXT NOT NULL, at INTEGER NOT NULL, bytes INTEGER NOT NULL,
  task INTEGER NOT NULL REFERENCES tasks(id), text TEXT NOT NULL, PRIMARY KEY (session, reference, at));
CREATE INDEX results_by_task ON results (task);
",
];

/// Why the file does not open.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("expected a journal of version {VERSION}, found {0}: use the engine that wrote it")]
    Version(i64),
}

/// Opens the file for the one writer, creating it where it is not there.
pub(super) fn open_writer(path: &Path, full_sync: bool) -> Result<Connection, OpenError> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(std::time::Duration::from_secs(2))?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", if full_sync { "FULL" } else { "NORMAL" })?;
    // What it misses is in the system's cache.
    conn.pragma_update(None, "cache_size", -256)?;
    conn.pragma_update(None, "journal_size_limit", 8 << 20)?;
    let tables: i64 = conn.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE name = 'meta'",
        [],
        |r| r.get(0),
    )?;
    if tables == 0 {
        conn.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} COMMIT;"))?;
    }
    bring_up(&conn)?;
    Ok(conn)
}

/// Brings an older file to the tables of today, a version at a time; a newer one is refused.
fn bring_up(conn: &Connection) -> Result<(), OpenError> {
    loop {
        let version: i64 = conn.query_row("SELECT version FROM meta", [], |r| r.get(0))?;
        if version == VERSION {
            return Ok(());
        }
        let step = usize::try_from(version - 1).ok().and_then(|at| STEPS.get(at));
        let step = step.ok_or(OpenError::Version(version))?;
        let next = version + 1;
        conn.execute_batch(&format!(
            "BEGIN IMMEDIATE; {step} UPDATE meta SET version = {next}; COMMIT;"
        ))?;
    }
}

/// Opens the file for reading beside the writer.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(std::time::Duration::from_secs(2))?;
    // It reads through a session once.
    conn.pragma_update(None, "cache_size", -128)?;
    Ok(conn)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables as version 1 had them, as far as later steps touch them.
    const FIRST: &str = "
CREATE TABLE meta (
  id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL,
  incarnation INTEGER NOT NULL, run_sequence INTEGER NOT NULL);
INSERT INTO meta VALUES (1, 1, 7, 3);
CREATE TABLE approvals (
  uid TEXT PRIMARY KEY, task INTEGER NOT NULL, step INTEGER NOT NULL,
  kind INTEGER NOT NULL, digest TEXT NOT NULL, expires_ms INTEGER NOT NULL,
  decision INTEGER, reason TEXT NOT NULL, decided_by TEXT NOT NULL, decided_ms INTEGER) WITHOUT ROWID;
INSERT INTO approvals VALUES ('a', 1, 2, 0, 'd', 9, NULL, '', '', NULL);
";

    fn columns(conn: &Connection, table: &str) -> Vec<String> {
        let sql = format!("SELECT name FROM pragma_table_info('{table}') ORDER BY cid");
        let mut names = conn.prepare(&sql).unwrap();
        let names = names.query_map([], |r| r.get(0)).unwrap();
        names.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn an_older_file_is_brought_up_and_keeps_what_it_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.sqlite");
        Connection::open(&path).unwrap().execute_batch(FIRST).unwrap();
        let old = open_writer(&path, false).unwrap();
        let fresh = open_writer(&folder.path().join("fresh.sqlite"), false).unwrap();
        for table in ["meta", "approvals", "tokens", "results"] {
            assert_eq!(columns(&old, table), columns(&fresh, table), "{table}");
        }
        let kept: (i64, i64, String) = old
            .query_row(
                "SELECT incarnation, version, (SELECT digest || change FROM approvals) FROM meta",
                [],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
            )
            .unwrap();
        assert_eq!(kept, (7, VERSION, "d".to_owned()));
        drop(old);
        assert!(open_writer(&path, false).is_ok());
    }

    #[test]
    fn a_newer_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.sqlite");
        let conn = open_writer(&path, false).unwrap();
        for version in [VERSION + 1, 0, -1] {
            conn.execute("UPDATE meta SET version = ?", [version]).unwrap();
            let found = open_writer(&path, false).err();
            assert!(matches!(found, Some(OpenError::Version(v)) if v == version));
        }
    }
}
