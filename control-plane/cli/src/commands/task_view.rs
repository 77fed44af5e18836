//! A task as its events tell it: pure, so that every order of events is a test.
//!
//! The engine's conventions beyond A2A: data parts `toolCall`, `toolResult`, `approvals` and `questions` in status
//! messages, the metadata `roadstead.dev/thought` of a part and `roadstead.dev/interim` of a text that tools were called after.
//! Agents that know none of them are shown too, without tools.

use a2a::{Artifact, Message, Part, PartContent, StreamResponse, Task, TaskState, TaskStatus};
use roadstead_contract::numbers::whole;
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

const INTERIM: &str = "roadstead.dev/interim";
const THOUGHT: &str = "roadstead.dev/thought";
const REASON: &str = "roadstead.dev/reason";

/// What a person is shown next.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Show {
    /// More of what the agent says.
    Text(String),
    /// What it said is complete; `interim`: it is not the answer.
    TextEnd {
        interim: bool,
    },
    Thought(String),
    /// A file that belongs to the answer.
    File {
        name: String,
        media_type: String,
        bytes: usize,
    },
    ToolCall {
        name: String,
        arguments: Value,
    },
    ToolResult {
        name: String,
        text: String,
        is_error: bool,
    },
}

/// A decision that the task waits for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Approval {
    pub(super) approval: String,
    #[serde(default)]
    pub(super) question: String,
    pub(super) server: String,
    pub(super) tool: String,
    #[serde(default)]
    pub(super) arguments: Value,
    pub(super) digest: String,
    /// What the tool says of itself now, where that is not what was approved.
    #[serde(default)]
    pub(super) change: Option<Change>,
    #[serde(default)]
    pub(super) expires_at: Option<chrono::DateTime<chrono::Utc>>,
}

/// A tool's new description and parameters.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Change {
    pub(super) description: String,
    #[serde(default)]
    pub(super) parameters: String,
}

/// Something that the agent wants to know.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Question {
    pub(super) question: String,
    pub(super) text: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToolEvent {
    #[serde(default)]
    server: String,
    tool: String,
    #[serde(default)]
    arguments: Value,
    #[serde(default)]
    text: String,
    #[serde(default)]
    is_error: bool,
}

/// A task so far.
#[derive(Debug, Default)]
pub(super) struct TaskView {
    pub(super) task: Option<String>,
    pub(super) session: Option<String>,
    pub(super) state: TaskState,
    /// Short code of why it ended.
    pub(super) reason: String,
    /// The words of the latest status.
    pub(super) detail: String,
    pub(super) approvals: Vec<Approval>,
    pub(super) questions: Vec<Question>,
    /// How much of each text was shown, in bytes.
    texts: HashMap<String, String>,
    /// The text that is being said.
    current: Option<String>,
    answer: Option<String>,
}

impl TaskView {
    /// Whether nothing more comes without a person.
    pub(super) fn rests(&self) -> bool {
        self.state.is_terminal() || matches!(self.state, TaskState::InputRequired | TaskState::AuthRequired)
    }

    /// The agent's last complete word that is no interim one.
    pub(super) fn answer(&self) -> &str {
        let last = self.answer.as_ref().or(self.current.as_ref());
        last.and_then(|id| self.texts.get(id))
            .map(String::as_str)
            .unwrap_or_default()
    }

    /// Takes an event and says what is to be shown of it.
    pub(super) fn take(&mut self, event: StreamResponse) -> Vec<Show> {
        match event {
            StreamResponse::Task(task) => self.snapshot(task),
            StreamResponse::Message(message) => self.message(&message),
            StreamResponse::StatusUpdate(update) => {
                self.ids(&update.task_id, &update.context_id);
                let reason = update
                    .metadata
                    .as_ref()
                    .and_then(|m| m.get(REASON))
                    .and_then(Value::as_str);
                self.reason = reason.unwrap_or_default().to_owned();
                self.status(&update.status)
            }
            StreamResponse::ArtifactUpdate(update) => {
                self.ids(&update.task_id, &update.context_id);
                if let Some(shows) = self.file(&update.artifact) {
                    return shows;
                }
                let append = update.append == Some(true);
                let mut shows = self.chunk(&update.artifact, append);
                if update.last_chunk == Some(true) {
                    shows.extend(self.end(is_marked(update.artifact.metadata.as_ref(), INTERIM)));
                }
                shows
            }
        }
    }

