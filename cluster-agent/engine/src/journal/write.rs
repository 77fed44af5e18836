//! The writes: each is one thought of the turn loop, small enough to share a transaction with hundreds of others.

use super::{
    Approval, Change, Counters, Decision, Entry, Journal, JournalError, Kept, NewStep, Origin, StepResult,
    StepState, TaskState, Tx, read,
};
use crate::spent::Token;
use roadstead_contract::run::RunRecord;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Serialize;

/// Pages of 4 KiB that are given back at once: 64 MiB.
const VACUUM_PAGES: u32 = 16 * 1024;

const MODEL: i64 = 1;
const TOOL: i64 = 2;

/// A new task with its first message and first model call.
#[derive(Clone, Debug)]
pub struct Begin {
    pub subject: String,
    /// The session that the caller named; `None` begins one called `new_context`.
    pub context: Option<String>,
    pub new_context: String,
    pub message_id: String,
    pub task_uid: String,
    pub entry: Entry,
    /// Digest of the revision that the task runs on to its end.
    pub revision: String,
    pub origin: Origin,
    pub now_ms: i64,
}

/// What became of a [`Begin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    New {
        task: i64,
        session: i64,
        context: String,
        /// The model call that is written down as sent.
        step: i64,
        /// The session has earlier messages.
        earlier: bool,
    },
    /// This message came before and began (or answered) this task.
    Known { task: String },
    /// Another task of this session is open.
    Busy { task: String, state: TaskState },
}

/// An answer of the model that asks for tools, or is gone on from.
#[derive(Clone, Debug)]
pub struct ModelDone {
    pub task: i64,
    pub session: i64,
    pub step: i64,
    pub entry: Entry,
    pub calls: Vec<NewStep>,
    pub counters: Counters,
}

/// The ids of what [`Journal::model_done`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub message: i64,
    /// One for each call, in call order.
    pub steps: Vec<i64>,
}

/// A decision that a task is going to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewApproval {
    pub uid: String,
    pub step: i64,
    pub question: super::Question,
    pub digest: String,
    pub change: Option<Change>,
    pub expires_ms: i64,
}

/// The end of a task.
#[derive(Clone, Debug)]
pub struct Finish {
    pub task: i64,
    pub session: i64,
    pub state: TaskState,
    /// Short code; empty when completed.
    pub reason: String,
    /// For people.
    pub detail: String,
    pub entry: Option<Entry>,
    /// The model call that ended with the task.
    pub step: Option<i64>,
    pub counters: Counters,
    /// Its `sequence` is given by the journal; `None` where nobody collects run records.
    pub record: Option<RunRecord>,
    pub now_ms: i64,
}

/// A person's answer to an approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decide {
    pub uid: String,
    /// Must be the approval's own: the answer binds to what was asked.
    pub digest: String,
    pub decision: Decision,
    pub reason: String,
    /// A yes that does not say to what: good for the first question of a task, where it can mean no other.
    pub bare: bool,
}

/// What became of answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decided {
    /// All were taken; so many approvals of the task are still open.
    Taken { open: u32 },
    /// One of them is not open (unknown, answered before) or was asked about something else. None was taken.
    Refused { uid: String, why: &'static str },
    /// This message came before.
    Known,
    /// The task waits for nothing: it works, or it has ended meanwhile.
    NotWaiting,
}

impl Journal {
    /// Writes a new task down, unless its message is known or its session busy.
    ///
    /// # Errors
    /// As every write: nothing was kept.
    pub fn begin(&self, begin: Begin) -> Kept<Begun> {
        self.write(move |tx| begin_task(tx, &begin))
    }

    /// Writes the next model call down as sent, with a note to the model where there is one.
    ///
    /// # Errors
    /// As every write.
    pub fn next_model(&self, task: i64, session: i64, note: Option<Entry>, counters: Counters) -> Kept<i64> {
        self.write(move |tx| {
            if let Some(note) = &note {
                add_message(tx.conn, session, task, note)?;
            }
            set_counters(tx.conn, task, &counters)?;
            add_model_step(tx.conn, task)
        })
    }

