//! Where contexts are born: a verified API token, a verified cluster certificate, a named system task.

use crate::stop::record;
use roadstead_authz::{
    PeerIdentity, Presented, RequestInfo, SystemContext, SystemTask, TenantContext, TenantRecord,
};
use roadstead_domain::Error;
use roadstead_store::{AuditEntry, Outcome, Store};

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
    let now = store.clock().now_ms();
    let known = found.as_ref().map(|record| (record.id, record.tenant.clone()));
    match (
        TenantContext::from_api_token(presented, found, now, request.clone()),
        known,
    ) {
        (Ok(context), known) => {
            if let Some((id, tenant)) = known {
                store.used(tenant.id, id);
            }
            Ok(context)
        }
        // Its tenant should hear that somebody still has it (S89); at most once a minute.
        (Err(refused), Some((id, tenant))) => {
            let ctx = self::system(&system, tenant, request);
            let (action, object) = ("authenticate", id.to_string());
            if !store.denied_again(&ctx, action, &object) {
                let entry = AuditEntry::refused(Outcome::Refused, action, object);
                if let Err(error) = record(&ctx, store, entry).await {
                    tracing::warn!(%error, token.id = %id, "the use of an ended token was not written down");
                }
            }
            Err(refused)
        }
        (Err(refused), None) => Err(refused),
    }
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
