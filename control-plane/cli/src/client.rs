//! GraphQL over HTTP, with the token in its header and nowhere else.

use crate::{
    api::{self, Page, UserError},
    config::Context,
    failure::{Exit, Failure, Outcome},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use reqwest::Url;
use roadstead_contract::documents::{Kind, Name, Reference};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::time::Duration;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);

/// One hub, as one user.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    authorization: HeaderValue,
    pub(crate) context: Context,
    /// The project for names that give none.
    pub(crate) project: Name,
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    data: Option<Value>,
    #[serde(default)]
    errors: Vec<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    message: String,
    #[serde(default)]
    extensions: Extensions,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Extensions {
    #[serde(default)]
    code: String,
    #[serde(default)]
    request_id: String,
}

impl Client {
    /// A client for a context; nothing is sent yet.
    ///
    /// # Errors
    /// The server's address or the token cannot be used.
    pub(crate) fn new(context: &Context, project: Option<Name>) -> Outcome<Self> {
        let base = base_url(&context.server)?;
        let token = context.bearer()?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
            .map_err(|_| Failure::new(Exit::Forbidden, "the token has other characters than a token"))?;
        authorization.set_sensitive(true);
        // A redirect could carry the token to another server: none is followed.
        let http = reqwest::Client::builder()
            .user_agent(concat!("roadstead/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .referer(false)
            .build()
            .map_err(|error| Failure::new(Exit::Failed, format!("no HTTP client: {error}")))?;
        Ok(Self {
            http,
            base,
            authorization,
            project: project.unwrap_or_else(|| context.project.clone()),
            context: context.clone(),
        })
    }

    /// Project and name of a reference.
    pub(crate) fn place<'a>(&'a self, reference: &'a Reference) -> (&'a str, &'a str) {
        let project = reference.project.as_ref().unwrap_or(&self.project);
        (project.as_str(), reference.name.as_str())
    }

    /// The hub's address followed by a path.
    pub(crate) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        let joined = format!("{}{path}", url.path().trim_end_matches('/'));
        url.set_path(&joined);
        url
    }

