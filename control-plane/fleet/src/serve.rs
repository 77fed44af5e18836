//! The fleet's port: one listener, four services, and the little that runs beside them.

use crate::{
    bucket::Bucket,
    bulk,
    door::Door,
    enrolment,
    listen::{Listen, Peer, accept, status},
    pki::{Authority, PkiError},
    registry::Registry,
    store::{Event, FleetStore, StoreError, What},
    sync, tls,
    together::LONGEST,
    tunnel::{self, Tunnels},
};
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use roadstead_authz::PeerIdentity;
use roadstead_contract::fleet::{
    HubKeys, MAX_FRAME, TUNNEL_CHUNK, bulk_server::BulkServer, enrolment_server::EnrolmentServer,
    sync_server::SyncServer, tunnel_server::TunnelServer,
};
use roadstead_domain::{Clock, ClusterId, TenantId};
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{error::Elapsed, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{
    Status,
    transport::{Server, server::Router},
};

/// How often live clusters are looked up in the database: hints that were lost, newer sessions on other replicas,
/// revocations. A revocation must reach a session in 5 s (protocol.md §3 rule 10).
const LOOK: Duration = Duration::from_secs(2);
/// Looks at once, each at one page of one tenant's clusters.
const LOOKS: usize = 16;
/// Of those, at one tenant's clusters: one whose looks are not answered leaves places to the others.
const LOOKS_EACH: usize = 4;
/// Pages of one look at once: less than a tenant's places, so that another look finds one beside it.
const PAGES: usize = 2;
/// Looks at one tenant's clusters that may be under way: another begins beside one that takes long, for it may wait for a
/// connection that was cut while the others are good.
const BESIDE: usize = 3;
/// A database that has not answered a look by then is away.
pub(crate) const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// Records of what was only counted that are written at once.
const COUNTED_AT_ONCE: usize = 8;
/// Clusters of one look.
const PAGE: usize = 500;
/// How often last-seen times are written (protocol.md §3 rule 8).
const SEEN: Duration = Duration::from_secs(20);
/// HTTP/2 pings (protocol.md §3 rule 8).
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// One session, its tunnel streams and calls; more wait. See [`crate::registry::STREAMS`].
const STREAMS: u32 = 320;
const STREAM_WINDOW: u32 = 4 * MAX_FRAME as u32;
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;
/// Reset streams that wait to be taken notice of; beyond it the connection is closed (CVE-2023-44487).
const PENDING_RESETS: usize = 256;
/// To whoever shows a certificate of a root that is not trusted any more.
pub(crate) const RETIRED: &str =
    "the root of this certificate is retired; join again with a new token for this cluster";
/// For running calls when the replica drains.
const DRAIN: Duration = Duration::from_secs(10);

/// What differs between a laptop, production and a simulation.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Host names and addresses of the port, for its certificate.
    pub names: Vec<String>,
    /// Version of the hub (semantic version).
    pub version: String,
    pub heartbeat: Duration,
    /// Idle tunnel streams that each cluster agent keeps.
    pub tunnel_streams: u32,
    /// Connections and sessions admitted a second.
    pub admission: f64,
    /// Snapshots admitted a second.
    pub snapshots: f64,
    /// Cluster agents told a second to renew their certificates, after another root has begun to sign.
    pub renewals: f64,
    /// What is not taken by the other side for so long ends its stream.
    pub stall: Duration,
}

impl Settings {
    /// The usual ones.
    #[must_use]
    pub fn new(names: Vec<String>, version: &str) -> Self {
        Self {
            names,
            version: version.to_owned(),
            heartbeat: Duration::from_secs(25),
            tunnel_streams: 4,
            admission: 200.0,
            snapshots: 50.0,
            renewals: 20.0,
            stall: Duration::from_secs(30),
        }
    }
}

