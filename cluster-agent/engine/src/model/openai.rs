//! OpenAI chat completions, and the servers that speak it (vLLM, llama.cpp, Ollama's `/v1`).
//!
//! Request and stream as in <https://platform.openai.com/docs/api-reference/chat>. The answer is complete with
//! `[DONE]`; a body that ends in good order after a `finish_reason` is taken as complete too, since some gateways
//! leave the last word out.

use super::{
    ChatMessage, ChatRequest, ErrorClass, ModelError, Part, StopReason, ToolCall, ToolSchema, Usage,
    errors::{error, event_error},
    repair,
    sink::{OpenCall, Sink},
};
use roadstead_contract::{
    control::SecretText,
    documents::{ModelSpec, Provider},
};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeSeq as _};
use serde_json::{Value, json, value::RawValue};

/// Said to the model where an answer broke off, since chat models do not go on with a message of their own.
pub(super) const GO_ON: &str = "Your last answer broke off. Go on exactly where it ended and repeat nothing.";

/// The body of a request.
pub(super) fn body(
    spec: &ModelSpec,
    request: &ChatRequest,
    limit: Option<u32>,
) -> Result<Vec<u8>, ModelError> {
    if let Some(media_type) = unsupported_file(&request.messages) {
        let message = format!("expected files of text, image/* or application/pdf, found {media_type}");
        return Err(error(ErrorClass::Refused, message));
    }
    let options = &spec.options;
    let own = spec.provider == Provider::Openai;
    // Servers that are not OpenAI's hold an answer to a schema by a grammar, which then rules out tool calls.
    let schema = request
        .output_schema
        .as_deref()
        .filter(|_| own || request.tools.is_empty());
    let body = Body {
        model: &spec.model,
        messages: Messages(request),
        stream: true,
        stream_options: json!({"include_usage": true}),
        tools: request.tools.iter().map(Tool::from).collect(),
        temperature: options.temperature,
        top_p: options.top_p,
        seed: options.seed,
        stop: &options.stop,
        max_completion_tokens: limit.filter(|_| own),
        max_tokens: limit.filter(|_| !own),
        reasoning_effort: options.reasoning_effort,
        response_format: schema.map(|schema| {
            json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": false}})
        }),
    };
    serde_json::to_vec(&body).map_err(|e| error(ErrorClass::Refused, format!("the request is no JSON: {e}")))
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Messages<'a>,
    stream: bool,
    stream_options: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_effort: Option<roadstead_contract::documents::ReasoningEffort>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<Value>,
}

/// A tool in the form that OpenAI and Ollama share.
#[derive(Serialize)]
pub(super) struct Tool<'a> {
    r#type: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    description: &'a str,
    parameters: &'a Value,
}

impl<'a> From<&'a ToolSchema> for Tool<'a> {
    fn from(tool: &'a ToolSchema) -> Self {
        Self {
            r#type: "function",
            function: Function {
                name: &tool.name,
                description: &tool.description,
                parameters: &tool.parameters,
            },
        }
    }
}

struct Messages<'a>(&'a ChatRequest);

impl Serialize for Messages<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        if !self.0.system.is_empty() {
            seq.serialize_element(&plain("system", &self.0.system))?;
        }
        for message in &self.0.messages {
            match message {
                ChatMessage::User { parts } => match parts.as_slice() {
                    [Part::Text { text }] => seq.serialize_element(&plain("user", text))?,
                    parts => {
                        let content: Vec<Value> = parts.iter().map(user_part).collect();
                        seq.serialize_element(&json!({"role": "user", "content": content}))?;
                    }
                },
                ChatMessage::Assistant { text, tool_calls, .. } => seq.serialize_element(&Assistant {
                    role: "assistant",
                    content: (!text.is_empty() || tool_calls.is_empty()).then_some(text),
                    tool_calls: tool_calls.iter().map(call).collect(),
                })?,
                ChatMessage::Tool { call_id, text, .. } => {
                    seq.serialize_element(&Answered {
                        role: "tool",
                        tool_call_id: call_id,
                        content: text,
                    })?;
                }
            }
        }
        if goes_on(&self.0.messages) {
            seq.serialize_element(&plain("user", GO_ON))?;
        }
        seq.end()
    }
}

