//! A hub's store with two tenants, and short words for what the tests do.

use roadstead_authz::{PeerIdentity, Presented, RequestInfo, Role, Scope, SecretKind, TenantContext};
use roadstead_contract::documents::{Name, Source, parse_files};
use roadstead_domain::{ClusterId, Error, FakeClock, SeededRandom};
use roadstead_service::bootstrap::{self, Dev};
use roadstead_service::{Answer, ApplyDocument, ApplyInput, authenticate, clusters, fleet, tokens};
use roadstead_store::testing::TestDatabase;
use roadstead_store::{Faults, Store};
use secrecy::ExposeSecret as _;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// Runs an async test body on both databases.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[tokio::test]
            async fn sqlite() {
                let world = crate::support::World::new(roadstead_store::testing::TestDatabase::sqlite()).await;
                Box::pin(super::tests::$name(world)).await;
            }
            #[tokio::test]
            async fn postgres() {
                let Some(database) = roadstead_store::testing::TestDatabase::postgres().await else { return };
                let world = crate::support::World::new(database).await;
                Box::pin(super::tests::$name(world)).await;
            }
        }
    )+};
}
pub(crate) use on_both;

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) clock: Arc<FakeClock>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) acme: Tenant,
    pub(crate) other: Tenant,
    pub(crate) database: TestDatabase,
}

/// A tenant with the project `support` and the cluster `edge`, seen by its owner.
pub(crate) struct Tenant {
    pub(crate) dev: Dev,
    pub(crate) owner: TenantContext,
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

impl World {
    pub(crate) async fn new(database: TestDatabase) -> Self {
        let clock = Arc::new(FakeClock::at(1_800_000_000_000));
        let faults = Arc::new(Faults::default());
        let random = Arc::new(SeededRandom::new(1));
        let store = database.open(clock.clone(), random, Some(faults.clone())).await;
        let acme = tenant(&store, "acme").await;
        let other = tenant(&store, "other").await;
        Self {
            store,
            clock,
            faults,
            acme,
            other,
            database,
        }
    }

    /// A holder of a fresh token of `acme`.
    pub(crate) async fn holder(&self, role: Role, scopes: &[Scope]) -> TenantContext {
        holder(&self.store, &self.acme.owner, role, scopes).await
    }

    pub(crate) async fn apply(&self, yaml: &str) -> Result<Answer, Error> {
        roadstead_service::apply_documents(&self.acme.owner, &self.store, &input(yaml)).await
    }

    /// The cluster agent of `acme`'s cluster `edge`, enrolled with a certificate.
    pub(crate) async fn cluster_agent(&self) -> TenantContext {
        enrolled(&self.store, &self.acme, "01").await
    }
}

async fn tenant(store: &Store, tenant: &str) -> Tenant {
    let (tenant, project, cluster) = (name(tenant), name("support"), name("edge"));
    let labels = [("roadstead.dev/runtime".to_owned(), "local".to_owned())].into();
    let dev = bootstrap::with_cluster(store, &tenant, &project, &cluster, labels)
        .await
        .expect("bootstrapped");
    let issued = dev.issue_token(store, "owner").await.expect("issued");
    let owner = present(store, issued.secret.expose_secret()).await.expect("good");
    Tenant { dev, owner }
}

pub(crate) async fn present(store: &Store, secret: &str) -> Result<TenantContext, Error> {
    let presented = Presented::parse(SecretKind::ApiToken, secret)?;
    authenticate::api_token(store, &presented, RequestInfo::default()).await
}

pub(crate) async fn holder(
    store: &Store,
    owner: &TenantContext,
    role: Role,
    scopes: &[Scope],
) -> TenantContext {
    let input = tokens::IssueInput {
        idempotency_key: None,
        name: format!("{role}"),
        role,
        scopes: scopes.to_vec(),
        lifetime: HOUR,
    };
    let issued = tokens::issue(owner, store, input).await.expect("issued");
    present(store, issued.secret.expose_secret()).await.expect("good")
}

pub(crate) async fn enrolled(store: &Store, tenant: &Tenant, serial: &str) -> TenantContext {
    enrolled_in(store, &tenant.owner, tenant.dev.cluster.id, serial).await
}

/// The cluster agent of that cluster, enrolled with a certificate of that serial.
pub(crate) async fn enrolled_in(
    store: &Store,
    owner: &TenantContext,
    cluster: ClusterId,
    serial: &str,
) -> TenantContext {
    let join = clusters::join_token(owner, store, cluster, None)
        .await
        .expect("a join token");
    let (tenant, cluster) = consume(store, join.secret.expose_secret()).await.expect("good");
    let peer = PeerIdentity {
        tenant,
        cluster,
        serial: serial.to_owned(),
    };
    let not_after = store.clock().now_ms() + 72 * 3_600_000;
    fleet::certificate_issued(store, &peer, not_after, RequestInfo::default())
        .await
        .expect("noted");
    authenticate::cluster(store, &peer, RequestInfo::default())
        .await
        .expect("good")
}

pub(crate) async fn consume(
    store: &Store,
    secret: &str,
) -> Result<(roadstead_domain::TenantId, ClusterId), Error> {
    fleet::consume_join_token(store, secret, "0.1.0", RequestInfo::default()).await
}

pub(crate) fn input(yaml: &str) -> ApplyInput {
    let source = Source {
        name: "test.yaml",
        text: yaml,
    };
    let parsed = parse_files(&[source], &name("support")).expect("the test's documents hold");
    ApplyInput {
        documents: parsed
            .into_iter()
            .map(|parsed| ApplyDocument {
                parsed,
                expected_revision: None,
            })
            .collect(),
        message: "test".to_owned(),
        ..ApplyInput::default()
    }
}

pub(crate) fn model(name: &str, text: &str) -> String {
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Model\nmetadata: {{name: {name}}}\nspec:\n  provider: openaiCompatible\n  model: {text}\n  endpoint: http://llm.internal/v1\n"
    )
}