/// What the fleet works with.
#[derive(Clone)]
pub struct Parts {
    pub store: Arc<dyn FleetStore>,
    pub authority: Arc<Authority>,
    pub clock: Arc<dyn Clock>,
    /// Whose calls engines accept.
    pub keys: HubKeys,
    pub settings: Settings,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The port failed for good.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("the fleet port failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// The hub's side of the fleet protocol. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fleet(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) store: Arc<dyn FleetStore>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Settings,
    pub(crate) keys: watch::Sender<HubKeys>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) tunnels: Tunnels,
    pub(crate) enrolments: enrolment::Limits,
    pub(crate) sessions: Bucket,
    pub(crate) snapshots: Bucket,
    pub(crate) renewals: Bucket,
    pub(crate) blobs: bulk::Blobs,
    looks: Semaphore,
    /// Of each tenant, its places among those.
    looks_each: Mutex<BTreeMap<TenantId, Arc<Semaphore>>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Fleet {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let registry = Arc::new(Registry::default());
        let Settings {
            admission,
            snapshots,
            renewals,
            ..
        } = parts.settings;
        Self(Arc::new(Inner {
            store: parts.store,
            authority: parts.authority,
            clock: parts.clock,
            settings: parts.settings.clone(),
            keys: watch::channel(parts.keys).0,
            tunnels: Tunnels::new(registry.clone()),
            registry,
            enrolments: enrolment::Limits::new(),
            sessions: Bucket::new(admission, admission),
            snapshots: Bucket::new(snapshots, snapshots),
            renewals: Bucket::new(renewals, renewals.max(1.0)),
            blobs: bulk::Blobs::new(parts.settings.stall),
            looks: Semaphore::new(LOOKS),
            looks_each: Mutex::default(),
        }))
    }

    /// The way to the agents.
    #[must_use]
    pub fn tunnels(&self) -> Tunnels {
        self.0.tunnels.clone()
    }

    /// Clusters with a live session on this replica.
    #[must_use]
    pub fn live(&self) -> Vec<ClusterId> {
        self.0.registry.live()
    }

    /// Other keys sign the hub's calls to engines from now on; live sessions hear of it at once.
    pub fn set_keys(&self, keys: HubKeys) {
        self.0.keys.send_replace(keys);
    }

    /// Looks now at how a cluster stands in the database, instead of within two seconds: after a revocation.
    pub async fn look_at(&self, cluster: ClusterId) {
        let mut peers = self.0.registry.peers();
        peers.retain(|peer| peer.cluster == cluster);
        self.0.look_at(peers).await;
    }

    /// Serves until `stop`; then tells every cluster agent to come back elsewhere, and gives calls a little time.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn serve(&self, listener: impl Listen, stop: CancellationToken) -> Result<(), ServeError> {
        let inner = self.0.clone();
        let (refused, refusals) = mpsc::channel(64);
        let tls = tls::server_config(
            inner.authority.clone(),
            inner.settings.names.clone(),
            (refused, inner.registry.clone()),
        )?;
        let (ready, connections) = mpsc::channel(16);
        let door = Door::new(inner.settings.admission);
        let accepting = accept(listener, tls, inner.authority.clone(), door, ready);
        let _beside = [
            AbortOnDropHandle::new(tokio::spawn(accepting)),
            AbortOnDropHandle::new(tokio::spawn(audit_refusals(inner.clone(), refusals))),
            AbortOnDropHandle::new(tokio::spawn(look_around(inner.clone()))),
            AbortOnDropHandle::new(tokio::spawn(write_counted(inner.clone()))),
            AbortOnDropHandle::new(tokio::spawn(write_seen(inner.clone()))),
        ];
        let stopped = stop.clone();
        let draining = inner.clone();
        let signal = async move {
            stopped.cancelled().await;
            draining.registry.drain();
            draining.tunnels.drain();
        };
        let serving = router(&inner).serve_with_incoming_shutdown(ReceiverStream::new(connections), signal);
        let drained = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        let ended = tokio::select! {
            ended = serving => ended.map_err(ServeError::from),
            () = drained => Ok(()),
        };
        // What was heard last is written, and what was only counted; a database that hangs must not hold up the end.
        let last = async {
            inner.flush_seen().await;
            inner.audit_counted(true).await;
        };
        if timeout(DRAIN, last).await.is_err() {
            tracing::warn!("last-seen times, or counts of refusals, were not written");
        }
        ended
    }
}

