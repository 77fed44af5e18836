//! A small hub for the tests: answers by script and remembers what it was asked.

use axum::{
    Json, Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
    routing::{any, post},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};
use tokio::sync::Notify;

pub(crate) const TOKEN: &str = "rst_0123456789secret";

/// What the hub says to a call of A2A.
#[derive(Clone, Debug)]
pub(crate) enum Stream {
    /// Events, then the end of the stream.
    Events(Vec<Value>),
    /// Events, then nothing until the notification.
    Held(Vec<Value>, Arc<Notify>),
    /// One plain JSON-RPC answer.
    Result(Value),
    Error(Value),
    /// The agent is not ready, says the hub, and when to come again.
    NotReady,
    /// The answer is lost before anything of it is read.
    Lost,
}

type Headers = Vec<(&'static str, &'static str)>;

#[derive(Debug, Default)]
pub(crate) struct Script {
    /// By operation; the last answer is repeated.
    pub(crate) graphql: BTreeMap<String, VecDeque<Value>>,
    /// By JSON-RPC method.
    pub(crate) a2a: BTreeMap<String, VecDeque<Stream>>,
    pub(crate) lines: Vec<Value>,
    /// Streams that break off after these lines, before those of `lines`.
    pub(crate) broken_lines: VecDeque<Vec<Value>>,
    /// So many answers are lost on the way.
    pub(crate) lost: usize,
    /// Everything is answered with this.
    pub(crate) refuse: Option<(u16, Headers, Value)>,
    /// `(operation or method, variables or params)`.
    pub(crate) asked: Vec<(String, Value)>,
    pub(crate) paths: Vec<String>,
}

type Shared = Arc<Mutex<Script>>;

#[derive(Clone, Debug)]
pub(crate) struct Hub {
    pub(crate) url: String,
    script: Shared,
}

impl Hub {
    pub(crate) async fn start() -> Self {
        let script = Shared::default();
        let routes = Router::new()
            .route("/graphql", post(graphql))
            .route("/graphql/ws", any(socket))
            .route("/a2a/{*agent}", post(a2a))
            .with_state(Arc::clone(&script));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, script }
    }

    pub(crate) fn graphql(&self, operation: &str, data: Value) {
        let mut script = self.script.lock().unwrap();
        script
            .graphql
            .entry(operation.to_owned())
            .or_default()
            .push_back(data);
    }

    pub(crate) fn a2a(&self, method: &str, stream: Stream) {
        let mut script = self.script.lock().unwrap();
        script.a2a.entry(method.to_owned()).or_default().push_back(stream);
    }

    pub(crate) fn lines(&self, lines: Vec<Value>) {
        self.script.lock().unwrap().lines = lines;
    }

    pub(crate) fn lines_and_break(&self, lines: Vec<Value>) {
        self.script.lock().unwrap().broken_lines.push_back(lines);
    }

    /// The next answers are lost after the work is done.
    pub(crate) fn lose(&self, answers: usize) {
        self.script.lock().unwrap().lost = answers;
    }

    pub(crate) fn refuse(&self, status: u16, headers: Headers, body: Value) {
        self.script.lock().unwrap().refuse = Some((status, headers, body));
    }

    pub(crate) fn asked(&self) -> Vec<(String, Value)> {
        self.script.lock().unwrap().asked.clone()
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.script.lock().unwrap().paths.clone()
    }
}

/// Everything needs the token, in its header.
#[expect(
    clippy::result_large_err,
    reason = "a response is what the caller returns at once"
)]
fn admit(script: &Shared, headers: &HeaderMap, uri: &Uri) -> Result<(), Response> {
    let mut script = script.lock().unwrap();
    script.paths.push(uri.to_string());
    if let Some((status, headers, body)) = &script.refuse {
        let mut response = Json(body.clone()).into_response();
        *response.status_mut() = StatusCode::from_u16(*status).unwrap();
        for (name, value) in headers {
            response.headers_mut().insert(*name, value.parse().unwrap());
        }
        return Err(response);
    }
    let expected = format!("Bearer {TOKEN}");
    if headers
        .get(header::AUTHORIZATION)
        .is_none_or(|value| value != expected.as_str())
    {
        let problem = json!({"code": "UNAUTHENTICATED", "detail": "a valid token is needed", "status": 401});
        return Err((StatusCode::UNAUTHORIZED, Json(problem)).into_response());
    }
    Ok(())
}

