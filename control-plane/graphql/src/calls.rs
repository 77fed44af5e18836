//! How resolvers reach the service: the caller, the store, and what is asked once for each request.

use crate::{
    Fleet,
    cost::Budget,
    error::{Fault, Result},
};
use async_graphql::Context;
use parking_lot::Mutex;
use roadstead_authz::TenantContext;
use roadstead_contract::documents::{Kind, Name};
use roadstead_domain::{ClusterId, Error, ObjectId, Problem};
use roadstead_service::{Description, Target};
use roadstead_store::{Certificate, Object, Store};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use tokio::sync::{OnceCell, Semaphore};

/// What every resolver may use. In the schema's data.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) fleet: Arc<dyn Fleet>,
}

/// The text of a revision, once it was read.
type Text = Arc<OnceCell<String>>;

/// The certificates of a cluster, once they were read; none of one that is not there any more.
type Certificates = Arc<OnceCell<Arc<[Certificate]>>>;

/// What is asked at most once for each request. In the request's data, so it never crosses tenants (S37).
#[derive(Debug)]
pub(crate) struct Once {
    agents: OnceCell<BTreeMap<ClusterId, u64>>,
    /// The texts of revisions: asked for under many names they are read once.
    revisions: Mutex<HashMap<(ObjectId, u64), Text>>,
    /// The certificates of clusters: several fields are made of them.
    certificates: Mutex<HashMap<ClusterId, Certificates>>,
    /// Resolvers of a list run at once; one request must not take every connection to the database.
    turns: Semaphore,
    /// By id and revision: what was read before a write is not what is shown after it.
    described: Mutex<HashMap<(ObjectId, u64), Described>>,
}

/// Revisions that one request reads at once.
const TURNS: usize = 2;

impl Default for Once {
    fn default() -> Self {
        Self {
            agents: OnceCell::new(),
            revisions: Mutex::default(),
            certificates: Mutex::default(),
            turns: Semaphore::new(TURNS),
            described: Mutex::default(),
        }
    }
}

/// `None` inside: it is not there any more.
type Described = Arc<OnceCell<Option<Description>>>;

pub(crate) fn app<'a>(ctx: &Context<'a>) -> &'a App {
    ctx.data_unchecked::<App>()
}

/// The caller; the transport runs nothing without one.
pub(crate) fn context<'a>(ctx: &Context<'a>) -> &'a TenantContext {
    ctx.data_unchecked::<TenantContext>()
}

/// What the request may still spend; the transport runs nothing without it.
pub(crate) fn budget<'a>(ctx: &Context<'a>) -> &'a Budget {
    ctx.data_unchecked::<Budget>()
}

/// Caller and store.
pub(crate) fn both<'a>(ctx: &Context<'a>) -> (&'a TenantContext, &'a Store) {
    (context(ctx), &app(ctx).store)
}

/// What is not there is null.
pub(crate) fn found<T>(result: std::result::Result<T, Error>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A text of the input as a name.
pub(crate) fn name(text: &str, path: &str) -> std::result::Result<Name, Error> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        let expected = "1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends";
        Error::invalid(Problem::new(path, expected, format!("{shown:?}"), "wrong name"))
    })
}

/// A document by its names.
pub(crate) fn by_name(kind: Kind, project: &str, text: &str) -> std::result::Result<Target, Error> {
    Ok(Target::Name {
        project: name(project, "project")?,
        kind,
        name: name(text, "name")?,
    })
}

/// The document of that name.
pub(crate) async fn object_by_name(
    ctx: &Context<'_>,
    kind: Kind,
    project: &str,
    name: &str,
) -> Result<Option<Object>> {
    let (caller, store) = both(ctx);
    let target = by_name(kind, project, name)?;
    found(roadstead_service::lookup(caller, store, &target).await)
}

