//! Ollama's own chat: <https://github.com/ollama/ollama/blob/main/docs/api.md>. One JSON object a line; the answer is
//! complete with `"done": true`.

use super::{
    ChatMessage, ChatRequest, ErrorClass, ModelError, Part, StopReason, Usage,
    errors::{error, event_error},
    openai::{GO_ON, Tool, file_text, goes_on},
    repair,
    sink::{OpenCall, Sink},
};
use roadstead_contract::{control::SecretText, documents::ModelSpec};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

/// The body of a request.
pub(super) fn body(
    spec: &ModelSpec,
    request: &ChatRequest,
    limit: Option<u32>,
) -> Result<Vec<u8>, ModelError> {
    let options = &spec.options;
    let mut messages = Vec::with_capacity(request.messages.len() + 2);
    if !request.system.is_empty() {
        messages.push(json!({"role": "system", "content": request.system}));
    }
    for each in &request.messages {
        messages.push(message(each)?);
    }
    if goes_on(&request.messages) {
        messages.push(json!({"role": "user", "content": GO_ON}));
    }
    let mut body = json!({"model": spec.model, "messages": messages, "stream": true});
    if !request.tools.is_empty() {
        let tools: Vec<Tool<'_>> = request.tools.iter().map(Tool::from).collect();
        body["tools"] = serde_json::to_value(tools).unwrap_or_default();
    } else if let Some(schema) = &request.output_schema {
        // With tools the schema would rule out their calls.
        body["format"] = (**schema).clone();
    }
    if let Some(effort) = options.reasoning_effort {
        body["think"] = json!(effort);
    }
    let mut settings = Map::new();
    let mut set = |name: &str, value: Option<Value>| settings.extend(value.map(|v| (name.to_owned(), v)));
    set("temperature", options.temperature.map(Value::from));
    set("top_p", options.top_p.map(Value::from));
    set("seed", options.seed.map(Value::from));
    set("stop", (!options.stop.is_empty()).then(|| json!(options.stop)));
    set("num_predict", limit.map(Value::from));
    if !settings.is_empty() {
        body["options"] = settings.into();
    }
    serde_json::to_vec(&body).map_err(|e| error(ErrorClass::Refused, format!("the request is no JSON: {e}")))
}

fn message(message: &ChatMessage) -> Result<Value, ModelError> {
    Ok(match message {
        ChatMessage::User { parts } => {
            let (mut text, mut images) = (String::new(), Vec::new());
            for part in parts {
                let separator = if text.is_empty() { "" } else { "\n" };
                match part {
                    Part::Text { text: words } => text += &format!("{separator}{words}"),
                    Part::File {
                        name,
                        media_type,
                        data,
                    } => {
                        if let Some(words) = file_text(media_type, data) {
                            text += &format!("{separator}File {name}:\n{words}");
                        } else if media_type.starts_with("image/") {
                            images.push(data);
                        } else {
                            let message =
                                format!("expected files of text or image/* for ollama, found {media_type}");
                            return Err(error(ErrorClass::Refused, message));
                        }
                    }
                }
            }
            let mut value = json!({"role": "user", "content": text});
            if !images.is_empty() {
                value["images"] = json!(images);
            }
            value
        }
        ChatMessage::Assistant { text, tool_calls, .. } => {
            let mut value = json!({"role": "assistant", "content": text});
            if !tool_calls.is_empty() {
                let calls = tool_calls.iter().map(|call| {
                    let arguments = match (&call.problem, &call.arguments) {
                        (None, Value::Object(_)) => call.arguments.clone(),
                        (_, other) => json!({"unreadable": other}),
                    };
                    json!({"function": {"name": call.name, "arguments": arguments}})
                });
                value["tool_calls"] = calls.collect();
            }
            value
        }
        ChatMessage::Tool { name, text, .. } => json!({"role": "tool", "tool_name": name, "content": text}),
    })
}

/// Reads the stream.
#[derive(Debug, Default)]
pub(super) struct Decoder;

#[derive(Deserialize)]
struct Line {
    message: Option<Said>,
    #[serde(default)]
    done: bool,
    done_reason: Option<String>,
    prompt_eval_count: Option<u64>,
    prompt_eval_cached_count: Option<u64>,
    eval_count: Option<u64>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    content: String,
    #[serde(default)]
    thinking: String,
    #[serde(default)]
    tool_calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Call {
    id: Option<String>,
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    arguments: Option<Box<RawValue>>,
}

impl Decoder {
    /// Reads one line; `true`: it was the last.
    pub(super) fn frame(
        &mut self,
        data: &[u8],
        sink: &mut Sink,
        key: Option<&SecretText>,
    ) -> Result<bool, ModelError> {
        let line: Line = serde_json::from_slice(data).map_err(|e| {
            let message = format!(
                "expected a line of Ollama's chat, found {} bytes: {e}",
                data.len()
            );
            error(ErrorClass::Nonsense, message)
        })?;
        if let Some(problem) = line.error {
            return Err(event_error(&json!({"error": problem}), key));
        }
        if let Some(said) = line.message {
            sink.reasoning(said.thinking);
            sink.text(said.content);
            for call in said.tool_calls {
                sink.open_calls.push(OpenCall {
                    index: None,
                    id: call.id.unwrap_or_default(),
                    name: call.function.name,
                    arguments: repair::given(call.function.arguments.as_deref()),
                });
            }
        }
        if line.done {
            sink.stop = Some(match line.done_reason.as_deref() {
                Some("length") => StopReason::Length,
                _ => StopReason::End,
            });
            if let Some(output) = line.eval_count {
                sink.usage = Some(Usage {
                    // Left out where the whole prompt was in the cache.
                    input: line.prompt_eval_count.unwrap_or(0),
                    output,
                    cached: line.prompt_eval_cached_count.unwrap_or(0),
                    estimated: false,
                });
            }
        }
        Ok(line.done)
    }
}
