//! Bodies: bounded in bytes, in time, and in how much of them the process holds at once.
//!
//! A tenant that fills its own share is told 429 and nobody else notices; that the shares together are more than the
//! whole is on purpose, for most tenants send nothing most of the time.

use crate::Problem;
use axum::body::Body;
use futures::StreamExt as _;
use http::StatusCode;
use parking_lot::Mutex;
use roadstead_domain::TenantId;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::timeout;

/// How much, and how long.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Bytes held at once, of all tenants.
    pub total: usize,
    /// Bytes held at once, of one tenant.
    pub tenant: usize,
    /// For one body to come in whole.
    pub time: Duration,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self {
            total: 64 * 1024 * 1024,
            tenant: 16 * 1024 * 1024,
            time: Duration::from_secs(30),
        }
    }
}

/// The bytes of bodies that the process holds. One for all faces.
#[derive(Debug, Default)]
pub struct Bodies {
    limits: BodyLimits,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    tenants: HashMap<TenantId, usize>,
}

/// What one request holds of them; given back when dropped.
#[derive(Debug)]
pub struct Share {
    bodies: Arc<Bodies>,
    tenant: TenantId,
    bytes: usize,
}

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// More than this many bytes.
    TooLarge(usize),
    /// It did not come in whole in time.
    Slow,
    /// It broke off.
    Broken,
    /// The tenant, or all together, hold as much as they may.
    Full,
}

impl BodyError {
    /// The status, the stable word and a sentence for the caller.
    #[must_use]
    pub fn told(self) -> (StatusCode, &'static str, String) {
        match self {
            Self::TooLarge(limit) => {
                let detail = format!("the body is larger than {limit} bytes");
                (StatusCode::PAYLOAD_TOO_LARGE, "LIMIT", detail)
            }
            Self::Slow => {
                let detail = "the body did not come in whole in time".to_owned();
                (StatusCode::REQUEST_TIMEOUT, "LIMIT", detail)
            }
            Self::Broken => {
                let detail = "the body broke off".to_owned();
                (StatusCode::BAD_REQUEST, "INVALID", detail)
            }
            Self::Full => {
                let detail = "too much is being sent at once; try again in a moment".to_owned();
                (StatusCode::TOO_MANY_REQUESTS, "LIMIT", detail)
            }
        }
    }
}

impl From<BodyError> for Problem {
    fn from(error: BodyError) -> Self {
        let (status, code, detail) = error.told();
        let problem = Self::new(status, code, detail);
        match error {
            BodyError::Full => problem.retry_after(Duration::from_secs(1)),
            _ => problem,
        }
    }
}

impl Bodies {
    #[must_use]
    pub fn new(limits: BodyLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            held: Mutex::default(),
        })
    }

    /// A share that holds nothing yet.
    #[must_use]
    pub fn share(self: &Arc<Self>, tenant: TenantId) -> Share {
        Share {
            bodies: Arc::clone(self),
            tenant,
            bytes: 0,
        }
    }

    /// Reads a whole body of at most `limit` bytes. What it takes stays taken while the share lives: keep it until
    /// nothing that was made from the body is left.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub async fn read(
        self: &Arc<Self>,
        tenant: TenantId,
        body: Body,
        limit: usize,
    ) -> Result<(Vec<u8>, Share), BodyError> {
        let mut share = self.share(tenant);
        let whole = async {
            let mut bytes = Vec::new();
            let mut chunks = body.into_data_stream();
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|_| BodyError::Broken)?;
                if bytes.len() + chunk.len() > limit {
                    return Err(BodyError::TooLarge(limit));
                }
                share.take(chunk.len())?;
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes)
        };
        match timeout(self.limits.time, whole).await {
            Ok(bytes) => Ok((bytes?, share)),
            Err(_) => Err(BodyError::Slow),
        }
    }
}

