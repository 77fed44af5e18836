//! Calls from the hub to agents: each takes one of the streams that the cluster agent keeps parked here.

use crate::{
    listen::peer,
    registry::{Registry, StreamGuard},
    serve::Inner,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use parking_lot::Mutex;
use roadstead_contract::fleet::{
    Call, CallEnd, CallKind, FailureCode, Header, TUNNEL_CHUNK, TunnelDown, TunnelUp, tunnel_down,
    tunnel_server, tunnel_up,
};
use roadstead_domain::ClusterId;
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::AbortOnDropHandle,
};
use tonic::{Request, Response, Status, Streaming};

/// For a stream to be parked, while the cluster's session lives: a burst took them all, or the tunnel is being made.
const PARK_WITHIN: Duration = Duration::from_secs(5);
/// For a stream to say what it is.
const SAY_WITHIN: Duration = Duration::from_secs(15);
/// Streams of one cluster that wait here; more are closed.
const PARKED: usize = 64;

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelKind {
    /// The engine's A2A interface.
    A2a,
    /// The engine's log.
    Logs,
}

/// The head of a call. The caller is authenticated and authorised already.
#[derive(Clone, PartialEq, Eq)]
pub struct TunnelRequest {
    pub kind: TunnelKind,
    pub agent_uid: String,
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl fmt::Debug for TunnelRequest {
    /// Without header values and path: they may hold a token or content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelRequest")
            .field("kind", &self.kind)
            .field("agent_uid", &self.agent_uid)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// The cluster has no session on this replica; `since_ms` is when the last one ended here, in milliseconds since
    /// the Unix epoch.
    #[error("the cluster is not connected")]
    Away { since_ms: Option<i64> },
    /// The cluster agent does not run that agent.
    #[error("the agent does not run on this cluster: {0}")]
    NotFound(String),
    /// The agent is not ready.
    #[error("the agent cannot be reached: {0}")]
    Unavailable(String),
    #[error("the deadline has passed")]
    Deadline,
    /// The stream broke off in the middle: what came before is all there is.
    #[error("the connection to the cluster broke off: {0}")]
    Broken(String),
    /// The cluster's certificate was revoked, or the cluster deleted, while the call ran.
    #[error("the cluster's certificate was revoked")]
    Revoked,
}

/// A body on its way to an agent.
pub type RequestBody = BoxStream<'static, Bytes>;

/// The answer of an agent.
pub struct TunnelResponse {
    pub status: u16,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: TunnelBody,
    /// Cancelled when the cluster's certificate is revoked, or the cluster deleted: for whoever passes the body on, and may
    /// wait for a reader instead of the body.
    pub revoked: CancellationToken,
}

impl fmt::Debug for TunnelResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelResponse")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// The body of an answer. Dropping it before its end cancels the call in the cluster.
pub struct TunnelBody {
    /// Empty after the end: whatever it was, the cluster agent sees it then, and not when somebody drops this.
    live: Arc<Mutex<Option<Live>>>,
    ended: bool,
    deadline: Pin<Box<tokio::time::Sleep>>,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    _cut: AbortOnDropHandle<()>,
}

/// A call that runs.
struct Live {
    up: Streaming<TunnelUp>,
    // Held so that the cluster agent sees the call alive; dropped, it ends.
    _down: mpsc::Sender<Result<TunnelDown, Status>>,
    _pump: AbortOnDropHandle<()>,
    _guard: StreamGuard,
}

impl fmt::Debug for TunnelBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TunnelBody")
    }
}

impl Stream for TunnelBody {
    type Item = Result<Bytes, TunnelError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let mut live = this.live.lock();
        // First: what a revoked cluster has still sent is nobody's to believe.
        let revoked = this.revoked.as_mut().poll(cx).is_ready();
        let item = match live.as_mut() {
            Some(live) if !revoked => match live.up.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(TunnelUp {
                    body: Some(tunnel_up::Body::Chunk(chunk)),
                }))) => return Poll::Ready(Some(Ok(chunk))),
                Poll::Ready(Some(Ok(TunnelUp {
                    body: Some(tunnel_up::Body::End(_)),
                }))) => None,
                Poll::Ready(other) => Some(Err(unexpected(other))),
                Poll::Pending if this.deadline.as_mut().poll(cx).is_ready() => {
                    Some(Err(TunnelError::Deadline))
                }
                Poll::Pending => return Poll::Pending,
            },
            _ => Some(Err(TunnelError::Revoked)),
        };
        this.ended = true;
        *live = None;
        Poll::Ready(item)
    }
}

/// Ends the call with a revocation whether or not anybody reads its answer: a reader who is slow, or waited for, must not
/// keep a revoked cluster's call alive.
fn cut<L: Send + 'static>(live: &Arc<Mutex<Option<L>>>, revoked: CancellationToken) -> AbortOnDropHandle<()> {
    let live = live.clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        revoked.cancelled().await;
        let live = live.lock().take();
        drop(live);
    }))
}

