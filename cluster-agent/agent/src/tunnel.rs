//! Calls from the hub: to an engine's A2A interface over loopback, or to its captured log.
//!
//! The hub names an agent, never an address: the address is the one that the agent's own engine told its runtime,
//! and that is loopback. What may be asked is in [`crate::allow`]. Bodies flow both ways unbuffered; dropping the
//! call or its answer closes the connection to the engine, which cancels there.

use crate::allow;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, uri::Scheme};
use http_body_util::{BodyDataStream, BodyExt as _, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use roadstead_contract::logs::{self, Line, Query};
use roadstead_link::{TunnelBody, TunnelCall, TunnelFailure, TunnelHandler, TunnelKind, TunnelReply};
use roadstead_runtime::{Local, Phase};
use roadstead_telemetry::{Histogram, Label, SECONDS, meter, propagate};
use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};
use tokio::time::Instant;

/// For an engine that is about to listen: it starts within milliseconds, or waits after a crash.
const PATIENCE: Duration = Duration::from_secs(5);
/// For an agent that nothing is known of: its document is on the way when somebody calls right after placing it.
const DELIVERY: Duration = Duration::from_secs(2);
/// Kept connections to one engine, and for how long.
const IDLE: usize = 4;
const IDLE_FOR: Duration = Duration::from_secs(30);

type Body = UnsyncBoxBody<Bytes, TunnelFailure>;

/// Answers the hub's calls.
#[derive(Clone)]
pub(crate) struct Tunnel {
    local: Local,
    client: Client<HttpConnector, Body>,
    /// Seconds from a call to the head of its answer.
    duration: Histogram<f64>,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tunnel")
    }
}

impl Tunnel {
    pub(crate) fn new(local: Local) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(2)));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(IDLE)
            .pool_idle_timeout(IDLE_FOR)
            .build(connector);
        let duration = meter("roadstead-agent")
            .f64_histogram("roadstead.agent.tunnel.duration")
            .with_unit("s")
            .with_boundaries(SECONDS.to_vec())
            .with_description("From a call of the hub to the head of its answer, by kind and outcome")
            .build();
        Self {
            local,
            client,
            duration,
        }
    }

    /// Where the agent's engine answers, once it does.
    async fn address(&self, uid: &str, deadline: Duration) -> Result<SocketAddr, TunnelFailure> {
        let mut changes = self.local.changes();
        let mut reason = "the engine starts".to_owned();
        let begun = Instant::now();
        let found = async {
            loop {
                let Some(status) = self.local.status(uid) else {
                    let left = DELIVERY.saturating_sub(begun.elapsed());
                    match tokio::time::timeout(left, changes.changed()).await {
                        Ok(Ok(())) => continue,
                        _ => {
                            let why = "no engine of that agent runs here".to_owned();
                            return Err(TunnelFailure::NotFound(why));
                        }
                    }
                };
                match (status.phase, status.address, status.applied) {
                    (Phase::Draining | Phase::Ended, _, _) => {
                        return Err(TunnelFailure::Unavailable("the engine is ending".to_owned()));
                    }
                    (_, Some(address), Some(_)) => return Ok(address),
                    // A refusal is not waited out: a person must act.
                    (Phase::NotReady, Some(_), None) => {
                        return Err(TunnelFailure::Unavailable(status.reason));
                    }
                    _ => reason = status.reason,
                }
                // The sender lives as long as the runtime does.
                let _ = changes.changed().await;
            }
        };
        match tokio::time::timeout(deadline.min(PATIENCE), found).await {
            Ok(found) => found,
            Err(_) => Err(TunnelFailure::Unavailable(reason)),
        }
    }

    async fn a2a(
        &self,
        call: TunnelCall,
        body: impl Stream<Item = Result<Bytes, TunnelFailure>> + Send + 'static,
    ) -> Result<TunnelReply, TunnelFailure> {
        let method = Method::from_bytes(call.method.as_bytes()).ok();
        let Some(method) = method.filter(|method| allow::operation(method, &call.path)) else {
            tracing::warn!(
                agent = call.agent_uid,
                "the hub asked for what is no operation of A2A"
            );
            return Err(TunnelFailure::NotFound("no such operation".to_owned()));
        };
        let address = self.address(&call.agent_uid, call.deadline).await?;
        let mut request = request(address, method, &call, body)?;
        propagate::inject(request.headers_mut());
        let answer = self
            .client
            .request(request)
            .await
            .map_err(|error| failure(&error))?;
        let (head, body) = answer.into_parts();
        let kept = head.headers.iter().filter(|(name, _)| allow::outward(name));
        Ok(TunnelReply {
            status: head.status.as_u16(),
            headers: kept
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect(),
            body: BodyDataStream::new(body)
                .map_err(|error| TunnelFailure::Broken(error.to_string()))
                .boxed(),
        })
    }

    fn logs(&self, call: &TunnelCall) -> Result<TunnelReply, TunnelFailure> {
        let Some(query) = Query::parse(&call.path).filter(|_| call.method == "GET") else {
            return Err(TunnelFailure::NotFound("no such operation".to_owned()));
        };
        let lines = self.local.logs(&call.agent_uid, query.tail, query.follow);
        let lines =
            lines.ok_or_else(|| TunnelFailure::NotFound("no engine of that agent runs here".to_owned()))?;
        let body = lines.map(|line| {
            let line = Line {
                at_ms: line.at_ms,
                text: line.text.clone(),
            };
            let mut json = serde_json::to_vec(&line).map_err(|e| TunnelFailure::Broken(e.to_string()))?;
            json.push(b'\n');
            Ok(Bytes::from(json))
        });
        Ok(TunnelReply {
            status: 200,
            headers: BTreeMap::from([(
                header::CONTENT_TYPE.as_str().to_owned(),
                logs::CONTENT_TYPE.as_bytes().to_vec(),
            )]),
            body: body.boxed(),
        })
    }
}

