//! The first tenant, project, cluster and token of an embedded hub, and tenants in general.

use crate::DEFAULT_CLUSTER;
use crate::authenticate;
use crate::clusters::{self, CreateInput, Joinable};
use crate::stop::{Stop, allow};
use crate::tokens::{self, IssueInput, Issued};
use roadstead_authz::{
    RequestInfo, Role, Scope, SystemContext, SystemTask, TenantContext, TenantRecord, act,
};
use roadstead_contract::documents::Name;
use roadstead_domain::{ConflictReason, Error};
use roadstead_store::{AuditEntry, Cluster, Project, Store};
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
    pub tenant: TenantRecord,
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
            };
            clusters::create(ctx, store, input).await?
        }
    };
    Ok(Dev {
        cluster: made_cluster,
        owner,
    })
}

/// Makes a tenant with its first project.
///
/// # Errors
/// [`Error::Conflict`] when the name is taken; [`Error::Unavailable`], [`Error::Internal`].
pub async fn tenant(store: &Store, tenant: &Name, project: &Name) -> Result<Owner, Error> {
    if tenant.as_str() == crate::platform::PLATFORM {
        let message = format!("the name {tenant} is the platform's own");
        return Err(Error::conflict(ConflictReason::Exists, message));
    }
    create_tenant(store, tenant).await?;
    found_or_made(store, tenant, project).await
}

async fn found_or_made(store: &Store, tenant: &Name, project: &Name) -> Result<Owner, Error> {
    let system = SystemContext::new(SystemTask::Bootstrap);
    let record = match store.system(&system).tenant_by_name(tenant).await? {
        Some(record) => record,
        None => create_tenant(store, tenant).await?,
    };
    let ctx = authenticate::system(&system, record.clone(), hub_request());
    let found = store.tenant(&ctx).read().await?.project_by_name(project).await?;
    let made = match found {
        Some(found) => found,
        None => crate::projects::create(&ctx, store, project).await?,
    };
    Ok(Owner {
        tenant: record,
        project: made,
        ctx,
    })
}

impl Owner {
    /// A token with every right in the tenant.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn issue_token(&self, store: &Store, name: &str) -> Result<Issued, Error> {
        let input = IssueInput {
            name: name.to_owned(),
            role: Role::Owner,
            scopes: vec![Scope::Admin],
            lifetime: tokens::LONGEST,
        };
        tokens::issue(&self.ctx, store, input).await
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
        clusters::join_token(&self.owner.ctx, store, self.cluster.id).await
    }
}

fn hub_request() -> RequestInfo {
    let mut request = RequestInfo::default();
    request.source.client = "hub".to_owned();
    request
}

/// Makes a tenant: an act of the platform, of no tenant's role.
///
/// # Errors
/// [`Error::Conflict`] when the name is taken.
pub async fn create_tenant(store: &Store, name: &Name) -> Result<TenantRecord, Error> {
    let system = SystemContext::new(SystemTask::Bootstrap);
    let record = store.system(&system).create_tenant(name).await?;
    let ctx = authenticate::system(&system, record.clone(), hub_request());
    let proof = allow::<act::CreateTenant, _>(&ctx, ctx.tenant(), || "it".to_owned());
    let proof = proof.map_err(|stop| match stop {
        Stop::Error(error) => error,
        Stop::Denied { denied, .. } => Error::forbidden(denied.reason()),
    })?;
    let mut tx = store.tenant(&ctx).write_audited().await?;
    tx.audit(AuditEntry::allowed("create tenant", record.id, proof.grant()))
        .await?;
    tx.commit().await?;
    Ok(record)
}
