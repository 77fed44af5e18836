//! What a rotation of the fleet's root certificate needs to know: which roots each cluster has on disk, and which
//! replicas of the hub have taken up the change.

use crate::{WHOLE, m0001_spine::TENANT};
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m0004_roots"
    }
}

/// What the hub's role may do to each table.
pub(crate) const RIGHTS: &[(&str, &str)] = &[("hub_replica", "SELECT, INSERT, UPDATE, DELETE")];

const COLUMNS: [&str; 2] = [
    // Generation of the trust bundle that the cluster agent said it keeps.
    "ALTER TABLE cluster ADD COLUMN trust_generation BIGINT NOT NULL DEFAULT 0",
    // Root of the certificate with which it said so; empty before it ever did.
    "ALTER TABLE cluster ADD COLUMN trust_root TEXT NOT NULL DEFAULT ''",
];

/// The hub's own processes: rows of the platform's tenant.
const REPLICA: &str = "CREATE TABLE hub_replica (
    tenant_id $uuid NOT NULL REFERENCES tenant (id),
    id TEXT NOT NULL,
    roots_generation BIGINT NOT NULL,
    roots_digest TEXT NOT NULL,
    seen_ms BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, id)
)$strict";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        WHOLE
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let postgres = connection.get_database_backend() == DbBackend::Postgres;
        let table = match postgres {
            true => format!(
                "{};
                 ALTER TABLE hub_replica ENABLE ROW LEVEL SECURITY;
                 ALTER TABLE hub_replica FORCE ROW LEVEL SECURITY;
                 CREATE POLICY tenant_rows ON hub_replica
                     USING (tenant_id = {TENANT}) WITH CHECK (tenant_id = {TENANT});",
                REPLICA.replace("$uuid", "UUID").replace("$strict", "")
            ),
            false => REPLICA
                .replace("$uuid", "BLOB")
                .replace("$strict", " STRICT, WITHOUT ROWID")
                .replace("BIGINT", "INTEGER"),
        };
        for sql in COLUMNS {
            let sql = match postgres {
                true => sql.to_owned(),
                false => sql.replace("BIGINT", "INTEGER"),
            };
            connection.execute_unprepared(&sql).await?;
        }
        connection.execute_unprepared(&table).await?;
        Ok(())
    }
}