/// What a message other than the expected one means.
fn unexpected(message: Option<Result<TunnelUp, Status>>) -> TunnelError {
    match message {
        Some(Ok(TunnelUp {
            body: Some(tunnel_up::Body::Failure(failure)),
        })) => match failure.code() {
            FailureCode::FailureNotFound => TunnelError::NotFound(failure.detail),
            FailureCode::FailureUnavailable => TunnelError::Unavailable(failure.detail),
            FailureCode::FailureDeadline => TunnelError::Deadline,
            FailureCode::FailureBroken | FailureCode::FailureUnspecified => {
                TunnelError::Broken(failure.detail)
            }
        },
        Some(Ok(_)) => TunnelError::Broken("the cluster agent broke the protocol".to_owned()),
        Some(Err(status)) => TunnelError::Broken(format!("{:?}", status.code())),
        None => TunnelError::Broken("the stream ended early".to_owned()),
    }
}

/// A parked stream.
struct Parked {
    up: Streaming<TunnelUp>,
    down: mpsc::Sender<Result<TunnelDown, Status>>,
    guard: StreamGuard,
    /// The root of the certificate is retired: what runs may end, nothing new begins.
    retired: CancellationToken,
}

impl Parked {
    fn alive(&self) -> bool {
        !self.down.is_closed() && !self.guard.ended.is_cancelled() && !self.retired.is_cancelled()
    }
}

#[derive(Default)]
struct Waiting {
    parked: VecDeque<Parked>,
    more: Arc<Notify>,
}

/// The way to the agents of the clusters that are connected here. Cheap to clone.
#[derive(Clone)]
pub struct Tunnels {
    clusters: Arc<Mutex<BTreeMap<ClusterId, Waiting>>>,
    registry: Arc<Registry>,
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tunnels")
    }
}

impl Tunnels {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self {
            clusters: Arc::default(),
            registry,
        }
    }

    /// Calls an agent; returns with the head of its answer. Dropping the future, or the answer's body, cancels the
    /// call in the cluster. The deadline covers the body too.
    ///
    /// # Errors
    /// See [`TunnelError`]. After [`TunnelError::Broken`] and [`TunnelError::Deadline`] the agent may have acted.
    pub async fn call(
        &self,
        cluster: ClusterId,
        request: TunnelRequest,
        body: RequestBody,
        deadline: Duration,
    ) -> Result<TunnelResponse, TunnelError> {
        let until = Instant::now() + deadline;
        let parked = self.take(cluster, until).await?;
        // A drain lets a call end; a revocation does not.
        let revoked = parked.guard.revoked.clone();
        tokio::select! {
            biased;
            () = revoked.cancelled() => Err(TunnelError::Revoked),
            begun = begin(parked, request, body, until) => begun,
        }
    }

    /// A parked stream, waiting a little for one if the cluster is connected.
    async fn take(&self, cluster: ClusterId, until: Instant) -> Result<Parked, TunnelError> {
        let until = until.min(Instant::now() + PARK_WITHIN);
        loop {
            let more = {
                let mut clusters = self.clusters.lock();
                let waiting = clusters.entry(cluster).or_default();
                while let Some(parked) = waiting.parked.pop_front() {
                    if parked.alive() {
                        return Ok(parked);
                    }
                }
                if !self.registry.is_live(cluster) {
                    return Err(self.away(cluster));
                }
                waiting.more.clone()
            };
            // `notify_one` leaves a permit when nobody waits yet, so a stream parked just now is not missed.
            if timeout_at(until, more.notified()).await.is_err() {
                return Err(self.away(cluster));
            }
        }
    }

    fn away(&self, cluster: ClusterId) -> TunnelError {
        TunnelError::Away {
            since_ms: self.registry.gone_since(cluster),
        }
    }

    fn park(&self, cluster: ClusterId, parked: Parked) -> Result<(), Status> {
        let mut clusters = self.clusters.lock();
        let waiting = clusters.entry(cluster).or_default();
        waiting.parked.retain(Parked::alive);
        if waiting.parked.len() >= PARKED {
            return Err(Status::resource_exhausted("enough streams are parked"));
        }
        waiting.parked.push_back(parked);
        waiting.more.notify_one();
        Ok(())
    }

    /// Closes what waits.
    pub(crate) fn drain(&self) {
        self.clusters.lock().clear();
    }

    /// Forgets clusters without a live stream.
    pub(crate) fn tidy(&self) {
        self.clusters.lock().retain(|_, waiting| {
            waiting.parked.retain(Parked::alive);
            // A waiter holds a clone.
            !waiting.parked.is_empty() || Arc::strong_count(&waiting.more) > 1
        });
    }
}