/// Whether the last message is an answer that broke off.
pub(super) fn goes_on(messages: &[ChatMessage]) -> bool {
    matches!(messages.last(), Some(ChatMessage::Assistant { tool_calls, .. }) if tool_calls.is_empty())
}

#[derive(Serialize)]
struct Plain<'a> {
    role: &'static str,
    content: &'a str,
}

fn plain<'a>(role: &'static str, content: &'a str) -> Plain<'a> {
    Plain { role, content }
}

#[derive(Serialize)]
struct Assistant<'a> {
    role: &'static str,
    content: Option<&'a String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
}

#[derive(Serialize)]
struct Answered<'a> {
    role: &'static str,
    tool_call_id: &'a str,
    content: &'a str,
}

#[derive(Serialize)]
struct Call<'a> {
    id: &'a str,
    r#type: &'static str,
    function: Called<'a>,
}

#[derive(Serialize)]
struct Called<'a> {
    name: &'a str,
    arguments: String,
}

fn call(call: &ToolCall) -> Call<'_> {
    // Arguments that could not be read go back as they came, in a form that every server accepts.
    let arguments = match (&call.problem, &call.arguments) {
        (Some(_), Value::String(text)) => json!({"unreadable": text}).to_string(),
        (_, arguments) => arguments.to_string(),
    };
    Call {
        id: &call.id,
        r#type: "function",
        function: Called {
            name: &call.name,
            arguments,
        },
    }
}

/// The media type of the first file that no format of this API carries.
fn unsupported_file(messages: &[ChatMessage]) -> Option<&str> {
    let parts = messages.iter().filter_map(|message| match message {
        ChatMessage::User { parts } => Some(parts),
        _ => None,
    });
    parts.flatten().find_map(|part| match part {
        Part::File { media_type, data, .. } => {
            let known = media_type.starts_with("image/")
                || media_type == "application/pdf"
                || file_text(media_type, data).is_some();
            (!known).then_some(media_type.as_str())
        }
        Part::Text { .. } => None,
    })
}

/// The content of a file that is text.
pub(super) fn file_text(media_type: &str, data: &str) -> Option<String> {
    use base64::Engine as _;
    let kind = media_type.split(';').next().unwrap_or_default().trim();
    let textual = kind.starts_with("text/")
        || matches!(kind, "application/json" | "application/yaml" | "application/xml");
    if !textual {
        return None;
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(data).ok()?;
    String::from_utf8(bytes).ok()
}

fn user_part(part: &Part) -> Value {
    match part {
        Part::Text { text } => json!({"type": "text", "text": text}),
        Part::File {
            name,
            media_type,
            data,
        } => {
            if let Some(text) = file_text(media_type, data) {
                return json!({"type": "text", "text": format!("File {name}:\n{text}")});
            }
            let url = format!("data:{media_type};base64,{data}");
            if media_type.starts_with("image/") {
                json!({"type": "image_url", "image_url": {"url": url}})
            } else {
                json!({"type": "file", "file": {"filename": name, "file_data": url}})
            }
        }
    }
}

/// Reads the stream.
#[derive(Debug, Default)]
pub(super) struct Decoder;

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Counts>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u64,
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<Content>,
    /// vLLM, llama.cpp, DeepSeek.
    reasoning_content: Option<String>,
    /// Ollama, OpenRouter.
    reasoning: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

/// A text; or typed pieces, as Mistral's reasoning models send them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Pieces(Vec<Value>),
}

