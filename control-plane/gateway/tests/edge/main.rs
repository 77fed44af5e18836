//! The A2A edge from outside, with a scripted tunnel in place of clusters.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod approvals;
mod lasting;

use async_trait::async_trait;
use axum::{Router, body::Body, middleware::from_fn, response::Response};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{FutureExt as _, StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt as _;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use roadstead_authz::{
    Presented, RequestInfo, Role, Scope, SecretKind, TenantContext, TenantRecord, TokenRecord, mint,
};
use roadstead_contract::{call::Claims, documents::Name};
use roadstead_domain::{AgentId, ClusterId, Error, FakeClock, OsRandom, SeededRandom, TenantId, TokenId};
use roadstead_gateway::{
    Agents, Chunks, EngineAnswer, EngineCall, EngineKeys, Gateway, Patience, Placed, Target, Tunnel,
    TunnelError, router,
};
use roadstead_http::{Authenticate, Bodies, BodyLimits, Problem, Session, guard};
use roadstead_service::approvals::Decided;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use tower::ServiceExt as _;

const NOW_MS: i64 = 1_800_000_000_000;
const NOTES: &str = "/a2a/acme/support/notes";

/// What the scripted tunnel does with a call.
enum Script {
    Answer(StatusCode, HeaderMap, Chunks),
    Fail(TunnelError),
    Hang,
}

/// What a tunnel was asked.
#[derive(Debug)]
struct Seen {
    cluster: ClusterId,
    agent: AgentId,
    path: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

#[derive(Default)]
struct ScriptedTunnel {
    connected: Mutex<Vec<ClusterId>>,
    script: Mutex<Option<Script>>,
    seen: Mutex<Vec<Seen>>,
    hanging_dropped: Arc<AtomicBool>,
    /// Whether the cluster's certificate is.
    revoked: watch::Sender<bool>,
}

impl std::fmt::Debug for ScriptedTunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScriptedTunnel")
    }
}

/// Says that it was dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[async_trait]
impl Tunnel for ScriptedTunnel {
    async fn connected(&self, cluster: ClusterId) -> bool {
        self.connected.lock().unwrap().contains(&cluster)
    }

    async fn call(&self, cluster: ClusterId, call: EngineCall) -> Result<EngineAnswer, TunnelError> {
        let EngineCall {
            agent,
            path,
            headers,
            mut body,
            ..
        } = call;
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|e| TunnelError::Broken(e.to_string()))?);
        }
        let seen = Seen {
            cluster,
            agent,
            path,
            headers,
            body: bytes,
        };
        self.seen.lock().unwrap().push(seen);
        let script = self.script.lock().unwrap().take();
        match script.unwrap_or(Script::Hang) {
            Script::Answer(status, headers, body) => Ok(EngineAnswer {
                status,
                headers,
                body,
                revoked: {
                    let mut revoked = self.revoked.subscribe();
                    let once = async move { revoked.wait_for(|revoked| *revoked).await.is_ok() };
                    once.then(|is| async move {
                        if !is {
                            std::future::pending().await
                        }
                    })
                    .boxed()
                },
            }),
            Script::Fail(error) => Err(error),
            Script::Hang => {
                let _guard = Dropped(self.hanging_dropped.clone());
                std::future::pending().await
            }
        }
    }
}

#[derive(Debug, Default)]
struct Recorded {
    decided: Mutex<Vec<Decided>>,
    /// The audit log cannot be written.
    broken: AtomicBool,
}

#[derive(Debug)]
struct FakeAgents {
    agent: AgentId,
    placed: Vec<Placed>,
    recorded: Arc<Recorded>,
}

#[async_trait]
impl Agents for FakeAgents {
    async fn invocable(&self, _: &TenantContext, _: &Name, agent: &Name) -> Result<Target, Error> {
        match agent.as_str() {
            "notes" => Ok(Target {
                agent: self.agent,
                clusters: self.placed.clone(),
                approve: false,
            }),
            "approvable" => Ok(Target {
                agent: self.agent,
                clusters: self.placed.clone(),
                approve: true,
            }),
            "nowhere" => Ok(Target {
                agent: self.agent,
                clusters: Vec::new(),
                approve: true,
            }),
            "forbidden" => Err(Error::forbidden("to invoke needs the role operator or more")),
            "broken" => Err(Error::internal("connection refused at 10.0.0.7")),
            other => Err(Error::not_found(format!("agent {other}"))),
        }
    }

