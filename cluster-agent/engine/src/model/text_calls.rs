//! Tool calls that a small model writes as text: read, and taken out of what is shown.
//!
//! Three forms: `<tool_call>{…}</tool_call>` anywhere; a fenced JSON block at the end of the answer; a JSON object (or
//! list of them) that is the whole answer. In each the JSON must be a call and nothing else: a name and arguments,
//! with the name of a tool that is offered. Everything else is text and stays text.
//!
//! Text streams on while it can be none of these; what could become a call is held back until that is known.

use super::{ToolCall, ToolSchema, repair, sink::new_call_id};
use serde_json::{Map, Value};
use std::sync::Arc;

/// What is held back at most, in bytes; more than that is text.
const MAX_HELD: usize = 256 * 1024;
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const FENCE: &str = "```";

/// Keys with which a written call begins.
const KEYS: [&str; 10] = [
    "name",
    "function",
    "tool",
    "tool_name",
    "tool_call",
    "tool_calls",
    "arguments",
    "parameters",
    "type",
    "id",
];

/// The text of one answer on its way out.
#[derive(Debug)]
pub(super) struct TextCalls {
    offered: Arc<[ToolSchema]>,
    /// Not yet shown, not yet read.
    held: String,
    /// Whether anything but space was shown.
    begun: bool,
    /// Inside a fenced block that is no call: its end is no beginning.
    in_fence: bool,
    /// The line that is being shown, and whether it has opened `in_fence` already.
    line: String,
    opening: bool,
    /// Whether `held` begins at the start of a line.
    line_start: bool,
    /// Calls from fenced blocks, with their text: text again if more text follows.
    fenced: Vec<(String, Vec<ToolCall>)>,
    calls: Vec<ToolCall>,
}

/// What stands at a place where a call may begin.
enum Candidate {
    /// A call, so many bytes long.
    Tagged(usize, Vec<ToolCall>),
    Fenced(usize, Vec<ToolCall>),
    /// No call; so many bytes of it are plain.
    Text(usize),
    /// A fence opens here that holds no call; so many bytes of it are plain.
    OpensFence(usize),
    /// More text is needed to tell.
    Unknown,
}

impl TextCalls {
    pub(super) fn new(offered: Arc<[ToolSchema]>) -> Self {
        Self {
            offered,
            held: String::new(),
            begun: false,
            in_fence: false,
            line: String::new(),
            opening: false,
            line_start: true,
            fenced: Vec::new(),
            calls: Vec::new(),
        }
    }

    /// Takes the next piece of text and returns what can be shown now; may be empty.
    pub(super) fn push(&mut self, text: String) -> String {
        let plain = self.begun && self.held.is_empty() && !self.in_fence && self.fenced.is_empty();
        if plain && !text.contains(['`', '<']) {
            self.line_start = ends_line(&text, self.line_start);
            self.follow(&text);
            return text;
        }
        self.held.push_str(&text);
        let mut shown = String::new();
        self.read(&mut shown, false);
        if self.held.len() > MAX_HELD {
            self.show_fenced(&mut shown);
            let all = self.held.len();
            self.show(all, &mut shown);
        }
        shown
    }

    /// The end of the answer: what is still to be shown, and the calls.
    pub(super) fn finish(mut self) -> (String, Vec<ToolCall>) {
        let mut shown = String::new();
        self.read(&mut shown, true);
        if !self.held.trim().is_empty() {
            self.show_fenced(&mut shown);
        }
        if self.fenced.is_empty() && self.calls.is_empty() {
            let all = self.held.len();
            self.show(all, &mut shown);
        }
        let mut calls = self.calls;
        calls.extend(self.fenced.into_iter().flat_map(|(_, calls)| calls));
        (shown, calls)
    }

    fn read(&mut self, shown: &mut String, end: bool) {
        if !self.begun && self.fenced.is_empty() && self.calls.is_empty() {
            match self.bare(end) {
                Some(true) => return,
                Some(false) => {}
                None if self.held.trim().is_empty() => return,
                None => {}
            }
        }
        while !self.held.is_empty() {
            let Some(at) = self.candidate_start() else {
                if !self.held.trim().is_empty() || self.fenced.is_empty() {
                    self.show_fenced(shown);
                    let all = self.held.len();
                    self.show(all, shown);
                }
                return;
            };
            if !self.held[..at].trim().is_empty() {
                self.show_fenced(shown);
                self.show(at, shown);
                continue;
            }
            // Space behind shown text is shown, as it is where it comes in a piece of its own.
            if at > 0 && self.begun && self.fenced.is_empty() {
                self.show(at, shown);
                continue;
            }
            match self.candidate(at, end) {
                Candidate::Tagged(length, calls) => {
                    self.show_fenced(shown);
                    self.calls.extend(calls);
                    self.held.drain(..length);
                    self.begun = true;
                }
                Candidate::Fenced(length, calls) => {
                    let text = self.held.drain(..length).collect();
                    self.fenced.push((text, calls));
                    self.line_start = true;
                }
                Candidate::Text(length) => {
                    self.show_fenced(shown);
                    self.show(length, shown);
                }
                Candidate::OpensFence(length) => {
                    self.show_fenced(shown);
                    self.show(length, shown);
                    self.in_fence = true;
                    self.opening = !self.line.is_empty();
                }
                Candidate::Unknown => return,
            }
        }
    }

