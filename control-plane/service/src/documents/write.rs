//! The steps that every write of a document is made of.

use super::apply::agent;
use super::{Change, apply::Changed};
use crate::placement;
use roadstead_authz::{Authorized, act};
use roadstead_contract::bundle::{Bundle, references};
use roadstead_contract::documents::{
    self, Document, Instructions, Key, Kind, Name, Parsed, Reference, parse_value, render_instructions,
};
use roadstead_contract::fleet::{Digest, document_digest};
use roadstead_domain::{Error, Problem};
use roadstead_store::{AuditEntry, Links, NewObject, NewRevision, Object, Project, Revises, Tx};
use std::collections::{BTreeMap, BTreeSet};

/// A document that is about to be written.
#[derive(Debug)]
pub(super) struct Planned<'a> {
    /// In the input.
    pub(super) index: usize,
    pub(super) project: &'a Authorized<Project, act::Write>,
    pub(super) parsed: &'a Parsed,
    pub(super) existing: Option<Object>,
    pub(super) json: String,
    pub(super) digest: Digest,
    pub(super) links: Links,
}

/// A document that was written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) change: Change,
    pub(super) object: Object,
    /// Placement or references are not what they were.
    pub(super) relinked: bool,
}

impl<'a> Planned<'a> {
    pub(super) fn new(
        index: usize,
        project: &'a Authorized<Project, act::Write>,
        parsed: &'a Parsed,
        existing: Option<Object>,
    ) -> Self {
        let json = parsed.json.to_string();
        Self {
            index,
            project,
            parsed,
            existing,
            digest: document_digest(json.as_bytes()),
            json,
            links: links(&parsed.document),
        }
    }
}

/// Placement and references of an agent; nothing for other kinds.
pub(super) fn links(document: &Document) -> Links {
    let Some(spec) = agent(document) else {
        return Links::default();
    };
    let refers: BTreeSet<(Kind, String)> = references(spec)
        .into_iter()
        .map(|(_, kind, reference)| (kind, reference.name.to_string()))
        .collect();
    Links {
        placement: spec.placement.clone(),
        refers: refers.into_iter().collect(),
    }
}

/// References into other projects need grants, which are not there yet.
pub(super) fn check_own_project(plan: &Planned<'_>, problems: &mut Vec<Problem>) {
    let Some(spec) = agent(&plan.parsed.document) else {
        return;
    };
    for (path, _, reference) in references(spec) {
        if reference
            .project
            .as_ref()
            .is_some_and(|p| p.as_str() != plan.project.name)
        {
            let problem = Problem::new(
                format!("documents[{}].{path}", plan.index),
                "a name in the same project",
                format!("{:?}", reference.to_string()),
                "references into other projects are not available yet",
            );
            problems.push(problem.with_code("notAvailable"));
        }
    }
}

/// Clusters that a placement names must be there: a slip of the pen would otherwise place an agent nowhere.
pub(super) async fn check_clusters(
    tx: &Tx<'_>,
    plan: &Planned<'_>,
    problems: &mut Vec<Problem>,
) -> Result<(), Error> {
    if plan
        .existing
        .as_ref()
        .is_some_and(|o| o.links.placement == plan.links.placement)
    {
        return Ok(());
    }
    for (at, name) in plan.links.placement.clusters.iter().enumerate() {
        if tx.cluster_by_name(name).await?.is_none() {
            let problem = Problem::new(
                format!("documents[{}].spec.placement.clusters[{at}]", plan.index),
                "the name of a cluster of this tenant",
                format!("{:?}", name.as_str()),
                "there is no such cluster",
            );
            problems.push(problem.with_code("dangling"));
        }
    }
    Ok(())
}

/// Objects outside the set that the set refers to.
pub(super) type Known = BTreeMap<(Kind, Option<Name>, Name), Object>;

