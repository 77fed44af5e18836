//! The run record: one task as the hub knows it. No content, ever.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Completed,
    Failed,
    Canceled,
    Rejected,
}

/// One finished task. Delivered at least once; `id` makes it idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunRecord {
    /// UUIDv7 text, chosen by the engine when the task begins.
    pub id: String,
    /// The engine's sequence number of this record: gapless, per engine journal.
    pub sequence: u64,
    /// The agent's uid in the hub.
    pub agent_uid: String,
    /// The revision that the task began and ended on.
    pub generation: u64,
    pub task_id: String,
    pub session_id: String,
    /// Who asked: the verified subject of the call.
    pub subject: String,
    /// Milliseconds since the Unix epoch, UTC.
    pub started_at_ms: i64,
    pub ended_at_ms: i64,
    pub outcome: Outcome,
    /// A short code of why it ended (`limit.steps`, `model.unavailable`, …); empty when it completed.
    pub reason: String,
    /// The model that gave the last answer.
    pub model: String,
    pub model_calls: u32,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cached_input_tokens: u64,
    /// `true` where a provider gave no usage and the counts are estimates.
    pub estimated: bool,
    /// Millionths of `currency`; 0 where no price is known.
    pub cost_micros: u64,
    /// Empty where no price is known.
    pub currency: String,
    /// Calls by tool name (`server/tool`).
    pub tools: BTreeMap<String, ToolCalls>,
    /// W3C trace id of the task, hex; empty without a trace.
    pub trace_id: String,
}

/// How often a tool was called in one run, and how often that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToolCalls {
    pub calls: u32,
    pub errors: u32,
}
