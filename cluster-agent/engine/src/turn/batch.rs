//! The tool calls of one answer: checked, approved, made in parallel, and answered to the model in call order.

use super::{
    End, Turn,
    ask::Reply,
    limits, refused_by_person,
    table::{AGENT, Offered, PERSON, label, question},
};
use crate::{
    clock::new_id,
    journal::{
        Approval, Decision, Entry, JournalError, Kept, ModelDone, NewApproval, NewStep, Question, Step,
        StepResult, StepState, TaskState,
    },
    model::{ChatMessage, ToolCall},
    observe,
    peers::{MAX_DEPTH, PeerCall},
    tasks::{Event, Status, Waiting},
    tools::{ResultPart, ToolError, ToolRequest, ToolResult},
};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use roadstead_contract::documents::OnUnknownResult;
use roadstead_telemetry::propagate;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::{sync::Arc, time::Duration};
use tracing::Instrument as _;

/// Calls of one answer that run at once.
const PARALLEL: usize = 8;
/// Text of one result that the model reads, in bytes.
const RESULT_TEXT: usize = 64 * 1024;
/// How often one tool may be called wrongly in a row before the task ends.
const WRONG_CALLS: u32 = 3;
/// How long a person has to answer.
const APPROVAL_LIFE_MS: i64 = 24 * 60 * 60 * 1000;
/// What a tool server may be late after a cancel before it is no longer waited for.
const CANCEL_GRACE: Duration = Duration::from_millis(100);

/// A call with its row in the journal.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(super) step: i64,
    pub(super) call: ToolCall,
    pub(super) server: String,
    pub(super) tool: String,
    pub(super) what: What,
    /// The journal has its result.
    kept: bool,
}

/// What is to be done about a call.
#[derive(Debug)]
pub(crate) enum What {
    /// Its result is there.
    Done(StepResult),
    /// It may be made; `sent` if the journal says so already.
    Run { sent: bool },
    /// A person is asked; `asked` if the question is written down.
    Ask { question: Question, asked: bool },
    /// Found as planned after a restart: to be checked like a new one.
    Check,
    /// Found as sent after a restart, without a result.
    Lost,
}

/// The place of a call in its batch, its result, and the write that keeps it.
type Made = (usize, (StepResult, Option<Kept<()>>));

/// A call as a restart finds it.
pub(super) fn placed(call: &ToolCall, step: Step, approvals: &[Approval]) -> Planned {
    let latest = approvals.iter().rev().find(|a| a.step == step.id);
    let kept = step.state == StepState::Done;
    let what = match (step.state, step.result) {
        (_, Some(result)) => What::Done(result),
        (state, None) => match latest {
            Some(a) => answered(a, state),
            None if state == StepState::Sent => What::Lost,
            None => What::Check,
        },
    };
    Planned {
        step: step.id,
        call: call.clone(),
        server: step.server,
        tool: step.tool,
        what,
        kept,
    }
}

fn answered(approval: &Approval, state: StepState) -> What {
    match (approval.question, approval.decision) {
        (question, None) => What::Ask {
            question,
            asked: true,
        },
        (Question::Asked, Some(Decision::Answered)) => What::Done(StepResult {
            text: capped(approval.reason.clone()),
            ..StepResult::default()
        }),
        (Question::Asked, Some(_)) => What::Done(StepResult::error("Nobody answered in time.")),
        // The decision was used up: it allowed one call.
        (_, Some(Decision::Yes)) if state == StepState::Sent => What::Lost,
        (_, Some(Decision::Yes)) => What::Run { sent: false },
        (Question::Approve, Some(decision)) => {
            What::Done(StepResult::error(refused_by_person(decision, &approval.reason)))
        }
        (Question::Unknown, Some(_)) => What::Done(StepResult::error(unknown_effect(&approval.reason))),
    }
}

fn unknown_effect(reason: &str) -> String {
    let mut text =
        "The engine stopped after this call was sent. It may have taken effect; its result is not known. \
                    It was not repeated."
            .to_owned();
    if !reason.is_empty() {
        text.push_str(" A person adds: ");
        text.push_str(reason);
    }
    text
}

impl StepResult {
    pub(super) fn error(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            is_error: true,
            parts: Vec::new(),
        }
    }
}

