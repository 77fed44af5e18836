//! Upgrades that end in the middle, and upgrades beside a hub that serves.

use crate::testing::TestDatabase;
use roadstead_migrations::{Migrator, MigratorTrait as _};
use sea_orm::{ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, DbBackend, Statement};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

async fn connect(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    crate::open::for_ever(&mut options);
    Database::connect(options).await.expect("the database answers")
}

#[expect(clippy::disallowed_methods, reason = "what tests do past the store")]
async fn run(connection: &DatabaseConnection, sql: &str) {
    connection.execute_unprepared(sql).await.expect(sql);
}

#[expect(clippy::disallowed_methods, reason = "what tests do past the store")]
async fn texts(connection: &DatabaseConnection, sql: &str) -> Vec<String> {
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    let rows = connection.query_all_raw(statement).await.expect(sql);
    rows.iter()
        .map(|row| row.try_get_by_index(0).expect("a text"))
        .collect()
}

/// All that a SQLite file has, apart from what is in the way.
async fn schema(connection: &DatabaseConnection) -> Vec<String> {
    texts(
        connection,
        "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema ORDER BY name, type",
    )
    .await
}

/// For each migration something that its last statement makes: it is in the way, so that the migration ends after the
/// others. Then how it is taken away.
const IN_THE_WAY: [(&str, &str); 7] = [
    ("CREATE TABLE idempotency_key (x)", "DROP TABLE idempotency_key"),
    (
        "CREATE TRIGGER run_refuses_DELETE BEFORE DELETE ON run BEGIN SELECT 1; END",
        "DROP TRIGGER run_refuses_DELETE",
    ),
    (
        "ALTER TABLE cluster_certificate ADD COLUMN unknown_ms INTEGER",
        "ALTER TABLE cluster_certificate DROP COLUMN unknown_ms",
    ),
    ("CREATE TABLE hub_replica (x)", "DROP TABLE hub_replica"),
    (
        "CREATE INDEX command_by_result ON cluster (id)",
        "DROP INDEX command_by_result",
    ),
    (
        "ALTER TABLE cluster ADD COLUMN enrolled_by TEXT",
        "ALTER TABLE cluster DROP COLUMN enrolled_by",
    ),
    ("CREATE TABLE audit_by_time (x)", "DROP TABLE audit_by_time"),
];

#[tokio::test]
async fn an_upgrade_that_ends_between_two_statements_is_made_up_for_on_sqlite() {
    let whole = TestDatabase::sqlite();
    crate::migrate(whole.url(), None).await.expect("migrated");
    let whole = schema(&connect(whole.url()).await).await;
    assert_eq!(
        Migrator::migrations().len(),
        IN_THE_WAY.len(),
        "a new migration needs something in its way here"
    );
    for (before, (in_the_way, away)) in (0_u32..).zip(IN_THE_WAY) {
        let database = TestDatabase::sqlite();
        // The file is made as the hub makes it.
        let connection = connect(&format!("{}?mode=rwc", database.url())).await;
        if before > 0 {
            Migrator::up(&connection, Some(before)).await.expect("migrated");
        }
        run(&connection, in_the_way).await;
        let then = schema(&connection).await;
        crate::migrate(database.url(), None).await.expect_err(in_the_way);
        if before + 1 < 7 && before > 0 {
            assert_eq!(schema(&connection).await, then, "traces of {in_the_way}");
        }
        run(&connection, away).await;
        crate::migrate(database.url(), None).await.expect(in_the_way);
        let sorted = |mut all: Vec<String>| {
            // SQLite writes columns that were added, and taken away, at the end of the table's text.
            for text in &mut all {
                text.retain(|c| !c.is_whitespace());
            }
            all
        };
        assert_eq!(
            sorted(schema(&connection).await),
            sorted(whole.clone()),
            "{in_the_way}"
        );
        connection.close().await.expect("closed");
    }
}

const TENANT: &str = "01890000-0000-7000-8000-000000000001";

fn record(seq: u32) -> String {
    format!(
        "INSERT INTO audit SELECT '{TENANT}', {seq}, gen_random_uuid(), {seq}, 'token:1', '', 'act', 'obj', NULL, 'allow',
        '', '', '', '', '', '{{}}', ''::bytea, ''::bytea"
    )
}

const NAMES: &str = "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE c.relname LIKE 'audit\\_by\\_%' AND i.indisvalid AND NOT i.indisunique ORDER BY 1";
const INDEXES: [&str; 5] = [
    "audit_by_action",
    "audit_by_actor",
    "audit_by_object",
    "audit_by_refusal",
    "audit_by_time",
];

/// As it was before `m0007_audit_indexes`.
async fn before_the_indexes(database: &TestDatabase) {
    let drops: Vec<String> = INDEXES.iter().map(|name| format!("DROP INDEX {name};")).collect();
    database
        .tamper(&format!(
            "{} DELETE FROM seaql_migrations WHERE version = 'm0007_audit_indexes';
             INSERT INTO tenant (id, name, created_ms) VALUES ('{TENANT}', 'acme', 1); {}; {}",
            drops.concat(),
            record(1),
            record(2)
        ))
        .await;
}

#[tokio::test]
async fn an_index_that_was_left_half_made_is_made_anew_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else {
        return;
    };
    before_the_indexes(&database).await;
    let owner = connect(database.owner_url()).await;
    run(
        &owner,
        "CREATE INDEX audit_by_actor ON audit (tenant_id, actor, seq)",
    )
    .await;
    // As an interruption leaves it: here because the records are not unique.
    #[expect(clippy::disallowed_methods, reason = "what tests do past the store")]
    let failed = owner
        .execute_unprepared("CREATE UNIQUE INDEX CONCURRENTLY audit_by_time ON audit (tenant_id)")
        .await;
    failed.expect_err("two records of one tenant");
    assert_eq!(database.ask_all(NAMES).await, ["audit_by_actor"]);
    crate::migrate(database.owner_url(), None)
        .await
        .expect("migrated");
    assert_eq!(database.ask_all(NAMES).await, INDEXES);
    owner.close().await.expect("closed");
}

#[tokio::test]
async fn indexes_of_the_audit_log_are_made_beside_its_writes_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else {
        return;
    };
    before_the_indexes(&database).await;
    let bind = format!("SELECT set_config('roadstead.tenant', '{TENANT}', true)");
    // A write that is under way when the migration begins …
    let first = connect(database.url()).await;
    run(&first, &format!("BEGIN; {bind}; {}", record(3))).await;
    let url = database.owner_url().to_owned();
    let migration = tokio::spawn(async move { crate::migrate(&url, None).await });
    let waits =
        "SELECT pid::text FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND wait_event_type = 'Lock'
        AND datname = current_database()";
    let until = Instant::now() + Duration::from_secs(60);
    while database.ask_all(waits).await.is_empty() {
        assert!(Instant::now() < until, "the migration never waits for the write");
        sleep(Duration::from_millis(50)).await;
    }
    // … and one that comes while it waits.
    let second = connect(database.url()).await;
    let text = format!(
        "BEGIN; SET LOCAL lock_timeout = '20s'; {bind}; {}; COMMIT",
        record(4)
    );
    run(&second, &text).await;
    assert!(!migration.is_finished());
    run(&first, "COMMIT").await;
    let migrated = timeout(Duration::from_secs(60), migration).await;
    migrated.expect("in time").expect("no panic").expect("migrated");
    assert_eq!(database.ask_all(NAMES).await, INDEXES);
    assert_eq!(first.get_database_backend(), DbBackend::Postgres);
    for connection in [first, second] {
        connection.close().await.expect("closed");
    }
}
