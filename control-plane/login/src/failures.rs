//! How many wrong tokens one source may present (S29).
//!
//! A token has 256 random bits, so nobody guesses one; what the limit saves is the database, and the log, from a
//! program that knocks all day. It bites on wrong tokens alone: many people share an address (a proxy, an office), and
//! one broken program among them must not lock out the others. So a source that is over its limit still has its tokens
//! looked up, a few at a time, and is told to wait when they are wrong.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

/// How many failures come at once, and how soon the next is allowed.
#[derive(Clone, Copy, Debug)]
pub struct FailureLimit {
    pub burst: u32,
    pub refill: Duration,
}

impl Default for FailureLimit {
    /// A person mistypes a few times; one more each 3 s is 28,800 a day for each source.
    fn default() -> Self {
        Self {
            burst: 20,
            refill: Duration::from_secs(3),
        }
    }
}

/// Sources, or tokens, remembered at once; beyond that the fullest buckets and the oldest tokens go.
const CAPACITY: usize = 16 * 1024;
/// How long a token that was good is looked up without waiting among the suspicious ones.
const TRUSTED_MS: i64 = 10 * 60 * 1000;

/// Token buckets of failures, by source (a generic cell rate: one number each).
#[derive(Debug)]
pub(crate) struct Failures {
    limit: FailureLimit,
    /// When the bucket of a source is full again, in milliseconds since the Unix epoch.
    full_at: HashMap<IpAddr, i64>,
    /// When a token (by hash) was last good.
    good: HashMap<[u8; 32], i64>,
}

impl Failures {
    pub(crate) fn new(limit: FailureLimit) -> Self {
        Self {
            limit,
            full_at: HashMap::new(),
            good: HashMap::new(),
        }
    }

    fn step(&self) -> i64 {
        i64::try_from(self.limit.refill.as_millis())
            .unwrap_or(i64::MAX)
            .max(1)
    }

    /// How long `source` must wait before another failure of its counts as its first; `None` within the limit.
    pub(crate) fn over(&self, source: IpAddr, now_ms: i64) -> Option<Duration> {
        let full_at = self.full_at.get(&network(source)).copied().unwrap_or(now_ms);
        let earliest = full_at - self.step() * (i64::from(self.limit.burst) - 1);
        (earliest > now_ms).then(|| Duration::from_millis(u64::try_from(earliest - now_ms).unwrap_or(0)))
    }

    /// Whether the token with this hash was good a short while ago.
    pub(crate) fn trusts(&self, token: &[u8; 32], now_ms: i64) -> bool {
        self.good.get(token).is_some_and(|at| now_ms - at < TRUSTED_MS)
    }

    /// Counts a failure of `source`, with the token of that hash where it was well-formed. However many there are, the
    /// source has its burst again after as many steps.
    pub(crate) fn failed(&mut self, source: IpAddr, token: Option<&[u8; 32]>, now_ms: i64) {
        if let Some(token) = token {
            self.good.remove(token);
        }
        if self.full_at.len() >= CAPACITY {
            self.full_at.retain(|_, full_at| *full_at > now_ms);
            if self.full_at.len() >= CAPACITY {
                // Under a flood from many sources the buckets start anew, rather than memory growing.
                self.full_at.clear();
            }
        }
        let step = self.step();
        let latest = now_ms + step * i64::from(self.limit.burst);
        let full_at = self.full_at.entry(network(source)).or_insert(now_ms);
        *full_at = ((*full_at).max(now_ms) + step).min(latest);
    }

    /// Remembers that the token with this hash was good.
    pub(crate) fn succeeded(&mut self, token: [u8; 32], now_ms: i64) {
        if self.good.len() >= CAPACITY {
            self.good.retain(|_, at| now_ms - *at < TRUSTED_MS);
            if self.good.len() >= CAPACITY {
                self.good.clear();
            }
        }
        self.good.insert(token, now_ms);
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 /64, which is what one customer gets (RFC 6177).
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn failures(burst: u32) -> Failures {
        Failures::new(FailureLimit {
            burst,
            refill: Duration::from_secs(3),
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn s29_a_source_waits_after_its_burst_and_the_others_do_not() {
        let mut failures = failures(3);
        let (bad, other) = (ip("192.0.2.1"), ip("192.0.2.2"));
        for _ in 0..3 {
            assert_eq!(failures.over(bad, NOW), None);
            failures.failed(bad, None, NOW);
        }
        assert_eq!(failures.over(bad, NOW), Some(Duration::from_secs(3)));
        assert_eq!(failures.over(other, NOW), None);
        assert_eq!(failures.over(bad, NOW + 3_000), None);
        failures.failed(bad, None, NOW + 3_000);
        assert!(failures.over(bad, NOW + 3_001).is_some());
        assert_eq!(failures.over(bad, NOW + 60_000), None);
    }

    #[test]
    fn however_many_failures_there_were_the_wait_is_short() {
        let mut failures = failures(3);
        let source = ip("192.0.2.1");
        for _ in 0..10_000 {
            failures.failed(source, None, NOW);
        }
        assert_eq!(failures.over(source, NOW), Some(Duration::from_secs(3)));
        assert_eq!(failures.over(source, NOW + 9_000), None);
    }

    #[test]
    fn a_token_that_was_good_is_trusted_for_a_while_and_not_after_its_first_failure() {
        let mut failures = failures(1);
        let source = ip("192.0.2.1");
        failures.succeeded([1; 32], NOW);
        failures.succeeded([2; 32], NOW);
        assert!(failures.trusts(&[1; 32], NOW + 1));
        assert!(!failures.trusts(&[1; 32], NOW + TRUSTED_MS));
        assert!(!failures.trusts(&[3; 32], NOW + 1));
        failures.failed(source, Some(&[1; 32]), NOW);
        assert!(!failures.trusts(&[1; 32], NOW + 1));
        assert!(failures.trusts(&[2; 32], NOW + 1));
    }

    #[test]
    fn one_customers_ipv6_addresses_are_one_source() {
        let mut failures = failures(1);
        failures.failed(ip("2001:db8:1:2::1"), None, NOW);
        assert!(failures.over(ip("2001:db8:1:2:ffff::9"), NOW).is_some());
        assert_eq!(failures.over(ip("2001:db8:1:3::1"), NOW), None);
        failures.failed(ip("::ffff:192.0.2.7"), None, NOW);
        assert!(failures.over(ip("192.0.2.7"), NOW).is_some());
        assert_eq!(failures.over(ip("192.0.2.8"), NOW), None);
    }

    #[test]
    fn memory_stays_bounded_under_a_flood_of_sources() {
        let mut failures = failures(1);
        for n in 0..40_000_u32 {
            failures.failed(IpAddr::from(n.to_be_bytes()), None, NOW);
            failures.succeeded([n as u8; 32], NOW);
        }
        assert!(failures.full_at.len() <= CAPACITY);
    }
}
