//! The hub's side of the fleet protocol: enrolment, sessions, bulk, tunnel.
//!
//! One port with TLS 1.3: a client certificate is optional for the handshake, demanded by every service but
//! enrolment, and the only source of identity. Sessions read and write their cluster's rows through [`FleetStore`]:
//! [`memory`] is a model of it for simulations, the hub gives the real one. Listener, clock and randomness are
//! parameters.

mod bucket;
mod bulk;
mod door;
mod enrolment;
mod keystore;
mod listen;
pub mod memory;
mod pki;
mod registry;
pub mod roots;
#[cfg(test)]
mod roots_tests;
mod serve;
mod sql;
pub mod store;
mod sync;
mod tls;
mod together;
mod tunnel;

pub use keystore::{Folder, KeyStore, StoredRoots};
pub use listen::{Io, Listen};
pub use pki::{Authority, CLIENT_LIFE, Issued, PkiError, SERVER_LIFE};
pub use serve::{Fleet, Parts, ServeError, Settings};
pub use sql::Sql;
pub use store::FleetStore;
pub use tunnel::{RequestBody, TunnelBody, TunnelError, TunnelKind, TunnelRequest, TunnelResponse, Tunnels};
