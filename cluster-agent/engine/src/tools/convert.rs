//! From the protocol's types to the toolbox's: tools, results, errors.

use super::{ResultPart, ToolError, ToolResult};
use rmcp::{
    ErrorData, ServiceError,
    model::{CallToolResult, ContentBlock, ErrorCode, ResourceContents, ServerResult, Tool},
    transport::streamable_http_client::{AuthRequiredError, HttpStatusError, InsufficientScopeError},
};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

/// Most that a result may hold, in bytes: it is kept in the journal and shown to people.
const MAX_RESULT: usize = 8 * 1024 * 1024;

/// A tool as its server describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) input_schema: Arc<Value>,
    pub(super) read_only: bool,
    pub(super) idempotent: bool,
    /// SHA-256 over name, description and schema, in hex.
    pub(super) digest: String,
}

pub(super) fn describe(tool: Tool) -> Described {
    let schema = Value::Object((*tool.input_schema).clone());
    let description = tool.description.unwrap_or_default().into_owned();
    // A list of three: no text of one part can pass for the beginning of the next.
    let pinned = Value::from(vec![
        tool.name.as_ref().into(),
        description.as_str().into(),
        sorted(&schema),
    ]);
    let hint = |pick: fn(&rmcp::model::ToolAnnotations) -> Option<bool>| {
        tool.annotations.as_ref().and_then(pick).unwrap_or(false)
    };
    Described {
        digest: hex::encode(Sha256::digest(pinned.to_string())),
        read_only: hint(|a| a.read_only_hint),
        idempotent: hint(|a| a.idempotent_hint),
        name: tool.name.into_owned(),
        description,
        input_schema: Arc::new(schema),
    }
}

/// The value with every object's keys in order: a server may write them in another order each time.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            let entries = entries.into_iter().map(|(k, v)| (k.clone(), sorted(v)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// What a server answered to a call.
pub(super) fn answer(result: ServerResult) -> Result<ToolResult, ToolError> {
    match result {
        ServerResult::CallToolResult(result) => Ok(read_result(result)),
        ServerResult::InputRequiredResult(_) => {
            let reason = "the tool asks for further input, which an agent cannot give it yet";
            Err(ToolError::Refused(reason.to_owned()))
        }
        // A server that has nothing to say answers with an empty object.
        ServerResult::EmptyResult(_) => Ok(ToolResult::default()),
        _ => Err(ToolError::Unknown(
            "the server's answer is not a tool's result".to_owned(),
        )),
    }
}

fn read_result(result: CallToolResult) -> ToolResult {
    let is_error = result.is_error.unwrap_or(false);
    let mut parts: Vec<ResultPart> = result.content.into_iter().map(part).collect();
    if let Some(structured) = result.structured_content {
        // Servers mostly send the same as text too; once is enough.
        let repeated = parts.iter().any(|part| match part {
            ResultPart::Text { text } => {
                serde_json::from_str::<Value>(text).is_ok_and(|value| value == structured)
            }
            _ => false,
        });
        if !repeated {
            let text = structured.to_string();
            parts.push(ResultPart::Text { text });
        }
    }
    let size: usize = parts.iter().map(size).sum();
    if size > MAX_RESULT {
        let text = format!("The result has {size} bytes; at most {MAX_RESULT} are taken. Ask for less.");
        return ToolResult {
            parts: vec![ResultPart::Text { text }],
            is_error: true,
        };
    }
    ToolResult { parts, is_error }
}

fn part(block: ContentBlock) -> ResultPart {
    match block {
        ContentBlock::Text(text) => ResultPart::Text { text: text.text },
        ContentBlock::Image(image) => ResultPart::Blob {
            media_type: image.mime_type,
            data: image.data,
        },
        ContentBlock::Audio(audio) => ResultPart::Blob {
            media_type: audio.mime_type,
            data: audio.data,
        },
        ContentBlock::Resource(embedded) => match embedded.resource {
            ResourceContents::TextResourceContents { text, .. } => ResultPart::Text { text },
            ResourceContents::BlobResourceContents { blob, mime_type, .. } => ResultPart::Blob {
                media_type: mime_type.unwrap_or_else(|| "application/octet-stream".to_owned()),
                data: blob,
            },
            _ => unknown_part(),
        },
        ContentBlock::ResourceLink(link) => ResultPart::Link {
            uri: link.uri,
            name: link.name,
        },
        _ => unknown_part(),
    }
}

fn unknown_part() -> ResultPart {
    ResultPart::Text {
        text: "[a part of a kind that is not known here]".to_owned(),
    }
}

fn size(part: &ResultPart) -> usize {
    match part {
        ResultPart::Text { text } => text.len(),
        ResultPart::Blob { media_type, data } => media_type.len() + data.len(),
        ResultPart::Link { uri, name } => uri.len() + name.len(),
    }
}

/// What a failed call means: whether its effect may have happened. The text is the server's or the transport's, and
/// still to be cleaned.
pub(super) fn call_failed(error: ServiceError) -> Result<ToolResult, ToolError> {
    match error {
        ServiceError::McpError(error) => protocol_error(error),
        ServiceError::TransportSend(error) => {
            let why = chain(error.error.as_ref());
            Err(if never_arrived(error.error.as_ref()) {
                ToolError::NotSent(why)
            } else {
                ToolError::Unknown(why)
            })
        }
        ServiceError::TransportClosed => Err(ToolError::Unknown(
            "the connection closed before the result came".to_owned(),
        )),
        other => Err(ToolError::Unknown(other.to_string())),
    }
}

