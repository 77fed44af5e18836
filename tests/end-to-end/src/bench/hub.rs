//! A hub with its database, as a process of its own, and what a user of its API says to it.

use crate::{alone::free_port, call::Caller};
use anyhow::Context as _;
use roadstead_end_to_end::{binary, processes::Process, wait};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const READY: Duration = Duration::from_secs(20);

const APPLY: &str = "mutation($input: ApplyDocumentsInput!) { applyDocuments(input: $input) {
    results { action object { id revision } } errors { code message path } } }";
const CLUSTER: &str = "mutation($input: CreateClusterInput!) { createCluster(input: $input) {
    joinToken { token } errors { code message } } }";

/// A running hub with one tenant and its project `bench`.
pub(crate) struct Hub {
    pub(crate) process: Process,
    /// `host:port` of the cluster agents' port.
    pub(crate) fleet: String,
    api: String,
    caller: Caller,
    keys: std::cell::Cell<u64>,
}

/// A document that the hub accepted.
pub(crate) struct Accepted {
    pub(crate) uid: String,
    pub(crate) revision: u64,
    /// When the request was about to be sent, and when its answer was there.
    pub(crate) sent: Instant,
    pub(crate) answered: Instant,
}

impl Hub {
    /// Starts one on a new database in `folder`.
    pub(crate) async fn start(folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.join("hub");
        std::fs::create_dir(&folder)?;
        let (database, token) = (database(&folder), folder.join("token"));
        let made = Command::new(binary("roadstead-hub"))
            .args([
                "create-tenant",
                "bench",
                "--project",
                "bench",
                "--database",
                &database,
                "--token-file",
            ])
            .arg(&token)
            .output()?;
        anyhow::ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let listen = format!("127.0.0.1:{}", free_port()?);
        let fleet = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new(binary("roadstead-hub"));
        command
            .args([
                "serve",
                "--database",
                &database,
                "--listen",
                &listen,
                "--fleet-listen",
                &fleet,
                "--keys",
            ])
            .arg(keys(&folder)?);
        let process = Process::start(&mut command, &folder.join("log"))?;
        let secret = std::fs::read_to_string(token)?;
        let caller = Caller::new().with("authorization", &format!("Bearer {}", secret.trim()))?;
        let ready = format!("http://{listen}/readyz");
        let serves = || async { caller.get(&ready).await.ok() };
        wait::until("the hub", READY, serves)
            .await
            .with_context(|| process.output())?;
        Ok(Self {
            process,
            fleet,
            api: format!("http://{listen}/graphql"),
            caller,
            keys: std::cell::Cell::new(0),
        })
    }

    async fn ask(&self, query: &str, input: Value) -> anyhow::Result<Value> {
        let body = json!({"query": query, "variables": {"input": input}});
        let answer = self.caller.post(&self.api, body.to_string().into_bytes()).await?;
        let mut answer: Value = serde_json::from_slice(&answer)?;
        let field = answer["data"]
            .as_object_mut()
            .and_then(|data| data.values_mut().next());
        match field.map(Value::take) {
            Some(field) if field["errors"] == json!([]) => Ok(field),
            field => anyhow::bail!("{query}: {answer} {field:?}"),
        }
    }

    /// Registers a cluster with the label `fleet: bench`; answers with its join token.
    pub(crate) async fn cluster(&self, name: &str) -> anyhow::Result<String> {
        let input = json!({"name": name, "labels": {"fleet": "bench"}});
        let made = self.ask(CLUSTER, input).await?;
        let token = made["joinToken"]["token"].as_str().context("a join token")?;
        Ok(token.to_owned())
    }

    /// Applies documents; says what became of the last.
    pub(crate) async fn apply(&self, documents: &[Value]) -> anyhow::Result<Accepted> {
        let key = self.keys.get() + 1;
        self.keys.set(key);
        let documents: Vec<_> = documents.iter().map(|json| json!({"json": json})).collect();
        let input =
            json!({"project": "bench", "idempotencyKey": format!("bench-{key}"), "documents": documents});
        let sent = Instant::now();
        let applied = self.ask(APPLY, input).await?;
        let answered = Instant::now();
        let last = applied["results"]
            .as_array()
            .and_then(|results| results.last())
            .context("results")?;
        Ok(Accepted {
            uid: last["object"]["id"].as_str().context("an id")?.to_owned(),
            revision: last["object"]["revision"].as_u64().context("a revision")?,
            sent,
            answered,
        })
    }
}

fn database(folder: &Path) -> String {
    format!("sqlite:{}", folder.join("hub.db").display())
}

fn keys(folder: &Path) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    let keys = folder.join("keys");
    std::fs::DirBuilder::new().mode(0o700).create(&keys)?;
    Ok(keys)
}

/// A document of the project.
fn document(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "roadstead.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// A model that is never asked.
pub(crate) fn model() -> Value {
    let spec = json!({"provider": "openaiCompatible", "model": "none", "endpoint": "http://127.0.0.1:9/v1"});
    document("Model", "none", &spec)
}

/// An agent with this description, placed by `placement`.
pub(crate) fn agent(name: &str, description: &str, placement: &Value) -> Value {
    let spec = json!({"description": description, "instructions": "Answer in one sentence, and name your source.",
        "model": "none", "placement": placement});
    document("Agent", name, &spec)
}
