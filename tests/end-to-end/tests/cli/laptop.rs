//! A laptop on which nothing is set up but the programs: `roadstead-hub dev` with the variables that a test gives.

use anyhow::{Context as _, Result};
use roadstead_end_to_end::{binary, processes::Process};
use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

/// What would choose a model, or a proxy, or another database.
const SCRUBBED: [&str; 16] = [
    "ROADSTEAD_MODEL_URL",
    "ROADSTEAD_MODEL_NAME",
    "ROADSTEAD_MODEL_KEY",
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "ROADSTEAD_DATABASE",
    "ROADSTEAD_DATABASE_FILE",
    "DATABASE_URL",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

pub(crate) struct Laptop {
    folder: tempfile::TempDir,
    listen: SocketAddr,
    variables: Vec<(String, String)>,
    hub: Option<Process>,
}

impl Laptop {
    /// With these variables, and nothing running.
    pub(crate) fn new(variables: &[(&str, &str)]) -> Result<Self> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Ok(Self {
            folder: tempfile::tempdir()?,
            // A port that was free a moment ago, to come back to.
            listen: TcpListener::bind("127.0.0.1:0")?.local_addr()?,
            variables: variables.iter().map(own).collect(),
            hub: None,
        })
    }

    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `dev`, not yet started.
    pub(crate) fn dev(&self) -> Command {
        let mut command = Command::new(binary("roadstead-hub"));
        let listen = self.listen.to_string();
        command
            .args(["dev", "--listen", &listen, "--state"])
            .arg(self.path("state"));
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        for name in SCRUBBED {
            command.env_remove(name);
        }
        command
            .env("ROADSTEAD_CONFIG", self.path("config.toml"))
            .env("NO_COLOR", "1")
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path());
    }

    /// Starts dev and waits until it greets; the greeting.
    pub(crate) async fn up(&mut self) -> Result<String> {
        let log = self.path("dev.log");
        drop(std::fs::remove_file(&log));
        let mut hub = Process::start(&mut self.dev(), &log)?;
        let started = Instant::now();
        while !hub.output().contains("Ctrl-C stops everything") {
            anyhow::ensure!(hub.exited()?.is_none(), "dev ended:\n{}", hub.output());
            anyhow::ensure!(
                started.elapsed() < super::SOON,
                "dev is not ready:\n{}",
                hub.output()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let said = hub.output();
        self.hub = Some(hub);
        Ok(said)
    }

    pub(crate) fn hub(&mut self) -> Result<&mut Process> {
        self.hub.as_mut().context("dev does not run")
    }

    /// Ends dev as Ctrl-C does.
    pub(crate) async fn down(&mut self) -> Result<()> {
        let mut hub = self.hub.take().context("dev does not run")?;
        hub.signal("INT")?;
        let told = Instant::now();
        while hub.exited()?.is_none() {
            anyhow::ensure!(
                told.elapsed() < super::SOON,
                "Ctrl-C does not end dev:\n{}",
                hub.output()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Types a line into a shell that finds the workspace's programs.
    pub(crate) fn types(&self, line: &str) -> Result<Output> {
        let mut shell = Command::new("bash");
        shell.args(["-c", line]);
        self.surround(&mut shell);
        let programs = binary("roadstead")
            .parent()
            .context("a folder")?
            .display()
            .to_string();
        let path = std::env::var("PATH").unwrap_or_default();
        Ok(shell.env("PATH", format!("{programs}:{path}")).output()?)
    }

    /// The CLI with its output in a file, running on.
    pub(crate) fn follows(&self, arguments: &[&str], log: &str) -> Result<Process> {
        let mut command = Command::new(binary("roadstead"));
        command.args(arguments);
        self.surround(&mut command);
        Process::start(&mut command, &self.path(log))
    }
}

/// Standard output of what must succeed.
#[track_caller]
pub(crate) fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
