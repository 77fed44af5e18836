//! The journal of commands: what makes each run at most once (protocol.md §3 rule 12).
//!
//! The id is on disk before the command begins, its result before it is said. One that is here without a result when the
//! file is opened was under way when the process before ended: nobody knows how far it came, and it is not begun again.
//! An id stays for as long as its command could be taken for a new one: until it has been acknowledged, and beyond its
//! expiry.

use crate::{
    InboxError,
    core::{Core, number},
    schema::{meta, set_meta},
};
use roadstead_contract::fleet::CommandCode;
use rusqlite::{Connection, OptionalExtension as _, types::Type};
use serde::{Deserialize, Serialize};

/// Ids are kept for so long after the expiry, by the clock that expiry is judged by.
pub(crate) const KEPT_MS: i64 = 24 * 60 * 60 * 1000;
/// Forgotten that much later: whoever is asked in between still says that nobody knows.
const MARGIN_MS: i64 = 10 * 60 * 1000;
/// Commands that are known at once. The hub has fewer open; one that sends more is not believed.
const MOST: i64 = 10_000;
/// With those that were refused because there were so many.
const MOST_REFUSED: i64 = 2 * MOST;
/// What is forgotten at once to make room.
const ROOM: i64 = 100;
/// In `meta`: the latest expiry of what was forgotten to make room.
const FORGOTTEN: &str = "commands_forgotten_ms";
/// Results that one read gives.
const READ: i64 = 64;

/// A command as the hub sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub id: String,
    /// Milliseconds since the Unix epoch.
    pub expires_ms: i64,
    pub act: Act,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Act {
    RestartEngine { agent_uid: String },
}

/// What became of a command that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// On disk: it is to be done now, and only now.
    Taken,
    /// It has its result; if it was taken here before, that of then.
    Concluded,
    /// It is being done.
    UnderWay,
    /// There is no room for it, not even for its result: it will not be done.
    NoRoom,
    /// No command is taken any more: as if it had not come.
    Closed,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandResult {
    pub id: String,
    pub code: CommandCode,
    pub detail: String,
}

struct Known {
    code: Option<i64>,
}

/// After a crash: what was under way has a result that says so.
pub(crate) fn conclude_interrupted(connection: &Connection) -> Result<(), rusqlite::Error> {
    let detail = "unknown: the cluster agent ended while it ran";
    connection.execute(
        "UPDATE commands SET code = ?1, detail = ?2 WHERE code IS NULL",
        (CommandCode::Unknown as i64, detail),
    )?;
    Ok(())
}

impl Core {
    pub(crate) fn take_command(&mut self, command: &Command, now_ms: i64) -> Result<Taking, InboxError> {
        let transaction = self.connection.transaction()?;
        // Before it is looked up: it may itself be one that is forgotten.
        transaction
            .prepare_cached("DELETE FROM commands WHERE acknowledged = 1 AND expires_ms <= ?1")?
            .execute([now_ms.saturating_sub(KEPT_MS + MARGIN_MS)])?;
        let known = transaction
            .prepare_cached("SELECT code FROM commands WHERE id = ?1")?
            .query_row([&command.id], |row| Ok(Known { code: row.get(0)? }))
            .optional()?;
        let taking = match known {
            Some(Known { code: None }) => Taking::UnderWay,
            Some(Known { code: Some(_) }) => {
                // The hub asks: it has not got the result, or has lost it.
                transaction
                    .prepare_cached("UPDATE commands SET acknowledged = 0 WHERE id = ?1")?
                    .execute([&command.id])?;
                Taking::Concluded
            }
            None => {
                let count: i64 = transaction
                    .prepare_cached("SELECT count(*) FROM commands")?
                    .query_row([], |row| row.get(0))?;
                let freed = match count >= MOST {
                    true => make_room(&transaction, now_ms)?,
                    false => 0,
                };
                match count - freed {
                    MOST_REFUSED.. => Taking::NoRoom,
                    known => insert(&transaction, command, now_ms, known >= MOST)?,
                }
            }
        };
        transaction.commit()?;
        match taking {
            Taking::Taken => self.taken.send_modify(|count| *count += 1),
            Taking::Concluded => self.results.send_modify(|count| *count += 1),
            Taking::UnderWay | Taking::NoRoom | Taking::Closed => {}
        }
        Ok(taking)
    }