    async fn decided(&self, _: &TenantContext, agent: AgentId, decided: &Decided) -> Result<(), Error> {
        assert_eq!(agent, self.agent);
        if self.recorded.broken.load(Ordering::SeqCst) {
            let message = "the database does not answer".to_owned();
            return Err(Error::Unavailable {
                message,
                detail: None,
            });
        }
        self.recorded.decided.lock().unwrap().push(decided.clone());
        Ok(())
    }
}

struct Edge {
    app: Router,
    tunnel: Arc<ScriptedTunnel>,
    recorded: Arc<Recorded>,
    keys: Arc<EngineKeys>,
    agent: AgentId,
    cluster: ClusterId,
    token: String,
}

#[expect(clippy::disallowed_methods, reason = "a caller without a database")]
fn caller() -> (TenantContext, String) {
    let (secret, hash) = mint(SecretKind::ApiToken, &OsRandom);
    let presented = Presented::parse(SecretKind::ApiToken, secret.expose_secret()).unwrap();
    let (clock, random) = (FakeClock::at(NOW_MS), SeededRandom::new(1));
    let record = TokenRecord {
        id: TokenId::generate(&clock, &random),
        tenant: TenantRecord {
            id: TenantId::generate(&clock, &random),
            name: "acme".to_owned(),
        },
        name: "ci".to_owned(),
        role: Role::Operator,
        scopes: vec![Scope::Invoke],
        hash,
        expires_at_ms: i64::MAX,
        revoked: false,
    };
    let context = TenantContext::from_api_token(&presented, Some(record), NOW_MS, RequestInfo::default());
    (context.unwrap(), secret.expose_secret().to_owned())
}

impl Edge {
    fn new() -> Self {
        let clock = Arc::new(FakeClock::at(NOW_MS));
        let random = SeededRandom::new(2);
        let agent = AgentId::generate(clock.as_ref(), &random);
        let (cluster, away) = (
            ClusterId::generate(clock.as_ref(), &random),
            ClusterId::generate(clock.as_ref(), &random),
        );
        let last_seen = DateTime::<Utc>::from_timestamp_millis(NOW_MS - 60_000);
        let placed = [cluster, away]
            .map(|cluster| Placed { cluster, last_seen })
            .to_vec();
        let tunnel = Arc::new(ScriptedTunnel::default());
        tunnel.connected.lock().unwrap().push(cluster);
        let pem = EngineKeys::generate_pem().unwrap();
        let keys = Arc::new(EngineKeys::new("https://hub.example".to_owned(), &pem, &[]).unwrap());
        let (context, token) = caller();
        let recorded = Arc::new(Recorded::default());
        let app = router(Arc::new(Gateway {
            agents: Arc::new(FakeAgents {
                agent,
                placed,
                recorded: recorded.clone(),
            }),
            tunnel: tunnel.clone(),
            keys: keys.clone(),
            public_url: "https://hub.example".to_owned(),
            body_bytes: 64 * 1024,
            bodies: Bodies::new(BodyLimits::default()),
            patience: Patience::default(),
            clock,
        }))
        .layer(axum::Extension(context))
        .layer(from_fn(guard));
        Self {
            app,
            tunnel,
            recorded,
            keys,
            agent,
            cluster,
            token,
        }
    }

    fn script(&self, script: Script) {
        *self.tunnel.script.lock().unwrap() = Some(script);
    }

