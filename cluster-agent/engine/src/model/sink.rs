//! Where the decoders put what they read: it orders the events, reads written calls, and counts where the provider
//! does not.

use super::{
    ModelEvent, StopReason, ToolCall, ToolSchema, Usage, repair,
    text_calls::TextCalls,
    thoughts::{Split, Thoughts},
};
use std::{collections::VecDeque, sync::Arc};

/// Bytes taken for a token where a count must be estimated.
const BYTES_PER_TOKEN: u64 = 4;

/// Most calls in one answer, and most that an answer may have beside the text that is shown, in bytes.
const MAX_CALLS: usize = 128;
const MAX_UNSHOWN: usize = 4 * 1024 * 1024;

/// A call whose arguments are still arriving.
#[derive(Debug, Default)]
pub(super) struct OpenCall {
    /// The number that the provider gave it.
    pub(super) index: Option<usize>,
    /// Empty: the provider gave none.
    pub(super) id: String,
    pub(super) name: String,
    /// JSON as text.
    pub(super) arguments: String,
}

/// The events of one answer.
#[derive(Debug)]
pub(super) struct Sink {
    events: VecDeque<ModelEvent>,
    thoughts: Thoughts,
    written: Option<TextCalls>,
    /// In the provider's order.
    pub(super) open_calls: Vec<OpenCall>,
    pub(super) usage: Option<Usage>,
    pub(super) stop: Option<StopReason>,
    pub(super) provider_state: Option<serde_json::Value>,
    request_bytes: usize,
    answer_bytes: usize,
    /// Thoughts and what comes with them.
    thought_bytes: usize,
}

impl Sink {
    /// `request_bytes`: the size of what was sent, for an estimate.
    pub(super) fn new(offered: &Arc<[ToolSchema]>, request_bytes: usize) -> Self {
        Self {
            events: VecDeque::new(),
            thoughts: Thoughts::default(),
            written: (!offered.is_empty()).then(|| TextCalls::new(Arc::clone(offered))),
            open_calls: Vec::new(),
            usage: None,
            stop: None,
            provider_state: None,
            request_bytes,
            answer_bytes: 0,
            thought_bytes: 0,
        }
    }

    pub(super) fn next(&mut self) -> Option<ModelEvent> {
        self.events.pop_front()
    }

    pub(super) fn text(&mut self, text: String) {
        self.answer_bytes += text.len();
        let split = self.thoughts.push(text);
        self.split(split);
    }

    pub(super) fn reasoning(&mut self, text: String) {
        self.answer_bytes += text.len();
        self.thought(text.len());
        self.think(text);
    }

    /// So much came that belongs to thoughts.
    pub(super) fn thought(&mut self, bytes: usize) {
        self.thought_bytes = self.thought_bytes.saturating_add(bytes);
    }

    /// Why an answer is beyond what one may be: a server that talks without end must not fill the engine's memory.
    pub(super) fn excess(&self) -> Option<String> {
        if self.open_calls.len() > MAX_CALLS {
            return Some(format!("the answer has more than {MAX_CALLS} tool calls"));
        }
        let of_call = |call: &OpenCall| call.id.len() + call.name.len() + call.arguments.len();
        let calls: usize = self.open_calls.iter().map(of_call).sum();
        (calls + self.thought_bytes > MAX_UNSHOWN)
            .then(|| format!("the thoughts and tool calls of the answer have more than {MAX_UNSHOWN} bytes"))
    }

    fn split(&mut self, split: Split) {
        self.think(split.thought);
        let shown = match &mut self.written {
            Some(reader) => reader.push(split.text),
            None => split.text,
        };
        self.show(shown);
    }

    fn think(&mut self, text: String) {
        if !text.is_empty() {
            self.events.push_back(ModelEvent::Reasoning(text));
        }
    }

    /// Whether the provider has said why it stopped.
    pub(super) fn stopped(&self) -> bool {
        self.stop.is_some()
    }

    /// What is held back is shown after all: the answer broke off.
    pub(super) fn broke_off(&mut self) {
        let held = self.thoughts.finish();
        self.split(held);
        if let Some(reader) = self.written.take() {
            let (shown, _) = reader.finish();
            self.show(shown);
        }
    }

