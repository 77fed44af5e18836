//! How a use case ends early: with an error, or with a denial that must be recorded first.

use roadstead_authz::{Authorized, Denied, Object, Place, Resource, TenantContext, act};
use roadstead_domain::Error;
use roadstead_store::{AuditEntry, Outcome, Store, Tx};

/// Why a use case stopped. Its transaction must be gone before it is settled: SQLite has one writer.
#[derive(Debug)]
pub(crate) enum Stop {
    Error(Error),
    Denied { denied: Box<Denied>, what: String },
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The proof that the actor may do `A` to `object`, which the caller knows as `what`.
pub(crate) fn allow<A: act::Act, T: Resource>(
    ctx: &TenantContext,
    object: T,
    what: impl FnOnce() -> String,
) -> Result<Authorized<T, A>, Stop> {
    ctx.authorize(object).map_err(|denied| Stop::Denied {
        denied: Box::new(denied),
        what: what(),
    })
}

/// Asks for the right to `object`, which the caller names and nobody has looked up, before anything is locked: an object
/// that is found is asked about again.
pub(crate) fn first<A: act::Act>(ctx: &TenantContext, object: Object, what: &str) -> Result<(), Stop> {
    let tenant = ctx.tenant();
    allow::<A, _>(ctx, Place { tenant, object }, || what.to_owned()).map(|_| ())
}

/// Records a denial (the same one again within a minute is counted, see [`Store::denied_again`]), and turns every stop
/// into its error.
pub(crate) async fn settle<T>(
    ctx: &TenantContext,
    store: &Store,
    ended: Result<T, Stop>,
) -> Result<T, Error> {
    match ended {
        Ok(value) => Ok(value),
        Err(Stop::Error(error)) => Err(error),
        Err(Stop::Denied { denied, what }) => {
            let (action, object) = (denied.action().as_str(), denied.object().to_string());
            if !store.denied_again(ctx, action, &object) {
                let entry =
                    AuditEntry::refused(Outcome::Denied, action, object).with("reason", denied.reason());
                record(ctx, store, entry).await?;
            }
            Err(denied.into_error(&what))
        }
    }
}

/// Appends one record in a transaction of its own.
pub(crate) async fn record(ctx: &TenantContext, store: &Store, entry: AuditEntry) -> Result<(), Error> {
    let mut tx = store.tenant(ctx).write_audited().await?;
    tx.audit(entry).await?;
    tx.commit().await
}

/// A reading transaction of an actor who may see the tenant's things at all.
pub(crate) async fn viewing<'s>(ctx: &'s TenantContext, store: &'s Store) -> Result<Tx<'s>, Error> {
    let seen = allow::<act::View, _>(ctx, ctx.tenant(), || "it".to_owned()).map(|_| ());
    settle(ctx, store, seen).await?;
    store.tenant(ctx).read().await
}
