//! The cluster agent with the real engine and a scripted model server: a whole answer without a hub.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use roadstead_agent::{Agent, Config};
use roadstead_contract::{fleet::document_digest, run::RunRecord};
use roadstead_inbox::{Batch, Change, Document, Inbox, InboxError, Purpose};
use roadstead_model_server::{ModelServer, Reply, Script, When};
use roadstead_runtime::EngineStatus;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;

/// The workspace's own, which `cargo build --workspace --bins` makes.
fn real_engine() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let engine = test.parent().unwrap().with_file_name("roadstead-engine");
    assert!(
        engine.is_file(),
        "{} is missing: run `make build` first",
        engine.display()
    );
    engine
}

fn upsert(revision: u64, uid: &str, kind: &str, name: &str, spec: &Value) -> Change {
    let json = json!({"apiVersion": "roadstead.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "project": "support"}, "spec": spec});
    let json = serde_json::to_vec(&json).unwrap();
    Change::Upsert {
        revision,
        document: Document {
            uid: uid.to_owned(),
            generation: revision,
            digest: document_digest(&json),
            kind: kind.to_owned(),
            project: "support".to_owned(),
            name: name.to_owned(),
            json,
        },
    }
}

async fn inbox(state: &Path) -> Inbox {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Inbox::open(&state.join("inbox.db")) {
            Err(InboxError::InUse) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return opened.unwrap(),
        }
    }
}

/// An agent with a helper, and the model server behind both.
struct World {
    folder: tempfile::TempDir,
    model: ModelServer,
}

impl World {
    async fn new() -> Self {
        let script = Script::strict()
            .rule(
                When::user("delegate").tool_results(1),
                Reply::text("The helper has answered."),
            )
            .rule(
                When::user("delegate"),
                Reply::call("agent_helper", json!({"message": "help please"})),
            )
            .rule(When::user("help please"), Reply::text("Here is help."))
            .rule(When::user("hello"), Reply::text("Hello to you."));
        let model = ModelServer::start(script).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let spec = json!({"provider": "openaiCompatible", "model": "m", "endpoint": model.openai_url()});
        let changes = vec![
            upsert(1, "m1", "Model", "m", &spec),
            upsert(
                2,
                "a1",
                "Agent",
                "notes",
                &json!({"instructions": "Help.", "model": "m",
                "agents": [{"name": "helper"}]}),
            ),
            upsert(
                3,
                "a2",
                "Agent",
                "helper",
                &json!({"instructions": "Help.", "model": "m",
                "description": "Gives help."}),
            ),
        ];
        let batch = Batch {
            from: 0,
            through: 3,
            purpose: Purpose::Delta,
            changes,
        };
        inbox(folder.path()).await.apply(batch).await.unwrap();
        Self { folder, model }
    }

    async fn agent(&self) -> Agent {
        let hub = "127.0.0.1:1".to_owned();
        let mut config = Config::new(hub, self.folder.path().to_path_buf(), real_engine());
        config.grace = Duration::from_secs(2);
        Agent::start(config).await.unwrap()
    }

    /// The run records in the outbox, once there are `count`: what an engine had not handed on when it ended, it
    /// hands on after the next start.
    async fn runs(&self, count: usize) -> Vec<RunRecord> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let waiting = inbox(self.folder.path())
                .await
                .pending_runs(0, 100)
                .await
                .unwrap();
            if waiting.len() >= count {
                return waiting
                    .iter()
                    .map(|run| serde_json::from_slice(&run.json).unwrap())
                    .collect();
            }
            assert!(Instant::now() < deadline, "only {} run records", waiting.len());
            let agent = self.agent().await;
            until(&agent, "a1", "ready", EngineStatus::ready).await;
            agent.shutdown().await;
        }
    }

    /// Sends a message as a local caller does: address and token are in files.
    async fn send(&self, name: &str, text: &str) -> Value {
        let published = self.folder.path().join("engines").join(format!("support.{name}"));
        let address = fs::read_to_string(published.join("address")).unwrap();
        let token = fs::read_to_string(published.join("token")).unwrap();
        let asked = json!({"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message":
            {"messageId": format!("m-{text}"), "role": "ROLE_USER", "parts": [{"text": text}]}}});
        let answer = reqwest::Client::new()
            .post(format!("http://{address}/"))
            .bearer_auth(token)
            .header("a2a-version", "1.0")
            .json(&asked)
            .send();
        answer.await.unwrap().json().await.unwrap()
    }
}

async fn until(agent: &Agent, uid: &str, what: &str, is: impl Fn(&EngineStatus) -> bool) -> EngineStatus {
    let mut changes = agent.engine_changes();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = agent.engines().remove(uid);
        if let Some(status) = status.clone().filter(|s| is(s)) {
            return status;
        }
        let next = tokio::time::timeout_at(deadline, changes.changed()).await;
        assert!(next.is_ok(), "{uid} did not become {what}: {status:?}");
    }
}

#[tokio::test]
async fn an_answer_comes_without_a_hub_and_its_run_record_waits_on_disk() {
    let world = World::new().await;
    let agent = world.agent().await;
    until(&agent, "a1", "ready", EngineStatus::ready).await;
    let answer = world.send("notes", "hello").await;
    assert!(answer.to_string().contains("Hello to you."), "{answer}");
    assert!(world.model.count() >= 1);
    agent.shutdown().await;
    let records = world.runs(1).await;
    let of: Vec<_> = records
        .iter()
        .map(|r| (r.agent_uid.as_str(), r.generation, r.subject.as_str()))
        .collect();
    assert_eq!(of, [("a1", 2, "local")]);
}

#[tokio::test]
async fn s88_an_engine_calls_another_with_a_token_of_its_own() {
    let world = World::new().await;
    let agent = world.agent().await;
    until(&agent, "a1", "ready", EngineStatus::ready).await;
    until(&agent, "a2", "ready", EngineStatus::ready).await;
    let answer = world.send("notes", "delegate").await;
    assert!(
        answer.to_string().contains("The helper has answered."),
        "{answer}"
    );
    agent.shutdown().await;
    let records = world.runs(2).await;
    let mut uids: Vec<&str> = records.iter().map(|record| record.agent_uid.as_str()).collect();
    uids.sort_unstable();
    assert_eq!(uids, ["a1", "a2"]);
}

#[tokio::test]
async fn a_killed_engine_is_ready_again_within_five_seconds() {
    let world = World::new().await;
    let agent = world.agent().await;
    let mut pid = until(&agent, "a1", "ready", EngineStatus::ready).await.pid;
    for round in 0..10 {
        let killed = std::process::Command::new("kill")
            .args(["-9", &pid.unwrap().to_string()])
            .status();
        assert!(killed.unwrap().success());
        let since = Instant::now();
        pid = until(&agent, "a1", "back", |s| s.ready() && s.pid != pid)
            .await
            .pid;
        assert!(
            since.elapsed() < Duration::from_secs(5),
            "round {round}: {:?}",
            since.elapsed()
        );
    }
    let answer = world.send("notes", "hello").await;
    assert!(answer.to_string().contains("Hello to you."), "{answer}");
    agent.shutdown().await;
}
