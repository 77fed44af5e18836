//! Results that are longer than what a model reads at once: it gets the beginning and a reference, and reads on with
//! the tool `read_result`, which is offered as soon as something was cut.
//!
//! A reference is good in its session alone, and a session belongs to one caller: any other reference, somebody else's
//! among them, is one that is not there (S85).

use super::{
    Turn,
    table::{READ_RESULT, RESULTS},
};
use crate::{
    journal::{Said, Step, Whole},
    tools::{ResultPart, ToolError, ToolResult},
};
use roadstead_contract::numbers::whole;
use serde_json::Value;
use std::sync::{Arc, atomic::Ordering};

/// Text of one result that the model reads, in bytes.
pub(super) const RESULT_TEXT: usize = 64 * 1024;
/// What one call of `read_result` gives at most: with the line below it still one result.
pub(super) const MOST: usize = RESULT_TEXT - 256;
/// Text that one task keeps beyond that, in bytes. One result has at most 8 MiB (`tools::convert`).
const KEPT: u64 = 32 * 1024 * 1024;

/// At most [`RESULT_TEXT`] bytes, cut between characters; the cut is said.
pub(super) fn capped(text: String) -> String {
    cut(text, "")
}

fn cut(mut text: String, more: &str) -> String {
    let whole = text.len();
    if whole > RESULT_TEXT {
        text.truncate(text.floor_char_boundary(RESULT_TEXT));
        let shown = text.len();
        text.push_str(&format!("\n[cut: {shown} of {whole} bytes shown{more}]"));
    }
    text
}

/// The bytes from `offset` on, at most `length`, between characters: the character that `offset` is in is whole, and
/// there is always one.
fn slice(text: &str, offset: usize, length: usize) -> (usize, usize) {
    let start = text.floor_char_boundary(offset);
    let end = text.floor_char_boundary(offset.saturating_add(length));
    let next = text.ceil_char_boundary(start.saturating_add(1).min(text.len()));
    (start, end.max(next))
}

/// Whether anything of a conversation was cut and kept.
pub(super) fn any_kept(said: &[Said]) -> bool {
    let kept = |step: &Step| step.result.as_ref().is_some_and(|r| r.reference.is_some());
    said.iter().any(|(_, steps)| steps.iter().any(kept))
}

impl Turn {
    /// What the model reads of a text, and what is kept for it to read on, where the task may keep so much.
    pub(super) fn refer(&self, text: String) -> (String, Option<Whole>) {
        if text.len() <= RESULT_TEXT {
            return (text, None);
        }
        let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let room = |kept: u64| kept.checked_add(bytes).filter(|sum| *sum <= KEPT);
        let reserved = self.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
        if reserved.is_err() {
            let more = "; the rest is not kept, this task keeps too much already: ask for less";
            return (cut(text, more), None);
        }
        let reference = hex::encode(rand::random::<[u8; 6]>());
        let shown = text.floor_char_boundary(RESULT_TEXT);
        let more = format!("; read on with {READ_RESULT}: reference \"{reference}\", offset {shown}");
        let whole = Whole {
            session: self.live.session,
            task: self.live.task,
            reference,
            text: text.clone(),
        };
        (cut(text, &more), Some(whole))
    }

    /// Offers `read_result` from now on.
    pub(super) fn offer_results(&mut self) {
        if self.table.find(RESULTS, READ_RESULT).is_none() {
            self.table = Arc::new(self.table.with_results());
            self.request_mut().tools = Arc::clone(&self.table.schemas);
        }
    }

    /// A call of `read_result`, whose arguments fit its schema.
    pub(super) async fn read_result(&self, arguments: &Value) -> Result<ToolResult, ToolError> {
        let (offset, length) = match (number(arguments, "offset"), number(arguments, "length")) {
            (Ok(offset), Ok(length)) => (offset.unwrap_or(0), length.unwrap_or(MOST).clamp(1, MOST)),
            (Err(told), _) | (_, Err(told)) => return Ok(refused(told)),
        };
        let reference = arguments.get("reference").and_then(Value::as_str);
        let reference = reference.unwrap_or_default().to_owned();
        let found = self
            .services
            .journal
            .kept_result(self.live.session, reference, offset, length)
            .await
            .map_err(|_| ToolError::NotSent("the engine's journal is not available".to_owned()))?;
        Ok(match found {
            None => refused("There is no such reference in this conversation.".to_owned()),
            Some(part) if offset >= part.total => refused(format!(
                "The result has {} bytes: expected an offset below that.",
                part.total
            )),
            Some(part) => {
                let (start, end) = slice(&part.text, offset - part.at, length);
                let (from, to) = (part.at + start, part.at + end);
                let next = match to < part.total {
                    true => format!("next offset {to}"),
                    false => "the end".to_owned(),
                };
                let text = &part.text[start..end];
                said(format!(
                    "{text}\n[bytes {from} to {to} of {}; {next}]",
                    part.total
                ))
            }
        })
    }
}

/// A number of bytes; `None` if it is not given. Models write a whole number as a float too, which its schema allows.
fn number(arguments: &Value, name: &str) -> Result<Option<usize>, String> {
    let Some(given) = arguments.get(name) else {
        return Ok(None);
    };
    let number = whole(given.clone())
        .as_u64()
        .and_then(|n| usize::try_from(n).ok());
    number
        .map(Some)
        .ok_or_else(|| format!("{name}: expected a whole number of bytes, found {given}."))
}

fn said(text: String) -> ToolResult {
    ToolResult {
        parts: vec![ResultPart::Text { text }],
        is_error: false,
    }
}

fn refused(text: String) -> ToolResult {
    ToolResult {
        is_error: true,
        ..said(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_whole_number_may_be_written_as_a_float_and_nothing_else_is_taken_for_one() {
        let read = |offset: Value| number(&json!({"offset": offset}), "offset");
        assert_eq!(number(&json!({}), "offset"), Ok(None));
        assert_eq!(read(json!(65_536)), Ok(Some(65_536)));
        assert_eq!(read(json!(65_536.0)), Ok(Some(65_536)));
        assert_eq!(read(json!(0.0)), Ok(Some(0)));
        for wrong in [
            json!(1.5),
            json!(-1),
            json!(-1.0),
            json!(1e300),
            json!("7"),
            json!(null),
        ] {
            let told = read(wrong.clone()).unwrap_err();
            assert!(
                told.starts_with("offset: expected") && told.contains(&wrong.to_string()),
                "{told}"
            );
        }
    }

    proptest! {
        #[test]
        fn slices_follow_one_another_and_cut_no_character(
            text in "[a-cäß€𝄞]{1,200}", length in 1usize..20,
        ) {
            let (mut at, mut read) = (0, String::new());
            while at < text.len() {
                let (start, end) = slice(&text, at, length);
                prop_assert_eq!(start, at);
                prop_assert!(end > start && end - start <= length.max(4));
                read.push_str(&text[start..end]);
                at = end;
            }
            prop_assert_eq!(read, text);
        }

        #[test]
        fn a_slice_from_anywhere_is_text(text in "[a-cäß€𝄞]{1,50}", offset in 0usize..250, length in 1usize..300) {
            let offset = offset % text.len();
            let (start, end) = slice(&text, offset, length);
            prop_assert!(start <= offset && offset < end && end <= text.len());
            prop_assert!(text.is_char_boundary(start) && text.is_char_boundary(end));
        }
    }
}
