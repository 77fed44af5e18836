//! Reading what a caller asks: the address, the binding, and for JSON-RPC the method.

use crate::{
    approval,
    failure::{Dialect, Failure},
    operation::is_method,
};
use http::{HeaderMap, header};
use roadstead_contract::documents::Name;
use roadstead_http::{MAX_JSON_TOKENS, json_tokens};
use roadstead_service::approvals::Decided;
use serde_json::Value;
use std::time::Duration;

/// `/a2a/{tenant}/{project}/{agent}` and what is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address<'a> {
    pub(crate) tenant: Name,
    pub(crate) project: Name,
    pub(crate) agent: Name,
    /// Raw, with its leading slash; empty for the agent itself.
    pub(crate) rest: &'a str,
}

impl<'a> Address<'a> {
    /// Reads a raw path; `None` where it names no agent.
    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        let path = path.strip_prefix("/a2a/")?;
        let (tenant, path) = path.split_once('/')?;
        let (project, path) = path.split_once('/')?;
        let at = path.find('/').unwrap_or(path.len());
        let (agent, rest) = path.split_at(at);
        Some(Self {
            tenant: tenant.parse().ok()?,
            project: project.parse().ok()?,
            agent: agent.parse().ok()?,
            rest,
        })
    }
}

/// How long an engine may take, by what it is asked.
#[derive(Clone, Debug)]
pub struct Patience {
    /// To begin an answer that is only looked up, or a stream.
    pub head: Duration,
    /// To answer a message that the caller waits for: beyond the wall time that agents have by default (10 min).
    pub send: Duration,
    /// For a whole stream.
    pub stream: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            send: Duration::from_secs(15 * 60),
            stream: Duration::from_secs(60 * 60),
        }
    }
}

/// What kind of answer is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaits {
    Lookup,
    Message,
    Stream,
    /// A card in the answer's body, or in the `result` of a JSON-RPC answer.
    Card,
    CardResult,
}

impl Awaits {
    /// By the method or the path.
    fn of(name: &str) -> Self {
        match name {
            "SendMessage" | "message/send" | "/message:send" => Self::Message,
            "SendStreamingMessage"
            | "SubscribeToTask"
            | "message/stream"
            | "tasks/resubscribe"
            | "/message:stream" => Self::Stream,
            "GetExtendedAgentCard" | "agent/getAuthenticatedExtendedCard" => Self::CardResult,
            "/extendedAgentCard" | "/card" => Self::Card,
            path if path.ends_with(":subscribe") => Self::Stream,
            _ => Self::Lookup,
        }
    }

    pub(crate) fn of_rest(path: &str) -> Self {
        Self::of(path.strip_prefix("/v1").unwrap_or(path))
    }

    /// Until the answer begins, and until it ends.
    pub(crate) fn patience(self, patience: &Patience) -> (Duration, Duration) {
        match self {
            Self::Lookup | Self::Card | Self::CardResult => (patience.head, patience.head),
            Self::Message => (patience.send, patience.send),
            Self::Stream => (patience.head, patience.stream),
        }
    }
}

/// A JSON-RPC request that may pass.
#[derive(Debug)]
pub(crate) struct Rpc {
    pub(crate) dialect: Dialect,
    pub(crate) awaits: Awaits,
    /// Decisions on approvals in it.
    pub(crate) decided: Option<Decided>,
}

/// Judges the body of a JSON-RPC request. The failure comes with the dialect in which to tell it.
pub(crate) fn json_rpc(headers: &HeaderMap, body: &[u8]) -> Result<Rpc, (Failure, Dialect)> {
    let unknown = || Dialect::json_rpc(Value::Null);
    if !is_json(headers) {
        return Err((Failure::unsupported_media(), Dialect::Http));
    }
    let request = parse(body).map_err(|failure| (failure, unknown()))?;
    let Value::Object(request) = request else {
        let failure = Failure::invalid_request("expected one JSON-RPC request; A2A has no batches");
        return Err((failure, unknown()));
    };
    let id = match request.get("id") {
        Some(id @ (Value::String(_) | Value::Number(_) | Value::Null)) => id.clone(),
        None => Value::Null,
        Some(_) => {
            let failure = Failure::invalid_request("`id`: expected a text, a number or null");
            return Err((failure, unknown()));
        }
    };
    let dialect = Dialect::json_rpc(id);
    if request.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err((Failure::invalid_request("`jsonrpc`: expected \"2.0\""), dialect));
    }
    let Some(method) = request.get("method").and_then(Value::as_str) else {
        return Err((Failure::invalid_request("`method`: expected a text"), dialect));
    };
    if !is_method(method) {
        return Err((Failure::unknown_method(method), dialect));
    }
    let awaits = Awaits::of(method);
    match request.get("params").map(decisions).transpose() {
        Ok(decided) => Ok(Rpc {
            dialect,
            awaits,
            decided: decided.flatten(),
        }),
        Err(failure) => Err((failure, dialect)),
    }
}