    /// Completes a model call with what it said and the tool calls that follow from it.
    ///
    /// # Errors
    /// As every write.
    pub fn model_done(&self, done: ModelDone) -> Kept<Written> {
        self.write(move |tx| {
            let message = add_message(tx.conn, done.session, done.task, &done.entry)?;
            end_step(tx.conn, done.step)?;
            set_counters(tx.conn, done.task, &done.counters)?;
            let mut insert = tx.conn.prepare_cached(
                "INSERT INTO steps (task, message, kind, state, server, tool, result) VALUES (?,?,?,?,?,?,?)",
            )?;
            let mut steps = Vec::with_capacity(done.calls.len());
            for call in &done.calls {
                let result = call.result.as_ref().map(json);
                let state = call.state.number();
                steps.push(insert.insert(params![
                    done.task,
                    message,
                    TOOL,
                    state,
                    call.server,
                    call.tool,
                    result
                ])?);
            }
            Ok(Written { message, steps })
        })
    }

    /// A planned call is about to be sent.
    ///
    /// # Errors
    /// As every write: then it must not be sent.
    pub fn tool_sent(&self, step: i64) -> Kept<()> {
        self.write(move |tx| {
            let mut update = tx
                .conn
                .prepare_cached("UPDATE steps SET state = ? WHERE id = ?")?;
            update.execute(params![StepState::Sent.number(), step]).map(drop)
        })
    }

    /// A call has its result.
    ///
    /// # Errors
    /// As every write.
    pub fn tool_done(&self, step: i64, result: &StepResult) -> Kept<()> {
        let result = json(result);
        self.write(move |tx| end_tool(tx.conn, step, &result))
    }

    /// The task waits for a person.
    ///
    /// # Errors
    /// As every write.
    pub fn pause(
        &self,
        task: i64,
        approvals: Vec<NewApproval>,
        detail: String,
        counters: Counters,
        now_ms: i64,
    ) -> Kept<()> {
        self.write(move |tx| {
            let mut insert = tx.conn.prepare_cached(
                "INSERT INTO approvals (uid, task, step, kind, digest, expires_ms, reason, decided_by, change)
                 VALUES (?,?,?,?,?,?,'','',?)",
            )?;
            let mut void = tx
                .conn
                .prepare_cached("UPDATE approvals SET decision = ? WHERE task = ? AND step = ?")?;
            for a in &approvals {
                // What was said to an earlier question about this call counts no more.
                void.execute(params![Decision::Void as i64, task, a.step])?;
                insert.execute(params![
                    a.uid,
                    task,
                    a.step,
                    a.question as i64,
                    a.digest,
                    a.expires_ms,
                    a.change.as_ref().map(json).unwrap_or_default()
                ])?;
            }
            set_counters(tx.conn, task, &counters)?;
            set_state(tx.conn, task, TaskState::InputRequired, "", &detail, now_ms)
        })
    }

    /// Takes a message that answers approvals of a task: all of them or none. With the last one the task works again.
    ///
    /// # Errors
    /// As every write.
    pub fn decide(
        &self,
        (task, session): (i64, i64),
        subject: String,
        message: Option<(String, Entry)>,
        answers: Vec<Decide>,
        now_ms: i64,
    ) -> Kept<Decided> {
        self.write(move |tx| {
            let subject_id = subject_id(tx.conn, &subject)?;
            if let Some((id, _)) = &message
                && known_message(tx.conn, subject_id, id)?.is_some()
            {
                return Ok(Decided::Known);
            }
            // A cancel that was written first stands: a late yes must not bring the task back.
            if state_of(tx.conn, task)? != Some(TaskState::InputRequired) {
                return Ok(Decided::NotWaiting);
            }
            let approvals = read::approvals(tx.conn, task)?;
            for answer in &answers {
                if let Some(why) = refusal(&approvals, answer) {
                    return Ok(Decided::Refused {
                        uid: answer.uid.clone(),
                        why,
                    });
                }
            }
            for answer in &answers {
                record_decision(tx.conn, answer, &subject, now_ms)?;
            }
            if let Some((id, entry)) = &message {
                add_message(tx.conn, session, task, entry)?;
                add_message_id(tx.conn, subject_id, id, task)?;
            }
            let before = approvals.iter().filter(|a| a.decision.is_none()).count();
            let open = u32::try_from(before.saturating_sub(answers.len())).unwrap_or(u32::MAX);
            if open == 0 {
                set_state(tx.conn, task, TaskState::Working, "", "", now_ms)?;
            }
            Ok(Decided::Taken { open })
        })
    }

