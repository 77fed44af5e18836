//! The few acts before a tenant is known: whose is this token, this certificate? Which tenants are there?
//!
//! Each shows one row, found by a secret's hash or a certificate's own names, or the list of tenants; nothing here
//! reads what belongs to a tenant.

use crate::audit::hash32;
use crate::error::outward;
use crate::tokens::{role_of, scopes_of};
use crate::tx::{begin, set_tenant};
use crate::{Faults, Store};
use roadstead_authz::{
    CertificateRecord, PeerIdentity, Presented, SecretKind, SystemContext, SystemTask, TenantRecord,
    TokenRecord,
};
use roadstead_contract::documents::Name;
use roadstead_domain::{ClusterId, EnrolmentTokenId, Error, TenantId, TokenId};
use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, FromQueryResult, SqliteTransactionMode, Statement, Value,
};
use uuid::Uuid;

/// The store as the hub itself sees it.
#[derive(Debug)]
pub struct SystemStore<'s> {
    pub(crate) store: &'s Store,
    pub(crate) system: &'s SystemContext,
}

/// A join token that was found by its hash; whether it is still good is decided when it is consumed.
#[derive(Clone, Debug)]
pub struct JoinRecord {
    pub tenant: TenantRecord,
    pub cluster: ClusterId,
    pub id: EnrolmentTokenId,
    /// The label of whoever made it.
    pub created_by: String,
}

#[derive(Debug, FromQueryResult)]
struct TenantRow {
    id: Uuid,
    name: String,
}

#[derive(Debug, FromQueryResult)]
struct TokenRow {
    tenant_id: Uuid,
    tenant_name: String,
    id: Uuid,
    name: String,
    role: String,
    scopes: String,
    hash: Vec<u8>,
    expires_ms: i64,
    revoked_ms: Option<i64>,
}

#[derive(Debug, FromQueryResult)]
struct JoinRow {
    tenant_id: Uuid,
    tenant_name: String,
    id: Uuid,
    cluster_id: Uuid,
    created_by: String,
}

#[derive(Debug, FromQueryResult)]
struct CertificateRow {
    tenant_name: String,
    not_after_ms: i64,
    revoked_ms: Option<i64>,
    deleted_ms: Option<i64>,
}

impl From<TenantRow> for TenantRecord {
    fn from(row: TenantRow) -> Self {
        Self {
            id: TenantId::from_uuid(row.id),
            name: row.name,
        }
    }
}

