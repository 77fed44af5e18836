//! How often and how fast the faces answer. Labels are few and known beforehand: no path, since it names tenants and
//! agents, and no method that a caller made up.

use http::{Method, StatusCode};
use roadstead_telemetry::{Histogram, Label, SECONDS, meter};
use std::{sync::OnceLock, time::Duration};

/// The faces, by how their paths begin.
const FACES: [&str; 4] = ["/graphql", "/a2a", "/livez", "/readyz"];
const METHODS: [Method; 8] = [
    Method::GET,
    Method::POST,
    Method::HEAD,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
    Method::TRACE,
];

/// The face that a path belongs to; `other` where there is none.
pub(crate) fn face(path: &str) -> &'static str {
    let belongs = |face: &&&str| {
        let rest = path.strip_prefix(**face);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    FACES.iter().find(belongs).copied().unwrap_or("other")
}

/// The method; `_OTHER`, as the semantic conventions have it, where it is none of HTTP's own.
pub(crate) fn method(method: &Method) -> &'static str {
    const NAMES: [&str; 8] = [
        "GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE",
    ];
    let known = METHODS.iter().position(|known| known == method);
    known.and_then(|at| NAMES.get(at)).copied().unwrap_or("_OTHER")
}

/// From the request to the head of its answer; what streams goes on after it.
pub(crate) fn answered(method: &'static str, face: &'static str, status: StatusCode, took: Duration) {
    static DURATION: OnceLock<Histogram<f64>> = OnceLock::new();
    let duration = DURATION.get_or_init(|| {
        meter("roadstead-http")
            .f64_histogram("http.server.request.duration")
            .with_unit("s")
            .with_boundaries(SECONDS.to_vec())
            .with_description("From a request to the head of its answer")
            .build()
    });
    let labels = [
        Label::new("http.request.method", method),
        Label::new("face", face),
        Label::new("http.response.status_code", i64::from(status.as_u16())),
    ];
    duration.record(took.as_secs_f64(), &labels);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_never_a_callers_words() {
        assert_eq!(face("/a2a/acme/default/notes"), "/a2a");
        assert_eq!(face("/graphql/ws"), "/graphql");
        assert_eq!(face("/graphqlx"), "other");
        assert_eq!(face("/etc/passwd"), "other");
        let made_up = Method::from_bytes(b"ACME-SECRET").unwrap();
        assert_eq!((method(&made_up), method(&Method::DELETE)), ("_OTHER", "DELETE"));
    }
}
