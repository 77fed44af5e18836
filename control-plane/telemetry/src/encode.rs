//! Control characters never reach a log as they are (S90).
//!
//! A name that holds CR, LF or a terminal escape could forge a line or drive the reader's terminal. The JSON
//! formatter escapes only what JSON demands (below U+0020), the text formatter less; both pass through here, one
//! finished line at a time, as the last step before the bytes leave.

use std::borrow::Cow;

/// How a character is written instead of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// `\u001b`: stays valid inside JSON strings, the only place where such characters occur in a JSON line.
    Json,
    /// `\x1b`-like, for people.
    Text,
}

/// Characters that act on a terminal, split lines for some reader, or reorder what is read.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `line` without its acting characters; one final line feed is kept as the end of the line.
pub(crate) fn encode(line: &str, style: Style) -> Cow<'_, str> {
    let (body, end) = line.strip_suffix('\n').map_or((line, ""), |body| (body, "\n"));
    if !body.contains(acts) {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len() + 16);
    for c in body.chars() {
        match (acts(c), style) {
            (false, _) => out.push(c),
            (true, Style::Json) => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            (true, Style::Text) => out.extend(c.escape_default()),
        }
    }
    out.push_str(end);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s90_text_lines_hold_no_control_characters() {
        let hostile = "name=a\r\nERROR forged\u{1b}[2J\u{9b}31m\u{7f}\u{202e}\n";
        let out = encode(hostile, Style::Text);
        assert_eq!(
            out,
            "name=a\\r\\nERROR forged\\u{1b}[2J\\u{9b}31m\\u{7f}\\u{202e}\n"
        );
    }

    #[test]
    fn s90_json_lines_stay_json_and_keep_the_value() {
        let value = "a\u{9b}31m\u{7f}\u{2028}b";
        let line = format!("{}\n", serde_json::json!({ "name": value }));
        let out = encode(&line, Style::Json);
        assert!(!out.trim_end_matches('\n').contains(acts), "{out}");
        let back: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(back["name"], value);
    }

    #[test]
    fn an_ordinary_line_is_not_copied() {
        assert!(matches!(encode("plain ü 漢\n", Style::Json), Cow::Borrowed(_)));
    }
}