async fn graphql(
    State(script): State<Shared>,
    headers: HeaderMap,
    uri: Uri,
    Json(body): Json<Value>,
) -> Response {
    if let Err(refusal) = admit(&script, &headers, &uri) {
        return refusal;
    }
    let operation = body["operationName"].as_str().unwrap().to_owned();
    assert!(body["query"].as_str().unwrap().contains(&operation));
    let mut script = script.lock().unwrap();
    script.asked.push((operation.clone(), body["variables"].clone()));
    let answers = script
        .graphql
        .get_mut(&operation)
        .unwrap_or_else(|| panic!("{operation} is not in the script"));
    let answer = if answers.len() > 1 {
        answers.pop_front().unwrap()
    } else {
        answers[0].clone()
    };
    if script.lost > 0 {
        script.lost -= 1;
        let broken = futures::stream::iter([Ok("{\"data\":"), Err(std::io::Error::other("cut"))]);
        return axum::body::Body::from_stream(broken).into_response();
    }
    if answer.get("errors").is_some() {
        return Json(answer).into_response();
    }
    Json(json!({"data": answer})).into_response()
}

async fn a2a(
    State(script): State<Shared>,
    headers: HeaderMap,
    uri: Uri,
    Json(body): Json<Value>,
) -> Response {
    if let Err(refusal) = admit(&script, &headers, &uri) {
        return refusal;
    }
    assert_eq!(headers["a2a-version"], "1.0");
    let method = body["method"].as_str().unwrap().to_owned();
    let mut script = script.lock().unwrap();
    script.asked.push((method.clone(), body["params"].clone()));
    let answers = script
        .a2a
        .get_mut(&method)
        .unwrap_or_else(|| panic!("{method} is not in the script"));
    let answer = answers
        .pop_front()
        .unwrap_or_else(|| panic!("{method} once more"));
    let id = body["id"].clone();
    let event = |result: &Value| {
        format!(
            "data: {}\n\n",
            json!({"jsonrpc": "2.0", "id": id, "result": result})
        )
    };
    let (events, hold) = match answer {
        Stream::Result(result) => {
            return Json(json!({"jsonrpc": "2.0", "id": id, "result": result})).into_response();
        }
        Stream::Error(error) => {
            return Json(json!({"jsonrpc": "2.0", "id": id, "error": error})).into_response();
        }
        Stream::NotReady => {
            let data = json!([{"domain": "roadstead.dev", "reason": "UNAVAILABLE"}]);
            let error = json!({"code": -32000, "message": "the agent is not ready", "data": data});
            let answer = Json(json!({"jsonrpc": "2.0", "id": id, "error": error}));
            return ([(header::RETRY_AFTER, "5")], answer).into_response();
        }
        Stream::Lost => {
            let broken = futures::stream::iter([Ok("data: "), Err(std::io::Error::other("cut"))]);
            let body = axum::body::Body::from_stream(broken);
            return ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response();
        }
        Stream::Events(events) => (events, None),
        Stream::Held(events, notify) => (events, Some(notify)),
    };
    let text: String = events.iter().map(event).collect();
    let stream = async_stream(text, hold);
    (
        [(header::CONTENT_TYPE, "text/event-stream")],
        axum::body::Body::from_stream(stream),
    )
        .into_response()
}

fn async_stream(
    text: String,
    hold: Option<Arc<Notify>>,
) -> impl futures::Stream<Item = Result<String, std::io::Error>> {
    let first = futures::stream::once(async move { Ok(text) });
    let rest = futures::stream::once(async move {
        if let Some(hold) = hold {
            hold.notified().await;
        }
        Ok(String::new())
    });
    futures::StreamExt::chain(first, rest)
}

async fn socket(
    State(script): State<Shared>,
    headers: HeaderMap,
    uri: Uri,
    upgrade: WebSocketUpgrade,
) -> Response {
    if let Err(refusal) = admit(&script, &headers, &uri) {
        return refusal;
    }
    upgrade
        .protocols(["graphql-transport-ws"])
        .on_upgrade(move |socket| serve(socket, script))
}

async fn serve(mut socket: WebSocket, script: Shared) {
    let (mut say, mut breaks) = (Vec::new(), false);
    while let Some(Ok(Message::Text(text))) = socket.recv().await {
        let message: Value = serde_json::from_str(&text).unwrap();
        match message["type"].as_str().unwrap() {
            "connection_init" => say.push(json!({"type": "connection_ack"})),
            "subscribe" => {
                let mut script = script.lock().unwrap();
                let operation = message["payload"]["operationName"].as_str().unwrap().to_owned();
                script
                    .asked
                    .push((operation, message["payload"]["variables"].clone()));
                say.push(json!({"type": "ping"}));
                let broken = script.broken_lines.pop_front();
                breaks = broken.is_some();
                for line in broken.as_ref().unwrap_or(&script.lines) {
                    say.push(json!({"id": "1", "type": "next", "payload": {"data": {"agentLogs": line}}}));
                }
                if !breaks {
                    say.push(json!({"id": "1", "type": "complete"}));
                }
            }
            _ => {}
        }
        for message in say.drain(..) {
            if socket.send(Message::text(message.to_string())).await.is_err() {
                return;
            }
        }
        if breaks {
            return;
        }
    }
}
