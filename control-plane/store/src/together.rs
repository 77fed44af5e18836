//! What cluster agents of one tenant ask and say at the same moment: one statement for all of them.
//!
//! A statement costs SQLite a way to its thread and back, and PostgreSQL one over the network; a document for a hundred
//! clusters would cost hundreds of them. Each cluster is named by a context of its own, all of one tenant; the list of
//! them is a value of the statement, as JSON.

use crate::clusters::superseded;
use crate::desired::{Change, ChangeRow};
use crate::error::corrupt;
use crate::own_cluster;
use crate::sql::{Sql, values};
use crate::status::NewStatus;
use crate::tx::Tx;
use roadstead_authz::TenantContext;
use roadstead_domain::{ClusterId, Error, ObjectId};
use sea_orm::FromQueryResult;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Changes of one cluster's desired set, read together with those of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// The cluster's revision of exactly these changes.
    pub revision: u64,
    /// All that there are, ascending.
    pub changes: Vec<Change>,
}

/// How a cluster stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub revision: u64,
    pub epoch: u64,
    /// The certificate is revoked or unknown.
    pub revoked: bool,
    /// Deletions beyond the budget that a person allowed.
    pub approved_deletes: u64,
    /// The cluster is ahead, and a person has not decided yet.
    pub frozen: bool,
    /// Commands wait that its session of now was not told of.
    pub commands: bool,
}

/// A cluster whose newest session writes: it stays so until the transaction ends. Nothing else makes one.
#[derive(Debug)]
pub struct Fenced {
    cluster: ClusterId,
    revision: u64,
}

/// What became of a session that wants to write.
#[derive(Debug)]
pub enum Fence {
    Writes(Fenced),
    /// A newer session of the cluster has begun.
    Superseded,
    /// The cluster is deleted; or, unless locks are waited for, somebody else writes to it just now.
    Absent,
}

impl Fence {
    /// The proof that the session writes.
    ///
    /// # Errors
    /// [`Error::Conflict`] (superseded); [`Error::NotFound`].
    pub fn writes(self, ctx: &TenantContext) -> Result<Fenced, Error> {
        match self {
            Self::Writes(fenced) => Ok(fenced),
            Self::Superseded => Err(superseded()),
            Self::Absent => Err(Error::not_found(own_cluster(ctx)?.to_string())),
        }
    }
}

impl Fenced {
    /// The cluster's revision: nothing beyond it was ever given out.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

/// How far a cluster has come; 0 says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    pub persisted: u64,
    pub applied: u64,
}

#[derive(Debug, FromQueryResult)]
struct FenceRow {
    id: Uuid,
    epoch: i64,
    revision: i64,
}

#[derive(Debug, FromQueryResult)]
struct ForeignRow {
    cluster_id: Uuid,
    place: i64,
}

#[derive(Debug, FromQueryResult)]
struct SinceRow {
    cluster_id: Uuid,
    cluster_revision: i64,
    object_id: Option<Uuid>,
    kind: Option<String>,
    generation: Option<i64>,
    project: Option<String>,
    name: Option<String>,
    digest: Option<Vec<u8>>,
    revision: Option<i64>,
    deleted: Option<i64>,
    size: Option<i64>,
    document: Option<String>,
}

#[derive(Debug, FromQueryResult)]
struct StandingRow {
    id: Uuid,
    serial: String,
    epoch: i64,
    revision: i64,
    approved_deletes: i64,
    frozen: i64,
    good: i64,
    commands: i64,
}

impl SinceRow {
    /// `None` for a cluster that nothing has changed on.
    fn change(self) -> Result<Option<Change>, Error> {
        let Some(object_id) = self.object_id else {
            return Ok(None);
        };
        let missing = || corrupt("a row of a desired set without its columns");
        let row = ChangeRow {
            object_id,
            kind: self.kind.ok_or_else(missing)?,
            generation: self.generation.ok_or_else(missing)?,
            project: self.project.ok_or_else(missing)?,
            name: self.name.ok_or_else(missing)?,
            digest: self.digest.ok_or_else(missing)?,
            revision: self.revision.ok_or_else(missing)?,
            deleted: self.deleted.ok_or_else(missing)?,
            document: self.document,
        };
        row.read().map(Some)
    }
}

