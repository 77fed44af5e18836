//! What a task may use up: checked before each step, named when it ends one (S83).

use crate::{
    journal::Counters,
    model::{Model, Usage},
};
use roadstead_contract::documents::{Limits, Prices};

/// Longest answer text of a task, in bytes: an answer is read by people and models, not a file transfer.
pub(crate) const MAX_OUTPUT: usize = 1024 * 1024;

/// A limit that is reached: its code and a sentence for people.
pub(crate) type Reached = (&'static str, String);

/// Whether another model call may be made.
pub(crate) fn before_call(limits: &Limits, used: &Counters, active_ms: u64) -> Result<(), Reached> {
    let wall = limits.wall_time.get();
    if u128::from(active_ms) >= wall.as_millis() {
        return Err((
            "limit.wallTime",
            format!("the task worked for its {}", limits.wall_time),
        ));
    }
    if used.model_calls >= limits.steps {
        return Err((
            "limit.steps",
            format!("the task made its {} model calls", limits.steps),
        ));
    }
    if used.tokens() >= limits.tokens.0 {
        return Err((
            "limit.tokens",
            format!("the task used {} of its {} tokens", used.tokens(), limits.tokens),
        ));
    }
    match &limits.cost {
        Some(cap) if used.currency == cap.currency.as_str() && used.cost_micros >= cap.micros => {
            Err(("limit.cost", format!("the task used up its {cap}")))
        }
        _ => Ok(()),
    }
}

/// Whether `more` tool calls may be made.
pub(crate) fn before_tools(limits: &Limits, used: &Counters, more: usize) -> Result<(), Reached> {
    let more = u32::try_from(more).unwrap_or(u32::MAX);
    if used.tool_calls.saturating_add(more) > limits.tool_calls {
        let text = format!(
            "the model asked for {more} more tool calls; the task has made {} of its {}",
            used.tool_calls, limits.tool_calls
        );
        return Err(("limit.toolCalls", text));
    }
    Ok(())
}

/// Tokens that are left for an answer; `None` where that is beyond what any model gives.
pub(crate) fn output_left(limits: &Limits, used: &Counters) -> Option<u32> {
    let left = limits.tokens.0.saturating_sub(used.tokens());
    u32::try_from(left).ok().filter(|left| *left < 100_000)
}

/// Counts a call's tokens and money.
pub(crate) fn count(used: &mut Counters, model: &dyn Model, usage: Usage) {
    used.add_usage(usage);
    if let Some(prices) = model.prices() {
        used.cost_micros = used.cost_micros.saturating_add(cost(prices, usage));
        used.currency = prices.currency.as_str().to_owned();
    }
}

/// Millionths of the currency: prices are per million tokens, so token × price is already in them.
fn cost(prices: &Prices, usage: Usage) -> u64 {
    let input = prices.input_per_million.micros;
    let cached = prices.cached_input_per_million.map_or(input, |p| p.micros);
    let fresh = usage.input.saturating_sub(usage.cached);
    let total = u128::from(fresh) * u128::from(input)
        + u128::from(usage.cached) * u128::from(cached)
        + u128::from(usage.output) * u128::from(prices.output_per_million.micros);
    u64::try_from(total.div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
