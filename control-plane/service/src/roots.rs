//! What an operator who rotates the fleet's root certificate must know and leave behind: who has which roots, and a
//! record in the platform's audit log of each step.

use crate::authenticate;
use crate::platform;
use crate::stop::record as append;
use roadstead_authz::{RequestInfo, SystemContext, SystemTask, TenantContext, TenantRecord};
use roadstead_domain::Error;
use roadstead_store::{AuditEntry, ClusterTrust, HubReplica, Outcome, Store};
use serde_json::{Map, Value as Json};

/// Who has which roots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// By name of the tenant, then of the cluster; only those that have a certificate which is good now.
    pub clusters: Vec<(String, ClusterTrust)>,
    /// Of the last hour.
    pub replicas: Vec<HubReplica>,
}

/// The tenants, by name.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn tenants(store: &Store) -> Result<Vec<TenantRecord>, Error> {
    let system = SystemContext::new(SystemTask::Bootstrap);
    let mut tenants = store.system(&system).tenants().await?;
    tenants.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(tenants)
}

fn acting_for(tenant: TenantRecord) -> TenantContext {
    let system = SystemContext::new(SystemTask::Bootstrap);
    authenticate::system(&system, tenant, RequestInfo::default())
}

/// Looks at one tenant's clusters; at the hub's replicas where it is the platform. Writes nothing.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn holders_of(store: &Store, tenant: TenantRecord) -> Result<Holders, Error> {
    let name = tenant.name.clone();
    let ctx = acting_for(tenant);
    let tx = store.tenant(&ctx).read().await?;
    let replicas = match name == platform::PLATFORM {
        true => tx.replicas().await?,
        false => Vec::new(),
    };
    let clusters = tx.cluster_trust().await?.into_iter();
    let clusters = clusters.map(|cluster| (name.clone(), cluster)).collect();
    Ok(Holders { clusters, replicas })
}

/// Looks at every tenant's clusters and at the hub's replicas. Writes nothing.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn holders(store: &Store) -> Result<Holders, Error> {
    let mut each = Vec::new();
    for tenant in tenants(store).await? {
        each.push(holders_of(store, tenant).await?);
    }
    Ok(Holders::of(each))
}

impl Holders {
    /// Of every tenant.
    #[must_use]
    pub fn of(each: Vec<Self>) -> Self {
        let mut all = Self::default();
        for mut of_one in each {
            all.clusters.append(&mut of_one.clusters);
            all.replicas.append(&mut of_one.replicas);
        }
        let place = |(tenant, cluster): &(String, ClusterTrust)| (tenant.clone(), cluster.name.clone());
        all.clusters.sort_by_cached_key(place);
        all
    }
}

/// Appends an act of the operator to the platform's log, or with `failed` that it could not be done after all.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`]: then the act must not be done.
pub async fn record(
    store: &Store,
    action: &str,
    failed: bool,
    root: &str,
    detail: Map<String, Json>,
) -> Result<(), Error> {
    let ctx = platform::context(store).await?;
    let mut entry = match failed {
        false => AuditEntry::allowed(action, root, "operator of the hub"),
        true => AuditEntry::refused(Outcome::Refused, action, root),
    };
    entry.detail = detail;
    append(&ctx, store, entry).await
}

/// Ends a tenant's join tokens that nobody has used; how many. Whoever stands between a cluster and the hub by a root that
/// is not to be trusted any more may have read them. Where there are none this only reads.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`]: then they may still be good.
pub async fn end_join_tokens(store: &Store, tenant: TenantRecord) -> Result<u64, Error> {
    let object = tenant.id.to_string();
    let ctx = acting_for(tenant);
    if !store.tenant(&ctx).read().await?.has_join_tokens().await? {
        return Ok(0);
    }
    let mut tx = store.tenant(&ctx).write_audited().await?;
    let ended = tx.end_join_tokens().await?;
    if ended > 0 {
        let mut entry = AuditEntry::allowed("roots.retire.now", object, "operator of the hub");
        entry.detail.insert("join_tokens_ended".to_owned(), ended.into());
        tx.audit(entry).await?;
        tx.commit().await?;
    }
    Ok(ended)
}

/// The highest generation of roots that a replica or a cluster has said to work with.
#[must_use]
pub fn heard(holders: &Holders, foreign: u64) -> u64 {
    let replicas = holders.replicas.iter().map(|replica| replica.generation);
    let clusters = holders.clusters.iter().map(|(_, cluster)| cluster.generation);
    let clusters = clusters.filter(|generation| *generation < foreign);
    replicas.chain(clusters).max().unwrap_or(0)
}

/// The hub's replicas of the last hour, newest first.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn replicas(store: &Store) -> Result<Vec<HubReplica>, Error> {
    let ctx = platform::context(store).await?;
    let tx = store.tenant(&ctx).read().await?;
    tx.replicas().await
}

/// This replica works with the roots of this generation.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn report(store: &Store, replica: &str, generation: u64, digest: &str) -> Result<(), Error> {
    let ctx = platform::context(store).await?;
    let tx = store.tenant(&ctx).write().await?;
    tx.report_replica(replica, generation, digest).await?;
    tx.commit().await
}

/// This replica ends.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn leave(store: &Store, replica: &str) -> Result<(), Error> {
    let ctx = platform::context(store).await?;
    let tx = store.tenant(&ctx).write().await?;
    tx.end_replica(replica).await?;
    tx.commit().await
}
