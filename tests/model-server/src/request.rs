//! Requests of the three wire formats, read into one shape, and refused where the provider would refuse them.

use serde_json::Value;

/// A wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    OpenAi,
    Anthropic,
    Ollama,
}

/// What a script decides on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    pub model: String,
    pub stream: bool,
    /// Whether the request asks for usage in the stream (always so but for OpenAI).
    pub usage_wanted: bool,
    pub system: String,
    /// The text of the last message of the user.
    pub user: String,
    /// The results of tools after that message, in order.
    pub results: Vec<String>,
    /// How many messages with tool calls the model sent after the last message of the user.
    pub rounds: usize,
    /// The names of the tools offered.
    pub tools: Vec<String>,
    /// Size of the body in bytes.
    pub bytes: usize,
}

impl Request {
    /// Reads a request's body.
    ///
    /// # Errors
    /// What the provider would refuse, as its message.
    pub fn read(api: Api, body: &Value, bytes: usize) -> Result<Self, String> {
        let mut request = Self {
            model: text(&body["model"]),
            stream: body["stream"].as_bool().unwrap_or(api == Api::Ollama),
            usage_wanted: api != Api::OpenAi || body["stream_options"]["include_usage"] == true,
            system: content(&body["system"]),
            bytes,
            ..Self::default()
        };
        if request.model.is_empty() {
            return Err("you must provide a model parameter".to_owned());
        }
        if api == Api::Anthropic && !body["max_tokens"].is_u64() {
            return Err("max_tokens: Field required".to_owned());
        }
        for tool in body["tools"].as_array().into_iter().flatten() {
            let function = if api == Api::Anthropic {
                tool
            } else {
                &tool["function"]
            };
            let name = text(&function["name"]);
            check_tool_name(api, &name)?;
            request.tools.push(name);
        }
        let messages = body["messages"]
            .as_array()
            .filter(|m| !m.is_empty())
            .ok_or("messages: at least one message is required")?;
        match api {
            Api::OpenAi | Api::Ollama => request.read_roles(api, messages)?,
            Api::Anthropic => request.read_blocks(messages)?,
        }
        Ok(request)
    }

    fn read_roles(&mut self, api: Api, messages: &[Value]) -> Result<(), String> {
        let mut open: Vec<String> = Vec::new();
        for (at, message) in messages.iter().enumerate() {
            let role = message["role"].as_str().unwrap_or_default();
            if role != "tool" && !open.is_empty() && api == Api::OpenAi {
                return Err(format!(
                    "An assistant message with 'tool_calls' must be followed by tool messages responding to each \
                     'tool_call_id'. The following tool_call_ids did not have response messages: {}",
                    open.join(", ")
                ));
            }
            match role {
                "system" | "developer" => self.system += &content(&message["content"]),
                "user" => self.user_said(content(&message["content"])),
                "assistant" => {
                    let calls = message["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
                    open = calls.iter().map(|c| text(&c["id"])).collect();
                    self.rounds += usize::from(!calls.is_empty());
                }
                "tool" => {
                    let id = text(&message["tool_call_id"]);
                    if api == Api::OpenAi && !open.contains(&id) {
                        return Err(format!(
                            "Invalid parameter: messages with role 'tool' must be a response to a preceeding message \
                             with 'tool_calls' (messages.[{at}].role)."
                        ));
                    }
                    open.retain(|o| *o != id);
                    self.results.push(content(&message["content"]));
                }
                other => return Err(format!("Invalid value: '{other}' (messages[{at}].role)")),
            }
        }
        if api == Api::OpenAi && !open.is_empty() {
            return Err(format!(
                "tool_call_ids did not have response messages: {}",
                open.join(", ")
            ));
        }
        Ok(())
    }

    fn read_blocks(&mut self, messages: &[Value]) -> Result<(), String> {
        let mut open: Vec<String> = Vec::new();
        let mut before = "assistant";
        for (at, message) in messages.iter().enumerate() {
            let role = message["role"].as_str().unwrap_or_default();
            if !matches!(role, "user" | "assistant") {
                return Err(format!(
                    "messages.{at}.role: Input should be 'user' or 'assistant'"
                ));
            }
            if at == 0 && role != "user" {
                return Err("messages: first message must use the \"user\" role".to_owned());
            }
            let blocks = message["content"].as_array().map_or(&[][..], Vec::as_slice);
            if message["content"].as_str() == Some("")
                || (blocks.is_empty() && !message["content"].is_string())
            {
                return Err(format!("messages.{at}: all messages must have non-empty content"));
            }
            if blocks.iter().any(|b| b["type"] == "text" && b["text"] == "") {
                return Err(format!(
                    "messages.{at}.content: text content blocks must be non-empty"
                ));
            }
            let of = |kind: &'static str| blocks.iter().filter(move |b| b["type"] == kind);
            if role == "user" {
                let answered: Vec<String> = of("tool_result").map(|b| text(&b["tool_use_id"])).collect();
                if let Some(missing) = open.iter().find(|id| !answered.contains(id)) {
                    return Err(format!(
                        "messages.{at}: `tool_use` ids were found without `tool_result` blocks immediately after: \
                         {missing}"
                    ));
                }
                if let Some(unknown) = answered.iter().find(|id| !open.contains(id)) {
                    return Err(format!(
                        "messages.{at}: unexpected `tool_use_id` found in `tool_result` blocks: {unknown}"
                    ));
                }
                open.clear();
                if answered.is_empty() {
                    let said = content(&message["content"]);
                    if before == "user" {
                        self.user += &said;
                    } else {
                        self.user_said(said);
                    }
                } else {
                    self.results
                        .extend(of("tool_result").map(|b| content(&b["content"])));
                }
            } else {
                open = of("tool_use").map(|b| text(&b["id"])).collect();
                self.rounds += usize::from(!open.is_empty());
            }
            before = if role == "user" { "user" } else { "assistant" };
        }
        Ok(())
    }

    fn user_said(&mut self, said: String) {
        self.user = said;
        self.results.clear();
        self.rounds = 0;
    }
}

/// OpenAI and Anthropic accept `^[a-zA-Z0-9_-]{1,64}$`; Ollama asks for a name at all.
fn check_tool_name(api: Api, name: &str) -> Result<(), String> {
    let plain = name
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-');
    if name.is_empty() || (api != Api::Ollama && (!plain || name.len() > 64)) {
        return Err(format!(
            "tools: function name {name:?} does not match '^[a-zA-Z0-9_-]{{1,64}}$'"
        ));
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The text of a message: a string, or the text blocks of a list.
fn content(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks
            .iter()
            .filter_map(|b| b["text"].as_str())
            .collect::<Vec<_>>()
            .join("\n"),
        _ => String::new(),
    }
}
