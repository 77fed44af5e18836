//! The first tenant, project, cluster and token of an embedded hub, and tenants in general.

use crate::DEFAULT_CLUSTER;
use crate::authenticate;
use crate::clusters::{self, CreateInput, Joinable};
use crate::platform::PLATFORM;
use crate::tokens::{self, IssueInput, Issued};
use roadstead_authz::{
    Authorized, RequestInfo, Role, Scope, SystemContext, SystemTask, TenantContext, TenantRecord, act,
};
use roadstead_contract::documents::Name;
use roadstead_domain::{ConflictReason, Error, TenantId};
use roadstead_store::{AuditEntry, Cluster, Project, Store, Tx};
use secrecy::SecretString;
use std::collections::BTreeMap;

/// What [`dev`] found or made.
#[derive(Debug)]
pub struct Dev {
    pub owner: Owner,
    pub cluster: Cluster,
}

/// The hub's own rights in a tenant that it has just made or found: for issuing the first token.
#[derive(Debug)]
pub struct Owner {
    pub project: Project,
    ctx: TenantContext,
}

/// The embedded hub's tenant, project and cluster: the cluster runs the agents that say nothing of placement. Safe to
/// repeat, and after a crash in the middle.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn dev(store: &Store, tenant: &Name, project: &Name, cluster: &Name) -> Result<Dev, Error> {
    let labels = BTreeMap::from([
        ("roadstead.dev/runtime".to_owned(), "local".to_owned()),
        (DEFAULT_CLUSTER.to_owned(), "true".to_owned()),
    ]);
    with_cluster(store, tenant, project, cluster, labels).await
}

/// Finds or makes the tenant, its project and its cluster; labels are given to a cluster that is made.
///
/// # Errors
/// As [`dev`].
pub async fn with_cluster(
    store: &Store,
    tenant: &Name,
    project: &Name,
    cluster: &Name,
    labels: BTreeMap<String, String>,
) -> Result<Dev, Error> {
    let owner = found_or_made(store, tenant, project).await?;
    let ctx = &owner.ctx;
    let found = store.tenant(ctx).read().await?.cluster_by_name(cluster).await?;
    let made_cluster = match found {
        Some(found) => found,
        None => {
            let input = CreateInput {
                name: cluster.clone(),
                labels,
                idempotency_key: None,
            };
            clusters::create(ctx, store, input).await?
        }
    };
    Ok(Dev {
        cluster: made_cluster,
        owner,
    })
}

/// Makes a tenant with its first project and its owner's token, all of it or nothing. `keep` puts the token where its
/// owner finds it; it is called before anything is kept, and its failure keeps nothing.
///
/// # Errors
/// [`Error::Conflict`] when the name is taken; what `keep` answers; [`Error::Unavailable`], [`Error::Internal`].
pub async fn tenant<E: From<Error>>(
    store: &Store,
    tenant: &Name,
    project: &Name,
    keep: impl FnOnce(&SecretString) -> Result<(), E>,
) -> Result<(), E> {
    not_the_platforms(tenant)?;
    let ctx = newcomer(store, tenant);
    let mut tx = found(store, &ctx, tenant).await?;
    add_project(&mut tx, &ctx, project).await?;
    let proof = may::<act::ManageTokens>(&ctx)?;
    let issued = tokens::issue_in(&mut tx, &proof, store, owners("owner")).await?;
    keep(&issued.secret)?;
    tx.commit().await?;
    Ok(())
}

/// Makes a tenant with nothing in it: no project, no token.
///
/// # Errors
/// [`Error::Conflict`] when the name is taken; [`Error::Unavailable`], [`Error::Internal`].
pub(crate) async fn bare_tenant(store: &Store, name: &Name) -> Result<TenantRecord, Error> {
    let system = SystemContext::new(SystemTask::Bootstrap);
    let ctx = newcomer(store, name);
    found(store, &ctx, name).await?.commit().await?;
    let made = store.system(&system).tenant_by_name(name).await?;
    made.ok_or_else(|| Error::internal("a tenant that was just made is not there"))
}

