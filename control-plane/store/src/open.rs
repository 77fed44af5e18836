//! Opening the database: pools, options, and the checks without which the hub does not start.

use crate::error::outward;
use crate::repeats::Repeats;
use crate::signal::Signals;
use crate::turns::{Places, Turns};
use crate::{Store, StoreOptions, TenantPlaces};
use roadstead_domain::{Error, Problem};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

/// How long a caller waits for a free connection (on SQLite: for the writers before it).
pub(crate) const ACQUIRE: Duration = Duration::from_secs(5);
/// How long SQLite waits for a lock of another process.
const BUSY: Duration = Duration::from_secs(3);
/// Readers beside SQLite's one writer.
const READERS: u32 = 4;
/// A connection that has been idle for longer is tried before it is used: the server may have been restarted.
const IDLE: Duration = Duration::from_secs(10);
/// How long that trial may take: whoever waits for a connection then still has the time to open another.
const TRIED: Duration = Duration::from_secs(2);
/// How long a connection may take to be ready again after its use; one that takes longer is closed. Its place in the pool
/// is taken until then.
const RETURNED: Duration = Duration::from_secs(5);
/// Connections to PostgreSQL of one replica.
pub(crate) const CONNECTIONS: u32 = 16;

/// What one tenant may have at once: on SQLite two writers in the queue, on PostgreSQL a quarter of the connections for
/// writers and half of them for readers.
///
/// # Errors
/// Where it could have all connections: then the others find none, and no token can be looked at, its own neither. On
/// SQLite writers queue for a connection of their own, on PostgreSQL readers and writers take of the same.
fn places(url: &str, wanted: TenantPlaces) -> Result<Places, Error> {
    let sqlite = url.starts_with("sqlite:");
    let (connections, reading, writing) = match sqlite {
        true => (READERS as usize, READERS as usize - 1, 2),
        false => {
            let all = CONNECTIONS as usize;
            (all, all / 2, all / 4)
        }
    };
    let places = Places {
        reading: wanted.reading.unwrap_or(reading),
        writing: wanted.writing.unwrap_or(writing),
    };
    let Places { reading, writing } = places;
    let (taken, of) = match sqlite {
        true => (reading, "transactions of one tenant that read (tenant-readers)"),
        false => (
            reading.saturating_add(writing),
            "transactions of one tenant, those that read (tenant-readers) and those that write (tenant-writers) together",
        ),
    };
    if reading == 0 || writing == 0 || taken >= connections || writing >= CONNECTIONS as usize {
        return Err(config(
            &format!("1 to {} {of}", connections - 1),
            &format!("{reading} that read and {writing} that write"),
            "one tenant could take every connection to the database",
        ));
    }
    Ok(places)
}

/// The file behind a SQLite URL and its identity when it was opened.
#[derive(Clone, Debug)]
pub(crate) struct File {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl File {
    fn at(path: PathBuf) -> Self {
        let identity = identity(&path);
        Self { path, identity }
    }

    /// SQLite in WAL mode goes on writing to a file that was removed or replaced: an acknowledged write would be
    /// lost. So the file is looked at before each write.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if identity(&self.path) == self.identity {
            return Ok(());
        }
        Err(Error::Unavailable {
            message: "the database file is gone or was replaced; nothing was changed: restore it and restart the hub"
                .to_owned(),
            detail: None,
        })
    }
}

#[cfg(unix)]
fn identity(path: &std::path::Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

#[cfg(not(unix))]
fn identity(path: &std::path::Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|_| (0, 0))
}

impl Store {
    /// Opens the database behind `options.url`: `sqlite:<path>` (made and migrated when needed) or
    /// `postgres://…` (already migrated, by another role). Read only, it must be there already.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it does not answer. [`Error::Invalid`] when the URL is of another kind, when
    /// migrations are missing, when the role on PostgreSQL could get around row-level security (S34), or when what is
    /// only to be read is no hub's database.
    pub async fn open(options: StoreOptions) -> Result<Self, Error> {
        readable(&options.url)?;
        let places = places(&options.url, options.places)?;
        let (write, read, file) = if is_postgres(&options.url) {
            let pool = postgres(&options.url, options.read_only).await?;
            (pool.clone(), pool, None)
        } else {
            sqlite(&options).await?
        };
        let store = Self {
            write,
            read,
            file,
            clock: options.clock,
            random: options.random,
            faults: options.faults,
            signals: Arc::new(Signals::default()),
            turns: Arc::new(Turns::new(places)),
            repeats: Arc::new(Repeats::default()),
        };
        if options.read_only {
            // Of an older version too: whoever looks at evidence must not have to change it first.
            if !roadstead_migrations::known(&store.read).await.map_err(outward)? {
                return Err(config(
                    "the database of a hub",
                    "another or an empty one",
                    "there is nothing to read",
                ));
            }
        } else if store.backend() == DbBackend::Postgres {
            check_role(&store.write).await?;
            let pending = roadstead_migrations::pending(&store.write)
                .await
                .map_err(outward)?;
            if !pending.is_empty() {
                return Err(config(
                    "a migrated database (roadstead-hub migrate)",
                    &format!("missing migrations: {}", pending.join(", ")),
                    "the database is older than this hub",
                ));
            }
        }
        Ok(store)
    }

