//! The outermost layer of every face: a request id, and a process that outlives a panic.
//!
//! The id is always the hub's own: one that a caller sends would let it write into other people's log lines.

use crate::{
    Problem, REQUEST_ID, Trace,
    observe::{Route, Who, answered, method_label},
};
use axum::{
    extract::{FromRequestParts, Request},
    middleware::Next,
    response::Response,
};
use futures::FutureExt as _;
use http::{HeaderValue, Method, StatusCode, request::Parts};
use roadstead_domain::{OsRandom, Random as _};
use std::{convert::Infallible, fmt, panic::AssertUnwindSafe, sync::Arc, time::Instant};
use tracing::Instrument as _;

/// The id of one request: 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// A new random id.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; 16];
        OsRandom.fill(&mut bytes);
        Self(format!("{:032x}", u128::from_be_bytes(bytes)).into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RequestId {
    type Rejection = Infallible;

    /// The id that [`guard`] gave; a new one where a router is used without it.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        if let Some(id) = parts.extensions.get::<Self>() {
            return Ok(id.clone());
        }
        let id = Self::generate();
        parts.extensions.insert(id.clone());
        Ok(id)
    }
}

/// Gives the request its id and its span ([`Trace`]), writes one line about it, measures it, and answers a panic with a
/// problem.
/// For `axum::middleware::from_fn`, outside everything else.
pub async fn guard(mut request: Request, next: Next) -> Response {
    let id = RequestId::generate();
    request.extensions_mut().insert(id.clone());
    let route = Route::of(request.uri().path());
    let verb = method_label(request.method());
    let span = tracing::info_span!(
        "request",
        otel.name = format!("{verb} {}", route.as_str()),
        otel.kind = "server",
        request.id = %id,
        http.request.method = %request.method(),
        url.path = request.uri().path(),
        http.response.status_code = tracing::field::Empty,
    );
    let trace = Trace::new(span.clone(), request.headers());
    request.extensions_mut().insert(trace);
    // For the lines that are written before the caller is known. Not exported: it begins no span of a trace.
    let unknown = tracing::info_span!(target: "unverified", "request", request.id = %id);
    // The path, never the query: a credential may have been put there by mistake.
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let begun = Instant::now();
    let work = AssertUnwindSafe(next.run(request)).catch_unwind();
    let worked = work.instrument(unknown).await;
    // Whoever was refused has begun no span: then it begins here, without a parent, and with the time it really began.
    let mut response = span.in_scope(|| {
        let mut response = worked.unwrap_or_else(|_| {
            // The panic hook has logged the place; its text stays inside.
            tracing::error!("the handler of this request panicked");
            let detail = "the hub failed; the request id leads to the reason in its log";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", detail).response(&id)
        });
        span.record("http.response.status_code", response.status().as_u16());
        told((&method, &path), &mut response, &id, begun);
        response
    });
    named(&mut response, &id);
    response
}

/// The answer to a request that is turned away before any face, and so before [`guard`]: measured, and in the request log,
/// like any other.
#[must_use]
pub fn turn_away(method: &Method, path: &str, problem: &Problem) -> Response {
    let id = RequestId::generate();
    let mut response = problem.response(&id);
    told((method, path), &mut response, &id, Instant::now());
    named(&mut response, &id);
    response
}

/// Measures an answer and writes the one line about it.
fn told((method, path): (&Method, &str), response: &mut Response, id: &RequestId, begun: Instant) {
    let (route, status, took) = (Route::of(path), response.status().as_u16(), begun.elapsed());
    answered(route, method, status, took);
    let who = response.extensions_mut().remove::<Who>();
    let (tenant, actor) = who.map(|who| (who.tenant, who.actor)).unzip();
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match route {
        // Asked every few seconds by whoever watches the hub.
        Route::Health if status < 500 => {
            tracing::debug!(%method, path, status, took_ms, "answered");
        }
        _ => tracing::info!(
            %method, path, status, took_ms,
            tenant.id = tenant, actor, request.id = %id,
            "answered"
        ),
    }
}

fn named(response: &mut Response, id: &RequestId) {
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, body::Body, middleware::from_fn, routing::get};
    use http_body_util::BodyExt as _;
    use serde_json::Value;
    use tower::ServiceExt as _;

    async fn ask(request: http::request::Builder) -> (Response<()>, Value) {
        let app = Router::new()
            .route(
                "/boom",
                get(async || -> String { panic!("a secret sentence from inside") }),
            )
            .fallback(crate::not_found)
            .method_not_allowed_fallback(crate::method_not_allowed)
            .layer(from_fn(guard));
        let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (
            Response::from_parts(parts, ()),
            serde_json::from_slice(&body).unwrap(),
        )
    }

    #[tokio::test]
    async fn s24_a_panic_gives_a_generic_answer_with_the_request_id() {
        let (response, body) = ask(http::Request::get("/boom")).await;
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(body["code"], "INTERNAL");
        assert_eq!(
            body["request_id"],
            response.headers()[REQUEST_ID].to_str().unwrap()
        );
        assert!(!body.to_string().contains("secret sentence"));
    }

    #[tokio::test]
    async fn s26_an_unused_method_is_405_and_names_those_there_are() {
        let (response, body) = ask(http::Request::builder().method("TRACE").uri("/boom")).await;
        assert_eq!(response.status(), 405);
        assert!(response.headers()["allow"].to_str().unwrap().contains("GET"));
        assert_eq!(body["status"], 405);
    }

    #[tokio::test]
    async fn s25_a_callers_request_id_changes_nothing() {
        let (response, body) = ask(http::Request::get("/nope").header(REQUEST_ID, "forged")).await;
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers()[REQUEST_ID].len(), 32);
        assert_eq!(body["request_id"].as_str().unwrap().len(), 32);
    }

    /// Keeps each event as its fields in text.
    struct Lines(Arc<parking_lot::Mutex<Vec<String>>>);

    struct Fields(String);

    impl tracing::field::Visit for Fields {
        fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
            self.0.push_str(&format!("{field}={value:?} "));
        }
    }

    impl tracing::Subscriber for Lines {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::Id {
            tracing::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::Id, _: &tracing::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let mut fields = Fields(String::new());
            event.record(&mut fields);
            self.0.lock().push(fields.0);
        }
        fn enter(&self, _: &tracing::Id) {}
        fn exit(&self, _: &tracing::Id) {}
    }

    #[test]
    fn what_is_turned_away_is_in_the_request_log_and_has_an_id() {
        let lines = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "LIMIT", "too many");
        let response = tracing::subscriber::with_default(Lines(lines.clone()), || {
            turn_away(&Method::POST, "/graphql", &problem)
        });
        assert_eq!(response.status(), 429);
        let id = response.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        let lines = lines.lock();
        let line = lines.iter().find(|line| line.contains("answered")).unwrap();
        for said in ["method=POST", "/graphql", "status=429", &id] {
            assert!(line.contains(said), "{said}: {line}");
        }
    }
}
