//! Where contexts are born: a verified API token, a verified cluster certificate, a named system task.

use roadstead_authz::{
    PeerIdentity, Presented, RequestInfo, SystemContext, SystemTask, TenantContext, TenantRecord,
};
use roadstead_domain::Error;
use roadstead_store::Store;

/// A token's last use is written down at most this often.
const USE_NOTED_EVERY_MS: i64 = 60_000;

/// The context of whoever holds an API token.
///
/// # Errors
/// [`Error::Unauthenticated`], with one sentence whatever is wrong with the token; [`Error::Unavailable`] when the
/// database cannot be asked, which is never a yes (S91).
#[expect(
    clippy::disallowed_methods,
    reason = "the one birth of a token holder's context"
)]
pub async fn api_token(
    store: &Store,
    presented: &Presented,
    request: RequestInfo,
) -> Result<TenantContext, Error> {
    let system = SystemContext::new(SystemTask::Authenticate);
    let found = store.system(&system).find_api_token(presented).await?;
    let (record, last_used) = found.unzip();
    let now = store.clock().now_ms();
    let id = record.as_ref().map(|r| r.id);
    let context = TenantContext::from_api_token(presented, record, now, request)?;
    let stale = last_used
        .flatten()
        .is_none_or(|at| now - at >= USE_NOTED_EVERY_MS);
    if let (true, Some(id)) = (stale, id) {
        let noted = async {
            let tx = store.tenant(&context).write().await?;
            tx.touch_token(id).await?;
            tx.commit().await
        };
        // A database that only reads still authenticates.
        if let Err(error) = noted.await {
            tracing::warn!(%error, token.id = %id, "the last use of a token was not written down");
        }
    }
    Ok(context)
}

/// The context of the cluster agent behind a client certificate whose chain TLS has verified.
///
/// # Errors
/// [`Error::Unauthenticated`] for one that is unknown, expired, revoked, or of a deleted cluster.
#[expect(
    clippy::disallowed_methods,
    reason = "the one birth of a cluster agent's context"
)]
pub async fn cluster(
    store: &Store,
    peer: &PeerIdentity,
    request: RequestInfo,
) -> Result<TenantContext, Error> {
    let system = SystemContext::new(SystemTask::Authenticate);
    let record = store.system(&system).find_certificate(peer).await?;
    TenantContext::from_cluster_certificate(peer, record, store.clock().now_ms(), request)
}

/// The context of a system task that works for one tenant.
#[expect(
    clippy::disallowed_methods,
    reason = "the one birth of a system task's context"
)]
pub(crate) fn system(system: &SystemContext, tenant: TenantRecord, request: RequestInfo) -> TenantContext {
    TenantContext::from_system_task(system, tenant, request)
}
