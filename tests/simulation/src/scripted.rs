//! A hub that says whatever a test wants, with a CA of its own.

use crate::install_crypto;
use roadstead_contract::fleet::{
    CaPin, Certificate, ClusterFrame, EnrolRequest, EnrolResponse, HubFrame, JoinToken, Limits, Mode,
    PROTOCOL_MAX, TrustBundle, Welcome, cluster_frame, enrolment_server, hub_frame, sync_server,
};
use std::{net::SocketAddr, sync::Arc};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Certificate as Pem, Identity, Server, ServerTlsConfig},
};

/// Both ends of a session with a cluster agent, in the hands of the test.
#[derive(Debug)]
pub struct Script {
    pub down: mpsc::Sender<Result<HubFrame, Status>>,
    up: Streaming<ClusterFrame>,
}

/// The hub.
#[derive(Debug)]
pub struct ScriptedHub {
    pub address: SocketAddr,
    pub token: JoinToken,
    /// Its root, DER.
    pub root: Vec<u8>,
    services: Arc<Services>,
    sessions: mpsc::Receiver<Script>,
    _serving: AbortOnDropHandle<()>,
}

struct Ca {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    der: Vec<u8>,
}

struct Services {
    ca: Ca,
    sessions: Mutex<mpsc::Sender<Script>>,
}

impl ScriptedHub {
    /// Starts it on loopback.
    pub async fn start() -> Self {
        install_crypto();
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let root = params.self_signed(&key).expect("a root");
        let pin = CaPin::of_spki(&rcgen::PublicKeyData::subject_public_key_info(&key));
        let token = JoinToken::new("scripted".to_owned(), pin).expect("a token");
        let leaf_key = rcgen::KeyPair::generate().expect("a key");
        let issuer = rcgen::Issuer::new(params, key);
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        let leaf = leaf.signed_by(&leaf_key, &issuer).expect("a leaf");
        let chain = format!("{}{}", leaf.pem(), root.pem());
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(chain, leaf_key.serialize_pem()))
            .client_ca_root(Pem::from_pem(root.pem()))
            .client_auth_optional(true);
        let (sender, sessions) = mpsc::channel(4);
        let ca = Ca {
            issuer,
            der: root.der().to_vec(),
        };
        let root = ca.der.clone();
        let services = Arc::new(Services {
            ca,
            sessions: Mutex::new(sender),
        });
        let kept = services.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = Server::builder()
            .tls_config(tls)
            .expect("TLS")
            .add_service(enrolment_server::EnrolmentServer::from_arc(services.clone()))
            .add_service(sync_server::SyncServer::from_arc(services))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async move { serving.await.expect("the scripted hub serves") });
        Self {
            address,
            token,
            root,
            services: kept,
            sessions,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    /// A certificate for a cluster agent's request.
    #[must_use]
    pub fn certify(&self, csr: &[u8]) -> Certificate {
        self.services.certify(csr)
    }

    /// The next session of a cluster agent.
    pub async fn session(&mut self) -> Script {
        self.sessions.recv().await.expect("a session")
    }
}

impl Script {
    /// Says something.
    pub async fn say(&self, body: hub_frame::Body) {
        let _ = self.down.send(Ok(HubFrame { body: Some(body) })).await;
    }

    /// What the cluster agent says next.
    pub async fn hear(&mut self) -> Option<cluster_frame::Body> {
        self.up
            .message()
            .await
            .ok()
            .flatten()
            .and_then(|frame| frame.body)
    }

    /// Takes the Hello and welcomes.
    pub async fn welcome(&mut self, mode: Mode, target_revision: u64) -> roadstead_contract::fleet::Hello {
        self.welcome_beating(mode, target_revision, 60_000).await
    }

    /// As [`Self::welcome`], with a heartbeat in milliseconds.
    pub async fn welcome_beating(
        &mut self,
        mode: Mode,
        target_revision: u64,
        heartbeat_ms: u32,
    ) -> roadstead_contract::fleet::Hello {
        let Some(cluster_frame::Body::Hello(hello)) = self.hear().await else {
            panic!("expected a Hello")
        };
        let welcome = Welcome {
            epoch: 1,
            mode: mode.into(),
            target_revision,
            heartbeat_ms,
            reconnect_window_ms: 10,
            limits: Some(Limits::default()),
            trust: None,
            keys: None,
            protocol: PROTOCOL_MAX,
            reason: String::new(),
            tunnel_streams: 0,
            now_ms: 0,
        };
        self.say(hub_frame::Body::Welcome(welcome)).await;
        hello
    }
}

impl Services {
    fn certify(&self, csr: &[u8]) -> Certificate {
        let csr = rcgen::CertificateSigningRequestParams::from_der(&csr.into());
        let leaf = csr
            .expect("a request")
            .signed_by(&self.ca.issuer)
            .expect("a leaf");
        Certificate {
            chain: vec![leaf.der().to_vec()],
            not_before: 0,
            not_after: 32_503_680_000,
        }
    }
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Services")
    }
}

#[tonic::async_trait]
impl enrolment_server::Enrolment for Services {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolResponse>, Status> {
        let certificate = self.certify(&request.into_inner().csr);
        let trust = TrustBundle {
            roots: vec![self.ca.der.clone()],
            trust_domain: "scripted".to_owned(),
            generation: 0,
        };
        Ok(Response::new(EnrolResponse {
            certificate: Some(certificate),
            trust: Some(trust),
            tenant: "ten".to_owned(),
            cluster: "cls".to_owned(),
        }))
    }
}

#[tonic::async_trait]
impl sync_server::Sync for Services {
    type SessionStream = ReceiverStream<Result<HubFrame, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<ClusterFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (down, outgoing) = mpsc::channel(256);
        let script = Script {
            down,
            up: request.into_inner(),
        };
        self.sessions
            .lock()
            .await
            .send(script)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}
