//! The turn loop: from a message to an answer, a question to a person, or a limit.
//!
//! It is a function of the journal and of what models and tools say. [`Turn::fresh`] begins with a message that was
//! just written down, [`Turn::resume`] with whatever the journal holds: after a restart, and after a person answered.
//! Each effect is written down before it happens and completed after it, so a kill at any point leaves a story that
//! `resume` can go on with: a model is asked again, a tool call that was not sent is sent, and one that was sent and
//! has no result is never silently repeated.

mod ask;
mod batch;
mod calls;
mod history;
pub(crate) mod limits;
mod output;
mod pause;
mod results;
pub(crate) mod table;
#[cfg(test)]
mod tests;

use crate::{
    journal::{Counters, Decision, Entry, Finish, JournalError, Kept, ModelDone, OpenTask, TaskState},
    model::{ChatMessage, ChatRequest},
    observe,
    revision::Revision,
    services::Services,
    tasks::{Event, Live, Status},
};
use ask::Reply;
use batch::Planned;
pub(crate) use history::user as user_message;
use limits::Caps;
pub(crate) use pause::{code, sentence};
use roadstead_contract::{
    documents::{Currency, Questions},
    run::{Outcome, RunRecord},
};
use roadstead_telemetry::propagate;
use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};
use table::ToolTable;
pub(crate) use table::{PERSON, question};
use tokio::time::Instant;

/// How long tool servers may take to say what they offer, before the model is asked without them.
const LIST_WAIT: Duration = Duration::from_secs(10);

/// One turn of one task.
pub(crate) struct Turn {
    services: Services,
    revision: Arc<Revision>,
    live: Arc<Live>,
    caps: Caps,
    counters: Counters,
    request: Arc<ChatRequest>,
    table: Arc<ToolTable>,
    /// A model call that is written down and not yet made.
    step: Option<i64>,
    /// Tool calls that the journal left open.
    batch: Option<(Entry, Vec<Planned>)>,
    /// What the model is told before its next call.
    note: Option<Entry>,
    /// Writes that were queued and not yet confirmed.
    unconfirmed: Vec<Kept<()>>,
    /// Bytes of results that are kept for the model to read on.
    kept: AtomicU64,
    /// The conversation so far has results that were cut.
    cut: bool,
    /// Index of the model that is asked; grows when one fails.
    model: usize,
    /// Answers that did not fit the output schema.
    misfits: u32,
    began: Instant,
    /// For models and tools.
    waited: Duration,
    active_before_ms: u64,
    /// Tools whose effect nobody knows, for the story of a cancelled task.
    unknown_effects: Vec<String>,
}

/// Why a turn is over.
#[derive(Debug)]
enum End {
    Completed(Box<Last>),
    /// A code and a sentence for people; what was shown so far is kept.
    Failed {
        code: &'static str,
        detail: String,
        last: Option<Box<Last>>,
    },
    Canceled,
    /// A person is asked.
    Paused,
    /// The journal does not take writes.
    Lost(JournalError),
}

/// The model call that a task ends with.
#[derive(Debug)]
struct Last {
    entry: Entry,
    step: i64,
}

impl From<JournalError> for End {
    fn from(error: JournalError) -> Self {
        Self::Lost(error)
    }
}

impl End {
    fn failed(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Failed {
            code,
            detail: detail.into(),
            last: None,
        }
    }
}

impl From<limits::Reached> for End {
    fn from((code, detail): limits::Reached) -> Self {
        Self::failed(code, detail)
    }
}

impl Turn {
    /// The turn of a task that [`crate::journal::Journal::begin`] just wrote. `step` is its first model call.
    pub(crate) fn fresh(services: Services, revision: Arc<Revision>, live: Arc<Live>, step: i64) -> Self {
        let caps = Caps::of(&revision.bundle.agent.limits, live.origin.budget.as_ref());
        Self {
            services,
            revision,
            live,
            caps,
            counters: Counters::default(),
            request: Arc::new(ChatRequest::default()),
            table: Arc::new(ToolTable::empty()),
            step: Some(step),
            batch: None,
            note: None,
            unconfirmed: Vec::new(),
            kept: AtomicU64::new(0),
            cut: false,
            model: 0,
            misfits: 0,
            began: Instant::now(),
            waited: Duration::ZERO,
            active_before_ms: 0,
            unknown_effects: Vec::new(),
        }
    }

