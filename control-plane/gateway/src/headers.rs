//! Which headers cross the hub, each way: lists of what passes, so that a header nobody thought of does not.

use http::{HeaderMap, HeaderName, header};

/// From the caller to the engine. Not here, on purpose: `authorization` and `cookie` (the caller's token ends at the
/// hub), everything that names an origin, and the headers with which engines speak for users.
const INWARD: &[&str] = &[
    "content-type",
    "accept",
    "a2a-version",
    "a2a-extensions",
    "last-event-id",
];

/// From the engine to the caller.
const OUTWARD: &[&str] = &[
    "content-type",
    "cache-control",
    "retry-after",
    "a2a-version",
    "a2a-extensions",
];

/// What of the caller's headers the engine sees.
pub(crate) fn inward(headers: &HeaderMap) -> HeaderMap {
    pass(headers, INWARD)
}

/// What of the engine's headers the caller sees.
pub(crate) fn outward(headers: &HeaderMap) -> HeaderMap {
    pass(headers, OUTWARD)
}

fn pass(headers: &HeaderMap, list: &[&'static str]) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for name in list {
        for value in headers.get_all(*name) {
            passed.append(HeaderName::from_static(name), value.clone());
        }
    }
    passed
}

/// Whether these headers announce a stream of server-sent events.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn s69_no_credential_and_no_claim_of_identity_crosses() {
        let mut headers = HeaderMap::new();
        for name in [
            "authorization",
            "proxy-authorization",
            "cookie",
            "x-forwarded-for",
            "forwarded",
            "x-real-ip",
            "x-user-id",
            "host",
            "connection",
            "transfer-encoding",
            roadstead_contract::control::ON_BEHALF_OF,
            roadstead_contract::control::DEPTH,
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
        }
        headers.insert("a2a-version", HeaderValue::from_static("1.0"));
        let passed = inward(&headers);
        assert_eq!(passed.len(), 1, "{passed:?}");
        assert_eq!(passed["a2a-version"], "1.0");
    }

    #[test]
    fn the_engine_sets_no_cookie_and_grants_no_origin() {
        let mut headers = HeaderMap::new();
        for name in [
            "set-cookie",
            "access-control-allow-origin",
            "location",
            "server",
            "www-authenticate",
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
        }
        headers.insert(
            "content-type",
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        );
        let passed = outward(&headers);
        assert_eq!(passed.len(), 1, "{passed:?}");
        assert!(is_event_stream(&passed));
    }
}
