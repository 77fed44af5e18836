//! The model of the hub's truth and the hub's database, through the same random histories: what one answers, the other
//! answers (protocol.md §5). So what the simulation shows of the model holds for the product.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use bytes::Bytes;
use roadstead_authz::{PeerIdentity, Presented, RequestInfo, SecretKind, TenantContext};
use roadstead_contract::{
    documents::{Kind, Name, Source, parse_files},
    fleet::{CommandCode, RESTART_ENGINE},
};
use roadstead_domain::{ClusterId, CommandId, FakeClock, PageRequest, RunId, SeededRandom};
use roadstead_fleet::{
    FleetStore, Sql,
    memory::{Document, Memory},
    store::{
        CommandResult, Content, Held, Hello, Observation, Report, ResultVerdict, Row, RunVerdict, Session,
        StoreError, Taken,
    },
};
use roadstead_service::{
    ApplyDocument, ApplyInput, DeleteInput, Target, apply_documents, authenticate, bootstrap, clusters,
    commands, delete_document, describe,
};
use roadstead_simulation::{run, simulated::Seeded};
use roadstead_store::{CommandFilter, Store, testing::TestDatabase};
use secrecy::ExposeSecret as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

const STEPS: u32 = 250;
const CLUSTERS: [&str; 2] = ["edge", "west"];
const MODELS: u64 = 3;
const AGENTS: u64 = 3;

/// Both, and what a history is made with.
struct World {
    store: Store,
    sql: Sql,
    memory: Memory,
    clock: Arc<FakeClock>,
    owner: TenantContext,
    peers: Vec<PeerIdentity>,
    /// Of each cluster, the epoch of its last session.
    epochs: Vec<u64>,
    dice: Seeded,
    random: SeededRandom,
    /// Agents by name: the model, and the clusters by number.
    agents: BTreeMap<String, (String, Vec<usize>)>,
    /// What exists now: uid, revision, document.
    documents: BTreeMap<(Kind, String), (String, u64, Document)>,
    /// What is on each cluster: uid and revision.
    held: Vec<BTreeMap<String, u64>>,
    /// Every uid there ever was, and its last revision.
    uids: Vec<String>,
    last: BTreeMap<String, u64>,
    runs: Vec<String>,
    commands: Vec<String>,
    history: Vec<String>,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

impl World {
    async fn new(database: &TestDatabase, seed: u64) -> Self {
        let clock = Arc::new(FakeClock::at(1_800_000_000_000));
        let store = database
            .open(clock.clone(), Arc::new(SeededRandom::new(seed)), None)
            .await;
        let (tenant, project, first) = (name("acme"), name("support"), name(CLUSTERS[0]));
        let made = bootstrap::with_cluster(&store, &tenant, &project, &first, BTreeMap::new());
        let made = made.await.unwrap();
        let issued = made.issue_token(&store, "owner").await.unwrap();
        let presented = Presented::parse(SecretKind::ApiToken, issued.secret.expose_secret()).unwrap();
        let owner = authenticate::api_token(&store, &presented, RequestInfo::default())
            .await
            .unwrap();
        let input = clusters::CreateInput {
            name: name(CLUSTERS[1]),
            labels: BTreeMap::new(),
            idempotency_key: None,
        };
        let second = clusters::create(&owner, &store, input).await.unwrap();
        let mut world = Self {
            sql: Sql::new(store.clone()),
            memory: Memory::new(clock.clone()),
            store,
            clock,
            owner,
            peers: Vec::new(),
            epochs: vec![0; CLUSTERS.len()],
            dice: Seeded::new(seed),
            random: SeededRandom::new(seed + 1_000),
            agents: BTreeMap::new(),
            documents: BTreeMap::new(),
            held: vec![BTreeMap::new(); CLUSTERS.len()],
            uids: Vec::new(),
            last: BTreeMap::new(),
            runs: Vec::new(),
            commands: Vec::new(),
            history: vec![format!("seed {seed}")],
        };
        for (n, cluster) in [made.cluster.id, second.id].into_iter().enumerate() {
            world.enrol(n, cluster).await;
        }
        world
    }

