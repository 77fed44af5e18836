//! JSON-RPC of 0.3.

use super::{Answer, Form, Operation, perform, read};
use crate::a2a::handler::Handler;
use a2a::{A2AError, GetTaskRequest, JsonRpcRequest, JsonRpcResponse};
use a2a_server::{jsonrpc::MAX_REQUEST_BODY_BYTES, sse};
use axum::{
    Json,
    body::{Body, to_bytes},
    extract::Request,
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::Value;

pub(super) async fn serve(handler: &Handler, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_REQUEST_BODY_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let rpc = match serde_json::from_slice::<JsonRpcRequest>(&body) {
        Ok(rpc) if rpc.jsonrpc == "2.0" => rpc,
        // What is no JSON-RPC is none in any version, and the binding of 1.0 says so.
        _ => return next.run(Request::from_parts(head, Body::from(body))).await,
    };
    let answer = match operation(&rpc.method, rpc.params.unwrap_or_default()) {
        Ok(operation) => perform(handler, &head.headers, operation, Form::Rpc).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(Answer::One(value)) => Json(JsonRpcResponse::success(rpc.id, value)).into_response(),
        Ok(Answer::Events(events)) => sse::sse_jsonrpc_stream(rpc.id, events).into_response(),
        Err(error) => Json(JsonRpcResponse::error(rpc.id, error.to_jsonrpc_error())).into_response(),
    }
}

fn operation(method: &str, params: Value) -> Result<Operation, A2AError> {
    Ok(match method {
        "message/send" => Operation::Send(Box::new(read::send(params, Form::Rpc)?)),
        "message/stream" => Operation::Stream(Box::new(read::send(params, Form::Rpc)?)),
        "tasks/get" => {
            let task = read::task(params)?;
            Operation::Get(GetTaskRequest {
                id: task.id,
                history_length: task.history_length,
                tenant: None,
            })
        }
        "tasks/cancel" => Operation::Cancel(read::task(params)?.id),
        "tasks/resubscribe" => Operation::Resubscribe(read::task(params)?.id),
        "tasks/pushNotificationConfig/set"
        | "tasks/pushNotificationConfig/get"
        | "tasks/pushNotificationConfig/list"
        | "tasks/pushNotificationConfig/delete" => Operation::Push,
        "agent/getAuthenticatedExtendedCard" => Operation::ExtendedCard,
        other => {
            let shown: String = other.chars().take(64).collect();
            return Err(A2AError::method_not_found(&format!(
                "{shown} (A2A 0.3; for 1.0 send the header A2A-Version: 1.0)"
            )));
        }
    })
}
