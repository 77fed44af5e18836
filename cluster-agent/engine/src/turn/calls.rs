//! Making the calls of one batch: in parallel, each written down before it is sent, each with its result kept.

use super::{
    Turn,
    batch::{Planned, What},
    limits::{self, Batch},
    table::{AGENT, Offered, RESULTS, label},
};
use crate::{
    journal::{JournalError, Kept, Spent, StepResult, Whole},
    observe,
    peers::{MAX_DEPTH, PeerCall},
    tasks::{Event, given},
    tools::{ResultPart, ToolError, ToolRequest, ToolResult},
};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use roadstead_contract::{control::Budget, documents::Mode};
use roadstead_telemetry::propagate;
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;
use tracing::Instrument as _;

/// Calls of one answer that run at once.
pub(super) const PARALLEL: usize = 8;
/// What a tool server may be late after a cancel before it is no longer waited for.
const CANCEL_GRACE: Duration = Duration::from_millis(100);

/// What an agent that is called may use up, or why none can be called.
type Share = Result<Budget, &'static str>;

/// The place of a call in its batch, its result, and the write that keeps it.
type Made = (usize, (StepResult, Option<Kept<()>>));

impl Turn {
    pub(super) async fn make_calls(&mut self, batch: &mut [Planned]) {
        let share = self.share(batch);
        let mut running: Vec<BoxFuture<'_, Made>> = Vec::new();
        for (at, planned) in batch.iter().enumerate() {
            if let What::Run { sent, .. } = planned.what {
                let made = self.make(planned, sent, &share);
                running.push(made.map(move |made| (at, made)).boxed());
            }
        }
        let made: Vec<Made> = stream::iter(running).buffer_unordered(PARALLEL).collect().await;
        for (at, (result, kept)) in made {
            let planned = &mut batch[at];
            let label = label(&planned.server, &planned.tool);
            self.count_call(&label, result.is_error);
            self.counters.handed.add(&result.spent);
            match kept {
                Some(write) => self.unconfirmed.push(write),
                None => self.unknown_effects.push(label),
            }
            let cut = result.reference.is_some();
            planned.what = What::Done(result);
            if cut {
                self.offer_results();
            }
        }
    }

    /// What each agent that is called now may use up.
    fn share(&self, batch: &[Planned]) -> Share {
        let (mut agents, mut calls) = (0, 0);
        for planned in batch {
            if matches!(planned.what, What::Run { .. }) {
                calls += 1;
                agents += u32::from(planned.server == AGENT);
            }
        }
        let wall_left = self.wall_deadline().saturating_duration_since(Instant::now());
        self.caps
            .share(&self.counters, Batch { agents, calls }, wall_left)
    }

    pub(super) fn count_call(&mut self, label: &str, is_error: bool) {
        self.counters.tool_calls += 1;
        let count = self.counters.tools.entry(label.to_owned()).or_default();
        count.calls += 1;
        count.errors += u32::from(is_error);
    }

