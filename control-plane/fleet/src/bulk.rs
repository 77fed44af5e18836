//! Large documents by digest. A cluster gets what its own desired set refers to, and nothing else.
//!
//! Documents are read whole, so few are in memory at once, and of those each cluster and each tenant has a share.
//! Whoever does not read loses its place: a task hands the chunks on and looks at the clock, since HTTP/2's flow
//! control would let a reader hold it for ever.

use crate::{
    listen::{peer, status},
    registry::StreamGuard,
    serve::Inner,
};
use bytes::Bytes;
use parking_lot::Mutex;
use roadstead_authz::PeerIdentity;
use roadstead_contract::fleet::{BLOB_CHUNK, BlobChunk, Digest, GetBlobRequest, bulk_server::Bulk};
use roadstead_domain::{ClusterId, TenantId};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Documents in memory at once, over all clusters: 32 of at most 8 MiB.
const BLOBS: usize = 32;
/// Of one tenant.
const OF_TENANT: usize = 8;
/// Of one cluster: the cluster agent fetches one after another; the other is what a cut connection left behind.
const OF_CLUSTER: usize = 2;
/// For a place.
const PLACE_WITHIN: Duration = Duration::from_secs(15);

/// The places for documents on their way.
#[derive(Debug)]
pub(crate) struct Blobs {
    all: Arc<Semaphore>,
    taken: Arc<Mutex<Taken>>,
    /// A chunk that is not taken for so long ends its stream (protocol.md §3 rule 7).
    stall: Duration,
}

#[derive(Debug, Default)]
struct Taken {
    tenants: BTreeMap<TenantId, usize>,
    clusters: BTreeMap<ClusterId, usize>,
}

/// One document's place.
#[derive(Debug)]
struct Place {
    peer: PeerIdentity,
    taken: Arc<Mutex<Taken>>,
    _all: Option<OwnedSemaphorePermit>,
}

impl Blobs {
    pub(crate) fn new(stall: Duration) -> Self {
        Self {
            all: Arc::new(Semaphore::new(BLOBS)),
            taken: Arc::default(),
            stall,
        }
    }

    /// A place within the shares of the peer's cluster and tenant, waiting a little for one of all.
    async fn place(&self, peer: &PeerIdentity) -> Result<Place, Status> {
        let mut place = self.share(peer)?;
        let all = timeout(PLACE_WITHIN, self.all.clone().acquire_owned()).await;
        let all = all.map_err(|_| Status::unavailable("too many documents are on their way; try again"))?;
        place._all = Some(all.map_err(|_| Status::unavailable("the hub is stopping"))?);
        Ok(place)
    }

    fn share(&self, peer: &PeerIdentity) -> Result<Place, Status> {
        let mut taken = self.taken.lock();
        let cluster = taken.clusters.get(&peer.cluster).copied().unwrap_or(0);
        let tenant = taken.tenants.get(&peer.tenant).copied().unwrap_or(0);
        if cluster >= OF_CLUSTER || tenant >= OF_TENANT {
            return Err(Status::unavailable(
                "enough documents are on their way to this cluster or its tenant; try again",
            ));
        }
        taken.clusters.insert(peer.cluster, cluster + 1);
        taken.tenants.insert(peer.tenant, tenant + 1);
        Ok(Place {
            peer: peer.clone(),
            taken: self.taken.clone(),
            _all: None,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fn less<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
        let mut taken = self.taken.lock();
        less(&mut taken.clusters, &self.peer.cluster);
        less(&mut taken.tenants, &self.peer.tenant);
    }
}

pub(crate) struct Service(pub(crate) Arc<Inner>);

#[tonic::async_trait]
impl Bulk for Service {
    type GetBlobStream = ReceiverStream<Result<BlobChunk, Status>>;

    async fn get_blob(
        &self,
        request: Request<GetBlobRequest>,
    ) -> Result<Response<Self::GetBlobStream>, Status> {
        let peer = peer(&request)?;
        let (identity, not_after) = peer.identified()?;
        self.0.authenticate(&peer, "bulk").await?;
        let request = request.into_inner();
        let digest = Digest::try_from(request.digest.as_slice())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let guard = self.0.registry.stream(identity, *not_after);
        let guard = guard.ok_or_else(|| Status::resource_exhausted("too many streams of this cluster"))?;
        let place = self.0.blobs.place(identity).await?;
        let found = self
            .0
            .store
            .blob(identity, digest)
            .await
            .map_err(|error| status(&error))?;
        let bytes = found.ok_or_else(|| Status::not_found("no document of this cluster has that digest"))?;
        let start = usize::try_from(request.offset)
            .ok()
            .filter(|offset| *offset <= bytes.len());
        let start = start.ok_or_else(|| Status::invalid_argument("the offset is beyond the end"))?;
        let (chunks, outgoing) = mpsc::channel(1);
        let stall = self.0.blobs.stall;
        tokio::spawn(async move {
            // Both end with this task, whatever the reader does.
            let (_place, guard) = (place, guard);
            hand_on(bytes, start, &chunks, &guard, stall).await;
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// Hands the bytes on from `at`. A stream that ends early is seen by its reader: each chunk tells the whole size.
async fn hand_on(
    bytes: Bytes,
    mut at: usize,
    chunks: &mpsc::Sender<Result<BlobChunk, Status>>,
    guard: &StreamGuard,
    stall: Duration,
) {
    loop {
        let end = bytes.len().min(at + BLOB_CHUNK);
        let chunk = BlobChunk {
            offset: at as u64,
            data: bytes.slice(at..end),
            total: bytes.len() as u64,
        };
        let sent = tokio::select! {
            () = guard.ended.cancelled() => return,
            sent = timeout(stall, chunks.send(Ok(chunk))) => sent,
        };
        if !matches!(sent, Ok(Ok(()))) || end == bytes.len() {
            return;
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roadstead_domain::{FakeClock, SeededRandom};

    fn peer(tenant: u64, cluster: u64) -> PeerIdentity {
        let clock = FakeClock::at(1);
        PeerIdentity {
            tenant: TenantId::generate(&clock, &SeededRandom::new(tenant)),
            cluster: ClusterId::generate(&clock, &SeededRandom::new(cluster)),
            serial: "s".to_owned(),
        }
    }

    #[tokio::test]
    async fn s39_a_cluster_and_a_tenant_have_a_share_of_the_places() {
        let blobs = Blobs::new(Duration::from_secs(30));
        let mut held = Vec::new();
        for cluster in 0..20 {
            while let Ok(place) = blobs.place(&peer(1, cluster)).await {
                held.push(place);
            }
        }
        assert_eq!(held.len(), OF_TENANT);
        let other = blobs.place(&peer(2, 100)).await.expect("room for others");
        assert!(blobs.place(&peer(2, 100)).await.is_ok());
        drop((other, held));
        assert!(blobs.place(&peer(1, 0)).await.is_ok());
        assert!(blobs.taken.lock().clusters.is_empty());
    }
}
