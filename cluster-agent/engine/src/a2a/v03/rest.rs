//! HTTP+JSON of 0.3: what is below `/v1/`.
//!
//! The raw path is judged, as the hub and the cluster agent judge it.

use super::{Answer, Form, Operation, VERSION_HEADER, is_spoken, perform, read};
use crate::a2a::handler::Handler;
use a2a::{A2AError, GetTaskRequest, error_code, error_reason};
use a2a_server::{jsonrpc::MAX_REQUEST_BODY_BYTES, sse};
use axum::{
    Json,
    body::{Body, to_bytes},
    extract::{Query, Request},
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;

#[derive(Debug, Deserialize)]
struct GetQuery {
    #[serde(default, rename = "historyLength")]
    history_length: Option<i32>,
}

pub(super) async fn serve(handler: &Handler, request: Request) -> Response {
    let (head, body) = request.into_parts();
    if !is_spoken(&head.headers) {
        let asked = head.headers.get(VERSION_HEADER).and_then(|v| v.to_str().ok());
        return refuse(&A2AError::version_not_supported(asked.unwrap_or("not readable")));
    }
    let answer = match operation(&head.method, &head.uri, body).await {
        Ok(Some(operation)) => perform(handler, &head.headers, operation, Form::Rest).await,
        Ok(None) => return StatusCode::NOT_FOUND.into_response(),
        Err(error) => Err(error),
    };
    match answer {
        Ok(Answer::One(value)) => Json(value).into_response(),
        Ok(Answer::Events(events)) => sse::sse_from_stream(events).into_response(),
        Err(error) => refuse(&error),
    }
}

/// `None`: 0.3 has no such operation.
async fn operation(method: &Method, uri: &Uri, body: Body) -> Result<Option<Operation>, A2AError> {
    let below = uri.path().strip_prefix("/v1/").unwrap_or_default();
    let segments: Vec<&str> = below.split('/').collect();
    let (get, post) = (method == Method::GET, method == Method::POST);
    Ok(match segments.as_slice() {
        ["message:send"] if post => Some(Operation::Send(Box::new(message(body).await?))),
        ["message:stream"] if post => Some(Operation::Stream(Box::new(message(body).await?))),
        ["card"] if get => Some(Operation::ExtendedCard),
        ["tasks"] if get => Some(Operation::List),
        ["tasks", task] => match task.split_once(':') {
            None if get && is_id(task) => Some(Operation::Get(GetTaskRequest {
                id: (*task).to_owned(),
                history_length: history_length(uri)?,
                tenant: None,
            })),
            Some((id, "cancel")) if post && is_id(id) => Some(Operation::Cancel(id.to_owned())),
            Some((id, "subscribe")) if (get || post) && is_id(id) => {
                Some(Operation::Resubscribe(id.to_owned()))
            }
            _ => None,
        },
        ["tasks", task, "pushNotificationConfigs"] if (get || post) && is_id(task) => Some(Operation::Push),
        ["tasks", task, "pushNotificationConfigs", config]
            if (get || method == Method::DELETE) && is_id(task) && is_id(config) =>
        {
            Some(Operation::Push)
        }
        _ => None,
    })
}

async fn message(body: Body) -> Result<a2a::SendMessageRequest, A2AError> {
    let body = to_bytes(body, MAX_REQUEST_BODY_BYTES).await;
    let body = body.map_err(|_| A2AError::invalid_request("the body is too large or broke off"))?;
    let body = serde_json::from_slice(&body);
    let body = body.map_err(|e| A2AError::new(error_code::PARSE_ERROR, format!("parse error: {e}")))?;
    read::send(body, Form::Rest)
}

fn history_length(uri: &Uri) -> Result<Option<i32>, A2AError> {
    let query = Query::<GetQuery>::try_from_uri(uri);
    let invalid = |_| A2AError::invalid_params("historyLength: expected a number");
    Ok(query.map_err(invalid)?.0.history_length)
}

/// An id that means the same to every reader of a path: no escape, no dot segment.
fn is_id(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b'~');
    (1..=128).contains(&text.len()) && text.bytes().all(plain) && text.bytes().any(|c| c != b'.')
}

/// 0.3 leaves the form open (§3.2.3): the members of a JSON-RPC error, and its name.
fn refuse(error: &A2AError) -> Response {
    let status = StatusCode::from_u16(error.http_status_code());
    let body = json!({
        "code": error.code,
        "message": error.message,
        "type": error_reason(error.code),
    });
    (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), Json(body)).into_response()
}
