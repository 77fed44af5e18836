//! The transport from outside, over a small schema of its own.

mod sockets;

use crate::{Graphql, Limits, SocketLimits, cost::Cost, router, sockets::Sockets};
use async_graphql::{Object, Schema, Subscription};
use axum::{Extension, Router, body::Body, middleware::from_fn};
use futures::{SinkExt as _, Stream, StreamExt as _, stream};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use roadstead_authz::{
    Presented, RequestInfo, Role, Scope, SecretKind, TenantContext, TenantRecord, TokenRecord, mint,
};
use roadstead_domain::{FakeClock, OsRandom, SeededRandom, TenantId, TokenId};
use roadstead_http::{Authenticate, Bodies, BodyLimits, Problem, guard, unauthenticated};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest as _},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use sockets::{Served, hear, say, subscribe};

static WRITES: AtomicUsize = AtomicUsize::new(0);

struct Query;
struct Mutation;
struct Sub;

#[Object]
impl Query {
    async fn hello(&self) -> &str {
        "world"
    }
    async fn again(&self) -> Query {
        Query
    }
    #[graphql(complexity = "crate::cost::page(first) * child_complexity")]
    async fn many(&self, first: Option<u32>) -> Vec<Query> {
        (0..first.unwrap_or(25)).map(|_| Query).collect()
    }
    async fn boom(&self) -> &str {
        assert!(WRITES.load(Ordering::SeqCst) == usize::MAX, "from inside");
        "never"
    }
}

#[Object]
impl Mutation {
    async fn write(&self) -> usize {
        WRITES.fetch_add(1, Ordering::SeqCst)
    }
}

#[Subscription]
impl Sub {
    async fn count(&self, to: u32) -> impl Stream<Item = u32> {
        stream::iter(0..to)
    }
    async fn endless(&self) -> impl Stream<Item = u32> {
        stream::pending()
    }
    /// Events of 64 KiB, without end.
    async fn flood(&self) -> impl Stream<Item = String> {
        stream::repeat_with(|| "x".repeat(64 * 1024))
    }
}

/// One good token, until it is revoked.
#[derive(Debug)]
struct OneToken {
    token: String,
    context: TenantContext,
    revoked: AtomicBool,
    /// Nobody can say.
    away: AtomicBool,
    /// How often it was asked.
    asked: AtomicUsize,
}

