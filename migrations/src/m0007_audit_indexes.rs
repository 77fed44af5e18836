//! Indexes for the filters of the audit log: without them a filter that fits little reads the whole log, newest first.
//!
//! Nearly every record is an `allow`, which the primary key finds as fast: only the others are indexed by decision.

use sea_orm_migration::prelude::*;

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m0007_audit_indexes"
    }
}

const INDEXES: [&str; 5] = [
    "CREATE INDEX audit_by_actor ON audit (tenant_id, actor, seq)",
    "CREATE INDEX audit_by_action ON audit (tenant_id, action, seq)",
    "CREATE INDEX audit_by_object ON audit (tenant_id, object, seq)",
    "CREATE INDEX audit_by_refusal ON audit (tenant_id, decision, seq) WHERE decision <> 'allow'",
    "CREATE INDEX audit_by_time ON audit (tenant_id, at_ms, seq)",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for sql in INDEXES {
            manager.get_connection().execute_unprepared(sql).await?;
        }
        Ok(())
    }
}
