//! `GET /graphql/ws`: subscriptions by the graphql-transport-ws protocol, with its close codes (S23).
//!
//! Who asks is known before anything runs: by the `Authorization` header of the upgrade, or by `authorization` in the
//! payload of `connection_init`. The token is verified again every few seconds, so that a revoked one closes the
//! socket (S14, S22). Source: <https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md>.

use crate::{
    Graphql,
    sockets::Place,
    wire::{Answer, Unreadable, read, request_error},
};
use async_graphql::parser::types::OperationType;
use axum::{
    extract::{
        ConnectInfo, Request, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade},
    },
    response::Response,
};
use futures::{StreamExt as _, stream, stream::BoxStream};
use http::{HeaderMap, StatusCode, header};
use roadstead_authz::{RequestInfo, Source, TenantContext};
use roadstead_http::{ONE_LOOK, Problem, RECHECK, RequestId, Session, UNANSWERED, json_tokens};
use roadstead_telemetry::propagate;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_stream::StreamMap;

const PROTOCOL: &str = "graphql-transport-ws";

/// Limits of one socket.
#[derive(Clone, Debug)]
pub struct SocketLimits {
    /// From the upgrade to `connection_init`.
    pub init: Duration,
    /// Between two checks of the token.
    pub recheck: Duration,
    /// How long it stays open while nobody can say whether the token is still good.
    pub unanswered: Duration,
    /// For one message to be taken by a slow reader.
    pub send: Duration,
    /// Subscriptions at once.
    pub subscriptions: usize,
    /// Bytes of one message from the client.
    pub message_bytes: usize,
    /// Brackets, colons and commas in one message, see [`roadstead_http::json_tokens`].
    pub json_tokens: usize,
    /// Messages from the client in one [`SocketLimits::recheck`].
    pub messages: usize,
    /// Sockets of one actor at once.
    pub per_actor: usize,
}

impl Default for SocketLimits {
    fn default() -> Self {
        Self {
            init: Duration::from_secs(10),
            recheck: RECHECK,
            unanswered: UNANSWERED,
            send: Duration::from_secs(10),
            subscriptions: 32,
            message_bytes: 256 * 1024,
            json_tokens: 8 * 1024,
            messages: 256,
            per_actor: 64,
        }
    }
}

/// Why the hub closes a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    BadRequest(&'static str),
    Unauthorized,
    Forbidden,
    InitTimeout,
    SlowReader,
    DuplicateId,
    TooManyInits,
    /// Of messages, of sockets, or of waiting for the database: another time.
    TooMuch(&'static str),
    GoingAway,
}

impl Close {
    fn frame(self) -> CloseFrame {
        let (code, reason) = match self {
            Self::BadRequest(reason) => (4400, reason),
            Self::Unauthorized => (4401, "Unauthorized"),
            Self::Forbidden => (4403, "Forbidden"),
            Self::InitTimeout => (4408, "Connection initialisation timeout"),
            Self::SlowReader => (4408, "Messages were not taken in time"),
            Self::DuplicateId => (4409, "Subscriber for this id already exists"),
            Self::TooManyInits => (4429, "Too many initialisation requests"),
            Self::TooMuch(reason) => (1013, reason),
            Self::GoingAway => (1001, "The hub is going away"),
        };
        CloseFrame {
            code,
            reason: reason.into(),
        }
    }
}

/// What a client may say.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Said {
    ConnectionInit {
        payload: Option<Value>,
    },
    Subscribe {
        id: String,
        payload: Value,
    },
    Complete {
        id: String,
    },
    Ping {
        #[serde(default)]
        payload: Option<Value>,
    },
    Pong {},
}

/// Takes the upgrade.
pub(crate) async fn upgrade(
    State(graphql): State<Arc<Graphql>>,
    id: RequestId,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
    request: Request,
) -> Response {
    let refuse = |status, detail: &str| Problem::new(status, "INVALID", detail).response(&id);
    let Ok(upgrade) = upgrade else {
        return refuse(StatusCode::UPGRADE_REQUIRED, "expected a WebSocket upgrade");
    };
    if !graphql.allows_origin(request.headers()) {
        return refuse(StatusCode::FORBIDDEN, "this origin may not open a socket");
    }
    let upgrade = upgrade
        .protocols([PROTOCOL])
        .max_message_size(graphql.socket.message_bytes)
        .max_frame_size(graphql.socket.message_bytes);
    if upgrade.selected_protocol().is_none() {
        return refuse(
            StatusCode::BAD_REQUEST,
            "expected the subprotocol graphql-transport-ws",
        );
    }
    let token = bearer(request.headers()).map(str::to_owned);
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let info = RequestInfo {
        request_id: id.to_string(),
        trace_id: propagate::trace_id().unwrap_or_default(),
        source: Source {
            ip: peer.map(|ConnectInfo(address)| address.ip()),
            client: "graphql".to_owned(),
        },
    };
    upgrade.on_upgrade(move |socket| async move {
        let proof = token.map(|token| Session::new(graphql.authenticate.clone(), token, info.clone()));
        let mut connection = Connection {
            graphql,
            info,
            id,
            proof,
            context: None,
            answered: Instant::now(),
            place: None,
            messages: 0,
            streams: StreamMap::new(),
        };
        connection.serve(socket).await;
    })
}

