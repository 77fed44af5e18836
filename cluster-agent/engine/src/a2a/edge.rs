//! In front of every binding: who calls, in which media type, and how a refusal looks on each wire.

use crate::{
    auth::{Denied, Gate},
    tasks::Caller,
};
use a2a::{A2AError, JsonRpcId, JsonRpcResponse, error_code};
use a2a_server::jsonrpc::MAX_REQUEST_BODY_BYTES;
use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use roadstead_contract::numbers;
use std::sync::{Arc, OnceLock};

tokio::task_local! {
    /// The call that is being served.
    static CALL: Arc<Call>;
}

/// What the edge knows of a call, and what the handler says about the answer's status.
#[derive(Debug)]
struct Call {
    caller: Caller,
    status: OnceLock<Special>,
    /// An integer of the body that would be another one for the handler.
    inexact: Option<String>,
}

/// The gRPC service.
const GRPC_PATH: &str = "/lf.a2a.v1.A2AService/";
/// Digits of a number that are shown.
const SHOWN_DIGITS: usize = 40;

/// A refusal that the A2A errors have no status for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// 503, gRPC UNAVAILABLE.
    Unavailable,
    /// 429, gRPC RESOURCE_EXHAUSTED.
    Exhausted,
    /// 415 (S77).
    Media,
}

impl Special {
    fn http(self) -> StatusCode {
        match self {
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Exhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Media => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        }
    }
    fn grpc(self) -> Option<&'static str> {
        match self {
            Self::Unavailable => Some("14"),
            Self::Exhausted => Some("8"),
            Self::Media => None,
        }
    }
}

/// Who calls.
///
/// # Errors
/// Outside of [`admit`], where nobody was verified: nothing is served.
pub(super) fn caller() -> Result<Caller, A2AError> {
    let caller = CALL.try_with(|call| call.caller.clone());
    caller.map_err(|_| A2AError::internal("the caller is not known"))
}

/// An integer in the call's body that did not come through: the bindings hand on doubles.
pub(super) fn inexact() -> Option<String> {
    CALL.try_with(|call| call.inexact.clone()).ok().flatten()
}

/// Gives the answer of this call a status of its own.
pub(super) fn answer_with(special: Special) {
    // The first word counts; outside of a call there is no answer to change.
    let _ = CALL.try_with(|call| call.status.set(special));
}

/// The layer: a call that is not authenticated goes no further.
pub(super) async fn admit(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let grpc = is_grpc(&request);
    let caller = match gate.verify(request.headers()).await {
        Ok(caller) => caller,
        Err(denied) => return refuse(denied, grpc),
    };
    if !grpc && request.method() == Method::POST && !takes(request.headers()) {
        return unsupported_media();
    }
    let (request, inexact) = match look(request, grpc).await {
        Ok(looked) => looked,
        Err(status) => return status.into_response(),
    };
    let call = Arc::new(Call {
        caller,
        status: OnceLock::new(),
        inexact,
    });
    let mut response = CALL.scope(Arc::clone(&call), next.run(request)).await;
    if let Some(special) = call.status.get() {
        restate(&mut response, *special, grpc);
    }
    response
}

/// Looks for integers in a JSON body that are beyond what the bindings hand on. They refuse those of up to 64 bits
/// themselves; longer ones have been rounded before they see them.
async fn look(request: Request, grpc: bool) -> Result<(Request, Option<String>), StatusCode> {
    if grpc || request.method() != Method::POST {
        return Ok((request, None));
    }
    let (head, body) = request.into_parts();
    let too_large = |_| StatusCode::PAYLOAD_TOO_LARGE;
    let body = axum::body::to_bytes(body, MAX_REQUEST_BODY_BYTES)
        .await
        .map_err(too_large)?;
    // What is no text is no JSON either, and is refused as such.
    let found = std::str::from_utf8(&body).ok().and_then(numbers::inexact);
    let found = found.map(|number| number.chars().take(SHOWN_DIGITS).collect());
    Ok((Request::from_parts(head, Body::from(body)), found))
}

/// By the path too: a JSON binding would else take a body that calls itself gRPC, and nobody had looked at it.
fn is_grpc(request: &Request) -> bool {
    request.uri().path().starts_with(GRPC_PATH)
        && media(request.headers()).is_some_and(|m| m.starts_with("application/grpc"))
}

fn media(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
}

/// JSON by any of its names; a POST without a body (cancel) needs no type.
fn takes(headers: &HeaderMap) -> bool {
    let empty = headers
        .get(header::CONTENT_LENGTH)
        .is_none_or(|length| length == "0")
        && !headers.contains_key(header::TRANSFER_ENCODING);
    let Some(media) = media(headers) else { return empty };
    let essence = media
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn refuse(denied: Denied, grpc: bool) -> Response {
    let (status, code, text) = match denied {
        Denied::Unauthenticated => (StatusCode::UNAUTHORIZED, "16", "expected a good bearer token"),
        Denied::Unavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "14",
            "the engine's journal is not available; try again later",
        ),
        Denied::Forbidden(why) => (StatusCode::FORBIDDEN, "7", why),
    };
    if grpc {
        return grpc_status(code, text);
    }
    let mut response = (status, text).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// A trailers-only answer.
fn grpc_status(code: &'static str, text: &'static str) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(code));
    headers.insert("grpc-message", HeaderValue::from_static(text));
    response
}

fn unsupported_media() -> Response {
    let text = "content-type: expected application/json or application/a2a+json";
    let error = A2AError::new(error_code::CONTENT_TYPE_NOT_SUPPORTED, text);
    let body = JsonRpcResponse::error(JsonRpcId::Null, error.to_jsonrpc_error());
    (StatusCode::UNSUPPORTED_MEDIA_TYPE, Json(body)).into_response()
}

fn restate(response: &mut Response, special: Special, grpc: bool) {
    if grpc {
        if let Some(code) = special
            .grpc()
            .filter(|_| response.headers().contains_key("grpc-status"))
        {
            response
                .headers_mut()
                .insert("grpc-status", HeaderValue::from_static(code));
        }
        return;
    }
    *response.status_mut() = special.http();
    if special != Special::Media {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
}
