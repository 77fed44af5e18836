//! The quick answer for benchmarks: the user's text between two pieces made once.

use crate::{
    request::{Api, Request},
    script::Reply,
    wire,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Stands for the text while a template is made; no JSON escape changes it.
const MARK: &str = "@@echo@@";

/// Answers made beforehand for each format, streamed and whole.
#[derive(Debug)]
pub(crate) struct Echo {
    templates: Vec<((Api, bool), (String, String))>,
}

#[derive(Deserialize)]
struct Light<'a> {
    #[serde(borrow)]
    messages: Vec<&'a RawValue>,
    stream: Option<bool>,
}

#[derive(Deserialize)]
struct LightMessage<'a> {
    role: &'a str,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

impl Echo {
    pub(crate) fn new() -> Self {
        let mut templates = Vec::new();
        for api in [Api::OpenAi, Api::Anthropic, Api::Ollama] {
            for stream in [true, false] {
                let request = Request {
                    model: "echo".to_owned(),
                    stream,
                    usage_wanted: true,
                    bytes: 40,
                    ..Request::default()
                };
                let made = wire::render(api, &request, &Reply::text(MARK), 0);
                let whole = made.opening + &made.chunks.concat() + &made.ending;
                if let Some((before, after)) = whole.split_once(MARK) {
                    // A JSON text brings its own quotes.
                    let halves = (before[..before.len() - 1].to_owned(), after[1..].to_owned());
                    templates.push(((api, stream), halves));
                }
            }
        }
        Self { templates }
    }

    /// The answer and whether it is a stream; `None` where the ordinary way must answer.
    pub(crate) fn answer(&self, api: Api, body: &[u8]) -> Option<(Bytes, bool)> {
        let light: Light<'_> = serde_json::from_slice(body).ok()?;
        let last: LightMessage<'_> = serde_json::from_str(light.messages.last()?.get()).ok()?;
        let text = last.content?.get();
        if last.role != "user" || !text.starts_with('"') || text.starts_with("\"call ") {
            return None;
        }
        let stream = light.stream.unwrap_or(api == Api::Ollama);
        let (_, (before, after)) = self.templates.iter().find(|(of, _)| *of == (api, stream))?;
        let mut whole = Vec::with_capacity(before.len() + text.len() + after.len());
        whole.extend_from_slice(before.as_bytes());
        whole.extend_from_slice(text.as_bytes());
        whole.extend_from_slice(after.as_bytes());
        Some((whole.into(), stream))
    }
}
