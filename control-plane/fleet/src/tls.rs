//! TLS of the fleet's port: 1.3 only, client certificates of this hub's authority or none (enrolment), no resumption.

use crate::{
    pki::{Authority, PkiError, SERVER_LIFE},
    store::{Event, What},
};
use parking_lot::Mutex;
use roadstead_authz::PeerIdentity;
use roadstead_domain::Clock;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// The configuration of the port. Certificates that TLS refuses are told to `refused`.
pub(crate) fn server_config(
    authority: Arc<Authority>,
    names: Vec<String>,
    refused: mpsc::Sender<Event>,
) -> Result<Arc<ServerConfig>, PkiError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let wrong = |error: &dyn fmt::Display| PkiError::Authority(error.to_string());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(authority.root_der().to_vec()))
        .map_err(|error| wrong(&error))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(&error))?;
    let verifier = Arc::new(Recorder {
        inner: verifier,
        authority: authority.clone(),
        refused,
    });
    let clock = authority.clock();
    let certificates = Certificates {
        authority,
        names,
        clock: clock.clone(),
        provider: provider.clone(),
        current: Mutex::new(None),
    };
    certificates.current()?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(Time(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would bring back a certificate without checking it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Time(Arc<dyn Clock>);

impl rustls::time_provider::TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(&*self.0))
    }
}

fn unix_time(clock: &dyn Clock) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(clock.now_ms()).unwrap_or(0)))
}

/// The hub's own certificate, made anew at half its life.
struct Certificates {
    authority: Arc<Authority>,
    names: Vec<String>,
    clock: Arc<dyn Clock>,
    provider: Arc<CryptoProvider>,
    current: Mutex<Option<(Arc<CertifiedKey>, i64)>>,
}

impl Certificates {
    fn current(&self) -> Result<Arc<CertifiedKey>, PkiError> {
        let mut current = self.current.lock();
        let now = self.clock.now_ms();
        if let Some((key, renew_at)) = &*current
            && now < *renew_at
        {
            return Ok(key.clone());
        }
        let fresh = self.authority.server(&self.names)?;
        let chain = fresh.chain.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(fresh.key_der));
        let key = CertifiedKey::from_der(chain, key, &self.provider)
            .map_err(|error| PkiError::Authority(error.to_string()))?;
        let key = Arc::new(key);
        let half = i64::try_from((SERVER_LIFE / 2).as_millis()).unwrap_or(i64::MAX);
        *current = Some((key.clone(), now.saturating_add(half)));
        Ok(key)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self.current() {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::error!(%error, "no certificate for the fleet port");
                None
            }
        }
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// Verifies client certificates and tells of those that it refuses.
struct Recorder {
    inner: Arc<dyn ClientCertVerifier>,
    authority: Arc<Authority>,
    refused: mpsc::Sender<Event>,
}

impl Recorder {
    /// Whose certificate it is, if this authority signed it and it was good at its time: only then does the audit log
    /// of a tenant hear of it.
    fn was(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Option<PeerIdentity> {
        let (peer, not_after) = self.authority.peer(end_entity).ok()?;
        let then = u64::try_from(not_after).ok()?.checked_sub(1)?;
        let then = UnixTime::since_unix_epoch(Duration::from_secs(then));
        self.inner
            .verify_client_cert(end_entity, intermediates, then)
            .ok()?;
        Some(peer)
    }
}

impl ClientCertVerifier for Recorder {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now);
        if let Err(error) = &verified {
            let event = Event {
                peer: self.was(end_entity, intermediates),
                source: None,
                what: What::CertificateRefused,
                detail: error.to_string(),
            };
            // Full: somebody tries many; the log has enough of them.
            let _ = self.refused.try_send(event);
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}
