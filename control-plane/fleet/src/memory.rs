//! A model of the hub's truth in memory: for simulations, and the measure for the store over SQL.
//!
//! It keeps the revision log as protocol.md §3 rule 1 says: one counter per cluster; each row carries the revision of
//! its last change, tombstones too.

mod commands;
mod served;

use crate::store::{
    Ahead, Body, Content, Desired, DesiredEntry, Event, Held, Observation, Reported, Row, Session,
    StoreError, Taken,
};
use bytes::Bytes;
pub use commands::Commanded;
use parking_lot::Mutex;
use roadstead_authz::PeerIdentity;
use roadstead_contract::{
    fleet::{MAX_INLINE, document_digest},
    run::RunRecord,
};
use roadstead_domain::{Clock, ClusterId, TenantId};
use roadstead_service::roots::Holders;
use roadstead_store::ClusterTrust;
use std::{collections::BTreeMap, fmt, sync::Arc};
use tokio::sync::watch;

/// The model. Cheap to clone: clones share their state, as replicas share a database.
#[derive(Clone)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct State {
    clusters: BTreeMap<ClusterId, Cluster>,
    tokens: BTreeMap<String, Token>,
    runs: Vec<(ClusterId, RunRecord)>,
    audit: Vec<Event>,
    /// Counts of changes and of commands.
    hints: BTreeMap<ClusterId, watch::Sender<(u64, u64)>>,
    /// What replicas say of their roots, and how often that was asked.
    replicas: Vec<Reported>,
    replicas_asked: u64,
    /// The database does not answer.
    away: bool,
    /// Looks at a tenant's clusters that are to hang yet, and how many do now.
    hang: BTreeMap<TenantId, usize>,
    hanging: Arc<()>,
    /// Readings of commands that are to hang yet.
    hang_commands: usize,
    /// How many calls it has not answered.
    unanswered: std::sync::atomic::AtomicU64,
}

struct Token {
    tenant: TenantId,
    cluster: ClusterId,
    expires_ms: i64,
    used: bool,
}

/// What the model knows of a cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub tenant: TenantId,
    pub revision: u64,
    pub epoch: u64,
    pub tombstone_floor: u64,
    pub incarnation: Option<String>,
    pub approved_deletes: u64,
    pub persisted: u64,
    pub applied: u64,
    pub held: Option<Held>,
    pub last_seen_ms: Option<i64>,
    pub rows: BTreeMap<String, Desire>,
    pub observations: BTreeMap<String, Observation>,
    /// The last generation of every document there ever was.
    generations: BTreeMap<String, u64>,
    /// By serial: its end, and whether it is revoked.
    certificates: BTreeMap<String, (i64, bool)>,
    deleted: bool,
    /// The cluster is ahead of the model.
    pub ahead: Option<Ahead>,
    /// Generation of the trust bundle that it keeps, and the root of the certificate with which it said so.
    pub trust: (u64, String),
    /// Certificates are worth nothing from the moment they are issued.
    revokes_new: bool,
    /// What its cluster agent can do.
    capabilities: Vec<String>,
    /// In the order in which they were made.
    pub commands: Vec<Commanded>,
}

/// A row of the desired set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desire {
    pub revision: u64,
    pub generation: u64,
    pub document: Option<Document>,
}

/// A document of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub kind: String,
    pub project: String,
    pub name: String,
    pub json: Bytes,
}

