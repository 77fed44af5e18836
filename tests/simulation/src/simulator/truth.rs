//! What the hub keeps, the model in memory or its database, and what people write into it.

use crate::{cluster, prompt, tenant};
use anyhow::Context as _;
use parking_lot::Mutex;
use roadstead_authz::{Presented, RequestInfo, SecretKind, TenantContext};
use roadstead_contract::documents::{Kind, Name, Source, parse_files};
use roadstead_domain::{OsRandom, SystemClock};
use roadstead_fleet::{
    FleetStore, Sql,
    memory::{Document, Memory},
};
use roadstead_service::{
    ApplyDocument, ApplyInput, DeleteInput, Target, apply_documents, authenticate, bootstrap, clusters,
    delete_document,
};
use roadstead_store::{Store, testing::TestDatabase};
use secrecy::ExposeSecret as _;
use std::{collections::BTreeMap, sync::Arc};

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kept {
    /// The model of the revision log.
    Memory,
    /// The hub's code over a SQLite file.
    Sqlite,
    /// The hub's code over the PostgreSQL that `ROADSTEAD_TEST_POSTGRES` names.
    Postgres,
}

/// Whom a document is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    One(usize),
    All,
}

/// A document was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) uid: String,
    pub(super) generation: u64,
}

/// The truth. All clusters are of one tenant.
pub(super) struct Truth {
    clusters: usize,
    bytes: usize,
    at: At,
}

enum At {
    Memory(Memory),
    Sql(Box<Database>),
}

struct Database {
    store: Store,
    owner: TenantContext,
    uids: Mutex<BTreeMap<String, String>>,
    /// Removed with this.
    _database: TestDatabase,
}

impl std::fmt::Debug for Truth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Truth")
    }
}

fn name(text: &str) -> anyhow::Result<Name> {
    Ok(text.parse()?)
}

fn named(whom: Whom, n: usize) -> String {
    match whom {
        Whom::One(cluster) => format!("own-{cluster}-{n}"),
        Whom::All => format!("all-{n}"),
    }
}

impl Truth {
    /// A tenant with so many clusters; documents have about so many bytes. Gives a join token's secret for each.
    ///
    /// # Errors
    /// The database does not do it.
    pub(super) async fn new(
        kept: Kept,
        clusters: usize,
        bytes: usize,
    ) -> anyhow::Result<(Self, Vec<String>)> {
        let database = match kept {
            Kept::Memory => return Ok(Self::in_memory(clusters, bytes)),
            Kept::Sqlite => TestDatabase::sqlite(),
            Kept::Postgres => {
                let found = TestDatabase::postgres().await;
                found.context("ROADSTEAD_TEST_POSTGRES names no PostgreSQL")?
            }
        };
        let (database, secrets) = Database::new(database, clusters).await?;
        let at = At::Sql(Box::new(database));
        Ok((Self { clusters, bytes, at }, secrets))
    }

    fn in_memory(clusters: usize, bytes: usize) -> (Self, Vec<String>) {
        let model = Memory::new(Arc::new(SystemClock));
        let joins = |n: usize| {
            let (id, secret) = (cluster(n as u64), format!("secret{n}"));
            model.add_cluster(tenant(1), id);
            model.add_token(&secret, tenant(1), id, i64::MAX);
            secret
        };
        let secrets = (0..clusters).map(joins).collect();
        let at = At::Memory(model);
        (Self { clusters, bytes, at }, secrets)
    }

    /// As the fleet sees it.
    #[must_use]
    pub(super) fn store(&self) -> Arc<dyn FleetStore> {
        match &self.at {
            At::Memory(model) => Arc::new(model.clone()),
            At::Sql(database) => Arc::new(Sql::new(database.store.clone())),
        }
    }

    /// The model, if it is that.
    #[must_use]
    pub(super) fn model(&self) -> Option<&Memory> {
        match &self.at {
            At::Memory(model) => Some(model),
            At::Sql(_) => None,
        }
    }

    fn text(&self, round: u64) -> String {
        format!("revision {round} {}", "x".repeat(self.bytes))
    }

    /// Writes the document number `n` of one cluster, or of all; another text in each round.
    ///
    /// # Errors
    /// It is not accepted.
    pub(super) async fn write(&self, whom: Whom, n: usize, round: u64) -> anyhow::Result<Change> {
        let (called, text) = (named(whom, n), self.text(round));
        match &self.at {
            At::Memory(model) => Ok(self.place(model, whom, &called, Some(&text))),
            At::Sql(database) => database.write(whom, &called, &text).await,
        }
    }