    /// Ends a task; its run record goes to the outbox in the same transaction. Answers the record's sequence; one that
    /// has ended already stays as it is.
    ///
    /// # Errors
    /// As every write: the task has not ended.
    pub fn finish(&self, finish: Finish) -> Kept<Option<u64>> {
        self.write(move |tx| {
            let f = &finish;
            if state_of(tx.conn, f.task)?.is_none_or(TaskState::is_terminal) {
                return Ok(None);
            }
            if let Some(entry) = &f.entry {
                add_message(tx.conn, f.session, f.task, entry)?;
            }
            if let Some(step) = f.step {
                end_step(tx.conn, step)?;
            }
            set_counters(tx.conn, f.task, &f.counters)?;
            set_state(tx.conn, f.task, f.state, &f.reason, &f.detail, f.now_ms)?;
            f.record
                .as_ref()
                .map(|record| add_record(tx.conn, record))
                .transpose()
        })
    }

    /// Keeps a revision's bundle for the tasks that begin on it.
    ///
    /// # Errors
    /// As every write.
    pub fn keep_revision(&self, digest: String, bundle: String) -> Kept<()> {
        self.write(move |tx| {
            let sql = "INSERT OR IGNORE INTO revisions VALUES (?,?)";
            tx.conn.execute(sql, params![digest, bundle])?;
            let unused = "DELETE FROM revisions WHERE digest <> ? AND digest NOT IN
                          (SELECT revision FROM tasks WHERE state < 3)";
            tx.conn.execute(unused, params![digest]).map(drop)
        })
    }

    /// Takes over the open tasks of dead incarnations, oldest first. What began in this one is not among them: it runs.
    ///
    /// # Errors
    /// As every write.
    pub async fn claim(&self) -> Result<Vec<super::OpenTask>, JournalError> {
        self.write(|tx| {
            let sql = "UPDATE tasks SET incarnation = ? WHERE state < 3 AND id <= ?";
            tx.conn.execute(sql, params![tx.incarnation, tx.inherited])?;
            let mut open = read::open_tasks(tx.conn, None)?;
            open.retain(|task| task.id <= tx.inherited);
            Ok(open)
        })
        .await
    }

    /// Every open task, those of this incarnation too.
    #[cfg(test)]
    pub async fn every_open_task(&self) -> Result<Vec<super::OpenTask>, JournalError> {
        self.write(|tx| read::open_tasks(tx.conn, None)).await
    }

    /// Everything up to `sequence` is kept elsewhere.
    ///
    /// # Errors
    /// As every write.
    pub async fn runs_kept(&self, sequence: u64) -> Result<(), JournalError> {
        let upto = i64::try_from(sequence).unwrap_or(i64::MAX);
        self.write(move |tx| {
            tx.conn
                .execute("DELETE FROM outbox WHERE sequence <= ?", [upto])
                .map(drop)
        })
        .await
    }

    /// What a tool's description and schema are held to: keeps `digest` where the tool has none yet (or `replace`),
    /// and answers the one that counts.
    ///
    /// # Errors
    /// As every write.
    pub async fn pin(
        &self,
        server: String,
        tool: String,
        digest: String,
        replace: bool,
    ) -> Result<String, JournalError> {
        self.write(move |tx| {
            let verb = if replace { "REPLACE" } else { "IGNORE" };
            let sql = format!("INSERT OR {verb} INTO pins VALUES (?,?,?)");
            tx.conn.execute(&sql, params![server, tool, digest])?;
            let sql = "SELECT digest FROM pins WHERE server = ? AND tool = ?";
            tx.conn.query_row(sql, params![server, tool], |r| r.get(0))
        })
        .await
    }

    /// A token of the hub was used. Those issued up to `expired` are forgotten.
    ///
    /// # Errors
    /// As every write.
    pub(crate) fn spend_token(&self, token: Token, expired: i64) -> Kept<()> {
        self.write(move |tx| {
            tx.conn
                .prepare_cached("DELETE FROM tokens WHERE issued <= ?")?
                .execute([expired])?;
            tx.conn
                .prepare_cached("INSERT OR IGNORE INTO tokens VALUES (?,?)")?
                .execute(params![token.0, token.1])
                .map(drop)
        })
    }