impl Memory {
    /// An empty hub.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            state: Arc::default(),
            clock,
        }
    }

    /// Who has which roots, as [`roadstead_service::roots::holders`] says it of a database; without replicas.
    #[must_use]
    pub fn trust(&self) -> Holders {
        let now = self.clock.now_ms();
        let state = self.state.lock();
        let trust = |(id, cluster): (&ClusterId, &Cluster)| {
            let good = cluster
                .certificates
                .values()
                .filter(|(end, revoked)| !revoked && *end > now);
            let not_after_ms = good.map(|(end, _)| *end).max()?;
            let known = ClusterTrust {
                id: *id,
                name: id.to_string(),
                generation: cluster.trust.0,
                root: cluster.trust.1.clone(),
                issued_ms: 0,
                not_after_ms,
            };
            (!cluster.deleted).then(|| (cluster.tenant.to_string(), known))
        };
        Holders {
            clusters: state.clusters.iter().filter_map(trust).collect(),
            replicas: Vec::new(),
        }
    }

    /// A new cluster.
    pub fn add_cluster(&self, tenant: TenantId, cluster: ClusterId) {
        let fresh = Cluster {
            tenant,
            revision: 0,
            epoch: 0,
            tombstone_floor: 0,
            incarnation: None,
            approved_deletes: 0,
            persisted: 0,
            applied: 0,
            held: None,
            last_seen_ms: None,
            rows: BTreeMap::new(),
            observations: BTreeMap::new(),
            generations: BTreeMap::new(),
            certificates: BTreeMap::new(),
            deleted: false,
            ahead: None,
            trust: (0, String::new()),
            revokes_new: false,
            capabilities: Vec::new(),
            commands: Vec::new(),
        };
        self.state.lock().clusters.insert(cluster, fresh);
    }

    /// A join token for it.
    pub fn add_token(&self, secret: &str, tenant: TenantId, cluster: ClusterId, expires_ms: i64) {
        let token = Token {
            tenant,
            cluster,
            expires_ms,
            used: false,
        };
        self.state.lock().tokens.insert(secret.to_owned(), token);
    }

    /// Places documents on a cluster, or takes them away (`None`), in one transaction. A document's generation grows
    /// by one with each change and never starts over. Returns the revision, which grows if anything changes.
    pub fn place(&self, cluster: ClusterId, changes: &[(String, Option<Document>)]) -> u64 {
        let mut state = self.state.lock();
        let Some(found) = state.clusters.get_mut(&cluster) else {
            return 0;
        };
        let revision = found.place(changes);
        if let Some(hints) = state.hints.get(&cluster) {
            hints.send_modify(|(changes, _)| *changes += 1);
        }
        revision
    }

    /// As [`Self::place`], with the generations given, as a database has them that counts an object's revisions.
    pub fn place_at(&self, cluster: ClusterId, changes: &[(String, u64, Option<Document>)]) -> u64 {
        self.with(cluster, |cluster| {
            for (uid, generation, document) in changes {
                let before = generation - u64::from(document.is_some());
                cluster.generations.insert(uid.clone(), before);
            }
        });
        let changes: Vec<_> = changes
            .iter()
            .map(|(uid, _, document)| (uid.clone(), document.clone()))
            .collect();
        self.place(cluster, &changes)
    }

    /// Forgets tombstones of this revision and before.
    pub fn raise_floor(&self, cluster: ClusterId, floor: u64) {
        if let Some(cluster) = self.state.lock().clusters.get_mut(&cluster) {
            cluster.tombstone_floor = cluster.tombstone_floor.max(floor);
            cluster
                .rows
                .retain(|_, row| row.document.is_some() || row.revision > floor);
        }
    }

    /// A person allows so many deletions of a snapshot.
    pub fn approve_deletes(&self, cluster: ClusterId, deletes: u64) {
        self.with(cluster, |cluster| cluster.approved_deletes = deletes);
        self.hint(cluster);
    }

    /// Revokes every certificate of a cluster.
    pub fn revoke(&self, cluster: ClusterId) {
        self.with(cluster, |cluster| {
            for (_, revoked) in cluster.certificates.values_mut() {
                *revoked = true;
            }
        });
    }

    /// What replicas say of their roots.
    pub fn set_replicas(&self, replicas: Vec<Reported>) {
        self.state.lock().replicas = replicas;
    }

    /// How often somebody asked for that.
    #[must_use]
    pub fn replicas_asked(&self) -> u64 {
        self.state.lock().replicas_asked
    }

    /// Deletes a cluster.
    pub fn delete_cluster(&self, cluster: ClusterId) {
        self.with(cluster, |cluster| cluster.deleted = true);
    }

    /// Replaces what is known of a cluster: damage.
    pub fn restore(&self, cluster: ClusterId, other: Cluster) {
        self.state.lock().clusters.insert(cluster, other);
    }

    /// Sets the desired set and its revision back: a database restored from a backup.
    pub fn restore_rows(&self, cluster: ClusterId, backup: &Cluster) {
        self.with(cluster, |cluster| {
            cluster.revision = backup.revision;
            cluster.rows.clone_from(&backup.rows);
            cluster.generations.clone_from(&backup.generations);
        });
    }

    /// The database stops answering, or answers again.
    pub fn set_away(&self, away: bool) {
        self.state.lock().away = away;
    }

    /// So many of the looks from now on at how this tenant's clusters stand are never answered, as over a connection that
    /// was cut without a word.
    pub fn hang_looks_of(&self, tenant: TenantId, looks: usize) {
        self.state.lock().hang.insert(tenant, looks);
    }

    /// So many of the readings of commands from now on are never answered.
    pub fn hang_commands(&self, readings: usize) {
        self.state.lock().hang_commands = readings;
    }

    fn commands_hang(&self) -> bool {
        let mut state = self.state.lock();
        let hangs = state.hang_commands > 0;
        state.hang_commands = state.hang_commands.saturating_sub(1);
        hangs
    }

    /// How many looks wait for an answer that does not come.
    #[must_use]
    pub fn looks_that_hang(&self) -> usize {
        Arc::strong_count(&self.state.lock().hanging) - 1
    }

    /// What a look is to hold for as long as it hangs.
    fn hangs(&self, peers: &[PeerIdentity]) -> Option<Arc<()>> {
        let mut state = self.state.lock();
        let left = state.hang.get_mut(&peers.first()?.tenant)?;
        *left = left.checked_sub(1)?;
        Some(state.hanging.clone())
    }

    /// A certificate of a cluster, with the end of its time in milliseconds since the Unix epoch.
    pub fn add_certificate(&self, peer: &PeerIdentity, not_after_ms: i64) {
        self.with(peer.cluster, |cluster| {
            cluster
                .certificates
                .insert(peer.serial.clone(), (not_after_ms, false));
        });
    }

    /// A person lets the model's view of a cluster go on that is ahead of it.
    pub fn accept_timeline(&self, cluster: ClusterId) {
        self.with(cluster, |cluster| {
            let Some(ahead) = cluster.ahead.take() else { return };
            cluster.revision = cluster.revision.max(ahead.cursor) + 1;
            for row in cluster.rows.values_mut().filter(|row| row.document.is_some()) {
                row.revision = cluster.revision;
            }
            for (uid, generation) in ahead.difference.unwrap_or_default().replaced {
                if let Some(row) = cluster.rows.get_mut(&uid) {
                    cluster.revision += 1;
                    (row.revision, row.generation) = (cluster.revision, generation + 1);
                    cluster.generations.insert(uid, generation + 1);
                }
            }
        });
        self.hint(cluster);
    }

    /// How many calls were not answered while it was away.
    #[must_use]
    pub fn refused_calls(&self) -> u64 {
        let state = self.state.lock();
        state.unanswered.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Certificates issued to a cluster from now on are revoked at once, or are good again.
    pub fn revoke_new(&self, cluster: ClusterId, revoke: bool) {
        self.with(cluster, |cluster| cluster.revokes_new = revoke);
    }

    /// What is known of a cluster.
    #[must_use]
    pub fn cluster(&self, cluster: ClusterId) -> Option<Cluster> {
        self.state.lock().clusters.get(&cluster).cloned()
    }

    /// The generation of a document that is placed on a cluster, or its tombstone's.
    #[must_use]
    pub fn generation(&self, cluster: ClusterId, uid: &str) -> Option<u64> {
        let state = self.state.lock();
        let row = state.clusters.get(&cluster)?.rows.get(uid)?;
        Some(row.generation)
    }

    /// Run records in the order of their commit.
    #[must_use]
    pub fn runs(&self) -> Vec<(ClusterId, RunRecord)> {
        self.state.lock().runs.clone()
    }

    /// The audit log.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.state.lock().audit.clone()
    }

    /// Wakes the cluster's session.
    fn hint(&self, cluster: ClusterId) {
        if let Some(hints) = self.state.lock().hints.get(&cluster) {
            hints.send_modify(|(changes, _)| *changes += 1);
        }
    }

    fn with(&self, cluster: ClusterId, change: impl FnOnce(&mut Cluster)) {
        if let Some(cluster) = self.state.lock().clusters.get_mut(&cluster) {
            change(cluster);
        }
    }

    /// The peer's own cluster, to read; the database answers.
    fn read<T>(
        &self,
        peer: &PeerIdentity,
        read: impl FnOnce(&Cluster) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let state = self.state.lock();
        state.answers()?;
        read(state.clusters.get(&peer.cluster).ok_or_else(unknown)?)
    }

    /// The session's own cluster, to write; the epoch is the newest.
    fn write<T>(
        &self,
        session: &Session,
        write: impl FnOnce(&mut Cluster) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut state = self.state.lock();
        state.answers()?;
        let cluster = state
            .clusters
            .get_mut(&session.peer.cluster)
            .ok_or_else(unknown)?;
        if cluster.epoch != session.epoch {
            return Err(StoreError::Superseded);
        }
        write(cluster)
    }
}