    /// Joins a cluster in both, by the same token.
    async fn enrol(&mut self, n: usize, cluster: ClusterId) {
        let joinable = clusters::join_token(&self.owner, &self.store, cluster, None)
            .await
            .unwrap();
        let secret = joinable.secret.expose_secret();
        let tenant = joinable.cluster.tenant;
        self.memory.add_cluster(tenant, cluster);
        self.memory
            .add_token(secret, tenant, cluster, joinable.expires_ms);
        for _ in 0..2 {
            let sql = self.sql.consume_token(secret, "0.1.0", None).await;
            let model = self.memory.consume_token(secret, "0.1.0", None).await;
            self.agree("consume_token", &sql.map_err(kind), &model.map_err(kind));
        }
        let peer = PeerIdentity {
            tenant,
            cluster,
            serial: format!("0{n}"),
        };
        let end = self.clock_ms() + 72 * 3_600_000;
        let sql = self.sql.certificate_issued(&peer, end).await;
        let model = self.memory.certificate_issued(&peer, end).await;
        self.agree("certificate_issued", &sql.map_err(kind), &model.map_err(kind));
        self.peers.push(peer);
    }

    fn clock_ms(&self) -> i64 {
        use roadstead_domain::Clock as _;
        self.clock.now_ms()
    }

    #[track_caller]
    fn agree<T: PartialEq + Debug>(&self, what: &str, sql: &T, model: &T) {
        let last = self
            .history
            .iter()
            .rev()
            .take(12)
            .rev()
            .map(|act| act.chars().take(400).collect::<String>())
            .collect::<Vec<_>>()
            .join("\n  ");
        assert_eq!(
            sql, model,
            "{what}: the database (left) and the model (right) differ; after\n  {last}"
        );
    }

    fn below(&self, limit: u64) -> u64 {
        self.dice.below(limit)
    }

    async fn step(&mut self) {
        match self.below(100) {
            0..30 => self.write().await,
            30..36 => self.delete().await,
            36..46 => self.begin().await,
            46..78 => self.report().await,
            78..84 => self.record_runs().await,
            84..94 => self.command().await,
            _ => self.revoke_or_read().await,
        }
        self.compare().await;
    }

    /// Applies a model, or an agent with its placement, or both.
    async fn write(&mut self) {
        let model = format!("m{}", self.below(MODELS));
        let text = format!("v{}", self.below(1_000));
        let mut documents = vec![model_document(&model, &text)];
        if self.below(3) > 0 {
            let agent = format!("a{}", self.below(AGENTS));
            let placed: Vec<usize> = (0..CLUSTERS.len()).filter(|_| self.below(2) == 0).collect();
            documents.push(agent_document(&agent, &model, &placed));
            let known = self.documents.contains_key(&(Kind::Model, model.clone()));
            if known && self.below(2) == 0 {
                documents.remove(0);
            }
            self.agents.insert(agent, (model, placed));
        }
        let text = documents.join("---\n");
        self.history.push(format!("apply {text:?}"));
        let source = Source {
            name: "history.yaml",
            text: &text,
        };
        let parsed = parse_files(&[source], &name("support")).unwrap();
        let documents = parsed.into_iter().map(|parsed| ApplyDocument {
            parsed,
            expected_revision: None,
        });
        let input = ApplyInput {
            documents: documents.collect(),
            message: "step".to_owned(),
            ..ApplyInput::default()
        };
        let answer = apply_documents(&self.owner, &self.store, &input).await.unwrap();
        for applied in answer.documents {
            let target = Target::Name {
                project: name("support"),
                kind: applied.kind,
                name: name(&applied.name),
            };
            let found = describe(&self.owner, &self.store, &target).await.unwrap();
            let uid = found.object.id.to_string();
            if !self.uids.contains(&uid) {
                self.uids.push(uid.clone());
            }
            self.last.insert(uid.clone(), applied.revision);
            let document = Document {
                kind: applied.kind.as_str().to_owned(),
                project: applied.project,
                name: applied.name.clone(),
                json: Bytes::from(found.revision.document),
            };
            self.documents
                .insert((applied.kind, applied.name), (uid, applied.revision, document));
        }
        self.place();
    }

