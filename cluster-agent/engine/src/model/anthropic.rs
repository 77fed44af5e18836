//! Anthropic messages: <https://docs.anthropic.com/en/api/messages-streaming>. The answer is complete with
//! `message_stop`.

use super::{
    ChatMessage, ChatRequest, ErrorClass, ModelError, Part, StopReason, ToolCall, Usage,
    errors::{error, event_error},
    is_deep,
    openai::{GO_ON, file_text, goes_on},
    sink::{OpenCall, Sink},
};
use roadstead_contract::{control::SecretText, documents::ModelSpec};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

/// The version of the interface, sent with each request.
pub(super) const VERSION: &str = "2023-06-01";

/// `max_tokens` is required; this is sent where neither document nor limits say one.
const DEFAULT_MAX_TOKENS: u32 = 8192;

/// [`super::Model::provider`], under which state is kept.
pub(super) const NAME: &str = "anthropic";

/// The body of a request.
pub(super) fn body(
    spec: &ModelSpec,
    request: &ChatRequest,
    limit: Option<u32>,
) -> Result<Vec<u8>, ModelError> {
    let options = &spec.options;
    let mut messages = Messages::default();
    for message in &request.messages {
        messages.add(message)?;
    }
    if goes_on(&request.messages) {
        messages.push("user", vec![json!({"type": "text", "text": GO_ON})]);
    }
    let mut list = messages.0;
    // The conversation so far is cached up to here; the next turn reads it from there.
    if let Some(last) = list
        .last_mut()
        .and_then(|m| m["content"].as_array_mut()?.last_mut())
    {
        last["cache_control"] = json!({"type": "ephemeral"});
    }
    let mut body =
        json!({"model": spec.model, "max_tokens": limit.unwrap_or(DEFAULT_MAX_TOKENS), "stream": true});
    if !request.system.is_empty() {
        body["system"] =
            json!([{"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}]);
    }
    if !request.tools.is_empty() {
        let tools = request.tools.iter().map(|tool| {
            json!({"name": tool.name, "description": tool.description, "input_schema": *tool.parameters})
        });
        body["tools"] = tools.collect();
    }
    body["messages"] = list.into();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body[name] = value;
        }
    };
    set("temperature", options.temperature.map(Value::from));
    set("top_p", options.top_p.map(Value::from));
    set(
        "stop_sequences",
        (!options.stop.is_empty()).then(|| json!(options.stop)),
    );
    set(
        "output_config",
        options.reasoning_effort.map(|effort| json!({"effort": effort})),
    );
    serde_json::to_vec(&body).map_err(|e| error(ErrorClass::Refused, format!("the request is no JSON: {e}")))
}

/// Messages in turn: neighbours of one role are joined, empty ones left out, as the interface wants it.
#[derive(Default)]
struct Messages(Vec<Value>);

impl Messages {
    fn add(&mut self, message: &ChatMessage) -> Result<(), ModelError> {
        match message {
            ChatMessage::User { parts } => {
                let blocks: Result<Vec<Value>, ModelError> = parts.iter().filter_map(user_block).collect();
                self.push("user", blocks?);
            }
            ChatMessage::Assistant {
                text,
                tool_calls,
                provider_state,
            } => {
                // Signed thoughts come first, unchanged, or the provider refuses the tool calls after them.
                let state = provider_state.as_ref().filter(|s| s.provider == NAME);
                let mut blocks = state
                    .and_then(|s| s.value.as_array())
                    .cloned()
                    .unwrap_or_default();
                let text = text.trim_end();
                if !text.is_empty() {
                    blocks.push(json!({"type": "text", "text": text}));
                }
                blocks.extend(tool_calls.iter().map(tool_use));
                // Thoughts alone are no message.
                if !text.is_empty() || !tool_calls.is_empty() {
                    self.push("assistant", blocks);
                }
            }
            ChatMessage::Tool {
                call_id,
                text,
                is_error,
                ..
            } => {
                let mut block =
                    json!({"type": "tool_result", "tool_use_id": fitting_id(call_id), "content": text});
                if *is_error {
                    block["is_error"] = true.into();
                }
                self.push("user", vec![block]);
            }
        }
        Ok(())
    }

    fn push(&mut self, role: &str, blocks: Vec<Value>) {
        if blocks.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last["role"] == role => {
                if let Some(content) = last["content"].as_array_mut() {
                    content.extend(blocks);
                }
            }
            _ => self.0.push(json!({"role": role, "content": blocks})),
        }
    }
}

