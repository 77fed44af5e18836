//! The process around a command: streams, environment, clock, signals. A test makes its own.

use crate::failure::Outcome;
use chrono::{DateTime, Utc};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write},
    sync::Arc,
};
use tokio::sync::Notify;

/// Where a command reads and writes.
pub struct Shell {
    pub out: Box<dyn Write + Send>,
    pub err: Box<dyn Write + Send>,
    pub input: Input,
    /// Whether each of the streams is a terminal.
    pub out_is_terminal: bool,
    pub err_is_terminal: bool,
    pub env: BTreeMap<String, String>,
    pub now: fn() -> DateTime<Utc>,
    pub interrupt: Interrupt,
    /// Whether output is coloured.
    pub colour: bool,
}

impl fmt::Debug for Shell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment may hold secrets.
        f.debug_struct("Shell")
            .field("input", &self.input)
            .finish_non_exhaustive()
    }
}

impl Shell {
    /// The shell of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let (out, err) = (io::stdout(), io::stderr());
        Self {
            out_is_terminal: out.is_terminal(),
            err_is_terminal: err.is_terminal(),
            out: Box::new(io::LineWriter::new(out)),
            err: Box::new(err),
            input: Input::Process,
            env: variables(),
            now,
            interrupt: Interrupt::Signal,
            colour: false,
        }
    }

    /// A variable that is set and not empty.
    #[must_use]
    pub fn env(&self, name: &str) -> Option<&str> {
        self.env
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    pub(crate) fn flush(&mut self) -> Outcome<()> {
        self.out.flush()?;
        Ok(self.err.flush()?)
    }

    /// Text of strangers for the output: as it is into a pipe, made harmless on a terminal.
    pub(crate) fn say(&mut self, text: &str) -> Outcome<()> {
        if self.out_is_terminal {
            Ok(self.out.write_all(crate::text::shown(text).as_bytes())?)
        } else {
            Ok(self.out.write_all(text.as_bytes())?)
        }
    }
}

/// The environment; variables that are no text are none of ours.
fn variables() -> BTreeMap<String, String> {
    let texts = std::env::vars_os().map(|(name, value)| (name.into_string(), value.into_string()));
    texts
        .filter_map(|(name, value)| name.ok().zip(value.ok()))
        .collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one clock of this program; tests give another"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}

/// What is typed.
#[derive(Debug)]
pub enum Input {
    /// Standard input.
    Process,
    /// Lines typed at a terminal, in a test.
    Typed(VecDeque<String>),
    /// A pipe with this content, in a test.
    Piped(String),
}

impl Input {
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Process => io::stdin().is_terminal(),
            Self::Typed(_) => true,
            Self::Piped(_) => false,
        }
    }

    /// The next line without its end; `None` at the end of the input. A read that is given up goes on in its thread
    /// and takes the next line with it: give up only to end.
    pub(crate) async fn line(&mut self) -> Outcome<Option<String>> {
        match self {
            Self::Typed(lines) => Ok(lines.pop_front()),
            Self::Piped(text) => {
                let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
                let (first, rest) = (first.to_owned(), rest.to_owned());
                let end = text.is_empty();
                *text = rest;
                Ok((!end).then_some(first))
            }
            Self::Process => {
                let read = tokio::task::spawn_blocking(|| {
                    let mut line = String::new();
                    io::stdin()
                        .lock()
                        .read_line(&mut line)
                        .map(|length| (length > 0).then_some(line))
                });
                let line = read.await.map_err(io::Error::other)??;
                Ok(line.map(|l| l.trim_end_matches(['\n', '\r']).to_owned()))
            }
        }
    }

    /// Everything, at most `limit` bytes; more is an error of kind `FileTooLarge`.
    pub(crate) fn all(&mut self, limit: usize) -> io::Result<String> {
        let text = match self {
            Self::Process => {
                let mut text = String::new();
                let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
                io::stdin().lock().take(most).read_to_string(&mut text)?;
                text
            }
            Self::Piped(text) => std::mem::take(text),
            Self::Typed(lines) => lines.drain(..).collect::<Vec<_>>().join("\n"),
        };
        if text.len() > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(text)
    }
}

/// Ctrl-C.
#[derive(Clone, Debug)]
pub enum Interrupt {
    /// The process's signal. Before the first wait it ends the process, as usual.
    Signal,
    /// A test's.
    Notified(Arc<Notify>),
}

impl Interrupt {
    /// Waits for the next one.
    pub(crate) async fn wait(&self) {
        match self {
            Self::Signal => {
                if tokio::signal::ctrl_c().await.is_err() {
                    // No handler can be installed: the signal keeps ending the process.
                    std::future::pending::<()>().await;
                }
            }
            Self::Notified(notify) => notify.notified().await,
        }
    }
}