/// On SQLite each list comes first (CROSS JOIN keeps the order that is written): without statistics the planner would go
/// through all of a tenant's rows for each entry of it.
const CHANGES: Sql = Sql {
    sqlite: "WITH asked AS (SELECT unhex(value ->> 'c') AS id, value ->> 'a' AS after FROM json_each($2))
        SELECT c.id AS cluster_id, c.revision AS cluster_revision, d.object_id, d.kind, d.generation, d.project, d.name,
        d.digest, d.revision, d.deleted, octet_length(r.document) AS size,
        CASE WHEN octet_length(r.document) <= $3 THEN r.document END AS document
        FROM asked CROSS JOIN cluster c ON c.tenant_id = $1 AND c.id = asked.id AND c.deleted_ms IS NULL
        LEFT JOIN desired d ON d.tenant_id = $1 AND d.cluster_id = c.id AND d.revision > asked.after
        LEFT JOIN revision r
        ON r.tenant_id = $1 AND r.object_id = d.object_id AND r.number = d.generation AND d.deleted = 0
        WHERE c.tenant_id = $1 ORDER BY c.id, d.revision, d.deleted DESC, d.object_id LIMIT $4",
    postgres: "WITH asked AS (SELECT c AS id, a AS after FROM jsonb_to_recordset($2::jsonb) AS x(c uuid, a bigint))
        SELECT c.id AS cluster_id, c.revision AS cluster_revision, d.object_id, d.kind, d.generation, d.project, d.name,
        d.digest, d.revision, d.deleted, octet_length(r.document)::bigint AS size,
        CASE WHEN octet_length(r.document) <= $3 THEN r.document END AS document
        FROM asked JOIN cluster c ON c.tenant_id = $1 AND c.id = asked.id AND c.deleted_ms IS NULL
        LEFT JOIN desired d ON d.tenant_id = $1 AND d.cluster_id = c.id AND d.revision > asked.after
        LEFT JOIN revision r
        ON r.tenant_id = $1 AND r.object_id = d.object_id AND r.number = d.generation AND d.deleted = 0
        WHERE c.tenant_id = $1 ORDER BY c.id, d.revision, d.deleted DESC, d.object_id LIMIT $4",
};

/// SQLite has one writer and needs no lock.
const FENCE: Sql = Sql {
    sqlite: "SELECT c.id, c.epoch, c.revision FROM cluster c WHERE c.tenant_id = $1 AND c.deleted_ms IS NULL
        AND c.id IN (SELECT unhex(value) FROM json_each($2))",
    postgres:
        "SELECT c.id, c.epoch, c.revision FROM cluster c WHERE c.tenant_id = $1 AND c.deleted_ms IS NULL
        AND c.id IN (SELECT x.value::uuid FROM jsonb_array_elements_text($2::jsonb) AS x(value))
        FOR NO KEY UPDATE OF c SKIP LOCKED",
};

const FENCE_WAITING: Sql = Sql {
    sqlite: FENCE.sqlite,
    postgres:
        "SELECT c.id, c.epoch, c.revision FROM cluster c WHERE c.tenant_id = $1 AND c.deleted_ms IS NULL
        AND c.id IN (SELECT x.value::uuid FROM jsonb_array_elements_text($2::jsonb) AS x(value))
        FOR NO KEY UPDATE OF c",
};

const ACK: Sql = Sql {
    // The tenant comes with the list too: so SQLite looks each cluster up by both parts of its key.
    sqlite:
        "UPDATE cluster SET persisted = max(cluster.persisted, said.p), applied = max(cluster.applied, said.a)
        FROM (SELECT unhex(value ->> 't') AS tenant_id, unhex(value ->> 'c') AS c, value ->> 'p' AS p,
         value ->> 'a' AS a FROM json_each($2)) AS said
        WHERE said.tenant_id = $1 AND cluster.tenant_id = said.tenant_id AND cluster.id = said.c",
    postgres: "UPDATE cluster
        SET persisted = greatest(cluster.persisted, said.p), applied = greatest(cluster.applied, said.a)
        FROM jsonb_to_recordset($2::jsonb) AS said(c uuid, p bigint, a bigint)
        WHERE cluster.tenant_id = $1 AND cluster.id = said.c",
};

