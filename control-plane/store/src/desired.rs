//! What should be on each cluster, and what has changed there since a revision (protocol.md §3.1).
//!
//! One row per cluster and object that ever belonged there; a row that has left is a tombstone. Every row stores the
//! cluster revision of its last change, so a delta is one range of an index. A tombstone carries the generation that
//! it removes; an object that comes back may come with the same one, at a higher revision.

use crate::audit::hash32;
use crate::objects::{Node, Object, kind_of};
use crate::own_cluster;
use crate::sql::values;
use crate::tx::Tx;
use roadstead_contract::documents::Kind;
use roadstead_contract::fleet::Digest;
use roadstead_domain::{ClusterId, Error, ObjectId, ProjectId};
use sea_orm::FromQueryResult;
use uuid::Uuid;

/// How long a tombstone is kept (protocol.md §3): a cluster that was away for less resumes by a delta.
const TOMBSTONES_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// A row of a desired set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredRow {
    pub cluster: ClusterId,
    pub object: ObjectId,
    pub generation: u64,
    /// The cluster's revision of the row's last change.
    pub revision: u64,
    pub deleted: bool,
}

/// An object that should be on a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub object: ObjectId,
    pub generation: u64,
    pub project: String,
    pub name: String,
    pub digest: Digest,
}

impl From<&Node> for Wanted {
    fn from(node: &Node) -> Self {
        Self {
            object: node.id,
            generation: node.revision,
            project: node.project_name.clone(),
            name: node.name.clone(),
            digest: node.digest,
        }
    }
}

impl From<&Object> for Wanted {
    fn from(object: &Object) -> Self {
        Self {
            object: object.id,
            generation: object.revision,
            project: object.project_name.clone(),
            name: object.name.clone(),
            digest: object.digest,
        }
    }
}

/// A change of a cluster's desired set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Upsert {
        revision: u64,
        uid: ObjectId,
        generation: u64,
        kind: Kind,
        project: String,
        name: String,
        /// SHA-256 of `document`.
        digest: Digest,
        /// JSON.
        document: String,
    },
    Tombstone {
        revision: u64,
        uid: ObjectId,
        generation: u64,
    },
}

impl Change {
    /// The cluster's revision of this change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        match self {
            Self::Upsert { revision, .. } | Self::Tombstone { revision, .. } => *revision,
        }
    }
}

/// An entry of the set that a state root is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredEntry {
    pub uid: ObjectId,
    pub generation: u64,
    pub digest: Digest,
}

/// Where an object is wanted, and what is known of it there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub cluster: ClusterId,
    pub cluster_name: String,
    pub cluster_last_seen_ms: Option<i64>,
    /// The wanted generation.
    pub generation: u64,
    /// The cluster's revision of that wish.
    pub revision: u64,
    /// The cluster agent has it on disk.
    pub persisted: bool,
    /// The cluster agent says it runs.
    pub applied: bool,
    pub status: Option<crate::status::Status>,
}

#[derive(Debug, FromQueryResult)]
struct Row {
    cluster_id: Uuid,
    object_id: Uuid,
    kind: String,
    generation: i64,
    revision: i64,
    deleted: i64,
}

#[derive(Debug, FromQueryResult)]
pub(crate) struct ChangeRow {
    pub(crate) object_id: Uuid,
    pub(crate) kind: String,
    pub(crate) generation: i64,
    pub(crate) project: String,
    pub(crate) name: String,
    pub(crate) digest: Vec<u8>,
    pub(crate) revision: i64,
    pub(crate) deleted: i64,
    pub(crate) document: Option<String>,
}

#[derive(Debug, FromQueryResult)]
struct EntryRow {
    object_id: Uuid,
    kind: String,
    generation: i64,
    digest: Vec<u8>,
}

#[derive(Debug, FromQueryResult)]
struct ClusterRow {
    id: Uuid,
}

#[derive(Debug, FromQueryResult)]
struct DocumentRow {
    document: String,
}

