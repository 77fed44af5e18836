//! Fresh databases for tests, on SQLite and PostgreSQL alike. Nothing here runs in production.
//!
//! PostgreSQL comes from `ROADSTEAD_TEST_POSTGRES`, the URL of a superuser; each test gets a database of its own, with
//! the schema owned by one role and the hub's rows reached by another, as in production.

use crate::{Faults, Store, StoreOptions, migrate};
use roadstead_domain::{Clock, Error, Random};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, Statement};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const ADMIN: &str = "ROADSTEAD_TEST_POSTGRES";
const SKIP: &str = "ROADSTEAD_SKIP_POSTGRES";
const OWNER: &str = "roadstead_test_owner";
const APP: &str = "roadstead_test_app";
const ROLE_PASSWORD: &str = "roadstead-test";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A database of one test; removed when dropped.
#[derive(Debug)]
pub struct TestDatabase {
    url: String,
    owner_url: String,
    gone: Gone,
}

#[derive(Debug)]
enum Gone {
    Folder(PathBuf),
    Database { admin: String, name: String },
}

impl TestDatabase {
    /// A new SQLite file.
    ///
    /// # Panics
    /// When the temporary folder cannot be written.
    #[must_use]
    pub fn sqlite() -> Self {
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let folder = std::env::temp_dir().join(format!("roadstead-test-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
        let url = format!("sqlite:{}", folder.join("hub.db").display());
        Self {
            owner_url: url.clone(),
            url,
            gone: Gone::Folder(folder),
        }
    }

    /// A new, migrated PostgreSQL database; `None` where the tests were told to do without.
    ///
    /// # Panics
    /// When no PostgreSQL is given, or it does not do what a test needs.
    pub async fn postgres() -> Option<Self> {
        let Ok(admin) = std::env::var(ADMIN) else {
            assert!(
                std::env::var(SKIP).is_ok_and(|v| v == "1"),
                "{ADMIN} is not set: `make test-tools` installs a PostgreSQL and says how; {SKIP}=1 leaves it out"
            );
            return None;
        };
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("roadstead_test_{}_{count}", std::process::id());
        let connection = connect(&admin).await;
        for role in [OWNER, APP] {
            run(
                &connection,
                &format!(
                    "DO $$ BEGIN CREATE ROLE {role} LOGIN PASSWORD '{ROLE_PASSWORD}' NOSUPERUSER NOBYPASSRLS;
                 EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
                ),
            )
            .await;
        }
        run(
            &connection,
            &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
        )
        .await;
        run(
            &connection,
            &format!("CREATE DATABASE {name} OWNER {OWNER} TEMPLATE template0"),
        )
        .await;
        connection.close().await.expect("the connection closes");
        let owner_url = url_for(&admin, OWNER, &name);
        migrate(&owner_url, Some(APP)).await.expect("the migrations run");
        Some(Self {
            url: url_for(&admin, APP, &name),
            owner_url,
            gone: Gone::Database { admin, name },
        })
    }

    /// How the hub opens it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How whoever runs migrations opens it; on SQLite the same.
    #[must_use]
    pub fn owner_url(&self) -> &str {
        &self.owner_url
    }

    /// The store in it.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub async fn open(
        &self,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        faults: Option<Arc<Faults>>,
    ) -> Store {
        let options = StoreOptions {
            clock,
            random,
            faults,
            ..StoreOptions::new(&self.url)
        };
        // A machine that builds at the same time may need long for the first write to a new file.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            match Store::open(options.clone()).await {
                Err(Error::Unavailable { .. }) if std::time::Instant::now() < deadline => {}
                opened => return opened.expect("the database opens"),
            }
        }
    }

    /// Runs statements past all locks, as an attacker with the database's own rights would.
    ///
    /// # Panics
    /// When the database refuses them.
    pub async fn tamper(&self, sql: &str) {
        let url = match &self.gone {
            Gone::Folder(_) => self.url.clone(),
            Gone::Database { admin, name } => with_database(admin, name),
        };
        let connection = connect(&url).await;
        if !self.is_postgres() {
            for act in ["UPDATE", "DELETE"] {
                run(
                    &connection,
                    &format!("DROP TRIGGER IF EXISTS audit_refuses_{act}"),
                )
                .await;
            }
        }
        run(&connection, sql).await;
        connection.close().await.expect("the connection closes");
    }
}

impl TestDatabase {
    /// Runs statements as the hub's role would, past the store.
    ///
    /// # Errors
    /// What the database says.
    #[expect(clippy::disallowed_methods, reason = "what tests do past the store")]
    pub async fn try_as_hub(&self, sql: &str) -> Result<(), String> {
        let connection = connect(&self.url).await;
        let done = connection.execute_unprepared(sql).await;
        connection.close().await.expect("the connection closes");
        done.map(|_| ()).map_err(|error| error.to_string())
    }

