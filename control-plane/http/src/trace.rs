//! Whose trace a request belongs to.
//!
//! `traceparent` is what a caller says of itself. Until the caller is verified it means nothing: whoever may knock could
//! else hang spans, and the trace ids of audit records, onto the traces of others. So the request's span begins without
//! a parent, is entered by nobody while login looks, and gets its parent with the caller.

use axum::extract::Request;
use http::HeaderMap;
use roadstead_telemetry::propagate::{self, Context};
use std::future::Future;
use tracing::Span;

/// The span of one request, not yet begun, and the trace that its caller claims. [`crate::guard()`] puts it into the
/// request's extensions.
#[derive(Clone, Debug)]
pub struct Trace {
    span: Span,
    claimed: Context,
}

impl Trace {
    pub(crate) fn new(span: Span, headers: &HeaderMap) -> Self {
        Self {
            span,
            claimed: propagate::extract(headers),
        }
    }

    /// Runs what the request asks for as part of its caller's trace: for a caller who was verified. Without a trace of
    /// the caller's it is the beginning of one.
    pub async fn joined<F: Future>(self, work: F) -> F::Output {
        propagate::within(self.span, self.claimed, work).await
    }

    /// Runs what the request asks for in a trace of its own: for whoever is not known.
    pub async fn apart<F: Future>(self, work: F) -> F::Output {
        propagate::within(self.span, Context::new(), work).await
    }

    /// The trace of a request; an empty one where a router is used without [`crate::guard()`].
    #[must_use]
    pub fn of(request: &Request) -> Self {
        let found = request.extensions().get::<Self>().cloned();
        found.unwrap_or_else(|| Self {
            span: Span::none(),
            claimed: Context::new(),
        })
    }
}
