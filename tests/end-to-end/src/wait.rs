//! Waiting for states, never for a time.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// Asks `state` again and again until it answers `Some`, at most for `within`.
///
/// # Errors
/// With `what` was waited for, when the time is over.
pub async fn until<T, F>(what: &str, within: Duration, mut state: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(found) = state().await {
            return Ok(found);
        }
        anyhow::ensure!(started.elapsed() < within, "waited {within:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
