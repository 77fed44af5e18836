//! Projects, and the tenants that they are parts of.

use crate::idempotency::{Idempotency, recall, remember};
use crate::stop::{Stop, allow, settle, viewing};
use roadstead_authz::{Authorized, TenantContext, act};
use roadstead_contract::documents::Name;
use roadstead_domain::{Error, Page, PageRequest, TenantId};
use roadstead_store::{AuditEntry, Project, Store, Tx};
use serde_json::json;

/// A project to make.
#[derive(Clone, Debug)]
pub struct CreateInput {
    pub name: Name,
    /// Under this key the answer is remembered for 24 h.
    pub idempotency_key: Option<String>,
}

/// Makes a project.
///
/// # Errors
/// [`Error::Conflict`] when the name is taken, or for a used key; [`Error::Forbidden`].
pub async fn create(ctx: &TenantContext, store: &Store, input: &CreateInput) -> Result<Project, Error> {
    let made = async {
        let proof = allow::<act::CreateProject, _>(ctx, ctx.tenant(), || "it".to_owned())?;
        let digest = json!(["create project", input.name.as_str()]);
        let idempotency = Idempotency::new(input.idempotency_key.as_deref(), &digest)?;
        let mut tx = store.tenant(ctx).write_audited().await?;
        if let Some(made) = recall(idempotency.as_ref(), &tx).await? {
            return Ok(made);
        }
        let project = create_in(&mut tx, &proof, &input.name).await?;
        remember(idempotency.as_ref(), &tx, &project).await?;
        tx.commit().await?;
        Ok::<_, Stop>(project)
    };
    let made = made.await;
    settle(ctx, store, made).await
}

pub(crate) async fn create_in(
    tx: &mut Tx<'_>,
    proof: &Authorized<TenantId, act::CreateProject>,
    name: &Name,
) -> Result<Project, Error> {
    let project = tx.insert_project(proof, name).await?;
    tx.audit(AuditEntry::allowed("create project", project.id, proof.grant()))
        .await?;
    Ok(project)
}

/// The tenant's projects, by name.
///
/// # Errors
/// [`Error::Forbidden`]; [`Error::Invalid`] for a foreign cursor.
pub async fn list(ctx: &TenantContext, store: &Store, page: &PageRequest) -> Result<Page<Project>, Error> {
    viewing(ctx, store).await?.projects(page).await
}

/// The project of that name.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn by_name(ctx: &TenantContext, store: &Store, name: &Name) -> Result<Project, Error> {
    let found = viewing(ctx, store).await?.project_by_name(name).await?;
    found.ok_or_else(|| Error::not_found(format!("project {name}")))
}
