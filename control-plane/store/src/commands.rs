//! Commands for clusters: each has an id, an expiry and one result, which stands once it is written (protocol.md §3
//! rule 12).
//!
//! One that was never sent and whose time is over has the result `expired`, whoever looks first. Of one that was sent only
//! the cluster agent's journal knows whether it was begun: it is sent until that has answered, and concluded here only
//! when it cannot answer any more.

use crate::cursor::Listing;
use crate::error::corrupt;
use crate::own_cluster;
use crate::sql::values;
use crate::tx::Tx;
use roadstead_authz::{Authorized, act};
use roadstead_contract::fleet::RESTART_ENGINE;
use roadstead_domain::{AgentId, ClusterId, CommandId, Error, Page, PageRequest, ProjectId};
use sea_orm::FromQueryResult;
use std::collections::BTreeSet;
use uuid::Uuid;

/// After its time is over, a command that was sent is waited for so long.
const LOST_MS: i64 = 7 * 24 * 60 * 60 * 1000;
/// How long commands are kept once they have a result.
const KEPT_MS: i64 = 30 * 24 * 60 * 60 * 1000;

const EXPIRED: &str = "its time was over before the cluster agent could be told";
const OTHER_JOURNAL: &str =
    "the cluster agent's inbox is another since it was sent: whether it was done is not known";
const LOST: &str = "the cluster agent has not answered for seven days: whether it was done is not known";
const NOT_ABLE: &str = "the cluster agent does not know this command: upgrade it";
const NO_CLUSTER: &str = "the cluster was deleted";

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommandKind {
    RestartEngine,
}

impl CommandKind {
    /// Every kind.
    pub const ALL: [Self; 1] = [Self::RestartEngine];

    const fn as_str(self) -> &'static str {
        match self {
            Self::RestartEngine => "restartEngine",
        }
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| corrupt("the kind of a command"))
    }

    /// What a cluster agent must be able to do.
    #[must_use]
    pub const fn capability(self) -> &'static str {
        match self {
            Self::RestartEngine => RESTART_ENGINE,
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommandCode {
    Succeeded,
    /// Begun, and it did not come to its end.
    Failed,
    /// Never begun: it cannot be done there.
    Refused,
    /// Never begun: its time was over.
    Expired,
    /// Nobody knows whether it was done.
    Unknown,
}

impl CommandCode {
    const ALL: [Self; 5] = [
        Self::Succeeded,
        Self::Failed,
        Self::Refused,
        Self::Expired,
        Self::Unknown,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
        }
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|code| code.as_str() == text);
        found.ok_or_else(|| corrupt("the result of a command"))
    }
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandResult {
    pub code: CommandCode,
    pub detail: String,
    pub at_ms: i64,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub id: CommandId,
    pub kind: CommandKind,
    pub cluster: ClusterId,
    pub cluster_name: String,
    pub project_name: String,
    pub agent: AgentId,
    pub agent_name: String,
    /// As in the audit log.
    pub created_by: String,
    pub created_ms: i64,
    pub expires_ms: i64,
    /// The cluster agent may have it.
    pub sent: bool,
    pub result: Option<CommandResult>,
}

/// What became of a result that a cluster said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultVerdict {
    /// Kept, or the cluster said one before.
    Kept,
    /// It comes too late, or after the database was restored from a backup: why it is not kept. Honest clusters say such.
    Late(&'static str),
    /// Not the cluster's to give, and why.
    Foreign(&'static str),
}

/// A command as its cluster is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueCommand {
    pub id: CommandId,
    pub kind: CommandKind,
    pub agent: AgentId,
    pub expires_ms: i64,
}

/// What a list of commands is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandFilter {
    pub project: Option<ProjectId>,
    pub agent: Option<AgentId>,
    pub cluster: Option<ClusterId>,
}

/// What the cluster agent of a cluster can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// It has had a session.
    pub known: bool,
    /// Of the cluster agent.
    pub version: String,
    pub capabilities: BTreeSet<String>,
}

#[derive(Debug, FromQueryResult)]
struct Row {
    id: Uuid,
    kind: String,
    cluster_id: Uuid,
    cluster_name: String,
    project_name: String,
    agent_id: Uuid,
    agent_name: String,
    created_by: String,
    created_ms: i64,
    expires_ms: i64,
    sent_epoch: Option<i64>,
    result: Option<String>,
    detail: Option<String>,
    result_ms: Option<i64>,
}

#[derive(Debug, FromQueryResult)]
struct DueRow {
    id: Uuid,
    kind: String,
    object_id: Uuid,
    created_ms: i64,
    expires_ms: i64,
}

