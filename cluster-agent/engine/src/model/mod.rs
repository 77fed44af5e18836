//! Models: one call is one stream of events. The contract between the turn loop and the providers behind it.
//!
//! The loop owns retries, fall-back to the next model, budgets, and what is done with tool calls. A provider owns the
//! wire: it sends every option of its document or refuses to load, tells errors apart by [`ErrorClass`], and reads
//! tool calls that a small model wrote as text. It opens no connection before the first call, keeps connections
//! between calls and across revisions, and never logs a request, an answer or a key.

mod anthropic;
mod call;
mod clients;
mod errors;
mod frames;
mod ollama;
mod openai;
mod providers;
mod repair;
mod sink;
mod text_calls;
mod thoughts;

pub(crate) use errors::shown;

pub use clients::{HttpClients, describe, origin, parse_url};
pub use providers::Providers;

use crate::secrets::Secrets;
use futures::stream::BoxStream;
use roadstead_contract::{bundle::Bundle, documents::Prices};
use serde::{Deserialize, Serialize};
use std::{fmt::Debug, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Deepest nesting of JSON that comes from outside and is kept: what is written must be readable again, and readers
/// stop at 128 levels with what stands around it.
pub(crate) const MAX_DEPTH: usize = 64;

/// Whether `value` is nested deeper than [`MAX_DEPTH`].
pub(crate) fn is_deep(value: &serde_json::Value) -> bool {
    fn beyond(value: &serde_json::Value, left: usize) -> bool {
        match value {
            serde_json::Value::Array(list) => left == 0 || list.iter().any(|v| beyond(v, left - 1)),
            serde_json::Value::Object(map) => left == 0 || map.values().any(|v| beyond(v, left - 1)),
            _ => false,
        }
    }
    beyond(value, MAX_DEPTH)
}

/// The events of one call. Ends after [`ModelEvent::Stop`] or after the first error. Dropping it cancels the call:
/// the connection to the provider is closed or its stream reset at once.
pub type ModelStream = BoxStream<'static, Result<ModelEvent, ModelError>>;

/// One model with its endpoint, key and options.
pub trait Model: Send + Sync + Debug {
    /// The reference by which the agent's document names it (`fast`, `shared/fast`).
    fn reference(&self) -> &str;
    /// The model's name as the provider knows it; goes into run records and spans (`gen_ai.request.model`).
    fn name(&self) -> &str;
    /// `gen_ai.provider.name` of the GenAI semantic conventions (`openai`, `anthropic`, …).
    fn provider(&self) -> &'static str;
    /// What its tokens cost, where the document says.
    fn prices(&self) -> Option<&Prices>;
    /// `options.timeout` of the document: the longest time from request to end of stream.
    fn timeout(&self) -> Option<Duration>;
    /// Whether requests may carry files ([`Part::File`]).
    fn takes_files(&self) -> bool {
        false
    }
    /// Sends `request` and streams the answer.
    ///
    /// Returns at once; a connection or status error is the stream's first item. No later than `deadline` the stream
    /// ends, with [`ErrorClass::Timeout`] if the answer was not complete. No retries inside.
    fn stream(&self, request: Arc<ChatRequest>, deadline: Instant) -> ModelStream;
}

/// Makes the models of a revision. One factory lives as long as the process, so that HTTP clients are shared and kept.
pub trait ModelFactory: Send + Sync + Debug {
    /// The agent's models in order of preference. Reads nothing but `bundle` and `secrets`; opens no connection.
    ///
    /// # Errors
    /// A provider that is not built, an option it cannot send, a missing secret, a bad endpoint: with the path in the
    /// document, what was expected and what was found, and never a secret value.
    fn load(&self, bundle: &Bundle, secrets: &Secrets) -> Result<Vec<Arc<dyn Model>>, LoadError>;
}

/// Why a revision's models or tools do not load.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct LoadError {
    /// Document and path in it (`Model fast: spec.endpoint`).
    pub path: String,
    /// Expected, found, what to do.
    pub reason: String,
}

