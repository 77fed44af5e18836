//! The hub connection of a cluster agent: enrol, sync, renew, tunnel.
//!
//! The cluster agent dials; nothing listens. [`Link::run`] keeps one session alive through everything that can go
//! wrong with a network, under the rules of protocol.md: what the hub says goes into the inbox and is acknowledged
//! once it is on disk; what the cluster has to say (applied revisions, statuses, run records) goes up by
//! [`Reports`] and the inbox's outbox; calls to agents come down the tunnel to a [`TunnelHandler`].
//!
//! Connector, clock and randomness are parameters, so that a simulation runs this code unchanged.

mod backoff;
mod bulk;
mod channel;
mod clock;
mod convert;
mod enrol;
mod identity;
mod reports;
mod run;
mod runs;
mod session;
mod tls;
mod trust;
mod tunnel;

pub use channel::{Dial, Io, TcpDial};
pub use clock::{Clock, OsRandom, Random, SystemClock};
pub use identity::{Identity, IdentityError};
pub use reports::{HubKeys, LinkState, Reports};
pub use run::{Link, Parts, Settings};
pub use tunnel::{
    NoTunnel, TunnelBody, TunnelCall, TunnelFailure, TunnelHandler, TunnelKind, TunnelReply, TunnelStream,
};

/// Why the link gave up. Everything else it retries for as long as it runs; engines go on in any case.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("this cluster has no identity yet: start once with a join token from the hub")]
    NotEnrolled,
    #[error(
        "the hub refused the join token: it is unknown, used, or older than an hour. Make a new one for this cluster"
    )]
    JoinRefused,
    #[error("the hub refused the certificate request: {0}")]
    RequestRefused(String),
    #[error("the certificate expired while the hub was away: join again with a new token")]
    Expired,
    #[error(
        "the join token does not bring this cluster back: {0}. Make a new one for it; if the hub itself was made anew, or \
         this cluster was misled, remove identity.json first"
    )]
    NotAgain(String),
    #[error("the hub takes this cluster's certificate no more: {0}")]
    Revoked(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the inbox failed: {0}")]
    Inbox(#[from] roadstead_inbox::InboxError),
}
