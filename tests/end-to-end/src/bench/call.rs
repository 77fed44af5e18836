//! The calls that are measured: over kept connections, with as little of our own as possible.

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// One kept connection (used by one caller at a time).
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    headers: HeaderMap,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Caller {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            headers: HeaderMap::new(),
        }
    }

    /// For an engine's A2A interface.
    pub(crate) fn a2a() -> anyhow::Result<Self> {
        Self::new().with("a2a-version", "1.0")
    }

    /// Sends this header with each request.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> anyhow::Result<Self> {
        let mut value = HeaderValue::try_from(value)?;
        value.set_sensitive(name == "authorization");
        self.headers.insert(HeaderName::from_static(name), value);
        Ok(self)
    }

    pub(crate) async fn post(&self, url: &str, body: Vec<u8>) -> anyhow::Result<Bytes> {
        let mut request = Request::post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        request.headers_mut().extend(self.headers.clone());
        let answer = self.client.request(request).await?;
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
        let mut request = Request::get(url).body(Full::default())?;
        request.headers_mut().extend(self.headers.clone());
        let answer = self.client.request(request).await?;
        anyhow::ensure!(answer.status().is_success(), "{url}: {}", answer.status());
        Ok(answer.into_body().collect().await?.to_bytes())
    }

    /// One turn in a new task of a new session; the task must complete, with this text in its answer.
    pub(crate) async fn turn(&self, url: &str, text: &str, answer: &str) -> anyhow::Result<()> {
        self.turn_in(url, None, text, answer).await
    }

    /// The same in the session of this name.
    pub(crate) async fn turn_in(
        &self,
        url: &str,
        session: Option<&str>,
        text: &str,
        answer: &str,
    ) -> anyhow::Result<()> {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut message = json!({"messageId": format!("bench-{}-{n}", std::process::id()), "role": "ROLE_USER",
                                 "parts": [{"text": text}]});
        if let Some(session) = session {
            message["contextId"] = session.into();
        }
        let body =
            json!({"jsonrpc": "2.0", "id": n, "method": "SendMessage", "params": {"message": message}});
        let said: Value = serde_json::from_slice(&self.post(url, serde_json::to_vec(&body)?).await?)?;
        let task = &said["result"]["task"];
        let state = task["status"]["state"]
            .as_str()
            .with_context(|| format!("no task in {said}"))?;
        let found = task["artifacts"][0]["parts"][0]["text"]
            .as_str()
            .unwrap_or_default();
        anyhow::ensure!(
            state == "TASK_STATE_COMPLETED" && found.contains(answer),
            "{state}, expected the answer {answer:?}: {said}"
        );
        Ok(())
    }
}
