//! Tenants, projects, tokens; documents and revisions; clusters and their desired sets; runs; the audit log.

use crate::WHOLE;
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m0001_spine"
    }
}

/// What the hub's role may do to each table.
pub(crate) const RIGHTS: &[(&str, &str)] = &[
    ("tenant", "SELECT, INSERT, UPDATE"),
    ("audit_head", "SELECT, INSERT, UPDATE"),
    ("audit", "SELECT, INSERT"),
    ("project", "SELECT, INSERT"),
    ("api_token", "SELECT, INSERT, UPDATE"),
    ("object", "SELECT, INSERT, UPDATE"),
    ("revision", "SELECT, INSERT"),
    ("cluster", "SELECT, INSERT, UPDATE"),
    ("cluster_certificate", "SELECT, INSERT, UPDATE"),
    ("enrolment_token", "SELECT, INSERT, UPDATE, DELETE"),
    ("desired", "SELECT, INSERT, UPDATE, DELETE"),
    ("placed_status", "SELECT, INSERT, UPDATE, DELETE"),
    ("run", "SELECT, INSERT"),
    ("idempotency_key", "SELECT, INSERT, UPDATE, DELETE"),
];

/// `$uuid` and `$bytes` stand for the database's types, `$end` for its table options.
const TABLES: &[&str] = &[
    "CREATE TABLE tenant (
        id $uuid NOT NULL PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created_ms BIGINT NOT NULL
    )$end",
    "CREATE TABLE audit_head (
        tenant_id $uuid NOT NULL PRIMARY KEY REFERENCES tenant (id),
        seq BIGINT NOT NULL,
        hash $bytes NOT NULL
    )$end",
    "CREATE TABLE audit (
        tenant_id $uuid NOT NULL REFERENCES tenant (id),
        seq BIGINT NOT NULL,
        id $uuid NOT NULL,
        at_ms BIGINT NOT NULL,
        actor TEXT NOT NULL,
        on_behalf_of TEXT NOT NULL,
        action TEXT NOT NULL,
        object TEXT NOT NULL,
        revision BIGINT,
        decision TEXT NOT NULL,
        grant_by TEXT NOT NULL,
        source_ip TEXT NOT NULL,
        source_client TEXT NOT NULL,
        trace_id TEXT NOT NULL,
        request_id TEXT NOT NULL,
        detail TEXT NOT NULL,
        prev_hash $bytes NOT NULL,
        hash $bytes NOT NULL,
        PRIMARY KEY (tenant_id, seq)
    )$end",
    "CREATE TABLE project (
        tenant_id $uuid NOT NULL REFERENCES tenant (id),
        id $uuid NOT NULL,
        name TEXT NOT NULL,
        created_ms BIGINT NOT NULL,
        PRIMARY KEY (tenant_id, id),
        UNIQUE (tenant_id, name)
    )$end",
    "CREATE TABLE api_token (
        tenant_id $uuid NOT NULL REFERENCES tenant (id),
        id $uuid NOT NULL,
        name TEXT NOT NULL,
        hash $bytes NOT NULL,
        role TEXT NOT NULL,
        scopes TEXT NOT NULL,
        created_by TEXT NOT NULL,
        created_ms BIGINT NOT NULL,
        expires_ms BIGINT NOT NULL,
        revoked_ms BIGINT,
        last_used_ms BIGINT,
        PRIMARY KEY (tenant_id, id),
        UNIQUE (tenant_id, hash)
    )$end",
    "CREATE INDEX api_token_by_hash ON api_token (hash)",
    "CREATE TABLE object (
        tenant_id $uuid NOT NULL,
        id $uuid NOT NULL,
        kind TEXT NOT NULL,
        project_id $uuid NOT NULL,
        name TEXT NOT NULL,
        revision BIGINT NOT NULL,
        digest $bytes NOT NULL,
        labels TEXT NOT NULL,
        links TEXT NOT NULL,
        created_ms BIGINT NOT NULL,
        updated_ms BIGINT NOT NULL,
        deleted_ms BIGINT,
        PRIMARY KEY (tenant_id, id),
        FOREIGN KEY (tenant_id, project_id) REFERENCES project (tenant_id, id)
    )$end",
    "CREATE UNIQUE INDEX object_by_name ON object (tenant_id, project_id, kind, name) WHERE deleted_ms IS NULL",
    "CREATE TABLE revision (
        tenant_id $uuid NOT NULL,
        object_id $uuid NOT NULL,
        number BIGINT NOT NULL,
        id $uuid NOT NULL,
        document TEXT NOT NULL,
        digest $bytes NOT NULL,
        author TEXT NOT NULL,
        author_name TEXT NOT NULL,
        at_ms BIGINT NOT NULL,
        message TEXT NOT NULL,
        PRIMARY KEY (tenant_id, object_id, number),
        UNIQUE (tenant_id, id),
        FOREIGN KEY (tenant_id, object_id) REFERENCES object (tenant_id, id)
    )$strict",
    "CREATE TABLE cluster (
        tenant_id $uuid NOT NULL REFERENCES tenant (id),
        id $uuid NOT NULL,
        name TEXT NOT NULL,
        labels TEXT NOT NULL,
        state TEXT NOT NULL,
        incarnation TEXT NOT NULL,
        version TEXT NOT NULL,
        epoch BIGINT NOT NULL,
        revision BIGINT NOT NULL,
        tombstone_floor BIGINT NOT NULL,
        persisted BIGINT NOT NULL,
        applied BIGINT NOT NULL,
        held_revision BIGINT,
        held_deletes BIGINT,
        approved_deletes BIGINT NOT NULL,
        created_ms BIGINT NOT NULL,
        last_seen_ms BIGINT,
        deleted_ms BIGINT,
        PRIMARY KEY (tenant_id, id)
    )$end",
    "CREATE UNIQUE INDEX cluster_by_name ON cluster (tenant_id, name) WHERE deleted_ms IS NULL",
    "CREATE TABLE cluster_certificate (
        tenant_id $uuid NOT NULL,
        cluster_id $uuid NOT NULL,
        serial TEXT NOT NULL,
        issued_ms BIGINT NOT NULL,
        not_after_ms BIGINT NOT NULL,
        revoked_ms BIGINT,
        PRIMARY KEY (tenant_id, cluster_id, serial),
        FOREIGN KEY (tenant_id, cluster_id) REFERENCES cluster (tenant_id, id)
    )$end",
    "CREATE TABLE enrolment_token (
        tenant_id $uuid NOT NULL,
        id $uuid NOT NULL,
        cluster_id $uuid NOT NULL,
        hash $bytes NOT NULL,
        created_ms BIGINT NOT NULL,
        expires_ms BIGINT NOT NULL,
        used_ms BIGINT,
        PRIMARY KEY (tenant_id, id),
        UNIQUE (tenant_id, hash),
        FOREIGN KEY (tenant_id, cluster_id) REFERENCES cluster (tenant_id, id)
    )$end",
    "CREATE INDEX enrolment_token_by_hash ON enrolment_token (hash)",
    "CREATE TABLE desired (
        tenant_id $uuid NOT NULL,
        cluster_id $uuid NOT NULL,
        object_id $uuid NOT NULL,
        generation BIGINT NOT NULL,
        kind TEXT NOT NULL,
        project TEXT NOT NULL,
        name TEXT NOT NULL,
        digest $bytes NOT NULL,
        revision BIGINT NOT NULL,
        deleted BIGINT NOT NULL,
        PRIMARY KEY (tenant_id, cluster_id, object_id),
        FOREIGN KEY (tenant_id, cluster_id) REFERENCES cluster (tenant_id, id),
        FOREIGN KEY (tenant_id, object_id, generation) REFERENCES revision (tenant_id, object_id, number)
    )$end",
    "CREATE INDEX desired_by_revision ON desired (tenant_id, cluster_id, revision)",
    "CREATE INDEX desired_by_object ON desired (tenant_id, object_id)",
    "CREATE TABLE placed_status (
        tenant_id $uuid NOT NULL,
        cluster_id $uuid NOT NULL,
        object_id $uuid NOT NULL,
        observed_generation BIGINT NOT NULL,
        phase TEXT NOT NULL,
        reason TEXT NOT NULL,
        message TEXT NOT NULL,
        conditions TEXT NOT NULL,
        at_ms BIGINT NOT NULL,
        PRIMARY KEY (tenant_id, cluster_id, object_id),
        FOREIGN KEY (tenant_id, cluster_id) REFERENCES cluster (tenant_id, id),
        FOREIGN KEY (tenant_id, object_id) REFERENCES object (tenant_id, id)
    )$end",
    "CREATE INDEX placed_status_by_object ON placed_status (tenant_id, object_id)",
    "CREATE TABLE run (
        tenant_id $uuid NOT NULL,
        id $uuid NOT NULL,
        project_id $uuid NOT NULL,
        cluster_id $uuid NOT NULL,
        agent_id $uuid NOT NULL,
        generation BIGINT NOT NULL,
        outcome TEXT NOT NULL,
        started_ms BIGINT NOT NULL,
        received_ms BIGINT NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (tenant_id, id),
        FOREIGN KEY (tenant_id, project_id) REFERENCES project (tenant_id, id),
        FOREIGN KEY (tenant_id, cluster_id) REFERENCES cluster (tenant_id, id),
        FOREIGN KEY (tenant_id, agent_id) REFERENCES object (tenant_id, id)
    )$strict",
    "CREATE INDEX run_by_start ON run (tenant_id, started_ms, id)",
    "CREATE INDEX run_by_agent ON run (tenant_id, agent_id, started_ms, id)",
    "CREATE TABLE idempotency_key (
        tenant_id $uuid NOT NULL REFERENCES tenant (id),
        actor TEXT NOT NULL,
        key TEXT NOT NULL,
        digest $bytes NOT NULL,
        answer TEXT NOT NULL,
        at_ms BIGINT NOT NULL,
        PRIMARY KEY (tenant_id, actor, key)
    )$end",
];