    /// The turn of a task as the journal has it.
    pub(crate) fn resume(
        services: Services,
        revision: Arc<Revision>,
        live: Arc<Live>,
        open: &OpenTask,
    ) -> Self {
        let mut turn = Self::fresh(services, revision, live, 0);
        turn.step = open.open_model;
        turn.counters = open.task.counters.clone();
        turn.active_before_ms = turn.counters.active_ms;
        turn
    }

    /// Runs to the end of the turn and writes that end down. `open` is what a resumed turn goes on with; `earlier`
    /// says that a fresh one's session has a past; `first` is a fresh one's own message.
    pub(crate) async fn run(self, start: Start) {
        let (bundle, live) = (&self.revision.bundle, &self.live);
        let span = observe::invoke_agent(bundle.name.as_str(), &bundle.uid, &live.uid, &live.context);
        let remote = live
            .origin
            .traceparent
            .as_deref()
            .map(propagate::from_traceparent)
            .unwrap_or_default();
        propagate::within(span, remote, self.run_in_span(start)).await;
    }

    async fn run_in_span(mut self, start: Start) {
        let end = match self.prepare(start).await {
            Ok(()) => self.drive().await,
            Err(end) => Err(end),
        };
        let end = match end {
            Ok(never) => match never {},
            Err(end) => end,
        };
        self.end(end).await;
    }

    async fn prepare(&mut self, start: Start) -> Result<(), End> {
        let messages = match start {
            Start::First(message) => vec![message],
            Start::Later => self.load(None).await?,
            Start::Resumed(open) => self.load(Some(open)).await?,
        };
        let revision = &self.revision;
        let agent = &revision.bundle.agent;
        let asks = agent.questions == Questions::Ask;
        if asks || !(agent.tools.is_empty() && agent.agents.is_empty()) {
            let listing = revision.toolbox.list(Instant::now() + LIST_WAIT);
            let asked = Instant::now();
            let listing = tokio::select! {
                () = self.live.cancel.cancelled() => None,
                listing = listing => Some(listing),
            };
            self.waited += asked.elapsed();
            let listing = listing.ok_or(End::Canceled)?;
            self.table = ToolTable::of(revision, listing, &self.services.journal).await;
            // Another agent's task: there is no person at the other end.
            if asks && self.live.origin.depth > 0 {
                self.table = Arc::new(self.table.without_questions());
            }
        }
        if self.cut {
            self.offer_results();
        }
        let revision = &self.revision;
        let mut system = revision.system.clone();
        if let Some(missing) = self.table.missing() {
            tracing::warn!(task = self.live.uid, missing, "a turn begins without tools");
            system.push_str("\n\n");
            system.push_str(&missing);
        }
        self.request = Arc::new(ChatRequest {
            system,
            messages,
            tools: Arc::clone(&self.table.schemas),
            output_schema: revision.output.as_ref().map(|o| Arc::clone(&o.schema)),
            max_output_tokens: None,
            traceparent: None,
        });
        Ok(())
    }

    async fn drive(&mut self) -> Result<std::convert::Infallible, End> {
        let models = &self.revision.models;
        let measured = |currency: &Currency| {
            let prices = models.iter().map(|m| m.prices());
            prices
                .into_iter()
                .all(|p| p.is_some_and(|p| p.currency == *currency))
        };
        if let Some(reached) = self.caps.unmeasured(measured) {
            return Err(reached.into());
        }
        if let Some((entry, batch)) = self.batch.take() {
            self.settle(&entry, batch).await?;
        }
        loop {
            self.caps.before_call(&self.counters, self.active_ms())?;
            let step = self.next_step().await?;
            let reply = self.ask().await?;
            if reply.calls.is_empty() {
                self.conclude(reply, step).await?;
                continue;
            }
            let (entry, batch) = self.plan(reply, step).await?;
            self.settle(&entry, batch).await?;
        }
    }

    /// The journal's row of the next model call: written before the call is made.
    async fn next_step(&mut self) -> Result<i64, End> {
        self.confirm().await?;
        self.counters.model_calls += 1;
        if let Some(step) = self.step.take() {
            return Ok(step);
        }
        let (task, session) = (self.live.task, self.live.session);
        self.counters.active_ms = self.active_ms();
        let note = self.note.take();
        let written = self
            .services
            .journal
            .next_model(task, session, note, self.counters.clone());
        Ok(written.await?)
    }