    pub(crate) fn backend(&self) -> DbBackend {
        self.write.get_database_backend()
    }

    /// Ends all connections; running transactions are rolled back.
    pub async fn close(&self) {
        for pool in [&self.read, &self.write] {
            if let Err(error) = pool.close_by_ref().await {
                tracing::warn!(error = %error, "closing the database failed");
            }
        }
    }
}

/// Brings the schema of `url` up to date; on PostgreSQL run as the schema's owner, naming the hub's role.
///
/// # Errors
/// [`Error::Unavailable`] when the database does not answer, [`Error::Internal`] when a migration fails,
/// [`Error::Invalid`] for a URL that cannot be read.
pub async fn migrate(url: &str, app_role: Option<&str>) -> Result<(), Error> {
    readable(url)?;
    private(url)?;
    let mut options = ConnectOptions::new(url);
    options
        .sqlx_logging(false)
        .max_connections(1)
        .acquire_timeout(ACQUIRE);
    for_ever(&mut options);
    let connection = Database::connect(options).await.map_err(outward)?;
    let migrated = roadstead_migrations::migrate(&connection, app_role).await;
    let closed = connection.close().await;
    migrated.map_err(outward)?;
    closed.map_err(outward)
}

type Pools = (DatabaseConnection, DatabaseConnection, Option<File>);

async fn sqlite(options: &StoreOptions) -> Result<Pools, Error> {
    let url = options.url.as_str();
    let path = sqlite_path(url);
    if path.as_os_str().is_empty() || path.starts_with(":memory:") {
        return Err(config(
            "sqlite:<path of a file>",
            "no path",
            "the hub keeps its state in a file",
        ));
    }
    if options.read_only {
        if !path.is_file() {
            let found = format!("no file {}", path.display());
            return Err(config(
                "the database of a hub",
                &found,
                "there is nothing to read",
            ));
        }
        let pool = Database::connect(evidence(url)).await.map_err(outward)?;
        return Ok((pool.clone(), pool, Some(File::at(path))));
    }
    private(url)?;
    let pages = options.faults.as_ref().and_then(|faults| faults.pages());
    let write = Database::connect(sqlite_options(url, 1, Role::Writer { pages }))
        .await
        .map_err(outward)?;
    roadstead_migrations::migrate(&write, None)
        .await
        .map_err(outward)?;
    let read = Database::connect(sqlite_options(url, READERS, Role::Reader))
        .await
        .map_err(outward)?;
    Ok((write, read, Some(File::at(path))))
}

