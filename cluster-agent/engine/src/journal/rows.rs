//! What the journal keeps, as values.

use crate::model::{ToolCall, Usage};
use roadstead_contract::{control::Budget, run::ToolCalls};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Of a task; the numbers are those of the table, and everything below 3 is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    Submitted,
    Working,
    InputRequired,
    Completed,
    Failed,
    Canceled,
    Rejected,
}

impl TaskState {
    pub(super) fn number(self) -> i64 {
        self as i64
    }
    pub(super) fn from_number(number: i64) -> Self {
        match number {
            0 => Self::Submitted,
            1 => Self::Working,
            2 => Self::InputRequired,
            3 => Self::Completed,
            5 => Self::Canceled,
            6 => Self::Rejected,
            _ => Self::Failed,
        }
    }
    /// Nothing more happens to it.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self.number() >= 3
    }
}

/// Of a tool step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    /// Not yet sent: it may be.
    Planned,
    /// Sent, or about to be: without a result nobody knows whether it took effect.
    Sent,
    /// The result is there.
    Done,
}

impl StepState {
    pub(super) fn number(self) -> i64 {
        self as i64
    }
    pub(super) fn from_number(number: i64) -> Self {
        match number {
            0 => Self::Planned,
            1 => Self::Sent,
            _ => Self::Done,
        }
    }
}

/// A part of what a caller sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "camelCase")]
pub enum InPart {
    Text {
        text: String,
    },
    Data {
        data: serde_json::Value,
    },
    #[serde(rename_all = "camelCase")]
    File {
        name: String,
        media_type: String,
        /// Base64 (standard, padded).
        data: String,
    },
}

/// An entry of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "camelCase")]
pub enum Entry {
    /// From the caller.
    #[serde(rename_all = "camelCase")]
    User { message_id: String, parts: Vec<InPart> },
    /// From the model.
    #[serde(rename_all = "camelCase")]
    Assistant {
        text: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<ToolCall>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        provider_state: Option<crate::model::ProviderState>,
        /// Byte offsets in `text` at which a stream was cut and gone on with.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        cuts: Vec<usize>,
        /// It is JSON that fits the agent's output schema.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        json: bool,
    },
    /// A caller's answer to an approval: kept, not sent to the model.
    #[serde(rename_all = "camelCase")]
    Answer { message_id: String, parts: Vec<InPart> },
    /// From the engine to the model, not shown (the answer does not fit the output schema, …).
    Note { text: String },
}

impl Entry {
    pub(super) fn kind(&self) -> i64 {
        match self {
            Self::User { .. } => 0,
            Self::Assistant { .. } => 1,
            Self::Note { .. } => 2,
            Self::Answer { .. } => 3,
        }
    }
}

/// What other agents used up for a task. It counts against the task's limits and is not in its run record: theirs have
/// it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spent {
    pub model_calls: u32,
    pub tool_calls: u32,
    pub tokens: u64,
    /// Millionths, by currency.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub costs: BTreeMap<String, u64>,
}

impl Spent {
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn add(&mut self, more: &Self) {
        self.model_calls = self.model_calls.saturating_add(more.model_calls);
        self.tool_calls = self.tool_calls.saturating_add(more.tool_calls);
        self.tokens = self.tokens.saturating_add(more.tokens);
        for (currency, micros) in &more.costs {
            let sum = self.costs.entry(currency.clone()).or_default();
            *sum = sum.saturating_add(*micros);
        }
    }
}

/// What a task has used up so far; the counts of its run record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counters {
    pub model_calls: u32,
    pub tool_calls: u32,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cached_tokens: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    pub cost_micros: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub currency: String,
    /// Milliseconds of work, without the time it waited for a person.
    pub active_ms: u64,
    pub retries: u32,
    /// Model of the last answer.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// By `server/tool`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<String, ToolCalls>,
    /// Calls in a row that were refused before they were made (unknown tool, bad arguments), by tool name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, u32>,
    /// By agents that were called.
    #[serde(skip_serializing_if = "Spent::is_nothing")]
    pub handed: Spent,
}

impl Counters {
    /// Input and output together.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens)
    }

    pub(crate) fn add_usage(&mut self, usage: Usage) {
        self.input_tokens = self.input_tokens.saturating_add(usage.input);
        self.output_tokens = self.output_tokens.saturating_add(usage.output);
        self.cached_tokens = self.cached_tokens.saturating_add(usage.cached);
        self.estimated |= usage.estimated;
    }
}

/// Where a task came from: kept so that it goes on alike after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Origin {
    pub run_id: String,
    /// How deep in a chain of agent calls.
    pub depth: u32,
    /// The uids of the agents that the call came through.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<String>,
    /// What the calling agent left of its limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// W3C `traceparent` of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// A tool call to be written down before it is made.
#[derive(Clone, Debug, PartialEq)]
pub struct NewStep {
    /// Empty for a call that names no tool.
    pub server: String,
    pub tool: String,
    pub state: StepState,
    /// JSON of [`StepResult`]; with it the step is [`StepState::Done`].
    pub result: Option<StepResult>,
}

/// What became of a call, as the model and the caller read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepResult {
    /// Capped text.
    pub text: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_error: bool,
    /// Images and resources that the text only mentions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<crate::tools::ResultPart>,
    /// Under which the session keeps the whole text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The parts are artifacts of the task.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given: bool,
    /// By the agent that was called: kept with its answer, so that a kill loses neither or both.
    #[serde(default, skip_serializing_if = "Spent::is_nothing")]
    pub spent: Spent,
}

/// A tool step as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub id: i64,
    pub server: String,
    pub tool: String,
    pub state: StepState,
    pub result: Option<StepResult>,
}

/// What a person is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// May this call be made?
    Approve,
    /// The call was sent before the engine stopped and has no result: repeat it?
    Unknown,
    /// What the model wants to know: the answer is the call's result.
    Asked,
}

impl Question {
    pub(super) fn from_number(number: i64) -> Self {
        match number {
            1 => Self::Unknown,
            2 => Self::Asked,
            _ => Self::Approve,
        }
    }
}

/// What the person said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Make the call; repeat it.
    Yes,
    /// Do not; the model is told.
    No,
    /// Nobody answered in time.
    Expired,
    /// The person's words are in the reason.
    Answered,
    /// Used up: another question took its place.
    Void,
}

impl Decision {
    pub(super) fn from_number(number: i64) -> Self {
        match number {
            0 => Self::Yes,
            1 => Self::No,
            3 => Self::Answered,
            4 => Self::Void,
            _ => Self::Expired,
        }
    }
}

/// What a tool says of itself now, where that is not what was approved: a person sees it before they decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// SHA-256 over name, description and schema, in hex.
    pub digest: String,
    pub description: String,
    /// JSON Schema of the arguments, as text.
    pub parameters: String,
}

/// A decision that a task waits for, or had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    pub uid: String,
    pub step: i64,
    pub question: Question,
    /// SHA-256 over server, tool and arguments (and the change, where there is one), in hex.
    pub digest: String,
    pub change: Option<Change>,
    pub expires_ms: i64,
    pub decision: Option<Decision>,
    pub reason: String,
    pub decided_by: String,
}
