//! Reading documents.

use super::Target;
use crate::stop::{allow, settle, viewing};
use roadstead_authz::{Action, TenantContext, act};
use roadstead_domain::{AgentId, Error, Page, PageRequest};
use roadstead_store::{Object, ObjectFilter, Placed, Revision, RevisionHead, Store};

/// A document with everything that is known of it.
#[derive(Clone, Debug)]
pub struct Description {
    pub object: Object,
    /// The current revision, with the document.
    pub revision: Revision,
    /// Where it is wanted, and what is known of it there.
    pub placed: Vec<Placed>,
    /// What the actor may do to it.
    pub actions: Vec<Action>,
}

/// An agent that the actor may call, and where it is placed.
#[derive(Clone, Debug)]
pub struct Invocable {
    pub agent: AgentId,
    pub object: Object,
    pub placed: Vec<Placed>,
}

/// The tenant's documents, by project, kind and name.
///
/// # Errors
/// [`Error::Forbidden`]; [`Error::Invalid`] for a foreign cursor.
pub async fn list_objects(
    ctx: &TenantContext,
    store: &Store,
    filter: &ObjectFilter,
    page: &PageRequest,
) -> Result<Page<Object>, Error> {
    viewing(ctx, store).await?.objects(filter, page).await
}

/// One document without its text.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn lookup(ctx: &TenantContext, store: &Store, target: &Target) -> Result<Object, Error> {
    let tx = viewing(ctx, store).await?;
    target.find(&tx).await
}

/// One document with its text, placement and status.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn describe(ctx: &TenantContext, store: &Store, target: &Target) -> Result<Description, Error> {
    let tx = viewing(ctx, store).await?;
    let object = target.find(&tx).await?;
    let revision = tx.revision(&object, object.revision).await?;
    let revision = revision.ok_or_else(|| Error::internal("an object without its current revision"))?;
    let placed = tx.placed(object.id).await?;
    let possible = [
        Action::View,
        Action::Invoke,
        Action::ReadLogs,
        Action::Write,
        Action::Delete,
        Action::RollBack,
    ];
    let actions = possible
        .into_iter()
        .filter(|action| ctx.may(*action, &object))
        .collect();
    Ok(Description {
        object,
        revision,
        placed,
        actions,
    })
}

/// The document's revisions, newest first, without their documents: see [`get_revision`].
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Invalid`] for a foreign cursor.
pub async fn list_revisions(
    ctx: &TenantContext,
    store: &Store,
    target: &Target,
    page: &PageRequest,
) -> Result<Page<RevisionHead>, Error> {
    let tx = viewing(ctx, store).await?;
    let object = target.find(&tx).await?;
    tx.revisions(&object, page).await
}

/// One revision of the document.
///
/// # Errors
/// [`Error::NotFound`] for the document or the revision.
pub async fn get_revision(
    ctx: &TenantContext,
    store: &Store,
    target: &Target,
    number: u64,
) -> Result<Revision, Error> {
    let tx = viewing(ctx, store).await?;
    let object = target.find(&tx).await?;
    let found = tx.revision(&object, number).await?;
    found.ok_or_else(|| Error::not_found(format!("revision {number} of {target}")))
}

/// The agent, if the actor may do `A` to it (invoke it, read its logs); a denial is recorded.
///
/// # Errors
/// [`Error::NotFound`], also for what is no agent; [`Error::Forbidden`].
pub async fn invocable<A: act::Act>(
    ctx: &TenantContext,
    store: &Store,
    target: &Target,
) -> Result<Invocable, Error> {
    let found = {
        let tx = store.tenant(ctx).read().await?;
        let object = target.find(&tx).await?;
        let placed = tx.placed(object.id).await?;
        (object, placed)
    };
    let (object, placed) = found;
    let object = allow::<A, _>(ctx, object, || target.to_string());
    let object = settle(ctx, store, object).await?.into_inner();
    let agent = object
        .id
        .agent()
        .ok_or_else(|| Error::not_found(target.to_string()))?;
    Ok(Invocable {
        agent,
        object,
        placed,
    })
}
