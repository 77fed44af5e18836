//! Whom a call is for, and where that runs.

use crate::{Gateway, TunnelError, failure::Failure, request::Address};
use chrono::{DateTime, Utc};
use roadstead_authz::TenantContext;
use roadstead_contract::documents::Name;
use roadstead_domain::{AgentId, ClusterId, Error};
use roadstead_service::approvals::Decided;
use std::fmt;

/// An agent that the caller may call.
#[derive(Clone, Debug)]
pub struct Target {
    pub agent: AgentId,
    pub clusters: Vec<Placed>,
    /// Whether the caller may decide approvals of this agent; the engine is told (S82).
    pub approve: bool,
}

/// A cluster that an agent is placed on.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    pub cluster: ClusterId,
    /// When the hub last heard of it; `None`: never.
    pub last_seen: Option<DateTime<Utc>>,
}

/// Finds agents for callers.
#[async_trait::async_trait]
pub trait Agents: Send + Sync + fmt::Debug + 'static {
    /// The agent of that name, if the caller may invoke it; a denial is audited.
    ///
    /// # Errors
    /// Not found and forbidden, which the gateway tells alike.
    async fn invocable(&self, context: &TenantContext, project: &Name, agent: &Name)
    -> Result<Target, Error>;

    /// Records decisions on approvals, which are about to be passed on.
    ///
    /// # Errors
    /// Where they could not be recorded: they are not passed on then.
    async fn decided(&self, context: &TenantContext, agent: AgentId, decided: &Decided) -> Result<(), Error>;
}

impl Gateway {
    /// The agent at `address`, if the caller may call it.
    pub(crate) async fn authorise(
        &self,
        context: &TenantContext,
        address: &Address<'_>,
    ) -> Result<Target, Failure> {
        // A tenant's name in the address is the caller's own or none: no query is made for another's.
        if address.tenant.as_str() != context.tenant_name() {
            return Err(Failure::no_agent());
        }
        let target = self
            .agents
            .invocable(context, &address.project, &address.agent)
            .await?;
        Ok(target)
    }

    /// The cluster to call: always the first that is connected, in a fixed order, because a task lives where it began
    /// and a follow-up must find it there.
    pub(crate) async fn pick(&self, placed: &[Placed]) -> Result<ClusterId, Failure> {
        let mut placed = placed.to_vec();
        placed.sort_by_key(|p| p.cluster);
        for candidate in &placed {
            if self.tunnel.connected(candidate.cluster).await {
                return Ok(candidate.cluster);
            }
        }
        if placed.is_empty() {
            return Err(Failure::not_placed());
        }
        let since = placed.iter().filter_map(|p| p.last_seen).max();
        Err(TunnelError::Away { since }.into())
    }
}
