//! Large documents by digest. A cluster gets what its own desired set refers to, and nothing else.

use crate::{
    listen::{peer, status},
    serve::Inner,
};
use futures::{Stream, StreamExt as _, stream};
use roadstead_contract::fleet::{BLOB_CHUNK, BlobChunk, Digest, GetBlobRequest, bulk_server::Bulk};
use std::{pin::Pin, sync::Arc};
use tonic::{Request, Response, Status};

/// Blobs in memory at once, over all clusters: 32 of at most 8 MiB.
pub(crate) const BLOBS: usize = 32;

pub(crate) struct Service(pub(crate) Arc<Inner>);

#[tonic::async_trait]
impl Bulk for Service {
    type GetBlobStream = Pin<Box<dyn Stream<Item = Result<BlobChunk, Status>> + Send>>;

    async fn get_blob(
        &self,
        request: Request<GetBlobRequest>,
    ) -> Result<Response<Self::GetBlobStream>, Status> {
        let peer = peer(&request)?;
        let (identity, _) = peer.identified()?;
        self.0.authenticate(&peer).await?;
        let request = request.into_inner();
        let digest = Digest::try_from(request.digest.as_slice())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let guard = self.0.registry.stream(identity);
        let slot = self.0.blobs.clone().acquire_owned().await;
        let slot = slot.map_err(|_| Status::unavailable("the hub is stopping"))?;
        let found = self
            .0
            .store
            .blob(identity, digest)
            .await
            .map_err(|error| status(&error))?;
        let bytes = found.ok_or_else(|| Status::not_found("no document of this cluster has that digest"))?;
        let total = bytes.len() as u64;
        let start = usize::try_from(request.offset)
            .ok()
            .filter(|offset| *offset <= bytes.len());
        let start = start.ok_or_else(|| Status::invalid_argument("the offset is beyond the end"))?;
        let revoked = guard.revoked.clone();
        let chunks = stream::unfold((start, slot, guard), move |(at, slot, guard)| {
            let bytes = bytes.clone();
            async move {
                // An empty rest is one empty chunk, so that the other side learns the size.
                if at > bytes.len() || (at == bytes.len() && at != start) {
                    return None;
                }
                let end = bytes.len().min(at + BLOB_CHUNK);
                let chunk = BlobChunk {
                    offset: at as u64,
                    data: bytes.slice(at..end),
                    total,
                };
                let next = if end == at { end + 1 } else { end };
                Some((Ok(chunk), (next, slot, guard)))
            }
        });
        Ok(Response::new(
            chunks.take_until(revoked.cancelled_owned()).boxed(),
        ))
    }
}
