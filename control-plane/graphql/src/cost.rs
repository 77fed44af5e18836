//! Points: what a request may ask for, counted before it runs, told in every answer (`extensions.cost`).
//!
//! A field costs one point and what is below it; a list multiplies what is below it by `first`, or, where it has no
//! pages, by [`SHORT_LIST`]. `requested` is that sum, `actual` the fields that the answer really has, `remaining` what
//! the limit leaves. The operations of a batch share one budget.

use async_graphql::{
    Response, ServerError, ValidationResult, Value,
    extensions::{Extension, ExtensionContext, ExtensionFactory, NextRequest, NextValidation},
    value,
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// How long a list without pages is taken to be.
pub(crate) const SHORT_LIST: usize = 5;

/// How long a page is taken to be: what the caller asked for, within the bounds that the resolver enforces.
pub(crate) fn page(first: Option<u32>) -> usize {
    first.map_or(25, |n| n.clamp(1, roadstead_domain::MAX_PAGE) as usize)
}

/// What the operations of one HTTP request may still spend. In the request's data.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    limit: usize,
    left: Arc<AtomicUsize>,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        let left = Arc::new(AtomicUsize::new(limit));
        Self { limit, left }
    }

    /// Takes `points`, or nothing where fewer are left.
    fn take(&self, points: usize) -> Result<(), usize> {
        let take = |left: usize| left.checked_sub(points);
        self.left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
            .map(|_| ())
    }

    fn left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }
}

/// The extension that enforces and reports.
#[derive(Debug)]
pub(crate) struct Cost;

impl ExtensionFactory for Cost {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(CostOfRequest::default())
    }
}

#[derive(Default)]
struct CostOfRequest {
    requested: AtomicUsize,
    remaining: AtomicUsize,
}

#[async_trait::async_trait]
impl Extension for CostOfRequest {
    async fn request(&self, ctx: &ExtensionContext<'_>, next: NextRequest<'_>) -> Response {
        let response = next.run(ctx).await;
        let cost = value!({
            "requested": self.requested.load(Ordering::SeqCst),
            "actual": fields(&response.data),
            "remaining": self.remaining.load(Ordering::SeqCst),
        });
        response.extension("cost", cost)
    }

    async fn validation(
        &self,
        ctx: &ExtensionContext<'_>,
        next: NextValidation<'_>,
    ) -> Result<ValidationResult, Vec<ServerError>> {
        let result = next.run(ctx).await?;
        self.requested.store(result.complexity, Ordering::SeqCst);
        // Without a budget nothing runs: a way in that forgot it must not be free.
        let Some(budget) = ctx.data_opt::<Budget>() else {
            return Err(vec![ServerError::new("the request has no budget", None)]);
        };
        let taken = budget.take(result.complexity);
        self.remaining.store(budget.left(), Ordering::SeqCst);
        match taken {
            Ok(()) => Ok(result),
            Err(left) => {
                let limit = budget.limit;
                let message = format!(
                    "the request costs {} points and {left} of {limit} are left: ask for fewer fields or a \
                     smaller `first`",
                    result.complexity
                );
                let mut error = ServerError::new(message, None);
                error
                    .extensions
                    .get_or_insert_with(Default::default)
                    .set("code", Value::from("LIMIT"));
                Err(vec![error])
            }
        }
    }
}

/// How many fields an answer has.
fn fields(value: &Value) -> usize {
    match value {
        Value::Object(object) => object.values().map(|v| 1 + fields(v)).sum(),
        Value::List(list) => list.iter().map(fields).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_taken_to_be_as_long_as_it_may_be() {
        assert_eq!(page(None), 25);
        assert_eq!(page(Some(0)), 1);
        assert_eq!(page(Some(u32::MAX)), 100);
    }

    #[test]
    fn s20_a_batch_shares_its_budget() {
        let budget = Budget::new(10);
        let other = budget.clone();
        budget.take(6).unwrap();
        assert_eq!(other.take(5), Err(4));
        other.take(4).unwrap();
        assert_eq!(budget.left(), 0);
    }

    #[test]
    fn an_answer_counts_its_fields() {
        let answer = value!({"a": [{"b": 1}, {"b": 2, "c": {"d": 3}}], "e": 1});
        assert_eq!(fields(&answer), 6);
    }
}