/// The decisions on approvals in the body of an HTTP+JSON request.
pub(crate) fn rest(body: &[u8]) -> Result<Option<Decided>, Failure> {
    decisions(&parse(body)?)
}

fn decisions(request: &Value) -> Result<Option<Decided>, Failure> {
    match approval::decided(request) {
        Some(decided) if decided.verdicts.len() > approval::MAX_VERDICTS => {
            Err(Failure::invalid_request("at most 100 decisions in one message"))
        }
        decided => Ok(decided),
    }
}

/// Counted before it is parsed: a value takes many times the memory of its text (S31).
fn parse(body: &[u8]) -> Result<Value, Failure> {
    if json_tokens(body) > MAX_JSON_TOKENS {
        return Err(Failure::too_many_values(MAX_JSON_TOKENS));
    }
    serde_json::from_slice(body).map_err(|_| Failure::parse_error())
}

/// `application/json`, or A2A's own name for it.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let name = value.split(';').next().unwrap_or_default().trim();
    ["application/json", "application/a2a+json"]
        .iter()
        .any(|json| name.eq_ignore_ascii_case(json))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn judge(body: &str) -> Result<Rpc, (Failure, Dialect)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        json_rpc(&headers, body.as_bytes())
    }

    #[test]
    fn an_address_has_three_names() {
        let address = Address::parse("/a2a/acme/support/notes/tasks/1:cancel").unwrap();
        assert_eq!(address.agent.as_str(), "notes");
        assert_eq!(address.rest, "/tasks/1:cancel");
        assert_eq!(Address::parse("/a2a/acme/support/notes").unwrap().rest, "");
        assert_eq!(Address::parse("/a2a/acme/support/notes/").unwrap().rest, "/");
        for bad in [
            "/a2a/acme/support",
            "/a2a/acme/support/",
            "/a2a//support/notes",
            "/a2a/Acme/support/notes",
            "/a2a/acme/%73upport/notes",
            "/a2a/acme/../notes",
            "/graphql",
        ] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn methods_of_the_protocol_pass_and_say_what_is_awaited() {
        let awaits = |m: &str| {
            judge(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{m}"}}"#))
                .unwrap()
                .awaits
        };
        assert_eq!(awaits("SendMessage"), Awaits::Message);
        assert_eq!(awaits("SendStreamingMessage"), Awaits::Stream);
        assert_eq!(awaits("message/stream"), Awaits::Stream);
        assert_eq!(awaits("ListTasks"), Awaits::Lookup);
        assert_eq!(awaits("GetExtendedAgentCard"), Awaits::CardResult);
        assert_eq!(Awaits::of_rest("/v1/message:send"), Awaits::Message);
        assert_eq!(Awaits::of_rest("/tasks/7:subscribe"), Awaits::Stream);
    }

    #[test]
    fn what_is_no_request_of_the_protocol_is_refused_with_its_id() {
        for (body, dialect) in [
            ("{", Dialect::json_rpc(Value::Null)),
            ("[]", Dialect::json_rpc(Value::Null)),
            (
                r#"[{"jsonrpc":"2.0","id":1,"method":"SendMessage"}]"#,
                Dialect::json_rpc(Value::Null),
            ),
            (
                r#"{"id":7,"method":"SendMessage"}"#,
                Dialect::json_rpc(Value::from(7)),
            ),
            (
                r#"{"jsonrpc":"2.0","id":"x","method":"Debug"}"#,
                Dialect::json_rpc(Value::from("x")),
            ),
            (
                r#"{"jsonrpc":"2.0","id":{},"method":"SendMessage"}"#,
                Dialect::json_rpc(Value::Null),
            ),
            (r#"{"jsonrpc":"2.0","id":2}"#, Dialect::json_rpc(Value::from(2))),
        ] {
            assert_eq!(judge(body).unwrap_err().1, dialect, "{body}");
        }
    }

    #[test]
    fn s31_a_body_of_many_values_is_refused_before_it_is_parsed() {
        let bomb = format!(r#"{{"jsonrpc":"2.0","id":[{}0]}}"#, "0,".repeat(1_000_000));
        let (failure, _) = judge(&bomb).unwrap_err();
        assert!(format!("{failure:?}").contains("tokens of JSON"), "{failure:?}");
        assert!(rest(bomb.as_bytes()).is_err());
    }

    #[test]
    fn s77_another_media_type_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let (_, dialect) = json_rpc(&headers, b"{}").unwrap_err();
        assert_eq!(dialect, Dialect::Http);
    }
}
