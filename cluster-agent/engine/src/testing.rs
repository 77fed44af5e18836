//! An engine in a test: a scripted model, scripted tools, a clock that is set, and a journal in a temporary folder.

use crate::{
    auth::Mode,
    clock::Clock,
    engine::{Engine, Setup},
    journal::{InPart, Options},
    model::{
        ChatMessage, ChatRequest, ErrorClass, HttpClients, LoadError, Model, ModelError, ModelEvent,
        ModelFactory, ModelStream, StopReason, ToolCall, Usage,
    },
    revision::Factories,
    secrets::Secrets,
    tasks::{Caller, Inbound, Refusal, Sent, TaskView},
    tools::{Listing, ResultPart, ToolError, ToolFactory, ToolInfo, ToolRequest, ToolResult, Toolbox},
};
use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use roadstead_contract::{
    bundle::Bundle,
    control::Trust,
    documents::{ModelSpec, Prices},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A clock that stands still until it is set.
#[derive(Debug)]
pub(crate) struct SetClock(pub(crate) AtomicI64);

impl Clock for SetClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What the model does in one call.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Events(Vec<ModelEvent>),
    /// Events, then this error.
    Break(Vec<ModelEvent>, ErrorClass),
    /// Events, then nothing until the call is dropped.
    Hang(Vec<ModelEvent>),
    /// Reads on in the last result that was cut.
    Reads {
        offset: usize,
        length: Option<usize>,
    },
    /// A fault of the engine's own.
    Panic,
}

/// The reference that a result which was cut names.
pub(crate) fn reference(told: &str) -> Option<&str> {
    let (_, rest) = told.rsplit_once("reference \"")?;
    rest.split('"').next()
}

fn reads(request: &ChatRequest, offset: usize, length: Option<usize>) -> Act {
    let found = request.messages.iter().rev().find_map(|m| match m {
        ChatMessage::Tool { text, .. } => reference(text),
        _ => None,
    });
    let mut arguments = json!({"reference": found, "offset": offset});
    if let Some(length) = length {
        arguments["length"] = length.into();
    }
    calls(&[call(&format!("read-{offset}"), "read_result", arguments)])
}

pub(crate) fn say(text: &str) -> Act {
    Act::Events(vec![
        ModelEvent::Text(text.to_owned()),
        ModelEvent::Usage(Usage {
            input: 10,
            output: 5,
            cached: 2,
            estimated: false,
        }),
        ModelEvent::Stop(StopReason::End),
    ])
}

pub(crate) fn call(id: &str, name: &str, arguments: Value) -> ToolCall {
    ToolCall {
        id: id.to_owned(),
        name: name.to_owned(),
        arguments,
        problem: None,
    }
}

pub(crate) fn calls(calls: &[ToolCall]) -> Act {
    let mut events: Vec<ModelEvent> = calls.iter().cloned().map(ModelEvent::ToolCall).collect();
    events.push(ModelEvent::Usage(Usage {
        input: 10,
        output: 5,
        cached: 0,
        estimated: false,
    }));
    events.push(ModelEvent::Stop(StopReason::ToolCalls));
    Act::Events(events)
}

pub(crate) fn fails(class: ErrorClass) -> Act {
    Act::Break(Vec::new(), class)
}

/// The script of every model in an engine, and what they were asked.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) acts: Mutex<VecDeque<Act>>,
    pub(crate) asked: Mutex<Vec<(String, ChatRequest)>>,
    /// Streams that are open now.
    pub(crate) open: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct ScriptedModel {
    reference: String,
    spec: ModelSpec,
    script: Arc<Script>,
}

struct OpenStream(Arc<AtomicUsize>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Model for ScriptedModel {
    fn reference(&self) -> &str {
        &self.reference
    }
    fn name(&self) -> &str {
        &self.spec.model
    }
    fn provider(&self) -> &'static str {
        "scripted"
    }
    fn prices(&self) -> Option<&Prices> {
        self.spec.prices.as_ref()
    }
    fn timeout(&self) -> Option<Duration> {
        self.spec.options.timeout.as_ref().map(|t| t.get())
    }
    fn stream(&self, request: Arc<ChatRequest>, _: Instant) -> ModelStream {
        self.script
            .asked
            .lock()
            .push((self.reference.clone(), (*request).clone()));
        let act = self
            .script
            .acts
            .lock()
            .pop_front()
            .unwrap_or_else(|| say("the script is over"));
        let act = match act {
            Act::Reads { offset, length } => reads(&request, offset, length),
            act => act,
        };
        self.script.open.fetch_add(1, Ordering::SeqCst);
        let open = OpenStream(Arc::clone(&self.script.open));
        let (events, end, hang) = match act {
            Act::Events(events) => (events, None, false),
            Act::Break(events, class) => (events, Some(class), false),
            Act::Hang(events) => (events, None, true),
            Act::Panic | Act::Reads { .. } => panic!("scripted"),
        };
        let error = |class| {
            Err(ModelError {
                class,
                message: "scripted".to_owned(),
            })
        };
        let items: Vec<_> = events.into_iter().map(Ok).chain(end.map(error)).collect();
        let rest = if hang {
            stream::pending().left_stream()
        } else {
            stream::empty().right_stream()
        };
        stream::iter(items)
            .chain(rest)
            .map(move |item| {
                let _ = &open;
                item
            })
            .boxed()
    }
}

