//! One transaction of one tenant: the only way to a tenant's rows.

use crate::audit::Head;
use crate::error::{outward, outward_of_commit};
use crate::observe::{self, Access, Timed};
use crate::sql::{self, Sql, values};
use crate::{Faults, Store};
use roadstead_authz::{ActorKind, Resource, SystemTask, TenantContext};
use roadstead_contract::documents::Name;
use roadstead_domain::{ClusterId, ConflictReason, Error, Problem, TenantId};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, FromQueryResult,
    IsolationLevel, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait, Value,
};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::OwnedSemaphorePermit;

/// The store as one tenant sees it.
#[derive(Debug)]
pub struct TenantStore<'s> {
    pub(crate) store: &'s Store,
    pub(crate) ctx: &'s TenantContext,
}

impl<'s> TenantStore<'s> {
    /// A transaction that only reads: one consistent view on SQLite, each statement's own on PostgreSQL.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database does not answer.
    pub async fn read(&self) -> Result<Tx<'s>, Error> {
        let timed = Timed::begin(Access::Read);
        let place = self.store.turns.read(self.ctx.tenant()).await?;
        let db = begin(&self.store.read, SqliteTransactionMode::Deferred).await?;
        self.enter(db, timed, place).await
    }

    /// A transaction that reads everything as it is at one moment, on both databases: for what must fit together over
    /// several statements. Costs PostgreSQL one more round trip than [`Self::read`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn snapshot(&self) -> Result<Tx<'s>, Error> {
        let timed = Timed::begin(Access::Read);
        let place = self.store.turns.read(self.ctx.tenant()).await?;
        let backend = self.store.backend();
        let options = TransactionOptions {
            isolation_level: (backend == DbBackend::Postgres).then_some(IsolationLevel::RepeatableRead),
            sqlite_transaction_mode: Some(SqliteTransactionMode::Deferred),
            ..TransactionOptions::default()
        };
        let db = self
            .store
            .read
            .begin_with_options(options)
            .await
            .map_err(outward)?;
        self.enter(db, timed, place).await
    }

    /// A transaction that may write. Nothing is kept unless it is committed.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database does not answer, or has had no time for this writer.
    pub async fn write(&self) -> Result<Tx<'s>, Error> {
        if let Some(file) = &self.store.file {
            file.check()?;
        }
        let timed = Timed::begin(Access::Write);
        let place = self.store.turns.write(self.ctx.tenant()).await?;
        let db = begin(&self.store.write, SqliteTransactionMode::Immediate).await?;
        self.enter(db, timed, place).await
    }

    /// A transaction for an act that leaves an audit record: it holds the tenant's audit lock from the beginning, so
    /// that such acts of one tenant happen one after the other.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_audited(&self) -> Result<Tx<'s>, Error> {
        let mut tx = self.write().await?;
        tx.lock_audit().await?;
        Ok(tx)
    }

    /// Begins the first transaction of a tenant that does not exist yet and makes it there, with an empty audit log; the
    /// tenant is there if, and only if, the transaction is committed. The context is the platform's own.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the name is taken; [`Error::Forbidden`] for any other actor.
    pub async fn found(&self, name: &Name) -> Result<Tx<'s>, Error> {
        if !matches!(
            self.ctx.actor().kind(),
            ActorKind::System {
                task: SystemTask::Bootstrap
            }
        ) {
            return Err(Error::forbidden("only the platform makes tenants"));
        }
        let mut tx = self.write().await?;
        let sql = "INSERT INTO tenant (id, name, created_ms) SELECT $1, $2, $3
            WHERE NOT EXISTS (SELECT 1 FROM tenant WHERE tenant.id = $1) ON CONFLICT (name) DO NOTHING";
        if tx.run(sql, values![name.as_str(), tx.now_ms()]).await? != 1 {
            let message = format!("there is a tenant {name} already");
            return Err(Error::conflict(ConflictReason::Exists, message));
        }
        let sql = "INSERT INTO audit_head (tenant_id, seq, hash) VALUES ($1, $2, $3)";
        tx.run(sql, values![0_i64, vec![0_u8; 32]]).await?;
        tx.lock_audit().await?;
        Ok(tx)
    }

    async fn enter(
        &self,
        db: DatabaseTransaction,
        timed: Timed,
        place: OwnedSemaphorePermit,
    ) -> Result<Tx<'s>, Error> {
        set_tenant(&db, self.ctx.tenant()).await?;
        Ok(Tx {
            db,
            store: self.store,
            ctx: self.ctx,
            head: None,
            audited: Vec::new(),
            touched: BTreeSet::new(),
            commanded: BTreeSet::new(),
            failed: AtomicBool::new(false),
            timed,
            _place: place,
        })
    }
}

pub(crate) async fn begin(
    pool: &DatabaseConnection,
    mode: SqliteTransactionMode,
) -> Result<DatabaseTransaction, Error> {
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(mode),
        ..TransactionOptions::default()
    };
    pool.begin_with_options(options).await.map_err(outward)
}

/// The second lock: PostgreSQL's policies show the rows of this tenant until the transaction ends.
#[expect(clippy::disallowed_methods, reason = "what binds a transaction to its tenant")]
pub(crate) async fn set_tenant(db: &DatabaseTransaction, tenant: TenantId) -> Result<(), Error> {
    if db.get_database_backend() != DbBackend::Postgres {
        return Ok(());
    }
    let sql = "SELECT set_config('roadstead.tenant', $1, true)";
    let values = [Value::from(tenant.as_uuid().to_string())];
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
    db.execute_raw(statement).await.map_err(outward)?;
    Ok(())
}

