//! The server: one axum router over a shared state.

use crate::{
    echo::Echo,
    prompt,
    request::{Api, Request},
    script::{Fault, Otherwise, Script, Then},
    wire::{self, Rendered},
};
use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, State},
    response::Response,
    routing::{get, post},
    serve::ListenerExt as _,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct ModelServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub path: String,
    pub headers: HeaderMap,
    /// `Null` where the body is no JSON.
    pub body: Value,
}

#[derive(Debug)]
struct Shared {
    script: Mutex<(Arc<Script>, Vec<usize>)>,
    echo: Echo,
    recorded: Mutex<Vec<Recorded>>,
    count: AtomicUsize,
    open: AtomicUsize,
    abandoned: AtomicUsize,
}

/// So many requests are kept for assertions; later ones are only counted.
const KEPT: usize = 10_000;

impl ModelServer {
    /// Serves `script` on a free loopback port.
    ///
    /// # Errors
    /// No port can be bound.
    pub async fn start(script: Script) -> io::Result<Self> {
        Self::listen(SocketAddr::from(([127, 0, 0, 1], 0)), script).await
    }

    /// Serves `script` on `address`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn listen(address: SocketAddr, script: Script) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            script: Mutex::new((Arc::new(script), Vec::new())),
            echo: Echo::new(),
            recorded: Mutex::default(),
            count: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
        });
        let app = router(Arc::clone(&shared));
        let listener = listener.tap_io(|io| {
            // Without it the last piece of a stream may wait for an acknowledgement (Nagle).
            let _ = io.set_nodelay(true);
        });
        let task = tokio::spawn(async move {
            // axum's serve does not return.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self {
            address,
            shared,
            task,
        })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
    /// `http://127.0.0.1:PORT`: the endpoint of an `anthropic` or `ollama` model.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
    /// `http://127.0.0.1:PORT/v1`: the endpoint of an `openai` or `openaiCompatible` model.
    #[must_use]
    pub fn openai_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }
    /// The requests so far, oldest first; none in echo mode.
    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.shared.recorded).clone()
    }
    /// How many chat requests came.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.count.load(Ordering::SeqCst)
    }
    /// How many chat requests are being answered now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }
    /// How many answers the caller left before their end.
    #[must_use]
    pub fn abandoned(&self) -> usize {
        self.shared.abandoned.load(Ordering::SeqCst)
    }
    /// Answers by `script` from now on.
    pub fn set_script(&self, script: Script) {
        *lock(&self.shared.script) = (Arc::new(script), Vec::new());
    }
    /// Runs until the process is told to end.
    ///
    /// # Errors
    /// The server's task panicked.
    pub async fn run(mut self) -> anyhow::Result<()> {
        Ok((&mut self.task).await?)
    }
}

impl Drop for ModelServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn router(shared: Arc<Shared>) -> Router {
    let chat = |api: Api, path: &'static str| {
        post(
            move |State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes| async move {
                shared.chat(api, path, headers, body).await
            },
        )
    };
    let list = |api: Api, path: &'static str| {
        get(
            move |State(shared): State<Arc<Shared>>, headers: HeaderMap| async move {
                shared.list(api, path, headers)
            },
        )
    };
    Router::new()
        .route("/v1/chat/completions", chat(Api::OpenAi, "/v1/chat/completions"))
        .route("/v1/messages", chat(Api::Anthropic, "/v1/messages"))
        .route("/api/chat", chat(Api::Ollama, "/api/chat"))
        .route("/v1/models", list(Api::OpenAi, "/v1/models"))
        .route("/api/tags", list(Api::Ollama, "/api/tags"))
        .route("/api/version", get(|| async { "{\"version\":\"0.12.0\"}" }))
        .layer(DefaultBodyLimit::max(64 * 1024 * 1024))
        .with_state(shared)
}

