//! The A2A edge: conversations with agents, through the tunnel to their engines.
//!
//! A call is judged (only what the A2A protocol has passes), authorised for this one agent, given a token of the hub's
//! own in place of the caller's, sent through the tunnel and streamed back as it comes. The hub keeps nothing of it.
//! It goes wrong when the agent's cluster is away: then the caller is told at once, with since when.

mod agents;
mod approval;
mod card;
mod failure;
mod headers;
mod observe;
mod operation;
mod request;
mod serve;
mod stream;
mod target;
mod token;
mod tunnel;

pub use agents::ServiceAgents;
pub use request::Patience;
pub use target::{Agents, Placed, Target};
pub use token::{EngineKeys, Grant, KeyError};
pub use tunnel::{Chunks, EngineAnswer, EngineCall, Tunnel, TunnelError};

use axum::{Router, routing::any};
use roadstead_domain::Clock;
use roadstead_http::Bodies;
use std::sync::Arc;

/// What the edge needs.
#[derive(Debug)]
pub struct Gateway {
    pub agents: Arc<dyn Agents>,
    pub tunnel: Arc<dyn Tunnel>,
    pub keys: Arc<EngineKeys>,
    /// How the hub is reached from outside, without a slash at the end: `https://hub.example`.
    pub public_url: String,
    /// The most that a request may have.
    pub body_bytes: usize,
    /// What all faces hold of request bodies.
    pub bodies: Arc<Bodies>,
    pub patience: Patience,
    pub clock: Arc<dyn Clock>,
}

/// The most that a request may have, unless the composition root says otherwise: messages with files in them.
pub const BODY_BYTES: usize = 8 * 1024 * 1024;

/// Serves `/a2a/{tenant}/{project}/{agent}` and what A2A has below it. Needs login's layer around it, which puts the
/// caller's [`roadstead_authz::TenantContext`] into the request; without one every call fails.
pub fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/a2a/{*address}", any(serve::serve))
        .layer(axum::middleware::from_fn(observe::observe))
        .with_state(gateway)
}
