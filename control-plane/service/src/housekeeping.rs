//! Removing what has expired.

use crate::authenticate;
use roadstead_authz::{RequestInfo, SystemContext, SystemTask};
use roadstead_domain::Error;
use roadstead_store::Store;

/// Removes remembered answers and join tokens that have expired, tenant by tenant; returns how many. Safe to repeat
/// and to run on several replicas at once.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`]; what was done until then stays done.
pub async fn purge(store: &Store) -> Result<u64, Error> {
    let system = SystemContext::new(SystemTask::Purge);
    let mut removed = 0;
    for tenant in store.system(&system).tenants().await? {
        let ctx = authenticate::system(&system, tenant, RequestInfo::default());
        let tx = store.tenant(&ctx).write().await?;
        removed += tx.purge_expired().await?;
        tx.commit().await?;
    }
    Ok(removed)
}
