//! Errors outside GraphQL: `application/problem+json` (RFC 9457) with `code` and `request_id`.

use crate::RequestId;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode, header};
use roadstead_domain::Error;
use serde::Serialize;
use std::time::Duration;

/// One error, before it is written for a request.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry_after: Option<Duration>,
    challenge: Option<&'static str>,
    allow: Option<&'static str>,
}

/// What RFC 9457 §3.1 and our two extensions say.
#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: &'a str,
    request_id: &'a str,
}

impl Problem {
    /// `detail` is a sentence for the caller: what was found, and what to do.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            retry_after: None,
            challenge: None,
            allow: None,
        }
    }

    /// With `Retry-After`, in whole seconds, at least 1.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// With `WWW-Authenticate` (RFC 9110 §11.6.1).
    #[must_use]
    pub fn challenge(mut self, challenge: &'static str) -> Self {
        self.challenge = Some(challenge);
        self
    }

    /// With `Allow` (RFC 9110 §10.2.1).
    #[must_use]
    pub fn allow(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }

    /// The stable word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The document itself, for the request with this id, on one line.
    #[must_use]
    pub fn json(&self, id: &RequestId) -> String {
        let body = Body {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: &self.detail,
            request_id: id.as_str(),
        };
        serde_json::to_string(&body).unwrap_or_default()
    }

    /// The answer to the request with this id.
    #[must_use]
    pub fn response(&self, id: &RequestId) -> Response {
        let mut response = (self.status, self.json(id)).into_response();
        let headers = response.headers_mut();
        let media = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, media);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        let status = match error {
            Error::Invalid { .. } => StatusCode::BAD_REQUEST,
            Error::NotFound { .. } => StatusCode::NOT_FOUND,
            Error::Forbidden { .. } => StatusCode::FORBIDDEN,
            Error::Conflict { .. } => StatusCode::CONFLICT,
            Error::Limit { .. } => StatusCode::TOO_MANY_REQUESTS,
            Error::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Error::Unauthenticated { .. } => StatusCode::UNAUTHORIZED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let problem = Self::new(status, error.code(), error.to_string());
        match status {
            StatusCode::TOO_MANY_REQUESTS => problem.retry_after(Duration::from_secs(1)),
            StatusCode::SERVICE_UNAVAILABLE => problem.retry_after(Duration::from_secs(5)),
            StatusCode::UNAUTHORIZED => problem.challenge("Bearer"),
            _ => problem,
        }
    }
}

/// A router's fallback. One answer for every path that is not there.
pub async fn not_found(id: RequestId) -> Response {
    Problem::new(
        StatusCode::NOT_FOUND,
        "NOT_FOUND",
        "there is nothing at this path",
    )
    .response(&id)
}

/// A router's answer to a method that the path does not have (S26); axum adds `Allow`.
pub async fn method_not_allowed(id: RequestId) -> Response {
    let detail = "this path does not take this method; the allow header names those it takes";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "INVALID", detail).response(&id)
}
