//! Connections from cluster agents: accept, admit, TLS.

use crate::{
    door::{ANONYMOUS_WITHIN, Door, Place, Waiting},
    pki::{Authority, Loaded},
    roots::RootId,
    store::StoreError,
};
use async_trait::async_trait;
use roadstead_authz::PeerIdentity;
use rustls::{ServerConfig, server::Acceptor};
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
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tonic::{Request, Status, transport::server::Connected};

/// For the first message of a handshake, which comes without being asked for. Whoever says nothing has no turn.
const HELLO_WITHIN: Duration = Duration::from_secs(3);
/// Two round trips of a slow network; whoever says nothing more holds a place for no longer.
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
        let (tls, authority, ready) = (tls.clone(), authority.clone(), ready.clone());
        handshakes.spawn(async move {
            match shake_hands(stream, tls, &authority, source, waiting).await {
                Ok(Some(connection)) => {
                    // The server has ended: so has the connection.
                    let _ = ready.send(Ok(connection)).await;
                }
                Ok(None) => {}
                Err(error) => tracing::info!(?source, %error, "a TLS handshake failed"),
            }
        });
    }
}

/// The connection waits for its turn once it has begun to speak: one that is silent takes nothing but its place among
/// those of its address.
async fn shake_hands(
    stream: Box<dyn Io>,
    tls: Arc<ServerConfig>,
    authority: &Authority,
    source: Option<IpAddr>,
    waiting: Waiting,
) -> io::Result<Option<Connection>> {
    let until = Instant::now() + TURN_WITHIN + HANDSHAKE_WITHIN;
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let begun = timeout(HELLO_WITHIN, hello).await??;
    let Ok(Some(_admitted)) = timeout(TURN_WITHIN, waiting.admitted()).await else {
        tracing::info!(?source, "a connection had no turn in time");
        return Ok(None);
    };
    let roots = authority.loaded();
    let until = until.min(Instant::now() + HANDSHAKE_WITHIN);
    let stream = timeout_at(until, begun.into_stream(tls)).await??;
    Ok(identify(stream, (authority, &roots), source, waiting))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Folder, tls};
    use roadstead_domain::{OsRandom, SystemClock};
    use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer};
    use tokio::io::DuplexStream;
    use tokio_rustls::TlsConnector;
    use tokio_util::task::AbortOnDropHandle;

    /// Connections that the test makes.
    #[derive(Debug)]
    struct Given(mpsc::Receiver<(DuplexStream, SocketAddr)>);

    #[async_trait]
    impl Listen for Given {
        async fn accept(&mut self) -> io::Result<(Box<dyn Io>, Option<SocketAddr>)> {
            match self.0.recv().await {
                Some((stream, address)) => Ok((Box::new(stream), Some(address))),
                None => std::future::pending().await,
            }
        }
    }

    /// The time is simulated: it goes on when nothing else does.
    #[tokio::test(start_paused = true)]
    async fn s51_silent_connections_from_many_addresses_keep_no_other_out() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Folder(folder.path().to_owned());
        let authority = Authority::open(&keys, "test", Arc::new(SystemClock), Arc::new(OsRandom)).unwrap();
        let authority = Arc::new(authority);
        let (refused, _refusals) = mpsc::channel(1);
        let names = vec!["hub.test".to_owned()];
        let config = tls::server_config(authority.clone(), names, (refused, Arc::default())).unwrap();
        let (given, listener) = mpsc::channel(1);
        let (ready, mut connections) = mpsc::channel(1);
        let door = Door::new(200.0);
        let accepting = accept(Given(listener), config, authority.clone(), door, ready);
        let _accepting = AbortOnDropHandle::new(tokio::spawn(accepting));
        let connect = async |last: u8| {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            given
                .send((theirs, SocketAddr::from(([192, 0, 2, last], 1))))
                .await
                .unwrap();
            ours
        };
        let mut silent = Vec::new();
        for n in 0..320_u16 {
            silent.push(connect(u8::try_from(n % 20).unwrap()).await);
        }
        let ours = connect(99).await;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority.root_der())).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let shaken = TlsConnector::from(Arc::new(config)).connect("hub.test".try_into().unwrap(), ours);
        let both = async { tokio::join!(shaken, connections.recv()) };
        let (stream, connection) = timeout(HELLO_WITHIN / 2, both).await.expect("a turn at once");
        stream.unwrap();
        assert!(connection.unwrap().unwrap().peer.identity.is_none());
        // Those that say nothing are closed.
        for mut silent in silent {
            let closed = tokio::io::AsyncReadExt::read(&mut silent, &mut [0]).await;
            assert!(matches!(closed, Ok(0)), "{closed:?}");
        }
    }
}