    fn ids(&mut self, task: &str, session: &str) {
        self.task = Some(task.to_owned());
        self.session = Some(session.to_owned());
    }

    /// How the task stands, after a reconnection: only what was not shown yet is.
    fn snapshot(&mut self, task: Task) -> Vec<Show> {
        self.ids(&task.id, &task.context_id);
        let reason = task
            .metadata
            .as_ref()
            .and_then(|m| m.get(REASON))
            .and_then(Value::as_str);
        self.reason = reason.unwrap_or_default().to_owned();
        let mut shows = Vec::new();
        for artifact in task.artifacts.iter().flatten() {
            if let Some(file) = self.file(artifact) {
                shows.extend(file);
                continue;
            }
            let all = text_of(&artifact.parts);
            let known = self.texts.get(&artifact.artifact_id).map_or("", String::as_str);
            let rest = all.strip_prefix(known).unwrap_or(&all).to_owned();
            if !rest.is_empty() {
                let mut grown = artifact.clone();
                grown.parts = vec![Part::text(rest)];
                let append = all.starts_with(known);
                shows.extend(self.chunk(&grown, append));
            }
        }
        shows.extend(self.status(&task.status));
        shows
    }

    /// An agent that answers without a task.
    fn message(&mut self, message: &Message) -> Vec<Show> {
        self.session.clone_from(&message.context_id);
        self.state = TaskState::Completed;
        let id = message.message_id.clone();
        let text = text_of(&message.parts);
        self.texts.insert(id.clone(), text.clone());
        self.current = Some(id);
        let mut shows = vec![Show::Text(text)];
        shows.extend(self.end(false));
        shows
    }

    /// A file beside the answer, shown once; `None` of an artifact that says something.
    fn file(&mut self, artifact: &Artifact) -> Option<Vec<Show>> {
        let [part] = artifact.parts.as_slice() else {
            return None;
        };
        let PartContent::Raw(bytes) = &part.content else {
            return None;
        };
        let known = self.texts.insert(artifact.artifact_id.clone(), String::new());
        let shown = known.is_none().then(|| Show::File {
            name: part
                .filename
                .clone()
                .or_else(|| artifact.name.clone())
                .unwrap_or_default(),
            media_type: part.media_type.clone().unwrap_or_default(),
            bytes: bytes.len(),
        });
        Some(shown.into_iter().collect())
    }

    fn chunk(&mut self, artifact: &Artifact, append: bool) -> Vec<Show> {
        let id = &artifact.artifact_id;
        let mut shows = Vec::new();
        if self.current.as_ref().is_some_and(|current| current != id) {
            shows.extend(self.end(true));
        }
        let text = text_of(&artifact.parts);
        let held = self.texts.entry(id.clone()).or_default();
        if !append {
            held.clear();
        }
        held.push_str(&text);
        self.current = Some(id.clone());
        if !text.is_empty() {
            shows.push(Show::Text(text));
        }
        shows
    }

    fn end(&mut self, interim: bool) -> Option<Show> {
        let id = self.current.take()?;
        if !interim {
            self.answer = Some(id);
        }
        Some(Show::TextEnd { interim })
    }

    fn status(&mut self, status: &TaskStatus) -> Vec<Show> {
        self.state = status.state.clone();
        let mut shows = Vec::new();
        self.approvals.clear();
        self.questions.clear();
        self.detail.clear();
        for part in status.message.iter().flat_map(|m| &m.parts) {
            match &part.content {
                PartContent::Text(text) if is_marked(part.metadata.as_ref(), THOUGHT) => {
                    shows.push(Show::Thought(text.clone()));
                }
                PartContent::Text(text) => self.detail.push_str(text),
                PartContent::Data(data) => shows.extend(self.data(data)),
                PartContent::Raw(_) | PartContent::Url(_) => {}
            }
        }
        if self.state.is_terminal() {
            shows.extend(self.end(false));
        }
        shows
    }

