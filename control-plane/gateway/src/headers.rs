//! Which headers cross the hub, each way: lists of what passes, so that a header nobody thought of does not.

use http::{HeaderMap, HeaderName, HeaderValue, header};

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

/// The media types of A2A's answers. Anything else is served as plain text: it comes from the hub's origin, and a
/// browser must not run it there.
const MEDIA: &[&str] = &[
    "application/json",
    "application/a2a+json",
    "application/problem+json",
    "text/event-stream",
];

/// What of the engine's headers the caller sees.
pub(crate) fn outward(headers: &HeaderMap) -> HeaderMap {
    let mut passed = pass(headers, OUTWARD);
    let known = |value: &HeaderValue| {
        let name = value.to_str().ok().and_then(|text| text.split(';').next());
        name.is_some_and(|name| MEDIA.iter().any(|m| name.trim().eq_ignore_ascii_case(m)))
    };
    let mut types = passed.get_all(header::CONTENT_TYPE).iter();
    let good = match (types.next(), types.next()) {
        (None, _) => true,
        (Some(one), None) => known(one),
        (Some(_), Some(_)) => false,
    };
    if !good {
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        passed.insert(header::CONTENT_TYPE, text);
    }
    passed
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

    #[test]
    fn s18_no_page_comes_from_the_hubs_origin_by_way_of_a_cluster() {
        let served = |types: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for media in types {
                headers.append(header::CONTENT_TYPE, HeaderValue::from_static(media));
            }
            let passed = outward(&headers);
            assert!(passed.get_all(header::CONTENT_TYPE).iter().count() <= 1);
            passed
                .get(header::CONTENT_TYPE)
                .map(|v| v.to_str().unwrap().to_owned())
        };
        assert_eq!(served(&[]), None);
        assert_eq!(served(&["Application/JSON"]).as_deref(), Some("Application/JSON"));
        let events = "text/event-stream; charset=utf-8";
        assert_eq!(served(&[events]).as_deref(), Some(events));
        for types in [
            &["text/html"][..],
            &["text/html; x=application/json"],
            &["application/json", "text/html"],
            &["image/svg+xml"],
            &["application/json, text/html"],
            &["application/javascript"],
        ] {
            assert_eq!(
                served(types).as_deref(),
                Some("text/plain; charset=utf-8"),
                "{types:?}"
            );
        }
    }
}
