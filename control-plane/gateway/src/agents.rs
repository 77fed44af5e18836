//! Agents as the service knows them.

use crate::{Agents, Placed, Target};
use chrono::DateTime;
use roadstead_authz::{Action, TenantContext, act};
use roadstead_contract::documents::{Kind, Name};
use roadstead_domain::{AgentId, Error};
use roadstead_service::{
    Target as Named,
    approvals::{Decided, record_decided},
    invocable,
};
use roadstead_store::Store;

/// Finds agents in the store, and asks whether the caller may invoke them.
#[derive(Clone, Debug)]
pub struct ServiceAgents(pub Store);

#[async_trait::async_trait]
impl Agents for ServiceAgents {
    async fn invocable(
        &self,
        context: &TenantContext,
        project: &Name,
        agent: &Name,
    ) -> Result<Target, Error> {
        let named = Named::Name {
            project: project.clone(),
            kind: Kind::Agent,
            name: agent.clone(),
        };
        let found = invocable::<act::Invoke>(context, &self.0, &named).await?;
        let placed = found.placed.iter().map(|placed| Placed {
            cluster: placed.cluster,
            last_seen: placed
                .cluster_last_seen_ms
                .and_then(DateTime::from_timestamp_millis),
        });
        Ok(Target {
            agent: found.agent,
            clusters: placed.collect(),
            approve: context.may(Action::Approve, &found.object),
        })
    }

    async fn decided(&self, context: &TenantContext, agent: AgentId, decided: &Decided) -> Result<(), Error> {
        record_decided(context, &self.0, agent, decided).await
    }
}
