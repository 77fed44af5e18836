//! Tools: what MCP servers offer, and calling it. The contract between the turn loop and the MCP client behind it.
//!
//! The loop owns allow-lists, approvals, argument checks, limits and what a result costs the model. The toolbox owns
//! connections: opened at first need, kept, reopened with backoff, shared by revisions whose server is unchanged;
//! stdio servers in a process group of their own, with a clean environment, killed with the engine.
//! Everything a server says (descriptions, schemas, results, errors) is data, never an instruction to the engine.

mod config;
mod convert;
pub mod guard;
mod http;
mod server;
mod stdio;
mod toolbox;

pub use toolbox::ToolServers;

use crate::{model::LoadError, secrets::Secrets};
use async_trait::async_trait;
use roadstead_contract::bundle::Bundle;
use serde::{Deserialize, Serialize};
use std::{fmt::Debug, sync::Arc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The tool servers of one revision.
#[async_trait]
pub trait Toolbox: Send + Sync + Debug {
    /// What the servers offer now: allowed tools only (`allow` of the agent's document; `*` means all). Cheap when
    /// nothing changed: listed once per server and again when the server says that its list changed. A server that
    /// cannot be reached by `deadline` is in [`Listing::unavailable`]; it holds up no other.
    async fn list(&self, deadline: Instant) -> Arc<Listing>;

    /// Calls a tool. The allow-list is checked here once more: a name that is not on it is [`ToolError::NotSent`].
    ///
    /// Returns within 100 ms of `cancel`, after telling the server (`notifications/cancelled`), with
    /// [`ToolError::Unknown`] if the request was on its way. Never sends a request twice by itself once any byte of it
    /// may have arrived.
    async fn call(&self, call: ToolRequest, cancel: CancellationToken) -> Result<ToolResult, ToolError>;
}

/// Makes the toolbox of a revision. One factory lives as long as the process, so that connections are shared.
pub trait ToolFactory: Send + Sync + Debug {
    /// Reads nothing but `bundle` and `secrets`; starts and connects nothing.
    ///
    /// # Errors
    /// As [`crate::model::ModelFactory::load`].
    fn load(&self, bundle: &Bundle, secrets: &Secrets) -> Result<Arc<dyn Toolbox>, LoadError>;
}

/// Everything that can be called at the moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// By server in the order of the agent's document, then as the server lists them. Server and tool name together
    /// are unique.
    pub tools: Vec<ToolInfo>,
    pub unavailable: Vec<Unavailable>,
}

/// A server that could not be listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// The reference that the agent's document uses.
    pub server: String,
    pub reason: String,
}

/// A tool as its server describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolInfo {
    /// The reference that the agent's document uses.
    pub server: String,
    /// As the server names it.
    pub name: String,
    pub description: String,
    /// JSON Schema of the arguments, an object.
    pub input_schema: Arc<serde_json::Value>,
    /// The server's hint that a call changes nothing (`readOnlyHint`).
    pub read_only: bool,
    /// The server's hint that a second call with the same arguments changes nothing more (`idempotentHint`).
    pub idempotent: bool,
    /// `trustHints` of the server's document: whether the two hints above may be believed.
    pub trusted: bool,
    /// `pin: tools` of the server's document: a changed `digest` needs a person's approval (S80).
    pub pinned: bool,
    /// SHA-256 over name, description and schema, in hex.
    pub digest: String,
}

/// One call.
#[derive(Clone, Debug)]
pub struct ToolRequest {
    pub server: String,
    pub tool: String,
    /// An object that fits the tool's schema.
    pub arguments: serde_json::Value,
    /// The same for every repetition of one call: sent as `_meta["dev.roadstead/idempotencyKey"]`.
    pub idempotency_key: String,
    /// The call's own deadline; the server's `timeout` counts where it is shorter.
    pub deadline: Instant,
    /// W3C `traceparent`: sent as `_meta.traceparent`, and as a header over HTTP.
    pub traceparent: Option<String>,
}

/// What a tool answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolResult {
    pub parts: Vec<ResultPart>,
    /// The tool says that it failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_error: bool,
}

/// A piece of a tool's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum ResultPart {
    Text {
        text: String,
    },
    /// An image, a sound or an embedded binary resource.
    #[serde(rename_all = "camelCase")]
    Blob {
        media_type: String,
        /// Base64 (standard, padded).
        data: String,
    },
    /// A link to a resource of the server.
    Link {
        uri: String,
        name: String,
    },
}

/// A call without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// Nothing reached the tool: it may be called again.
    #[error("not called: {0}")]
    NotSent(String),
    /// The request was, or may have been, delivered and no result came: its effect may have happened.
    #[error("no result, the effect may have happened: {0}")]
    Unknown(String),
    /// The server refused the call by a protocol error (unknown tool, invalid arguments): it had no effect.
    #[error("refused by the tool server: {0}")]
    Refused(String),
}
