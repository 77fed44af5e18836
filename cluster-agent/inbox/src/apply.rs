//! Taking a batch: one transaction, whole or not at all.

use crate::{
    Batch, Change, Document, InboxError, Outcome, Purpose, Refusal,
    core::{Core, Facts, digest, number, signed},
    schema,
};
use roadstead_contract::{
    documents::Kind,
    fleet::{Digest, NackCode, document_digest},
};
use rusqlite::{Connection, OptionalExtension as _, Transaction};

/// Tombstones kept. They only guard against a hub that repeats an old upsert at the cursor; the newest few suffice.
const TOMBSTONES: i64 = 4_096;

/// The row of a document as far as a change asks.
struct Known {
    generation: u64,
    digest: Digest,
}

impl Core {
    pub(crate) fn apply(&mut self, batch: Batch) -> Result<Outcome, InboxError> {
        let cursor = self.facts.cursor;
        match batch.purpose {
            Purpose::Delta | Purpose::Repair if batch.through < batch.from || is_repeat(&batch, cursor) => {
                return Ok(Outcome::Repeated { cursor });
            }
            Purpose::Delta | Purpose::Repair if batch.from != cursor => return Ok(Outcome::Gap { cursor }),
            // Parts of a snapshot that never began, or that was overtaken by a newer one.
            Purpose::Snapshot if self.staging.as_ref().is_none_or(|s| s.revision != batch.through) => {
                return Ok(Outcome::Gap { cursor });
            }
            _ => {}
        }
        let mut facts = self.facts;
        let mut refused = Vec::new();
        let transaction = self.connection.transaction()?;
        // Deletions first: the same name with a new uid is a delete, then a create.
        let (gone, rest): (Vec<_>, Vec<_>) = batch
            .changes
            .into_iter()
            .partition(|change| matches!(change, Change::Tombstone { .. }));
        for change in gone.into_iter().chain(rest) {
            if let (Purpose::Snapshot, Some(staging)) = (batch.purpose, self.staging.as_mut()) {
                staging.note(&change);
            }
            refused.extend(take(&transaction, &mut facts, batch.purpose, change)?);
        }
        if batch.purpose != Purpose::Snapshot && batch.through > facts.cursor {
            facts.cursor = batch.through;
            schema::set_meta(&transaction, "cursor", &facts.cursor.to_string())?;
        }
        transaction.commit()?;
        self.settle(facts);
        Ok(Outcome::Taken {
            position: self.position(),
            refused,
        })
    }
}

/// Everything through the cursor is here. A batch that moves no cursor (`from` = `through` = cursor) is no repeat:
/// more of the same revision, or a repair.
fn is_repeat(batch: &Batch, cursor: u64) -> bool {
    batch.from < cursor && batch.through <= cursor
}

fn take(
    transaction: &Transaction<'_>,
    facts: &mut Facts,
    purpose: Purpose,
    change: Change,
) -> Result<Option<Refusal>, InboxError> {
    match change {
        Change::Tombstone {
            revision,
            uid,
            generation,
        } => {
            bury(transaction, facts, &uid, generation, revision)?;
            Ok(None)
        }
        Change::Upsert { revision, document } => {
            let fault = fault(&document);
            upsert(transaction, facts, purpose, (revision, document), fault)
        }
        Change::Missing {
            revision,
            document,
            code,
            detail,
        } => upsert(
            transaction,
            facts,
            purpose,
            (revision, document),
            Some((code, detail)),
        ),
    }
}

/// What is wrong with a document in itself.
fn fault(document: &Document) -> Option<(NackCode, String)> {
    if document_digest(&document.json) != document.digest {
        return Some((
            NackCode::NackDigest,
            "the bytes do not have the digest".to_owned(),
        ));
    }
    if Kind::parse(&document.kind).is_none() {
        let known = Kind::ALL.map(Kind::as_str).join(", ");
        return Some((
            NackCode::NackKind,
            format!("expected one of {known}, found {:?}", document.kind),
        ));
    }
    serde_json::from_slice::<serde::de::IgnoredAny>(&document.json)
        .err()
        .map(|error| (NackCode::NackInvalid, format!("expected JSON: {error}")))
}

