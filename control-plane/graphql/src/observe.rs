//! Metrics of operations: an extension of the schema, so that every way in is counted.

use async_graphql::{
    Request, Response, Variables,
    extensions::{
        Extension, ExtensionContext, ExtensionFactory, NextParseQuery, NextPrepareRequest, NextRequest,
        NextSubscribe,
    },
    parser::types::{ExecutableDocument, OperationType},
};
use futures::stream::BoxStream;
use parking_lot::Mutex;
use roadstead_telemetry::{Counter, Histogram, label, meter};
use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

/// The codes that answers carry; anything else is counted as `INVALID`, as it is answered.
const CODES: [&str; 8] = [
    "INVALID",
    "NOT_FOUND",
    "FORBIDDEN",
    "CONFLICT",
    "LIMIT",
    "UNAVAILABLE",
    "UNAUTHENTICATED",
    "INTERNAL",
];

fn durations() -> &'static Histogram<f64> {
    static DURATIONS: OnceLock<Histogram<f64>> = OnceLock::new();
    DURATIONS.get_or_init(|| {
        meter("roadstead_graphql")
            .f64_histogram("roadstead.hub.graphql.operation.duration")
            .with_unit("s")
            .with_description("From an operation's text to its answer.")
            .with_boundaries(vec![
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            ])
            .build()
    })
}

fn subscriptions() -> &'static Counter<u64> {
    static SUBSCRIPTIONS: OnceLock<Counter<u64>> = OnceLock::new();
    SUBSCRIPTIONS.get_or_init(|| {
        meter("roadstead_graphql")
            .u64_counter("roadstead.hub.graphql.subscriptions")
            .with_description("Subscriptions that began.")
            .build()
    })
}

/// The extension.
#[derive(Debug)]
pub(crate) struct Observe;

impl ExtensionFactory for Observe {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(Observed {
            begun: Instant::now(),
            name: Mutex::default(),
            kind: Mutex::new("unknown"),
        })
    }
}

struct Observed {
    begun: Instant,
    name: Mutex<Option<String>>,
    kind: Mutex<&'static str>,
}

fn kind(document: &ExecutableDocument, name: Option<&str>) -> &'static str {
    let mut operations = document.operations.iter();
    let chosen = match name {
        Some(name) => operations.find(|(own, _)| own.is_some_and(|own| own.as_str() == name)),
        None => operations.next(),
    };
    match chosen.map(|(_, operation)| operation.node.ty) {
        Some(OperationType::Query) => "query",
        Some(OperationType::Mutation) => "mutation",
        Some(OperationType::Subscription) => "subscription",
        None => "unknown",
    }
}

fn outcome(response: &Response) -> &'static str {
    let Some(error) = response.errors.first() else {
        return "ok";
    };
    let code = error.extensions.as_ref().and_then(|e| e.get("code"));
    let code = code.and_then(|code| match code {
        async_graphql::Value::String(code) => CODES.into_iter().find(|known| known == code),
        _ => None,
    });
    code.unwrap_or("INVALID")
}

#[async_trait::async_trait]
impl Extension for Observed {
    async fn request(&self, ctx: &ExtensionContext<'_>, next: NextRequest<'_>) -> Response {
        let response = next.run(ctx).await;
        let labels = [
            label("kind", *self.kind.lock()),
            label("outcome", outcome(&response)),
        ];
        durations().record(self.begun.elapsed().as_secs_f64(), &labels);
        response
    }

    async fn prepare_request(
        &self,
        ctx: &ExtensionContext<'_>,
        request: Request,
        next: NextPrepareRequest<'_>,
    ) -> async_graphql::ServerResult<Request> {
        self.name.lock().clone_from(&request.operation_name);
        next.run(ctx, request).await
    }

    /// Of a subscription nothing else is called.
    fn subscribe<'s>(
        &self,
        ctx: &ExtensionContext<'_>,
        stream: BoxStream<'s, Response>,
        next: NextSubscribe<'_>,
    ) -> BoxStream<'s, Response> {
        subscriptions().add(1, &[]);
        next.run(ctx, stream)
    }

    async fn parse_query(
        &self,
        ctx: &ExtensionContext<'_>,
        query: &str,
        variables: &Variables,
        next: NextParseQuery<'_>,
    ) -> async_graphql::ServerResult<ExecutableDocument> {
        let document = next.run(ctx, query, variables).await?;
        *self.kind.lock() = kind(&document, self.name.lock().as_deref());
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_graphql::parser::parse_query;

    #[test]
    fn the_kind_is_that_of_the_operation() {
        let two = parse_query("query A { a } mutation B { b }").unwrap();
        assert_eq!(kind(&two, Some("B")), "mutation");
        assert_eq!(kind(&two, Some("C")), "unknown");
        assert_eq!(kind(&parse_query("{ a }").unwrap(), None), "query");
    }

    #[test]
    fn an_outcome_is_one_of_the_codes() {
        let error = |code: &str| {
            let mut error = async_graphql::ServerError::new("x", None);
            let extensions = error.extensions.get_or_insert_with(Default::default);
            extensions.set("code", code);
            Response::from_errors(vec![error])
        };
        assert_eq!(outcome(&error("UNAVAILABLE")), "UNAVAILABLE");
        assert_eq!(outcome(&error("whatever somebody wrote")), "INVALID");
        assert_eq!(outcome(&Response::default()), "ok");
    }
}
