//! Run records on their way to the hub: appended when an engine hands them over, deleted when the hub has them.

use crate::{
    InboxError,
    core::{Core, number, signed},
};
use roadstead_contract::run::RunRecord;

/// Bytes of records that one read gives: with the ids well inside a frame.
const READ_BYTES: usize = 128 * 1024;
/// Bytes of one record. Names of tools and servers come from outside: a record that no frame could carry would be sent
/// first in every session and end each of them.
const RECORD_BYTES: usize = 64 * 1024;
/// What is kept of a text of a record that is too large, in characters.
const CUT: usize = 256;
/// Records that the hub refused and that are kept for a person; beyond it the oldest go.
const ASIDE: i64 = 10_000;

/// A run record that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRun {
    /// Its place in the outbox: ascending, never used twice.
    pub position: u64,
    pub id: String,
    /// [`RunRecord`] as JSON.
    pub json: Vec<u8>,
}

/// A run record that the hub will never take: kept here for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedRun {
    pub id: String,
    /// [`RunRecord`] as JSON.
    pub json: Vec<u8>,
    /// The hub's words.
    pub reason: String,
}

impl Core {
    pub(crate) fn append_runs(&mut self, records: &[RunRecord]) -> Result<(), InboxError> {
        let transaction = self.connection.transaction()?;
        let mut last = None;
        {
            let mut insert =
                transaction.prepare_cached("INSERT OR IGNORE INTO runs (id, json) VALUES (?1, ?2)")?;
            for record in records {
                let json = fitting(record)?;
                if insert.execute((&record.id, json))? > 0 {
                    last = Some(transaction.last_insert_rowid().unsigned_abs());
                }
            }
        }
        transaction.commit()?;
        if let Some(last) = last {
            self.runs.send_replace(last);
        }
        Ok(())
    }

    pub(crate) fn pending_runs(&self, after: u64, limit: usize) -> Result<Vec<PendingRun>, InboxError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT position, id, json FROM runs WHERE position > ?1 ORDER BY position LIMIT ?2",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement.query((signed(after), limit))?;
        let mut pending = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let mut run = PendingRun {
                position: number(row, 0)?,
                id: row.get(1)?,
                json: row.get(2)?,
            };
            if run.json.len() > RECORD_BYTES
                && let Ok(record) = serde_json::from_slice(&run.json)
            {
                run.json = fitting(&record)?;
            }
            bytes += run.json.len() + run.id.len();
            if bytes > READ_BYTES && !pending.is_empty() {
                break;
            }
            pending.push(run);
        }
        Ok(pending)
    }

    pub(crate) fn forget_runs(&mut self, ids: &[String]) -> Result<(), InboxError> {
        let transaction = self.connection.transaction()?;
        {
            let mut delete = transaction.prepare_cached("DELETE FROM runs WHERE id = ?1")?;
            for id in ids {
                delete.execute([id])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    pub(crate) fn set_runs_aside(&mut self, refused: &[(String, String)]) -> Result<(), InboxError> {
        let transaction = self.connection.transaction()?;
        {
            let mut keep = transaction.prepare_cached(
                "INSERT OR REPLACE INTO refused_runs (position, id, json, reason)
                 SELECT position, id, json, ?2 FROM runs WHERE id = ?1",
            )?;
            let mut delete = transaction.prepare_cached("DELETE FROM runs WHERE id = ?1")?;
            for (id, reason) in refused {
                keep.execute([id, reason])?;
                delete.execute([id])?;
            }
            transaction
                .prepare_cached(
                    "DELETE FROM refused_runs WHERE position <=
                     (SELECT position FROM refused_runs ORDER BY position DESC LIMIT 1 OFFSET ?1)",
                )?
                .execute([ASIDE])?;
        }
        transaction.commit()?;
        Ok(())
    }

    pub(crate) fn refused_runs(&self) -> Result<Vec<RefusedRun>, InboxError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id, json, reason FROM refused_runs ORDER BY position")?;
        let rows = statement.query_map([], |row| {
            Ok(RefusedRun {
                id: row.get(0)?,
                json: row.get(1)?,
                reason: row.get(2)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// The record as JSON, without what makes it too large.
fn fitting(record: &RunRecord) -> Result<Vec<u8>, rusqlite::Error> {
    let write = |record: &RunRecord| {
        serde_json::to_vec(record).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    };
    let json = write(record)?;
    if json.len() <= RECORD_BYTES {
        return Ok(json);
    }
    let cut = |text: &str| text.chars().take(CUT).collect();
    write(&RunRecord {
        reason: cut(&record.reason),
        subject: cut(&record.subject),
        model: cut(&record.model),
        tools: std::collections::BTreeMap::new(),
        ..record.clone()
    })
}
