//! A client that says whatever a test wants, with a certificate or without.

use crate::{
    PATIENCE,
    hub::{Hub, Truth},
    install_crypto,
};
use roadstead_contract::fleet::{
    ClusterFrame, EnrolRequest, EnrolResponse, Hello, HubFrame, PROTOCOL_MAX, PROTOCOL_MIN, cluster_frame,
    enrol_request::Proof, enrolment_client::EnrolmentClient, hub_frame, sync_client::SyncClient,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// A key with its certificate chain; DER.
#[derive(Clone)]
pub struct Credentials {
    pub key: Vec<u8>,
    pub chain: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

/// TLS as the client is to do it.
#[must_use]
pub fn tls(
    root: &[u8],
    credentials: Option<&Credentials>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    install_crypto();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(root.to_vec())).expect("a root");
    let builder = ClientConfig::builder_with_protocol_versions(&[version]).with_root_certificates(roots);
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(credentials) => {
            let chain = credentials
                .chain
                .iter()
                .cloned()
                .map(CertificateDer::from)
                .collect();
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(credentials.key.clone()));
            builder.with_client_auth_cert(chain, key).expect("credentials")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A connection, made again for a call when it is lost.
///
/// # Errors
/// The hub, or TLS, refuses.
pub async fn channel(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    dialled(address, tls, usize::MAX).await
}

/// A connection that is made so many times at most.
async fn dialled(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    mut times: usize,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: http::Uri| {
        let tls = (times > 0).then(|| tls.clone());
        times = times.saturating_sub(1);
        async move {
            let tls = tls.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset))?;
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::from(address.ip());
            let stream = TlsConnector::from(tls).connect(name, stream).await?;
            Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://hub")
        .connect_with_connector(connector)
        .await
}

/// A connection without TLS.
///
/// # Errors
/// The hub refuses.
pub async fn plaintext(address: SocketAddr) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: http::Uri| async move {
        TcpStream::connect(address)
            .await
            .map(hyper_util::rt::TokioIo::new)
    });
    Endpoint::from_static("http://hub")
        .connect_with_connector(connector)
        .await
}

/// A certificate request with these parameters, and its key; DER.
#[must_use]
pub fn request(params: &rcgen::CertificateParams) -> (Vec<u8>, Vec<u8>) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = params.serialize_request(&key).expect("a request");
    (csr.der().to_vec(), key.serialize_der())
}

/// As [`request`], with the key as DER and as PEM.
#[must_use]
pub fn request_pem(params: &rcgen::CertificateParams) -> (Vec<u8>, (Vec<u8>, String)) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = params.serialize_request(&key).expect("a request");
    (csr.der().to_vec(), (key.serialize_der(), key.serialize_pem()))
}

/// Parameters that wish for nothing.
#[must_use]
pub fn modest() -> rcgen::CertificateParams {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

/// Asks for a certificate.
///
/// # Errors
/// The hub refuses.
pub async fn enrol<S: Truth>(hub: &Hub<S>, secret: &str, csr: Vec<u8>) -> Result<EnrolResponse, Status> {
    enrol_at(hub.address, &hub.authority.root_der(), secret, csr).await
}

/// The same at a hub that is known by its address and its root alone.
///
/// # Errors
/// The hub refuses.
pub async fn enrol_at(
    address: SocketAddr,
    root: &[u8],
    secret: &str,
    csr: Vec<u8>,
) -> Result<EnrolResponse, Status> {
    let tls = tls(root, None, &rustls::version::TLS13);
    let channel = channel(address, tls).await.expect("a connection");
    let request = EnrolRequest {
        proof: Some(Proof::Token(secret.to_owned())),
        csr,
        version: "0.1.0".to_owned(),
    };
    EnrolmentClient::new(channel)
        .enrol(request)
        .await
        .map(tonic::Response::into_inner)
}

/// Enrols cluster `n` and gives its credentials.
pub async fn credentials<S: Truth>(hub: &Hub<S>, n: u64) -> Credentials {
    let secret = hub.store.secret(n).await;
    let (csr, key) = request(&modest());
    let answer = enrol(hub, &secret, csr).await.expect("the hub enrols");
    Credentials {
        key,
        chain: answer.certificate.expect("a certificate").chain,
    }
}

/// A connection with credentials.
///
/// # Errors
/// The hub, or TLS, refuses.
pub async fn connect<S: Truth>(
    hub: &Hub<S>,
    credentials: &Credentials,
) -> Result<Channel, tonic::transport::Error> {
    channel(hub.address, mutual(hub, credentials)).await
}

/// As [`connect`], and never made again: what comes of it comes of one handshake.
///
/// # Errors
/// The hub, or TLS, refuses.
pub async fn connect_once<S: Truth>(
    hub: &Hub<S>,
    credentials: &Credentials,
) -> Result<Channel, tonic::transport::Error> {
    dialled(hub.address, mutual(hub, credentials), 1).await
}

fn mutual<S: Truth>(hub: &Hub<S>, credentials: &Credentials) -> Arc<ClientConfig> {
    let root = hub.authority.root_der();
    tls(&root, Some(credentials), &rustls::version::TLS13)
}

/// A session in which the test speaks for the cluster agent.
#[derive(Debug)]
pub struct RawSession {
    up: mpsc::Sender<ClusterFrame>,
    down: Streaming<HubFrame>,
}

/// The usual Hello of an empty inbox.
#[must_use]
pub fn hello(cursor: u64) -> Hello {
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        version: "0.1.0".to_owned(),
        capabilities: Vec::new(),
        instance_id: "raw-instance".to_owned(),
        incarnation: "raw-incarnation".to_owned(),
        cursor,
        state_root: vec![0; 32],
        held: None,
    }
}

impl RawSession {
    /// Opens a stream and says `first`.
    ///
    /// # Errors
    /// The hub refuses the stream.
    pub async fn open(channel: Channel, first: cluster_frame::Body) -> Result<Self, Status> {
        let (up, outgoing) = mpsc::channel(64);
        up.send(ClusterFrame { body: Some(first) }).await.expect("room");
        let down = SyncClient::new(channel)
            .session(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        Ok(Self { up, down })
    }

    /// Says something; whether anybody hears it shows in what comes back.
    pub async fn say(&self, body: cluster_frame::Body) {
        let _ = self.up.send(ClusterFrame { body: Some(body) }).await;
    }

    /// The next frame.
    ///
    /// # Errors
    /// How the hub ended the stream; `Ok(None)` is an end without a reason.
    pub async fn next(&mut self) -> Result<Option<hub_frame::Body>, Status> {
        let frame = timeout(PATIENCE, self.down.message())
            .await
            .expect("the hub answers in time")?;
        Ok(frame.and_then(|frame| frame.body))
    }

    /// Reads until the stream ends, and says how.
    pub async fn end(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("the stream ended"),
                Err(status) => return status,
            }
        }
    }
}