/// The token of an `Authorization: Bearer` header; login has refused malformed ones.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What one subscription gives.
enum Event {
    Next(Box<async_graphql::Response>),
    Done,
}

struct Connection {
    graphql: Arc<Graphql>,
    info: RequestInfo,
    id: RequestId,
    /// Verified again and again: a socket is as good as its token.
    proof: Option<Session>,
    /// Set once the connection is acknowledged.
    context: Option<TenantContext>,
    /// When somebody could last say that the token is good.
    answered: Instant,
    /// Among the actor's sockets.
    place: Option<Place>,
    /// From the client since the last check of the token.
    messages: usize,
    streams: StreamMap<String, BoxStream<'static, Event>>,
}

impl Connection {
    async fn serve(&mut self, mut socket: WebSocket) {
        let close = self.converse(&mut socket).await;
        if let Some(close) = close {
            let frame = Message::Close(Some(close.frame()));
            // The peer may be gone; nobody is left to tell.
            drop(timeout(Duration::from_secs(1), socket.send(frame)).await);
        }
    }

    /// Until somebody ends it; `None` where the client did.
    async fn converse(&mut self, socket: &mut WebSocket) -> Option<Close> {
        let init = Instant::now() + self.graphql.socket.init;
        let period = self.graphql.socket.recheck;
        let mut recheck = interval_at(Instant::now() + period, period);
        recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let graphql = self.graphql.clone();
        let stop = graphql.stop.cancelled();
        let mut stop = pin!(stop);
        loop {
            let step = tokio::select! {
                message = socket.recv() => match message {
                    Some(Ok(Message::Text(text))) => self.said(text.as_str()).await,
                    Some(Ok(Message::Binary(_))) => Err(Close::BadRequest("Messages are texts")),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(None),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                },
                Some((id, event)) = self.streams.next(), if !self.streams.is_empty() => Ok(self.event(id, event)),
                () = sleep_until(init), if self.context.is_none() => Err(Close::InitTimeout),
                _ = recheck.tick() => self.check().await.map(|()| None),
                () = &mut stop => Err(Close::GoingAway),
            };
            match step {
                Err(close) => return Some(close),
                Ok(None) => {}
                Ok(Some(message)) => {
                    let text = Message::Text(message.to_string().into());
                    let mut sending = pin!(timeout(self.graphql.socket.send, socket.send(text)));
                    // A slow reader is no reason to forget that its token may have ended.
                    let sent = loop {
                        tokio::select! {
                            sent = &mut sending => break sent,
                            _ = recheck.tick() => if let Err(close) = self.check().await {
                                return Some(close);
                            },
                        }
                    };
                    match sent {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return None,
                        Err(_) => return Some(Close::SlowReader),
                    }
                }
            }
        }
    }

    /// What is looked at again and again.
    async fn check(&mut self) -> Result<(), Close> {
        self.messages = 0;
        match self.context {
            Some(_) => self.verify().await.map(drop),
            None => Ok(()),
        }
    }

    /// The answer to one message, if it has one.
    async fn said(&mut self, text: &str) -> Result<Option<Value>, Close> {
        self.messages += 1;
        if self.messages > self.graphql.socket.messages {
            return Err(Close::TooMuch("Too many messages"));
        }
        if json_tokens(text.as_bytes()) > self.graphql.socket.json_tokens {
            return Err(Close::BadRequest("The message has too many values"));
        }
        let said = serde_json::from_str(text).map_err(|_| Close::BadRequest("Invalid message"))?;
        match said {
            Said::ConnectionInit { .. } if self.context.is_some() => Err(Close::TooManyInits),
            Said::ConnectionInit { payload } => {
                let token = payload.as_ref().and_then(token_of);
                if let Some(token) = token {
                    let authenticate = self.graphql.authenticate.clone();
                    self.proof = Some(Session::new(authenticate, token, self.info.clone()));
                }
                let context = self.verify().await?;
                let place = self.graphql.sockets.enter(&context);
                self.place = Some(place.ok_or(Close::TooMuch("Too many sockets"))?);
                self.context = Some(context);
                Ok(Some(json!({"type": "connection_ack"})))
            }
            Said::Ping { payload } => Ok(Some(match payload {
                Some(payload) => json!({"type": "pong", "payload": payload}),
                None => json!({"type": "pong"}),
            })),
            Said::Pong {} => Ok(None),
            Said::Complete { id } => {
                self.streams.remove(&id);
                Ok(None)
            }
            Said::Subscribe { id, payload } => self.subscribe(id, payload).map(|()| None),
        }
    }

