//! Commands: what a cluster agent is to do once, and what came of it.

use super::moment;
use async_graphql::{Enum, ID, Object, SimpleObject};
use chrono::{DateTime, Utc};
use roadstead_store::{CommandCode as Code, CommandKind as Kind};

/// What is to be done.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[graphql(remote = "Kind")]
pub(crate) enum CommandKind {
    /// The process of an agent's engine is ended, and another started.
    RestartEngine,
}

/// Where a command is.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandState {
    /// The cluster agent has not been told.
    Waiting,
    /// The cluster agent was told; its answer is awaited, even after the expiry: only it knows what it did.
    Sent,
    /// It has its result, which stands.
    Done,
}

/// How a command ended.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[graphql(remote = "Code")]
pub(crate) enum CommandCode {
    Succeeded,
    /// Begun, and it did not come to its end.
    Failed,
    /// Never begun: it cannot be done there.
    Refused,
    /// Never begun: its time was over.
    Expired,
    /// Nobody knows whether it was done: the cluster agent ended while it ran, or does not answer any more.
    Unknown,
}

/// What came of a command: one result, the first.
#[derive(SimpleObject, Clone, Debug)]
pub(crate) struct CommandResult {
    code: CommandCode,
    /// For people.
    detail: String,
    /// When the hub had it.
    time: DateTime<Utc>,
}

/// Something that a cluster agent does at most once.
#[derive(Clone, Debug)]
pub(crate) struct Command(pub(crate) roadstead_store::Command);

#[Object]
impl Command {
    pub(crate) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }
    async fn kind(&self) -> CommandKind {
        self.0.kind.into()
    }
    /// The cluster's name.
    async fn cluster(&self) -> &str {
        &self.0.cluster_name
    }
    async fn cluster_id(&self) -> ID {
        self.0.cluster.to_string().into()
    }
    async fn project(&self) -> &str {
        &self.0.project_name
    }
    /// The agent's name.
    async fn agent(&self) -> &str {
        &self.0.agent_name
    }
    async fn agent_id(&self) -> ID {
        self.0.agent.to_string().into()
    }
    /// As the audit log names who asked for it.
    async fn created_by(&self) -> &str {
        &self.0.created_by
    }
    async fn created_at(&self) -> DateTime<Utc> {
        moment(self.0.created_ms)
    }
    /// It is not begun at this moment or later.
    async fn expires_at(&self) -> DateTime<Utc> {
        moment(self.0.expires_ms)
    }
    async fn state(&self) -> CommandState {
        match (&self.0.result, self.0.sent) {
            (Some(_), _) => CommandState::Done,
            (None, true) => CommandState::Sent,
            (None, false) => CommandState::Waiting,
        }
    }
    /// Null until it has one.
    async fn result(&self) -> Option<CommandResult> {
        self.0.result.as_ref().map(|result| CommandResult {
            code: result.code.into(),
            detail: result.detail.clone(),
            time: moment(result.at_ms),
        })
    }
}
