//! Verifying a token.

use crate::{
    FailureLimit, RequestLimit,
    failures::Failures,
    layer::counted,
    observe::{self, Refusal},
    rate::Requests,
};
use http::StatusCode;
use parking_lot::Mutex;
use roadstead_authz::{ActorKind, Presented, RequestInfo, SecretKind, TenantContext};
use roadstead_domain::Error;
use roadstead_http::{Authenticate, Problem, unauthenticated};
use roadstead_store::Store;
use std::time::Duration;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

/// Tokens of sources over their limit that are looked up at once.
const SUSPICIOUS: usize = 4;
/// How long one of them waits for its turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// Verifies bearer API tokens against the store; counts failures and requests.
#[derive(Debug)]
pub struct Login {
    store: Store,
    failures: Mutex<Failures>,
    requests: Requests,
    suspicious: Semaphore,
}

impl Login {
    #[must_use]
    pub fn new(store: Store, limit: FailureLimit, requests: RequestLimit) -> Self {
        Self {
            store,
            failures: Mutex::new(Failures::new(limit)),
            requests: Requests::new(requests),
            suspicious: Semaphore::new(SUSPICIOUS),
        }
    }

    /// A turn for a source that is over its limit; `Err`: there are too many of them.
    async fn turn(&self, over: bool) -> Result<Option<SemaphorePermit<'_>>, ()> {
        if !over {
            return Ok(None);
        }
        match timeout(PATIENCE, self.suspicious.acquire()).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            _ => Err(()),
        }
    }

    /// Whom a token stands for, if it is good.
    async fn verified(&self, token: &str, request: RequestInfo) -> Result<TenantContext, Problem> {
        let (source, ip) = (counted(request.source.ip), request.source.ip);
        let now_ms = self.store.clock().now_ms();
        let over = self.failures.lock().over(source, now_ms);
        let presented = match Presented::parse(SecretKind::ApiToken, token) {
            Ok(presented) => presented,
            // The checksum is wrong: refused without a query.
            Err(error) => return Err(self.failed(&error, (source, over), None, now_ms)),
        };
        let trusted = self.failures.lock().trusts(presented.hash(), now_ms);
        let Ok(_turn) = self.turn(over.is_some() && !trusted).await else {
            return Err(limited(over.unwrap_or(PATIENCE)));
        };
        let verified = roadstead_service::authenticate::api_token(&self.store, &presented, request).await;
        match verified {
            Ok(context) => {
                self.failures.lock().succeeded(*presented.hash(), now_ms);
                Ok(context)
            }
            Err(error @ Error::Unauthenticated { .. }) => {
                tracing::info!(source.ip = ?ip, "a wrong token was presented");
                Err(self.failed(&error, (source, over), Some(presented.hash()), now_ms))
            }
            Err(error) => {
                // S91: whatever else goes wrong is no yes.
                observe::refused(Refusal::Unavailable);
                tracing::error!(%error, detail = ?std::error::Error::source(&error), "a token could not be verified");
                Err(Problem::from(&error))
            }
        }
    }

    fn limit_requests(&self, context: &TenantContext, now_ms: i64) -> Result<(), Problem> {
        let ActorKind::Token { token, .. } = context.actor().kind() else {
            return Ok(());
        };
        let taken = self.requests.take(context.tenant(), *token, now_ms);
        taken.map_err(|wait| {
            observe::refused(Refusal::TooMany);
            let detail = "too many requests of this token, or of all tokens of its tenant";
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "LIMIT", detail).retry_after(wait)
        })
    }
}

fn limited(wait: Duration) -> Problem {
    observe::refused(Refusal::Limited);
    let detail = "too many wrong tokens from this address";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "LIMIT", detail).retry_after(wait)
}

#[async_trait::async_trait]
impl Authenticate for Login {
    async fn bearer(&self, token: &str, request: RequestInfo) -> Result<TenantContext, Problem> {
        let context = self.verified(token, request).await?;
        self.limit_requests(&context, self.store.clock().now_ms())?;
        Ok(context)
    }

    async fn again(&self, token: &str, request: RequestInfo) -> Result<TenantContext, Problem> {
        self.verified(token, request).await
    }
}

impl Login {
    /// Counts a wrong token, and answers it: over the limit by telling how long to wait.
    fn failed(
        &self,
        error: &Error,
        (source, over): (std::net::IpAddr, Option<Duration>),
        token: Option<&[u8; 32]>,
        now_ms: i64,
    ) -> Problem {
        self.failures.lock().failed(source, token, now_ms);
        match over {
            Some(wait) => limited(wait),
            None => {
                observe::refused(Refusal::Wrong);
                unauthenticated(&error.to_string())
            }
        }
    }
}
