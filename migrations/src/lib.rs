//! The hub's schema: sea-orm migrations, embedded in the hub.
//!
//! Every tenant table has `tenant_id` first in its primary key, in each foreign key and in each unique index, so that
//! no row can point at another tenant and no name is probed by a uniqueness error (tenancy.md §5). On PostgreSQL row
//! security is enabled and forced, with a policy on a transaction-local setting; unset means no rows. Migrations run
//! as the schema's owner; the hub runs as another role, which owns nothing: see [`grant`].
//!
//! Times are milliseconds since the Unix epoch, UTC, as integers: both databases keep them exactly alike.

#![expect(
    clippy::disallowed_methods,
    reason = "the schema is nobody's: it is made before there are tenants"
)]

mod m0001_spine;
mod m0002_guards;
mod m0003_timeline;
mod m0004_roots;
mod m0005_commands;
mod m0006_enrolled_by;
mod m0007_audit_indexes;

pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};

/// A migration happens as a whole or not at all, with the note that it did: on SQLite too, where the library would take
/// each statement by itself. One that was cut short would find its own traces the next time, and the hub never start.
pub(crate) const WHOLE: Option<bool> = Some(true);

/// All migrations, oldest first.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_spine::Migration),
            Box::new(m0002_guards::Migration),
            Box::new(m0003_timeline::Migration),
            Box::new(m0004_roots::Migration),
            Box::new(m0005_commands::Migration),
            Box::new(m0006_enrolled_by::Migration),
            Box::new(m0007_audit_indexes::Migration),
        ]
    }
}

/// Brings the schema up to date and, on PostgreSQL, gives the hub's role what it needs.
///
/// # Errors
/// What the database says. What was done until then is kept, each migration (of indexes: each index) as a whole or not at
/// all; the next attempt goes on from there.
pub async fn migrate(connection: &DatabaseConnection, app_role: Option<&str>) -> Result<(), DbErr> {
    Migrator::up(connection, None).await?;
    if let (DbBackend::Postgres, Some(role)) = (connection.get_database_backend(), app_role) {
        grant(connection, role).await?;
    }
    Ok(())
}

/// The migrations that the database has not had. Only reads: the hub's role may do no more.
///
/// # Errors
/// What the database says.
pub async fn pending(connection: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let backend = connection.get_database_backend();
    let known = SchemaManager::new(connection)
        .has_table("seaql_migrations")
        .await?;
    let mut done = Vec::new();
    if known {
        let statement = Statement::from_string(backend, "SELECT version FROM seaql_migrations");
        for row in connection.query_all_raw(statement).await? {
            done.push(row.try_get::<String>("", "version")?);
        }
    }
    let all = Migrator::migrations().into_iter().map(|m| m.name().to_owned());
    Ok(all.filter(|name| !done.contains(name)).collect())
}

/// `true` when the database has had a migration of the hub's: it is a hub's database, of this version or an older one.
///
/// # Errors
/// What the database says.
pub async fn known(connection: &DatabaseConnection) -> Result<bool, DbErr> {
    Ok(pending(connection).await?.len() < Migrator::migrations().len())
}

/// Rights of the hub's role on PostgreSQL: rows, never the schema; revisions and audit records are only ever added.
///
/// # Errors
/// What the database says: the role must exist.
pub async fn grant(connection: &DatabaseConnection, role: &str) -> Result<(), DbErr> {
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    let row = connection
        .query_one_raw(Statement::from_string(
            DbBackend::Postgres,
            "SELECT current_schema() AS name",
        ))
        .await?;
    let schema: Option<String> = row.map(|r| r.try_get("", "name")).transpose()?;
    let schema = format!("\"{}\"", schema.unwrap_or_default().replace('"', "\"\""));
    let mut statements = format!("GRANT USAGE ON SCHEMA {schema} TO {quoted};");
    let tables = m0001_spine::RIGHTS
        .iter()
        .chain(m0002_guards::RIGHTS)
        .chain(m0004_roots::RIGHTS)
        .chain(m0005_commands::RIGHTS);
    for (table, rights) in tables {
        statements.push_str(&format!("GRANT {rights} ON {schema}.{table} TO {quoted};"));
    }
    statements.push_str(&format!("GRANT SELECT ON {schema}.seaql_migrations TO {quoted};"));
    connection.execute_unprepared(&statements).await?;
    Ok(())
}