    async fn delete(&mut self) {
        let (kind, gone) = match self.below(2) {
            0 => (Kind::Agent, format!("a{}", self.below(AGENTS))),
            _ => (Kind::Model, format!("m{}", self.below(MODELS))),
        };
        self.history.push(format!("delete {kind:?} {gone}"));
        let target = Target::Name {
            project: name("support"),
            kind,
            name: name(&gone),
        };
        let input = DeleteInput {
            target,
            expected_revision: None,
            idempotency_key: None,
        };
        if delete_document(&self.owner, &self.store, &input).await.is_ok() {
            self.documents.remove(&(kind, gone.clone()));
            if kind == Kind::Agent {
                self.agents.remove(&gone);
            }
            self.place();
        }
    }

    /// What the clusters are to hold now, told to the model as one change each.
    fn place(&mut self) {
        for n in 0..CLUSTERS.len() {
            let mut wanted = BTreeMap::new();
            for (agent, (model, placed)) in &self.agents {
                if placed.contains(&n) {
                    for key in [(Kind::Agent, agent.clone()), (Kind::Model, model.clone())] {
                        let (uid, revision, document) = &self.documents[&key];
                        wanted.insert(uid.clone(), (*revision, document.clone()));
                    }
                }
            }
            let gone = self.held[n].keys().filter(|uid| !wanted.contains_key(*uid));
            let mut changes: Vec<_> = gone.map(|uid| (uid.clone(), self.last[uid], None)).collect();
            for (uid, (revision, document)) in &wanted {
                if self.held[n].get(uid) != Some(revision) {
                    changes.push((uid.clone(), *revision, Some(document.clone())));
                }
            }
            self.memory.place_at(self.peers[n].cluster, &changes);
            self.held[n] = wanted
                .into_iter()
                .map(|(uid, (revision, _))| (uid, revision))
                .collect();
        }
    }

    async fn begin(&mut self) {
        let n = self.cluster();
        let hello = Hello {
            version: "0.1.0".to_owned(),
            instance: "i".to_owned(),
            incarnation: format!("inbox{}", self.below(2)),
            cursor: 0,
            capabilities: match self.below(4) {
                0 => Vec::new(),
                _ => vec![RESTART_ENGINE.to_owned()],
            },
        };
        self.history.push(format!("begin {n} {hello:?}"));
        let sql = self.sql.begin_session(&self.peers[n], &hello).await;
        let model = self.memory.begin_session(&self.peers[n], &hello).await;
        if let Ok(begun) = &sql {
            self.epochs[n] = begun.epoch;
        }
        self.agree("begin_session", &sql.map_err(kind), &model.map_err(kind));
    }

    fn cluster(&self) -> usize {
        self.below(CLUSTERS.len() as u64) as usize
    }

    /// The cluster's session, at times one that was superseded.
    fn session(&self, n: usize) -> Session {
        let epoch = self.epochs[n].saturating_sub(u64::from(self.below(8) == 0));
        Session {
            peer: self.peers[n].clone(),
            epoch,
        }
    }

    /// A uid of somebody, or of nobody.
    fn some_uid(&self) -> String {
        let nobody =
            || roadstead_domain::ObjectId::generate(Kind::Model, &*self.clock, &self.random).to_string();
        match self.uids.len() as u64 {
            0 => nobody(),
            known => match self.below(known + 1) {
                n if n == known => nobody(),
                n => self.uids[n as usize].clone(),
            },
        }
    }

