//! Runs: tasks as the hub knows them, without content.

use super::moment;
use async_graphql::{Enum, ID, Object, SimpleObject};
use chrono::{DateTime, Utc};
use roadstead_contract::run::Outcome as RunOutcome;

/// An amount of money.
#[derive(SimpleObject, Clone, Debug)]
pub(crate) struct Money {
    /// Millionths of the currency's unit.
    pub(crate) micros: u64,
    /// ISO 4217.
    pub(crate) currency: String,
}

/// How a task ended.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[graphql(remote = "RunOutcome")]
pub(crate) enum Outcome {
    Completed,
    Failed,
    Canceled,
    Rejected,
}

/// How often a tool was called in one run, and how often that failed.
#[derive(SimpleObject, Clone, Debug)]
pub(crate) struct ToolUse {
    /// `server/tool`.
    name: String,
    calls: u32,
    errors: u32,
}

/// One finished task of an agent.
#[derive(Clone, Debug)]
pub(crate) struct Run(pub(crate) roadstead_store::Run);

fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[Object]
impl Run {
    pub(crate) async fn id(&self) -> ID {
        self.0.id.to_string().into()
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
    /// The revision that the task began and ended on.
    async fn revision(&self) -> u64 {
        self.0.record.generation
    }
    /// The cluster's name.
    async fn cluster(&self) -> &str {
        &self.0.cluster_name
    }
    /// As in A2A.
    async fn task_id(&self) -> &str {
        &self.0.record.task_id
    }
    /// A2A's context.
    async fn session_id(&self) -> &str {
        &self.0.record.session_id
    }
    /// Who asked.
    async fn subject(&self) -> &str {
        &self.0.record.subject
    }
    async fn started_at(&self) -> DateTime<Utc> {
        moment(self.0.record.started_at_ms)
    }
    async fn ended_at(&self) -> DateTime<Utc> {
        moment(self.0.record.ended_at_ms)
    }
    /// When the hub kept the record.
    async fn received_at(&self) -> DateTime<Utc> {
        moment(self.0.received_ms)
    }
    async fn outcome(&self) -> Outcome {
        self.0.record.outcome.into()
    }
    /// A short code of why it ended (`limit.steps`); empty when it completed.
    async fn reason(&self) -> &str {
        &self.0.record.reason
    }
    /// The model that gave the last answer.
    async fn model(&self) -> &str {
        &self.0.record.model
    }
    async fn model_calls(&self) -> u32 {
        self.0.record.model_calls
    }
    async fn input_tokens(&self) -> u64 {
        self.0.record.input_tokens
    }
    async fn output_tokens(&self) -> u64 {
        self.0.record.output_tokens
    }
    async fn cached_input_tokens(&self) -> u64 {
        self.0.record.cached_input_tokens
    }
    /// Whether the counts are estimates, because a provider gave none.
    async fn estimated(&self) -> bool {
        self.0.record.estimated
    }
    /// Null where no price is known.
    async fn cost(&self) -> Option<Money> {
        let currency = text(&self.0.record.currency)?.to_owned();
        Some(Money {
            micros: self.0.record.cost_micros,
            currency,
        })
    }
    #[graphql(complexity = "1 + crate::cost::SHORT_LIST * child_complexity")]
    async fn tools(&self) -> Vec<ToolUse> {
        let tools = self.0.record.tools.iter();
        tools
            .map(|(name, used)| ToolUse {
                name: name.clone(),
                calls: used.calls,
                errors: used.errors,
            })
            .collect()
    }
    /// W3C trace id, hex.
    async fn trace_id(&self) -> Option<&str> {
        text(&self.0.record.trace_id)
    }
}
