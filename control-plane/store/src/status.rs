//! What cluster agents report of the objects that were placed with them.

use crate::desired::Placed;
use crate::error::corrupt;
use crate::sql::values;
use crate::tx::Tx;
use roadstead_domain::{ClusterId, Error, ObjectId};
use sea_orm::FromQueryResult;
use serde_json::Value as Json;
use uuid::Uuid;

/// The last report of an object on a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The generation that the report is about; an older one than wanted is never counted by a rollout.
    pub observed_generation: u64,
    /// One word: `Pending`, `Ready`, `Degraded`, `Failed`, `Rejected`.
    pub phase: String,
    /// A code; empty when all is well.
    pub reason: String,
    /// For people.
    pub message: String,
    /// As reported: a list of `{type, status, reason, message}`.
    pub conditions: Json,
    /// When the hub heard it.
    pub at_ms: i64,
}

/// A report to keep.
#[derive(Clone, Debug)]
pub struct NewStatus {
    pub object: ObjectId,
    pub observed_generation: u64,
    pub phase: String,
    pub reason: String,
    pub message: String,
    pub conditions: Json,
}

#[derive(Debug, FromQueryResult)]
struct PlacedRow {
    cluster_id: Uuid,
    cluster_name: String,
    last_seen_ms: Option<i64>,
    persisted: i64,
    applied: i64,
    generation: i64,
    revision: i64,
    observed_generation: Option<i64>,
    phase: Option<String>,
    reason: Option<String>,
    message: Option<String>,
    conditions: Option<String>,
    at_ms: Option<i64>,
}

#[derive(Debug, FromQueryResult)]
struct NameRow {
    id: Uuid,
    name: String,
}

impl PlacedRow {
    fn read(self) -> Result<Placed, Error> {
        let status = match (self.observed_generation, self.phase, self.at_ms) {
            (Some(observed), Some(phase), Some(at_ms)) => Some(Status {
                observed_generation: observed.cast_unsigned(),
                phase,
                reason: self.reason.unwrap_or_default(),
                message: self.message.unwrap_or_default(),
                conditions: serde_json::from_str(self.conditions.as_deref().unwrap_or("[]"))
                    .map_err(|_| corrupt("conditions of a status"))?,
                at_ms,
            }),
            _ => None,
        };
        Ok(Placed {
            cluster: ClusterId::from_uuid(self.cluster_id),
            cluster_name: self.cluster_name,
            cluster_last_seen_ms: self.last_seen_ms,
            generation: self.generation.cast_unsigned(),
            revision: self.revision.cast_unsigned(),
            persisted: self.persisted >= self.revision,
            applied: self.applied >= self.revision,
            status,
        })
    }
}

impl Tx<'_> {
    /// Where the object is wanted, with the last report from there, by the cluster's name.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn placed(&self, object: ObjectId) -> Result<Vec<Placed>, Error> {
        let sql = "SELECT d.cluster_id, c.name AS cluster_name, c.last_seen_ms, c.persisted, c.applied, d.generation,
            d.revision, s.observed_generation, s.phase, s.reason, s.message, s.conditions, s.at_ms
            FROM desired d
            JOIN cluster c ON c.tenant_id = d.tenant_id AND c.id = d.cluster_id
            LEFT JOIN placed_status s
            ON s.tenant_id = d.tenant_id AND s.cluster_id = d.cluster_id AND s.object_id = d.object_id
            WHERE d.tenant_id = $1 AND d.object_id = $2 AND d.deleted = 0 AND c.deleted_ms IS NULL ORDER BY c.name";
        let rows: Vec<PlacedRow> = self.all(sql, values![object.as_uuid()]).await?;
        rows.into_iter().map(PlacedRow::read).collect()
    }

    /// Ids and names of the clusters where the object is wanted, by name, at most `most`; with `cluster` the one of that
    /// name alone.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn placed_on(
        &self,
        object: ObjectId,
        cluster: Option<&str>,
        most: u32,
    ) -> Result<Vec<(ClusterId, String)>, Error> {
        let sql = "SELECT c.id, c.name FROM desired d
            JOIN cluster c ON c.tenant_id = d.tenant_id AND c.id = d.cluster_id
            WHERE d.tenant_id = $1 AND d.object_id = $2 AND d.deleted = 0 AND c.deleted_ms IS NULL
            AND ($3 IS NULL OR c.name = $3) ORDER BY c.name LIMIT $4";
        let values = values![object.as_uuid(), cluster, i64::from(most)];
        let rows: Vec<NameRow> = self.all(sql, values).await?;
        let named = rows
            .into_iter()
            .map(|row| (ClusterId::from_uuid(row.id), row.name));
        Ok(named.collect())
    }
}