    /// The headers of each request: who asks, and the trace.
    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, self.authorization.clone());
        roadstead_telemetry::propagate::inject_span(&tracing::Span::current(), &mut headers);
        headers
    }

    pub(crate) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Runs one operation of docs/api-operations.graphql and reads the field of its answer.
    ///
    /// # Errors
    /// No answer, a fault, or an answer of another shape.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        operation: &str,
        field: &str,
        variables: Value,
    ) -> Outcome<T> {
        let query = api::operation(operation)
            .ok_or_else(|| Failure::new(Exit::Failed, format!("there is no operation {operation}")))?;
        let body = json!({"query": query, "operationName": operation, "variables": variables});
        let request = self
            .http
            .post(self.url("/graphql"))
            .headers(self.headers())
            .timeout(DEADLINE);
        let request = request.header(
            header::ACCEPT,
            "application/graphql-response+json, application/json;q=0.9",
        );
        let response = request
            .json(&body)
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let headers = response.headers().clone();
        let bytes = self.body(response).await?;
        let envelope: Option<Envelope> = serde_json::from_slice(&bytes).ok();
        let fault = envelope.as_ref().and_then(|e| e.errors.first());
        if !status.is_success() || fault.is_some() {
            return Err(match fault {
                Some(fault) => self.fault(fault),
                None => self.refused(status, &headers, &bytes),
            });
        }
        let value = envelope
            .and_then(|e| e.data)
            .and_then(|mut data| data.get_mut(field).map(Value::take));
        let strange = |why: String| {
            let message = format!(
                "the answer of {} to {operation} cannot be understood: {why}",
                self.base
            );
            Failure::new(Exit::Failed, message).next("use a CLI and a hub of the same version")
        };
        let value = value.ok_or_else(|| strange(format!("there is no field {field}")))?;
        serde_json::from_value(value).map_err(|error| strange(error.to_string()))
    }

    /// Every item of a list, page by page, at most `limit`.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        operation: &str,
        field: &str,
        variables: Value,
        limit: usize,
    ) -> Outcome<Vec<T>> {
        let mut items = Vec::new();
        let mut after = Value::Null;
        while items.len() < limit {
            let mut variables = variables.clone();
            variables["first"] = json!(api::PAGE.min(limit - items.len()));
            variables["after"] = after;
            let page: Page<T> = self.call(operation, field, variables).await?;
            let empty = page.nodes.is_empty();
            items.extend(page.nodes);
            match page.page_info.end_cursor {
                Some(cursor) if page.page_info.has_next_page && !empty => after = cursor.into(),
                _ => break,
            }
        }
        items.truncate(limit);
        Ok(items)
    }

    /// One document with its JSON.
    ///
    /// # Errors
    /// It is not there, or not for this user's eyes; and as [`Self::call`].
    pub(crate) async fn document(&self, kind: Kind, reference: &Reference) -> Outcome<api::Document> {
        let (project, name) = self.place(reference);
        let variables = json!({"kind": api::kind_name(kind), "project": project, "name": name});
        let found: Option<api::Document> = self.call("Document", "document", variables).await?;
        found.ok_or_else(|| self.nothing(kind, reference))
    }

    pub(crate) fn nothing(&self, kind: Kind, reference: &Reference) -> Failure {
        let (project, name) = self.place(reference);
        let list = format!(
            "roadstead get {}s --project {project}",
            kind.as_str().to_lowercase()
        );
        Failure::new(
            Exit::NotFound,
            format!("there is no {kind} {project}/{name} that you may see"),
        )
        .next(list)
    }

    /// A response's body, capped.
    pub(crate) async fn body(&self, mut response: reqwest::Response) -> Outcome<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                return Err(Failure::new(
                    Exit::Failed,
                    format!("the answer is longer than {MAX_ANSWER} bytes"),
                ));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// No connection, or one that broke.
    pub(crate) fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let what = if error.is_timeout() {
            "does not answer in time".to_owned()
        } else if error.is_connect() {
            format!("cannot be reached: {}", root_cause(error))
        } else {
            format!("broke off: {}", root_cause(error))
        };
        let next = format!(
            "check that the hub runs and that the context {:?} names its address ({})",
            self.context.name, self.base
        );
        Failure::new(Exit::Unavailable, format!("the hub {what}")).next(next)
    }

    fn fault(&self, fault: &Fault) -> Failure {
        let exit = Exit::of_code(&fault.extensions.code);
        let mut message = fault.message.clone();
        if exit == Exit::Failed && !fault.extensions.request_id.is_empty() {
            message = format!("{message} (request {})", fault.extensions.request_id);
        }
        let failure = Failure::new(exit, message);
        match self.advice(&fault.extensions.code) {
            Some(next) => failure.next(next),
            None => failure,
        }
    }

    /// A refusal by HTTP: RFC 9457 problem details where there are some.
    pub(crate) fn refused(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
        #[derive(Default, Deserialize)]
        struct Details {
            #[serde(default)]
            code: String,
            #[serde(default)]
            title: String,
            #[serde(default)]
            detail: String,
            #[serde(default)]
            request_id: String,
        }
        let details: Details = serde_json::from_slice(body).unwrap_or_default();
        let code = match (status, details.code.as_str()) {
            (StatusCode::UNAUTHORIZED, _) => "UNAUTHENTICATED",
            (_, code) if !code.is_empty() => code,
            (StatusCode::FORBIDDEN, _) => "FORBIDDEN",
            (StatusCode::NOT_FOUND, _) => "NOT_FOUND",
            (StatusCode::CONFLICT, _) => "CONFLICT",
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE, _) => "LIMIT",
            (StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT, _) => {
                "UNAVAILABLE"
            }
            (StatusCode::BAD_REQUEST, _) => "INVALID",
            _ => "",
        };
        let mut message = [details.detail, details.title]
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_else(|| {
                let known = status.canonical_reason().unwrap_or("an unknown status");
                format!("the hub answered {} {known}", status.as_u16())
            });
        if code.is_empty() && !details.request_id.is_empty() {
            message = format!("{message} (request {})", details.request_id);
        }
        let failure = Failure::new(Exit::of_code(code), message);
        let wait = headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok());
        match (
            self.advice(code),
            wait.and_then(|seconds| seconds.parse::<u64>().ok()),
        ) {
            (_, Some(seconds)) => failure.next(format!("try again in {seconds} s")),
            (Some(next), None) => failure.next(next),
            (None, None) => failure,
        }
    }

    fn advice(&self, code: &str) -> Option<String> {
        match code {
            "UNAUTHENTICATED" => Some(format!(
                "the token of the context {:?} is not valid (any more): roadstead context add {} with a new one",
                self.context.name, self.context.name
            )),
            "FORBIDDEN" => {
                Some("ask an administrator of the tenant or project for a role that may".to_owned())
            }
            "CONFLICT" => {
                Some("look at the current state (roadstead get … -o yaml) and try again".to_owned())
            }
            _ => None,
        }
    }

    /// What a mutation's user errors amount to; `None` if there are none. `show` turns one into a line.
    pub(crate) fn user_errors(
        &self,
        errors: &[UserError],
        what: &str,
        show: impl Fn(&UserError) -> String,
    ) -> Option<Failure> {
        let first = errors.first()?;
        let failure = Failure::new(Exit::of_code(&first.code), what).details(errors.iter().map(show));
        Some(match self.advice(&first.code) {
            Some(next) => failure.next(next),
            None => failure,
        })
    }
}

/// `path: expected …, found …`, or the message.
pub(crate) fn error_line(error: &UserError) -> String {
    let path = error
        .path
        .as_ref()
        .filter(|p| !p.is_empty())
        .map(|p| format!("{p}: "))
        .unwrap_or_default();
    match (&error.expected, &error.found) {
        (Some(expected), Some(found)) if error.message.is_empty() => {
            format!("{path}expected {expected}, found {found}")
        }
        _ => format!("{path}{}", error.message),
    }
}

/// The server's base address; a token is sent in the clear to this machine only.
fn base_url(text: &str) -> Outcome<Url> {
    let bad = |why: &str| {
        Failure::new(Exit::Usage, format!("the server's address {why}")).next("write https://HOST[:PORT]")
    };
    let url = Url::parse(text).map_err(|error| bad(&format!("cannot be read: {error}")))?;
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(bad("has user information, a query or a fragment"));
    }
    let loopback = match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        None => return Err(bad("names no host")),
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if loopback => Ok(url),
        "http" => Err(bad(
            "would send the token in the clear: http is for loopback addresses only",
        )),
        _ => Err(bad("is neither https nor http")),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s30_the_token_goes_to_https_or_loopback_only() {
        for good in [
            "https://hub.example.com",
            "http://127.0.0.1:8080",
            "http://[::1]:80/base",
            "http://localhost",
        ] {
            base_url(good).unwrap();
        }
        for bad in [
            "http://hub.example.com",
            "http://10.0.0.1",
            "ftp://localhost",
            "https://a:b@hub",
            "https://hub?t=x",
            "hub",
        ] {
            assert_eq!(base_url(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