    fn answer(&self, content_type: &'static str, body: Vec<&'static str>) {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static(content_type));
        headers.insert("set-cookie", HeaderValue::from_static("a=b"));
        let chunks = body.into_iter().map(|c| Ok(Bytes::from_static(c.as_bytes())));
        self.script(Script::Answer(
            StatusCode::OK,
            headers,
            stream::iter(chunks).boxed(),
        ));
    }

    fn request(&self, method: &str, path: &str, body: impl Into<Body>) -> Request<Body> {
        Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .header("cookie", "session=secret")
            .header("a2a-version", "1.0")
            .header("x-roadstead-on-behalf-of", "user:root")
            .body(body.into())
            .unwrap()
    }

    async fn send(&self, request: Request<Body>) -> Response {
        self.app.clone().oneshot(request).await.unwrap()
    }

    async fn ask(&self, method: &str, path: &str, body: impl Into<Body>) -> (http::response::Parts, Vec<u8>) {
        let (parts, body) = self.send(self.request(method, path, body)).await.into_parts();
        (parts, body.collect().await.unwrap().to_bytes().to_vec())
    }

    /// What the engine was told of the caller.
    fn claims(&self, seen: &Seen) -> Claims {
        let bearer = seen.headers["authorization"].to_str().unwrap();
        let jwks: JwkSet = serde_json::from_value(self.keys.jwks()).unwrap();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.validate_exp = false;
        validation.set_audience(&[self.agent.to_string()]);
        let key = DecodingKey::from_jwk(&jwks.keys[0]).unwrap();
        let token = bearer.strip_prefix("Bearer ").unwrap();
        jsonwebtoken::decode::<Claims>(token, &key, &validation)
            .unwrap()
            .claims
    }

    async fn rpc(&self, path: &str) -> Value {
        let (_, body) = self.ask("POST", path, rpc("SendMessage")).await;
        serde_json::from_slice(&body).unwrap()
    }
}

fn rpc(method: &str) -> String {
    json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": {}}).to_string()
}

/// The same bytes but for the id of the request.
fn without_id(parts: &http::response::Parts, body: &[u8]) -> String {
    let id = parts.headers["x-request-id"].to_str().unwrap();
    let mut headers: Vec<String> = parts.headers.iter().map(|(k, v)| format!("{k}: {v:?}")).collect();
    headers.sort();
    format!("{} {headers:?} {}", parts.status, String::from_utf8_lossy(body)).replace(id, "ID")
}

#[tokio::test]
async fn s69_the_callers_own_token_never_travels_further() {
    let edge = Edge::new();
    edge.answer("application/json", vec!["{}"]);
    let (parts, _) = edge.ask("POST", NOTES, rpc("SendMessage")).await;
    assert_eq!(parts.status, 200);
    assert!(parts.headers.get("set-cookie").is_none());
    let seen = edge.tunnel.seen.lock().unwrap().pop().unwrap();
    let everything = format!("{seen:?} {}", String::from_utf8_lossy(&seen.body));
    assert!(!everything.contains(&edge.token));
    let names: Vec<&str> = seen.headers.keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["content-type", "a2a-version", "authorization"]);
    assert_eq!(
        (seen.cluster, seen.agent, seen.path.as_str()),
        (edge.cluster, edge.agent, "/")
    );
    assert_eq!(seen.body, rpc("SendMessage").as_bytes());

    let claims = edge.claims(&seen);
    assert!(claims.sub.starts_with("token:tok_"), "{}", claims.sub);
    assert_eq!(claims.exp - NOW_MS / 1000, 300);
}

#[tokio::test]
async fn s33_s75_unknown_foreign_and_forbidden_agents_answer_alike() {
    let edge = Edge::new();
    let addresses = [
        "/a2a/acme/support/unknown",
        "/a2a/acme/support/forbidden",
        "/a2a/other/support/notes",
        "/a2a/acme/support/No-Name",
    ];
    for (method, below, body) in [
        ("GET", "/.well-known/agent-card.json", String::new()),
        ("GET", "/tasks", String::new()),
        ("POST", "/message:send", "{}".to_owned()),
        ("POST", "", rpc("SendMessage")),
    ] {
        let mut answers = Vec::new();
        for address in &addresses[..3] {
            let (parts, body) = edge.ask(method, &format!("{address}{below}"), body.clone()).await;
            answers.push(without_id(&parts, &body));
        }
        assert_eq!(answers[0], answers[1], "{method} {below}");
        assert_eq!(answers[0], answers[2], "{method} {below}");
    }
    assert!(edge.tunnel.seen.lock().unwrap().is_empty());
    let (parts, _) = edge.ask("GET", &format!("{}/tasks", addresses[3]), "").await;
    assert_eq!(parts.status, 404);
}

