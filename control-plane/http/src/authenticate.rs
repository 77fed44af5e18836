//! The door between the faces and login: who verifies a bearer token is the composition root's to say.

use roadstead_authz::{RequestInfo, TenantContext};
use std::fmt;

/// Verifies what a caller presents.
#[async_trait::async_trait]
pub trait Authenticate: Send + Sync + fmt::Debug + 'static {
    /// The context of whoever holds `token` (the text after `Bearer `). `request.source.ip` is where it came from:
    /// failures are counted there.
    ///
    /// # Errors
    /// A problem that may go to the caller: 401 whatever is wrong with the token, 429 after too many failures,
    /// 503 when the store cannot be asked.
    async fn bearer(&self, token: &str, request: RequestInfo) -> Result<TenantContext, crate::Problem>;

    /// The same for something that is open already, a stream or a socket: it is looked at every few seconds and is no
    /// request, so that a tenant which asks too much ends nobody's streams.
    ///
    /// # Errors
    /// As [`Self::bearer`].
    async fn again(&self, token: &str, request: RequestInfo) -> Result<TenantContext, crate::Problem> {
        self.bearer(token, request).await
    }
}
