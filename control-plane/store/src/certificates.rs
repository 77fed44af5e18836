//! Certificates of cluster agents, and the join tokens that earn the first one.

use crate::clusters::Cluster;
use crate::sql::values;
use crate::system::JoinRecord;
use crate::tx::Tx;
use roadstead_authz::{Authorized, act};
use roadstead_domain::{ClusterId, EnrolmentTokenId, Error};
use sea_orm::FromQueryResult;

/// A certificate that the hub issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Lower-case hex.
    pub serial: String,
    pub issued_ms: i64,
    pub not_after_ms: i64,
    pub revoked_ms: Option<i64>,
    /// When it was presented without being known here; it waits for a person.
    pub unknown_ms: Option<i64>,
}

/// A join token to keep.
#[derive(Clone, Copy, Debug)]
pub struct NewJoinToken {
    pub hash: [u8; 32],
    pub expires_ms: i64,
}

#[derive(Debug, FromQueryResult)]
struct CountRow {
    number: i64,
}

#[derive(Debug, FromQueryResult)]
struct Row {
    serial: String,
    issued_ms: i64,
    not_after_ms: i64,
    revoked_ms: Option<i64>,
    unknown_ms: Option<i64>,
}

impl Tx<'_> {
    /// Keeps a join token's hash; the cluster's unused ones before it end.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn insert_join_token(
        &self,
        cluster: &Authorized<Cluster, act::ManageClusters>,
        new: NewJoinToken,
    ) -> Result<EnrolmentTokenId, Error> {
        let sql = "DELETE FROM enrolment_token WHERE tenant_id = $1 AND cluster_id = $2 AND used_ms IS NULL";
        self.run(sql, values![cluster.id.as_uuid()]).await?;
        let id = EnrolmentTokenId::generate(&*self.store.clock, &*self.store.random);
        let sql = "INSERT INTO enrolment_token (tenant_id, id, cluster_id, hash, created_ms, expires_ms, created_by)
            VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let values = values![
            id.as_uuid(),
            cluster.id.as_uuid(),
            new.hash.to_vec(),
            self.now_ms(),
            new.expires_ms,
            self.ctx.actor().label()
        ];
        self.run(sql, values).await?;
        Ok(id)
    }

    /// Whether the tenant has join tokens that nobody has used: also such whose time is over, by this clock.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn has_join_tokens(&self) -> Result<bool, Error> {
        let sql = "SELECT COUNT(*) AS number FROM enrolment_token WHERE tenant_id = $1 AND used_ms IS NULL";
        let row: Option<CountRow> = self.one(sql, values![]).await?;
        Ok(row.is_some_and(|row| row.number > 0))
    }

    /// Ends the join tokens of these makers, by their labels, that nobody has used; how many. An ended one counts as used,
    /// not as expired: what has expired for this clock is still good for another replica's that is behind.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn end_join_tokens_of(&self, makers: &[String]) -> Result<u64, Error> {
        let sql = "UPDATE enrolment_token SET used_ms = $2
            WHERE tenant_id = $1 AND created_by = $3 AND used_ms IS NULL";
        let mut ended = 0;
        for maker in makers {
            ended += self.run(sql, values![self.now_ms(), maker.as_str()]).await?;
        }
        Ok(ended)
    }

    /// Ends the tenant's join tokens that nobody has used, as [`Self::end_join_tokens_of`]; how many.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn end_join_tokens(&self) -> Result<u64, Error> {
        let sql = "UPDATE enrolment_token SET used_ms = $2 WHERE tenant_id = $1 AND used_ms IS NULL";
        self.run(sql, values![self.now_ms()]).await
    }

    /// Uses a join token up; `false` when it is used, expired, or its cluster deleted: decided by the row itself, so
    /// that of two attempts at once one wins. The cluster's certificates are revoked: their keys belong to an
    /// installation that is being replaced.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn consume_join_token(&mut self, join: &JoinRecord, version: &str) -> Result<bool, Error> {
        let sql = "UPDATE enrolment_token SET used_ms = $3
            WHERE tenant_id = $1 AND id = $2 AND used_ms IS NULL AND expires_ms > $3";
        let used = self.run(sql, values![join.id.as_uuid(), self.now_ms()]).await? > 0;
        let joined = used && self.join_cluster(join, version).await?;
        if joined {
            self.revoke_all(join.cluster).await?;
        }
        Ok(joined)
    }

    /// Keeps a certificate before it is handed out; `false` for a deleted cluster.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn insert_certificate(
        &self,
        cluster: ClusterId,
        serial: &str,
        not_after_ms: i64,
    ) -> Result<bool, Error> {
        let sql = "INSERT INTO cluster_certificate (tenant_id, cluster_id, serial, issued_ms, not_after_ms)
            SELECT c.tenant_id, c.id, $3, $4, $5 FROM cluster c
            WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_ms IS NULL";
        let values = values![cluster.as_uuid(), serial, self.now_ms(), not_after_ms];
        Ok(self.run(sql, values).await? > 0)
    }

    /// The cluster's certificates, newest first, at most 100.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn certificates(&self, cluster: &Cluster) -> Result<Vec<Certificate>, Error> {
        let sql = "SELECT serial, issued_ms, not_after_ms, revoked_ms, unknown_ms FROM cluster_certificate
            WHERE tenant_id = $1 AND cluster_id = $2 ORDER BY issued_ms DESC, serial LIMIT 100";
        let rows: Vec<Row> = self.all(sql, values![cluster.id.as_uuid()]).await?;
        let certificates = rows.into_iter().map(|row| Certificate {
            serial: row.serial,
            issued_ms: row.issued_ms,
            not_after_ms: row.not_after_ms,
            revoked_ms: row.revoked_ms,
            unknown_ms: row.unknown_ms,
        });
        Ok(certificates.collect())
    }

    /// Revokes one certificate, or all of the cluster's; returns how many.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn revoke_certificates(
        &mut self,
        cluster: &Authorized<Cluster, act::ManageClusters>,
        serial: Option<&str>,
    ) -> Result<u64, Error> {
        let Some(serial) = serial else {
            return self.revoke_all(cluster.id).await;
        };
        // One that waits for admission counts as revoked already: from now on it does not wait.
        let sql = "UPDATE cluster_certificate SET revoked_ms = $4, unknown_ms = NULL
            WHERE tenant_id = $1 AND cluster_id = $2 AND serial = $3
            AND (revoked_ms IS NULL OR unknown_ms IS NOT NULL)";
        let revoked = self
            .run(sql, values![cluster.id.as_uuid(), serial, self.now_ms()])
            .await?;
        self.touch(cluster.id);
        Ok(revoked)
    }

    /// Notes a certificate of the hub's own authority that this database does not know, as after a restore from a
    /// backup: worth nothing, until a person admits it. `false` when it is known, or the cluster deleted.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn note_unknown_certificate(
        &self,
        cluster: ClusterId,
        serial: &str,
        not_after_ms: i64,
    ) -> Result<bool, Error> {
        let sql = "INSERT INTO cluster_certificate (tenant_id, cluster_id, serial, issued_ms, not_after_ms, revoked_ms,
            unknown_ms) SELECT c.tenant_id, c.id, $3, $4, $5, $4, $4 FROM cluster c
            WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_ms IS NULL
            ON CONFLICT (tenant_id, cluster_id, serial) DO NOTHING";
        let values = values![cluster.as_uuid(), serial, self.now_ms(), not_after_ms];
        Ok(self.run(sql, values).await? > 0)
    }

    /// Whether that certificate waits for a person; `None` when it is not known at all, or its cluster is deleted.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn waits_for_admission(&self, cluster: ClusterId, serial: &str) -> Result<Option<bool>, Error> {
        let sql = "SELECT x.serial, x.issued_ms, x.not_after_ms, x.revoked_ms, x.unknown_ms FROM cluster_certificate x
            WHERE x.tenant_id = $1 AND x.cluster_id = $2 AND x.serial = $3";
        let row: Option<Row> = self.one(sql, values![cluster.as_uuid(), serial]).await?;
        Ok(row.map(|row| row.unknown_ms.is_some()))
    }

    /// Makes a certificate good that waits for a person; `false` when it does not.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn admit_certificate(
        &self,
        cluster: &Authorized<Cluster, act::ManageClusters>,
        serial: &str,
    ) -> Result<bool, Error> {
        let sql = "UPDATE cluster_certificate SET revoked_ms = NULL, unknown_ms = NULL
            WHERE tenant_id = $1 AND cluster_id = $2 AND serial = $3 AND unknown_ms IS NOT NULL";
        Ok(self.run(sql, values![cluster.id.as_uuid(), serial]).await? > 0)
    }

    async fn revoke_all(&mut self, cluster: ClusterId) -> Result<u64, Error> {
        let sql = "UPDATE cluster_certificate SET unknown_ms = NULL
            WHERE tenant_id = $1 AND cluster_id = $2 AND unknown_ms IS NOT NULL";
        self.run(sql, values![cluster.as_uuid()]).await?;
        let sql = "UPDATE cluster_certificate SET revoked_ms = $3
            WHERE tenant_id = $1 AND cluster_id = $2 AND revoked_ms IS NULL";
        let revoked = self.run(sql, values![cluster.as_uuid(), self.now_ms()]).await?;
        self.touch(cluster);
        Ok(revoked)
    }
}
