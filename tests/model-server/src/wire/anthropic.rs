//! Anthropic messages: <https://docs.anthropic.com/en/api/messages-streaming>.

use super::{Context, Rendered, sse};
use serde_json::{Value, json};

pub(super) fn stream(context: &Context<'_>) -> Rendered {
    let (input, output, cached) = usage(context);
    let mut message = envelope(context);
    message["content"] = json!([]);
    message["usage"] = json!({"input_tokens": input, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached, "output_tokens": 1});
    let opening = sse(
        Some("message_start"),
        &json!({"type": "message_start", "message": message}),
    ) + &sse(Some("ping"), &json!({"type": "ping"}));
    let mut blocks = Blocks::default();
    blocks.texts(
        &context.reply.reasoning,
        &json!({"type": "thinking", "thinking": "", "signature": ""}),
        |text| json!({"type": "thinking_delta", "thinking": text}),
        Some(json!({"type": "signature_delta", "signature": "c2lnbmF0dXJl"})),
    );
    blocks.texts(
        &context.reply.text,
        &json!({"type": "text", "text": ""}),
        |text| json!({"type": "text_delta", "text": text}),
        None,
    );
    for (index, call) in context.reply.tools.iter().enumerate() {
        let arguments = call.arguments_text();
        let (first, second) = Context::pieces(&arguments);
        let part = |text: &str| json!({"type": "input_json_delta", "partial_json": text});
        let start = json!({"type": "tool_use", "id": id(context, index), "name": call.name, "input": {}});
        let chunk = blocks.start(&start)
            + &blocks.delta(&part(""))
            + &blocks.delta(&part(first))
            + &blocks.delta(&part(second))
            + &blocks.stop();
        blocks.chunks.push(chunk);
    }
    let end = json!({"type": "message_delta", "delta": {"stop_reason": finish(context), "stop_sequence": null},
        "usage": {"output_tokens": output}});
    Rendered {
        opening,
        chunks: blocks.chunks,
        ending: sse(Some("message_delta"), &end)
            + &sse(Some("message_stop"), &json!({"type": "message_stop"})),
    }
}

#[derive(Default)]
struct Blocks {
    index: usize,
    chunks: Vec<String>,
}

impl Blocks {
    fn start(&self, block: &Value) -> String {
        let event = json!({"type": "content_block_start", "index": self.index, "content_block": block});
        sse(Some("content_block_start"), &event)
    }
    fn delta(&self, delta: &Value) -> String {
        let event = json!({"type": "content_block_delta", "index": self.index, "delta": delta});
        sse(Some("content_block_delta"), &event)
    }
    fn stop(&mut self) -> String {
        let event = json!({"type": "content_block_stop", "index": self.index});
        self.index += 1;
        sse(Some("content_block_stop"), &event)
    }
    /// A block of texts, one chunk each.
    fn texts(&mut self, texts: &[String], block: &Value, delta: fn(&str) -> Value, last: Option<Value>) {
        for (at, text) in texts.iter().enumerate() {
            let mut chunk = if at == 0 { self.start(block) } else { String::new() };
            chunk += &self.delta(&delta(text));
            if at + 1 == texts.len() {
                if let Some(last) = &last {
                    chunk += &self.delta(last);
                }
                chunk += &self.stop();
            }
            self.chunks.push(chunk);
        }
    }
}

pub(super) fn whole(context: &Context<'_>) -> Value {
    let reply = context.reply;
    let mut content = Vec::new();
    if !reply.reasoning.is_empty() {
        content.push(
            json!({"type": "thinking", "thinking": reply.reasoning.concat(), "signature": "c2lnbmF0dXJl"}),
        );
    }
    if !reply.text.is_empty() {
        content.push(json!({"type": "text", "text": reply.text.concat()}));
    }
    for (index, call) in reply.tools.iter().enumerate() {
        let text = call.arguments_text();
        let input: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        content
            .push(json!({"type": "tool_use", "id": id(context, index), "name": call.name, "input": input}));
    }
    let (input, output, cached) = usage(context);
    let mut message = envelope(context);
    message["content"] = content.into();
    message["stop_reason"] = finish(context).into();
    message["usage"] = json!({"input_tokens": input, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached, "output_tokens": output});
    message
}

fn envelope(context: &Context<'_>) -> Value {
    json!({"id": format!("msg_{}", context.number), "type": "message", "role": "assistant",
        "model": context.request.model, "stop_reason": null, "stop_sequence": null})
}

/// Input tokens here are those not read from the cache, as the provider counts them.
fn usage(context: &Context<'_>) -> (u64, u64, u64) {
    context.usage().map_or((0, 0, 0), |u| {
        (u.input.saturating_sub(u.cached), u.output, u.cached)
    })
}

fn id(context: &Context<'_>, index: usize) -> String {
    format!("toolu_{}_{index}", context.number)
}

fn finish<'a>(context: &'a Context<'_>) -> &'a str {
    match &context.reply.finish {
        Some(reason) => reason,
        None if context.reply.tools.is_empty() => "end_turn",
        None => "tool_use",
    }
}

/// Types as listed at <https://docs.anthropic.com/en/api/errors>.
pub(super) fn error(status: u16, message: Option<&str>) -> Value {
    let (kind, text) = match status {
        400 => ("invalid_request_error", "Invalid request"),
        401 => ("authentication_error", "invalid x-api-key"),
        403 => (
            "permission_error",
            "Your API key does not have permission to use this resource",
        ),
        404 => ("not_found_error", "model not found"),
        413 => ("request_too_large", "Request exceeds the maximum size"),
        429 => (
            "rate_limit_error",
            "This request would exceed your organization's rate limit",
        ),
        529 => ("overloaded_error", "Overloaded"),
        _ => ("api_error", "Internal server error"),
    };
    json!({"type": "error", "error": {"type": kind, "message": message.unwrap_or(text)}, "request_id": "req_1"})
}
