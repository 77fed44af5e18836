//! Whether the process lives and can serve, and its metrics.
//!
//! Liveness never asks the database: a hub whose database is away must not be restarted for it. Readiness does.

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use roadstead_domain::Error;
use roadstead_store::Store;
use roadstead_telemetry::Metrics;
use std::time::Duration;

/// For the database to answer a probe.
const PATIENCE: Duration = Duration::from_secs(2);

/// `/livez` and `/readyz`.
pub(crate) fn router(store: Store) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(store)
}

async fn ready(State(store): State<Store>) -> Response {
    match tokio::time::timeout(PATIENCE, store.readiness()).await {
        Ok(Ok(())) => "ok\n".into_response(),
        Ok(Err(error)) => not_ready(&error),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n").into_response(),
    }
}

fn not_ready(error: &Error) -> Response {
    tracing::warn!(%error, "not ready");
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
}

/// `/metrics`, for a port of its own.
pub(crate) fn metrics(metrics: Metrics) -> Router {
    let text = |State(metrics): State<Metrics>| async move {
        (
            [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
            metrics.text(),
        )
    };
    Router::new().route("/metrics", get(text)).with_state(metrics)
}
