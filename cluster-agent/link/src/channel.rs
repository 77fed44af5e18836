//! Connections to the hub: dial, TLS, HTTP/2.

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use roadstead_contract::fleet::MAX_FRAME;
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, ServerName},
};
use std::{
    fmt::Debug,
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// Dialling, TLS and the first HTTP/2 frames together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 pings (protocol.md §3 rule 8): a dead connection is found after 30 + 10 s.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// What one stream may have on its way: four frames, or as many chunks of a body.
const STREAM_WINDOW: u32 = 4 * MAX_FRAME as u32;
/// All streams of a connection together: so large that a few stalled bodies do not stop the others.
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

/// A byte stream to the hub.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Makes byte streams to the hub.
#[async_trait]
pub trait Dial: Send + Sync + Debug {
    /// A new connection to `address` (`host:port`).
    ///
    /// # Errors
    /// The hub cannot be reached.
    async fn dial(&self, address: &str) -> io::Result<Box<dyn Io>>;
}

/// Over TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpDial;

#[async_trait]
impl Dial for TcpDial {
    async fn dial(&self, address: &str) -> io::Result<Box<dyn Io>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// A connection, and what the hub proved itself with when it was made.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    pub(crate) hub: Presented,
}

/// The hub's certificates (leaf first) and the name that they were verified for.
#[derive(Clone, Debug)]
pub(crate) struct Presented {
    pub(crate) name: ServerName<'static>,
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
}

/// Where the hub is and how to get there.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) dial: Arc<dyn Dial>,
    /// `host:port`.
    pub(crate) address: String,
}

impl Route {
    /// The name that the hub's certificate must carry: the address without its port.
    fn server_name(&self) -> io::Result<ServerName<'static>> {
        let host = self
            .address
            .rsplit_once(':')
            .map_or(self.address.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        ServerName::try_from(host).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    }

    /// A connection of its own. It is not made again by itself: when it breaks, calls on it fail.
    pub(crate) async fn connect(
        &self,
        tls: Arc<ClientConfig>,
    ) -> Result<Connection, tonic::transport::Error> {
        let route = self.clone();
        let mut once = Some(tls);
        let shown: Arc<OnceLock<Presented>> = Arc::default();
        let show = shown.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let (route, tls, show) = (route.clone(), once.take(), show.clone());
            async move {
                // tonic would dial again for the next call, without our rules for when to do so.
                let tls = tls.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset))?;
                let stream = route.dial.dial(&route.address).await?;
                let name = route.server_name()?;
                let stream = TlsConnector::from(tls).connect(name.clone(), stream).await?;
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
                let _ = show.set(Presented { name, chain });
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        // TLS is the connector's; the scheme here only says that tonic has none to add.
        let channel = Endpoint::from_static("http://hub")
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector(connector)
            .await?;
        // Without a handshake there is no channel; without certificates nothing is verified by them.
        let nothing = || Presented {
            name: ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()),
            chain: Arc::default(),
        };
        let hub = shown.get().cloned().unwrap_or_else(nothing);
        Ok(Connection { channel, hub })
    }
}
