//! Which requests of the A2A protocol pass through: a list of what is known, everything else is refused.
//!
//! Two bindings share an address: JSON-RPC is a POST on the agent's own path, HTTP+JSON has paths below it. The raw path
//! is judged, before any percent-decoding, so that what is checked here is what the engine reads.
//! Source: A2A 1.0 §9 (JSON-RPC) and §11 (HTTP+JSON); 0.3 has the same paths below `/v1` (S77).

use http::Method;

/// What a request asks of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// `GET …/.well-known/agent-card.json`
    Card,
    /// `POST …`: the method is in the body.
    JsonRpc,
    /// HTTP+JSON; the path below the agent.
    Rest(String),
}

/// Why a request does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No such path.
    Path,
    /// The path is known, the method is not one of these.
    Method(&'static str),
}

/// Judges `method` and `rest`, the raw path below `/a2a/{tenant}/{project}/{agent}`, with its leading slash or empty.
pub(crate) fn operation(method: &Method, rest: &str) -> Result<Operation, Refused> {
    let allowed = match rest {
        "" | "/" => return only(method, &[Method::POST], "POST", Operation::JsonRpc),
        "/.well-known/agent-card.json" => return only(method, &[Method::GET], "GET", Operation::Card),
        _ => below(rest.strip_prefix("/v1").unwrap_or(rest)).ok_or(Refused::Path)?,
    };
    let (methods, text) = allowed;
    only(method, methods, text, Operation::Rest(rest.to_owned()))
}

fn only(
    method: &Method,
    methods: &[Method],
    text: &'static str,
    operation: Operation,
) -> Result<Operation, Refused> {
    if methods.contains(method) {
        Ok(operation)
    } else {
        Err(Refused::Method(text))
    }
}

/// The methods of a path of HTTP+JSON; `None` where the path is not one.
fn below(path: &str) -> Option<(&'static [Method], &'static str)> {
    const GET: (&[Method], &str) = (&[Method::GET], "GET");
    const POST: (&[Method], &str) = (&[Method::POST], "POST");
    let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    match segments.as_slice() {
        ["message:send" | "message:stream"] => Some(POST),
        ["tasks" | "extendedAgentCard" | "card"] => Some(GET),
        ["tasks", task] => match task.split_once(':') {
            None => is_id(task).then_some(GET),
            Some((id, "cancel")) => is_id(id).then_some(POST),
            Some((id, "subscribe")) => is_id(id).then_some((&[Method::GET, Method::POST], "GET, POST")),
            Some(_) => None,
        },
        ["tasks", task, "pushNotificationConfigs"] => {
            is_id(task).then_some((&[Method::GET, Method::POST], "GET, POST"))
        }
        ["tasks", task, "pushNotificationConfigs", config] => {
            (is_id(task) && is_id(config)).then_some((&[Method::GET, Method::DELETE], "GET, DELETE"))
        }
        _ => None,
    }
}

/// An id that means the same to every reader of a path: no escape, no dot segment.
fn is_id(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b'~');
    (1..=128).contains(&text.len()) && text.bytes().all(plain) && text.bytes().any(|c| c != b'.')
}

/// The JSON-RPC methods that pass: those of 1.0, then those of 0.3.
const METHODS: &[&str] = &[
    a2a::methods::SEND_MESSAGE,
    a2a::methods::SEND_STREAMING_MESSAGE,
    a2a::methods::GET_TASK,
    a2a::methods::LIST_TASKS,
    a2a::methods::CANCEL_TASK,
    a2a::methods::SUBSCRIBE_TO_TASK,
    a2a::methods::CREATE_PUSH_CONFIG,
    a2a::methods::GET_PUSH_CONFIG,
    a2a::methods::LIST_PUSH_CONFIGS,
    a2a::methods::DELETE_PUSH_CONFIG,
    a2a::methods::GET_EXTENDED_AGENT_CARD,
    "message/send",
    "message/stream",
    "tasks/get",
    "tasks/cancel",
    "tasks/resubscribe",
    "tasks/pushNotificationConfig/set",
    "tasks/pushNotificationConfig/get",
    "tasks/pushNotificationConfig/list",
    "tasks/pushNotificationConfig/delete",
    "agent/getAuthenticatedExtendedCard",
];

