//! What the 1.0 operations answer, as 0.3 has it.

use a2a::{
    Artifact, Message, Part, PartContent, Role, StreamResponse, Task, TaskArtifactUpdateEvent, TaskState,
    TaskStatus, TaskStatusUpdateEvent,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Which of 0.3's two shapes of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The types of the specification: JSON-RPC.
    Rpc,
    /// The JSON of `a2a.proto`: HTTP+JSON. Its readers refuse members that they do not know.
    Rest,
}

/// Of a data part that is no object (as the official SDKs mark it).
const WRAPPED: &str = "data_part_compat";

type Metadata = Option<HashMap<String, Value>>;

/// An object that leaves out what is not there.
struct Object(Map<String, Value>);

impl Object {
    fn new(form: Form, kind: &'static str) -> Self {
        let kind = (form == Form::Rpc).then(|| ("kind".to_owned(), Value::from(kind)));
        Self(kind.into_iter().collect())
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    fn some(self, key: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    fn metadata(self, metadata: Metadata) -> Self {
        let metadata = metadata.filter(|m| !m.is_empty());
        self.some("metadata", metadata.map(|m| m.into_iter().collect::<Value>()))
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Self::Object(object.0)
    }
}

/// Says of data that are wrapped, where their parts have no place for it.
fn mark(metadata: &mut Metadata, parts: &[Part]) {
    let wrapped = |part: &Part| matches!(&part.content, PartContent::Data(data) if !data.is_object());
    if parts.iter().any(wrapped) {
        metadata
            .get_or_insert_default()
            .insert(WRAPPED.to_owned(), true.into());
    }
}

fn is_last(state: &TaskState, until_pause: bool) -> bool {
    let is_pause = matches!(state, TaskState::InputRequired | TaskState::AuthRequired);
    state.is_terminal() || (until_pause && is_pause)
}

impl Form {
    /// What a stream says next, and what a message is answered with; `until_pause`: the stream ends where the task
    /// waits for somebody.
    pub(super) fn event(self, event: StreamResponse, until_pause: bool) -> Value {
        let (name, value) = match event {
            StreamResponse::Task(task) => ("task", self.task(task)),
            StreamResponse::Message(message) => ("message", self.message(message)),
            StreamResponse::StatusUpdate(update) => ("statusUpdate", self.update(update, until_pause)),
            StreamResponse::ArtifactUpdate(chunk) => ("artifactUpdate", self.chunk(chunk)),
        };
        match self {
            Self::Rpc => value,
            Self::Rest => json!({name: value}),
        }
    }

    /// The status update that ends a stream whose last word was this whole task.
    pub(super) fn end_of(self, event: &StreamResponse, until_pause: bool) -> Option<Value> {
        let StreamResponse::Task(task) = event else {
            return None;
        };
        let end = TaskStatusUpdateEvent {
            task_id: task.id.clone(),
            context_id: task.context_id.clone(),
            status: task.status.clone(),
            metadata: None,
        };
        is_last(&task.status.state, until_pause)
            .then(|| self.event(StreamResponse::StatusUpdate(end), until_pause))
    }

    pub(super) fn task(self, task: Task) -> Value {
        let artifacts = task
            .artifacts
            .map(|list| list.into_iter().map(|a| self.artifact(a)).collect::<Value>());
        let history = task
            .history
            .map(|list| list.into_iter().map(|m| self.message(m)).collect::<Value>());
        Object::new(self, "task")
            .with("id", task.id)
            .with("contextId", task.context_id)
            .with("status", self.status(task.status))
            .some("artifacts", artifacts)
            .some("history", history)
            .metadata(task.metadata)
            .into()
    }

    fn update(self, update: TaskStatusUpdateEvent, until_pause: bool) -> Value {
        let last = is_last(&update.status.state, until_pause);
        Object::new(self, "status-update")
            .with("taskId", update.task_id)
            .with("contextId", update.context_id)
            .with("final", last)
            .with("status", self.status(update.status))
            .metadata(update.metadata)
            .into()
    }

    fn chunk(self, chunk: TaskArtifactUpdateEvent) -> Value {
        Object::new(self, "artifact-update")
            .with("taskId", chunk.task_id)
            .with("contextId", chunk.context_id)
            .with("artifact", self.artifact(chunk.artifact))
            .some("append", chunk.append)
            .some("lastChunk", chunk.last_chunk)
            .metadata(chunk.metadata)
            .into()
    }

    fn status(self, status: TaskStatus) -> Value {
        let timestamp = status.timestamp.map(|t| json!(t));
        Object(Map::new())
            .with("state", self.state(&status.state))
            .some("message", status.message.map(|m| self.message(m)))
            .some("timestamp", timestamp)
            .into()
    }

    fn state(self, state: &TaskState) -> &'static str {
        let (rpc, rest) = match state {
            TaskState::Unspecified => ("unknown", "TASK_STATE_UNSPECIFIED"),
            TaskState::Submitted => ("submitted", "TASK_STATE_SUBMITTED"),
            TaskState::Working => ("working", "TASK_STATE_WORKING"),
            TaskState::Completed => ("completed", "TASK_STATE_COMPLETED"),
            TaskState::Failed => ("failed", "TASK_STATE_FAILED"),
            // As 0.3's .proto spells it.
            TaskState::Canceled => ("canceled", "TASK_STATE_CANCELLED"),
            TaskState::InputRequired => ("input-required", "TASK_STATE_INPUT_REQUIRED"),
            TaskState::Rejected => ("rejected", "TASK_STATE_REJECTED"),
            TaskState::AuthRequired => ("auth-required", "TASK_STATE_AUTH_REQUIRED"),
        };
        match self {
            Self::Rpc => rpc,
            Self::Rest => rest,
        }
    }

    fn message(self, message: Message) -> Value {
        let role = match (self, message.role) {
            (Self::Rpc, Role::User) => "user",
            (Self::Rpc, _) => "agent",
            (Self::Rest, Role::User) => "ROLE_USER",
            (Self::Rest, _) => "ROLE_AGENT",
        };
        let mut metadata = message.metadata;
        if self == Self::Rest {
            // Its parts have no metadata of their own.
            let of_parts = message.parts.iter().filter_map(|part| part.metadata.clone());
            for more in of_parts {
                metadata.get_or_insert_default().extend(more);
            }
            mark(&mut metadata, &message.parts);
        }
        let name = match self {
            Self::Rpc => "parts",
            Self::Rest => "content",
        };
        Object::new(self, "message")
            .with("messageId", message.message_id)
            .some("contextId", message.context_id)
            .some("taskId", message.task_id)
            .with("role", role)
            .with(name, self.parts(message.parts))
            .metadata(metadata)
            .into()
    }

    fn artifact(self, artifact: Artifact) -> Value {
        let mut metadata = artifact.metadata;
        if self == Self::Rest {
            mark(&mut metadata, &artifact.parts);
        }
        Object(Map::new())
            .with("artifactId", artifact.artifact_id)
            .some("name", artifact.name)
            .some("description", artifact.description)
            .with("parts", self.parts(artifact.parts))
            .metadata(metadata)
            .into()
    }

    fn parts(self, parts: Vec<Part>) -> Value {
        parts.into_iter().map(|part| self.part(part)).collect()
    }

    fn part(self, part: Part) -> Value {
        let mut metadata = part.metadata;
        let object = match part.content {
            PartContent::Text(text) => Object::new(self, "text").with("text", text),
            PartContent::Data(data) => {
                let data = match data {
                    Value::Object(_) => data,
                    other => {
                        metadata
                            .get_or_insert_default()
                            .insert(WRAPPED.to_owned(), true.into());
                        json!({"value": other})
                    }
                };
                let data = match self {
                    Self::Rpc => data,
                    Self::Rest => json!({"data": data}),
                };
                Object::new(self, "data").with("data", data)
            }
            PartContent::Raw(bytes) => {
                let name = self.file_key("bytes", "fileWithBytes");
                let file = Object(Map::new()).with(name, BASE64.encode(bytes));
                self.file(file, part.media_type, part.filename)
            }
            PartContent::Url(url) => {
                let file = Object(Map::new()).with(self.file_key("uri", "fileWithUri"), url);
                self.file(file, part.media_type, part.filename)
            }
        };
        match self {
            Self::Rpc => object.metadata(metadata).into(),
            Self::Rest => object.into(),
        }
    }

    fn file_key(self, rpc: &'static str, rest: &'static str) -> &'static str {
        match self {
            Self::Rpc => rpc,
            Self::Rest => rest,
        }
    }