    /// What a cluster agent may say, true or not.
    fn said(&self, n: usize) -> Report {
        let revision = self.memory.cluster(self.peers[n].cluster).unwrap().revision;
        let mark = || (self.below(3) == 0).then(|| self.below(revision + 2));
        let (persisted, applied) = (mark(), mark());
        let held = (self.below(6) == 0).then(|| Held {
            revision,
            deletes: 6 + self.below(3),
            documents: 9,
        });
        let taken = (self.below(6) == 0).then(|| Taken {
            approved: 6 + self.below(3),
            held: self.below(2) == 0,
        });
        let observations: BTreeMap<_, _> = (0..self.below(4))
            .map(|_| {
                let uid = self.some_uid();
                let observation = Observation {
                    uid: uid.clone(),
                    generation: 1 + self.below(4),
                    phase: format!("p{}", self.below(100)),
                    conditions: Vec::new(),
                };
                (uid, observation)
            })
            .collect();
        Report {
            persisted,
            applied,
            held,
            taken,
            observations: observations.into_values().collect(),
        }
    }

    /// All clusters say something at the same moment, so that the database hears them together; some of it is false, or
    /// of a session that was superseded.
    async fn report(&mut self) {
        let said: Vec<_> = (0..CLUSTERS.len())
            .map(|n| (self.session(n), self.said(n)))
            .collect();
        self.history.push(format!("report {said:?}"));
        let asked = said
            .iter()
            .map(|(session, report)| self.sql.report(session, report.clone()));
        let sql = futures::future::join_all(asked).await;
        for ((session, report), sql) in said.iter().zip(sql) {
            let model = self.memory.report(session, report.clone()).await;
            let sorted = |foreign: Vec<String>| foreign.into_iter().collect::<BTreeSet<_>>();
            self.agree(
                "report",
                &sql.map(sorted).map_err(kind),
                &model.map(sorted).map_err(kind),
            );
        }
        self.approve().await;
    }

    /// Now and then a person allows the deletions that wait.
    async fn approve(&mut self) {
        let n = self.cluster();
        let cluster = self.peers[n].cluster;
        let held = self.memory.cluster(cluster).unwrap().held;
        if let Some(held) = held.filter(|_| self.below(2) == 0) {
            self.history.push(format!("approve {n} {}", held.deletes));
            let approved =
                clusters::approve_deletes(&self.owner, &self.store, cluster, held.deletes, None).await;
            approved.unwrap();
            self.memory.approve_deletes(cluster, held.deletes);
        }
    }

    async fn record_runs(&mut self) {
        let n = self.cluster();
        let mut records = Vec::new();
        for _ in 0..=self.below(3) {
            let old = self.below(self.runs.len() as u64 + 2) as usize;
            let id = self.runs.get(old).cloned().unwrap_or_else(|| {
                let id = RunId::generate(&*self.clock, &self.random).to_string();
                self.runs.push(id.clone());
                id
            });
            // The model does not know kinds; that only agents have runs is the database's own test.
            let uid = self.some_uid();
            if !uid.starts_with("mdl_") {
                records.push(run(&id, &uid, 1));
            }
        }
        let session = self.session(n);
        let told: Vec<_> = records
            .iter()
            .map(|record| (&record.id, &record.agent_uid))
            .collect();
        self.history
            .push(format!("runs {n} epoch {} {told:?}", session.epoch));
        let sql = self.sql.record_runs(&session, records.clone()).await;
        let model = self.memory.record_runs(&session, records).await;
        let kept = |verdicts: Vec<RunVerdict>| -> Vec<bool> {
            verdicts
                .iter()
                .map(|verdict| *verdict == RunVerdict::Kept)
                .collect()
        };
        self.agree(
            "record_runs",
            &sql.map(kept).map_err(kind),
            &model.map(kept).map_err(kind),
        );
    }

    /// Commands are made, sent, answered, or run out of time.
    async fn command(&mut self) {
        match self.below(4) {
            0 => self.restart().await,
            1 => {
                let passed = Duration::from_secs(1 + self.below(60));
                self.history.push(format!("{passed:?} pass"));
                self.clock.advance(passed);
            }
            2 => self.send_commands().await,
            _ => self.record_results().await,
        }
    }

