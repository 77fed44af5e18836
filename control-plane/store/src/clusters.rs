//! Clusters: who they are, and the fencing of their sessions.
//!
//! A cluster agent's write carries its session's epoch and fails when a newer session has begun (protocol.md §3.6).

use crate::error::corrupt;
use crate::objects::labels_text;
use crate::sql::{locking, values};
use crate::system::JoinRecord;
use crate::timeline::Timeline;
use crate::tx::Tx;
use crate::{cursor::Listing, own_cluster};
use roadstead_authz::{Authorized, Object, Place, Resource, act};
use roadstead_contract::documents::Name;
use roadstead_domain::{ClusterId, ConflictReason, Error, Page, PageRequest, TenantId};
use sea_orm::FromQueryResult;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use uuid::Uuid;

/// A workload cluster as the hub knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub tenant: TenantId,
    pub id: ClusterId,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// `false` until its cluster agent has enrolled.
    pub joined: bool,
    /// Random, made with the cluster agent's inbox; empty before the first session.
    pub incarnation: String,
    /// Of the cluster agent.
    pub version: String,
    /// Of the newest session; 0 before the first.
    pub epoch: u64,
    /// Counts the changes of the desired set.
    pub revision: u64,
    /// Cursors below it need a snapshot: older tombstones are gone.
    pub tombstone_floor: u64,
    /// Acknowledged as on disk.
    pub persisted: u64,
    /// Acknowledged as running.
    pub applied: u64,
    /// A snapshot whose deletions wait for a person: revision and number of deletions.
    pub held: Option<(u64, u64)>,
    /// Deletions beyond the budget that a person allowed.
    pub approved_deletes: u64,
    pub created_ms: i64,
    /// Up to half a minute behind.
    pub last_seen_ms: Option<i64>,
    /// The cluster is ahead of this database.
    pub timeline: Option<Timeline>,
    /// The label of whoever made the join token by which it joined last; empty before that.
    #[serde(default)]
    pub enrolled_by: String,
}

impl Resource for Cluster {
    fn place(&self) -> Place {
        Place {
            tenant: self.tenant,
            object: Object::Cluster(self.id),
        }
    }
}

/// A cluster to make. The hub chooses its id.
#[derive(Clone, Debug)]
pub struct NewCluster {
    pub name: Name,
    pub labels: BTreeMap<String, String>,
}

/// A session of a cluster agent that has just begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The cluster as it is now, `epoch` being this session's.
    pub cluster: Cluster,
    /// The incarnation of the session before; empty at the first.
    pub previous_incarnation: String,
    /// Commands wait for it.
    pub commands: bool,
}

#[derive(Debug, FromQueryResult)]
struct Row {
    id: Uuid,
    name: String,
    labels: String,
    state: String,
    incarnation: String,
    version: String,
    epoch: i64,
    revision: i64,
    tombstone_floor: i64,
    persisted: i64,
    applied: i64,
    held_revision: Option<i64>,
    held_deletes: Option<i64>,
    approved_deletes: i64,
    created_ms: i64,
    last_seen_ms: Option<i64>,
    timeline_cursor: Option<i64>,
    timeline: Option<String>,
    enrolled_by: String,
}

#[derive(Debug, FromQueryResult)]
struct Enrolled {
    id: Uuid,
    name: String,
    enrolled_by: String,
}

#[derive(Debug, FromQueryResult)]
struct Number {
    number: i64,
}

