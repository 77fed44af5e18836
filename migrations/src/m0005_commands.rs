//! Commands for clusters: rows with an id, an expiry and one result (protocol.md §3 rule 12).

use crate::{WHOLE, m0001_spine::TENANT};
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m0005_commands"
    }
}

/// What the hub's role may do to each table.
pub(crate) const RIGHTS: &[(&str, &str)] = &[("command", "SELECT, INSERT, UPDATE, DELETE")];

/// What the cluster agent of the last session said it can do, one word after another; empty before it ever did.
const CAPABILITIES: &str = "ALTER TABLE cluster ADD COLUMN capabilities TEXT NOT NULL DEFAULT ''";

/// `sent_epoch`: the last session that it was sent to, NULL before the first; `sent_incarnation`: the inbox that has its
/// journal. `result_by` is `cluster` or `hub`.
const TABLE: &str = "CREATE TABLE command (
    tenant_id $uuid NOT NULL,
    id $uuid NOT NULL,
    cluster_id $uuid NOT NULL,
    object_id $uuid NOT NULL,
    kind TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    sent_epoch BIGINT,
    sent_incarnation TEXT,
    result TEXT,
    result_by TEXT,
    detail TEXT,
    result_ms BIGINT,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, cluster_id) REFERENCES cluster (tenant_id, id),
    FOREIGN KEY (tenant_id, object_id) REFERENCES object (tenant_id, id)
)$strict";

const INDEXES: [&str; 2] = [
    "CREATE INDEX command_by_age ON command (tenant_id, created_ms, id)",
    // With the epoch, so that the look at live clusters is answered from the index: else SQLite goes through all commands.
    "CREATE INDEX command_by_result ON command (tenant_id, cluster_id, result, sent_epoch)",
];

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
                 ALTER TABLE command ENABLE ROW LEVEL SECURITY;
                 ALTER TABLE command FORCE ROW LEVEL SECURITY;
                 CREATE POLICY tenant_rows ON command
                     USING (tenant_id = {TENANT}) WITH CHECK (tenant_id = {TENANT});",
                TABLE.replace("$uuid", "UUID").replace("$strict", "")
            ),
            false => TABLE
                .replace("$uuid", "BLOB")
                .replace("$strict", " STRICT, WITHOUT ROWID")
                .replace("BIGINT", "INTEGER"),
        };
        connection.execute_unprepared(CAPABILITIES).await?;
        connection.execute_unprepared(&table).await?;
        for index in INDEXES {
            connection.execute_unprepared(index).await?;
        }
        Ok(())
    }
}
