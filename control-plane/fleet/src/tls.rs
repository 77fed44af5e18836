//! TLS of the fleet's port: 1.3 only, client certificates of this hub's authority or none (enrolment), no resumption.

use crate::{
    pki::{Authority, PkiError, SERVER_LIFE},
    registry::Registry,
    roots::{Ring, Root, RootId},
    store::{Event, What},
};
use parking_lot::Mutex;
use roadstead_domain::Clock;
use roadstead_service::fleet as service_fleet;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::sync::mpsc::{self, error::TrySendError};

/// The configuration of the port. Certificates that TLS refuses are told to `refused`, and counted beside it when that is
/// full.
pub(crate) fn server_config(
    authority: Arc<Authority>,
    names: Vec<String>,
    refused: (mpsc::Sender<Event>, Arc<Registry>),
) -> Result<Arc<ServerConfig>, PkiError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let wrong = |error: &dyn fmt::Display| PkiError::Authority(error.to_string());
    let verifier = Arc::new(Recorder {
        schemes: provider.signature_verification_algorithms,
        authority: authority.clone(),
        refused: refused.0,
        counted: refused.1,
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

pub(crate) fn unix_time(clock: &dyn Clock) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(clock.now_ms()).unwrap_or(0)))
}

/// The hub's own certificate, made anew at half its life and when the roots change.
struct Certificates {
    authority: Arc<Authority>,
    names: Vec<String>,
    clock: Arc<dyn Clock>,
    provider: Arc<CryptoProvider>,
    /// With the moment to make the next, and the generation of roots that it is of.
    current: Mutex<Option<(Arc<CertifiedKey>, i64, u64)>>,
}

impl Certificates {
    fn current(&self) -> Result<Arc<CertifiedKey>, PkiError> {
        let mut current = self.current.lock();
        let now = self.clock.now_ms();
        let roots = self.authority.loaded().ring.generation;
        if let Some((key, renew_at, of)) = &*current
            && now < *renew_at
            && roots == *of
        {
            return Ok(key.clone());
        }
        let (fresh, of) = self.authority.server(&self.names)?;
        let chain = fresh.chain.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(fresh.key_der));
        let key = CertifiedKey::from_der(chain, key, &self.provider)
            .map_err(|error| PkiError::Authority(error.to_string()))?;
        let key = Arc::new(key);
        let half = i64::try_from((SERVER_LIFE / 2).as_millis()).unwrap_or(i64::MAX);
        *current = Some((key.clone(), now.saturating_add(half), of));
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

/// Client certificates by root. Each is asked by itself: whose signature it is decides how long a connection may live.
pub(crate) struct Verifiers {
    trusted: Vec<(RootId, Arc<dyn ClientCertVerifier>)>,
    retired: Vec<(RootId, bool, Arc<dyn ClientCertVerifier>)>,
}

impl Verifiers {
    pub(crate) fn new(ring: &Ring) -> Result<Self, PkiError> {
        let trusted = ring.trusted().into_iter();
        let trusted = trusted.map(|root| Ok((root.id(), verifier(root)?)));
        let retired = ring.retired.iter();
        let retired =
            retired.map(|retired| Ok((retired.root.id(), retired.compromised, verifier(&retired.root)?)));
        Ok(Self {
            trusted: trusted.collect::<Result<_, PkiError>>()?,
            retired: retired.collect::<Result<_, PkiError>>()?,
        })
    }

    /// The trusted root that the certificate is of.
    pub(crate) fn trusted_root(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Option<RootId> {
        let good = |of: &Arc<dyn ClientCertVerifier>| of.verify_client_cert(leaf, intermediates, now).is_ok();
        let found = self.trusted.iter().find(|(_, verifier)| good(verifier));
        found.map(|(id, _)| id.clone())
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let mut refused = Error::General("no root is trusted".to_owned());
        for (_, verifier) in &self.trusted {
            match verifier.verify_client_cert(leaf, intermediates, now) {
                Ok(verified) => return Ok(verified),
                // What a certificate of this root lacks says more than that it is not of another.
                Err(error) if is_foreign(&refused) => refused = error,
                Err(_) => {}
            }
        }
        Err(refused)
    }

    /// The retired root that the certificate is of, and whether somebody else may have its key.
    fn retired_root(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Option<(&RootId, bool)> {
        let good = |of: &Arc<dyn ClientCertVerifier>| of.verify_client_cert(leaf, intermediates, now).is_ok();
        let found = self.retired.iter().find(|(_, _, verifier)| good(verifier));
        found.map(|(id, compromised, _)| (id, *compromised))
    }
}

fn is_foreign(error: &Error) -> bool {
    matches!(
        error,
        Error::General(_) | Error::InvalidCertificate(CertificateError::UnknownIssuer)
    )
}

fn verifier(root: &Root) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
    let wrong = |error: &dyn fmt::Display| PkiError::Authority(error.to_string());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(root.der().to_vec()))
        .map_err(|error| wrong(&error))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| wrong(&error))
}