impl State {
    fn answers(&self) -> Result<(), StoreError> {
        match self.away {
            true => {
                self.unanswered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Err(StoreError::Unavailable("the model is away".to_owned()))
            }
            false => Ok(()),
        }
    }
}

impl Cluster {
    fn good(&self, peer: &PeerIdentity, now_ms: i64) -> Result<(), StoreError> {
        let certificate = self.certificates.get(&peer.serial);
        if certificate.is_none() && !self.deleted && self.tenant == peer.tenant {
            return Err(StoreError::Unknown(format!("certificate {}", peer.serial)));
        }
        let good = certificate.is_some_and(|(end, revoked)| !revoked && now_ms < *end);
        match good && !self.deleted && self.tenant == peer.tenant {
            true => Ok(()),
            false => Err(unknown()),
        }
    }

    fn place(&mut self, changes: &[(String, Option<Document>)]) -> u64 {
        let revision = self.revision + 1;
        for (uid, document) in changes {
            let generation = self.generations.entry(uid.clone()).or_insert(0);
            let placed = self.rows.get(uid).is_some_and(|row| row.document.is_some());
            if document.is_none() && !placed {
                continue;
            }
            *generation += u64::from(document.is_some());
            if document.is_none() {
                self.observations.remove(uid);
            }
            let row = Desire {
                revision,
                generation: *generation,
                document: document.clone(),
            };
            self.rows.insert(uid.clone(), row);
            self.revision = revision;
        }
        self.revision
    }

