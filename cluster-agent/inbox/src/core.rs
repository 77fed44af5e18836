//! The inbox's state: the connection, and in memory the little that every call needs.

use crate::{Document, Entry, Held, InboxError, Position, Seen, schema, snapshot::Staging};
use roadstead_contract::fleet::{Digest, StateSum};
use rusqlite::{Connection, Row};
use std::{collections::BTreeSet, path::Path};
use tokio::sync::watch;

pub(crate) struct Core {
    pub(crate) connection: Connection,
    pub(crate) facts: Facts,
    pub(crate) staging: Option<Staging>,
    incarnation: String,
    documents: watch::Sender<Seen>,
    pub(crate) runs: watch::Sender<u64>,
    /// Commands that this process has begun.
    pub(crate) begun: BTreeSet<String>,
    pub(crate) taken: watch::Sender<u64>,
    pub(crate) results: watch::Sender<u64>,
}

/// What can be waited for.
#[derive(Clone, Debug)]
pub(crate) struct Watchers {
    pub(crate) documents: watch::Receiver<Seen>,
    pub(crate) runs: watch::Receiver<u64>,
    pub(crate) taken: watch::Receiver<u64>,
    pub(crate) results: watch::Receiver<u64>,
}

/// What a transaction changes besides rows; replaced only once the transaction is committed.
#[derive(Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) cursor: u64,
    pub(crate) sum: StateSum,
    pub(crate) documents: u64,
    pub(crate) held: Option<Held>,
    pub(crate) changes: u64,
}

impl Core {
    pub(crate) fn open(path: &Path) -> Result<Self, InboxError> {
        Self::on(schema::open(path)?)
    }

    pub(crate) fn in_memory() -> Result<Self, InboxError> {
        Self::on(schema::in_memory()?)
    }

    fn on(connection: Connection) -> Result<Self, InboxError> {
        let incarnation = schema::meta(&connection, "incarnation")?.unwrap_or_default();
        let facts = read_facts(&connection)?;
        Ok(Self {
            connection,
            facts,
            staging: None,
            incarnation,
            documents: watch::Sender::new(facts.seen()),
            runs: watch::Sender::new(0),
            begun: BTreeSet::new(),
            taken: watch::Sender::new(0),
            results: watch::Sender::new(0),
        })
    }

    /// For whoever wants to see changes.
    pub(crate) fn watchers(&self) -> Watchers {
        Watchers {
            documents: self.documents.subscribe(),
            runs: self.runs.subscribe(),
            taken: self.taken.subscribe(),
            results: self.results.subscribe(),
        }
    }

    pub(crate) fn position(&self) -> Position {
        Position {
            incarnation: self.incarnation.clone(),
            cursor: self.facts.cursor,
            root: self.facts.sum.root(),
            documents: self.facts.documents,
            held: self.facts.held,
        }
    }

    /// After a commit.
    pub(crate) fn settle(&mut self, facts: Facts) {
        self.facts = facts;
        self.documents.send_if_modified(|seen| {
            let changed = *seen != facts.seen();
            *seen = facts.seen();
            changed
        });
    }

    pub(crate) fn documents(&self) -> Result<(Seen, Vec<Document>), InboxError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT uid, good_generation, good_digest, kind, project, name, json FROM documents
             WHERE json IS NOT NULL ORDER BY kind, project, name, uid",
        )?;
        let rows = statement.query_map([], read_document)?;
        Ok((self.facts.seen(), rows.collect::<Result<_, _>>()?))
    }

    pub(crate) fn document(&self, uid: &str) -> Result<Option<Document>, InboxError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT uid, good_generation, good_digest, kind, project, name, json FROM documents
             WHERE uid = ?1 AND json IS NOT NULL",
        )?;
        let mut rows = statement.query_map([uid], read_document)?;
        Ok(rows.next().transpose()?)
    }

    /// Those of the uids that have a row here.
    pub(crate) fn known(&self, uids: Vec<String>) -> Result<BTreeSet<String>, InboxError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT 1 FROM documents WHERE uid = ?1")?;
        let mut known = BTreeSet::new();
        for uid in uids {
            if statement.exists([&uid])? {
                known.insert(uid);
            }
        }
        Ok(known)
    }

    pub(crate) fn have(&self, after: Option<&str>, limit: usize) -> Result<(u64, Vec<Entry>), InboxError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT uid, generation, digest FROM documents WHERE uid > ?1 ORDER BY uid LIMIT ?2",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map((after.unwrap_or(""), limit), read_entry)?;
        Ok((self.facts.cursor, rows.collect::<Result<_, _>>()?))
    }
}

impl Facts {
    fn seen(&self) -> Seen {
        Seen {
            revision: self.cursor,
            changes: self.changes,
        }
    }
}

fn read_facts(connection: &Connection) -> Result<Facts, InboxError> {
    let cursor = schema::meta(connection, "cursor")?
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let held = schema::meta(connection, "held")?.and_then(|text| read_held(&text));
    let mut facts = Facts {
        cursor,
        sum: StateSum::default(),
        documents: 0,
        held,
        changes: 0,
    };
    let mut statement = connection.prepare("SELECT uid, generation, digest FROM documents")?;
    for entry in statement.query_map([], read_entry)? {
        let entry = entry?;
        facts.sum.add(&entry.uid, entry.generation, entry.digest);
        facts.documents += 1;
    }
    Ok(facts)
}

pub(crate) fn write_held(held: Held) -> String {
    format!("{} {} {}", held.revision, held.deletes, held.documents)
}

/// Bytes that [`Core::check`] writes: more than an ordinary batch.
const CHECK_BYTES: i64 = 512 * 1024;

impl Core {
    pub(crate) fn check(&mut self) -> Result<(), InboxError> {
        let transaction = self.connection.transaction()?;
        transaction.execute(
            "INSERT INTO meta (key, value) VALUES ('check', hex(zeroblob(?1)))",
            [CHECK_BYTES / 2],
        )?;
        transaction.commit()?;
        schema::clear_meta(&self.connection, "check")?;
        Ok(())
    }

    pub(crate) fn limit_pages(&self, pages: Option<u32>) -> Result<(), InboxError> {
        // SQLite's own limit; it never goes below what the file has.
        let pages = pages.map_or(4_294_967_294, i64::from);
        self.connection
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
        Ok(())
    }
}

fn read_held(text: &str) -> Option<Held> {
    let mut numbers = text.split(' ').map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some(Held {
        revision: next()?,
        deletes: next()?,
        documents: next()?,
    })
}

fn read_entry(row: &Row<'_>) -> Result<Entry, rusqlite::Error> {
    Ok(Entry {
        uid: row.get(0)?,
        generation: number(row, 1)?,
        digest: digest(row, 2)?,
    })
}

fn read_document(row: &Row<'_>) -> Result<Document, rusqlite::Error> {
    Ok(Document {
        uid: row.get(0)?,
        generation: number(row, 1)?,
        digest: digest(row, 2)?,
        kind: row.get(3)?,
        project: row.get(4)?,
        name: row.get(5)?,
        json: row.get(6)?,
    })
}

/// SQLite's integers are signed; generations and revisions stay below 2⁶³.
pub(crate) fn number(row: &Row<'_>, column: usize) -> Result<u64, rusqlite::Error> {
    row.get::<_, i64>(column).map(|number| number.unsigned_abs())
}

pub(crate) fn digest(row: &Row<'_>, column: usize) -> Result<Digest, rusqlite::Error> {
    row.get::<_, [u8; 32]>(column).map(Digest)
}

pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
