//! Looking at tasks: one, or a page of one's own.

use super::{Answer, Caller, FileOut, Refusal, Shown, Status, TaskView, Tasks};
use crate::{
    journal::{Entry, ListFilter, Said, Step, StoredTask, TaskState},
    model::ToolCall,
    tools::ResultPart,
    turn::{PERSON, question},
};
use std::sync::Arc;

/// Which of one's own tasks to list.
#[derive(Clone, Debug, Default)]
pub struct List {
    pub context: Option<String>,
    pub state: Option<TaskState>,
    pub updated_after_ms: Option<i64>,
    /// From [`Tasks::list`].
    pub page: Option<i64>,
    /// At most.
    pub limit: u32,
    /// With what was said.
    pub content: bool,
}

impl Tasks {
    /// A task of the caller's.
    ///
    /// # Errors
    /// Not there, or the journal does not answer.
    pub async fn get(&self, caller: &Caller, uid: &str) -> Result<TaskView, Refusal> {
        if let Some(open) = self.find(caller, uid) {
            return Ok(open.live.view());
        }
        let stored = self
            .services
            .journal
            .task(caller.subject.clone(), uid.to_owned())
            .await?;
        let stored = stored.ok_or_else(|| Refusal::NotFound(uid.to_owned()))?;
        let said = self.services.journal.entries(uid.to_owned()).await?;
        Ok(from_journal(stored, &said))
    }

    /// A page of the caller's tasks, newest first; with the place of the next page, and how many there are in all.
    ///
    /// # Errors
    /// The journal does not answer.
    pub async fn list(
        &self,
        caller: &Caller,
        list: List,
    ) -> Result<(Vec<TaskView>, Option<i64>, u32), Refusal> {
        let page = self
            .services
            .journal
            .list(ListFilter {
                subject: caller.subject.clone(),
                context: list.context,
                state: list.state,
                updated_after_ms: list.updated_after_ms,
                before: list.page,
                limit: list.limit,
            })
            .await?;
        let mut views = Vec::with_capacity(page.tasks.len());
        for stored in page.tasks {
            let view = match self.find(caller, &stored.uid) {
                Some(open) => open.live.view(),
                None if list.content => {
                    // The page was read: what cannot be read of one task is left out of it.
                    let said = self.services.journal.entries(stored.uid.clone()).await;
                    let said = said.unwrap_or_else(|error| {
                        tracing::error!(task = stored.uid, %error, "a task's entries cannot be read");
                        Vec::new()
                    });
                    from_journal(stored, &said)
                }
                None => from_journal(stored, &[]),
            };
            views.push(view);
        }
        Ok((views, page.next, page.total))
    }
}

/// A task as the journal has it.
pub(super) fn from_journal(stored: StoredTask, said: &[Said]) -> TaskView {
    let (history, answer) = shown(said, stored.counters.model_calls);
    TaskView {
        uid: stored.uid,
        context: stored.context,
        status: Status {
            state: stored.state,
            reason: stored.reason,
            detail: stored.detail,
            waits_for: Vec::new(),
            at_ms: stored.updated_ms,
        },
        history,
        answer,
        files: files(said),
        created_ms: stored.created_ms,
        counters: Some(stored.counters),
        number: 0,
        epoch: 0,
    }
}

/// What is shown of a task's entries: the last word without tool calls is the answer, what was said before is history.
pub(super) fn shown(said: &[Said], calls: u32) -> (Vec<Shown>, Option<Answer>) {
    let (mut history, mut answer): (Vec<Shown>, Option<Answer>) = (Vec::new(), None);
    for (entry, steps) in said {
        match entry {
            Entry::User { message_id, parts } | Entry::Answer { message_id, parts } => {
                history.push(Shown::User {
                    message_id: message_id.clone(),
                    parts: parts.clone(),
                });
            }
            Entry::Assistant {
                text,
                tool_calls,
                cuts,
                json,
                ..
            } => {
                history.extend(answer.take().map(|a| Shown::Agent { text: a.text }));
                if tool_calls.is_empty() {
                    let artifact = format!("answer-{calls}");
                    answer = Some(Answer {
                        artifact,
                        text: text.clone(),
                        cuts: cuts.clone(),
                        json: *json,
                    });
                } else if !text.is_empty() {
                    history.push(Shown::Agent { text: text.clone() });
                }
                history.extend(asked(tool_calls, steps));
            }
            Entry::Note { .. } => {}
        }
    }
    (history, answer)
}

/// The files that the agent gave on.
pub(super) fn files(said: &[Said]) -> Vec<Arc<FileOut>> {
    let given = said.iter().flat_map(|(_, steps)| steps).filter_map(|step| {
        let result = step.result.as_ref().filter(|result| result.given)?;
        Some(given(step.id, &step.tool, &result.parts))
    });
    given.flatten().map(Arc::new).collect()
}

/// The files among the parts of a step's result.
pub(crate) fn given(step: i64, tool: &str, parts: &[ResultPart]) -> Vec<FileOut> {
    let blobs = parts.iter().filter_map(|part| match part {
        ResultPart::Blob { media_type, data } => Some((media_type, data)),
        ResultPart::Text { .. } | ResultPart::Link { .. } => None,
    });
    blobs
        .enumerate()
        .map(|(n, (media_type, data))| FileOut {
            artifact: format!("file-{step}-{}", n + 1),
            name: tool.to_owned(),
            media_type: media_type.clone(),
            data: data.clone(),
        })
        .collect()
}

/// The questions to the person that have their answers; one that waits stands in the status.
fn asked<'a>(calls: &'a [ToolCall], steps: &'a [Step]) -> impl Iterator<Item = Shown> + 'a {
    let answered = |step: &Step| step.server == PERSON && step.result.as_ref().is_some_and(|r| !r.is_error);
    let pairs = calls.iter().zip(steps);
    pairs
        .filter(move |(_, step)| answered(step))
        .map(|(call, _)| Shown::Agent {
            text: question(&call.arguments).to_owned(),
        })
}