fn user_block(part: &Part) -> Option<Result<Value, ModelError>> {
    let (name, media_type, data) = match part {
        Part::Text { text } if text.trim().is_empty() => return None,
        Part::Text { text } => return Some(Ok(json!({"type": "text", "text": text}))),
        Part::File {
            name,
            media_type,
            data,
        } => (name, media_type, data),
    };
    let source = json!({"type": "base64", "media_type": media_type, "data": data});
    Some(if let Some(text) = file_text(media_type, data) {
        Ok(json!({"type": "text", "text": format!("File {name}:\n{text}")}))
    } else if media_type.starts_with("image/") {
        Ok(json!({"type": "image", "source": source}))
    } else if media_type == "application/pdf" {
        Ok(json!({"type": "document", "source": source, "title": name}))
    } else {
        let message = format!("expected files of text, image/* or application/pdf, found {media_type}");
        Err(error(ErrorClass::Refused, message))
    })
}

fn tool_use(call: &ToolCall) -> Value {
    let input = match (&call.problem, &call.arguments) {
        (None, Value::Object(_)) => call.arguments.clone(),
        (_, other) => json!({"unreadable": other}),
    };
    json!({"type": "tool_use", "id": fitting_id(&call.id), "name": call.name, "input": input})
}

/// Ids must be of letters, digits, `_` and `-`; another provider's may not be.
fn fitting_id(id: &str) -> String {
    let fit = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '_'
        }
    };
    id.chars().map(fit).collect()
}

/// Reads the stream.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    usage: Option<Counts>,
    block: Block,
    /// Thoughts to be sent back, in order.
    thoughts: Vec<Value>,
}

/// The block that is arriving.
#[derive(Debug, Default)]
enum Block {
    #[default]
    Other,
    Thought {
        text: String,
        signature: String,
    },
    Call,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    message: Option<Start>,
    content_block: Option<Map<String, Value>>,
    delta: Option<Delta>,
    usage: Option<Counts>,
}

#[derive(Deserialize)]
struct Start {
    usage: Option<Counts>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    partial_json: Option<String>,
    stop_reason: Option<String>,
}

/// The input that a block begins with, as its text: a parsed value may have rounded it.
fn given_input(data: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Begun {
        content_block: Block,
    }
    #[derive(Deserialize)]
    struct Block {
        input: Box<RawValue>,
    }
    let begun: Begun = serde_json::from_slice(data).ok()?;
    Some(begun.content_block.input.get().to_owned())
}

/// Counts so far; `input_tokens` are those neither written to nor read from the cache.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Counts {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

impl Decoder {
    /// Reads one event; `true`: it was the last.
    pub(super) fn frame(
        &mut self,
        data: &[u8],
        sink: &mut Sink,
        key: Option<&SecretText>,
    ) -> Result<bool, ModelError> {
        let event: Event = serde_json::from_slice(data).map_err(|e| {
            let message = format!("expected an event of a message, found {} bytes: {e}", data.len());
            error(ErrorClass::Nonsense, message)
        })?;
        match event.kind.as_str() {
            "error" => {
                let json: Value = serde_json::from_slice(data).unwrap_or_default();
                return Err(event_error(&json, key));
            }
            "message_start" => self.count(event.message.and_then(|m| m.usage)),
            "content_block_start" => self.start(event.content_block.unwrap_or_default(), data, sink),
            "content_block_delta" => {
                if let Some(delta) = event.delta {
                    self.delta(delta, sink);
                }
            }
            "content_block_stop" => self.stop(),
            "message_delta" => {
                self.count(event.usage);
                if let Some(reason) = event.delta.and_then(|d| d.stop_reason) {
                    sink.stop = Some(stop_reason(&reason));
                }
            }
            "message_stop" => {
                sink.usage = self.usage.map(usage);
                let thoughts: Value = std::mem::take(&mut self.thoughts).into();
                // What could not be read again is not worth keeping.
                if thoughts != json!([]) && !is_deep(&thoughts) {
                    sink.provider_state = Some(thoughts);
                }
                return Ok(true);
            }
            // `ping`, and what is added later: to be ignored, says the documentation.
            _ => {}
        }
        Ok(false)
    }

