//! Somebody in the middle who holds the keys of both sides, and repeats, swaps, holds back and drops frames.
//!
//! TLS keeps anybody else from doing so on a real network; here it shows that a message said twice changes nothing,
//! and that a lost one costs time and nothing else (protocol.md, its first paragraph).

use super::keys::Keys;
use crate::simulated::{PORT, Seeded, SimulatedClock, SimulatedListener};
use roadstead_contract::fleet::{
    BlobChunk, ClusterFrame, GetBlobRequest, HubFrame, bulk_client::BulkClient, bulk_server,
    sync_client::SyncClient, sync_server,
};
use roadstead_domain::Clock as _;
use roadstead_fleet::Listen as _;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject as _,
    },
    time_provider::TimeProvider,
};
use std::{io, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{DuplexStream, copy_bidirectional},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};

/// Frames between two tasks.
const ROOM: usize = 64;
/// A frame that is held back goes on after this time at the latest.
const HELD: Duration = Duration::from_millis(300);

/// One relay, for one cluster.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    /// Where the cluster agent keeps its identity.
    pub(super) folder: PathBuf,
    pub(super) keys: Keys,
    pub(super) hubs: Vec<String>,
    pub(super) random: Arc<Seeded>,
}

#[derive(Debug)]
struct SimulatedTime;

impl TimeProvider for SimulatedTime {
    fn current_time(&self) -> Option<UnixTime> {
        let now = u64::try_from(SimulatedClock.now_ms()).expect("after 1970");
        Some(UnixTime::since_unix_epoch(Duration::from_millis(now)))
    }
}

impl Relay {
    /// Serves until the host is killed.
    pub(super) async fn serve(self) -> turmoil::Result {
        let acceptor = TlsAcceptor::from(self.server_config());
        let mut listener = SimulatedListener::bind().await?;
        let (ready, connections) = mpsc::channel::<io::Result<DuplexStream>>(ROOM);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, ready) = (acceptor.clone(), ready.clone());
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await?;
                    let (mut near, far) = tokio::io::duplex(64 * 1024);
                    let _ = ready.send(Ok(far)).await;
                    copy_bidirectional(&mut stream, &mut near).await
                });
            }
        });
        let relay = Arc::new(self);
        Server::builder()
            .add_service(sync_server::SyncServer::from_arc(relay.clone()))
            .add_service(bulk_server::BulkServer::from_arc(relay))
            .serve_with_incoming(ReceiverStream::new(connections))
            .await?;
        Ok(())
    }

    /// TLS as the hub would do it, for whoever trusts the hub's authority.
    fn server_config(&self) -> Arc<ServerConfig> {
        let (certificate, key) = self.keys.certify("hub");
        let mut config = ServerConfig::builder_with_details(
            Arc::new(aws_lc_rs::default_provider()),
            Arc::new(SimulatedTime),
        )
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate)],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key)),
        )
        .expect("a certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// TLS as the cluster agent would do it, with its own identity.
    fn client_config(&self) -> Result<Arc<ClientConfig>, Status> {
        let unknown = |_| Status::unavailable("the cluster has not enrolled yet");
        let text = std::fs::read(self.folder.join("identity.json")).map_err(unknown)?;
        let identity: serde_json::Value = serde_json::from_slice(&text).expect("an identity");
        let certificates = |field: &str| -> Vec<CertificateDer<'static>> {
            let texts = identity[field].as_array().expect("certificates").iter();
            texts
                .map(|text| CertificateDer::from(unhex(text.as_str().expect("hex"))))
                .collect()
        };
        let mut roots = RootCertStore::empty();
        for root in certificates("roots") {
            roots.add(root).expect("a root");
        }
        let key = identity["key"].as_str().expect("a key");
        let mut config = ClientConfig::builder_with_details(
            Arc::new(aws_lc_rs::default_provider()),
            Arc::new(SimulatedTime),
        )
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(
            certificates("chain"),
            PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key"),
        )
        .expect("an identity");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// A connection to one of the hubs, in the cluster's name.
    async fn dial(&self) -> Result<Channel, Status> {
        let tls = self.client_config()?;
        let hub = self.hubs[self.random.below(self.hubs.len() as u64) as usize].clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let (tls, hub) = (tls.clone(), hub.clone());
            async move {
                let stream = turmoil::net::TcpStream::connect((hub.as_str(), PORT)).await?;
                let name = ServerName::try_from("hub").expect("a name");
                let stream = TlsConnector::from(tls).connect(name, stream).await?;
                Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        Endpoint::from_static("http://hub")
            .connect_timeout(Duration::from_secs(5))
            .connect_with_connector(connector)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Passes frames on, the first as it is, later ones as chance has it.
async fn meddle<T: Clone>(mut from: Streaming<T>, to: mpsc::Sender<Result<T, Status>>, random: Arc<Seeded>) {
    let mut first = true;
    let mut held: Option<T> = None;
    loop {
        let next = match &held {
            None => from.message().await,
            Some(_) => match timeout(HELD, from.message()).await {
                Ok(next) => next,
                Err(_) => {
                    if send(&to, held.take()).await.is_err() {
                        return;
                    }
                    continue;
                }
            },
        };
        let frame = match next {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(status) => {
                let _ = to.send(Err(status)).await;
                return;
            }
        };
        let fate = if std::mem::take(&mut first) {
            100
        } else {
            random.below(100)
        };
        let sent = match fate {
            0..6 => Ok(()),
            6..16 => match send(&to, Some(frame.clone())).await {
                Ok(()) => send(&to, Some(frame)).await,
                gone => gone,
            },
            16..28 if held.is_none() => {
                held = Some(frame);
                Ok(())
            }
            _ => send(&to, Some(frame)).await,
        };
        // What was held back comes after the frame that overtook it, at times twice.
        let after = match (sent, fate) {
            (Ok(()), 16..28) => Ok(()),
            (Ok(()), _) => send(&to, held.take()).await,
            (gone, _) => gone,
        };
        if after.is_err() {
            return;
        }
    }
}

async fn send<T>(to: &mpsc::Sender<Result<T, Status>>, frame: Option<T>) -> Result<(), ()> {
    match frame {
        Some(frame) => to.send(Ok(frame)).await.map_err(|_| ()),
        None => Ok(()),
    }
}

#[tonic::async_trait]
impl sync_server::Sync for Relay {
    type SessionStream = ReceiverStream<Result<HubFrame, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<ClusterFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let channel = self.dial().await?;
        let (up, mut ups) = mpsc::channel(ROOM);
        let (to_hub, outgoing) = mpsc::channel(ROOM);
        tokio::spawn(meddle(request.into_inner(), up, self.random.clone()));
        tokio::spawn(async move {
            // A stream that broke is one that ended, for the hub.
            while let Some(Ok(frame)) = ups.recv().await {
                if to_hub.send(frame).await.is_err() {
                    return;
                }
            }
        });
        let frames = SyncClient::new(channel)
            .session(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        let (down, answers) = mpsc::channel(ROOM);
        tokio::spawn(meddle(frames, down, self.random.clone()));
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

#[tonic::async_trait]
impl bulk_server::Bulk for Relay {
    type GetBlobStream = Streaming<BlobChunk>;

    async fn get_blob(
        &self,
        request: Request<GetBlobRequest>,
    ) -> Result<Response<Self::GetBlobStream>, Status> {
        let mut bulk = BulkClient::new(self.dial().await?);
        let chunks = bulk.get_blob(request.into_inner()).await?.into_inner();
        Ok(Response::new(chunks))
    }
}
