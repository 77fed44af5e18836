//! Who calls: every call is authenticated, hub or no hub (S75, S88).
//!
//! Three kinds of bearer token are known: those of in-cluster callers (by their hash), JWTs of the hub (by its keys,
//! for this agent alone), and the one of `--token-file`. A token is taken from the `Authorization` header and from
//! nowhere else. Without any of them the engine must be on loopback, and then a browser is kept out by `Host` and
//! `Origin`: a page that rebinds its name to 127.0.0.1 cannot speak to the agent.

use crate::{
    clock::Clock,
    journal::Journal,
    peers::MAX_DEPTH,
    revision::{Current, Serving},
    spent::Spent,
    tasks::Caller,
};
use http::{HeaderMap, HeaderName, header};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use parking_lot::Mutex;
use roadstead_contract::{
    call::{Claims, TOKEN_SECONDS},
    control::{BUDGET, Budget, CHAIN, DEPTH, ON_BEHALF_OF, Trust},
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::{fmt, sync::Arc};
use subtle::ConstantTimeEq as _;

/// Seconds by which the clocks of hub and cluster may differ.
const SKEW: i64 = 30;
/// Longest subject, in bytes.
const MAX_SUBJECT: usize = 512;

/// Why a call is not served. Says nothing about which tokens would be good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No token, or one that is not good.
    Unauthenticated,
    /// Whether the token is good cannot be told: the journal does not answer.
    Unavailable,
    /// Known, but it may not do this (speak for another, come from a page).
    Forbidden(&'static str),
}

/// Checks callers.
pub struct Gate {
    current: Arc<Current>,
    clock: Arc<dyn Clock>,
    mode: Mode,
    keys: Mutex<Option<Keys>>,
    spent: Spent,
}

/// Whose calls are taken beside those that a revision's trust names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nobody's.
    TrustOnly,
    /// The bearer of the token with this SHA-256.
    Token([u8; 32]),
    /// Everybody's on this machine: loopback without a token file.
    Loopback,
}

/// Whom a token stands for, and what for.
struct Known {
    subject: String,
    /// Whether it may speak for others.
    delegates: bool,
    approve: bool,
}

impl Known {
    /// Whoever runs the engine alone: nobody else could decide.
    fn local() -> Self {
        Self {
            subject: "local".to_owned(),
            delegates: false,
            approve: true,
        }
    }
}

/// The claims, with one that the hub does not make and that counts all the same where it is there.
#[derive(Deserialize)]
struct Received {
    #[serde(flatten)]
    claims: Claims,
    nbf: Option<i64>,
}

/// The hub's keys as they came with one trust.
struct Keys {
    of: Arc<Trust>,
    by_id: Vec<(String, DecodingKey)>,
}

impl Gate {
    #[must_use]
    pub fn new(current: Arc<Current>, clock: Arc<dyn Clock>, mode: Mode, journal: Journal) -> Self {
        Self {
            current,
            clock,
            mode,
            keys: Mutex::new(None),
            spent: Spent::new(journal),
        }
    }

    /// Who calls. A token of the hub is used up by this.
    ///
    /// # Errors
    /// No good token, or a header that its bearer may not send.
    pub async fn verify(&self, headers: &HeaderMap) -> Result<Caller, Denied> {
        let serving = self.current.get();
        let known = match bearer(headers)? {
            None if self.mode == Mode::Loopback => {
                no_foreign_page(headers)?;
                Known::local()
            }
            None => return Err(Denied::Unauthenticated),
            Some(token) => match self.known_caller(token, serving.as_ref()) {
                Some(known) => known,
                None => self.of_hub(token, serving.as_ref()).await?,
            },
        };
        let user = on_behalf_of(headers, known.delegates)?;
        let traceparent = one(headers, &HeaderName::from_static("traceparent"));
        Ok(Caller {
            // Who speaks for another decides nothing in that name: a model may be what speaks.
            approve: known.approve && user.is_none(),
            subject: user.unwrap_or(known.subject),
            depth: depth(headers)?,
            chain: chain(headers)?,
            budget: budget(headers)?,
            traceparent: traceparent.filter(|t| is_traceparent(t)).map(str::to_owned),
        })
    }