fn router(inner: &Arc<Inner>) -> Router {
    let limit = 2 * TUNNEL_CHUNK;
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_header_list_size(16 * 1024)
        .add_service(
            EnrolmentServer::new(enrolment::Service(inner.clone())).max_decoding_message_size(16 * 1024),
        )
        .add_service(SyncServer::new(sync::Service(inner.clone())).max_decoding_message_size(MAX_FRAME))
        .add_service(BulkServer::new(bulk::Service(inner.clone())).max_decoding_message_size(1_024))
        .add_service(TunnelServer::new(tunnel::Service(inner.clone())).max_decoding_message_size(limit))
}

impl Inner {
    /// The peer's certificate is good in the store too; a refusal is audited, once for each stream that was opened
    /// (`opening` says which kind).
    pub(crate) async fn authenticate(&self, peer: &Peer, opening: &str) -> Result<(), Status> {
        let (identity, not_after) = peer.identified()?;
        let checked = match self.usable(peer, *not_after) {
            Err(why) => Err(StoreError::Refused(why.to_owned())),
            Ok(()) => self.store.authenticate(identity).await,
        };
        if let Err(error) = &checked {
            self.refuse(peer, opening, error).await;
        }
        checked.map_err(|error| status(&error))
    }

    /// The certificate's time is not over, and its root is trusted.
    pub(crate) fn usable(&self, peer: &Peer, not_after: i64) -> Result<(), &'static str> {
        if self.clock.now_ms() >= not_after.saturating_mul(1_000) {
            return Err("the certificate has expired");
        }
        match peer
            .root()
            .is_some_and(|root| self.authority.loaded().ring.trusts(root))
        {
            true => Ok(()),
            false => Err(RETIRED),
        }
    }

    pub(crate) async fn refuse(&self, peer: &Peer, opening: &str, error: &StoreError) {
        if let (StoreError::Refused(why) | StoreError::Unknown(why), Ok((identity, _))) =
            (error, peer.identified())
        {
            let mut event = Event {
                peer: Some(identity.clone()),
                source: peer.source,
                what: What::IdentityRefused,
                detail: format!("{opening}: {why}"),
            };
            // What a retired root has signed writes into no tenant's log, on a connection from before either.
            let ring = self.authority.ring();
            if !peer.root().is_some_and(|root| ring.trusts(root)) {
                let named = format!(
                    "; it names cluster {} of tenant {}",
                    identity.cluster, identity.tenant
                );
                event.detail.push_str(&named);
                event.peer = None;
            }
            self.audit(event).await;
        }
    }

    /// Writes to the audit log. What it records was refused already, so a failure here changes nothing but the log.
    pub(crate) async fn audit(&self, event: Event) {
        let mut before = 0;
        if !matches!(event.what, What::Enrolled | What::Renewed) {
            let Some(counted) = self.registry.notes(&event) else {
                let action = event.what.action();
                tracing::debug!(action, "one more of many fleet events: counted, not written");
                return;
            };
            before = counted;
        }
        let detail = match before {
            0 => event.detail.clone(),
            _ => format!("{} ({before} events before were not written)", event.detail),
        };
        self.write(event, detail, before + 1).await;
    }

    /// Events that were counted, once there is room for a record of them.
    async fn audit_counted(&self, all: bool) {
        let each = |(events, last): (u64, Event)| async move {
            let detail = format!(
                "{events} more that were not written one by one; the last: {}",
                last.detail
            );
            self.write(last, detail, events).await;
        };
        // One tenant whose log waits holds up no other's.
        let counted = stream::iter(self.registry.counted(all));
        counted.for_each_concurrent(COUNTED_AT_ONCE, each).await;
    }

    /// One record that stands for so many events.
    async fn write(&self, event: Event, detail: String, events: u64) {
        let action = event.what.action();
        let cluster = event.peer.as_ref().map(|peer| peer.cluster.to_string());
        let source = event.source.map(|source| source.to_string());
        if matches!(event.what, What::Enrolled | What::Renewed) {
            tracing::info!(action, cluster.id = cluster, source, detail, "fleet event");
        } else {
            tracing::warn!(action, cluster.id = cluster, source, detail, "fleet event");
        }
        let record = Event {
            detail,
            ..event.clone()
        };
        let written = timeout(LONGEST, self.store.audit(record)).await;
        if let Err(error) = written.unwrap_or_else(late) {
            tracing::error!(action, %error, "an audit record is not written; it is counted");
            self.registry.unwritten(events, &event);
        }
    }

    /// Each tenant by itself and several at once: one that keeps its own turns at the database busy must not hide a
    /// revocation of another's.
    async fn look_at(&self, peers: Vec<PeerIdentity>) {
        let looks = pages(peers).into_iter().map(|page| self.look_at_page(page));
        stream::iter(looks).buffer_unordered(PAGES).collect::<()>().await;
    }

    /// The places of one tenant's looks; those that nobody uses are forgotten.
    fn places_of(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut each = self.looks_each.lock();
        each.retain(|_, places| Arc::strong_count(places) > 1);
        let fresh = || Arc::new(Semaphore::new(LOOKS_EACH));
        each.entry(tenant).or_insert_with(fresh).clone()
    }

    async fn look_at_page(&self, page: Vec<PeerIdentity>) {
        let Some(first) = page.first() else { return };
        let tenant = self.places_of(first.tenant);
        let (Ok(_own), Ok(_place)) = (tenant.acquire().await, self.looks.acquire().await) else {
            return;
        };
        let answered = timeout(LOOK_LIMIT, self.store.standing(&page)).await;
        match answered.unwrap_or_else(late) {
            Ok(standings) => {
                for (peer, standing) in page.iter().zip(standings) {
                    self.registry.stands(peer, standing);
                }
            }
            // Sessions stay up without the database (protocol.md §4).
            Err(error) => {
                let tenant = page.first().map(|peer| peer.tenant.to_string());
                let clusters = page.len();
                tracing::warn!(tenant.id = tenant, clusters, %error, "live clusters cannot be looked up");
            }
        }
    }

    async fn flush_seen(&self) {
        let seen = self.registry.take_seen();
        if seen.is_empty() {
            return;
        }
        let written = timeout(LONGEST, self.store.seen(seen)).await;
        if let Err(error) = written.unwrap_or_else(late) {
            tracing::warn!(%error, "last-seen times are not written");
        }
    }
}

