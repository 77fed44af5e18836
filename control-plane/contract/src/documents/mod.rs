//! The documents people write: one format for files, CLI, editor and custom resources.
//!
//! The schema derived from these types is the truth; unknown fields are errors; no field ever holds a secret value.

mod agent;
mod agent_rules;
mod check;
mod costs;
mod explain;
mod local;
mod model;
mod model_rules;
mod parse;
mod problem;
mod rules;
mod scalars;
mod schema;
pub(crate) mod template;
mod tool_server;
mod tool_server_rules;
mod tree;
mod yaml;

pub use agent::{
    AgentSpec, Engine, Instructions, Limits, Mode, ModelList, OnUnknownResult, Placement, Quantities,
    Questions, Resources, Runtime, Selector, SubAgent, Template, ToolUse,
};
pub use costs::check_costs;
pub use explain::{ExplainError, explain};
pub use local::{BeyondLocal, beyond_local};
pub use model::{BindingKey, EnvKey, ModelOptions, ModelSpec, Prices, Provider, ReasoningEffort, SecretRef};
pub use parse::{
    Key, MAX_JSON, MAX_SET, Parsed, Source, check_references, parse_files, parse_value, parse_values,
};
pub use problem::{MAX_PROBLEMS, Problem, ProblemCode};
pub use scalars::{Count, Currency, Decimal, Duration, Money, Name, Quantity, Reference, ScalarError};
pub use schema::schema;
pub use template::{MAX_INSTRUCTIONS, TemplateError, render_instructions};
pub use tool_server::{
    HeaderValue, HttpServer, ImageServer, PackageServer, Pin, StdioServer, ToolServerSpec, Transport,
};
pub use tree::Position;
pub use yaml::MAX_FILE;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The only `apiVersion` there is.
pub const API_VERSION: &str = "roadstead.dev/v1alpha1";

/// The kinds of document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    Agent,
    Model,
    ToolServer,
    Prompt,
}

impl Kind {
    /// Every kind, in the order in which documents are written so that references come first.
    pub const ALL: [Self; 4] = [Self::Prompt, Self::Model, Self::ToolServer, Self::Agent];

    /// The name as it stands in a document's `kind`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "Agent",
            Self::Model => "Model",
            Self::ToolServer => "ToolServer",
            Self::Prompt => "Prompt",
        }
    }

    /// The kind of that name; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What every document says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique among the documents of its kind in its project.
    pub name: Name,
    /// The project the document belongs to; the caller's default project where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Name>,
    /// For selection: `key: value`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// For people and tools; kept as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A document: `apiVersion`, `kind`, `metadata`, `spec`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    pub api_version: &'static str,
    pub metadata: Metadata,
    #[serde(flatten)]
    pub body: Body,
}

impl Document {
    /// The kind that the body says.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.body.kind()
    }
}

/// The part of a document that differs by kind; serialised as `kind` and `spec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", content = "spec")]
pub enum Body {
    Agent(Box<AgentSpec>),
    Model(ModelSpec),
    ToolServer(ToolServerSpec),
    Prompt(PromptSpec),
}

impl Body {
    /// Which kind this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Agent(_) => Kind::Agent,
            Self::Model(_) => Kind::Model,
            Self::ToolServer(_) => Kind::ToolServer,
            Self::Prompt(_) => Kind::Prompt,
        }
    }
}

/// A text that instructions can include by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PromptSpec {
    /// The text, included as it is.
    pub text: String,
}
