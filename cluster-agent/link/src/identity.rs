//! Who this cluster agent is: its key, its certificate, and the authorities it accepts for its hub.
//!
//! One file, replaced as a whole (write, sync, rename), so that key and certificate never come apart; readable by its
//! owner alone. The key is made here and never leaves.

use crate::{Clock, LinkError, Random, clock::between, tls::spki_pin};
use roadstead_contract::{
    control::SecretText,
    fleet::{Certificate, JoinToken, TrustBundle, document_digest},
};
use serde::{Deserialize, Serialize};
use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

const FILE: &str = "identity.json";
/// Beside an identity of a version that did not remember join tokens: the hash of the one that it was first found with, or
/// nothing. In a file of its own, so that the version before still reads the identity.
const FOUND: &str = "join-token-found";
/// Join tokens and pins that are remembered, so that they are refused.
const REMEMBERED: usize = 8;
/// Generations that one bundle may go on by. A rotation takes three; a number that no hub reaches would keep every later
/// bundle out.
pub(crate) const MOST_AHEAD: u64 = 1_000;

/// Why there is no identity to work with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{path} cannot be {act}: {error}")]
    File {
        path: String,
        act: &'static str,
        error: io::Error,
    },
    #[error("{path} is not an identity: {detail}. Restore it, or remove it and join again")]
    Content { path: String, detail: String },
    #[error("a key cannot be made: {0}")]
    Key(String),
    #[error("the hub's answer is not an identity: {0}")]
    Answer(String),
}

/// Key, certificate chain and trust. `Debug` shows no key.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// PKCS#8, PEM.
    key: SecretText,
    /// Leaf first, DER in hex.
    chain: Vec<String>,
    roots: Vec<String>,
    /// Of the bundle that the roots came with: it never goes back. Left out while it is 0, so that a cluster agent of the
    /// version before reads the file.
    #[serde(default, skip_serializing_if = "is_zero")]
    trust_generation: u64,
    /// SHA-256 of the join tokens that were used here, and pins of roots that are trusted no more (hexadecimal): neither
    /// brings another identity. A join token lies in a file that is read at each start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    used_tokens: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dropped_pins: Vec<String>,
    /// What [`FOUND`] holds.
    #[serde(skip)]
    found_token: Option<String>,
    pub trust_domain: String,
    /// Ids that the hub assigned.
    pub tenant: String,
    pub cluster: String,
    /// Seconds since the Unix epoch.
    pub not_before: i64,
    pub not_after: i64,
}

/// A new key with a request for its certificate. The request names nothing: the hub decides the identity.
pub(crate) struct Request {
    pub(crate) key: SecretText,
    pub(crate) csr: Vec<u8>,
}

impl Request {
    pub(crate) fn generate() -> Result<Self, IdentityError> {
        let wrong = |error: rcgen::Error| IdentityError::Key(error.to_string());
        let key = rcgen::KeyPair::generate().map_err(wrong)?;
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(wrong)?;
        Ok(Self {
            key: SecretText::new(key.serialize_pem()),
            csr: csr.der().to_vec(),
        })
    }
}