    /// Somebody restarts an agent; what the database takes, the model has too.
    async fn restart(&mut self) {
        let agent = format!("a{}", self.below(AGENTS));
        let input = commands::RestartInput {
            target: Target::Name {
                project: name("support"),
                kind: Kind::Agent,
                name: name(&agent),
            },
            cluster: None,
            expires_in: Some(Duration::from_secs(1 + self.below(100))),
            idempotency_key: None,
        };
        self.history.push(format!("restart {agent}"));
        let made = commands::restart_agent(&self.owner, &self.store, &input).await;
        for command in made.unwrap_or_default() {
            let (id, agent) = (command.id.to_string(), command.agent.to_string());
            self.memory
                .command(command.cluster, &id, &agent, command.expires_ms);
            self.commands.push(id);
        }
    }

    async fn send_commands(&mut self) {
        let session = self.session(self.cluster());
        self.history.push(format!("send commands to {session:?}"));
        let sql = self.sql.commands(&session).await;
        let model = self.memory.commands(&session).await;
        // Those of one moment are in the order of their ids there.
        let sorted = |mut commands: Vec<roadstead_contract::fleet::Command>| {
            commands.sort_by(|a, b| a.id.cmp(&b.id));
            commands
        };
        self.agree(
            "commands",
            &sql.map(sorted).map_err(kind),
            &model.map(sorted).map_err(kind),
        );
    }

    /// Results of the cluster's commands, of another's, and of none.
    async fn record_results(&mut self) {
        let session = self.session(self.cluster());
        let mut results = BTreeMap::new();
        for _ in 0..=self.below(3) {
            let old = self.below(self.commands.len() as u64 + 1) as usize;
            let nobody = || CommandId::generate(&*self.clock, &self.random).to_string();
            let id = self.commands.get(old).cloned().unwrap_or_else(nobody);
            let codes = [CommandCode::Succeeded, CommandCode::Failed, CommandCode::Expired];
            let result = CommandResult {
                id: id.clone(),
                code: codes[self.below(3) as usize],
                detail: String::new(),
            };
            results.insert(id, result);
        }
        let results: Vec<_> = results.into_values().collect();
        self.history.push(format!("results {session:?} {results:?}"));
        let sql = self.sql.record_results(&session, results.clone()).await;
        let model = self.memory.record_results(&session, results).await;
        let kept = |verdicts: Vec<ResultVerdict>| -> Vec<_> {
            verdicts.iter().map(std::mem::discriminant).collect()
        };
        self.agree(
            "record_results",
            &sql.map(kept).map_err(kind),
            &model.map(kept).map_err(kind),
        );
    }

    /// How the commands of a cluster ended.
    async fn compare_commands(&self, cluster: ClusterId) {
        let filter = CommandFilter {
            cluster: Some(cluster),
            ..CommandFilter::default()
        };
        let page = PageRequest {
            first: Some(100),
            after: None,
        };
        let sql = commands::list(&self.owner, &self.store, &filter, &page).await;
        let sql = sql.unwrap().items.into_iter().map(|command| {
            let code = command.result.map(|result| format!("{:?}", result.code));
            (command.id.to_string(), code)
        });
        let model = self.memory.results(cluster).into_iter();
        let model = model.map(|(id, code)| (id, code.map(|code| format!("{code:?}"))));
        self.agree(
            "results of commands",
            &sql.collect::<BTreeMap<_, _>>(),
            &model.collect::<BTreeMap<_, _>>(),
        );
    }

    async fn revoke_or_read(&mut self) {
        let n = self.cluster();
        if self.below(6) == 0 {
            self.history.push(format!("revoke {n}"));
            let cluster = self.peers[n].cluster;
            clusters::revoke_certificates(&self.owner, &self.store, cluster, None, None)
                .await
                .unwrap();
            self.memory.revoke(cluster);
            let sql = self.sql.authenticate(&self.peers[n]).await;
            let model = self.memory.authenticate(&self.peers[n]).await;
            self.agree("authenticate", &sql.map_err(kind), &model.map_err(kind));
            self.rejoin(n).await;
        }
    }

