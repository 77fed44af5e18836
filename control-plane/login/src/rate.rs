//! How many requests one token, and one tenant, may send (S29, S39).
//!
//! A cap on runaway programs, far above what people and honest automation send; fairness below it is the store's, which
//! lets each tenant have only some of the connections.

use parking_lot::Mutex;
use roadstead_domain::{TenantId, TokenId};
use std::{collections::HashMap, hash::Hash, time::Duration};

/// Requests a second in the long run, and at once after a pause.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub per_second: u32,
    pub burst: u32,
}

/// For the requests of one token, and of all tokens of one tenant.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimit {
    pub token: Rate,
    pub tenant: Rate,
}

impl Default for RequestLimit {
    fn default() -> Self {
        Self {
            token: Rate {
                per_second: 1_000,
                burst: 2_000,
            },
            tenant: Rate {
                per_second: 2_000,
                burst: 4_000,
            },
        }
    }
}

/// Buckets remembered at once; beyond that the full ones are forgotten.
const CAPACITY: usize = 16 * 1024;

/// A generic cell rate for each key: when its bucket is full again, in microseconds.
#[derive(Debug)]
struct Buckets<K>(HashMap<K, i64>);

impl<K: Eq + Hash> Buckets<K> {
    fn take(&mut self, key: K, rate: Rate, now_us: i64) -> Result<(), Duration> {
        if self.0.len() >= CAPACITY {
            self.0.retain(|_, full_at| *full_at > now_us);
            if self.0.len() >= CAPACITY {
                self.0.clear();
            }
        }
        let step = 1_000_000 / i64::from(rate.per_second.max(1));
        let full_at = self.0.entry(key).or_insert(now_us);
        let next = (*full_at).max(now_us) + step;
        let most = now_us + step * i64::from(rate.burst);
        if next > most {
            return Err(Duration::from_micros(u64::try_from(next - most).unwrap_or(0)));
        }
        *full_at = next;
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct Requests {
    limit: RequestLimit,
    tokens: Mutex<Buckets<TokenId>>,
    tenants: Mutex<Buckets<TenantId>>,
}

impl Requests {
    pub(crate) fn new(limit: RequestLimit) -> Self {
        Self {
            limit,
            tokens: Mutex::new(Buckets(HashMap::new())),
            tenants: Mutex::new(Buckets(HashMap::new())),
        }
    }

    /// Takes one request; else how long to wait. A tenant's bucket is left alone by a token that is over its own.
    pub(crate) fn take(&self, tenant: TenantId, token: TokenId, now_ms: i64) -> Result<(), Duration> {
        let now_us = now_ms.saturating_mul(1_000);
        self.tokens.lock().take(token, self.limit.token, now_us)?;
        self.tenants.lock().take(tenant, self.limit.tenant, now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roadstead_domain::{FakeClock, SeededRandom};

    #[test]
    fn s29_a_token_and_a_tenant_have_their_rates() {
        let rate = |per_second, burst| Rate { per_second, burst };
        let requests = Requests::new(RequestLimit {
            token: rate(10, 5),
            tenant: rate(10, 8),
        });
        let clock = FakeClock::at(1);
        let token = |n| TokenId::generate(&clock, &SeededRandom::new(n));
        let tenant = |n| TenantId::generate(&clock, &SeededRandom::new(n));
        let take = |t, n, at| requests.take(tenant(t), token(n), at);
        let sent = (0..20).filter(|_| take(1, 1, 1_000).is_ok()).count();
        assert_eq!(sent, 5);
        assert_eq!(take(1, 1, 1_000), Err(Duration::from_millis(100)));
        // Another token of the tenant gets what is left of the tenant's.
        let sent = (0..20).filter(|_| take(1, 2, 1_000).is_ok()).count();
        assert_eq!(sent, 3);
        let sent = (0..20).filter(|_| take(2, 3, 1_000).is_ok()).count();
        assert_eq!(sent, 5, "another tenant is not held up");
        take(1, 1, 1_100).unwrap();
    }
}
