//! Agents: what should run, and what does.

use super::{Action, Connection, Document, Run, connection, moment, request};
use crate::{calls, error::Result};
use async_graphql::{Context, Enum, ID, Json, Object, SimpleObject};
use chrono::{DateTime, Utc};
use roadstead_service::runs;
use roadstead_store::RunFilter;
use serde_json::Value;
use std::collections::BTreeMap;

/// An AI agent.
#[derive(Clone, Debug)]
pub(crate) struct Agent(pub(crate) roadstead_store::Object);

/// How an engine is.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    Starting,
    Ready,
    Degraded,
    Failed,
    Stopping,
    /// The cluster agent refused the document; the one before runs on.
    Rejected,
    Unknown,
}

impl Phase {
    /// The word of a report; a word of a newer cluster agent is unknown, never an error.
    fn of(word: &str) -> Self {
        match word {
            "Pending" => Self::Pending,
            "Starting" => Self::Starting,
            "Ready" => Self::Ready,
            "Degraded" => Self::Degraded,
            "Failed" => Self::Failed,
            "Stopping" => Self::Stopping,
            "Rejected" => Self::Rejected,
            _ => Self::Unknown,
        }
    }
}

/// What should run on a cluster.
#[derive(SimpleObject, Clone, Debug)]
pub(crate) struct Wanted {
    revision: u64,
    /// Whether the cluster agent has it on disk.
    persisted: bool,
    /// Whether the cluster agent says that it runs.
    applied: bool,
}

/// What runs on a cluster, as its cluster agent last reported.
#[derive(SimpleObject, Clone, Debug)]
pub(crate) struct Running {
    /// The revision that the report is about.
    revision: u64,
    phase: Phase,
    /// A code; empty when all is well.
    reason: String,
    /// For people.
    message: String,
    /// When the hub heard it.
    since: DateTime<Utc>,
    /// How old the report is.
    report_age_seconds: u64,
}

/// An agent on one cluster: observed, not wished.
#[derive(SimpleObject, Clone, Debug)]
pub(crate) struct Placement {
    /// The cluster's name.
    cluster: String,
    cluster_id: ID,
    wanted: Wanted,
    /// Null until the cluster has reported.
    running: Option<Running>,
}

impl Placement {
    fn new(placed: roadstead_store::Placed, now_ms: i64) -> Self {
        let running = placed.status.map(|status| Running {
            revision: status.observed_generation,
            phase: Phase::of(&status.phase),
            reason: status.reason,
            message: status.message,
            since: moment(status.at_ms),
            report_age_seconds: u64::try_from((now_ms - status.at_ms) / 1000).unwrap_or(0),
        });
        Self {
            cluster: placed.cluster_name,
            cluster_id: placed.cluster.to_string().into(),
            wanted: Wanted {
                revision: placed.generation,
                persisted: placed.persisted,
                applied: placed.applied,
            },
            running,
        }
    }
}

#[Object]
impl Agent {
    pub(crate) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }
    async fn project(&self) -> &str {
        &self.0.project_name
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    /// As on its A2A card.
    #[graphql(complexity = "2")]
    async fn description(&self, ctx: &Context<'_>) -> Result<String> {
        let document = calls::document(ctx, &self.0).await?;
        let text = document.pointer("/spec/description").and_then(Value::as_str);
        Ok(text.unwrap_or_default().to_owned())
    }
    /// The current revision: 1, 2, 3, …
    async fn revision(&self) -> u64 {
        self.0.revision
    }
    async fn labels(&self) -> Json<BTreeMap<String, String>> {
        Json(self.0.labels.clone())
    }
    async fn created_at(&self) -> DateTime<Utc> {
        moment(self.0.created_ms)
    }
    async fn updated_at(&self) -> DateTime<Utc> {
        moment(self.0.updated_ms)
    }
    /// The agent's document.
    async fn document(&self) -> Document {
        self.0.clone().into()
    }
    /// Where it should run and what does, by the cluster's name.
    #[graphql(complexity = "1 + crate::cost::SHORT_LIST * child_complexity")]
    async fn placements(&self, ctx: &Context<'_>) -> Result<Vec<Placement>> {
        let now_ms = calls::app(ctx).store.clock().now_ms();
        let described = calls::described(ctx, &self.0).await?;
        let placed = described.get().and_then(Option::as_ref).map(|d| d.placed.clone());
        Ok(placed
            .unwrap_or_default()
            .into_iter()
            .map(|p| Placement::new(p, now_ms))
            .collect())
    }
    /// Its finished tasks, newest first.
    #[graphql(complexity = "1 + crate::cost::page(first) * child_complexity")]
    async fn runs(
        &self,
        ctx: &Context<'_>,
        first: Option<u32>,
        after: Option<String>,
    ) -> Result<Connection<Run>> {
        let (caller, store) = calls::both(ctx);
        let filter = RunFilter {
            agent: self.0.id.agent(),
            ..RunFilter::default()
        };
        let page = runs::list(caller, store, &filter, &request(first, after)).await?;
        Ok(connection(page, Run))
    }
    /// What the caller may do with it.
    async fn actions(&self, ctx: &Context<'_>) -> Vec<Action> {
        Document::from(self.0.clone()).actions_for(calls::context(ctx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_not_known_is_no_error() {
        assert_eq!(Phase::of("Ready"), Phase::Ready);
        assert_eq!(Phase::of("Hibernating"), Phase::Unknown);
    }
}
