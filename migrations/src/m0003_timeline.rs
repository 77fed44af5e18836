//! What a person decides after the hub's database was restored from a backup: which clusters are ahead of it, and
//! which certificates of its own authority it does not know.

use crate::WHOLE;
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m0003_timeline"
    }
}

const COLUMNS: [&str; 3] = [
    // The cursor of a cluster that is ahead; nothing is sent to it until a person has decided.
    "ALTER TABLE cluster ADD COLUMN timeline_cursor BIGINT",
    // How it differs, as JSON; NULL until its inbox was listed.
    "ALTER TABLE cluster ADD COLUMN timeline TEXT",
    // When a certificate was presented that this database does not know; it is worth nothing until a person admits it.
    "ALTER TABLE cluster_certificate ADD COLUMN unknown_ms BIGINT",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        WHOLE
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let postgres = connection.get_database_backend() == DbBackend::Postgres;
        for column in COLUMNS {
            let sql = match postgres {
                true => column.to_owned(),
                false => column.replace("BIGINT", "INTEGER"),
            };
            connection.execute_unprepared(&sql).await?;
        }
        Ok(())
    }
}
