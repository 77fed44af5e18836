//! Who may call which agent, decided by the real service over a real store.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use async_trait::async_trait;
use axum::{Extension, Router, body::Body, middleware::from_fn};
use http::Request;
use http_body_util::BodyExt as _;
use roadstead_authz::{Presented, RequestInfo, Role, Scope, SecretKind, TenantContext};
use roadstead_contract::documents::{Source, parse_files};
use roadstead_domain::{ClusterId, FakeClock, PageRequest, SeededRandom};
use roadstead_gateway::{
    BODY_BYTES, EngineAnswer, EngineCall, EngineKeys, Gateway, Patience, ServiceAgents, Tunnel, TunnelError,
    router,
};
use roadstead_http::{Bodies, BodyLimits, guard};
use roadstead_service::{ApplyDocument, ApplyInput, apply_documents, audit, authenticate, bootstrap, tokens};
use roadstead_store::{Store, testing::TestDatabase};
use secrecy::ExposeSecret as _;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tower::ServiceExt as _;

const NOTES: &str = "apiVersion: roadstead.dev/v1alpha1
kind: Model
metadata: {name: fast}
spec: {provider: ollama, model: small, endpoint: 'http://127.0.0.1:11434'}
---
kind: Agent
metadata: {name: notes}
spec: {instructions: Write notes., model: fast, placement: {clusters: [edge]}}
";

/// Every cluster is connected, and every call counted and given up.
#[derive(Debug, Default)]
struct Counting(AtomicUsize);

#[async_trait]
impl Tunnel for Counting {
    async fn connected(&self, _: ClusterId) -> bool {
        true
    }
    async fn call(&self, _: ClusterId, _: EngineCall) -> Result<EngineAnswer, TunnelError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Err(TunnelError::NotReady("starting".to_owned()))
    }
}

async fn present(store: &Store, secret: &str) -> TenantContext {
    let presented = Presented::parse(SecretKind::ApiToken, secret).unwrap();
    authenticate::api_token(store, &presented, RequestInfo::default())
        .await
        .unwrap()
}

async fn owner(store: &Store, tenant: &str) -> TenantContext {
    let name = |text: &str| text.parse().unwrap();
    let dev = bootstrap::dev(store, &name(tenant), &name("support"), &name("edge"))
        .await
        .unwrap();
    let issued = dev.issue_token(store, "owner").await.unwrap();
    present(store, issued.secret.expose_secret()).await
}

async fn apply_notes(owner: &TenantContext, store: &Store) {
    let project = "support".parse().unwrap();
    let source = Source {
        name: "-",
        text: NOTES,
    };
    let parsed = parse_files(&[source], &project).unwrap();
    let documents = parsed.into_iter().map(|parsed| ApplyDocument {
        parsed,
        expected_revision: None,
    });
    let input = ApplyInput {
        documents: documents.collect(),
        ..ApplyInput::default()
    };
    apply_documents(owner, store, &input).await.unwrap();
}

/// A holder of a fresh token.
async fn holder(owner: &TenantContext, store: &Store, role: Role, scopes: Vec<Scope>) -> TenantContext {
    let input = tokens::IssueInput {
        name: role.to_string(),
        role,
        scopes,
        lifetime: Duration::from_secs(60),
        idempotency_key: None,
    };
    let issued = tokens::issue(owner, store, input).await.unwrap();
    present(store, issued.secret.expose_secret()).await
}

fn edge(store: &Store, tunnel: &Arc<Counting>, caller: &TenantContext) -> Router {
    let pem = EngineKeys::generate_pem().unwrap();
    let gateway = Gateway {
        agents: Arc::new(ServiceAgents(store.clone())),
        tunnel: tunnel.clone(),
        keys: Arc::new(EngineKeys::new("https://hub.example".to_owned(), &pem, &[]).unwrap()),
        public_url: "https://hub.example".to_owned(),
        body_bytes: BODY_BYTES,
        bodies: Bodies::new(BodyLimits::default()),
        patience: Patience::default(),
        clock: Arc::new(FakeClock::at(1_800_000_000_000)),
    };
    router(Arc::new(gateway))
        .layer(Extension(caller.clone()))
        .layer(from_fn(guard))
}