    fn data(&mut self, data: &Value) -> Option<Show> {
        let data = &whole(data.clone());
        if let Some(call) = tool_event(data, "toolCall") {
            let name = call.name();
            return Some(Show::ToolCall {
                name,
                arguments: call.arguments,
            });
        }
        if let Some(result) = tool_event(data, "toolResult") {
            let name = result.name();
            return Some(Show::ToolResult {
                name,
                text: result.text,
                is_error: result.is_error,
            });
        }
        let list = |key: &str| data.get(key).and_then(Value::as_array).into_iter().flatten();
        self.approvals
            .extend(list("approvals").filter_map(|a| Approval::deserialize(a).ok()));
        self.questions
            .extend(list("questions").filter_map(|q| Question::deserialize(q).ok()));
        None
    }
}

impl ToolEvent {
    fn name(&self) -> String {
        if self.server.is_empty() {
            self.tool.clone()
        } else {
            format!("{}/{}", self.server, self.tool)
        }
    }
}

fn tool_event(data: &Value, key: &str) -> Option<ToolEvent> {
    ToolEvent::deserialize(data.get(key)?).ok()
}

fn is_marked(metadata: Option<&HashMap<String, Value>>, key: &str) -> bool {
    metadata.and_then(|m| m.get(key)) == Some(&Value::Bool(true))
}

