//! Whole texts of results that are longer than what the model reads at once: kept in pieces, so that reading on costs
//! what is read. They belong to a session and go with the task that they came in.

use super::{Journal, JournalError, Kept, StepResult, write};
use rusqlite::{Connection, params};

/// Bytes of one piece, at most.
const PIECE: usize = 64 * 1024;

/// A text to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    pub session: i64,
    pub task: i64,
    pub reference: String,
    pub text: String,
}

/// A part of a kept text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where `text` begins, in bytes.
    pub at: usize,
    pub text: String,
    /// Bytes of the whole.
    pub total: usize,
}

impl Journal {
    /// A call has its result, of which only the beginning is in `result`.
    ///
    /// # Errors
    /// As every write.
    pub fn tool_done_whole(&self, step: i64, result: &StepResult, whole: Whole) -> Kept<()> {
        let result = write::json(result);
        self.write(move |tx| {
            keep(tx.conn, &whole)?;
            write::end_tool(tx.conn, step, &result)
        })
    }

    /// The pieces of a session's text that hold the bytes from `offset` on, at least `length` of them where there are
    /// so many; `None` where the session has no such text, whoever else may have one.
    ///
    /// # Errors
    /// As every read.
    pub async fn kept_result(
        &self,
        session: i64,
        reference: String,
        offset: usize,
        length: usize,
    ) -> Result<Option<Part>, JournalError> {
        self.read(move |conn| part(conn, session, &reference, offset, length))
            .await
    }

    /// Bytes that a task keeps so.
    ///
    /// # Errors
    /// As every read.
    pub async fn kept_bytes(&self, task: i64) -> Result<u64, JournalError> {
        self.read(move |conn| {
            let sql = "SELECT coalesce(sum(bytes), 0) FROM results WHERE task = ?";
            let sum: i64 = conn.query_row(sql, [task], |r| r.get(0))?;
            Ok(u64::try_from(sum).unwrap_or(u64::MAX))
        })
        .await
    }
}

fn keep(conn: &Connection, whole: &Whole) -> rusqlite::Result<()> {
    let mut insert = conn.prepare_cached(
        "INSERT INTO results (session, reference, at, bytes, task, text) VALUES (?,?,?,?,?,?)",
    )?;
    let mut at = 0;
    while at < whole.text.len() {
        let end = whole.text.floor_char_boundary(at + PIECE);
        let text = &whole.text[at..end];
        insert.execute(params![
            whole.session,
            whole.reference,
            number(at),
            number(text.len()),
            whole.task,
            text
        ])?;
        at = end;
    }
    Ok(())
}

fn part(
    conn: &Connection,
    session: i64,
    reference: &str,
    offset: usize,
    length: usize,
) -> rusqlite::Result<Option<Part>> {
    let sql = "SELECT max(at + bytes) FROM results WHERE session = ? AND reference = ?";
    let total: Option<i64> = conn
        .prepare_cached(sql)?
        .query_row(params![session, reference], |r| r.get(0))?;
    let Some(total) = total.and_then(|total| usize::try_from(total).ok()) else {
        return Ok(None);
    };
    // A character that begins before the end may reach beyond it.
    let end = offset.saturating_add(length).saturating_add(4);
    let sql = "SELECT at, text FROM results WHERE session = ? AND reference = ? AND at < ? AND at + bytes > ?
               ORDER BY at";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(params![session, reference, number(end), number(offset)])?;
    let mut found = Part {
        at: offset,
        text: String::new(),
        total,
    };
    while let Some(row) = rows.next()? {
        if found.text.is_empty() {
            found.at = usize::try_from(row.get::<_, i64>(0)?).unwrap_or(offset);
        }
        found.text.push_str(row.get_ref(1)?.as_str()?);
    }
    Ok(Some(found))
}

fn number(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
