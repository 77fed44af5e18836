//! One model call: streamed out as it comes, tried again while nothing was shown, gone on with where it was cut.

use super::{End, Turn, limits};
use crate::{
    journal::Entry,
    model::{
        ChatMessage, ErrorClass, Model, ModelError, ModelEvent, ModelStream, Part, ProviderState, StopReason,
        ToolCall, Usage,
    },
    observe,
    tasks::Event,
};
use futures::StreamExt as _;
use roadstead_telemetry::propagate;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument as _, Span};

/// Tries that failed, in one task: a provider that is down costs so many requests and no more.
const RETRY_BUDGET: u32 = 8;
/// Tries of one model in one call, before the next model of the list is asked.
const TRIES: u32 = 3;
/// Back-off before the n-th new try: full jitter below 250 ms × 2ⁿ, at most 8 s.
const BACKOFF: Duration = Duration::from_millis(250);
const BACKOFF_CAP: Duration = Duration::from_secs(8);
/// A `Retry-After` beyond this is not waited for: the next model is asked, or the task ends and says so.
const RETRY_AFTER_CAP: Duration = Duration::from_secs(60);
/// Of one call, where the model's document says nothing.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// What a provider may be late at its own deadline before it is no longer waited for.
const GRACE: Duration = Duration::from_millis(250);

/// What the model said in one call.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) text: String,
    pub(super) calls: Vec<ToolCall>,
    state: Option<ProviderState>,
    usage: Option<Usage>,
    stop: Option<StopReason>,
    cuts: Vec<usize>,
    /// Bytes of `text` that earlier, cut streams gave.
    kept: usize,
}

impl Reply {
    /// `json`: it fits the output schema.
    pub(super) fn into_entry(self, json: bool) -> Entry {
        Entry::Assistant {
            text: self.text,
            tool_calls: self.calls,
            provider_state: self.state,
            cuts: self.cuts,
            json,
        }
    }
}

/// A try that failed.
enum Failure {
    End(End),
    Model(ModelError),
}

impl Turn {
    /// Asks the model until it has answered.
    pub(super) async fn ask(&mut self) -> Result<Reply, End> {
        let left = self.caps.output_left(&self.counters);
        self.request_mut().max_output_tokens = left;
        let mut reply = Reply::default();
        let mut tries = 0;
        self.skip_unable()?;
        loop {
            let model = Arc::clone(&self.revision.models[self.model]);
            let span = observe::chat(model.as_ref());
            let outcome = self
                .attempt(Arc::clone(&model), &mut reply)
                .instrument(span.clone())
                .await;
            self.count(model.as_ref(), &mut reply, &span);
            match outcome {
                Ok(()) => break,
                Err(Failure::End(end)) => return Err(end),
                Err(Failure::Model(error)) => {
                    tries += 1;
                    observe::failed(&span, class_name(error.class));
                    tracing::warn!(model = model.name(), class = ?error.class, tries, "a model call failed");
                    self.after_failure(error, &mut reply, &mut tries).await?;
                }
            }
        }
        if reply.kept > 0 {
            self.request_mut().messages.pop();
        }
        self.counters.model = self.revision.models[self.model].name().to_owned();
        self.judge(reply)
    }

    /// Sends the request once and takes in what comes.
    async fn attempt(&mut self, model: Arc<dyn Model>, reply: &mut Reply) -> Result<(), Failure> {
        let wall = self.wall_deadline();
        let deadline = wall.min(Instant::now() + model.timeout().unwrap_or(CALL_TIMEOUT));
        self.request_mut().traceparent = propagate::traceparent();
        let mut stream = model.stream(Arc::clone(&self.request), deadline);
        loop {
            let asked = Instant::now();
            let event = self.next_event(&mut stream, deadline).await;
            self.waited += asked.elapsed();
            match event? {
                Some(Ok(event)) => {
                    let done = matches!(event, ModelEvent::Stop(_));
                    self.take_in(model.provider(), reply, event)?;
                    if done {
                        return Ok(());
                    }
                }
                Some(Err(error)) if error.class == ErrorClass::Timeout && Instant::now() >= wall => {
                    return Err(Failure::End(self.wall_time_over()));
                }
                Some(Err(error)) => return Err(Failure::Model(error)),
                None => {
                    let message = "the stream ended before the answer was complete".to_owned();
                    return Err(Failure::Model(ModelError {
                        class: ErrorClass::Cut,
                        message,
                    }));
                }
            }
        }
    }

