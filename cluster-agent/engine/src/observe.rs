//! Spans and metrics of the engine, named by the GenAI semantic conventions of OpenTelemetry. No content, no secrets:
//! names, counts, times and codes only.

use crate::{journal::Counters, model::Model};
use roadstead_telemetry::{Counter, Label, meter};
use std::sync::OnceLock;
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
    tokens: Counter<u64>,
    tool_calls: Counter<u64>,
}

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
            tool_calls: meter.u64_counter("roadstead.engine.tool_calls").build(),
        }
    })
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
    for (tool, calls) in &used.tools {
        let good = u64::from(calls.calls.saturating_sub(calls.errors));
        let label = |error: bool| [Label::new("tool", tool.clone()), Label::new("error", error)];
        instruments.tool_calls.add(good, &label(false));
        instruments.tool_calls.add(u64::from(calls.errors), &label(true));
    }
}
