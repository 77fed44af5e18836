//! Plain HTTP/1.1 requests: what a probe, a scraper or an in-cluster caller sends.

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use std::time::Duration;

/// For an answer to begin and end.
const PATIENCE: Duration = Duration::from_secs(30);

/// `GET`; status and text.
///
/// # Errors
/// When there is no answer.
pub async fn get(url: &str) -> anyhow::Result<(StatusCode, String)> {
    send(Request::get(url).body(Full::default())?).await
}

/// `POST` of JSON with a bearer token; status and text.
///
/// # Errors
/// When there is no answer.
pub async fn post(url: &str, token: &str, body: &Value) -> anyhow::Result<(StatusCode, String)> {
    let request = Request::post(url)
        .header("content-type", "application/json")
        .header("a2a-version", "1.0")
        .header("authorization", format!("Bearer {token}"))
        .body(Full::new(Bytes::from(body.to_string())))?;
    send(request).await
}

/// `POST` of JSON with a trace context (W3C `traceparent`), with a bearer token or without; the status.
///
/// # Errors
/// When there is no answer.
pub async fn traced(
    url: &str,
    token: Option<&str>,
    traceparent: &str,
    body: &Value,
) -> anyhow::Result<StatusCode> {
    let mut request = Request::post(url)
        .header("content-type", "application/json")
        .header("traceparent", traceparent);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let (status, _) = send(request.body(Full::new(Bytes::from(body.to_string())))?).await?;
    Ok(status)
}

/// One turn of an agent, by A2A's JSON-RPC: the task as it ended.
///
/// # Errors
/// When there is no answer, or no task in it.
pub async fn turn(url: &str, token: &str, message: &str, text: &str) -> anyhow::Result<Value> {
    let message = json!({"messageId": message, "role": "ROLE_USER", "parts": [{"text": text}]});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message}});
    let (status, answer) = post(url, token, &body).await?;
    let value: Value = serde_json::from_str(&answer).with_context(|| format!("{status}: {answer}"))?;
    let task = value["result"]["task"].clone();
    anyhow::ensure!(task.is_object(), "{status}: {answer}");
    Ok(task)
}

/// One turn that streams (A2A's `SendStreamingMessage`): each event as it came.
///
/// # Errors
/// When there is no answer, or it does not end within `patience`.
pub async fn stream(url: &str, token: &str, text: &str, patience: Duration) -> anyhow::Result<Vec<Value>> {
    let (status, answer) = send_within(streaming(url, token, text)?, patience).await?;
    read(&answer).with_context(|| format!("{status}: {answer}"))
}

fn streaming(url: &str, token: &str, text: &str) -> anyhow::Result<Request<Full<Bytes>>> {
    let id: String = text
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(64)
        .collect();
    let message = json!({"messageId": format!("m-{id}"), "role": "ROLE_USER", "parts": [{"text": text}]});
    let body =
        json!({"jsonrpc": "2.0", "id": 1, "method": "SendStreamingMessage", "params": {"message": message}});
    let request = Request::post(url)
        .header("content-type", "application/json")
        .header("accept", "text/event-stream")
        .header("a2a-version", "1.0")
        .header("authorization", format!("Bearer {token}"))
        .body(Full::new(Bytes::from(body.to_string())))?;
    Ok(request)
}

fn read(answer: &str) -> anyhow::Result<Vec<Value>> {
    let events = answer.lines().filter_map(|line| line.strip_prefix("data:"));
    let events: Result<Vec<Value>, _> = events.map(|json| serde_json::from_str(json.trim())).collect();
    Ok(events?)
}

/// A turn that streams and goes on.
#[derive(Debug)]
pub struct Events {
    body: UnsyncBoxBody<Bytes, anyhow::Error>,
    text: String,
}

impl Events {
    /// Begins one, and waits for its first event.
    ///
    /// # Errors
    /// When there is none.
    pub async fn begin(url: &str, token: &str, text: &str) -> anyhow::Result<Self> {
        let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(HttpConnector::new());
        let answer = client.request(streaming(url, token, text)?).await?;
        let mut events = Self {
            body: answer.into_body().map_err(anyhow::Error::from).boxed_unsync(),
            text: String::new(),
        };
        while !events.text.contains("\n\n") {
            let more = tokio::time::timeout(PATIENCE, events.more()).await;
            anyhow::ensure!(more.context("no event")??, "no event: {}", events.text);
        }
        Ok(events)
    }

    /// Whether there was more.
    async fn more(&mut self) -> anyhow::Result<bool> {
        let Some(frame) = self.body.frame().await.transpose()? else {
            return Ok(false);
        };
        if let Some(bytes) = frame.data_ref() {
            self.text.push_str(&String::from_utf8_lossy(bytes));
        }
        Ok(true)
    }

    /// All of its events, once it has ended as a whole.
    ///
    /// # Errors
    /// When it breaks off, or goes on for longer than `patience`.
    pub async fn rest(mut self, patience: Duration) -> anyhow::Result<Vec<Value>> {
        let ended = async {
            while self.more().await? {}
            anyhow::Ok(())
        };
        tokio::time::timeout(patience, ended)
            .await
            .context("it goes on")??;
        read(&self.text).with_context(|| self.text.clone())
    }
}

async fn send(request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, String)> {
    send_within(request, PATIENCE).await
}

async fn send_within(
    request: Request<Full<Bytes>>,
    patience: Duration,
) -> anyhow::Result<(StatusCode, String)> {
    let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(HttpConnector::new());
    let asked = async {
        let answer = client.request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(patience, asked).await.context("no answer")?
}
