//! The A2A 1.0 server: JSON-RPC (with SSE), HTTP+JSON and gRPC on one port, over [`crate::tasks`]; and 0.3, by
//! translation.
//!
//! The wire is the a2a crates'; the handler is our own, because theirs rewrites whole tasks on each event. Everything
//! but `/livez` and `/readyz` needs a token, the agent card too.

mod card;
mod convert;
mod edge;
mod handler;
mod v03;

pub(crate) use convert::USAGE;

use crate::{auth::Gate, revision::Current, tasks::Tasks};
use a2a_pb::proto::a2a_service_server::A2aServiceServer;
use axum::{Router, extract::State, http::StatusCode, middleware, response::IntoResponse, routing::get};
use handler::Handler;
use std::sync::Arc;

/// What the edge needs.
#[derive(Clone, Debug)]
pub struct Edge {
    pub tasks: Arc<Tasks>,
    pub current: Arc<Current>,
    pub gate: Arc<Gate>,
    /// `host:port` for the card where a request names no host.
    pub address: String,
}

/// Every route of an engine.
pub fn router(edge: Edge) -> Router {
    let handler = Arc::new(Handler::new(Arc::clone(&edge.tasks)));
    let grpc = A2aServiceServer::new(a2a_grpc::GrpcHandler::new(Arc::clone(&handler)));
    let cards = card::Cards::new(Arc::clone(&edge.current), edge.address.clone());
    let served = a2a_server::jsonrpc::jsonrpc_router(Arc::clone(&handler))
        .merge(a2a_server::rest::rest_router(Arc::clone(&handler)))
        .merge(card::router(cards))
        .merge(
            tonic::service::Routes::new(grpc)
                .into_axum_router()
                .reset_fallback(),
        )
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(middleware::from_fn_with_state(handler, v03::translate))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&edge.gate),
            edge::admit,
        ));
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready).with_state(edge.tasks))
        .merge(served)
}

/// Readiness says nothing but yes or no: why is in the log and on the control channel.
async fn ready(State(tasks): State<Arc<Tasks>>) -> impl IntoResponse {
    match tasks.ready().await {
        Ok(()) => (StatusCode::OK, "ok"),
        Err(reason) => {
            tracing::warn!(reason, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, "not ready")
        }
    }
}