    /// Whose token it is, of those that are known by their hashes.
    fn known_caller(&self, token: &str, serving: Option<&Serving>) -> Option<Known> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        // Every hash is compared, in constant time each: how long it takes tells nothing.
        let mut found = None;
        if let Mode::Token(own) = &self.mode
            && bool::from(own.ct_eq(&hash))
        {
            found = Some(Known::local());
        }
        for caller in serving.iter().flat_map(|s| &s.trust.callers) {
            let mut known = [0u8; 32];
            let valid = hex::decode_to_slice(&caller.token_sha256, &mut known).is_ok();
            if valid && bool::from(known.ct_eq(&hash)) {
                found = Some(Known {
                    subject: caller.subject.clone(),
                    delegates: caller.delegates,
                    approve: caller.approve,
                });
            }
        }
        found
    }

    /// Whom the hub speaks for, in a JWT for this agent that comes for the first time.
    async fn of_hub(&self, token: &str, serving: Option<&Serving>) -> Result<Known, Denied> {
        let claims = serving.and_then(|serving| self.claims(token, serving));
        let claims = claims.ok_or(Denied::Unauthenticated)?;
        let expired = self.clock.now_ms() / 1000 - TOKEN_SECONDS - SKEW;
        match self.spent.spend(claims.iat, &claims.jti, expired).await {
            Ok(true) => Ok(Known {
                subject: claims.sub,
                delegates: false,
                approve: claims.approve,
            }),
            Ok(false) => {
                tracing::warn!("a token of the hub came a second time");
                Err(Denied::Unauthenticated)
            }
            Err(error) => {
                tracing::error!(%error, "a token of the hub cannot be judged");
                Err(Denied::Unavailable)
            }
        }
    }

    /// The claims of a JWT of the hub for this agent.
    fn claims(&self, token: &str, serving: &Serving) -> Option<Claims> {
        let issuer = serving.trust.issuer.as_ref()?;
        let head = jsonwebtoken::decode_header(token).ok()?;
        if head.alg != Algorithm::EdDSA {
            return None;
        }
        let key = self.key(&head.kid?, &serving.trust)?;
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.set_audience(&[&serving.revision.bundle.uid]);
        rules.set_issuer(&[issuer]);
        rules.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // Time is checked below, by the clock that is a parameter.
        rules.validate_exp = false;
        let Received { claims, nbf } = jsonwebtoken::decode(token, &key, &rules).ok()?.claims;
        let now = self.clock.now_ms() / 1000;
        let lives = claims.exp.checked_sub(claims.iat)?;
        let good = claims.exp > now - SKEW
            && claims.iat <= now + SKEW
            && nbf.is_none_or(|nbf| nbf <= now + SKEW)
            && (0..=TOKEN_SECONDS).contains(&lives)
            && !claims.jti.is_empty()
            && is_subject(&claims.sub);
        good.then_some(claims)
    }

    fn key(&self, id: &str, trust: &Arc<Trust>) -> Option<DecodingKey> {
        let mut slot = self.keys.lock();
        let keys = match &mut *slot {
            Some(keys) if Arc::ptr_eq(&keys.of, trust) => keys,
            slot => slot.insert(Keys {
                of: Arc::clone(trust),
                by_id: decoding_keys(trust),
            }),
        };
        keys.by_id
            .iter()
            .find(|(kid, _)| kid == id)
            .map(|(_, key)| key.clone())
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

fn decoding_keys(trust: &Trust) -> Vec<(String, DecodingKey)> {
    let set: Option<JwkSet> = trust
        .jwks
        .as_ref()
        .and_then(|jwks| serde_json::from_value(jwks.clone()).ok());
    let Some(set) = set else { return Vec::new() };
    set.keys
        .iter()
        .filter_map(|jwk| Some((jwk.common.key_id.clone()?, DecodingKey::from_jwk(jwk).ok()?)))
        .collect()
}

/// The SHA-256 of a token file's token: surrounding white space does not count.
#[must_use]
pub fn token_hash(file: &str) -> [u8; 32] {
    Sha256::digest(file.trim()).into()
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Denied> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Denied::Unauthenticated);
    }
    let value = value.to_str().map_err(|_| Denied::Unauthenticated)?;
    let (scheme, token) = value.split_once(' ').ok_or(Denied::Unauthenticated)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(Denied::Unauthenticated);
    }
    Ok(Some(token))
}

