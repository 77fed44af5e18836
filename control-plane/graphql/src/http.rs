//! `POST /graphql`. Nothing runs over GET (S17), so there is no cross-site way in: a browser cannot send JSON or a
//! bearer token to another origin without asking first, and nobody is granted anything (S19).

use crate::{
    Graphql,
    cost::Budget,
    wire::{Answer, Media, Operation, Unreadable, is_json, read, request_error},
};
use async_graphql::parser::types::OperationType;
use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use futures::stream;
use http::{HeaderValue, StatusCode, header};
use roadstead_authz::TenantContext;
use roadstead_http::{Caller, Problem, RequestId, json_tokens};
use serde_json::Value;
use std::{convert::Infallible, sync::Arc};

/// When to try again what was UNAVAILABLE, in seconds.
const RETRY_AFTER: &str = "5";

/// Answers one HTTP request: one operation, or a batch of them one after the other.
pub(crate) async fn post(
    State(graphql): State<Arc<Graphql>>,
    Caller(context): Caller,
    id: RequestId,
    request: Request,
) -> Response {
    match answer(&graphql, context, &id, request).await {
        Ok(response) => response,
        Err(problem) => problem.response(&id),
    }
}

async fn answer(
    graphql: &Graphql,
    context: TenantContext,
    id: &RequestId,
    request: Request,
) -> Result<Response, Problem> {
    let Some(media) = Media::accepted(request.headers()) else {
        let detail = "answers are application/json or application/graphql-response+json";
        return Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "INVALID", detail));
    };
    if !is_json(request.headers()) {
        let detail = "expected content-type application/json in UTF-8";
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "INVALID",
            detail,
        ));
    }
    let limit = graphql.limits.body_bytes;
    let read_whole = graphql.bodies.read(context.tenant(), request.into_body(), limit);
    // Held until the answer is made: variables live as long.
    let (bytes, _held) = read_whole.await?;
    let body = parse(&bytes, graphql.limits.json_tokens)?;
    drop(bytes);
    let (operations, batch) = match read(body, &graphql.limits) {
        Ok(read) => read,
        Err(Unreadable::Parameters(detail)) => {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "INVALID", detail));
        }
        Err(Unreadable::Document(errors)) => {
            let answer = Answer::refusal(errors, id.as_str());
            return Ok(write(answer.status(media), media, answer.into_json(), None));
        }
    };
    let budget = graphql.budget(context.tenant());
    let work = run(graphql, context, id, operations, &budget);
    let Ok(mut answers) = tokio::time::timeout(graphql.limits.time, work).await else {
        let detail =
            "the request took too long and was given up; a write may have been done: ask before repeating it";
        return Err(
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", detail)
                .retry_after(std::time::Duration::from_secs(5)),
        );
    };
    if batch {
        let all = answers.into_iter().map(Answer::into_json).collect();
        return Ok(write(StatusCode::OK, media, Value::Array(all), Some(budget)));
    }
    let answer = answers.pop().expect("`read` gives at least one operation");
    let unavailable = answer.is_unavailable();
    let mut response = write(answer.status(media), media, answer.into_json(), Some(budget));
    if unavailable {
        // As 503 outside GraphQL has it: the status says that GraphQL answered.
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    }
    Ok(response)
}

/// Counted before it is parsed: a value takes many times the memory of its text (S31).
fn parse(bytes: &[u8], limit: usize) -> Result<Value, Problem> {
    if json_tokens(bytes) > limit {
        let detail = format!("the body has more than {limit} tokens of JSON");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "LIMIT", detail));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let detail = format!(
            "the body is not JSON: line {}, column {}",
            error.line(),
            error.column()
        );
        Problem::new(StatusCode::BAD_REQUEST, "INVALID", detail)
    })
}

async fn run(
    graphql: &Graphql,
    context: TenantContext,
    id: &RequestId,
    operations: Vec<Operation>,
    budget: &Budget,
) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(operations.len());
    for operation in operations {
        let response = if operation.kind() == Some(OperationType::Subscription) {
            let message = "subscriptions are served over a WebSocket at /graphql/ws";
            async_graphql::Response::from_errors(vec![request_error("INVALID", message)])
        } else {
            let request = graphql.request(operation, context.clone(), budget.clone());
            graphql.schema.execute(request).await
        };
        answers.push(Answer::new(response, id.as_str()));
    }
    answers
}

/// Bytes of an answer that are handed to the connection at once.
const PIECE: usize = 64 * 1024;

/// A body that gives back what it holds once its last piece has been taken.
fn body(text: String, budget: Option<Budget>) -> Body {
    if text.len() <= PIECE {
        return Body::from(text);
    }
    let pieces = stream::unfold((Bytes::from(text), budget), |(mut rest, budget)| async move {
        let piece = rest.split_to(rest.len().min(PIECE));
        (!piece.is_empty()).then_some((Ok::<_, Infallible>(piece), (rest, budget)))
    });
    Body::from_stream(pieces)
}

fn write(status: StatusCode, media: Media, body: Value, budget: Option<Budget>) -> Response {
    let text = body.to_string();
    let length = HeaderValue::from(text.len());
    let mut response = (status, self::body(text, budget)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(media.content_type()),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}
