//! OpenAI chat completions: <https://platform.openai.com/docs/api-reference/chat>.

use super::{Context, Counted, Rendered, sse};
use serde_json::{Value, json};

pub(super) fn stream(context: &Context<'_>) -> Rendered {
    let chunk = |delta: Value, finish: Option<&str>| sse(None, &envelope(context, &delta, finish));
    let mut chunks = Vec::new();
    for text in &context.reply.reasoning {
        chunks.push(chunk(json!({"reasoning_content": text}), None));
    }
    for text in &context.reply.text {
        chunks.push(chunk(json!({"content": text}), None));
    }
    for (index, call) in context.reply.tools.iter().enumerate() {
        let arguments = call.arguments_text();
        let (first, second) = Context::pieces(&arguments);
        let head = json!({"index": index, "id": id(context, index), "type": "function",
            "function": {"name": call.name, "arguments": ""}});
        let part = |text: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]});
        let mut events = chunk(json!({"tool_calls": [head]}), None);
        events += &chunk(part(first), None);
        events += &chunk(part(second), None);
        chunks.push(events);
    }
    let mut ending = chunk(json!({}), Some(finish(context)));
    if let Some(usage) = context.usage().filter(|_| context.request.usage_wanted) {
        let mut last = envelope(context, &json!({}), None);
        last["choices"] = json!([]);
        last["usage"] = usage_json(&usage);
        ending += &sse(None, &last);
    }
    ending += "data: [DONE]\n\n";
    Rendered {
        opening: chunk(json!({"role": "assistant", "content": ""}), None),
        chunks,
        ending,
    }
}

pub(super) fn whole(context: &Context<'_>) -> Value {
    let mut message = json!({"role": "assistant", "content": context.reply.text.concat(), "refusal": null});
    if !context.reply.reasoning.is_empty() {
        message["reasoning_content"] = context.reply.reasoning.concat().into();
    }
    if !context.reply.tools.is_empty() {
        let calls = context.reply.tools.iter().enumerate();
        message["tool_calls"] = calls
            .map(|(index, call)| {
                json!({"id": id(context, index), "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments_text()}})
            })
            .collect();
    }
    let mut answer = json!({"id": format!("chatcmpl-{}", context.number), "object": "chat.completion",
        "created": 1_700_000_000, "model": context.request.model,
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish(context)}]});
    if let Some(usage) = context.usage() {
        answer["usage"] = usage_json(&usage);
    }
    answer
}

fn envelope(context: &Context<'_>, delta: &Value, finish: Option<&str>) -> Value {
    json!({"id": format!("chatcmpl-{}", context.number), "object": "chat.completion.chunk",
        "created": 1_700_000_000, "model": context.request.model, "system_fingerprint": "fp_roadstead",
        "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]})
}

fn usage_json(usage: &Counted) -> Value {
    json!({"prompt_tokens": usage.input, "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": 0}})
}

fn id(context: &Context<'_>, index: usize) -> String {
    format!("call_{}_{index}", context.number)
}

fn finish<'a>(context: &'a Context<'_>) -> &'a str {
    match &context.reply.finish {
        Some(reason) => reason,
        None if context.reply.tools.is_empty() => "stop",
        None => "tool_calls",
    }
}

/// Bodies as seen from the provider.
pub(super) fn error(status: u16, message: Option<&str>) -> Value {
    let (kind, code, text) = match status {
        400 => ("invalid_request_error", Value::Null, "Invalid request"),
        401 => (
            "invalid_request_error",
            json!("invalid_api_key"),
            "Incorrect API key provided. You can find your API key at https://platform.openai.com/account/api-keys.",
        ),
        404 => (
            "invalid_request_error",
            json!("model_not_found"),
            "The model does not exist or you do not have access to it.",
        ),
        429 => (
            "tokens",
            json!("rate_limit_exceeded"),
            "Rate limit reached for tokens per min (TPM): Limit 30000, Used 29500, Requested 1500.",
        ),
        503 => (
            "server_error",
            Value::Null,
            "That model is currently overloaded with other requests.",
        ),
        _ => (
            "server_error",
            Value::Null,
            "The server had an error while processing your request. Sorry about that!",
        ),
    };
    json!({"error": {"message": message.unwrap_or(text), "type": kind, "param": null, "code": code}})
}
