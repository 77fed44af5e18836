//! Whether the hub could keep a write now: for `/readyz`. Liveness never asks.
//!
//! Reading is not enough: a full disk, a read-only file system or a standby of PostgreSQL answers every question and
//! keeps nothing. So a row is kept, and then taken away again: in one transaction its pages would never be written. It
//! is larger than an ordinary write ([`FILLER`]) and cannot be compressed, so that a database without room for one is
//! found out. On SQLite its pages are anybody's afterwards. On PostgreSQL they would be the table's own, and each probe
//! would find the room that the one before left, where no other table finds any: so the table is begun anew.

use crate::error::outward;
use crate::tx::begin;
use crate::{Faults, Store};
use roadstead_domain::Error;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, SqliteTransactionMode, Statement, Value};
use uuid::Uuid;

/// Bytes of the row: 16 pages of SQLite. An apply of a small agent with its model takes fewer.
const FILLER: usize = 64 * 1024;

impl Store {
    /// Writes a row and takes it away again.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what is wrong: gone, locked, full, read-only.
    #[expect(clippy::disallowed_methods, reason = "no row of a tenant")]
    pub async fn readiness(&self) -> Result<(), Error> {
        if let Some(file) = &self.file {
            file.check()?;
        }
        Faults::check(self.faults.as_ref(), "readiness")?;
        let statement = Statement::from_string(self.backend(), "SELECT COUNT(*) FROM tenant WHERE 1 = 0");
        self.read.query_one_raw(statement).await.map_err(outward)?;
        let mut id = [0; 16];
        self.random.fill(&mut id);
        let id = Value::from(Uuid::from_bytes(id));
        let mut filler = vec![0_u8; FILLER];
        self.random.fill(&mut filler);
        let filler = Value::from(filler);
        self.keep("INSERT INTO probe (id, filler) VALUES ($1, $2)", vec![id, filler])
            .await?;
        // Those of probes that were cut short, too.
        if self.backend() == DbBackend::Postgres && self.begin_anew().await.is_ok() {
            return Ok(());
        }
        self.keep("DELETE FROM probe", vec![]).await
    }

    /// Needs the table for itself, which a backup (`pg_dump` reads it as long as it runs) or another replica may not
    /// allow: that is no reason to be not ready, and nobody is to wait behind it.
    async fn begin_anew(&self) -> Result<(), Error> {
        let db = begin(&self.write, SqliteTransactionMode::Immediate).await?;
        let settings =
            "SELECT set_config('roadstead.system', 'on', true), set_config('lock_timeout', '100ms', true)";
        run(&db, settings, vec![]).await?;
        run(&db, "TRUNCATE probe", vec![]).await?;
        db.commit().await.map_err(outward)
    }

    async fn keep(&self, sql: &'static str, values: Vec<Value>) -> Result<(), Error> {
        let db = begin(&self.write, SqliteTransactionMode::Immediate).await?;
        if self.backend() == DbBackend::Postgres {
            run(&db, "SELECT set_config('roadstead.system', 'on', true)", vec![]).await?;
        }
        run(&db, sql, values).await?;
        db.commit().await.map_err(outward)
    }
}

#[expect(clippy::disallowed_methods, reason = "no row of a tenant")]
async fn run(db: &DatabaseTransaction, sql: &'static str, values: Vec<Value>) -> Result<(), Error> {
    let statement = Statement::from_sql_and_values(db.get_database_backend(), sql, values);
    db.execute_raw(statement).await.map_err(outward)?;
    Ok(())
}
