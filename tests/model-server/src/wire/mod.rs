//! Replies written in the three wire formats, as their providers write them.

mod anthropic;
mod ollama;
mod openai;

use crate::{
    request::{Api, Request},
    script::{Reply, Usage},
};
use serde_json::{Value, json};

/// A reply, ready to travel: as a stream, or whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rendered {
    /// Before the first chunk.
    pub opening: String,
    /// One entry for each chunk of the reply.
    pub chunks: Vec<String>,
    /// After the last chunk, with the format's last word.
    pub ending: String,
}

/// What is answered and to what.
pub(crate) struct Context<'a> {
    pub(crate) request: &'a Request,
    pub(crate) reply: &'a Reply,
    /// Number of the request, for ids.
    pub(crate) number: usize,
}

/// Tokens as the server counts them.
pub(crate) struct Counted {
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) cached: u64,
}

impl Context<'_> {
    pub(crate) fn usage(&self) -> Option<Counted> {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        match self.reply.usage {
            Usage::Absent => None,
            Usage::Given {
                input,
                output,
                cached,
            } => Some(Counted {
                input,
                output,
                cached,
            }),
            Usage::Counted => Some(Counted {
                input: count(self.request.bytes / 4).max(1),
                output: count(self.reply.text.len() + self.reply.tools.len() + self.reply.reasoning.len())
                    .max(1),
                cached: 0,
            }),
        }
    }

    /// The arguments of each call in two pieces, so that a reader must join them.
    pub(crate) fn pieces(text: &str) -> (&str, &str) {
        let mut middle = text.len() / 2;
        while !text.is_char_boundary(middle) {
            middle -= 1;
        }
        text.split_at(middle)
    }
}

/// The content type of an answer.
#[must_use]
pub fn content_type(api: Api, stream: bool) -> &'static str {
    match (api, stream) {
        (_, false) => "application/json",
        (Api::Ollama, true) => "application/x-ndjson",
        (_, true) => "text/event-stream; charset=utf-8",
    }
}

/// A reply in a format: a stream of chunks, or one chunk that is the whole.
#[must_use]
pub fn render(api: Api, request: &Request, reply: &Reply, number: usize) -> Rendered {
    let context = Context {
        request,
        reply,
        number,
    };
    let whole = |value: Value| Rendered {
        chunks: vec![value.to_string()],
        ..Rendered::default()
    };
    match (api, request.stream) {
        (Api::OpenAi, true) => openai::stream(&context),
        (Api::OpenAi, false) => whole(openai::whole(&context)),
        (Api::Anthropic, true) => anthropic::stream(&context),
        (Api::Anthropic, false) => whole(anthropic::whole(&context)),
        (Api::Ollama, true) => ollama::stream(&context),
        (Api::Ollama, false) => whole(ollama::whole(&context)),
    }
}

/// The body that a provider sends with a status, and the message it gives where `message` is none.
#[must_use]
pub fn error_body(api: Api, status: u16, message: Option<&str>) -> String {
    match api {
        Api::OpenAi => openai::error(status, message),
        Api::Anthropic => anthropic::error(status, message),
        Api::Ollama => json!({"error": message.unwrap_or("something went wrong")}),
    }
    .to_string()
}

/// The event with which a provider ends a stream that failed.
#[must_use]
pub fn stream_error(api: Api) -> String {
    match api {
        Api::OpenAi => sse(None, &openai::error(500, None)),
        Api::Anthropic => sse(Some("error"), &anthropic::error(529, None)),
        Api::Ollama => {
            "{\"error\":\"an error was encountered while running the model: unexpected EOF\"}\n".to_owned()
        }
    }
}

/// The list of models.
#[must_use]
pub fn models(api: Api, names: &[String]) -> Value {
    let each = |make: fn(&String) -> Value| Value::Array(names.iter().map(make).collect());
    match api {
        Api::OpenAi => json!({"object": "list", "data": each(|n| json!({"id": n, "object": "model",
            "created": 1_700_000_000, "owned_by": "roadstead-test"}))}),
        Api::Anthropic => json!({"data": each(|n| json!({"id": n, "type": "model", "display_name": n,
            "created_at": "2025-01-01T00:00:00Z"})), "has_more": false}),
        Api::Ollama => json!({"models": each(|n| json!({"name": n, "model": n,
            "modified_at": "2025-01-01T00:00:00Z", "size": 1_000_000, "digest": "0".repeat(64),
            "details": {"format": "gguf", "family": "scripted", "parameter_size": "1M", "quantization_level": "F16"}}))}),
    }
}

/// One server-sent event.
pub(crate) fn sse(event: Option<&str>, data: &Value) -> String {
    event.map_or_else(
        || format!("data: {data}\n\n"),
        |event| format!("event: {event}\ndata: {data}\n\n"),
    )
}
