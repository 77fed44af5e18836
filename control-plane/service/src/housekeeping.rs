//! What the hub does by itself: removing what has expired, and writing down what was only counted.
//!
//! Each is safe to repeat and to run on several replicas at once.

use crate::authenticate;
use crate::stop::record;
use roadstead_authz::{RequestInfo, SystemContext, SystemTask};
use roadstead_domain::Error;
use roadstead_store::{AuditEntry, Outcome, Store};

/// Removes remembered answers and join tokens that have expired, and tombstones that nobody needs any more, tenant by
/// tenant; returns how many.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`]; what was done until then stays done.
pub async fn purge(store: &Store) -> Result<u64, Error> {
    let system = SystemContext::new(SystemTask::Purge);
    let (mut removed, mut ended) = (0, Ok(()));
    // A tenant whose turns at the database are taken keeps no other from being tidied.
    for tenant in store.system(&system).tenants().await? {
        let ctx = authenticate::system(&system, tenant, RequestInfo::default());
        let tidied = async {
            let tx = store.tenant(&ctx).write().await?;
            let expired = tx.purge_expired().await?;
            tx.commit().await?;
            Ok(expired)
        };
        match tidied.await {
            Ok(expired) => removed += expired,
            Err(error) => ended = ended.and(Err(error)),
        }
    }
    ended.map(|()| removed)
}

/// Writes down what [`Store`] has only counted: denials that repeated, and the last uses of tokens.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`]; what could not be written is lost: counts of the last minute, and how
/// recently a token was used.
pub async fn note(store: &Store) -> Result<(), Error> {
    let mut ended = Ok(());
    for repeated in store.take_denials() {
        let entry = AuditEntry::refused(Outcome::Denied, repeated.action, repeated.object)
            .with("repeated", repeated.times);
        ended = ended.and(record(&repeated.ctx, store, entry).await);
    }
    let system = SystemContext::new(SystemTask::LastSeen);
    for (tenant, uses) in store.take_uses() {
        let Some(tenant) = store.system(&system).tenant(tenant).await? else {
            continue;
        };
        let ctx = authenticate::system(&system, tenant, RequestInfo::default());
        let noted = async {
            let tx = store.tenant(&ctx).write().await?;
            tx.note_uses(&uses).await?;
            tx.commit().await
        };
        ended = ended.and(noted.await);
    }
    ended
}