/// The user for whom the caller speaks; `None`: for itself.
fn on_behalf_of(headers: &HeaderMap, delegates: bool) -> Result<Option<String>, Denied> {
    let mut values = headers.get_all(ON_BEHALF_OF).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if !delegates {
        return Err(Denied::Forbidden("this caller may not speak for others"));
    }
    let user = value
        .to_str()
        .ok()
        .filter(|user| is_subject(user) && values.next().is_none());
    user.map(|user| Some(user.to_owned()))
        .ok_or(Denied::Forbidden("the user named by the caller is not readable"))
}

fn depth(headers: &HeaderMap) -> Result<u32, Denied> {
    let unreadable = Denied::Forbidden("the depth of the call is not readable");
    let text = single(headers, DEPTH, unreadable)?;
    text.map_or(Ok(0), |text| text.parse().map_err(|_| unreadable))
}

/// The agents that a call came through. From whomever it comes, it can only forbid.
fn chain(headers: &HeaderMap) -> Result<Vec<String>, Denied> {
    let unreadable = Denied::Forbidden("the chain of agents of the call is not readable");
    let Some(text) = single(headers, CHAIN, unreadable)? else {
        return Ok(Vec::new());
    };
    let is_uid = |uid: &str| (1..=128).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_graphic());
    let chain: Vec<String> = text.split(',').map(str::to_owned).collect();
    if chain.len() > MAX_DEPTH as usize + 1 || !chain.iter().all(|uid| is_uid(uid)) {
        return Err(unreadable);
    }
    Ok(chain)
}

/// What the calling agent left of its limits. From whomever it comes, it can only narrow.
fn budget(headers: &HeaderMap) -> Result<Option<Budget>, Denied> {
    let unreadable = Denied::Forbidden("the budget of the call is not readable");
    let text = single(headers, BUDGET, unreadable)?;
    text.map(|text| serde_json::from_str(text).map_err(|_| unreadable))
        .transpose()
}

/// A header that may come once.
fn single<'a>(headers: &'a HeaderMap, name: &str, unreadable: Denied) -> Result<Option<&'a str>, Denied> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text) if values.next().is_none() => Ok(Some(text)),
        _ => Err(unreadable),
    }
}

fn is_subject(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_SUBJECT && !text.chars().any(char::is_control)
}

