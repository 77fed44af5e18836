//! Holding an answer to the agent's output schema.

use crate::revision::Revision;
use serde_json::Value;

/// How often an answer that does not fit is sent back.
pub(super) const REPAIRS: u32 = 2;

/// What is wrong with the answer; `None` if it fits or nothing is asked of it.
pub(super) fn check(revision: &Revision, text: &str) -> Option<String> {
    let output = revision.output.as_ref()?;
    let value: Value = match serde_json::from_str(text.trim()) {
        Ok(value) => value,
        Err(error) => return Some(format!("expected JSON, found text ({error})")),
    };
    let findings: Vec<String> = output
        .validator
        .iter_errors(&value)
        .take(5)
        .map(|e| format!("at {}: {e}", e.instance_path()))
        .collect();
    (!findings.is_empty()).then(|| findings.join("; "))
}

/// What the model is told.
pub(super) fn note(misfit: &str) -> String {
    format!(
        "Your answer does not fit the required JSON Schema: {misfit}. \
         Answer again with the JSON alone, without a code fence or any other text."
    )
}