pub(crate) fn late<T>(elapsed: Elapsed) -> Result<T, StoreError> {
    Err(StoreError::Unavailable(elapsed.to_string()))
}

/// Peers of one tenant each, at most [`PAGE`].
fn pages(mut peers: Vec<PeerIdentity>) -> Vec<Vec<PeerIdentity>> {
    peers.sort_by_key(|peer| peer.tenant);
    let tenants = peers.chunk_by(|a, b| a.tenant == b.tenant);
    tenants
        .flat_map(|tenant| tenant.chunks(PAGE).map(<[_]>::to_vec))
        .collect()
}

async fn audit_refusals(inner: Arc<Inner>, mut refusals: mpsc::Receiver<Event>) {
    while let Some(event) = refusals.recv().await {
        inner.audit(event).await;
    }
}

/// Each tenant's look is a task of its own: one that waits for the database holds up no other's, nor the next turn.
async fn look_around(inner: Arc<Inner>) {
    let mut looks: BTreeMap<TenantId, Vec<AbortOnDropHandle<()>>> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        inner.registry.end_expired(inner.clock.now_ms());
        inner.tunnels.tidy();
        looks.retain(|_, begun| {
            begun.retain(|look| !look.is_finished());
            !begun.is_empty()
        });
        let mut peers = inner.registry.peers();
        peers.sort_by_key(|peer| peer.tenant);
        for peers in peers.chunk_by(|a, b| a.tenant == b.tenant) {
            let begun = looks.entry(peers[0].tenant).or_default();
            if begun.len() < BESIDE {
                let (inner, peers) = (inner.clone(), peers.to_vec());
                let look = async move { inner.look_at(peers).await };
                begun.push(AbortOnDropHandle::new(tokio::spawn(look)));
            }
        }
    }
}

/// Apart from the look at revocations, which must not wait for somebody's audit log.
async fn write_counted(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(LOOK).await;
        inner.audit_counted(false).await;
    }
}

async fn write_seen(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(SEEN).await;
        inner.flush_seen().await;
    }
}

#[cfg(test)]
mod tests;