    async fn next_event(
        &self,
        stream: &mut ModelStream,
        deadline: Instant,
    ) -> Result<Option<Result<ModelEvent, ModelError>>, Failure> {
        tokio::select! {
            biased;
            () = self.live.cancel.cancelled() => Err(Failure::End(End::Canceled)),
            event = timeout_at(deadline + GRACE, stream.next()) => Ok(event.unwrap_or_else(|_| {
                let message = "the model did not answer in time".to_owned();
                Some(Err(ModelError { class: ErrorClass::Timeout, message }))
            })),
        }
    }

    fn take_in(&self, provider: &str, reply: &mut Reply, event: ModelEvent) -> Result<(), Failure> {
        match event {
            ModelEvent::Text(text) => {
                if reply.text.len() + text.len() > limits::MAX_OUTPUT {
                    let detail = format!("the answer is longer than {} bytes", limits::MAX_OUTPUT);
                    return Err(Failure::End(End::failed("limit.outputSize", detail)));
                }
                let first = reply.text.is_empty();
                reply.text.push_str(&text);
                if !self.structured() {
                    self.live.emit(Event::Text {
                        artifact: self.artifact(),
                        text,
                        first,
                    });
                }
            }
            ModelEvent::Reasoning(text) => self.live.emit(Event::Reasoning { text }),
            ModelEvent::ToolCall(call) => reply.calls.push(call),
            ModelEvent::ProviderState(value) => {
                reply.state = Some(ProviderState {
                    provider: provider.to_owned(),
                    value,
                });
            }
            ModelEvent::Usage(usage) => reply.usage = Some(usage),
            ModelEvent::Stop(reason) => reply.stop = Some(reason),
        }
        Ok(())
    }

    /// Counts what a try used up; a try that broke before its usage came is estimated where text was shown.
    fn count(&mut self, model: &dyn Model, reply: &mut Reply, span: &Span) {
        let said = reply.text.len() - reply.kept;
        let usage = reply
            .usage
            .take()
            .or_else(|| (said > 0).then(|| self.estimate(said)));
        if let Some(usage) = usage {
            span.record("gen_ai.usage.input_tokens", usage.input);
            span.record("gen_ai.usage.output_tokens", usage.output);
            limits::count(&mut self.counters, model, usage);
        }
    }

    fn estimate(&self, output_bytes: usize) -> Usage {
        let input = self.request.system.len() + self.request.messages.iter().map(text_len).sum::<usize>();
        let tokens = |bytes: usize| u64::try_from(bytes.div_ceil(4)).unwrap_or(u64::MAX);
        Usage {
            input: tokens(input),
            output: tokens(output_bytes),
            cached: 0,
            estimated: true,
        }
    }

    /// Decides what follows a failed try: go on, wait and try again, the next model, or the end.
    async fn after_failure(
        &mut self,
        error: ModelError,
        reply: &mut Reply,
        tries: &mut u32,
    ) -> Result<(), End> {
        self.counters.retries += 1;
        let spent = self.counters.retries > RETRY_BUDGET;
        reply.calls.clear();
        reply.state = None;
        let shown = reply.text.len() > reply.kept;
        if shown && !spent && *tries < TRIES {
            self.go_on(reply);
            return Ok(());
        }
        let wait = pause(error.class, *tries).filter(|_| *tries < TRIES && !spent);
        let wait = wait.filter(|wait| Instant::now() + *wait < self.wall_deadline());
        match wait {
            Some(wait) => self.sleep(wait).await,
            None if self.model + 1 < self.revision.models.len() && !spent => {
                // What was shown stays shown: the next model goes on where this one was cut.
                if shown {
                    self.go_on(reply);
                }
                self.model += 1;
                *tries = 0;
                self.skip_unable()
            }
            None => Err(self.gone(&error, reply)),
        }
    }