impl Tx<'_> {
    fn cluster_of(&self, row: Row) -> Result<Cluster, Error> {
        let held = row.held_revision.zip(row.held_deletes);
        Ok(Cluster {
            tenant: self.tenant(),
            id: ClusterId::from_uuid(row.id),
            name: row.name,
            labels: serde_json::from_str(&row.labels).map_err(|_| corrupt("labels of a cluster"))?,
            joined: row.state == "joined",
            incarnation: row.incarnation,
            version: row.version,
            epoch: row.epoch.cast_unsigned(),
            revision: row.revision.cast_unsigned(),
            tombstone_floor: row.tombstone_floor.cast_unsigned(),
            persisted: row.persisted.cast_unsigned(),
            applied: row.applied.cast_unsigned(),
            held: held.map(|(revision, deletes)| (revision.cast_unsigned(), deletes.cast_unsigned())),
            approved_deletes: row.approved_deletes.cast_unsigned(),
            created_ms: row.created_ms,
            last_seen_ms: row.last_seen_ms,
            timeline: Timeline::read(row.timeline_cursor, row.timeline.as_deref())?,
            enrolled_by: row.enrolled_by,
        })
    }

    /// The cluster with that id; `None` for a deleted one.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn cluster(&self, id: ClusterId) -> Result<Option<Cluster>, Error> {
        let sql = "SELECT id, name, labels, state, incarnation, version, epoch, revision, tombstone_floor, persisted,
            applied, held_revision, held_deletes, approved_deletes, created_ms, last_seen_ms,
            timeline_cursor, timeline, enrolled_by
            FROM cluster WHERE tenant_id = $1 AND id = $2 AND deleted_ms IS NULL";
        let row: Option<Row> = self.one(sql, values![id.as_uuid()]).await?;
        row.map(|row| self.cluster_of(row)).transpose()
    }

    /// The cluster of that name.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn cluster_by_name(&self, name: &Name) -> Result<Option<Cluster>, Error> {
        let sql = "SELECT id, name, labels, state, incarnation, version, epoch, revision, tombstone_floor, persisted,
            applied, held_revision, held_deletes, approved_deletes, created_ms, last_seen_ms,
            timeline_cursor, timeline, enrolled_by
            FROM cluster WHERE tenant_id = $1 AND name = $2 AND deleted_ms IS NULL";
        let row: Option<Row> = self.one(sql, values![name.as_str()]).await?;
        row.map(|row| self.cluster_of(row)).transpose()
    }

    /// A page of the tenant's clusters, by name.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a foreign cursor; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn clusters(&self, page: &PageRequest) -> Result<Page<Cluster>, Error> {
        let listing = Listing::new(self.tenant(), "clusters", &());
        let after: Option<String> = listing.open(page.after.as_deref())?;
        let size = page.size()?;
        let rows = self
            .cluster_rows(after.unwrap_or_default(), i64::from(size) + 1)
            .await?;
        Ok(listing.page(rows, size, |c: &Cluster| c.name.clone()))
    }

    /// All of the tenant's clusters, by id.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn all_clusters(&self) -> Result<Vec<Cluster>, Error> {
        let mut clusters = self.cluster_rows(String::new(), i64::MAX).await?;
        clusters.sort_by_key(|c| c.id);
        Ok(clusters)
    }

    async fn cluster_rows(&self, after: String, limit: i64) -> Result<Vec<Cluster>, Error> {
        let sql = "SELECT id, name, labels, state, incarnation, version, epoch, revision, tombstone_floor, persisted,
            applied, held_revision, held_deletes, approved_deletes, created_ms, last_seen_ms,
            timeline_cursor, timeline, enrolled_by
            FROM cluster WHERE tenant_id = $1 AND name > $2 AND deleted_ms IS NULL ORDER BY name LIMIT $3";
        let rows: Vec<Row> = self.all(sql, values![after, limit]).await?;
        rows.into_iter().map(|row| self.cluster_of(row)).collect()
    }

    /// Makes a cluster that waits for its cluster agent.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the name is taken.
    pub async fn insert_cluster(
        &self,
        proof: &Authorized<TenantId, act::ManageClusters>,
        new: &NewCluster,
    ) -> Result<Cluster, Error> {
        self.check_proof(&**proof)?;
        let id = ClusterId::generate(&*self.store.clock, &*self.store.random);
        let sql =
            "INSERT INTO cluster (tenant_id, id, name, labels, state, incarnation, version, epoch, revision,
            tombstone_floor, persisted, applied, approved_deletes, created_ms)
            VALUES ($1, $2, $3, $4, 'waiting', '', '', 0, 0, 0, 0, 0, 0, $5)
            ON CONFLICT (tenant_id, name) WHERE deleted_ms IS NULL DO NOTHING";
        let values = values![
            id.as_uuid(),
            new.name.as_str(),
            labels_text(&new.labels)?,
            self.now_ms()
        ];
        if self.run(sql, values).await? == 0 {
            let message = format!("there is a cluster {} already", new.name);
            return Err(Error::conflict(ConflictReason::Exists, message));
        }
        let made = self.cluster(id).await?;
        made.ok_or_else(|| corrupt("no row for the cluster that was just made"))
    }

    /// Deletes a cluster with its certificates, join tokens, desired set and statuses; its runs stay. Its sessions
    /// are fenced off at once.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn delete_cluster(
        &mut self,
        cluster: &Authorized<Cluster, act::ManageClusters>,
    ) -> Result<(), Error> {
        let id = cluster.id.as_uuid();
        let now = self.now_ms();
        self.run(
            "UPDATE cluster SET deleted_ms = $3, epoch = epoch + 1 WHERE tenant_id = $1 AND id = $2",
            values![id, now],
        )
        .await?;
        self.run(
            "UPDATE cluster_certificate SET revoked_ms = $3
                WHERE tenant_id = $1 AND cluster_id = $2 AND revoked_ms IS NULL",
            values![id, now],
        )
        .await?;
        for sql in [
            "DELETE FROM enrolment_token WHERE tenant_id = $1 AND cluster_id = $2",
            "DELETE FROM placed_status WHERE tenant_id = $1 AND cluster_id = $2",
            "DELETE FROM desired WHERE tenant_id = $1 AND cluster_id = $2",
        ] {
            self.run(sql, values![id]).await?;
        }
        self.drop_commands(cluster.id).await?;
        self.touch(cluster.id);
        Ok(())
    }

    /// Allows the deletions that wait, once; `false` when not that many wait. Decided by the row itself: what a person
    /// saw may have changed since.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn approve_deletes(
        &mut self,
        cluster: &Authorized<Cluster, act::ManageClusters>,
        deletes: u64,
    ) -> Result<bool, Error> {
        let sql = "UPDATE cluster SET approved_deletes = $3
            WHERE tenant_id = $1 AND id = $2 AND held_deletes = $3 AND deleted_ms IS NULL";
        let deletes = i64::try_from(deletes).unwrap_or(i64::MAX);
        let approved = self.run(sql, values![cluster.id.as_uuid(), deletes]).await? > 0;
        self.touch(cluster.id);
        Ok(approved)
    }

    /// Begins a session of the cluster agent behind the context: the epochs before it are worth nothing from the
    /// commit on.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a deleted cluster.
    pub async fn begin_session(
        &mut self,
        incarnation: &str,
        version: &str,
        capabilities: &str,
    ) -> Result<Session, Error> {
        let id = own_cluster(self.ctx)?;
        let gone = || Error::not_found(id.to_string());
        let sql = locking!(
            "SELECT id, name, labels, state, incarnation, version, epoch, revision, tombstone_floor, persisted,
            applied, held_revision, held_deletes, approved_deletes, created_ms, last_seen_ms,
            timeline_cursor, timeline, enrolled_by
            FROM cluster WHERE tenant_id = $1 AND id = $2 AND deleted_ms IS NULL",
            "FOR UPDATE"
        );
        let row: Row = self.one(sql, values![id.as_uuid()]).await?.ok_or_else(gone)?;
        let before = self.cluster_of(row)?;
        let now = self.now_ms();
        let sql = "UPDATE cluster SET epoch = epoch + 1, incarnation = $3, version = $4, last_seen_ms = $5,
            capabilities = $6 WHERE tenant_id = $1 AND id = $2";
        self.run(
            sql,
            values![id.as_uuid(), incarnation, version, now, capabilities],
        )
        .await?;
        self.touch(id);
        Ok(Session {
            commands: self.has_commands().await?,
            previous_incarnation: before.incarnation.clone(),
            cluster: Cluster {
                epoch: before.epoch + 1,
                incarnation: incarnation.to_owned(),
                version: version.to_owned(),
                last_seen_ms: Some(now),
                ..before
            },
        })
    }

    /// Makes sure that `epoch` is still the cluster's, and that it stays so until the transaction ends.
    ///
    /// # Errors
    /// [`Error::Conflict`] (superseded), [`Error::NotFound`] for a deleted cluster.
    pub async fn fence(&self, epoch: u64) -> Result<ClusterId, Error> {
        let id = own_cluster(self.ctx)?;
        let sql = locking!(
            "SELECT epoch AS number FROM cluster WHERE tenant_id = $1 AND id = $2 AND deleted_ms IS NULL",
            "FOR SHARE"
        );
        let row: Option<Number> = self.one(sql, values![id.as_uuid()]).await?;
        match row {
            Some(row) if row.number.cast_unsigned() == epoch => Ok(id),
            Some(_) => Err(superseded()),
            None => Err(Error::not_found(id.to_string())),
        }
    }

    /// Starts the cursors over: the cluster agent's inbox is new.
    ///
    /// # Errors
    /// [`Error::Conflict`] (superseded).
    pub async fn reset_cursors(&self, epoch: u64) -> Result<(), Error> {
        let id = self.fence(epoch).await?;
        let sql = "UPDATE cluster SET persisted = 0, applied = 0 WHERE tenant_id = $1 AND id = $2";
        self.run(sql, values![id.as_uuid()]).await?;
        Ok(())
    }

    /// Notes when clusters were last heard; never backwards.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn touch_last_seen(&self, seen: &[(ClusterId, i64)]) -> Result<(), Error> {
        let sql = "UPDATE cluster SET last_seen_ms = $3
            WHERE tenant_id = $1 AND id = $2 AND (last_seen_ms IS NULL OR last_seen_ms < $3)";
        let mut ordered = seen.to_vec();
        ordered.sort_unstable();
        for (cluster, at_ms) in ordered {
            self.run(sql, values![cluster.as_uuid(), at_ms]).await?;
        }
        Ok(())
    }

    /// Counts the cluster's revision up, under its row lock, and returns the new one.
    pub(crate) async fn bump(&mut self, cluster: ClusterId) -> Result<u64, Error> {
        let sql = "UPDATE cluster SET revision = revision + 1 WHERE tenant_id = $1 AND id = $2
            RETURNING revision AS number";
        let row: Option<Number> = self.one(sql, values![cluster.as_uuid()]).await?;
        let row = row.ok_or_else(|| corrupt("no row for a cluster that a desired set belongs to"))?;
        self.touch(cluster);
        Ok(row.number.cast_unsigned())
    }

    /// Marks the cluster as joined, by a join token that is kept.
    pub(crate) async fn join_cluster(&self, join: &JoinRecord, version: &str) -> Result<bool, Error> {
        let sql = "UPDATE cluster SET state = 'joined', version = $3, enrolled_by = $4
            WHERE tenant_id = $1 AND id = $2 AND deleted_ms IS NULL";
        let values = values![join.cluster.as_uuid(), version, join.created_by.as_str()];
        Ok(self.run(sql, values).await? > 0)
    }

    /// The clusters whose last join token one of these made, by their labels: ids and names, by name.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn clusters_enrolled_by(&self, makers: &[String]) -> Result<Vec<(ClusterId, String)>, Error> {
        let sql = "SELECT id, name, enrolled_by FROM cluster
            WHERE tenant_id = $1 AND enrolled_by LIKE 'token:%' AND deleted_ms IS NULL ORDER BY name";
        let makers: HashSet<&str> = makers.iter().map(String::as_str).collect();
        let rows: Vec<Enrolled> = self.all(sql, values![]).await?;
        let own = rows
            .into_iter()
            .filter(|row| makers.contains(row.enrolled_by.as_str()));
        Ok(own.map(|row| (ClusterId::from_uuid(row.id), row.name)).collect())
    }
}

pub(crate) fn superseded() -> Error {
    Error::conflict(
        ConflictReason::Superseded,
        "a newer session of this cluster has taken over; this one ends",
    )
}
