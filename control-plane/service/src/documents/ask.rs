//! Whether documents may be written at all, asked before any work is done for them.

use crate::stop::{allow, settle};
use roadstead_authz::{TenantContext, act};
use roadstead_domain::Error;
use roadstead_store::Store;

/// Asks before a set of documents is parsed; a denial is recorded. Each project is asked about when it is written to.
///
/// # Errors
/// [`Error::Forbidden`], or [`Error::NotFound`] for who sees nothing of the tenant.
pub async fn may_write_documents(ctx: &TenantContext, store: &Store) -> Result<(), Error> {
    let asked = allow::<act::Write, _>(ctx, ctx.tenant(), || "the tenant".to_owned()).map(|_| ());
    settle(ctx, store, asked).await
}
