//! One agent with everything it refers to: what an engine runs.

use crate::documents::{
    AgentSpec, Body, Currency, Document, Kind, ModelSpec, Name, PromptSpec, Reference, ToolServerSpec,
    template::{Piece, pieces},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// An agent's revision with its models, tool servers and prompts, by the reference that the agent uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bundle {
    pub project: Name,
    pub name: Name,
    /// The agent's id in the hub; the name of the file's agent where an engine runs alone.
    pub uid: String,
    /// The agent document's generation (its revision number).
    pub generation: u64,
    pub agent: AgentSpec,
    pub models: BTreeMap<String, ModelSpec>,
    pub tool_servers: BTreeMap<String, ToolServerSpec>,
    pub prompts: BTreeMap<String, PromptSpec>,
}

/// A reference to a document that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: expected the name of a {kind} in the set or the project, found {reference}")]
pub struct Dangling {
    /// Path in the agent's document.
    pub path: String,
    pub kind: Kind,
    pub reference: String,
}

/// A model that an agent's cost limit does not measure: the limit would never end a task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: expected {}, found {}", Self::PATH, self.expected(), self.found())]
pub struct Unpriced {
    /// The currency of the limit.
    pub currency: Currency,
    pub model: Reference,
    /// The currency of its prices.
    pub prices: Option<Currency>,
}

impl Unpriced {
    /// Path in the agent's document.
    pub const PATH: &str = "spec.limits.cost";

    #[must_use]
    pub fn expected(&self) -> String {
        let (currency, model) = (self.currency.as_str(), &self.model);
        format!(
            "prices in {currency} of the model {model}, which the limit is measured by (0 where it is free)"
        )
    }

    #[must_use]
    pub fn found(&self) -> String {
        let prices = self.prices.as_ref();
        prices.map_or_else(
            || "none".to_owned(),
            |found| format!("prices in {}", found.as_str()),
        )
    }
}

/// The models of an agent that its cost limit does not measure. Models that `model` does not know are not among them.
pub fn unpriced<'a>(spec: &AgentSpec, model: impl Fn(&Reference) -> Option<&'a ModelSpec>) -> Vec<Unpriced> {
    let limit = spec.limits.cost.as_ref();
    limit.map_or_else(Vec::new, |limit| unmeasured(&limit.currency, spec, model))
}

/// The models of an agent that have no prices in `currency`, as for [`unpriced`].
pub fn unmeasured<'a>(
    currency: &Currency,
    spec: &AgentSpec,
    model: impl Fn(&Reference) -> Option<&'a ModelSpec>,
) -> Vec<Unpriced> {
    let unmeasured = |reference: &Reference| {
        let prices = model(reference)?.prices.as_ref().map(|p| p.currency.clone());
        (prices.as_ref() != Some(currency)).then(|| Unpriced {
            currency: currency.clone(),
            model: reference.clone(),
            prices,
        })
    };
    spec.model.as_slice().iter().filter_map(unmeasured).collect()
}

impl Bundle {
    /// Joins `agent` with what it refers to among `documents`. References without a project mean `project`.
    ///
    /// # Errors
    /// Every dangling reference, with its path in the agent's document.
    pub fn resolve<'a>(
        project: &Name,
        agent: (&Name, &str, u64, &AgentSpec),
        documents: impl Fn(Kind, &Reference) -> Option<&'a Document>,
    ) -> Result<Self, Vec<Dangling>> {
        let (name, uid, generation, spec) = agent;
        let mut bundle = Self {
            project: project.clone(),
            name: name.clone(),
            uid: uid.to_owned(),
            generation,
            agent: spec.clone(),
            models: BTreeMap::new(),
            tool_servers: BTreeMap::new(),
            prompts: BTreeMap::new(),
        };
        let mut dangling = Vec::new();
        for (path, kind, reference) in references(spec) {
            let qualified = Reference {
                project: Some(reference.project.clone().unwrap_or_else(|| project.clone())),
                name: reference.name.clone(),
            };
            match (kind, documents(kind, &qualified).map(|d| &d.body)) {
                (_, Some(Body::Model(model))) => {
                    bundle.models.insert(reference.to_string(), model.clone());
                }
                (_, Some(Body::ToolServer(server))) => {
                    bundle.tool_servers.insert(reference.to_string(), server.clone());
                }
                (_, Some(Body::Prompt(prompt))) => {
                    bundle.prompts.insert(reference.to_string(), prompt.clone());
                }
                (Kind::Agent, Some(Body::Agent(_))) => {}
                _ => dangling.push(Dangling {
                    path,
                    kind,
                    reference: reference.to_string(),
                }),
            }
        }
        if dangling.is_empty() {
            Ok(bundle)
        } else {
            Err(dangling)
        }
    }

    /// SHA-256 over the bundle's JSON, in hex: equal digests mean the same thing to run.
    #[must_use]
    pub fn digest(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        hex::encode(Sha256::digest(json))
    }
}

/// Each reference of an agent: its path in the document, the kind it must have, and the reference.
///
/// Prompts are found in the instructions' `include("…")`; a template that is none, or an include whose name is no
/// reference, is left to the check of the document.
#[must_use]
pub fn references(spec: &AgentSpec) -> Vec<(String, Kind, Reference)> {
    use crate::documents::{Instructions, ModelList};
    let mut found = Vec::new();
    if let Instructions::Template(template) = &spec.instructions {
        for (_, piece) in pieces(&template.template).unwrap_or_default() {
            let Piece::Include(name) = piece else { continue };
            if let Ok(reference) = name.parse() {
                found.push(("spec.instructions.template".to_owned(), Kind::Prompt, reference));
            }
        }
    }
    match &spec.model {
        ModelList::One(reference) => found.push(("spec.model".to_owned(), Kind::Model, reference.clone())),
        ModelList::Several(list) => {
            found.extend(
                list.iter()
                    .enumerate()
                    .map(|(i, r)| (format!("spec.model[{i}]"), Kind::Model, r.clone())),
            );
        }
    }
    let tools = spec.tools.iter().enumerate();
    found.extend(tools.map(|(i, t)| {
        (
            format!("spec.tools[{i}].server"),
            Kind::ToolServer,
            t.server.clone(),
        )
    }));
    let agents = spec.agents.iter().enumerate();
    found.extend(agents.map(|(i, a)| (format!("spec.agents[{i}].name"), Kind::Agent, a.name.clone())));
    found
}
