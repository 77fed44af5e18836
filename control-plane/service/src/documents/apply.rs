//! Applying a set of documents: all of it, or nothing.

use super::costs;
use super::write::{self, Planned};
use super::{Answer, Applied, Change, check_expected, check_message, recalled};
use crate::idempotency::{Idempotency, remember};
use crate::stop::{Stop, allow, settle};
use roadstead_authz::{TenantContext, act};
use roadstead_contract::documents::{Body, Document, Kind, Name, Parsed, Reference, check_references};
use roadstead_domain::{Error, ObjectId, Problem};
use roadstead_store::{Object, Project, Store, Tx};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// The most documents of one set.
const MAX_DOCUMENTS: usize = 1_000;

/// One document of a set.
#[derive(Clone, Debug)]
pub struct ApplyDocument {
    /// As `roadstead_contract::documents` parsed it, its project filled in.
    pub parsed: Parsed,
    /// The revision that the caller knows; 0: it must not exist; `None`: whatever it is.
    pub expected_revision: Option<u64>,
}

/// A set of documents to apply.
#[derive(Clone, Debug, Default)]
pub struct ApplyInput {
    pub documents: Vec<ApplyDocument>,
    /// Under this key the answer is remembered for 24 h.
    pub idempotency_key: Option<String>,
    /// Nothing is written; the answer says what would be.
    pub dry_run: bool,
    /// Why, for the revisions.
    pub message: String,
}

/// Applies a set of documents.
///
/// # Errors
/// [`Error::Invalid`] with every problem of every document; [`Error::Conflict`] for an expected revision or a used
/// key; [`Error::Forbidden`]. Nothing of the set is written then.
pub async fn apply_documents(
    ctx: &TenantContext,
    store: &Store,
    input: &ApplyInput,
) -> Result<Answer, Error> {
    let applied = apply(ctx, store, input).await;
    settle(ctx, store, applied).await
}

async fn apply(ctx: &TenantContext, store: &Store, input: &ApplyInput) -> Result<Answer, Stop> {
    // Before anything is looked up or locked: whoever may write nothing learns no names and holds up nobody.
    allow::<act::Write, _>(ctx, ctx.tenant(), || "the project".to_owned())?;
    check_message(&input.message)?;
    if input.documents.len() > MAX_DOCUMENTS {
        let found = input.documents.len().to_string();
        let expected = format!("at most {MAX_DOCUMENTS}");
        return Err(Error::invalid(Problem::new(
            "documents",
            expected,
            found,
            "too many documents in one set",
        ))
        .into());
    }
    let idempotency = match input.dry_run {
        true => None,
        false => Idempotency::new(input.idempotency_key.as_deref(), &digest_of(input))?,
    };
    let mut tx = if input.dry_run {
        store.tenant(ctx).read().await?
    } else {
        store.tenant(ctx).write_audited().await?
    };
    if let Some(answer) = recalled(idempotency.as_ref(), &tx).await? {
        return Ok(answer);
    }
    let projects = find_projects(ctx, &tx, input).await?;
    let mut planned = Vec::new();
    for (index, document) in input.documents.iter().enumerate() {
        planned.push(plan(&tx, &projects, document, index).await?);
    }
    check_set(&tx, &projects, input, &planned).await?;
    let answer = if input.dry_run {
        foretell(&tx, &planned).await?
    } else {
        let changed = write_all(ctx, &mut tx, &planned, &input.message).await?;
        write::place(&mut tx, &changed).await?;
        report(&tx, &planned, &changed).await?
    };
    remember(idempotency.as_ref(), &tx, &answer.to_remember()).await?;
    if !input.dry_run {
        tx.commit().await?;
    }
    Ok(answer)
}

fn digest_of(input: &ApplyInput) -> serde_json::Value {
    let documents: Vec<_> = input
        .documents
        .iter()
        .map(|d| {
            json!([
                d.parsed.key().to_string(),
                d.parsed.json.to_string(),
                d.expected_revision
            ])
        })
        .collect();
    json!(["apply", documents, input.message])
}

/// The projects that the set names.
async fn find_projects(
    ctx: &TenantContext,
    tx: &Tx<'_>,
    input: &ApplyInput,
) -> Result<BTreeMap<Name, roadstead_authz::Authorized<Project, act::Write>>, Stop> {
    let mut projects = BTreeMap::new();
    let mut problems = Vec::new();
    for (index, document) in input.documents.iter().enumerate() {
        let Some(name) = &document.parsed.document.metadata.project else {
            let path = format!("documents[{index}].metadata.project");
            problems.push(Problem::new(
                path,
                "a project",
                "none",
                "the document belongs to no project",
            ));
            continue;
        };
        if projects.contains_key(name) {
            continue;
        }
        match tx.project_by_name(name).await? {
            Some(project) => {
                let proof = allow::<act::Write, _>(ctx, project, || format!("project {name}"))?;
                projects.insert(name.clone(), proof);
            }
            None => problems.push(
                Problem::new(
                    format!("documents[{index}].metadata.project"),
                    "the name of a project of this tenant",
                    format!("{:?}", name.as_str()),
                    "there is no such project",
                )
                .with_code("dangling"),
            ),
        }
    }
    if problems.is_empty() {
        Ok(projects)
    } else {
        Err(Error::Invalid { problems }.into())
    }
}

type Projects = BTreeMap<Name, roadstead_authz::Authorized<Project, act::Write>>;

