//! Revisions: what a document was. Written once, never changed.

use crate::audit::hash32;
use crate::cursor::Listing;
use crate::objects::Object;
use crate::sql::values;
use crate::tx::Tx;
use roadstead_contract::fleet::Digest;
use roadstead_domain::{Error, ObjectId, Page, PageRequest, RevisionId};
use sea_orm::FromQueryResult;
use uuid::Uuid;

/// One revision of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    pub object: ObjectId,
    pub id: RevisionId,
    /// 1, 2, 3, …: the document's generation.
    pub number: u64,
    /// JSON as its author wrote it: key order and unknown annotations kept.
    pub document: String,
    /// SHA-256 of `document`.
    pub digest: Digest,
    /// The actor's label.
    pub author: String,
    /// The author's name, for people.
    pub author_name: String,
    pub at_ms: i64,
    pub message: String,
}

/// A revision in a list: without its document, which may be large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionHead {
    pub object: ObjectId,
    pub id: RevisionId,
    /// 1, 2, 3, …: the document's generation.
    pub number: u64,
    /// SHA-256 of the document.
    pub digest: Digest,
    /// The actor's label.
    pub author: String,
    /// The author's name, for people.
    pub author_name: String,
    pub at_ms: i64,
    pub message: String,
}

#[derive(Debug, FromQueryResult)]
struct HeadRow {
    id: Uuid,
    number: i64,
    digest: Vec<u8>,
    author: String,
    author_name: String,
    at_ms: i64,
    message: String,
}

#[derive(Debug, FromQueryResult)]
struct Row {
    id: Uuid,
    number: i64,
    document: String,
    digest: Vec<u8>,
    author: String,
    author_name: String,
    at_ms: i64,
    message: String,
}

fn revision_of(object: ObjectId, row: Row) -> Result<Revision, Error> {
    Ok(Revision {
        object,
        id: RevisionId::from_uuid(row.id),
        number: row.number.cast_unsigned(),
        document: row.document,
        digest: Digest(hash32(&row.digest)?),
        author: row.author,
        author_name: row.author_name,
        at_ms: row.at_ms,
        message: row.message,
    })
}

impl Tx<'_> {
    /// That revision of the object.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn revision(&self, object: &Object, number: u64) -> Result<Option<Revision>, Error> {
        let sql = "SELECT id, number, document, digest, author, author_name, at_ms, message FROM revision
            WHERE tenant_id = $1 AND object_id = $2 AND number = $3";
        let values = values![object.id.as_uuid(), i64::try_from(number).unwrap_or(i64::MAX)];
        let row: Option<Row> = self.one(sql, values).await?;
        row.map(|row| revision_of(object.id, row)).transpose()
    }

    /// The document of that revision, also of an object that has been deleted since.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn document_of(&self, object: ObjectId, number: u64) -> Result<Option<String>, Error> {
        let sql = "SELECT id, number, document, digest, author, author_name, at_ms, message FROM revision
            WHERE tenant_id = $1 AND object_id = $2 AND number = $3";
        let values = values![object.as_uuid(), i64::try_from(number).unwrap_or(i64::MAX)];
        let row: Option<Row> = self.one(sql, values).await?;
        Ok(row.map(|row| row.document))
    }

    /// The object's revisions, newest first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a foreign cursor; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn revisions(&self, object: &Object, page: &PageRequest) -> Result<Page<RevisionHead>, Error> {
        let listing = Listing::new(self.tenant(), "revisions", &object.id);
        let before: Option<i64> = listing.open(page.after.as_deref())?;
        let size = page.size()?;
        let sql = "SELECT id, number, digest, author, author_name, at_ms, message FROM revision
            WHERE tenant_id = $1 AND object_id = $2 AND number < $3 ORDER BY number DESC LIMIT $4";
        let values = values![
            object.id.as_uuid(),
            before.unwrap_or(i64::MAX),
            i64::from(size) + 1
        ];
        let rows: Vec<HeadRow> = self.all(sql, values).await?;
        let head = |row: HeadRow| {
            Ok(RevisionHead {
                object: object.id,
                id: RevisionId::from_uuid(row.id),
                number: row.number.cast_unsigned(),
                digest: Digest(hash32(&row.digest)?),
                author: row.author,
                author_name: row.author_name,
                at_ms: row.at_ms,
                message: row.message,
            })
        };
        let heads: Result<Vec<RevisionHead>, Error> = rows.into_iter().map(head).collect();
        Ok(listing.page(heads?, size, |r: &RevisionHead| r.number))
    }
}