impl Row {
    fn read(self) -> Result<DesiredRow, Error> {
        Ok(DesiredRow {
            cluster: ClusterId::from_uuid(self.cluster_id),
            object: ObjectId::from_uuid(kind_of(&self.kind)?, self.object_id),
            generation: self.generation.cast_unsigned(),
            revision: self.revision.cast_unsigned(),
            deleted: self.deleted != 0,
        })
    }
}

impl ChangeRow {
    pub(crate) fn read(self) -> Result<Change, Error> {
        let uid = ObjectId::from_uuid(kind_of(&self.kind)?, self.object_id);
        let (revision, generation) = (self.revision.cast_unsigned(), self.generation.cast_unsigned());
        Ok(match self.document {
            Some(document) if self.deleted == 0 => Change::Upsert {
                revision,
                uid,
                generation,
                kind: uid.kind(),
                project: self.project,
                name: self.name,
                digest: Digest(hash32(&self.digest)?),
                document,
            },
            _ => Change::Tombstone {
                revision,
                uid,
                generation,
            },
        })
    }
}

impl Tx<'_> {
    /// The rows of one object on all clusters, those that have left included, by cluster.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn desired_of_object(&self, object: ObjectId) -> Result<Vec<DesiredRow>, Error> {
        let sql = "SELECT cluster_id, object_id, kind, generation, revision, deleted FROM desired
            WHERE tenant_id = $1 AND object_id = $2 ORDER BY cluster_id";
        let rows: Vec<Row> = self.all(sql, values![object.as_uuid()]).await?;
        rows.into_iter().map(Row::read).collect()
    }

    /// The rows that are wanted, of one project's objects (or of all) on all clusters.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn desired_of_project(&self, project: Option<ProjectId>) -> Result<Vec<DesiredRow>, Error> {
        let sql =
            "SELECT d.cluster_id, d.object_id, d.kind, d.generation, d.revision, d.deleted FROM desired d
            JOIN object o ON o.tenant_id = d.tenant_id AND o.id = d.object_id
            WHERE d.tenant_id = $1 AND d.deleted = 0 AND ($2 IS NULL OR o.project_id = $2)
            ORDER BY d.cluster_id, d.object_id";
        let rows: Vec<Row> = self.all(sql, values![project.map(ProjectId::as_uuid)]).await?;
        rows.into_iter().map(Row::read).collect()
    }

    /// Gives every cluster that holds the object its new generation, each under one new revision of its own: two
    /// statements, however many clusters there are.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn refresh_desired(&mut self, object: &Object) -> Result<(), Error> {
        let bump = "UPDATE cluster SET revision = revision + 1 WHERE tenant_id = $1 AND id IN
            (SELECT d.cluster_id FROM desired d WHERE d.tenant_id = $1 AND d.object_id = $2 AND d.deleted = 0)
            RETURNING id";
        let bumped: Vec<ClusterRow> = self.all(bump, values![object.id.as_uuid()]).await?;
        if bumped.is_empty() {
            return Ok(());
        }
        let refresh = "UPDATE desired SET generation = $3, digest = $4, revision =
            (SELECT c.revision FROM cluster c WHERE c.tenant_id = $1 AND c.id = desired.cluster_id)
            WHERE tenant_id = $1 AND object_id = $2 AND deleted = 0";
        let values = values![
            object.id.as_uuid(),
            object.revision.cast_signed(),
            object.digest.to_vec()
        ];
        self.run(refresh, values).await?;
        for row in bumped {
            self.touch(ClusterId::from_uuid(row.id));
        }
        Ok(())
    }

    /// Changes one cluster's desired set, under one new revision: what is wanted from now on (new, or of a new
    /// generation), and what has left. The caller goes through clusters in the order of their ids.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn change_desired(
        &mut self,
        cluster: ClusterId,
        wanted: &[Wanted],
        gone: &[ObjectId],
    ) -> Result<u64, Error> {
        let revision = self.bump(cluster).await?;
        let upsert =
            "INSERT INTO desired (tenant_id, cluster_id, object_id, generation, kind, project, name, digest,
            revision, deleted) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0)
            ON CONFLICT (tenant_id, cluster_id, object_id) DO UPDATE SET generation = excluded.generation,
            digest = excluded.digest, revision = excluded.revision, deleted = 0, gone_ms = NULL";
        for want in wanted {
            let values = values![
                cluster.as_uuid(),
                want.object.as_uuid(),
                want.generation.cast_signed(),
                want.object.kind().as_str(),
                want.project.as_str(),
                want.name.as_str(),
                want.digest.to_vec(),
                revision.cast_signed()
            ];
            self.run(upsert, values).await?;
        }
        let bury = "UPDATE desired SET deleted = 1, revision = $4, gone_ms = $5,
            generation = (SELECT o.revision FROM object o WHERE o.tenant_id = $1 AND o.id = $3)
            WHERE tenant_id = $1 AND cluster_id = $2 AND object_id = $3";
        for object in gone {
            let values = values![
                cluster.as_uuid(),
                object.as_uuid(),
                revision.cast_signed(),
                self.now_ms()
            ];
            self.run(bury, values).await?;
        }
        let forget = "DELETE FROM placed_status WHERE tenant_id = $1 AND cluster_id = $2 AND object_id = $3";
        for object in gone {
            self.run(forget, values![cluster.as_uuid(), object.as_uuid()])
                .await?;
        }
        Ok(revision)
    }

    /// Forgets tombstones that are older than `TOMBSTONES_MS` and that their cluster has carried out, and raises the
    /// floor of the cluster: whoever comes back with an older cursor gets a snapshot. Those of agents stay: a run record
    /// that arrives late is believed because its agent once belonged there.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn purge_tombstones(&self) -> Result<u64, Error> {
        let before = self.now_ms() - TOMBSTONES_MS;
        let raise = "UPDATE cluster SET tombstone_floor = (SELECT MAX(d.revision) FROM desired d
                WHERE d.tenant_id = $1 AND d.cluster_id = cluster.id AND d.deleted = 1 AND d.kind <> 'Agent'
                AND COALESCE(d.gone_ms, 0) <= $2 AND d.revision <= cluster.persisted AND d.revision <= cluster.applied)
            WHERE tenant_id = $1 AND EXISTS (SELECT 1 FROM desired d
                WHERE d.tenant_id = $1 AND d.cluster_id = cluster.id AND d.deleted = 1 AND d.kind <> 'Agent'
                AND COALESCE(d.gone_ms, 0) <= $2 AND d.revision <= cluster.persisted AND d.revision <= cluster.applied
                AND d.revision > cluster.tombstone_floor)";
        self.run(raise, values![before]).await?;
        let forget = "DELETE FROM desired WHERE tenant_id = $1 AND deleted = 1 AND kind <> 'Agent'
            AND revision <= (SELECT c.tombstone_floor FROM cluster c WHERE c.tenant_id = $1 AND c.id = desired.cluster_id)";
        self.run(forget, values![]).await
    }

    /// Changes of the context's cluster after `after`, in the order of their revisions, at most `limit` and then on
    /// to the end of that revision: a revision is never cut in two.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for others than cluster agents; [`Error::Unavailable`], [`Error::Internal`].
    pub async fn changes_since(&self, after: u64, limit: u32) -> Result<Vec<Change>, Error> {
        let cluster = own_cluster(self.ctx)?;
        let sql = "SELECT d.object_id, d.kind, d.generation, d.project, d.name, d.digest, d.revision, d.deleted,
            CASE WHEN d.deleted = 0 THEN r.document END AS document
            FROM desired d JOIN revision r
            ON r.tenant_id = d.tenant_id AND r.object_id = d.object_id AND r.number = d.generation
            WHERE d.tenant_id = $1 AND d.cluster_id = $2 AND d.revision > $3 AND d.revision <= COALESCE(
                (SELECT e.revision FROM desired e WHERE e.tenant_id = $1 AND e.cluster_id = $2 AND e.revision > $3
                 ORDER BY e.revision LIMIT 1 OFFSET $4), $5)
            ORDER BY d.revision, d.deleted DESC, d.object_id";
        let values = values![
            cluster.as_uuid(),
            i64::try_from(after).unwrap_or(i64::MAX),
            i64::from(limit.max(1)) - 1,
            i64::MAX
        ];
        let rows: Vec<ChangeRow> = self.all(sql, values).await?;
        rows.into_iter().map(ChangeRow::read).collect()
    }

    /// The revision of the context's cluster now.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a deleted cluster; else as [`Self::changes_since`].
    pub async fn cluster_revision(&self) -> Result<u64, Error> {
        let id = own_cluster(self.ctx)?;
        let cluster = self.cluster(id).await?;
        cluster
            .map(|c| c.revision)
            .ok_or_else(|| Error::not_found(id.to_string()))
    }

    /// What should be on the context's cluster, by uid, after `after`, at most `limit`.
    ///
    /// # Errors
    /// As [`Self::changes_since`].
    pub async fn desired_set(&self, after: Option<ObjectId>, limit: u32) -> Result<Vec<DesiredEntry>, Error> {
        let cluster = own_cluster(self.ctx)?;
        let sql = "SELECT object_id, kind, generation, digest FROM desired
            WHERE tenant_id = $1 AND cluster_id = $2 AND deleted = 0 AND object_id > $3 ORDER BY object_id LIMIT $4";
        let after = after.map_or(Uuid::nil(), ObjectId::as_uuid);
        let rows: Vec<EntryRow> = self
            .all(sql, values![cluster.as_uuid(), after, i64::from(limit)])
            .await?;
        let read = rows.into_iter().map(|row| {
            Ok(DesiredEntry {
                uid: ObjectId::from_uuid(kind_of(&row.kind)?, row.object_id),
                generation: row.generation.cast_unsigned(),
                digest: Digest(hash32(&row.digest)?),
            })
        });
        read.collect()
    }

    /// One object of the context's cluster as a change; `None` when it never belonged there.
    ///
    /// # Errors
    /// As [`Self::changes_since`].
    pub async fn desired_change(&self, uid: ObjectId) -> Result<Option<Change>, Error> {
        let cluster = own_cluster(self.ctx)?;
        let sql =
            "SELECT d.object_id, d.kind, d.generation, d.project, d.name, d.digest, d.revision, d.deleted,
            CASE WHEN d.deleted = 0 THEN r.document END AS document
            FROM desired d JOIN revision r
            ON r.tenant_id = d.tenant_id AND r.object_id = d.object_id AND r.number = d.generation
            WHERE d.tenant_id = $1 AND d.cluster_id = $2 AND d.object_id = $3";
        let row: Option<ChangeRow> = self.one(sql, values![cluster.as_uuid(), uid.as_uuid()]).await?;
        row.map(ChangeRow::read).transpose()
    }

    /// The document with that digest, if it is on the context's cluster.
    ///
    /// # Errors
    /// As [`Self::changes_since`].
    pub async fn desired_document(&self, digest: Digest) -> Result<Option<String>, Error> {
        let cluster = own_cluster(self.ctx)?;
        let sql = "SELECT r.document FROM desired d JOIN revision r
            ON r.tenant_id = d.tenant_id AND r.object_id = d.object_id AND r.number = d.generation
            WHERE d.tenant_id = $1 AND d.cluster_id = $2 AND d.digest = $3 AND d.deleted = 0 LIMIT 1";
        let row: Option<DocumentRow> = self.one(sql, values![cluster.as_uuid(), digest.to_vec()]).await?;
        Ok(row.map(|row| row.document))
    }
}