    /// The texts of the first column that a query answers, asked as the hub's role, past the store: what a query
    /// without a tenant would see.
    ///
    /// # Panics
    /// When the database refuses it.
    pub async fn ask(&self, sql: &str) -> Vec<String> {
        ask(&self.url, sql).await
    }

    /// The same as whoever may see everything.
    ///
    /// # Panics
    /// When the database refuses it.
    pub async fn ask_all(&self, sql: &str) -> Vec<String> {
        let url = match &self.gone {
            Gone::Folder(_) => self.url.clone(),
            Gone::Database { admin, name } => with_database(admin, name),
        };
        ask(&url, sql).await
    }

    /// The URL of a database of the same server that holds nothing: PostgreSQL only. Removed with this one.
    ///
    /// # Panics
    /// On SQLite, and when the server does not do it.
    pub async fn empty(&self) -> String {
        let Gone::Database { admin, name } = &self.gone else {
            panic!("SQLite has no server: take another file")
        };
        let name = format!("{name}_empty");
        let connection = connect(admin).await;
        run(
            &connection,
            &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
        )
        .await;
        run(
            &connection,
            &format!("CREATE DATABASE {name} OWNER {OWNER} TEMPLATE template0"),
        )
        .await;
        connection.close().await.expect("the connection closes");
        url_for(admin, APP, &name)
    }

    /// `true` on PostgreSQL.
    #[must_use]
    pub fn is_postgres(&self) -> bool {
        matches!(self.gone, Gone::Database { .. })
    }

    /// A lock that keeps every other writer of a SQLite file out until it is dropped.
    ///
    /// # Panics
    /// When it cannot be had.
    pub async fn lock_out(&self) -> impl Sized + use<> {
        use sea_orm::{SqliteTransactionMode, TransactionOptions, TransactionTrait};
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let connection = connect(&self.url).await;
        let lock = connection
            .begin_with_options(options)
            .await
            .expect("the lock is free");
        (lock, connection)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        match &self.gone {
            Gone::Folder(folder) => {
                let _ = std::fs::remove_dir_all(folder);
            }
            Gone::Database { admin, name } => {
                let (admin, sql) = (
                    admin.clone(),
                    [
                        format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
                        format!("DROP DATABASE IF EXISTS {name}_empty WITH (FORCE)"),
                    ],
                );
                // Not on the test's runtime, which may be about to end.
                let dropper = std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    if let Ok(runtime) = runtime {
                        runtime.block_on(async {
                            let connection = connect(&admin).await;
                            for sql in sql {
                                run(&connection, &sql).await;
                            }
                        });
                    }
                });
                let _ = dropper.join();
            }
        }
    }
}

async fn connect(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    crate::open::for_ever(&mut options);
    Database::connect(options)
        .await
        .expect("the test database answers")
}

#[expect(clippy::disallowed_methods, reason = "what tests do past the store")]
async fn ask(url: &str, sql: &str) -> Vec<String> {
    let connection = connect(url).await;
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    let rows = connection
        .query_all_raw(statement)
        .await
        .expect("the test database answers");
    let read = rows.iter().map(|row| row.try_get_by_index(0).expect("a text"));
    let texts = read.collect();
    connection.close().await.expect("the connection closes");
    texts
}

#[expect(clippy::disallowed_methods, reason = "what tests do past the store")]
async fn run(connection: &DatabaseConnection, sql: &str) {
    connection
        .execute_unprepared(sql)
        .await
        .expect("the test database does it");
}

/// `url` with another role and database.
fn url_for(url: &str, role: &str, database: &str) -> String {
    let url = with_database(url, database);
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let host = rest.split_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{role}:{ROLE_PASSWORD}@{host}")
}

fn with_database(url: &str, database: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (rest, query) = rest
        .split_once('?')
        .map_or((rest, String::new()), |(r, q)| (r, format!("?{q}")));
    let host = rest.split('/').next().unwrap_or(rest);
    format!("{scheme}://{host}/{database}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_made_over() {
        let admin = "postgres://postgres:x@127.0.0.1:5433/postgres?sslmode=disable";
        assert_eq!(
            url_for(admin, "app", "t1"),
            "postgres://app:roadstead-test@127.0.0.1:5433/t1?sslmode=disable"
        );
        assert_eq!(with_database("postgres://u@h", "t2"), "postgres://u@h/t2");
    }
}
