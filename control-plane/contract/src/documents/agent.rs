//! `kind: Agent`.

use super::{Count, Duration, Money, Name, Quantity, Reference};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An AI agent: instructions, a model, tools, sub-agents, limits, and where it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentSpec {
    /// Shown on the A2A card.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What the agent is told: a text, or a template with variables.
    pub instructions: Instructions,
    /// A model, or several: the first that answers.
    pub model: ModelList,
    /// What the agent may use of which tool servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<ToolUse>,
    /// Other agents, offered to the model as tools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<SubAgent>,
    /// Caps of one task.
    #[serde(default)]
    pub limits: Limits,
    /// What callers may send.
    #[serde(default = "text_only")]
    pub input: Vec<Mode>,
    /// What the agent answers with.
    #[serde(default = "text_only")]
    pub output: Vec<Mode>,
    /// JSON Schema of a structured answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<serde_json::Value>,
    /// What happens when a crash leaves a tool call without a known result.
    #[serde(default)]
    pub on_unknown_result: OnUnknownResult,
    /// Whether the agent may stop and ask the person who gave it the task.
    #[serde(default, skip_serializing_if = "Questions::are_never")]
    pub questions: Questions,
    /// Nothing here means nowhere.
    #[serde(default, skip_serializing_if = "Placement::is_empty")]
    pub placement: Placement,
    /// How the engine runs.
    #[serde(default)]
    pub runtime: Runtime,
}

fn text_only() -> Vec<Mode> {
    vec![Mode::Text]
}

/// A string, or `{template, variables}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Instructions {
    Text(String),
    Template(Template),
}

/// A template: `{{ include("prompt-name") }}` and `{{ variable }}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Template {
    /// The text with its placeholders.
    pub template: String,
    /// Values of the template's variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
}

/// One reference or a list of them, in order of preference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ModelList {
    One(Reference),
    Several(Vec<Reference>),
}

impl ModelList {
    /// The references in order of preference.
    #[must_use]
    pub fn as_slice(&self) -> &[Reference] {
        match self {
            Self::One(reference) => std::slice::from_ref(reference),
            Self::Several(references) => references,
        }
    }
}

/// What an agent may use of one tool server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToolUse {
    /// Name of the ToolServer.
    pub server: Reference,
    /// Tool names. Required: an agent never gets all by silence; `["*"]` says it aloud.
    pub allow: Vec<String>,
    /// Tools of which a person decides each call; `["*"]`: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approve: Vec<String>,
}

impl ToolUse {
    /// Whether the agent may call this tool of the server at all.
    #[must_use]
    pub fn allows(&self, tool: &str) -> bool {
        self.allow.iter().any(|name| name == "*" || name == tool)
    }

    /// Whether a person decides each call of this tool (`["*"]`: of every tool).
    #[must_use]
    pub fn needs_approval(&self, tool: &str) -> bool {
        self.approve.iter().any(|name| name == "*" || name == tool)
    }
}

/// Another agent as a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SubAgent {
    /// Name of the Agent.
    pub name: Reference,
    /// `true`: each call begins a new session of that agent.
    #[serde(default)]
    pub isolate: bool,
}

/// Caps of one task (and of the sessions held); checked before each step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Model calls in one task.
    pub steps: u32,
    /// Tokens in one task, input and output together.
    pub tokens: Count,
    /// Longest time of one task.
    pub wall_time: Duration,
    /// Tool calls in one task.
    pub tool_calls: u32,
    /// Tasks that may be active at once, each in its own session.
    pub sessions: u32,
    /// Money in one task; counted where the model's document has prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Money>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            steps: 24,
            tokens: Count(200_000),
            wall_time: Duration::from_secs(600),
            tool_calls: 64,
            sessions: 50,
            cost: None,
        }
    }
}

/// A kind of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    Text,
    File,
}

/// After a crash between a tool call and its result, where the call cannot be known to be safe to repeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnUnknownResult {
    /// A person says what happened.
    #[default]
    Ask,
    /// The task fails.
    Fail,
    /// The model is told that the effect may have happened.
    Tell,
}

/// Whether an agent may ask its person something in the middle of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Questions {
    /// It works with what it was told: its callers may be programs, which have nobody to ask.
    #[default]
    Never,
    /// The model has the tool `ask_user`: the task waits, at most 24h, for the person's next message. A task that
    /// another agent gave has nobody to ask and does not get the tool.
    Ask,
}

impl Questions {
    /// Left out of what is written where it says nothing new.
    fn are_never(&self) -> bool {
        *self == Self::Never
    }
}

/// Which clusters an agent runs on: names, or a selector over the clusters' labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Placement {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
}

impl Placement {
    /// `true` when it names no cluster at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty() && self.selector.is_none()
    }
}

/// Labels that must all match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    pub match_labels: BTreeMap<String, String>,
}

/// How the engine runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Runtime {
    /// Processes at once.
    pub replicas: u32,
    /// What one process may use.
    pub resources: Resources,
    /// Whose program it is.
    pub engine: Engine,
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            replicas: 1,
            resources: Resources::default(),
            engine: Engine::default(),
        }
    }
}

/// Requests and limits, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    pub requests: Quantities,
    pub limits: Quantities,
}

/// Quantities as Kubernetes writes them (`50m`, `256Mi`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Quantities {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}

/// Empty: Roadstead's engine. With an image: your own, if it speaks A2A.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Engine {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}
