//! TLS as the cluster agent uses it: 1.3 only, its own authorities only, no session resumption (each connection
//! proves the certificate anew).

use crate::{Clock, Identity, clock::TlsTime};
use roadstead_contract::fleet::CaPin;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use std::sync::Arc;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// For every call after enrolment: the hub must be certified by a root of the bundle, and this side shows its own
/// certificate.
pub(crate) fn mutual(identity: &Identity, clock: Arc<dyn Clock>) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    for root in identity.roots_der() {
        roots.add(CertificateDer::from(root))?;
    }
    let chain = identity
        .chain_der()
        .into_iter()
        .map(CertificateDer::from)
        .collect();
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem())
        .map_err(|_| Error::General("the identity's key is no PKCS#8 key".to_owned()))?;
    let mut config = builder(clock)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    finish(&mut config);
    Ok(Arc::new(config))
}

/// For enrolment: the hub must show the authority whose key has this pin, and be certified by it.
pub(crate) fn pinned(pin: CaPin, clock: Arc<dyn Clock>) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(PinVerifier { pin, provider });
    let mut config = builder(clock)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    finish(&mut config);
    Ok(Arc::new(config))
}

fn builder(
    clock: Arc<dyn Clock>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ClientConfig::builder_with_details(provider, Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
}

fn finish(config: &mut ClientConfig) {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
}

/// Accepts a chain that ends at the authority with the pinned key, and nothing else.
#[derive(Debug)]
struct PinVerifier {
    pin: CaPin,
    provider: Arc<CryptoProvider>,
}

impl PinVerifier {
    fn root<'a>(&self, chain: &'a [CertificateDer<'a>]) -> Option<&'a CertificateDer<'a>> {
        chain
            .iter()
            .find(|certificate| spki_pin(certificate).is_some_and(|pin| pin == self.pin))
    }
}

pub(crate) fn spki_pin(certificate: &[u8]) -> Option<CaPin> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(CaPin::of_spki(parsed.public_key().raw))
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = self.root(intermediates).ok_or_else(|| {
            Error::General(
                "the hub does not show the authority that the join token pins: another hub answers, or its root was \
                 replaced since; then make a new join token for this cluster"
                    .to_owned(),
            )
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
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
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
