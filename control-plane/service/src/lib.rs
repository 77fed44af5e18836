//! Every use case once: plain async functions over the store. GraphQL, gRPC, A2A, the CLI's server side and
//! background work all call these, so that an act means the same from every side.
//!
//! Each use case is one transaction. An accepted write leaves its audit record in that transaction; a denial leaves
//! one in a transaction of its own, after the refused one is gone. Inputs are values that the edges have parsed;
//! answers are the store's own types, which the edges wrap.

pub mod approvals;
pub mod audit;
pub mod authenticate;
pub mod bootstrap;
pub mod clusters;
pub mod commands;
pub mod documents;
pub mod fleet;
pub mod housekeeping;
pub mod platform;
pub mod projects;
pub mod roots;
pub mod runs;
pub mod together;
pub mod tokens;

mod idempotency;
mod observe;
mod placement;
mod stop;

pub use documents::{
    Answer, Applied, ApplyDocument, ApplyInput, Change, DeleteInput, Description, RollBackInput, Target,
    apply_documents, delete_document, describe, get_revision, invocable, list_objects, list_revisions,
    lookup, may_write_documents, roll_back,
};
pub use placement::DEFAULT_CLUSTER;