/// Verifies client certificates by the roots as they are now, and tells of those that it refuses.
struct Recorder {
    schemes: WebPkiSupportedAlgorithms,
    authority: Arc<Authority>,
    refused: mpsc::Sender<Event>,
    /// Where those are counted that wait for no place in `refused`.
    counted: Arc<Registry>,
}

impl Recorder {
    /// Whose certificate it is, if a root that is trusted signed it and it was good at its time: only then does the audit
    /// log of a tenant hear of it. What a retired root has signed is believed by nobody, whoever has its key: it is told
    /// to the platform, with what it says.
    fn refusal(
        &self,
        verifiers: &Verifiers,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        error: &Error,
    ) -> Event {
        let mut event = Event {
            peer: None,
            source: None,
            what: What::CertificateRefused,
            detail: error.to_string(),
        };
        let Ok((peer, not_after)) = self.authority.peer(end_entity) else {
            return event;
        };
        let Some(then) = u64::try_from(not_after).ok().and_then(|end| end.checked_sub(1)) else {
            return event;
        };
        let then = UnixTime::since_unix_epoch(Duration::from_secs(then));
        let known = verifiers.trusted_root(end_entity, intermediates, then).is_some();
        match verifiers.retired_root(end_entity, intermediates, then) {
            _ if known => event.peer = Some(peer),
            Some((root, compromised)) => {
                let why = match compromised {
                    true => "was retired because somebody else may have its key",
                    false => "is retired: the cluster must join anew",
                };
                event.detail = format!(
                    "a certificate of root {}, which {why}; it names cluster {} of tenant {}",
                    root.short(),
                    peer.cluster,
                    peer.tenant
                );
            }
            None => {}
        }
        event
    }
}

impl ClientCertVerifier for Recorder {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: cluster agents have one certificate, and which roots there are changes.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let loaded = self.authority.loaded();
        let verified = loaded.verifiers().verify(end_entity, intermediates, now);
        if let Err(error) = &verified {
            let event = self.refusal(loaded.verifiers(), end_entity, intermediates, error);
            service_fleet::refused_at_the_door();
            // Full: somebody tries many. One record says how many there were. Closed: the hub ends, and writes what was
            // counted last.
            if let Err(TrySendError::Full(event) | TrySendError::Closed(event)) = self.refused.try_send(event)
            {
                self.counted.unwritten(1, &event);
            }
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 is required".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.supported_schemes()
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Folder;
    use roadstead_domain::{OsRandom, SystemClock};

    #[test]
    fn s89_refusals_that_find_no_place_are_counted_and_one_record_says_how_many() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Folder(folder.path().to_owned());
        let authority = Authority::open(&folder, "test", Arc::new(SystemClock), Arc::new(OsRandom)).unwrap();
        let (refused, mut waiting) = mpsc::channel(2);
        let counted = Arc::new(Registry::default());
        let recorder = Recorder {
            schemes: aws_lc_rs::default_provider().signature_verification_algorithms,
            authority: Arc::new(authority),
            refused,
            counted: counted.clone(),
        };
        let stranger = rcgen::generate_simple_self_signed(vec!["stranger".to_owned()]).unwrap();
        let refuse = || {
            let leaf = stranger.cert.der();
            recorder
                .verify_client_cert(leaf, &[], UnixTime::now())
                .unwrap_err()
        };
        for _ in 0..100 {
            refuse();
        }
        assert!(waiting.try_recv().is_ok() && waiting.try_recv().is_ok() && waiting.try_recv().is_err());
        let written = counted.counted(false);
        assert_eq!(written.len(), 1);
        assert_eq!((written[0].0, written[0].1.what), (98, What::CertificateRefused));
        // The last ones too, when the hub ends and nobody takes them any more.
        drop(waiting);
        refuse();
        assert_eq!(counted.counted(true).first().map(|(events, _)| *events), Some(1));
    }
}
