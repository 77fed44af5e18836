//! The whole cluster agent against a hub: the real engine, gRPC with mutual TLS, and back.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use roadstead_agent::{Agent, Config};
use roadstead_contract::{
    fleet::CommandCode,
    logs::{Line, Query},
};
use roadstead_domain::{Clock as _, SystemClock};
use roadstead_fleet::{TunnelError, TunnelKind, TunnelRequest, TunnelResponse, memory::Document};
use roadstead_model_server::{ModelServer, Reply, Script, When};
use roadstead_simulation::{cluster, eventually, hub::Hub};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, time::Duration};
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

fn document(kind: &str, name: &str, spec: &Value) -> Document {
    let json = json!({"apiVersion": "roadstead.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "project": "support"}, "spec": spec});
    Document {
        kind: kind.to_owned(),
        project: "support".to_owned(),
        name: name.to_owned(),
        json: Bytes::from(json.to_string()),
    }
}

struct World {
    hub: Hub,
    model: ModelServer,
    state: tempfile::TempDir,
    agent: Agent,
}

impl World {
    async fn new() -> Self {
        let script = Script::strict()
            .rule(
                When::user("slowly"),
                Reply::chunks(&["a"; 200]).delay(Duration::from_millis(50)),
            )
            .rule(
                When::user("hello").model("m2"),
                Reply::text("Hello from the second."),
            )
            .rule(When::user("hello"), Reply::text("Hello from the first."));
        let model = ModelServer::start(script).await.unwrap();
        let hub = Hub::start().await;
        let state = tempfile::tempdir().unwrap();
        let mut config = Config::new(hub.address.to_string(), state.path().to_path_buf(), real_engine());
        config.join = Some(hub.token(1, "join"));
        config.grace = Duration::from_secs(1);
        let agent = Agent::start(config).await.unwrap();
        let world = Self {
            hub,
            model,
            state,
            agent,
        };
        world.place(&[
            ("m1", Some(world.a_model("m1"))),
            ("a1", Some(agent_document("m"))),
        ]);
        world.applied().await;
        world
    }

    fn a_model(&self, name: &str) -> Document {
        let endpoint = self.model.openai_url();
        document(
            "Model",
            "m",
            &json!({"provider": "openaiCompatible", "model": name, "endpoint": endpoint}),
        )
    }

    fn place(&self, changes: &[(&str, Option<Document>)]) -> u64 {
        let changes: Vec<_> = changes
            .iter()
            .map(|(uid, doc)| ((*uid).to_owned(), doc.clone()))
            .collect();
        self.hub.store.place(cluster(1), &changes)
    }

    /// Waits until the hub knows that everything it wants is applied.
    async fn applied(&self) {
        eventually("everything is applied", || async {
            let at = self.hub.store.cluster(cluster(1))?;
            (at.applied == at.revision).then_some(())
        })
        .await;
    }

    async fn call(
        &self,
        kind: TunnelKind,
        method: &str,
        path: &str,
        body: Value,
    ) -> Result<TunnelResponse, TunnelError> {
        let request = TunnelRequest {
            kind,
            agent_uid: "a1".to_owned(),
            method: method.to_owned(),
            path: path.to_owned(),
            headers: vec![
                ("content-type".to_owned(), b"application/json".to_vec()),
                ("a2a-version".to_owned(), b"1.0".to_vec()),
                // The hub of this test signs no tokens: it takes the one of local callers, as a stolen one would be.
                (
                    "authorization".to_owned(),
                    format!("Bearer {}", self.token()).into_bytes(),
                ),
            ],
        };
        let chunks = if body.is_null() {
            Vec::new()
        } else {
            vec![Bytes::from(body.to_string())]
        };
        let deadline = Duration::from_secs(20);
        let tunnels = self.hub.fleet.tunnels();
        tunnels
            .call(cluster(1), request, stream::iter(chunks).boxed(), deadline)
            .await
    }

    fn token(&self) -> String {
        fs::read_to_string(self.state.path().join("engines/support.notes/token")).unwrap_or_default()
    }

    async fn ask(&self, text: &str, id: &str) -> String {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message":
            {"messageId": id, "role": "ROLE_USER", "parts": [{"text": text}]}}});
        let answer = self.call(TunnelKind::A2a, "POST", "/", body).await.unwrap();
        let chunks: Vec<_> = answer.body.map(Result::unwrap).collect().await;
        String::from_utf8(chunks.concat()).unwrap()
    }

    fn phase(&self, uid: &str) -> Option<(u64, String)> {
        let at = self.hub.store.cluster(cluster(1))?;
        let seen = at.observations.get(uid)?;
        Some((seen.generation, seen.phase.clone()))
    }

    async fn end(self) {
        self.agent.shutdown().await;
        self.hub.stop().await;
    }
}

fn agent_document(model: &str) -> Document {
    document(
        "Agent",
        "notes",
        &json!({"instructions": "Help.", "model": model}),
    )
}