/// The codes of JSON-RPC 2.0 §5.1 that are given before a method runs are refusals; any other is the tool's failure.
fn protocol_error(error: ErrorData) -> Result<ToolResult, ToolError> {
    let before = [
        ErrorCode::PARSE_ERROR,
        ErrorCode::INVALID_REQUEST,
        ErrorCode::METHOD_NOT_FOUND,
        ErrorCode::INVALID_PARAMS,
        ErrorCode::HEADER_MISMATCH,
        ErrorCode::MISSING_REQUIRED_CLIENT_CAPABILITY,
        ErrorCode::UNSUPPORTED_PROTOCOL_VERSION,
    ];
    if before.contains(&error.code) {
        return Err(ToolError::Refused(error.message.into_owned()));
    }
    let text = format!("The tool failed: {}", error.message);
    Ok(ToolResult {
        parts: vec![ResultPart::Text { text }],
        is_error: true,
    })
}

type Cause<'a> = &'a (dyn std::error::Error + 'static);

fn causes<'a>(error: Cause<'a>) -> impl Iterator<Item = Cause<'a>> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Whether the request cannot have reached the tool: no connection, or turned away at the door.
pub(super) fn never_arrived(error: Cause<'_>) -> bool {
    causes(error).any(|cause| {
        cause
            .downcast_ref::<reqwest::Error>()
            .is_some_and(|e| e.is_connect() || e.is_builder())
            || cause.is::<AuthRequiredError>()
            || cause.is::<InsufficientScopeError>()
            || cause
                .downcast_ref::<HttpStatusError>()
                .is_some_and(|e| e.status == 429)
            || cause.downcast_ref::<std::io::Error>().is_some_and(|e| {
                matches!(
                    e.kind(),
                    std::io::ErrorKind::NotConnected | std::io::ErrorKind::ConnectionRefused
                )
            })
    }) || message_says_refused(error)
}

/// The transport knows other 4xx answers by their text alone.
fn message_says_refused(error: Cause<'_>) -> bool {
    let text = error.to_string();
    [
        "HTTP 400", "HTTP 401", "HTTP 403", "HTTP 404", "HTTP 405", "HTTP 406", "HTTP 415",
    ]
    .iter()
    .any(|status| text.contains(status))
}

/// An error with its causes, each once.
pub(super) fn chain(error: Cause<'_>) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let words = cause.to_string();
        if !text.contains(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn result(value: Value) -> ToolResult {
        read_result(serde_json::from_value(value).unwrap())
    }

    fn text(text: &str) -> ResultPart {
        ResultPart::Text {
            text: text.to_owned(),
        }
    }

    #[test]
    fn every_kind_of_content_is_kept() {
        let found = result(json!({"content": [
            {"type": "text", "text": "a"},
            {"type": "image", "data": "aGk=", "mimeType": "image/png"},
            {"type": "audio", "data": "aGk=", "mimeType": "audio/wav"},
            {"type": "resource", "resource": {"uri": "file:///a", "text": "inner"}},
            {"type": "resource", "resource": {"uri": "file:///b", "blob": "aGk="}},
            {"type": "resource_link", "uri": "file:///c", "name": "c"}]}));
        let blob = |media_type: &str| ResultPart::Blob {
            media_type: media_type.to_owned(),
            data: "aGk=".to_owned(),
        };
        let link = ResultPart::Link {
            uri: "file:///c".to_owned(),
            name: "c".to_owned(),
        };
        let expected = [
            text("a"),
            blob("image/png"),
            blob("audio/wav"),
            text("inner"),
            blob("application/octet-stream"),
            link,
        ];
        assert_eq!(found.parts, expected);
    }

    #[test]
    fn structured_content_is_given_once() {
        let both = json!({"content": [{"type": "text", "text": "{\"b\":2, \"a\":1}"}],
            "structuredContent": {"a": 1, "b": 2}});
        assert_eq!(result(both).parts.len(), 1);
        let alone = json!({"content": [], "structuredContent": {"a": 1}, "isError": true});
        let found = result(alone);
        assert_eq!((found.parts, found.is_error), (vec![text("{\"a\":1}")], true));
    }

    #[test]
    fn a_result_that_is_too_large_is_an_error_that_says_so() {
        let found = result(json!({"content": [{"type": "text", "text": "x".repeat(MAX_RESULT + 1)}]}));
        assert!(found.is_error && format!("{:?}", found.parts).contains("Ask for less"));
    }

    #[test]
    fn s80_the_digest_changes_with_what_the_model_reads_and_with_nothing_else() {
        let digest = |value: Value| describe(serde_json::from_value(value).unwrap()).digest;
        let tool = || json!({"name": "t", "description": "d", "inputSchema": {"type": "object", "a": {"x": 1, "y": 2}}});
        let reordered = json!({"description": "d", "inputSchema": {"a": {"y": 2, "x": 1}, "type": "object"}, "name": "t"});
        assert_eq!(digest(tool()), digest(reordered));
        for (pointer, value) in [
            ("/description", json!("e")),
            ("/name", json!("u")),
            ("/inputSchema/a/x", json!(3)),
        ] {
            let mut changed = tool();
            *changed.pointer_mut(pointer).unwrap() = value;
            assert_ne!(digest(tool()), digest(changed), "{pointer}");
        }
    }

    #[test]
    fn protocol_errors_are_refusals_only_where_nothing_ran() {
        let error = |code: i32| ErrorData::new(ErrorCode(code), "why".to_owned(), None);
        for code in [-32602, -32601, -32600] {
            assert_eq!(
                protocol_error(error(code)),
                Err(ToolError::Refused("why".to_owned()))
            );
        }
        assert!(protocol_error(error(-32603)).unwrap().is_error);
        assert!(protocol_error(error(17)).unwrap().is_error);
    }
}