    /// Verifies the token anew.
    async fn verify(&mut self) -> Result<TenantContext, Close> {
        let proof = self.proof.as_ref().ok_or(Close::Unauthorized)?;
        let found = match timeout(ONE_LOOK, proof.verify()).await {
            Ok(Err(problem)) if problem.code() == "UNAVAILABLE" => None,
            Ok(found) => Some(found),
            Err(_) => None,
        };
        match (found, &self.context) {
            (Some(Ok(context)), _) => {
                self.answered = Instant::now();
                Ok(context)
            }
            // The store is away: a socket that was good stays for a while.
            (None, Some(context)) if self.answered.elapsed() < self.graphql.socket.unanswered => {
                Ok(context.clone())
            }
            (None, Some(_)) => Err(Close::TooMuch("The token could not be verified")),
            (Some(Err(problem)), _) if problem.code() == "FORBIDDEN" => Err(Close::Forbidden),
            (Some(Err(_)) | None, _) => Err(Close::Unauthorized),
        }
    }

    fn subscribe(&mut self, id: String, payload: Value) -> Result<(), Close> {
        let context = self.context.clone().ok_or(Close::Unauthorized)?;
        if id.is_empty() || id.len() > 128 {
            return Err(Close::BadRequest("The id has 1 to 128 bytes"));
        }
        if self.streams.contains_key(&id) {
            return Err(Close::DuplicateId);
        }
        if self.streams.len() >= self.graphql.socket.subscriptions {
            return Err(Close::BadRequest("Too many subscriptions"));
        }
        if payload.is_array() {
            return Err(Close::BadRequest("A batch is no subscription"));
        }
        let events = match read(payload, &self.graphql.limits) {
            Err(Unreadable::Parameters(_)) => return Err(Close::BadRequest("Invalid payload")),
            Err(Unreadable::Document(errors)) => refuse(errors),
            Ok((mut operations, _)) => {
                let operation = operations.pop().expect("`read` gives at least one operation");
                match operation.kind() {
                    Some(OperationType::Query | OperationType::Mutation) => {
                        let message = "queries and mutations are served at POST /graphql";
                        refuse(vec![request_error("INVALID", message)])
                    }
                    _ => {
                        let budget = self.graphql.budget(context.tenant());
                        let request = self.graphql.request(operation, context, budget);
                        let responses = self.graphql.schema.execute_stream(request);
                        responses.map(|r| Event::Next(Box::new(r))).boxed()
                    }
                }
            }
        };
        let done = stream::once(async { Event::Done });
        self.streams.insert(id, events.chain(done).boxed());
        Ok(())
    }

    fn event(&mut self, id: String, event: Event) -> Option<Value> {
        match event {
            Event::Done => Some(json!({"type": "complete", "id": id})),
            Event::Next(response) => {
                let answer = Answer::new(*response, self.id.as_str());
                Some(match answer.into_refusal() {
                    Ok(payload) => json!({"type": "next", "id": id, "payload": payload}),
                    Err(errors) => {
                        // An `error` message ends the operation; no `complete` follows it.
                        self.streams.remove(&id);
                        json!({"type": "error", "id": id, "payload": errors})
                    }
                })
            }
        }
    }
}

fn refuse(errors: Vec<async_graphql::ServerError>) -> BoxStream<'static, Event> {
    let response = async_graphql::Response::from_errors(errors);
    stream::once(async { Event::Next(Box::new(response)) }).boxed()
}

/// `authorization: "Bearer …"` of a `connection_init`, in any case of letters.
fn token_of(payload: &Value) -> Option<String> {
    let object = payload.as_object()?;
    let (_, value) = object
        .iter()
        .find(|(k, _)| k.eq_ignore_ascii_case("authorization"))?;
    let (scheme, token) = value.as_str()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s23_close_codes_are_the_protocols() {
        let codes = [
            (Close::BadRequest("x"), 4400),
            (Close::Unauthorized, 4401),
            (Close::Forbidden, 4403),
            (Close::InitTimeout, 4408),
            (Close::DuplicateId, 4409),
            (Close::TooManyInits, 4429),
        ];
        for (close, code) in codes {
            assert_eq!(close.frame().code, code);
        }
    }

    #[test]
    fn a_token_may_stand_in_the_payload() {
        let token = |v: Value| token_of(&v);
        assert_eq!(
            token(json!({"Authorization": "Bearer abc"})),
            Some("abc".to_owned())
        );
        assert_eq!(token(json!({"authorization": "abc"})), None);
        assert_eq!(token(json!({"token": "Bearer abc"})), None);
        assert_eq!(token(json!("Bearer abc")), None);
    }
}
