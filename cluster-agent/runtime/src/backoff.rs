//! How long to wait before a process is started again.

use std::time::Duration;

/// Full jitter under a ceiling that doubles: 0.2 s, 0.4 s, … 30 s. A process that came up before it died waits at
/// most 2 s, so that one that is killed now and then is soon back; one that was up for a minute begins anew.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    pub const FIRST: Duration = Duration::from_millis(200);
    pub const LAST: Duration = Duration::from_secs(30);
    pub const LAST_AFTER_READY: Duration = Duration::from_secs(2);
    pub const STEADY: Duration = Duration::from_secs(60);

    /// The wait after a process died. `ready_for`: how long it was ready, `None` if it never was. `jitter`: 0 ≤ j < 1.
    pub fn after(&mut self, ready_for: Option<Duration>, jitter: f64) -> Duration {
        if ready_for.is_some_and(|up| up >= Self::STEADY) {
            self.failures = 0;
        }
        let doubled = Self::FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let last = if ready_for.is_some() {
            Self::LAST_AFTER_READY
        } else {
            Self::LAST
        };
        doubled.min(last).mul_f64(jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_ceiling() {
        let mut never = Backoff::default();
        let waits: Vec<u128> = (0..10).map(|_| never.after(None, 1.0).as_millis()).collect();
        assert_eq!(
            waits,
            [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]
        );
        let short = Some(Duration::from_secs(1));
        assert_eq!(never.after(short, 1.0), Backoff::LAST_AFTER_READY);
        assert_eq!(never.after(Some(Backoff::STEADY), 1.0), Backoff::FIRST);
        assert_eq!(never.after(None, 0.0), Duration::ZERO);
        for _ in 0..100 {
            never.after(None, 1.0);
        }
        assert_eq!(never.after(None, 0.5), Duration::from_secs(15));
    }
}
