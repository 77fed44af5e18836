//! Documents: what people write, whatever its kind.

use super::{Connection, connection, moment, request};
use crate::{calls, error::Result};
use async_graphql::{Context, Enum, ID, Json, Object, SimpleObject};
use chrono::{DateTime, Utc};
use roadstead_contract::documents::Kind;
use roadstead_service::{Target, list_revisions};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// The kinds of document.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[graphql(remote = "Kind")]
pub(crate) enum DocumentKind {
    Agent,
    Model,
    ToolServer,
    Prompt,
}

/// What the caller may do with an object.
#[derive(SimpleObject, Clone, Debug)]
pub(crate) struct Action {
    /// `view`, `invoke`, `read logs`, `write`, `delete`, `roll back`.
    pub(crate) name: String,
    pub(crate) allowed: bool,
    /// Why not, or by what.
    pub(crate) reason: String,
}

/// A document as it is now.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) object: roadstead_store::Object,
    /// Its text, where that is known already.
    pub(crate) json: Option<Arc<str>>,
}

impl From<roadstead_store::Object> for Document {
    fn from(object: roadstead_store::Object) -> Self {
        Self { object, json: None }
    }
}

impl Document {
    pub(crate) fn actions_for(&self, context: &roadstead_authz::TenantContext) -> Vec<Action> {
        use roadstead_authz::Action as Act;
        let own = [Act::View, Act::Write, Act::Delete, Act::RollBack];
        let agents = [Act::Invoke, Act::ReadLogs, Act::Approve];
        let of_agents = self.object.id.kind() == Kind::Agent;
        let acts = own.into_iter().chain(agents.into_iter().filter(|_| of_agents));
        acts.map(|act| action(context, act, &self.object)).collect()
    }
}

/// Whether `context` may do `act` to `object`, and why.
pub(crate) fn action(
    context: &roadstead_authz::TenantContext,
    act: roadstead_authz::Action,
    object: &impl roadstead_authz::Resource,
) -> Action {
    let (allowed, reason) = match roadstead_authz::decide(context, act, &object.place()) {
        roadstead_authz::Decision::Allow { grant } => (true, grant),
        roadstead_authz::Decision::Deny { reason } => (false, reason),
    };
    Action {
        name: act.as_str().to_owned(),
        allowed,
        reason,
    }
}

#[Object]
impl Document {
    /// Stays the same over revisions and renamed files; a document that is deleted and made again has another.
    pub(crate) async fn id(&self) -> ID {
        self.object.id.to_string().into()
    }
    async fn kind(&self) -> DocumentKind {
        self.object.id.kind().into()
    }
    async fn project(&self) -> &str {
        &self.object.project_name
    }
    async fn name(&self) -> &str {
        &self.object.name
    }
    /// The current revision: 1, 2, 3, …
    async fn revision(&self) -> u64 {
        self.object.revision
    }
    /// SHA-256 of the current revision, in hex.
    async fn digest(&self) -> String {
        self.object.digest.to_hex()
    }
    async fn labels(&self) -> Json<BTreeMap<String, String>> {
        Json(self.object.labels.clone())
    }
    async fn created_at(&self) -> DateTime<Utc> {
        moment(self.object.created_ms)
    }
    async fn updated_at(&self) -> DateTime<Utc> {
        moment(self.object.updated_ms)
    }
    /// The current revision as its author wrote it, key order kept.
    #[graphql(complexity = "2")]
    async fn json(&self, ctx: &Context<'_>) -> Result<Json<Value>> {
        match &self.json {
            Some(text) => Ok(Json(calls::json(ctx, text)?)),
            None => Ok(Json(calls::document(ctx, &self.object).await?)),
        }
    }
    /// Newest first.
    #[graphql(complexity = "1 + crate::cost::page(first) * child_complexity")]
    async fn revisions(
        &self,
        ctx: &Context<'_>,
        first: Option<u32>,
        after: Option<String>,
    ) -> Result<Connection<Revision>> {
        let (caller, store) = calls::both(ctx);
        let target = Target::Id(self.object.id);
        let page = list_revisions(caller, store, &target, &request(first, after)).await?;
        Ok(connection(page, Revision))
    }
    /// What the caller may do with it.
    async fn actions(&self, ctx: &Context<'_>) -> Vec<Action> {
        self.actions_for(calls::context(ctx))
    }
}

/// What a document was. Never changes.
#[derive(Clone, Debug)]
pub(crate) struct Revision(pub(crate) roadstead_store::RevisionHead);

#[Object]
impl Revision {
    pub(crate) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }
    /// 1, 2, 3, …
    async fn revision(&self) -> u64 {
        self.0.number
    }
    /// SHA-256, in hex.
    async fn digest(&self) -> String {
        self.0.digest.to_hex()
    }
    async fn created_at(&self) -> DateTime<Utc> {
        moment(self.0.at_ms)
    }
    /// The name of whoever wrote it.
    async fn created_by(&self) -> &str {
        &self.0.author_name
    }
    /// Why, where it was said.
    async fn message(&self) -> &str {
        &self.0.message
    }
    /// As its author wrote it, key order kept.
    #[graphql(complexity = "2")]
    async fn json(&self, ctx: &Context<'_>) -> Result<Json<Value>> {
        Ok(Json(calls::revision(ctx, self.0.object, self.0.number).await?))
    }
}
