//! Who let a cluster in: the maker of each join token, and of the one by which a cluster joined last. What a stolen API
//! token did is found by it.

use crate::WHOLE;
use sea_orm_migration::prelude::*;

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m0006_enrolled_by"
    }
}

/// Labels of actors; empty for what is older than this.
const COLUMNS: [&str; 2] = [
    "ALTER TABLE enrolment_token ADD COLUMN created_by TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE cluster ADD COLUMN enrolled_by TEXT NOT NULL DEFAULT ''",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        WHOLE
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for sql in COLUMNS {
            manager.get_connection().execute_unprepared(sql).await?;
        }
        Ok(())
    }
}
