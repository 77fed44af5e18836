//! History that SQLite refuses to change, the row by which readiness finds out whether a write is kept, and the age of
//! tombstones.

use crate::WHOLE;
use crate::m0001_spine::SYSTEM;
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m0002_guards"
    }
}

/// What the hub's role may do to each table.
pub(crate) const RIGHTS: &[(&str, &str)] = &[("probe", "SELECT, INSERT, DELETE, TRUNCATE")];

/// Tables that are only ever added to. On PostgreSQL the hub's role has no right to more; SQLite knows no rights.
const HISTORY: [&str; 3] = ["audit", "revision", "run"];

/// Belongs to no tenant and holds nothing: a row goes in, is kept, and goes out.
const PROBE: &str = "CREATE TABLE probe (
    id $uuid NOT NULL PRIMARY KEY,
    filler $bytes NOT NULL
)$strict";

/// When a row of a desired set became a tombstone; NULL in those from before, which count as old.
const AGE: &str = "ALTER TABLE desired ADD COLUMN gone_ms BIGINT";

fn postgres() -> String {
    format!(
        "{AGE};
         {};
         ALTER TABLE probe ENABLE ROW LEVEL SECURITY;
         ALTER TABLE probe FORCE ROW LEVEL SECURITY;
         CREATE POLICY system_rows ON probe USING ({SYSTEM}) WITH CHECK ({SYSTEM});",
        PROBE
            .replace("$uuid", "UUID")
            .replace("$bytes", "BYTEA")
            .replace("$strict", "")
    )
}

fn sqlite() -> String {
    let probe = PROBE
        .replace("$uuid", "BLOB")
        .replace("$bytes", "BLOB")
        .replace("$strict", " STRICT");
    let mut sql = format!("{};\n{probe};", AGE.replace("BIGINT", "INTEGER"));
    for table in HISTORY {
        for act in ["UPDATE", "DELETE"] {
            sql.push_str(&format!(
                "CREATE TRIGGER {table}_refuses_{act} BEFORE {act} ON {table} BEGIN
                     SELECT RAISE(ABORT, '{table} is history: rows are only ever added');
                 END;"
            ));
        }
    }
    sql
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        WHOLE
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let sql = match connection.get_database_backend() {
            DbBackend::Postgres => postgres(),
            _ => sqlite(),
        };
        connection.execute_unprepared(&sql).await?;
        Ok(())
    }
}
