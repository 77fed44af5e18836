//! The audit log of what is no tenant's: certificates of foreign authorities, unknown join tokens.
//!
//! It is the chain of a tenant of its own, made with its first record: checked as every other (`roadstead-hub audit
//! verify`), reached by no token.

use crate::authenticate;
use crate::bootstrap;
use crate::stop;
use roadstead_authz::{RequestInfo, SystemContext, SystemTask, TenantContext, TenantRecord};
use roadstead_contract::documents::Name;
use roadstead_domain::Error;
use roadstead_store::{AuditEntry, AuditFilter, AuditRecord, Outcome, Store};

/// The name of that tenant; no other may have it.
pub const PLATFORM: &str = "roadstead-platform";

/// The longest detail, in characters.
const DETAIL: usize = 1_024;

pub(crate) fn name() -> Result<Name, Error> {
    PLATFORM.parse().map_err(Error::internal)
}

/// Appends a refusal.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn record(store: &Store, action: &str, detail: &str, request: RequestInfo) -> Result<(), Error> {
    let system = SystemContext::new(SystemTask::Bootstrap);
    let ctx = authenticate::system(&system, tenant(store, &system).await?, request);
    let detail: String = detail.chars().take(DETAIL).collect();
    let entry = AuditEntry::refused(Outcome::Refused, action, "nobody").with("detail", detail);
    stop::record(&ctx, store, entry).await
}

/// The newest records, at most 100, newest first; none before the first.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn records(store: &Store) -> Result<Vec<AuditRecord>, Error> {
    let system = SystemContext::new(SystemTask::Bootstrap);
    let Some(tenant) = store.system(&system).tenant_by_name(&name()?).await? else {
        return Ok(Vec::new());
    };
    let ctx = authenticate::system(&system, tenant, RequestInfo::default());
    let page = roadstead_domain::PageRequest {
        first: Some(100),
        after: None,
    };
    let log = store.tenant(&ctx).read().await?;
    Ok(log.audit_records(&AuditFilter::default(), &page).await?.items)
}

/// The platform's own context, its tenant made where it is not there yet.
pub(crate) async fn context(store: &Store) -> Result<TenantContext, Error> {
    let system = SystemContext::new(SystemTask::Bootstrap);
    let mut request = RequestInfo::default();
    request.source.client = "hub".to_owned();
    Ok(authenticate::system(
        &system,
        tenant(store, &system).await?,
        request,
    ))
}

async fn tenant(store: &Store, system: &SystemContext) -> Result<TenantRecord, Error> {
    let name = name()?;
    if let Some(found) = store.system(system).tenant_by_name(&name).await? {
        return Ok(found);
    }
    match bootstrap::bare_tenant(store, &name).await {
        // Another replica was first.
        Err(Error::Conflict { .. }) => {
            let found = store.system(system).tenant_by_name(&name).await?;
            found.ok_or_else(|| Error::internal("the platform's tenant is neither there nor to be made"))
        }
        made => made,
    }
}