impl Turn {
    /// Checks the calls of an answer and writes them down with it.
    pub(super) async fn plan(&mut self, reply: Reply, step: i64) -> Result<(Entry, Vec<Planned>), End> {
        let calls = reply.calls.clone();
        let entry = reply.into_entry();
        let mut verdicts = Vec::with_capacity(calls.len());
        for call in &calls {
            verdicts.push(self.check(call));
        }
        let made = verdicts
            .iter()
            .filter(|(_, what)| !matches!(what, What::Done(_)))
            .count();
        let limit = limits::before_tools(&self.revision.bundle.agent.limits, &self.counters, made);
        if let Err((code, detail)) = limit {
            let last = Some(Box::new(super::Last { entry, step }));
            return Err(End::Failed { code, detail, last });
        }
        let mut free = PARALLEL;
        for (_, what) in &mut verdicts {
            if let What::Run { sent } = what {
                *sent = free > 0;
                free = free.saturating_sub(1);
            }
        }
        let steps = calls
            .iter()
            .zip(&verdicts)
            .map(|(call, (offered, what))| new_step(call, offered.as_deref(), what));
        let done = ModelDone {
            task: self.live.task,
            session: self.live.session,
            step,
            entry: entry.clone(),
            calls: steps.collect(),
            counters: self.counters.clone(),
        };
        let written = self.services.journal.model_done(done).await?;
        self.live.end_text(true);
        self.too_often()?;
        let planned =
            calls
                .into_iter()
                .zip(verdicts)
                .zip(written.steps)
                .map(|((call, (offered, what)), step)| {
                    let (server, tool) = place(&call, offered.as_deref());
                    let kept = matches!(what, What::Done(_));
                    Planned {
                        step,
                        call,
                        server,
                        tool,
                        what,
                        kept,
                    }
                });
        Ok((entry, planned.collect()))
    }

    /// Whether a call may be made: known and allowed, with fitting arguments, and whether a person is to be asked.
    fn check(&mut self, call: &ToolCall) -> (Option<Arc<Offered>>, What) {
        let offered = self.table.get(&call.name).cloned();
        let wrong = match (&offered, &call.problem) {
            (None, _) => Some(format!(
                "There is no tool {}. The tools are: {}.",
                call.name,
                self.table.names()
            )),
            (Some(_), Some(problem)) => Some(format!("The arguments are not JSON: {problem}.")),
            (Some(offered), None) => {
                let misfit = offered.check(&call.arguments).err();
                misfit.map(|m| format!("The arguments do not fit the tool's JSON Schema: {m}."))
            }
        };
        if let Some(wrong) = wrong {
            *self.counters.refused.entry(call.name.clone()).or_default() += 1;
            return (offered, What::Done(StepResult::error(wrong)));
        }
        self.counters.refused.remove(&call.name);
        let question = match &offered {
            Some(offered) if offered.server == PERSON => Some(Question::Asked),
            Some(offered) if offered.approve || offered.changed.is_some() => Some(Question::Approve),
            _ => None,
        };
        let what = match question {
            Some(question) => What::Ask {
                question,
                asked: false,
            },
            None => What::Run { sent: false },
        };
        (offered, what)
    }

    fn too_often(&self) -> Result<(), End> {
        let often = self.counters.refused.iter().find(|(_, n)| **n > WRONG_CALLS);
        often.map_or(Ok(()), |(name, n)| {
            let detail = format!("the model called {name} wrongly {n} times in a row");
            Err(End::failed("tool.arguments", detail))
        })
    }

    /// Makes what may be made, asks what must be asked, and gives the model its results.
    pub(super) async fn settle(&mut self, entry: &Entry, mut batch: Vec<Planned>) -> Result<(), End> {
        for planned in &mut batch {
            self.review(planned)?;
        }
        self.make_calls(&mut batch).await;
        if self.live.cancel.is_cancelled() {
            return Err(End::Canceled);
        }
        if batch.iter().any(|p| matches!(p.what, What::Ask { .. })) {
            self.confirm().await?;
            return Err(self.pause(&batch).await?);
        }
        self.push(entry);
        for planned in batch {
            if let What::Done(result) = planned.what {
                let ToolCall { id, name, .. } = planned.call;
                let message = ChatMessage::Tool {
                    call_id: id,
                    name,
                    text: result.text,
                    is_error: result.is_error,
                };
                self.request_mut().messages.push(message);
            }
        }
        Ok(())
    }

