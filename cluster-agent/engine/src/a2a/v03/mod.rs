//! A2A 0.3 on the addresses of 1.0 (S77): its requests become the 1.0 operations of [`Handler`], and what those answer
//! becomes 0.3 again.
//!
//! Nothing is decided here. The layer lies inside of [`super::edge::admit`], so that who calls is known before a word
//! is translated, and every operation goes through the one handler: a limit, an owner or a right that holds there
//! holds here.
//!
//! JSON-RPC carries the types of the specification (`kind`, lower-case states); HTTP+JSON the JSON of its normative
//! `a2a.proto` (`content`, `ROLE_USER`), as the official SDKs have it. In requests HTTP+JSON takes either.
//! Source: A2A 0.3.0 §7 and `specification/grpc/a2a.proto`; 1.0 §3.6 for the version.

pub(super) mod card;
mod read;
mod rest;
mod rpc;
#[cfg(test)]
mod tests;
mod write;

use super::handler::{AFTER, Handler, LAST_EVENT};
use a2a::{
    A2AError, CancelTaskRequest, GetExtendedAgentCardRequest, GetTaskRequest, ListTasksRequest,
    SendMessageRequest, SendMessageResponse, StreamResponse, SubscribeToTaskRequest, error_code,
};
use a2a_server::{RequestHandler as _, ServiceParams};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method},
    middleware::Next,
    response::Response,
};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use serde_json::Value;
use std::sync::Arc;
use write::Form;

/// Tasks of a list; 0.3 has no pages.
const LISTED: i32 = 100;
const VERSION_HEADER: &str = "a2a-version";

/// What a request of 0.3 asks.
#[derive(Debug)]
enum Operation {
    Send(Box<SendMessageRequest>),
    Stream(Box<SendMessageRequest>),
    Get(GetTaskRequest),
    List,
    Cancel(String),
    Resubscribe(String),
    /// Whatever is asked of push notifications.
    Push,
    ExtendedCard,
}

enum Answer {
    One(Value),
    Events(BoxStream<'static, Result<Value, A2AError>>),
}

/// The layer: what is not of 0.3 goes on as it is.
pub(super) async fn translate(State(handler): State<Arc<Handler>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path.starts_with("/v1/") {
        return rest::serve(&handler, request).await;
    }
    // A2A 1.0 §3.6.1: a version may stand in the query as well.
    let in_query = request.uri().query().is_some_and(names_version);
    if path == "/" && request.method() == Method::POST && !in_query && is_spoken(request.headers()) {
        return rpc::serve(&handler, request, next).await;
    }
    next.run(request).await
}

/// A2A 1.0 §3.6: a call without a version is one of 0.3.
fn is_spoken(headers: &HeaderMap) -> bool {
    headers.get(VERSION_HEADER).is_none_or(|version| {
        let version = version.to_str().map(str::trim);
        version.is_ok_and(|v| matches!(v, "" | "0.3") || v.starts_with("0.3."))
    })
}

fn names_version(query: &str) -> bool {
    let mut names = query.split('&').filter_map(|pair| pair.split('=').next());
    names.any(|name| name.eq_ignore_ascii_case(VERSION_HEADER))
}

/// What the handler reads of a call's headers. Its version is 1.0, which is what it is asked in.
fn service(headers: &HeaderMap) -> ServiceParams {
    let mut params = ServiceParams::from([(VERSION_HEADER.to_owned(), vec![a2a::VERSION.to_owned()])]);
    for name in [AFTER, LAST_EVENT] {
        if let Some(value) = headers.get(name).and_then(|v| v.to_str().ok()) {
            params.insert(name.to_owned(), vec![value.to_owned()]);
        }
    }
    params
}

async fn perform(
    handler: &Handler,
    headers: &HeaderMap,
    operation: Operation,
    form: Form,
) -> Result<Answer, A2AError> {
    let params = &service(headers);
    let one = |task| Ok(Answer::One(form.task(task)));
    match operation {
        Operation::Send(request) => match handler.send_message(params, *request).await? {
            SendMessageResponse::Task(task) => Ok(Answer::One(form.event(StreamResponse::Task(task), true))),
            SendMessageResponse::Message(message) => {
                Ok(Answer::One(form.event(StreamResponse::Message(message), true)))
            }
        },
        Operation::Stream(request) => {
            let events = handler.send_streaming_message(params, *request).await?;
            // It ends where the task waits for a person, too.
            Ok(Answer::Events(said(events, form, true)))
        }
        Operation::Resubscribe(id) => {
            let request = SubscribeToTaskRequest { id, tenant: None };
            let events = handler.subscribe_to_task(params, request).await?;
            Ok(Answer::Events(said(events, form, false)))
        }
        Operation::Get(request) => one(handler.get_task(params, request).await?),
        Operation::Cancel(id) => {
            let request = CancelTaskRequest {
                id,
                metadata: None,
                tenant: None,
            };
            one(handler.cancel_task(params, request).await?)
        }
        Operation::List => {
            let tasks = handler.list_tasks(params, list()).await?.tasks;
            Ok(Answer::One(tasks.into_iter().map(|t| form.task(t)).collect()))
        }
        Operation::Push => Err(A2AError::push_notification_not_supported()),
        Operation::ExtendedCard => {
            let request = GetExtendedAgentCardRequest { tenant: None };
            match handler.get_extended_agent_card(params, request).await {
                Ok(_) => Err(A2AError::internal("an extended card is not translated")),
                Err(error) => Err(A2AError::new(
                    error_code::EXTENDED_CARD_NOT_CONFIGURED,
                    error.message,
                )),
            }
        }
    }
}

/// What a stream says. Where its last word is a whole task (a message that came twice, an answer to one of several
/// questions, a reader who was late), the end is said after it: clients of 0.3 wait for `final`.
fn said(
    events: BoxStream<'static, Result<StreamResponse, A2AError>>,
    form: Form,
    until_pause: bool,
) -> BoxStream<'static, Result<Value, A2AError>> {
    let each = move |event: Result<StreamResponse, A2AError>| {
        let said = event.map(|event| {
            let end = form.end_of(&event, until_pause);
            std::iter::once(form.event(event, until_pause)).chain(end)
        });
        let said: Vec<Result<Value, A2AError>> = match said {
            Ok(values) => values.map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        stream::iter(said)
    };
    events.flat_map(each).boxed()
}

fn list() -> ListTasksRequest {
    ListTasksRequest {
        context_id: None,
        status: None,
        page_size: Some(LISTED),
        page_token: None,
        history_length: None,
        status_timestamp_after: None,
        include_artifacts: Some(true),
        tenant: None,
    }
}
