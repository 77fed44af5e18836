//! How a call that reaches no engine is answered: as a JSON-RPC error to a JSON-RPC caller, else as a problem.
//!
//! A caller who may not know of an agent gets the same bytes as one who asks for an agent that is not there (S33, S75).

use crate::TunnelError;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use chrono::SecondsFormat;
use http::{HeaderValue, StatusCode, header};
use roadstead_domain::Error;
use roadstead_http::{BodyError, Problem, RequestId, unauthenticated};
use serde_json::{Value, json};
use std::time::Duration;

/// How the caller wants to be told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Dialect {
    /// The `id` of the JSON-RPC request; null where it has none.
    JsonRpc(Box<Value>),
    Http,
}

/// A call that was not made, or not answered.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// JSON-RPC's code.
    rpc: i32,
    retry_after: Option<Duration>,
}

/// JSON-RPC 2.0 §5.1 leaves -32000 to -32099 to servers, and A2A takes -32001 to -32009 of them.
const UNAVAILABLE: i32 = -32000;

impl Dialect {
    pub(crate) fn json_rpc(id: Value) -> Self {
        Self::JsonRpc(Box::new(id))
    }
}

impl Failure {
    fn new(status: StatusCode, code: &'static str, rpc: i32, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            rpc,
            retry_after: None,
        }
    }

    /// No such agent for this caller: unknown, another tenant's and forbidden agents are one case.
    pub(crate) fn no_agent() -> Self {
        let message = "there is no agent at this address that you may call";
        Self::new(
            StatusCode::NOT_FOUND,
            "NOT_FOUND",
            a2a::error_code::INVALID_PARAMS,
            message,
        )
    }

    /// The agent is there and placed nowhere.
    pub(crate) fn not_placed() -> Self {
        Self::unavailable("the agent is not placed on any cluster: give it a placement and apply it again")
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        let mut failure = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "UNAVAILABLE",
            UNAVAILABLE,
            message,
        );
        failure.retry_after = Some(Duration::from_secs(5));
        failure
    }

    /// The engine answered with what cannot be passed on.
    pub(crate) fn bad_answer(message: &'static str) -> Self {
        let rpc = a2a::error_code::INVALID_AGENT_RESPONSE;
        Self::new(StatusCode::BAD_GATEWAY, "UNAVAILABLE", rpc, message)
    }

    /// The body is no JSON-RPC request: JSON-RPC 2.0 §5.1.
    pub(crate) fn parse_error() -> Self {
        let message = "the body is not JSON";
        Self::new(
            StatusCode::BAD_REQUEST,
            "INVALID",
            a2a::error_code::PARSE_ERROR,
            message,
        )
    }

    pub(crate) fn invalid_request(message: &'static str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "INVALID",
            a2a::error_code::INVALID_REQUEST,
            message,
        )
    }

    pub(crate) fn unknown_method(method: &str) -> Self {
        let shown: String = method.chars().take(64).collect();
        let message = format!("A2A has no method {shown:?}");
        Self::new(
            StatusCode::BAD_REQUEST,
            "INVALID",
            a2a::error_code::METHOD_NOT_FOUND,
            message,
        )
    }

    /// More values than are worth parsing.
    pub(crate) fn too_many_values(limit: usize) -> Self {
        let message = format!("the request has more than {limit} tokens of JSON");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "LIMIT",
            a2a::error_code::INVALID_REQUEST,
            message,
        )
    }

    /// The caller's token has ended, or no longer allows the call, while the answer was awaited.
    pub(crate) fn no_longer_allowed() -> Self {
        let message = "the API token no longer allows this call";
        Self::new(
            StatusCode::UNAUTHORIZED,
            "UNAUTHENTICATED",
            a2a::error_code::INVALID_REQUEST,
            message,
        )
    }

    /// For too long nobody could say whether the caller's token still allows the call.
    pub(crate) fn unverified() -> Self {
        Self::unavailable(
            "the API token could not be verified for a minute, which ended the call; the agent may have acted",
        )
    }

    /// The certificate of the agent's cluster was revoked while the call ran. Trying again at once helps nobody.
    pub(crate) fn revoked() -> Self {
        let message = "the certificate of the agent's cluster was revoked, which ended the call; the agent may have acted";
        let mut failure = Self::unavailable(message);
        failure.retry_after = None;
        failure
    }

    pub(crate) fn unsupported_media() -> Self {
        let message = "expected content-type application/json";
        let rpc = a2a::error_code::CONTENT_TYPE_NOT_SUPPORTED;
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "INVALID", rpc, message)
    }

    /// As a problem, with the challenge where the token is at fault.
    fn problem(&self) -> Problem {
        let problem = match self.status {
            StatusCode::UNAUTHORIZED => unauthenticated(&self.message),
            status => Problem::new(status, self.code, self.message.clone()),
        };
        match self.retry_after {
            Some(after) => problem.retry_after(after),
            None => problem,
        }
    }

    /// As a JSON-RPC answer.
    fn json_rpc(&self, rpc_id: &Value, id: &RequestId) -> Value {
        // The shape of `data` in A2A 1.0 is google.rpc.ErrorInfo.
        json!({
            "jsonrpc": "2.0",
            "id": rpc_id,
            "error": {
                "code": self.rpc,
                "message": self.message,
                "data": [{
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": self.code,
                    "domain": "roadstead.dev",
                    "metadata": {"requestId": id.as_str()},
                }],
            },
        })
    }

    /// The last event of a stream that the hub ends.
    pub(crate) fn event(&self, dialect: &Dialect, id: &RequestId) -> Bytes {
        let data = match dialect {
            Dialect::JsonRpc(rpc_id) => self.json_rpc(rpc_id, id).to_string(),
            Dialect::Http => self.problem().json(id),
        };
        format!("data: {data}\n\n").into()
    }

    /// The answer. JSON-RPC errors travel with status 200, as the A2A binding has it.
    pub(crate) fn response(&self, dialect: &Dialect, id: &RequestId) -> Response {
        let Dialect::JsonRpc(rpc_id) = dialect else {
            return self.problem().response(id);
        };
        let mut response = self.json_rpc(rpc_id, id).to_string().into_response();
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        if let Some(after) = self.retry_after {
            let seconds = HeaderValue::from(after.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

impl From<BodyError> for Failure {
    fn from(error: BodyError) -> Self {
        let (status, code, message) = error.told();
        let mut failure = Self::new(status, code, a2a::error_code::INVALID_REQUEST, message);
        if error == BodyError::Full {
            failure.retry_after = Some(Duration::from_secs(1));
        }
        failure
    }
}

impl From<TunnelError> for Failure {
    fn from(error: TunnelError) -> Self {
        match error {
            TunnelError::Away { since: Some(since) } => Self::unavailable(format!(
                "the agent's cluster has been unreachable since {}",
                since.to_rfc3339_opts(SecondsFormat::Secs, true)
            )),
            TunnelError::Away { since: None } => {
                Self::unavailable("the agent's cluster has never been connected")
            }
            TunnelError::NotReady(why) => Self::unavailable(format!("the agent is not ready: {why}")),
            TunnelError::Deadline => Self::unavailable("the agent did not answer in time"),
            TunnelError::Broken(_) => Self::unavailable("the call to the agent broke off"),
            TunnelError::Revoked => Self::revoked(),
        }
    }
}

impl From<Error> for Failure {
    /// Who may not see an agent and who may not call it are told the same.
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound { .. } | Error::Forbidden { .. } | Error::Invalid { .. } => Self::no_agent(),
            Error::Unavailable { .. } => Self::unavailable(error.to_string()),
            Error::Limit { .. } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "LIMIT",
                UNAVAILABLE,
                error.to_string(),
            ),
            other => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                other.code(),
                a2a::error_code::INTERNAL_ERROR,
                other.to_string(),
            ),
        }
    }
}
