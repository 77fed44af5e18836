//! Arguments that a model wrote: read as JSON, repaired once where the meaning is plain, else refused.
//!
//! Repaired: code fences around, quotes of the wrong kind, unquoted keys, Python's words for constants, commas before
//! a closing bracket, line breaks in strings, unknown escapes, brackets missing or too many at the end. Not repaired:
//! a string without its end, for what is missing there is meaning, not form.
//!
//! Refused: integers beyond 64 bits. A parsed value has rounded them, and a tool would be called with another number.

use roadstead_contract::numbers::rounded;
use serde_json::{Map, Value, value::RawValue};

/// Most that the arguments of one call may have, in bytes.
const MAX_ARGUMENTS: usize = 256 * 1024;
/// Digits of a number that are shown.
const SHOWN_DIGITS: usize = 40;

/// Reads the arguments of a tool call: an object, and nothing else.
///
/// `cut` says that the answer ended at its length limit: then nothing is completed that is not there.
///
/// # Errors
/// Why they cannot be used, for the model to read.
pub(super) fn arguments(text: &str, cut: bool) -> Result<Value, String> {
    if text.len() > MAX_ARGUMENTS {
        return Err(format!(
            "the arguments have {} bytes; at most {MAX_ARGUMENTS} are taken",
            text.len()
        ));
    }
    let text = text.trim();
    if text.is_empty() && !cut {
        return Ok(Value::Object(Map::new()));
    }
    let parsed = match serde_json::from_str(text) {
        Ok(value) => {
            exact(text)?;
            value
        }
        Err(_) if cut => return Err("the arguments were cut by the limit of the answer's length".to_owned()),
        Err(error) => {
            let unreadable = || format!("the arguments are not JSON: {error}");
            let fixed = repair(text).ok_or_else(unreadable)?;
            let value = serde_json::from_str(&fixed).map_err(|_| unreadable())?;
            exact(&fixed)?;
            value
        }
    };
    object(parsed)
}

/// Arguments as a server sends them: a text, or the object itself, of which the text is kept as it came.
pub(super) fn given(arguments: Option<&RawValue>) -> String {
    let Some(raw) = arguments.map(RawValue::get) else {
        return String::new();
    };
    serde_json::from_str(raw).unwrap_or_else(|_| raw.to_owned())
}

/// Refuses a text of which the numbers are others once it is read.
pub(super) fn exact(text: &str) -> Result<(), String> {
    let Some(number) = rounded(text) else {
        return Ok(());
    };
    let shown: String = number.chars().take(SHOWN_DIGITS).collect();
    Err(format!(
        "expected integers of at most 64 bits in the arguments, found {shown}: it would be rounded; call the tool again \
         with the number as text, if it takes one"
    ))
}

/// The object that `value` is, or that it holds as text.
pub(super) fn object(value: Value) -> Result<Value, String> {
    let found = match value {
        Value::Object(_) => return shallow(value),
        Value::Null => return Ok(Value::Object(Map::new())),
        Value::String(inner) => match serde_json::from_str(&inner) {
            Ok(Value::Object(map)) => {
                exact(&inner)?;
                return shallow(Value::Object(map));
            }
            _ => "a text",
        },
        Value::Array(_) => "a list",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
    };
    Err(format!(
        "expected a JSON object with the arguments, found {found}"
    ))
}

fn shallow(value: Value) -> Result<Value, String> {
    if crate::model::is_deep(&value) {
        return Err(format!(
            "the arguments are nested deeper than {} levels",
            crate::model::MAX_DEPTH
        ));
    }
    Ok(value)
}