    /// The uid of a document that was written before.
    #[must_use]
    pub(super) fn uid(&self, whom: Whom, n: usize) -> String {
        let called = named(whom, n);
        match &self.at {
            At::Memory(_) => called,
            At::Sql(database) => database.uids.lock().get(&called).cloned().unwrap_or_default(),
        }
    }

    /// Deletes a document that was written before.
    ///
    /// # Errors
    /// It is not accepted.
    pub(super) async fn delete(&self, whom: Whom, n: usize) -> anyhow::Result<()> {
        let called = named(whom, n);
        match &self.at {
            At::Memory(model) => {
                self.place(model, whom, &called, None);
                Ok(())
            }
            At::Sql(database) => database.delete(&called).await,
        }
    }

    fn place(&self, model: &Memory, whom: Whom, uid: &str, text: Option<&str>) -> Change {
        let document: Option<Document> = text.map(|text| prompt(uid, text));
        let change = [(uid.to_owned(), document)];
        let clusters = match whom {
            Whom::One(n) => n..n + 1,
            Whom::All => 0..self.clusters,
        };
        // Every cluster that has it got it with the same writes.
        let first = cluster(clusters.start as u64);
        for n in clusters {
            model.place(cluster(n as u64), &change);
        }
        Change {
            uid: uid.to_owned(),
            generation: model.generation(first, uid).unwrap_or(0),
        }
    }
}

const MODEL: &str = "apiVersion: roadstead.dev/v1alpha1\nkind: Model\nmetadata: {name: fast}\nspec:\n  \
                     provider: openaiCompatible\n  model: m\n  endpoint: http://llm.internal/v1\n";

impl Database {
    async fn new(database: TestDatabase, count: usize) -> anyhow::Result<(Self, Vec<String>)> {
        let store = database
            .open(Arc::new(SystemClock), Arc::new(OsRandom), None)
            .await;
        let labels = || BTreeMap::from([("fleet".to_owned(), "simulated".to_owned())]);
        let (tenant, project) = (name("acme")?, name("support")?);
        let dev = bootstrap::with_cluster(&store, &tenant, &project, &name("c0")?, labels()).await?;
        let issued = dev.issue_token(&store, "owner").await?;
        let presented = Presented::parse(SecretKind::ApiToken, issued.secret.expose_secret());
        let presented = presented.map_err(|_| anyhow::anyhow!("the owner's token does not parse"))?;
        let owner = authenticate::api_token(&store, &presented, RequestInfo::default()).await?;
        let mut secrets = vec![dev.join_token(&store).await?.secret.expose_secret().to_owned()];
        for n in 1..count {
            let input = clusters::CreateInput {
                name: name(&format!("c{n}"))?,
                labels: labels(),
                idempotency_key: None,
            };
            let clusters::Joining::Done(made) = clusters::create_joinable(&owner, &store, input).await?
            else {
                anyhow::bail!("cluster c{n} was there before");
            };
            secrets.push(made.secret.expose_secret().to_owned());
        }
        let made = Self {
            store,
            owner,
            uids: Mutex::default(),
            _database: database,
        };
        Ok((made, secrets))
    }

    async fn write(&self, whom: Whom, called: &str, text: &str) -> anyhow::Result<Change> {
        let placement = match whom {
            Whom::One(n) => format!("clusters: [c{n}]"),
            Whom::All => "selector: {matchLabels: {fleet: simulated}}".to_owned(),
        };
        let yaml = format!(
            "{MODEL}---\napiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {{name: {called}}}\nspec:\n  \
             instructions: {text}\n  model: fast\n  placement: {{{placement}}}\n"
        );
        let source = Source {
            name: "simulated.yaml",
            text: &yaml,
        };
        let parsed = parse_files(&[source], &name("support")?);
        let parsed = parsed.map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        let documents = parsed.into_iter().map(|parsed| ApplyDocument {
            parsed,
            expected_revision: None,
        });
        let input = ApplyInput {
            documents: documents.collect(),
            message: "simulated".to_owned(),
            ..ApplyInput::default()
        };
        let answer = apply_documents(&self.owner, &self.store, &input).await?;
        let written = answer
            .documents
            .into_iter()
            .find(|applied| applied.name == called);
        let written = written.context("an answer for the document")?;
        let uid = written.uid.context("an id")?.to_string();
        self.uids.lock().insert(called.to_owned(), uid.clone());
        Ok(Change {
            uid,
            generation: written.revision,
        })
    }

    async fn delete(&self, called: &str) -> anyhow::Result<()> {
        let target = Target::Name {
            project: name("support")?,
            kind: Kind::Agent,
            name: name(called)?,
        };
        let input = DeleteInput {
            target,
            expected_revision: None,
            idempotency_key: None,
        };
        delete_document(&self.owner, &self.store, &input).await?;
        Ok(())
    }
}