    /// An answer without tool calls: the end, unless it does not fit the output schema.
    async fn conclude(&mut self, reply: Reply, step: i64) -> Result<(), End> {
        let Some(misfit) = output::check(&self.revision, &reply.text) else {
            let json = self.structured();
            if json {
                self.live.emit(Event::Json {
                    artifact: self.artifact(),
                    text: reply.text.clone(),
                });
            }
            let last = Box::new(Last {
                entry: reply.into_entry(json),
                step,
            });
            return Err(End::Completed(last));
        };
        self.show_held(&reply.text);
        self.misfits += 1;
        let last = Last {
            entry: reply.into_entry(false),
            step,
        };
        if self.misfits > output::REPAIRS {
            let detail = format!("the answer does not fit the agent's output schema: {misfit}");
            return Err(End::Failed {
                code: "output.schema",
                detail,
                last: Some(Box::new(last)),
            });
        }
        let note = output::note(&misfit);
        self.push(&last.entry);
        self.request_mut().messages.push(history::note(&note));
        let done = ModelDone {
            task: self.live.task,
            session: self.live.session,
            step,
            entry: last.entry,
            calls: Vec::new(),
            counters: self.counters.clone(),
        };
        self.services.journal.model_done(done).await?;
        self.live.end_text(true);
        self.note = Some(Entry::Note { text: note });
        Ok(())
    }

    /// Waits for queued writes; a step whose result is not kept must not be built upon.
    async fn confirm(&mut self) -> Result<(), End> {
        for write in self.unconfirmed.drain(..) {
            write.await?;
        }
        Ok(())
    }

    fn request_mut(&mut self) -> &mut ChatRequest {
        Arc::make_mut(&mut self.request)
    }

    fn push(&mut self, entry: &Entry) {
        let message = history::assistant(entry);
        self.request_mut().messages.extend(message);
    }

    /// Whether answers are held to a schema: then they go out whole, once they fit, and not as they come.
    fn structured(&self) -> bool {
        self.revision.output.is_some()
    }

    /// Shows what was held back and turned out to be no answer.
    fn show_held(&self, text: &str) {
        if self.structured() && !text.is_empty() {
            self.live.emit(Event::Text {
                artifact: self.artifact(),
                text: text.to_owned(),
                first: true,
            });
        }
    }

    /// The name under which the text of the running model call goes out.
    fn artifact(&self) -> String {
        format!("answer-{}", self.counters.model_calls)
    }

    fn active_ms(&self) -> u64 {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.active_before_ms.saturating_add(now)
    }

    /// When the task's wall time is over.
    fn wall_deadline(&self) -> Instant {
        let wall = self.caps.wall;
        self.began + wall.saturating_sub(Duration::from_millis(self.active_before_ms))
    }
}

/// Where a turn begins.
#[derive(Debug)]
pub(crate) enum Start {
    /// The first message of a session.
    First(ChatMessage),
    /// A message in a session that has a past.
    Later,
    /// What the journal holds of an open task.
    Resumed(Box<OpenTask>),
}

