//! kill -9 of the real process at random points: what was promised holds in the next one.

use crate::support::{Process, bundle, send, text};
use a2a::{SendMessageRequest, TaskState};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use roadstead_model_server::{ModelServer, Script};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep, timeout};

const ROUNDS: usize = 15;
const TASKS: usize = 6;

/// Every message that was sent, with the task that it began where that was heard.
type Known = Vec<(SendMessageRequest, Option<String>)>;

#[tokio::test]
async fn killed_at_random_no_task_is_lost_doubled_or_left_hanging() {
    let seed = std::env::var("ROADSTEAD_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(rand::random);
    println!("ROADSTEAD_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let model = ModelServer::start(Script::default()).await.expect("a model");
    let state = tempfile::tempdir().expect("a folder");
    let spec = bundle(&model.openai_url(), json!({}));
    let mut known: Known = Vec::new();
    let mut records: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for _ in 0..ROUNDS {
        let engine = Process::with(state.path(), spec.clone()).await;
        let alice = engine.alice().await;
        let mut sends = Vec::new();
        for _ in 0..TASKS {
            let client = engine.alice().await;
            let request = text(&format!(
                "say a b c d e f\nchunks 6 {}",
                random.random_range(0..12)
            ));
            known.push((request.clone(), None));
            sends.push(tokio::spawn(async move {
                client.send_message(&request).await.is_ok()
            }));
        }
        sleep(Duration::from_millis(random.random_range(0..120))).await;
        drop(alice);
        engine.kill().await;
        for send in sends {
            // Heard or not: both are fine, as long as asking again gives one truth.
            let _ = send.await.expect("joined");
        }
    }
    let started = Instant::now();
    let mut engine = Process::with(state.path(), spec).await;
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "ready again in {:?}",
        started.elapsed()
    );
    let alice = engine.alice().await;
    let before = model.count();
    for (request, task) in &mut known {
        let found = timeout(Duration::from_secs(30), send(&alice, request))
            .await
            .expect("no task hangs");
        assert_eq!(found.status.state, TaskState::Completed, "{found:?}");
        assert_eq!(crate::support::answer(&found), "a b c d e f");
        *task = Some(found.id);
    }
    println!(
        "{} model calls after the last start for {} tasks",
        model.count() - before,
        known.len()
    );
    let mut ids: Vec<String> = known.iter().filter_map(|(_, id)| id.clone()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), known.len(), "each message began one task");
    while records.len() < known.len() {
        let run = engine.run_record().await;
        let before = records.insert(run.task_id.clone(), (run.sequence, run.id.clone()));
        assert!(
            before.is_none_or(|b| b == (run.sequence, run.id)),
            "one record a task"
        );
    }
    let mut sequences: Vec<u64> = records.values().map(|(sequence, _)| *sequence).collect();
    sequences.sort_unstable();
    assert!(
        sequences.iter().copied().eq(1..=known.len() as u64),
        "gapless: {sequences:?}"
    );
}