    /// Decides about what a restart found, and writes down results that came without a call.
    fn review(&mut self, planned: &mut Planned) -> Result<(), End> {
        match &planned.what {
            What::Check => planned.what = self.check(&planned.call).1,
            What::Lost => planned.what = self.lost(planned)?,
            What::Run { .. } if self.table.find(&planned.server, &planned.tool).is_none() => {
                let text = format!("The tool {} is not on offer any more.", planned.call.name);
                planned.what = What::Done(StepResult::error(text));
            }
            What::Run { .. } | What::Done(_) | What::Ask { .. } => {}
        }
        if let What::Done(result) = &planned.what
            && !planned.kept
        {
            self.unconfirmed
                .push(self.services.journal.tool_done(planned.step, result));
            planned.kept = true;
        }
        Ok(())
    }

    /// A call that was sent and has no result: repeated only where that is known to be safe.
    fn lost(&self, planned: &Planned) -> Result<What, End> {
        let offered = self.table.find(&planned.server, &planned.tool);
        if offered.is_some_and(|o| o.repeatable) {
            return Ok(What::Run { sent: true });
        }
        let label = label(&planned.server, &planned.tool);
        match self.revision.bundle.agent.on_unknown_result {
            OnUnknownResult::Ask => Ok(What::Ask {
                question: Question::Unknown,
                asked: false,
            }),
            OnUnknownResult::Tell => Ok(What::Done(StepResult::error(unknown_effect("")))),
            OnUnknownResult::Fail => {
                let detail = format!("the engine stopped after {label} was called; its effect is not known");
                Err(End::failed("tool.unknownResult", detail))
            }
        }
    }

    async fn make_calls(&mut self, batch: &mut [Planned]) {
        let mut running: Vec<BoxFuture<'_, Made>> = Vec::new();
        for (at, planned) in batch.iter().enumerate() {
            if let What::Run { sent } = planned.what {
                let made = self.make(planned, sent);
                running.push(made.map(move |made| (at, made)).boxed());
            }
        }
        let made: Vec<Made> = stream::iter(running).buffer_unordered(PARALLEL).collect().await;
        for (at, (result, kept)) in made {
            let planned = &mut batch[at];
            let label = label(&planned.server, &planned.tool);
            self.count_call(&label, result.is_error);
            match kept {
                Some(write) => self.unconfirmed.push(write),
                None => self.unknown_effects.push(label),
            }
            planned.what = What::Done(result);
        }
    }

    fn count_call(&mut self, label: &str, is_error: bool) {
        self.counters.tool_calls += 1;
        let count = self.counters.tools.entry(label.to_owned()).or_default();
        count.calls += 1;
        count.errors += u32::from(is_error);
    }

    /// Makes one call and queues its result for the journal. A call that a cancel broke off has no result to keep.
    async fn make(&self, planned: &Planned, sent: bool) -> (StepResult, Option<Kept<()>>) {
        let result = match self.table.find(&planned.server, &planned.tool) {
            None => StepResult::error("The tool is not on offer any more."),
            Some(_) if self.live.cancel.is_cancelled() => {
                StepResult::error("Not called: the task was canceled.")
            }
            Some(offered) => match self.announce(planned, offered, sent).await {
                Ok(()) => {
                    let span = observe::execute_tool(&offered.label(), &planned.call.id);
                    let outcome = self.call(offered, planned).instrument(span.clone()).await;
                    if outcome.as_ref().map_or(true, |result| result.is_error) {
                        observe::failed(&span, "tool_error");
                    }
                    let broken =
                        matches!(outcome, Err(ToolError::Unknown(_))) && self.live.cancel.is_cancelled();
                    let result = told(outcome);
                    self.show_result(planned, &result);
                    if broken {
                        return (result, None);
                    }
                    result
                }
                Err(error) => {
                    tracing::error!(%error, "a tool call was not made: it cannot be written down");
                    StepResult::error("Not called: the engine's journal is not available.")
                }
            },
        };
        let kept = self.services.journal.tool_done(planned.step, &result);
        (result, Some(kept))
    }