/// A transaction of one tenant. Dropped without [`Tx::commit`], it leaves nothing.
#[derive(Debug)]
pub struct Tx<'s> {
    pub(crate) db: DatabaseTransaction,
    pub(crate) store: &'s Store,
    pub(crate) ctx: &'s TenantContext,
    pub(crate) head: Option<Head>,
    /// Decisions of the records that were appended.
    pub(crate) audited: Vec<&'static str>,
    /// Clusters whose sessions are woken after the commit.
    pub(crate) touched: BTreeSet<ClusterId>,
    /// Clusters that have a new command.
    pub(crate) commanded: BTreeSet<ClusterId>,
    /// A statement failed: nothing more is done in this transaction. PostgreSQL sees to that by itself; SQLite may have
    /// ended it on a full disk, and what came after would be kept statement by statement.
    failed: AtomicBool,
    timed: Timed,
    _place: OwnedSemaphorePermit,
}

impl<'s> Tx<'s> {
    pub(crate) fn tenant(&self) -> TenantId {
        self.ctx.tenant()
    }

    /// Now, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.store.clock.now_ms()
    }

    /// A proof for another tenant is worth nothing here; whoever passes one has mixed two tenants up.
    pub(crate) fn check_proof(&self, proof: &impl Resource) -> Result<(), Error> {
        if proof.place().tenant == self.tenant() {
            return Ok(());
        }
        Err(Error::internal(
            "a proof for one tenant in a transaction of another",
        ))
    }

    /// Keeps everything, then wakes the sessions of the clusters it touched.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; where the connection broke in the middle of the commit nobody can know whether it
    /// happened: the idempotency key of the act makes the retry safe.
    pub async fn commit(mut self) -> Result<(), Error> {
        self.write_head().await?;
        Faults::check(self.store.faults.as_ref(), "commit")?;
        self.whole()?;
        self.db.commit().await.map_err(outward_of_commit)?;
        self.timed.committed();
        self.audited.into_iter().for_each(observe::audited);
        self.store.signals.fire(self.ctx.tenant(), self.touched);
        self.store.signals.command(self.ctx.tenant(), self.commanded);
        Ok(())
    }

    /// Wakes the cluster's session after the commit.
    pub(crate) fn touch(&mut self, cluster: ClusterId) {
        self.touched.insert(cluster);
    }

    fn whole(&self) -> Result<(), Error> {
        match self.failed.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::internal(
                "a transaction goes on after one of its statements failed",
            )),
        }
    }

    /// The hub's error for what the database said to a statement.
    fn failed(&self, error: DbErr) -> Error {
        self.failed.store(true, Ordering::Relaxed);
        outward(error)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the way that all others take, checked here"
    )]
    fn statement(&self, sql: Sql, values: Vec<Value>) -> Result<Statement, Error> {
        self.whole()?;
        let backend = self.db.get_database_backend();
        let text = if backend == DbBackend::Postgres {
            sql.postgres
        } else {
            sql.sqlite
        };
        if !sql::is_scoped(text) {
            return Err(Error::internal(format!("a statement without its tenant: {text}")));
        }
        debug_assert!(sql::joins_are_scoped(text), "a join without its tenant: {text}");
        if values.iter().any(holds_nul) {
            return Err(Error::invalid(Problem::new(
                "",
                "texts without the character U+0000",
                "one with it",
                "the text cannot be kept",
            )));
        }
        Faults::check(self.store.faults.as_ref(), text)?;
        let values = sql::scoped(self.tenant().as_uuid(), values);
        Ok(Statement::from_sql_and_values(backend, text, values))
    }

    /// Runs a statement; the tenant is `$1`, `values` begin at `$2`. Returns how many rows it changed.
    #[expect(clippy::disallowed_methods, reason = "with a statement that was checked")]
    pub(crate) async fn run(&self, sql: impl Into<Sql>, values: Vec<Value>) -> Result<u64, Error> {
        let statement = self.statement(sql.into(), values)?;
        let result = self
            .db
            .execute_raw(statement)
            .await
            .map_err(|error| self.failed(error))?;
        Ok(result.rows_affected())
    }

    #[expect(clippy::disallowed_methods, reason = "with a statement that was checked")]
    pub(crate) async fn one<T: FromQueryResult>(
        &self,
        sql: impl Into<Sql>,
        values: Vec<Value>,
    ) -> Result<Option<T>, Error> {
        let statement = self.statement(sql.into(), values)?;
        let row = self
            .db
            .query_one_raw(statement)
            .await
            .map_err(|error| self.failed(error))?;
        row.map(|row| T::from_query_result(&row, "").map_err(outward))
            .transpose()
    }

    #[expect(clippy::disallowed_methods, reason = "with a statement that was checked")]
    pub(crate) async fn all<T: FromQueryResult>(
        &self,
        sql: impl Into<Sql>,
        values: Vec<Value>,
    ) -> Result<Vec<T>, Error> {
        let statement = self.statement(sql.into(), values)?;
        let rows = self
            .db
            .query_all_raw(statement)
            .await
            .map_err(|error| self.failed(error))?;
        let read = rows
            .iter()
            .map(|row| T::from_query_result(row, "").map_err(outward));
        read.collect()
    }
}

/// PostgreSQL keeps no text with U+0000 in it; so that both databases are alike, SQLite gets none either.
fn holds_nul(value: &Value) -> bool {
    matches!(value, Value::String(Some(text)) if text.contains('\0'))
}