impl Shared {
    fn list(&self, api: Api, path: &str, headers: HeaderMap) -> Response {
        let script = Arc::clone(&lock(&self.script).0);
        // One path serves two formats; Anthropic's clients name their version.
        let api = if headers.contains_key("anthropic-version") {
            Api::Anthropic
        } else {
            api
        };
        let allowed = authorized(script.key.as_deref(), &headers);
        self.record(path, headers, Value::Null);
        if !allowed {
            return status(api, StatusCode::UNAUTHORIZED, None, None);
        }
        let names = if script.models.is_empty() {
            vec!["scripted".to_owned()]
        } else {
            script.models.clone()
        };
        plain(
            StatusCode::OK,
            "application/json",
            wire::models(api, &names).to_string(),
        )
    }

    async fn chat(self: Arc<Self>, api: Api, path: &str, headers: HeaderMap, body: Bytes) -> Response {
        let number = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        let script = Arc::clone(&lock(&self.script).0);
        if !authorized(script.key.as_deref(), &headers) {
            self.record(path, headers, Value::Null);
            return status(api, StatusCode::UNAUTHORIZED, None, None);
        }
        let echoes = script.otherwise == Otherwise::Echo;
        if echoes
            && script.rules.is_empty()
            && let Some((whole, stream)) = self.echo.answer(api, &body)
        {
            return plain(StatusCode::OK, wire::content_type(api, stream), whole);
        }
        let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let request = Request::read(api, &json, body.len());
        let versioned = api != Api::Anthropic || headers.contains_key("anthropic-version");
        if !echoes {
            self.record(path, headers, json);
        }
        if !versioned {
            let message = "anthropic-version: header is required";
            return status(api, StatusCode::BAD_REQUEST, Some(message), None);
        }
        let request = match request {
            Ok(request) => request,
            Err(message) => return status(api, StatusCode::BAD_REQUEST, Some(&message), None),
        };
        let then = self.decide(&request, number);
        self.answer(api, &request, then, number).await
    }

    fn record(&self, path: &str, headers: HeaderMap, body: Value) {
        let mut recorded = lock(&self.recorded);
        if recorded.len() < KEPT {
            recorded.push(Recorded {
                path: path.to_owned(),
                headers,
                body,
            });
        }
    }

    /// The first rule that matches, or what [`Otherwise`] says.
    fn decide(&self, request: &Request, number: usize) -> Then {
        let mut guard = lock(&self.script);
        let (script, used) = &mut *guard;
        used.resize(script.rules.len(), 0);
        for (rule, used) in script.rules.iter().zip(used) {
            let when = &rule.when;
            let contains = |part: &Option<String>, text: &str| part.as_ref().is_none_or(|p| text.contains(p));
            let fits = contains(&when.user, &request.user)
                && contains(&when.system, &request.system)
                && when.tool_results.is_none_or(|n| n == request.results.len())
                && when.model.as_ref().is_none_or(|m| *m == request.model)
                && when.offers.as_ref().is_none_or(|t| request.tools.contains(t))
                && when.request.is_none_or(|n| n == number)
                && when.times.is_none_or(|n| *used < n);
            if fits {
                *used += 1;
                return Then {
                    reply: rule.reply.clone(),
                    fault: rule.fault.clone(),
                };
            }
        }
        match script.otherwise {
            Otherwise::Prompt | Otherwise::Echo => prompt::answer(request),
            Otherwise::Refuse => Fault::Status {
                status: 500,
                retry_after: None,
                message: Some(format!("no rule for request {number}: {:?}", request.user)),
            }
            .into(),
        }
    }