/// `text` with its form mended; `None` where that is not possible. The result need not be JSON: try it.
pub(super) fn repair(text: &str) -> Option<String> {
    let mut pen = Pen {
        rest: unfenced(text).chars().peekable(),
        out: String::with_capacity(text.len() + 8),
        open: Vec::new(),
    };
    while let Some(c) = pen.rest.next() {
        match c {
            '"' | '\'' => pen.string(c)?,
            '{' | '[' => {
                pen.open.push(if c == '{' { '}' } else { ']' });
                pen.out.push(c);
            }
            '}' | ']' => pen.close(c)?,
            c if c.is_alphabetic() || c == '_' || c == '$' => pen.word(c),
            c => pen.out.push(c),
        }
    }
    pen.drop_comma();
    while let Some(c) = pen.open.pop() {
        pen.out.push(c);
    }
    Some(pen.out)
}

struct Pen<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    out: String,
    open: Vec<char>,
}

impl Pen<'_> {
    fn string(&mut self, quote: char) -> Option<()> {
        self.out.push('"');
        loop {
            match self.rest.next()? {
                '\\' => match self.rest.next()? {
                    c @ ('"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' | 'u') => self.out.extend(['\\', c]),
                    '\'' => self.out.push('\''),
                    '\n' => self.out.push_str("\\n"),
                    other => self.out.extend(['\\', '\\', other]),
                },
                c if c == quote => break,
                '"' => self.out.push_str("\\\""),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Some(())
    }

    fn word(&mut self, first: char) {
        let mut word = String::from(first);
        while let Some(c) = self
            .rest
            .next_if(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | '-'))
        {
            word.push(c);
        }
        let mut ahead = self.rest.clone();
        let is_key = ahead.find(|c| !c.is_whitespace()) == Some(':');
        match word.as_str() {
            _ if is_key => {
                self.out.push('"');
                self.out.push_str(&word);
                self.out.push('"');
            }
            "True" => self.out.push_str("true"),
            "False" => self.out.push_str("false"),
            "None" | "undefined" => self.out.push_str("null"),
            other => self.out.push_str(other),
        }
    }

    fn close(&mut self, bracket: char) -> Option<()> {
        self.drop_comma();
        if self.open.is_empty() {
            // One bracket too many at the end; anything else is beyond repair.
            let end = self
                .rest
                .clone()
                .all(|c| c.is_whitespace() || matches!(c, '}' | ']'));
            // Looked at once: what follows is nothing but such brackets.
            self.rest = "".chars().peekable();
            return end.then_some(());
        }
        // A bracket of the wrong kind stands for those that were left out before it.
        while let Some(expected) = self.open.pop() {
            self.out.push(expected);
            if expected == bracket {
                return Some(());
            }
        }
        None
    }

    fn drop_comma(&mut self) {
        let kept = self.out.trim_end().trim_end_matches(',').len();
        if self.out[kept..].contains(',') {
            self.out.truncate(kept);
        }
    }
}