    pub(crate) fn begin_commands(&mut self) -> Result<Vec<Command>, InboxError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id, expires_ms, act FROM commands WHERE code IS NULL ORDER BY rowid")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)))?;
        let commands = rows.map(|row| {
            let (id, expires_ms, act) = row?;
            let act = serde_json::from_str(&act)
                .map_err(|error| rusqlite::Error::FromSqlConversionFailure(2, Type::Text, Box::new(error)))?;
            Ok(Command { id, expires_ms, act })
        });
        // All are read before the first counts as begun: who gets an error has begun none.
        let mut fresh: Vec<Command> = commands.collect::<Result<_, rusqlite::Error>>()?;
        fresh.retain(|command| self.begun.insert(command.id.clone()));
        Ok(fresh)
    }

    pub(crate) fn conclude_command(&mut self, result: &CommandResult) -> Result<(), InboxError> {
        self.connection
            .prepare_cached("UPDATE commands SET code = ?2, detail = ?3 WHERE id = ?1 AND code IS NULL")?
            .execute((&result.id, result.code as i64, &result.detail))?;
        self.begun.remove(&result.id);
        self.results.send_modify(|count| *count += 1);
        Ok(())
    }

    pub(crate) fn pending_results(&self) -> Result<Vec<CommandResult>, InboxError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id, code, detail FROM commands WHERE code IS NOT NULL AND acknowledged = 0
             ORDER BY rowid LIMIT ?1",
        )?;
        let rows = statement.query_map([READ], |row| {
            Ok(CommandResult {
                id: row.get(0)?,
                code: i32::try_from(number(row, 1)?)
                    .ok()
                    .and_then(|code| CommandCode::try_from(code).ok())
                    .unwrap_or_default(),
                detail: row.get(2)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub(crate) fn acknowledge_results(&mut self, ids: &[String]) -> Result<(), InboxError> {
        let transaction = self.connection.transaction()?;
        {
            let mut update = transaction
                .prepare_cached("UPDATE commands SET acknowledged = 1 WHERE id = ?1 AND code IS NOT NULL")?;
            for id in ids {
                update.execute([id])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Forgets the oldest that are over and acknowledged, and keeps until when their time was; how many.
fn make_room(connection: &Connection, now_ms: i64) -> Result<i64, rusqlite::Error> {
    let oldest = "SELECT rowid, expires_ms FROM commands WHERE acknowledged = 1 AND expires_ms <= ?1
        ORDER BY expires_ms, rowid LIMIT ?2";
    let (freed, latest): (i64, Option<i64>) = connection
        .prepare_cached(&format!("SELECT count(*), max(expires_ms) FROM ({oldest})"))?
        .query_row([now_ms, ROOM], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if let Some(latest) = latest {
        let latest = forgotten_ms(connection)?.map_or(latest, |before| before.max(latest));
        set_meta(connection, FORGOTTEN, &latest.to_string())?;
        connection
            .prepare_cached(&format!(
                "DELETE FROM commands WHERE rowid IN (SELECT rowid FROM ({oldest}))"
            ))?
            .execute([now_ms, ROOM])?;
    }
    Ok(freed)
}

fn forgotten_ms(connection: &Connection) -> Result<Option<i64>, rusqlite::Error> {
    Ok(meta(connection, FORGOTTEN)?.and_then(|text| text.parse().ok()))
}

/// Writes a new one down: to be done, or with the reason why it is not.
fn insert(
    connection: &Connection,
    command: &Command,
    now_ms: i64,
    full: bool,
) -> Result<Taking, rusqlite::Error> {
    // Whatever the time is now: it may be one of those.
    let forgotten = forgotten_ms(connection)?.is_some_and(|through| command.expires_ms <= through);
    let over = match () {
        () if forgotten || now_ms >= command.expires_ms.saturating_add(KEPT_MS) => Some((
            CommandCode::Unknown,
            "unknown: its time was over so long ago that what was done of it is forgotten here",
        )),
        () if now_ms >= command.expires_ms => Some((
            CommandCode::Expired,
            "its time was over before the cluster agent got it",
        )),
        () if full => Some((
            CommandCode::Refused,
            "the cluster agent's journal of commands is full: try again later",
        )),
        () => None,
    };
    let act = serde_json::to_string(&command.act)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    connection
        .prepare_cached(
            "INSERT INTO commands (id, expires_ms, act, code, detail) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute((
            &command.id,
            command.expires_ms,
            act,
            over.map(|(code, _)| code as i64),
            over.map_or("", |(_, detail)| detail),
        ))?;
    Ok(match over {
        Some(_) => Taking::Concluded,
        None => Taking::Taken,
    })
}
