//! The scripted model of `roadstead-hub dev`, for a laptop without any model: an OpenAI-compatible server on loopback.
//!
//! It can drive the examples and nothing else: from a few words of the question it chooses one of the tools that are
//! offered, and then answers with what the tool said. Every answer begins with [`LABEL`], so that nobody takes it for
//! a real model. The engine has no special case for it.

use axum::{
    Json, Router,
    response::{IntoResponse, Response, Sse, sse::Event},
    routing::{get, post},
};
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{convert::Infallible, net::SocketAddr};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How every answer of the scripted model begins.
pub(crate) const LABEL: &str = "[demo model] ";
/// The model's name in documents and in `/v1/models`.
pub(crate) const NAME: &str = "roadstead-demo";

/// Serves on loopback until `cancel`, on `port` where that is free (so that the Model document stays as it is), and
/// answers where. It costs nothing and knows nothing, so it asks nobody for a key.
///
/// # Errors
/// When no loopback port can be bound.
pub(crate) async fn start(port: Option<u16>, cancel: CancellationToken) -> std::io::Result<SocketAddr> {
    let bind = |port| TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port)));
    let listener = match bind(port.unwrap_or(0)).await {
        Ok(listener) => listener,
        Err(_) => bind(0).await?,
    };
    let address = listener.local_addr()?;
    let app = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(complete));
    tokio::spawn(async move {
        let served = axum::serve(listener, app)
            .with_graceful_shutdown(cancel.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the demo model stopped");
        }
    });
    Ok(address)
}

async fn models() -> Json<Value> {
    Json(json!({"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": "roadstead"}]}))
}

#[derive(Deserialize)]
struct Request {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Tool>,
    #[serde(default)]
    stream: bool,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Value,
}

#[derive(Deserialize)]
struct Tool {
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    parameters: Value,
}

/// What the script does next.
#[derive(Debug, PartialEq)]
enum Turn {
    Call { tool: String, arguments: Value },
    Say(String),
}

async fn complete(Json(request): Json<Request>) -> Response {
    let turn = next_turn(&request);
    let prompt_tokens = request
        .messages
        .iter()
        .map(|m| text(&m.content).len() / 4 + 4)
        .sum::<usize>();
    if request.stream {
        streamed(turn, prompt_tokens)
    } else {
        whole(&turn, prompt_tokens)
    }
}

/// A text of a message: a string, or parts with `text`.
fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|p| p["text"].as_str())
            .collect::<Vec<_>>()
            .join("\n"),
        _ => String::new(),
    }
}

fn next_turn(request: &Request) -> Turn {
    if let Some(last) = request.messages.last().filter(|m| m.role == "tool") {
        let said = text(&last.content);
        let short: String = said.chars().take(2_000).collect();
        return Turn::Say(format!("The tool answered: {short}"));
    }
    let question = request
        .messages
        .iter()
        .rev()
        .find(|m| m.role == "user")
        .map(|m| text(&m.content))
        .unwrap_or_default();
    match choose(&question, &request.tools) {
        Some((tool, arguments)) => Turn::Call { tool, arguments },
        None => Turn::Say(format!(
            "I am a script that can only drive the examples. You said: {:?}. Ask for the time somewhere, for the files, \
             or for the last commits; or set ROADSTEAD_MODEL_URL, OPENAI_API_KEY or ANTHROPIC_API_KEY for a real model.",
            question.chars().take(200).collect::<String>()
        )),
    }
}

/// The words that choose a tool, and the tool's own name behind its server's prefix.
const TRIGGERS: [(&[&str], &str); 5] = [
    (&["time", "clock", "hour"], "get_current_time"),
    (&["file", "folder", "director"], "list_directory"),
    (&["commit", "release", "change", "log"], "git_log"),
    (&["status"], "git_status"),
    (&["read"], "read_text_file"),
];

fn choose(question: &str, tools: &[Tool]) -> Option<(String, Value)> {
    let lower = question.to_lowercase();
    for (words, wanted) in TRIGGERS {
        if !words.iter().any(|word| lower.contains(word)) {
            continue;
        }
        if let Some(tool) = tools.iter().find(|t| t.function.name.ends_with(wanted)) {
            return Some((
                tool.function.name.clone(),
                arguments(&tool.function.parameters, question),
            ));
        }
    }
    None
}

/// Fills the required arguments that the examples' tools have.
fn arguments(schema: &Value, question: &str) -> Value {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let mut filled = serde_json::Map::new();
    for name in required.iter().filter_map(Value::as_str) {
        let value = match name {
            "timezone" => json!(timezone(question)),
            "path" | "repo_path" => json!(quoted(question).unwrap_or(".")),
            _ => json!(quoted(question).unwrap_or_default()),
        };
        filled.insert(name.to_owned(), value);
    }
    Value::Object(filled)
}

