//! Verifying a token.

use crate::{FailureLimit, failures::Failures, layer::counted};
use http::StatusCode;
use parking_lot::Mutex;
use roadstead_authz::{Presented, RequestInfo, SecretKind, TenantContext};
use roadstead_domain::Error;
use roadstead_http::{Authenticate, Problem, unauthenticated};
use roadstead_store::Store;

/// Verifies bearer API tokens against the store, and counts failures.
#[derive(Debug)]
pub struct Login {
    store: Store,
    failures: Mutex<Failures>,
}

impl Login {
    #[must_use]
    pub fn new(store: Store, limit: FailureLimit) -> Self {
        Self {
            store,
            failures: Mutex::new(Failures::new(limit)),
        }
    }
}

#[async_trait::async_trait]
impl Authenticate for Login {
    async fn bearer(&self, token: &str, request: RequestInfo) -> Result<TenantContext, Problem> {
        let source = counted(request.source.ip);
        let presented = Presented::parse(SecretKind::ApiToken, token);
        let now_ms = self.store.clock().now_ms();
        let hash = presented.as_ref().ok().map(Presented::hash);
        let allowed = self.failures.lock().check(source, hash, now_ms);
        if let Err(wait) = allowed {
            let detail = "too many wrong tokens from this address";
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "LIMIT", detail);
            return Err(problem.retry_after(wait));
        }
        let ip = request.source.ip;
        let verified = match &presented {
            // The checksum is wrong: refused without a query.
            Err(error) => Err(error.clone()),
            Ok(presented) => {
                roadstead_service::authenticate::api_token(&self.store, presented, request).await
            }
        };
        match verified {
            Ok(context) => {
                if let Ok(presented) = presented {
                    self.failures.lock().succeeded(*presented.hash(), now_ms);
                }
                Ok(context)
            }
            Err(error @ Error::Unauthenticated { .. }) => {
                self.failures.lock().failed(source, now_ms);
                tracing::info!(source.ip = ?ip, "a wrong token was presented");
                Err(unauthenticated(&error.to_string()))
            }
            Err(error) => {
                // S91: whatever else goes wrong is no yes.
                tracing::error!(%error, detail = ?std::error::Error::source(&error), "a token could not be verified");
                Err(Problem::from(&error))
            }
        }
    }
}
