//! The way to an engine, as the gateway needs it; the composition root puts fleet's tunnel registry behind it.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{future::BoxFuture, stream::BoxStream};
use http::{HeaderMap, Method, StatusCode};
use roadstead_domain::{AgentId, ClusterId};
use std::{fmt, io, time::Duration};

/// Bytes as they come; an error means that the other side broke off. One that holds [`TunnelError::Revoked`] says that the
/// hub has ended the call, which the caller is told.
pub type Chunks = BoxStream<'static, io::Result<Bytes>>;

/// One HTTP request to the engine of one agent.
pub struct EngineCall {
    pub agent: AgentId,
    pub method: Method,
    /// Below the engine's address, with the query: `/`, `/tasks?pageSize=10`.
    pub path: String,
    /// Among them the engine's token: not to be logged.
    pub headers: HeaderMap,
    pub body: Chunks,
    /// For the whole call, streams too.
    pub deadline: Duration,
}

impl fmt::Debug for EngineCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineCall")
            .field("agent", &self.agent)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// What the engine answers, while it answers. Dropping the body cancels the call.
pub struct EngineAnswer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Chunks,
    /// Ready once the certificate of the agent's cluster is revoked; never where that does not happen. The body says it too,
    /// but only to whoever takes from it.
    pub revoked: BoxFuture<'static, ()>,
}

impl fmt::Debug for EngineAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineAnswer")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// The cluster has no session with the hub.
    #[error("the cluster is not connected")]
    Away { since: Option<DateTime<Utc>> },
    /// The cluster is there and the engine is not ready to answer; why, for people.
    #[error("the engine does not answer: {0}")]
    NotReady(String),
    /// No answer began in time.
    #[error("no answer within the deadline")]
    Deadline,
    /// The call broke off before an answer began.
    #[error("the call broke off: {0}")]
    Broken(String),
    /// The certificate of the agent's cluster was revoked while the call ran.
    #[error("the agent's cluster was revoked")]
    Revoked,
}

/// Calls engines in their clusters. Dropping the future, or the answer's body, cancels the call at the engine.
#[async_trait::async_trait]
pub trait Tunnel: Send + Sync + fmt::Debug + 'static {
    /// Whether a call to this cluster could be made now.
    async fn connected(&self, cluster: ClusterId) -> bool;

    /// Makes the call; answers as soon as the engine's status and headers are there.
    async fn call(&self, cluster: ClusterId, call: EngineCall) -> Result<EngineAnswer, TunnelError>;
}