#[derive(Debug)]
struct ScriptedModels(Arc<Script>);

impl ModelFactory for ScriptedModels {
    fn load(&self, bundle: &Bundle, _: &Secrets) -> Result<Vec<Arc<dyn Model>>, LoadError> {
        let make = |reference: &roadstead_contract::documents::Reference| {
            let reference = reference.to_string();
            let missing = || LoadError {
                path: "spec.model".to_owned(),
                reason: "not there".to_owned(),
            };
            let spec = bundle.models.get(&reference).cloned().ok_or_else(missing)?;
            Ok(Arc::new(ScriptedModel {
                reference,
                spec,
                script: Arc::clone(&self.0),
            }) as Arc<dyn Model>)
        };
        bundle.agent.model.as_slice().iter().map(make).collect()
    }
}

/// What a tool does.
#[derive(Clone, Debug)]
pub(crate) enum Does {
    Answer(String),
    /// A picture of so many bytes of Base64, and a word.
    Picture(usize),
    Fail(ToolError),
    /// Answers after so long, or is cancelled.
    Slow(Duration, String),
    /// Never answers and does not listen to a cancel.
    Deaf,
}

/// The tools of an engine, and which calls reached them.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    pub(crate) offered: Mutex<Arc<Listing>>,
    pub(crate) does: Mutex<BTreeMap<String, Does>>,
    pub(crate) called: Mutex<Vec<ToolRequest>>,
    pub(crate) at_once: AtomicUsize,
    pub(crate) most_at_once: AtomicUsize,
}

impl Tools {
    pub(crate) fn offer(&self, tools: Vec<ToolInfo>) {
        *self.offered.lock() = Arc::new(Listing {
            tools,
            unavailable: Vec::new(),
        });
    }
    pub(crate) fn names(&self) -> Vec<String> {
        self.called.lock().iter().map(|c| c.tool.clone()).collect()
    }
}

