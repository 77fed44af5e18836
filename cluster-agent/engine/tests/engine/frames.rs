//! The runtime's pipe: revisions, run records, readiness, and the end of the input.

use crate::support::{Process, apply, assert_completed, bundle, send, text, trust};
use roadstead_contract::control::{FromEngine, ToEngine};
use roadstead_model_server::{ModelServer, Script};
use serde_json::json;
use std::time::Duration;
use tokio::time::timeout;

async fn model() -> ModelServer {
    ModelServer::start(Script::default()).await.expect("a model")
}

#[tokio::test]
async fn readiness_follows_the_revision() {
    let (model, state) = (model().await, tempfile::tempdir().expect("a folder"));
    let mut engine = Process::start(state.path()).await;
    let first = engine.until(|f| matches!(f, FromEngine::Ready { .. })).await;
    assert!(
        matches!(&first, FromEngine::Ready { ready: false, reason } if reason == "no revision yet"),
        "{first:?}"
    );
    engine
        .tell(&apply(bundle(&model.openai_url(), json!({})), trust()))
        .await;
    engine
        .until(|f| matches!(f, FromEngine::Ready { ready: true, .. }))
        .await;
}

#[tokio::test]
async fn a_bundle_that_does_not_load_is_refused_and_the_one_before_goes_on() {
    let (model, state) = (model().await, tempfile::tempdir().expect("a folder"));
    let good = bundle(&model.openai_url(), json!({}));
    let mut engine = Process::with(state.path(), good.clone()).await;
    let mut broken = good;
    broken.models.clear();
    let digest = broken.digest();
    engine.tell(&apply(broken, trust())).await;
    let frame = engine.until(|f| matches!(f, FromEngine::Refused { .. })).await;
    let FromEngine::Refused {
        digest: found,
        reason,
        ..
    } = frame
    else {
        unreachable!()
    };
    assert_eq!(found, digest);
    assert!(reason.contains("fast"), "{reason}");
    assert_completed(&send(&engine.alice().await, &text("say on")).await, "on");
}

#[tokio::test]
async fn a_line_that_is_no_frame_changes_nothing() {
    let (model, state) = (model().await, tempfile::tempdir().expect("a folder"));
    let mut engine = Process::with(state.path(), bundle(&model.openai_url(), json!({}))).await;
    for line in [
        "",
        "{}",
        "[1,2]",
        "{\"frame\":\"unknown\"}",
        "\u{0}",
        &"x".repeat(9 << 20),
    ] {
        engine.tell_raw(line).await;
    }
    assert_completed(&send(&engine.alice().await, &text("say on")).await, "on");
}

#[tokio::test]
async fn run_records_come_until_they_are_kept() {
    let (model, state) = (model().await, tempfile::tempdir().expect("a folder"));
    let good = bundle(&model.openai_url(), json!({}));
    let mut engine = Process::with(state.path(), good.clone()).await;
    let alice = engine.alice().await;
    for _ in 0..3 {
        send(&alice, &text("say hi")).await;
    }
    for expected in 1..=3 {
        assert_eq!(engine.run_record().await.sequence, expected);
    }
    engine.tell(&ToEngine::RunsKept { sequence: 2 }).await;
    // A task after the word: when its record is here, the word was read.
    send(&alice, &text("say hi")).await;
    assert_eq!(engine.run_record().await.sequence, 4);
    engine.kill().await;
    let mut engine = Process::with(state.path(), good).await;
    let again = [
        engine.run_record().await.sequence,
        engine.run_record().await.sequence,
    ];
    assert_eq!(again, [3, 4]);
}

#[tokio::test]
async fn the_end_of_the_input_ends_the_engine_even_in_the_middle_of_a_task() {
    let (model, state) = (model().await, tempfile::tempdir().expect("a folder"));
    let mut engine = Process::with(state.path(), bundle(&model.openai_url(), json!({}))).await;
    let alice = engine.alice().await;
    let hanging = tokio::spawn(async move { alice.send_message(&text("hang")).await.is_err() });
    while model.open() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    engine.hang_up();
    let status = timeout(Duration::from_secs(10), engine.child.wait())
        .await
        .expect("in time")
        .expect("gone");
    assert!(status.success(), "{status}");
    assert!(hanging.await.expect("joined"));
}

#[tokio::test]
async fn drain_lets_what_runs_finish() {
    let (model, state) = (model().await, tempfile::tempdir().expect("a folder"));
    let mut engine = Process::with(state.path(), bundle(&model.openai_url(), json!({}))).await;
    let alice = engine.alice().await;
    let running = tokio::spawn(async move { send(&alice, &text("say a b c d\nchunks 4 100")).await });
    while model.open() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    engine.tell(&ToEngine::Drain { grace_ms: 10_000 }).await;
    assert_completed(&running.await.expect("joined"), "a b c d");
    let status = timeout(Duration::from_secs(10), engine.child.wait())
        .await
        .expect("in time")
        .expect("gone");
    assert!(status.success(), "{status}");
}