    fn taken(&mut self, taken: Taken) {
        if !taken.held {
            self.held = None;
        }
        if !taken.held || self.approved_deletes == taken.approved {
            self.approved_deletes = 0;
        }
    }

    /// `false` for one that is not the cluster's to make. An older one than what is known, and one of what has left,
    /// changes nothing.
    fn observe(&mut self, observation: &Observation) -> bool {
        let Some(row) = self.rows.get(&observation.uid) else {
            return false;
        };
        if observation.generation > row.generation {
            return false;
        }
        let known = self.observations.get(&observation.uid);
        let older = known.is_some_and(|known| known.generation > observation.generation);
        if row.document.is_some() && !older {
            self.observations
                .insert(observation.uid.clone(), observation.clone());
        }
        true
    }

    /// What the cluster is to hold.
    #[must_use]
    pub fn desired(&self) -> Desired {
        let entries = self.rows.iter().filter_map(|(uid, row)| {
            let digest = document_digest(&row.document.as_ref()?.json);
            Some(DesiredEntry {
                uid: uid.clone(),
                generation: row.generation,
                digest,
            })
        });
        Desired {
            revision: self.revision,
            entries: entries.collect(),
        }
    }
}

impl Desire {
    fn row(&self, uid: &str) -> Row {
        let content = match &self.document {
            None => Content::Gone,
            Some(document) => Content::Document {
                kind: document.kind.clone(),
                project: document.project.clone(),
                name: document.name.clone(),
                digest: document_digest(&document.json),
                size: document.json.len() as u64,
                body: match document.json.len() > MAX_INLINE {
                    true => Body::Large,
                    false => Body::Inline(document.json.clone()),
                },
            },
        };
        Row {
            revision: self.revision,
            uid: uid.to_owned(),
            generation: self.generation,
            content,
        }
    }
}

fn unknown() -> StoreError {
    StoreError::Refused("the certificate is not valid here; enrol the cluster again".to_owned())
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}
