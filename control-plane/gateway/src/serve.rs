//! One call: judged, authorised, sent through the tunnel, streamed back.

use crate::{
    EngineAnswer, EngineCall, Gateway, Grant, Target, TunnelError, card,
    failure::{Dialect, Failure},
    headers,
    operation::{Operation, Refused, operation},
    request::{Address, Awaits, is_json, json_rpc, rest},
    stream::{Cut, Watch, guarded, told},
    tunnel::Chunks,
};
use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream as streams};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use roadstead_authz::TenantContext;
use roadstead_http::{Caller, Problem, RECHECK, RequestId, Session, Share};
use roadstead_service::approvals::Decided;
use std::{io, pin::pin, sync::Arc};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Answers everything below `/a2a/`.
pub(crate) async fn serve(
    State(gateway): State<Arc<Gateway>>,
    Caller(context): Caller,
    id: RequestId,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Some(address) = Address::parse(parts.uri.path()) else {
        return Failure::no_agent().response(&Dialect::Http, &id);
    };
    let operation = match operation(&parts.method, address.rest) {
        Ok(operation) => operation,
        Err(Refused::Path) => {
            let detail = "A2A has no such path below an agent";
            return Problem::new(StatusCode::NOT_FOUND, "NOT_FOUND", detail).response(&id);
        }
        Err(Refused::Method(allow)) => {
            let detail = "this path does not take this method; the allow header names those it takes";
            let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "INVALID", detail);
            return problem.allow(allow).response(&id);
        }
    };
    let (call, _held) = match read(&gateway, &context, operation, &parts, body).await {
        Ok(read) => read,
        Err((failure, dialect)) => return failure.response(&dialect, &id),
    };
    let dialect = call.dialect.clone();
    match gateway.call(&context, &address, &parts, call, &id).await {
        Ok(response) => response,
        Err(failure) => failure.response(&dialect, &id),
    }
}

/// A request of the protocol, ready to be sent on.
struct Call {
    method: Method,
    path: String,
    body: Bytes,
    dialect: Dialect,
    awaits: Awaits,
    /// Decisions on approvals in it.
    decided: Option<Decided>,
}

/// Reads the body and judges it, as far as its binding asks for it. The share is held until an answer begins.
async fn read(
    gateway: &Gateway,
    context: &TenantContext,
    operation: Operation,
    parts: &Parts,
    body: Body,
) -> Result<(Call, Option<Share>), (Failure, Dialect)> {
    let dialect = match operation {
        Operation::JsonRpc => Dialect::json_rpc(serde_json::Value::Null),
        Operation::Card | Operation::Rest(_) => Dialect::Http,
    };
    let has_body = !http_body::Body::is_end_stream(&body);
    if matches!(operation, Operation::Rest(_)) && has_body && !is_json(&parts.headers) {
        return Err((Failure::unsupported_media(), Dialect::Http));
    }
    let (body, held) = if matches!(operation, Operation::Card) {
        (Vec::new(), None)
    } else {
        let read = gateway.bodies.read(context.tenant(), body, gateway.body_bytes);
        let (body, held) = read.await.map_err(|error| (error.into(), dialect))?;
        (body, Some(held))
    };
    let call = match operation {
        Operation::Card => Call {
            method: Method::GET,
            path: "/.well-known/agent-card.json".to_owned(),
            body: Bytes::new(),
            dialect: Dialect::Http,
            awaits: Awaits::Card,
            decided: None,
        },
        Operation::JsonRpc => {
            let rpc = json_rpc(&parts.headers, &body)?;
            Call {
                method: Method::POST,
                path: "/".to_owned(),
                body: body.into(),
                dialect: rpc.dialect,
                awaits: rpc.awaits,
                decided: rpc.decided,
            }
        }
        Operation::Rest(path) => {
            let awaits = Awaits::of_rest(&path);
            let decided = match path.contains("/message:") {
                true => rest(&body).map_err(|failure| (failure, Dialect::Http))?,
                false => None,
            };
            let path = match parts.uri.query() {
                Some(query) => format!("{path}?{query}"),
                None => path,
            };
            Call {
                method: parts.method.clone(),
                path,
                body: body.into(),
                dialect: Dialect::Http,
                awaits,
                decided,
            }
        }
    };
    Ok((call, held))
}

impl Gateway {
    async fn call(
        self: &Arc<Self>,
        context: &TenantContext,
        address: &Address<'_>,
        parts: &Parts,
        call: Call,
        id: &RequestId,
    ) -> Result<Response, Failure> {
        let target = self.authorise(context, address).await?;
        let cluster = self.pick(&target.clusters).await?;
        if let Some(decided) = &call.decided {
            self.agents.decided(context, target.agent, decided).await?;
        }
        let (head, whole) = call.awaits.patience(&self.patience);
        let begun = Instant::now();
        let engine_call = EngineCall {
            agent: target.agent,
            method: call.method,
            path: call.path,
            headers: self.engine_headers(context, &target, &parts.headers)?,
            body: whole_body(call.body),
            deadline: whole,
        };
        let mut watch = Watch {
            gateway: self.clone(),
            session: parts.extensions.get::<Session>().cloned(),
            project: address.project.clone(),
            agent: address.agent.clone(),
            answered: begun,
        };
        let answering = self.tunnel.call(cluster, engine_call);
        let answer = awaited(answering, begun + head, &mut watch).await?;
        if !(200..600).contains(&answer.status.as_u16()) {
            return Err(Failure::bad_answer("the agent's status is none of an answer"));
        }
        if answer.status == StatusCode::UNAUTHORIZED {
            // The engine did not take the hub's token: nothing that the caller could mend.
            tracing::error!(agent.id = %target.agent, cluster.id = %cluster, "the engine refused the hub's token");
            return Err(Failure::bad_answer(
                "the agent does not trust this hub's key; it may have to be applied again",
            ));
        }
        let url = self.address_of(address);
        match call.awaits {
            Awaits::Card if answer.status.is_success() => {
                let text = collect(answer, begun + whole).await?;
                let card = card::rewrite(&text, &url)
                    .ok_or_else(|| Failure::bad_answer("the agent's card is not a card"))?;
                Ok(card_response(card, &parts.headers))
            }
            Awaits::CardResult if answer.status.is_success() => {
                let (status, passed) = (answer.status, headers::outward(&answer.headers));
                let text = collect(answer, begun + whole).await?;
                let text = card::rewrite_result(&text, &url)
                    .ok_or_else(|| Failure::bad_answer("the agent's card is not a card"))?;
                Ok(response(status, passed, Body::from(text)))
            }
            _ => {
                let last_words = (call.dialect, id.clone());
                Ok(stream_back(answer, begun + whole, watch, last_words))
            }
        }
    }

