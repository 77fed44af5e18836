//! Hub, cluster agent, engines and model server as processes of their own, joined as an operator would join them:
//! tenant by `roadstead-hub create-tenant`, cluster by `roadstead clusters create`, the rest by documents.

use crate::{
    ask, binary,
    cli::{Answer, Cli},
    database::Database,
    processes::{Process, children, stat},
    tools_path, wait,
};
use anyhow::Context as _;
use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

/// For anything to come up, on a busy machine.
pub const READY: Duration = Duration::from_secs(60);
const TENANT: &str = "acme";
const CLUSTER: &str = "edge";
/// What of the test's own environment would change what is tested.
const STRANGE: [&str; 9] = [
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "DATABASE_URL",
    "ROADSTEAD_DATABASE",
    "ROADSTEAD_DATABASE_FILE",
    "ROADSTEAD_LOG",
    "ROADSTEAD_KEYS",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_RESOURCE_ATTRIBUTES",
];

/// What differs between tests.
#[derive(Debug, Default)]
pub struct Setup {
    /// Set for every process, the CLI among them.
    pub environment: Vec<(String, String)>,
    /// Set for the cluster agent, and offered to documents.
    pub offered: Vec<(String, String)>,
    /// Of the model server; without it the user's text says what the model does.
    pub script: Option<String>,
    /// The key that the model server wants; the Model document takes it from the offered `MODEL_KEY`.
    pub model_key: Option<String>,
    /// Of the Model document, as YAML in one line.
    pub model_options: Option<String>,
}

/// Where the hub's state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Sqlite,
    Postgres,
}

/// All of it. Everything ends when this is dropped.
#[derive(Debug)]
pub struct Apart {
    // Before the folder that they write in.
    hub: Option<Process>,
    agent: Option<Process>,
    model: Option<Process>,
    pub database: Database,
    pub cli: Cli,
    /// What hub and cluster agent needed for their first start, until they had met.
    pub first_start: Duration,
    setup: Setup,
    ports: Ports,
    folder: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    api: u16,
    fleet: u16,
    metrics: u16,
    agent: u16,
    model: u16,
}

