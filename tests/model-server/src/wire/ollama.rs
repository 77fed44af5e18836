//! Ollama's own chat: <https://github.com/ollama/ollama/blob/main/docs/api.md>.

use super::{Context, Rendered};
use serde_json::{Value, json};

pub(super) fn stream(context: &Context<'_>) -> Rendered {
    let line = |message: Value| format!("{}\n", envelope(context, message, false));
    let mut chunks = Vec::new();
    for text in &context.reply.reasoning {
        chunks.push(line(
            json!({"role": "assistant", "content": "", "thinking": text}),
        ));
    }
    for text in &context.reply.text {
        chunks.push(line(json!({"role": "assistant", "content": text})));
    }
    for index in 0..context.reply.tools.len() {
        chunks.push(line(
            json!({"role": "assistant", "content": "", "tool_calls": [call(context, index)]}),
        ));
    }
    Rendered {
        opening: String::new(),
        chunks,
        ending: format!("{}\n", last(context, json!({"role": "assistant", "content": ""}))),
    }
}

pub(super) fn whole(context: &Context<'_>) -> Value {
    let mut message = json!({"role": "assistant", "content": context.reply.text.concat()});
    if !context.reply.reasoning.is_empty() {
        message["thinking"] = context.reply.reasoning.concat().into();
    }
    if !context.reply.tools.is_empty() {
        message["tool_calls"] = (0..context.reply.tools.len()).map(|i| call(context, i)).collect();
    }
    last(context, message)
}

/// Arguments are an object; a text that is no JSON can only travel as a string.
fn call(context: &Context<'_>, index: usize) -> Value {
    let call = &context.reply.tools[index];
    let text = call.arguments_text();
    let arguments: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    json!({"function": {"index": index, "name": call.name, "arguments": arguments}})
}

fn envelope(context: &Context<'_>, message: Value, done: bool) -> Value {
    json!({"model": context.request.model, "created_at": "2025-01-01T00:00:00Z", "message": message, "done": done})
}

fn last(context: &Context<'_>, message: Value) -> Value {
    let mut value = envelope(context, message, true);
    value["done_reason"] = context.reply.finish.as_deref().unwrap_or("stop").into();
    value["total_duration"] = 1_000_000.into();
    value["load_duration"] = 1_000.into();
    if let Some(usage) = context.usage() {
        value["prompt_eval_count"] = usage.input.into();
        value["prompt_eval_duration"] = 1_000.into();
        value["eval_count"] = usage.output.into();
        value["eval_duration"] = 1_000.into();
    }
    value
}
