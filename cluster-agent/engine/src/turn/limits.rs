//! What a task may use up: checked before each step, named when it ends one (S83).
//!
//! A task that another agent gave has two measures, its own document's and what the caller's limits left; the smaller
//! one counts. What the agents that it calls use up is its own spending.

use crate::{
    journal::{Counters, Spent},
    model::{Model, Usage},
};
use roadstead_contract::{
    control::Budget,
    documents::{Currency, Limits, Money, Prices},
};
use std::time::Duration;

/// Longest answer text of a task, in bytes: an answer is read by people and models, not a file transfer.
pub(crate) const MAX_OUTPUT: usize = 1024 * 1024;

/// A limit that is reached: its code and a sentence for people.
pub(crate) type Reached = (&'static str, String);

/// The caps of one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caps {
    pub(crate) steps: u32,
    pub(crate) tokens: u64,
    pub(crate) tool_calls: u32,
    pub(crate) wall: Duration,
    costs: Vec<Money>,
    /// What ends the sentence of a limit.
    whose: &'static str,
}

/// What agents that are called now may share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) agents: u32,
    /// Calls of tools and agents together.
    pub(crate) calls: u32,
}

impl Caps {
    pub(crate) fn of(limits: &Limits, handed: Option<&Budget>) -> Self {
        let mut caps = Self {
            steps: limits.steps,
            tokens: limits.tokens.0,
            tool_calls: limits.tool_calls,
            wall: limits.wall_time.get(),
            costs: limits.cost.clone().into_iter().collect(),
            whose: "",
        };
        if let Some(handed) = handed {
            caps.steps = caps.steps.min(handed.steps);
            caps.tokens = caps.tokens.min(handed.tokens);
            caps.tool_calls = caps.tool_calls.min(handed.tool_calls);
            caps.wall = caps.wall.min(Duration::from_millis(handed.wall_time_ms));
            caps.costs.extend(handed.costs.iter().cloned());
            caps.whose = " (the limits of the agent that gave the task count, too)";
        }
        caps
    }

    /// A cost limit that `measured` does not measure: a task that another agent gave may bring one (S83: what cannot be
    /// held is not begun). The document's own was checked with its models' prices when it was loaded.
    pub(crate) fn unmeasured(&self, measured: impl Fn(&Currency) -> bool) -> Option<Reached> {
        let cap = self.costs.iter().find(|cap| !measured(&cap.currency))?;
        let text = format!(
            "the task may cost {cap}, and this agent has a model without prices in {}, so that cannot be held{}",
            cap.currency.as_str(),
            self.whose
        );
        Some(("limit.cost", text))
    }

    /// Whether another model call may be made.
    pub(crate) fn before_call(&self, used: &Counters, active_ms: u64) -> Result<(), Reached> {
        let reached = |code, text: String| Err((code, text + self.whose));
        if u128::from(active_ms) >= self.wall.as_millis() {
            return Err(self.wall_time_over());
        }
        if steps(used) >= self.steps {
            let text = format!("the task made its {} model calls", self.steps);
            return reached("limit.steps", text);
        }
        if self.tokens_used_up(used) {
            let text = format!("the task used {} of its {} tokens", tokens(used), self.tokens);
            return reached("limit.tokens", text);
        }
        match self.costs.iter().find(|cap| cost(used, cap) >= cap.micros) {
            Some(cap) => reached("limit.cost", format!("the task used up its {cap}")),
            None => Ok(()),
        }
    }

    pub(crate) fn wall_time_over(&self) -> Reached {
        let text = format!("the task worked for its {:?}{}", self.wall, self.whose);
        ("limit.wallTime", text)
    }

    /// Whether `more` tool calls may be made.
    pub(crate) fn before_tools(&self, used: &Counters, more: usize) -> Result<(), Reached> {
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let made = tool_calls(used);
        if made.saturating_add(more) > self.tool_calls {
            let text = format!(
                "the model asked for {more} more tool calls; the task has made {made} of its {}{}",
                self.tool_calls, self.whose
            );
            return Err(("limit.toolCalls", text));
        }
        Ok(())
    }

    /// Tokens that are left for an answer; `None` where that is beyond what any model gives.
    pub(crate) fn output_left(&self, used: &Counters) -> Option<u32> {
        let left = self.tokens.saturating_sub(tokens(used));
        u32::try_from(left).ok().filter(|left| *left < 100_000)
    }

    /// Whether the tokens are used up.
    pub(crate) fn tokens_used_up(&self, used: &Counters) -> bool {
        tokens(used) >= self.tokens
    }

