//! A2A 1.0 over JSON-RPC, with server-sent events for what streams (A2A 1.0 §9).

use crate::{
    client::Client,
    failure::{Exit, Failure, Outcome},
};
use a2a::{
    CancelTaskRequest, GetTaskRequest, JsonRpcError, JsonRpcRequest, JsonRpcResponse, SendMessageRequest,
    StreamResponse, SubscribeToTaskRequest, Task, error_code, methods,
};
use http::{HeaderMap, header};
use roadstead_contract::documents::Reference;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::time::Duration;

/// Longest event that is read, in bytes.
const MAX_EVENT: usize = 16 * 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);

/// One agent behind the hub.
pub(crate) struct AgentEndpoint<'a> {
    client: &'a Client,
    url: reqwest::Url,
}

impl<'a> AgentEndpoint<'a> {
    pub(crate) fn new(client: &'a Client, agent: &Reference) -> Self {
        let (project, name) = client.place(agent);
        let url = client.url(&format!("/a2a/{}/{project}/{name}", client.context.tenant));
        Self { client, url }
    }

    /// Sends a message; the events of its task come back.
    ///
    /// # Errors
    /// The agent is not reached, or refuses.
    pub(crate) async fn send(&self, message: a2a::Message) -> Outcome<Events<'a>> {
        let request = SendMessageRequest {
            message,
            configuration: None,
            metadata: None,
            tenant: None,
        };
        self.stream(methods::SEND_STREAMING_MESSAGE, &request).await
    }

    /// The events of a task from now on, beginning with how it stands.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(crate) async fn subscribe(&self, task: &str) -> Outcome<Events<'a>> {
        let request = SubscribeToTaskRequest {
            id: task.to_owned(),
            tenant: None,
        };
        self.stream(methods::SUBSCRIBE_TO_TASK, &request).await
    }

    /// A stream that has ended.
    pub(crate) fn nothing(&self) -> Events<'a> {
        Events {
            client: self.client,
            response: None,
            reader: Reader::default(),
        }
    }

    /// How a task stands.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(crate) async fn task(&self, task: &str) -> Outcome<Task> {
        let request = GetTaskRequest {
            id: task.to_owned(),
            history_length: None,
            tenant: None,
        };
        self.once(methods::GET_TASK, &request).await
    }

    /// Ends a task.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(crate) async fn cancel(&self, task: &str) -> Outcome<Task> {
        let request = CancelTaskRequest {
            id: task.to_owned(),
            metadata: None,
            tenant: None,
        };
        self.once(methods::CANCEL_TASK, &request).await
    }

    async fn post(
        &self,
        method: &str,
        params: &impl Serialize,
        accept: &str,
        deadline: Option<Duration>,
    ) -> Outcome<reqwest::Response> {
        let params = serde_json::to_value(params)
            .map_err(|error| Failure::new(Exit::Failed, format!("the message cannot be written: {error}")))?;
        let id = uuid::Uuid::new_v4().to_string();
        let mut request = self
            .client
            .http()
            .post(self.url.clone())
            .headers(self.client.headers())
            .header("a2a-version", "1.0")
            .header(header::ACCEPT, accept)
            .json(&JsonRpcRequest::new(id.into(), method, Some(params)));
        if let Some(deadline) = deadline {
            request = request.timeout(deadline);
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.client.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, headers) = (response.status(), response.headers().clone());
        let body = self.client.body(response).await?;
        match serde_json::from_slice::<JsonRpcResponse>(&body) {
            Ok(JsonRpcResponse {
                error: Some(error), ..
            }) => Err(self.client.refused_call(&error, &headers)),
            _ => Err(self.client.refused(status, &headers, &body)),
        }
    }

    async fn once<T: DeserializeOwned>(&self, method: &str, params: &impl Serialize) -> Outcome<T> {
        let response = self
            .post(method, params, "application/json", Some(DEADLINE))
            .await?;
        let headers = response.headers().clone();
        let body = self.client.body(response).await?;
        result(self.client, &headers, &body)
    }

    async fn stream(&self, method: &str, params: &impl Serialize) -> Outcome<Events<'a>> {
        let response = self.post(method, params, "text/event-stream", None).await?;
        let kind = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok());
        if kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            return Ok(Events {
                client: self.client,
                response: Some(response),
                reader: Reader::default(),
            });
        }
        // Refused before anything streamed: one JSON-RPC answer.
        let headers = response.headers().clone();
        let body = self.client.body(response).await?;
        result::<Value>(self.client, &headers, &body)?;
        Err(Failure::new(Exit::Failed, "the agent answered without a stream")
            .next("use a CLI and a hub of the same version"))
    }
}

