//! Two tenants in a real store, and short words for asking.

use axum::{Extension, Router, body::Body, middleware::from_fn, response::Response};
use chrono::DateTime;
use futures::{StreamExt as _, stream};
use http::Request;
use http_body_util::BodyExt as _;
use roadstead_authz::{Presented, RequestInfo, Role, Scope, SecretKind, TenantContext};
use roadstead_contract::documents::Name;
use roadstead_domain::{ClusterId, Error, FakeClock, SeededRandom};
use roadstead_graphql::{Fleet, Graphql, Limits, LogLine, LogLines, LogRequest, Parts, SocketLimits, router};
use roadstead_http::{Authenticate, Bodies, BodyLimits, Problem, guard, unauthenticated};
use roadstead_service::{authenticate, bootstrap, tokens};
use roadstead_store::{Store, testing::TestDatabase};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

pub(crate) const NOW_MS: i64 = 1_800_000_000_000;

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) acme: Tenant,
    pub(crate) globex: Tenant,
    graphql: Arc<Graphql>,
    pub(crate) fleet: Arc<FakeFleet>,
    pub(crate) database: TestDatabase,
}

/// A tenant with the project `support` and the cluster `edge`.
pub(crate) struct Tenant {
    pub(crate) owner: TenantContext,
    /// The owner's token.
    pub(crate) secret: String,
}

/// Clusters that are connected and log two lines.
#[derive(Debug, Default)]
pub(crate) struct FakeFleet {
    /// Clusters that were to be looked at.
    pub(crate) looked: std::sync::Mutex<Vec<ClusterId>>,
}

#[async_trait::async_trait]
impl Fleet for FakeFleet {
    fn connected(&self, _: ClusterId) -> Option<bool> {
        None
    }
    async fn look(&self, cluster: ClusterId) {
        self.looked.lock().expect("no panic holds it").push(cluster);
    }
    fn join_token(&self, secret: &SecretString) -> SecretString {
        format!("{}.pin", secret.expose_secret()).into()
    }
    async fn logs(&self, _: ClusterId, request: LogRequest) -> Result<LogLines, Error> {
        let line = |n: u32| LogLine {
            time: DateTime::from_timestamp_millis(NOW_MS),
            line: format!("line {n}"),
        };
        Ok(stream::iter((0..request.tail).map(move |n| Ok(line(n)))).boxed())
    }
}

/// The service alone, without login's counting of failures.
#[derive(Debug)]
struct Tokens(Store);

#[async_trait::async_trait]
impl Authenticate for Tokens {
    async fn bearer(&self, token: &str, request: RequestInfo) -> Result<TenantContext, Problem> {
        let presented = Presented::parse(SecretKind::ApiToken, token);
        let presented = presented.map_err(|_| unauthenticated("the API token is not valid"))?;
        let found = authenticate::api_token(&self.0, &presented, request).await;
        found.map_err(|error| Problem::from(&error))
    }
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

async fn tenant(store: &Store, tenant: &str) -> Tenant {
    let dev = bootstrap::dev(store, &name(tenant), &name("support"), &name("edge"))
        .await
        .unwrap();
    let issued = dev.issue_token(store, "owner").await.unwrap();
    let secret = issued.secret.expose_secret().to_owned();
    let owner = present(store, &secret).await;
    Tenant { owner, secret }
}

async fn present(store: &Store, secret: &str) -> TenantContext {
    let presented = Presented::parse(SecretKind::ApiToken, secret).unwrap();
    authenticate::api_token(store, &presented, RequestInfo::default())
        .await
        .unwrap()
}

impl World {
    pub(crate) async fn new() -> Self {
        let database = TestDatabase::sqlite();
        let clock = Arc::new(FakeClock::at(NOW_MS));
        let store = database.open(clock, Arc::new(SeededRandom::new(1)), None).await;
        let (acme, globex) = (tenant(&store, "acme").await, tenant(&store, "globex").await);
        let fleet = Arc::new(FakeFleet::default());
        let graphql = Arc::new(Graphql::new(Parts {
            store: store.clone(),
            fleet: fleet.clone(),
            authenticate: Arc::new(Tokens(store.clone())),
            origins: Vec::new(),
            limits: Limits::default(),
            bodies: Bodies::new(BodyLimits::default()),
            socket: SocketLimits::default(),
            stop: CancellationToken::new(),
        }));
        Self {
            store,
            acme,
            globex,
            graphql,
            fleet,
            database,
        }
    }

