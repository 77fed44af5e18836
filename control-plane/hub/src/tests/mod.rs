//! The hub as a whole: real ports, real faces, a real database.

mod database;
mod door;

use crate::{
    certificate::Files,
    composition::{Config, Hub},
    limits::Limits,
    proxy::Trusted,
};
use reqwest::{Client, RequestBuilder, Response};
use roadstead_service::bootstrap;
use roadstead_store::{Faults, StoreOptions, testing::TestDatabase};
use roadstead_telemetry::Metrics;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A running hub with one tenant, and its owner's token.
struct World {
    hub: Hub,
    client: Client,
    token: String,
    database: TestDatabase,
    _keys: tempfile::TempDir,
}

impl World {
    async fn new() -> anyhow::Result<Self> {
        Self::on(TestDatabase::sqlite(), None).await
    }

    async fn on(database: TestDatabase, faults: Option<Arc<Faults>>) -> anyhow::Result<Self> {
        Self::with(database, faults, None).await
    }

    async fn with(
        database: TestDatabase,
        faults: Option<Arc<Faults>>,
        tls: Option<Files>,
    ) -> anyhow::Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let keys = tempfile::tempdir()?;
        let loopback = "127.0.0.1:0".parse()?;
        let config = Config {
            who: "serve",
            store: StoreOptions {
                faults,
                ..StoreOptions::new(database.url())
            },
            listen: loopback,
            fleet_listen: loopback,
            fleet_names: vec!["127.0.0.1".to_owned()],
            public_url: None,
            keys: keys.path().join("keys"),
            metrics_listen: Some(loopback),
            tls,
            limits: Limits::default(),
            proxies: Trusted::default(),
        };
        let hub = Hub::start(&config, Metrics::none()).await?;
        let (tenant, project, cluster) = ("acme".parse()?, "support".parse()?, "edge".parse()?);
        let dev = bootstrap::dev(&hub.store, &tenant, &project, &cluster).await?;
        let issued = dev.issue_token(&hub.store, "owner").await?;
        Ok(Self {
            hub,
            client: Client::builder().no_proxy().build()?,
            token: issued.secret.expose_secret().to_owned(),
            database,
            _keys: keys,
        })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.hub.address)
    }

    async fn get(&self, path: &str) -> anyhow::Result<Response> {
        Ok(self.client.get(self.url(path)).send().await?)
    }

    fn graphql(&self, query: &str, variables: &Value) -> RequestBuilder {
        let body = json!({"query": query, "variables": variables}).to_string();
        self.client
            .post(self.url("/graphql"))
            .bearer_auth(&self.token)
            .header("content-type", "application/json")
            .body(body)
    }

    /// Applies a small document of that name; `padding` bytes more are kept beside it.
    async fn apply(&self, name: &str, padding: usize) -> anyhow::Result<(Head, Value)> {
        let query = "mutation($input: ApplyDocumentsInput!) { applyDocuments(input: $input) {
            results { action } errors { code message } } }";
        let text = format!(
            "apiVersion: roadstead.dev/v1alpha1\nkind: Model\nmetadata: {{name: {name}}}\nspec: {{provider: ollama, \
             model: small, endpoint: 'http://127.0.0.1:11434'}}\n"
        );
        let input = json!({"project": "support", "idempotencyKey": name, "message": "x".repeat(padding),
            "sources": [{"name": "m.yaml", "text": text}]});
        let response = self.graphql(query, &json!({"input": input})).send().await?;
        let head = Head {
            status: response.status().as_u16(),
            retry_after: response
                .headers()
                .get("retry-after")
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned),
        };
        Ok((head, serde_json::from_str(&response.text().await?)?))
    }

    /// Waits until `/readyz` answers with that status; answers with its text.
    async fn until_ready_says(&self, status: u16) -> anyhow::Result<String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let response = self.get("/readyz").await?;
            if response.status().as_u16() == status {
                if status == 503 {
                    anyhow::ensure!(response.headers().contains_key("retry-after"));
                }
                return Ok(response.text().await?);
            }
            anyhow::ensure!(Instant::now() < deadline, "/readyz never said {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Liveness does not depend on the database.
    async fn assert_alive(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.get("/livez").await?.status() == 200);
        Ok(())
    }
}

/// The head of an answer.
struct Head {
    status: u16,
    retry_after: Option<String>,
}
