//! The fleet protocol, both sides together: a hub over the model in memory, cluster agents, a client and a hub that
//! say whatever a test wants; over loopback, and over a simulated network.

pub mod agent;
pub mod hub;
pub mod raw;
pub mod scripted;
pub mod seeds;
pub mod simulated;
pub mod simulator;

use bytes::Bytes;
use roadstead_contract::run::{Outcome, RunRecord};
use roadstead_domain::{ClusterId, FakeClock, SeededRandom, TenantId};
use roadstead_fleet::memory::Document;
use std::{collections::BTreeMap, future::Future, time::Duration};

/// Longest wait for a state in a test.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `reached` gives something.
///
/// # Panics
/// When it does not in time; `what` says what was waited for.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut reached: impl FnMut() -> F) -> T {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = reached().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Installs the TLS provider; harmless when repeated.
pub fn install_crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// The `n`th tenant's id.
#[must_use]
pub fn tenant(n: u64) -> TenantId {
    TenantId::generate(&FakeClock::at(1_000), &SeededRandom::new(n))
}

/// The `n`th cluster's id.
#[must_use]
pub fn cluster(n: u64) -> ClusterId {
    ClusterId::generate(&FakeClock::at(2_000), &SeededRandom::new(n))
}

/// A document of the model.
#[must_use]
pub fn prompt(name: &str, text: &str) -> Document {
    let json = serde_json::json!({"kind": "Prompt", "metadata": {"name": name}, "spec": {"text": text}});
    Document {
        kind: "Prompt".to_owned(),
        project: "default".to_owned(),
        name: name.to_owned(),
        json: Bytes::from(json.to_string()),
    }
}

/// A run record.
#[must_use]
pub fn run(id: &str, agent_uid: &str, sequence: u64) -> RunRecord {
    RunRecord {
        id: id.to_owned(),
        sequence,
        agent_uid: agent_uid.to_owned(),
        generation: 1,
        task_id: "task".to_owned(),
        session_id: "session".to_owned(),
        subject: "user".to_owned(),
        started_at_ms: 1,
        ended_at_ms: 2,
        outcome: Outcome::Completed,
        reason: String::new(),
        model: "model".to_owned(),
        model_calls: 1,
        input_tokens: 1,
        output_tokens: 1,
        cached_input_tokens: 0,
        estimated: false,
        cost_micros: 0,
        currency: String::new(),
        tools: BTreeMap::new(),
        trace_id: String::new(),
    }
}
