//! A hub's database with one tenant, and short words for what the tests do to it.

use roadstead_authz::{Presented, RequestInfo, SecretKind, TenantContext};
use roadstead_contract::documents::{Kind, Name, Source, parse_files};
use roadstead_domain::{Clock, ClusterId, OsRandom, PageRequest, SystemClock};
use roadstead_fleet::{FleetStore, Sql};
use roadstead_service::{
    ApplyDocument, ApplyInput, DeleteInput, Target, apply_documents, authenticate,
    bootstrap::{self, Dev},
    clusters, delete_document, lookup, platform,
};
use roadstead_simulation::{
    agent::ClusterAgent,
    eventually,
    hub::{Hub, Truth, Wishes},
};
use roadstead_store::{AuditRecord, Cluster, Store, testing::TestDatabase};
use secrecy::ExposeSecret as _;
use std::{collections::BTreeMap, sync::Arc};

/// Runs an async test body on both databases.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn sqlite() {
                let database = roadstead_store::testing::TestDatabase::sqlite();
                Box::pin(super::tests::$name(crate::world::World::new(database).await)).await;
            }
            #[tokio::test(flavor = "multi_thread")]
            async fn postgres() {
                let Some(database) = roadstead_store::testing::TestDatabase::postgres().await else { return };
                Box::pin(super::tests::$name(crate::world::World::new(database).await)).await;
            }
        }
    )+};
}
pub(crate) use on_both;

/// The database, shared by every hub over it.
#[derive(Clone)]
pub(crate) struct World(Arc<Inner>);

struct Inner {
    store: Store,
    owner: TenantContext,
    dev: Dev,
    database: TestDatabase,
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn agent(name: &str, text: &str, cluster: &str) -> String {
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {{name: {name}}}\nspec:\n  instructions: {text}\n  \
         model: fast\n  placement: {{clusters: [{cluster}]}}\n"
    )
}

const MODEL: &str = "apiVersion: roadstead.dev/v1alpha1\nkind: Model\nmetadata: {name: fast}\nspec:\n  \
                     provider: openaiCompatible\n  model: m\n  endpoint: http://llm.internal/v1\n";

impl Truth for World {
    fn fleet_store(&self) -> Arc<dyn FleetStore> {
        Arc::new(Sql::new(self.0.store.clone()))
    }

    async fn secret(&self, _: u64) -> String {
        let join = self.0.dev.join_token(&self.0.store).await.expect("a token");
        join.secret.expose_secret().to_owned()
    }
}

impl World {
    pub(crate) async fn new(database: TestDatabase) -> Self {
        Self::at(database, Arc::new(SystemClock)).await
    }