    /// Makes one call and queues its result for the journal. A call that a cancel broke off has no result to keep.
    async fn make(&self, planned: &Planned, sent: bool, share: &Share) -> (StepResult, Option<Kept<()>>) {
        let mut whole = None;
        let result = match self.table.find(&planned.server, &planned.tool) {
            None => StepResult::error("The tool is not on offer any more."),
            Some(_) if self.live.cancel.is_cancelled() => {
                StepResult::error("Not called: the task was canceled.")
            }
            Some(offered) => match self.announce(planned, offered, sent).await {
                Ok(Some(misfit)) => StepResult::error(misfit),
                Ok(None) => {
                    let (result, rest, unknown) = self.call_and_tell(offered, planned, share).await;
                    whole = rest;
                    self.show_result(planned, &result);
                    if unknown && self.live.cancel.is_cancelled() {
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
        let journal = &self.services.journal;
        let kept = match whole {
            Some(whole) => journal.tool_done_whole(planned.step, &result, whole),
            None => journal.tool_done(planned.step, &result),
        };
        (result, Some(kept))
    }

    /// Makes one call; its result, the whole text where that is longer, and whether nobody knows what became of it.
    async fn call_and_tell(
        &self,
        offered: &Offered,
        planned: &Planned,
        share: &Share,
    ) -> (StepResult, Option<Whole>, bool) {
        let span = observe::execute_tool(&offered.label(), &planned.call.id);
        let outcome = self.call(offered, planned, share).instrument(span.clone()).await;
        if outcome.as_ref().map_or(true, |(result, _)| result.is_error) {
            observe::failed(&span, "tool_error");
        }
        let unknown = matches!(outcome, Err(ToolError::Unknown(_)));
        let (outcome, mut spent) = match outcome {
            Ok((result, spent)) => (Ok(result), spent),
            Err(error) => (Err(error), Spent::default()),
        };
        if unknown && offered.server == AGENT {
            // It may go on to its limits, and nobody hears of that.
            spent = share.as_ref().map(limits::all_of).unwrap_or_default();
        }
        let given = self.give_files(planned, outcome.as_ref().ok());
        let (text, is_error, parts) = told(outcome, given);
        let (text, whole) = self.refer(text);
        let result = StepResult {
            text,
            is_error,
            parts,
            reference: whole.as_ref().map(|whole| whole.reference.clone()),
            given,
            spent,
        };
        (result, whole, unknown)
    }

    /// Gives a result's files on, where the agent answers with files; whether it did.
    fn give_files(&self, planned: &Planned, result: Option<&ToolResult>) -> bool {
        let agent = &self.revision.bundle.agent;
        let files = result
            .filter(|result| !result.is_error && agent.output.contains(&Mode::File))
            .map(|result| given(planned.step, &planned.tool, &result.parts))
            .unwrap_or_default();
        !files.is_empty() && self.live.give(files)
    }

    /// Writes down and shows that a call is about to be made. `Some` of why a changed tool is not called after all.
    async fn announce(
        &self,
        planned: &Planned,
        offered: &Offered,
        sent: bool,
    ) -> Result<Option<String>, JournalError> {
        if let Some(change) = &offered.changed {
            self.accept_change(offered, &change.digest).await;
            if let Err(misfit) = offered.check(&planned.call.arguments) {
                return Ok(Some(format!(
                    "Not called: a person approved the call and the tool's new description, and the arguments do not \
                     fit its JSON Schema: {misfit}."
                )));
            }
        }
        if !sent {
            self.services.journal.tool_sent(planned.step).await?;
        }
        self.live.emit(Event::ToolCall {
            call: planned.call.id.clone(),
            server: planned.server.clone(),
            tool: planned.tool.clone(),
            arguments: planned.call.arguments.clone(),
        });
        Ok(None)
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

    async fn call(
        &self,
        offered: &Offered,
        planned: &Planned,
        share: &Share,
    ) -> Result<(ToolResult, Spent), ToolError> {
        let cancel = self.live.cancel.clone();
        let deadline = self.wall_deadline();
        let gone = async {
            cancel.cancelled().await;
            tokio::time::sleep(CANCEL_GRACE).await;
        };
        let work = async {
            if offered.server == AGENT {
                return self.call_agent(offered, planned, share).await;
            }
            let result = if offered.server == RESULTS {
                self.read_result(&planned.call.arguments).await
            } else {
                self.call_tool(planned).await
            };
            result.map(|result| (result, Spent::default()))
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

    async fn call_agent(
        &self,
        offered: &Offered,
        planned: &Planned,
        share: &Share,
    ) -> Result<(ToolResult, Spent), ToolError> {
        let depth = self.live.origin.depth + 1;
        if depth > MAX_DEPTH {
            return Err(ToolError::NotSent(format!(
                "agents may call agents at most {MAX_DEPTH} deep"
            )));
        }
        let budget = share.clone().map_err(|why| ToolError::NotSent(why.to_owned()))?;
        let bundle = &self.revision.bundle;
        let isolate = bundle
            .agent
            .agents
            .iter()
            .find(|a| a.name.to_string() == offered.tool)
            .is_some_and(|a| a.isolate);
        let message = planned
            .call
            .arguments
            .get("message")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let mut chain = self.live.origin.chain.clone();
        chain.push(bundle.uid.clone());
        let call = PeerCall {
            reference: offered.tool.clone(),
            message: message.to_owned(),
            idempotency_key: self.idempotency_key(planned),
            // The other engine keys sessions by user, so this one's name cannot meet a stranger's.
            context: (!isolate).then(|| format!("{}-{}", self.live.context, bundle.name)),
            subject: self.live.subject.clone(),
            depth,
            chain,
            budget,
            deadline: self.wall_deadline(),
            traceparent: propagate::traceparent(),
        };
        let answer = self.services.peers.call(call, self.live.cancel.clone()).await?;
        let result = ToolResult {
            parts: vec![ResultPart::Text { text: answer.text }],
            is_error: answer.is_error,
        };
        Ok((result, answer.spent))
    }

    /// The same for every repetition of one call, and for no other call.
    fn idempotency_key(&self, planned: &Planned) -> String {
        format!("{}-{}", self.live.uid, planned.step)
    }
}

/// A call's outcome as the model reads it: text, whether it failed, and what the text only mentions.
fn told(outcome: Result<ToolResult, ToolError>, given: bool) -> (String, bool, Vec<ResultPart>) {
    let result = match outcome {
        Ok(result) => result,
        Err(error) => return (format!("The call failed: {error}"), true, Vec::new()),
    };
    let mut lines = Vec::new();
    let mut parts = Vec::new();
    for part in result.parts {
        match part {
            ResultPart::Text { text } => lines.push(text),
            ResultPart::Link { uri, name } => lines.push(format!("[link to {name}: {uri}]")),
            ResultPart::Blob { media_type, data } => {
                let whereto = if given {
                    "given to the user"
                } else {
                    "kept with the task"
                };
                lines.push(format!("[{media_type}, {} bytes, {whereto}]", data.len() / 4 * 3));
                parts.push(ResultPart::Blob { media_type, data });
            }
        }
    }
    (lines.join("\n"), result.is_error, parts)
}
