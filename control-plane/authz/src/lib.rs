//! Who acts, on whose behalf, and what they may do.
//!
//! A [`TenantContext`] is the key to everything that belongs to a tenant: the store answers nothing without one. It
//! is born in three places only, each of which holds the proof: an API token whose hash matches
//! ([`TenantContext::from_api_token`]), a cluster certificate that is known and not revoked
//! ([`TenantContext::from_cluster_certificate`]), and a named system task that works for one tenant
//! ([`TenantContext::from_system_task`]). `clippy.toml` bans calls of these three outside `service`, where each is
//! expected once. What a context may do is decided by one function, [`decide()`]; its yes is an [`Authorized`] value,
//! which the writing methods of the store ask for.
//!
//! A context cannot be made up:
//!
//! ```compile_fail
//! let context = roadstead_authz::TenantContext::default();
//! ```
//! ```compile_fail
//! fn forge(tenant: roadstead_domain::TenantId, actor: roadstead_authz::Actor) -> roadstead_authz::TenantContext {
//!     roadstead_authz::TenantContext { tenant, actor, ..todo!() }
//! }
//! ```
//! ```compile_fail
//! fn forge(tenant: roadstead_domain::TenantId) -> roadstead_authz::TenantContext {
//!     roadstead_authz::TenantContext::from(tenant)
//! }
//! ```
//!
//! And a permission to look is none to write:
//!
//! ```compile_fail
//! use roadstead_authz::{Authorized, act};
//! fn write(_: &Authorized<roadstead_domain::ProjectId, act::Write>) {}
//! fn look(seen: &Authorized<roadstead_domain::ProjectId, act::View>) {
//!     write(seen);
//! }
//! ```

mod action;
mod actor;
mod context;
mod decide;
mod secret;
mod system;

pub use action::{Action, act};
pub use actor::{Actor, ActorKind, Role, Scope};
pub use context::{
    CertificateRecord, PeerIdentity, RequestInfo, Source, TenantContext, TenantRecord, TokenRecord,
};
pub use decide::{Authorized, Decision, Denied, Object, Place, Resource, decide};
pub use secret::{Presented, SecretKind, mint};
pub use system::{SystemContext, SystemTask};