#[derive(Debug, FromQueryResult)]
struct AbilitiesRow {
    epoch: i64,
    version: String,
    capabilities: String,
    incarnation: String,
}

#[derive(Debug, FromQueryResult)]
struct KnownRow {
    cluster_id: Uuid,
    sent_epoch: Option<i64>,
    result_by: Option<String>,
}

#[derive(Debug, FromQueryResult)]
struct Number {
    number: i64,
}

impl Row {
    fn read(self, now_ms: i64) -> Result<Command, Error> {
        let sent = self.sent_epoch.is_some();
        let result = match self.result {
            Some(code) => Some(CommandResult {
                code: CommandCode::parse(&code)?,
                detail: self.detail.unwrap_or_default(),
                at_ms: self.result_ms.unwrap_or_default(),
            }),
            // It will never be sent: that is written down when somebody next writes.
            None if !sent && self.expires_ms <= now_ms => Some(CommandResult {
                code: CommandCode::Expired,
                detail: EXPIRED.to_owned(),
                at_ms: self.expires_ms,
            }),
            None => None,
        };
        Ok(Command {
            id: CommandId::from_uuid(self.id),
            kind: CommandKind::parse(&self.kind)?,
            cluster: ClusterId::from_uuid(self.cluster_id),
            cluster_name: self.cluster_name,
            project_name: self.project_name,
            agent: AgentId::from_uuid(self.agent_id),
            agent_name: self.agent_name,
            created_by: self.created_by,
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
            sent,
            result,
        })
    }
}

fn words(text: &str) -> BTreeSet<String> {
    text.split(' ')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// For whoever wants something done.
impl Tx<'_> {
    /// Makes a command for a cluster, whose session is woken after the commit.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn insert_command(
        &mut self,
        agent: &Authorized<crate::Object, act::Write>,
        kind: CommandKind,
        cluster: ClusterId,
        expires_ms: i64,
    ) -> Result<CommandId, Error> {
        self.check_proof(&**agent)?;
        let id = CommandId::generate(&*self.store.clock, &*self.store.random);
        let sql = "INSERT INTO command (tenant_id, id, cluster_id, object_id, kind, created_by, created_ms, expires_ms)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        let values = values![
            id.as_uuid(),
            cluster.as_uuid(),
            agent.id.as_uuid(),
            kind.as_str(),
            self.ctx.actor().label(),
            self.now_ms(),
            expires_ms
        ];
        self.run(sql, values).await?;
        self.commanded.insert(cluster);
        Ok(id)
    }

    /// What the cluster agent of the last session can do; `None` for a deleted cluster.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn abilities(&self, cluster: ClusterId) -> Result<Option<Abilities>, Error> {
        let row = self.abilities_row(cluster).await?;
        Ok(row.map(|row| Abilities {
            known: row.epoch > 0,
            version: row.version,
            capabilities: words(&row.capabilities),
        }))
    }

    async fn abilities_row(&self, cluster: ClusterId) -> Result<Option<AbilitiesRow>, Error> {
        let sql = "SELECT epoch, version, capabilities, incarnation FROM cluster
            WHERE tenant_id = $1 AND id = $2 AND deleted_ms IS NULL";
        self.one(sql, values![cluster.as_uuid()]).await
    }

    /// Commands of the cluster that have no result yet.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn open_commands(&self, cluster: ClusterId) -> Result<u64, Error> {
        let sql = "SELECT COUNT(*) AS number FROM command WHERE tenant_id = $1 AND cluster_id = $2
            AND result IS NULL AND (sent_epoch IS NOT NULL OR expires_ms > $3)";
        let row: Option<Number> = self.one(sql, values![cluster.as_uuid(), self.now_ms()]).await?;
        Ok(row.map_or(0, |row| row.number.unsigned_abs()))
    }

    /// The command with that id.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn find_command(&self, id: CommandId) -> Result<Option<Command>, Error> {
        let sql = "SELECT k.id, k.kind, k.cluster_id, c.name AS cluster_name, p.name AS project_name,
            k.object_id AS agent_id, o.name AS agent_name, k.created_by, k.created_ms, k.expires_ms, k.sent_epoch,
            k.result, k.detail, k.result_ms
            FROM command k JOIN cluster c ON c.tenant_id = k.tenant_id AND c.id = k.cluster_id
            JOIN object o ON o.tenant_id = k.tenant_id AND o.id = k.object_id
            JOIN project p ON p.tenant_id = o.tenant_id AND p.id = o.project_id
            WHERE k.tenant_id = $1 AND k.id = $2";
        let row: Option<Row> = self.one(sql, values![id.as_uuid()]).await?;
        row.map(|row| row.read(self.now_ms())).transpose()
    }

    /// Commands, newest first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a foreign cursor; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn commands(&self, filter: &CommandFilter, page: &PageRequest) -> Result<Page<Command>, Error> {
        let listing = Listing::new(self.tenant(), "commands", filter);
        let before: Option<(i64, Uuid)> = listing.open(page.after.as_deref())?;
        let (before_ms, before_id) = before.unwrap_or((i64::MAX, Uuid::max()));
        let size = page.size()?;
        let sql = "SELECT k.id, k.kind, k.cluster_id, c.name AS cluster_name, p.name AS project_name,
            k.object_id AS agent_id, o.name AS agent_name, k.created_by, k.created_ms, k.expires_ms, k.sent_epoch,
            k.result, k.detail, k.result_ms
            FROM command k JOIN cluster c ON c.tenant_id = k.tenant_id AND c.id = k.cluster_id
            JOIN object o ON o.tenant_id = k.tenant_id AND o.id = k.object_id
            JOIN project p ON p.tenant_id = o.tenant_id AND p.id = o.project_id
            WHERE k.tenant_id = $1 AND ($2 IS NULL OR o.project_id = $2) AND ($3 IS NULL OR k.object_id = $3)
            AND ($4 IS NULL OR k.cluster_id = $4) AND (k.created_ms, k.id) < ($5, $6)
            ORDER BY k.created_ms DESC, k.id DESC LIMIT $7";
        let values = values![
            filter.project.map(ProjectId::as_uuid),
            filter.agent.map(AgentId::as_uuid),
            filter.cluster.map(ClusterId::as_uuid),
            before_ms,
            before_id,
            i64::from(size) + 1
        ];
        let rows: Vec<Row> = self.all(sql, values).await?;
        let now = self.now_ms();
        let commands: Result<Vec<Command>, Error> = rows.into_iter().map(|row| row.read(now)).collect();
        Ok(listing.page(commands?, size, |k: &Command| (k.created_ms, k.id.as_uuid())))
    }
}

