//! Metrics of A2A calls: a layer around the edge, which does not look inside.

use axum::{body::Body, extract::Request, middleware::Next, response::Response};
use futures::StreamExt as _;
use http::{Method, StatusCode};
use roadstead_telemetry::{Counter, UpDownCounter, label, meter};
use std::sync::OnceLock;

struct Instruments {
    calls: Counter<u64>,
    streams: UpDownCounter<i64>,
}

fn instruments() -> &'static Instruments {
    static INSTRUMENTS: OnceLock<Instruments> = OnceLock::new();
    INSTRUMENTS.get_or_init(|| {
        let meter = meter("roadstead_gateway");
        Instruments {
            calls: meter
                .u64_counter("roadstead.hub.a2a.calls")
                .with_description("A2A calls, by binding and how they were answered.")
                .build(),
            streams: meter
                .i64_up_down_counter("roadstead.hub.a2a.streams.live")
                .with_description("Streamed answers that are under way.")
                .build(),
        }
    })
}

/// A stream is live until its body is dropped: sent whole, broken off, or its caller gone.
struct Live;

impl Live {
    fn begin() -> Self {
        instruments().streams.add(1, &[]);
        Self
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        instruments().streams.add(-1, &[]);
    }
}

fn binding(method: &Method, path: &str) -> &'static str {
    if path.ends_with("/.well-known/agent-card.json") {
        "card"
    } else if *method == Method::POST && path.trim_end_matches('/').split('/').count() == 5 {
        // `/a2a/{tenant}/{project}/{agent}`
        "json_rpc"
    } else {
        "rest"
    }
}

fn outcome(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200..=399 => "answered",
        404 => "not_found",
        401 | 403 => "refused",
        429 => "limited",
        503 => "unavailable",
        504 => "deadline",
        400..=499 => "invalid",
        _ => "failed",
    }
}

/// For `axum::middleware::from_fn`.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let binding = binding(request.method(), request.uri().path());
    let response = next.run(request).await;
    let labels = [
        label("binding", binding),
        label("outcome", outcome(response.status())),
    ];
    instruments().calls.add(1, &labels);
    if !crate::headers::is_event_stream(response.headers()) {
        return response;
    }
    let live = Live::begin();
    response.map(|body| {
        let body = body.into_data_stream().map(move |chunk| {
            let _until_the_end = &live;
            chunk
        });
        Body::from_stream(body)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_are_told_apart_by_path() {
        assert_eq!(binding(&Method::POST, "/a2a/acme/support/helper"), "json_rpc");
        assert_eq!(binding(&Method::POST, "/a2a/acme/support/helper/"), "json_rpc");
        assert_eq!(
            binding(&Method::POST, "/a2a/acme/support/helper/v1/message:send"),
            "rest"
        );
        let card = "/a2a/acme/support/helper/.well-known/agent-card.json";
        assert_eq!(binding(&Method::GET, card), "card");
    }
}
