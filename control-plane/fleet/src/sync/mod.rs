//! Sessions: one bidirectional stream per cluster agent.

mod begin;
mod commands;
mod diff;
mod frames;
mod hear;
mod mode;
mod owed;
mod session;
mod settle;
mod trust;
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
        let cluster = peer.identified()?.0.cluster;
        let greeting = self.0.registry.greeting(cluster);
        let greeting =
            greeting.ok_or_else(|| Status::resource_exhausted("too many streams without a Hello"))?;
        let (frames, outgoing) = mpsc::channel(OUTGOING);
        let inbound = request.into_inner();
        tokio::spawn(session::run(self.0.clone(), peer, inbound, frames, greeting));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}