/// For the cluster agent behind the context.
impl Tx<'_> {
    /// Whether the context's cluster has commands without a result.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn has_commands(&self) -> Result<bool, Error> {
        let cluster = own_cluster(self.ctx)?;
        let sql = "SELECT COUNT(*) AS number FROM command
            WHERE tenant_id = $1 AND cluster_id = $2 AND result IS NULL";
        let row: Option<Number> = self.one(sql, values![cluster.as_uuid()]).await?;
        Ok(row.is_some_and(|row| row.number > 0))
    }

    /// The commands of the context's cluster that have no result, oldest first: from the commit on they count as sent.
    /// Those that are not to be sent any more get their result.
    ///
    /// # Errors
    /// [`Error::Conflict`] (superseded).
    pub async fn send_commands(&self, epoch: u64) -> Result<Vec<DueCommand>, Error> {
        let cluster = self.fence(epoch).await?;
        let gone = || Error::not_found(cluster.to_string());
        let able = self.abilities_row(cluster).await?.ok_or_else(gone)?;
        let capabilities = words(&able.capabilities);
        let (id, now) = (cluster.as_uuid(), self.now_ms());
        let expire = "UPDATE command SET result = 'expired', result_by = 'hub', detail = $3, result_ms = $4
            WHERE tenant_id = $1 AND cluster_id = $2 AND result IS NULL AND sent_epoch IS NULL AND expires_ms <= $4";
        self.run(expire, values![id, EXPIRED, now]).await?;
        let lose = "UPDATE command SET result = 'unknown', result_by = 'hub', detail = $3, result_ms = $4
            WHERE tenant_id = $1 AND cluster_id = $2 AND result IS NULL AND sent_incarnation <> $5";
        self.run(lose, values![id, OTHER_JOURNAL, now, able.incarnation.as_str()])
            .await?;
        let unable = |kind: &CommandKind| !capabilities.contains(kind.capability());
        for kind in CommandKind::ALL.into_iter().filter(unable) {
            let refuse = "UPDATE command SET result = 'refused', result_by = 'hub', detail = $3, result_ms = $4
                WHERE tenant_id = $1 AND cluster_id = $2 AND result IS NULL AND sent_epoch IS NULL AND kind = $5";
            self.run(refuse, values![id, NOT_ABLE, now, kind.as_str()])
                .await?;
        }
        let send = "UPDATE command SET sent_epoch = $3, sent_incarnation = $4
            WHERE tenant_id = $1 AND cluster_id = $2 AND result IS NULL
            RETURNING id, kind, object_id, created_ms, expires_ms";
        let values = values![id, epoch.cast_signed(), able.incarnation.as_str()];
        let mut rows: Vec<DueRow> = self.all(send, values).await?;
        rows.sort_by_key(|row| (row.created_ms, row.id));
        let due = rows.into_iter().map(|row| {
            Ok(DueCommand {
                id: CommandId::from_uuid(row.id),
                kind: CommandKind::parse(&row.kind)?,
                agent: AgentId::from_uuid(row.object_id),
                expires_ms: row.expires_ms,
            })
        });
        let due: Result<Vec<DueCommand>, Error> = due.collect();
        // An older cluster agent than the one that may have begun it: the next newer one will know.
        let mut due = due?;
        due.retain(|command| !unable(&command.kind));
        Ok(due)
    }

    /// Keeps the result of a command of the context's cluster, the first one.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn record_result(
        &self,
        id: CommandId,
        code: CommandCode,
        detail: &str,
    ) -> Result<ResultVerdict, Error> {
        let cluster = own_cluster(self.ctx)?.as_uuid();
        let sql = "UPDATE command SET result = $4, result_by = 'cluster', detail = $5, result_ms = $6
            WHERE tenant_id = $1 AND id = $2 AND cluster_id = $3 AND result IS NULL AND sent_epoch IS NOT NULL";
        let values = values![id.as_uuid(), cluster, code.as_str(), detail, self.now_ms()];
        if self.run(sql, values).await? > 0 {
            return Ok(ResultVerdict::Kept);
        }
        let sql = "SELECT cluster_id, sent_epoch, result_by FROM command WHERE tenant_id = $1 AND id = $2";
        let known: Option<KnownRow> = self.one(sql, values![id.as_uuid()]).await?;
        Ok(match known {
            None if made_ms(id) < self.now_ms() - KEPT_MS => ResultVerdict::Late("the command is forgotten"),
            None => ResultVerdict::Foreign("there is no such command"),
            Some(known) if known.cluster_id != cluster => {
                ResultVerdict::Foreign("the command is another cluster's")
            }
            Some(known) if known.result_by.as_deref() == Some("cluster") => ResultVerdict::Kept,
            // Its id is known to the cluster: it was sent after the backup that this database is of.
            Some(known) if known.sent_epoch.is_none() => ResultVerdict::Late("the command was never sent"),
            Some(_) => ResultVerdict::Late("the command was given up, and has its result"),
        })
    }
}