pub(crate) fn tool(name: &str) -> ToolInfo {
    ToolInfo {
        server: "git".to_owned(),
        name: name.to_owned(),
        description: format!("Does {name}."),
        input_schema: Arc::new(json!({
            "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})),
        read_only: false,
        idempotent: false,
        trusted: false,
        pinned: false,
        digest: format!("digest of {name}"),
    }
}

#[async_trait]
impl Toolbox for Tools {
    async fn list(&self, _: Instant) -> Arc<Listing> {
        Arc::clone(&self.offered.lock())
    }
    async fn call(&self, call: ToolRequest, cancel: CancellationToken) -> Result<ToolResult, ToolError> {
        let does = self.does.lock().get(&call.tool).cloned();
        self.called.lock().push(call.clone());
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        let answer = |text: String| {
            Ok(ToolResult {
                parts: vec![ResultPart::Text { text }],
                is_error: false,
            })
        };
        let outcome = match does {
            None => answer(format!("{} did {}", call.tool, call.arguments)),
            Some(Does::Answer(text)) => answer(text),
            Some(Does::Picture(size)) => Ok(ToolResult {
                parts: vec![
                    ResultPart::Text {
                        text: "taken".to_owned(),
                    },
                    ResultPart::Blob {
                        media_type: "image/png".to_owned(),
                        data: "A".repeat(size),
                    },
                ],
                is_error: false,
            }),
            Some(Does::Fail(error)) => Err(error),
            Some(Does::Slow(time, text)) => tokio::select! {
                () = tokio::time::sleep(time) => answer(text),
                () = cancel.cancelled() => Err(ToolError::Unknown("canceled".to_owned())),
            },
            Some(Does::Deaf) => std::future::pending().await,
        };
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        outcome
    }
}

#[derive(Debug)]
struct ScriptedTools(Arc<Tools>);

impl ToolFactory for ScriptedTools {
    fn load(&self, _: &Bundle, _: &Secrets) -> Result<Arc<dyn Toolbox>, LoadError> {
        Ok(Arc::clone(&self.0) as _)
    }
}

/// An engine with everything around it scripted.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) engine: Arc<Engine>,
    pub(crate) script: Arc<Script>,
    pub(crate) tools: Arc<Tools>,
    pub(crate) clock: Arc<SetClock>,
    folder: Arc<TempDir>,
    /// What the next process begins with.
    pub(crate) spec: Value,
}

pub(crate) fn alice() -> Caller {
    Caller {
        subject: "alice".to_owned(),
        approve: true,
        ..Caller::default()
    }
}

/// The agent's spec of most tests, with `more` merged over it.
pub(crate) fn spec(more: Value) -> Value {
    let mut spec = json!({
        "instructions": "Be brief.",
        "model": "fast",
        "tools": [{"server": "git", "allow": ["log", "commit", "diff"], "approve": []}],
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    spec
}

pub(crate) fn bundle(agent: &Value, generation: u64) -> Bundle {
    let model = |name: &str| {
        json!({"provider": "openaiCompatible", "model": name, "endpoint": "http://x/v1",
               "prices": {"currency": "USD", "inputPerMillion": "1", "outputPerMillion": "10"}})
    };
    serde_json::from_value(json!({
        "project": "support", "name": "helper", "uid": "agent-1", "generation": generation, "agent": agent,
        "models": {"fast": model("gpt-fast"), "slow": model("gpt-slow")},
        "toolServers": {"git": {"stdio": {"command": ["git-mcp"]}}}, "prompts": {},
    }))
    .expect("a bundle")
}

impl Rig {
    pub(crate) fn new(more: Value) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        let tools = Arc::new(Tools::default());
        tools.offer(vec![tool("log"), tool("commit"), tool("diff"), tool("push")]);
        Self::start(folder, Arc::default(), tools, spec(more), None)
    }

    pub(crate) fn with_pages(more: Value, pages: u32) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        Self::start(folder, Arc::default(), Arc::default(), spec(more), Some(pages))
    }

    fn start(
        folder: Arc<TempDir>,
        script: Arc<Script>,
        tools: Arc<Tools>,
        spec: Value,
        pages: Option<u32>,
    ) -> Self {
        let clock = Arc::new(SetClock(AtomicI64::new(1_800_000_000_000)));
        let journal = Options {
            folder: folder.path().join("state"),
            full_sync: false,
            max_pages: pages,
        };
        let factories = Factories {
            models: Arc::new(ScriptedModels(Arc::clone(&script))),
            tools: Arc::new(ScriptedTools(Arc::clone(&tools))),
        };
        let engine = Engine::new(Setup {
            journal,
            clock: Arc::clone(&clock) as _,
            factories,
            clients: Arc::new(HttpClients::default()),
            mode: Mode::TrustOnly,
            collect_runs: true,
        })
        .expect("an engine");
        engine
            .apply(bundle(&spec, 1), Secrets::default(), Trust::default())
            .expect("a revision");
        Self {
            engine,
            script,
            tools,
            clock,
            folder,
            spec,
        }
    }

    pub(crate) fn plays(&self, acts: impl IntoIterator<Item = Act>) -> &Self {
        self.script.acts.lock().extend(acts);
        self
    }

    pub(crate) async fn send(&self, inbound: Inbound) -> Result<Sent, Refusal> {
        self.engine.tasks.send(&alice(), inbound).await
    }

    /// Sends a text in a new session and waits.
    pub(crate) async fn ask(&self, text: &str) -> TaskView {
        self.send(message(text)).await.expect("taken").settled().await
    }

    pub(crate) async fn answer(&self, view: &TaskView, parts: Vec<InPart>) -> Result<Sent, Refusal> {
        let inbound = Inbound {
            task: Some(view.uid.clone()),
            parts,
            ..message("")
        };
        self.send(inbound).await
    }

    /// The `n`-th request to a model, from 0.
    pub(crate) fn asked(&self, n: usize) -> ChatRequest {
        self.script.asked.lock().get(n).expect("asked so often").1.clone()
    }

    /// The tool results that the model saw in its `n`-th request.
    pub(crate) fn results(&self, n: usize) -> Vec<(String, bool)> {
        let result = |m: &ChatMessage| match m {
            ChatMessage::Tool { text, is_error, .. } => Some((text.clone(), *is_error)),
            _ => None,
        };
        self.asked(n).messages.iter().filter_map(result).collect()
    }

    /// A new process over the same journal. The old one must be gone: call it outside of the old one's runtime.
    pub(crate) fn reborn(folder: Arc<TempDir>, script: Arc<Script>, tools: Arc<Tools>, spec: Value) -> Self {
        Self::start(folder, script, tools, spec, None)
    }

    /// The journal's file.
    pub(crate) fn journal_file(&self) -> std::path::PathBuf {
        self.folder.path().join("state").join("journal.sqlite")
    }

    /// What a reborn engine needs.
    pub(crate) fn remains(&self) -> (Arc<TempDir>, Arc<Script>, Arc<Tools>, Value) {
        (
            Arc::clone(&self.folder),
            Arc::clone(&self.script),
            Arc::clone(&self.tools),
            self.spec.clone(),
        )
    }
}

static MESSAGES: AtomicUsize = AtomicUsize::new(0);

/// A message of its own id.
pub(crate) fn message(text: &str) -> Inbound {
    let n = MESSAGES.fetch_add(1, Ordering::SeqCst);
    Inbound {
        message_id: format!("m{n}"),
        parts: vec![InPart::Text {
            text: text.to_owned(),
        }],
        ..Inbound::default()
    }
}

pub(crate) fn text(view: &TaskView) -> &str {
    view.answer.as_ref().map_or("", |a| a.text.as_str())
}

/// Waits until `holds`, at most ten seconds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "waited in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
