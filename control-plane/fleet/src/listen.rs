//! Connections from cluster agents: accept, admit, TLS.

use crate::{
    door::{ANONYMOUS_WITHIN, Door, Place, Waiting},
    pki::{Authority, Loaded},
    roots::RootId,
    store::StoreError,
};
use async_trait::async_trait;
use roadstead_authz::PeerIdentity;
use rustls::ServerConfig;
use std::{
    fmt::Debug,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::{Request, Status, transport::server::Connected};

/// Two round trips of a slow network; whoever says nothing holds a place for no longer.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// For a turn to shake hands. With the handshake less than the 10 s that a cluster agent gives its connection: turns come
/// in order, and if they went to those that have given up, a fleet that is larger than what is admitted in that time would
/// never come in.
const TURN_WITHIN: Duration = Duration::from_secs(4);
/// From the end of the trust in a root to the end of the connections that depend on it: less than the 5 s of a revocation.
const RETIRED_WITHIN: Duration = Duration::from_secs(2);
/// After an error of the listener (too many open files): let connections go first.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// A byte stream from a cluster agent.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Where byte streams come from.
#[async_trait]
pub trait Listen: Send + Debug + 'static {
    /// The next connection and its address, where it has one.
    ///
    /// # Errors
    /// This one failed; the next may not.
    async fn accept(&mut self) -> io::Result<(Box<dyn Io>, Option<SocketAddr>)>;
}

#[async_trait]
impl Listen for TcpListener {
    async fn accept(&mut self) -> io::Result<(Box<dyn Io>, Option<SocketAddr>)> {
        let (stream, address) = TcpListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), Some(address)))
    }
}

/// Who is at the other end; tonic puts it into each request.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) source: Option<IpAddr>,
    /// With the end of the certificate, in seconds since the Unix epoch; `None` without a certificate.
    identity: Option<Arc<(PeerIdentity, i64)>>,
    /// The root that the certificate is of.
    root: Option<RootId>,
}

impl Peer {
    /// The verified identity and its end.
    pub(crate) fn identified(&self) -> Result<&(PeerIdentity, i64), Status> {
        self.identity
            .as_deref()
            .ok_or_else(|| Status::unauthenticated("a client certificate is required"))
    }

    /// The root of the certificate; `None` without one.
    pub(crate) fn root(&self) -> Option<&RootId> {
        self.root.as_ref()
    }
}

/// Who sends this request.
pub(crate) fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request.extensions().get::<Peer>().cloned();
    peer.ok_or_else(|| Status::internal("the connection says nothing of its peer"))
}

/// What a store's refusal is on the wire.
pub(crate) fn status(error: &StoreError) -> Status {
    match error {
        StoreError::Refused(why) => Status::unauthenticated(why.clone()),
        StoreError::Unknown(_) => {
            Status::unauthenticated("the hub does not know this certificate; a person may admit it")
        }
        StoreError::Foreign(what) => Status::permission_denied(format!("not this cluster's: {what}")),
        StoreError::Superseded => Status::aborted(error.to_string()),
        // What the database says is for the hub's log, not for the network.
        StoreError::Unavailable(_) => Status::unavailable("the hub's database does not answer"),
    }
}

/// A TLS connection whose peer is known.
pub(crate) struct Connection {
    stream: TlsStream<Box<dyn Io>>,
    peer: Peer,
    /// Its end: of one without a certificate soon, enrolment is short; of the others when somebody else may have the key
    /// of the root of their certificate.
    until: Pin<Box<dyn Future<Output = ()> + Send>>,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Accepts until dropped; connections with a finished handshake go to `ready`.
pub(crate) async fn accept(
    mut listener: impl Listen,
    tls: Arc<ServerConfig>,
    authority: Arc<Authority>,
    door: Arc<Door>,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let mut handshakes = tokio::task::JoinSet::new();
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        while handshakes.try_join_next().is_some() {}
        let source = address.map(|address| address.ip());
        let Some(waiting) = door.enter(source) else {
            tracing::debug!(?source, "a connection too many is closed");
            continue;
        };
        let (acceptor, authority, ready) = (acceptor.clone(), authority.clone(), ready.clone());
        handshakes.spawn(async move {
            let turn = timeout(TURN_WITHIN, waiting.admitted()).await;
            let Ok(Some(_admitted)) = turn else {
                tracing::info!(?source, "a connection had no turn in time");
                return;
            };
            let roots = authority.loaded();
            match timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    if let Some(connection) = identify(stream, (&authority, &roots), source, waiting) {
                        // The server has ended: so has the connection.
                        let _ = ready.send(Ok(connection)).await;
                    }
                }
                Ok(Err(error)) => tracing::info!(?source, %error, "a TLS handshake failed"),
                Err(_) => tracing::info!(?source, "a TLS handshake took too long"),
            }
        });
    }
}

/// `roots` are those of the time before the handshake. A certificate of our authority that names no cluster of ours is no identity: the connection is dropped.
fn identify(
    stream: TlsStream<Box<dyn Io>>,
    (authority, roots): (&Authority, &Arc<Loaded>),
    source: Option<IpAddr>,
    waiting: Waiting,
) -> Option<Connection> {
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let (identity, root) = match leaf.map(|leaf| (authority.peer(leaf), authority.root_of(leaf, roots))) {
        None => (None, None),
        Some((Ok(identity), Some(root))) => (Some(Arc::new(identity)), Some(root)),
        Some((Err(error), _)) => {
            tracing::warn!(?source, %error, "a client certificate is refused");
            return None;
        }
        Some((Ok(_), None)) => {
            tracing::info!(
                ?source,
                "the root of a client certificate was retired during its handshake"
            );
            return None;
        }
    };
    let cluster = identity
        .as_ref()
        .map(|identity: &Arc<(PeerIdentity, i64)>| identity.0.cluster);
    let Some(place) = waiting.seated(cluster) else {
        tracing::info!(?source, cluster = ?cluster, "too many connections: this one is closed");
        return None;
    };
    let retired = root.as_ref().map(|root| authority.ends_of(root).connections);
    let until = Box::pin(async move {
        match retired {
            None => tokio::time::sleep(ANONYMOUS_WITHIN).await,
            Some(retired) => {
                retired.cancelled().await;
                // For the session to say why.
                tokio::time::sleep(RETIRED_WITHIN).await;
            }
        }
    });
    Some(Connection {
        stream,
        peer: Peer {
            source,
            identity,
            root,
        },
        until,
        _place: place,
    })
}
