//! The frames between a runtime and the engine it started: one JSON object a line, on the engine's standard input
//! and output. The pipe is inherited, so it needs no authentication; its end of file tells the engine that the
//! runtime is gone, and the engine then exits: no engine outlives its runtime.
//!
//! Secret values travel here and nowhere else: never in arguments, never in the environment.

use crate::{bundle::Bundle, documents::Money, run::RunRecord};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// Longest line either side accepts, in bytes.
pub const MAX_LINE: usize = 8 * 1024 * 1024;

/// Runtime → engine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "camelCase", deny_unknown_fields)]
pub enum ToEngine {
    /// Run this from the next task on. Answered by [`FromEngine::Applied`] or [`FromEngine::Refused`].
    Apply(Box<Apply>),
    /// Where the other agents of the bundle answer, by the reference that the bundle uses. Replaces the set before.
    Peers { peers: BTreeMap<String, Peer> },
    /// These run records are kept elsewhere now: everything up to `sequence`.
    RunsKept { sequence: u64 },
    /// Finish what runs within `grace_ms`, then exit.
    Drain { grace_ms: u64 },
}

/// A revision with what it needs to run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Apply {
    pub bundle: Bundle,
    /// Values of the environment references in the bundle, by variable name. Absent: not set.
    #[serde(default)]
    pub secrets: BTreeMap<String, SecretText>,
    pub trust: Trust,
}

/// Whose calls the engine accepts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Trust {
    /// The hub's public keys (JWK Set, RFC 7517) for tokens whose audience is this agent's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<serde_json::Value>,
    /// Expected `iss` of those tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// In-cluster callers with a token of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub callers: Vec<Caller>,
}

/// An in-cluster caller, known by the hash of its bearer token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Caller {
    /// SHA-256 of the token, in hex.
    pub token_sha256: String,
    /// Who it is (`agent:support/translator`, `local`).
    pub subject: String,
    /// Whether it may name the user it calls for, with the header [`ON_BEHALF_OF`]. A call of such a caller
    /// without the header is its own.
    #[serde(default)]
    pub delegates: bool,
    /// Whether it may decide approvals of its own tasks (S82); never for a user that it names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approve: bool,
}

/// The header in which one engine tells another for which user it calls.
pub const ON_BEHALF_OF: &str = "x-roadstead-on-behalf-of";
/// The header that carries how deep a chain of agent calls is; a call beyond 5 is refused.
pub const DEPTH: &str = "x-roadstead-depth";

/// The header with the uids of the agents that a chain of calls has gone through, separated by commas: an agent that
/// is in it already refuses the call.
pub const CHAIN: &str = "x-roadstead-chain";
/// The header with what the calling agent's limits leave for the call: JSON of [`Budget`].
pub const BUDGET: &str = "x-roadstead-budget";

/// What a task that another agent hands over may use up: it counts beside the called agent's own limits, so it can
/// only narrow them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Budget {
    /// Model calls.
    pub steps: u32,
    /// Tokens, input and output together.
    pub tokens: u64,
    pub tool_calls: u32,
    pub wall_time_ms: u64,
    /// One for each currency that is capped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub costs: Vec<Money>,
}

/// Another engine that this one may call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// Base URL of its A2A interface; its card is at `/.well-known/agent-card.json` below it.
    pub url: String,
    pub token: SecretText,
}

/// Engine → runtime.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "camelCase", deny_unknown_fields)]
pub enum FromEngine {
    /// The engine serves at this address (`127.0.0.1:41234`).
    Listening { address: String },
    /// The revision with this digest serves from now on.
    Applied { generation: u64, digest: String },
    /// The revision does not load; the one before goes on.
    Refused {
        generation: u64,
        digest: String,
        reason: String,
    },
    /// A run record from the outbox; sent again until [`ToEngine::RunsKept`] covers it.
    Run(Box<RunRecord>),
    /// Whether new tasks are taken.
    Ready { ready: bool, reason: String },
}

/// A secret value in transit: `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(value)
    }
    /// The value; the caller must not log, format or store it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}
