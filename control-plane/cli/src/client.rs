//! GraphQL over HTTP, with the token in its header and nowhere else.

use crate::{
    api::{self, Page, UserError},
    config::Context,
    failure::{Exit, Failure, Outcome},
    hints,
    transport::{self, root_cause},
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
/// Longest body that a hub takes, in bytes (its GraphQL limit).
const MAX_REQUEST: usize = 8 * 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);
/// Pauses before a request whose answer was lost is sent again.
const AGAIN: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

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

/// What came back for a request.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
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
        let base = transport::base_url(&context.server, context.plain_http)?;
        let token = context.bearer()?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))
            .map_err(|_| Failure::new(Exit::Forbidden, "the token has other characters than a token"))?;
        authorization.set_sensitive(true);
        let http = transport::build(transport::http(&base))?;
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

    /// The host of the hub's address, as it is written in a URL.
    pub(crate) fn host(&self) -> &str {
        self.base.host_str().unwrap_or_default()
    }

    /// The hub's address.
    pub(crate) fn base(&self) -> &Url {
        &self.base
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
        // A query changes nothing, and a write with a key is done once however often it comes: so either is sent again
        // when its answer is lost.
        if !query.starts_with("query") && !variables["input"]["idempotencyKey"].is_string() {
            return Err(Failure::new(
                Exit::Failed,
                format!("{operation} is a write without a key"),
            ));
        }
        let body = json!({"query": query, "operationName": operation, "variables": variables}).to_string();
        if body.len() > MAX_REQUEST {
            let message = format!(
                "the request has {} bytes, and the hub takes {MAX_REQUEST} at once",
                body.len()
            );
            return Err(Failure::new(Exit::Limit, message).next("apply the documents in several calls"));
        }
        let answer = self.exchange(&body).await?;
        let envelope: Option<Envelope> = serde_json::from_slice(&answer.body).ok();
        let fault = envelope.as_ref().and_then(|e| e.errors.first());
        if !answer.status.is_success() || fault.is_some() {
            return Err(match fault {
                Some(fault) => self.fault(fault, &answer.headers),
                None => self.refused(answer.status, &answer.headers, &answer.body),
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

    /// Sends a request, which may be repeated; again when its answer is lost on the way.
    async fn exchange(&self, body: &str) -> Outcome<Answer> {
        let mut lost = match self.attempt(body).await? {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        // Nobody was there: that is said at once.
        if lost.is_connect() || lost.is_timeout() {
            return Err(self.unreachable(&lost));
        }
        for pause in AGAIN {
            tokio::time::sleep(pause).await;
            lost = match self.attempt(body).await? {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
        }
        Err(self.unreachable(&lost))
    }

    /// One request and its whole answer; the inner error is of the way to the hub.
    async fn attempt(&self, body: &str) -> Outcome<Result<Answer, reqwest::Error>> {
        let request = self
            .http
            .post(self.url("/graphql"))
            .headers(self.headers())
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                header::ACCEPT,
                "application/graphql-response+json, application/json;q=0.9",
            )
            .timeout(DEADLINE)
            .body(body.to_owned());
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Ok(Err(error)),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let read = capped(&mut response).await?;
        Ok(read.map(|body| Answer {
            status,
            headers,
            body,
        }))
    }

    /// Every item of a list, page by page, at most `limit`. Where a page is too large for the hub a smaller one is
    /// asked for.
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
        let (mut after, mut most) = (Value::Null, api::PAGE);
        while items.len() < limit {
            let first = most.min(limit - items.len());
            let mut variables = variables.clone();
            variables["first"] = json!(first);
            variables["after"] = after.clone();
            let page: Page<T> = match self.call(operation, field, variables).await {
                Err(failure) if failure.exit == Exit::Limit && failure.wait.is_none() && first > 1 => {
                    most = first / 2;
                    continue;
                }
                page => page?,
            };
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
        let read = capped(&mut response).await?;
        read.map_err(|error| self.unreachable(&error))
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
            "check that the hub runs{} and that the context {:?} names its address ({})",
            if transport::is_loopback(&self.base) {
                " (`roadstead-hub dev` starts one)"
            } else {
                ""
            },
            self.context.name,
            self.base
        );
        let mut failure = Failure::new(Exit::Unavailable, format!("the hub {what}")).next(next);
        failure.lost = !error.is_timeout() && !error.is_connect();
        failure
    }

    fn fault(&self, fault: &Fault, headers: &HeaderMap) -> Failure {
        let exit = Exit::of_code(&fault.extensions.code);
        let mut message = fault.message.clone();
        if exit == Exit::Failed && !fault.extensions.request_id.is_empty() {
            message = format!("{message} (request {})", fault.extensions.request_id);
        }
        self.advised(Failure::new(exit, message), &fault.extensions.code, headers)
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
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            return failure
                .next("send less at once: apply the documents in several calls, or shorten the message");
        }
        self.advised(failure, code, headers)
    }

    /// The failure with its next step: when to come again, if the hub says so, else what its code asks for.
    pub(crate) fn advised(&self, mut failure: Failure, code: &str, headers: &HeaderMap) -> Failure {
        let wait = headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok());
        failure.wait = wait.and_then(|seconds| seconds.parse().ok());
        let next = hints::by_code(code, &self.context.name);
        match (failure.wait, next) {
            (Some(seconds), _) => failure.next(format!("try again in {seconds} s")),
            (None, Some(next)) => failure.next(next),
            (None, None) => failure,
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
        Some(self.advised(failure, &first.code, &HeaderMap::new()))
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

/// A response's body, at most [`MAX_ANSWER`]; the inner error is of the way to the hub.
async fn capped(response: &mut reqwest::Response) -> Outcome<Result<Vec<u8>, reqwest::Error>> {
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if bytes.len() + chunk.len() > MAX_ANSWER => {
                let message = format!("the answer is longer than {MAX_ANSWER} bytes");
                return Err(Failure::new(Exit::Failed, message).next("ask for less: --project, --limit"));
            }
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return Ok(Ok(bytes)),
            Err(error) => return Ok(Err(error)),
        }
    }
}
