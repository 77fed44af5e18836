//! The layer from outside, over a real store.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    middleware::{from_fn, from_fn_with_state},
    response::Response,
    routing::get,
};
use http::Request;
use http_body_util::BodyExt as _;
use roadstead_authz::RequestInfo;
use roadstead_domain::{FakeClock, SeededRandom};
use roadstead_http::{Caller, Session, guard};
use roadstead_login::{FailureLimit, Login, Rate, RequestLimit, require};
use roadstead_service::bootstrap;
use roadstead_store::{Store, testing::TestDatabase};
use roadstead_telemetry::propagate;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tower::ServiceExt as _;

struct Face {
    app: Router,
    dev: bootstrap::Dev,
    clock: Arc<FakeClock>,
    store: Store,
    token: String,
    login: Arc<Login>,
    _database: TestDatabase,
}

impl Face {
    async fn new() -> Self {
        let database = TestDatabase::sqlite();
        let clock = Arc::new(FakeClock::at(1_800_000_000_000));
        let store = database
            .open(clock.clone(), Arc::new(SeededRandom::new(1)), None)
            .await;
        let name = |text: &str| text.parse().unwrap();
        let dev = bootstrap::dev(&store, &name("acme"), &name("support"), &name("edge"))
            .await
            .unwrap();
        let issued = dev.issue_token(&store, "owner").await.unwrap();
        let limit = FailureLimit {
            burst: 5,
            refill: Duration::from_secs(3),
        };
        let requests = RequestLimit {
            token: Rate {
                per_second: 1,
                burst: 10,
            },
            ..RequestLimit::default()
        };
        let login = Arc::new(Login::new(store.clone(), limit, requests));
        let app = Router::new()
            .route("/livez", get(async || "ok"))
            .route("/readyz", get(async || propagate::trace_id().unwrap_or_default()))
            .route(
                "/graphql/ws",
                get(async || propagate::trace_id().unwrap_or_default()),
            )
            .route(
                "/trace",
                get(async |Caller(caller): Caller| {
                    let own = propagate::trace_id().unwrap_or_default();
                    format!("{own} {}", caller.request().trace_id)
                }),
            )
            .route("/who", get(async |Caller(caller): Caller| caller.actor().name()))
            .fallback(roadstead_http::not_found)
            .layer(from_fn_with_state(login.clone(), require))
            .layer(from_fn(guard));
        Self {
            app,
            dev,
            clock,
            store,
            token: issued.secret.expose_secret().to_owned(),
            login,
            _database: database,
        }
    }

    async fn send(&self, path: &str, authorization: Option<&str>, from: &str) -> (Response<()>, Value) {
        let mut request = Request::get(path).header("x-forwarded-for", "203.0.113.9");
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        let mut request = request.body(Body::empty()).unwrap();
        let address: SocketAddr = format!("{from}:1234").parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(address));
        let (parts, body) = self.app.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let json = serde_json::from_slice(&bytes);
        let json = json.unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes)));
        (Response::from_parts(parts, ()), json)
    }

    async fn who(&self, authorization: Option<&str>) -> (u16, Value) {
        let (response, body) = self.send("/who", authorization, "192.0.2.1").await;
        (response.status().as_u16(), body)
    }

    async fn issue(&self, name: &str) -> roadstead_service::tokens::Issued {
        self.dev.issue_token(&self.store, name).await.unwrap()
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }
}

#[tokio::test]
async fn a_good_token_is_let_through() {
    let face = Face::new().await;
    assert_eq!(face.who(Some(&face.bearer())).await, (200, Value::from("owner")));
}

#[tokio::test]
async fn nothing_answers_without_a_token_but_livez() {
    let face = Face::new().await;
    assert_eq!(face.send("/livez", None, "192.0.2.1").await.0.status(), 200);
    for path in [
        "/who",
        "/",
        "/graphql",
        "/a2a/acme/support/x",
        "/livez/",
        "/nothing",
        "/readyz/x",
    ] {
        let (response, body) = face.send(path, None, "192.0.2.1").await;
        assert_eq!(response.status(), 401, "{path}");
        assert!(
            response.headers()["www-authenticate"]
                .to_str()
                .unwrap()
                .starts_with("Bearer")
        );
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(body["code"], "UNAUTHENTICATED");
        assert_eq!(
            body["request_id"],
            response.headers()["x-request-id"].to_str().unwrap()
        );
    }
}

#[tokio::test]
async fn every_bad_token_is_refused_alike() {
    let face = Face::new().await;
    let mut flipped = face.token.clone();
    let last = if flipped.ends_with('a') { "b" } else { "a" };
    flipped.replace_range(flipped.len() - 1.., last);
    let mut bodies = Vec::new();
    for (from, token) in [
        ("192.0.2.1", "rst_x"),
        ("192.0.2.2", flipped.as_str()),
        ("192.0.2.3", "other"),
    ] {
        let bearer = format!("Bearer {token}");
        let (response, mut body) = face.send("/who", Some(&bearer), from).await;
        assert_eq!(response.status(), 401);
        body["request_id"] = Value::Null;
        assert!(!body.to_string().contains(token));
        bodies.push(body);
    }
    assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "{bodies:?}");
}

#[tokio::test]
async fn s30_a_token_in_the_url_is_refused_and_not_repeated() {
    let face = Face::new().await;
    let path = format!("/who?access_token={}", face.token);
    let (response, body) = face.send(&path, Some(&face.bearer()), "192.0.2.1").await;
    assert_eq!(response.status(), 400);
    assert!(!body.to_string().contains(&face.token));
}