    /// Forgets tasks that ended before `before_ms`, with their messages, and gives pages back to the system.
    ///
    /// # Errors
    /// As every write.
    pub async fn retire(&self, before_ms: i64) -> Result<usize, JournalError> {
        self.write(move |tx| retire(tx.conn, before_ms)).await
    }

    /// Writes something that changes nothing: whether the disk takes writes again.
    ///
    /// # Errors
    /// As every write.
    pub async fn probe(&self) -> Result<(), JournalError> {
        self.write(|tx| tx.conn.execute("UPDATE meta SET version = version", []).map(drop))
            .await
    }

    /// The number of this process among those that owned the journal.
    ///
    /// # Errors
    /// As every write.
    pub async fn incarnation(&self) -> Result<i64, JournalError> {
        self.write(|tx| Ok(tx.incarnation)).await
    }
}

/// Our own types always serialise: they have string keys only.
pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn begin_task(tx: &Tx<'_>, b: &Begin) -> rusqlite::Result<Begun> {
    let conn = tx.conn;
    let subject = subject_id(conn, &b.subject)?;
    if let Some(task) = known_message(conn, subject, &b.message_id)? {
        return Ok(Begun::Known { task });
    }
    let context = b.context.as_ref().unwrap_or(&b.new_context);
    let found: Option<i64> = match b.context {
        None => None,
        Some(_) => conn
            .prepare_cached("SELECT id FROM sessions WHERE subject = ? AND context = ?")?
            .query_row(params![subject, context], |r| r.get(0))
            .optional()?,
    };
    if let Some(session) = found
        && let Some((task, state)) = open_task_of(conn, session)?
    {
        return Ok(Begun::Busy { task, state });
    }
    let session = match found {
        Some(session) => session,
        None => conn
            .prepare_cached("INSERT INTO sessions (subject, context, created_ms) VALUES (?,?,?)")?
            .insert(params![subject, context, b.now_ms])?,
    };
    let task = conn
        .prepare_cached(
            "INSERT INTO tasks (uid, session, state, reason, detail, revision, incarnation, created_ms,
             updated_ms, counters, origin) VALUES (?,?,?,'','',?,?,?,?,'{}',?)",
        )?
        .insert(params![
            b.task_uid,
            session,
            TaskState::Working.number(),
            b.revision,
            tx.incarnation,
            b.now_ms,
            b.now_ms,
            json(&b.origin)
        ])?;
    add_message(conn, session, task, &b.entry)?;
    add_message_id(conn, subject, &b.message_id, task)?;
    let step = add_model_step(conn, task)?;
    let (context, earlier) = (context.clone(), found.is_some());
    Ok(Begun::New {
        task,
        session,
        context,
        step,
        earlier,
    })
}

fn subject_id(conn: &Connection, name: &str) -> rusqlite::Result<i64> {
    let mut select = conn.prepare_cached("SELECT id FROM subjects WHERE name = ?")?;
    match select.query_row([name], |r| r.get(0)).optional()? {
        Some(id) => Ok(id),
        None => conn
            .prepare_cached("INSERT INTO subjects (name) VALUES (?)")?
            .insert([name]),
    }
}

fn known_message(conn: &Connection, subject: i64, message: &str) -> rusqlite::Result<Option<String>> {
    conn.prepare_cached(
        "SELECT t.uid FROM message_ids m JOIN tasks t ON t.id = m.task WHERE m.subject = ? AND m.message_id = ?",
    )?
    .query_row(params![subject, message], |r| r.get(0))
    .optional()
}

fn open_task_of(conn: &Connection, session: i64) -> rusqlite::Result<Option<(String, TaskState)>> {
    conn.prepare_cached("SELECT uid, state FROM tasks WHERE session = ? AND state < 3 LIMIT 1")?
        .query_row([session], |r| Ok((r.get(0)?, TaskState::from_number(r.get(1)?))))
        .optional()
}

fn add_message(conn: &Connection, session: i64, task: i64, entry: &Entry) -> rusqlite::Result<i64> {
    conn.prepare_cached("INSERT INTO messages (session, task, kind, body) VALUES (?,?,?,?)")?
        .insert(params![session, task, entry.kind(), json(entry)])
}

fn add_message_id(conn: &Connection, subject: i64, id: &str, task: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT INTO message_ids VALUES (?,?,?)")?
        .execute(params![subject, id, task])
        .map(drop)
}