fn upsert(
    transaction: &Transaction<'_>,
    facts: &mut Facts,
    purpose: Purpose,
    (revision, document): (u64, Document),
    fault: Option<(NackCode, String)>,
) -> Result<Option<Refusal>, InboxError> {
    if i64::try_from(document.generation).is_err() {
        // Beyond what is stored: it would be another number here than in the root that both sides compare.
        return Ok(Some(Refusal {
            uid: document.uid,
            generation: document.generation,
            code: NackCode::NackInvalid,
            detail: "expected a generation below 2^63".to_owned(),
        }));
    }
    match buried(transaction, &document.uid)? {
        Some(at) if revision <= at => return Ok(None),
        Some(_) => {
            transaction
                .prepare_cached("DELETE FROM tombstones WHERE uid = ?1")?
                .execute([&document.uid])?;
        }
        None => {}
    }
    let known = known(transaction, &document.uid)?;
    let newer = known
        .as_ref()
        .is_none_or(|known| document.generation > known.generation);
    let mended = purpose != Purpose::Delta
        && known
            .as_ref()
            .is_some_and(|k| document.generation == k.generation && document.digest != k.digest);
    if !newer && !mended {
        return Ok(None);
    }
    match &known {
        Some(known) => facts.sum.remove(&document.uid, known.generation, known.digest),
        None => facts.documents += 1,
    }
    facts.sum.add(&document.uid, document.generation, document.digest);
    facts.changes += 1;
    match fault {
        None => {
            write(transaction, &document)?;
            Ok(None)
        }
        Some((code, detail)) => {
            write_refused(transaction, &document)?;
            Ok(Some(Refusal {
                uid: document.uid,
                generation: document.generation,
                code,
                detail,
            }))
        }
    }
}

fn write(connection: &Connection, document: &Document) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached(
            "INSERT INTO documents (uid, generation, digest, good_generation, good_digest, kind, project, name, json)
             VALUES (?1, ?2, ?3, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (uid) DO UPDATE SET generation = ?2, digest = ?3, good_generation = ?2, good_digest = ?3,
               kind = ?4, project = ?5, name = ?6, json = ?7",
        )?
        .execute((
            &document.uid,
            signed(document.generation),
            document.digest.0,
            &document.kind,
            &document.project,
            &document.name,
            &document.json,
        ))?;
    Ok(())
}

/// Notes what was refused and leaves the last good version as it is.
fn write_refused(connection: &Connection, document: &Document) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached(
            "INSERT INTO documents (uid, generation, digest, kind, project, name) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (uid) DO UPDATE SET generation = ?2, digest = ?3",
        )?
        .execute((
            &document.uid,
            signed(document.generation),
            document.digest.0,
            &document.kind,
            &document.project,
            &document.name,
        ))?;
    Ok(())
}

/// Deletes a document and remembers at which revision.
pub(crate) fn bury(
    transaction: &Transaction<'_>,
    facts: &mut Facts,
    uid: &str,
    generation: u64,
    revision: u64,
) -> Result<(), InboxError> {
    if let Some(known) = known(transaction, uid)? {
        // A tombstone of an older generation than the document's is a repeat from before it: the document lives.
        if generation < known.generation {
            return Ok(());
        }
        transaction
            .prepare_cached("DELETE FROM documents WHERE uid = ?1")?
            .execute([uid])?;
        facts.sum.remove(uid, known.generation, known.digest);
        facts.documents -= 1;
        facts.changes += 1;
    }
    transaction
        .prepare_cached(
            "INSERT INTO tombstones (uid, revision) VALUES (?1, ?2)
             ON CONFLICT (uid) DO UPDATE SET revision = max(revision, ?2)",
        )?
        .execute((uid, signed(revision)))?;
    transaction
        .prepare_cached(
            "DELETE FROM tombstones WHERE revision <
             (SELECT revision FROM tombstones ORDER BY revision DESC LIMIT 1 OFFSET ?1)",
        )?
        .execute([TOMBSTONES])?;
    Ok(())
}

fn known(connection: &Connection, uid: &str) -> Result<Option<Known>, rusqlite::Error> {
    connection
        .prepare_cached("SELECT generation, digest FROM documents WHERE uid = ?1")?
        .query_row([uid], |row| {
            Ok(Known {
                generation: number(row, 0)?,
                digest: digest(row, 1)?,
            })
        })
        .optional()
}

fn buried(connection: &Connection, uid: &str) -> Result<Option<u64>, rusqlite::Error> {
    connection
        .prepare_cached("SELECT revision FROM tombstones WHERE uid = ?1")?
        .query_row([uid], |row| number(row, 0))
        .optional()
}
