//! What the schema needs of the clusters themselves; the composition root puts fleet behind it.

use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use roadstead_domain::{AgentId, ClusterId, Error};
use secrecy::SecretString;
use std::fmt;

/// One line of an engine's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// `None` where the cluster agent gave none.
    pub time: Option<DateTime<Utc>>,
    pub line: String,
}

/// What is wanted of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRequest {
    pub agent: AgentId,
    /// At most this many of the last lines.
    pub tail: u32,
    /// Whether to go on with new lines as they come.
    pub follow: bool,
}

/// Lines as they come. An error ends them.
pub type LogLines = BoxStream<'static, Result<LogLine, Error>>;

/// Clusters, live.
#[async_trait::async_trait]
pub trait Fleet: Send + Sync + fmt::Debug + 'static {
    /// Whether the cluster has a session now; `None` where only another replica would know.
    fn connected(&self, cluster: ClusterId) -> Option<bool>;

    /// Looks now at how the cluster stands in the database, so that a revocation ends its session at once.
    async fn look(&self, cluster: ClusterId);

    /// The token to show, made of its secret part: with the pin of the hub's authority.
    fn join_token(&self, secret: &SecretString) -> SecretString;

    /// Reads an engine's log. Dropping the stream cancels the reading.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with the reason when the cluster is away or the engine has no log.
    async fn logs(&self, cluster: ClusterId, request: LogRequest) -> Result<LogLines, Error>;
}
