//! Texts of strangers on a terminal.

use std::{borrow::Cow, fmt::Write as _};

/// The text with every character that a terminal would obey instead of show replaced by its escape: control
/// characters but line feed and tab, and those that reorder what is read (Unicode TR36 §3.1, bidirectional text).
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_active(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// [`shown`] on one line.
pub(crate) fn line(text: &str) -> String {
    shown(text).replace('\n', "\\n").replace('\t', " ")
}

/// [`shown`] for what a person decides on: what cannot be seen is written out too, so that nothing hides in it
/// (Unicode TR36 §3, default ignorable code points).
pub(crate) fn explicit(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_active(c) || is_invisible(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// JSON text with the same meaning and nothing that a terminal would obey. Characters of that sort stand inside
/// strings only, where JSON has an escape for them (RFC 8259 §7).
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_active(c) {
            // All of them are in the basic plane: one escape each.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200d}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

fn is_active(c: char) -> bool {
    let direction =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}');
    direction || (c.is_control() && c != '\n' && c != '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s90_escape_codes_are_shown_and_not_obeyed() {
        assert_eq!(shown("a\u{1b}[2Jb\r\n"), "a\\u{1b}[2Jb\\u{d}\n");
        assert_eq!(shown("\u{9b}31m\u{202e}x"), "\\u{9b}31m\\u{202e}x");
        assert_eq!(shown("plain\n\ttext 😀"), "plain\n\ttext 😀");
        assert_eq!(line("a\nb"), "a\\nb");
        let clipboard = "\u{1b}]52;c;ZXZpbA==\u{7}\u{9d}0;title\u{9c}";
        assert!(!shown(clipboard).contains(|c: char| c.is_control()));
    }

    #[test]
    fn s90_json_keeps_its_meaning_without_escape_codes() {
        let value =
            serde_json::json!({"a\u{9b}": "\u{1b}]52;c;x\u{7} \u{7f}\u{9b}2J\u{202e}\u{2066}\r\nä\u{1f600}"});
        for text in [format!("{value}"), format!("{value:#}")] {
            let safe = json(&text);
            assert!(!safe.contains(is_active), "{safe:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
        }
        assert!(matches!(json("{\"a\": 1}\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn s82_what_is_decided_on_hides_nothing() {
        assert_eq!(
            explicit("rm\u{200b} \u{e0041}\u{202e}x\u{ad}"),
            "rm\\u{200b} \\u{e0041}\\u{202e}x\\u{ad}"
        );
        assert_eq!(explicit("plain ä\n\t"), "plain ä\n\t");
    }
}
