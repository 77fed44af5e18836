//! Run records: what engines have done, without content. Idempotent by the run's id.

use crate::cursor::Listing;
use crate::error::corrupt;
use crate::own_cluster;
use crate::sql::values;
use crate::tx::Tx;
use roadstead_authz::{Object, Place, Resource};
use roadstead_contract::run::RunRecord;
use roadstead_domain::{AgentId, ClusterId, Error, Page, PageRequest, ProjectId, RunId, TenantId};
use sea_orm::FromQueryResult;
use uuid::Uuid;

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub tenant: TenantId,
    pub id: RunId,
    pub project: ProjectId,
    pub project_name: String,
    pub cluster: ClusterId,
    pub cluster_name: String,
    pub agent: AgentId,
    pub agent_name: String,
    /// When the hub kept it.
    pub received_ms: i64,
    /// As the engine wrote it.
    pub record: RunRecord,
}

impl Resource for Run {
    fn place(&self) -> Place {
        Place {
            tenant: self.tenant,
            object: Object::Run(self.id),
        }
    }
}

/// A run record to keep.
#[derive(Clone, Debug)]
pub struct NewRun<'a> {
    pub id: RunId,
    pub agent: AgentId,
    pub outcome: &'a str,
    pub record: &'a RunRecord,
}

/// What a list of runs is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    pub project: Option<ProjectId>,
    pub agent: Option<AgentId>,
    pub cluster: Option<ClusterId>,
    /// `completed`, `failed`, `canceled`, `rejected`.
    pub outcome: Option<String>,
    /// Begun at this moment or later; milliseconds since the Unix epoch, UTC.
    pub since_ms: Option<i64>,
    /// Begun before this moment.
    pub until_ms: Option<i64>,
}

#[derive(Debug, FromQueryResult)]
struct Row {
    id: Uuid,
    project_id: Uuid,
    project_name: String,
    cluster_id: Uuid,
    cluster_name: String,
    agent_id: Uuid,
    agent_name: String,
    received_ms: i64,
    record: String,
}

#[derive(Debug, FromQueryResult)]
struct Known {
    cluster_id: Uuid,
}

impl Tx<'_> {
    /// Keeps a run of the context's cluster; an `Err` inside says why it never will be. A run that was kept before
    /// is kept.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn insert_run(&self, new: &NewRun<'_>) -> Result<Result<(), &'static str>, Error> {
        let cluster = own_cluster(self.ctx)?;
        let sql = "INSERT INTO run (tenant_id, id, project_id, cluster_id, agent_id, generation, outcome, started_ms,
            received_ms, record)
            SELECT d.tenant_id, $4, o.project_id, d.cluster_id, d.object_id, $5, $6, $7, $8, $9 FROM desired d
            JOIN object o ON o.tenant_id = d.tenant_id AND o.id = d.object_id
            WHERE d.tenant_id = $1 AND d.cluster_id = $2 AND d.object_id = $3 AND d.kind = 'Agent'
            ON CONFLICT (tenant_id, id) DO NOTHING";
        let record = serde_json::to_string(new.record).map_err(Error::internal)?;
        let values = values![
            cluster.as_uuid(),
            new.agent.as_uuid(),
            new.id.as_uuid(),
            i64::try_from(new.record.generation).unwrap_or(i64::MAX),
            new.outcome,
            new.record.started_at_ms,
            self.now_ms(),
            record
        ];
        if self.run(sql, values).await? > 0 {
            return Ok(Ok(()));
        }
        let sql = "SELECT cluster_id FROM run WHERE tenant_id = $1 AND id = $2";
        let known: Option<Known> = self.one(sql, values![new.id.as_uuid()]).await?;
        Ok(match known {
            Some(known) if known.cluster_id == cluster.as_uuid() => Ok(()),
            Some(_) => Err("the run belongs to another cluster"),
            None => Err("the agent was never placed on this cluster"),
        })
    }

    fn run_of(&self, row: Row) -> Result<Run, Error> {
        Ok(Run {
            tenant: self.tenant(),
            id: RunId::from_uuid(row.id),
            project: ProjectId::from_uuid(row.project_id),
            project_name: row.project_name,
            cluster: ClusterId::from_uuid(row.cluster_id),
            cluster_name: row.cluster_name,
            agent: AgentId::from_uuid(row.agent_id),
            agent_name: row.agent_name,
            received_ms: row.received_ms,
            record: serde_json::from_str(&row.record).map_err(|_| corrupt("a run record"))?,
        })
    }

    /// The run with that id.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn find_run(&self, id: RunId) -> Result<Option<Run>, Error> {
        let sql = "SELECT r.id, r.project_id, p.name AS project_name, r.cluster_id, c.name AS cluster_name, r.agent_id,
            o.name AS agent_name, r.received_ms, r.record
            FROM run r JOIN project p ON p.tenant_id = r.tenant_id AND p.id = r.project_id
            JOIN cluster c ON c.tenant_id = r.tenant_id AND c.id = r.cluster_id
            JOIN object o ON o.tenant_id = r.tenant_id AND o.id = r.agent_id
            WHERE r.tenant_id = $1 AND r.id = $2";
        let row: Option<Row> = self.one(sql, values![id.as_uuid()]).await?;
        row.map(|row| self.run_of(row)).transpose()
    }

    /// Runs, latest begun first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a foreign cursor; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn runs(&self, filter: &RunFilter, page: &PageRequest) -> Result<Page<Run>, Error> {
        let listing = Listing::new(self.tenant(), "runs", filter);
        let before: Option<(i64, Uuid)> = listing.open(page.after.as_deref())?;
        let (before_ms, before_id) = before.unwrap_or((i64::MAX, Uuid::max()));
        let size = page.size()?;
        let sql = "SELECT r.id, r.project_id, p.name AS project_name, r.cluster_id, c.name AS cluster_name, r.agent_id,
            o.name AS agent_name, r.received_ms, r.record
            FROM run r JOIN project p ON p.tenant_id = r.tenant_id AND p.id = r.project_id
            JOIN cluster c ON c.tenant_id = r.tenant_id AND c.id = r.cluster_id
            JOIN object o ON o.tenant_id = r.tenant_id AND o.id = r.agent_id
            WHERE r.tenant_id = $1 AND ($2 IS NULL OR r.project_id = $2) AND ($3 IS NULL OR r.agent_id = $3)
            AND ($4 IS NULL OR r.cluster_id = $4) AND ($5 IS NULL OR r.outcome = $5)
            AND r.started_ms >= $6 AND r.started_ms < $7 AND (r.started_ms, r.id) < ($8, $9)
            ORDER BY r.started_ms DESC, r.id DESC LIMIT $10";
        let values = values![
            filter.project.map(ProjectId::as_uuid),
            filter.agent.map(AgentId::as_uuid),
            filter.cluster.map(ClusterId::as_uuid),
            filter.outcome.clone(),
            filter.since_ms.unwrap_or(i64::MIN),
            filter.until_ms.unwrap_or(i64::MAX),
            before_ms,
            before_id,
            i64::from(size) + 1
        ];
        let rows: Vec<Row> = self.all(sql, values).await?;
        let runs: Result<Vec<Run>, Error> = rows.into_iter().map(|row| self.run_of(row)).collect();
        Ok(listing.page(runs?, size, |r: &Run| (r.record.started_at_ms, r.id.as_uuid())))
    }
}
