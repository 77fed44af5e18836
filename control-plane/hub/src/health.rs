//! Whether the process lives and can serve, and its metrics.
//!
//! Liveness never asks the database: a hub whose database is away must not be restarted for it. Readiness does: it
//! writes. Anybody may ask, so the database is asked at most once in [`FRESH`], however many do.

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use roadstead_store::Store;
use roadstead_telemetry::Metrics;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Mutex, time::Instant};

/// For the database to answer a probe.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an answer is given again.
const FRESH: Duration = Duration::from_secs(2);
/// RFC 9110 §10.2.3, in seconds.
const RETRY_AFTER: &str = "5";

/// `None`: ready; else why not.
type Answer = Option<String>;

#[derive(Clone, Debug)]
struct Ready {
    store: Store,
    last: Arc<Mutex<Option<(Instant, Answer)>>>,
}

impl Ready {
    async fn ask(&self) -> Answer {
        // Held while the database is asked: the others wait for that answer.
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < FRESH
        {
            return answer.clone();
        }
        let answer = match tokio::time::timeout(PATIENCE, self.store.readiness()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                tracing::warn!(%error, detail = ?std::error::Error::source(&error), "not ready");
                Some(error.to_string())
            }
            Err(_) => {
                tracing::warn!("not ready: the database does not answer");
                Some("the database does not answer".to_owned())
            }
        };
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

/// `/livez` and `/readyz`.
pub(crate) fn router(store: Store) -> Router {
    let ready = Ready {
        store,
        last: Arc::default(),
    };
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .method_not_allowed_fallback(roadstead_http::method_not_allowed)
        .with_state(ready)
}

async fn readyz(State(ready): State<Ready>) -> Response {
    match ready.ask().await {
        None => "ok\n".into_response(),
        Some(why) => {
            let headers = [(header::RETRY_AFTER, RETRY_AFTER)];
            (StatusCode::SERVICE_UNAVAILABLE, headers, format!("{why}\n")).into_response()
        }
    }
}

/// `/metrics`, for a port of its own.
pub(crate) fn metrics(metrics: Metrics) -> Router {
    let text = |State(metrics): State<Metrics>| async move {
        ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], metrics.text())
    };
    Router::new().route("/metrics", get(text)).with_state(metrics)
}
