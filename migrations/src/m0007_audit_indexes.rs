//! Indexes for the filters of the audit log: without them a filter that fits little reads the whole log, newest first.
//!
//! Nearly every record is an `allow`, which the primary key finds as fast: only the others are indexed by decision.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend, Statement};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m0007_audit_indexes"
    }
}

/// Name, and what it is made on.
const INDEXES: [(&str, &str); 5] = [
    ("audit_by_actor", "audit (tenant_id, actor, seq)"),
    ("audit_by_action", "audit (tenant_id, action, seq)"),
    ("audit_by_object", "audit (tenant_id, object, seq)"),
    (
        "audit_by_refusal",
        "audit (tenant_id, decision, seq) WHERE decision <> 'allow'",
    ),
    ("audit_by_time", "audit (tenant_id, at_ms, seq)"),
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// Nearly every write is in the audit log: an index that is made in a transaction would stop them all until it is done,
    /// minutes for millions of records. PostgreSQL makes one beside the writes only outside of a transaction. Each statement
    /// is whole by itself, and one that was done is not done again.
    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let postgres = connection.get_database_backend() == DbBackend::Postgres;
        for (name, on) in INDEXES {
            let beside = match postgres {
                true => {
                    forget_half(manager, name).await?;
                    "CONCURRENTLY "
                }
                false => "",
            };
            let sql = format!("CREATE INDEX {beside}IF NOT EXISTS {name} ON {on}");
            connection.execute_unprepared(&sql).await?;
        }
        Ok(())
    }
}

/// An index that was being made when PostgreSQL or the migration ended stays, invalid: it costs writes and serves no query.
async fn forget_half(manager: &SchemaManager<'_>, name: &str) -> Result<(), DbErr> {
    let connection = manager.get_connection();
    let sql = "SELECT 1 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE c.relname = $1 AND c.relnamespace = current_schema()::regnamespace AND NOT i.indisvalid";
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, [name.into()]);
    if connection.query_one_raw(statement).await?.is_some() {
        let sql = format!("DROP INDEX CONCURRENTLY IF EXISTS {name}");
        connection.execute_unprepared(&sql).await?;
    }
    Ok(())
}
