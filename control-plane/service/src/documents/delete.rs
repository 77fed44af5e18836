//! Deleting a document.

use super::{Answer, Applied, Change, Target, check_expected, recalled};
use crate::idempotency::{Idempotency, remember};
use crate::placement;
use crate::stop::{Stop, allow, settle};
use roadstead_authz::{TenantContext, act};
use roadstead_domain::{ConflictReason, Error};
use roadstead_store::{AuditEntry, Object, Store, Tx};
use serde_json::json;

/// A document to delete.
#[derive(Clone, Debug)]
pub struct DeleteInput {
    pub target: Target,
    /// The revision that the caller knows; `None`: whatever it is.
    pub expected_revision: Option<u64>,
    /// Under this key the answer is remembered for 24 h.
    pub idempotency_key: Option<String>,
}

/// Deletes a document. Its revisions stay; clusters that hold it get a tombstone.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] while an agent refers to it, for an expected revision, or a used key;
/// [`Error::Forbidden`].
pub async fn delete_document(
    ctx: &TenantContext,
    store: &Store,
    input: &DeleteInput,
) -> Result<Answer, Error> {
    let deleted = delete(ctx, store, input).await;
    settle(ctx, store, deleted).await
}

async fn delete(ctx: &TenantContext, store: &Store, input: &DeleteInput) -> Result<Answer, Stop> {
    let what = input.target.to_string();
    input.target.first::<act::Delete>(ctx)?;
    let digest = json!(["delete", what, input.expected_revision]);
    let idempotency = Idempotency::new(input.idempotency_key.as_deref(), &digest)?;
    let mut tx = store.tenant(ctx).write_audited().await?;
    if let Some(answer) = recalled(idempotency.as_ref(), &tx).await? {
        return Ok(answer);
    }
    let object = input.target.find(&tx).await?;
    let object = allow::<act::Delete, _>(ctx, object, || what.clone())?;
    check_expected(&what, input.expected_revision, object.revision)?;
    refuse_while_used(&tx, &object).await?;
    let previous = tx.revision(&object, object.revision).await?.map(|r| r.document);
    tx.delete_object(&object).await?;
    placement::recompute(&mut tx, Some(object.project)).await?;
    let entry = AuditEntry::allowed(Change::Deleted.action(), object.id, object.grant())
        .revision(object.revision)
        .with("project", object.project_name.as_str())
        .with("name", object.name.as_str());
    tx.audit(entry).await?;
    let answer = Answer {
        dry_run: false,
        documents: vec![Applied {
            change: Change::Deleted,
            uid: Some(object.id),
            kind: object.id.kind(),
            project: object.project_name.clone(),
            name: object.name.clone(),
            revision: object.revision,
            previous,
            clusters: Vec::new(),
        }],
    };
    remember(idempotency.as_ref(), &tx, &answer.to_remember()).await?;
    tx.commit().await?;
    Ok(answer)
}

/// No agent may be left with a reference to nothing.
async fn refuse_while_used(tx: &Tx<'_>, object: &Object) -> Result<(), Error> {
    let nodes = tx.graph(Some(object.project)).await?;
    let refers = |(kind, name): &(_, String)| *kind == object.id.kind() && *name == object.name;
    let users = nodes
        .iter()
        .filter(|n| n.id != object.id && n.links.refers.iter().any(refers));
    let users: Vec<&str> = users.map(|n| n.name.as_str()).take(5).collect();
    if users.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{} {}/{} is used by the agents {}: change or delete them first",
        object.id.kind(),
        object.project_name,
        object.name,
        users.join(", ")
    );
    Err(Error::conflict(ConflictReason::InUse, message))
}
