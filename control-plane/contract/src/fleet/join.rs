//! The one-time join token: what a person copies from the hub into `helm install`.
//!
//! `rsj_<secret>_<pin>`: the secret is the hub's (it keeps a hash), the pin is the SHA-256 of the hub CA's
//! SubjectPublicKeyInfo. The cluster agent trusts no public authority: it accepts exactly the hub whose chain ends at
//! that key, so that nobody between the two can take the secret.

use super::{Digest, state_root::document_digest};
use std::{fmt, str::FromStr};

const PREFIX: &str = "rsj_";

/// SHA-256 of the SubjectPublicKeyInfo (DER) of the hub's certificate authority (compare RFC 7469 §2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaPin(pub Digest);

impl CaPin {
    /// The pin of a SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn of_spki(der: &[u8]) -> Self {
        Self(document_digest(der))
    }
}

/// A join token; `Debug` shows nothing of the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: String,
    pub pin: CaPin,
}

/// A text that is no join token. Says nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a join token (rsj_<secret>_<64 hex digits>), as the hub shows it when a cluster is created"
)]
pub struct JoinTokenError;

impl JoinToken {
    /// Joins the hub's secret with the pin of its authority.
    ///
    /// # Errors
    /// The secret is empty or has an underscore or a character outside printable ASCII.
    pub fn new(secret: String, pin: CaPin) -> Result<Self, JoinTokenError> {
        let plain = |c: u8| c.is_ascii_graphic() && c != b'_';
        if secret.is_empty() || !secret.bytes().all(plain) {
            return Err(JoinTokenError);
        }
        Ok(Self { secret, pin })
    }

    /// The part that the hub verifies; never to be logged.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        &self.secret
    }

    /// The token as people copy it; never to be logged.
    #[must_use]
    pub fn expose(&self) -> String {
        format!("{PREFIX}{}_{}", self.secret, self.pin.0.to_hex())
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;
    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let (secret, pin) = text
            .trim()
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('_'))
            .ok_or(JoinTokenError)?;
        let pin = Digest::from_hex(pin).map_err(|_| JoinTokenError)?;
        Self::new(secret.to_owned(), CaPin(pin))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

impl Drop for JoinToken {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.secret);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_hides_its_secret() {
        let token = JoinToken::new("abc123".to_owned(), CaPin::of_spki(b"key")).unwrap();
        assert_eq!(token.expose().parse::<JoinToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains("abc123"));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "rsj_", "rsj_a", "rsj_a_b", "rsj__00", "x_a_b"] {
            assert!(text.parse::<JoinToken>().is_err(), "{text}");
        }
    }
}
