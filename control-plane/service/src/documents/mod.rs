//! Documents: applied as a set, read, deleted, rolled back.

mod apply;
mod ask;
mod costs;
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

use crate::idempotency::{Idempotency, recall};
use crate::stop::{Stop, allow};
use roadstead_authz::{TenantContext, act};
use roadstead_contract::documents::{Kind, Name};
use roadstead_domain::{ConflictReason, Error, ObjectId, Problem};
use roadstead_store::{Object, Tx};
use serde::{Deserialize, Serialize};

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
    /// Asks for the right before anything is looked up or locked: whoever lacks it in the whole tenant learns nothing
    /// of what is there and holds up nobody. The object itself is asked about once it is found.
    pub(crate) fn first<A: act::Act>(&self, ctx: &TenantContext) -> Result<(), Stop> {
        allow::<A, _>(ctx, ctx.tenant(), || self.to_string()).map(|_| ())
    }

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

impl Answer {
    /// The answer as it is remembered: without documents, which the revisions hold.
    fn to_remember(&self) -> Self {
        let mut kept = self.clone();
        for document in &mut kept.documents {
            document.previous = None;
        }
        kept
    }

    /// A remembered answer made whole again.
    async fn completed(mut self, tx: &Tx<'_>) -> Result<Self, Error> {
        for document in &mut self.documents {
            let before = match document.change {
                Change::Created => 0,
                Change::Updated | Change::RolledBack => document.revision.saturating_sub(1),
                Change::Unchanged | Change::Deleted => document.revision,
            };
            if let (Some(uid), 1..) = (document.uid, before) {
                document.previous = tx.document_of(uid, before).await?;
            }
        }
        Ok(self)
    }
}

/// The answer that was given before, whole.
async fn recalled(idempotency: Option<&Idempotency>, tx: &Tx<'_>) -> Result<Option<Answer>, Error> {
    match recall::<Answer>(idempotency, tx).await? {
        Some(answer) => Ok(Some(answer.completed(tx).await?)),
        None => Ok(None),
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
