//! The audit log, read and checked.

use crate::authenticate;
use crate::stop::{allow, settle};
use roadstead_authz::{RequestInfo, SystemContext, SystemTask, TenantContext, act};
use roadstead_domain::{Error, Page, PageRequest};
use roadstead_store::{AuditFilter, AuditRecord, AuditReport, Store};

/// The tenant's records, newest first.
///
/// # Errors
/// [`Error::Forbidden`]; [`Error::Invalid`] for a foreign cursor.
pub async fn list(
    ctx: &TenantContext,
    store: &Store,
    page: &PageRequest,
) -> Result<Page<AuditRecord>, Error> {
    search(ctx, store, &AuditFilter::default(), page).await
}

/// Those of the tenant's records that fit the filter, newest first.
///
/// # Errors
/// As [`list`].
pub async fn search(
    ctx: &TenantContext,
    store: &Store,
    filter: &AuditFilter,
    page: &PageRequest,
) -> Result<Page<AuditRecord>, Error> {
    let allowed = allow::<act::ViewAudit, _>(ctx, ctx.tenant(), || "it".to_owned()).map(|_| ());
    settle(ctx, store, allowed).await?;
    store.tenant(ctx).read().await?.audit_records(filter, page).await
}

/// Walks every tenant's chain. A broken one is part of its report.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn verify(store: &Store) -> Result<Vec<AuditReport>, Error> {
    let system = SystemContext::new(SystemTask::VerifyAudit);
    let mut reports = Vec::new();
    for tenant in store.system(&system).tenants().await? {
        let ctx = authenticate::system(&system, tenant, RequestInfo::default());
        reports.push(store.tenant(&ctx).snapshot().await?.verify_audit().await?);
    }
    Ok(reports)
}