    /// Whether the whole answer is still a call in bare JSON: `Some(true)` wait for more or read; `None`: it is not.
    fn bare(&mut self, end: bool) -> Option<bool> {
        let text = self.held.trim();
        if !text.starts_with(['{', '[']) || !plausible(text) {
            return None;
        }
        if !end {
            return Some(true);
        }
        let calls = read_calls(text, &self.offered)?;
        self.calls.extend(calls);
        self.held.clear();
        Some(true)
    }

    /// Where the next call might begin: a tag, a fence at the start of a line, or the beginning of either at the end.
    fn candidate_start(&self) -> Option<usize> {
        let text = self.held.as_str();
        text.char_indices().find_map(|(at, c)| {
            let rest = &text[at..];
            let begins = |mark: &str| rest.starts_with(mark) || mark.starts_with(rest);
            let fits = match c {
                '<' => !self.in_fence && begins(OPEN),
                '`' => self.at_line_start(at) && begins(FENCE),
                _ => false,
            };
            fits.then_some(at)
        })
    }

    fn at_line_start(&self, at: usize) -> bool {
        let before = &self.held[..at];
        before.rfind('\n').map_or_else(
            || self.line_start && before.trim().is_empty(),
            |newline| before[newline..].trim().is_empty(),
        )
    }

    /// What stands at `at`; lengths count from the start of `held`.
    fn candidate(&self, at: usize, end: bool) -> Candidate {
        let rest = &self.held[at..];
        if let Some(inner) = rest.strip_prefix(OPEN) {
            let (json, length) = match inner.find(CLOSE) {
                Some(close) => (&inner[..close], at + OPEN.len() + close + CLOSE.len()),
                None if end => (inner, self.held.len()),
                None if inner.trim().is_empty() || plausible(inner.trim()) => return Candidate::Unknown,
                None => return Candidate::Text(at + OPEN.len()),
            };
            return match read_calls(json.trim(), &self.offered) {
                Some(calls) => Candidate::Tagged(length, calls),
                // The tag alone is text, as it is when what follows it comes later: behind it a call may begin.
                None => Candidate::Text(at + OPEN.len()),
            };
        }
        if !rest.starts_with(FENCE) {
            return if end {
                Candidate::Text(self.held.len())
            } else {
                Candidate::Unknown
            };
        }
        if self.in_fence {
            return Candidate::Text(at + FENCE.len());
        }
        let inner = &rest[FENCE.len()..];
        let Some(line_end) = inner.find('\n') else {
            let tag_only = inner
                .trim()
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_');
            return match (end, tag_only) {
                (true, _) => Candidate::Text(self.held.len()),
                (false, true) => Candidate::Unknown,
                (false, false) => Candidate::OpensFence(at + FENCE.len()),
            };
        };
        let body = &inner[line_end + 1..];
        let before_body = at + FENCE.len() + line_end + 1;
        if !matches!(
            inner[..line_end].trim(),
            "" | "json" | "tool_call" | "tool_code" | "tool"
        ) {
            return Candidate::OpensFence(before_body);
        }
        let close = body
            .match_indices(FENCE)
            .map(|(i, _)| i)
            .find(|i| body[..*i].trim_end_matches([' ', '\t']).ends_with('\n'));
        let (json, length) = match close {
            Some(close) => (&body[..close], before_body + close + FENCE.len()),
            None if end => (body, self.held.len()),
            None if body.trim().is_empty() || plausible(body.trim()) => return Candidate::Unknown,
            None => return Candidate::OpensFence(before_body),
        };
        match read_calls(json.trim(), &self.offered) {
            Some(calls) => Candidate::Fenced(length, calls),
            None if close.is_some() => Candidate::Text(length),
            None => Candidate::OpensFence(before_body),
        }
    }

    fn show(&mut self, length: usize, shown: &mut String) {
        let piece: String = self.held.drain(..length).collect();
        self.follow(&piece);
        self.begun = self.begun || !piece.trim().is_empty();
        self.line_start = ends_line(&piece, self.line_start);
        shown.push_str(&piece);
    }

    /// Text follows the fenced blocks: they were examples, not calls.
    fn show_fenced(&mut self, shown: &mut String) {
        for (text, _) in std::mem::take(&mut self.fenced) {
            self.begun = true;
            self.follow(&text);
            shown.push_str(&text);
        }
    }

