//! How soon something is ready again after kill -9.
//!
//! The aim is 5 s. A busy machine makes a return late, and as late as it makes any start; what the product waits for by
//! itself comes on top, in every return. So the median counts, which a moment of load does not move, and the machine is
//! allowed what an undisturbed start of the same processes took in the same run. A wait of 10 s after each crash fails
//! all the same: it would need a first start of more than 5 s to hide behind.

use anyhow::ensure;
use std::time::Duration;

/// From kill -9 to ready.
pub const AIM: Duration = Duration::from_secs(5);

/// Returns of one kind of process.
#[derive(Debug)]
pub struct Returns {
    what: String,
    first: Duration,
    took: Vec<Duration>,
}

impl Returns {
    /// `first`: what the first start took, before anything was killed.
    #[must_use]
    pub fn new(what: String, first: Duration) -> Self {
        Self {
            what,
            first,
            took: Vec::new(),
        }
    }

    pub fn add(&mut self, took: Duration) {
        self.took.push(took);
    }

    /// Whether they were soon enough.
    ///
    /// # Errors
    /// When they were not, or when there were none.
    pub fn hold(mut self) -> anyhow::Result<()> {
        self.took.sort_unstable();
        let (what, first) = (&self.what, self.first);
        let (median, slowest) = (self.took.get(self.took.len() / 2), self.took.last());
        let (Some(median), Some(slowest)) = (median, slowest) else {
            anyhow::bail!("{what} was not killed at all");
        };
        let times = self.took.len();
        let said = format!(
            "{what}: killed {times} times, back after {median:?} (median; slowest {slowest:?}; first start {first:?})"
        );
        eprintln!("{said}");
        ensure!(
            *median <= AIM + first,
            "{said}: expected {AIM:?}, and what a start takes"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(first: u64, took: &[u64]) -> anyhow::Result<()> {
        let mut returns = Returns::new("hub".to_owned(), Duration::from_secs(first));
        took.iter()
            .for_each(|took| returns.add(Duration::from_secs(*took)));
        returns.hold()
    }

    #[test]
    fn a_wait_after_each_crash_is_found_and_a_busy_moment_is_not() {
        assert!(of(2, &[1, 2, 30, 2, 1]).is_ok());
        assert!(of(2, &[12, 11, 12, 10, 13]).is_err());
        assert!(of(2, &[]).is_err());
    }
}