/// The first word that looks like an IANA time zone, else UTC.
fn timezone(question: &str) -> &str {
    let word = |w: &'_ str| w.contains('/') && w.chars().next().is_some_and(char::is_uppercase);
    let trim = |c: char| !c.is_alphanumeric() && c != '/' && c != '_';
    question
        .split_whitespace()
        .map(|w| w.trim_matches(trim))
        .find(|w| word(w))
        .unwrap_or("UTC")
}

/// The first text in double quotes or backquotes.
fn quoted(question: &str) -> Option<&str> {
    let mark = question.find(['"', '`'])?;
    let rest = &question[mark + 1..];
    rest.split_once(['"', '`']).map(|(inner, _)| inner)
}

fn usage(prompt_tokens: usize, completion: usize) -> Value {
    json!({"prompt_tokens": prompt_tokens, "completion_tokens": completion, "total_tokens": prompt_tokens + completion})
}

fn whole(turn: &Turn, prompt_tokens: usize) -> Response {
    let (message, finish, tokens) = match turn {
        Turn::Say(said) => (
            json!({"role": "assistant", "content": format!("{LABEL}{said}")}),
            "stop",
            said.len() / 4,
        ),
        Turn::Call { tool, arguments } => (
            json!({"role": "assistant", "content": LABEL, "tool_calls": [call(tool, arguments)]}),
            "tool_calls",
            8,
        ),
    };
    Json(json!({
        "id": "demo", "object": "chat.completion", "model": NAME,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": usage(prompt_tokens, tokens + 4),
    }))
    .into_response()
}

fn call(tool: &str, arguments: &Value) -> Value {
    json!({"index": 0, "id": format!("call_{tool}"), "type": "function",
           "function": {"name": tool, "arguments": arguments.to_string()}})
}

fn streamed(turn: Turn, prompt_tokens: usize) -> Response {
    let mut chunks = vec![delta(json!({"role": "assistant", "content": LABEL}), None)];
    let tokens = match turn {
        Turn::Say(said) => {
            chunks.extend(
                said.split_inclusive(' ')
                    .map(|word| delta(json!({"content": word}), None)),
            );
            chunks.push(delta(json!({}), Some("stop")));
            said.len() / 4
        }
        Turn::Call { tool, arguments } => {
            chunks.push(delta(json!({"tool_calls": [call(&tool, &arguments)]}), None));
            chunks.push(delta(json!({}), Some("tool_calls")));
            8
        }
    };
    chunks.push(
        json!({"id": "demo", "object": "chat.completion.chunk", "model": NAME, "choices": [],
                       "usage": usage(prompt_tokens, tokens + 4)}),
    );
    let events = chunks
        .into_iter()
        .map(|c| c.to_string())
        .chain(std::iter::once("[DONE]".to_owned()));
    let events: Vec<_> = events
        .map(|data| Ok::<_, Infallible>(Event::default().data(data)))
        .collect();
    Sse::new(stream::iter(events)).into_response()
}

fn delta(delta: Value, finish: Option<&str>) -> Value {
    json!({"id": "demo", "object": "chat.completion.chunk", "model": NAME,
           "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(question: &str, tools: &[(&str, Value)]) -> Request {
        let tools = tools.iter().map(|(name, parameters)| Tool {
            function: Function {
                name: (*name).to_owned(),
                parameters: parameters.clone(),
            },
        });
        Request {
            messages: vec![Message {
                role: "user".into(),
                content: json!(question),
            }],
            tools: tools.collect(),
            stream: false,
        }
    }

    #[test]
    fn asks_the_time_tool_for_the_zone_in_the_question() {
        let tool = ("time__get_current_time", json!({"required": ["timezone"]}));
        let turn = next_turn(&request("What time is it in Europe/Berlin?", &[tool]));
        let arguments = json!({"timezone": "Europe/Berlin"});
        assert_eq!(
            turn,
            Turn::Call {
                tool: "time__get_current_time".into(),
                arguments
            }
        );
    }

    #[test]
    fn says_that_it_is_a_script_when_no_tool_fits() {
        let Turn::Say(said) = next_turn(&request("What time is it?", &[])) else {
            panic!("no tool was offered")
        };
        assert!(said.contains("I am a script"));
    }

    #[test]
    fn quotes_a_tool_result() {
        let mut asked = request("What time is it?", &[("time__get_current_time", json!({}))]);
        asked.messages.push(Message {
            role: "tool".into(),
            content: json!("12:00"),
        });
        assert_eq!(next_turn(&asked), Turn::Say("The tool answered: 12:00".into()));
    }
}
