//! Who has which roots of the fleet: clusters on their disk, replicas of the hub in memory.

use crate::sql::values;
use crate::tx::Tx;
use roadstead_domain::{ClusterId, Error};
use sea_orm::FromQueryResult;
use std::time::Duration;
use uuid::Uuid;

/// A replica that has not reported for so long has ended.
const FORGOTTEN: Duration = Duration::from_secs(60 * 60);

/// What a replica that ends is put back by: no live one was heard so long ago.
const ENDED: Duration = Duration::from_secs(120);

/// A cluster that has a certificate which is good now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterTrust {
    pub id: ClusterId,
    pub name: String,
    /// Generation of the trust bundle that it said it keeps.
    pub generation: u64,
    /// Root of the certificate with which it said so last, by its id; empty before it ever did.
    pub root: String,
    /// When its newest certificate was issued, and when the last of them ends.
    pub issued_ms: i64,
    pub not_after_ms: i64,
}

/// A process of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubReplica {
    /// Random, new at each start.
    pub id: String,
    /// Generation of the roots that it works with.
    pub generation: u64,
    /// Of those roots.
    pub digest: String,
    pub seen_ms: i64,
}

#[derive(Debug, FromQueryResult)]
struct TrustRow {
    id: Uuid,
    name: String,
    trust_generation: i64,
    trust_root: String,
    issued_ms: i64,
    not_after_ms: i64,
}

#[derive(Debug, FromQueryResult)]
struct KeptRow {
    trust_generation: i64,
    trust_root: String,
}

#[derive(Debug, FromQueryResult)]
struct ReplicaRow {
    id: String,
    roots_generation: i64,
    roots_digest: String,
    seen_ms: i64,
}

impl Tx<'_> {
    /// What the context's cluster last said of its roots: the bundle's generation, and the root of the certificate with
    /// which it said so.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a deleted cluster.
    pub async fn trust_kept(&self) -> Result<(u64, String), Error> {
        let id = crate::own_cluster(self.ctx)?;
        let sql = "SELECT trust_generation, trust_root FROM cluster
            WHERE tenant_id = $1 AND id = $2 AND deleted_ms IS NULL";
        let row: Option<KeptRow> = self.one(sql, values![id.as_uuid()]).await?;
        let row = row.ok_or_else(|| Error::not_found(id.to_string()))?;
        Ok((row.trust_generation.cast_unsigned(), row.trust_root))
    }

    /// Keeps what the context's cluster says of its roots.
    ///
    /// # Errors
    /// [`Error::Conflict`] (superseded); [`Error::NotFound`] for a deleted cluster.
    pub async fn record_trust(&self, epoch: u64, generation: u64, root: &str) -> Result<(), Error> {
        let id = self.fence(epoch).await?;
        let sql =
            "UPDATE cluster SET trust_generation = $3, trust_root = $4 WHERE tenant_id = $1 AND id = $2";
        let generation = i64::try_from(generation).unwrap_or(i64::MAX);
        self.run(sql, values![id.as_uuid(), generation, root]).await?;
        Ok(())
    }

    /// The tenant's clusters that have a certificate which is good now, by name.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn cluster_trust(&self) -> Result<Vec<ClusterTrust>, Error> {
        let sql = "SELECT c.id, c.name, c.trust_generation, c.trust_root, MAX(x.issued_ms) AS issued_ms,
            MAX(x.not_after_ms) AS not_after_ms
            FROM cluster c JOIN cluster_certificate x ON x.tenant_id = c.tenant_id AND x.cluster_id = c.id
            WHERE c.tenant_id = $1 AND c.deleted_ms IS NULL AND x.revoked_ms IS NULL AND x.not_after_ms > $2
            GROUP BY c.id, c.name, c.trust_generation, c.trust_root ORDER BY c.name";
        let rows: Vec<TrustRow> = self.all(sql, values![self.now_ms()]).await?;
        let clusters = rows.into_iter().map(|row| ClusterTrust {
            id: ClusterId::from_uuid(row.id),
            name: row.name,
            generation: row.trust_generation.cast_unsigned(),
            root: row.trust_root,
            issued_ms: row.issued_ms,
            not_after_ms: row.not_after_ms,
        });
        Ok(clusters.collect())
    }
}

/// The hub's own processes; the context is the platform's.
impl Tx<'_> {
    /// Says which roots this replica works with; replicas that ended long ago are forgotten.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn report_replica(&self, id: &str, generation: u64, digest: &str) -> Result<(), Error> {
        let now = self.now_ms();
        let old = now.saturating_sub(i64::try_from(FORGOTTEN.as_millis()).unwrap_or(i64::MAX));
        let generation = i64::try_from(generation).unwrap_or(i64::MAX);
        let upsert = "INSERT INTO hub_replica (tenant_id, id, roots_generation, roots_digest, seen_ms)
            VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (tenant_id, id) DO UPDATE SET roots_generation = $3, roots_digest = $4, seen_ms = $5";
        self.run(upsert, values![id, generation, digest, now]).await?;
        let forget = "DELETE FROM hub_replica WHERE tenant_id = $1 AND seen_ms < $2";
        self.run(forget, values![old]).await?;
        Ok(())
    }

    /// A replica has ended. Which roots it had is remembered for as long as of one that reports no more.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn end_replica(&self, id: &str) -> Result<(), Error> {
        let sql = "UPDATE hub_replica SET seen_ms = $3 WHERE tenant_id = $1 AND id = $2";
        let ended = self
            .now_ms()
            .saturating_sub(i64::try_from(ENDED.as_millis()).unwrap_or(0));
        self.run(sql, values![id, ended]).await?;
        Ok(())
    }

    /// The replicas that reported within the last hour, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn replicas(&self) -> Result<Vec<HubReplica>, Error> {
        let sql = "SELECT id, roots_generation, roots_digest, seen_ms FROM hub_replica
            WHERE tenant_id = $1 ORDER BY seen_ms DESC, id";
        let rows: Vec<ReplicaRow> = self.all(sql, vec![]).await?;
        let replicas = rows.into_iter().map(|row| HubReplica {
            id: row.id,
            generation: row.roots_generation.cast_unsigned(),
            digest: row.roots_digest,
            seen_ms: row.seen_ms,
        });
        Ok(replicas.collect())
    }
}
