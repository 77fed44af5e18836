//! When to dial again (protocol.md §3 rule 9).

use crate::{
    Random,
    clock::{between, up_to},
};
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
const LONGEST_REFUSED: Duration = Duration::from_secs(300);
/// A session that lived this long starts the count anew.
pub(crate) const SETTLED: Duration = Duration::from_secs(60);

/// How the last attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A live session was lost, or the hub cannot be reached.
    Lost,
    /// The hub answered, and refused.
    Refused,
    /// The hub said how long to wait.
    Throttled(Duration),
    /// The hub goes away and says within which time to come back.
    Drained(Duration),
}

/// Counts attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    attempt: u32,
    /// The hub's last word on how wide losses are to be spread.
    pub(crate) window: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self {
            attempt: 0,
            window: Duration::ZERO,
        }
    }

    /// The wait before the next attempt, after one whose session lived for `lived`.
    pub(crate) fn next(&mut self, ending: Ending, lived: Duration, random: &dyn Random) -> Duration {
        if lived >= SETTLED {
            self.attempt = 0;
        } else if !lived.is_zero() {
            // It worked: a hub that is restarted now and then is soon met again, and one that ends every session at
            // once is not met in a loop.
            self.attempt = self.attempt.min(1);
        }
        let attempt = self.attempt;
        self.attempt = attempt.saturating_add(1);
        let doubled = FIRST.saturating_mul(1 << attempt.min(16));
        match ending {
            Ending::Throttled(least) => between(random, least, least.saturating_mul(2)),
            Ending::Drained(within) => {
                self.attempt = 0;
                up_to(random, within)
            }
            // The first wait after a loss only spreads the fleet; the hub may be back already.
            Ending::Lost if attempt == 0 => up_to(random, self.window),
            Ending::Lost => up_to(random, doubled.min(LONGEST)),
            Ending::Refused => up_to(random, doubled.min(LONGEST_REFUSED)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Always the longest.
    #[derive(Debug)]
    struct Most;
    impl Random for Most {
        fn next(&self) -> u64 {
            u64::MAX
        }
    }

    /// A middle one, different at each call.
    #[derive(Debug)]
    struct Count(std::sync::atomic::AtomicU64);
    impl Random for Count {
        fn next(&self) -> u64 {
            self.0
                .fetch_add(0x9E37_79B9_7F4A_7C15, std::sync::atomic::Ordering::Relaxed)
        }
    }

    #[test]
    fn waits_stay_within_their_limits_and_start_anew_once_settled() {
        let random = Count(1.into());
        let mut backoff = Backoff::new();
        backoff.window = Duration::from_millis(100);
        assert!(backoff.next(Ending::Lost, Duration::ZERO, &random) <= Duration::from_millis(100));
        for attempt in 1..20u32 {
            let limit = FIRST.saturating_mul(1 << attempt.min(16)).min(LONGEST);
            assert!(backoff.next(Ending::Lost, Duration::ZERO, &random) <= limit);
        }
        assert!(backoff.next(Ending::Lost, SETTLED, &random) <= Duration::from_millis(100));
    }

    #[test]
    fn a_session_that_worked_is_soon_tried_again_however_often_it_is_lost() {
        let mut backoff = Backoff::new();
        for _ in 0..20 {
            for _ in 0..3 {
                backoff.next(Ending::Lost, Duration::ZERO, &Most);
            }
            let wait = backoff.next(Ending::Lost, Duration::from_millis(1), &Most);
            assert!(wait > Duration::ZERO && wait <= 2 * FIRST, "{wait:?}");
        }
    }

    #[test]
    fn a_throttle_is_honoured_and_a_refusal_waits_longer() {
        let mut backoff = Backoff::new();
        let least = Duration::from_secs(30);
        assert!(backoff.next(Ending::Throttled(least), Duration::ZERO, &Most) >= least);
        for _ in 0..20 {
            assert!(backoff.next(Ending::Refused, Duration::ZERO, &Most) <= LONGEST_REFUSED);
        }
    }
}
