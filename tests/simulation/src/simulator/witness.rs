//! The store with a witness: who wrote with which epoch, what was accused, how many sessions began in each second.

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use roadstead_authz::PeerIdentity;
use roadstead_contract::{
    fleet::{Command, Digest},
    run::RunRecord,
};
use roadstead_domain::{ClusterId, TenantId};
use roadstead_fleet::{
    FleetStore,
    store::{
        Ahead, Begun, Changes, CommandResult, Desired, Event, Hello, Hints, Report, Reported, ResultVerdict,
        Row, RunVerdict, Session, Standing, StoreError, What,
    },
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};
use tokio::time::Instant;

/// What was seen of one cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) epoch: u64,
    /// The cluster has this revision on its disk, as it said and the store took it.
    pub(super) persisted: u64,
    pub(super) sessions: u64,
    /// Events of the audit log, by kind.
    pub(super) events: BTreeMap<What, u64>,
}

#[derive(Debug, Default)]
struct State {
    clusters: BTreeMap<ClusterId, Seen>,
    /// Sessions begun, by second since the first.
    seconds: BTreeMap<u64, u64>,
    violations: Vec<String>,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Witness {
    inner: Arc<dyn FleetStore>,
    state: Arc<Mutex<State>>,
    began: Instant,
}

impl Witness {
    #[must_use]
    pub(super) fn new(store: Arc<dyn FleetStore>) -> Self {
        Self {
            inner: store,
            state: Arc::default(),
            began: Instant::now(),
        }
    }

    /// What was seen of a cluster.
    #[must_use]
    pub(super) fn seen(&self, cluster: ClusterId) -> Seen {
        self.state
            .lock()
            .clusters
            .get(&cluster)
            .cloned()
            .unwrap_or_default()
    }

    /// Through which revision a cluster has everything on its disk.
    #[must_use]
    pub(super) fn persisted(&self, cluster: ClusterId) -> u64 {
        self.state
            .lock()
            .clusters
            .get(&cluster)
            .map_or(0, |seen| seen.persisted)
    }

    /// The most sessions that began in one second since `since`.
    #[must_use]
    pub(super) fn peak(&self, since: Instant) -> u64 {
        let from = since.saturating_duration_since(self.began).as_secs();
        let state = self.state.lock();
        state
            .seconds
            .range(from..)
            .map(|(_, count)| *count)
            .max()
            .unwrap_or(0)
    }

    /// Sessions begun since `since`, to the second.
    #[must_use]
    pub(super) fn begun(&self, since: Instant) -> u64 {
        let from = since.saturating_duration_since(self.began).as_secs();
        self.state
            .lock()
            .seconds
            .range(from..)
            .map(|(_, count)| *count)
            .sum()
    }

    /// What must never be.
    #[must_use]
    pub(super) fn violations(&self) -> Vec<String> {
        self.state.lock().violations.clone()
    }

    fn store(&self) -> &dyn FleetStore {
        &*self.inner
    }

    /// The newest epoch that had begun before a write.
    fn epoch(&self, session: &Session) -> u64 {
        self.state
            .lock()
            .clusters
            .get(&session.peer.cluster)
            .map_or(0, |seen| seen.epoch)
    }

