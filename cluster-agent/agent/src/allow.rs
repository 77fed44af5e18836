//! Which requests a hub may make of an engine: the operations of A2A, and nothing beside them.
//!
//! The hub has such a list too. This one holds when the hub is hostile (S47): no metrics, no probe, no path that an
//! engine might have one day, no header with which engines speak for users. The raw path is judged, before any
//! percent-decoding, so that what is checked here is what the engine reads.
//! Source: A2A 1.0 §9 (JSON-RPC) and §11 (HTTP+JSON); 0.3 has the same paths below `/v1`.

use http::{HeaderName, Method};

/// From the hub to the engine.
const INWARD: [&str; 8] = [
    "authorization",
    "content-type",
    "accept",
    "a2a-version",
    "a2a-extensions",
    "last-event-id",
    "traceparent",
    "tracestate",
];

/// From the engine to the hub.
const OUTWARD: [&str; 7] = [
    "content-type",
    "cache-control",
    "etag",
    "retry-after",
    "www-authenticate",
    "a2a-version",
    "a2a-extensions",
];

pub(crate) fn inward(name: &HeaderName) -> bool {
    INWARD.contains(&name.as_str())
}

pub(crate) fn outward(name: &HeaderName) -> bool {
    OUTWARD.contains(&name.as_str())
}

/// Whether `method` on `target` (a path with its query) is an operation of A2A.
pub(crate) fn operation(method: &Method, target: &str) -> bool {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let get = method == Method::GET;
    let post = method == Method::POST;
    if !query.bytes().all(|c| c.is_ascii_graphic() && c != b'#') {
        return false;
    }
    match path {
        "/" => return post,
        "/.well-known/agent-card.json" => return get,
        _ => {}
    }
    let Some(below) = path.strip_prefix("/v1").unwrap_or(path).strip_prefix('/') else {
        return false;
    };
    let segments: Vec<&str> = below.split('/').collect();
    match segments.as_slice() {
        ["message:send" | "message:stream"] => post,
        ["tasks" | "extendedAgentCard" | "card"] => get,
        ["tasks", task] => match task.split_once(':') {
            None => get && is_id(task),
            Some((id, "cancel")) => post && is_id(id),
            Some((id, "subscribe")) => (get || post) && is_id(id),
            Some(_) => false,
        },
        ["tasks", task, "pushNotificationConfigs"] => (get || post) && is_id(task),
        ["tasks", task, "pushNotificationConfigs", config] => {
            (get || method == Method::DELETE) && is_id(task) && is_id(config)
        }
        _ => false,
    }
}

/// An id that means the same to every reader of a path: no escape, no dot segment.
fn is_id(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b'~');
    (1..=128).contains(&text.len()) && text.bytes().all(plain) && text.bytes().any(|c| c != b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operations_of_the_protocol_pass() {
        for (method, target) in [
            (Method::POST, "/"),
            (Method::GET, "/.well-known/agent-card.json"),
            (Method::POST, "/message:send"),
            (Method::POST, "/v1/message:stream"),
            (Method::GET, "/tasks?pageSize=10&contextId=a%2Fb"),
            (Method::GET, "/tasks/0190-abc?historyLength=3"),
            (Method::POST, "/tasks/0190-abc:cancel"),
            (Method::GET, "/tasks/0190-abc:subscribe"),
            (Method::DELETE, "/tasks/a/pushNotificationConfigs/b"),
            (Method::GET, "/extendedAgentCard"),
        ] {
            assert!(operation(&method, target), "{method} {target}");
        }
    }

    #[test]
    fn s47_nothing_else_passes() {
        for target in [
            "",
            "*",
            "/metrics",
            "/livez",
            "/readyz",
            "//",
            "/tasks/..",
            "/tasks/%2e%2e",
            "/tasks/a%2f..%2fmetrics",
            "/tasks/a:delete",
            "/tasks//",
            "/v1/v1/message:send",
            "/v1",
            "/message:send/",
            "/message%3Asend",
            "http://169.254.169.254/tasks",
            "@example.com/tasks",
            "/message:send?x=\r\nHost: b",
            "/message:send?a#b",
            "/message:send ",
        ] {
            for method in [Method::GET, Method::POST, Method::DELETE, Method::CONNECT] {
                assert!(!operation(&method, target), "{method} {target}");
            }
        }
        for method in [Method::PUT, Method::TRACE, Method::CONNECT, Method::OPTIONS] {
            assert!(!operation(&method, "/message:send"), "{method}");
            assert!(!operation(&method, "/"), "{method}");
        }
    }

    #[test]
    fn s47_the_hub_cannot_speak_as_an_engine() {
        use roadstead_contract::control::{DEPTH, ON_BEHALF_OF};
        for name in [
            ON_BEHALF_OF,
            DEPTH,
            "host",
            "cookie",
            "connection",
            "content-length",
            "upgrade",
        ] {
            assert!(!inward(&HeaderName::from_static(name)), "{name}");
        }
        for name in [
            "set-cookie",
            "location",
            "access-control-allow-origin",
            "connection",
        ] {
            assert!(!outward(&HeaderName::from_static(name)), "{name}");
        }
    }
}