/// A token with every right in a tenant that is there, for when all of its owners' tokens are lost.
///
/// # Errors
/// [`Error::NotFound`] for the tenant; what `keep` answers, and then there is no token.
pub async fn owner_token<E: From<Error>>(
    store: &Store,
    tenant: &Name,
    keep: impl FnOnce(&SecretString) -> Result<(), E>,
) -> Result<(), E> {
    not_the_platforms(tenant)?;
    let system = SystemContext::new(SystemTask::Bootstrap);
    let record = store.system(&system).tenant_by_name(tenant).await?;
    let record = record.ok_or_else(|| Error::not_found(format!("tenant {tenant}")))?;
    let ctx = authenticate::system(&system, record, hub_request());
    let proof = may::<act::ManageTokens>(&ctx)?;
    let mut tx = store.tenant(&ctx).write_audited().await?;
    let issued = tokens::issue_in(&mut tx, &proof, store, owners("owner")).await?;
    keep(&issued.secret)?;
    tx.commit().await?;
    Ok(())
}

/// The names of all tenants but the platform's own.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Internal`].
pub async fn tenants(store: &Store) -> Result<Vec<String>, Error> {
    let system = SystemContext::new(SystemTask::Bootstrap);
    let tenants = store.system(&system).tenants().await?;
    let names = tenants.into_iter().map(|tenant| tenant.name);
    Ok(names.filter(|name| name != PLATFORM).collect())
}

/// The platform's tenant holds an audit log that no token reaches.
fn not_the_platforms(tenant: &Name) -> Result<(), Error> {
    if tenant.as_str() == PLATFORM {
        let message = format!("the name {tenant} is the platform's own");
        return Err(Error::conflict(ConflictReason::Exists, message));
    }
    Ok(())
}

async fn found_or_made(store: &Store, tenant: &Name, project: &Name) -> Result<Owner, Error> {
    not_the_platforms(tenant)?;
    let system = SystemContext::new(SystemTask::Bootstrap);
    let Some(record) = store.system(&system).tenant_by_name(tenant).await? else {
        let ctx = newcomer(store, tenant);
        let mut tx = found(store, &ctx, tenant).await?;
        let project = add_project(&mut tx, &ctx, project).await?;
        tx.commit().await?;
        return Ok(Owner { project, ctx });
    };
    let ctx = authenticate::system(&system, record, hub_request());
    let found = store.tenant(&ctx).read().await?.project_by_name(project).await?;
    let project = match found {
        Some(found) => found,
        None => {
            let input = crate::projects::CreateInput {
                name: project.clone(),
                idempotency_key: None,
            };
            crate::projects::create(&ctx, store, &input).await?
        }
    };
    Ok(Owner { project, ctx })
}

/// The platform, in a tenant that is about to be made.
fn newcomer(store: &Store, name: &Name) -> TenantContext {
    let record = TenantRecord {
        id: TenantId::generate(&**store.clock(), &**store.random()),
        name: name.to_string(),
    };
    authenticate::system(&SystemContext::new(SystemTask::Bootstrap), record, hub_request())
}

/// The transaction in which the tenant is made: an act of the platform, of no tenant's role.
async fn found<'s>(store: &'s Store, ctx: &'s TenantContext, name: &Name) -> Result<Tx<'s>, Error> {
    let proof = may::<act::CreateTenant>(ctx)?;
    let mut tx = store.tenant(ctx).found(name).await?;
    tx.audit(AuditEntry::allowed("create tenant", ctx.tenant(), proof.grant()))
        .await?;
    Ok(tx)
}

async fn add_project(tx: &mut Tx<'_>, ctx: &TenantContext, name: &Name) -> Result<Project, Error> {
    let proof = may::<act::CreateProject>(ctx)?;
    crate::projects::create_in(tx, &proof, name).await
}

fn may<A: act::Act>(ctx: &TenantContext) -> Result<Authorized<TenantId, A>, Error> {
    ctx.authorize::<A, _>(ctx.tenant())
        .map_err(|denied| Error::forbidden(denied.reason()))
}

fn owners(name: &str) -> IssueInput {
    IssueInput {
        name: name.to_owned(),
        role: Role::Owner,
        scopes: vec![Scope::Admin],
        lifetime: tokens::LONGEST,
        idempotency_key: None,
    }
}

impl Owner {
    /// A token with every right in the tenant.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn issue_token(&self, store: &Store, name: &str) -> Result<Issued, Error> {
        tokens::issue(&self.ctx, store, owners(name)).await
    }
}

impl Dev {
    /// As [`Owner::issue_token`].
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn issue_token(&self, store: &Store, name: &str) -> Result<Issued, Error> {
        self.owner.issue_token(store, name).await
    }

    /// A join token for the cluster.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn join_token(&self, store: &Store) -> Result<Joinable, Error> {
        clusters::join_token(&self.owner.ctx, store, self.cluster.id, None).await
    }
}

fn hub_request() -> RequestInfo {
    let mut request = RequestInfo::default();
    request.source.client = "hub".to_owned();
    request
}