impl Apart {
    /// Starts everything and joins the cluster; `None`, said aloud, where there is no PostgreSQL.
    ///
    /// # Errors
    /// When a part does not become ready.
    pub async fn start(keep: Keep, setup: Setup) -> anyhow::Result<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let database = match keep {
            Keep::Sqlite => Database::sqlite(folder.path())?,
            Keep::Postgres => match Database::postgres(folder.path())? {
                Some(database) => database,
                None => return Ok(None),
            },
        };
        Self::with(folder, database, setup).await.map(Some)
    }

    /// The same on a database that is there.
    ///
    /// # Errors
    /// When a part does not become ready.
    pub async fn with(folder: tempfile::TempDir, database: Database, setup: Setup) -> anyhow::Result<Self> {
        let config = folder.path().join("config.toml");
        let mut apart = Self {
            hub: None,
            agent: None,
            model: None,
            database,
            cli: Cli::new(config).environment(&setup.environment),
            first_start: Duration::ZERO,
            setup,
            ports: Ports {
                api: free_port(),
                fleet: free_port(),
                metrics: free_port(),
                agent: free_port(),
                model: free_port(),
            },
            folder,
        };
        apart.start_model().await?;
        apart.create_tenant()?;
        apart.start_hub()?;
        let hub = apart.hub_ready().await?;
        apart.sign_in()?;
        apart.join()?;
        apart.start_agent()?;
        apart.first_start = hub + apart.linked().await?;
        apart.write_model()?;
        Ok(apart)
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The hub's address.
    #[must_use]
    pub fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.api)
    }

    /// The hub's port for cluster agents.
    #[must_use]
    pub fn fleet(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.fleet))
    }

    /// The port of the hub's metrics.
    #[must_use]
    pub fn hub_metrics(&self) -> String {
        format!("http://127.0.0.1:{}/metrics", self.ports.metrics)
    }

    /// The cluster agent's probes and metrics.
    #[must_use]
    pub fn agent_probe(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.agent)
    }

    /// The tenant owner's API token.
    ///
    /// # Errors
    /// When there is none yet.
    pub fn token(&self) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(self.path("token")).context("the owner's token")?;
        Ok(text.trim().to_owned())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(binary(name));
        for variable in STRANGE {
            command.env_remove(variable);
        }
        command
            .env("PATH", tools_path())
            .envs(self.setup.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn create_tenant(&self) -> anyhow::Result<()> {
        let made = self
            .command("roadstead-hub")
            .args(["create-tenant", TENANT, "--database-file"])
            .arg(&self.database.url_file)
            .arg("--token-file")
            .arg(self.path("token"))
            .output()?;
        anyhow::ensure!(made.status.success(), "{made:?}");
        Ok(())
    }

    fn sign_in(&self) -> anyhow::Result<()> {
        let (api, token) = (self.api(), self.path("token").display().to_string());
        let add = [
            "context",
            "add",
            "main",
            "--server",
            &api,
            "--tenant",
            TENANT,
            "--token-file",
            &token,
        ];
        self.cli.run(&add)?.ok().map(drop)
    }

    fn join(&self) -> anyhow::Result<()> {
        let file = self.path("join-token").display().to_string();
        let label = "roadstead.dev/default=true";
        let create = [
            "clusters",
            "create",
            CLUSTER,
            "--label",
            label,
            "--token-file",
            &file,
        ];
        self.cli.run(&create)?.ok().map(drop)
    }

    fn write_model(&self) -> anyhow::Result<()> {
        let options = self.setup.model_options.as_deref().unwrap_or("{}");
        self.apply(&self.model_document("default", options))
    }

    /// A Model document for the model server; `options` is YAML in one line.
    #[must_use]
    pub fn model_document(&self, name: &str, options: &str) -> String {
        let key = self
            .setup
            .model_key
            .as_ref()
            .map_or("", |_| "\n  key: {env: MODEL_KEY}");
        format!(
            "apiVersion: roadstead.dev/v1alpha1\nkind: Model\nmetadata: {{name: {name}}}\nspec:\n  \
             provider: openaiCompatible\n  model: script\n  endpoint: http://127.0.0.1:{}/v1{key}\n  \
             options: {options}\n",
            self.ports.model
        )
    }

    /// Applies documents by the CLI.
    ///
    /// # Errors
    /// When they are refused.
    pub fn apply(&self, documents: &str) -> anyhow::Result<()> {
        self.cli.with(&["apply", "-f", "-"], documents)?.ok().map(drop)
    }

    /// Starts the model server.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_model(&mut self) -> anyhow::Result<()> {
        let log = self.path("model.log");
        let _ = std::fs::remove_file(&log);
        let mut command = self.command("roadstead-model-server");
        command
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", self.ports.model));
        if let Some(script) = &self.setup.script {
            std::fs::write(self.path("script.yaml"), script)?;
            command.arg("--script").arg(self.path("script.yaml"));
        }
        if let Some(key) = &self.setup.model_key {
            std::fs::write(self.path("model-key"), key)?;
            command.arg("--key-file").arg(self.path("model-key"));
        }
        let model = Process::start(&mut command, &log)?;
        let listening = || async { model.output().contains("listening on ").then_some(()) };
        wait::until("the model server", READY, listening).await?;
        self.model = Some(model);
        Ok(())
    }

    /// Starts the hub on the state that is there; see [`Self::hub_ready`].
    ///
    /// # Errors
    /// When the program does not start.
    pub fn start_hub(&mut self) -> anyhow::Result<()> {
        let local = |port: u16| format!("127.0.0.1:{port}");
        let mut command = self.command("roadstead-hub");
        command
            .args(["serve", "--listen", &local(self.ports.api)])
            .args(["--fleet-listen", &local(self.ports.fleet)])
            .args(["--metrics", &local(self.ports.metrics), "--database-file"])
            .arg(&self.database.url_file)
            .arg("--keys")
            .arg(self.path("keys"));
        self.hub = Some(Process::start(&mut command, &self.path("hub.log"))?);
        Ok(())
    }

    /// Runs `roadstead-hub roots` on the hub's folder of keys and database.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn roots(&self, arguments: &[&str]) -> anyhow::Result<Answer> {
        let mut command = self.command("roadstead-hub");
        command
            .arg("roots")
            .args(arguments)
            .arg("--database-file")
            .arg(&self.database.url_file)
            .arg("--keys")
            .arg(self.path("keys"));
        Ok(Answer::of(arguments, &command.output()?))
    }

    /// Starts the cluster agent on the state that is there; see [`Self::linked`].
    ///
    /// # Errors
    /// When the program does not start.
    pub fn start_agent(&mut self) -> anyhow::Result<()> {
        let mut command = self.agent_command(self.ports.agent, "cluster", "join-token");
        for (name, value) in &self.setup.offered {
            command.env(name, value).args(["--env", name]);
        }
        self.agent = Some(Process::start(&mut command, &self.path("agent.log"))?);
        Ok(())
    }

    /// Starts another cluster agent, with these names of its state's folder and of the file of its join token.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn another_agent(&self, state: &str, token: &str) -> anyhow::Result<Process> {
        let mut command = self.agent_command(free_port(), state, token);
        Process::start(&mut command, &self.path(&format!("{state}.log")))
    }

    fn agent_command(&self, port: u16, state: &str, token: &str) -> Command {
        let mut command = self.command("roadstead-agent");
        command
            .args(["run", "--hub", &self.fleet().to_string()])
            .args(["--metrics", &format!("127.0.0.1:{port}")])
            .args(["--allow-program", "python3", "--grace", "1", "--state"])
            .arg(self.path(state))
            .arg("--join-token-file")
            .arg(self.path(token));
        command
    }

    /// The hub's process.
    ///
    /// # Errors
    /// When it is not running.
    pub fn hub(&mut self) -> anyhow::Result<&mut Process> {
        self.hub.as_mut().context("the hub is not running")
    }

    /// The cluster agent's process.
    ///
    /// # Errors
    /// When it is not running.
    pub fn agent(&mut self) -> anyhow::Result<&mut Process> {
        self.agent.as_mut().context("the cluster agent is not running")
    }

    /// The model server's process.
    ///
    /// # Errors
    /// When it is not running.
    pub fn model(&mut self) -> anyhow::Result<&mut Process> {
        self.model.as_mut().context("the model server is not running")
    }

    /// The engines that run now. What engines start, their guards of tool servers among it, is not, also when the
    /// cluster agent has adopted it: an engine leads a session.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn engines(&self) -> anyhow::Result<Vec<u32>> {
        let agent = self.agent.as_ref().context("the cluster agent is not running")?;
        let mut engines = children(agent.id())?;
        engines.retain(|pid| stat(*pid).is_some_and(|stat| stat.session == *pid));
        Ok(engines)
    }

    /// Status and text of the hub's `/livez` or `/readyz`; `None` where nothing answers.
    pub async fn probe(&self, path: &str) -> Option<(u16, String)> {
        let (status, text) = ask::get(&format!("{}{path}", self.api())).await.ok()?;
        Some((status.as_u16(), text))
    }

    /// Waits until the hub is ready; how long it took.
    ///
    /// # Errors
    /// When it ends, or takes too long.
    pub async fn hub_ready(&mut self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        loop {
            if self
                .probe("/readyz")
                .await
                .is_some_and(|(status, _)| status == 200)
            {
                return Ok(started.elapsed());
            }
            let hub = self.hub()?;
            anyhow::ensure!(hub.exited()?.is_none(), "the hub ended:\n{}", hub.output());
            anyhow::ensure!(
                started.elapsed() < READY,
                "the hub is not ready:\n{}",
                hub.output()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the cluster agent has a session and its engines are planned; how long it took.
    ///
    /// # Errors
    /// When it ends, or takes too long.
    pub async fn linked(&mut self) -> anyhow::Result<Duration> {
        let (started, probe) = (Instant::now(), format!("{}/readyz", self.agent_probe()));
        loop {
            if let Ok((status, text)) = ask::get(&probe).await
                && status == 200
                && text.contains("hub: connected")
            {
                return Ok(started.elapsed());
            }
            let agent = self.agent()?;
            anyhow::ensure!(
                agent.exited()?.is_none(),
                "the cluster agent ended:\n{}",
                agent.output()
            );
            anyhow::ensure!(started.elapsed() < READY, "no session:\n{}", agent.output());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a chat with `agent` is answered; how long it took.
    ///
    /// # Errors
    /// When it takes too long.
    pub async fn answers(&self, agent: &str) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let answered = || async {
            let said = self.cli.run(&["chat", agent, "--message", "say ready"]).ok()?;
            (said.code == Some(0) && said.out.contains("ready")).then_some(())
        };
        wait::until(&format!("an answer of {agent}"), READY, answered).await?;
        Ok(started.elapsed())
    }

    /// Address and token by which an in-cluster caller reaches the engine of an agent, as the runtime publishes them.
    ///
    /// # Errors
    /// When it has not been published within a while.
    pub async fn in_cluster(&self, agent: &str) -> anyhow::Result<(String, String)> {
        let folder = self
            .path("cluster")
            .join("engines")
            .join(format!("default.{agent}"));
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        let found = || async { Some((format!("http://{}/", read("address")?), read("token")?)) };
        wait::until("the engine's address", READY, found).await
    }

    /// Everything that the processes have logged.
    #[must_use]
    pub fn logs(&self) -> String {
        let names = ["hub.log", "agent.log", "model.log"];
        let texts = names.map(|name| std::fs::read_to_string(self.path(name)).unwrap_or_default());
        texts.join("\n")
    }
}

/// A loopback port for a process that must come back to it: below the range from which the system takes ports for
/// connections, since those of other processes could be there while it is away.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let process = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap_or(0);
    let candidates = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed));
    let mut ports = candidates
        .take(usize::from(COUNT))
        .map(|n| FIRST + process.wrapping_mul(7).wrapping_add(n) % COUNT);
    ports
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}
