//! Whoever asks.

use super::{Action, Role, Scope, document::action};
use async_graphql::{ID, Object};
use roadstead_authz::{Action as Act, ActorKind, TenantContext};

/// Whoever asks.
#[derive(Clone, Debug)]
pub(crate) struct Viewer(pub(crate) TenantContext);

#[Object]
impl Viewer {
    /// The tenant's name.
    async fn tenant(&self) -> &str {
        self.0.tenant_name()
    }
    async fn tenant_id(&self) -> ID {
        self.0.tenant().to_string().into()
    }
    /// The token's name.
    async fn name(&self) -> String {
        self.0.actor().name()
    }
    /// As audit records name the caller.
    async fn label(&self) -> String {
        self.0.actor().label()
    }
    async fn role(&self) -> Option<Role> {
        match self.0.actor().kind() {
            ActorKind::Token { role, .. } => Some((*role).into()),
            _ => None,
        }
    }
    /// What the token is good for at most.
    async fn scopes(&self) -> Vec<Scope> {
        match self.0.actor().kind() {
            ActorKind::Token { scopes, .. } => scopes.iter().map(|s| (*s).into()).collect(),
            _ => Vec::new(),
        }
    }
    /// What the caller may do in the tenant as a whole.
    async fn actions(&self) -> Vec<Action> {
        let acts = [
            Act::View,
            Act::Write,
            Act::CreateProject,
            Act::ManageTokens,
            Act::ManageClusters,
            Act::ViewAudit,
        ];
        acts.into_iter()
            .map(|act| action(&self.0, act, &self.0.tenant()))
            .collect()
    }
}
