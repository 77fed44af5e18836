//! What can be asked. An object that is not there and one that the caller may not see are both null (S33).

use crate::{
    calls,
    error::{Fault, Result},
    types::{
        Agent, ApiToken, AuditRecord, Cluster, Command, Connection, Document, DocumentKind, Project,
        Revision, Run, Viewer, connection, request,
    },
};
use async_graphql::{Context, ID, InputObject, Interface, Object};
use chrono::{DateTime, Utc};
use roadstead_contract::documents::Kind;
use roadstead_domain::{
    AgentId, ClusterId, CommandId, Error, ObjectId, Page, PageRequest, Problem, RunId, TokenId,
};
use roadstead_service::{
    Target, audit, clusters, commands, list_objects, list_revisions, projects, runs, tokens,
};
use roadstead_store::{AuditFilter, CommandFilter, Object as Stored, ObjectFilter, RunFilter};
use std::str::FromStr;

/// Anything with an id.
#[derive(Interface)]
#[graphql(field(name = "id", ty = "ID"))]
pub(crate) enum Node {
    Agent(Agent),
    Document(Document),
    Cluster(Cluster),
    Run(Run),
    Command(Command),
    ApiToken(ApiToken),
}

/// A text to compare with.
#[derive(InputObject, Clone, Debug)]
pub(crate) struct TextFilter {
    /// Exactly this.
    pub(crate) eq: String,
}

/// A span of time: from `gte` on, before `lt`.
#[derive(InputObject, Clone, Debug, Default)]
pub(crate) struct TimeFilter {
    pub(crate) gte: Option<DateTime<Utc>>,
    pub(crate) lt: Option<DateTime<Utc>>,
}

impl TimeFilter {
    fn bounds(self) -> (Option<i64>, Option<i64>) {
        let ms = |at: DateTime<Utc>| at.timestamp_millis();
        (self.gte.map(ms), self.lt.map(ms))
    }
}

/// What a list of runs is narrowed to.
#[derive(InputObject, Clone, Debug, Default)]
pub(crate) struct RunsFilter {
    pub(crate) started_at: Option<TimeFilter>,
}

/// What a list of audit records is narrowed to.
#[derive(InputObject, Clone, Debug, Default)]
pub(crate) struct AuditRecordFilter {
    /// `token:tok_…`, `cluster:cls_…`, `system:…`.
    pub(crate) actor: Option<TextFilter>,
    pub(crate) action: Option<TextFilter>,
    /// The id that the record names.
    pub(crate) object: Option<TextFilter>,
    /// `allow`, `deny`, `refuse`.
    pub(crate) decision: Option<TextFilter>,
    pub(crate) time: Option<TimeFilter>,
}

impl From<AuditRecordFilter> for AuditFilter {
    fn from(filter: AuditRecordFilter) -> Self {
        let text = |filter: Option<TextFilter>| filter.map(|text| text.eq);
        let (since_ms, until_ms) = filter.time.unwrap_or_default().bounds();
        Self {
            actor: text(filter.actor),
            action: text(filter.action),
            object: text(filter.object),
            decision: text(filter.decision),
            since_ms,
            until_ms,
        }
    }
}

/// What a list of documents is narrowed to.
#[derive(InputObject, Clone, Debug, Default)]
pub(crate) struct DocumentFilter {
    pub(crate) name: Option<TextFilter>,
}

/// An id of the wanted kind; another kind is an error before any query.
pub(crate) fn id<T: FromStr<Err = roadstead_domain::IdError>>(text: &ID, path: &str) -> Result<T> {
    text.parse()
        .map_err(|error: roadstead_domain::IdError| Fault::from(error.at(path)))
}

/// An empty list.
fn nothing<T>() -> Page<T> {
    Page {
        items: Vec::new(),
        next: None,
    }
}

async fn agent(ctx: &Context<'_>, text: &ID) -> Result<Option<Stored>> {
    let agent: AgentId = id(text, "id")?;
    calls::object(ctx, agent.into()).await
}

async fn cluster(ctx: &Context<'_>, text: &ID) -> Result<Option<roadstead_store::Cluster>> {
    let (caller, store) = calls::both(ctx);
    let detail = calls::found(clusters::get(caller, store, id(text, "id")?).await)?;
    Ok(detail.map(|d| d.cluster))
}

