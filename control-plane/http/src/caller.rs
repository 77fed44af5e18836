//! The verified caller, for handlers.

use crate::{Problem, RequestId};
use axum::{extract::FromRequestParts, response::Response};
use http::{StatusCode, request::Parts};
use roadstead_authz::TenantContext;

/// Whoever login found behind the request's token. A handler that asks for it is never reached without one: a router
/// that somebody forgot to put behind login answers 401 to everybody.
#[derive(Clone, Debug)]
pub struct Caller(pub TenantContext);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        if let Some(context) = parts.extensions.get::<TenantContext>() {
            return Ok(Self(context.clone()));
        }
        let Ok(id) = RequestId::from_request_parts(parts, state).await;
        Err(unauthenticated("this needs an API token").response(&id))
    }
}

/// 401 with the challenge that RFC 6750 §3 asks for.
#[must_use]
pub fn unauthenticated(detail: &str) -> Problem {
    let hint = format!("{detail}: send the header `Authorization: Bearer rst_…`");
    Problem::new(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", hint).challenge("Bearer realm=\"roadstead\"")
}
