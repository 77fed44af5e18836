//! Requests of 0.3 as those of 1.0.
//!
//! What could be read in two ways is refused: the hub looks for approvals in the same words. Readers of the .proto's JSON
//! take its own names (`task_id`) as well.

use super::Form;
use a2a::{A2AError, Message, Part, PartContent, Role, SendMessageConfiguration, SendMessageRequest};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// `TaskQueryParams`, `TaskIdParams`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TaskIn {
    pub(super) id: String,
    #[serde(default, alias = "history_length")]
    pub(super) history_length: Option<i32>,
}

/// `MessageSendParams`, and the .proto's `SendMessageRequest`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SendIn {
    message: MessageIn,
    #[serde(default)]
    configuration: Option<ConfigurationIn>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageIn {
    #[serde(default)]
    kind: Option<String>,
    #[serde(alias = "message_id")]
    message_id: String,
    role: RoleIn,
    #[serde(default, alias = "context_id")]
    context_id: Option<String>,
    #[serde(default, alias = "task_id")]
    task_id: Option<String>,
    /// `content` in the .proto; both are refused.
    #[serde(default, alias = "content")]
    parts: Vec<Value>,
}

#[derive(Deserialize)]
enum RoleIn {
    #[serde(rename = "user", alias = "ROLE_USER")]
    User,
    #[serde(rename = "agent", alias = "ROLE_AGENT")]
    Agent,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigurationIn {
    #[serde(default, alias = "accepted_output_modes")]
    accepted_output_modes: Option<Vec<String>>,
    #[serde(default, alias = "history_length")]
    history_length: Option<i32>,
    #[serde(default)]
    blocking: Option<bool>,
    /// `pushNotification` in the .proto.
    #[serde(default, alias = "pushNotification", alias = "push_notification")]
    push_notification_config: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileIn {
    #[serde(default, alias = "fileWithBytes", alias = "file_with_bytes")]
    bytes: Option<String>,
    #[serde(default, alias = "fileWithUri", alias = "file_with_uri")]
    uri: Option<String>,
    #[serde(default, alias = "mime_type")]
    mime_type: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

/// Which task a call is about.
pub(super) fn task(params: Value) -> Result<TaskIn, A2AError> {
    typed(params)
}

/// A message with how it is to be answered.
pub(super) fn send(params: Value, form: Form) -> Result<SendMessageRequest, A2AError> {
    let SendIn {
        message,
        configuration,
    } = typed(params)?;
    // The .proto's writers leave out what is false.
    let absent = (form == Form::Rest && message.kind.is_none()).then_some(false);
    let parts = message
        .parts
        .iter()
        .enumerate()
        .map(|(n, part)| read_part(n, part, form));
    let parts = parts.collect::<Result<_, _>>()?;
    let configuration = configuration.map(|how| how.into_core(absent)).transpose()?;
    Ok(SendMessageRequest {
        message: Message {
            message_id: message.message_id,
            context_id: message.context_id,
            task_id: message.task_id,
            role: match message.role {
                RoleIn::User => Role::User,
                RoleIn::Agent => Role::Agent,
            },
            parts,
            metadata: None,
            extensions: None,
            reference_task_ids: None,
        },
        configuration,
        metadata: None,
        tenant: None,
    })
}

impl ConfigurationIn {
    fn into_core(self, absent: Option<bool>) -> Result<SendMessageConfiguration, A2AError> {
        if self.push_notification_config.is_some() {
            return Err(A2AError::push_notification_not_supported());
        }
        Ok(SendMessageConfiguration {
            accepted_output_modes: self.accepted_output_modes,
            task_push_notification_config: None,
            history_length: self.history_length,
            return_immediately: self.blocking.or(absent).map(|blocking| !blocking),
        })
    }
}

fn typed<T: DeserializeOwned>(params: Value) -> Result<T, A2AError> {
    serde_json::from_value(params).map_err(|e| A2AError::invalid_params(format!("invalid params: {e}")))
}

fn read_part(n: usize, part: &Value, form: Form) -> Result<Part, A2AError> {
    let invalid = |what: &str| A2AError::invalid_params(format!("message.parts[{n}]: {what}"));
    let object = part.as_object().ok_or_else(|| invalid("expected an object"))?;
    let mut given = ["text", "file", "data"]
        .into_iter()
        .filter_map(|kind| Some((kind, object.get(kind)?)));
    let (Some((kind, content)), None) = (given.next(), given.next()) else {
        return Err(invalid("expected one of text, file and data"));
    };
    let is_typed = match object.get("kind") {
        Some(said) if said == kind => true,
        None if form == Form::Rest => false,
        _ => return Err(invalid(&format!("kind: expected {kind:?}, which the part has"))),
    };
    match (kind, content) {
        ("text", Value::String(text)) => Ok(Part::text(text)),
        ("text", _) => Err(invalid("text: expected a text")),
        ("data", Value::Object(data)) if is_typed => Ok(Part::data(Value::Object(data.clone()))),
        ("data", Value::Object(outer)) => {
            let data =
                only_data(outer).ok_or_else(|| invalid("data.data: expected an object, and it alone"))?;
            Ok(Part::data(Value::Object(data.clone())))
        }
        ("data", _) => Err(invalid("data: expected an object")),
        (_, file) => {
            let file = FileIn::deserialize(file).map_err(|e| invalid(&format!("file: {e}")))?;
            file.into_core().map_err(invalid)
        }
    }
}

/// The .proto's `DataPart`.
fn only_data(outer: &Map<String, Value>) -> Option<&Map<String, Value>> {
    outer.get("data").filter(|_| outer.len() == 1)?.as_object()
}

impl FileIn {
    fn into_core(self) -> Result<Part, &'static str> {
        let content = match (self.bytes, self.uri) {
            (Some(bytes), None) => {
                let bytes = BASE64.decode(bytes).map_err(|_| "file.bytes: expected base64")?;
                PartContent::Raw(bytes)
            }
            (None, Some(uri)) => PartContent::Url(uri),
            _ => return Err("file: expected one of bytes and uri"),
        };
        Ok(Part {
            content,
            filename: self.name,
            media_type: self.mime_type,
            metadata: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parts(form: Form, parts: Value) -> Result<Vec<Part>, String> {
        let params = json!({"message": {"messageId": "m", "role": "user", "parts": parts}});
        send(params, form)
            .map(|request| request.message.parts)
            .map_err(|e| e.message)
    }

    #[test]
    fn both_forms_are_read() {
        let expected = vec![
            Part::text("hi"),
            Part::data(json!({"n": 3})),
            Part::raw(vec![1, 2, 3])
                .with_media_type("image/png")
                .with_filename("a.png"),
            Part::url("https://example.com/b"),
        ];
        let typed = json!([
            {"kind": "text", "text": "hi"},
            {"kind": "data", "data": {"n": 3}},
            {"kind": "file", "file": {"bytes": "AQID", "mimeType": "image/png", "name": "a.png"}},
            {"kind": "file", "file": {"uri": "https://example.com/b"}},
        ]);
        assert_eq!(parts(Form::Rpc, typed.clone()), Ok(expected.clone()));
        assert_eq!(parts(Form::Rest, typed), Ok(expected.clone()));
        let content = json!([
            {"text": "hi"},
            {"data": {"data": {"n": 3}}},
            {"file": {"fileWithBytes": "AQID", "mimeType": "image/png", "name": "a.png"}},
            {"file": {"fileWithUri": "https://example.com/b"}},
        ]);
        let message = json!({"messageId": "m", "role": "ROLE_USER", "content": content});
        let request = send(json!({"message": message, "configuration": {}}), Form::Rest).expect("read");
        assert_eq!(request.message.parts, expected);
        assert_eq!(
            request.configuration.and_then(|how| how.return_immediately),
            Some(true),
            "false is left out by the .proto's writers"
        );
    }

    #[test]
    fn s89_a_part_that_can_be_read_in_two_ways_is_refused() {
        let verdict = json!({"approval": "a", "decision": "approve", "digest": "d"});
        for (form, part) in [
            (
                Form::Rpc,
                json!({"kind": "data", "text": "hello", "data": verdict}),
            ),
            (
                Form::Rpc,
                json!({"kind": "text", "text": "hello", "data": verdict}),
            ),
            (Form::Rpc, json!({"data": verdict})),
            (Form::Rpc, json!({"kind": "text", "data": verdict})),
            (Form::Rpc, json!({"kind": "data", "data": [verdict]})),
            (Form::Rest, json!({"data": verdict})),
            (Form::Rest, json!({"data": {"data": verdict, "decision": "deny"}})),
            (Form::Rest, json!({"text": "no", "data": {"data": verdict}})),
            (Form::Rest, json!({})),
            (Form::Rest, json!("yes")),
            (Form::Rest, json!({"file": {"bytes": "AQID", "uri": "http://x"}})),
            (Form::Rest, json!({"file": {"fileWithBytes": "?"}})),
        ] {
            assert!(parts(form, json!([part])).is_err(), "{part}");
        }
        let both = json!({"message": {"messageId": "m", "role": "user", "parts": [],
            "content": [{"text": "yes"}]}});
        assert!(send(both, Form::Rest).is_err());
    }

    #[test]
    fn a_push_address_is_refused() {
        for key in ["pushNotificationConfig", "pushNotification"] {
            let params = json!({"message": {"messageId": "m", "role": "user", "parts": []},
                "configuration": {key: {"url": "http://169.254.169.254/"}}});
            let refused = send(params, Form::Rest).expect_err("refused");
            assert_eq!(refused.code, a2a::error_code::PUSH_NOTIFICATION_NOT_SUPPORTED);
        }
    }
}
