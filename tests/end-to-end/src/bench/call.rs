//! The calls that are measured: over kept connections, with as little of our own as possible.

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// One kept connection (used by one caller at a time).
#[derive(Clone, Debug)]
pub(crate) struct Caller(Client<HttpConnector, Full<Bytes>>);

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Caller {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self(Client::builder(TokioExecutor::new()).build(connector))
    }

    pub(crate) async fn post(&self, url: &str, body: Vec<u8>) -> anyhow::Result<Bytes> {
        let request = Request::post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header("A2A-Version", "1.0")
            .body(Full::new(Bytes::from(body)))?;
        let answer = self.0.request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        anyhow::ensure!(
            status.is_success(),
            "{url}: {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(body)
    }

    pub(crate) async fn get(&self, url: &str) -> anyhow::Result<Bytes> {
        let answer = self.0.request(Request::get(url).body(Full::default())?).await?;
        anyhow::ensure!(answer.status().is_success(), "{url}: {}", answer.status());
        Ok(answer.into_body().collect().await?.to_bytes())
    }

    /// One turn in a new task (and a new session where `session` is none); the task must complete.
    pub(crate) async fn turn(&self, url: &str, session: Option<&str>, text: &str) -> anyhow::Result<String> {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut message = json!({"messageId": format!("bench-{}-{n}", std::process::id()), "role": "ROLE_USER",
                                 "parts": [{"text": text}]});
        if let Some(session) = session {
            message["contextId"] = json!(session);
        }
        let body =
            json!({"jsonrpc": "2.0", "id": n, "method": "SendMessage", "params": {"message": message}});
        let answer: Value = serde_json::from_slice(&self.post(url, serde_json::to_vec(&body)?).await?)?;
        let task = &answer["result"]["task"];
        let state = task["status"]["state"]
            .as_str()
            .with_context(|| format!("no task in {answer}"))?;
        anyhow::ensure!(state == "TASK_STATE_COMPLETED", "{state}: {answer}");
        Ok(task["contextId"].as_str().context("contextId")?.to_owned())
    }
}

/// What an engine asks of its model server for such a turn: to be taken from the engine's own time.
pub(crate) fn completion(text: &str) -> Vec<u8> {
    let body = json!({"model": "echo", "stream": true, "stream_options": {"include_usage": true},
                      "messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": text}]});
    body.to_string().into_bytes()
}