#[async_trait]
impl TunnelHandler for Tunnel {
    async fn call(&self, call: TunnelCall, body: TunnelBody) -> Result<TunnelReply, TunnelFailure> {
        let kind = match call.kind {
            TunnelKind::A2a => "a2a",
            TunnelKind::Logs => "logs",
        };
        let span = tracing::info_span!("tunnel.call", otel.kind = "server", agent = call.agent_uid, kind);
        let remote = propagate::extract(&headers(&call));
        let began = Instant::now();
        let answer = async {
            match call.kind {
                TunnelKind::A2a => self.a2a(call, body).await,
                TunnelKind::Logs => self.logs(&call),
            }
        };
        let reply = propagate::within(span, remote, answer).await;
        let outcome = match &reply {
            Ok(_) => "answered",
            Err(TunnelFailure::NotFound(_)) => "notFound",
            Err(TunnelFailure::Unavailable(_)) => "unavailable",
            Err(TunnelFailure::Deadline) => "deadline",
            Err(TunnelFailure::Broken(_)) => "broken",
        };
        let labels = [Label::new("kind", kind), Label::new("outcome", outcome)];
        self.duration.record(began.elapsed().as_secs_f64(), &labels);
        reply
    }
}

/// What of the hub's headers the engine sees.
fn headers(call: &TunnelCall) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &call.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).ok().filter(allow::inward);
        if let (Some(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

fn request(
    address: SocketAddr,
    method: Method,
    call: &TunnelCall,
    body: impl Stream<Item = Result<Bytes, TunnelFailure>> + Send + 'static,
) -> Result<Request<Body>, TunnelFailure> {
    let body = if method == Method::POST {
        StreamBody::new(body.map_ok(http_body::Frame::data)).boxed_unsync()
    } else {
        Empty::new().map_err(|never| match never {}).boxed_unsync()
    };
    // Built from its parts: a path can never become part of the authority.
    let uri = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(address.to_string())
        .path_and_query(call.path.as_str())
        .build();
    let no_such = |_| TunnelFailure::NotFound("no such operation".to_owned());
    let mut request = Request::builder()
        .method(method)
        .uri(uri.map_err(no_such)?)
        .body(body)
        .map_err(no_such)?;
    *request.headers_mut() = headers(call);
    Ok(request)
}

/// Not reached is another thing than broken off: only then may the caller be sure that nothing happened.
fn failure(error: &hyper_util::client::legacy::Error) -> TunnelFailure {
    if error.is_connect() {
        TunnelFailure::Unavailable("the engine does not accept connections".to_owned())
    } else {
        TunnelFailure::Broken("the engine broke off".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, eventually};
    use futures::stream;
    use serde_json::Value;

    fn call(kind: TunnelKind, uid: &str, method: &str, path: &str) -> TunnelCall {
        TunnelCall {
            kind,
            agent_uid: uid.to_owned(),
            method: method.to_owned(),
            path: path.to_owned(),
            headers: vec![
                ("authorization".to_owned(), b"Bearer token".to_vec()),
                ("content-type".to_owned(), b"application/json".to_vec()),
                ("host".to_owned(), b"evil.example".to_vec()),
                ("x-roadstead-on-behalf-of".to_owned(), b"user:root".to_vec()),
                ("bad name".to_owned(), b"x".to_vec()),
            ],
            deadline: Duration::from_secs(20),
        }
    }

    fn body(chunks: &[&'static str]) -> impl Stream<Item = Result<Bytes, TunnelFailure>> + Send + use<> {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|c| Ok(Bytes::from_static(c.as_bytes())))
            .collect();
        stream::iter(chunks)
    }

    async fn text(reply: TunnelReply) -> String {
        let chunks: Vec<Bytes> = reply.body.try_collect().await.unwrap();
        String::from_utf8(chunks.concat()).unwrap()
    }

    #[tokio::test]
    async fn a_call_reaches_the_engine_and_only_allowed_headers_cross() {
        let bench = Bench::new();
        bench.ready("a").await;
        let tunnel = Tunnel::new(bench.local.clone());
        let asked = call(TunnelKind::A2a, "a", "POST", "/message:send");
        let reply = tunnel.a2a(asked, body(&["hel", "lo"])).await.unwrap();
        assert_eq!(reply.status, 207);
        let names: Vec<&str> = reply.headers.keys().map(String::as_str).collect();
        assert_eq!(names, ["content-type"]);
        let seen: Value = serde_json::from_str(&text(reply).await).unwrap();
        assert_eq!(
            (&seen["method"], &seen["path"], &seen["body"]),
            (&"POST".into(), &"/message:send".into(), &"hello".into())
        );
        let headers = seen["headers"].as_object().unwrap();
        assert_eq!(headers["authorization"], "Bearer token");
        assert_ne!(headers["host"], "evil.example");
        assert!(!headers.contains_key("x-roadstead-on-behalf-of"));

        let asked = call(TunnelKind::A2a, "a", "GET", "/tasks?pageSize=3");
        let reply = tunnel.a2a(asked, body(&["ignored"])).await.unwrap();
        let seen: Value = serde_json::from_str(&text(reply).await).unwrap();
        assert_eq!(
            (&seen["path"], &seen["body"]),
            (&"/tasks?pageSize=3".into(), &"".into())
        );
        bench.local.shutdown(Duration::ZERO).await;
    }

    #[tokio::test]
    async fn bodies_stream_both_ways_and_leaving_cancels_at_the_engine() {
        let bench = Bench::new();
        bench.ready("a").await;
        let tunnel = Tunnel::new(bench.local.clone());
        let (send, receive) = futures::channel::mpsc::unbounded();
        let asked = call(TunnelKind::A2a, "a", "POST", "/message:stream");
        let mut reply = tunnel.a2a(asked, receive).await.unwrap();
        // The answer to the first chunk comes before the second is sent.
        for chunk in ["one", "two"] {
            send.unbounded_send(Ok(Bytes::from_static(chunk.as_bytes())))
                .unwrap();
            assert_eq!(reply.body.next().await.unwrap().unwrap(), chunk);
        }
        drop(send);
        assert!(reply.body.next().await.unwrap().unwrap().starts_with(b"tick"));
        drop(reply);
        eventually("the engine sees that nobody listens", || {
            bench.heard("a").iter().any(|heard| heard["cancelled"] == true)
        })
        .await;
        bench.local.shutdown(Duration::ZERO).await;
    }

    #[tokio::test]
    async fn s47_a_hostile_hub_reaches_agents_of_the_inbox_and_their_operations_alone() {
        let bench = Bench::new();
        bench.ready("a").await;
        let tunnel = Tunnel::new(bench.local.clone());
        for (uid, method, path) in [
            ("b", "POST", "/message:send"),
            ("../a", "POST", "/message:send"),
            ("", "POST", "/message:send"),
            ("a", "GET", "/metrics"),
            ("a", "GET", "/readyz"),
            ("a", "POST", "@169.254.169.254/message:send"),
            ("a", "POST", "http://169.254.169.254/message:send"),
            ("a", "CONNECT", "/message:send"),
            ("a", "GET /x", "/tasks"),
        ] {
            let asked = call(TunnelKind::A2a, uid, method, path);
            let refused = tunnel.a2a(asked, body(&[])).await.unwrap_err();
            assert!(
                matches!(refused, TunnelFailure::NotFound(_)),
                "{uid} {method} {path}: {refused}"
            );
        }
        for (uid, method, path) in [
            ("b", "GET", "/?tail=1&follow=false"),
            ("a", "POST", "/?tail=1&follow=false"),
            ("a", "GET", "/../../token"),
        ] {
            let refused = tunnel
                .logs(&call(TunnelKind::Logs, uid, method, path))
                .unwrap_err();
            assert!(
                matches!(refused, TunnelFailure::NotFound(_)),
                "{uid} {method} {path}"
            );
        }
        bench.local.shutdown(Duration::ZERO).await;
    }

    #[tokio::test]
    async fn an_engine_that_cannot_answer_says_why() {
        let bench = Bench::new();
        bench.start("a", "refuse");
        bench.start("b", "crash");
        let tunnel = Tunnel::new(bench.local.clone());
        let asked = call(TunnelKind::A2a, "a", "POST", "/message:send");
        let failure = tunnel.a2a(asked, body(&[])).await.unwrap_err();
        assert_eq!(
            failure,
            TunnelFailure::Unavailable("the script says no".to_owned())
        );
        let mut asked = call(TunnelKind::A2a, "b", "POST", "/message:send");
        asked.deadline = Duration::from_millis(500);
        let failure = tunnel.a2a(asked, body(&[])).await.unwrap_err();
        assert!(matches!(failure, TunnelFailure::Unavailable(_)), "{failure}");
        bench.local.shutdown(Duration::ZERO).await;
    }

    #[tokio::test]
    async fn a_call_waits_for_an_engine_that_restarts() {
        let bench = Bench::new();
        let pid = bench.ready("a").await.pid.unwrap();
        let tunnel = Tunnel::new(bench.local.clone());
        let killed = std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status();
        assert!(killed.unwrap().success());
        bench.until("a", "down", |status| status.address.is_none()).await;
        let asked = call(TunnelKind::A2a, "a", "POST", "/message:send");
        let reply = tunnel.a2a(asked, body(&["again"])).await.unwrap();
        assert!(text(reply).await.contains("again"));
        bench.local.shutdown(Duration::ZERO).await;
    }

    #[tokio::test]
    async fn logs_are_lines_of_json() {
        let bench = Bench::new();
        bench.start("a", "crash");
        bench.until("a", "down", |status| status.failures > 0).await;
        let tunnel = Tunnel::new(bench.local.clone());
        let query = Query {
            tail: 100,
            follow: true,
        };
        let reply = tunnel
            .logs(&call(TunnelKind::Logs, "a", "GET", &query.path()))
            .unwrap();
        assert_eq!(reply.status, 200);
        let mut lines = reply.body;
        let found = async {
            loop {
                let chunk = lines.next().await.unwrap().unwrap();
                let line: Line = serde_json::from_slice(&chunk).unwrap();
                if line.text == "about to crash" {
                    assert!(line.at_ms > 0 && chunk.ends_with(b"\n"));
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), found)
            .await
            .unwrap();
        bench.local.shutdown(Duration::ZERO).await;
    }
}
