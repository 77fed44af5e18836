//! A limit of cost needs prices in its currency, of the agent's own models and of those of the agents that it calls:
//! a task that is handed on brings its limits along.

use super::{
    AgentSpec, Body, Document, Kind, Name, Reference,
    parse::{Key, Parsed},
    problem::{Finding, MAX_PROBLEMS, Problem, ProblemCode},
    scalars::Currency,
};
use crate::bundle::{Unpriced, unmeasured, unpriced};
use std::collections::{BTreeMap, VecDeque};

/// Every agent of the set with a cost limit that a model of it, or of an agent below it, does not measure (the nearest for
/// each agent that it calls; at most [`MAX_PROBLEMS`] in all). `known` is
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
    // An agent that stands in the set twice is refused elsewhere.
    let items: Vec<(usize, &Parsed)> = parsed
        .iter()
        .enumerate()
        .filter(|(_, item)| {
            own.get(&item.key())
                .is_some_and(|of| std::ptr::eq(*of, &raw const item.document))
        })
        .filter(|(_, item)| agent(&item.document).is_some())
        .collect();
    let tops: Vec<&Document> = items.iter().map(|(_, item)| &item.document).collect();
    let located = |(at, (path, expected, found)): (usize, Found)| {
        let (index, item) = items.get(at)?;
        let finding = Finding {
            code: ProblemCode::WrongValue,
            at: item.node.locate(&path),
            path,
            expected,
            found,
            hint: None,
        };
        Some(finding.in_file(&item.file, Some(*index)))
    };
    findings(&tops, &find).into_iter().filter_map(located).collect()
}

/// Path, what was expected there, and what was found.
type Found = (String, String, String);

/// The agents that are looked at, and who of them calls whom: everything is looked up once, however often it is named.
struct Graph<'a> {
    agents: Vec<&'a Document>,
    /// By agent, in the order of its document; `None` for one that is not known.
    calls: Vec<Vec<Option<usize>>>,
    callers: Vec<Vec<usize>>,
}

impl<'a> Graph<'a> {
    /// Of these agents and those below them.
    fn of(
        tops: impl Iterator<Item = &'a Document>,
        find: &impl Fn(Kind, Option<&Name>, &Reference) -> Option<&'a Document>,
    ) -> Self {
        let mut graph = Self {
            agents: Vec::new(),
            calls: Vec::new(),
            callers: Vec::new(),
        };
        let mut places = BTreeMap::new();
        for top in tops {
            graph.place(&mut places, top);
        }
        let mut next = 0;
        while let Some(document) = graph.agents.get(next).copied() {
            let project = document.metadata.project.as_ref();
            let direct = agent(document).into_iter().flat_map(|spec| &spec.agents);
            let calls: Vec<_> = direct
                .map(|sub| find(Kind::Agent, project, &sub.name).map(|found| graph.place(&mut places, found)))
                .collect();
            for called in calls.iter().flatten() {
                graph.callers[*called].push(next);
            }
            graph.calls.push(calls);
            next += 1;
        }
        graph
    }

    fn place(
        &mut self,
        places: &mut BTreeMap<(Option<&'a Name>, &'a Name), usize>,
        document: &'a Document,
    ) -> usize {
        let key = (document.metadata.project.as_ref(), &document.metadata.name);
        *places.entry(key).or_insert_with(|| {
            self.agents.push(document);
            self.callers.push(Vec::new());
            self.agents.len() - 1
        })
    }

    /// For each agent the nearest of these that it is or calls, directly or by others.
    fn nearest(&self, of: impl Iterator<Item = usize>) -> Vec<Option<usize>> {
        let mut nearest = vec![None; self.agents.len()];
        let mut open: VecDeque<usize> = of.inspect(|at| nearest[*at] = Some(*at)).collect();
        while let Some(at) = open.pop_front() {
            for caller in &self.callers[at] {
                if nearest[*caller].is_none() {
                    nearest[*caller] = nearest[at];
                    open.push_back(*caller);
                }
            }
        }
        nearest
    }
}

/// What the agents' limits are not measured by, with the place of each agent in `tops`.
fn findings<'a>(
    tops: &[&'a Document],
    find: &impl Fn(Kind, Option<&Name>, &Reference) -> Option<&'a Document>,
) -> Vec<(usize, Found)> {
    let model = |of: &'a Document| {
        move |reference: &Reference| {
            let found = find(Kind::Model, of.metadata.project.as_ref(), reference)?;
            match &found.body {
                Body::Model(spec) => Some(spec),
                _ => None,
            }
        }
    };
    let graph = Graph::of(tops.iter().copied(), find);
    let mut by_currency: BTreeMap<&Currency, Vec<Option<usize>>> = BTreeMap::new();
    let mut all = Vec::new();
    for (at, top) in tops.iter().enumerate() {
        let Some((spec, limit)) = agent(top).and_then(|spec| Some((spec, spec.limits.cost.as_ref()?))) else {
            continue;
        };
        let own = unpriced(spec, model(top)).into_iter();
        all.extend(own.map(|one| (at, (Unpriced::PATH.to_owned(), one.expected(), one.found()))));
        let currency = &limit.currency;
        let lacks = |document: &'a Document| {
            agent(document).map_or_else(Vec::new, |spec| unmeasured(currency, spec, model(document)))
        };
        let nearest = by_currency.entry(currency).or_insert_with(|| {
            graph.nearest((0..graph.agents.len()).filter(|at| !lacks(graph.agents[*at]).is_empty()))
        });
        let calls = graph.calls.get(at).into_iter().flatten().enumerate();
        let below = calls.filter_map(|(n, called)| Some((n, nearest[(*called)?]?)));
        // Its own models have been looked at.
        for (n, below) in below.filter(|(_, below)| *below != at) {
            let below = graph.agents[below];
            all.extend(lacks(below).into_iter().map(|one| {
                let (currency, name) = (currency.as_str(), &below.metadata.name);
                let expected = format!(
                    "prices in {currency} of the model {} of the agent {name}, since the limit of cost holds for what is \
                     handed to it",
                    one.model
                );
                (at, (format!("spec.agents[{n}]"), expected, one.found()))
            }));
        }
        if all.len() >= MAX_PROBLEMS {
            break;
        }
    }
    all.truncate(MAX_PROBLEMS);
    all
}

fn agent(document: &Document) -> Option<&AgentSpec> {
    match &document.body {
        Body::Agent(spec) => Some(spec),
        _ => None,
    }
}
