//! The hub's certificate authority: who is who in the fleet.
//!
//! One root, kept by a [`KeyStore`]. It certifies the hub's own port and the cluster agents; a certificate request
//! contributes a public key and nothing else. Client certificates carry `clientAuth` alone and a SPIFFE id, the
//! hub's `serverAuth` alone and host names: neither can stand in for the other.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use roadstead_authz::PeerIdentity;
use roadstead_contract::fleet::CaPin;
use roadstead_domain::{Clock, ClusterId, Random, TenantId};
use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use zeroize::Zeroizing;

/// Life of a cluster agent's certificate (protocol.md §3 rule 10).
pub const CLIENT_LIFE: Duration = Duration::from_secs(72 * 3_600);
/// Life of the certificate of the hub's port; made anew at each start and at half its life.
pub const SERVER_LIFE: Duration = Duration::from_secs(30 * 24 * 3_600);
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);
/// How far clocks may be apart (protocol.md §4).
const SKEW: Duration = Duration::from_secs(300);

/// Why the authority cannot work.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("the authority's key cannot be kept: {0}")]
    Store(#[from] io::Error),
    #[error("the authority's certificate or key is not usable: {0}")]
    Authority(String),
    #[error("a certificate request may hold a public key and nothing else: {0}")]
    Request(&'static str),
    #[error("the certificate is of no cluster agent of this hub: {0}")]
    Foreign(&'static str),
}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> Self {
        Self::Authority(error.to_string())
    }
}

/// The authority at rest. `Debug` shows no key.
#[derive(Clone)]
pub struct StoredAuthority {
    pub certificate_pem: String,
    pub key_pem: Zeroizing<String>,
}

impl fmt::Debug for StoredAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredAuthority(…)")
    }
}

/// Keeps the authority.
pub trait KeyStore {
    /// What was saved; `None` at first.
    ///
    /// # Errors
    /// It cannot be read.
    fn load(&self) -> io::Result<Option<StoredAuthority>>;
    /// Keeps it for good.
    ///
    /// # Errors
    /// It cannot be written.
    fn save(&self, authority: &StoredAuthority) -> io::Result<()>;
}

/// Two files in a folder: `ca.pem`, and `ca-key.pem` that only its owner reads.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl KeyStore for Folder {
    fn load(&self) -> io::Result<Option<StoredAuthority>> {
        let key_pem = match fs::read_to_string(self.0.join("ca-key.pem")) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // The certificate is written first: a key without one is damage, not a first start.
        let certificate_pem = fs::read_to_string(self.0.join("ca.pem"))?;
        Ok(Some(StoredAuthority {
            certificate_pem,
            key_pem,
        }))
    }

    fn save(&self, authority: &StoredAuthority) -> io::Result<()> {
        let write = |name: &str, text: &str, mode: u32| {
            let fresh = self.0.join(format!("{name}.new"));
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, self.0.join(name))
        };
        write("ca.pem", &authority.certificate_pem, 0o644)?;
        write("ca-key.pem", &authority.key_pem, 0o600)?;
        fs::File::open(&self.0)?.sync_all()
    }
}

/// The certificate authority of one hub.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_der: Vec<u8>,
    trust_domain: String,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    client_life: Duration,
}

/// A certificate that was just signed.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Leaf, then root; DER.
    pub chain: Vec<Vec<u8>>,
    /// Lower-case hex.
    pub serial: String,
    /// Seconds since the Unix epoch.
    pub not_before: i64,
    pub not_after: i64,
}

/// A certificate of the hub's port with its key.
pub(crate) struct ServerCertificate {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key_der: Vec<u8>,
}

/// The public key of a checked certificate request.
#[derive(Debug)]
pub(crate) struct CheckedRequest(CertificateSigningRequestParams);