    /// A new certificate for a cluster whose last one was revoked.
    async fn rejoin(&mut self, n: usize) {
        let mut peer = self.peers[n].clone();
        peer.serial = format!("{}{n}", self.history.len());
        let end = self.clock_ms() + 72 * 3_600_000;
        self.sql.certificate_issued(&peer, end).await.unwrap();
        self.memory.certificate_issued(&peer, end).await.unwrap();
        self.peers[n] = peer;
    }

    /// The last report of every document that is on a cluster.
    async fn compare_statuses(&self) {
        let known: Vec<_> = self
            .peers
            .iter()
            .map(|peer| self.memory.cluster(peer.cluster).unwrap())
            .collect();
        for ((kind, document), (uid, ..)) in &self.documents {
            let target = Target::Name {
                project: name("support"),
                kind: *kind,
                name: name(document),
            };
            let placed = describe(&self.owner, &self.store, &target).await.unwrap().placed;
            for (peer, known) in self.peers.iter().zip(&known) {
                let sql = placed
                    .iter()
                    .find(|placed| placed.cluster == peer.cluster)
                    .and_then(|placed| placed.status.as_ref())
                    .map(|status| (status.observed_generation, status.phase.clone()));
                let here = known.rows.get(uid).is_some_and(|row| row.document.is_some());
                let model = known.observations.get(uid).filter(|_| here);
                let model = model.map(|seen| (seen.generation, seen.phase.clone()));
                self.agree("status", &sql, &model);
            }
        }
    }

    /// What has changed on all clusters, asked at the same moment, so that the database reads it together.
    async fn compare_changes(&self) {
        let after: Vec<_> = self.peers.iter().map(|_| self.below(4)).collect();
        let asked = self.peers.iter().zip(&after);
        let asked = asked.map(|(peer, after)| self.sql.changes(peer, *after, 64));
        let sql = futures::future::join_all(asked).await;
        for ((peer, after), sql) in self.peers.iter().zip(after).zip(sql) {
            let (sql, model) = (sql.unwrap(), self.memory.changes(peer, after, 64).await.unwrap());
            self.agree("changes together", &sql.revision, &model.revision);
            self.agree("changes together", &plain(sql.rows), &plain(model.rows));
        }
    }

    /// Everything that can be read, of every cluster.
    async fn compare(&self) {
        self.compare_statuses().await;
        self.compare_changes().await;
        for (n, peer) in self.peers.iter().enumerate() {
            self.compare_commands(peer.cluster).await;
            self.agree(
                "authenticate",
                &self.sql.authenticate(peer).await,
                &self.memory.authenticate(peer).await,
            );
            let (sql, model) = (
                self.sql.desired(peer).await.unwrap(),
                self.memory.desired(peer).await.unwrap(),
            );
            self.agree("desired: revision", &sql.revision, &model.revision);
            self.agree("desired: root", &sql.root(), &model.root());
            let after = self.below(sql.revision + 1);
            let limit = 1 + self.below(5) as usize;
            let sql_rows = every_page(&self.sql, peer, after, limit).await;
            let model_rows = every_page(&self.memory, peer, after, limit).await;
            self.agree("changes", &sql_rows, &model_rows);
            let uid = [self.some_uid(), self.some_uid()];
            let (sql, model) = (
                self.sql.rows(peer, &uid).await.unwrap(),
                self.memory.rows(peer, &uid).await.unwrap(),
            );
            self.agree("rows", &plain(sql), &plain(model));
            let standing = std::slice::from_ref(peer);
            let (sql, model) = (
                self.sql.standing(standing).await,
                self.memory.standing(standing).await,
            );
            self.agree("standing", &sql, &model);
            for (_, _, document) in self.documents.values() {
                let digest = roadstead_contract::fleet::document_digest(&document.json);
                let (sql, model) = (
                    self.sql.blob(peer, digest).await,
                    self.memory.blob(peer, digest).await,
                );
                self.agree("blob", &sql, &model);
            }
            let cluster = clusters::get(&self.owner, &self.store, peer.cluster)
                .await
                .unwrap()
                .cluster;
            let kept = self.memory.cluster(peer.cluster).unwrap();
            self.agree(
                &format!("held deletions of {n}"),
                &(cluster.held, cluster.approved_deletes),
                &(
                    kept.held.map(|held| (held.revision, held.deletes)),
                    kept.approved_deletes,
                ),
            );
            self.agree(
                &format!("cursors of {n}"),
                &(cluster.persisted, cluster.applied, cluster.epoch),
                &(kept.persisted, kept.applied, kept.epoch),
            );
        }
    }
}

/// What kind of error it is; the words are for people.
fn kind(error: StoreError) -> &'static str {
    match error {
        StoreError::Refused(_) => "refused",
        StoreError::Unknown(_) => "unknown",
        StoreError::Foreign(_) => "foreign",
        StoreError::Superseded => "superseded",
        StoreError::Unavailable(_) => "unavailable",
    }
}

