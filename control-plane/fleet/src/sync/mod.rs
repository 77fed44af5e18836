//! Sessions: one bidirectional stream per cluster agent.

mod begin;
mod diff;
mod frames;
mod hear;
mod mode;
mod session;
mod write;

use crate::{listen::peer, serve::Inner};
use roadstead_contract::fleet::{ClusterFrame, HubFrame, sync_server::Sync};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Frames between a session and its connection. Small: what waits is in the database, not here.
const OUTGOING: usize = 4;

pub(crate) struct Service(pub(crate) Arc<Inner>);

#[tonic::async_trait]
impl Sync for Service {
    type SessionStream = ReceiverStream<Result<HubFrame, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<ClusterFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = peer(&request)?;
        // Without a certificate there is nobody to talk to.
        peer.identified()?;
        let (frames, outgoing) = mpsc::channel(OUTGOING);
        tokio::spawn(session::run(self.0.clone(), peer, request.into_inner(), frames));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}