fn result<T: DeserializeOwned>(client: &Client, headers: &HeaderMap, body: &[u8]) -> Outcome<T> {
    let strange = |error: serde_json::Error| {
        let message = format!("the agent's answer cannot be understood: {error}");
        Failure::new(Exit::Failed, message).next("use a CLI and a hub of the same version")
    };
    let response: JsonRpcResponse = serde_json::from_slice(body).map_err(strange)?;
    match response.error {
        Some(error) => Err(client.refused_call(&error, headers)),
        None => serde_json::from_value(response.result.unwrap_or_default()).map_err(strange),
    }
}

impl Client {
    /// A JSON-RPC error; the hub says its own code in `data` (google.rpc.ErrorInfo).
    fn refused_call(&self, error: &JsonRpcError, headers: &HeaderMap) -> Failure {
        let details = error
            .data
            .as_ref()
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let ours = details
            .filter(|detail| detail["domain"] == "roadstead.dev")
            .find_map(|detail| detail["reason"].as_str());
        let by_code = match error.code {
            error_code::TASK_NOT_FOUND => Exit::NotFound,
            error_code::INVALID_PARAMS
            | error_code::INVALID_REQUEST
            | error_code::CONTENT_TYPE_NOT_SUPPORTED => Exit::Invalid,
            error_code::TASK_NOT_CANCELABLE => Exit::Conflict,
            // The engine's own way to say so: it has no code of the hub's.
            _ if headers.contains_key(header::RETRY_AFTER) => Exit::Unavailable,
            _ => Exit::Failed,
        };
        let exit = ours
            .map(Exit::of_code)
            .filter(|exit| *exit != Exit::Failed)
            .unwrap_or(by_code);
        let failure = Failure::new(exit, &error.message);
        match (exit, error.code) {
            (_, error_code::TASK_NOT_FOUND) => failure
                .next("look for the task: roadstead runs --agent AGENT; tasks are kept where the agent runs"),
            (Exit::NotFound, _) if ours.is_some() => failure.next("roadstead get agents"),
            (Exit::Conflict, _) => failure.next("see how the task ended: roadstead chat AGENT --task ID"),
            (Exit::Unavailable, _) if !headers.contains_key(header::RETRY_AFTER) => {
                failure.next("see where the agent runs: roadstead describe agent NAME; roadstead clusters")
            }
            (Exit::Unavailable, _) => {
                let advised = self.advised(failure, "UNAVAILABLE", headers);
                let when = advised.next.clone().unwrap_or_default();
                advised.next(format!(
                    "{when}; see where the agent runs: roadstead describe agent NAME; roadstead clusters"
                ))
            }
            _ => self.advised(failure, ours.unwrap_or_default(), headers),
        }
    }
}

/// A stream of a task's events.
pub(crate) struct Events<'a> {
    client: &'a Client,
    response: Option<reqwest::Response>,
    reader: Reader,
}

impl Events<'_> {
    /// The next event; `None` at the end of the stream. May be given up and called again.
    ///
    /// # Errors
    /// The stream breaks off (unavailable), or carries an error.
    pub(crate) async fn next(&mut self) -> Outcome<Option<StreamResponse>> {
        loop {
            if let Some(data) = self.reader.next() {
                return result(self.client, &HeaderMap::new(), data.as_bytes()).map(Some);
            }
            let Some(response) = &mut self.response else {
                return Ok(None);
            };
            match response
                .chunk()
                .await
                .map_err(|error| self.client.unreachable(&error))?
            {
                Some(chunk) => self.reader.push(&chunk)?,
                None => self.response = None,
            }
        }
    }
}

/// Server-sent events to their data (WHATWG HTML §9.2.6, as much as JSON-RPC needs).
#[derive(Debug, Default)]
struct Reader {
    bytes: Vec<u8>,
    data: String,
    ready: std::collections::VecDeque<String>,
}

impl Reader {
    fn push(&mut self, chunk: &[u8]) -> Outcome<()> {
        self.bytes.extend_from_slice(chunk);
        while let Some(end) = self.bytes.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                if !self.data.is_empty() {
                    self.ready.push_back(std::mem::take(&mut self.data));
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
        }
        if self.bytes.len() + self.data.len() > MAX_EVENT {
            return Err(Failure::new(
                Exit::Failed,
                format!("an event is longer than {MAX_EVENT} bytes"),
            ));
        }
        Ok(())
    }

    fn next(&mut self) -> Option<String> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_across_chunks() {
        let mut reader = Reader::default();
        for chunk in [
            "data: {\"a\":",
            "1}\r\n\r",
            "\n: comment\nid: 3\ndata: x\nda",
            "ta: y\n\n\n",
        ] {
            reader.push(chunk.as_bytes()).unwrap();
        }
        assert_eq!(reader.next().as_deref(), Some("{\"a\":1}"));
        assert_eq!(reader.next().as_deref(), Some("x\ny"));
        assert_eq!(reader.next(), None);
    }
}