impl Identity {
    /// The identity kept in `folder`; `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read or is none.
    pub fn load(folder: &Path) -> Result<Option<Self>, IdentityError> {
        let path = folder.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file(&path, "read", error)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| IdentityError::Content {
                path: path.display().to_string(),
                detail: error.to_string(),
            })
    }

    /// Whatever join token lies there when an identity of a version that remembered none is first loaded has most likely
    /// brought it: it is taken for used. One that is given later is not.
    pub(crate) fn remember_found(mut self, folder: &Path, token: Option<&JoinToken>) -> Self {
        if !self.used_tokens.is_empty() {
            return self;
        }
        let path = folder.join(FOUND);
        let found = match fs::read_to_string(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let found = token.map(hash).unwrap_or_default();
                // Until it can be kept each start does the same.
                if let Err(error) = replace(folder, FOUND, found.as_bytes()) {
                    tracing::warn!(%error, file = %path.display(), "the join token cannot be remembered as used");
                }
                found
            }
            // It may have been this one.
            Err(error) => {
                tracing::warn!(%error, file = %path.display(), "join tokens cannot be told from used ones");
                token.map(hash).unwrap_or_default()
            }
        };
        self.found_token = Some(found);
        self
    }

    /// As [`Self::remember_found`] for an identity whose time is over: what is remembered counts. Where nothing is, it is
    /// the token that lies there now that is to bring the next identity.
    pub(crate) fn recall_found(self, folder: &Path, token: Option<&JoinToken>) -> Self {
        match folder.join(FOUND).try_exists() {
            Ok(false) => self,
            Ok(true) | Err(_) => self.remember_found(folder, token),
        }
    }

    /// Keeps it in `folder`; on disk when this returns.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        let path = folder.join(FILE);
        let text = serde_json::to_vec(self)
            .map(Zeroizing::new)
            .map_err(|error| IdentityError::Content {
                path: path.display().to_string(),
                detail: error.to_string(),
            })?;
        replace(folder, FILE, &text).map_err(|error| file(&path, "written", error))
    }

    /// What the hub's answer makes of a request.
    pub(crate) fn new(
        key: SecretText,
        certificate: &Certificate,
        trust: &TrustBundle,
        (tenant, cluster): (String, String),
        token: &JoinToken,
    ) -> Result<Self, IdentityError> {
        let wrong = |what: &str| IdentityError::Answer(what.to_owned());
        if trust.roots.is_empty() {
            return Err(wrong("expected at least one root"));
        }
        check(certificate)?;
        Ok(Self {
            key,
            chain: certificate.chain.iter().map(hex::encode).collect(),
            roots: trust.roots.iter().map(hex::encode).collect(),
            trust_generation: trust.generation,
            used_tokens: vec![hash(token)],
            dropped_pins: Vec::new(),
            found_token: None,
            trust_domain: trust.trust_domain.clone(),
            tenant,
            cluster,
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        })
    }

    /// The same identity with the authorities of this bundle, which was judged ([`crate::trust`]).
    pub(crate) fn trusting(&self, trust: &TrustBundle) -> Self {
        let roots: Vec<_> = trust.roots.iter().map(hex::encode).collect();
        Self {
            dropped_pins: self.dropped_with(&roots),
            roots,
            trust_generation: trust.generation,
            ..self.clone()
        }
    }

    /// Whether this join token may bring another identity for this cluster.
    pub(crate) fn admits(&self, token: &JoinToken) -> Result<(), LinkError> {
        let hash = hash(token);
        let why = if self.used_tokens.contains(&hash) || self.found_token.as_ref() == Some(&hash) {
            "it was used here before"
        } else if self.dropped_pins.contains(&token.pin.0.to_hex()) {
            "it is of a root that the hub has retired"
        } else {
            return Ok(());
        };
        Err(LinkError::NotAgain(why.to_owned()))
    }

    /// What a join token has brought, in the place of this identity. It must be of the same cluster, and of the same hub
    /// or of a later time of it: whoever has had the key of an older root could bring that back.
    pub(crate) fn rejoined(&self, fresh: Self) -> Result<Self, LinkError> {
        let same = (&self.tenant, &self.cluster, &self.trust_domain);
        let (kept, found) = (self.trust_generation, fresh.trust_generation);
        let why = if same != (&fresh.tenant, &fresh.cluster, &fresh.trust_domain) {
            "it is for another cluster, or of another hub".to_owned()
        } else if found < kept || found - kept > MOST_AHEAD {
            format!("expected roots of generation {kept} or a little later, found {found}")
        } else if found == kept && !fresh.has_roots_of(self) {
            format!("expected the roots that are kept of generation {kept}, found others")
        } else {
            let found = self.found_token.iter().filter(|hash| !hash.is_empty()).cloned();
            let kept = found.chain(self.used_tokens.clone());
            let mut used_tokens: Vec<_> = kept.chain(fresh.used_tokens.clone()).collect();
            forget(&mut used_tokens);
            return Ok(Self {
                used_tokens,
                dropped_pins: self.dropped_with(&fresh.roots),
                ..fresh
            });
        };
        Err(LinkError::NotAgain(why))
    }

    fn has_roots_of(&self, other: &Self) -> bool {
        self.roots.len() == other.roots.len() && self.roots.iter().all(|root| other.roots.contains(root))
    }

    /// The pins that are not to be trusted any more, once these roots take the place of the kept ones.
    fn dropped_with(&self, roots: &[String]) -> Vec<String> {
        let pin = |root: &String| Some(spki_pin(&hex::decode(root).ok()?)?.0.to_hex());
        let trusted: Vec<_> = roots.iter().filter_map(pin).collect();
        let mut pins = self.dropped_pins.clone();
        for gone in self.roots.iter().filter_map(pin) {
            if !trusted.contains(&gone) && !pins.contains(&gone) {
                pins.push(gone);
            }
        }
        forget(&mut pins);
        pins
    }

    /// The same identity with the authorities of another.
    pub(crate) fn trusting_as(self, other: &Self) -> Self {
        Self {
            roots: other.roots.clone(),
            trust_generation: other.trust_generation,
            dropped_pins: other.dropped_pins.clone(),
            ..self
        }
    }

    /// The same identity with another key and certificate.
    pub(crate) fn renewed(&self, key: SecretText, certificate: &Certificate) -> Result<Self, IdentityError> {
        check(certificate)?;
        Ok(Self {
            key,
            chain: certificate.chain.iter().map(hex::encode).collect(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            ..self.clone()
        })
    }

    /// The certificate's serial number in hexadecimal, as the hub's records name it; empty where the certificate cannot
    /// be read.
    #[must_use]
    pub fn serial(&self) -> String {
        let chain = self.chain_der();
        let leaf = chain.first().and_then(|der| X509Certificate::from_der(der).ok());
        leaf.map(|(_, leaf)| hex::encode(leaf.raw_serial()))
            .unwrap_or_default()
    }

    /// Of the bundle whose roots are kept.
    #[must_use]
    pub fn trust_generation(&self) -> u64 {
        self.trust_generation
    }

    /// How many roots are kept.
    #[must_use]
    pub fn roots(&self) -> usize {
        self.roots.len()
    }

    pub(crate) fn key_pem(&self) -> &[u8] {
        self.key.expose().as_bytes()
    }

    /// DER of each certificate; what does not decode is left out and fails where it is used.
    pub(crate) fn chain_der(&self) -> Vec<Vec<u8>> {
        self.chain
            .iter()
            .filter_map(|text| hex::decode(text).ok())
            .collect()
    }

    pub(crate) fn roots_der(&self) -> Vec<Vec<u8>> {
        self.roots
            .iter()
            .filter_map(|text| hex::decode(text).ok())
            .collect()
    }

    /// `true` when the certificate is worth nothing any more.
    pub(crate) fn expired(&self, clock: &dyn Clock) -> bool {
        clock.now_ms() >= self.not_after.saturating_mul(1_000)
    }

    /// How long from now until it is renewed: at a random 40 to 60 % of its life (protocol.md §3 rule 10).
    pub(crate) fn renew_in(&self, clock: &dyn Clock, random: &dyn Random) -> Duration {
        let life = Duration::from_secs(self.not_after.abs_diff(self.not_before));
        let age_ms = clock
            .now_ms()
            .saturating_sub(self.not_before.saturating_mul(1_000));
        renew_after(
            life,
            Duration::from_millis(u64::try_from(age_ms).unwrap_or(0)),
            random,
        )
    }
}

