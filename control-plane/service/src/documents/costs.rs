//! A cost limit without prices would never end a task: neither an agent nor a model that makes one is taken.

use super::{
    apply::agent,
    write::{Known, Planned, current, outward},
};
use roadstead_contract::{
    bundle::unpriced,
    documents::{Body, Document, Key, Kind, ModelSpec, Name, Parsed, Reference, check_costs},
};
use roadstead_domain::{Error, Problem};
use roadstead_store::Tx;
use std::collections::{BTreeMap, BTreeSet};

/// Documents outside of a set that are looked at for its limits; what lies beyond is left to the run time.
const MOST: usize = 500;

/// Agents of the set with the models that they will have, and agents outside of it with models of the set.
pub(super) async fn check(
    tx: &Tx<'_>,
    planned: &[Planned<'_>],
    known: &Known,
    problems: &mut Vec<Problem>,
) -> Result<(), Error> {
    let limited = |p: &&Planned<'_>| agent(&p.parsed.document).is_some_and(|s| s.limits.cost.is_some());
    if planned.iter().any(|p| limited(&p)) {
        let around = around(tx, planned, known).await?;
        let set: Vec<Parsed> = planned.iter().map(|p| p.parsed.clone()).collect();
        let found = check_costs(&set, |kind, reference| {
            around.get(&(kind, reference.project.clone(), reference.name.clone()))
        });
        problems.extend(found.into_iter().map(outward));
    }
    for plan in planned {
        check_users(tx, planned, plan, problems).await?;
    }
    Ok(())
}

/// Documents outside of the set, by what they are known as.
type Around = BTreeMap<(Kind, Option<Name>, Name), Document>;

/// The models and agents that the set refers to, and those that these agents refer to in turn.
async fn around(tx: &Tx<'_>, planned: &[Planned<'_>], known: &Known) -> Result<Around, Error> {
    let mut around = Around::new();
    let mut open = Vec::new();
    for ((kind, project, name), object) in known {
        if matches!(kind, Kind::Model | Kind::Agent) {
            let document = current(tx, object).await?;
            open.push((object.project, document.clone()));
            around.insert((*kind, project.clone(), name.clone()), document);
        }
    }
    let in_set: BTreeSet<Key> = planned.iter().map(|p| p.parsed.key()).collect();
    while let Some((project, document)) = open.pop() {
        let Some(spec) = agent(&document) else { continue };
        let models = spec.model.as_slice().iter().map(|model| (Kind::Model, model));
        let agents = spec.agents.iter().map(|sub| (Kind::Agent, &sub.name));
        for (kind, reference) in models.chain(agents) {
            // None leads out of its project.
            let named = document.metadata.project.clone();
            if reference.project.is_some() && reference.project != named {
                continue;
            }
            let key = Key {
                kind,
                project: named.clone(),
                name: reference.name.clone(),
            };
            let known_as = (kind, named, reference.name.clone());
            if in_set.contains(&key) || around.contains_key(&known_as) || around.len() >= MOST {
                continue;
            }
            if let Some(object) = tx.object_by_name(project, kind, reference.name.as_str()).await? {
                let found = current(tx, &object).await?;
                open.push((project, found.clone()));
                around.insert(known_as, found);
            }
        }
    }
    Ok(around)
}

fn model(document: &Document) -> Option<&ModelSpec> {
    match &document.body {
        Body::Model(spec) => Some(spec),
        _ => None,
    }
}

/// The agents outside of the set that use a model whose prices change.
async fn check_users(
    tx: &Tx<'_>,
    planned: &[Planned<'_>],
    plan: &Planned<'_>,
    problems: &mut Vec<Problem>,
) -> Result<(), Error> {
    let (Some(new), Some(existing)) = (model(&plan.parsed.document), &plan.existing) else {
        return Ok(());
    };
    let currency = |spec: Option<&ModelSpec>| Some(spec?.prices.as_ref()?.currency.clone());
    let before = current(tx, existing).await?;
    if currency(model(&before)) == currency(Some(new)) {
        return Ok(());
    }
    let name = &plan.parsed.document.metadata.name;
    let in_set: BTreeSet<&Name> = planned
        .iter()
        .filter(|p| p.project.id == plan.project.id && agent(&p.parsed.document).is_some())
        .map(|p| &p.parsed.document.metadata.name)
        .collect();
    let refers = |(kind, referred): &(Kind, String)| *kind == Kind::Model && referred == name.as_str();
    let nodes = tx.graph(Some(plan.project.id)).await?;
    let users = nodes
        .iter()
        .filter(|n| n.links.refers.iter().any(refers) && !in_set.iter().any(|own| own.as_str() == n.name));
    for user in users {
        let Some(object) = tx
            .object_by_name(plan.project.id, Kind::Agent, &user.name)
            .await?
        else {
            continue;
        };
        let document = current(tx, &object).await?;
        let Some(spec) = agent(&document) else { continue };
        let own = |reference: &Reference| (reference.name == *name).then_some(new);
        for unpriced in unpriced(spec, own) {
            let expected = format!(
                "prices in {}, since the agent {} has a limit of cost in it",
                unpriced.currency.as_str(),
                user.name
            );
            let path = format!("documents[{}].spec.prices", plan.index);
            let message = "its limit would never end a task: change the agent first, or in the same set";
            problems.push(Problem::new(path, expected, unpriced.found(), message).with_code("wrongValue"));
        }
    }
    Ok(())
}