/// Reports of what is on the cluster, of a generation that exists; one that is older than what is known changes nothing.
const STATUS: Sql = Sql {
    sqlite: "INSERT INTO placed_status (tenant_id, cluster_id, object_id, observed_generation, phase, reason, message,
        conditions, at_ms)
        SELECT d.tenant_id, d.cluster_id, d.object_id, said.g, said.p, said.r, said.m, said.x, $3 FROM
        (SELECT unhex(value ->> 'c') AS c, unhex(value ->> 'o') AS o, value ->> 'g' AS g, value ->> 'p' AS p,
         value ->> 'r' AS r, value ->> 'm' AS m, value ->> 'x' AS x FROM json_each($2)) AS said
        CROSS JOIN desired d ON d.tenant_id = $1 AND d.cluster_id = said.c AND d.object_id = said.o
        WHERE d.tenant_id = $1 AND d.deleted = 0 AND said.g <= d.generation
        ON CONFLICT (tenant_id, cluster_id, object_id) DO UPDATE SET
        observed_generation = excluded.observed_generation, phase = excluded.phase, reason = excluded.reason,
        message = excluded.message, conditions = excluded.conditions, at_ms = excluded.at_ms
        WHERE excluded.observed_generation >= placed_status.observed_generation",
    postgres: "INSERT INTO placed_status (tenant_id, cluster_id, object_id, observed_generation, phase, reason, message,
        conditions, at_ms)
        SELECT d.tenant_id, d.cluster_id, d.object_id, said.g, said.p, said.r, said.m, said.x, $3
        FROM jsonb_to_recordset($2::jsonb) AS said(c uuid, o uuid, g bigint, p text, r text, m text, x text)
        JOIN desired d ON d.tenant_id = $1 AND d.cluster_id = said.c AND d.object_id = said.o
        WHERE d.tenant_id = $1 AND d.deleted = 0 AND said.g <= d.generation
        ON CONFLICT (tenant_id, cluster_id, object_id) DO UPDATE SET
        observed_generation = excluded.observed_generation, phase = excluded.phase, reason = excluded.reason,
        message = excluded.message, conditions = excluded.conditions, at_ms = excluded.at_ms
        WHERE excluded.observed_generation >= placed_status.observed_generation",
};

/// Reports of what never was on the cluster, or of a generation that does not exist.
const FOREIGN: Sql = Sql {
    sqlite: "SELECT said.c AS cluster_id, said.n AS place FROM
        (SELECT unhex(value ->> 'c') AS c, unhex(value ->> 'o') AS o, value ->> 'g' AS g, value ->> 'n' AS n
         FROM json_each($2)) AS said
        LEFT JOIN desired d ON d.tenant_id = $1 AND d.cluster_id = said.c AND d.object_id = said.o
        WHERE d.object_id IS NULL OR said.g > d.generation",
    postgres: "SELECT said.c AS cluster_id, said.n AS place
        FROM jsonb_to_recordset($2::jsonb) AS said(c uuid, o uuid, g bigint, n bigint)
        LEFT JOIN desired d ON d.tenant_id = $1 AND d.cluster_id = said.c AND d.object_id = said.o
        WHERE d.object_id IS NULL OR said.g > d.generation",
};