/// The time in an id: nothing to rely on where it is not the database that says so.
fn made_ms(id: CommandId) -> i64 {
    let made = id.as_uuid().get_timestamp().map(|at| at.to_unix().0);
    made.map_or(i64::MAX, |seconds| {
        i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000)
    })
}

/// For the hub itself.
impl Tx<'_> {
    /// Commands of a cluster that is deleted.
    pub(crate) async fn drop_commands(&self, cluster: ClusterId) -> Result<(), Error> {
        let sql =
            "UPDATE command SET result = CASE WHEN sent_epoch IS NULL THEN 'refused' ELSE 'unknown' END,
            result_by = 'hub', detail = $3, result_ms = $4
            WHERE tenant_id = $1 AND cluster_id = $2 AND result IS NULL";
        self.run(sql, values![cluster.as_uuid(), NO_CLUSTER, self.now_ms()])
            .await
            .map(|_| ())
    }

    /// Concludes what will never have another result, and forgets what had one long ago; how many were forgotten.
    pub(crate) async fn purge_commands(&self) -> Result<u64, Error> {
        let now = self.now_ms();
        let expire = "UPDATE command SET result = 'expired', result_by = 'hub', detail = $2, result_ms = $3
            WHERE tenant_id = $1 AND result IS NULL AND sent_epoch IS NULL AND expires_ms <= $3";
        self.run(expire, values![EXPIRED, now]).await?;
        let lose = "UPDATE command SET result = 'unknown', result_by = 'hub', detail = $2, result_ms = $3
            WHERE tenant_id = $1 AND result IS NULL AND sent_epoch IS NOT NULL AND expires_ms <= $4";
        self.run(lose, values![LOST, now, now - LOST_MS]).await?;
        let forget = "DELETE FROM command WHERE tenant_id = $1 AND result_ms <= $2";
        self.run(forget, values![now - KEPT_MS]).await
    }
}
