//! The reads. Pages, never all: a long session opens as quickly as a short one.

use super::{
    Approval, Counters, Decision, Entry, Journal, JournalError, Origin, Question, Step, StepResult,
    StepState, TaskState,
};
use crate::spent::Token;
use roadstead_contract::run::RunRecord;
use rusqlite::{Connection, OptionalExtension as _, Row, params, types::Type};
use serde::de::DeserializeOwned;

/// An open task of an earlier incarnation, ready to be gone on with.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenTask {
    pub id: i64,
    pub task: StoredTask,
    pub revision: String,
    pub origin: Origin,
    pub session: i64,
    pub approvals: Vec<Approval>,
    /// A model call was sent and has no answer: `Some` of its step.
    pub open_model: Option<i64>,
}

/// A task without its messages.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTask {
    pub uid: String,
    pub context: String,
    pub subject: String,
    pub state: TaskState,
    pub reason: String,
    pub detail: String,
    pub created_ms: i64,
    pub updated_ms: i64,
    pub counters: Counters,
}

/// Which tasks to list.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    pub subject: String,
    pub context: Option<String>,
    pub state: Option<TaskState>,
    pub updated_after_ms: Option<i64>,
    /// Tasks older than this one (exclusive).
    pub before: Option<i64>,
    pub limit: u32,
}

/// A page of tasks, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskPage {
    pub tasks: Vec<StoredTask>,
    /// [`ListFilter::before`] of the next page.
    pub next: Option<i64>,
    pub total: u32,
}

/// An entry with its tool steps, in call order.
pub(crate) type Said = (Entry, Vec<Step>);

impl Journal {
    /// The newest entries of a session up to `task` (its own included), oldest first: as many as have at most
    /// `max_bytes` together, and always those of `task` itself.
    ///
    /// # Errors
    /// As every read.
    pub(crate) async fn history(
        &self,
        session: i64,
        task: i64,
        max_bytes: usize,
    ) -> Result<Vec<Said>, JournalError> {
        self.read(move |conn| history(conn, session, task, max_bytes))
            .await
    }