/// What the model is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatRequest {
    /// The instructions, rendered. Empty: none.
    pub system: String,
    /// Oldest first. A [`ChatMessage::Assistant`] with tool calls is followed by one [`ChatMessage::Tool`] for each,
    /// in call order. The last may be an `Assistant` without tool calls: an answer that was cut, to be gone on with.
    pub messages: Vec<ChatMessage>,
    /// Tools offered; empty: none.
    pub tools: Arc<[ToolSchema]>,
    /// JSON Schema of the wanted answer: sent where the provider can hold the model to it, else left out (the loop
    /// checks the answer itself).
    pub output_schema: Option<Arc<serde_json::Value>>,
    /// What the task's limits leave: the provider sends the smaller of this and `options.maxOutputTokens`.
    pub max_output_tokens: Option<u32>,
    /// W3C `traceparent` header for the request.
    pub traceparent: Option<String>,
}

/// A tool as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSchema {
    /// `^[a-zA-Z0-9_-]{1,64}$`, unique in a request.
    pub name: String,
    pub description: String,
    /// JSON Schema of the arguments, an object.
    pub parameters: Arc<serde_json::Value>,
}

/// One entry of the conversation. Kept in the journal in this form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "camelCase")]
pub enum ChatMessage {
    User {
        parts: Vec<Part>,
    },
    #[serde(rename_all = "camelCase")]
    Assistant {
        text: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<ToolCall>,
        /// From [`ModelEvent::ProviderState`]; only meaningful to the provider that gave it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        provider_state: Option<ProviderState>,
    },
    #[serde(rename_all = "camelCase")]
    Tool {
        call_id: String,
        name: String,
        /// What the model reads: already capped.
        text: String,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
    },
}

/// A part of a user's message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "camelCase")]
pub enum Part {
    Text {
        text: String,
    },
    #[serde(rename_all = "camelCase")]
    File {
        name: String,
        media_type: String,
        /// Base64 (standard, padded).
        data: String,
    },
}

/// What a provider wants to see again with an answer (signed thinking blocks and the like).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProviderState {
    /// [`Model::provider`] of the one who gave it; another provider ignores it.
    pub provider: String,
    pub value: serde_json::Value,
}

/// A tool call that a model asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolCall {
    /// The provider's id, or one made up where it gave none; unique in its answer.
    pub id: String,
    /// As the model wrote it; may name no tool at all.
    pub name: String,
    /// The arguments; where `problem` is set, the text that could not be read, as a JSON string.
    pub arguments: serde_json::Value,
    /// Why the arguments could not be read as JSON, even after one repair: told to the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A piece of the answer, in the order in which the provider sent it.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelEvent {
    /// Text to show; never empty. A tool call written as text is not in here but in [`ModelEvent::ToolCall`].
    Text(String),
    /// Thoughts; never empty. Not part of the answer.
    Reasoning(String),
    /// A complete call: the provider collects its deltas.
    ToolCall(ToolCall),
    /// At most once, before `Stop`.
    ProviderState(serde_json::Value),
    /// The call's total so far; the last one counts. Comes before `Stop`, also where it had to be estimated.
    Usage(Usage),
    /// The answer is complete. Last.
    Stop(StopReason),
}

/// Tokens of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// All input, cached included.
    pub input: u64,
    /// All output, reasoning included.
    pub output: u64,
    /// The part of `input` that came from the provider's cache.
    pub cached: u64,
    /// The provider gave none: counted by us (4 bytes a token).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
}

/// Why the model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StopReason {
    /// It had said all.
    End,
    /// It waits for tool results.
    ToolCalls,
    /// `max_output_tokens` or the context is used up.
    Length,
    /// The provider's filter cut it.
    Filtered,
}

/// A call that failed. The message says what happened, for a person; no key, no request and no answer text in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    pub class: ErrorClass,
    pub message: String,
}

/// What may be done about a failed call. The loop retries only while nothing was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// No connection, or it broke before the status line. Retried.
    Connect,
    /// An HTTP status other than the ones below; 408 and 5xx are retried.
    Status(u16),
    /// 429, and 503 or 529 with the same meaning, with the header `Retry-After` where there was one. Retried.
    RateLimited { retry_after: Option<Duration> },
    /// The stream broke or ended before it was complete. Retried, or continued where text was shown.
    Cut,
    /// The answer was not what the protocol says. Retried once.
    Nonsense,
    /// The deadline passed.
    Timeout,
    /// The provider refuses this request for good (400, 401, 403, 404, 422, unknown model, too long). Not retried.
    Refused,
}
