//! Errors as the schema has them: outcomes that a caller must expect are [`UserError`]s in the payload, faults are
//! GraphQL errors.

use async_graphql::{Enum, SimpleObject, Value};
use roadstead_domain::{Error, Problem};
use std::sync::Arc;

/// What resolvers answer with: `?` takes the hub's error, and nothing else converts into a GraphQL error.
pub(crate) type Result<T, E = Fault> = std::result::Result<T, E>;

/// An error of the hub on its way out of a resolver.
#[derive(Clone, Debug)]
pub(crate) struct Fault(Error);

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// The single conversion of the hub's error into a GraphQL error. The sentence goes out; what is inside goes to the
/// log when the answer is written.
impl From<Fault> for async_graphql::Error {
    fn from(Fault(error): Fault) -> Self {
        let mut converted = Self::new(error.to_string());
        let extensions = converted.extensions.get_or_insert_with(Default::default);
        extensions.set("code", Value::from(error.code()));
        converted.source = Some(Arc::new(error));
        converted
    }
}

/// What went wrong, for programs.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The input is wrong; nothing was changed.
    Invalid,
    /// Not there, or not for this caller's eyes.
    NotFound,
    /// Seen, and not allowed.
    Forbidden,
    /// The state does not allow it (any more).
    Conflict,
    /// A limit of the tenant is reached.
    Limit,
    /// Something needed is away; trying again later may help.
    Unavailable,
    Unauthenticated,
    /// A fault of the hub.
    Internal,
}

/// An outcome that the caller must expect. Nothing was changed.
#[derive(SimpleObject, Clone, Debug)]
pub struct UserError {
    pub code: ErrorCode,
    /// A sentence that reads alone.
    pub message: String,
    /// Where in the input (`documents[2].spec.tools[0].allow`).
    pub path: Option<String>,
    pub expected: Option<String>,
    pub found: Option<String>,
    /// The name of the source, where the input was a text.
    pub file: Option<String>,
    /// From 1.
    pub line: Option<u32>,
    /// From 1.
    pub column: Option<u32>,
}

impl UserError {
    fn new(code: ErrorCode, message: String) -> Self {
        Self {
            code,
            message,
            path: None,
            expected: None,
            found: None,
            file: None,
            line: None,
            column: None,
        }
    }
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl From<&Problem> for UserError {
    fn from(problem: &Problem) -> Self {
        Self {
            path: text(&problem.path),
            expected: text(&problem.expected),
            found: text(&problem.found),
            ..Self::new(ErrorCode::Invalid, problem.message.clone())
        }
    }
}

/// Splits an error: what the caller must expect becomes user errors, a fault stays an error.
///
/// # Errors
/// The fault.
pub(crate) fn expected(error: Error) -> Result<Vec<UserError>> {
    let code = match &error {
        Error::Invalid { problems } => return Ok(problems.iter().map(UserError::from).collect()),
        Error::NotFound { .. } => ErrorCode::NotFound,
        Error::Forbidden { .. } => ErrorCode::Forbidden,
        Error::Conflict { .. } => ErrorCode::Conflict,
        Error::Limit { .. } => ErrorCode::Limit,
        _ => return Err(error.into()),
    };
    Ok(vec![UserError::new(code, error.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s24_a_faults_inside_stays_inside() {
        let error = async_graphql::Error::from(Fault::from(Error::internal("password=hunter2")));
        assert!(!format!("{error:?}").contains("hunter2"));
        assert!(expected(Error::internal("x")).is_err());
        assert_eq!(
            expected(Error::not_found("agent x")).unwrap()[0].code,
            ErrorCode::NotFound
        );
    }
}