    fn start(&mut self, block: Map<String, Value>, data: &[u8], sink: &mut Sink) {
        let text = |name: &str| {
            block
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        self.block = match text("type").as_str() {
            "text" => {
                sink.text(text("text"));
                Block::Other
            }
            "thinking" => Block::Thought {
                text: text("thinking"),
                signature: text("signature"),
            },
            "redacted_thinking" => {
                sink.thought(Value::Object(block.clone()).to_string().len());
                self.thoughts.push(Value::Object(block));
                Block::Other
            }
            "tool_use" => {
                let given = block
                    .get("input")
                    .filter(|i| i.as_object().is_some_and(|o| !o.is_empty()));
                sink.open_calls.push(OpenCall {
                    index: None,
                    id: text("id"),
                    name: text("name"),
                    arguments: given.and_then(|_| given_input(data)).unwrap_or_default(),
                });
                Block::Call
            }
            _ => Block::Other,
        };
    }

    fn delta(&mut self, delta: Delta, sink: &mut Sink) {
        match (delta.kind.as_deref().unwrap_or_default(), &mut self.block) {
            ("text_delta", _) => sink.text(delta.text.unwrap_or_default()),
            ("thinking_delta", Block::Thought { text, .. }) => {
                let thought = delta.thinking.unwrap_or_default();
                text.push_str(&thought);
                sink.reasoning(thought);
            }
            ("signature_delta", Block::Thought { signature, .. }) => {
                let more = delta.signature.unwrap_or_default();
                sink.thought(more.len());
                signature.push_str(&more);
            }
            ("input_json_delta", Block::Call) => {
                if let Some(call) = sink.open_calls.last_mut() {
                    call.arguments.push_str(&delta.partial_json.unwrap_or_default());
                }
            }
            _ => {}
        }
    }

    fn stop(&mut self) {
        if let Block::Thought { text, signature } = std::mem::take(&mut self.block) {
            self.thoughts
                .push(json!({"type": "thinking", "thinking": text, "signature": signature}));
        }
    }

    fn count(&mut self, counts: Option<Counts>) {
        let Some(new) = counts else { return };
        let old = self.usage.get_or_insert_default();
        *old = Counts {
            input_tokens: new.input_tokens.or(old.input_tokens),
            cache_creation_input_tokens: new
                .cache_creation_input_tokens
                .or(old.cache_creation_input_tokens),
            cache_read_input_tokens: new.cache_read_input_tokens.or(old.cache_read_input_tokens),
            output_tokens: new.output_tokens.or(old.output_tokens),
        };
    }
}

fn usage(counts: Counts) -> Usage {
    let cached = counts.cache_read_input_tokens.unwrap_or(0);
    Usage {
        input: counts
            .input_tokens
            .unwrap_or(0)
            .saturating_add(counts.cache_creation_input_tokens.unwrap_or(0))
            .saturating_add(cached),
        output: counts.output_tokens.unwrap_or(0),
        cached,
        estimated: false,
    }
}

fn stop_reason(text: &str) -> StopReason {
    match text {
        "max_tokens" | "model_context_window_exceeded" => StopReason::Length,
        "tool_use" => StopReason::ToolCalls,
        "refusal" => StopReason::Filtered,
        _ => StopReason::End,
    }
}