async fn run(ctx: &Context<'_>, text: &ID) -> Result<Option<roadstead_store::Run>> {
    let (caller, store) = calls::both(ctx);
    calls::found(runs::get(caller, store, id(text, "id")?).await)
}

async fn token(ctx: &Context<'_>, text: &ID) -> Result<Option<roadstead_store::ApiToken>> {
    let (caller, store) = calls::both(ctx);
    calls::found(tokens::get(caller, store, id(text, "id")?).await)
}

/// A page of documents; none where there is no project of that name.
async fn objects(
    ctx: &Context<'_>,
    kind: Option<Kind>,
    project: Option<String>,
    name: Option<String>,
    page: PageRequest,
) -> Result<Page<Stored>> {
    let (caller, store) = calls::both(ctx);
    let Some(project) = project_id(ctx, project.as_deref()).await? else {
        return Ok(nothing());
    };
    let filter = ObjectFilter { kind, project, name };
    Ok(list_objects(caller, store, &filter, &page).await?)
}

/// The project of that name; the inner `None` where none was named, the outer where there is none.
async fn project_id(
    ctx: &Context<'_>,
    name: Option<&str>,
) -> Result<Option<Option<roadstead_domain::ProjectId>>> {
    let (caller, store) = calls::both(ctx);
    let Some(name) = name else { return Ok(Some(None)) };
    let name = calls::name(name, "project")?;
    let found = calls::found(projects::by_name(caller, store, &name).await)?;
    Ok(found.map(|project| Some(project.id)))
}

/// What a list of runs is narrowed to; `None` where there is no such project or agent.
async fn run_filter(
    ctx: &Context<'_>,
    project: Option<String>,
    agent: Option<String>,
) -> Result<Option<RunFilter>> {
    let Some(project_id) = project_id(ctx, project.as_deref()).await? else {
        return Ok(None);
    };
    let mut filter = RunFilter {
        project: project_id,
        ..RunFilter::default()
    };
    if let (Some(project), Some(agent)) = (project, agent) {
        let Some(found) = calls::object_by_name(ctx, Kind::Agent, &project, &agent).await? else {
            return Ok(None);
        };
        filter.agent = found.id.agent();
    }
    Ok(Some(filter))
}

/// A name of an agent says nothing without its project.
fn check_project(agent: Option<&String>, project: Option<&String>) -> Result<()> {
    if agent.is_none() || project.is_some() {
        return Ok(());
    }
    let problem = Problem::new(
        "project",
        "a project's name",
        "nothing",
        "`agent` needs `project`",
    );
    Err(Error::invalid(problem).into())
}

async fn command(ctx: &Context<'_>, text: &ID) -> Result<Option<roadstead_store::Command>> {
    let (caller, store) = calls::both(ctx);
    calls::found(commands::get(caller, store, id(text, "id")?).await)
}

/// `None` where nothing can match: a name that nothing has.
async fn command_filter(
    ctx: &Context<'_>,
    project: Option<String>,
    agent: Option<String>,
    cluster: Option<String>,
) -> Result<Option<CommandFilter>> {
    check_project(agent.as_ref(), project.as_ref())?;
    let Some(of) = run_filter(ctx, project, agent).await? else {
        return Ok(None);
    };
    let mut filter = CommandFilter {
        project: of.project,
        agent: of.agent,
        cluster: None,
    };
    if let Some(cluster) = cluster {
        let (caller, store) = calls::both(ctx);
        let name = calls::name(&cluster, "cluster")?;
        let Some(found) = calls::found(clusters::by_name(caller, store, &name).await)? else {
            return Ok(None);
        };
        filter.cluster = Some(found.cluster.id);
    }
    Ok(Some(filter))
}

pub(crate) struct Query;

#[Object]
impl Query {
    /// Whoever asks.
    async fn viewer(&self, ctx: &Context<'_>) -> Viewer {
        Viewer(calls::context(ctx).clone())
    }