    /// Follows fences by whole lines of what is shown, so that it does not matter in which pieces they come. A fence
    /// ends with a line of nothing but backquotes (CommonMark 0.31.2, section 4.5).
    fn follow(&mut self, piece: &str) {
        for part in piece.split_inclusive('\n') {
            self.line.push_str(part);
            if !part.ends_with('\n') {
                return;
            }
            let line = self.line.trim();
            let fence = line.starts_with(FENCE);
            let closes = fence && line.bytes().all(|b| b == b'`');
            self.in_fence = match (std::mem::take(&mut self.opening), self.in_fence) {
                (true, _) => true,
                (false, true) => !closes,
                (false, false) => fence,
            };
            self.line.clear();
        }
    }
}

/// Whether what follows `piece` stands at the start of a line, spaces aside; `before`: whether the piece itself did.
fn ends_line(piece: &str, before: bool) -> bool {
    let last = piece.rfind('\n').map(|newline| &piece[newline..]);
    last.map_or(before && piece.trim().is_empty(), |last| last.trim().is_empty())
}

/// Whether `text`, which may go on, can still become a written call.
fn plausible(text: &str) -> bool {
    let text = text.strip_prefix('[').map_or(text, str::trim_start);
    if text.is_empty() {
        return true;
    }
    let Some(rest) = text.strip_prefix('{').map(str::trim_start) else {
        return false;
    };
    let Some(key) = rest.strip_prefix(['"', '\'']) else {
        return rest.is_empty() || rest.starts_with(|c: char| c.is_ascii_lowercase());
    };
    match key.split_once(['"', '\'']) {
        Some((key, _)) => KEYS.contains(&key),
        None => KEYS.iter().any(|known| known.starts_with(key)),
    }
}

/// The calls that `json` is; `None` unless it is nothing but calls of offered tools.
pub(super) fn read_calls(json: &str, offered: &[ToolSchema]) -> Option<Vec<ToolCall>> {
    if !json.starts_with(['{', '[']) {
        return None;
    }
    let (value, exact) = match serde_json::from_str::<Value>(json) {
        Ok(value) => (value, repair::exact(json)),
        Err(_) => {
            let fixed = repair::repair(json)?;
            (serde_json::from_str(&fixed).ok()?, repair::exact(&fixed))
        }
    };
    let read_call = |value, offered| read_call(value, offered, &exact);
    match value {
        Value::Array(list) if !list.is_empty() => list.into_iter().map(|v| read_call(v, offered)).collect(),
        Value::Object(mut map) if map.len() == 1 && map.contains_key("tool_calls") => {
            let list = map.remove("tool_calls").and_then(|v| match v {
                Value::Array(list) if !list.is_empty() => Some(list),
                _ => None,
            })?;
            list.into_iter().map(|v| read_call(v, offered)).collect()
        }
        Value::Object(_) => read_call(value, offered).map(|call| vec![call]),
        _ => None,
    }
}

/// One call: `{name, arguments}`, with `parameters` for `arguments`, `tool` or `tool_name` for `name`, `function` or
/// `tool_call` around it, and `type` and `id` beside it. `exact`: whether the text's numbers are still those.
fn read_call(value: Value, offered: &[ToolSchema], exact: &Result<(), String>) -> Option<ToolCall> {
    let Value::Object(mut map) = value else {
        return None;
    };
    map.shift_remove("id");
    if let Some(kind) = map.shift_remove("type") {
        matches!(kind.as_str(), Some("function" | "tool_call" | "tool_use")).then_some(())?;
    }
    for wrapper in ["function", "tool_call"] {
        if map.len() == 1 && map.get(wrapper).is_some_and(Value::is_object) {
            return read_call(map.shift_remove(wrapper)?, offered, exact);
        }
    }
    let name = take(&mut map, &["name", "tool", "tool_name", "function"])?;
    let arguments = take(&mut map, &["arguments", "parameters"])?;
    let name = name.as_str().filter(|_| map.is_empty())?;
    let known = offered.iter().any(|tool| tool.name == name);
    let call = |arguments, problem| ToolCall {
        id: new_call_id(),
        name: name.to_owned(),
        arguments,
        problem,
    };
    let read = match arguments {
        Value::String(text) => repair::arguments(&text, false).map_err(|problem| (text, problem)),
        // Of several calls in one text all are told: which number it was is no longer known.
        Value::Object(_) | Value::Null => exact
            .clone()
            .and_then(|()| repair::object(arguments))
            .map_err(|problem| (String::new(), problem)),
        _ => return None,
    };
    known.then(|| match read {
        Ok(arguments) => call(arguments, None),
        Err((text, problem)) => call(Value::String(text), Some(problem)),
    })
}

fn take(map: &mut Map<String, Value>, names: &[&str]) -> Option<Value> {
    names.iter().find_map(|name| map.shift_remove(*name))
}

#[cfg(test)]
mod tests;