    /// The answer is complete: the calls, the usage and the reason follow.
    pub(super) fn finish(&mut self) {
        let stop = self.stop.unwrap_or(StopReason::End);
        let mut calls = Vec::new();
        let held = self.thoughts.finish();
        self.split(held);
        if let Some(reader) = self.written.take() {
            let (shown, written) = reader.finish();
            self.show(shown);
            calls = written;
        }
        for call in std::mem::take(&mut self.open_calls) {
            self.answer_bytes += call.arguments.len() + call.name.len();
            calls.push(read_call(call, stop == StopReason::Length));
        }
        let stop = match stop {
            StopReason::End | StopReason::ToolCalls if calls.is_empty() => StopReason::End,
            StopReason::End => StopReason::ToolCalls,
            other => other,
        };
        self.events.extend(calls.into_iter().map(ModelEvent::ToolCall));
        self.events
            .extend(self.provider_state.take().map(ModelEvent::ProviderState));
        let usage = self.usage.unwrap_or_else(|| self.estimate());
        self.events.push_back(ModelEvent::Usage(usage));
        self.events.push_back(ModelEvent::Stop(stop));
    }

    fn estimate(&self) -> Usage {
        let tokens = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX).div_ceil(BYTES_PER_TOKEN);
        Usage {
            input: tokens(self.request_bytes),
            output: tokens(self.answer_bytes),
            cached: 0,
            estimated: true,
        }
    }

    fn show(&mut self, text: String) {
        if !text.is_empty() {
            self.events.push_back(ModelEvent::Text(text));
        }
    }
}

fn read_call(call: OpenCall, cut: bool) -> ToolCall {
    let (arguments, problem) = match repair::arguments(&call.arguments, cut) {
        Ok(arguments) => (arguments, None),
        Err(problem) => (call.arguments.into(), Some(problem)),
    };
    ToolCall {
        id: if call.id.is_empty() {
            new_call_id()
        } else {
            call.id
        },
        name: call.name,
        arguments,
        problem,
    }
}

/// An id for a call whose provider gave none. Unique in the conversation, as some providers want it.
pub(super) fn new_call_id() -> String {
    format!("call_{:016x}", rand::random::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_tools() -> Arc<[ToolSchema]> {
        Arc::new([])
    }

    #[test]
    fn an_answer_beyond_all_measure_is_noticed() {
        let mut sink = Sink::new(&no_tools(), 0);
        assert_eq!(sink.excess(), None);
        sink.reasoning("x".repeat(MAX_UNSHOWN));
        assert_eq!(sink.excess(), None);
        sink.open_calls.push(OpenCall {
            arguments: "x".to_owned(),
            ..OpenCall::default()
        });
        assert!(sink.excess().is_some_and(|why| why.contains("bytes")));
        let mut sink = Sink::new(&no_tools(), 0);
        sink.open_calls.resize_with(MAX_CALLS + 1, OpenCall::default);
        assert!(sink.excess().is_some_and(|why| why.contains("tool calls")));
    }

    #[test]
    fn usage_is_estimated_and_says_so() {
        let mut sink = Sink::new(&no_tools(), 400);
        sink.text("12345678".to_owned());
        sink.finish();
        let events: Vec<ModelEvent> = std::iter::from_fn(|| sink.next()).collect();
        let usage = Usage {
            input: 100,
            output: 2,
            cached: 0,
            estimated: true,
        };
        assert_eq!(
            events,
            [
                ModelEvent::Text("12345678".to_owned()),
                ModelEvent::Usage(usage),
                ModelEvent::Stop(StopReason::End)
            ]
        );
    }

    #[test]
    fn a_call_makes_the_reason_a_call_and_a_limit_stays_a_limit() {
        for (said, expected) in [
            (StopReason::End, StopReason::ToolCalls),
            (StopReason::ToolCalls, StopReason::ToolCalls),
            (StopReason::Length, StopReason::Length),
        ] {
            let mut sink = Sink::new(&no_tools(), 0);
            sink.open_calls.push(OpenCall {
                arguments: "{\"a\": 1".to_owned(),
                ..OpenCall::default()
            });
            sink.stop = Some(said);
            sink.finish();
            let events: Vec<ModelEvent> = std::iter::from_fn(|| sink.next()).collect();
            let ModelEvent::ToolCall(call) = &events[0] else {
                panic!("{events:?}")
            };
            assert_eq!(call.problem.is_some(), said == StopReason::Length);
            assert!(call.id.starts_with("call_"));
            assert_eq!(events.last(), Some(&ModelEvent::Stop(expected)));
        }
    }
}