    /// What the engine sees: what of the caller's headers may cross, and the hub's own token in place of the caller's.
    fn engine_headers(
        &self,
        context: &TenantContext,
        target: &Target,
        from: &HeaderMap,
    ) -> Result<HeaderMap, Failure> {
        let mut headers = headers::inward(from);
        // The trace goes on under the hub's own span.
        roadstead_telemetry::propagate::inject(&mut headers);
        let (subject, audience, jti) = (
            context.actor().label(),
            target.agent.to_string(),
            RequestId::generate(),
        );
        let grant = Grant {
            subject: &subject,
            actor: "hub",
            audience: &audience,
            approve: target.approve,
            jti: jti.as_str(),
        };
        let token = self.keys.mint(grant, self.clock.now());
        let value = token
            .ok()
            .and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        let Some(mut value) = value else {
            tracing::error!("the hub's key for calls to engines does not sign");
            return Err(Failure::bad_answer("the hub could not sign the call"));
        };
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
        Ok(headers)
    }

    fn address_of(&self, address: &Address<'_>) -> String {
        let Address {
            tenant,
            project,
            agent,
            ..
        } = address;
        format!("{}/a2a/{tenant}/{project}/{agent}", self.public_url)
    }
}

fn whole_body(bytes: Bytes) -> Chunks {
    let some = (!bytes.is_empty()).then_some(Ok(bytes));
    streams::iter(some).boxed()
}

/// Waits for an answer to begin, as long as the caller may have it (S14).
async fn awaited(
    answering: impl Future<Output = Result<EngineAnswer, TunnelError>>,
    deadline: Instant,
    watch: &mut Watch,
) -> Result<EngineAnswer, Failure> {
    let mut answering = pin!(answering);
    loop {
        let check = Instant::now() + RECHECK;
        tokio::select! {
            biased;
            answer = &mut answering => return Ok(answer?),
            () = sleep_until(deadline) => return Err(TunnelError::Deadline.into()),
            () = sleep_until(check) => {
                if let Err(cut) = watch.check().await {
                    return Err(cut.failure().unwrap_or_else(Failure::no_longer_allowed));
                }
            }
        }
    }
}

/// The most that a card may have, in bytes.
const CARD_BYTES: usize = 1024 * 1024;

/// The whole body of a small answer.
async fn collect(mut answer: EngineAnswer, deadline: Instant) -> Result<Bytes, Failure> {
    let mut text = BytesMut::new();
    loop {
        match timeout_at(deadline, answer.body.next()).await {
            Ok(Some(Ok(chunk))) if text.len() + chunk.len() <= CARD_BYTES => text.extend_from_slice(&chunk),
            Ok(Some(Ok(_))) => return Err(Failure::bad_answer("the agent's card is larger than 1 MiB")),
            Ok(Some(Err(error))) => {
                let told = Cut::of(error).failure();
                return Err(told.unwrap_or_else(|| Failure::bad_answer("the agent's answer broke off")));
            }
            Ok(None) => return Ok(text.freeze()),
            Err(_) => return Err(TunnelError::Deadline.into()),
        }
    }
}

fn card_response(card: Vec<u8>, from: &HeaderMap) -> Response {
    let etag = card::etag(&card);
    let known = from.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let mut response = if known.is_some_and(|known| card::matches(known, &etag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response(StatusCode::OK, headers, Body::from(card))
    };
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::try_from(etag) {
        headers.insert(header::ETAG, etag);
    }
    // Private: what the card says depends on who may see it.
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("private, max-age=60"),
    );
    response
}

/// Passes the answer on as it comes. Dropping the body, because the caller has gone, cancels the call. `last_words` is how
/// the caller of a stream is told that the hub has ended it.
fn stream_back(
    answer: EngineAnswer,
    deadline: Instant,
    watch: Watch,
    last_words: (Dialect, RequestId),
) -> Response {
    let mut passed = headers::outward(&answer.headers);
    let events = headers::is_event_stream(&passed);
    if events {
        // Proxies in front of the hub must not collect events.
        passed.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    let chunks = guarded((answer.body, answer.revoked), deadline, watch);
    let body = match events {
        true => Body::from_stream(told(chunks, last_words)),
        false => Body::from_stream(chunks.map_err(io::Error::from)),
    };
    response(answer.status, passed, body)
}

fn response(status: StatusCode, mut headers: HeaderMap, body: Body) -> Response {
    let cache = HeaderValue::from_static("no-store");
    headers.entry(header::CACHE_CONTROL).or_insert(cache);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