    /// Writes down and shows that a call is about to be made.
    async fn announce(&self, planned: &Planned, offered: &Offered, sent: bool) -> Result<(), JournalError> {
        if !sent {
            self.services.journal.tool_sent(planned.step).await?;
        }
        if let Some(digest) = &offered.changed {
            self.accept_change(offered, digest).await;
        }
        self.live.emit(Event::ToolCall {
            call: planned.call.id.clone(),
            server: planned.server.clone(),
            tool: planned.tool.clone(),
            arguments: planned.call.arguments.clone(),
        });
        Ok(())
    }

    fn show_result(&self, planned: &Planned, result: &StepResult) {
        self.live.emit(Event::ToolResult {
            call: planned.call.id.clone(),
            server: planned.server.clone(),
            tool: planned.tool.clone(),
            text: result.text.clone(),
            is_error: result.is_error,
        });
    }

    /// A person approved a call of a tool whose description or schema had changed: that is what it is held to now.
    async fn accept_change(&self, offered: &Offered, digest: &str) {
        let (server, tool) = (offered.server.clone(), offered.tool.clone());
        if let Err(error) = self
            .services
            .journal
            .pin(server, tool, digest.to_owned(), true)
            .await
        {
            tracing::warn!(%error, "an approved tool description is not kept; it will be asked about again");
        }
        *self.revision.table.lock() = None;
    }

    async fn call(&self, offered: &Offered, planned: &Planned) -> Result<ToolResult, ToolError> {
        let cancel = self.live.cancel.clone();
        let deadline = self.wall_deadline();
        let gone = async {
            cancel.cancelled().await;
            tokio::time::sleep(CANCEL_GRACE).await;
        };
        let work = async {
            if offered.server == AGENT {
                self.call_agent(offered, planned).await
            } else {
                self.call_tool(planned).await
            }
        };
        tokio::select! {
            outcome = tokio::time::timeout_at(deadline + Duration::from_secs(1), work) => {
                outcome.unwrap_or_else(|_| Err(ToolError::Unknown("no answer in time".to_owned())))
            }
            () = gone => Err(ToolError::Unknown("the task was canceled".to_owned())),
        }
    }

    async fn call_tool(&self, planned: &Planned) -> Result<ToolResult, ToolError> {
        let request = ToolRequest {
            server: planned.server.clone(),
            tool: planned.tool.clone(),
            arguments: planned.call.arguments.clone(),
            idempotency_key: self.idempotency_key(planned),
            deadline: self.wall_deadline(),
            traceparent: propagate::traceparent(),
        };
        self.revision
            .toolbox
            .call(request, self.live.cancel.clone())
            .await
    }

    async fn call_agent(&self, offered: &Offered, planned: &Planned) -> Result<ToolResult, ToolError> {
        let depth = self.live.origin.depth + 1;
        if depth > MAX_DEPTH {
            return Err(ToolError::NotSent(format!(
                "agents may call agents at most {MAX_DEPTH} deep"
            )));
        }
        let agents = &self.revision.bundle.agent.agents;
        let isolate = agents
            .iter()
            .find(|a| a.name.to_string() == offered.tool)
            .is_some_and(|a| a.isolate);
        let message = planned
            .call
            .arguments
            .get("message")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let call = PeerCall {
            reference: offered.tool.clone(),
            message: message.to_owned(),
            idempotency_key: self.idempotency_key(planned),
            // The other engine keys sessions by user, so this one's name cannot meet a stranger's.
            context: (!isolate).then(|| format!("{}-{}", self.live.context, self.revision.bundle.name)),
            subject: self.live.subject.clone(),
            depth,
            deadline: self.wall_deadline(),
            traceparent: propagate::traceparent(),
        };
        let answer = self.services.peers.call(call, self.live.cancel.clone()).await?;
        Ok(ToolResult {
            parts: vec![ResultPart::Text { text: answer.text }],
            is_error: answer.is_error,
        })
    }

    /// The same for every repetition of one call, and for no other call.
    fn idempotency_key(&self, planned: &Planned) -> String {
        format!("{}-{}", self.live.uid, planned.step)
    }