async fn list_tasks(app: Router, address: &str) -> String {
    let request = Request::get(format!("{address}/tasks"))
        .body(Body::empty())
        .unwrap();
    let (parts, body) = app.oneshot(request).await.unwrap().into_parts();
    let id = parts.headers["x-request-id"].to_str().unwrap();
    let bytes = body.collect().await.unwrap().to_bytes();
    format!("{} {}", parts.status, String::from_utf8_lossy(&bytes)).replace(id, "ID")
}

#[tokio::test]
async fn s33_s75_only_who_may_invoke_reaches_the_tunnel_and_the_others_learn_nothing() {
    let database = TestDatabase::sqlite();
    let clock = Arc::new(FakeClock::at(1_800_000_000_000));
    let store = database.open(clock, Arc::new(SeededRandom::new(1)), None).await;
    let (acme, globex) = (owner(&store, "acme").await, owner(&store, "globex").await);
    apply_notes(&acme, &store).await;
    let viewer = holder(&acme, &store, Role::Viewer, vec![Scope::Read]).await;

    let tunnel = Arc::new(Counting::default());
    let mut refused = Vec::new();
    for (caller, address) in [
        (&acme, "/a2a/acme/support/nothing"),
        (&acme, "/a2a/acme/nothing/notes"),
        (&acme, "/a2a/acme/support/fast"),
        (&acme, "/a2a/globex/support/notes"),
        (&viewer, "/a2a/acme/support/notes"),
        (&globex, "/a2a/acme/support/notes"),
        (&globex, "/a2a/globex/support/notes"),
    ] {
        refused.push(list_tasks(edge(&store, &tunnel, caller), address).await);
    }
    assert!(refused.iter().all(|answer| answer == &refused[0]), "{refused:#?}");
    assert!(refused[0].starts_with("404"), "{}", refused[0]);
    assert_eq!(tunnel.0.load(Ordering::SeqCst), 0);

    let allowed = list_tasks(edge(&store, &tunnel, &acme), "/a2a/acme/support/notes").await;
    assert!(
        allowed.starts_with("503") && allowed.contains("starting"),
        "{allowed}"
    );
    assert_eq!(tunnel.0.load(Ordering::SeqCst), 1);

    let page = audit::list(&acme, &store, &PageRequest::default()).await.unwrap();
    let denied = page.items.iter().find(|r| r.action == "invoke").unwrap();
    assert_eq!(
        (denied.decision.as_str(), &denied.actor),
        ("deny", &viewer.actor().label())
    );
}

/// A decision on an approval, as its caller sends it.
async fn approve(app: Router) {
    let part = serde_json::json!({"data": {"approval": "a1", "decision": "approve", "digest": "0a0a", "reason": "secret"}});
    let message = serde_json::json!({"messageId": "m", "taskId": "t1", "role": "ROLE_USER", "parts": [part]});
    let body = serde_json::json!({"message": message}).to_string();
    let request = Request::post("/a2a/acme/support/notes/message:send")
        .header("content-type", "application/json")
        .body(Body::from(body))
        .unwrap();
    assert_eq!(app.oneshot(request).await.unwrap().status(), 503);
}

#[tokio::test]
async fn s82_s89_who_decides_an_approval_is_in_the_audit_log_and_whether_they_may() {
    let database = TestDatabase::sqlite();
    let clock = Arc::new(FakeClock::at(1_800_000_000_000));
    let store = database.open(clock, Arc::new(SeededRandom::new(1)), None).await;
    let acme = owner(&store, "acme").await;
    apply_notes(&acme, &store).await;
    let tunnel = Arc::new(Counting::default());
    for (role, scopes, decision) in [
        (Role::Operator, vec![Scope::Invoke], "deny"),
        (Role::Admin, vec![Scope::Invoke], "deny"),
        (Role::Admin, vec![Scope::Invoke, Scope::Approve], "allow"),
    ] {
        let caller = holder(&acme, &store, role, scopes).await;
        approve(edge(&store, &tunnel, &caller)).await;
        let page = audit::list(&acme, &store, &PageRequest::default()).await.unwrap();
        let record = page.items.iter().find(|r| r.action == "approve").unwrap();
        assert_eq!(
            (record.decision.as_str(), &record.actor),
            (decision, &caller.actor().label())
        );
        let detail = record.detail.to_string();
        assert!(
            detail.contains("t1") && detail.contains("0a0a") && detail.contains("yes"),
            "{detail}"
        );
        assert!(!detail.contains("secret"), "{detail}");
    }
    assert_eq!(tunnel.0.load(Ordering::SeqCst), 3);
}