#[tokio::test]
async fn s24_a_fault_says_nothing_of_the_inside() {
    let edge = Edge::new();
    let answer = edge.rpc("/a2a/acme/support/broken").await;
    assert_eq!(answer["error"]["code"], -32603);
    assert!(!answer.to_string().contains("10.0.0.7"));
}

#[tokio::test]
async fn without_login_nothing_is_answered() {
    let edge = Edge::new();
    let app = router(Arc::new(Gateway {
        agents: Arc::new(FakeAgents {
            agent: edge.agent,
            placed: Vec::new(),
            recorded: Arc::default(),
        }),
        tunnel: edge.tunnel.clone(),
        keys: edge.keys.clone(),
        public_url: String::new(),
        body_bytes: 10,
        bodies: Bodies::new(BodyLimits::default()),
        patience: Patience::default(),
        clock: Arc::new(FakeClock::at(0)),
    }));
    let request = edge.request("GET", &format!("{NOTES}/tasks"), "");
    let response = app.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 401);
    assert!(response.headers().contains_key("www-authenticate"));
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_never_answers_is_no_hang() {
    let edge = Edge::new();
    for path in [format!("{NOTES}/tasks/1"), format!("{NOTES}/tasks")] {
        let (parts, body) = edge.ask("GET", &path, "").await;
        assert_eq!(parts.status, 503);
        assert!(parts.headers.contains_key("retry-after"));
        let problem: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["code"], "UNAVAILABLE");
    }
    assert_eq!(edge.rpc(NOTES).await["error"]["data"][0]["reason"], "UNAVAILABLE");
}

#[tokio::test]
async fn a_status_that_is_none_of_an_answer_does_not_pass() {
    for status in [101, 150, 199, 600, 999] {
        let edge = Edge::new();
        let status = StatusCode::from_u16(status).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("upgrade", HeaderValue::from_static("websocket"));
        edge.script(Script::Answer(status, headers, stream::empty().boxed()));
        let (parts, _) = edge.ask("GET", &format!("{NOTES}/tasks"), "").await;
        assert_eq!(parts.status, 502, "{status}");
    }
}

