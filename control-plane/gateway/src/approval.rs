//! Decisions on approvals, found in messages that pass through, for the audit log (S89).
//!
//! The engine decides what a message means; this reads the same words and reads too much rather than too little: an
//! answer that the engine refuses is in the log as one that was tried.

use roadstead_service::approvals::{Decided, Verdict};
use serde_json::Value;

/// The most decisions of one message.
pub(crate) const MAX_VERDICTS: usize = 100;

/// The decisions of a `SendMessageRequest`; `None` where it is not about a task, or says neither yes nor no.
pub(crate) fn decided(request: &Value) -> Option<Decided> {
    let message = request.get("message")?;
    // HTTP+JSON takes the names of the .proto as well.
    let named = ["taskId", "task_id"]
        .iter()
        .filter_map(|key| message.get(key)?.as_str());
    let task = named.into_iter().find(|task| !task.is_empty())?;
    // `content` in 0.3's .proto. Whichever the engine takes, it is looked at.
    let parts = ["parts", "content"]
        .iter()
        .filter_map(|key| message.get(key)?.as_array());
    let verdicts: Vec<Verdict> = parts.flatten().flat_map(verdicts).collect();
    (!verdicts.is_empty()).then(|| Decided {
        task: plain(task).unwrap_or_else(|| "not readable".to_owned()),
        verdicts,
    })
}

/// What a part says, whichever of its members the engine takes.
fn verdicts(part: &Value) -> impl Iterator<Item = Verdict> {
    let text = part.get("text").and_then(Value::as_str).and_then(says_yes);
    let worded = text.map(|yes| Verdict {
        approval: None,
        digest: None,
        yes,
    });
    let data = part.get("data");
    // 0.3's .proto has the data one level deeper.
    let inner = data.and_then(|data| data.get("data"));
    let decided = [data, inner].into_iter().flatten().filter_map(verdict);
    worded.into_iter().chain(decided)
}

fn verdict(data: &Value) -> Option<Verdict> {
    let word = match data {
        Value::Object(members) => members.get("decision")?.as_str(),
        // No engine takes a list. Should one, it is in the log.
        Value::Array(_) => None,
        _ => return None,
    };
    let text = |key: &str| data.get(key).and_then(Value::as_str).and_then(plain);
    Some(Verdict {
        approval: text("approval"),
        digest: text("digest"),
        // Whatever is no plain no counts as a yes.
        yes: !matches!(word, Some("deny" | "tell")),
    })
}

/// The words that the engine takes for an answer.
fn says_yes(text: &str) -> Option<bool> {
    let text = text.trim();
    let (word, _) = text.split_once([',', ':', ' ']).unwrap_or((text, ""));
    match word.trim_end_matches(['.', '!']).to_ascii_lowercase().as_str() {
        "yes" | "y" | "approve" | "ok" | "repeat" => Some(true),
        "no" | "n" | "deny" | "tell" => Some(false),
        _ => None,
    }
}

/// An id or a digest: what else a caller writes there is content, and does not belong into the log.
fn plain(text: &str) -> Option<String> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
    ((1..=128).contains(&text.len()) && text.bytes().all(plain)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(task: &str, parts: Value) -> Option<Decided> {
        decided(&json!({"message": {"messageId": "m", "taskId": task, "parts": parts}}))
    }

    #[test]
    fn s89_a_decision_is_found_in_every_form_that_engines_take() {
        let digest = "0a".repeat(32);
        let data = json!({"approval": "a1", "decision": "approve", "digest": digest, "reason": "because"});
        for parts in [
            json!([{"data": data}]),
            json!([{"kind": "data", "data": data}, {"text": "  "}]),
        ] {
            let found = of("t1", parts).unwrap();
            assert_eq!(found.task, "t1");
            assert_eq!(
                found.verdicts,
                [Verdict {
                    approval: Some("a1".to_owned()),
                    digest: Some(digest.clone()),
                    yes: true
                }]
            );
        }
        let yes = |text: &str| of("t1", json!([{"text": text}])).map(|d| d.verdicts[0].yes);
        for text in ["yes", " OK! go on", "Approve.", "y", "repeat: please"] {
            assert_eq!(yes(text), Some(true), "{text}");
        }
        for text in ["no", "n, not on a Friday", "tell", "Deny."] {
            assert_eq!(yes(text), Some(false), "{text}");
        }
        assert_eq!(yes("perhaps"), None);
        let snake = json!({"message": {"task_id": "t1", "parts": [{"text": "yes"}]}});
        assert!(decided(&snake).is_some());
        let odd = of("t1", json!([{"data": {"decision": "sure"}}])).unwrap();
        assert!(odd.verdicts[0].yes, "an unknown word is no harmless one");
        for data in [
            json!({"decision": {"approve": null}}),
            json!(["a1", "approve", digest]),
        ] {
            let odd = of("t1", json!([{"data": data}])).unwrap();
            assert!(odd.verdicts[0].yes, "{data}");
        }
    }

    #[test]
    fn s89_no_form_of_0_3_hides_a_decision() {
        let digest = "0a".repeat(32);
        let data = json!({"approval": "a1", "decision": "approve", "digest": digest});
        let message =
            |key: &str, part: Value| json!({"message": {"messageId": "m", "taskId": "t1", key: [part]}});
        for request in [
            message("parts", json!({"kind": "data", "data": data})),
            message("parts", json!({"data": {"data": data}})),
            message("content", json!({"data": {"data": data}})),
            message("content", json!({"kind": "data", "text": "hello", "data": data})),
            json!({"message": {"taskId": "t1", "parts": [], "content": [{"data": {"data": data}}]}}),
            json!({"message": {"taskId": "t1", "parts": [{"text": "hello"}], "content": [{"data": {"data": data}}]}}),
        ] {
            let found = decided(&request).unwrap();
            assert_eq!(found.verdicts.len(), 1, "{request}");
            assert_eq!(found.verdicts[0].digest.as_ref(), Some(&digest), "{request}");
        }
        let both = json!({"text": "no", "data": data});
        let found = decided(&message("parts", both)).unwrap();
        assert!(found.verdicts.iter().any(|v| v.yes), "{found:?}");
    }

    #[test]
    fn a_message_that_begins_a_task_decides_nothing() {
        assert_eq!(of("", json!([{"text": "yes"}])), None);
        assert_eq!(decided(&json!({"message": {"parts": [{"text": "yes"}]}})), None);
        assert_eq!(decided(&json!({})), None);
    }

    #[test]
    fn s89_no_content_gets_into_the_record() {
        let data =
            json!({"approval": "a b", "decision": "deny", "digest": "my secret\n", "reason": "secret"});
        let found = of("a task\nwith lines", json!([{"data": data}])).unwrap();
        let shown = format!("{found:?}");
        assert!(!shown.contains("secret") && !shown.contains("lines"), "{shown}");
    }
}