/// The document with that id.
pub(crate) async fn object(ctx: &Context<'_>, id: ObjectId) -> Result<Option<Object>> {
    let (caller, store) = both(ctx);
    found(roadstead_service::lookup(caller, store, &Target::Id(id)).await)
}

/// An object with all that is known of it; read once, however many fields ask. `None` inside: it has been deleted.
pub(crate) async fn described(ctx: &Context<'_>, object: &Object) -> Result<Described> {
    let (caller, store) = both(ctx);
    let cell = {
        let mut known = ctx.data_unchecked::<Once>().described.lock();
        known.entry((object.id, object.revision)).or_default().clone()
    };
    let target = Target::Id(object.id);
    let read = async || found(roadstead_service::describe(caller, store, &target).await);
    if cell.initialized() {
        return Ok(cell);
    }
    // Kept as long as the request: paid for once, by whoever read it.
    if let Some(description) = cell.get_or_try_init(read).await? {
        budget(ctx).read(&description.revision.document)?;
    }
    Ok(cell)
}

/// The text of an object's revision.
pub(crate) async fn document(ctx: &Context<'_>, object: &Object) -> Result<Value> {
    let described = described(ctx, object).await?;
    let current = described.get().and_then(Option::as_ref).map(|d| &d.revision);
    match current {
        Some(revision) if revision.number == object.revision => json(ctx, &revision.document),
        // Somebody wrote in the meantime: what was asked for is still there.
        _ => {
            let (caller, store) = both(ctx);
            let target = Target::Id(object.id);
            let found = roadstead_service::get_revision(caller, store, &target, object.revision).await?;
            json(ctx, &found.document)
        }
    }
}

/// The text of one revision as JSON.
pub(crate) async fn revision(ctx: &Context<'_>, object: ObjectId, number: u64) -> Result<Value> {
    let (caller, store) = both(ctx);
    let once = ctx.data_unchecked::<Once>();
    let cell = once.revisions.lock().entry((object, number)).or_default().clone();
    let read = async || {
        let _turn = once.turns.acquire().await.map_err(Error::internal)?;
        budget(ctx).check()?;
        let found = roadstead_service::get_revision(caller, store, &Target::Id(object), number).await?;
        Ok::<_, Fault>(found.document)
    };
    json(ctx, cell.get_or_try_init(read).await?)
}

/// A stored document as JSON, paid for.
pub(crate) fn json(ctx: &Context<'_>, text: &str) -> Result<Value> {
    budget(ctx).read(text)?;
    serde_json::from_str(text).map_err(|error| Fault::from(Error::internal(error)))
}

/// How many agents should run on a cluster; counted once for all clusters of a request.
pub(crate) async fn agents_on(ctx: &Context<'_>, cluster: ClusterId) -> Result<u64> {
    let (caller, store) = both(ctx);
    let once = ctx.data_unchecked::<Once>();
    let count = || roadstead_service::clusters::agent_counts(caller, store);
    let counts = once.agents.get_or_try_init(count).await?;
    Ok(counts.get(&cluster).copied().unwrap_or(0))
}

/// The certificates of a cluster, newest first.
pub(crate) async fn certificates(ctx: &Context<'_>, cluster: ClusterId) -> Result<Arc<[Certificate]>> {
    let (caller, store) = both(ctx);
    let once = ctx.data_unchecked::<Once>();
    let cell = once.certificates.lock().entry(cluster).or_default().clone();
    let read = async || {
        let _turn = once.turns.acquire().await.map_err(Error::internal)?;
        let detail = found(roadstead_service::clusters::get(caller, store, cluster).await)?;
        let certificates = detail.map(|detail| detail.certificates).unwrap_or_default();
        Ok::<_, Fault>(Arc::from(certificates))
    };
    cell.get_or_try_init(read).await.cloned()
}

/// A write changed certificates: they are read again.
pub(crate) fn forget_certificates(ctx: &Context<'_>) {
    ctx.data_unchecked::<Once>().certificates.lock().clear();
}