    async fn answer(self: Arc<Self>, api: Api, request: &Request, then: Then, number: usize) -> Response {
        let watch = Watch::new(self);
        match &then.fault {
            Some(Fault::Status {
                status: code,
                retry_after,
                message,
            }) => {
                watch.finished();
                let code = StatusCode::from_u16(*code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                return status(api, code, message.as_deref(), retry_after.as_deref());
            }
            Some(Fault::Page {
                status: code,
                content_type,
                body,
            }) => {
                watch.finished();
                let code = StatusCode::from_u16(*code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                return plain(code, content_type, body.clone());
            }
            Some(Fault::Hang) => std::future::pending().await,
            _ => {}
        }
        if then.reply.first_delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(then.reply.first_delay_ms)).await;
        }
        let rendered = wire::render(api, request, &then.reply, number);
        let delay = Duration::from_millis(then.reply.delay_ms);
        let content_type = match &then.fault {
            Some(Fault::ContentType(other)) => other.as_str(),
            _ => wire::content_type(api, request.stream),
        };
        if delay.is_zero() && matches!(then.fault, None | Some(Fault::ContentType(_))) {
            watch.finished();
            let whole = rendered.opening + &rendered.chunks.concat() + &rendered.ending;
            return plain(StatusCode::OK, content_type, whole);
        }
        let body = Body::from_stream(stream(api, rendered, then.fault.clone(), delay, watch));
        build(StatusCode::OK, content_type, None, body)
    }
}

/// Counts the answers under way and those the caller left.
struct Watch {
    shared: Arc<Shared>,
    finished: bool,
}

impl Watch {
    fn new(shared: Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::SeqCst);
        Self {
            shared,
            finished: false,
        }
    }
    fn finished(mut self) {
        self.finished = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::SeqCst);
        if !self.finished {
            self.shared.abandoned.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// The chunks with their delays, and the fault in its place.
fn stream(
    api: Api,
    rendered: Rendered,
    fault: Option<Fault>,
    delay: Duration,
    watch: Watch,
) -> impl futures::Stream<Item = io::Result<Bytes>> {
    async_stream::stream! {
        let at = match &fault {
            Some(Fault::HangAfter { chunks } | Fault::CutAfter { chunks } | Fault::EndAfter { chunks }
                | Fault::NonsenseAfter { chunks } | Fault::ErrorAfter { chunks }) => *chunks,
            _ => usize::MAX,
        };
        if !rendered.opening.is_empty() {
            yield Ok(Bytes::from(rendered.opening));
        }
        for chunk in rendered.chunks.into_iter().take(at) {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            yield Ok(Bytes::from(chunk));
        }
        match fault {
            Some(Fault::HangAfter { .. }) => std::future::pending::<()>().await,
            Some(Fault::CutAfter { .. }) => {
                // Let the chunks before leave the socket: a reset discards what is still unsent.
                tokio::time::sleep(Duration::from_millis(5)).await;
                watch.finished();
                yield Err(io::Error::other("cut by the script"));
                return;
            }
            Some(Fault::EndAfter { .. }) => {}
            Some(Fault::NonsenseAfter { .. }) => {
                yield Ok(Bytes::from_static(b"data: {\"choi\xff\xfe\x00ces\": [}}\n\n\x80\x81 nonsense\n\n"));
            }
            Some(Fault::ErrorAfter { .. }) => yield Ok(Bytes::from(wire::stream_error(api))),
            _ => yield Ok(Bytes::from(rendered.ending)),
        }
        watch.finished();
    }
}

fn authorized(key: Option<&str>, headers: &HeaderMap) -> bool {
    let of = |name: &str| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    };
    key.is_none_or(|key| of("x-api-key") == key || of("authorization").strip_prefix("Bearer ") == Some(key))
}

fn status(api: Api, code: StatusCode, message: Option<&str>, retry_after: Option<&str>) -> Response {
    let body = wire::error_body(api, code.as_u16(), message);
    build(code, "application/json", retry_after, Body::from(body))
}

fn plain(code: StatusCode, content_type: &str, body: impl Into<Body>) -> Response {
    build(code, content_type, None, body.into())
}

fn build(code: StatusCode, content_type: &str, retry_after: Option<&str>, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, Some(content_type)),
        (header::RETRY_AFTER, retry_after),
    ] {
        if let Some(value) = value.and_then(|v| v.parse().ok()) {
            headers.insert(name, value);
        }
    }
    response
}
