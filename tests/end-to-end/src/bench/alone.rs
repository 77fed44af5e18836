//! An engine alone, with a model server and a tool server that cost little behind it.

use crate::call::Caller;
use roadstead_end_to_end::{binary, processes::Process, wait};
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// The engine has this core for itself, everything else shares the others.
const ENGINE_CORE: &str = "0";
const OTHER_CORES: &str = "1";
const READY: Duration = Duration::from_secs(20);

/// The servers behind the engines.
pub(crate) struct Alone {
    folder: tempfile::TempDir,
    /// Base URL of the model server's OpenAI format.
    pub(crate) model: String,
    /// URL of the tool server.
    pub(crate) tools: String,
    _servers: [Process; 2],
}

/// A running engine.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) url: String,
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The program on this core alone: `taskset` becomes it.
fn pinned(core: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core]).arg(program);
    command
}

/// This process from now on too, so that the engine's core is the engine's.
pub(crate) fn leave_engine_core() -> anyhow::Result<()> {
    let own = std::process::id().to_string();
    let moved = Command::new("taskset")
        .args(["-a", "-c", "-p", OTHER_CORES, &own])
        .output()?;
    anyhow::ensure!(
        moved.status.success(),
        "taskset: {}",
        String::from_utf8_lossy(&moved.stderr)
    );
    Ok(())
}

impl Alone {
    pub(crate) async fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (model, tools) = (free_port()?, free_port()?);
        let start = |name: &str, args: &[&str], port: u16| {
            let mut command = pinned(OTHER_CORES, &binary(name));
            let listen = format!("127.0.0.1:{port}");
            let log = folder.path().join(format!("{name}.log"));
            Process::start(command.args(args).args(["--listen", &listen]), &log)
        };
        let servers = [
            start("roadstead-model-server", &["--echo"], model)?,
            start("roadstead-tool-server", &[], tools)?,
        ];
        let alone = Self {
            folder,
            model: format!("http://127.0.0.1:{model}/v1"),
            tools: format!("http://127.0.0.1:{tools}/mcp"),
            _servers: servers,
        };
        let models = || async { Caller::new().get(&format!("{}/models", alone.model)).await.ok() };
        wait::until("the model server", READY, models).await?;
        let connects = || async { tokio::net::TcpStream::connect(("127.0.0.1", tools)).await.ok() };
        wait::until("the tool server", READY, connects).await?;
        Ok(alone)
    }

    /// Starts an engine in a new folder; answers once the card is served, with the time since the start.
    pub(crate) async fn start(&self, n: usize) -> anyhow::Result<(Running, Duration)> {
        self.start_as(pinned(ENGINE_CORE, &binary("roadstead-engine")), n)
            .await
    }

    /// The same with another command in front of the engine's arguments.
    pub(crate) async fn start_as(
        &self,
        mut command: Command,
        n: usize,
    ) -> anyhow::Result<(Running, Duration)> {
        let spec = self.folder.path().join("agent.yaml");
        std::fs::write(&spec, self.documents())?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let state = self.state(n);
        command
            .args(["run", "--listen", &address, "--spec"])
            .arg(spec)
            .arg("--state")
            .arg(state)
            // As the runtime starts its engines.
            .env("MIMALLOC_PURGE_DELAY", "10");
        let caller = Caller::new();
        let url = format!("http://{address}");
        let card = format!("{url}/.well-known/agent-card.json");
        let started = Instant::now();
        let process = Process::start(&mut command, &self.folder.path().join("engine.log"))?;
        while caller.get(&card).await.is_err() {
            anyhow::ensure!(started.elapsed() < READY, "no card: {}", process.output());
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        let running = Running {
            process,
            url: format!("{url}/"),
        };
        Ok((running, started.elapsed()))
    }

    /// The folder of the journal of the `n`-th engine.
    fn state(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("state-{n}"))
    }

    /// The file of that journal.
    pub(crate) fn journal(&self, n: usize) -> PathBuf {
        self.state(n).join("journal.sqlite")
    }

    /// One agent that may use the tool, and one model.
    fn documents(&self) -> String {
        let (model, tools) = (&self.model, &self.tools);
        format!(
            "apiVersion: roadstead.dev/v1alpha1\nkind: Model\nmetadata: {{name: echo}}\nspec:\n  \
             provider: openaiCompatible\n  model: echo\n  endpoint: {model}\n---\n\
             apiVersion: roadstead.dev/v1alpha1\nkind: ToolServer\nmetadata: {{name: bench}}\nspec:\n  \
             http: {{url: \"{tools}\"}}\n---\n\
             apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {{name: bench}}\nspec:\n  \
             instructions: Answer.\n  model: echo\n  tools: [{{server: bench, allow: [echo]}}]\n  \
             limits: {{sessions: 1000}}\n"
        )
    }
}
