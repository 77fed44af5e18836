//! The token with which the hub calls an engine, and the public keys that engines check it with.
//!
//! A caller's own token ends at the hub (S69): the engine gets this one instead, good for one engine and five minutes.
//! It goes wrong when the engine does not know the key: keys travel in the Welcome of a session, so a new key must be
//! announced (as the current one, with the old among the retired) before tokens of the old one are gone.

use chrono::{DateTime, Utc};
use jsonwebtoken::{
    Algorithm, EncodingKey, Header,
    jwk::{Jwk, JwkSet, ThumbprintHash},
};
use roadstead_contract::call::{Act, Claims, TOKEN_SECONDS};
use std::fmt;

/// What is wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("expected an Ed25519 private key as PKCS #8 PEM")]
    // Without its cause: the errors of the reader may repeat lines of the key.
    NotEd25519,
    #[error("the key's public half could not be written as a JWK")]
    Jwk(#[source] jsonwebtoken::errors::Error),
}

/// The hub's signing key for calls to engines, and every public key that engines should accept.
pub struct EngineKeys {
    issuer: String,
    kid: String,
    signing: EncodingKey,
    public: JwkSet,
}

impl fmt::Debug for EngineKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { issuer, kid, .. } = self;
        f.debug_struct("EngineKeys")
            .field("issuer", issuer)
            .field("kid", kid)
            .finish_non_exhaustive()
    }
}

/// One call to one engine.
#[derive(Clone, Copy, Debug)]
pub struct Grant<'a> {
    /// The verified caller.
    pub subject: &'a str,
    /// Who makes the call for the subject.
    pub actor: &'a str,
    /// The agent's uid.
    pub audience: &'a str,
    /// Whether the subject may decide approvals of that agent.
    pub approve: bool,
    /// Unique for each token.
    pub jti: &'a str,
}

impl EngineKeys {
    /// A new private key, PKCS #8 PEM: to be kept by the composition root in a file that only the hub reads.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn generate_pem() -> Result<String, KeyError> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(|_| KeyError::NotEd25519)?;
        Ok(pair.serialize_pem())
    }

    /// Signs with `current`; the public halves of `current` and `retired` are announced. `issuer` names the hub and
    /// must stay the same over restarts.
    ///
    /// # Errors
    /// Where a key is not an Ed25519 key in PKCS #8 PEM.
    pub fn new(issuer: String, current: &str, retired: &[String]) -> Result<Self, KeyError> {
        let (signing, jwk) = load(current)?;
        let kid = jwk.common.key_id.clone().unwrap_or_default();
        let mut keys = vec![jwk];
        for pem in retired {
            keys.push(load(pem)?.1);
        }
        Ok(Self {
            issuer,
            kid,
            signing,
            public: JwkSet { keys },
        })
    }

    /// `iss` of every token.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The public keys as a JWK Set (RFC 7517), for the Welcome and [`roadstead_contract::control::Trust`].
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        serde_json::to_value(&self.public).unwrap_or_default()
    }

    /// A token for one call that begins at `now`.
    ///
    /// # Errors
    /// Where the key does not sign.
    pub fn mint(&self, grant: Grant<'_>, now: DateTime<Utc>) -> Result<String, jsonwebtoken::errors::Error> {
        let iat = now.timestamp();
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: grant.subject.to_owned(),
            aud: grant.audience.to_owned(),
            act: Act {
                sub: grant.actor.to_owned(),
            },
            approve: grant.approve,
            jti: grant.jti.to_owned(),
            iat,
            exp: iat + TOKEN_SECONDS,
        };
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, &claims, &self.signing)
    }
}

/// The key to sign with, and its public half with its thumbprint as id.
fn load(pem: &str) -> Result<(EncodingKey, Jwk), KeyError> {
    let pair = rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(pem, &rcgen::PKCS_ED25519)
        .map_err(|_| KeyError::NotEd25519)?;
    let public = jsonwebtoken::DecodingKey::from_ed_der(pair.public_key_raw());
    let mut jwk = Jwk::from_decoding_key(&public, Some(Algorithm::EdDSA)).map_err(KeyError::Jwk)?;
    jwk.common.key_id = Some(jwk.thumbprint(ThumbprintHash::SHA256).map_err(KeyError::Jwk)?);
    jwk.common.public_key_use = Some(jsonwebtoken::jwk::PublicKeyUse::Signature);
    Ok((EncodingKey::from_ed_der(&pair.serialize_der()), jwk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};

    const NOW: i64 = 1_800_000_000;

    fn check(
        keys: &EngineKeys,
        jwks: &JwkSet,
        audience: &str,
    ) -> Result<Claims, jsonwebtoken::errors::Error> {
        let grant = Grant {
            subject: "user:ada",
            actor: "hub",
            audience: "agt_1",
            approve: false,
            jti: "j1",
        };
        let token = keys
            .mint(grant, DateTime::from_timestamp(NOW, 0).unwrap())
            .unwrap();
        let kid = decode_header(&token)?.kid.unwrap();
        let key = DecodingKey::from_jwk(
            jwks.find(&kid)
                .ok_or(jsonwebtoken::errors::ErrorKind::InvalidToken)?,
        )?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.validate_exp = false;
        validation.set_audience(&[audience]);
        validation.set_issuer(&["https://hub.example"]);
        Ok(decode::<Claims>(&token, &key, &validation)?.claims)
    }

    fn keys(pem: &str, retired: &[String]) -> EngineKeys {
        EngineKeys::new("https://hub.example".to_owned(), pem, retired).unwrap()
    }

    #[test]
    fn s88_a_token_is_good_for_one_engine_and_five_minutes() {
        let keys = keys(&EngineKeys::generate_pem().unwrap(), &[]);
        let jwks: JwkSet = serde_json::from_value(keys.jwks()).unwrap();
        let claims = check(&keys, &jwks, "agt_1").unwrap();
        assert_eq!(claims.sub, "user:ada");
        assert_eq!(claims.act.sub, "hub");
        assert_eq!((claims.iat, claims.exp), (NOW, NOW + 300));
        check(&keys, &jwks, "agt_2").unwrap_err();
    }

    #[test]
    fn a_retired_key_is_announced_and_a_foreign_one_is_not() {
        let (old, new) = (
            EngineKeys::generate_pem().unwrap(),
            EngineKeys::generate_pem().unwrap(),
        );
        let both = keys(&new, std::slice::from_ref(&old));
        let jwks: JwkSet = serde_json::from_value(both.jwks()).unwrap();
        check(&keys(&old, &[]), &jwks, "agt_1").unwrap();
        check(&both, &jwks, "agt_1").unwrap();
        check(&keys(&EngineKeys::generate_pem().unwrap(), &[]), &jwks, "agt_1").unwrap_err();
    }

    #[test]
    fn the_announced_keys_hold_no_private_half() {
        let pem = EngineKeys::generate_pem().unwrap();
        let jwks = keys(&pem, &[]).jwks();
        let fields: Vec<_> = jwks["keys"][0].as_object().unwrap().keys().cloned().collect();
        assert!(!fields.contains(&"d".to_owned()), "{fields:?}");
        assert_eq!(jwks["keys"][0]["crv"], "Ed25519");
        assert!(!format!("{:?}", keys(&pem, &[])).contains("PRIVATE"));
    }

    #[test]
    fn another_kind_of_key_is_refused() {
        let ec = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .unwrap()
            .serialize_pem();
        EngineKeys::new("i".to_owned(), &ec, &[]).unwrap_err();
        EngineKeys::new("i".to_owned(), "nonsense", &[]).unwrap_err();
    }
}
