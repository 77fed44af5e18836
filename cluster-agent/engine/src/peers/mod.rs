//! Calls to other engines, on behalf of a task's user.

mod a2a;

pub use a2a::Peers;

use crate::{journal::Spent, tools::ToolError};
use async_trait::async_trait;
use roadstead_contract::control::Budget;
use std::fmt::Debug;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Deepest chain of agent calls; a call that would be deeper is not made.
pub const MAX_DEPTH: u32 = 5;

/// A task handed to another agent.
#[derive(Clone, Debug)]
pub struct PeerCall {
    /// As the agent's document names it.
    pub reference: String,
    pub message: String,
    /// The A2A message id: the other engine answers a known one with what it began.
    pub idempotency_key: String,
    /// The session to go on with there; `None` begins one.
    pub context: Option<String>,
    /// The user for whom this engine works.
    pub subject: String,
    /// How deep the called task is.
    pub depth: u32,
    /// The uids of the agents on the way, the calling one last.
    pub chain: Vec<String>,
    /// What the called task may use up.
    pub budget: Budget,
    /// What the caller's limits leave of wall time ends with this.
    pub deadline: Instant,
    pub traceparent: Option<String>,
}

/// What the other agent answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAnswer {
    pub text: String,
    /// The task there did not complete.
    pub is_error: bool,
    /// What it used up, and the agents that it called; nothing where it does not say.
    pub spent: Spent,
}

/// The way to other engines.
#[async_trait]
pub trait PeerCalls: Send + Sync + Debug {
    /// Hands a task over and waits for its end. `cancel` cancels the task there, too.
    async fn call(&self, call: PeerCall, cancel: CancellationToken) -> Result<PeerAnswer, ToolError>;
}