pub(crate) fn agent(name: &str, instructions: &str, model: &str, placement: &str) -> String {
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {{name: {name}}}\nspec:\n  instructions: {instructions}\n  model: {model}\n  placement: {placement}\n"
    )
}

pub(crate) fn set(documents: &[String]) -> String {
    documents.join("---\n")
}

/// A small whole: an agent on `edge` with its model.
pub(crate) fn pair() -> String {
    set(&[
        model("fast", "m1"),
        agent("helper", "Help.", "fast", "{clusters: [edge]}"),
    ])
}

/// What a cluster agent says, one thing at a time.
pub(crate) mod say {
    use roadstead_authz::TenantContext;
    use roadstead_domain::{Error, ObjectId};
    use roadstead_service::together::{Heard, Report, report};
    use roadstead_store::{Marks, NewStatus, Store};

    async fn all(ctx: &TenantContext, store: &Store, epoch: u64, said: Report) -> Heard {
        report(ctx, store, epoch, &said).await
    }

    pub(crate) async fn persisted(
        ctx: &TenantContext,
        store: &Store,
        epoch: u64,
        persisted: u64,
    ) -> Result<(), Error> {
        let marks = Marks {
            persisted,
            applied: 0,
        };
        let said = Report {
            marks,
            ..Report::default()
        };
        all(ctx, store, epoch, said).await.map(|_| ())
    }

    pub(crate) async fn applied(
        ctx: &TenantContext,
        store: &Store,
        epoch: u64,
        applied: u64,
    ) -> Result<(), Error> {
        let marks = Marks {
            persisted: 0,
            applied,
        };
        let said = Report {
            marks,
            ..Report::default()
        };
        all(ctx, store, epoch, said).await.map(|_| ())
    }

    /// The foreign ones.
    pub(crate) async fn statuses(
        ctx: &TenantContext,
        store: &Store,
        epoch: u64,
        statuses: &[NewStatus],
    ) -> Result<Vec<ObjectId>, Error> {
        let said = Report {
            statuses: statuses.to_vec(),
            ..Report::default()
        };
        all(ctx, store, epoch, said).await
    }

    pub(crate) async fn held(
        ctx: &TenantContext,
        store: &Store,
        epoch: u64,
        revision: u64,
        deletes: u64,
    ) -> Result<(), Error> {
        let said = Report {
            held: Some((revision, deletes)),
            ..Report::default()
        };
        all(ctx, store, epoch, said).await.map(|_| ())
    }

    pub(crate) async fn taken(
        ctx: &TenantContext,
        store: &Store,
        epoch: u64,
        approved: u64,
        held: bool,
    ) -> Result<(), Error> {
        let said = Report {
            taken: Some((approved, held)),
            ..Report::default()
        };
        all(ctx, store, epoch, said).await.map(|_| ())
    }
}
