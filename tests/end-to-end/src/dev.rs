//! `roadstead-hub dev` and the CLI, as a person at a laptop uses them.

use crate::{binary, processes::Process, wait};
use anyhow::Context as _;
use serde_json::Value;
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

/// For dev to say that it is ready, on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// A running dev with a model server that takes its script from what users say.
#[derive(Debug)]
pub struct Dev {
    folder: tempfile::TempDir,
    model: Process,
    model_url: String,
    hub: Option<Process>,
}

impl Dev {
    /// Starts both and waits until dev is ready.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("model.log");
        let model = Process::start(&mut Command::new(binary("roadstead-model-server")), &log)?;
        let address = || async {
            model
                .output()
                .lines()
                .find_map(|l| l.strip_prefix("listening on ").map(str::to_owned))
        };
        let url = wait::until("the model server", READY, address).await?;
        let mut dev = Self {
            folder,
            model,
            model_url: format!("{url}/v1"),
            hub: None,
        };
        dev.up().await?;
        Ok(dev)
    }

    /// Starts dev on the state that is there.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn up(&mut self) -> anyhow::Result<()> {
        let log = self.folder.path().join("dev.log");
        let _ = std::fs::remove_file(&log);
        let mut command = Command::new(binary("roadstead-hub"));
        command
            .args(["dev", "--listen", "127.0.0.1:0", "--state"])
            .arg(self.state())
            .env("ROADSTEAD_CONFIG", self.config())
            .env("ROADSTEAD_MODEL_URL", &self.model_url)
            .env("ROADSTEAD_MODEL_NAME", "script")
            .env("PATH", tools_path());
        for variable in [
            "OPENAI_API_KEY",
            "ANTHROPIC_API_KEY",
            "ROADSTEAD_DATABASE",
            "DATABASE_URL",
        ] {
            command.env_remove(variable);
        }
        let mut hub = Process::start(&mut command, &log)?;
        let started = std::time::Instant::now();
        while !hub.output().contains("Ctrl-C stops everything") {
            anyhow::ensure!(hub.exited()?.is_none(), "dev ended:\n{}", hub.output());
            anyhow::ensure!(started.elapsed() < READY, "dev is not ready:\n{}", hub.output());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.hub = Some(hub);
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
        let mut child = Command::new(binary("roadstead"))
            .args(args)
            .env("ROADSTEAD_CONFIG", self.config())
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
        Ok(Answer::of(args, &child.wait_with_output()?))
    }
}

/// The folder of the examples' tool servers; `None`, said aloud, where the tests' tools are not installed.
///
/// # Panics
/// In a complete run (`make test`), which must not pass without them.
#[must_use]
pub fn tools() -> Option<String> {
    let tools = std::env::var("ROADSTEAD_TEST_TOOLS").ok();
    if tools.is_none() {
        assert!(
            std::env::var_os("ROADSTEAD_TEST_COMPLETE").is_none(),
            "ROADSTEAD_TEST_TOOLS is not set"
        );
        eprintln!("skipped: the examples' tool servers are not installed (make test-tools)");
    }
    tools
}

/// `PATH` with the examples' tool servers first.
fn tools_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::var("ROADSTEAD_TEST_TOOLS").map_or(path.clone(), |tools| format!("{tools}:{path}"))
}

/// What the CLI wrote and how it ended.
#[derive(Debug)]
pub struct Answer {
    pub command: String,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Answer {
    fn of(args: &[&str], output: &Output) -> Self {
        Self {
            command: args.join(" "),
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output, if the command succeeded.
    ///
    /// # Errors
    /// With everything that it said.
    pub fn ok(self) -> anyhow::Result<String> {
        anyhow::ensure!(self.code == Some(0), "{self:#?}");
        Ok(self.out)
    }

    /// Standard output as JSON, if the command succeeded.
    ///
    /// # Errors
    /// With everything that it said.
    pub fn json(self) -> anyhow::Result<Value> {
        let out = self.ok()?;
        serde_json::from_str(&out).with_context(|| out)
    }
}