/// W3C Trace Context §3.2: `00-<32 hex>-<16 hex>-<2 hex>`.
fn is_traceparent(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [2, 32, 16, 2] && text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Without tokens, only programs of this machine may call: not pages, and not names that were bent to 127.0.0.1.
fn no_foreign_page(headers: &HeaderMap) -> Result<(), Denied> {
    let host = one(headers, &header::HOST);
    if host.is_some_and(|host| !is_loopback(host)) {
        return Err(Denied::Forbidden(
            "without a token file only calls to a loopback address are served",
        ));
    }
    let origin = headers.get(header::ORIGIN);
    let own = |value: &http::HeaderValue| {
        let host = value.to_str().ok().and_then(|origin| origin.split_once("://"));
        host.is_some_and(|(_, host)| is_loopback(host))
    };
    match origin {
        Some(value) if !own(value) => Err(Denied::Forbidden("without a token file no web page is served")),
        _ => Ok(()),
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        secrets::Secrets,
        testing::{Rig, bundle, spec},
    };
    use http::HeaderValue;
    use jsonwebtoken::{EncodingKey, Header};
    use rcgen::{KeyPair, PKCS_ED25519};
    use roadstead_contract::{call::Act, control};
    use serde_json::{Value, json};

    fn with(headers: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_str(value).expect("a value"));
        }
        map
    }

    fn in_cluster(token: &str, delegates: bool, approve: bool) -> control::Caller {
        control::Caller {
            token_sha256: hex::encode(token_hash(token)),
            subject: token.to_owned(),
            delegates,
            approve,
        }
    }

    /// A token of the hub, with `claims` merged over good ones.
    fn sign(key: &EncodingKey, claims: &Value) -> String {
        let whole = Claims {
            iss: "https://hub".to_owned(),
            sub: "user:ann".to_owned(),
            aud: "agent-1".to_owned(),
            act: Act {
                sub: "hub".to_owned(),
            },
            approve: false,
            jti: "1".to_owned(),
            iat: 1_800_000_000,
            exp: 1_800_000_300,
        };
        let mut whole = serde_json::to_value(whole).expect("JSON");
        let more = claims.as_object().expect("an object").clone();
        whole.as_object_mut().expect("an object").extend(more);
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some("k1".to_owned());
        jsonwebtoken::encode(&header, &whole, key).expect("signed")
    }

    #[tokio::test]
    async fn s82_the_right_to_approve_is_given_by_name_and_to_nobody_else() {
        let pair = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let public = DecodingKey::from_ed_der(pair.public_key_raw());
        let mut jwk =
            jsonwebtoken::jwk::Jwk::from_decoding_key(&public, Some(Algorithm::EdDSA)).expect("a JWK");
        jwk.common.key_id = Some("k1".to_owned());
        let key = EncodingKey::from_ed_der(&pair.serialize_der());
        let rig = Rig::new(json!({}));
        let trust = Trust {
            jwks: Some(json!({"keys": [jwk]})),
            issuer: Some("https://hub".to_owned()),
            callers: vec![
                in_cluster("plain", false, false),
                in_cluster("approver", false, true),
                in_cluster("engine", true, true),
            ],
        };
        let applied = rig
            .engine
            .apply(bundle(&spec(json!({})), 2), Secrets::default(), trust);
        applied.expect("applied");
        let gate = gate(&rig, Mode::TrustOnly);
        let approves = async |headers: &[(&'static str, &str)]| {
            let known = gate.verify(&with(headers)).await;
            known.map(|caller| caller.approve)
        };
        let bearer = async |token: &str| approves(&[("authorization", &format!("Bearer {token}"))]).await;
        assert_eq!(bearer("plain").await, Ok(false));
        assert_eq!(bearer("approver").await, Ok(true));
        assert_eq!(
            bearer(&sign(&key, &json!({}))).await,
            Ok(false),
            "absent means no"
        );
        assert_eq!(
            bearer(&sign(&key, &json!({"approve": false, "jti": "2"}))).await,
            Ok(false)
        );
        assert_eq!(
            bearer(&sign(&key, &json!({"approve": true, "jti": "3"}))).await,
            Ok(true)
        );
        let told = bearer(&sign(&key, &json!({"approve": "yes", "jti": "4"}))).await;
        assert_eq!(told, Err(Denied::Unauthenticated), "a word is no boolean");
        let delegated = [("authorization", "Bearer engine"), (ON_BEHALF_OF, "user:root")];
        assert_eq!(
            approves(&delegated).await,
            Ok(false),
            "a model may be what speaks"
        );
    }

    #[tokio::test]
    async fn s82_whoever_runs_an_engine_alone_decides() {
        let rig = Rig::new(json!({}));
        let by_token = gate(&rig, Mode::Token(token_hash("t")));
        let known = by_token.verify(&with(&[("authorization", "Bearer t")])).await;
        assert!(known.expect("known").approve);
        let known = gate(&rig, Mode::Loopback).verify(&with(&[])).await;
        assert!(known.expect("known").approve);
    }

    fn gate(rig: &Rig, mode: Mode) -> Gate {
        let current = Arc::clone(&rig.engine.current);
        Gate::new(current, rig.clock.clone(), mode, rig.engine.journal.clone())
    }
}