/// By revision and uid: generation, what it is, its body; `None` for a tombstone.
type Plain = BTreeMap<(u64, String), Option<(u64, String, String)>>;

/// Rows as both must give them. A tombstone's generation may be any that is not less than the document's last: it is
/// compared with what is held by whoever takes it, and not here.
fn plain(rows: Vec<Row>) -> Plain {
    let row = |row: Row| {
        let content = match row.content {
            Content::Gone => None,
            Content::Document {
                kind,
                name,
                digest,
                body,
                ..
            } => Some((
                row.generation,
                format!("{kind} {name} {digest:?}"),
                format!("{body:?}"),
            )),
        };
        ((row.revision, row.uid), content)
    };
    rows.into_iter().map(row).collect()
}

/// All changes after a revision, page by page, each page whole revisions in ascending order.
async fn every_page(store: &dyn FleetStore, peer: &PeerIdentity, mut after: u64, limit: usize) -> Plain {
    let mut all = BTreeMap::new();
    loop {
        let page = store.changes(peer, after, limit).await.unwrap();
        let Some(last) = page.rows.last().map(|row| row.revision) else {
            assert!(page.revision >= after);
            return all;
        };
        assert!(
            page.rows
                .iter()
                .all(|row| row.revision > after && row.revision <= last)
        );
        assert!(page.rows.is_sorted_by_key(|row| row.revision));
        let plain = plain(page.rows);
        assert!(
            plain.keys().all(|key| !all.contains_key(key)),
            "a revision is cut in two"
        );
        all.extend(plain);
        after = last;
    }
}

fn model_document(name: &str, text: &str) -> String {
    // Now and then one that goes by Bulk.
    let notes = if text.ends_with("7") {
        "x".repeat(70_000)
    } else {
        String::new()
    };
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Model\nmetadata: {{name: {name}, annotations: {{notes: \"{notes}\"}}}}\n\
         spec:\n  provider: openaiCompatible\n  model: {text}\n  endpoint: http://llm.internal/v1\n"
    )
}

fn agent_document(name: &str, model: &str, placed: &[usize]) -> String {
    let clusters: Vec<_> = placed.iter().map(|n| CLUSTERS[*n]).collect();
    format!(
        "apiVersion: roadstead.dev/v1alpha1\nkind: Agent\nmetadata: {{name: {name}}}\nspec:\n  instructions: Go.\n  \
         model: {model}\n  placement: {{clusters: [{}]}}\n",
        clusters.join(", ")
    )
}

async fn agree_on(database: TestDatabase, seed: u64) {
    let mut world = World::new(&database, seed).await;
    for _ in 0..STEPS {
        world.step().await;
    }
}

#[tokio::test]
async fn the_model_and_sqlite_agree_on_random_histories() {
    for seed in 1..=3 {
        agree_on(TestDatabase::sqlite(), seed).await;
    }
}

#[tokio::test]
async fn the_model_and_postgresql_agree_on_random_histories() {
    if let Some(database) = TestDatabase::postgres().await {
        agree_on(database, 4).await;
    }
}