/// The text inside a code fence, if it stands in one.
fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let Some(inner) = text.strip_prefix("```") else {
        return text;
    };
    let inner = inner.strip_suffix("```").unwrap_or(inner);
    let body = inner.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    body.trim()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn brackets_without_end_are_read_once() {
        // Quadratic, this would take minutes.
        for text in [
            "}".repeat(MAX_ARGUMENTS),
            "{} ]".repeat(MAX_ARGUMENTS / 4),
            "[{".repeat(MAX_ARGUMENTS / 2),
        ] {
            assert!(arguments(&text, false).is_err());
        }
        assert!(
            arguments(&"{".repeat(MAX_ARGUMENTS + 1), false)
                .unwrap_err()
                .contains("bytes")
        );
        assert_eq!(arguments("{\"a\": 1}}}", false), Ok(json!({"a": 1})));
    }

    #[test]
    fn arguments_nested_too_deep_are_refused() {
        let nested = |levels: usize| format!("{{\"a\": {}1{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(arguments(&nested(63), false).is_ok());
        assert!(arguments(&nested(64), false).unwrap_err().contains("64 levels"));
        let as_text = json!(nested(100)).to_string();
        assert!(arguments(&as_text, false).unwrap_err().contains("64 levels"));
    }

    #[test]
    fn arguments_are_mended_where_the_meaning_is_plain() {
        let table = [
            (r#"{"a": 1}"#, json!({"a": 1})),
            ("", json!({})),
            ("null", json!({})),
            (r#""{\"a\": 1}""#, json!({"a": 1})),
            (r#"{"a": 1,}"#, json!({"a": 1})),
            (r#"{"a": [1, 2, ], }"#, json!({"a": [1, 2]})),
            (r#"{'a': 'it is'}"#, json!({"a": "it is"})),
            (r#"{'a': 'say "hi"'}"#, json!({"a": "say \"hi\""})),
            (
                r#"{a: True, b_c: None, d: False}"#,
                json!({"a": true, "b_c": null, "d": false}),
            ),
            ("{\"a\": \"one\ntwo\tthree\"}", json!({"a": "one\ntwo\tthree"})),
            (r#"{"re": "\d+\.\'"}"#, json!({"re": "\\d+\\.'"})),
            (r#"{"a": {"b": [1"#, json!({"a": {"b": [1]}})),
            (r#"{"a": 1}}"#, json!({"a": 1})),
            (r#"{"a": [1}"#, json!({"a": [1]})),
            ("```json\n{\"a\": 1}\n```", json!({"a": 1})),
            ("```{\"a\": 1,}```", json!({"a": 1})),
        ];
        for (text, expected) in table {
            assert_eq!(arguments(text, false), Ok(expected), "{text}");
        }
    }

    #[test]
    fn integers_are_exact_or_refused() {
        let most = r#"{"a": [18446744073709551615, -9223372036854775808], "c": 0.1}"#;
        assert_eq!(
            arguments(most, false).map(|value| value.to_string()),
            Ok(r#"{"a":[18446744073709551615,-9223372036854775808],"c":0.1}"#.to_owned())
        );
        for text in [
            r#"{"id": 18446744073709551617}"#,
            r#"{'id': 18446744073709551617,}"#,
            r#""{\"id\": 18446744073709551617}""#,
            "```json\n{\"id\": [18446744073709551617]}\n```",
        ] {
            let refused = arguments(text, false).unwrap_err();
            assert!(
                refused.contains("found 18446744073709551617: it would be rounded"),
                "{refused}"
            );
        }
    }

    #[test]
    fn arguments_keep_the_text_that_a_server_sent() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).expect("JSON");
        for (sent, expected) in [
            (
                r#"{"id": 18446744073709551617}"#,
                r#"{"id": 18446744073709551617}"#,
            ),
            (r#""{\"id\": 1}""#, r#"{"id": 1}"#),
            (r#""""#, ""),
        ] {
            assert_eq!(given(Some(&raw(sent))), expected);
        }
        assert_eq!(given(None), "");
    }

    #[test]
    fn what_has_no_plain_meaning_is_refused() {
        for text in [
            r#"{"path": "/etc/pass"#,
            r#"{"a": "x"#,
            "[1, 2]",
            "7",
            "\"hello\"",
            "true",
            "rm -rf /",
            r#"{"a": 1} and more"#,
            r#"{"a": }"#,
            "{{{",
            "}{",
        ] {
            assert!(
                arguments(text, false).is_err(),
                "{text} {:?}",
                arguments(text, false)
            );
        }
    }

    #[test]
    fn a_cut_call_is_never_completed() {
        assert!(arguments(r#"{"a": {"b": 1}"#, true).is_err());
        assert!(arguments("", true).is_err());
        assert_eq!(arguments(r#"{"a": 1}"#, true), Ok(json!({"a": 1})));
    }

    proptest! {
        #[test]
        fn repair_ends_and_sound_json_is_left_as_it_is(text in "[\\[\\]{}\"',:a-z0-9 \\\\\n]{0,40}") {
            let read = arguments(&text, false);
            if let Ok(value @ Value::Object(_)) = serde_json::from_str::<Value>(&text) {
                prop_assert_eq!(read, exact(&text).map(|()| value));
            }
        }
    }
}
