//! Looking at a database from outside, for `roadstead-hub doctor`: nothing is changed.

use crate::error::outward;
use crate::open::{self, evidence, is_postgres, readable, sqlite_path};
use roadstead_domain::{Clock, Error};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};

/// What was looked at, and what was found: `Err` is what is wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    pub what: &'static str,
    pub found: Result<String, String>,
}

fn finding(what: &'static str, found: Result<String, Error>) -> Finding {
    Finding {
        what,
        found: found.map_err(|error| error.to_string()),
    }
}

/// How far the clocks of hub and database may be apart.
const SKEW_MS: i64 = 5_000;

/// Looks at the database behind `url` as the hub would use it. Ends at the first thing without which the rest cannot be
/// looked at.
pub async fn examine(url: &str, clock: &dyn Clock) -> Vec<Finding> {
    let connection = match connect(url).await {
        Ok(connection) => connection,
        Err(error) => return vec![finding("database answers", Err(error))],
    };
    let mut findings = vec![finding("database answers", server(&connection).await)];
    findings.push(finding(
        "migrations are up to date",
        migrations(&connection).await,
    ));
    if connection.get_database_backend() == DbBackend::Postgres {
        let role = open::check_role(&connection).await;
        let role =
            role.map(|()| "owns nothing, no BYPASSRLS; row security is forced on every table".to_owned());
        findings.push(finding("role and row-level security", role));
        findings.push(finding(
            "clock agrees with the database",
            skew(&connection, clock).await,
        ));
    } else {
        findings.push(finding("file is whole", integrity(&connection).await));
    }
    if let Err(error) = connection.close_by_ref().await {
        tracing::debug!(%error, "closing the database failed");
    }
    findings
}

async fn connect(url: &str) -> Result<DatabaseConnection, Error> {
    readable(url)?;
    if is_postgres(url) {
        return open::postgres(url, true).await;
    }
    let path = sqlite_path(url);
    if !path.is_file() {
        let found = format!("no file {}", path.display());
        return Err(open::config(
            "the database of a hub",
            &found,
            "there is nothing to look at",
        ));
    }
    Database::connect(evidence(url)).await.map_err(outward)
}

#[expect(clippy::disallowed_methods, reason = "of the database itself")]
async fn text(connection: &DatabaseConnection, sql: &'static str) -> Result<String, Error> {
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    let row = connection.query_one_raw(statement).await.map_err(outward)?;
    let row = row.ok_or_else(|| Error::internal("a question without an answer"))?;
    row.try_get_by_index(0).map_err(outward)
}

async fn server(connection: &DatabaseConnection) -> Result<String, Error> {
    match connection.get_database_backend() {
        DbBackend::Postgres => {
            let version = text(connection, "SELECT current_setting('server_version')").await?;
            Ok(format!("PostgreSQL {version}"))
        }
        _ => Ok(format!(
            "SQLite {}",
            text(connection, "SELECT sqlite_version()").await?
        )),
    }
}

async fn migrations(connection: &DatabaseConnection) -> Result<String, Error> {
    let pending = roadstead_migrations::pending(connection).await.map_err(outward)?;
    if pending.is_empty() {
        return Ok("all of this version's".to_owned());
    }
    let found = format!("missing migrations: {}", pending.join(", "));
    Err(open::config(
        "a migrated database (roadstead-hub migrate)",
        &found,
        "the database is older than this hub",
    ))
}

async fn skew(connection: &DatabaseConnection, clock: &dyn Clock) -> Result<String, Error> {
    let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint::text";
    let theirs: i64 = text(connection, sql).await?.parse().map_err(Error::internal)?;
    let apart = (theirs - clock.now_ms()).abs();
    if apart <= SKEW_MS {
        return Ok(format!("{apart} ms apart"));
    }
    Err(open::config(
        &format!("clocks at most {SKEW_MS} ms apart"),
        &format!("{apart} ms"),
        "tokens and certificates would end too early or too late: set the clocks by NTP",
    ))
}

async fn integrity(connection: &DatabaseConnection) -> Result<String, Error> {
    let found = text(connection, "SELECT * FROM pragma_quick_check LIMIT 1").await?;
    if found == "ok" {
        return Ok(found);
    }
    Err(open::config(
        "a whole file",
        "damage",
        "restore the database from a backup",
    ))
}
