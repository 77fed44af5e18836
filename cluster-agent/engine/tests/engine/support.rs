//! An engine process with the runtime's end of its pipe.

use a2a::{
    AgentCard, AgentInterface, Message, Part, Role, SendMessageRequest, SendMessageResponse,
    TRANSPORT_PROTOCOL_JSONRPC, Task, TaskState,
};
use a2a_client::{A2AClient, A2AClientFactory, Transport, auth::AuthInterceptor};
use roadstead_contract::{
    bundle::Bundle,
    control::{Apply, Caller, FromEngine, Peer, ToEngine, Trust},
    run::RunRecord,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, path::Path, process::Stdio, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

pub(crate) const ALICE: &str = "alice-token-0123456789";
pub(crate) const BOB: &str = "bob-token-0123456789";
pub(crate) const ENGINE: &str = "engine-token-0123456789";

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn hash(token: &str) -> String {
    hex::encode(Sha256::digest(token))
}

pub(crate) fn trust() -> Trust {
    let caller = |token, subject: &str, delegates| Caller {
        token_sha256: hash(token),
        subject: subject.to_owned(),
        delegates,
        approve: false,
    };
    Trust {
        jwks: None,
        issuer: None,
        callers: vec![
            caller(ALICE, "alice", false),
            caller(BOB, "bob", false),
            caller(ENGINE, "agent:support/caller", true),
        ],
    }
}

/// An agent over the model server at `endpoint`, with `more` merged over its spec.
pub(crate) fn bundle(endpoint: &str, more: Value) -> Bundle {
    let mut agent = json!({"instructions": "Be brief.", "model": "fast", "description": "Helps."});
    if let (Some(agent), Value::Object(more)) = (agent.as_object_mut(), more) {
        agent.extend(more);
    }
    serde_json::from_value(json!({
        "project": "support", "name": "helper", "uid": "agent-1", "generation": 1, "agent": agent,
        "models": {"fast": {"provider": "openaiCompatible", "model": "scripted", "endpoint": endpoint}},
        "toolServers": {}, "prompts": {},
    }))
    .expect("a bundle")
}

pub(crate) fn apply(bundle: Bundle, trust: Trust) -> ToEngine {
    ToEngine::Apply(Box::new(Apply {
        bundle,
        secrets: BTreeMap::new(),
        trust,
    }))
}

/// `roadstead-engine serve`.
pub(crate) struct Process {
    pub(crate) child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    pub(crate) address: String,
    /// Run records that came by while something else was waited for.
    pub(crate) runs: Vec<RunRecord>,
}

impl Process {
    pub(crate) async fn start(state: &Path) -> Self {
        Self::of(Command::new(env!("CARGO_BIN_EXE_roadstead-engine")), state).await
    }

    /// The same of an engine that `command` starts.
    pub(crate) async fn of(mut command: Command, state: &Path) -> Self {
        let mut child = command
            .args(["serve", "--state"])
            .arg(state)
            .env("ROADSTEAD_LOG", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("started");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut process = Self {
            child,
            input,
            output,
            address: String::new(),
            runs: Vec::new(),
        };
        let FromEngine::Listening { address } = process.frame().await else {
            panic!("expected an address first")
        };
        process.address = address;
        process
    }

    /// Starts and hands over a bundle.
    pub(crate) async fn with(state: &Path, bundle: Bundle) -> Self {
        let mut process = Self::start(state).await;
        process.tell(&apply(bundle, trust())).await;
        process
            .until(|frame| matches!(frame, FromEngine::Applied { .. }))
            .await;
        process
    }

    /// Tells where peers are, and waits until it is known: the answer to a revision comes after what was said before.
    pub(crate) async fn meet(&mut self, peers: BTreeMap<String, Peer>, bundle: Bundle) {
        self.tell(&ToEngine::Peers { peers }).await;
        self.tell(&apply(bundle, trust())).await;
        self.until(|frame| matches!(frame, FromEngine::Applied { .. }))
            .await;
    }

    pub(crate) async fn tell(&mut self, frame: &ToEngine) {
        let line = serde_json::to_string(frame).expect("JSON");
        self.tell_raw(&line).await;
    }

    pub(crate) async fn tell_raw(&mut self, line: &str) {
        let input = self.input.as_mut().expect("open");
        input
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("written");
    }

    pub(crate) async fn frame(&mut self) -> FromEngine {
        let line = timeout(PATIENCE, self.output.next_line()).await.expect("in time");
        let line = line.expect("readable").expect("not the end");
        serde_json::from_str(&line).expect("a frame")
    }

    /// The first frame that `holds`; run records that come before are kept.
    pub(crate) async fn until(&mut self, holds: impl Fn(&FromEngine) -> bool) -> FromEngine {
        loop {
            let frame = self.frame().await;
            if holds(&frame) {
                return frame;
            }
            if let FromEngine::Run(run) = frame {
                self.runs.push(*run);
            }
        }
    }

    pub(crate) async fn run_record(&mut self) -> RunRecord {
        if !self.runs.is_empty() {
            return self.runs.remove(0);
        }
        let FromEngine::Run(run) = self.until(|f| matches!(f, FromEngine::Run(_))).await else {
            unreachable!()
        };
        *run
    }

    /// Ends the input: the runtime is gone.
    pub(crate) fn hang_up(&mut self) {
        self.input = None;
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.start_kill().expect("killed");
        self.child.wait().await.expect("gone");
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn card(&self) -> AgentCard {
        let card = http()
            .get(self.url("/.well-known/agent-card.json"))
            .bearer_auth(ALICE)
            .send()
            .await;
        card.expect("answered").json().await.expect("a card")
    }

    /// A client of `token`'s bearer over one binding.
    pub(crate) async fn client(&self, token: &str, binding: &str) -> A2AClient<Box<dyn Transport>> {
        let factory = A2AClientFactory::builder()
            .register(Arc::new(a2a_grpc::GrpcTransportFactory::new()))
            .preferred_bindings(vec![binding.to_owned()])
            .with_interceptor(Arc::new(AuthInterceptor::bearer(token)))
            .build();
        let mut card = self.card().await;
        card.supported_interfaces
            .retain(|i: &AgentInterface| i.protocol_binding == binding);
        factory.create_from_card(&card).await.expect("a client")
    }

    pub(crate) async fn alice(&self) -> A2AClient<Box<dyn Transport>> {
        self.client(ALICE, TRANSPORT_PROTOCOL_JSONRPC).await
    }
}

pub(crate) fn http() -> reqwest::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

pub(crate) fn text(text: &str) -> SendMessageRequest {
    let message = Message::new(Role::User, vec![Part::text(text)]);
    SendMessageRequest {
        message,
        configuration: None,
        metadata: None,
        tenant: None,
    }
}

pub(crate) async fn send(client: &A2AClient<Box<dyn Transport>>, request: &SendMessageRequest) -> Task {
    match client.send_message(request).await.expect("answered") {
        SendMessageResponse::Task(task) => task,
        SendMessageResponse::Message(message) => panic!("expected a task, found {message:?}"),
    }
}

pub(crate) fn answer(task: &Task) -> String {
    let artifacts = task.artifacts.iter().flatten();
    artifacts
        .flat_map(|a| &a.parts)
        .filter_map(Part::as_text)
        .collect()
}

pub(crate) fn assert_completed(task: &Task, expected: &str) {
    assert_eq!(
        (&task.status.state, answer(task).as_str()),
        (&TaskState::Completed, expected),
        "{task:?}"
    );
}