#[async_trait::async_trait]
impl Authenticate for OneToken {
    async fn bearer(&self, token: &str, _: RequestInfo) -> Result<TenantContext, Problem> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            let detail = "the database does not answer";
            return Err(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "UNAVAILABLE",
                detail,
            ));
        }
        if token == self.token && !self.revoked.load(Ordering::SeqCst) {
            Ok(self.context.clone())
        } else {
            Err(unauthenticated("the API token is not valid"))
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a caller without a database")]
fn one_token() -> OneToken {
    let (secret, hash) = mint(SecretKind::ApiToken, &OsRandom);
    let token = secret.expose_secret().to_owned();
    let presented = Presented::parse(SecretKind::ApiToken, &token).unwrap();
    let (clock, random) = (FakeClock::at(1), SeededRandom::new(1));
    let record = TokenRecord {
        id: TokenId::generate(&clock, &random),
        tenant: TenantRecord {
            id: TenantId::generate(&clock, &random),
            name: "acme".to_owned(),
        },
        name: "ci".to_owned(),
        role: Role::Viewer,
        scopes: vec![Scope::Read],
        hash,
        expires_at_ms: i64::MAX,
        revoked: false,
    };
    let context = TenantContext::from_api_token(&presented, Some(record), 1, RequestInfo::default());
    OneToken {
        token,
        context: context.unwrap(),
        revoked: AtomicBool::new(false),
        away: AtomicBool::new(false),
        asked: AtomicUsize::new(0),
    }
}

fn face(login: &Arc<OneToken>, stop: &CancellationToken) -> Arc<Graphql> {
    let limits = Limits::default();
    let schema = Schema::build(Query, Mutation, Sub)
        .limit_depth(limits.depth)
        .limit_directives(limits.directives)
        .extension(Cost)
        .finish();
    Arc::new(Graphql {
        schema: Box::new(schema),
        answers: crate::answers(&limits),
        limits,
        bodies: Bodies::new(BodyLimits::default()),
        socket: SocketLimits {
            init: Duration::from_millis(300),
            recheck: Duration::from_millis(50),
            unanswered: Duration::from_millis(500),
            ..SocketLimits::default()
        },
        sockets: Sockets::new(3),
        authenticate: login.clone(),
        origins: vec!["https://hub.example".to_owned()],
        stop: stop.clone(),
    })
}

fn app() -> Router {
    let login = Arc::new(one_token());
    router(face(&login, &CancellationToken::new()))
        .layer(Extension(login.context.clone()))
        .layer(from_fn(guard))
}

async fn send(request: Request<Body>) -> (StatusCode, http::HeaderMap, Value) {
    let (parts, body) = app().oneshot(request).await.unwrap().into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    (parts.status, parts.headers, json)
}

fn request(body: impl Into<Body>) -> http::request::Builder {
    let _ = body;
    Request::post("/graphql").header("content-type", "application/json")
}

async fn ask(body: Value) -> (StatusCode, Value) {
    let text = body.to_string();
    let (status, _, json) = send(request("").body(Body::from(text)).unwrap()).await;
    (status, json)
}

#[tokio::test]
async fn a_query_is_answered_with_its_cost() {
    let (status, json) = ask(json!({"query": "{ hello many(first: 3) { hello } }"})).await;
    assert_eq!(status, 200);
    assert_eq!(json["data"]["hello"], "world");
    assert_eq!(
        json["extensions"]["cost"],
        json!({"requested": 4, "actual": 5, "remaining": 9_996})
    );
}

#[tokio::test]
async fn s17_nothing_runs_over_get_or_as_a_form() {
    let before = WRITES.load(Ordering::SeqCst);
    let get = Request::get("/graphql?query=mutation%20%7B%20write%20%7D");
    let (status, headers, _) = send(get.body(Body::empty()).unwrap()).await;
    assert_eq!(
        (status, headers["allow"].to_str().unwrap()),
        (StatusCode::METHOD_NOT_ALLOWED, "POST")
    );
    for media in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ] {
        let body = r#"{"query":"mutation { write }"}"#;
        let post = Request::post("/graphql").header("content-type", media);
        assert_eq!(send(post.body(Body::from(body)).unwrap()).await.0, 415, "{media}");
    }
    let none = Request::post("/graphql").body(Body::from("{}")).unwrap();
    assert_eq!(send(none).await.0, 415);
    assert_eq!(WRITES.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn s19_no_origin_is_granted_anything() {
    let preflight = Request::builder()
        .method("OPTIONS")
        .uri("/graphql")
        .header("origin", "https://evil.example")
        .header("access-control-request-method", "POST");
    let (status, headers, _) = send(preflight.body(Body::empty()).unwrap()).await;
    assert_eq!(status, 405);
    assert!(!headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn s20_depth_cost_aliases_and_batches_are_capped() {
    let error = |json: &Value| {
        json["errors"][0]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let deep = format!("{{ {} hello {} }}", "again {".repeat(13), "}".repeat(13));
    let (_, json) = ask(json!({"query": deep})).await;
    assert!(error(&json).contains("deep"), "{json}");
    let costly = "{ many(first: 100) { many(first: 100) { hello again { hello } } } }";
    let (_, json) = ask(json!({"query": costly})).await;
    assert!(error(&json).contains("points"), "{json}");
    assert_eq!(json["errors"][0]["extensions"]["code"], "LIMIT");
    let huge = "{ many(first: 4000000000) { hello } }";
    let (_, json) = ask(json!({"query": costly.replace("again { hello }", "") + " #" + huge})).await;
    assert!(
        json["data"].is_object() || error(&json).contains("points"),
        "{json}"
    );
    let aliased: String = (0..16).map(|i| format!("a{i}: hello ")).collect();
    let (_, json) = ask(json!({"query": format!("{{ {aliased} }}")})).await;
    assert!(error(&json).contains("aliases"), "{json}");
    let one = json!({"query": "{ many(first: 100) { many(first: 60) { hello } } }"});
    let (_, json) = ask(json!([one, one])).await;
    assert!(json[0]["data"].is_object(), "{json}");
    assert!(error(&json[1]).contains("points"), "{json}");
    let (_, json) = ask(Value::Array(vec![one; 11])).await;
    assert!(error(&json).contains("batch"), "{json}");
}

/// 1.5 kB that the library's checks would walk for years: `{...f0}`, and each fragment spreads the next three times.
fn fragment_bomb() -> String {
    let fragments: String = (0..31)
        .map(|n| {
            format!(
                " fragment f{n} on Query{{...f{next} ...f{next} ...f{next}}}",
                next = n + 1
            )
        })
        .collect();
    format!("{{...f0}}{fragments} fragment f31 on Query{{__typename}}")
}

#[tokio::test]
async fn s20_a_fragment_bomb_is_refused_before_anybody_walks_it() {
    let bomb = json!({"query": fragment_bomb()});
    let fine = json!({"query": "{ ...F again { ...F } } fragment F on Query { hello }"});
    let (_, json) = ask(fine.clone()).await;
    assert_eq!(
        json["data"],
        json!({"hello": "world", "again": {"hello": "world"}})
    );
    let cycle = json!({"query": "{ ...F } fragment F on Query { again { ...F } }"});
    for body in [bomb.clone(), json!([fine, bomb]), cycle] {
        let (_, json) = ask(body).await;
        assert_eq!(json["errors"][0]["extensions"]["code"], "LIMIT", "{json}");
    }
    // A batch shares the limit.
    let half = format!(
        "{{ {} }} fragment F on Query {{ {} }}",
        "...F ".repeat(60),
        "hello ".repeat(100)
    );
    let (_, json) = ask(json!({"query": half})).await;
    assert!(json["data"].is_object(), "{json}");
    let (_, json) = ask(json!([{"query": half}, {"query": half}])).await;
    assert_eq!(json["errors"][0]["extensions"]["code"], "LIMIT", "{json}");

    let served = Served::new().await;
    let mut socket = served.ready().await;
    say(
        &mut socket,
        subscribe("1", &fragment_bomb().replace("{...f0}", "subscription {...f0}")),
    )
    .await;
    let error = hear(&mut socket).await;
    assert_eq!(error["payload"][0]["extensions"]["code"], "LIMIT", "{error}");
}

#[tokio::test]
async fn s20_a_variable_that_is_used_very_often_is_refused() {
    let fields: String = (0..15)
        .map(|n| format!("a{n}: many(first: $v) {{ hello }} "))
        .collect();
    let spreads = "...F ".repeat(100);
    let query = format!("query($v: Int) {{ {spreads} }} fragment F on Query {{ {fields} }}");
    let body = json!({"query": query, "variables": {"v": "x".repeat(1 << 20)}});
    let (_, json) = ask(body).await;
    assert_eq!(json["errors"][0]["extensions"]["code"], "LIMIT", "{json}");
}

#[tokio::test]
async fn s31_a_body_of_many_values_is_refused_before_it_is_parsed() {
    for values in [
        "0,".repeat(3_000_000),
        "[],".repeat(2_000_000),
        "{\"a\":0},".repeat(800_000),
    ] {
        let body = format!(r#"{{"query":"{{hello}}","variables":{{"x":[{values}0]}}}}"#);
        let (status, _, json) = send(request("").body(Body::from(body)).unwrap()).await;
        assert_eq!(
            (status, &json["code"]),
            (StatusCode::PAYLOAD_TOO_LARGE, &json!("LIMIT"))
        );
    }
    // What a set of documents may hold passes.
    let body = json!({"query": "{hello}", "variables": {"x": vec![json!({"a": 1, "b": [true]}); 12_500]}});
    assert_eq!(ask(body).await.1["data"]["hello"], "world");
}

#[tokio::test]
async fn s20_a_body_beyond_the_cap_is_refused() {
    let large = format!(
        r#"{{"query":"{{hello}}","variables":{{"x":"{}"}}}}"#,
        "x".repeat(9 << 20)
    );
    let (status, _, json) = send(request("").body(Body::from(large)).unwrap()).await;
    assert_eq!(
        (status, &json["code"]),
        (StatusCode::PAYLOAD_TOO_LARGE, &json!("LIMIT"))
    );
}

#[tokio::test]
async fn s24_a_panicking_resolver_leaves_the_process_serving() {
    let (status, json) = ask(json!({"query": "{ boom }"})).await;
    assert_eq!(status, 500);
    assert!(!json.to_string().contains("from inside"));
    assert_eq!(ask(json!({"query": "{ hello }"})).await.0, 200);
}

#[tokio::test]
async fn media_types_decide_the_status_of_a_refused_document() {
    for (accept, status) in [
        ("application/json", 200),
        ("application/graphql-response+json", 400),
    ] {
        for query in ["{ nothing }", "{", "subscription { endless }"] {
            let body = json!({"query": query}).to_string();
            let request = request("")
                .header("accept", accept)
                .body(Body::from(body))
                .unwrap();
            let (found, headers, json) = send(request).await;
            assert_eq!(found, status, "{accept} {query}");
            assert!(headers["content-type"].to_str().unwrap().starts_with(accept));
            assert!(json.get("data").is_none(), "{json}");
            assert_eq!(json["errors"][0]["extensions"]["code"], "INVALID");
            assert_eq!(
                json["errors"][0]["extensions"]["requestId"],
                headers["x-request-id"].to_str().unwrap()
            );
        }
    }
    let html = request("")
        .header("accept", "text/html")
        .body(Body::from("{}"))
        .unwrap();
    assert_eq!(send(html).await.0, 406);
    let broken = request("").body(Body::from("{")).unwrap();
    assert_eq!(send(broken).await.0, 400);
}

#[tokio::test]
async fn without_login_nothing_runs() {
    let login = Arc::new(one_token());
    let bare = router(face(&login, &CancellationToken::new()));
    let body = json!({"query": "{ __typename }"}).to_string();
    let response = bare
        .oneshot(request("").body(Body::from(body)).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), 401);
}
