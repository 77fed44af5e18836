//! The one error of the hub, free of any transport.
//!
//! `Display` is the outward sentence: it may go to whoever asked and says only what they know or may know. The
//! inward detail is [`std::error::Error::source`]: it goes to the log, once, where the error is handled.

use std::sync::Arc;

/// The hub's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What happened inside; for the log, never for the caller.
pub type Detail = Arc<dyn std::error::Error + Send + Sync>;

/// Why a use case did not happen.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input is wrong; nothing was changed.
    #[error("{}", sentence(problems))]
    Invalid { problems: Vec<Problem> },
    /// Not there, or not for this caller's eyes: the two look the same.
    #[error("{what} was not found")]
    NotFound { what: String },
    /// The caller sees the object and may not do this to it.
    #[error("{message}")]
    Forbidden { message: String },
    /// The state does not allow it (any more).
    #[error("{message}")]
    Conflict { reason: ConflictReason, message: String },
    /// A limit of the tenant is reached.
    #[error("{message} (now {current}, allowed {allowed})")]
    Limit {
        message: String,
        current: u64,
        allowed: u64,
    },
    /// Something needed is away; trying again later may help.
    #[error("{message}")]
    Unavailable {
        message: String,
        #[source]
        detail: Option<Detail>,
    },
    /// No valid proof of who is asking.
    #[error("{message}")]
    Unauthenticated { message: String },
    /// A fault of the hub.
    #[error("the hub failed; the request id leads to the reason in its log")]
    Internal {
        #[source]
        detail: Detail,
    },
}

/// What a conflict is about, for callers that branch on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConflictReason {
    /// The object is not at the expected revision.
    Revision,
    /// The idempotency key was used for other input.
    IdempotencyKey,
    /// The name is taken.
    Exists,
    /// Something still refers to it.
    InUse,
    /// A newer session of this cluster has taken over: this one must end.
    Superseded,
    /// The object's state forbids it.
    State,
}

/// One thing that is wrong with the input.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Problem {
    /// A stable word for programs; empty where nobody needs to branch.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// Where: a path in the input (`documents[2].spec.model`).
    pub path: String,
    pub expected: String,
    pub found: String,
    /// A sentence that reads alone.
    pub message: String,
}

impl Problem {
    /// A problem without a code.
    pub fn new(
        path: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            code: String::new(),
            path: path.into(),
            expected: expected.into(),
            found: found.into(),
            message: message.into(),
        }
    }

    /// The same with a code.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if !self.expected.is_empty() {
            write!(f, ": expected {}", self.expected)?;
        }
        if !self.found.is_empty() {
            write!(f, ", found {}", self.found)?;
        }
        Ok(())
    }
}

fn sentence(problems: &[Problem]) -> String {
    let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
    shown.join("; ")
}

impl Error {
    /// One problem with the input.
    #[must_use]
    pub fn invalid(problem: Problem) -> Self {
        Self::Invalid {
            problems: vec![problem],
        }
    }

    /// `what` names the thing in the caller's own words, and nothing that only the hub knows.
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::Forbidden {
            message: message.into(),
        }
    }

    pub fn conflict(reason: ConflictReason, message: impl Into<String>) -> Self {
        Self::Conflict {
            reason,
            message: message.into(),
        }
    }

    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::Unauthenticated {
            message: message.into(),
        }
    }

    /// `message` goes out, `detail` to the log.
    pub fn unavailable(
        message: impl Into<String>,
        detail: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Unavailable {
            message: message.into(),
            detail: Some(Arc::new(detail)),
        }
    }

    /// A fault of ours; `detail` goes to the log.
    pub fn internal(detail: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal {
            detail: Arc::from(detail.into()),
        }
    }

    /// The code that every transport uses (api.md §2).
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "INVALID",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::Forbidden { .. } => "FORBIDDEN",
            Self::Conflict { .. } => "CONFLICT",
            Self::Limit { .. } => "LIMIT",
            Self::Unavailable { .. } => "UNAVAILABLE",
            Self::Unauthenticated { .. } => "UNAUTHENTICATED",
            Self::Internal { .. } => "INTERNAL",
        }
    }

    /// `true` when a newer session of the cluster has taken over.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        matches!(
            self,
            Self::Conflict {
                reason: ConflictReason::Superseded,
                ..
            }
        )
    }

    /// `true` for faults, which are logged with their source; the others are answers.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        matches!(self, Self::Internal { .. } | Self::Unavailable { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s24_the_outward_sentence_keeps_the_detail_inside() {
        let error = Error::internal("relation \"tenant\" is broken");
        assert!(!error.to_string().contains("tenant"));
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(source.as_deref(), Some("relation \"tenant\" is broken"));
    }

    #[test]
    fn problems_say_where_what_was_expected_and_what_was_found() {
        let error = Error::invalid(Problem::new(
            "spec.model",
            "a model's name",
            "\"x y\"",
            "wrong reference",
        ));
        assert_eq!(
            error.to_string(),
            "spec.model: wrong reference: expected a model's name, found \"x y\""
        );
    }
}
