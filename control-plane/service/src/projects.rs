//! Projects, and the tenants that they are parts of.

use crate::stop::{Stop, allow, settle, viewing};
use roadstead_authz::{TenantContext, act};
use roadstead_contract::documents::Name;
use roadstead_domain::{Error, Page, PageRequest};
use roadstead_store::{AuditEntry, Project, Store};

/// Makes a project.
///
/// # Errors
/// [`Error::Conflict`] when the name is taken; [`Error::Forbidden`].
pub async fn create(ctx: &TenantContext, store: &Store, name: &Name) -> Result<Project, Error> {
    let made = async {
        let proof = allow::<act::CreateProject, _>(ctx, ctx.tenant(), || "it".to_owned())?;
        let mut tx = store.tenant(ctx).write_audited().await?;
        let project = tx.insert_project(&proof, name).await?;
        tx.audit(AuditEntry::allowed("create project", project.id, proof.grant()))
            .await?;
        tx.commit().await?;
        Ok::<_, Stop>(project)
    };
    let made = made.await;
    settle(ctx, store, made).await
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
