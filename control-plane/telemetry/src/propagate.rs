//! W3C trace context (<https://www.w3.org/TR/trace-context/>, `traceparent` and `tracestate`) across processes.
//!
//! The context in force is the one of the entered `tracing` span, or, in a process that exports nothing, the
//! remote one that [`within`] carries: so a trace passes through such a process unbroken.

use std::collections::HashMap;
use std::future::Future;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::context::FutureExt as _;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Instrument as _, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

pub use opentelemetry::Context;

const TRACEPARENT: &str = "traceparent";

struct Write<'a>(&'a mut HeaderMap);

impl Injector for Write<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = HeaderName::from_bytes(key.as_bytes());
        // An empty tracestate is left out, as the specification advises.
        if let (Ok(name), Ok(value), false) = (name, HeaderValue::from_str(&value), value.is_empty()) {
            self.0.insert(name, value);
        }
    }
}

struct Read<'a>(&'a HeaderMap);

impl Extractor for Read<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|v| v.to_str().ok())
    }
    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Writes the context in force into `headers`; does nothing when there is no trace.
pub fn inject(headers: &mut HeaderMap) {
    inject_context(&Context::current(), headers);
}

/// Writes the context of `span`, for callers that have not entered it.
pub fn inject_span(span: &Span, headers: &mut HeaderMap) {
    let context = span.context();
    if context.span().span_context().is_valid() {
        inject_context(&context, headers);
    } else {
        inject(headers);
    }
}

fn inject_context(context: &Context, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(context, &mut Write(headers));
}

/// The remote context that `headers` carry; an empty context when there is none or it is malformed.
#[must_use]
pub fn extract(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Read(headers))
}

/// The context in force as a `traceparent` value, for frames that have no headers; `None` without a trace.
#[must_use]
pub fn traceparent() -> Option<String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&Context::current(), &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// The remote context of a `traceparent` value; an empty context when it is malformed.
#[must_use]
pub fn from_traceparent(value: &str) -> Context {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), value.to_owned())]);
    TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
}

/// Makes `span` a child of `remote`. Call it before the span is entered; later it has no effect, and neither has
/// it when this process exports nothing.
pub fn set_parent(span: &Span, remote: &Context) {
    if remote.span().span_context().is_valid() {
        // Refused only when no OpenTelemetry layer runs or the span has started: both documented above.
        drop(span.set_parent(remote.clone()));
    }
}

/// Runs `work` in `span` as a child of `remote`: what a server does with a request.
pub fn within<F: Future>(span: Span, remote: Context, work: F) -> impl Future<Output = F::Output> {
    set_parent(&span, &remote);
    work.instrument(span).with_context(remote)
}

/// The hexadecimal trace id in force, for error answers and audit records; `None` without a trace.
#[must_use]
pub fn trace_id() -> Option<String> {
    let context = Context::current();
    let span = context.span();
    let ids = span.span_context();
    ids.is_valid().then(|| ids.trace_id().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn malformed_contexts_are_empty() {
        for bad in [
            "",
            "00-0-0-0",
            "zz-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        ] {
            assert!(!from_traceparent(bad).span().span_context().is_valid(), "{bad}");
        }
    }

    #[test]
    fn without_a_trace_nothing_is_written() {
        let mut headers = HeaderMap::new();
        inject(&mut headers);
        assert!(headers.is_empty());
        assert_eq!(traceparent(), None);
        assert_eq!(trace_id(), None);
    }

    #[tokio::test]
    async fn a_remote_trace_passes_through_a_process_that_exports_nothing() {
        let mut incoming = HeaderMap::new();
        incoming.insert("traceparent", HeaderValue::from_static(PARENT));
        incoming.insert("tracestate", HeaderValue::from_static("a=b"));
        let outgoing = within(Span::none(), extract(&incoming), async {
            let mut headers = HeaderMap::new();
            inject(&mut headers);
            assert_eq!(traceparent().as_deref(), Some(PARENT));
            assert_eq!(trace_id().as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
            headers
        })
        .await;
        assert_eq!(outgoing["traceparent"], PARENT);
        assert_eq!(outgoing["tracestate"], "a=b");
    }
}
