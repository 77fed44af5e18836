//! Opaque secrets that people and programs present: made, recognised, compared.
//!
//! `rst_` + 256 random bits in base62 + checksum (tenancy.md §2). The prefix lets secret scanners find a leaked one,
//! the checksum refuses a typing error without a query, and only the SHA-256 is kept: a secret of 256 random bits
//! needs no slow hash.

use roadstead_domain::{Error, Random};
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 256 bits in base62: 62^43 > 2^256 > 62^42.
const SECRET_LEN: usize = 43;
/// 32 bits in base62: 62^6 > 2^32 > 62^5.
const CHECKSUM_LEN: usize = 6;

/// What a secret is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// An API token.
    ApiToken,
    /// A join token, with which a cluster agent enrols once.
    JoinToken,
}

impl SecretKind {
    /// Stands before the secret. A join token is completed by the fleet's edge, prefix and CA pin included
    /// (`roadstead_contract::fleet::JoinToken`): here it is the secret part alone.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::ApiToken => "rst_",
            Self::JoinToken => "",
        }
    }

    /// Makes the checksums of the kinds differ, so that one kind never passes for another.
    const fn salt(self) -> &'static str {
        match self {
            Self::ApiToken => "api",
            Self::JoinToken => "join",
        }
    }

    const fn refusal(self) -> &'static str {
        match self {
            Self::ApiToken => {
                "the API token is not valid; it may have expired or been revoked: issue a new one"
            }
            Self::JoinToken => {
                "the join token is not valid; it works once and for at most an hour: make a new one for the cluster"
            }
        }
    }

    /// The one answer to every bad secret of this kind, whatever is wrong with it.
    #[must_use]
    pub fn refused(self) -> Error {
        Error::unauthenticated(self.refusal())
    }
}

/// A new secret and the hash to keep.
#[must_use]
pub fn mint(kind: SecretKind, random: &dyn Random) -> (SecretString, [u8; 32]) {
    let mut bytes = [0; 32];
    random.fill(&mut bytes);
    let mut text = kind.prefix().to_owned();
    text.push_str(&base62(&bytes, SECRET_LEN));
    text.push_str(&checksum(kind, &text));
    let hash = Sha256::digest(text.as_bytes()).into();
    (text.into(), hash)
}

/// A secret that somebody has presented: well-formed, not yet known to be good. Keeps the hash alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Presented {
    kind: SecretKind,
    hash: [u8; 32],
}

impl std::fmt::Debug for Presented {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Presented({:?})", self.kind)
    }
}

impl Presented {
    /// Reads `text`.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] with the kind's one sentence when prefix, length, alphabet or checksum are wrong.
    pub fn parse(kind: SecretKind, text: &str) -> Result<Self, Error> {
        let prefix = kind.prefix();
        let formed = text.len() == prefix.len() + SECRET_LEN + CHECKSUM_LEN
            && text.starts_with(prefix)
            && text.as_bytes()[prefix.len()..]
                .iter()
                .all(u8::is_ascii_alphanumeric);
        if !formed {
            return Err(kind.refused());
        }
        let (body, sum) = text.split_at(prefix.len() + SECRET_LEN);
        if checksum(kind, body) != sum {
            return Err(kind.refused());
        }
        let hash = Sha256::digest(text.as_bytes()).into();
        Ok(Self { kind, hash })
    }

    /// SHA-256 of the secret: how it is found.
    #[must_use]
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    #[must_use]
    pub fn kind(&self) -> SecretKind {
        self.kind
    }

    /// Compares with a kept hash in constant time.
    #[must_use]
    pub fn matches(&self, kept: &[u8; 32]) -> bool {
        self.hash.ct_eq(kept).into()
    }
}

fn checksum(kind: SecretKind, body: &str) -> String {
    let digest = Sha256::new()
        .chain_update(kind.salt())
        .chain_update(body)
        .finalize();
    base62(&digest[..4], CHECKSUM_LEN)
}

/// The big-endian number in `bytes`, in base62, with leading zeros up to `width`.
fn base62(bytes: &[u8], width: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0_u32;
        for byte in &mut number {
            let value = remainder * 256 + u32::from(*byte);
            *byte =
                u8::try_from(value / 62).expect("the remainder is below 62, so the quotient is below 256");
            remainder = value % 62;
        }
        *digit = ALPHABET[remainder as usize];
    }
    String::from_utf8(digits).expect("the alphabet is ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;
    use roadstead_domain::SeededRandom;
    use secrecy::ExposeSecret as _;

    #[test]
    fn a_minted_secret_is_recognised_and_every_changed_character_is_not() {
        let (secret, hash) = mint(SecretKind::ApiToken, &SeededRandom::new(1));
        let text = secret.expose_secret();
        let presented = Presented::parse(SecretKind::ApiToken, text).expect("well-formed");
        assert!(presented.matches(&hash));
        for at in 0..text.len() {
            let mut changed = text.as_bytes().to_vec();
            changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(changed).expect("ascii");
            assert!(Presented::parse(SecretKind::ApiToken, &changed).is_err(), "{at}");
        }
        assert!(Presented::parse(SecretKind::JoinToken, text).is_err());
        assert!(Presented::parse(SecretKind::JoinToken, &text[4..]).is_err());
        assert!(Presented::parse(SecretKind::ApiToken, "").is_err());
        assert!(Presented::parse(SecretKind::ApiToken, &"ä".repeat(30)).is_err());
    }

    #[test]
    fn the_largest_number_fits() {
        assert_eq!(base62(&[0; 32], SECRET_LEN), "0".repeat(43));
        assert_eq!(base62(&[0xff; 4], CHECKSUM_LEN), "4gfFC3");
        assert_eq!(base62(&[0xff; 32], SECRET_LEN).len(), 43);
    }

    #[test]
    fn s62_a_presented_secret_is_not_printed() {
        let (secret, _) = mint(SecretKind::JoinToken, &SeededRandom::new(2));
        let presented = Presented::parse(SecretKind::JoinToken, secret.expose_secret()).expect("well-formed");
        assert_eq!(format!("{presented:?}"), "Presented(JoinToken)");
        assert!(!format!("{secret:?}").contains(secret.expose_secret()));
    }
}
