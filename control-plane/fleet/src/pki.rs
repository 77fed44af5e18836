//! The hub's certificate authority: who is who in the fleet.
//!
//! One root signs, kept by a [`KeyStore`]; while it takes the place of another two are trusted (see [`crate::roots`]).
//! It certifies the hub's own port and the cluster agents; a certificate request contributes a public key and nothing
//! else. Client certificates carry `clientAuth` alone and a SPIFFE id, the
//! hub's `serverAuth` alone and host names: neither can stand in for the other.

use crate::{
    keystore::{KeyStore, StoredRoots},
    roots::{Ring, Root, RootId},
    tls::Verifiers,
};
use parking_lot::{Mutex, RwLock};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
    SerialNumber,
};
use roadstead_authz::PeerIdentity;
use roadstead_contract::fleet::CaPin;
use roadstead_domain::{Clock, ClusterId, Random, TenantId};
use rustls::pki_types::CertificateDer;
use std::{collections::BTreeMap, fmt, io, sync::Arc, time::Duration};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use zeroize::Zeroizing;

/// Life of a cluster agent's certificate (protocol.md §3 rule 10).
pub const CLIENT_LIFE: Duration = Duration::from_secs(72 * 3_600);
/// Life of the certificate of the hub's port; made anew at each start and at half its life.
pub const SERVER_LIFE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Changes of roots that a session may be behind: it looks at the newest in any case.
const CHANGES: usize = 4;
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
    #[error("the root of the certificate that asks is retired")]
    Retired,
    #[error("the certificate is of no cluster agent of this hub: {0}")]
    Foreign(&'static str),
}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> Self {
        Self::Authority(error.to_string())
    }
}

/// The certificate authority of one hub: its roots as they are now.
pub struct Authority {
    loaded: RwLock<Arc<Loaded>>,
    /// The roots have changed. No watch: that wakes its receivers in an order by chance, which no simulation repeats.
    changed: broadcast::Sender<()>,
    ends: Mutex<BTreeMap<RootId, Ends>>,
    trust_domain: String,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    client_life: Duration,
}

/// What ends with the trust in a root.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ends {
    /// The trust itself: nothing new begins.
    pub(crate) trust: CancellationToken,
    /// Whatever is under way, too: somebody else may have the root's key.
    pub(crate) connections: CancellationToken,
}

