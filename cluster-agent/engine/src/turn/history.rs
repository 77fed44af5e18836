//! From the journal's entries to what a model reads.

use super::{
    End, Turn,
    batch::{Planned, placed},
    results,
};
use crate::{
    journal::{Approval, Entry, InPart, OpenTask, Said, Spent, Step, StepState},
    model::{ChatMessage, Part, ToolCall},
};

use std::sync::atomic::Ordering;

/// Most text of earlier tasks that goes along, in bytes: about 64,000 tokens, which every current model can hold
/// beside its tools.
const EARLIER: usize = 256 * 1024;

impl Turn {
    /// The conversation so far; sets up what the journal left open.
    pub(super) async fn load(&mut self, open: Option<Box<OpenTask>>) -> Result<Vec<ChatMessage>, End> {
        let (session, task) = (self.live.session, self.live.task);
        let mut said = self.services.journal.history(session, task, EARLIER).await?;
        self.cut = results::any_kept(&said);
        let mut batch = None;
        if let Some(open) = open {
            self.recount_handed().await?;
            let kept = self.services.journal.kept_bytes(task).await?;
            self.kept.store(kept, Ordering::Relaxed);
            if self.step.is_some() {
                self.count_repeat(&said);
            }
            batch = take_open(&mut said, &open.approvals);
        }
        // The entry's own message follows when its calls have their results.
        self.batch = batch;
        Ok(messages(&said))
    }

    /// What agents spent is kept with their answers: the counters may be older.
    async fn recount_handed(&mut self) -> Result<(), End> {
        if self.revision.bundle.agent.agents.is_empty() {
            return Ok(());
        }
        let said = self.services.journal.entries(self.live.uid.clone()).await?;
        let results = said
            .iter()
            .flat_map(|(_, steps)| steps)
            .filter_map(|s| s.result.as_ref());
        let mut handed = Spent::default();
        for result in results {
            handed.add(&result.spent);
        }
        self.counters.handed = handed;
        Ok(())
    }

    /// A model call was sent and its answer lost: the tokens are used up all the same.
    fn count_repeat(&mut self, said: &[Said]) {
        let bytes: usize = said.iter().map(|(entry, steps)| size(entry, steps)).sum();
        let input = u64::try_from((bytes + self.revision.system.len()) / 4).unwrap_or(u64::MAX);
        let usage = crate::model::Usage {
            input,
            estimated: true,
            ..Default::default()
        };
        self.counters.model_calls = self.counters.model_calls.max(1);
        if let Some(model) = self.revision.models.first() {
            super::limits::count(&mut self.counters, model.as_ref(), usage);
        }
    }
}

fn size(entry: &Entry, steps: &[Step]) -> usize {
    let own = match entry {
        Entry::User { parts, .. } => parts.iter().map(part_size).sum(),
        Entry::Assistant { text, .. } | Entry::Note { text } => text.len(),
        Entry::Answer { .. } => 0,
    };
    own + steps
        .iter()
        .filter_map(|s| s.result.as_ref())
        .map(|r| r.text.len())
        .sum::<usize>()
}

fn part_size(part: &InPart) -> usize {
    match part {
        InPart::Text { text } => text.len(),
        InPart::Data { data } => data.to_string().len(),
        InPart::File { data, .. } => data.len(),
    }
}

/// Takes the last entry off if calls of it are open.
fn take_open(said: &mut Vec<Said>, approvals: &[Approval]) -> Option<(Entry, Vec<Planned>)> {
    let at = said
        .iter()
        .rposition(|(entry, _)| !matches!(entry, Entry::Answer { .. }))?;
    let (_, steps) = &said[at];
    if steps.iter().all(|s| s.state == StepState::Done) {
        return None;
    }
    let (entry, steps) = said.remove(at);
    let Entry::Assistant { tool_calls, .. } = &entry else {
        return None;
    };
    let planned = tool_calls
        .iter()
        .zip(steps)
        .map(|(call, step)| placed(call, step, approvals))
        .collect();
    Some((entry, planned))
}

/// Every entry as the model reads it. A call whose task ended before it had a result says so: providers want a result
/// for each call.
pub(super) fn messages(said: &[Said]) -> Vec<ChatMessage> {
    let mut messages = Vec::with_capacity(said.len());
    for (entry, steps) in said {
        match entry {
            Entry::User { parts, .. } => messages.push(user(parts)),
            Entry::Note { text } => messages.push(note(text)),
            Entry::Answer { .. } => {}
            Entry::Assistant { tool_calls, .. } => {
                messages.extend(assistant(entry));
                let results = tool_calls
                    .iter()
                    .enumerate()
                    .map(|(i, call)| result(call, steps.get(i)));
                messages.extend(results);
            }
        }
    }
    messages
}

fn result(call: &ToolCall, step: Option<&Step>) -> ChatMessage {
    let (text, is_error) = match step.and_then(|s| s.result.as_ref()) {
        Some(result) => (result.text.clone(), result.is_error),
        None => ("No result: the task ended before it came.".to_owned(), true),
    };
    ChatMessage::Tool {
        call_id: call.id.clone(),
        name: call.name.clone(),
        text,
        is_error,
    }
}

/// What a caller sent, as the model reads it. Data parts are read as JSON text.
pub(crate) fn user(parts: &[InPart]) -> ChatMessage {
    let part = |part: &InPart| match part {
        InPart::Text { text } => Part::Text { text: text.clone() },
        InPart::Data { data } => Part::Text {
            text: data.to_string(),
        },
        InPart::File {
            name,
            media_type,
            data,
        } => Part::File {
            name: name.clone(),
            media_type: media_type.clone(),
            data: data.clone(),
        },
    };
    ChatMessage::User {
        parts: parts.iter().map(part).collect(),
    }
}

/// An engine's own word to the model.
pub(super) fn note(text: &str) -> ChatMessage {
    ChatMessage::User {
        parts: vec![Part::Text {
            text: text.to_owned(),
        }],
    }
}

/// The model's own words; `None` of any other entry.
pub(super) fn assistant(entry: &Entry) -> Option<ChatMessage> {
    match entry {
        Entry::Assistant {
            text,
            tool_calls,
            provider_state,
            ..
        } => Some(ChatMessage::Assistant {
            text: text.clone(),
            tool_calls: tool_calls.clone(),
            provider_state: provider_state.clone(),
        }),
        _ => None,
    }
}