    /// An agent's share of what is left: agents that are called at once cannot spend the same twice, and one step stays
    /// with the caller, who has to say what came of it.
    ///
    /// # Errors
    /// Nothing is left that an agent could begin with.
    pub(crate) fn share(
        &self,
        used: &Counters,
        batch: Batch,
        wall_left: Duration,
    ) -> Result<Budget, &'static str> {
        let among = batch.agents.max(1);
        let costs = self.costs.iter().map(|cap| Money {
            micros: cap.micros.saturating_sub(cost(used, cap)) / u64::from(among),
            currency: cap.currency.clone(),
        });
        let tools = self.tool_calls.saturating_sub(tool_calls(used));
        let share = Budget {
            steps: self.steps.saturating_sub(steps(used)).saturating_sub(1) / among,
            tokens: self.tokens.saturating_sub(tokens(used)) / u64::from(among),
            tool_calls: tools.saturating_sub(batch.calls) / among,
            wall_time_ms: u64::try_from(wall_left.as_millis()).unwrap_or(u64::MAX),
            costs: costs.collect(),
        };
        let empty = share.steps == 0
            || share.tokens == 0
            || share.wall_time_ms == 0
            || share.costs.iter().any(|cost| cost.micros == 0);
        if empty {
            return Err("the task's limits leave nothing for another agent");
        }
        Ok(share)
    }
}

fn steps(used: &Counters) -> u32 {
    used.model_calls.saturating_add(used.handed.model_calls)
}

fn tool_calls(used: &Counters) -> u32 {
    used.tool_calls.saturating_add(used.handed.tool_calls)
}

fn tokens(used: &Counters) -> u64 {
    used.tokens().saturating_add(used.handed.tokens)
}

/// What was spent in the currency of a cap.
fn cost(used: &Counters, cap: &Money) -> u64 {
    let currency = cap.currency.as_str();
    let own = if used.currency == currency {
        used.cost_micros
    } else {
        0
    };
    own.saturating_add(used.handed.costs.get(currency).copied().unwrap_or(0))
}

/// All that a budget allows: what is taken for spent where nobody says what was.
pub(crate) fn all_of(budget: &Budget) -> Spent {
    let cost = |cost: &Money| (cost.currency.as_str().to_owned(), cost.micros);
    Spent {
        model_calls: budget.steps,
        tool_calls: budget.tool_calls,
        tokens: budget.tokens,
        costs: budget.costs.iter().map(cost).collect(),
    }
}

/// Counts a call's tokens and money.
pub(crate) fn count(used: &mut Counters, model: &dyn Model, usage: Usage) {
    used.add_usage(usage);
    if let Some(prices) = model.prices() {
        used.cost_micros = used.cost_micros.saturating_add(price(prices, usage));
        used.currency = prices.currency.as_str().to_owned();
    }
}

/// Millionths of the currency: prices are per million tokens, so token × price is already in them.
fn price(prices: &Prices, usage: Usage) -> u64 {
    let input = prices.input_per_million.micros;
    let cached = prices.cached_input_per_million.map_or(input, |p| p.micros);
    let fresh = usage.input.saturating_sub(usage.cached);
    let total = u128::from(fresh) * u128::from(input)
        + u128::from(usage.cached) * u128::from(cached)
        + u128::from(usage.output) * u128::from(prices.output_per_million.micros);
    u64::try_from(total.div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Budget {
        Budget {
            steps: 4,
            tokens: 1000,
            tool_calls: 9,
            wall_time_ms: 5000,
            costs: vec!["0.10 EUR".parse().expect("money")],
        }
    }

    #[test]
    fn s83_a_budget_only_narrows() {
        let limits = Limits {
            cost: Some("1 USD".parse().expect("money")),
            ..Limits::default()
        };
        let alone = Caps::of(&limits, None);
        let caps = Caps::of(&limits, Some(&budget()));
        assert_eq!((caps.steps, caps.tokens, caps.tool_calls), (4, 1000, 9));
        assert_eq!(caps.wall, Duration::from_secs(5));
        assert_eq!(caps.costs.len(), 2);
        let wide = Budget {
            steps: u32::MAX,
            tokens: u64::MAX,
            tool_calls: u32::MAX,
            wall_time_ms: u64::MAX,
            costs: Vec::new(),
        };
        let wide = Caps::of(&limits, Some(&wide));
        assert_eq!(
            (wide.steps, wide.tokens, wide.tool_calls, wide.wall),
            (alone.steps, alone.tokens, alone.tool_calls, alone.wall)
        );
    }

    #[test]
    fn s83_agents_that_are_called_at_once_share_what_is_left() {
        let caps = Caps::of(&Limits::default(), Some(&budget()));
        let mut used = Counters {
            model_calls: 1,
            input_tokens: 100,
            ..Counters::default()
        };
        let two = Batch { agents: 2, calls: 3 };
        let share = caps.share(&used, two, Duration::from_secs(1)).expect("something");
        assert_eq!((share.steps, share.tokens, share.tool_calls), (1, 450, 3));
        assert_eq!((share.wall_time_ms, share.costs[0].micros), (1000, 50_000));
        used.handed.add(&all_of(&share));
        used.handed.add(&all_of(&share));
        assert!(caps.share(&used, two, Duration::from_secs(1)).is_err());
        assert_eq!(caps.before_call(&used, 0).map_err(|r| r.0), Err("limit.tokens"));
    }
}
