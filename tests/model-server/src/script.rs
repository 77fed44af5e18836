//! What the server is to answer: rules, replies and faults.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// Rules in order; the first that matches answers. With none, [`Otherwise`] decides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Script {
    /// Requests must carry this key (bearer, or `x-api-key`); others get the provider's 401.
    pub key: Option<String>,
    /// What `/v1/models` and `/api/tags` list; `scripted` where it is empty.
    pub models: Vec<String>,
    pub rules: Vec<Rule>,
    pub otherwise: Otherwise,
}

/// What answers where no rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Otherwise {
    /// Do what the user's text says; see [`crate::prompt`].
    #[default]
    Prompt,
    /// Say the user's text again, at once and at little cost; nothing is recorded. For benchmarks.
    /// A text that begins with `call ` is treated as in `Prompt`.
    Echo,
    /// Status 500: a test that forgot a rule must not pass.
    Refuse,
}

/// One condition with what answers it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rule {
    pub when: When,
    pub reply: Reply,
    pub fault: Option<Fault>,
}

/// Every given condition must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct When {
    /// The last user text contains this.
    pub user: Option<String>,
    /// The system text contains this.
    pub system: Option<String>,
    /// So many tool results follow the last user text.
    pub tool_results: Option<usize>,
    /// The model's name.
    pub model: Option<String>,
    /// A tool of this name is offered.
    pub offers: Option<String>,
    /// The number of this request at the server, from 1.
    pub request: Option<usize>,
    /// The rule answers so often, then no more.
    pub times: Option<usize>,
}

impl When {
    /// Matches everything.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }
    /// The last user text contains `text`.
    #[must_use]
    pub fn user(text: &str) -> Self {
        Self::any().and_user(text)
    }
    #[must_use]
    pub fn and_user(mut self, text: &str) -> Self {
        self.user = Some(text.to_owned());
        self
    }
    #[must_use]
    pub fn tool_results(mut self, count: usize) -> Self {
        self.tool_results = Some(count);
        self
    }
    #[must_use]
    pub fn model(mut self, name: &str) -> Self {
        self.model = Some(name.to_owned());
        self
    }
    #[must_use]
    pub fn offers(mut self, tool: &str) -> Self {
        self.offers = Some(tool.to_owned());
        self
    }
    /// Only the request with this number (from 1).
    #[must_use]
    pub fn request(mut self, number: usize) -> Self {
        self.request = Some(number);
        self
    }
    /// Only the first `count` requests that match.
    #[must_use]
    pub fn times(mut self, count: usize) -> Self {
        self.times = Some(count);
        self
    }
}

/// What the model says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Reply {
    /// Reasoning, one chunk each.
    pub reasoning: Vec<String>,
    /// Text, one chunk each.
    pub text: Vec<String>,
    pub tools: Vec<ToolCall>,
    pub usage: Usage,
    /// Milliseconds before each chunk.
    pub delay_ms: u64,
    /// Milliseconds before the headers.
    pub first_delay_ms: u64,
    /// The reason given at the end, in the provider's own words; follows from the content where it is left out.
    pub finish: Option<String>,
}

impl Reply {
    /// A text in one chunk.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::chunks(&[text])
    }
    /// A text in several chunks.
    #[must_use]
    pub fn chunks(chunks: &[&str]) -> Self {
        Self {
            text: chunks.iter().map(|c| (*c).to_owned()).collect(),
            ..Self::default()
        }
    }
    /// A call of a tool.
    #[must_use]
    pub fn call(name: &str, arguments: Value) -> Self {
        Self::default().and_call(name, arguments)
    }
    /// A further call of a tool.
    #[must_use]
    pub fn and_call(mut self, name: &str, arguments: Value) -> Self {
        self.tools.push(ToolCall {
            name: name.to_owned(),
            arguments,
            raw: None,
        });
        self
    }
    /// A call whose arguments are this text, JSON or not.
    #[must_use]
    pub fn and_raw_call(mut self, name: &str, raw: &str) -> Self {
        self.tools.push(ToolCall {
            name: name.to_owned(),
            arguments: Value::Null,
            raw: Some(raw.to_owned()),
        });
        self
    }
    #[must_use]
    pub fn reasoning(mut self, text: &str) -> Self {
        self.reasoning.push(text.to_owned());
        self
    }
    /// A wait before each chunk.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self
    }
    /// A wait before the headers.
    #[must_use]
    pub fn first_delay(mut self, delay: Duration) -> Self {
        self.first_delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self
    }
    #[must_use]
    pub fn usage(mut self, input: u64, output: u64, cached: u64) -> Self {
        self.usage = Usage::Given {
            input,
            output,
            cached,
        };
        self
    }
    #[must_use]
    pub fn no_usage(mut self) -> Self {
        self.usage = Usage::Absent;
        self
    }
    #[must_use]
    pub fn finish(mut self, reason: &str) -> Self {
        self.finish = Some(reason.to_owned());
        self
    }
    /// The reply, spoilt by a fault.
    #[must_use]
    pub fn with(self, fault: Fault) -> Then {
        Then {
            reply: self,
            fault: Some(fault),
        }
    }
}

