//! A runtime with scripted engines (`runtime/tests/fake_engine.py`), for the tests of this crate.

use roadstead_contract::run::RunRecord;
use roadstead_plan::{Abilities, Action, Content, EngineUnit, Item, Observed, desired};
use roadstead_runtime::{Config, EngineStatus, Local, RunSink};
use serde_json::{Value, json};
use std::{error::Error, path::PathBuf, sync::Arc, time::Duration};
use tokio::time::Instant;

struct NoOutbox;

#[async_trait::async_trait]
impl RunSink for NoOutbox {
    async fn keep(&self, _: Vec<RunRecord>) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

pub(crate) struct Bench {
    folder: tempfile::TempDir,
    pub(crate) local: Local,
}

pub(crate) fn fake_engine() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../runtime/tests/fake_engine.py")
}

/// A document as the plan takes it.
pub(crate) fn item(uid: &str, generation: u64, kind: &str, name: &str, spec: &Value) -> Item {
    let json = document(kind, name, spec);
    let parsed =
        roadstead_contract::documents::parse_value(name, &json, &"support".parse().unwrap()).unwrap();
    Item {
        uid: uid.to_owned(),
        generation,
        content: Content::Document(Box::new(parsed.document)),
    }
}

pub(crate) fn document(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "roadstead.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "project": "support"},
        "spec": spec})
}

pub(crate) fn model() -> Value {
    json!({"provider": "openaiCompatible", "model": "m", "endpoint": "http://127.0.0.1:1/v1"})
}

pub(crate) fn agent(description: &str) -> Value {
    json!({"instructions": "Help.", "model": "m", "description": description})
}

pub(crate) fn unit(uid: &str, generation: u64, description: &str) -> EngineUnit {
    let items = [
        item("m1", 1, "Model", "m", &model()),
        item(
            uid,
            generation,
            "Agent",
            &format!("agent-{uid}"),
            &agent(description),
        ),
    ];
    let mut plan = desired(&items, &Observed::default(), &Abilities::local([]));
    assert_eq!(plan.problems, []);
    plan.engines.remove(uid).unwrap()
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::new(fake_engine(), folder.path().to_path_buf());
        let local = Local::open(config, Arc::new(NoOutbox)).unwrap();
        Self { folder, local }
    }

    pub(crate) fn start(&self, uid: &str, description: &str) {
        self.local
            .take(vec![Action::Start(Box::new(unit(uid, 1, description)))]);
    }

    /// Starts an engine and waits for it.
    pub(crate) async fn ready(&self, uid: &str) -> EngineStatus {
        self.start(uid, "");
        self.until(uid, "ready", EngineStatus::ready).await
    }

    pub(crate) async fn until(
        &self,
        uid: &str,
        what: &str,
        is: impl Fn(&EngineStatus) -> bool,
    ) -> EngineStatus {
        let mut changes = self.local.changes();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.local.status(uid);
            if let Some(status) = status.clone().filter(|s| is(s)) {
                return status;
            }
            let next = tokio::time::timeout_at(deadline, changes.changed()).await;
            assert!(next.is_ok(), "{uid} did not become {what}: {status:?}");
        }
    }

    /// What the scripted engine wrote down.
    pub(crate) fn heard(&self, uid: &str) -> Vec<Value> {
        let file = self.folder.path().join("agents").join(uid).join("journal/heard");
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }
}

/// Waits until something outside holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
