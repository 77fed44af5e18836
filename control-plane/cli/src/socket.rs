//! One subscription over graphql-transport-ws.
//!
//! Source: <https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md>. The upgrade is made by the HTTP client, so
//! that proxies and TLS roots are those of every other request.

use crate::{
    api,
    client::Client,
    failure::{Exit, Failure, Outcome},
    transport,
};
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

const ACK: Duration = Duration::from_secs(10);
const ID: &str = "1";

/// A running subscription.
pub(crate) struct Subscription<'a> {
    client: &'a Client,
    socket: WebSocketStream<reqwest::Upgraded>,
    field: &'static str,
}

/// What came next.
pub(crate) enum Next<T> {
    Item(T),
    /// The hub has no more.
    Complete,
}

impl<'a> Subscription<'a> {
    /// Opens the socket and starts the operation.
    ///
    /// # Errors
    /// The hub is not reached or refuses.
    pub(crate) async fn start(
        client: &'a Client,
        operation: &str,
        field: &'static str,
        variables: Value,
    ) -> Outcome<Self> {
        let query = api::operation(operation)
            .ok_or_else(|| Failure::new(Exit::Failed, format!("there is no operation {operation}")))?;
        let mut socket = upgrade(client).await?;
        send(&mut socket, &json!({"type": "connection_init"})).await?;
        let ack = tokio::time::timeout(ACK, message(&mut socket)).await;
        match ack
            .map_err(|_| Failure::new(Exit::Unavailable, "the hub does not acknowledge the connection"))??
        {
            Some(ack) if ack["type"] == "connection_ack" => {}
            _ => {
                return Err(Failure::new(
                    Exit::Failed,
                    "the hub answered the connection with something else",
                ));
            }
        }
        let payload = json!({"query": query, "operationName": operation, "variables": variables});
        send(
            &mut socket,
            &json!({"id": ID, "type": "subscribe", "payload": payload}),
        )
        .await?;
        Ok(Self {
            client,
            socket,
            field,
        })
    }

    /// The next item.
    ///
    /// # Errors
    /// The hub reports one, closes the socket with a reason, or breaks off.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Outcome<Next<T>> {
        loop {
            let Some(mut message) = message(&mut self.socket).await? else {
                return Err(
                    Failure::new(Exit::Unavailable, "the hub closed the stream").next("start it again")
                );
            };
            match message["type"].as_str() {
                Some("next") => {
                    let payload = &mut message["payload"];
                    if let Some(error) = payload["errors"].get(0) {
                        return Err(self.fault(error));
                    }
                    let item = payload["data"][self.field].take();
                    let item = serde_json::from_value(item).map_err(|error| {
                        Failure::new(
                            Exit::Failed,
                            format!("the hub's event cannot be understood: {error}"),
                        )
                    })?;
                    return Ok(Next::Item(item));
                }
                Some("error") => return Err(self.fault(&message["payload"][0])),
                Some("complete") => return Ok(Next::Complete),
                Some("ping") => send(&mut self.socket, &json!({"type": "pong"})).await?,
                _ => {}
            }
        }
    }

    fn fault(&self, error: &Value) -> Failure {
        let code = error["extensions"]["code"].as_str().unwrap_or_default();
        let message = error["message"].as_str().unwrap_or("the hub reports an error");
        let failure = Failure::new(Exit::of_code(code), message);
        self.client.advised(failure, code, &HeaderMap::new())
    }

    /// Says goodbye; what the hub answers does not matter any more.
    pub(crate) async fn stop(mut self) {
        drop(send(&mut self.socket, &json!({"id": ID, "type": "complete"})).await);
        drop(self.socket.close(None).await);
    }
}

/// The WebSocket handshake (RFC 6455 §4.1).
async fn upgrade(client: &Client) -> Outcome<WebSocketStream<reqwest::Upgraded>> {
    // Upgrades exist in HTTP/1.1 only.
    let http = transport::build(transport::http(client.base()).http1_only())?;
    let key = generate_key();
    let response = http
        .get(client.url("/graphql/ws"))
        .headers(client.headers())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, "graphql-transport-ws")
        .send()
        .await
        .map_err(|error| client.unreachable(&error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = client.body(response).await?;
        return Err(client.refused(status, &headers, &body));
    }
    let accept = response
        .headers()
        .get(header::SEC_WEBSOCKET_ACCEPT)
        .map(HeaderValue::as_bytes);
    if accept != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(Failure::new(Exit::Failed, "the server does not speak WebSocket"));
    }
    let upgraded = response
        .upgrade()
        .await
        .map_err(|error| client.unreachable(&error))?;
    let config = WebSocketConfig::default().max_message_size(Some(8 * 1024 * 1024));
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await)
}

async fn send(socket: &mut WebSocketStream<reqwest::Upgraded>, message: &Value) -> Outcome<()> {
    socket
        .send(Message::text(message.to_string()))
        .await
        .map_err(|error| broken(&error))
}

fn broken(error: &tokio_tungstenite::tungstenite::Error) -> Failure {
    Failure::new(Exit::Unavailable, format!("the stream broke off: {error}")).next("start it again")
}

/// The next JSON message; `None` at the end of the stream.
async fn message(socket: &mut WebSocketStream<reqwest::Upgraded>) -> Outcome<Option<Value>> {
    while let Some(message) = socket.next().await {
        match message.map_err(|error| broken(&error))? {
            Message::Text(text) => {
                let value = serde_json::from_str(&text);
                return value
                    .map(Some)
                    .map_err(|_| Failure::new(Exit::Failed, "the hub's message is not JSON"));
            }
            Message::Close(Some(frame)) => {
                let exit = match u16::from(frame.code) {
                    4401 | 4403 => Exit::Forbidden,
                    4400 | 4409 => Exit::Failed,
                    4429 => Exit::Limit,
                    _ => Exit::Unavailable,
                };
                return Err(Failure::new(
                    exit,
                    format!("the hub closed the stream: {} ({})", frame.reason, frame.code),
                ));
            }
            _ => {}
        }
    }
    Ok(None)
}
