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
    /// Through when turns are promised to those that were refused.
    promised: Mutex<Instant>,
}

/// As short as timers are.
const LEAST: Duration = Duration::from_millis(1);
/// Nobody is told to come back later than after this.
const LONGEST: Duration = Duration::from_secs(120);

impl Bucket {
    pub(crate) fn new(rate: f64, burst: f64) -> Self {
        Self {
            rate,
            burst,
            level: Mutex::new((burst, Instant::now())),
            promised: Mutex::new(Instant::now()),
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

    /// As [`Self::take`]; who is refused is told its own turn, after those of all who were refused before. A fleet that is
    /// told the same moment comes back as one.
    pub(crate) fn take_or_queue(&self) -> Result<(), Duration> {
        let now = Instant::now();
        let Err(wait) = self.take_at(now) else {
            return Ok(());
        };
        let mut promised = self.promised.lock();
        let turn = (*promised).max(now + wait);
        let until = turn.saturating_duration_since(now);
        if until < LONGEST {
            *promised = turn + Duration::from_secs_f64(1.0 / self.rate);
        }
        // A cluster agent waits between once and twice what it is told.
        Err((until / 2).max(wait))
    }

    fn take_at(&self, now: Instant) -> Result<(), Duration> {
        let mut level = self.level.lock();
        let passed = now.saturating_duration_since(level.1).as_secs_f64();
        let filled = (level.0 + passed * self.rate).min(self.burst);
        let (rest, answer) = if filled >= 1.0 {
            (filled - 1.0, Ok(()))
        } else {
            let wait = Duration::from_secs_f64((1.0 - filled) / self.rate);
            // What rounding leaves may be no time at all, in which a clock that waits for everybody never goes on.
            (filled, Err(wait.max(LEAST)))
        };
        *level = (rest, now);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// How often a fleet asks until each had its turn, and how long that takes; as many as `rate` a second are taken.
    async fn comes_in(
        fleet: u64,
        rate: f64,
        ask: impl Fn(&Bucket) -> Result<(), Duration>,
    ) -> (u64, Duration) {
        let bucket = Bucket::new(rate, rate);
        let (began, mut asked, mut chance) = (Instant::now(), 0, 7u64);
        let mut due: BTreeMap<(Instant, u64), ()> = (0..fleet).map(|n| ((began, n), ())).collect();
        while let Some(((at, n), ())) = due.pop_first() {
            tokio::time::sleep_until(at).await;
            asked += 1;
            if let Err(wait) = ask(&bucket) {
                chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let more = (chance >> 33) as f64 / f64::from(1u32 << 31);
                let wait = wait.max(Duration::from_millis(100));
                due.insert((Instant::now() + wait.mul_f64(1.0 + more), n), ());
            }
        }
        (asked, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_fleet_that_is_refused_comes_back_one_by_one() {
        let (asked, took) = comes_in(500, 10.0, Bucket::take_or_queue).await;
        assert!(asked < 1_500, "each asks at most three times on average: {asked}");
        // Without a queue it could not be faster than 49 s.
        assert!(took < Duration::from_secs(75), "{took:?}");
        let (alike, _) = comes_in(500, 10.0, Bucket::take).await;
        assert!(alike > 10 * asked, "told the same moment they ask {alike} times");
    }

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