    /// A write succeeded: no newer epoch had begun before it.
    fn wrote(&self, session: &Session, newest: u64) {
        if session.epoch < newest {
            let (cluster, epoch) = (session.peer.cluster, session.epoch);
            let what = format!("cluster {cluster}: epoch {epoch} wrote after {newest} had begun");
            self.state.lock().violations.push(what);
        }
    }
}

#[async_trait]
impl FleetStore for Witness {
    async fn consume_token(
        &self,
        secret: &str,
        version: &str,
        source: Option<IpAddr>,
    ) -> Result<(TenantId, ClusterId), StoreError> {
        self.store().consume_token(secret, version, source).await
    }
    async fn token_owner(&self, secret: &str) -> Result<Option<PeerIdentity>, StoreError> {
        self.store().token_owner(secret).await
    }
    async fn certificate_issued(&self, peer: &PeerIdentity, not_after_ms: i64) -> Result<(), StoreError> {
        self.store().certificate_issued(peer, not_after_ms).await
    }
    async fn authenticate(&self, peer: &PeerIdentity) -> Result<(), StoreError> {
        self.store().authenticate(peer).await
    }
    async fn begin_session(&self, peer: &PeerIdentity, hello: &Hello) -> Result<Begun, StoreError> {
        let begun = self.store().begin_session(peer, hello).await?;
        let second = self.began.elapsed().as_secs();
        let mut state = self.state.lock();
        *state.seconds.entry(second).or_default() += 1;
        let seen = state.clusters.entry(peer.cluster).or_default();
        seen.sessions += 1;
        seen.epoch = seen.epoch.max(begun.epoch);
        if begun.previous_incarnation.as_ref() != Some(&hello.incarnation) {
            seen.persisted = 0;
        }
        drop(state);
        Ok(begun)
    }
    async fn changes(&self, peer: &PeerIdentity, after: u64, limit: usize) -> Result<Changes, StoreError> {
        self.store().changes(peer, after, limit).await
    }
    async fn desired(&self, peer: &PeerIdentity) -> Result<Desired, StoreError> {
        self.store().desired(peer).await
    }
    async fn rows(&self, peer: &PeerIdentity, uids: &[String]) -> Result<Vec<Row>, StoreError> {
        self.store().rows(peer, uids).await
    }
    async fn blob(&self, peer: &PeerIdentity, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        self.store().blob(peer, digest).await
    }
    async fn report(&self, session: &Session, report: Report) -> Result<Vec<String>, StoreError> {
        let (newest, persisted) = (self.epoch(session), report.persisted);
        let foreign = self.store().report(session, report).await?;
        self.wrote(session, newest);
        if let Some(persisted) = persisted {
            let mut state = self.state.lock();
            let seen = state.clusters.entry(session.peer.cluster).or_default();
            // Of a session before, it may be of an inbox before.
            if seen.epoch == session.epoch {
                seen.persisted = seen.persisted.max(persisted);
            }
        }
        Ok(foreign)
    }
    async fn timeline(&self, session: &Session, ahead: Option<Ahead>) -> Result<(), StoreError> {
        let newest = self.epoch(session);
        self.store().timeline(session, ahead).await?;
        self.wrote(session, newest);
        Ok(())
    }
    async fn trust_kept(&self, session: &Session, generation: u64, root: &str) -> Result<(), StoreError> {
        let newest = self.epoch(session);
        self.store().trust_kept(session, generation, root).await?;
        self.wrote(session, newest);
        Ok(())
    }
    async fn record_runs(
        &self,
        session: &Session,
        records: Vec<RunRecord>,
    ) -> Result<Vec<RunVerdict>, StoreError> {
        let newest = self.epoch(session);
        let verdicts = self.store().record_runs(session, records).await?;
        self.wrote(session, newest);
        Ok(verdicts)
    }
    async fn replicas(&self) -> Result<Vec<Reported>, StoreError> {
        self.store().replicas().await
    }
    async fn commands(&self, session: &Session) -> Result<Vec<Command>, StoreError> {
        let newest = self.epoch(session);
        let commands = self.store().commands(session).await?;
        // Where none wait nothing is written.
        if !commands.is_empty() {
            self.wrote(session, newest);
        }
        Ok(commands)
    }
    async fn record_results(
        &self,
        session: &Session,
        results: Vec<CommandResult>,
    ) -> Result<Vec<ResultVerdict>, StoreError> {
        let newest = self.epoch(session);
        let verdicts = self.store().record_results(session, results).await?;
        self.wrote(session, newest);
        Ok(verdicts)
    }
    async fn seen(&self, clusters: Vec<(PeerIdentity, i64)>) -> Result<(), StoreError> {
        self.store().seen(clusters).await
    }
    async fn standing(&self, peers: &[PeerIdentity]) -> Result<Vec<Option<Standing>>, StoreError> {
        self.store().standing(peers).await
    }
    async fn audit(&self, event: Event) -> Result<(), StoreError> {
        if let Some(peer) = &event.peer {
            let mut state = self.state.lock();
            let seen = state.clusters.entry(peer.cluster).or_default();
            *seen.events.entry(event.what).or_default() += 1;
        }
        self.store().audit(event).await
    }
    fn hints(&self, peer: &PeerIdentity) -> Hints {
        self.store().hints(peer)
    }
}
