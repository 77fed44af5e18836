//! The database locked, full and gone, under the whole hub: a clear answer, liveness green, readiness red, nothing
//! half-written, and on again without a restart.

use super::{Head, World};
use roadstead_store::{Faults, testing::TestDatabase};
use serde_json::Value;
use std::sync::Arc;

/// A write that the database could not take: UNAVAILABLE, what is wrong, and when to try again.
fn assert_refused((head, body): &(Head, Value), says: &str) {
    let error = &body["errors"][0];
    assert_eq!(error["extensions"]["code"], "UNAVAILABLE", "{body}");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains(says), "{message}");
    assert_eq!((head.status, head.retry_after.as_deref()), (200, Some("5")));
    // The answer names neither statement nor file.
    for inside in ["INSERT", "SELECT", "hub.db", "sqlx", "code:"] {
        assert!(!body.to_string().contains(inside), "{body}");
    }
}

fn assert_accepted((_, body): &(Head, Value)) {
    assert_eq!(
        body["data"]["applyDocuments"]["errors"],
        serde_json::json!([]),
        "{body}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_database_is_told_and_gets_well() -> anyhow::Result<()> {
    let world = World::new().await?;
    assert_accepted(&world.apply("before", 0).await?);
    world.until_ready_says(200).await?;
    let lock = world.database.lock_out().await;
    let refused = world.apply("locked", 0).await?;
    assert_refused(&refused, "locked by another process");
    world.assert_alive().await?;
    world.until_ready_says(503).await?;
    drop(lock);
    world.until_ready_says(200).await?;
    // Under the key of the write that was refused: it has left nothing.
    assert_accepted(&world.apply("locked", 0).await?);
    world.hub.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_database_is_told_and_gets_well() -> anyhow::Result<()> {
    let database = TestDatabase::sqlite();
    let faults = Arc::new(Faults::default());
    // A new schema takes about 45 pages.
    faults.small_disk(160);
    let world = World::on(database, Some(faults)).await?;
    world
        .database
        .tamper("CREATE TABLE ballast (x BLOB); INSERT INTO ballast VALUES (zeroblob(200000))")
        .await;
    let rows = "SELECT concat_ws(' ', (SELECT count(*) FROM object), (SELECT count(*) FROM revision),
        (SELECT count(*) FROM idempotency_key), (SELECT seq FROM audit_head), (SELECT count(*) FROM audit))";
    let mut number = 0;
    let refused = loop {
        let before = world.database.ask(rows).await;
        let answer = world.apply(&format!("m{number}"), 900).await?;
        if answer.1["errors"].is_array() {
            assert_eq!(world.database.ask(rows).await, before, "nothing is half-written");
            break answer;
        }
        assert_accepted(&answer);
        number += 1;
        anyhow::ensure!(number < 500, "it never fills up");
    };
    assert_refused(&refused, "disk is full");
    world.assert_alive().await?;
    let said = world.until_ready_says(503).await?;
    assert!(said.contains("disk is full"), "{said}");
    // Reading goes on.
    let read = world
        .graphql("{ documents(first: 1) { nodes { name } } }", &Value::Null)
        .send()
        .await?;
    let read: Value = serde_json::from_str(&read.text().await?)?;
    assert_eq!(read["data"]["documents"]["nodes"][0]["name"], "m0", "{read}");
    world.database.tamper("DROP TABLE ballast").await;
    world.until_ready_says(200).await?;
    assert_accepted(&world.apply(&format!("m{number}"), 900).await?);
    world.hub.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_gone_is_told_and_gets_well() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.until_ready_says(200).await?;
    let path = world.database.url().trim_start_matches("sqlite:").to_owned();
    std::fs::rename(&path, format!("{path}.away"))?;
    let refused = world.apply("gone", 0).await?;
    assert_refused(&refused, "gone or was replaced");
    world.assert_alive().await?;
    world.until_ready_says(503).await?;
    assert!(
        !std::path::Path::new(&path).exists(),
        "it is not made anew behind the operator's back"
    );
    std::fs::rename(format!("{path}.away"), &path)?;
    world.until_ready_says(200).await?;
    assert_accepted(&world.apply("gone", 0).await?);
    world.hub.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hub_at_a_time_uses_a_file() -> anyhow::Result<()> {
    let world = World::new().await?;
    let file = world.database.url().trim_start_matches("sqlite:").to_owned();
    let refused = crate::lock::take(file.as_ref(), "dev").unwrap_err().to_string();
    assert!(refused.contains("another `roadstead-hub serve`"), "{refused}");
    world.hub.stop().await;
    crate::lock::take(file.as_ref(), "dev")?;
    Ok(())
}
