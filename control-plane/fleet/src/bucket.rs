//! Token buckets: admission of handshakes, snapshots, enrolments and frames.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Fills at `rate` a second up to `burst`.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: f64,
    burst: f64,
    level: Mutex<(f64, Instant)>,
}

impl Bucket {
    pub(crate) fn new(rate: f64, burst: f64) -> Self {
        Self {
            rate,
            burst,
            level: Mutex::new((burst, Instant::now())),
        }
    }

    /// Nothing was taken for so long that it has forgotten everything.
    pub(crate) fn is_full(&self) -> bool {
        let level = self.level.lock();
        let passed = Instant::now().saturating_duration_since(level.1).as_secs_f64();
        level.0 + passed * self.rate >= self.burst
    }

    /// Takes one, or says how long until there is one.
    pub(crate) fn take(&self) -> Result<(), Duration> {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> Result<(), Duration> {
        let mut level = self.level.lock();
        let passed = now.saturating_duration_since(level.1).as_secs_f64();
        let filled = (level.0 + passed * self.rate).min(self.burst);
        let (rest, answer) = if filled >= 1.0 {
            (filled - 1.0, Ok(()))
        } else {
            (filled, Err(Duration::from_secs_f64((1.0 - filled) / self.rate)))
        };
        *level = (rest, now);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bucket_gives_its_burst_then_its_rate() {
        let bucket = Bucket::new(2.0, 3.0);
        let now = Instant::now();
        assert_eq!((0..3).filter(|_| bucket.take_at(now).is_ok()).count(), 3);
        let wait = bucket.take_at(now).unwrap_err();
        assert!((0.49..=0.51).contains(&wait.as_secs_f64()), "{wait:?}");
        assert!(bucket.take_at(now + wait + Duration::from_millis(1)).is_ok());
    }
}