/// Looks up what the set's agents refer to and the set itself does not bring.
pub(super) async fn known(
    tx: &Tx<'_>,
    projects: &BTreeMap<Name, Authorized<Project, act::Write>>,
    planned: &[Planned<'_>],
) -> Result<Known, Error> {
    let own: BTreeSet<Key> = planned.iter().map(|p| p.parsed.key()).collect();
    let mut known = Known::new();
    for plan in planned {
        let Some(name) = &plan.parsed.document.metadata.project else {
            continue;
        };
        let Some(project) = projects.get(name) else {
            continue;
        };
        for (kind, referred) in &plan.links.refers {
            let Ok(referred) = referred.parse::<Name>() else {
                continue;
            };
            let key = Key {
                kind: *kind,
                project: Some(name.clone()),
                name: referred.clone(),
            };
            let known_as = (*kind, Some(name.clone()), referred);
            if own.contains(&key) || known.contains_key(&known_as) {
                continue;
            }
            if let Some(object) = tx.object_by_name(project.id, *kind, key.name.as_str()).await? {
                known.insert(known_as, object);
            }
        }
    }
    Ok(known)
}

/// Instructions with a template are rendered once, as the engine will: only then their length is known.
pub(super) async fn check_rendering(
    tx: &Tx<'_>,
    planned: &[Planned<'_>],
    known: &Known,
    own: &BTreeSet<Key>,
    problems: &mut Vec<Problem>,
) -> Result<(), Error> {
    let templated = planned.iter().filter(|p| {
        agent(&p.parsed.document).is_some_and(|s| matches!(s.instructions, Instructions::Template(_)))
    });
    let templated: Vec<_> = templated.collect();
    if templated.is_empty() {
        return Ok(());
    }
    let mut documents: BTreeMap<Key, Document> = planned
        .iter()
        .map(|p| (p.parsed.key(), p.parsed.document.clone()))
        .collect();
    for ((kind, project, name), object) in known {
        let key = Key {
            kind: *kind,
            project: project.clone(),
            name: name.clone(),
        };
        if !own.contains(&key) {
            documents.insert(key, current(tx, object).await?);
        }
    }
    for plan in templated {
        let Some(spec) = agent(&plan.parsed.document) else {
            continue;
        };
        let metadata = &plan.parsed.document.metadata;
        let Some(project) = &metadata.project else {
            continue;
        };
        let find = |kind: Kind, reference: &Reference| {
            let key = Key {
                kind,
                project: reference.project.clone(),
                name: reference.name.clone(),
            };
            documents.get(&key)
        };
        let Ok(bundle) = Bundle::resolve(project, (&metadata.name, "", 0, spec), find) else {
            continue;
        };
        if let Err(error) = render_instructions(&bundle) {
            let path = format!("documents[{}].spec.instructions.template", plan.index);
            let problem = Problem::new(
                path,
                "a template that can be rendered",
                "one that cannot",
                error.to_string(),
            );
            problems.push(problem.with_code("template"));
        }
    }
    Ok(())
}

/// The current document of an object.
pub(super) async fn current(tx: &Tx<'_>, object: &Object) -> Result<Document, Error> {
    let revision = tx.revision(object, object.revision).await?;
    let revision = revision.ok_or_else(|| Error::internal("an object without its current revision"))?;
    Ok(reparse(object, &revision.document)
        .map_err(|_| Error::internal("a stored document that does not parse"))?
        .document)
}

/// Reads a stored document again.
pub(super) fn reparse(object: &Object, json: &str) -> Result<Parsed, Vec<documents::Problem>> {
    let project: Name = object.project_name.parse().map_err(|_| Vec::new())?;
    let value: serde_json::Value = serde_json::from_str(json).map_err(|_| Vec::new())?;
    parse_value(
        &format!("{}/{}", object.project_name, object.name),
        &value,
        &project,
    )
}

/// A problem of the contract's as one of the hub's: the place in the file leads the message.
pub(super) fn outward(problem: documents::Problem) -> Problem {
    let code = serde_json::to_value(problem.code)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned));
    let place = match (problem.document, problem.path.as_str()) {
        (Some(index), "") => format!("documents[{index}]"),
        (Some(index), path) => format!("documents[{index}].{path}"),
        (None, path) => path.to_owned(),
    };
    let message = problem.at.map_or_else(
        || problem.file.clone(),
        |at| format!("{}:{}:{}", problem.file, at.line, at.column),
    );
    let hint = problem.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
    Problem::new(place, problem.expected, problem.found + &hint, message).with_code(code.unwrap_or_default())
}

/// Writes the first revision.
pub(super) async fn create(tx: &mut Tx<'_>, plan: &Planned<'_>, message: &str) -> Result<Written, Error> {
    let metadata = &plan.parsed.document.metadata;
    let new = NewObject {
        kind: plan.parsed.document.kind(),
        name: metadata.name.as_str(),
        labels: &metadata.labels,
        links: &plan.links,
        revision: NewRevision {
            document: &plan.json,
            digest: plan.digest,
            message,
        },
    };
    let object = tx.insert_object(plan.project, new).await?;
    record(tx, &object, Change::Created, plan.project.grant()).await?;
    Ok(Written {
        change: Change::Created,
        relinked: object.id.kind() == Kind::Agent,
        object,
    })
}

/// Writes the next revision.
pub(super) async fn revise<A: Revises>(
    tx: &mut Tx<'_>,
    plan: &Planned<'_>,
    object: &Authorized<Object, A>,
    message: &str,
    change: Change,
) -> Result<Written, Error> {
    let new = NewRevision {
        document: &plan.json,
        digest: plan.digest,
        message,
    };
    let labels = &plan.parsed.document.metadata.labels;
    let revised = tx.revise_object(object, new, labels, &plan.links).await?;
    record(tx, &revised, change, object.grant()).await?;
    Ok(Written {
        change,
        relinked: revised.links != object.links,
        object: revised,
    })
}

async fn record(tx: &mut Tx<'_>, object: &Object, change: Change, grant: &str) -> Result<(), Error> {
    let entry = AuditEntry::allowed(change.action(), object.id, grant)
        .revision(object.revision)
        .with("project", object.project_name.as_str())
        .with("name", object.name.as_str())
        .with("digest", object.digest.to_hex());
    tx.audit(entry).await
}

/// Brings the clusters' desired sets up to date with what was written.
pub(super) async fn place(tx: &mut Tx<'_>, changed: &Changed) -> Result<(), Error> {
    let relinked: BTreeSet<_> = changed
        .values()
        .filter(|w| w.relinked)
        .map(|w| w.object.project)
        .collect();
    for project in &relinked {
        placement::recompute(tx, Some(*project)).await?;
    }
    let rest: Vec<Object> = changed
        .values()
        .filter(|w| w.change != Change::Created && !relinked.contains(&w.object.project))
        .map(|w| w.object.clone())
        .collect();
    placement::refresh(tx, &rest).await
}
