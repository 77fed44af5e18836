//! Texts of strangers on a terminal.

use std::borrow::Cow;

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
    }
}