// The end of a turn.
impl Turn {
    async fn end(mut self, end: End) {
        let lost = match self.write_end(end).await {
            Ok(()) => return,
            Err(error) => error,
        };
        // The caller is told at once; the journal as soon as it takes writes again.
        tracing::error!(task = self.live.uid, error = %lost, "the end of a task is not kept yet");
        let detail = "the engine cannot keep its journal; try again later".to_owned();
        let finish = self.finish(TaskState::Failed, "journal.unavailable", &detail, None);
        self.publish(TaskState::Failed, "journal.unavailable", detail);
        let mut wait = Duration::from_millis(100);
        while self.services.journal.finish(finish.clone()).await.is_err() {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(5));
        }
        self.tell_outbox();
    }

    async fn write_end(&mut self, end: End) -> Result<(), JournalError> {
        if !matches!(end, End::Lost(_))
            && let Err(End::Lost(error)) = self.confirm().await
        {
            return Err(error);
        }
        let (state, code, detail, last) = match end {
            End::Paused => {
                self.tell_added();
                return Ok(());
            }
            End::Lost(error) => return Err(error),
            End::Completed(last) => (TaskState::Completed, "", String::new(), Some(last)),
            End::Failed { code, detail, last } => (TaskState::Failed, code, detail, last),
            End::Canceled => (TaskState::Canceled, "canceled", self.cancel_story(), None),
        };
        let finish = self.finish(state, code, &detail, last);
        self.services.journal.finish(finish).await?;
        self.live.end_text(false);
        self.publish(state, code, detail);
        self.tell_added();
        self.tell_outbox();
        Ok(())
    }

    fn tell_added(&self) {
        observe::added(self.began.elapsed().saturating_sub(self.waited));
    }

    fn cancel_story(&self) -> String {
        match self.unknown_effects.as_slice() {
            [] => "canceled".to_owned(),
            tools => format!(
                "canceled; these calls had been sent and may have taken effect: {}",
                tools.join(", ")
            ),
        }
    }

    fn publish(&self, state: TaskState, code: &str, detail: String) {
        if !code.is_empty() {
            tracing::Span::current().record("error.type", code);
        }
        let outcome = outcome(state);
        let used = &self.counters;
        observe::task_ended(outcome, used);
        tracing::info!(
            task = self.live.uid,
            outcome,
            reason = code,
            model_calls = used.model_calls,
            tool_calls = used.tool_calls,
            tokens = used.tokens(),
            active_ms = used.active_ms,
            "a task ended"
        );
        let status = Status {
            state,
            reason: code.to_owned(),
            detail,
            waits_for: Vec::new(),
            at_ms: self.services.clock.now_ms(),
        };
        self.live.finish(status, self.counters.clone());
    }

    fn tell_outbox(&self) {
        if let Some(runs) = &self.services.runs {
            runs.notify_one();
        }
    }

    fn finish(&mut self, state: TaskState, code: &str, detail: &str, last: Option<Box<Last>>) -> Finish {
        self.counters.active_ms = self.active_ms();
        // Without a last entry, what was shown of an answer that broke off is the last thing said.
        let (entry, step) = match last {
            Some(last) => (Some(last.entry), Some(last.step)),
            None => (self.live.said(), None),
        };
        let now_ms = self.services.clock.now_ms();
        let record = record(&self.live, &self.revision, &self.counters, (state, code), now_ms);
        Finish {
            task: self.live.task,
            session: self.live.session,
            state,
            reason: code.to_owned(),
            detail: detail.to_owned(),
            entry,
            step,
            counters: self.counters.clone(),
            record: self.services.runs.is_some().then_some(record),
            now_ms,
        }
    }
}

/// How the end of a task is counted.
pub(crate) fn outcome(state: TaskState) -> &'static str {
    match state {
        TaskState::Completed => "completed",
        TaskState::Canceled => "canceled",
        _ => "failed",
    }
}

/// The run record of a task that ends now.
pub(crate) fn record(
    live: &Live,
    revision: &Revision,
    counters: &Counters,
    (state, code): (TaskState, &str),
    now_ms: i64,
) -> RunRecord {
    let origin = || {
        live.origin
            .traceparent
            .as_deref()
            .and_then(|t| t.split('-').nth(1))
            .map(str::to_owned)
    };
    let trace_id = propagate::trace_id().or_else(origin);
    RunRecord {
        id: live.origin.run_id.clone(),
        sequence: 0,
        agent_uid: revision.bundle.uid.clone(),
        generation: revision.bundle.generation,
        task_id: live.uid.clone(),
        session_id: live.context.clone(),
        subject: live.subject.clone(),
        started_at_ms: live.view().created_ms,
        ended_at_ms: now_ms,
        outcome: match state {
            TaskState::Completed => Outcome::Completed,
            TaskState::Canceled => Outcome::Canceled,
            TaskState::Rejected => Outcome::Rejected,
            _ => Outcome::Failed,
        },
        reason: code.to_owned(),
        model: counters.model.clone(),
        model_calls: counters.model_calls,
        input_tokens: counters.input_tokens,
        output_tokens: counters.output_tokens,
        cached_input_tokens: counters.cached_tokens,
        estimated: counters.estimated,
        cost_micros: counters.cost_micros,
        currency: counters.currency.clone(),
        tools: counters.tools.clone(),
        trace_id: trace_id.unwrap_or_default(),
    }
}

/// What the model is told about a call that a person did not allow.
fn refused_by_person(decision: Decision, reason: &str) -> String {
    match (decision, reason) {
        (Decision::Expired, _) => "Nobody answered in time, so this call was not made.".to_owned(),
        (_, "") => "A person refused this call. It was not made.".to_owned(),
        (_, reason) => format!("A person refused this call, with the reason: {reason}. It was not made."),
    }
}