    /// The new call carries what was said.
    fn go_on(&mut self, reply: &mut Reply) {
        if reply.kept > 0 {
            self.request_mut().messages.pop();
        }
        reply.cuts.push(reply.text.len());
        reply.kept = reply.text.len();
        self.live.mark_cut();
        let said = ChatMessage::Assistant {
            text: reply.text.clone(),
            tool_calls: Vec::new(),
            provider_state: None,
        };
        self.request_mut().messages.push(said);
    }

    async fn sleep(&mut self, wait: Duration) -> Result<(), End> {
        self.waited += wait;
        tokio::select! {
            () = self.live.cancel.cancelled() => Err(End::Canceled),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }

    fn gone(&self, error: &ModelError, reply: &mut Reply) -> End {
        let code = class_name(error.class);
        tracing::warn!(code, kept = reply.text.len(), "no model answered");
        End::failed(code, error.message.clone())
    }

    fn wall_time_over(&self) -> End {
        self.caps.wall_time_over().into()
    }

    /// Passes over models that cannot take the files of this conversation.
    fn skip_unable(&mut self) -> Result<(), End> {
        let is_file = |part: &Part| matches!(part, Part::File { .. });
        let has_files =
            |m: &ChatMessage| matches!(m, ChatMessage::User { parts } if parts.iter().any(is_file));
        let files = self.request.messages.iter().any(has_files);
        while let Some(model) = self.revision.models.get(self.model) {
            if !files || model.takes_files() {
                return Ok(());
            }
            self.model += 1;
        }
        Err(End::failed(
            "model.files",
            "none of the agent's models that are left takes files",
        ))
    }

    /// Whether a complete answer can be built upon.
    fn judge(&self, reply: Reply) -> Result<Reply, End> {
        match reply.stop {
            Some(StopReason::Length) if reply.calls.is_empty() => {
                let limit = self.request.max_output_tokens.is_some();
                let (code, detail) = if limit && self.caps.tokens_used_up(&self.counters) {
                    (
                        "limit.tokens",
                        "the task's tokens were used up in the middle of the answer",
                    )
                } else {
                    (
                        "model.length",
                        "the model reached its longest output in the middle of the answer",
                    )
                };
                Err(End::failed(code, detail))
            }
            Some(StopReason::Filtered) => Err(End::failed(
                "model.filtered",
                "the provider's content filter stopped the answer",
            )),
            _ if reply.text.trim().is_empty() && reply.calls.is_empty() => Err(End::failed(
                "model.empty",
                "the model ended its answer without saying anything",
            )),
            _ => Ok(reply),
        }
    }
}

/// The code of a task that ends with such an error.
fn class_name(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Refused => "model.refused",
        ErrorClass::RateLimited { .. } => "model.rateLimited",
        ErrorClass::Timeout => "model.timeout",
        ErrorClass::Nonsense => "model.nonsense",
        ErrorClass::Cut => "model.cut",
        ErrorClass::Connect | ErrorClass::Status(_) => "model.unavailable",
    }
}

/// How long to wait before the same model is asked again; `None`: it is not.
fn pause(class: ErrorClass, tries: u32) -> Option<Duration> {
    let jitter = || {
        let ceiling = BACKOFF
            .saturating_mul(2u32.saturating_pow(tries.min(16)))
            .min(BACKOFF_CAP);
        ceiling.mul_f64(rand::random::<f64>())
    };
    match class {
        ErrorClass::RateLimited {
            retry_after: Some(after),
        } => {
            // The provider's word, and a little more so that a crowd does not return at once.
            (after <= RETRY_AFTER_CAP).then(|| after + jitter().min(Duration::from_secs(1)))
        }
        ErrorClass::Connect | ErrorClass::RateLimited { retry_after: None } | ErrorClass::Cut => {
            Some(jitter())
        }
        ErrorClass::Status(status) => (status == 408 || status >= 500).then(jitter),
        ErrorClass::Nonsense => (tries <= 1).then(jitter),
        ErrorClass::Timeout | ErrorClass::Refused => None,
    }
}

fn text_len(message: &ChatMessage) -> usize {
    match message {
        ChatMessage::User { parts } => parts
            .iter()
            .map(|part| match part {
                Part::Text { text } => text.len(),
                Part::File { data, .. } => data.len(),
            })
            .sum(),
        ChatMessage::Assistant { text, .. } | ChatMessage::Tool { text, .. } => text.len(),
    }
}