const STANDING: Sql = Sql {
    sqlite: "SELECT c.id, asked.serial, c.epoch, c.revision, c.approved_deletes,
        (c.timeline_cursor IS NOT NULL) AS frozen, (x.serial IS NOT NULL AND x.revoked_ms IS NULL) AS good,
        EXISTS (SELECT 1 FROM command k WHERE k.tenant_id = $1 AND k.cluster_id = c.id AND k.result IS NULL
         AND (k.sent_epoch IS NULL OR k.sent_epoch < c.epoch)) AS commands
        FROM (SELECT unhex(value ->> 'c') AS id, value ->> 's' AS serial FROM json_each($2)) AS asked
        CROSS JOIN cluster c ON c.tenant_id = $1 AND c.id = asked.id AND c.deleted_ms IS NULL
        LEFT JOIN cluster_certificate x ON x.tenant_id = $1 AND x.cluster_id = c.id AND x.serial = asked.serial
        WHERE c.tenant_id = $1",
    postgres: "SELECT c.id, asked.s AS serial, c.epoch, c.revision, c.approved_deletes,
        (c.timeline_cursor IS NOT NULL)::int::bigint AS frozen,
        (x.serial IS NOT NULL AND x.revoked_ms IS NULL)::int::bigint AS good,
        EXISTS (SELECT 1 FROM command k WHERE k.tenant_id = $1 AND k.cluster_id = c.id AND k.result IS NULL
         AND (k.sent_epoch IS NULL OR k.sent_epoch < c.epoch))::int::bigint AS commands
        FROM jsonb_to_recordset($2::jsonb) AS asked(c uuid, s text)
        JOIN cluster c ON c.tenant_id = $1 AND c.id = asked.c AND c.deleted_ms IS NULL
        LEFT JOIN cluster_certificate x ON x.tenant_id = $1 AND x.cluster_id = c.id AND x.serial = asked.s
        WHERE c.tenant_id = $1",
};

/// As SQLite keeps ids and PostgreSQL reads them.
fn hex(id: Uuid) -> String {
    id.simple().to_string()
}