#[tokio::test]
async fn a_document_becomes_an_answer_and_a_run_record() {
    let world = World::new().await;
    let answer = world.ask("hello", "one").await;
    assert!(answer.contains("Hello from the first."), "{answer}");
    let runs = eventually("the run record arrives", || async {
        let runs = world.hub.store.runs();
        (!runs.is_empty()).then_some(runs)
    })
    .await;
    assert_eq!(
        (runs[0].1.agent_uid.as_str(), runs[0].1.subject.as_str()),
        ("a1", "local")
    );
    eventually("the status says so", || async {
        (world.phase("a1")? == (1, "Ready".to_owned())).then_some(())
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn a_changed_model_serves_without_a_restart() {
    let world = World::new().await;
    let before = world.agent.engines()["a1"].pid;
    world.place(&[("m1", Some(world.a_model("m2")))]);
    world.applied().await;
    let answer = world.ask("hello", "one").await;
    assert!(answer.contains("Hello from the second."), "{answer}");
    assert_eq!(world.agent.engines()["a1"].pid, before);
    world.end().await;
}

#[tokio::test]
async fn a_bad_document_is_refused_and_holds_up_nobody() {
    let world = World::new().await;
    world.place(&[
        ("a1", Some(agent_document("gone"))),
        (
            "a2",
            Some(document(
                "Agent",
                "other",
                &json!({"instructions": "Help.", "model": "m"}),
            )),
        ),
    ]);
    world.applied().await;
    let refused = eventually("the refusal arrives", || async {
        let at = world.hub.store.cluster(cluster(1))?;
        at.observations
            .get("a1")
            .filter(|seen| seen.phase == "Failed")
            .cloned()
    })
    .await;
    assert_eq!(refused.generation, 2);
    assert!(
        refused
            .conditions
            .iter()
            .any(|c| c.message.contains("spec.model")),
        "{refused:?}"
    );
    eventually("the other runs", || async {
        world.agent.engines().get("a2")?.ready().then_some(())
    })
    .await;
    let answer = world.ask("hello", "one").await;
    assert!(
        answer.contains("Hello from the first."),
        "the last good one goes on: {answer}"
    );

    // Mended: the refusal is over.
    world.place(&[("a1", Some(agent_document("m")))]);
    world.applied().await;
    eventually("the status says so", || async {
        (world.phase("a1")? == (3, "Ready".to_owned())).then_some(())
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn what_leaves_the_cluster_ends_there() {
    let world = World::new().await;
    let pid = world.agent.engines()["a1"].pid.unwrap();
    world.place(&[("a1", None)]);
    world.applied().await;
    eventually("the engine ends", || async {
        world.agent.engines().is_empty().then_some(())
    })
    .await;
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
    let gone = world
        .call(TunnelKind::A2a, "POST", "/", json!({}))
        .await
        .unwrap_err();
    assert!(matches!(gone, TunnelError::NotFound(_)), "{gone}");
    world.end().await;
}

#[tokio::test]
async fn a_stream_flows_and_leaving_cancels_at_the_model() {
    let world = World::new().await;
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": {"message":
        {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "slowly"}]}}});
    let mut answer = world.call(TunnelKind::A2a, "POST", "/", body).await.unwrap();
    assert_eq!(answer.status, 200);
    let first = answer.body.next().await.unwrap().unwrap();
    assert!(
        first.starts_with(b"data:") || first.starts_with(b"event:") || first.starts_with(b"id:"),
        "{first:?}"
    );
    // More comes while the model still speaks.
    answer.body.next().await.unwrap().unwrap();
    assert_eq!(world.model.open(), 1);
    drop(answer);
    // Leaving a stream does not end the task: that is what A2A's CancelTask is for. The engine goes on in peace.
    assert!(world.agent.engines()["a1"].ready());
    world.end().await;
}

#[tokio::test]
async fn the_hub_reads_an_engines_log_as_it_is_written() {
    let world = World::new().await;
    let path = Query {
        tail: 1000,
        follow: true,
    }
    .path();
    let answer = world
        .call(TunnelKind::Logs, "GET", &path, Value::Null)
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
    let mut body = answer.body;
    let mut held = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let chunk = tokio::time::timeout_at(deadline, body.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        held.extend_from_slice(&chunk);
        if let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line: Line = serde_json::from_slice(&held[..end]).unwrap();
            assert!(line.at_ms > 0 && !line.text.is_empty());
            break;
        }
    }
    world.end().await;
}

#[tokio::test]
async fn run_records_of_a_time_without_a_hub_arrive_afterwards() {
    let world = World::new().await;
    let World {
        hub,
        model,
        state,
        agent,
    } = world;
    let address = fs::read_to_string(state.path().join("engines/support.notes/address")).unwrap();
    let token = fs::read_to_string(state.path().join("engines/support.notes/token")).unwrap();
    hub.store.set_away(true);
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message":
        {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "hello"}]}}});
    let client = reqwest::Client::new();
    let asked = client
        .post(format!("http://{address}/"))
        .bearer_auth(token)
        .header("a2a-version", "1.0")
        .json(&body);
    let answer = asked.send().await.unwrap().text().await.unwrap();
    assert!(answer.contains("Hello from the first."), "{answer}");
    assert!(hub.store.runs().is_empty());
    hub.store.set_away(false);
    eventually("the run record arrives", || async {
        (hub.store.runs().len() == 1).then_some(())
    })
    .await;
    agent.shutdown().await;
    hub.stop().await;
    drop(model);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gives_an_engine_another_process() {
    let world = World::new().await;
    let before = world.agent.engines()["a1"].clone();
    let answer = world.ask("hello", "before");
    assert!(answer.await.contains("Hello from the first."));
    let expires_ms = SystemClock.now_ms() + 60_000;
    for id in ["one", "two"] {
        world.hub.store.command(cluster(1), id, "a1", expires_ms);
    }
    let results = eventually("every result", || async {
        let results = world.hub.store.results(cluster(1));
        results.values().all(Option::is_some).then_some(results)
    });
    let results = results.await;
    assert_eq!(results["one"], Some(CommandCode::Succeeded));
    assert_eq!(results["two"], Some(CommandCode::Succeeded));
    let after = world.agent.engines()["a1"].clone();
    assert_ne!((after.pid, after.process), (before.pid, before.process));
    // Two that come together may be one new process, and never more than two.
    assert!((before.restarts + 1..=before.restarts + 2).contains(&after.restarts));
    assert!(
        world
            .ask("hello", "after")
            .await
            .contains("Hello from the first.")
    );
    world.end().await;
}
