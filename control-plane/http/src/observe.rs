//! What is told of every request: one line in the log, and numbers by route and status.

use http::Method;
use roadstead_telemetry::{Histogram, Label, label, meter};
use std::{sync::OnceLock, time::Duration};

/// Who a request turned out to come from, as ids. Login puts it into the answer's extensions, for the outermost layer.
#[derive(Clone, Debug)]
pub struct Who {
    pub tenant: String,
    pub actor: String,
}

/// The kinds of route that are told apart: an enumeration, since paths hold names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Graphql,
    Socket,
    A2a,
    Health,
    Other,
}

impl Route {
    pub(crate) fn of(path: &str) -> Self {
        match path {
            "/graphql" => Self::Graphql,
            "/graphql/ws" => Self::Socket,
            "/livez" | "/readyz" => Self::Health,
            _ if path.starts_with("/a2a/") => Self::A2a,
            _ => Self::Other,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Graphql => "graphql",
            Self::Socket => "graphql_ws",
            Self::A2a => "a2a",
            Self::Health => "health",
            Self::Other => "other",
        }
    }
}

/// The methods that are told apart: anybody may send any word.
pub(crate) fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

fn durations() -> &'static Histogram<f64> {
    static DURATIONS: OnceLock<Histogram<f64>> = OnceLock::new();
    DURATIONS.get_or_init(|| {
        meter("roadstead_http")
            .f64_histogram("http.server.request.duration")
            .with_unit("s")
            .with_description("From the request's head to the answer's head; a stream goes on after that.")
            .with_boundaries(vec![
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            ])
            .build()
    })
}

/// Counts a request (OpenTelemetry's `http.server.request.duration`).
pub(crate) fn answered(route: Route, method: &Method, status: u16, took: Duration) {
    let labels = [
        label("http.route", route.as_str()),
        label("http.request.method", method_label(method)),
        Label::new("http.response.status_code", i64::from(status)),
    ];
    durations().record(took.as_secs_f64(), &labels);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_enumerations() {
        assert_eq!(Route::of("/a2a/acme/support/helper"), Route::A2a);
        assert_eq!(Route::of("/a2a"), Route::Other);
        assert_eq!(Route::of("/livez/../x"), Route::Other);
        let strange = Method::from_bytes(b"BREW").unwrap();
        assert_eq!(method_label(&strange), "_OTHER");
    }
}
