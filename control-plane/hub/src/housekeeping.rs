//! What the hub does by itself, beside its ports: a task that ends with it.

use anyhow::Context as _;
use roadstead_domain::{OsRandom, Random as _};
use roadstead_service::housekeeping;
use roadstead_store::Store;
use std::time::Duration;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

/// Between two writings of what was only counted: last uses of tokens, repeated denials.
const NOTE: Duration = Duration::from_secs(30);
/// Between two removals of what has expired.
const PURGE: Duration = Duration::from_secs(60 * 60);
/// The first removal comes soon after the start: a hub that is restarted every day must remove, too.
const FIRST_PURGE: Duration = Duration::from_secs(5 * 60);

/// Starts the task. A failure is logged and tried again at the next turn.
pub(crate) fn spawn(store: Store, stop: CancellationToken) -> JoinHandle<anyhow::Result<()>> {
    tokio::spawn(async move {
        let (mut note, mut purge) = (
            Instant::now() + spread(NOTE),
            Instant::now() + spread(FIRST_PURGE),
        );
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(note) => {
                    done("counts were not written", housekeeping::note(&store).await.map(|()| 0));
                    note = Instant::now() + spread(NOTE);
                }
                () = tokio::time::sleep_until(purge) => {
                    done("what has expired was not removed", housekeeping::purge(&store).await);
                    purge = Instant::now() + spread(PURGE);
                }
            }
        }
        housekeeping::note(&store).await.context("the last counts")
    })
}

fn done(what: &str, outcome: Result<u64, roadstead_domain::Error>) {
    match outcome {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "what has expired was removed"),
        Err(error) => tracing::warn!(%error, detail = ?std::error::Error::source(&error), "{what}"),
    }
}

/// From nine tenths of `period` to all of it: replicas that start together do not work together.
fn spread(period: Duration) -> Duration {
    let mut byte = [0];
    OsRandom.fill(&mut byte);
    period.mul_f64(0.9 + f64::from(byte[0]) / 2_560.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_spread_and_never_longer_than_promised() {
        for _ in 0..1_000 {
            let spread = spread(PURGE);
            assert!(spread <= PURGE && spread >= PURGE.mul_f64(0.9), "{spread:?}");
        }
    }
}