impl Share {
    /// Holds so many bytes more.
    ///
    /// # Errors
    /// [`BodyError::Full`].
    pub fn take(&mut self, bytes: usize) -> Result<(), BodyError> {
        let mut held = self.bodies.held.lock();
        let own = held.tenants.get(&self.tenant).copied().unwrap_or(0);
        let limits = self.bodies.limits;
        if own + bytes > limits.tenant || held.total + bytes > limits.total {
            return Err(BodyError::Full);
        }
        held.total += bytes;
        *held.tenants.entry(self.tenant).or_default() += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.bodies.held.lock();
        held.total = held.total.saturating_sub(self.bytes);
        if let Some(own) = held.tenants.get_mut(&self.tenant) {
            *own = own.saturating_sub(self.bytes);
            if *own == 0 {
                held.tenants.remove(&self.tenant);
            }
        }
    }
}

/// The most tokens of JSON in one body: above what [`json_tokens`] counts in a set of documents of 50,000 values. A
/// value takes some 200 bytes while it is parsed and converted.
pub const MAX_JSON_TOKENS: usize = 150_000;

/// How many brackets, braces, colons and commas stand outside of strings: no fewer than there are values, less one.
/// Allocates nothing; of what is no JSON it is some number.
#[must_use]
pub fn json_tokens(text: &[u8]) -> usize {
    let (mut tokens, mut quoted, mut escaped) = (0, false, false);
    for byte in text {
        match (quoted, escaped, byte) {
            (true, true, _) => escaped = false,
            (true, false, b'\\') => escaped = true,
            (true, false, b'"') => quoted = false,
            (true, false, _) => {}
            (false, _, b'"') => quoted = true,
            (false, _, b'{' | b'[' | b':' | b',') => tokens += 1,
            (false, _, _) => {}
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Bytes;
    use futures::stream;
    use roadstead_domain::{FakeClock, SeededRandom};
    use std::convert::Infallible;

    fn tenants() -> (TenantId, TenantId) {
        let (clock, random) = (FakeClock::at(1), SeededRandom::new(1));
        (
            TenantId::generate(&clock, &random),
            TenantId::generate(&clock, &random),
        )
    }

    fn bodies() -> Arc<Bodies> {
        Bodies::new(BodyLimits {
            total: 100,
            tenant: 60,
            time: Duration::from_secs(30),
        })
    }

    #[tokio::test]
    async fn s29_a_tenant_fills_its_own_share_and_no_other() {
        let (bodies, (one, other)) = (bodies(), tenants());
        let send = async |tenant, bytes: usize| bodies.read(tenant, Body::from(vec![0; bytes]), 80).await;
        let (read, first) = send(one, 50).await.unwrap();
        assert_eq!(read.len(), 50);
        assert_eq!(send(one, 11).await.unwrap_err(), BodyError::Full);
        let (_, second) = send(other, 50).await.unwrap();
        assert_eq!(
            send(one, 1).await.unwrap_err(),
            BodyError::Full,
            "all together are full"
        );
        assert_eq!(send(other, 81).await.unwrap_err(), BodyError::TooLarge(80));
        drop((first, second));
        send(one, 60).await.unwrap();
        assert_eq!(bodies.held.lock().total, 0);
        assert!(bodies.held.lock().tenants.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn s29_a_body_that_trickles_is_given_up_and_gives_back_what_it_held() {
        let (bodies, (one, _)) = (bodies(), tenants());
        let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"{")) });
        let trickle = Body::from_stream(first.chain(stream::pending()));
        let refused = bodies.read(one, trickle, 80).await.unwrap_err();
        assert_eq!(refused, BodyError::Slow);
        assert_eq!(bodies.held.lock().total, 0);
    }

    #[test]
    fn s31_tokens_of_json_are_counted_outside_of_strings() {
        assert_eq!(json_tokens(b"0"), 0);
        assert_eq!(json_tokens(b"[0,0,0]"), 3);
        assert_eq!(json_tokens(br#"{"a":[1,{"b":null}],"c":"x"}"#), 8);
        assert_eq!(json_tokens(br#""[,:{ \" ,,, \\""#), 0);
        assert_eq!(json_tokens(br#"["\\",0]"#), 2);
        let bomb = format!("[{}0]", "0,".repeat(4_000_000));
        assert!(json_tokens(bomb.as_bytes()) > MAX_JSON_TOKENS);
    }
}