    fn file(self, file: Object, media_type: Option<String>, name: Option<String>) -> Object {
        // The first .proto of 0.3 has no name of a file.
        let name = name.filter(|_| self == Self::Rpc);
        Object::new(self, "file").with("file", file.some("mimeType", media_type).some("name", name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn working(state: TaskState) -> StreamResponse {
        let mut thought = Part::text("hm");
        thought.metadata = Some(HashMap::from([("thought".to_owned(), json!(true))]));
        let message = Message {
            message_id: "m".to_owned(),
            context_id: Some("c".to_owned()),
            task_id: Some("t".to_owned()),
            role: Role::Agent,
            parts: vec![thought, Part::data(json!([1, 9_007_199_254_740_993_u64]))],
            metadata: None,
            extensions: None,
            reference_task_ids: None,
        };
        StreamResponse::StatusUpdate(TaskStatusUpdateEvent {
            task_id: "t".to_owned(),
            context_id: "c".to_owned(),
            status: TaskStatus {
                state,
                message: Some(message),
                timestamp: None,
            },
            metadata: None,
        })
    }

    #[test]
    fn an_event_has_the_shape_of_its_binding() {
        let data = json!({"value": [1, 9_007_199_254_740_993_u64]});
        assert_eq!(
            Form::Rpc.event(working(TaskState::InputRequired), true),
            json!({"kind": "status-update", "taskId": "t", "contextId": "c", "final": true, "status": {
                "state": "input-required", "message": {
                    "kind": "message", "messageId": "m", "contextId": "c", "taskId": "t", "role": "agent", "parts": [
                        {"kind": "text", "text": "hm", "metadata": {"thought": true}},
                        {"kind": "data", "data": data, "metadata": {"data_part_compat": true}}]}}})
        );
        assert_eq!(
            Form::Rest.event(working(TaskState::InputRequired), false),
            json!({"statusUpdate": {"taskId": "t", "contextId": "c", "final": false, "status": {
                "state": "TASK_STATE_INPUT_REQUIRED", "message": {
                    "messageId": "m", "contextId": "c", "taskId": "t", "role": "ROLE_AGENT",
                    "content": [{"text": "hm"}, {"data": {"data": data}}], "metadata": {"thought": true, "data_part_compat": true}}}}})
        );
    }

    #[test]
    fn only_the_last_word_is_final() {
        let last = |state, until_pause| Form::Rpc.event(working(state), until_pause)["final"].clone();
        for state in [
            TaskState::Completed,
            TaskState::Failed,
            TaskState::Canceled,
            TaskState::Rejected,
        ] {
            assert_eq!(last(state, false), true);
        }
        assert_eq!(last(TaskState::Working, true), false);
        assert_eq!(last(TaskState::InputRequired, false), false, "the watch goes on");
    }

    #[test]
    fn a_file_has_its_name_where_there_is_a_place_for_it() {
        let part = Part::raw(vec![1, 2, 3])
            .with_media_type("image/png")
            .with_filename("a.png");
        assert_eq!(
            Form::Rpc.part(part.clone()),
            json!({"kind": "file", "file": {"bytes": "AQID", "mimeType": "image/png", "name": "a.png"}})
        );
        assert_eq!(
            Form::Rest.part(part),
            json!({"file": {"fileWithBytes": "AQID", "mimeType": "image/png"}})
        );
    }
}
