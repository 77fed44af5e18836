//! A limit of cost needs prices in its currency, of the agent's own models and of those of the agents that it calls:
//! a task that is handed on brings its limits along.

use super::{
    AgentSpec, Body, Document, Kind, Name, Reference,
    parse::{Key, Parsed},
    problem::{Finding, Problem, ProblemCode},
};
use crate::bundle::{Unpriced, unmeasured, unpriced};
use std::collections::{BTreeMap, BTreeSet};

/// Every agent of the set with a cost limit that a model of it, or of an agent below it, does not measure. `known` is
/// asked for what is not in the set, with the project filled in; what it does not know is left to
/// [`super::check_references`] and to the run time.
pub fn check_costs<'a>(
    parsed: &'a [Parsed],
    known: impl Fn(Kind, &Reference) -> Option<&'a Document>,
) -> Vec<Problem> {
    let own: BTreeMap<Key, &Document> = parsed.iter().map(|p| (p.key(), &p.document)).collect();
    let find = |kind: Kind, project: Option<&Name>, reference: &Reference| {
        let key = Key {
            kind,
            project: reference.project.clone().or_else(|| project.cloned()),
            name: reference.name.clone(),
        };
        let found = own.get(&key).copied();
        found.or_else(|| {
            known(
                kind,
                &Reference {
                    project: key.project,
                    name: key.name,
                },
            )
        })
    };
    let mut problems = Vec::new();
    for (index, item) in parsed.iter().enumerate() {
        for (path, expected, found) in of_document(&item.document, &find) {
            let finding = Finding {
                code: ProblemCode::WrongValue,
                at: item.node.locate(&path),
                path,
                expected,
                found,
                hint: None,
            };
            problems.push(finding.in_file(&item.file, Some(index)));
        }
    }
    problems
}

/// Path, what was expected there, and what was found.
type Found = (String, String, String);

fn of_document<'a>(
    document: &'a Document,
    find: &impl Fn(Kind, Option<&Name>, &Reference) -> Option<&'a Document>,
) -> Vec<Found> {
    let Some(spec) = agent(document) else {
        return Vec::new();
    };
    let Some(limit) = &spec.limits.cost else {
        return Vec::new();
    };
    let model = |of: &'a Document| {
        move |reference: &Reference| {
            let found = find(Kind::Model, of.metadata.project.as_ref(), reference)?;
            match &found.body {
                Body::Model(spec) => Some(spec),
                _ => None,
            }
        }
    };
    let own = unpriced(spec, model(document)).into_iter();
    let mut all: Vec<Found> = own
        .map(|one| (Unpriced::PATH.to_owned(), one.expected(), one.found()))
        .collect();
    for (at, direct) in spec.agents.iter().enumerate() {
        for below in below(document, &direct.name, find) {
            let Some(spec) = agent(below) else { continue };
            let name = &below.metadata.name;
            all.extend(unmeasured(&limit.currency, spec, model(below)).into_iter().map(|one| {
                let expected = format!(
                    "prices in {} of the model {} of the agent {name}, since the limit of cost holds for what is handed \
                     to it",
                    limit.currency.as_str(),
                    one.model
                );
                (format!("spec.agents[{at}]"), expected, one.found())
            }));
        }
    }
    all
}

/// The agent that `reference` of `document` names and those below it, each once.
fn below<'a>(
    document: &'a Document,
    reference: &Reference,
    find: &impl Fn(Kind, Option<&Name>, &Reference) -> Option<&'a Document>,
) -> Vec<&'a Document> {
    let mut seen: BTreeSet<(Option<&Name>, &Name)> = BTreeSet::new();
    // Itself, if it calls itself, has been looked at.
    seen.insert((document.metadata.project.as_ref(), &document.metadata.name));
    let first = find(Kind::Agent, document.metadata.project.as_ref(), reference);
    let mut open: Vec<&Document> = first.into_iter().collect();
    let mut all = Vec::new();
    while let Some(next) = open.pop() {
        let project = next.metadata.project.as_ref();
        if !seen.insert((project, &next.metadata.name)) {
            continue;
        }
        all.push(next);
        let deeper = agent(next).into_iter().flat_map(|spec| &spec.agents);
        open.extend(deeper.filter_map(|sub| find(Kind::Agent, project, &sub.name)));
    }
    all
}

fn agent(document: &Document) -> Option<&AgentSpec> {
    match &document.body {
        Body::Agent(spec) => Some(spec),
        _ => None,
    }
}
