//! Documents: applied as a set, read, deleted, rolled back.

mod apply;
mod ask;
mod delete;
mod read;
mod roll_back;
mod write;

pub use apply::{ApplyDocument, ApplyInput, apply_documents};
pub use ask::may_write_documents;
pub use delete::{DeleteInput, delete_document};
pub use read::{
    Description, Invocable, describe, get_revision, invocable, list_objects, list_revisions, lookup,
};
pub use roll_back::{RollBackInput, roll_back};

use roadstead_contract::documents::{Kind, Name};
use roadstead_domain::{ConflictReason, Error, ObjectId, Problem};
use roadstead_store::{Object, Tx};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

/// How an object is named by a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Id(ObjectId),
    Name { project: Name, kind: Kind, name: Name },
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name { project, kind, name } => write!(f, "{kind} {project}/{name}"),
        }
    }
}

impl Target {
    fn missing(&self) -> Error {
        Error::not_found(self.to_string())
    }

    /// The object; another tenant's, a deleted one and one that never was look alike.
    pub(crate) async fn find(&self, tx: &Tx<'_>) -> Result<Object, Error> {
        let found = match self {
            Self::Id(id) => tx.object(*id).await?,
            Self::Name { project, kind, name } => match tx.project_by_name(project).await? {
                Some(project) => tx.object_by_name(project.id, *kind, name.as_str()).await?,
                None => None,
            },
        };
        found.ok_or_else(|| self.missing())
    }
}

/// What a write did to one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    Created,
    Updated,
    /// The same bytes: no new revision.
    Unchanged,
    Deleted,
    RolledBack,
}

impl Change {
    fn action(self) -> &'static str {
        match self {
            Self::Created => "create document",
            Self::Updated | Self::Unchanged => "update document",
            Self::Deleted => "delete document",
            Self::RolledBack => "roll back document",
        }
    }
}

/// One document after a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    pub change: Change,
    /// `None` in a dry run of a document that does not exist yet.
    pub uid: Option<ObjectId>,
    pub kind: Kind,
    pub project: String,
    pub name: String,
    /// The current revision; in a dry run the one that would be.
    pub revision: u64,
    /// The document (JSON) before, where there was one: the base of a diff.
    pub previous: Option<String>,
    /// For agents: the clusters that it runs on now, by name (its own placement); empty means nowhere.
    pub clusters: Vec<String>,
}

/// The answer to a write, in the order of its input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    pub dry_run: bool,
    pub documents: Vec<Applied>,
}

/// A key under which a write's answer is remembered for 24 h.
#[derive(Clone, Debug)]
pub(crate) struct Idempotency {
    key: String,
    digest: Vec<u8>,
}

impl Idempotency {
    /// `input` is everything that the answer depends on, in one fixed form.
    pub(crate) fn new(key: Option<&str>, input: &impl Serialize) -> Result<Option<Self>, Error> {
        let Some(key) = key else { return Ok(None) };
        if key.is_empty() || key.len() > 200 || !key.bytes().all(|c| c.is_ascii_graphic()) {
            let found = format!("{} bytes", key.len());
            let expected = "1 to 200 printable ASCII characters without spaces";
            return Err(Error::invalid(Problem::new(
                "idempotencyKey",
                expected,
                found,
                "wrong key",
            )));
        }
        let text = serde_json::to_vec(input).map_err(Error::internal)?;
        Ok(Some(Self {
            key: key.to_owned(),
            digest: Sha256::digest(text).to_vec(),
        }))
    }

    /// The answer that was given to the same input before.
    pub(crate) async fn answer<T: DeserializeOwned>(&self, tx: &Tx<'_>) -> Result<Option<T>, Error> {
        let Some(remembered) = tx.remembered(&self.key).await? else {
            return Ok(None);
        };
        if remembered.digest != self.digest {
            let message = "this idempotency key was used for other input: choose a new key";
            return Err(Error::conflict(ConflictReason::IdempotencyKey, message));
        }
        serde_json::from_str(&remembered.answer)
            .map(Some)
            .map_err(Error::internal)
    }

    pub(crate) async fn remember<T: Serialize>(&self, tx: &Tx<'_>, answer: &T) -> Result<(), Error> {
        let text = serde_json::to_string(answer).map_err(Error::internal)?;
        tx.remember(&self.key, &self.digest, &text).await
    }
}

/// `expected` is the revision that the caller knows; 0: the object must not exist.
fn check_expected(what: &str, expected: Option<u64>, current: u64) -> Result<(), Error> {
    match expected {
        Some(expected) if expected != current => {
            let message = match (expected, current) {
                (0, _) => format!("{what} exists already, at revision {current}"),
                (_, 0) => format!("{what} does not exist; revision {expected} was expected"),
                _ => format!(
                    "{what} is at revision {current}; revision {expected} was expected: read it again"
                ),
            };
            Err(Error::conflict(ConflictReason::Revision, message))
        }
        _ => Ok(()),
    }
}

fn check_message(message: &str) -> Result<(), Error> {
    let length = message.chars().count();
    if length <= 1_000 {
        return Ok(());
    }
    let found = format!("{length} characters");
    Err(Error::invalid(Problem::new(
        "message",
        "at most 1000 characters",
        found,
        "too long",
    )))
}
