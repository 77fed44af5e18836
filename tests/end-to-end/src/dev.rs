//! `roadstead-hub dev` and the CLI, as a person at a laptop uses them.

use crate::{
    apart::free_port,
    binary,
    cli::{Answer, Cli},
    processes::Process,
    tools_path, wait,
};
use anyhow::Context as _;
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// For dev to say that it is ready, on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// A running dev with a model server that takes its script from what users say.
#[derive(Debug)]
pub struct Dev {
    folder: tempfile::TempDir,
    model: Process,
    model_url: String,
    model_name: String,
    listen: String,
    hub: Option<Process>,
}

impl Dev {
    /// Starts both and waits until dev is ready.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub async fn start() -> anyhow::Result<Self> {
        let mut dev = Self::scripted().await?;
        dev.up().await?;
        Ok(dev)
    }

    /// The same where it is found again after each [`Self::up`], for callers that go on meanwhile; how long dev's first
    /// start took.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub async fn in_one_place() -> anyhow::Result<(Self, Duration)> {
        let mut dev = Self::scripted().await?;
        dev.listen = format!("127.0.0.1:{}", free_port());
        let started = Instant::now();
        dev.up().await?;
        Ok((dev, started.elapsed()))
    }

    async fn scripted() -> anyhow::Result<Self> {
        let mut command = Command::new(binary("roadstead-model-server"));
        let address = |line: &str| Some(format!("{}/v1", line.strip_prefix("listening on ")?));
        Self::model_alone(&mut command, "script", address).await
    }

    /// The same with another model server; `url` finds its base URL in a line that it prints.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub async fn with_model(
        server: &mut Command,
        name: &str,
        url: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Self> {
        let mut dev = Self::model_alone(server, name, url).await?;
        dev.up().await?;
        Ok(dev)
    }

    async fn model_alone(
        server: &mut Command,
        name: &str,
        url: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let model = Process::start(server, &folder.path().join("model.log"))?;
        let found = || async { model.output().lines().find_map(&url) };
        let model_url = wait::until("the model server", READY, found).await?;
        Ok(Self {
            folder,
            model,
            model_url,
            model_name: name.to_owned(),
            listen: "127.0.0.1:0".to_owned(),
            hub: None,
        })
    }

    /// Starts dev on the state that is there.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn up(&mut self) -> anyhow::Result<()> {
        self.begin()?;
        let started = Instant::now();
        let hub = self.hub()?;
        while !hub.output().contains("Ctrl-C stops everything") {
            anyhow::ensure!(hub.exited()?.is_none(), "dev ended:\n{}", hub.output());
            anyhow::ensure!(started.elapsed() < READY, "dev is not ready:\n{}", hub.output());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Starts dev on the state that is there, without waiting for anything.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        let log = self.folder.path().join("dev.log");
        let _ = std::fs::remove_file(&log);
        let mut command = Command::new(binary("roadstead-hub"));
        command
            .args(["dev", "--listen", &self.listen, "--state"])
            .arg(self.state())
            .env("ROADSTEAD_CONFIG", self.config())
            .env("ROADSTEAD_MODEL_URL", &self.model_url)
            .env("ROADSTEAD_MODEL_NAME", &self.model_name)
            .env("PATH", tools_path());
        for variable in [
            "OPENAI_API_KEY",
            "ANTHROPIC_API_KEY",
            "ROADSTEAD_DATABASE",
            "DATABASE_URL",
        ] {
            command.env_remove(variable);
        }
        self.hub = Some(Process::start(&mut command, &log)?);
        Ok(())
    }

    /// The running dev.
    ///
    /// # Errors
    /// When it is not running.
    pub fn hub(&mut self) -> anyhow::Result<&mut Process> {
        self.hub.as_mut().context("dev is not running")
    }

    /// Takes the running dev out, to see how it ends.
    ///
    /// # Errors
    /// When it is not running.
    pub fn take_hub(&mut self) -> anyhow::Result<Process> {
        self.hub.take().context("dev is not running")
    }

    /// The model server's process, for faults.
    pub fn model(&mut self) -> &mut Process {
        &mut self.model
    }

    /// The hub's address, as dev tells it.
    ///
    /// # Errors
    /// When it has not said it.
    pub fn api(&mut self) -> anyhow::Result<String> {
        let said = self.hub()?.output();
        let found = said
            .lines()
            .find_map(|line| line.strip_prefix("Roadstead is ready at "));
        found.map(|url| url.trim().to_owned()).context(said.clone())
    }

    /// The API token of the CLI's context.
    ///
    /// # Errors
    /// When there is none.
    pub fn token(&self) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(self.state().join("token"))?;
        Ok(text.trim().to_owned())
    }

    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// The CLI with the context that dev writes.
    #[must_use]
    pub fn shell(&self) -> Cli {
        Cli::new(self.config())
    }

    /// Runs the CLI with nothing on its standard input.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn cli(&self, args: &[&str]) -> anyhow::Result<Answer> {
        self.cli_with(args, "")
    }

    /// Runs the CLI with `input` on its standard input.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn cli_with(&self, args: &[&str], input: &str) -> anyhow::Result<Answer> {
        self.shell().with(args, input)
    }
}