/// The text of all parts; data as JSON, files by their names.
fn text_of(parts: &[Part]) -> String {
    let texts = parts.iter().map(|part| match &part.content {
        PartContent::Text(text) => text.clone(),
        PartContent::Data(data) => format!("{:#}", whole(data.clone())),
        PartContent::Raw(bytes) => {
            let name = part.filename.as_deref().unwrap_or("a file");
            format!("[{name}, {} bytes]", bytes.len())
        }
        PartContent::Url(url) => format!("[{url}]"),
    });
    texts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn take(view: &mut TaskView, event: Value) -> Vec<Show> {
        view.take(serde_json::from_value(event).unwrap())
    }

    fn chunk(id: &str, text: &str, append: bool, last: bool, interim: bool) -> Value {
        let metadata = if interim {
            json!({INTERIM: true})
        } else {
            json!({})
        };
        json!({"artifactUpdate": {"taskId": "t", "contextId": "s", "append": append, "lastChunk": last,
            "artifact": {"artifactId": id, "parts": [{"text": text}], "metadata": metadata}}})
    }

    fn status(state: &str, parts: &Value) -> Value {
        json!({"statusUpdate": {"taskId": "t", "contextId": "s", "status": {"state": state,
            "message": {"messageId": "m", "role": "ROLE_AGENT", "parts": parts}}}})
    }

    #[test]
    fn texts_tools_and_the_answer_are_told_apart() {
        let mut view = TaskView::default();
        let mut shows = take(&mut view, chunk("answer-1", "Let me ", false, false, false));
        shows.extend(take(&mut view, chunk("answer-1", "look.", true, false, false)));
        shows.extend(take(&mut view, chunk("answer-1", "", true, true, true)));
        let call = json!([{"data": {"toolCall": {"id": "1", "server": "git", "tool": "log", "arguments": {"n": 1}}}}]);
        shows.extend(take(&mut view, status("TASK_STATE_WORKING", &call)));
        let result = json!([{"data": {"toolResult": {"id": "1", "server": "git", "tool": "log", "text": "x", "isError": true}}}]);
        shows.extend(take(&mut view, status("TASK_STATE_WORKING", &result)));
        shows.extend(take(&mut view, chunk("answer-2", "Done.", false, true, false)));
        shows.extend(take(&mut view, status("TASK_STATE_COMPLETED", &json!([]))));
        assert_eq!(
            shows,
            [
                Show::Text("Let me ".to_owned()),
                Show::Text("look.".to_owned()),
                Show::TextEnd { interim: true },
                Show::ToolCall {
                    name: "git/log".to_owned(),
                    arguments: json!({"n": 1})
                },
                Show::ToolResult {
                    name: "git/log".to_owned(),
                    text: "x".to_owned(),
                    is_error: true
                },
                Show::Text("Done.".to_owned()),
                Show::TextEnd { interim: false },
            ]
        );
        assert_eq!(view.answer(), "Done.");
        assert!(view.rests());
    }

    #[test]
    fn a_snapshot_shows_only_what_is_new() {
        let mut view = TaskView::default();
        take(&mut view, chunk("answer-1", "One two", false, false, false));
        let snapshot = json!({"task": {"id": "t", "contextId": "s", "status": {"state": "TASK_STATE_COMPLETED"},
            "artifacts": [{"artifactId": "answer-1", "parts": [{"text": "One two three"}]}]}});
        let shows = take(&mut view, snapshot.clone());
        assert_eq!(
            shows,
            [Show::Text(" three".to_owned()), Show::TextEnd { interim: false }]
        );
        assert_eq!(view.answer(), "One two three");
        assert_eq!(take(&mut view, snapshot), []);
    }

    #[test]
    fn what_is_waited_for_is_read_and_forgotten_when_it_is_over() {
        let mut view = TaskView::default();
        let parts = json!([{"text": "May I?"}, {"data": {"approvals": [{"approval": "a1", "question": "approve",
            "server": "git", "tool": "commit", "arguments": {}, "digest": "d", "expiresAt": "2026-01-01T00:00:00Z"}]}}]);
        take(&mut view, status("TASK_STATE_INPUT_REQUIRED", &parts));
        assert!(view.rests());
        assert_eq!(view.approvals[0].digest, "d");
        assert_eq!(view.detail, "May I?");
        take(&mut view, status("TASK_STATE_WORKING", &json!([])));
        assert!(view.approvals.is_empty() && !view.rests());
    }

    #[test]
    fn files_stand_beside_the_answer_and_data_is_an_answer() {
        let mut view = TaskView::default();
        let artifact = json!({"artifactId": "file-1-1", "name": "shot", "parts": [{"raw": "aGk=", "mediaType": "image/png"}]});
        let file = |artifact: &Value| {
            json!({"artifactUpdate": {"taskId": "t", "contextId": "s", "append": false, "lastChunk": true,
                "artifact": artifact}})
        };
        let shows = take(&mut view, file(&artifact));
        let shown = Show::File {
            name: "shot".to_owned(),
            media_type: "image/png".to_owned(),
            bytes: 2,
        };
        assert_eq!(shows, [shown]);
        assert_eq!(take(&mut view, file(&artifact)), [], "once");
        let data = json!({"artifactUpdate": {"taskId": "t", "contextId": "s", "append": false, "lastChunk": true,
            "artifact": {"artifactId": "answer-1", "parts": [{"data": {"n": 3.0}}]}}});
        take(&mut view, data);
        assert_eq!(view.answer(), "{\n  \"n\": 3\n}");
    }

    #[test]
    fn questions_are_read_beside_approvals() {
        let mut view = TaskView::default();
        let parts = json!([{"text": "Which branch?"},
            {"data": {"questions": [{"question": "q1", "text": "Which branch?", "expiresAt": "2026-01-01T00:00:00Z"}]}}]);
        take(&mut view, status("TASK_STATE_INPUT_REQUIRED", &parts));
        assert_eq!(
            (
                view.questions[0].question.as_str(),
                view.questions[0].text.as_str()
            ),
            ("q1", "Which branch?")
        );
        take(&mut view, status("TASK_STATE_WORKING", &json!([])));
        assert!(view.questions.is_empty());
    }

    #[test]
    fn an_answer_without_a_task_is_shown() {
        let mut view = TaskView::default();
        let shows = take(
            &mut view,
            json!({"message": {"messageId": "m", "contextId": "s", "role": "ROLE_AGENT", "parts": [{"text": "hi"}]}}),
        );
        assert_eq!(
            shows,
            [Show::Text("hi".to_owned()), Show::TextEnd { interim: false }]
        );
        assert_eq!((view.answer(), view.rests()), ("hi", true));
    }
}
