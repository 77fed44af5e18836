//! Why a command failed: an exit code, a sentence, what belongs to it, and what to do next.

use crate::{hints, text::shown};
use std::{fmt, io};

/// How the process ends; docs/cli.md says what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Invalid = 3,
    NotFound = 4,
    Forbidden = 5,
    Conflict = 6,
    Unavailable = 7,
    Limit = 8,
    Waiting = 9,
    Interrupted = 130,
}

impl Exit {
    /// All of them, by number.
    pub const ALL: [Self; 11] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Invalid,
        Self::NotFound,
        Self::Forbidden,
        Self::Conflict,
        Self::Unavailable,
        Self::Limit,
        Self::Waiting,
        Self::Interrupted,
    ];

    /// In a word or two, as `--help` lists it.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Invalid => "invalid input",
            Self::NotFound => "not found",
            Self::Forbidden => "not allowed",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Limit => "limit",
            Self::Waiting => "waits for a person",
            Self::Interrupted => "interrupted",
        }
    }

    /// The exit code of one of the API's error codes.
    #[must_use]
    pub fn of_code(code: &str) -> Self {
        match code {
            "INVALID" => Self::Invalid,
            "NOT_FOUND" => Self::NotFound,
            "FORBIDDEN" | "UNAUTHENTICATED" => Self::Forbidden,
            "CONFLICT" => Self::Conflict,
            "UNAVAILABLE" => Self::Unavailable,
            "LIMIT" => Self::Limit,
            _ => Self::Failed,
        }
    }
}

/// A command's failure.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    /// One sentence; of strangers' text only what `shown` lets through.
    pub message: String,
    /// One line each, above the sentence.
    pub details: Vec<String>,
    /// What to do; where it is not said, `hints` knows.
    pub next: Option<String>,
    /// Seconds after which the hub asks to be asked again.
    pub wait: Option<u64>,
    /// The request went out and its answer was lost: it may have been done.
    pub lost: bool,
    io: Option<io::ErrorKind>,
}

pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub fn new(exit: Exit, message: impl AsRef<str>) -> Self {
        Self {
            exit,
            message: shown(message.as_ref()).into_owned(),
            details: Vec::new(),
            next: None,
            wait: None,
            lost: false,
            io: None,
        }
    }

    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    #[must_use]
    pub fn details(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details = details
            .into_iter()
            .map(|line| shown(&line).into_owned())
            .collect();
        self
    }

    /// Whether the reader of our output went away, which is no failure of ours.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        self.io == Some(io::ErrorKind::BrokenPipe)
    }

    /// Writes the failure for a person.
    ///
    /// # Errors
    /// Of the writer.
    pub fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        for line in &self.details {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "error: {}", self.message)?;
        if let Some(next) = self.next.as_deref().or_else(|| hints::by_exit(self.exit)) {
            writeln!(out, "  next: {}", shown(next))?;
        }
        out.flush()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// An input or output error of the terminal or a pipe; files name themselves with [`Failure::new`].
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self {
            io: Some(error.kind()),
            ..Self::new(Exit::Failed, format!("input or output failed: {error}"))
        }
    }
}