/// Roots with what was made of them.
pub(crate) struct Loaded {
    pub(crate) ring: Ring,
    signer: Issuer<'static, KeyPair>,
    /// While two roots are trusted after a switch: signs a certificate of the new root for those that know only the old.
    previous: Option<Issuer<'static, KeyPair>>,
    verifiers: Verifiers,
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
    /// Loads the roots from `keys`, or makes the first one there.
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
                let (root, key) = Self::generate_root(trust_domain, &*clock, &*random)?;
                let keys_of = BTreeMap::from([(root.id(), key)]);
                let fresh = StoredRoots {
                    ring: Ring::first(root),
                    keys: keys_of,
                };
                keys.save(&fresh)?;
                fresh
            }
        };
        let loaded = Loaded::new(&stored)?;
        Ok(Self {
            changed: broadcast::channel(CHANGES).0,
            loaded: RwLock::new(Arc::new(loaded)),
            ends: Mutex::default(),
            trust_domain: trust_domain.to_owned(),
            clock,
            random,
            client_life: CLIENT_LIFE,
        })
    }

    /// Works with these roots from now on; `false` when they are those at work. Sessions hear of it at once; those that
    /// depend on a root which is not trusted any more end.
    ///
    /// # Errors
    /// Roots that are not usable, or of an older generation: whoever brings those back would bring back what was retired.
    pub fn adopt(&self, stored: &StoredRoots) -> Result<bool, PkiError> {
        let before = self.loaded();
        let (had, found) = (before.ring.generation, stored.ring.generation);
        if stored.ring == before.ring {
            return Ok(false);
        }
        if found <= had {
            return Err(PkiError::Authority(format!(
                "expected roots of a generation after {had}, found {found}: an older copy of the folder, or a second \
                 rotation on a copy of it"
            )));
        }
        let fresh = Loaded::new(stored)?;
        let had = before.ring.trusted().into_iter().map(Root::id);
        let gone: Vec<_> = had.filter(|id| !fresh.ring.trusts(id)).collect();
        let compromised = |id: &RootId| {
            let mut retired = stored.ring.retired.iter();
            retired.any(|retired| retired.compromised && retired.root.id() == *id)
        };
        *self.loaded.write() = Arc::new(fresh);
        // Nobody listens while no session lives.
        let _ = self.changed.send(());
        let mut ends = self.ends.lock();
        for id in gone {
            let Some(end) = ends.remove(&id) else { continue };
            end.trust.cancel();
            if compromised(&id) {
                end.connections.cancel();
            }
        }
        Ok(true)
    }

    pub(crate) fn loaded(&self) -> Arc<Loaded> {
        self.loaded.read().clone()
    }

    /// The roots as they are now.
    #[must_use]
    pub fn ring(&self) -> Ring {
        self.loaded().ring.clone()
    }

    /// Yields when the roots have changed, from now on.
    pub(crate) fn changes(&self) -> broadcast::Receiver<()> {
        self.changed.subscribe()
    }

    /// What ends with the trust in that root; it has ended where the root is not trusted.
    pub(crate) fn ends_of(&self, root: &RootId) -> Ends {
        let mut ends = self.ends.lock();
        // Under the lock: a change that comes now cancels what is kept here, or is seen here.
        if !self.loaded().ring.trusts(root) {
            let ended = Ends::default();
            ended.trust.cancel();
            ended.connections.cancel();
            return ended;
        }
        ends.entry(root.clone()).or_default().clone()
    }

    /// For tests and simulations: cluster agents' certificates live this long.
    #[must_use]
    pub fn with_client_life(mut self, life: Duration) -> Self {
        self.client_life = life;
        self
    }

    /// A new root with its key (PKCS#8 PEM).
    ///
    /// # Errors
    /// No key can be made.
    pub fn generate_root(
        trust_domain: &str,
        clock: &dyn Clock,
        random: &dyn Random,
    ) -> Result<(Root, Zeroizing<String>), PkiError> {
        let serial = serial(random);
        let mut params = authority_params();
        // Each root has a name of its own: chains are built by names.
        params.distinguished_name = name(&format!("Roadstead {trust_domain} {}", hex::encode(&serial[..4])));
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        live(&mut params, clock, ROOT_LIFE);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let pem = Zeroizing::new(key.serialize_pem());
        Ok((Root::new(certificate.der().to_vec()), pem))
    }

    /// What join tokens carry: of the root that signs. After a switch the hub goes on showing a chain to the root before,
    /// so that tokens with its pin are good until they expire.
    ///
    /// # Errors
    /// The root does not parse.
    pub fn pin(&self) -> Result<CaPin, PkiError> {
        let loaded = self.loaded();
        let root = parse(loaded.ring.signer().der())?;
        Ok(CaPin::of_spki(root.public_key().raw))
    }

    /// The root that signs.
    #[must_use]
    pub fn root_der(&self) -> Vec<u8> {
        self.loaded().ring.signer().der().to_vec()
    }

    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    /// A part of `most`, by chance.
    pub(crate) fn part_of(&self, most: Duration) -> Duration {
        let mut bytes = [0; 4];
        self.random.fill(&mut bytes);
        most.mul_f64(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
    }

    /// A certificate for the hub's port under these host names and addresses, with the generation of roots that it is of.
    pub(crate) fn server(&self, names: &[String]) -> Result<(ServerCertificate, u64), PkiError> {
        let loaded = self.loaded();
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = name("Roadstead hub");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial(&*self.random)));
        live(&mut params, &*self.clock, SERVER_LIFE);
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &loaded.signer)?;
        let mut chain = vec![leaf.der().to_vec(), loaded.ring.signer().der().to_vec()];
        if let (Some(issuer), Some(previous)) = (&loaded.previous, loaded.ring.previous()) {
            chain.push(self.crossed(&loaded, issuer)?);
            chain.push(previous.der().to_vec());
        }
        let certificate = ServerCertificate {
            chain,
            key_der: key.serialize_der(),
        };
        Ok((certificate, loaded.ring.generation))
    }

    /// The new root, certified by the one before (RFC 4210 §4.4): whoever trusts only that one still finds the hub.
    fn crossed(&self, loaded: &Loaded, issuer: &Issuer<'static, KeyPair>) -> Result<Vec<u8>, PkiError> {
        let root = parse(loaded.ring.signer().der())?;
        let common = root.subject().iter_common_name().next();
        let common = common.and_then(|name| name.as_str().ok());
        let common = common.ok_or_else(|| PkiError::Authority("the root has no name".to_owned()))?;
        let mut params = authority_params();
        params.distinguished_name = name(common);
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial(&*self.random)));
        live(&mut params, &*self.clock, SERVER_LIFE);
        Ok(params.signed_by(loaded.signer.key(), issuer)?.der().to_vec())
    }

    /// The trusted root that has signed a client certificate, which TLS has accepted since `before`; `None` when that root
    /// was retired meanwhile.
    pub(crate) fn root_of(&self, leaf: &CertificateDer<'_>, before: &Arc<Loaded>) -> Option<RootId> {
        let loaded = self.loaded();
        // Roots never go back: the same before and after are the same in between, and one can only be that one.
        if Arc::ptr_eq(&loaded, before) && loaded.ring.trusted().len() == 1 {
            return Some(loaded.ring.signer().id());
        }
        let now = crate::tls::unix_time(&*self.clock);
        loaded.verifiers.trusted_root(leaf, &[], now)
    }

    /// A cluster agent's certificate: the hub decides everything but the key. `of` is the root of the certificate that
    /// asks for another; a retired one gets none of the root that signs now.
    pub(crate) fn sign(
        &self,
        request: CheckedRequest,
        tenant: TenantId,
        cluster: ClusterId,
        of: Option<&RootId>,
    ) -> Result<Issued, PkiError> {
        // The roots that decide are those that sign.
        let loaded = self.loaded();
        if of.is_some_and(|root| !loaded.ring.trusts(root)) {
            return Err(PkiError::Retired);
        }
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
        let leaf = request.signed_by(&loaded.signer)?;
        Ok(Issued {
            chain: vec![leaf.der().to_vec(), loaded.ring.signer().der().to_vec()],
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

impl Loaded {
    fn new(stored: &StoredRoots) -> Result<Self, PkiError> {
        let ring = stored.ring.clone();
        let issuer = |root: &Root| {
            let key = stored.keys.get(&root.id());
            let key =
                key.ok_or_else(|| PkiError::Authority(format!("no key of root {}", root.id().short())))?;
            issuer(root, key)
        };
        let signer = issuer(ring.signer())?;
        let previous = ring.previous().map(issuer).transpose()?;
        // Not used yet; but a key that is not there must show now, not at the switch.
        ring.next().map(issuer).transpose()?;
        Ok(Self {
            verifiers: Verifiers::new(&ring)?,
            signer,
            previous,
            ring,
        })
    }

    pub(crate) fn verifiers(&self) -> &Verifiers {
        &self.verifiers
    }
}

/// Certificate and key, which must belong together.
fn issuer(root: &Root, key: &str) -> Result<Issuer<'static, KeyPair>, PkiError> {
    // Without what the reader says: its errors may repeat lines of the key.
    let key = KeyPair::from_pem(key).map_err(|_| {
        let id = root.id();
        PkiError::Authority(format!("the key of root {} is no key in PEM", id.short()))
    })?;
    let parsed = parse(root.der())?;
    if parsed.public_key().raw != key.subject_public_key_info().as_slice() {
        let id = root.id();
        let text = format!("the key of root {} is another's", id.short());
        return Err(PkiError::Authority(text));
    }
    Ok(Issuer::from_ca_cert_der(&root.der().into(), key)?)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PkiError> {
    let parsed = X509Certificate::from_der(der);
    let (_, certificate) = parsed.map_err(|error| PkiError::Authority(error.to_string()))?;
    Ok(certificate)
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
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