    /// What the database holds: texts of the first column.
    pub(crate) async fn kept(&self, sql: &str) -> Vec<String> {
        self.database.ask_all(sql).await
    }

    /// A holder of a fresh token of `acme`.
    pub(crate) async fn holder(&self, role: Role, scope: Scope) -> TenantContext {
        let input = tokens::IssueInput {
            name: role.to_string(),
            role,
            scopes: vec![scope],
            lifetime: Duration::from_secs(3600),
            idempotency_key: None,
        };
        let issued = tokens::issue(&self.acme.owner, &self.store, input).await.unwrap();
        present(&self.store, issued.secret.expose_secret()).await
    }

    /// Whoever holds the token.
    pub(crate) async fn present(&self, secret: &str) -> TenantContext {
        present(&self.store, secret).await
    }

    fn app(&self, caller: &TenantContext) -> Router {
        router(self.graphql.clone())
            .layer(Extension(caller.clone()))
            .layer(from_fn(guard))
    }

    /// Serves on loopback, with no caller known before the socket's first message.
    pub(crate) async fn serve(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = router(self.graphql.clone()).layer(from_fn(guard));
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    /// The whole answer to an operation.
    pub(crate) async fn answer(&self, caller: &TenantContext, query: &str, variables: Value) -> Value {
        self.post(caller, json!({"query": query, "variables": variables}))
            .await
    }

    async fn post(&self, caller: &TenantContext, body: Value) -> Value {
        let response = self.respond(caller, body).await;
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// The answer with its body not taken yet.
    pub(crate) async fn respond(&self, caller: &TenantContext, body: Value) -> Response {
        let request = Request::post("/graphql")
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        self.app(caller).oneshot(request).await.unwrap()
    }

    /// The answers to operations of one request.
    pub(crate) async fn batch(&self, caller: &TenantContext, queries: &[&str]) -> Value {
        let all: Vec<Value> = queries.iter().map(|query| json!({"query": query})).collect();
        self.post(caller, Value::Array(all)).await
    }

    /// The data of an operation that has no errors.
    pub(crate) async fn data(&self, caller: &TenantContext, query: &str, variables: Value) -> Value {
        let answer = self.answer(caller, query, variables).await;
        assert!(answer.get("errors").is_none(), "{answer}");
        answer["data"].clone()
    }

    pub(crate) async fn ask(&self, query: &str) -> Value {
        self.data(&self.acme.owner, query, Value::Null).await
    }

    /// Applies one text as acme's owner.
    pub(crate) async fn apply(&self, yaml: &str) -> Value {
        let input = json!({"project": "support", "idempotencyKey": key(),
            "sources": [{"name": "all.yaml", "text": yaml}]});
        let data = self.data(&self.acme.owner, APPLY, json!({"input": input})).await;
        data["applyDocuments"].clone()
    }
}

/// A key that was not used before.
pub(crate) fn key() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("key-{}", NEXT.fetch_add(1, Ordering::SeqCst))
}

pub(crate) const APPLY: &str = "mutation($input: ApplyDocumentsInput!) { applyDocuments(input: $input) {
    results { action object { id kind project name revision digest createdAt updatedAt json } before after clusters }
    errors { code message path expected found file line column } } }";

pub(crate) const NOTES: &str = "apiVersion: roadstead.dev/v1alpha1
kind: Model
metadata: {name: fast}
spec: {provider: ollama, model: small, endpoint: 'http://127.0.0.1:11434'}
---
kind: Agent
metadata: {name: notes, labels: {team: docs}, annotations: {zeta: '1', alpha: '2'}}
spec:
  description: Writes notes.
  instructions: Write notes.
  model: fast
  placement: {clusters: [edge]}
";
