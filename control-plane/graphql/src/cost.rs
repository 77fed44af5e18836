//! Points: what a request may ask for, counted before it runs, told in every answer (`extensions.cost`).
//!
//! A field costs one point and what is below it; a list multiplies what is below it by `first`, or, where it has no
//! pages, by [`SHORT_LIST`]. `requested` is that sum, `actual` the fields that the answer really has, `remaining` what
//! the limit leaves. The operations of a batch share one budget.
//!
//! Documents are of any length, so points do not bound them: what a request reads of them is taken from a budget of
//! bytes while it runs.

use async_graphql::{
    Response, ServerError, ValidationResult, Value,
    extensions::{Extension, ExtensionContext, ExtensionFactory, NextRequest, NextValidation},
    value,
};
use parking_lot::Mutex;
use roadstead_domain::Error;
use roadstead_http::Share;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
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
    /// What the operation that runs costs.
    requested: Arc<AtomicUsize>,
    bytes: usize,
    bytes_left: Arc<AtomicUsize>,
    /// Something was too large.
    spent: Arc<AtomicBool>,
    /// Of what all answers hold; given back with the last clone, so the answer takes one along.
    held: Option<Arc<Mutex<Share>>>,
}

/// What a document in an input pays for of its result: as many fields as a result has by itself.
const PAID: usize = 40;
/// What a value costs in memory beyond its text, about.
const VALUE_BYTES: usize = 48;

impl Budget {
    pub(crate) fn new(points: usize, bytes: usize) -> Self {
        Self {
            limit: points,
            left: Arc::new(AtomicUsize::new(points)),
            requested: Arc::default(),
            bytes,
            bytes_left: Arc::new(AtomicUsize::new(bytes)),
            spent: Arc::default(),
            held: None,
        }
    }

    /// What is read is taken from `share` as well, and held until the answer has been sent.
    pub(crate) fn holding(mut self, share: Share) -> Self {
        self.held = Some(Arc::new(Mutex::new(share)));
        self
    }

    /// Takes what a document's text and its values weigh.
    pub(crate) fn read(&self, document: &str) -> Result<(), Error> {
        let values = roadstead_http::json_tokens(document.as_bytes());
        let weight = document.len().saturating_add(values.saturating_mul(VALUE_BYTES));
        let take = |left: usize| left.checked_sub(weight);
        let taken = self
            .bytes_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        taken.map_err(|left| {
            self.spent.store(true, Ordering::SeqCst);
            self.too_large((self.bytes - left).saturating_add(weight))
        })?;
        match &self.held {
            Some(share) if share.lock().take(weight).is_err() => Err(Error::Limit {
                message: "too many large answers are on their way at once: try again in a moment".to_owned(),
                current: weight as u64,
                allowed: 0,
            }),
            _ => Ok(()),
        }
    }

    /// Before more is read: nothing is, once something was too much.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.spent.load(Ordering::SeqCst) {
            return Err(self.too_large(self.bytes.saturating_add(1)));
        }
        Ok(())
    }

    fn too_large(&self, wanted: usize) -> Error {
        Error::Limit {
            message: "the documents that the answer needs are too large together: ask for fewer, or for fewer at once"
                .to_owned(),
            current: wanted as u64,
            allowed: self.bytes as u64,
        }
    }

    /// Takes what the results of a set of documents cost beyond what one result was counted for.
    pub(crate) fn results(&self, documents: usize) -> Result<(), Error> {
        let each = self.requested.load(Ordering::SeqCst).saturating_sub(PAID);
        let points = documents.saturating_sub(1).saturating_mul(each);
        self.take(points).map_err(|left| Error::Limit {
            message: "the results of so many documents cost too much: ask for fewer of their fields"
                .to_owned(),
            current: (self.limit - left).saturating_add(points) as u64,
            allowed: self.limit as u64,
        })
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
        budget.requested.store(result.complexity, Ordering::SeqCst);
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
        let budget = Budget::new(10, 0);
        let other = budget.clone();
        budget.take(6).unwrap();
        assert_eq!(other.take(5), Err(4));
        other.take(4).unwrap();
        assert_eq!(budget.left(), 0);
    }

    #[test]
    fn s20_documents_are_paid_for_by_their_bytes_and_values() {
        let budget = Budget::new(10, 1_000);
        budget.read(&"x".repeat(600)).unwrap();
        let error = budget.clone().read(&"x".repeat(600)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the documents that the answer needs are too large together: ask for fewer, or \
                                       for fewer at once (now 1200, allowed 1000)"
        );
        // Short in text, long in memory.
        Budget::new(10, 1_000)
            .read("[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]")
            .unwrap_err();
    }

    #[test]
    fn s20_the_results_of_a_set_multiply_what_they_ask_for() {
        let budget = Budget::new(10_000, 0);
        budget.requested.store(PAID, Ordering::SeqCst);
        budget.results(1_000).unwrap();
        budget.requested.store(PAID + 200, Ordering::SeqCst);
        budget.results(1).unwrap();
        budget.results(50).unwrap();
        budget.results(1_000).unwrap_err();
    }

    #[test]
    fn an_answer_counts_its_fields() {
        let answer = value!({"a": [{"b": 1}, {"b": 2, "c": {"d": 3}}], "e": 1});
        assert_eq!(fields(&answer), 6);
    }
}
