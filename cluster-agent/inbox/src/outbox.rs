//! Run records on their way to the hub: appended when an engine hands them over, deleted when the hub has them.

use crate::{
    InboxError,
    core::{Core, number, signed},
};
use roadstead_contract::run::RunRecord;

/// Bytes of records that one read gives: with the ids well inside a frame.
const READ_BYTES: usize = 128 * 1024;

/// A run record that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRun {
    /// Its place in the outbox: ascending, never used twice.
    pub position: u64,
    pub id: String,
    /// [`RunRecord`] as JSON.
    pub json: Vec<u8>,
}

impl Core {
    pub(crate) fn append_runs(&mut self, records: &[RunRecord]) -> Result<(), InboxError> {
        let transaction = self.connection.transaction()?;
        let mut last = None;
        {
            let mut insert =
                transaction.prepare_cached("INSERT OR IGNORE INTO runs (id, json) VALUES (?1, ?2)")?;
            for record in records {
                let json = serde_json::to_vec(record)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
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
            let run = PendingRun {
                position: number(row, 0)?,
                id: row.get(1)?,
                json: row.get(2)?,
            };
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
}