fn add_model_step(conn: &Connection, task: i64) -> rusqlite::Result<i64> {
    conn.prepare_cached("INSERT INTO steps (task, kind, state, server, tool) VALUES (?,?,?,'','')")?
        .insert(params![task, MODEL, StepState::Sent.number()])
}

pub(super) fn end_tool(conn: &Connection, step: i64, result: &str) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE steps SET state = ?, result = ? WHERE id = ?")?
        .execute(params![StepState::Done.number(), result, step])
        .map(drop)
}

fn end_step(conn: &Connection, step: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE steps SET state = ? WHERE id = ?")?
        .execute(params![StepState::Done.number(), step])
        .map(drop)
}

fn set_counters(conn: &Connection, task: i64, counters: &Counters) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE tasks SET counters = ? WHERE id = ?")?
        .execute(params![json(counters), task])
        .map(drop)
}

fn state_of(conn: &Connection, task: i64) -> rusqlite::Result<Option<TaskState>> {
    conn.prepare_cached("SELECT state FROM tasks WHERE id = ?")?
        .query_row([task], |r| r.get(0).map(TaskState::from_number))
        .optional()
}

fn set_state(
    conn: &Connection,
    task: i64,
    state: TaskState,
    reason: &str,
    detail: &str,
    now_ms: i64,
) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE tasks SET state = ?, reason = ?, detail = ?, updated_ms = ? WHERE id = ?")?
        .execute(params![state.number(), reason, detail, now_ms, task])
        .map(drop)
}

fn refusal(approvals: &[Approval], answer: &Decide) -> Option<&'static str> {
    match approvals.iter().find(|a| a.uid == answer.uid) {
        None => Some("no such approval in this task"),
        Some(a) if a.decision.is_some() => Some("it was answered before"),
        Some(a) if a.digest != answer.digest => Some("the digest is not that of what was asked"),
        Some(_) if answer.bare && answer.decision == Decision::Yes && approvals.len() > 1 => Some(
            "the task has asked before, and a late yes would mean the other: add the code that the question shows",
        ),
        Some(_) => None,
    }
}

fn record_decision(conn: &Connection, answer: &Decide, by: &str, now_ms: i64) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "UPDATE approvals SET decision = ?, reason = ?, decided_by = ?, decided_ms = ? WHERE uid = ?",
    )?
    .execute(params![
        answer.decision as i64,
        answer.reason,
        by,
        now_ms,
        answer.uid
    ])?;
    if answer.decision == Decision::Yes {
        // The call may be sent once: when it is, its step says so again, and the decision is used up.
        let sql = "UPDATE steps SET state = ? WHERE id = (SELECT step FROM approvals WHERE uid = ?)";
        conn.prepare_cached(sql)?
            .execute(params![StepState::Planned.number(), answer.uid])?;
    }
    Ok(())
}

fn add_record(conn: &Connection, record: &RunRecord) -> rusqlite::Result<u64> {
    let sequence: i64 = conn
        .prepare_cached("UPDATE meta SET run_sequence = run_sequence + 1 RETURNING run_sequence")?
        .query_row([], |r| r.get(0))?;
    let sequence_number = u64::try_from(sequence).unwrap_or(0);
    let record = RunRecord {
        sequence: sequence_number,
        ..record.clone()
    };
    conn.prepare_cached("INSERT INTO outbox VALUES (?,?)")?
        .execute(params![sequence, json(&record)])?;
    Ok(sequence_number)
}

fn retire(conn: &Connection, before_ms: i64) -> rusqlite::Result<usize> {
    let old = "(SELECT id FROM tasks WHERE state >= 3 AND updated_ms < ?)";
    for table in ["messages", "steps", "approvals", "message_ids", "results"] {
        conn.execute(&format!("DELETE FROM {table} WHERE task IN {old}"), [before_ms])?;
    }
    let gone = conn.execute(&format!("DELETE FROM tasks WHERE id IN {old}"), [before_ms])?;
    conn.execute(
        "DELETE FROM sessions WHERE created_ms < ? AND id NOT IN (SELECT session FROM tasks)",
        [before_ms],
    )?;
    // Pages that are free go back to the system, some at a time: other writes wait for this one.
    // Each step gives one back.
    let mut vacuum = conn.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    let mut steps = vacuum.query([])?;
    while steps.next()?.is_some() {}
    Ok(gone)
}
