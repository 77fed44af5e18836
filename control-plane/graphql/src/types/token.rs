//! API tokens, without their secrets.

use super::moment;
use async_graphql::{Enum, ID, Object};
use chrono::{DateTime, Utc};

/// What somebody may do in the tenant; each may do what the ones before it may.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[graphql(remote = "roadstead_authz::Role")]
pub(crate) enum Role {
    Viewer,
    Operator,
    Editor,
    Admin,
    Owner,
}

/// A ceiling that a token carries; each implies the ones before it, except that APPROVE stands alone.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[graphql(remote = "roadstead_authz::Scope")]
pub(crate) enum Scope {
    Read,
    Invoke,
    Write,
    Approve,
    Admin,
}

/// An API token. Its secret is shown once, when it is made.
#[derive(Debug)]
pub(crate) struct ApiToken(pub(crate) roadstead_store::ApiToken);

#[Object]
impl ApiToken {
    pub(crate) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    async fn role(&self) -> Role {
        self.0.role.into()
    }
    async fn scopes(&self) -> Vec<Scope> {
        self.0.scopes.iter().map(|s| (*s).into()).collect()
    }
    /// Who made it.
    async fn created_by(&self) -> &str {
        &self.0.created_by
    }
    async fn created_at(&self) -> DateTime<Utc> {
        moment(self.0.created_ms)
    }
    async fn expires_at(&self) -> DateTime<Utc> {
        moment(self.0.expires_ms)
    }
    async fn revoked_at(&self) -> Option<DateTime<Utc>> {
        self.0.revoked_ms.map(moment)
    }
    /// Within a few minutes.
    async fn last_used_at(&self) -> Option<DateTime<Utc>> {
        self.0.last_used_ms.map(moment)
    }
}