/// A call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ToolCall {
    pub name: String,
    pub arguments: Value,
    /// The arguments as text, in place of `arguments`; need not be JSON.
    pub raw: Option<String>,
}

impl ToolCall {
    /// The arguments as the text that travels.
    #[must_use]
    pub fn arguments_text(&self) -> String {
        match (&self.raw, &self.arguments) {
            (Some(raw), _) => raw.clone(),
            (None, Value::Null) => "{}".to_owned(),
            (None, value) => value.to_string(),
        }
    }
}

/// The tokens that the server says were used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Usage {
    /// A quarter of the request's bytes, and one a chunk.
    #[default]
    Counted,
    Given {
        input: u64,
        output: u64,
        cached: u64,
    },
    Absent,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Fault {
    /// This status with the provider's own error body.
    Status {
        status: u16,
        /// The `retry-after` header, as it is.
        #[serde(default)]
        retry_after: Option<String>,
        /// In place of the provider's message.
        #[serde(default)]
        message: Option<String>,
    },
    /// A status with a body that is no provider's.
    Page {
        status: u16,
        content_type: String,
        body: String,
    },
    /// Nothing is ever answered, not even headers.
    Hang,
    /// After so many chunks the connection stays open and silent.
    HangAfter { chunks: usize },
    /// After so many chunks the connection breaks.
    CutAfter { chunks: usize },
    /// After so many chunks the body ends in good order, without the format's last word.
    EndAfter { chunks: usize },
    /// After so many chunks come bytes of no meaning.
    NonsenseAfter { chunks: usize },
    /// After so many chunks comes the provider's error event.
    ErrorAfter { chunks: usize },
    /// The content, under another content type.
    ContentType(String),
}

impl Fault {
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::Status {
            status,
            retry_after: None,
            message: None,
        }
    }
    /// With a `retry-after` header, where the fault is a status.
    #[must_use]
    pub fn retry_after(self, value: &str) -> Self {
        match self {
            Self::Status { status, message, .. } => Self::Status {
                status,
                retry_after: Some(value.to_owned()),
                message,
            },
            other => other,
        }
    }
}

/// What answers: a reply, a fault, or a reply with a fault.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Then {
    pub reply: Reply,
    pub fault: Option<Fault>,
}

impl From<Reply> for Then {
    fn from(reply: Reply) -> Self {
        Self { reply, fault: None }
    }
}

impl From<Fault> for Then {
    fn from(fault: Fault) -> Self {
        Self {
            reply: Reply::text("one two three"),
            fault: Some(fault),
        }
    }
}

impl Script {
    /// Nothing but rules: what no rule matches is refused.
    #[must_use]
    pub fn strict() -> Self {
        Self {
            otherwise: Otherwise::Refuse,
            ..Self::default()
        }
    }
    /// Do what the user's text says.
    #[must_use]
    pub fn prompt() -> Self {
        Self::default()
    }
    /// Say the user's text again, quickly.
    #[must_use]
    pub fn echo() -> Self {
        Self {
            otherwise: Otherwise::Echo,
            ..Self::default()
        }
    }
    /// Adds a rule after the others.
    #[must_use]
    pub fn rule(mut self, when: When, then: impl Into<Then>) -> Self {
        let Then { reply, fault } = then.into();
        self.rules.push(Rule { when, reply, fault });
        self
    }
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }
    /// Reads a script from YAML or JSON.
    ///
    /// # Errors
    /// Where and what is wrong in the text.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        Ok(serde_saphyr::from_str(text)?)
    }
}