    pub(crate) async fn at(database: TestDatabase, clock: Arc<dyn Clock>) -> Self {
        let store = database.open(clock, Arc::new(OsRandom), None).await;
        let labels = BTreeMap::from([("roadstead.dev/runtime".to_owned(), "local".to_owned())]);
        let (tenant, project, cluster) = (name("acme"), name("support"), name("edge"));
        let dev = bootstrap::with_cluster(&store, &tenant, &project, &cluster, labels)
            .await
            .expect("bootstrapped");
        let issued = dev.issue_token(&store, "owner").await.expect("issued");
        let presented =
            Presented::parse(SecretKind::ApiToken, issued.secret.expose_secret()).expect("a token");
        let owner = authenticate::api_token(&store, &presented, RequestInfo::default())
            .await
            .expect("good");
        Self(Arc::new(Inner {
            store,
            owner,
            dev,
            database,
        }))
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn owner(&self) -> &TenantContext {
        &self.0.owner
    }

    /// The same database as another process of the hub has it.
    pub(crate) async fn again(&self) -> Store {
        let random = Arc::new(OsRandom);
        self.0.database.open(Arc::new(SystemClock), random, None).await
    }

    pub(crate) fn database(&self) -> &TestDatabase {
        &self.0.database
    }

    pub(crate) fn edge(&self) -> ClusterId {
        self.0.dev.cluster.id
    }

    pub(crate) async fn hub(&self) -> Hub<Self> {
        Hub::over(self.clone(), Wishes::default()).await
    }

    /// A cluster agent of `edge` that has joined.
    pub(crate) async fn joined(&self, hub: &Hub<Self>) -> ClusterAgent {
        let agent = ClusterAgent::join(&hub.address.to_string(), &hub.join(1).await);
        agent.connected().await;
        agent
    }

    /// Places these agents, and the model that they use, on `edge`.
    pub(crate) async fn place(&self, agents: &[&str], text: &str) {
        self.place_on("edge", agents, text).await;
    }

    /// Places them on a cluster.
    pub(crate) async fn place_on(&self, cluster: &str, agents: &[&str], text: &str) {
        let documents = agents.iter().map(|name| agent(name, text, cluster));
        let documents = documents.collect::<Vec<_>>();
        let yaml = [vec![MODEL.to_owned()], documents].concat().join("---\n");
        let source = Source {
            name: "test.yaml",
            text: &yaml,
        };
        let parsed = parse_files(&[source], &name("support")).expect("the test's documents hold");
        let documents = parsed.into_iter().map(|parsed| ApplyDocument {
            parsed,
            expected_revision: None,
        });
        let input = ApplyInput {
            documents: documents.collect(),
            message: "test".to_owned(),
            ..ApplyInput::default()
        };
        apply_documents(self.owner(), self.store(), &input)
            .await
            .expect("applied");
    }

    fn target(text: &str) -> Target {
        Target::Name {
            project: name("support"),
            kind: Kind::Agent,
            name: name(text),
        }
    }

    /// The id of an agent.
    pub(crate) async fn uid(&self, agent: &str) -> String {
        let found = lookup(self.owner(), self.store(), &Self::target(agent)).await;
        found.expect("there").id.to_string()
    }

    pub(crate) async fn remove(&self, agents: &[&str]) {
        for agent in agents {
            let input = DeleteInput {
                target: Self::target(agent),
                expected_revision: None,
                idempotency_key: None,
            };
            delete_document(self.owner(), self.store(), &input)
                .await
                .expect("deleted");
        }
    }

    /// The cluster as the hub knows it.
    pub(crate) async fn cluster(&self) -> Cluster {
        let detail = clusters::get(self.owner(), self.store(), self.edge()).await;
        detail.expect("there").cluster
    }

    /// Waits until the cluster agent holds everything that it is to hold.
    pub(crate) async fn persisted(&self) {
        eventually("everything is persisted", || async {
            let cluster = self.cluster().await;
            (cluster.persisted == cluster.revision && cluster.epoch > 0).then_some(())
        })
        .await;
    }

    /// The tenant's audit log, newest first.
    pub(crate) async fn audit(&self) -> Vec<AuditRecord> {
        let page = PageRequest {
            first: Some(100),
            after: None,
        };
        let page = roadstead_service::audit::list(self.owner(), self.store(), &page).await;
        page.expect("listed").items
    }

    /// How many refusals of this action the tenant's log has.
    pub(crate) async fn refused(&self, action: &str) -> usize {
        let log = self.audit().await;
        log.iter()
            .filter(|record| record.action == action && record.decision == "refuse")
            .count()
    }

    /// How many refusals of this action the platform's log has.
    pub(crate) async fn refused_of_nobody(&self, action: &str) -> usize {
        let log = platform::records(self.store()).await.expect("listed");
        log.iter()
            .filter(|record| record.action == action && record.decision == "refuse")
            .count()
    }

    /// Every chain holds.
    pub(crate) async fn chains_hold(&self) {
        let reports = roadstead_service::audit::verify(self.store())
            .await
            .expect("verified");
        assert!(
            reports.iter().all(|report| report.broken.is_none()),
            "{reports:?}"
        );
    }
}
