//! What a long answer needs to know whether its caller may still have it.

use crate::{Authenticate, Problem};
use roadstead_authz::{RequestInfo, TenantContext};
use secrecy::{ExposeSecret as _, SecretString};
use std::{fmt, sync::Arc, time::Duration};

/// How long a stream may go on after its caller's token was revoked, or its role taken (S14: 5 s).
pub const RECHECK: Duration = Duration::from_secs(4);

/// How long a stream may go on while nobody can say whether its caller may still have it. A database that restarts ends
/// nobody's answers; one that stays away (or is kept busy by the very caller whose token was revoked) must not keep what a
/// revocation should have ended. That sessions of cluster agents stay up without a database is another matter: they carry
/// no caller, and what is written for them needs the database anyway.
pub const UNANSWERED: Duration = Duration::from_secs(60);

/// How long one such look may take; then it counts as unanswered. A connection to the database that was cut without a word
/// would be waited for much longer.
pub const ONE_LOOK: Duration = Duration::from_secs(10);

/// The proof that a request came with, kept while it is answered. Login puts it into the request's extensions.
#[derive(Clone)]
pub struct Session {
    authenticate: Arc<dyn Authenticate>,
    token: Arc<SecretString>,
    request: RequestInfo,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Of a token that was good.
    #[must_use]
    pub fn new(authenticate: Arc<dyn Authenticate>, token: String, request: RequestInfo) -> Self {
        Self {
            authenticate,
            token: Arc::new(token.into()),
            request,
        }
    }

    /// Verifies the token anew. It is no request: it counts against no limit on them.
    ///
    /// # Errors
    /// As [`Authenticate::bearer`]. A caller of this keeps what it has on `UNAVAILABLE`, for [`UNANSWERED`].
    pub async fn verify(&self) -> Result<TenantContext, Problem> {
        let token = self.token.expose_secret();
        self.authenticate.again(token, self.request.clone()).await
    }
}
