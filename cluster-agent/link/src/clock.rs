//! Time of day and randomness as parameters. Order never comes from either: the clock dates certificates, randomness
//! spreads timers.

use rand::RngCore as _;
use std::{fmt::Debug, sync::Arc, time::Duration};

/// Tells the time of day.
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since the Unix epoch, UTC.
    fn now_ms(&self) -> i64;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the machine's clock"
    )]
    fn now_ms(&self) -> i64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// A source of randomness for timers and ids; keys never come from here.
pub trait Random: Send + Sync + Debug {
    fn next(&self) -> u64;
}

/// The operating system's, by way of the thread's generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsRandom;

impl Random for OsRandom {
    fn next(&self) -> u64 {
        rand::rng().next_u64()
    }
}

/// Uniform in `0..=limit`.
pub(crate) fn up_to(random: &dyn Random, limit: Duration) -> Duration {
    let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(match nanos.checked_add(1) {
        // The bias of the remainder is 2⁻³⁰ at the most for the minutes that are asked here.
        Some(span) => random.next() % span,
        None => random.next(),
    })
}

/// Uniform in `from..=to`.
pub(crate) fn between(random: &dyn Random, from: Duration, to: Duration) -> Duration {
    from + up_to(random, to.saturating_sub(from))
}

/// 128 random bits as hex.
pub(crate) fn random_id(random: &dyn Random) -> String {
    format!("{:016x}{:016x}", random.next(), random.next())
}

/// The clock as rustls asks for it.
#[derive(Debug)]
pub(crate) struct TlsTime(pub(crate) Arc<dyn Clock>);

impl rustls::time_provider::TimeProvider for TlsTime {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let ms = u64::try_from(self.0.now_ms()).ok()?;
        Some(rustls::pki_types::UnixTime::since_unix_epoch(
            Duration::from_millis(ms),
        ))
    }
}