#[tokio::test]
async fn s29_wrong_tokens_are_limited_by_source_and_forwarded_headers_change_nothing() {
    let face = Face::new().await;
    for _ in 0..5 {
        assert_eq!(face.who(Some("Bearer rst_wrong")).await.0, 401);
    }
    let (response, body) = face.send("/who", Some("Bearer rst_wrong"), "192.0.2.1").await;
    assert_eq!(
        (response.status().as_u16(), &body["code"]),
        (429, &Value::from("LIMIT"))
    );
    assert_eq!(response.headers()["retry-after"], "3");
    // Whoever shares the address and has a good token, known to the hub or new, is let through.
    assert_eq!(face.who(Some(&face.bearer())).await.0, 200);
    assert_eq!(face.who(Some(&face.bearer())).await.0, 200);
    face.clock.advance(Duration::from_secs(3));
    assert_eq!(face.who(Some("Bearer rst_wrong")).await.0, 401);
}

#[tokio::test]
async fn s29_an_ended_token_does_not_push_its_address_out() {
    let face = Face::new().await;
    let issued = face.issue("short").await;
    let ended = format!("Bearer {}", issued.secret.expose_secret());
    assert_eq!(face.who(Some(&ended)).await.0, 200);
    face.clock.advance(Duration::from_secs(2 * 366 * 24 * 3600));
    let fresh = face.issue("fresh").await;
    let mut last = 0;
    for _ in 0..200 {
        last = face.who(Some(&ended)).await.0;
    }
    assert_eq!(last, 429, "it was good once and is not trusted for that");
    let fresh = format!("Bearer {}", fresh.secret.expose_secret());
    assert_eq!(face.who(Some(&fresh)).await.0, 200);
    let (response, _) = face.send("/who", Some(&ended), "192.0.2.1").await;
    assert_eq!(response.headers()["retry-after"], "3", "the wait does not grow");
}

#[tokio::test]
async fn s29_one_token_sends_only_so_many_requests() {
    let face = Face::new().await;
    for _ in 0..10 {
        assert_eq!(face.who(Some(&face.bearer())).await.0, 200);
    }
    let (response, body) = face.send("/who", Some(&face.bearer()), "192.0.2.9").await;
    assert_eq!(
        (response.status().as_u16(), &body["code"]),
        (429, &Value::from("LIMIT"))
    );
    assert_eq!(response.headers()["retry-after"], "1");
    // What is open already is looked at all the same, and takes from no limit.
    let open = Session::new(face.login.clone(), face.token.clone(), RequestInfo::default());
    for _ in 0..50 {
        assert!(open.verify().await.is_ok());
    }
    face.clock.advance(Duration::from_secs(1));
    assert_eq!(face.who(Some(&face.bearer())).await.0, 200);
}

#[tokio::test]
async fn s91_a_store_that_is_away_is_no_yes() {
    let face = Face::new().await;
    face.store.close().await;
    let (response, body) = face.send("/who", Some(&face.bearer()), "192.0.2.1").await;
    assert_eq!(
        (response.status().as_u16(), &body["code"]),
        (503, &Value::from("UNAVAILABLE"))
    );
    assert!(response.headers().contains_key("retry-after"));
}

/// This process exports nothing; then a trace passes through it, or does not.
#[tokio::test]
async fn a_trace_is_the_callers_once_the_caller_is_known() {
    const CLAIMED: &str = "0af7651916cd43dd8448eb211c80319c";
    let face = Face::new().await;
    let ask = async |path: &str, authorization: Option<String>| {
        let mut request =
            Request::get(path).header("traceparent", format!("00-{CLAIMED}-b7ad6b7169203331-01"));
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        let answer = face
            .app
            .clone()
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&bytes).into_owned())
    };
    let known = ask("/trace", Some(face.bearer())).await;
    assert_eq!(known, (200, format!("{CLAIMED} {CLAIMED}")));
    for open in ["/readyz", "/graphql/ws"] {
        assert_eq!(ask(open, None).await, (200, String::new()), "{open}");
    }
    // Whoever holds a token that has ended is recorded, and not with a trace of their choice.
    let ended = face.issue("ended").await;
    let id = ended.token.id;
    let owner = authenticate(&face).await;
    roadstead_service::tokens::revoke(&owner, &face.store, &id.into())
        .await
        .unwrap();
    let bearer = format!("Bearer {}", ended.secret.expose_secret());
    assert_eq!(ask("/trace", Some(bearer)).await.0, 401);
    let page = roadstead_domain::PageRequest::default();
    let log = roadstead_service::audit::list(&owner, &face.store, &page)
        .await
        .unwrap();
    let refused: Vec<_> = log
        .items
        .iter()
        .filter(|record| record.decision == "refuse")
        .collect();
    assert_eq!((refused.len(), refused[0].trace_id.as_str()), (1, ""));
}

async fn authenticate(face: &Face) -> roadstead_authz::TenantContext {
    use roadstead_authz::{Presented, RequestInfo, SecretKind};
    let presented = Presented::parse(SecretKind::ApiToken, &face.token).unwrap();
    let owner = roadstead_service::authenticate::api_token(&face.store, &presented, RequestInfo::default());
    owner.await.unwrap()
}
