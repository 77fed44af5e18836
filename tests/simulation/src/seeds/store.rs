//! The model of the store with a database's moods: slow at times, away at times; and a witness of who writes.

use crate::simulated::Seeded;
use async_trait::async_trait;
use bytes::Bytes;
use roadstead_authz::PeerIdentity;
use roadstead_contract::{
    fleet::{Command, Digest},
    run::RunRecord,
};
use roadstead_domain::{ClusterId, TenantId};
use roadstead_fleet::{
    FleetStore,
    memory::Memory,
    store::{
        Ahead, Begun, Changes, CommandResult, Desired, Event, Hello, Hints, Report, Reported, ResultVerdict,
        Row, RunVerdict, Session, Standing, StoreError,
    },
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc, sync::Mutex, time::Duration};

/// The store of every replica.
#[derive(Clone, Debug)]
pub(super) struct Moody {
    pub(super) model: Memory,
    random: Arc<Seeded>,
    /// The epoch of the last write for each cluster.
    wrote: Arc<Mutex<BTreeMap<ClusterId, u64>>>,
}

impl Moody {
    pub(super) fn new(model: Memory, random: Arc<Seeded>) -> Self {
        Self {
            model,
            random,
            wrote: Arc::default(),
        }
    }

    async fn mood(&self) -> Result<(), StoreError> {
        if self.random.chance(20) {
            tokio::time::sleep(Duration::from_millis(1 + self.random.below(30))).await;
        }
        match self.random.chance(1) {
            true => Err(StoreError::Unavailable("a mood".to_owned())),
            false => Ok(()),
        }
    }

    /// A write succeeded: its epoch is the newest there ever was.
    fn witness(&self, session: &Session) {
        let now = self
            .model
            .cluster(session.peer.cluster)
            .expect("the cluster")
            .epoch;
        assert_eq!(session.epoch, now, "one epoch writes");
        let before = self
            .wrote
            .lock()
            .expect("no panic holds it")
            .insert(session.peer.cluster, session.epoch);
        assert!(
            before.is_none_or(|before| before <= session.epoch),
            "epochs write in order"
        );
    }
}

#[async_trait]
impl FleetStore for Moody {
    async fn consume_token(
        &self,
        secret: &str,
        version: &str,
        source: Option<IpAddr>,
    ) -> Result<(TenantId, ClusterId), StoreError> {
        self.model.consume_token(secret, version, source).await
    }
    async fn token_owner(&self, secret: &str) -> Result<Option<PeerIdentity>, StoreError> {
        self.model.token_owner(secret).await
    }
    async fn certificate_issued(&self, peer: &PeerIdentity, not_after_ms: i64) -> Result<(), StoreError> {
        self.model.certificate_issued(peer, not_after_ms).await
    }
    async fn authenticate(&self, peer: &PeerIdentity) -> Result<(), StoreError> {
        self.mood().await?;
        self.model.authenticate(peer).await
    }
    async fn begin_session(&self, peer: &PeerIdentity, hello: &Hello) -> Result<Begun, StoreError> {
        self.mood().await?;
        self.model.begin_session(peer, hello).await
    }
    async fn changes(&self, peer: &PeerIdentity, after: u64, limit: usize) -> Result<Changes, StoreError> {
        self.mood().await?;
        // Small pages, so that there are many.
        let limit = limit.min(1 + self.random.below(4) as usize);
        self.model.changes(peer, after, limit).await
    }
    async fn desired(&self, peer: &PeerIdentity) -> Result<Desired, StoreError> {
        self.mood().await?;
        self.model.desired(peer).await
    }
    async fn rows(&self, peer: &PeerIdentity, uids: &[String]) -> Result<Vec<Row>, StoreError> {
        self.mood().await?;
        self.model.rows(peer, uids).await
    }
    async fn blob(&self, peer: &PeerIdentity, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        self.mood().await?;
        self.model.blob(peer, digest).await
    }
    async fn report(&self, session: &Session, report: Report) -> Result<Vec<String>, StoreError> {
        self.mood().await?;
        let foreign = self.model.report(session, report).await?;
        self.witness(session);
        // Committed, and the answer is lost.
        self.mood().await?;
        Ok(foreign)
    }
    async fn timeline(&self, session: &Session, ahead: Option<Ahead>) -> Result<(), StoreError> {
        self.mood().await?;
        self.model.timeline(session, ahead).await?;
        self.witness(session);
        Ok(())
    }
    async fn trust_kept(&self, session: &Session, generation: u64, root: &str) -> Result<(), StoreError> {
        self.mood().await?;
        self.model.trust_kept(session, generation, root).await?;
        self.witness(session);
        Ok(())
    }
    async fn replicas(&self) -> Result<Vec<Reported>, StoreError> {
        self.mood().await?;
        self.model.replicas().await
    }
    async fn record_runs(
        &self,
        session: &Session,
        records: Vec<RunRecord>,
    ) -> Result<Vec<RunVerdict>, StoreError> {
        self.mood().await?;
        let verdicts = self.model.record_runs(session, records).await?;
        self.witness(session);
        // Committed, and the answer is lost.
        self.mood().await?;
        Ok(verdicts)
    }
    async fn commands(&self, session: &Session) -> Result<Vec<Command>, StoreError> {
        self.mood().await?;
        let commands = self.model.commands(session).await?;
        if !commands.is_empty() {
            self.witness(session);
        }
        // Noted as sent, and the answer is lost.
        self.mood().await?;
        Ok(commands)
    }
    async fn record_results(
        &self,
        session: &Session,
        results: Vec<CommandResult>,
    ) -> Result<Vec<ResultVerdict>, StoreError> {
        self.mood().await?;
        let verdicts = self.model.record_results(session, results).await?;
        self.witness(session);
        // Committed, and the answer is lost.
        self.mood().await?;
        Ok(verdicts)
    }
    async fn seen(&self, clusters: Vec<(PeerIdentity, i64)>) -> Result<(), StoreError> {
        self.model.seen(clusters).await
    }
    async fn standing(&self, peers: &[PeerIdentity]) -> Result<Vec<Option<Standing>>, StoreError> {
        self.mood().await?;
        self.model.standing(peers).await
    }
    async fn audit(&self, event: Event) -> Result<(), StoreError> {
        self.model.audit(event).await
    }
    fn hints(&self, peer: &PeerIdentity) -> Hints {
        self.model.hints(peer)
    }
}