async fn plan<'a>(
    tx: &Tx<'_>,
    projects: &'a Projects,
    document: &'a ApplyDocument,
    index: usize,
) -> Result<Planned<'a>, Stop> {
    let parsed = &document.parsed;
    let project = parsed
        .document
        .metadata
        .project
        .as_ref()
        .and_then(|name| projects.get(name));
    let project = project.ok_or_else(|| Error::internal("a document without its project"))?;
    let kind = parsed.document.kind();
    let name = parsed.document.metadata.name.as_str();
    let existing = tx.object_by_name(project.id, kind, name).await?;
    let current = existing.as_ref().map_or(0, |o| o.revision);
    check_expected(&parsed.key().to_string(), document.expected_revision, current)?;
    Ok(Planned::new(index, project, parsed, existing))
}

/// References, placements, duplicates, and instructions that can be rendered: everything that needs the rest of the
/// set or the project.
async fn check_set(
    tx: &Tx<'_>,
    projects: &Projects,
    input: &ApplyInput,
    planned: &[Planned<'_>],
) -> Result<(), Stop> {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for plan in planned {
        if !seen.insert(plan.parsed.key()) {
            let path = format!("documents[{}]", plan.index);
            let found = format!("{} twice", plan.parsed.key());
            problems.push(Problem::new(
                path,
                "each document once",
                found,
                "the same document is given twice",
            ));
        }
        write::check_own_project(plan, &mut problems);
        write::check_clusters(tx, plan, &mut problems).await?;
    }
    let known = write::known(tx, projects, planned).await?;
    let set: Vec<Parsed> = input.documents.iter().map(|d| d.parsed.clone()).collect();
    let own: BTreeSet<_> = set.iter().map(Parsed::key).collect();
    let exists = |kind: Kind, reference: &Reference| {
        known.contains_key(&(kind, reference.project.clone(), reference.name.clone()))
    };
    for problem in check_references(&set, exists) {
        problems.push(write::outward(problem));
    }
    if problems.is_empty() {
        write::check_rendering(tx, planned, &known, &own, &mut problems).await?;
        costs::check(tx, planned, &known, &mut problems).await?;
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid { problems }.into())
    }
}

/// What was written, by the index of the document; unchanged ones are not in it.
pub(super) type Changed = BTreeMap<usize, write::Written>;

async fn write_all(
    ctx: &TenantContext,
    tx: &mut Tx<'_>,
    planned: &[Planned<'_>],
    message: &str,
) -> Result<Changed, Stop> {
    let mut changed = Changed::new();
    for plan in planned {
        let written = match &plan.existing {
            Some(object) if object.digest == plan.digest => continue,
            Some(object) => {
                let proof = allow::<act::Write, _>(ctx, object.clone(), || plan.parsed.key().to_string())?;
                write::revise(tx, plan, &proof, message, Change::Updated).await?
            }
            None => write::create(tx, plan, message).await?,
        };
        changed.insert(plan.index, written);
    }
    Ok(changed)
}

async fn foretell(tx: &Tx<'_>, planned: &[Planned<'_>]) -> Result<Answer, Stop> {
    let clusters = tx.all_clusters().await?;
    let mut documents = Vec::new();
    for plan in planned {
        let (change, revision) = match &plan.existing {
            None => (Change::Created, 1),
            Some(object) if object.digest == plan.digest => (Change::Unchanged, object.revision),
            Some(object) => (Change::Updated, object.revision + 1),
        };
        let uid = plan.existing.as_ref().map(|o| o.id);
        documents.push(applied(tx, plan, change, uid, revision, &clusters).await?);
    }
    Ok(Answer {
        dry_run: true,
        documents,
    })
}

async fn report(tx: &Tx<'_>, planned: &[Planned<'_>], changed: &Changed) -> Result<Answer, Stop> {
    let agents = planned.iter().any(|p| p.parsed.document.kind() == Kind::Agent);
    let clusters = if agents {
        tx.all_clusters().await?
    } else {
        Vec::new()
    };
    let mut documents = Vec::new();
    for plan in planned {
        let written = changed.get(&plan.index);
        let object = written.map(|w| &w.object).or(plan.existing.as_ref());
        let change = written.map_or(Change::Unchanged, |w| w.change);
        let (uid, revision) = (object.map(|o| o.id), object.map_or(0, |o| o.revision));
        documents.push(applied(tx, plan, change, uid, revision, &clusters).await?);
    }
    Ok(Answer {
        dry_run: false,
        documents,
    })
}

async fn applied(
    tx: &Tx<'_>,
    plan: &Planned<'_>,
    change: Change,
    uid: Option<ObjectId>,
    revision: u64,
    clusters: &[roadstead_store::Cluster],
) -> Result<Applied, Stop> {
    let previous = match &plan.existing {
        Some(object) => previous(tx, object, plan, change).await?,
        None => None,
    };
    let placement = &plan.links.placement;
    let kind = plan.parsed.document.kind();
    let fits = clusters
        .iter()
        .filter(|c| kind == Kind::Agent && crate::placement::fits(placement, &c.name, &c.labels));
    Ok(Applied {
        change,
        uid,
        kind,
        project: plan.project.name.clone(),
        name: plan.parsed.document.metadata.name.to_string(),
        revision,
        previous,
        clusters: fits.map(|c| c.name.clone()).collect(),
    })
}

async fn previous(
    tx: &Tx<'_>,
    object: &Object,
    plan: &Planned<'_>,
    change: Change,
) -> Result<Option<String>, Stop> {
    if change == Change::Unchanged {
        return Ok(Some(plan.json.clone()));
    }
    Ok(tx.revision(object, object.revision).await?.map(|r| r.document))
}

/// The agent's spec, where the document is one.
pub(super) fn agent(document: &Document) -> Option<&roadstead_contract::documents::AgentSpec> {
    match &document.body {
        Body::Agent(spec) => Some(spec),
        _ => None,
    }
}
