//! Runs, as the hub knows them: no content.

use crate::stop::viewing;
use roadstead_authz::TenantContext;
use roadstead_domain::{Error, Page, PageRequest, RunId};
use roadstead_store::{Run, RunFilter, Store};

/// Runs, latest begun first.
///
/// # Errors
/// [`Error::Forbidden`]; [`Error::Invalid`] for a foreign cursor.
pub async fn list(
    ctx: &TenantContext,
    store: &Store,
    filter: &RunFilter,
    page: &PageRequest,
) -> Result<Page<Run>, Error> {
    viewing(ctx, store).await?.runs(filter, page).await
}

/// One run.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn get(ctx: &TenantContext, store: &Store, id: RunId) -> Result<Run, Error> {
    let found = viewing(ctx, store).await?.find_run(id).await?;
    found.ok_or_else(|| Error::not_found(id.to_string()))
}