    /// Any object by its id.
    #[graphql(complexity = "1 + child_complexity")]
    async fn node(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Node>> {
        let text = id.as_str();
        let (prefix, _) = text.split_once('_').unwrap_or((text, ""));
        Ok(match prefix {
            AgentId::PREFIX => agent(ctx, &id).await?.map(|a| Node::Agent(Agent(a))),
            ClusterId::PREFIX => cluster(ctx, &id).await?.map(|c| Node::Cluster(Cluster(c))),
            CommandId::PREFIX => command(ctx, &id).await?.map(|c| Node::Command(Command(c))),
            RunId::PREFIX => run(ctx, &id).await?.map(|r| Node::Run(Run(r))),
            TokenId::PREFIX => token(ctx, &id).await?.map(|t| Node::ApiToken(ApiToken(t))),
            _ => {
                let object: ObjectId = self::id(&id, "id")?;
                calls::object(ctx, object)
                    .await?
                    .map(|o| Node::Document(o.into()))
            }
        })
    }

    /// One document by its name.
    async fn document(
        &self,
        ctx: &Context<'_>,
        kind: DocumentKind,
        project: String,
        name: String,
    ) -> Result<Option<Document>> {
        let found = calls::object_by_name(ctx, kind.into(), &project, &name).await?;
        Ok(found.map(Document::from))
    }

    /// Documents by project, kind and name.
    #[graphql(complexity = "1 + crate::cost::page(first) * child_complexity")]
    async fn documents(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Every kind where it is left out.")] kind: Option<DocumentKind>,
        #[graphql(desc = "Every project that the caller may see where it is left out.")] project: Option<
            String,
        >,
        filter: Option<DocumentFilter>,
        #[graphql(desc = "1 to 100; 25 where it is left out.")] first: Option<u32>,
        after: Option<String>,
    ) -> Result<Connection<Document>> {
        let name = filter.and_then(|f| f.name).map(|name| name.eq);
        let kind = kind.map(Into::into);
        let page = objects(ctx, kind, project, name, request(first, after)).await?;
        Ok(connection(page, Document::from))
    }

    /// An agent by its id.
    async fn agent(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Agent>> {
        Ok(agent(ctx, &id).await?.map(Agent))
    }

    /// An agent by its name.
    async fn agent_by_name(&self, ctx: &Context<'_>, project: String, name: String) -> Result<Option<Agent>> {
        let kind = DocumentKind::Agent.into();
        Ok(calls::object_by_name(ctx, kind, &project, &name)
            .await?
            .map(Agent))
    }

    /// Agents by project and name.
    #[graphql(complexity = "1 + crate::cost::page(first) * child_complexity")]
    async fn agents(
        &self,
        ctx: &Context<'_>,
        project: Option<String>,
        filter: Option<DocumentFilter>,
        first: Option<u32>,
        after: Option<String>,
    ) -> Result<Connection<Agent>> {
        let name = filter.and_then(|f| f.name).map(|name| name.eq);
        let kind = Some(DocumentKind::Agent.into());
        let page = objects(ctx, kind, project, name, request(first, after)).await?;
        Ok(connection(page, Agent))
    }

    /// The revisions of a document, newest first; none where there is no such document.
    #[graphql(complexity = "1 + crate::cost::page(first) * child_complexity")]
    async fn revisions(
        &self,
        ctx: &Context<'_>,
        kind: DocumentKind,
        project: String,
        name: String,
        first: Option<u32>,
        after: Option<String>,
    ) -> Result<Connection<Revision>> {
        let found = calls::object_by_name(ctx, kind.into(), &project, &name).await?;
        let Some(object) = found else {
            return Ok(connection(nothing(), Revision));
        };
        let (caller, store) = calls::both(ctx);
        let target = Target::Id(object.id);
        let page = list_revisions(caller, store, &target, &request(first, after)).await?;
        Ok(connection(page, Revision))
    }

    /// Finished tasks, newest first.
    #[graphql(complexity = "1 + crate::cost::page(first) * child_complexity")]
    async fn runs(
        &self,
        ctx: &Context<'_>,
        project: Option<String>,
        #[graphql(desc = "An agent's name; needs `project`.")] agent: Option<String>,
        filter: Option<RunsFilter>,
        first: Option<u32>,
        after: Option<String>,
    ) -> Result<Connection<Run>> {
        check_project(agent.as_ref(), project.as_ref())?;
        let Some(mut narrowed) = run_filter(ctx, project, agent).await? else {
            return Ok(connection(nothing(), Run));
        };
        let started = filter.and_then(|f| f.started_at).unwrap_or_default();
        (narrowed.since_ms, narrowed.until_ms) = started.bounds();
        let (caller, store) = calls::both(ctx);
        let page = runs::list(caller, store, &narrowed, &request(first, after)).await?;
        Ok(connection(page, Run))
    }

    /// A run by its id.
    async fn run(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Run>> {
        Ok(run(ctx, &id).await?.map(Run))
    }

    /// Commands for clusters and what came of them, newest first; of the last 30 days.
    #[graphql(complexity = "1 + crate::cost::page(first) * child_complexity")]
    async fn commands(
        &self,
        ctx: &Context<'_>,
        project: Option<String>,
        #[graphql(desc = "An agent's name; needs `project`.")] agent: Option<String>,
        #[graphql(desc = "A cluster's name.")] cluster: Option<String>,
        first: Option<u32>,
        after: Option<String>,
    ) -> Result<Connection<Command>> {
        let Some(filter) = command_filter(ctx, project, agent, cluster).await? else {
            return Ok(connection(nothing(), Command));
        };
        let (caller, store) = calls::both(ctx);
        let page = commands::list(caller, store, &filter, &request(first, after)).await?;
        Ok(connection(page, Command))
    }

    /// A command by its id.
    async fn command(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Command>> {
        Ok(command(ctx, &id).await?.map(Command))
    }

    /// Workload clusters, by name.
    #[graphql(complexity = "1 + crate::cost::page(first) * child_complexity")]
    async fn clusters(
        &self,
        ctx: &Context<'_>,
        first: Option<u32>,
        after: Option<String>,
    ) -> Result<Connection<Cluster>> {
        let (caller, store) = calls::both(ctx);
        let page = clusters::list(caller, store, &request(first, after)).await?;
        Ok(connection(page, Cluster))
    }

    /// A cluster by its id.
    async fn cluster(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Cluster>> {
        Ok(cluster(ctx, &id).await?.map(Cluster))
    }

    /// A cluster by its name.
    async fn cluster_by_name(&self, ctx: &Context<'_>, name: String) -> Result<Option<Cluster>> {
        let (caller, store) = calls::both(ctx);
        let name = calls::name(&name, "name")?;
        let detail = calls::found(clusters::by_name(caller, store, &name).await)?;
        Ok(detail.map(|d| Cluster(d.cluster)))
    }

    /// The tenant's projects, by name.
    #[graphql(complexity = "1 + crate::cost::page(first) * child_complexity")]
    async fn projects(
        &self,
        ctx: &Context<'_>,
        first: Option<u32>,
        after: Option<String>,
    ) -> Result<Connection<Project>> {
        let (caller, store) = calls::both(ctx);
        let page = projects::list(caller, store, &request(first, after)).await?;
        Ok(connection(page, Project))
    }

    /// The tenant's API tokens, without their secrets.
    #[graphql(complexity = "1 + crate::cost::page(first) * child_complexity")]
    async fn api_tokens(
        &self,
        ctx: &Context<'_>,
        first: Option<u32>,
        after: Option<String>,
    ) -> Result<Connection<ApiToken>> {
        let (caller, store) = calls::both(ctx);
        let page = tokens::list(caller, store, &request(first, after)).await?;
        Ok(connection(page, ApiToken))
    }

    /// The audit log, newest first.
    #[graphql(complexity = "1 + crate::cost::page(first) * child_complexity")]
    async fn audit_records(
        &self,
        ctx: &Context<'_>,
        filter: Option<AuditRecordFilter>,
        first: Option<u32>,
        after: Option<String>,
    ) -> Result<Connection<AuditRecord>> {
        let (caller, store) = calls::both(ctx);
        let filter = filter.unwrap_or_default().into();
        let page = audit::search(caller, store, &filter, &request(first, after)).await?;
        Ok(connection(page, AuditRecord::from))
    }
}