/// A SQLite file holds every tenant's documents and the hashes of tokens: it is made for this user alone, and one that
/// others may read is closed to them. SQLite gives `-wal` and `-shm` the mode of the file.
#[cfg(unix)]
fn private(url: &str) -> Result<(), Error> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    if is_postgres(url) {
        return Ok(());
    }
    let path = sqlite_path(url);
    let unusable =
        |error| Error::unavailable(format!("{} cannot be used as a database", path.display()), error);
    let file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(unusable)?;
    let mode = file.metadata().map_err(unusable)?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    for suffix in ["", "-wal", "-shm"] {
        let mut beside = path.clone().into_os_string();
        beside.push(suffix);
        match std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(unusable(error)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn private(_: &str) -> Result<(), Error> {
    Ok(())
}

/// The file that a `sqlite:` URL names.
pub(crate) fn sqlite_path(url: &str) -> PathBuf {
    let path = url.trim_start_matches("sqlite:").trim_start_matches("//");
    PathBuf::from(path.split('?').next().unwrap_or_default())
}

/// SQLite itself then refuses whatever is not reading.
pub(crate) fn evidence(url: &str) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(1)
        .acquire_timeout(ACQUIRE)
        .sqlx_logging(false);
    for_ever(&mut options);
    options.map_sqlx_sqlite_opts(|sqlite| {
        sqlite
            .read_only(true)
            .create_if_missing(false)
            .busy_timeout(BUSY)
            .pragma("query_only", "1")
    });
    options
}

#[derive(Clone, Copy)]
enum Role {
    /// `pages`: the most that the file may have; a test's small disk.
    Writer {
        pages: Option<u32>,
    },
    Reader,
}

/// One connection writes, so that writers queue here and never meet as SQLITE_BUSY. `synchronous = NORMAL` in WAL
/// mode: a committed write survives the end of the process at any moment; a power cut may take the last ones.
fn sqlite_options(url: &str, connections: u32, role: Role) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(ACQUIRE)
        .test_before_acquire(false)
        .sqlx_logging(false);
    for_ever(&mut options);
    options.map_sqlx_sqlite_opts(move |sqlite| {
        use sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
        let sqlite = sqlite
            .create_if_missing(matches!(role, Role::Writer { .. }))
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        match role {
            Role::Reader => sqlite.pragma("query_only", "1"),
            Role::Writer { pages: None } => sqlite,
            Role::Writer { pages: Some(pages) } => sqlite.pragma("max_page_count", pages.to_string()),
        }
    });
    options.map_sqlx_sqlite_pool_opts(|pool| {
        pool.before_acquire(|connection, _| Box::pin(async move { Ok(is_clean(connection).await) }))
    });
    options
}

/// Connections end by an error or with the store, not by age: the task with which sqlx (0.9) looks at their age counts
/// those that are idle, and one that is taken before it is counted makes that number wrap around. The task then goes on
/// for ever without a pause: a core is lost, and the process does not end.
pub(crate) fn for_ever(options: &mut ConnectOptions) {
    options
        .idle_timeout(None::<Duration>)
        .max_lifetime(None::<Duration>);
}

/// Whether the next transaction would be the outermost one.
///
/// SQLite ends a transaction by itself when its disk is full or fails, and sqlx (0.9) then counts on as if it were still
/// there: the next one begins as a savepoint, which, once its end fails too, stays open for ever. From then on
/// every commit would release a savepoint inside it: acknowledged, seen by nobody, and gone with the process. Such a
/// connection is not used again.
async fn is_clean(connection: &mut sqlx::SqliteConnection) -> bool {
    use sqlx::Connection as _;
    if !connection.is_in_transaction() {
        return true;
    }
    // The end of a transaction that was dropped may still be on its way.
    let waited = connection.ping().await;
    let clean = waited.is_ok() && !connection.is_in_transaction();
    if !clean {
        tracing::warn!("a connection to the database did not end its transaction: it is closed");
    }
    clean
}

/// The URL is looked at here, because the libraries' own errors repeat it, password and all.
pub(crate) fn readable(url: &str) -> Result<(), Error> {
    let well_formed = if url.starts_with("sqlite:") {
        sqlx::sqlite::SqliteConnectOptions::from_str(url).is_ok()
    } else if is_postgres(url) {
        sqlx::postgres::PgConnectOptions::from_str(url).is_ok()
    } else {
        return Err(config(
            "a URL that begins with sqlite: or postgres:",
            "another kind of URL",
            "the database cannot be opened",
        ));
    };
    if well_formed {
        return Ok(());
    }
    Err(config(
        "postgres://USER@HOST:PORT/NAME or sqlite:PATH",
        "a URL that is not well-formed (it is not shown: it may hold a password)",
        "the database cannot be opened",
    ))
}

pub(crate) fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres:") || url.starts_with("postgresql:")
}

pub(crate) async fn postgres(url: &str, read_only: bool) -> Result<DatabaseConnection, Error> {
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE)
        .connect_timeout(ACQUIRE)
        .test_before_acquire(false)
        .sqlx_logging(false);
    for_ever(&mut options);
    options.map_sqlx_postgres_pool_opts(|pool| {
        let pool = pool.before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for >= IDLE {
                    answers(connection, TRIED).await?;
                }
                Ok(true)
            })
        });
        pool.after_release(|connection, _| {
            Box::pin(async move {
                answers(connection, RETURNED).await?;
                Ok(true)
            })
        })
    });
    options.map_sqlx_postgres_opts(move |postgres| {
        let postgres = postgres.options([
            ("statement_timeout", "30s"),
            ("lock_timeout", "5s"),
            ("timezone", "UTC"),
        ]);
        if read_only {
            postgres.options([("default_transaction_read_only", "on")])
        } else {
            postgres
        }
    });
    Database::connect(options).await.map_err(outward)
}