impl SystemStore<'_> {
    fn only(&self, tasks: &[SystemTask]) -> Result<(), Error> {
        if tasks.contains(&self.system.task()) {
            return Ok(());
        }
        let task = self.system.task().name();
        Err(Error::forbidden(format!(
            "the system task {task} may not do this"
        )))
    }

    /// A reading transaction that sees tenants' names, and the row of one secret's hash.
    #[expect(clippy::disallowed_methods, reason = "who calls is not known before it")]
    async fn look(&self, secret: Option<&[u8; 32]>) -> Result<DatabaseTransaction, Error> {
        let db = begin(&self.store.read, SqliteTransactionMode::Deferred).await?;
        if db.get_database_backend() == DbBackend::Postgres {
            let sql = "SELECT set_config('roadstead.system', 'on', true), set_config('roadstead.secret_hash', $1, true)";
            let hash = secret.map(hex::encode).unwrap_or_default();
            let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, [Value::from(hash)]);
            db.execute_raw(statement).await.map_err(outward)?;
        }
        Ok(db)
    }

    #[expect(clippy::disallowed_methods, reason = "who calls is not known before it")]
    async fn one<T: FromQueryResult>(
        &self,
        db: &DatabaseTransaction,
        sql: &'static str,
        values: Vec<Value>,
    ) -> Result<Option<T>, Error> {
        Faults::check(self.store.faults.as_ref(), sql)?;
        let statement = Statement::from_sql_and_values(db.get_database_backend(), sql, values);
        let row = db.query_one_raw(statement).await.map_err(outward)?;
        row.map(|row| T::from_query_result(&row, "").map_err(outward))
            .transpose()
    }

    /// The API token with the hash of what was presented.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`]; [`Error::Forbidden`] for another task.
    pub async fn find_api_token(&self, presented: &Presented) -> Result<Option<TokenRecord>, Error> {
        self.only(&[SystemTask::Authenticate])?;
        if presented.kind() != SecretKind::ApiToken {
            return Ok(None);
        }
        let db = self.look(Some(presented.hash())).await?;
        let sql =
            "SELECT t.tenant_id, n.name AS tenant_name, t.id, t.name, t.role, t.scopes, t.hash, t.expires_ms,
            t.revoked_ms
            FROM api_token t JOIN tenant n ON n.id = t.tenant_id WHERE t.hash = $1";
        let row: Option<TokenRow> = self.one(&db, sql, vec![presented.hash().to_vec().into()]).await?;
        let Some(row) = row else { return Ok(None) };
        let record = TokenRecord {
            id: TokenId::from_uuid(row.id),
            tenant: TenantRecord {
                id: TenantId::from_uuid(row.tenant_id),
                name: row.tenant_name,
            },
            name: row.name,
            role: role_of(&row.role)?,
            scopes: scopes_of(&row.scopes)?,
            hash: hash32(&row.hash)?,
            expires_at_ms: row.expires_ms,
            revoked: row.revoked_ms.is_some(),
        };
        Ok(Some(record))
    }

    /// The join token with the hash of what was presented, used or not.
    ///
    /// # Errors
    /// As [`Self::find_api_token`].
    pub async fn find_join_token(&self, presented: &Presented) -> Result<Option<JoinRecord>, Error> {
        self.only(&[SystemTask::Authenticate])?;
        if presented.kind() != SecretKind::JoinToken {
            return Ok(None);
        }
        let db = self.look(Some(presented.hash())).await?;
        let sql = "SELECT e.tenant_id, n.name AS tenant_name, e.id, e.cluster_id, e.created_by
            FROM enrolment_token e JOIN tenant n ON n.id = e.tenant_id WHERE e.hash = $1";
        let row: Option<JoinRow> = self.one(&db, sql, vec![presented.hash().to_vec().into()]).await?;
        Ok(row.map(|row| JoinRecord {
            tenant: TenantRecord {
                id: TenantId::from_uuid(row.tenant_id),
                name: row.tenant_name,
            },
            cluster: ClusterId::from_uuid(row.cluster_id),
            id: EnrolmentTokenId::from_uuid(row.id),
            created_by: row.created_by,
        }))
    }

    /// The certificate that the peer's names lead to.
    ///
    /// # Errors
    /// As [`Self::find_api_token`].
    pub async fn find_certificate(&self, peer: &PeerIdentity) -> Result<Option<CertificateRecord>, Error> {
        self.only(&[SystemTask::Authenticate])?;
        let db = self.look(None).await?;
        set_tenant(&db, peer.tenant).await?;
        let sql = "SELECT n.name AS tenant_name, x.not_after_ms, x.revoked_ms, c.deleted_ms
            FROM cluster_certificate x
            JOIN cluster c ON c.tenant_id = x.tenant_id AND c.id = x.cluster_id
            JOIN tenant n ON n.id = x.tenant_id
            WHERE x.tenant_id = $1 AND x.cluster_id = $2 AND x.serial = $3";
        let values = vec![
            peer.tenant.as_uuid().into(),
            peer.cluster.as_uuid().into(),
            peer.serial.as_str().into(),
        ];
        let row: Option<CertificateRow> = self.one(&db, sql, values).await?;
        Ok(row.map(|row| CertificateRecord {
            tenant: TenantRecord {
                id: peer.tenant,
                name: row.tenant_name,
            },
            cluster: peer.cluster,
            serial: peer.serial.clone(),
            not_after_ms: row.not_after_ms,
            revoked: row.revoked_ms.is_some(),
            cluster_active: row.deleted_ms.is_none(),
        }))
    }

    /// The tenant with that id.
    ///
    /// # Errors
    /// As [`Self::find_api_token`].
    pub async fn tenant(&self, id: TenantId) -> Result<Option<TenantRecord>, Error> {
        let db = self.look(None).await?;
        let sql = "SELECT id, name FROM tenant WHERE id = $1";
        let row: Option<TenantRow> = self.one(&db, sql, vec![id.as_uuid().into()]).await?;
        Ok(row.map(Into::into))
    }

    /// The tenant of that name.
    ///
    /// # Errors
    /// As [`Self::find_api_token`].
    pub async fn tenant_by_name(&self, name: &Name) -> Result<Option<TenantRecord>, Error> {
        let db = self.look(None).await?;
        let sql = "SELECT id, name FROM tenant WHERE name = $1";
        let row: Option<TenantRow> = self.one(&db, sql, vec![name.as_str().into()]).await?;
        Ok(row.map(Into::into))
    }

    /// All tenants, by id.
    ///
    /// # Errors
    /// As [`Self::find_api_token`].
    #[expect(clippy::disallowed_methods, reason = "the platform sees the names of all")]
    pub async fn tenants(&self) -> Result<Vec<TenantRecord>, Error> {
        self.only(&[SystemTask::VerifyAudit, SystemTask::Purge, SystemTask::Bootstrap])?;
        let db = self.look(None).await?;
        let sql = "SELECT id, name FROM tenant ORDER BY id";
        let statement = Statement::from_string(db.get_database_backend(), sql);
        let rows = db.query_all_raw(statement).await.map_err(outward)?;
        let read = rows.iter().map(|row| {
            TenantRow::from_query_result(row, "")
                .map(Into::into)
                .map_err(outward)
        });
        read.collect()
    }
}