/// Sends a call on a stream that was parked, and waits for the head of its answer.
async fn begin(
    parked: Parked,
    request: TunnelRequest,
    body: RequestBody,
    until: Instant,
) -> Result<TunnelResponse, TunnelError> {
    let Parked {
        mut up, down, guard, ..
    } = parked;
    let call = wire(request, until.saturating_duration_since(Instant::now()));
    let gone = || TunnelError::Broken("the stream closed".to_owned());
    down.send(Ok(frame(tunnel_down::Body::Call(call))))
        .await
        .map_err(|_| gone())?;
    let pump = AbortOnDropHandle::new(tokio::spawn(pump(body, down.clone())));
    let first = timeout_at(until, up.next())
        .await
        .map_err(|_| TunnelError::Deadline)?;
    match first {
        Some(Ok(TunnelUp {
            body: Some(tunnel_up::Body::Head(head)),
        })) => {
            let status = u16::try_from(head.status).unwrap_or(502);
            let headers = head
                .headers
                .into_iter()
                .map(|header| (header.name, header.value))
                .collect();
            let deadline = Box::pin(tokio::time::sleep_until(until));
            let revoked = guard.revoked.clone();
            let live = Arc::new(Mutex::new(Some(Live {
                up,
                _down: down,
                _pump: pump,
                _guard: guard,
            })));
            let body = TunnelBody {
                _cut: cut(&live, revoked.clone()),
                live,
                ended: false,
                deadline,
                revoked: Box::pin(revoked.clone().cancelled_owned()),
            };
            Ok(TunnelResponse {
                status,
                headers,
                body,
                revoked,
            })
        }
        other => Err(unexpected(other)),
    }
}

/// Sends the request's body on, as fast as the connection takes it.
async fn pump(mut body: RequestBody, down: mpsc::Sender<Result<TunnelDown, Status>>) {
    while let Some(mut chunk) = body.next().await {
        while !chunk.is_empty() {
            let part = chunk.split_to(chunk.len().min(TUNNEL_CHUNK));
            if down
                .send(Ok(frame(tunnel_down::Body::Chunk(part))))
                .await
                .is_err()
            {
                return;
            }
        }
    }
    // The cluster agent may have answered and left already.
    let _ = down.send(Ok(frame(tunnel_down::Body::End(CallEnd {})))).await;
}

fn wire(request: TunnelRequest, patience: Duration) -> Call {
    let kind = match request.kind {
        TunnelKind::A2a => CallKind::A2a,
        TunnelKind::Logs => CallKind::Logs,
    };
    Call {
        kind: kind.into(),
        agent_uid: request.agent_uid,
        method: request.method,
        path: request.path,
        headers: request
            .headers
            .into_iter()
            .map(|(name, value)| Header { name, value })
            .collect(),
        // 0 would mean "none given".
        deadline_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).max(1),
    }
}

fn frame(body: tunnel_down::Body) -> TunnelDown {
    TunnelDown { body: Some(body) }
}

pub(crate) struct Service(pub(crate) Arc<Inner>);

#[tonic::async_trait]
impl tunnel_server::Tunnel for Service {
    type OpenStream = ReceiverStream<Result<TunnelDown, Status>>;

    async fn open(
        &self,
        request: Request<Streaming<TunnelUp>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let peer = peer(&request)?;
        let (identity, not_after) = peer.identified()?;
        self.0.authenticate(&peer, "tunnel").await?;
        let guard = self.0.registry.stream(identity, *not_after);
        let guard = guard.ok_or_else(|| Status::resource_exhausted("too many streams of this cluster"))?;
        let (cluster, mut up) = (identity.cluster, request.into_inner());
        // One message ahead: the connection's flow control is the limit, not a queue of ours.
        let (down, outgoing) = mpsc::channel(1);
        let tunnels = self.0.tunnels.clone();
        let root = peer.root().map(|root| self.0.authority.ends_of(root).trust);
        let retired = root.unwrap_or_default();
        tokio::spawn(async move {
            let first = tokio::select! {
                () = guard.ended.cancelled() => return,
                first = timeout(SAY_WITHIN, up.message()) => first,
            };
            let parked = matches!(
                first,
                Ok(Ok(Some(TunnelUp {
                    body: Some(tunnel_up::Body::Park(_))
                })))
            );
            let kept = match parked {
                true => tunnels.park(
                    cluster,
                    Parked {
                        up,
                        down: down.clone(),
                        guard,
                        retired,
                    },
                ),
                false => Err(Status::invalid_argument("expected Park as the first message")),
            };
            if let Err(status) = kept {
                // The other side may be gone already.
                let _ = down.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole of it is in `tests/simulation`; but the cluster agent there ends its calls itself when it is revoked, which
    /// a stolen key does not do.
    #[tokio::test]
    async fn s49_the_hub_lets_go_of_a_revoked_clusters_call_that_nobody_reads() {
        let (live, ended) = tokio::sync::oneshot::channel::<()>();
        let slot = Arc::new(Mutex::new(Some(live)));
        let revoked = CancellationToken::new();
        let _cut = cut(&slot, revoked.clone());
        tokio::task::yield_now().await;
        assert!(slot.lock().is_some());
        revoked.cancel();
        let told = timeout(Duration::from_secs(10), ended).await;
        told.expect("the call is held").expect_err("dropped");
        assert!(slot.lock().is_none());
    }
}