    /// Writes the questions down and asks them.
    async fn pause(&mut self, batch: &[Planned]) -> Result<End, End> {
        let now = self.services.clock.now_ms();
        let mut waits_for = self.live.waits_for();
        let mut new = Vec::new();
        for planned in batch {
            if let What::Ask {
                question,
                asked: false,
            } = planned.what
            {
                if question == Question::Asked {
                    self.count_call(&label(&planned.server, &planned.tool), false);
                }
                let waiting = self.question(planned, question, now);
                new.push(NewApproval {
                    uid: waiting.approval.clone(),
                    step: planned.step,
                    question,
                    digest: waiting.digest.clone(),
                    expires_ms: waiting.expires_ms,
                });
                waits_for.push(waiting);
            }
        }
        let detail = sentence(&waits_for);
        self.counters.active_ms = self.active_ms();
        let (task, counters) = (self.live.task, self.counters.clone());
        self.services
            .journal
            .pause(task, new, detail.clone(), counters, now)
            .await?;
        let (state, reason) = (TaskState::InputRequired, String::new());
        self.live.leave_turn();
        self.live.set_status(Status {
            state,
            reason,
            detail,
            waits_for,
            at_ms: now,
        });
        Ok(End::Paused)
    }

    fn question(&self, planned: &Planned, question: Question, now_ms: i64) -> Waiting {
        let (server, tool, arguments) = (&planned.server, &planned.tool, &planned.call.arguments);
        Waiting {
            approval: new_id(self.services.clock.as_ref()),
            question,
            server: server.clone(),
            tool: tool.clone(),
            arguments: arguments.clone(),
            digest: digest(server, tool, arguments),
            expires_ms: now_ms.saturating_add(APPROVAL_LIFE_MS),
        }
    }
}

/// What an approval binds to: SHA-256 in hex over server, tool and arguments as JSON, in the order that the model wrote.
pub(crate) fn digest(server: &str, tool: &str, arguments: &Value) -> String {
    let text = serde_json::json!([server, tool, arguments]).to_string();
    hex::encode(Sha256::digest(text))
}

/// What a person is asked, in words.
pub(crate) fn sentence(waits_for: &[Waiting]) -> String {
    let one = |w: &Waiting| {
        let label = label(&w.server, &w.tool);
        match w.question {
            Question::Approve => format!("May {label} be called with {}?", w.arguments),
            Question::Asked => question(&w.arguments).to_owned(),
            Question::Unknown => format!(
                "The engine stopped after {label} was called with {}; whether that took effect is not known. \
                 Shall it be called again?",
                w.arguments
            ),
        }
    };
    waits_for.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn place(call: &ToolCall, offered: Option<&Offered>) -> (String, String) {
    match offered {
        Some(offered) => (offered.server.clone(), offered.tool.clone()),
        None => (String::new(), call.name.clone()),
    }
}

fn new_step(call: &ToolCall, offered: Option<&Offered>, what: &What) -> NewStep {
    let (server, tool) = place(call, offered);
    let (state, result) = match what {
        What::Done(result) => (StepState::Done, Some(result.clone())),
        What::Run { sent: true } => (StepState::Sent, None),
        _ => (StepState::Planned, None),
    };
    NewStep {
        server,
        tool,
        state,
        result,
    }
}

/// A call's outcome as the model reads it.
fn told(outcome: Result<ToolResult, ToolError>) -> StepResult {
    let result = match outcome {
        Ok(result) => result,
        Err(error) => return StepResult::error(capped(format!("The call failed: {error}"))),
    };
    let mut lines = Vec::new();
    let mut parts = Vec::new();
    for part in result.parts {
        match part {
            ResultPart::Text { text } => lines.push(text),
            ResultPart::Link { uri, name } => lines.push(format!("[link to {name}: {uri}]")),
            ResultPart::Blob { media_type, data } => {
                lines.push(format!(
                    "[{media_type}, {} bytes, kept with the task]",
                    data.len() / 4 * 3
                ));
                parts.push(ResultPart::Blob { media_type, data });
            }
        }
    }
    StepResult {
        text: capped(lines.join("\n")),
        is_error: result.is_error,
        parts,
    }
}

/// At most [`RESULT_TEXT`] bytes, cut between characters; the cut is said.
fn capped(mut text: String) -> String {
    let whole = text.len();
    if whole > RESULT_TEXT {
        text.truncate(text.floor_char_boundary(RESULT_TEXT));
        let shown = text.len();
        text.push_str(&format!("\n[cut: {shown} of {whole} bytes shown]"));
    }
    text
}
