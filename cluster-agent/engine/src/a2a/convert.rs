//! Between the A2A types and ours.
//!
//! The answer is an artifact that grows by appended chunks; what the agent said before it called tools becomes part
//! of the history. Thoughts and tool calls go out as status updates of the working task. What a task waits for stands
//! in the status message: words for people, and a data part for programs.

use crate::{
    journal::{InPart, Question, TaskState},
    model::{MAX_DEPTH, is_deep},
    tasks::{
        Answer, Event, Fed, FileOut, Inbound, Numbered, Place, Refusal, Shown, Status, TaskView, Waiting,
    },
    turn::question,
};
use a2a::{
    Artifact, Message, Part, PartContent, Role, StreamResponse, Task, TaskArtifactUpdateEvent, TaskStatus,
    TaskStatusUpdateEvent,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use chrono::{DateTime, Utc};
use roadstead_contract::numbers::{inexact, survives, whole};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Of a task's events: the number to come back with (request header [`super::handler::AFTER`]).
const SEQUENCE: &str = "roadstead.dev/sequence";
/// Of an artifact chunk: tools were called after this text, it is not the answer.
const INTERIM: &str = "roadstead.dev/interim";
/// Of an artifact: byte offsets at which the model's stream was cut and gone on with.
const CUTS: &str = "roadstead.dev/cuts";
/// Of a message part: thoughts, not part of the answer.
const THOUGHT: &str = "roadstead.dev/thought";
/// Of a task that has ended: the code of why, and what it used up.
const REASON: &str = "roadstead.dev/reason";
pub(crate) const USAGE: &str = "roadstead.dev/usage";

type Metadata = HashMap<String, Value>;

pub(super) fn state(state: TaskState) -> a2a::TaskState {
    match state {
        TaskState::Submitted => a2a::TaskState::Submitted,
        TaskState::Working => a2a::TaskState::Working,
        TaskState::InputRequired => a2a::TaskState::InputRequired,
        TaskState::Completed => a2a::TaskState::Completed,
        TaskState::Failed => a2a::TaskState::Failed,
        TaskState::Canceled => a2a::TaskState::Canceled,
        TaskState::Rejected => a2a::TaskState::Rejected,
    }
}

/// The state that a list is filtered by; `None` filters nothing. A state that no task here has finds none.
pub(super) fn state_filter(state: Option<&a2a::TaskState>) -> Result<Option<TaskState>, Refusal> {
    Ok(Some(match state {
        None | Some(a2a::TaskState::Unspecified) => return Ok(None),
        Some(a2a::TaskState::Submitted) => TaskState::Submitted,
        Some(a2a::TaskState::Working) => TaskState::Working,
        Some(a2a::TaskState::InputRequired) => TaskState::InputRequired,
        Some(a2a::TaskState::Completed) => TaskState::Completed,
        Some(a2a::TaskState::Failed) => TaskState::Failed,
        Some(a2a::TaskState::Canceled) => TaskState::Canceled,
        Some(a2a::TaskState::Rejected) => TaskState::Rejected,
        Some(a2a::TaskState::AuthRequired) => {
            return Err(Refusal::Invalid(
                "status: no task of this agent is ever auth-required".to_owned(),
            ));
        }
    }))
}

/// A caller's message.
pub(super) fn inbound(message: Message) -> Result<Inbound, Refusal> {
    if message.role == Role::Agent {
        return Err(Refusal::Invalid(
            "message.role: expected ROLE_USER, found ROLE_AGENT".to_owned(),
        ));
    }
    let parts = message.parts.into_iter().map(in_part).collect::<Result<_, _>>()?;
    Ok(Inbound {
        message_id: message.message_id,
        context: message.context_id.filter(|id| !id.is_empty()),
        task: message.task_id.filter(|id| !id.is_empty()),
        parts,
    })
}

fn in_part(part: Part) -> Result<InPart, Refusal> {
    match part.content {
        PartContent::Text(text) => Ok(InPart::Text { text }),
        PartContent::Data(data) if is_deep(&data) => Err(Refusal::Invalid(format!(
            "message.parts: expected data of at most {MAX_DEPTH} levels, found more"
        ))),
        PartContent::Data(data) => Ok(InPart::Data { data: whole(data) }),
        PartContent::Raw(bytes) => Ok(InPart::File {
            name: part.filename.unwrap_or_default(),
            media_type: part
                .media_type
                .unwrap_or_else(|| "application/octet-stream".to_owned()),
            data: BASE64.encode(bytes),
        }),
        // Fetching what a caller names would reach whatever the engine can reach.
        PartContent::Url(_) => Err(Refusal::Media(
            "message.parts: expected text, data or raw bytes, found a url: send the bytes".to_owned(),
        )),
    }
}

/// A task with its newest `history` entries (`None`: all).
pub(super) fn task(view: TaskView, history: Option<i32>) -> Task {
    let status = status(&view.uid, &view.context, &view.status);
    let mut shown: Vec<Message> = view
        .history
        .iter()
        .enumerate()
        .map(|(n, shown)| message(&view, n, shown))
        .collect();
    if let Some(keep) = history {
        let keep = usize::try_from(keep).unwrap_or(0);
        shown.drain(..shown.len().saturating_sub(keep));
    }
    let metadata = ended(&view);
    let files = view.files.iter().map(|f| file(f));
    let artifacts: Vec<Artifact> = files.chain(view.answer.map(artifact)).collect();
    Task {
        id: view.uid,
        context_id: view.context,
        status,
        artifacts: (!artifacts.is_empty()).then_some(artifacts),
        history: (!shown.is_empty()).then_some(shown),
        metadata,
    }
}

fn ended(view: &TaskView) -> Option<Metadata> {
    let mut metadata = Metadata::new();
    if !view.status.reason.is_empty() {
        metadata.insert(REASON.to_owned(), json!(view.status.reason));
    }
    if view.number > 0 {
        metadata.insert(SEQUENCE.to_owned(), json!(place(view.epoch, view.number)));
    }
    if let Some(used) = view.counters.as_ref().filter(|_| view.status.state.is_terminal()) {
        let usage = json!({
            "modelCalls": used.model_calls, "toolCalls": used.tool_calls,
            "inputTokens": used.input_tokens, "outputTokens": used.output_tokens,
            "cachedInputTokens": used.cached_tokens, "estimated": used.estimated,
            "costMicros": used.cost_micros, "currency": used.currency, "model": used.model,
            "agents": used.handed,
        });
        metadata.insert(USAGE.to_owned(), usage);
    }
    (!metadata.is_empty()).then_some(metadata)
}

fn artifact(answer: Answer) -> Artifact {
    let part = if answer.json {
        data_part(&answer.text)
    } else {
        Part::text(answer.text)
    };
    let metadata = (!answer.cuts.is_empty()).then(|| Metadata::from([(CUTS.to_owned(), json!(answer.cuts))]));
    named(answer.artifact, vec![part], metadata)
}

/// A structured answer: data, or its text where a number in it would be another one as data.
fn data_part(text: &str) -> Part {
    // As if it were part of something, which it is going to be.
    let value = match inexact(&format!("[[{text}]]")) {
        None => serde_json::from_str(text.trim()).ok(),
        Some(_) => None,
    };
    let part = value.map_or_else(|| Part::text(text), Part::data);
    part.with_media_type("application/json")
}

/// Arguments of a call: as they are, or as their JSON text where a number in them would be another one as data. A
/// person decides about what they see.
fn arguments(arguments: &Value) -> Value {
    if survives(arguments) {
        arguments.clone()
    } else {
        Value::String(arguments.to_string())
    }
}

fn file(file: &FileOut) -> Artifact {
    let data = BASE64.decode(&file.data).unwrap_or_default();
    Artifact {
        name: Some(file.name.clone()),
        ..named(
            file.artifact.clone(),
            vec![Part::raw(data).with_media_type(&file.media_type)],
            None,
        )
    }
}

fn named(id: String, parts: Vec<Part>, metadata: Option<Metadata>) -> Artifact {
    let name = Some("answer".to_owned());
    Artifact {
        artifact_id: id,
        name,
        description: None,
        parts,
        metadata,
        extensions: None,
    }
}

fn message(view: &TaskView, n: usize, shown: &Shown) -> Message {
    let (role, id, parts) = match shown {
        Shown::User { message_id, parts } => (
            Role::User,
            message_id.clone(),
            parts.iter().map(out_part).collect(),
        ),
        Shown::Agent { text } => (Role::Agent, format!("{}-{n}", view.uid), vec![Part::text(text)]),
    };
    about(&view.uid, &view.context, role, id, parts)
}

fn about(task: &str, context: &str, role: Role, id: String, parts: Vec<Part>) -> Message {
    Message {
        message_id: id,
        context_id: Some(context.to_owned()),
        task_id: Some(task.to_owned()),
        role,
        parts,
        metadata: None,
        extensions: None,
        reference_task_ids: None,
    }
}

fn out_part(part: &InPart) -> Part {
    match part {
        InPart::Text { text } => Part::text(text),
        InPart::Data { data } => Part::data(data.clone()),
        InPart::File {
            name,
            media_type,
            data,
        } => {
            // It was encoded here; a journal that was changed by hand shows an empty file.
            let part = Part::raw(BASE64.decode(data).unwrap_or_default()).with_media_type(media_type);
            if name.is_empty() {
                part
            } else {
                part.with_filename(name)
            }
        }
    }
}

fn status(task: &str, context: &str, status: &Status) -> TaskStatus {
    let mut parts = Vec::new();
    if !status.detail.is_empty() {
        parts.push(Part::text(&status.detail));
    }
    let is_question = |w: &&Waiting| w.question == Question::Asked;
    let approvals: Vec<Value> = status
        .waits_for
        .iter()
        .filter(|w| !is_question(w))
        .map(approval)
        .collect();
    let questions: Vec<Value> = status.waits_for.iter().filter(is_question).map(asked).collect();
    for (name, list) in [("approvals", approvals), ("questions", questions)] {
        if !list.is_empty() {
            parts.push(Part::data(json!({name: list})));
        }
    }
    let id = format!("{task}-status-{}", status.at_ms);
    let message = (!parts.is_empty()).then(|| about(task, context, Role::Agent, id, parts));
    TaskStatus {
        state: state(status.state),
        message,
        timestamp: time(status.at_ms),
    }
}

/// A question as a program reads it; answered by words, or where several are asked by `{question, answer}`.
fn asked(waiting: &Waiting) -> Value {
    json!({
        "question": waiting.approval,
        "text": question(&waiting.arguments),
        "expiresAt": time(waiting.expires_ms).map(|t| t.to_rfc3339()),
    })
}

fn approval(waiting: &Waiting) -> Value {
    json!({
        "approval": waiting.approval,
        "question": if waiting.question == Question::Unknown { "unknownResult" } else { "approve" },
        "server": waiting.server,
        "tool": waiting.tool,
        "arguments": arguments(&waiting.arguments),
        "change": waiting.change.as_ref().map(|c| json!({"description": c.description, "parameters": c.parameters})),
        "digest": waiting.digest,
        "expiresAt": time(waiting.expires_ms).map(|t| t.to_rfc3339()),
    })
}

fn time(ms: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(ms)
}

/// What a watcher of the task `uid` gets.
pub(super) fn fed((uid, context, epoch): (&str, &str, u32), fed: Fed) -> StreamResponse {
    match fed {
        Fed::Snapshot(view) => StreamResponse::Task(task(*view, None)),
        Fed::Event(event) => numbered(uid, context, epoch, &event),
    }
}

fn place(epoch: u32, number: u64) -> String {
    Place { epoch, number }.to_string()
}

fn numbered(uid: &str, context: &str, epoch: u32, event: &Numbered) -> StreamResponse {
    let metadata = Metadata::from([(SEQUENCE.to_owned(), json!(place(epoch, event.number)))]);
    match &event.event {
        Event::Status(now) => update(uid, context, status(uid, context, now), metadata, &now.reason),
        Event::Text {
            artifact,
            text,
            first,
        } => {
            let artifact = named(artifact.clone(), vec![Part::text(text)], None);
            chunk(uid, context, artifact, !first, false, metadata)
        }
        Event::Json { artifact, text } => {
            let artifact = named(artifact.clone(), vec![data_part(text)], None);
            chunk(uid, context, artifact, false, true, metadata)
        }
        Event::File(given) => chunk(uid, context, file(given), false, true, metadata),
        Event::TextEnd { artifact, interim } => {
            let mark = interim.then(|| Metadata::from([(INTERIM.to_owned(), json!(true))]));
            let artifact = named(artifact.clone(), vec![Part::text("")], mark);
            chunk(uid, context, artifact, true, true, metadata)
        }
        Event::Reasoning { text } => {
            let thought = Metadata::from([(THOUGHT.to_owned(), json!(true))]);
            let part = Part {
                metadata: Some(thought),
                ..Part::text(text)
            };
            working(uid, context, event.number, part, metadata)
        }
        Event::ToolCall {
            call,
            server,
            tool,
            arguments: given,
        } => {
            let data = json!({"toolCall": {
                "id": call, "server": server, "tool": tool, "arguments": arguments(given)}});
            working(uid, context, event.number, Part::data(data), metadata)
        }
        Event::ToolResult {
            call,
            server,
            tool,
            text,
            is_error,
        } => {
            let data = json!({"toolResult": {
                "id": call, "server": server, "tool": tool, "text": text, "isError": is_error}});
            working(uid, context, event.number, Part::data(data), metadata)
        }
    }
}

fn update(
    uid: &str,
    context: &str,
    status: TaskStatus,
    mut metadata: Metadata,
    reason: &str,
) -> StreamResponse {
    if !reason.is_empty() {
        metadata.insert(REASON.to_owned(), json!(reason));
    }
    StreamResponse::StatusUpdate(TaskStatusUpdateEvent {
        task_id: uid.to_owned(),
        context_id: context.to_owned(),
        status,
        metadata: Some(metadata),
    })
}

fn working(uid: &str, context: &str, number: u64, part: Part, metadata: Metadata) -> StreamResponse {
    let message = about(
        uid,
        context,
        Role::Agent,
        format!("{uid}-event-{number}"),
        vec![part],
    );
    let status = TaskStatus {
        state: a2a::TaskState::Working,
        message: Some(message),
        timestamp: None,
    };
    update(uid, context, status, metadata, "")
}

fn chunk(
    uid: &str,
    context: &str,
    artifact: Artifact,
    append: bool,
    last: bool,
    metadata: Metadata,
) -> StreamResponse {
    StreamResponse::ArtifactUpdate(TaskArtifactUpdateEvent {
        task_id: uid.to_owned(),
        context_id: context.to_owned(),
        artifact,
        append: Some(append),
        last_chunk: Some(last),
        metadata: Some(metadata),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_out_exactly_or_as_text() {
        let sent = |part: Part| match part.content {
            PartContent::Data(data) => Ok(data),
            PartContent::Text(text) => Err(text),
            other => panic!("{other:?}"),
        };
        for exact in [r#"{"n":9007199254740992}"#, r#"[0.1,-3,"9007199254740993"]"#, "7"] {
            let data = serde_json::from_str(exact).expect("JSON");
            assert_eq!(sent(data_part(exact)), Ok(data));
        }
        for text in [
            "9007199254740993",
            r#"{"n":18446744073709551617}"#,
            "[[-9007199254740993]]",
        ] {
            assert_eq!(sent(data_part(text)), Err(text.to_owned()));
        }
        // What a person is asked to approve is what will be called.
        let waiting = |n: u64| Waiting {
            approval: "a".to_owned(),
            question: Question::Approve,
            server: "bank".to_owned(),
            tool: "pay".to_owned(),
            arguments: json!({"account": n}),
            digest: "d".to_owned(),
            change: None,
            expires_ms: 0,
        };
        let account = 9_007_199_254_740_992;
        assert_eq!(
            approval(&waiting(account))["arguments"],
            json!({"account": account})
        );
        assert_eq!(
            approval(&waiting(account + 1))["arguments"],
            json!("{\"account\":9007199254740993}")
        );
    }

    #[test]
    fn whole_numbers_of_a_caller_are_integers() {
        // As the wire's types give them.
        let part = Part::data(json!({"n": 3.0, "share": 0.5}));
        assert_eq!(
            in_part(part).map_err(|e| e.to_string()),
            Ok(InPart::Data {
                data: json!({"n": 3, "share": 0.5})
            })
        );
    }
}