/// Whether the other side still says something. What is sent into a connection that was cut without a word (a firewall that
/// has forgotten it, a machine that is gone) is unanswered for as long as TCP tries, a quarter of an hour, and sqlx (0.9)
/// itself waits for that when a connection comes back to the pool. After an error it closes the connection without a word.
async fn answers(connection: &mut sqlx::PgConnection, within: Duration) -> Result<(), sqlx::Error> {
    use sqlx::Connection as _;
    match tokio::time::timeout(within, connection.ping()).await {
        Ok(answered) => answered,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// S34: the role must own no table and must be unable to step over row-level security, which every table of tenants
/// must have.
#[expect(clippy::disallowed_methods, reason = "of the connection itself")]
pub(crate) async fn check_role(connection: &DatabaseConnection) -> Result<(), Error> {
    let sql = "SELECT (r.rolsuper OR r.rolbypassrls) AS above, current_user::text AS name,
        EXISTS (SELECT 1 FROM pg_roles b WHERE (b.rolsuper OR b.rolbypassrls)
            AND pg_has_role(current_user, b.oid, 'MEMBER')) AS member,
        EXISTS (SELECT 1 FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace
            AND c.relkind IN ('r', 'p') AND pg_has_role(current_user, c.relowner, 'MEMBER')) AS owns,
        (SELECT min(c.relname)::text FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace
            AND c.relkind IN ('r', 'p') AND c.relname <> 'seaql_migrations'
            AND NOT (c.relrowsecurity AND c.relforcerowsecurity)) AS open
        FROM pg_roles r WHERE r.rolname = current_user";
    let row = connection
        .query_one_raw(Statement::from_string(DbBackend::Postgres, sql))
        .await
        .map_err(outward)?
        .ok_or_else(|| Error::internal("a role that is not among the roles"))?;
    let read = |column: &str| row.try_get::<bool>("", column).unwrap_or(true);
    let name: String = row.try_get("", "name").unwrap_or_default();
    let found = if read("above") {
        "is superuser or has BYPASSRLS"
    } else if read("member") {
        "may become a superuser or a role with BYPASSRLS"
    } else if read("owns") {
        "owns tables"
    } else {
        let open: Option<String> = row.try_get("", "open").map_err(outward)?;
        return match open {
            None => Ok(()),
            Some(table) => Err(config(
                "row-level security, forced, on every table",
                &format!("the table {table} without it"),
                "one tenant could see another's rows",
            )),
        };
    };
    Err(config(
        "a role that owns no table, is no superuser and lacks BYPASSRLS",
        &format!("role {name:?}, which {found}"),
        "the database role could step over row-level security",
    ))
}

pub(crate) fn config(expected: &str, found: &str, message: &str) -> Error {
    Error::invalid(Problem::new("database", expected, found, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s39_one_tenant_never_has_all_connections() {
        let taken = |url: &str, reading: Option<usize>, writing: Option<usize>| {
            let places = places(url, TenantPlaces { reading, writing });
            places.map(|places| (places.reading, places.writing))
        };
        let (postgres, sqlite) = ("postgres://h/d", "sqlite:h.db");
        assert_eq!(taken(postgres, None, None).expect("the usual"), (8, 4));
        assert_eq!(taken(sqlite, None, None).expect("the usual"), (3, 2));
        for good in [
            (Some(11), None),
            (None, Some(7)),
            (Some(14), Some(1)),
            (Some(1), Some(14)),
        ] {
            taken(postgres, good.0, good.1).expect("one connection is left");
        }
        // Of which one is left out, too.
        for bad in [
            (Some(12), None),
            (None, Some(8)),
            (Some(12), Some(4)),
            (Some(15), Some(15)),
            (Some(usize::MAX), Some(1)),
            (Some(0), None),
            (None, Some(0)),
        ] {
            let error = taken(postgres, bad.0, bad.1)
                .expect_err("none is left")
                .to_string();
            assert!(
                error.contains("tenant-readers") && error.contains("tenant-writers"),
                "{error}"
            );
        }
        taken(sqlite, Some(3), Some(15)).expect("writers have a connection of their own");
        for bad in [(Some(4), None), (Some(0), None), (None, Some(16))] {
            taken(sqlite, bad.0, bad.1).expect_err("no reader is left");
        }
    }
}
