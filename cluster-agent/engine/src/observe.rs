//! Spans and metrics of the engine, named by the GenAI semantic conventions of OpenTelemetry. No content, no secrets:
//! names, counts, times and codes only.

use crate::{journal::Counters, model::Model};
use roadstead_telemetry::{Counter, Histogram, Label, meter};
use std::{sync::OnceLock, time::Duration};
use tracing::{Span, field::Empty, info_span};

/// The span of a turn.
pub(crate) fn invoke_agent(agent: &str, uid: &str, task: &str, session: &str) -> Span {
    info_span!(
        "invoke_agent",
        otel.name = format!("invoke_agent {agent}"),
        otel.kind = "server",
        gen_ai.operation.name = "invoke_agent",
        gen_ai.agent.name = agent,
        gen_ai.agent.id = uid,
        gen_ai.conversation.id = session,
        task.id = task,
        error.type = Empty,
    )
}

/// The span of one try of a model call.
pub(crate) fn chat(model: &dyn Model) -> Span {
    info_span!(
        "chat",
        otel.name = format!("chat {}", model.name()),
        otel.kind = "client",
        otel.status_code = Empty,
        gen_ai.operation.name = "chat",
        gen_ai.provider.name = model.provider(),
        gen_ai.request.model = model.name(),
        gen_ai.usage.input_tokens = Empty,
        gen_ai.usage.output_tokens = Empty,
        error.type = Empty,
    )
}

/// The span of a tool call.
pub(crate) fn execute_tool(tool: &str, call: &str) -> Span {
    info_span!(
        "execute_tool",
        otel.name = format!("execute_tool {tool}"),
        otel.kind = "client",
        otel.status_code = Empty,
        gen_ai.operation.name = "execute_tool",
        gen_ai.tool.name = tool,
        gen_ai.tool.call.id = call,
        error.type = Empty,
    )
}

/// Marks a span as failed.
pub(crate) fn failed(span: &Span, kind: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", kind);
}

struct Instruments {
    tasks: Counter<u64>,
    turns: Counter<u64>,
    tokens: Counter<u64>,
    cost: Counter<u64>,
    tool_calls: Counter<u64>,
    added: Histogram<f64>,
}

/// Of the time that an engine adds, in seconds: it aims at half a millisecond.
const ADDED: [f64; 12] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5,
];

fn instruments() -> &'static Instruments {
    static INSTRUMENTS: OnceLock<Instruments> = OnceLock::new();
    INSTRUMENTS.get_or_init(|| {
        let meter = meter("roadstead_engine");
        Instruments {
            tasks: meter
                .u64_counter("roadstead.engine.tasks")
                .with_description("Tasks that ended.")
                .build(),
            tokens: meter
                .u64_counter("roadstead.engine.tokens")
                .with_unit("{token}")
                .build(),
            turns: meter
                .u64_counter("roadstead.engine.turns")
                .with_description("Model calls that tasks made; a call that was tried several times is one.")
                .build(),
            cost: meter
                .u64_counter("roadstead.engine.cost")
                .with_description("Cost of model calls by the prices of their documents, in millionths of the currency.")
                .build(),
            tool_calls: meter.u64_counter("roadstead.engine.tool_calls").build(),
            added: meter
                .f64_histogram("roadstead.engine.added")
                .with_unit("s")
                .with_description(
                    "Time of a task from its start, or from a person's answer, to its end or the next question, less \
                     what it waited for models and tools: what the engine itself adds.",
                )
                .with_boundaries(ADDED.to_vec())
                .build(),
        }
    })
}

/// Counts what the engine itself added to the time of a task that ended or waits for a person.
pub(crate) fn added(time: Duration) {
    instruments().added.record(time.as_secs_f64(), &[]);
}

/// Counts a task that ended.
pub(crate) fn task_ended(outcome: &'static str, used: &Counters) {
    let instruments = instruments();
    instruments.tasks.add(1, &[Label::new("outcome", outcome)]);
    instruments
        .tokens
        .add(used.input_tokens, &[Label::new("gen_ai.token.type", "input")]);
    instruments
        .tokens
        .add(used.output_tokens, &[Label::new("gen_ai.token.type", "output")]);
    instruments.turns.add(u64::from(used.model_calls), &[]);
    if used.cost_micros > 0 {
        let currency = Label::new("currency", used.currency.clone());
        instruments.cost.add(used.cost_micros, &[currency]);
    }
    for (tool, calls) in &used.tools {
        let good = u64::from(calls.calls.saturating_sub(calls.errors));
        let label = |error: bool| [Label::new("tool", tool.clone()), Label::new("error", error)];
        instruments.tool_calls.add(good, &label(false));
        instruments.tool_calls.add(u64::from(calls.errors), &label(true));
    }
}
