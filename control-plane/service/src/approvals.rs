//! Decisions on approvals. The engine takes them and holds them to what was asked; the hub says who may, and keeps who
//! did (S82, S89).

use crate::{documents::Target, stop::record};
use roadstead_authz::{Action, Decision, Resource as _, TenantContext, decide};
use roadstead_domain::{AgentId, Error};
use roadstead_store::{AuditEntry, Outcome, Store};
use serde_json::json;

/// Decisions of one message, on their way to an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The task that waits for them.
    pub task: String,
    pub verdicts: Vec<Verdict>,
}

/// One decision. Names and digests, no content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `None` where a plain text answers the only one that is asked for.
    pub approval: Option<String>,
    /// SHA-256 of what was asked, as the caller names it.
    pub digest: Option<String>,
    /// Whether the call may happen.
    pub yes: bool,
}

/// Records decisions before they are passed on: allowed for who may approve calls of this agent, or says no to a task
/// of their own; denied otherwise, as the engine will.
///
/// # Errors
/// [`Error::NotFound`] for the agent; [`Error::Unavailable`]. What could not be recorded must not be passed on.
pub async fn record_decided(
    ctx: &TenantContext,
    store: &Store,
    agent: AgentId,
    decided: &Decided,
) -> Result<(), Error> {
    let object = {
        let tx = store.tenant(ctx).read().await?;
        Target::Id(agent.into()).find(&tx).await?
    };
    let yes = decided.verdicts.iter().any(|v| v.yes);
    let action = Action::Approve.as_str();
    let entry = match decide(ctx, Action::Approve, &object.place()) {
        Decision::Allow { grant } => AuditEntry::allowed(action, object.id, grant),
        Decision::Deny { .. } if !yes => AuditEntry::allowed(action, object.id, "the task's own subject"),
        Decision::Deny { reason } => {
            AuditEntry::refused(Outcome::Denied, action, object.id).with("reason", reason)
        }
    };
    let verdicts = decided.verdicts.iter().map(|v| {
        let word = if v.yes { "yes" } else { "no" };
        json!({"approval": v.approval, "digest": v.digest, "decision": word})
    });
    let entry = entry
        .with("task", decided.task.as_str())
        .with("verdicts", verdicts.collect::<Vec<_>>());
    record(ctx, store, entry).await
}
