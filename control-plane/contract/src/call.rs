//! What the hub says of a caller when it calls an engine: the claims of a JWT (RFC 7519) that the engine checks
//! with the keys of [`crate::control::Trust`], so without the hub.
//!
//! The token is signed with EdDSA (Ed25519), its header names the key (`kid`, an RFC 7638 thumbprint), and it is good
//! for one engine: an engine refuses a token whose audience is not its own agent's uid.

use serde::{Deserialize, Serialize};

/// How long a token is good for, in seconds.
pub const TOKEN_SECONDS: i64 = 300;

/// The claims; all but `approve` are required.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The hub: equals [`crate::control::Trust::issuer`].
    pub iss: String,
    /// For whom the call is made: the verified caller at the hub. Tasks belong to this subject (S75).
    pub sub: String,
    /// The uid of the one agent that may take the call.
    pub aud: String,
    /// Who makes the call for the subject (RFC 8693 §4.1).
    pub act: Act,
    /// Whether the subject may decide approvals of this agent (S82). Absent: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approve: bool,
    /// Unique for each token.
    pub jti: String,
    /// Seconds since the Unix epoch.
    pub iat: i64,
    /// [`TOKEN_SECONDS`] after `iat`.
    pub exp: i64,
}

/// The acting party.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    pub sub: String,
}
