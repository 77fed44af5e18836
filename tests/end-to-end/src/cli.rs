//! The CLI, as a person or a script runs it.

use crate::binary;
use anyhow::Context as _;
use serde_json::Value;
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// The CLI with a configuration of its own.
#[derive(Clone, Debug)]
pub struct Cli {
    config: PathBuf,
    environment: Vec<(String, String)>,
}

impl Cli {
    /// With the configuration in `config`, which need not be there yet.
    #[must_use]
    pub fn new(config: PathBuf) -> Self {
        Self {
            config,
            environment: Vec::new(),
        }
    }

    /// With further variables.
    #[must_use]
    pub fn environment(mut self, variables: &[(String, String)]) -> Self {
        self.environment.extend_from_slice(variables);
        self
    }

    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Runs it with nothing on its standard input.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Answer> {
        self.with(args, "")
    }

    /// Runs it with `input` on its standard input.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn with(&self, args: &[&str], input: &str) -> anyhow::Result<Answer> {
        let mut child = Command::new(binary("roadstead"))
            .args(args)
            .env("ROADSTEAD_CONFIG", &self.config)
            .env("NO_COLOR", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let written = child.stdin.take().context("stdin")?.write_all(input.as_bytes());
        let answer = Answer::of(args, &child.wait_with_output()?);
        // A command that is refused may end before it has read everything.
        if let Err(error) = written
            && answer.code == Some(0)
        {
            return Err(error).with_context(|| format!("{answer:?}"));
        }
        Ok(answer)
    }
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
    pub(crate) fn of(args: &[&str], output: &Output) -> Self {
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