/// Whether the protocol has a JSON-RPC method of this name.
pub(crate) fn is_method(name: &str) -> bool {
    METHODS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_of_the_protocol_pass() {
        for (method, path) in [
            (Method::POST, "/message:send"),
            (Method::POST, "/message:stream"),
            (Method::POST, "/v1/message:send"),
            (Method::GET, "/tasks"),
            (Method::GET, "/tasks/0190-abc"),
            (Method::POST, "/tasks/0190-abc:cancel"),
            (Method::GET, "/tasks/0190-abc:subscribe"),
            (Method::POST, "/tasks/0190-abc:subscribe"),
            (Method::DELETE, "/tasks/a/pushNotificationConfigs/b"),
            (Method::GET, "/extendedAgentCard"),
        ] {
            assert_eq!(
                operation(&method, path),
                Ok(Operation::Rest(path.to_owned())),
                "{path}"
            );
        }
        assert_eq!(operation(&Method::POST, ""), Ok(Operation::JsonRpc));
        assert_eq!(operation(&Method::POST, "/"), Ok(Operation::JsonRpc));
        assert_eq!(
            operation(&Method::GET, "/.well-known/agent-card.json"),
            Ok(Operation::Card)
        );
    }

    #[test]
    fn nothing_else_passes() {
        for path in [
            "/metrics",
            "/livez",
            "/.well-known/jwks.json",
            "/tasks/..",
            "/tasks/%2e%2e",
            "/tasks/a%2f..%2fmetrics",
            "/tasks/a:delete",
            "/tasks/a/b",
            "/tasks//",
            "/tasks/a:cancel:cancel",
            "//message:send",
            "/v1/v1/message:send",
            "/v1",
            "/v1/.well-known/agent-card.json",
            "/message:send/",
            "/message%3Asend",
        ] {
            assert_eq!(operation(&Method::POST, path), Err(Refused::Path), "{path}");
        }
    }

    #[test]
    fn s77_the_names_of_0_3_pass_and_no_others() {
        for name in [
            "message/send",
            "message/stream",
            "tasks/get",
            "tasks/cancel",
            "tasks/resubscribe",
            "tasks/pushNotificationConfig/set",
            "agent/getAuthenticatedExtendedCard",
        ] {
            assert!(is_method(name), "{name}");
        }
        for name in [
            "",
            "tasks/list",
            "tasks/send",
            "Message/Send",
            "message/send ",
            "agent/debug",
        ] {
            assert!(!is_method(name), "{name}");
        }
        for (method, path) in [
            (Method::POST, "/v1/message:stream"),
            (Method::GET, "/v1/tasks"),
            (Method::GET, "/v1/tasks/a"),
            (Method::POST, "/v1/tasks/a:cancel"),
            (Method::GET, "/v1/tasks/a:subscribe"),
            (Method::GET, "/v1/card"),
        ] {
            assert_eq!(operation(&method, path), Ok(Operation::Rest(path.to_owned())));
        }
        for path in [
            "/v1/tasks/a:resubscribe",
            "/v1/agent",
            "/v1/",
            "/v2/message:send",
            "/v1/tasks/%61",
        ] {
            assert_eq!(operation(&Method::POST, path), Err(Refused::Path), "{path}");
        }
    }

    #[test]
    fn s26_other_methods_are_refused_by_name() {
        assert_eq!(operation(&Method::GET, ""), Err(Refused::Method("POST")));
        assert_eq!(operation(&Method::TRACE, "/tasks"), Err(Refused::Method("GET")));
        assert_eq!(
            operation(&Method::DELETE, "/message:send"),
            Err(Refused::Method("POST"))
        );
    }
}