#[tokio::test]
async fn a_cluster_that_is_away_is_told_with_since_when() {
    let edge = Edge::new();
    edge.tunnel.connected.lock().unwrap().clear();
    let answer = edge.rpc(NOTES).await;
    assert_eq!(
        (&answer["id"], &answer["error"]["code"]),
        (&json!(7), &json!(-32000))
    );
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("2027-01-15T07:59:00Z"), "{message}");
    let (parts, body) = edge.ask("POST", &format!("{NOTES}/message:send"), "{}").await;
    assert_eq!(parts.status, 503);
    assert_eq!(parts.headers["content-type"], "application/problem+json");
    assert!(String::from_utf8_lossy(&body).contains("2027-01-15T07:59:00Z"));
    let nowhere = edge.rpc("/a2a/acme/support/nowhere").await;
    assert!(
        nowhere["error"]["message"]
            .as_str()
            .unwrap()
            .contains("placement")
    );
    assert!(edge.tunnel.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn failures_of_the_tunnel_are_told_in_the_callers_dialect() {
    for failure in [
        TunnelError::NotReady("starting".to_owned()),
        TunnelError::Deadline,
        TunnelError::Broken("reset by 10.1.2.3".to_owned()),
    ] {
        let edge = Edge::new();
        edge.script(Script::Fail(failure.clone()));
        let answer = edge.rpc(NOTES).await;
        assert_eq!(answer["error"]["data"][0]["reason"], "UNAVAILABLE");
        assert!(!answer.to_string().contains("10.1.2.3"));
        edge.script(Script::Fail(failure));
        let (parts, _) = edge.ask("GET", &format!("{NOTES}/tasks"), "").await;
        assert_eq!(parts.status, 503);
    }
}

#[tokio::test]
async fn an_engine_that_refuses_the_hub_is_not_the_callers_401() {
    let edge = Edge::new();
    edge.script(Script::Answer(
        StatusCode::UNAUTHORIZED,
        HeaderMap::new(),
        stream::empty().boxed(),
    ));
    let (parts, _) = edge.ask("GET", &format!("{NOTES}/tasks"), "").await;
    assert_eq!(parts.status, 502);
    assert!(!parts.headers.contains_key("www-authenticate"));
}

#[tokio::test]
async fn s78_the_card_names_the_hub_and_has_an_etag() {
    let card = r#"{"name":"notes","version":"1","supportedInterfaces":
        [{"url":"http://127.0.0.1:4000/","protocolBinding":"JSONRPC","protocolVersion":"1.0"}]}"#;
    let edge = Edge::new();
    let path = format!("{NOTES}/.well-known/agent-card.json");
    edge.answer("application/json", vec![card]);
    let (parts, body) = edge.ask("GET", &path, "").await;
    let read: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        read["supportedInterfaces"][0]["url"],
        format!("https://hub.example{NOTES}")
    );
    assert_eq!(parts.headers["cache-control"], "private, max-age=60");
    let etag = parts.headers["etag"].clone();
    edge.answer("application/json", vec![card]);
    let mut request = edge.request("GET", &path, "");
    request.headers_mut().insert("if-none-match", etag.clone());
    let response = edge.send(request).await;
    assert_eq!(
        (response.status(), &response.headers()["etag"]),
        (StatusCode::NOT_MODIFIED, &etag)
    );
    edge.answer("application/json", vec!["<html>"]);
    assert_eq!(edge.ask("GET", &path, "").await.0.status, 502);
}

#[tokio::test]
async fn what_is_too_large_or_no_part_of_the_protocol_goes_no_further() {
    let edge = Edge::new();
    let large = format!(r#"{{"x":"{}"}}"#, "x".repeat(70_000));
    let (parts, _) = edge
        .ask("POST", &format!("{NOTES}/message:send"), large.clone())
        .await;
    assert_eq!(parts.status, 413);
    let (_, body) = edge.ask("POST", NOTES, large).await;
    assert_eq!(
        serde_json::from_slice::<Value>(&body).unwrap()["error"]["code"],
        -32600
    );
    assert_eq!(
        edge.ask("GET", &format!("{NOTES}/metrics"), "").await.0.status,
        404
    );
    let (parts, _) = edge.ask("PUT", &format!("{NOTES}/tasks"), "").await;
    assert_eq!(
        (parts.status, &parts.headers["allow"]),
        (StatusCode::METHOD_NOT_ALLOWED, &HeaderValue::from_static("GET"))
    );
    let (_, body) = edge.ask("POST", NOTES, rpc("Shutdown")).await;
    assert_eq!(
        serde_json::from_slice::<Value>(&body).unwrap()["error"]["code"],
        -32601
    );
    let mut form = edge.request("POST", &format!("{NOTES}/message:send"), "a=b");
    form.headers_mut().insert(
        "content-type",
        HeaderValue::from_static("application/x-www-form-urlencoded"),
    );
    assert_eq!(edge.send(form).await.status(), 415);
    assert!(edge.tunnel.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_that_lies_about_its_length_is_cut() {
    let edge = Edge::new();
    let chunks = stream::iter((0..20).map(|_| Ok::<_, io::Error>(Bytes::from(vec![b' '; 8 * 1024]))));
    let request = edge.request(
        "POST",
        &format!("{NOTES}/message:send"),
        Body::from_stream(chunks),
    );
    let response = edge.send(request).await;
    assert_eq!(response.status(), 413);
    assert!(edge.tunnel.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_query_string_passes_to_lists() {
    let edge = Edge::new();
    edge.answer("application/json", vec!["{\"tasks\":[]}"]);
    edge.ask("GET", &format!("{NOTES}/tasks?pageSize=5"), "").await;
    assert_eq!(edge.tunnel.seen.lock().unwrap()[0].path, "/tasks?pageSize=5");
}