fn wide(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Tx<'_> {
    /// The cluster of a cluster agent of this transaction's tenant.
    fn member(&self, ctx: &TenantContext) -> Result<ClusterId, Error> {
        if ctx.tenant() != self.tenant() {
            return Err(Error::internal(
                "a cluster of one tenant in a transaction of another",
            ));
        }
        own_cluster(ctx)
    }

    /// Answers are found by cluster: of two questions for one cluster the answers would be mixed.
    fn each_once<'c>(&self, mut contexts: impl Iterator<Item = &'c TenantContext>) -> Result<(), Error> {
        let mut seen = BTreeSet::new();
        contexts.try_for_each(|ctx| match seen.insert(self.member(ctx)?) {
            true => Ok(()),
            false => Err(Error::internal("a cluster twice in one statement")),
        })
    }

    /// What has changed on each of these clusters after the revision beside it, by cluster. `None` for one of which
    /// that is not all: beyond `rows` for all of them, or with a document of more than `longest` bytes; it is to be
    /// asked for alone ([`Self::changes_since`]). A cluster that is deleted is left out.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for others than cluster agents; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn changes_together(
        &self,
        asked: &[(&TenantContext, u64)],
        rows: u32,
        longest: usize,
    ) -> Result<BTreeMap<ClusterId, Option<Since>>, Error> {
        self.each_once(asked.iter().map(|(ctx, _)| *ctx))?;
        let mut list = Vec::with_capacity(asked.len());
        for (ctx, after) in asked {
            list.push(json!({"c": hex(self.member(ctx)?.as_uuid()), "a": wide(*after)}));
        }
        let longest = i64::try_from(longest).unwrap_or(i64::MAX);
        let values = values![Json::Array(list).to_string(), longest, i64::from(rows) + 1];
        let read: Vec<SinceRow> = self.all(CHANGES, values).await?;
        // The last one's rows may go on beyond the limit, and of those behind it nothing was read.
        let cut = (read.len() > rows as usize)
            .then(|| read.last().map(|row| row.cluster_id))
            .flatten();
        let mut found: BTreeMap<ClusterId, Option<Since>> = BTreeMap::new();
        if cut.is_some() {
            for (ctx, _) in asked {
                found.insert(self.member(ctx)?, None);
            }
        }
        let mut whole: BTreeMap<Uuid, Option<Since>> = BTreeMap::new();
        for row in read {
            let since = whole.entry(row.cluster_id).or_insert_with(|| {
                Some(Since {
                    revision: row.cluster_revision.cast_unsigned(),
                    changes: Vec::new(),
                })
            });
            if row.size.is_some_and(|size| size > longest) || cut == Some(row.cluster_id) {
                *since = None;
            } else if let Some(since) = since {
                since.changes.extend(row.change()?);
            }
        }
        found.extend(
            whole
                .into_iter()
                .map(|(id, since)| (ClusterId::from_uuid(id), since)),
        );
        Ok(found)
    }

    /// Makes sure of each session that its epoch is still its cluster's, and that it stays so until the transaction
    /// ends; in the same order. With `wait` a cluster that somebody else writes to is waited for, which only a
    /// transaction of one cluster may do: of two that wait for each other's none would go on.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for others than cluster agents; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn fence_together(
        &self,
        sessions: &[(&TenantContext, u64)],
        wait: bool,
    ) -> Result<Vec<Fence>, Error> {
        self.each_once(sessions.iter().map(|(ctx, _)| *ctx))?;
        let mut list = Vec::with_capacity(sessions.len());
        for (ctx, _) in sessions {
            list.push(Json::from(hex(self.member(ctx)?.as_uuid())));
        }
        let sql = if wait { FENCE_WAITING } else { FENCE };
        let rows: Vec<FenceRow> = self.all(sql, values![Json::Array(list).to_string()]).await?;
        let found: BTreeMap<Uuid, FenceRow> = rows.into_iter().map(|row| (row.id, row)).collect();
        let fences = sessions.iter().map(|(ctx, epoch)| {
            let cluster = self.member(ctx)?;
            Ok(match found.get(&cluster.as_uuid()) {
                None => Fence::Absent,
                Some(row) if row.epoch.cast_unsigned() != *epoch => Fence::Superseded,
                Some(row) => Fence::Writes(Fenced {
                    cluster,
                    revision: row.revision.cast_unsigned(),
                }),
            })
        });
        fences.collect()
    }

    /// Notes how far clusters have come; never backwards. Deletions that are held stay held: see
    /// [`Self::snapshot_taken`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for a revision that the hub has not given out; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn ack_together(&self, acks: &[(&Fenced, Marks)]) -> Result<(), Error> {
        if acks.is_empty() {
            return Ok(());
        }
        let tenant = hex(self.tenant().as_uuid());
        let mut list = Vec::with_capacity(acks.len());
        for (fenced, Marks { persisted, applied }) in acks {
            if *persisted.max(applied) > fenced.revision {
                return Err(Error::internal(
                    "an acknowledgement from the future was not refused",
                ));
            }
            let cluster = hex(fenced.cluster.as_uuid());
            list.push(json!({"t": tenant, "c": cluster, "p": wide(*persisted), "a": wide(*applied)}));
        }
        self.run(ACK, values![Json::Array(list).to_string()]).await?;
        Ok(())
    }

    /// Keeps reports of clusters, one for each document, and says which are not the cluster's to make: of a document
    /// that was never there, or of a generation that does not exist. Those are not kept, the others are.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn record_statuses(
        &self,
        reports: &[(&Fenced, &[NewStatus])],
    ) -> Result<BTreeMap<ClusterId, Vec<ObjectId>>, Error> {
        let mut list = Vec::new();
        for (fenced, statuses) in reports {
            let cluster = hex(fenced.cluster.as_uuid());
            list.extend(statuses.iter().enumerate().map(|(n, status)| {
                json!({
                    "c": cluster, "o": hex(status.object.as_uuid()), "g": wide(status.observed_generation), "n": n,
                    "p": status.phase, "r": status.reason, "m": status.message, "x": status.conditions.to_string(),
                })
            }));
        }
        if list.is_empty() {
            return Ok(BTreeMap::new());
        }
        let count = list.len() as u64;
        let list = Json::Array(list).to_string();
        let kept = self.run(STATUS, values![list.as_str(), self.now_ms()]).await?;
        let mut foreign: BTreeMap<ClusterId, Vec<ObjectId>> = BTreeMap::new();
        if kept == count {
            return Ok(foreign);
        }
        // The others are of an older generation than what is known, of what has left, or foreign.
        let rows: Vec<ForeignRow> = self.all(FOREIGN, values![list]).await?;
        for row in rows {
            let cluster = ClusterId::from_uuid(row.cluster_id);
            let own = reports.iter().find(|(fenced, _)| fenced.cluster == cluster);
            let status = own.and_then(|(_, statuses)| statuses.get(usize::try_from(row.place).ok()?));
            if let Some(status) = status {
                foreign.entry(cluster).or_default().push(status.object);
            }
        }
        Ok(foreign)
    }

    /// Notes that the deletions of a snapshot wait for a person.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn record_held(&self, fenced: &Fenced, revision: u64, deletes: u64) -> Result<(), Error> {
        let sql = "UPDATE cluster SET held_revision = $3, held_deletes = $4 WHERE tenant_id = $1 AND id = $2";
        let values = values![fenced.cluster.as_uuid(), wide(revision), wide(deletes)];
        self.run(sql, values).await.map(|_| ())
    }

    /// Notes that a snapshot was taken which carried `approved`: that approval is used up. Without a hold nothing waits
    /// for a person any more, and no approval may stand for a later accident.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn snapshot_taken(&self, fenced: &Fenced, approved: u64, held: bool) -> Result<(), Error> {
        let id = fenced.cluster.as_uuid();
        match held {
            true => {
                let sql = "UPDATE cluster SET approved_deletes = 0
                    WHERE tenant_id = $1 AND id = $2 AND approved_deletes = $3";
                self.run(sql, values![id, wide(approved)]).await?
            }
            false => {
                let sql = "UPDATE cluster SET approved_deletes = 0, held_revision = NULL, held_deletes = NULL
                    WHERE tenant_id = $1 AND id = $2";
                self.run(sql, values![id]).await?
            }
        };
        Ok(())
    }

    /// How clusters stand, each asked with the serial of a certificate; in the same order. `None` for one that is
    /// deleted.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for others than cluster agents; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn standing_together(
        &self,
        asked: &[(&TenantContext, &str)],
    ) -> Result<Vec<Option<Standing>>, Error> {
        let mut list = Vec::with_capacity(asked.len());
        for (ctx, serial) in asked {
            list.push(json!({"c": hex(self.member(ctx)?.as_uuid()), "s": serial}));
        }
        let rows: Vec<StandingRow> = self.all(STANDING, values![Json::Array(list).to_string()]).await?;
        let mut found = BTreeMap::new();
        for row in rows {
            let standing = Standing {
                revision: row.revision.cast_unsigned(),
                epoch: row.epoch.cast_unsigned(),
                revoked: row.good == 0,
                approved_deletes: row.approved_deletes.cast_unsigned(),
                frozen: row.frozen != 0,
                commands: row.commands != 0,
            };
            found.insert((row.id, row.serial), standing);
        }
        let standings = asked.iter().map(|(ctx, serial)| {
            let id = self.member(ctx)?.as_uuid();
            Ok(found.get(&(id, (*serial).to_owned())).copied())
        });
        standings.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDatabase;
    use roadstead_domain::{FakeClock, SeededRandom};
    use sea_orm::{ConnectionTrait as _, DbBackend, Statement, Value};
    use std::sync::Arc;

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "a test that looks at plans")]
    async fn sqlite_looks_up_what_is_listed_and_nothing_else() {
        let database = TestDatabase::sqlite();
        let random = Arc::new(SeededRandom::new(1));
        let store = database.open(Arc::new(FakeClock::at(1)), random, None).await;
        for sql in [CHANGES, FENCE, ACK, STATUS, FOREIGN, STANDING] {
            let count = (1..9).filter(|n| sql.sqlite.contains(&format!("${n}"))).count();
            let text = format!("EXPLAIN QUERY PLAN {}", sql.sqlite);
            let values = vec![Value::from(None::<String>); count];
            let statement = Statement::from_sql_and_values(DbBackend::Sqlite, text, values);
            let rows = store.write.query_all_raw(statement).await.expect("a plan");
            let plan: Vec<String> = rows
                .iter()
                .map(|row| row.try_get("", "detail").expect("a step"))
                .collect();
            let scans = plan.iter().filter(|step| step.starts_with("SCAN"));
            assert!(
                scans.clone().count() == 1 && scans.clone().all(|step| step.contains("json_each")),
                "{plan:#?}"
            );
            let searches = plan.iter().filter(|step| step.starts_with("SEARCH"));
            // By the tenant and an id at least.
            assert!(
                searches.clone().count() > 0 && searches.clone().all(|step| step.contains("AND")),
                "{plan:#?}"
            );
        }
    }
}