fn renew_after(life: Duration, age: Duration, random: &dyn Random) -> Duration {
    between(random, life.mul_f64(0.4), life.mul_f64(0.6)).saturating_sub(age)
}

/// Replaces a file as a whole; on disk when this returns.
fn replace(folder: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    let fresh = folder.join(format!("{name}.new"));
    let mut options = fs::OpenOptions::new();
    // A file left by a crash may have other rights: start anew.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = options.write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&fresh, folder.join(name))?;
    fs::File::open(folder)?.sync_all()
}

/// Of a join token, to know it again.
fn hash(token: &JoinToken) -> String {
    document_digest(token.expose_secret().as_bytes()).to_hex()
}

/// The newest stay.
fn forget(remembered: &mut Vec<String>) {
    remembered.drain(..remembered.len().saturating_sub(REMEMBERED));
}

/// As serde asks.
fn is_zero(generation: &u64) -> bool {
    *generation == 0
}

fn check(certificate: &Certificate) -> Result<(), IdentityError> {
    let wrong = |what: &str| IdentityError::Answer(what.to_owned());
    if certificate.chain.is_empty() {
        return Err(wrong("expected a certificate"));
    }
    if certificate.not_after <= certificate.not_before {
        return Err(wrong("the certificate ends before it begins"));
    }
    Ok(())
}

