//! What an apply changes, as a unified diff of the documents in YAML.

use crate::{failure::Outcome, render::yaml, text::shown};
use serde_json::Value;
use similar::{ChangeTag, TextDiff};
use std::fmt::Write as _;

/// The diff, empty where nothing differs.
pub(crate) fn unified(
    name: &str,
    before: Option<&Value>,
    after: Option<&Value>,
    colour: bool,
) -> Outcome<String> {
    let text = |value: Option<&Value>| value.map_or_else(|| Ok(String::new()), yaml);
    let (before, after) = (text(before)?, text(after)?);
    let diff = TextDiff::from_lines(&before, &after);
    let mut out = String::new();
    let paint = |code: &str, line: &str| {
        let line = shown(line.trim_end_matches('\n')).into_owned();
        if colour {
            format!("\u{1b}[{code}m{line}\u{1b}[0m\n")
        } else {
            format!("{line}\n")
        }
    };
    for hunk in diff.unified_diff().context_radius(3).iter_hunks() {
        if out.is_empty() {
            out.push_str(&paint("1", &format!("--- {name} (now)")));
            out.push_str(&paint("1", &format!("+++ {name} (applied)")));
        }
        out.push_str(&paint("36", &hunk.header().to_string()));
        for change in hunk.iter_changes() {
            let line = change.value();
            match change.tag() {
                ChangeTag::Delete => out.push_str(&paint("31", &format!("-{line}"))),
                ChangeTag::Insert => out.push_str(&paint("32", &format!("+{line}"))),
                ChangeTag::Equal => {
                    let _ = writeln!(out, " {}", shown(line.trim_end_matches('\n')));
                }
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changed_lines_are_marked() {
        let before = json!({"spec": {"a": 1, "b": "x", "c": true}});
        let after = json!({"spec": {"a": 2, "b": "x", "c": true, "d": "\u{1b}[0m"}});
        let text = unified("Prompt p/x", Some(&before), Some(&after), false).unwrap();
        insta::assert_snapshot!(text);
        let text = unified("Prompt p/x", None, Some(&after), true).unwrap();
        assert!(text.contains("\u{1b}[32m+spec:\u{1b}[0m"));
        assert_eq!(unified("x", Some(&after), Some(&after), false).unwrap(), "");
    }
}