impl Authority {
    /// Loads the authority from `keys`, or makes it there.
    ///
    /// # Errors
    /// See [`PkiError`].
    pub fn open(
        keys: &dyn KeyStore,
        trust_domain: &str,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Self, PkiError> {
        let stored = match keys.load()? {
            Some(stored) => stored,
            None => {
                let fresh = Self::generate(trust_domain, &*clock, &*random)?;
                keys.save(&fresh)?;
                fresh
            }
        };
        let key = KeyPair::from_pem(&stored.key_pem)?;
        let issuer = Issuer::from_ca_cert_pem(&stored.certificate_pem, key)?;
        let (_, root) = x509_parser::pem::parse_x509_pem(stored.certificate_pem.as_bytes())
            .map_err(|error| PkiError::Authority(error.to_string()))?;
        Ok(Self {
            issuer,
            root_der: root.contents,
            trust_domain: trust_domain.to_owned(),
            clock,
            random,
            client_life: CLIENT_LIFE,
        })
    }

    /// For tests and simulations: cluster agents' certificates live this long.
    #[must_use]
    pub fn with_client_life(mut self, life: Duration) -> Self {
        self.client_life = life;
        self
    }

    fn generate(
        trust_domain: &str,
        clock: &dyn Clock,
        random: &dyn Random,
    ) -> Result<StoredAuthority, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&format!("Roadstead {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(SerialNumber::from_slice(&serial(random)));
        live(&mut params, clock, ROOT_LIFE);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(StoredAuthority {
            certificate_pem: certificate.pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
        })
    }

    /// What join tokens carry.
    ///
    /// # Errors
    /// The root does not parse.
    pub fn pin(&self) -> Result<CaPin, PkiError> {
        let (_, root) = X509Certificate::from_der(&self.root_der)
            .map_err(|error| PkiError::Authority(error.to_string()))?;
        Ok(CaPin::of_spki(root.public_key().raw))
    }

    #[must_use]
    pub fn root_der(&self) -> &[u8] {
        &self.root_der
    }

    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    /// A certificate for the hub's port under these host names and addresses.
    pub(crate) fn server(&self, names: &[String]) -> Result<ServerCertificate, PkiError> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = name("Roadstead hub");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial(&*self.random)));
        live(&mut params, &*self.clock, SERVER_LIFE);
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(ServerCertificate {
            chain: vec![leaf.der().to_vec(), self.root_der.clone()],
            key_der: key.serialize_der(),
        })
    }

    /// A cluster agent's certificate: the hub decides everything but the key.
    pub(crate) fn sign(
        &self,
        request: CheckedRequest,
        tenant: TenantId,
        cluster: ClusterId,
    ) -> Result<Issued, PkiError> {
        let mut request = request.0;
        let serial = serial(&*self.random);
        let uri = format!("spiffe://{}/tenant/{tenant}/cluster/{cluster}", self.trust_domain);
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&cluster.to_string());
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let (not_before, not_after) = live(&mut params, &*self.clock, self.client_life);
        request.params = params;
        let leaf = request.signed_by(&self.issuer)?;
        Ok(Issued {
            chain: vec![leaf.der().to_vec(), self.root_der.clone()],
            serial: hex::encode(serial),
            not_before,
            not_after,
        })
    }

    /// Who a verified client certificate is, and until when (seconds since the Unix epoch).
    pub(crate) fn peer(&self, der: &[u8]) -> Result<(PeerIdentity, i64), PkiError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| PkiError::Foreign("it does not parse"))?;
        let san = certificate
            .subject_alternative_name()
            .map_err(|_| PkiError::Foreign("its names do not parse"))?;
        let names = san
            .map(|san| san.value.general_names.as_slice())
            .unwrap_or_default();
        let [GeneralName::URI(uri)] = names else {
            return Err(PkiError::Foreign("expected exactly one name, a SPIFFE id"));
        };
        let (tenant, cluster) = uri
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.strip_prefix(self.trust_domain.as_str()))
            .and_then(|rest| rest.strip_prefix("/tenant/"))
            .and_then(|rest| rest.split_once("/cluster/"))
            .ok_or(PkiError::Foreign("another trust domain, or no cluster"))?;
        let wrong = |_| PkiError::Foreign("ids that this hub does not give");
        let tenant = tenant.parse().map_err(wrong)?;
        let cluster = cluster.parse().map_err(wrong)?;
        let serial = hex::encode(certificate.raw_serial());
        Ok((
            PeerIdentity {
                tenant,
                cluster,
                serial,
            },
            certificate.validity().not_after.timestamp(),
        ))
    }
}

impl CheckedRequest {
    /// Reads a PKCS#10 request, verifies that it was signed with its key, and refuses every wish (S43).
    ///
    /// # Errors
    /// [`PkiError::Request`].
    pub(crate) fn parse(der: &[u8]) -> Result<Self, PkiError> {
        let request = CertificateSigningRequestParams::from_der(&der.into())
            .map_err(|_| PkiError::Request("expected PKCS#10 (DER), signed with its own key"))?;
        let params = &request.params;
        if params.distinguished_name.iter().next().is_some() {
            return Err(PkiError::Request("it names a subject"));
        }
        if !params.subject_alt_names.is_empty() {
            return Err(PkiError::Request("it names a subject alternative name"));
        }
        if params.is_ca != IsCa::NoCa
            || !params.key_usages.is_empty()
            || !params.extended_key_usages.is_empty()
            || !params.custom_extensions.is_empty()
        {
            return Err(PkiError::Request("it asks for extensions"));
        }
        let allowed = [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ];
        if !allowed.contains(&request.public_key.algorithm()) {
            return Err(PkiError::Request(
                "expected an ECDSA (P-256, P-384) or Ed25519 key",
            ));
        }
        Ok(Self(request))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// 128 bits, positive and of full length, so that hex and DER agree (RFC 5280 §4.1.2.2).
fn serial(random: &dyn Random) -> [u8; 16] {
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    bytes
}

/// From a little before now, for `life`; as seconds since the Unix epoch.
fn live(params: &mut CertificateParams, clock: &dyn Clock, life: Duration) -> (i64, i64) {
    let now = Duration::from_millis(u64::try_from(clock.now_ms()).unwrap_or(0));
    let (from, to) = (now.saturating_sub(SKEW), now + life);
    params.not_before = (std::time::UNIX_EPOCH + from).into();
    params.not_after = (std::time::UNIX_EPOCH + to).into();
    let seconds = |at: Duration| i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    (seconds(from), seconds(to))
}