fn file(path: &Path, act: &'static str, error: io::Error) -> IdentityError {
    IdentityError::File {
        path: path.display().to_string(),
        act,
        error,
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("tenant", &self.tenant)
            .field("cluster", &self.cluster)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use roadstead_contract::fleet::{CaPin, document_digest};

    #[derive(Debug)]
    struct Given(u64);

    impl Random for Given {
        fn next(&self) -> u64 {
            self.0
        }
    }

    #[test]
    fn s49_a_certificate_is_renewed_at_40_to_60_percent_of_its_life() {
        let (hour, life) = (Duration::from_secs(3_600), Duration::from_secs(72 * 3_600));
        let after =
            |random: &dyn Random, age| renew_after(life, age, random).as_secs_f64() / life.as_secs_f64();
        let drawn: Vec<f64> = (0..500)
            .map(|_| after(&crate::clock::OsRandom, Duration::ZERO))
            .collect();
        assert!(drawn.iter().all(|at| (0.4..=0.6).contains(at)), "{drawn:?}");
        assert!(
            drawn.iter().any(|at| *at < 0.45) && drawn.iter().any(|at| *at > 0.55),
            "{drawn:?}"
        );
        // What has passed counts, and what is overdue is done now.
        assert!((after(&Given(0), 7 * hour) - (0.4 - 7.0 / 72.0)).abs() < 1e-6);
        assert!(after(&Given(0), 71 * hour) == 0.0);
    }

    pub(crate) fn token(secret: &str) -> JoinToken {
        JoinToken::new(secret.to_owned(), CaPin(document_digest(b"a root"))).unwrap()
    }

    /// As a version wrote it that remembered no join tokens.
    pub(crate) fn from_before(folder: &Path) -> Identity {
        let kept = serde_json::json!({
            "key": "a key", "chain": [], "roots": [], "trust_domain": "test", "tenant": "t", "cluster": "c",
            "not_before": 0, "not_after": 1,
        });
        fs::write(folder.join(FILE), kept.to_string()).unwrap();
        Identity::load(folder).unwrap().unwrap()
    }

    #[test]
    fn s50_the_join_token_of_an_identity_from_before_brings_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (first, later) = (token("first"), token("later"));
        let identity = from_before(folder.path());
        identity.admits(&first).unwrap();
        let identity = identity.remember_found(folder.path(), Some(&first));
        identity.admits(&first).unwrap_err();
        identity.admits(&later).unwrap();
        // The version before still reads what is kept, and what it writes forgets nothing.
        identity.save(folder.path()).unwrap();
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(!text.contains("found") && !text.contains("used_tokens"), "{text}");
        let again = from_before(folder.path()).remember_found(folder.path(), Some(&later));
        again.admits(&first).unwrap_err();
        again.admits(&later).unwrap();
        let fresh = Identity {
            used_tokens: vec![hash(&later)],
            ..again.clone()
        };
        let joined = again.rejoined(fresh).unwrap();
        assert_eq!(joined.used_tokens, [hash(&first), hash(&later)]);
    }

    #[test]
    fn a_join_token_that_is_given_after_the_first_start_is_good() {
        let folder = tempfile::tempdir().unwrap();
        let identity = from_before(folder.path()).remember_found(folder.path(), None);
        identity.admits(&token("later")).unwrap();
        let again = from_before(folder.path()).remember_found(folder.path(), Some(&token("later")));
        again.admits(&token("later")).unwrap();
    }
}