/// The tenant of the transaction; NULL, and so no rows, when the setting is missing or empty.
pub(crate) const TENANT: &str = "NULLIF(current_setting('roadstead.tenant', true), '')::uuid";
/// Set by the few acts of the system that find or make tenants.
pub(crate) const SYSTEM: &str = "current_setting('roadstead.system', true) = 'on'";
/// Whoever presents a secret sees the one row of its hash, before the tenant is known.
const SECRET: &str = "hash = decode(NULLIF(current_setting('roadstead.secret_hash', true), ''), 'hex')";

fn row_security() -> String {
    let mut sql = String::new();
    for (table, _) in RIGHTS {
        let column = if *table == "tenant" { "id" } else { "tenant_id" };
        sql.push_str(&format!(
            "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
             ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
             CREATE POLICY tenant_rows ON {table} USING ({column} = {TENANT}) WITH CHECK ({column} = {TENANT});"
        ));
    }
    sql.push_str(&format!(
        "CREATE POLICY system_reads ON tenant FOR SELECT USING ({SYSTEM});
         CREATE POLICY by_secret ON api_token FOR SELECT USING ({SECRET});
         CREATE POLICY by_secret ON enrolment_token FOR SELECT USING ({SECRET});"
    ));
    sql
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        WHOLE
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let postgres = connection.get_database_backend() == DbBackend::Postgres;
        let (uuid, bytes, end, strict) = if postgres {
            ("UUID", "BYTEA", "", "")
        } else {
            ("BLOB", "BLOB", " STRICT, WITHOUT ROWID", " STRICT")
        };
        for table in TABLES {
            let mut sql = table
                .replace("$uuid", uuid)
                .replace("$bytes", bytes)
                .replace("$end", end)
                .replace("$strict", strict);
            if !postgres {
                sql = sql.replace("BIGINT", "INTEGER");
            }
            connection.execute_unprepared(&sql).await?;
        }
        if postgres {
            connection.execute_unprepared(&row_security()).await?;
        }
        Ok(())
    }
}