    /// The entries of one task, oldest first.
    ///
    /// # Errors
    /// As every read.
    pub(crate) async fn entries(&self, uid: String) -> Result<Vec<Said>, JournalError> {
        self.read(move |conn| {
            let sql = "SELECT m.id, m.body FROM messages m JOIN tasks t ON t.id = m.task WHERE t.uid = ? ORDER BY m.id";
            let rows: Vec<(i64, String)> = conn
                .prepare_cached(sql)?
                .query_map([uid], |r| Ok((r.get(0)?, r.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            rows.into_iter().map(|(id, body)| with_steps(conn, id, &body)).collect()
        })
        .await
    }

    /// The task `uid` of `subject`; `None` for one that is not there or somebody else's.
    ///
    /// # Errors
    /// As every read.
    pub async fn task(&self, subject: String, uid: String) -> Result<Option<StoredTask>, JournalError> {
        self.read(move |conn| {
            let sql = format!("{TASK} WHERE t.uid = ? AND u.name = ?");
            conn.prepare_cached(&sql)?
                .query_row(params![uid, subject], stored)
                .optional()
        })
        .await
    }

    /// The task that a subject's message began or answered.
    ///
    /// # Errors
    /// As every read.
    pub async fn known(&self, subject: String, message_id: String) -> Result<Option<String>, JournalError> {
        self.read(move |conn| {
            let sql = "SELECT t.uid FROM message_ids m JOIN tasks t ON t.id = m.task
                       JOIN subjects u ON u.id = m.subject WHERE u.name = ? AND m.message_id = ?";
            conn.prepare_cached(sql)?
                .query_row(params![subject, message_id], |r| r.get(0))
                .optional()
        })
        .await
    }

    /// An open task with all that a turn needs to go on with it; `None` if it has ended.
    ///
    /// # Errors
    /// As every read.
    pub async fn open_task(&self, task: i64) -> Result<Option<OpenTask>, JournalError> {
        self.read(move |conn| Ok(open_tasks(conn, Some(task))?.pop()))
            .await
    }

    /// A page of a subject's tasks.
    ///
    /// # Errors
    /// As every read.
    pub async fn list(&self, filter: ListFilter) -> Result<TaskPage, JournalError> {
        self.read(move |conn| list(conn, &filter)).await
    }

    /// The bundle of a kept revision.
    ///
    /// # Errors
    /// As every read.
    pub async fn revision(&self, digest: String) -> Result<Option<String>, JournalError> {
        self.read(move |conn| {
            let sql = "SELECT bundle FROM revisions WHERE digest = ?";
            conn.query_row(sql, [digest], |r| r.get(0)).optional()
        })
        .await
    }

    /// The newest of the hub's tokens that were used and were issued after `expired`, at most `limit`.
    ///
    /// # Errors
    /// As every read.
    pub(crate) async fn spent_tokens(&self, expired: i64, limit: u32) -> Result<Vec<Token>, JournalError> {
        self.read(move |conn| {
            let sql = "SELECT issued, id FROM tokens WHERE issued > ? ORDER BY issued DESC, id LIMIT ?";
            conn.prepare(sql)?
                .query_map(params![expired, limit], |r| Ok((r.get(0)?, r.get(1)?)))?
                .collect()
        })
        .await
    }

    /// Run records after `sequence`, in order, at most `limit`.
    ///
    /// # Errors
    /// As every read.
    pub async fn runs_after(&self, sequence: u64, limit: u32) -> Result<Vec<RunRecord>, JournalError> {
        let after = i64::try_from(sequence).unwrap_or(i64::MAX);
        self.read(move |conn| {
            let sql = "SELECT record FROM outbox WHERE sequence > ? ORDER BY sequence LIMIT ?";
            conn.prepare_cached(sql)?
                .query_map(params![after, limit], |r| parse(r, 0))?
                .collect()
        })
        .await
    }
}

const TASK: &str = "SELECT t.uid, s.context, u.name, t.state, t.reason, t.detail, t.created_ms, t.updated_ms,
  t.counters, t.id, t.session, t.revision, t.origin
  FROM tasks t JOIN sessions s ON s.id = t.session JOIN subjects u ON u.id = s.subject";

fn stored(row: &Row<'_>) -> rusqlite::Result<StoredTask> {
    Ok(StoredTask {
        uid: row.get(0)?,
        context: row.get(1)?,
        subject: row.get(2)?,
        state: TaskState::from_number(row.get(3)?),
        reason: row.get(4)?,
        detail: row.get(5)?,
        created_ms: row.get(6)?,
        updated_ms: row.get(7)?,
        counters: parse(row, 8)?,
    })
}

fn parse<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    from_json(text, column)
}

fn from_json<T: DeserializeOwned>(text: &str, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

/// The open tasks, or the one of them with the row `only`.
pub(super) fn open_tasks(conn: &Connection, only: Option<i64>) -> rusqlite::Result<Vec<OpenTask>> {
    let sql = format!("{TASK} WHERE t.state < 3 AND (?1 IS NULL OR t.id = ?1) ORDER BY t.id");
    let tasks: Vec<OpenTask> = conn
        .prepare_cached(&sql)?
        .query_map([only], |row| {
            Ok(OpenTask {
                task: stored(row)?,
                id: row.get(9)?,
                session: row.get(10)?,
                revision: row.get(11)?,
                origin: parse(row, 12)?,
                approvals: Vec::new(),
                open_model: None,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let fill = |mut open: OpenTask| {
        open.approvals = approvals(conn, open.id)?;
        let sql = "SELECT id FROM steps WHERE task = ? AND kind = 1 AND state < 2 ORDER BY id DESC LIMIT 1";
        open.open_model = conn
            .prepare_cached(sql)?
            .query_row([open.id], |r| r.get(0))
            .optional()?;
        Ok(open)
    };
    tasks.into_iter().map(fill).collect()
}

pub(super) fn approvals(conn: &Connection, task: i64) -> rusqlite::Result<Vec<Approval>> {
    let sql =
        "SELECT uid, step, kind, digest, expires_ms, decision, reason, decided_by, change FROM approvals
               WHERE task = ? ORDER BY step, uid";
    conn.prepare_cached(sql)?
        .query_map([task], |r| {
            Ok(Approval {
                uid: r.get(0)?,
                step: r.get(1)?,
                question: Question::from_number(r.get(2)?),
                digest: r.get(3)?,
                expires_ms: r.get(4)?,
                decision: r.get::<_, Option<i64>>(5)?.map(Decision::from_number),
                reason: r.get(6)?,
                decided_by: r.get(7)?,
                change: match r.get_ref(8)?.as_str()? {
                    "" => None,
                    change => Some(from_json(change, 8)?),
                },
            })
        })?
        .collect()
}

fn with_steps(conn: &Connection, message: i64, body: &str) -> rusqlite::Result<Said> {
    let entry: Entry = from_json(body, 1)?;
    let calls = matches!(&entry, Entry::Assistant { tool_calls, .. } if !tool_calls.is_empty());
    let steps = if calls { steps(conn, message)? } else { Vec::new() };
    Ok((entry, steps))
}

fn steps(conn: &Connection, message: i64) -> rusqlite::Result<Vec<Step>> {
    // `steps_by_task` is the index there is; the task comes from the message.
    let sql = "SELECT s.id, s.server, s.tool, s.state, s.result FROM messages m
               JOIN steps s ON s.task = m.task AND s.message = m.id WHERE m.id = ? ORDER BY s.id";
    conn.prepare_cached(sql)?
        .query_map([message], |r| {
            let result: Option<String> = r.get(4)?;
            let result = result.map(|text| from_json::<StepResult>(&text, 4)).transpose()?;
            Ok(Step {
                id: r.get(0)?,
                server: r.get(1)?,
                tool: r.get(2)?,
                state: StepState::from_number(r.get(3)?),
                result,
            })
        })?
        .collect()
}

fn history(conn: &Connection, session: i64, task: i64, max_bytes: usize) -> rusqlite::Result<Vec<Said>> {
    let sql = "SELECT id, task, body FROM messages WHERE session = ? AND task <= ? ORDER BY id DESC";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(params![session, task])?;
    let (mut found, mut bytes) = (Vec::new(), 0usize);
    while let Some(row) = rows.next()? {
        let (id, of): (i64, i64) = (row.get(0)?, row.get(1)?);
        let body = row.get_ref(2)?.as_str()?;
        bytes = bytes.saturating_add(body.len());
        if of != task && bytes > max_bytes {
            break;
        }
        let said = with_steps(conn, id, body)?;
        bytes = bytes.saturating_add(
            said.1
                .iter()
                .filter_map(|s| s.result.as_ref())
                .map(|r| r.text.len())
                .sum(),
        );
        found.push(said);
    }
    found.reverse();
    // A conversation begins with a person: what stands before the first of their messages has lost its question.
    let first = found
        .iter()
        .position(|(entry, _)| matches!(entry, Entry::User { .. }))
        .unwrap_or(0);
    Ok(found.split_off(first))
}

fn list(conn: &Connection, f: &ListFilter) -> rusqlite::Result<TaskPage> {
    let filter = "WHERE u.name = ?1 AND (?2 IS NULL OR s.context = ?2) AND (?3 IS NULL OR t.state = ?3)
                  AND (?4 IS NULL OR t.updated_ms > ?4)";
    let state = f.state.map(TaskState::number);
    let count = format!(
        "SELECT count(*) FROM tasks t JOIN sessions s ON s.id = t.session JOIN subjects u ON u.id = s.subject {filter}"
    );
    let total = conn
        .prepare_cached(&count)?
        .query_row(params![f.subject, f.context, state, f.updated_after_ms], |r| {
            r.get(0)
        })?;
    let page = format!("{TASK} {filter} AND (?5 IS NULL OR t.id < ?5) ORDER BY t.id DESC LIMIT ?6");
    let one_more = i64::from(f.limit) + 1;
    let mut rows: Vec<(i64, StoredTask)> = conn
        .prepare_cached(&page)?
        .query_map(
            params![
                f.subject,
                f.context,
                state,
                f.updated_after_ms,
                f.before,
                one_more
            ],
            |r| Ok((r.get(9)?, stored(r)?)),
        )?
        .collect::<rusqlite::Result<_>>()?;
    let limit = f.limit as usize;
    let next = (rows.len() > limit).then(|| rows[limit - 1].0);
    rows.truncate(limit);
    Ok(TaskPage {
        tasks: rows.into_iter().map(|(_, task)| task).collect(),
        next,
        total,
    })
}