#[derive(Deserialize)]
struct CallDelta {
    /// Left out by servers that send a call in one piece.
    index: Option<usize>,
    id: Option<String>,
    function: Option<FunctionDelta>,
}

#[derive(Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    /// A text; some servers send the object itself.
    arguments: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Counts {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Decoder {
    /// Reads one event; `true`: it was the last.
    pub(super) fn frame(
        &mut self,
        data: &[u8],
        sink: &mut Sink,
        key: Option<&SecretText>,
    ) -> Result<bool, ModelError> {
        if data == b"[DONE]" {
            return Ok(true);
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|e| {
            let message = format!(
                "expected a chunk of a chat completion, found {} bytes: {e}",
                data.len()
            );
            error(ErrorClass::Nonsense, message)
        })?;
        if let Some(problem) = chunk.error.filter(|e| !e.is_null()) {
            return Err(event_error(&json!({"error": problem}), key));
        }
        if let Some(counts) = chunk.usage {
            sink.usage = Some(Usage {
                input: counts.prompt_tokens,
                output: counts.completion_tokens,
                cached: counts
                    .prompt_tokens_details
                    .and_then(|d| d.cached_tokens)
                    .unwrap_or(0),
                estimated: false,
            });
        }
        for choice in chunk.choices.into_iter().filter(|c| c.index == 0) {
            if let Some(delta) = choice.delta {
                read_delta(delta, sink);
            }
            if let Some(reason) = choice.finish_reason {
                sink.stop = Some(stop_reason(&reason));
            }
        }
        Ok(false)
    }
}

fn read_delta(delta: Delta, sink: &mut Sink) {
    for thought in [delta.reasoning_content, delta.reasoning]
        .into_iter()
        .flatten()
        .take(1)
    {
        sink.reasoning(thought);
    }
    match delta.content {
        Some(Content::Text(text)) => sink.text(text),
        Some(Content::Pieces(pieces)) => read_pieces(pieces, sink),
        None => {}
    }
    if let Some(refusal) = delta.refusal {
        sink.text(refusal);
    }
    for call in delta.tool_calls.into_iter().flatten() {
        read_call_delta(call, sink);
    }
}

fn read_call_delta(call: CallDelta, sink: &mut Sink) {
    let (name, arguments) = call.function.map_or((None, None), |f| (f.name, f.arguments));
    let (name, id) = (name.unwrap_or_default(), call.id.unwrap_or_default());
    let known = match call.index {
        Some(_) => sink.open_calls.iter().rposition(|open| open.index == call.index),
        None if name.is_empty() => sink.open_calls.len().checked_sub(1),
        None => None,
    };
    // Some servers number every call 0 and tell them apart by id alone.
    let known = known.filter(|at| {
        let open = &sink.open_calls[*at];
        name.is_empty() || id.is_empty() || open.id.is_empty() || open.id == id
    });
    let at = known.unwrap_or_else(|| {
        sink.open_calls.push(OpenCall::default());
        sink.open_calls.len() - 1
    });
    let open = &mut sink.open_calls[at];
    open.index = call.index;
    if !id.is_empty() {
        open.id = id;
    }
    if !name.is_empty() {
        open.name = name;
    }
    open.arguments.push_str(&repair::given(arguments.as_deref()));
}

fn read_pieces(pieces: Vec<Value>, sink: &mut Sink) {
    for piece in pieces {
        match piece["type"].as_str() {
            Some("thinking") => {
                for inner in piece["thinking"].as_array().into_iter().flatten() {
                    sink.reasoning(inner["text"].as_str().unwrap_or_default().to_owned());
                }
            }
            _ => sink.text(piece["text"].as_str().unwrap_or_default().to_owned()),
        }
    }
}

fn stop_reason(text: &str) -> StopReason {
    match text {
        "length" => StopReason::Length,
        "tool_calls" | "function_call" => StopReason::ToolCalls,
        "content_filter" => StopReason::Filtered,
        _ => StopReason::End,
    }
}
